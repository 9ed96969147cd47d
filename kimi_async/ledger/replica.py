"""An account's books as a function of its journal: every process that reads the same entries has the same books.

A shared ledger keeps no sums and decides nothing. It keeps a journal, in one order for all, and each process replays
it with the very `Budgets` that a single process uses, so the rule of admission and its proof are the same. A decision
to let a request in is an entry like any other; it is made by a process that has read all entries before it.

Between processes the heads of their lines take turns: a process whose request must wait joins the account's line, and
only the first in that line is let in. Admitted, it leaves the line, and joins again at the end for its next request.
So nobody is more than one request ahead of another who waits.

Pure arithmetic: times are arguments, in seconds of the journal's clock.
"""

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeVar

from kimi_async.budgets import Budgets, Charge, Denial, Lesson, Room
from kimi_async.limits import Cost, RateLimits, Usage
from kimi_async.refusal import Refusal
from kimi_async.window import Log

LEASE = 30.0
"""Seconds after which a process that gave no sign of life has died: its slots come back, its tokens stay charged."""

PATIENCE = 3.0
"""Seconds after which a process that stands in line and gave no sign of life is passed over; each gives one every
``TURN``."""

OUTAGE = 2 * LEASE / 3
"""Seconds without any entry after which silence proves nothing. A process with something at stake enters every third
of a lease that it lives, so either there was none, or the journal was away; who lives then has ``PATIENCE`` to say so.
"""

TURN = 1.0
"""Seconds between two looks of a process whose turn has not come, if no other process wakes it before."""

Operation = Literal[
    "join",
    "recall",
    "alive",
    "part",
    "dead",
    "limits",
    "wait",
    "leave",
    "pass",
    "reserve",
    "sent",
    "end",
    "cancel",
    "refuse",
]


class Entry(NamedTuple):
    """One line of the journal.

    Attributes:
        id: its number; later entries have higher ones.
        at: the journal's clock; never falls from entry to entry.
        process: whose it is.
        operation: what happened.
        detail: more about it; see `Replica`.
    """

    id: int
    at: float
    process: str
    operation: Operation
    detail: dict[str, object]


@dataclass(slots=True)
class Process:
    """One of the processes that share the account.

    Attributes:
        address: how others wake it.
        seen: its last sign of life.
        joined: its first.
        charges: the reservations that it holds, by the number of the entry that made them.
    """

    address: str
    seen: float
    joined: float
    charges: dict[int, Charge] = field(default_factory=dict)


class Replica:
    """The state of an account after the entries that were applied so far.

    ========= ======================================= ===============================================================
    operation detail                                  what it does
    ========= ======================================= ===============================================================
    join      ``address``                             a process begins to take part
    recall    the fields of `State`                   a process knows of entries that the database has lost
    alive                                             it still does
    part                                              it goes, as if it had died
    dead      ``process``                             somebody found that it had: what was pending counts as sent
    limits    the fields of `RateLimits`              the account's limits
    wait                                              the process' head stands in the account's line
    leave                                             it does so no longer
    pass      ``process``                             somebody found that it looks no longer, and passes it
    reserve   ``tokens``                              a request is let in, and out of the line
    sent      ``charge``                              it was written
    end       ``charge``, ``answered``                its slot is free
    cancel    ``charge``                              it was never sent
    refuse    ``charge``, the fields of `Refusal`,    the gateway refused it; closes a budget if it is new and to
              ``pause``
    ========= ======================================= ===============================================================
    """

    def __init__(self) -> None:
        self.books = Budgets(RateLimits())
        self.configured: RateLimits | None = None
        self.processes: dict[str, Process] = {}
        self.line: dict[str, None] = {}
        self.organization: str | None = None
        self.entries = 0
        self.last = 0
        self.now = 0.0
        self.resumed = -math.inf

    def apply(self, entry: Entry) -> Lesson | None:
        """Let an entry take effect; the lesson, if it is a refusal's."""
        if entry.at - self.now > OUTAGE:
            self.resumed = entry.at
        self.entries += 1
        self.last, self.now = entry.id, entry.at
        self.books.denial(entry.at, Cost(0))  # what the clock does to the books, it does here, for all alike
        if entry.operation == "recall":
            from .recall import recall  # noqa: PLC0415 - it imports this module

            recall(self, entry.detail, entry.process, entry.at)
        process = self.processes.get(entry.process)
        if entry.operation == "join":
            process = self.processes[entry.process] = Process(str(entry.detail["address"]), entry.at, entry.at)
        elif entry.operation == "limits":
            self._configure(RateLimits(**entry.detail))  # type: ignore[arg-type]
        if process is None:
            return None  # it was taken for dead, and its reservations have ended
        process.seen = entry.at
        if entry.operation in {"sent", "end", "cancel", "refuse"}:
            return self._settle(entry, process)
        if entry.operation == "reserve":
            process.charges[entry.id] = self.books.take(int(str(entry.detail["tokens"])))
        self._move_line(entry)
        return None

    def _move_line(self, entry: Entry) -> None:
        match entry.operation:
            case "wait":
                self.line.setdefault(entry.process)
            case "leave" | "reserve":
                self.line.pop(entry.process, None)
            case "part":
                self._remove(entry.process, entry.at)
            case "pass" | "dead":
                self._depart(entry.operation, str(entry.detail["process"]), entry.at)

    def _depart(self, operation: Operation, name: str, now: float) -> None:
        """It may have shown life in an entry that whoever entered this had not read."""
        if (operation, name) not in self.departed(now):
            return
        if operation == "dead":
            self._remove(name, now)
        else:
            del self.line[name]

    def _settle(self, entry: Entry, process: Process) -> Lesson | None:
        number = int(str(entry.detail["charge"]))
        charge = process.charges.get(number)
        if charge is None:
            return None
        if entry.operation == "sent":
            if charge.state == "pending":  # it may have been entered twice, where the first time's answer was lost
                self.books.sent(entry.at, charge)
            return None
        del process.charges[number]
        if entry.operation == "cancel":
            self.books.cancel(charge)
        elif entry.operation == "refuse":
            refusal = _refusal(entry.detail)
            self.organization = refusal.organization or self.organization
            return self.books.refuse(entry.at, charge, refusal, pause=bool(entry.detail.get("pause")))
        else:
            self._end(charge, entry.at, answered=bool(entry.detail["answered"]))
        return None

    def _end(self, charge: Charge, now: float, *, answered: bool) -> None:
        if charge.state == "pending":
            self.books.sent(now, charge)
        self.books.end(charge, answered=answered)

    def _remove(self, name: str, now: float) -> None:
        self.line.pop(name, None)
        process = self.processes.pop(name, None)
        for charge in process.charges.values() if process else ():
            self._end(charge, now, answered=False)

    def _configure(self, limits: RateLimits) -> None:
        """What refusals taught holds as long as the account's owner says the same."""
        if self.configured is None:
            self.books = Budgets(limits)
        elif limits != self.configured:
            self.books.limits = limits
        self.configured = limits

    # -- questions ----------------------------------------------------------------------------------------------

    def departed(self, now: float) -> Iterator[tuple[Operation, str]]:
        """What is to be entered about processes that show no life: they are passed over, and then dead."""
        if now - self.now > OUTAGE or now - self.resumed <= PATIENCE:
            return
        for name, process in self.processes.items():
            silence = now - process.seen
            if silence > LEASE:
                yield "dead", name
            elif silence > PATIENCE and name in self.line:
                yield "pass", name

    def dead(self, now: float) -> list[Process]:
        """Processes whose lease has ended: whoever asks next finds that, and gets their slots."""
        return [process for process in self.processes.values() if now - process.seen > LEASE]

    def usage(self, now: float) -> Usage:
        """How much of each budget is taken, without the slots of the dead."""
        usage = self.books_at(now).usage(now)
        slots = usage.concurrency.used - sum(len(process.charges) for process in self.dead(now))
        return replace(usage, concurrency=replace(usage.concurrency, used=slots))

    def alive(self, now: float) -> bool:
        """Whether a process has shown life lately."""
        return len(self.dead(now)) < len(self.processes)

    def first(self) -> str | None:
        """The process whose turn it is; None where nobody waits."""
        return next(iter(self.line), None)

    def verdict(self, now: float, process: str, cost: Cost) -> Room | Denial:
        """Why this process may not reserve now; if it may, what others may reserve besides."""
        if self.first() not in {None, process}:
            return Denial("turn", TURN)
        books = self.books_at(now)
        denial = books.denial(max(now, self.now), cost)
        return books.room_beside(cost.tokens) if denial is None else denial

    def books_at(self, now: float) -> Budgets:
        """The books to be asked what holds at ``now``. Asking changes them, so these are a copy.

        Did replicas change by what is asked of them, they would differ: a refusal takes tokens out of a window, and a
        pause widens it, and whoever has looked at a later time before he reads of it has forgotten more.
        """
        twin = copy(self.books)
        twin.minute, twin.day = _copy_log(twin.minute), _copy_log(twin.day)
        twin._pauses = dict(twin._pauses)  # noqa: SLF001 - which is cleared when a probe has passed
        return twin


SomeLog = TypeVar("SomeLog", bound=Log)


def _copy_log(log: SomeLog) -> SomeLog:
    """A log that can forget on its own; the entries are shared, for only a journal's entries change them."""
    twin = copy(log)
    for name in ("_entries", "_days"):
        if hasattr(twin, name):
            setattr(twin, name, copy(getattr(twin, name)))
    return twin


def _refusal(detail: dict[str, object]) -> Refusal:
    fields = {name: detail.get(name) for name in Refusal.__dataclass_fields__}
    return Refusal(**fields)  # type: ignore[arg-type]


def spans(limits: RateLimits) -> tuple[object, ...]:
    """What an account's windows are made of; a ledger keeps them as they were first."""
    return limits.minute, limits.day, limits.day_zone
