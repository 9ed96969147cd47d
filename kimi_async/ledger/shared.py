"""A ledger that processes share: this process' end of it."""

import asyncio
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from itertools import islice

from kimi_async.budgets import Budgets, Charge, Denial, Lesson, Room
from kimi_async.errors import ConfigurationError, KimiError, LedgerUnavailable
from kimi_async.events import EventHook, LedgerAway, LedgerBack, SameOrganization, log_event
from kimi_async.forecast import Forecast, time_to_send
from kimi_async.limits import Cost, RateLimits, Usage
from kimi_async.refusal import Refusal

from . import OnRoom, WhenAway
from .journal import Journal, Line
from .pending import Asked, Look, Pending, Told
from .replica import LEASE, TURN, Entry
from .session import Session
from .share import Share
from .view import AccountView, view

RETRY = 1.0
"""Seconds after which what could not be entered is tried again."""


class SharedLedger:
    """The books of an account that several processes share through a `Journal`.

    What happens to a reservation takes effect for its owner at once and is entered in order by a task, which runs only
    while there is something to enter. A process that dies without a word gives its slots back after `LEASE` seconds.

    Args:
        journal: of the account.
        when_away: what happens to requests while the journal cannot be reached; see `open_ledger`.
        on_event: is told when it goes, and when it is back.
    """

    def __init__(self, journal: Journal, *, when_away: WhenAway = "wait", on_event: EventHook = log_event) -> None:
        self._journal = journal
        self._session = Session(journal, self._wake_up, self._has_read)
        self._when_away: WhenAway = when_away
        self._on_event = on_event
        self._configured: RateLimits | None = None
        self._subscribers: list[OnRoom] = []
        self._numbers: dict[Charge, int] = {}
        self._queue = Pending()
        self._entering: asyncio.Task[None] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._away_since: float | None = None
        self._share = Share()
        self._has_told_namesakes = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<SharedLedger {self._journal!r}, {len(self._session.replica.processes)} processes>"

    # -- what the protocol asks for -----------------------------------------------------------------------------

    @property
    def limits(self) -> RateLimits:
        """The limits in force."""
        ours, replica = self._configured, self._session.replica
        return ours if ours is not None and ours != replica.configured else replica.books.limits

    def configure(self, limits: RateLimits) -> None:
        """Set the account's limits; raises ConfigurationError where this process has set others."""
        if self._configured not in {None, limits}:
            raise ConfigurationError(f"this ledger's account has {self._configured}; it cannot also have {limits}")
        self._configured = self._session.configured = limits

    def subscribe(self, on_room: OnRoom) -> None:
        """Call ``on_room`` whenever there may be room sooner than the last denial said, until unsubscribed."""
        self._subscribers.append(on_room)

    def unsubscribe(self, on_room: OnRoom) -> None:
        """Call it no longer; with the last one the process leaves the account's line."""
        self._subscribers.remove(on_room)
        self._leave_unwanted()

    def reserve_now(self, cost: Cost) -> Charge | Denial | None:
        """None, for nothing can be decided without asking the journal; while that is away, what the share allows."""
        return self._share.reserve(self._journal.now(), cost)

    async def reserve(self, cost: Cost) -> Charge | Denial:
        """Take all four budgets, or none and say what is missing and for how long.

        Raises:
            LedgerUnavailable: the journal cannot be reached, and requests are to fail then.
            ConfigurationError: the account's limits are others, and processes that run have set them.
        """
        if (verdict := self.reserve_now(cost)) is not None:
            return verdict
        asked = Asked(cost, asyncio.get_running_loop().create_future())
        self._tell(asked)
        try:
            return await asked.answer
        except asyncio.CancelledError:
            if (charge := asked.charge()) is not None:
                self.cancel(charge)  # it had come in the meantime
            raise

    def sent(self, charge: Charge) -> None:
        """The request has been written: it counts from when that was entered, a moment later."""
        if charge.state != "pending":
            raise RuntimeError(f"this reservation is {charge.state} already; a request is sent once")
        charge.state = "sent"
        if self._share.sent(self._journal.now(), charge):
            self._notify()
        self._tell(Told("sent", charge=charge))

    def end(self, charge: Charge, *, answered: bool) -> None:
        """Give the slot back; ``answered`` if the gateway let the request in."""
        self._close(charge)
        charge.answered = answered
        if self._share.end(self._journal.now(), charge, answered=answered):
            self._notify()
        self._tell(Told("end", {"answered": answered}, charge))

    def cancel(self, charge: Charge) -> None:
        """Give everything back; only before the request was sent."""
        if charge.state == "sent":
            raise RuntimeError("a request that was sent is charged; end its reservation instead")
        self._close(charge)
        if self._share.cancel(charge):
            self._notify()
        self._tell(Told("cancel", {}, charge))

    def refuse(self, charge: Charge, refusal: Refusal, learned: Callable[[Lesson], None], *, pause: bool) -> None:
        """End a refused reservation and learn from the refusal; ``learned`` is told what, when it was entered."""
        self._close(charge)
        now, detail = self._journal.now(), asdict(refusal) | {"pause": pause}
        lesson = self._share.refuse(now, charge, refusal, pause=pause)
        self._tell(Told("refuse", detail, charge, learned if lesson is None else None, now))
        if lesson is not None:
            self._notify()
            learned(lesson)

    def _close(self, charge: Charge) -> None:
        if charge.state == "ended":
            raise RuntimeError("this reservation has ended already; it ends exactly once")
        charge.state = "ended"

    def forecast(self, costs: Iterable[Cost]) -> Callable[[Cost], Denial]:
        """A function that says how long each further cost would wait; a lower bound, others may stand before it."""
        books, now = self._books()
        forecast = Forecast(books, now)
        for cost in costs:
            forecast.admit(cost)
        return forecast.admit

    def time_to_send(self, requests: int, tokens: int) -> float:
        """Seconds until so many requests can all have been sent, if nobody else sends any; a lower bound."""
        books, now = self._books()
        return time_to_send(books, now, requests, tokens)

    def usage(self) -> Usage:
        """How much of each budget is taken, as far as this process has read."""
        return self._session.replica.usage(self._journal.now())

    def _books(self) -> tuple[Budgets, float]:
        """Those that are, under the limits that will hold when this process has entered its own."""
        now, replica = self._journal.now(), self._session.replica
        if replica.configured is None:
            return Budgets(self.limits), now
        books = replica.books_at(now)
        books.limits = self.limits
        return books, now

    def view(self) -> AccountView:
        """Everything about the account, as far as this process has read."""
        return view(self._session.replica, self._journal.now())

    async def namesakes(self) -> tuple[str, ...]:
        """All accounts of the ledger that are the same organization to Kimi as this one, if it is not the only one."""
        return await self._session.namesakes()

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
        try:
            if self._entering is not None:
                await asyncio.wait([self._entering])
            with suppress(KimiError):  # then the lease will end
                await self._say_goodbye()
        finally:
            self._let_go()
            with suppress(KimiError):
                await self._journal.aclose()

    async def _say_goodbye(self) -> None:
        if self._share.is_open:
            await self._enter_share()
        if self._session.takes_part:
            await self._session.append([*map(self._line_of, self._queue.told()), ("part", {})])

    def _let_go(self) -> None:
        """Leave nothing running, and nobody waiting."""
        for one in (self._entering, self._renewal):
            if one is not None:
                one.cancel()
        self._share = Share()
        self._queue.turn_away(LedgerUnavailable("this ledger was closed"))
        self._notify()

    # -- entering -----------------------------------------------------------------------------------------------

    def _tell(self, what: Told | Asked | Look) -> None:
        if not self._closed:
            self._queue.append(what)
            self._try_again()
        elif not isinstance(what, Told) and what.answer is not None:
            what.answer.set_exception(LedgerUnavailable("this ledger was closed"))

    def _try_again(self) -> None:
        if (self._queue or self._share.is_open) and self._entering is None and not self._closed:
            with suppress(RuntimeError):  # no loop runs any more: it waits for one, or for the lease to end
                self._entering = asyncio.get_running_loop().create_task(self._enter())

    async def _enter(self) -> None:
        """Work through the queue, in order."""
        try:
            if self._share.is_open:
                await self._enter_share()
            while self._queue:
                await self._enter_some()
                self._come_back()
        except LedgerUnavailable as exc:
            self._go_away(exc)
        except KimiError as exc:
            self._queue.turn_away(exc)
        except BaseException as exc:
            self._queue.turn_away(LedgerUnavailable(f"{self._journal!r}: {exc!r}"))
            raise
        finally:
            self._entering = None
            if (self._queue or self._share.is_open) and not self._closed:
                asyncio.get_running_loop().call_later(RETRY, self._try_again)

    def _go_away(self, exc: LedgerUnavailable) -> None:
        """The journal cannot be reached: do with requests what the user chose."""
        now = self._journal.now()
        if self._away_since is None and not self._queue.only_looks():
            self._away_since = now
            if self._when_away == "share":
                self._share.open(self._session.replica, self._session.process, now)
                for charge in self._numbers:
                    self._share.adopt(now, charge)
            self._soon(self._on_event, LedgerAway(str(exc), self._when_away))
        self._queue.turn_away(exc, but_requests=self._when_away != "fail")
        if self._share.is_open:
            for asked in self._queue.asked():
                asked.answer.set_result(self._share.reserve(now, asked.cost) or Denial("ledger", math.inf))

    async def _enter_share(self) -> None:
        """Enter what the share let in meanwhile: it counts from now on, which is later than it was."""
        await self._session.read()
        share = self._share
        while charges := [charge for charge in share.admitted if charge not in self._numbers]:
            own, _ = await self._session.append([("reserve", {"tokens": charge.tokens}) for charge in charges])
            self._numbers.update(zip(charges, (entry.id for entry in own), strict=True))
        self._come_back()

    def _come_back(self) -> None:
        """The journal can be reached: go on as before."""
        if self._away_since is None:
            return
        seconds, admitted = self._journal.now() - self._away_since, len(self._share.admitted)
        self._share, self._away_since = Share(), None
        self._soon(self._on_event, LedgerBack(seconds, admitted))
        self._notify()

    async def _enter_some(self) -> None:
        """All that comes before the next who asks; if there is nothing, that one."""
        first = self._queue[0]
        if isinstance(first, Told):
            await self._enter_told()
            return
        if isinstance(first, Asked):
            await self._answer(first)
        else:
            await self._session.read()
            if first.answer is not None and not first.answer.done():
                first.answer.set_result(None)
        self._queue.popleft()

    async def _enter_told(self) -> None:
        told = self._queue.told()
        own, lessons = await self._session.append([self._line_of(one) for one in told])
        for one, entry in zip(told, own, strict=True):
            self._queue.popleft()
            if one.charge is not None and one.operation != "sent":
                del self._numbers[one.charge]
            if one.learned is not None:
                self._soon(one.learned, one.lesson(lessons.get(entry.id), entry.at))
        if any(one.operation == "refuse" for one in told):
            await self._tell_namesakes()
        if any(one.operation == "alive" for one in told):
            await self._session.bury()

    def _soon(self, hook: Callable[..., None], what: object) -> None:
        """Not now, for an error in what others do with it must not stop this task."""
        asyncio.get_running_loop().call_soon(hook, what)

    def _line_of(self, one: Told) -> Line:
        return one.line(None if one.charge is None else self._numbers[one.charge], self._journal.now())

    async def _tell_namesakes(self) -> None:
        """Kimi has named the organization: see, once, whether other accounts of the ledger have the same."""
        organization = self._session.replica.organization
        if organization is not None and not self._has_told_namesakes:
            accounts = await self.namesakes()
            self._has_told_namesakes = True
            if len(accounts) > 1:
                self._soon(self._on_event, SameOrganization(organization, accounts))

    async def _answer(self, asked: Asked) -> None:
        """Let it in if there is room and no other's turn; decided anew if somebody else was let in meanwhile."""
        session, has_read = self._session, False
        while not asked.answer.done():
            await session.greet()
            await session.bury()
            verdict = session.replica.verdict(self._journal.now(), session.process, asked.cost)
            if isinstance(verdict, Room):
                own, _ = await session.append([("reserve", {"tokens": asked.cost.tokens})], verdict)
                if own and own[0].id in session.charges():
                    self._admit(asked, own[0])
            elif self._subscribers and not session.waits:
                await session.append([("wait", {})])  # and look again, at what that has read
            elif self._subscribers or has_read:
                asked.answer.set_result(verdict)
            else:
                await session.read()
                has_read = True

    def _admit(self, asked: Asked, entry: Entry) -> None:
        charge = Charge(asked.cost.tokens, 0)
        self._numbers[charge] = entry.id
        if asked.answer.done():
            self.cancel(charge)
        else:
            asked.answer.set_result(charge)

    def _has_read(self, own: list[Entry], loosened: bool) -> None:  # noqa: FBT001 - a callback's
        """See what follows from it."""
        self._disown(own)
        self._leave_unwanted()
        renewal, soon = self._renewal, asyncio.get_running_loop().time() + TURN
        if own or renewal is None or (self._session.waits and renewal.when() > soon):
            self._keep_alive()  # we may hold, or wait for, what we were told had failed
        if loosened:
            self._notify()

    def _disown(self, own: list[Entry]) -> None:
        """Give back what was reserved for us by an entry that we were told had failed."""
        numbers = {*self._numbers.values(), *(entry.id for entry in own)}
        for number in [number for number in self._session.charges() if number not in numbers]:
            stray = Charge(0, 0)
            self._numbers[stray] = number
            self.cancel(stray)

    def _notify(self) -> None:
        for on_room in tuple(self._subscribers):
            on_room(slot_only=False)

    def _leave_unwanted(self) -> None:
        """Nobody here waits any more, though somebody did when we joined the line."""
        if not self._subscribers and self._session.waits:
            self._tell(Told("leave"))

    def _wake_up(self) -> None:
        """Another process says that there is news for us; what is being read may not have it."""
        if Look() not in islice(self._queue, self._entering is not None, None):
            self._tell(Look())

    def _keep_alive(self) -> None:
        """Show a sign of life in time, and read with it what others entered, as long as something is at stake."""
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if self._session.waits or self._session.charges() or self._when_away == "share":
            seconds = TURN if self._session.waits else LEASE / 3
            self._renewal = asyncio.get_running_loop().call_later(seconds, self._show_life)

    def _show_life(self) -> None:
        self._renewal = None
        self._tell(Told("alive"))
