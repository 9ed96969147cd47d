"""A ledger that processes share: this process' end of it."""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import takewhile

from kimi_async.budgets import Charge, Denial, Lesson
from kimi_async.errors import ConfigurationError, LedgerUnavailable
from kimi_async.forecast import Forecast, time_to_send
from kimi_async.limits import Cost, RateLimits, Usage
from kimi_async.refusal import Refusal

from . import OnRoom
from .journal import Journal, Line, Read
from .replica import LEASE, TURN, Entry, Operation, Replica
from .snapshot import dump, restore

KEPT = 1_000
"""Entries after which the state is written down, so that older ones can be pruned."""

RETRY = 1.0
"""Seconds after which what could not be entered is tried again."""

LOOSENING: frozenset[Operation] = frozenset({"end", "cancel", "refuse", "leave", "pass", "dead", "part", "limits"})
"""Operations after which somebody who waits may look again; so he may after another's ``reserve``: the line moves."""


@dataclass(slots=True)
class _Told:
    """An operation to be entered; ``learned`` is told what a refusal taught."""

    operation: Operation
    detail: dict[str, object] = field(default_factory=dict)
    charge: Charge | None = None
    learned: Callable[[Lesson], None] | None = None


@dataclass(slots=True)
class _Asked:
    """A request that wants in."""

    cost: Cost
    answer: "asyncio.Future[Charge | Denial]"


class _Look:
    """There is something to be read."""


class SharedLedger:
    """The books of an account that several processes share through a `Journal`.

    What happens to a reservation takes effect for its owner at once and is entered in order by a task, which runs only
    while there is something to enter. A process that dies without a word gives its slots back after `LEASE` seconds.

    Args:
        journal: of the account.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._process = uuid.uuid4().hex
        self._address = ""
        self._replica = Replica()
        self._configured: RateLimits | None = None
        self._subscribers: list[OnRoom] = []
        self._numbers: dict[Charge, int] = {}
        self._queue: deque[_Told | _Asked | _Look] = deque()
        self._entering: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._kept = 0

    def __repr__(self) -> str:
        return f"<SharedLedger {self._journal!r}, {len(self._replica.processes)} processes>"

    # -- what the protocol asks for -----------------------------------------------------------------------------

    @property
    def limits(self) -> RateLimits:
        """The limits in force."""
        replica = self._replica
        return replica.books.limits if replica.configured else self._configured or replica.books.limits

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
        if not self._subscribers and self._process in self._replica.line:
            self._tell(_Told("leave"))

    def reserve_now(self, cost: Cost) -> None:
        """Nothing can be decided without asking the journal."""

    async def reserve(self, cost: Cost) -> Charge | Denial:
        """Take all four budgets, or none and say what is missing and for how long.

        Raises:
            LedgerUnavailable: the journal cannot be read or written.
            ConfigurationError: the account's limits are others, and processes that run have set them.
        """
        asked = _Asked(cost, asyncio.get_running_loop().create_future())
        self._tell(asked)
        try:
            return await asyncio.shield(asked.answer)
        except asyncio.CancelledError:
            asked.answer.add_done_callback(self._give_back)
            raise

    def sent(self, charge: Charge) -> None:
        """The request has been written: it counts from when that was entered, a moment later."""
        if charge.state != "pending":
            raise RuntimeError(f"this reservation is {charge.state} already; a request is sent once")
        charge.state = "sent"
        self._tell(_Told("sent", {}, charge))

    def end(self, charge: Charge, *, answered: bool) -> None:
        """Give the slot back; ``answered`` if the gateway let the request in."""
        self._close(charge)
        self._tell(_Told("end", {"answered": answered}, charge))

    def cancel(self, charge: Charge) -> None:
        """Give everything back; only before the request was sent."""
        if charge.state == "sent":
            raise RuntimeError("a request that was sent is charged; end its reservation instead")
        self._close(charge)
        self._tell(_Told("cancel", {}, charge))

    def refuse(self, charge: Charge, refusal: Refusal, learned: Callable[[Lesson], None]) -> None:
        """End a refused reservation and learn from the refusal; ``learned`` is told what, when it was entered."""
        self._close(charge)
        self._tell(_Told("refuse", asdict(refusal), charge, learned))

    def pause(self, refusal: Refusal) -> float:
        """Close a budget for a while; returns for how long."""
        self._tell(_Told("pause", asdict(refusal)))
        return self._replica.books.pause_length(refusal)

    def forecast(self, costs: Iterable[Cost]) -> Callable[[Cost], Denial]:
        """A function that says how long each further cost would wait; a lower bound, others may stand before it."""
        forecast = Forecast(self._replica.books, self._journal.now())
        for cost in costs:
            forecast.admit(cost)
        return forecast.admit

    def time_to_send(self, requests: int, tokens: int) -> float:
        """Seconds until so many requests can all have been sent, if nobody else sends any; a lower bound."""
        return time_to_send(self._replica.books, self._journal.now(), requests, tokens)

    def usage(self) -> Usage:
        """How much of each budget is taken, as far as this process has read."""
        return self._replica.books.usage(self._journal.now())

    async def refresh(self) -> None:
        """Read what others have entered."""
        self._take_in(await self._journal.append(self._replica.last, self._process, [], unless_tightened=False))

    async def aclose(self) -> None:
        """Enter what is still to be entered, say goodbye, and let go of the journal."""
        if self._renewal is not None:
            self._renewal.cancel()
        if self._process in self._replica.processes:
            self._tell(_Told("part"))
        if self._entering is not None:
            await asyncio.wait([self._entering])
        await self._journal.aclose()

    # -- entering -----------------------------------------------------------------------------------------------

    def _close(self, charge: Charge) -> None:
        if charge.state == "ended":
            raise RuntimeError("this reservation has ended already; it ends exactly once")
        charge.state = "ended"

    def _give_back(self, answer: "asyncio.Future[Charge | Denial]") -> None:
        if not answer.cancelled() and answer.exception() is None and isinstance(charge := answer.result(), Charge):
            self.cancel(charge)

    def _tell(self, what: _Told | _Asked | _Look) -> None:
        self._queue.append(what)
        if self._entering is None:
            self._entering = asyncio.get_running_loop().create_task(self._enter())

    async def _enter(self) -> None:
        """Work through the queue, in order."""
        try:
            while self._queue:
                await self._enter_some()
        except (LedgerUnavailable, ConfigurationError) as exc:
            self._turn_away(exc)
        finally:
            self._entering = None
        if self._queue:
            asyncio.get_running_loop().call_later(RETRY, self._try_again)

    def _try_again(self) -> None:
        if self._queue and self._entering is None:
            self._entering = asyncio.get_running_loop().create_task(self._enter())

    def _turn_away(self, exc: Exception) -> None:
        """Whoever wants in is told; what has happened is entered later."""
        for asked in [one for one in self._queue if isinstance(one, _Asked)]:
            self._queue.remove(asked)
            if not asked.answer.done():
                asked.answer.set_exception(exc)

    async def _enter_some(self) -> None:
        """All that comes before the next who wants in; if there is nothing, that one."""
        if isinstance(asked := self._queue[0], _Asked):
            await self._answer(asked)
            self._queue.popleft()
            return
        if isinstance(asked, _Look):
            await self.refresh()
            self._queue.popleft()
            return
        told = list(takewhile(lambda one: isinstance(one, _Told), self._queue))
        own, lessons = await self._append([self._line_of(one) for one in told])
        for one, entry in zip(told, own, strict=True):
            self._queue.popleft()
            assert isinstance(one, _Told)
            if one.charge is not None and one.operation != "sent":
                del self._numbers[one.charge]
            if one.learned is not None:
                one.learned(lessons.get(entry.id) or Lesson(explained=True))

    def _line_of(self, one: "_Told | _Asked | _Look") -> Line:
        assert isinstance(one, _Told)
        number = {} if one.charge is None else {"charge": self._numbers[one.charge]}
        return one.operation, one.detail | number

    async def _answer(self, asked: _Asked) -> None:
        """Let it in if there is room and no other's turn; decided anew if somebody else was let in meanwhile."""
        while not asked.answer.done():
            await self._greet()
            now, replica = self._journal.now(), self._replica
            departed: list[Line] = [
                (what, {"process": name}) for what, name in replica.departed(now) if name != self._process
            ]
            if departed:
                await self._append(departed)
                continue
            denial = replica.denial(now, self._process, asked.cost)
            if denial is None:
                own, _ = await self._append([("reserve", {"tokens": asked.cost.tokens})], unless_tightened=True)
                if own:
                    self._admit(asked, own[0])
                continue
            if self._process not in replica.line:
                await self._append([("wait", {})])
            if not asked.answer.done():
                asked.answer.set_result(denial)

    def _admit(self, asked: _Asked, entry: Entry) -> None:
        charge = Charge(asked.cost.tokens, 0)
        self._numbers[charge] = entry.id
        if asked.answer.done():
            self.cancel(charge)
        else:
            asked.answer.set_result(charge)

    async def _greet(self) -> None:
        """Take part, and see that all who do mean the same limits."""
        if self._process in self._replica.processes:
            return
        if not self._address:
            self._address = await self._journal.listen(self._wake_up)
        await self.refresh()
        lines: list[Line] = [("join", {"address": self._address})]
        known, ours = self._replica.configured, self._configured or RateLimits()
        if known != ours:
            if known is not None and (self._replica.processes or _spans(known) != _spans(ours)):
                raise ConfigurationError(f"this account's ledger has {known}; it cannot also have {ours}")
            lines.append(("limits", asdict(ours)))
        await self._append(lines, greeted=True)

    async def _append(
        self, lines: list[Line], *, unless_tightened: bool = False, greeted: bool = False
    ) -> tuple[list[Entry], dict[int, Lesson]]:
        """Enter lines; our entries, none if they were not to be, and what refusals among them taught."""
        if not greeted:
            await self._greet()
        first = self._replica.first()
        read = await self._journal.append(self._replica.last, self._process, lines, unless_tightened=unless_tightened)
        lessons = self._take_in(read)
        own = read.entries[-len(lines) :] if read.appended else []
        self._wake_next(first, own)
        self._keep_alive()
        if self._replica.last - self._kept > KEPT:
            self._kept = self._replica.last
            await self._journal.prune(dump(self._replica))
        return own, lessons

    def _take_in(self, read: Read) -> dict[int, Lesson]:
        if read.snapshot is not None:
            self._replica = restore(read.snapshot)
        lessons = {}
        loosened = False
        for entry in read.entries:
            if (lesson := self._replica.apply(entry)) is not None:
                lessons[entry.id] = lesson
            loosened |= entry.operation in LOOSENING or entry.process != self._process
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
        if now_first != first or any(entry.operation in LOOSENING for entry in own):
            self._journal.wake(self._replica.processes[now_first].address)

    def _wake_up(self) -> None:
        """Another process says that there is news for us."""
        if not any(isinstance(one, _Look) for one in self._queue):
            self._tell(_Look())

    def _keep_alive(self) -> None:
        """Show a sign of life in time, and with it read what others entered, as long as there is something at stake."""
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        waiting = self._process in self._replica.line
        if waiting or self._numbers:
            loop = asyncio.get_running_loop()
            self._renewal = loop.call_later(TURN if waiting else LEASE / 3, self._tell, _Told("alive"))


def _spans(limits: RateLimits) -> tuple[object, ...]:
    return limits.minute, limits.day, limits.day_zone
