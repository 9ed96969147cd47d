"""What a process knows of an account, put into books that have lost some of it: a friend of the books it mends.

A database that forgets goes back to some earlier entry, or to none. Processes that were there know more, each as far
as it has read. Each enters its whole state, and this adds what is missing: every entry of a window has a stamp that no
other has, so what both know is counted once. In doubt it is counted twice, which is slow but never too much.
"""

# ruff: noqa: SLF001 - see above

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from kimi_async.budgets import Budgets, Charge
from kimi_async.window import CalendarLog, Entry, Log, SlidingLog

from .replica import Process, Replica
from .snapshot import State, restore


def recall(replica: Replica, state: State, teller: str, now: float) -> None:
    """Add what ``teller`` knew before; its own reservations are as it says."""
    known = restore(state)
    if replica.configured is None:
        replica.configured, replica.books = known.configured, known.books
        replica.processes, replica.line = known.processes, known.line
    else:
        _add_windows(replica.books, known.books)
        _add_lessons(replica.books, known.books)
        _add_processes(replica, known, teller)
    for process in replica.processes.values():
        process.seen = now  # nobody could give a sign of life that would have been kept


def _add_windows(books: Budgets, known: Budgets) -> None:
    stamps = {entry.at for entry in _entries(books.minute)}
    shared = [entry.at for entry in _entries(known.minute) if entry.at in stamps]
    since = min(shared, default=-math.inf)  # ours may have expired what is older
    missing = [entry for entry in _entries(known.minute) if entry.at not in stamps and entry.at > since]
    _insert(books.minute, missing)
    if not shared:
        _top_up(books.day, known.day)
    elif isinstance(books.day, CalendarLog):
        for entry in missing:
            books.day.add(entry.at, entry.requests, entry.tokens)
    else:
        _insert(books.day, missing)


def _top_up(log: Log, known: Log) -> None:
    """Buckets and days have their stamp too; what both have may be fuller in one of them."""
    ours = {entry.at: entry for entry in _entries(log)}
    missing = []
    for entry in _entries(known):
        mine = ours.get(entry.at, Entry(entry.at, 0, 0))
        more = max(entry.requests - mine.requests, 0), max(entry.tokens - mine.tokens, 0)
        missing.append(Entry(entry.at, *more))
    _insert(log, [entry for entry in missing if entry.requests or entry.tokens])


def _insert(log: Log, missing: Iterable[Entry]) -> None:
    copies = [Entry(entry.at, entry.requests, entry.tokens) for entry in missing]
    entries = _entries(log)
    ordered = sorted([*entries, *copies], key=lambda entry: entry.at)
    entries.clear()
    entries.extend(ordered)
    log.requests += sum(entry.requests for entry in copies)
    log.tokens += sum(entry.tokens for entry in copies)
    log.due = -math.inf


def _add_lessons(books: Budgets, known: Budgets) -> None:
    for budget, until in known._pauses.items():
        books._pauses[budget] = max(until, books._pauses.get(budget, until))
    if known.guard > books.guard:
        books._set_guard(known.guard)
        books._quiet_at = known._quiet_at


def _add_processes(replica: Replica, known: Replica, teller: str) -> None:
    minute = {entry.at: entry for entry in _entries(replica.books.minute)}
    day = {entry.at: entry for entry in _entries(replica.books.day)}
    for name, process in known.processes.items():
        if name != teller and name in replica.processes:
            continue  # it says for itself what it knows
        for charge in replica.processes.pop(name, Process("", 0.0, 0.0)).charges.values():
            _count(replica.books, charge, -1)
        replica.processes[name] = replace(process)
        for charge in process.charges.values():
            _count(replica.books, charge, +1)
            if charge.state == "sent":
                charge.minute_entry = minute.get(charge.minute_entry.at, Entry(-math.inf, 0, 0))
                charge.day_entry = day.get(charge.day_entry.at, Entry(-math.inf, 0, 0))
    for name in known.line:
        replica.line.setdefault(name)


def _count(books: Budgets, charge: Charge, number: int) -> None:
    books._in_flight += number
    if charge.state == "pending":
        books._pending += number
        books._pending_tokens += number * charge.tokens
    if number < 0 and charge is books.probe:
        books.probe = None


def _entries(log: Log) -> deque[Entry]:
    if isinstance(log, SlidingLog):
        return log._entries
    assert isinstance(log, CalendarLog)
    return log._days
