"""One process' part in an account's journal: it joins, enters, reads, shows life, and buries the dead."""

import os
import uuid
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict

from kimi_async.budgets import Lesson, Room
from kimi_async.errors import ConfigurationError, KimiError, LedgerUnavailable
from kimi_async.limits import RateLimits

from .journal import LOOSENING, Journal, Line, Read
from .replica import Entry, Operation, Replica, spans
from .snapshot import State, dump, restore

KEPT = 2_000
"""Entries after which the state is written down, so that older ones can be pruned."""


class Session:
    """A replica that is kept in step with a journal, and a name under which lines are entered; after a fork, no more.

    Args:
        journal: of the account.
        on_wake: called when another process says that there is news.
        on_read: called after each look at the journal, with our entries, and whether others, or they, may have left
            more room than before.
    """

    def __init__(
        self, journal: Journal, on_wake: Callable[[], None], on_read: Callable[[list[Entry], bool], None]
    ) -> None:
        self.journal = journal
        self.process = uuid.uuid4().hex
        self._pid = os.getpid()
        self.replica = Replica()
        self.configured: RateLimits | None = None
        self._on_wake = on_wake
        self._on_read = on_read
        self._loosened = False
        self._address = ""
        self._known: State | None = None

    @property
    def takes_part(self) -> bool:
        """Whether the journal knows this process, as far as it was read."""
        return self.process in self.replica.processes

    @property
    def waits(self) -> bool:
        """Whether it stands in the account's line."""
        return self.process in self.replica.line

    def charges(self) -> Collection[int]:
        """The numbers of our reservations in the books; none if we were taken for dead."""
        process = self.replica.processes.get(self.process)
        return process.charges if process else ()

    async def greet(self) -> None:
        """Take part, and see that all who do mean the same limits.

        Raises:
            ConfigurationError: processes that run mean others.
        """
        while not self.takes_part:
            if not self._address:
                self._address = await self.journal.listen(self._on_wake)
            await self.read()
            lines: list[Line] = [("join", {"address": self._address})]
            known, ours = self.replica.configured, self.configured or RateLimits()
            if known != ours:
                if known:
                    self._refuse_conflict(known, ours)
                lines.append(("limits", asdict(ours)))
            await self._append(lines, Room())

    def _refuse_conflict(self, known: RateLimits, ours: RateLimits) -> None:
        """Limits may change where nobody goes by the old ones; a window's length never, for what it holds."""
        if spans(known) != spans(ours):
            raise ConfigurationError(
                f"this account's ledger has a minute of {known.minute:g} s and a day of "
                f"{known.day_zone or f'{known.day:g} s'}, which cannot change: name another account"
            )
        if self.replica.alive(self.journal.now()):
            raise ConfigurationError(
                f"processes that run now share this account with {known}: "
                f"give all of them the same limits, not {ours}, or name another account"
            )

    async def bury(self) -> None:
        """Enter that others show no life, unless what they have entered since we read says otherwise."""
        if self._departed():
            await self.read()
        if departed := self._departed():
            await self._append(departed)

    def _departed(self) -> list[Line]:
        departed = self.replica.departed(self.journal.now())
        return [(what, {"process": name}) for what, name in departed if name != self.process]

    async def read(self) -> None:
        """Read what others entered."""
        self._take_in(await self._consult([]))
        self._report([])

    async def append(self, lines: list[Line], room: Room | None = None) -> tuple[list[Entry], dict[int, Lesson]]:
        """Enter lines, see `Journal.append`; our entries, if any, and what refusals among them taught, by number."""
        await self.greet()
        return await self._append(lines, room)

    async def _append(self, lines: list[Line], room: Room | None = None) -> tuple[list[Entry], dict[int, Lesson]]:
        next_ = self._next_after(lines)
        wake = None if next_ is None else self.replica.processes[next_].address
        read = await self._consult(lines, room, wake)
        first = self.replica.first()
        lessons = self._take_in(read)
        own = read.entries[-len(lines) :] if read.appended else []
        if own:
            self._wake_first(first, next_, own)
        self._report(own)
        if self._is_ours_to_prune(own):
            with suppress(KimiError):  # then it grows until the next time
                await self.journal.prune(dump(self.replica))
        return own, lessons

    def _is_ours_to_prune(self, own: list[Entry]) -> bool:
        """Whether one of our entries is the one in ``KEPT`` after which it is time: all processes count alike."""
        return bool(own) and self.replica.entries % KEPT < len(own)

    async def _consult(self, lines: list[Line], room: Room | None = None, wake: str | None = None) -> Read:
        """Enter lines, and before them what the journal has lost; whatever hangs on that is decided anew."""
        if os.getpid() != self._pid:
            raise LedgerUnavailable("this ledger was opened before a fork: open another one after it")
        if self._known is None:
            read = await self.journal.append(self.replica.last, self.process, lines, room, wake=wake)
            if not read.lost:
                return read
            self._begin_anew(read)
        while self._known is not None:
            known: Line = ("recall", self._known)
            read = await self.journal.append(self.replica.last, self.process, [known])
            if read.lost:
                self._begin_anew(read)
            else:
                self._known = None
                self._take_in(read)
        return await self._consult(lines, wake=wake) if room is None else Read(None, [], appended=False)

    def _begin_anew(self, read: Read) -> None:
        self._known = self._known or dump(self.replica)
        self.replica = Replica()
        self._take_in(read)

    def _take_in(self, read: Read) -> dict[int, Lesson]:
        if read.snapshot is not None:
            self.replica = restore(read.snapshot)
        lessons = {}
        self._loosened |= read.snapshot is not None
        for entry in read.entries:
            if (lesson := self.replica.apply(entry)) is not None:
                lessons[entry.id] = lesson
            self._loosened |= entry.process != self.process or self._loosens(entry.operation)
        return lessons

    def _report(self, own: list[Entry]) -> None:
        loosened, self._loosened = self._loosened, False
        self._on_read(own, loosened)

    def _next_after(self, lines: list[Line]) -> str | None:
        """The other process whose turn it will be, as far as we have read, if these lines are news to it."""
        gone = {self.process for what, _ in lines if what in {"reserve", "leave", "part"}}
        gone |= {str(detail["process"]) for what, detail in lines if what in {"pass", "dead"}}
        first = next((name for name in self.replica.line if name not in gone), None)
        moves = first != self.replica.first() or any(self._loosens(what) for what, _ in lines)
        return first if moves and first != self.process else None

    def _wake_first(self, first: str | None, woken: str | None, own: list[Entry]) -> None:
        """Wake the process whose turn it is, if what we entered is news to it and we have not woken it by that."""
        now_first = self.replica.first()
        if now_first in {None, self.process, woken}:
            return
        if now_first != first or any(self._loosens(entry.operation) for entry in own):
            self.journal.wake(self.replica.processes[now_first].address)

    def _loosens(self, operation: Operation) -> bool:
        """Whether somebody who waits may look again: a probe, once sent, passes by the clock."""
        return operation in LOOSENING or (operation == "sent" and self.replica.books.probe is not None)

    async def namesakes(self) -> tuple[str, ...]:
        """Other accounts of the same database that refusals named the same organization for."""
        organization = self.replica.organization
        if organization is None:
            return ()
        return tuple(await self.journal.claim(organization))
