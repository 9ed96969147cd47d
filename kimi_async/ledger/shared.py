"""A ledger that processes share: this process' end of it."""

import asyncio
import uuid
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import asdict

from kimi_async.budgets import Charge, Denial, Lesson
from kimi_async.errors import ConfigurationError, KimiError, LedgerUnavailable
from kimi_async.forecast import Forecast, time_to_send
from kimi_async.limits import Cost, RateLimits, Usage
from kimi_async.refusal import Refusal

from . import OnRoom
from .journal import LOOSENING, Journal, Line, Read
from .pending import Asked, Look, Pending, Told
from .replica import LEASE, TURN, Entry, Replica, spans
from .snapshot import State, dump, restore
from .view import AccountView, view

KEPT = 1_000
"""Entries read after which the state is written down, so that older ones can be pruned."""

RETRY = 1.0
"""Seconds after which what could not be entered is tried again."""


class SharedLedger:
    """The books of an account that several processes share through a `Journal`.

    What happens to a reservation takes effect for its owner at once and is entered in order by a task, which runs only
    while there is something to enter. A process that dies without a word gives its slots back after `LEASE` seconds.

    Args:
        journal: of the account.
        patient: whether requests wait where the journal cannot be reached; else they get LedgerUnavailable.
    """

    def __init__(self, journal: Journal, *, patient: bool = True) -> None:
        self._journal = journal
        self._patient = patient
        self._process = uuid.uuid4().hex
        self._address = ""
        self._replica = Replica()
        self._configured: RateLimits | None = None
        self._subscribers: list[OnRoom] = []
        self._numbers: dict[Charge, int] = {}
        self._queue = Pending()
        self._entering: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._unkept = 0
        self._known: State | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<SharedLedger {self._journal!r}, {len(self._replica.processes)} processes>"

    # -- what the protocol asks for -----------------------------------------------------------------------------

    @property
    def limits(self) -> RateLimits:
        """The limits in force."""
        ours, replica = self._configured, self._replica
        return ours if ours is not None and ours != replica.configured else replica.books.limits

    def configure(self, limits: RateLimits) -> None:
        """Set the account's limits; raises ConfigurationError where this process has set others."""
        if self._configured not in {None, limits}:
            raise ConfigurationError(f"this ledger's account has {self._configured}; it cannot also have {limits}")
        self._configured = limits

    def subscribe(self, on_room: OnRoom) -> None:
        """Call ``on_room`` whenever there may be room sooner than the last denial said, until unsubscribed."""
        self._subscribers.append(on_room)

    def unsubscribe(self, on_room: OnRoom) -> None:
        """Call it no longer; with the last one the process leaves the account's line."""
        self._subscribers.remove(on_room)
        self._leave_unwanted()

    def reserve_now(self, cost: Cost) -> None:
        """Nothing can be decided without asking the journal."""

    async def reserve(self, cost: Cost) -> Charge | Denial:
        """Take all four budgets, or none and say what is missing and for how long.

        Raises:
            LedgerUnavailable: the journal cannot be reached, and this ledger is not patient.
            ConfigurationError: the account's limits are others, and processes that run have set them.
        """
        asked = Asked(cost, asyncio.get_running_loop().create_future())
        self._tell(asked)
        try:
            return await asked.answer
        except asyncio.CancelledError:
            if not asked.answer.cancelled() and isinstance(charge := asked.answer.result(), Charge):
                self.cancel(charge)  # it had come in the meantime
            raise

    def sent(self, charge: Charge) -> None:
        """The request has been written: it counts from when that was entered, a moment later."""
        if charge.state != "pending":
            raise RuntimeError(f"this reservation is {charge.state} already; a request is sent once")
        charge.state = "sent"
        self._tell(Told("sent", charge=charge))

    def end(self, charge: Charge, *, answered: bool) -> None:
        """Give the slot back; ``answered`` if the gateway let the request in."""
        self._close(charge)
        self._tell(Told("end", {"answered": answered}, charge))

    def cancel(self, charge: Charge) -> None:
        """Give everything back; only before the request was sent."""
        if charge.state == "sent":
            raise RuntimeError("a request that was sent is charged; end its reservation instead")
        self._close(charge)
        self._tell(Told("cancel", {}, charge))

    def refuse(self, charge: Charge, refusal: Refusal, learned: Callable[[Lesson], None]) -> None:
        """End a refused reservation and learn from the refusal; ``learned`` is told what, when it was entered."""
        self._close(charge)
        self._tell(Told("refuse", asdict(refusal), charge, learned))

    def pause(self, refusal: Refusal) -> float:
        """Close a budget for a while; returns for how long."""
        self._tell(Told("pause", asdict(refusal)))
        return self._replica.books.pause_length(refusal)

    def forecast(self, costs: Iterable[Cost]) -> Callable[[Cost], Denial]:
        """A function that says how long each further cost would wait; a lower bound, others may stand before it."""
        now = self._journal.now()
        forecast = Forecast(self._replica.books_at(now), now)
        for cost in costs:
            forecast.admit(cost)
        return forecast.admit

    def time_to_send(self, requests: int, tokens: int) -> float:
        """Seconds until so many requests can all have been sent, if nobody else sends any; a lower bound."""
        now = self._journal.now()
        return time_to_send(self._replica.books_at(now), now, requests, tokens)

    def usage(self) -> Usage:
        """How much of each budget is taken, as far as this process has read."""
        now = self._journal.now()
        return self._replica.books_at(now).usage(now)

    def view(self) -> AccountView:
        """Everything about the account, as far as this process has read."""
        return view(self._replica, self._journal.now())

    async def refresh(self) -> None:
        """Enter what has happened here, and read what others entered. Raises LedgerUnavailable."""
        answer = asyncio.get_running_loop().create_future()
        self._tell(Look(answer))
        await answer

    async def aclose(self) -> None:
        """Enter what is still to be entered, say goodbye, and let go of the journal.

        What is under way counts as sent and ended; nothing that happens to it later is entered.
        """
        if self._closed:
            return
        self._closed = True
        if self._entering is not None:
            await asyncio.wait([self._entering])
        if self._process in self._replica.processes:
            with suppress(LedgerUnavailable):  # then the lease will end
                await self._append([*map(self._line_of, self._queue.told()), ("part", {})])
        if self._renewal is not None:
            self._renewal.cancel()
        await self._journal.aclose()

    # -- entering -----------------------------------------------------------------------------------------------

    def _close(self, charge: Charge) -> None:
        if charge.state == "ended":
            raise RuntimeError("this reservation has ended already; it ends exactly once")
        charge.state = "ended"

    def _tell(self, what: Told | Asked | Look) -> None:
        if not self._closed:
            self._queue.append(what)
            self._try_again()
        elif not isinstance(what, Told) and what.answer is not None:
            what.answer.set_exception(LedgerUnavailable("this ledger was closed"))

    def _try_again(self) -> None:
        if self._queue and self._entering is None and not self._closed:
            with suppress(RuntimeError):  # no loop runs any more: it waits for one, or for the lease to end
                self._entering = asyncio.get_running_loop().create_task(self._enter())

    async def _enter(self) -> None:
        """Work through the queue, in order."""
        try:
            while self._queue:
                await self._enter_some()
        except KimiError as exc:
            self._queue.turn_away(exc, patient=self._patient and isinstance(exc, LedgerUnavailable))
        except BaseException as exc:
            self._queue.turn_away(LedgerUnavailable(f"{self._journal!r}: {exc!r}"))
            raise
        finally:
            self._entering = None
        if self._queue:
            asyncio.get_running_loop().call_later(RETRY, self._try_again)

    async def _enter_some(self) -> None:
        """All that comes before the next who asks; if there is nothing, that one."""
        first = self._queue[0]
        if isinstance(first, Told):
            await self._enter_told()
            return
        if isinstance(first, Asked):
            await self._answer(first)
        else:
            await self._read()
            if first.answer is not None and not first.answer.done():
                first.answer.set_result(None)
        self._queue.popleft()

    async def _enter_told(self) -> None:
        told = self._queue.told()
        own, lessons = await self._append([self._line_of(one) for one in told])
        for one, entry in zip(told, own, strict=True):
            self._queue.popleft()
            if one.charge is not None and one.operation != "sent":
                del self._numbers[one.charge]
            if one.learned is not None:  # soon, for an error in what others do with it must not stop this task
                lesson = lessons.get(entry.id) or Lesson(explained=True)
                asyncio.get_running_loop().call_soon(one.learned, lesson)
        if any(one.operation == "alive" for one in told):
            await self._bury()

    def _line_of(self, one: Told) -> Line:
        number = {} if one.charge is None else {"charge": self._numbers[one.charge]}
        return one.operation, one.detail | number

    async def _answer(self, asked: Asked) -> None:
        """Let it in if there is room and no other's turn; decided anew if somebody else was let in meanwhile."""
        has_read = False
        while not asked.answer.done():
            await self._greet()
            await self._bury()
            denial = self._replica.denial(self._journal.now(), self._process, asked.cost)
            if denial is None:
                own, _ = await self._append([("reserve", {"tokens": asked.cost.tokens})], unless_tightened=True)
                if own and own[0].id in self._charges():
                    self._admit(asked, own[0])
            elif self._subscribers and self._process not in self._replica.line:
                await self._append([("wait", {})])  # and look again, at what that has read
            elif self._subscribers or has_read:
                asked.answer.set_result(denial)
            else:
                await self._read()
                has_read = True

    def _charges(self) -> Collection[int]:
        """The numbers of our reservations in the books; none if we were taken for dead."""
        process = self._replica.processes.get(self._process)
        return process.charges if process else ()

    def _admit(self, asked: Asked, entry: Entry) -> None:
        charge = Charge(asked.cost.tokens, 0)
        self._numbers[charge] = entry.id
        if asked.answer.done():
            self.cancel(charge)
        else:
            asked.answer.set_result(charge)

    async def _greet(self) -> None:
        """Take part, and see that all who do mean the same limits."""
        while self._process not in self._replica.processes:
            if not self._address:
                self._address = await self._journal.listen(self._wake_up)
            await self._read()
            lines: list[Line] = [("join", {"address": self._address})]
            known, ours = self._replica.configured, self._configured or RateLimits()
            if known != ours:
                dead = sum(operation == "dead" for operation, _ in self._departed())
                if known and (len(self._replica.processes) > dead or spans(known) != spans(ours)):
                    raise ConfigurationError(f"this account's ledger has {known}; it cannot also have {ours}")
                lines.append(("limits", asdict(ours)))
            await self._append(lines, unless_tightened=True, greeted=True)

    def _departed(self) -> list[Line]:
        departed = self._replica.departed(self._journal.now())
        return [(what, {"process": name}) for what, name in departed if name != self._process]

    async def _bury(self) -> None:
        """Enter that others show no life, unless what they have entered since we read says otherwise."""
        if self._departed():
            await self._read()
        if departed := self._departed():
            await self._append(departed)

    async def _read(self) -> None:
        self._take_in(await self._consult([]))
        self._disown([])

    async def _consult(self, lines: list[Line], *, unless_tightened: bool = False) -> Read:
        """Enter lines, and before them what the journal has lost; whatever hangs on that is decided anew."""
        if self._known is None:
            read = await self._journal.append(
                self._replica.last, self._process, lines, unless_tightened=unless_tightened
            )
            if not read.lost:
                return read
            self._begin_anew(read)
        while self._known is not None:
            known: Line = ("recall", self._known)
            read = await self._journal.append(self._replica.last, self._process, [known], unless_tightened=False)
            if read.lost:
                self._begin_anew(read)
            else:
                self._known = None
                self._take_in(read)
        return Read(None, [], appended=False) if unless_tightened else await self._consult(lines)

    def _begin_anew(self, read: Read) -> None:
        self._known = self._known or dump(self._replica)
        self._replica = Replica()
        self._take_in(read)

    async def _append(
        self, lines: list[Line], *, unless_tightened: bool = False, greeted: bool = False
    ) -> tuple[list[Entry], dict[int, Lesson]]:
        """Enter lines; our entries, none if they were not to be, and what refusals among them taught."""
        if not greeted:
            await self._greet()
        first = self._replica.first()
        read = await self._consult(lines, unless_tightened=unless_tightened)
        lessons = self._take_in(read)
        own = read.entries[-len(lines) :] if read.appended else []
        self._wake_next(first, own)
        self._disown(own)
        self._leave_unwanted()
        self._keep_alive()
        if own and self._unkept > KEPT:
            self._unkept = 0
            with suppress(LedgerUnavailable):  # then it grows until the next time
                await self._journal.prune(dump(self._replica))
        return own, lessons

    def _disown(self, own: list[Entry]) -> None:
        """Give back what was reserved for us by an entry that we were told had failed."""
        numbers = {*self._numbers.values(), *(entry.id for entry in own)}
        for number in [number for number in self._charges() if number not in numbers]:
            stray = Charge(0, 0)
            self._numbers[stray] = number
            self.cancel(stray)

    def _take_in(self, read: Read) -> dict[int, Lesson]:
        if read.snapshot is not None:
            self._replica = restore(read.snapshot)
        self._unkept = len(read.entries) if read.snapshot else self._unkept + len(read.entries)
        lessons = {}
        loosened = read.snapshot is not None
        for entry in read.entries:
            if (lesson := self._replica.apply(entry)) is not None:
                lessons[entry.id] = lesson
            loosened |= entry.process != self._process or self._loosens(entry)
        if loosened:
            for on_room in tuple(self._subscribers):
                on_room(slot_only=False)
        return lessons

    # -- others -------------------------------------------------------------------------------------------------

    def _wake_next(self, first: str | None, own: list[Entry]) -> None:
        """Wake the process whose turn it is, if what we entered is news to it."""
        now_first = self._replica.first()
        if now_first is None or now_first == self._process:
            return
        if now_first != first or any(map(self._loosens, own)):
            self._journal.wake(self._replica.processes[now_first].address)

    def _loosens(self, entry: Entry) -> bool:
        """Whether somebody who waits may look again: a probe, once sent, passes by the clock."""
        return entry.operation in LOOSENING or (entry.operation == "sent" and self._replica.books.probe is not None)

    def _leave_unwanted(self) -> None:
        """Nobody here waits any more, though somebody did when we joined the line."""
        if not self._subscribers and self._process in self._replica.line:
            self._tell(Told("leave"))

    def _wake_up(self) -> None:
        """Another process says that there is news for us."""
        if not any(isinstance(one, Look) for one in self._queue):
            self._tell(Look())

    def _keep_alive(self) -> None:
        """Show a sign of life in time, and read with it what others entered, as long as something is at stake."""
        if self._renewal is not None:
            self._renewal.cancel()
        waiting = self._process in self._replica.line
        if waiting or self._charges():
            seconds = TURN if waiting else LEASE / 3
            self._renewal = asyncio.get_running_loop().call_later(seconds, self._tell, Told("alive"))
