"""A replica written down, so that nobody has to read a journal from its beginning: a friend of the books it copies."""

# ruff: noqa: SLF001 - see above

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from kimi_async.budgets import Budgets, Charge
from kimi_async.limits import RateLimits
from kimi_async.window import CalendarLog, Entry, SlidingLog

from .replica import Process, Replica

State = dict[str, Any]
"""JSON, with infinities as null."""


def dump(replica: Replica) -> State:
    """The whole state, as JSON holds it."""
    books = replica.books
    minute, day = _entries(books.minute), _entries(books.day)
    minute_places, day_places = _places(minute), _places(day)
    charges = [
        {
            "process": name,
            "number": number,
            "tokens": charge.tokens,
            "round": charge.round,
            "state": charge.state,
            "minute": minute_places.get(id(getattr(charge, "minute_entry", None))),
            "day": day_places.get(id(getattr(charge, "day_entry", None))),
        }
        for name, process in replica.processes.items()
        for number, charge in process.charges.items()
    ]
    probes = [charge["number"] for charge, one in zip(charges, _charges(replica), strict=True) if one is books.probe]
    return {
        "organization": replica.organization,
        "entries": replica.entries,
        "last": replica.last,
        "now": replica.now,
        "resumed": None if math.isinf(replica.resumed) else replica.resumed,
        "configured": None if replica.configured is None else asdict(replica.configured),
        "limits": asdict(books.limits),
        "processes": {name: [one.address, one.seen, one.joined] for name, one in replica.processes.items()},
        "line": list(replica.line),
        "charges": charges,
        "probe": probes[0] if probes else None,
        "minute": [[entry.at, entry.requests, entry.tokens] for entry in minute],
        "day": [[entry.at, entry.requests, entry.tokens] for entry in day],
        "day_first": books.day._first if isinstance(books.day, SlidingLog) else 0.0,
        "guard": books.guard,
        "quiet_at": None if math.isinf(books._quiet_at) else books._quiet_at,
        "sent": [books._requests_sent, books._tokens_charged, books._peak],
        "pauses": dict(books._pauses),
        "streak": books._streak,
        "round": books._round,
    }


def restore(state: State) -> Replica:
    """The replica that ``dump`` wrote down."""
    replica = Replica()
    replica.organization, replica.entries = state["organization"], state["entries"]
    replica.last, replica.now = state["last"], state["now"]
    replica.resumed = -math.inf if state["resumed"] is None else state["resumed"]
    replica.configured = None if state["configured"] is None else RateLimits(**state["configured"])
    replica.processes = {name: Process(*fields) for name, fields in state["processes"].items()}
    replica.line = dict.fromkeys(state["line"])
    books = replica.books = Budgets(RateLimits(**state["limits"]))
    books._set_guard(state["guard"])
    books._quiet_at = math.inf if state["quiet_at"] is None else state["quiet_at"]
    minute = _fill(books.minute, state["minute"])
    day = _fill(books.day, state["day"])
    if isinstance(books.day, SlidingLog):
        books.day._first = state["day_first"]
    books._requests_sent, books._tokens_charged, books._peak = state["sent"]
    books._pauses = dict(state["pauses"])
    books._streak, books._round = state["streak"], state["round"]
    for written in state["charges"]:
        _restore_charge(replica, written, minute, day, is_probe=written["number"] == state["probe"])
    return replica


def _restore_charge(
    replica: Replica, written: State, minute: list[Entry], day: list[Entry], *, is_probe: bool
) -> None:
    books = replica.books
    charge = Charge(written["tokens"], written["round"])
    charge.state = written["state"]
    books._in_flight += 1
    if charge.state == "pending":
        books._pending += 1
        books._pending_tokens += charge.tokens
    else:
        gone = Entry(-math.inf, 0, 0)  # it has left its window by itself
        charge.minute_entry = gone if written["minute"] is None else minute[written["minute"]]
        charge.day_entry = gone if written["day"] is None else day[written["day"]]
    if is_probe:
        books.probe = charge
    replica.processes[written["process"]].charges[written["number"]] = charge


def _charges(replica: Replica) -> Iterable[Charge]:
    return (charge for process in replica.processes.values() for charge in process.charges.values())


def _entries(log: object) -> list[Entry]:
    if isinstance(log, SlidingLog):
        return list(log._entries)
    assert isinstance(log, CalendarLog)
    return list(log._days)


def _places(entries: list[Entry]) -> dict[int, int]:
    return {id(entry): place for place, entry in enumerate(entries)}


def _fill(log: object, written: Iterable[tuple[float, int, int]]) -> list[Entry]:
    entries = [Entry(at, requests, tokens) for at, requests, tokens in written]
    assert isinstance(log, SlidingLog | CalendarLog)
    (log._entries if isinstance(log, SlidingLog) else log._days).extend(entries)
    log.requests = sum(entry.requests for entry in entries)
    log.tokens = sum(entry.tokens for entry in entries)
    log.due = -math.inf
    return entries
