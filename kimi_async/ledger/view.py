"""What an account's books show to somebody who looks at them."""

from dataclasses import dataclass

from kimi_async.limits import BUDGETS, Budget, RateLimits, Usage

from .replica import Replica


@dataclass(frozen=True, slots=True)
class Participant:
    """One of the processes that share the account.

    Attributes:
        name: its own, drawn at random.
        seen: seconds since its last sign of life.
        slots: requests that it has under way.
        pending: those of them that have not left yet.
        dead: whether its lease has ended; its slots are free for whoever asks next.
        place: its place in the account's line, from 1; None if it does not wait.
    """

    name: str
    seen: float
    slots: int
    pending: int
    dead: bool
    place: int | None


@dataclass(frozen=True, slots=True)
class AccountView:
    """A snapshot of an account.

    Attributes:
        configured: the limits that its owner set; None in a new ledger.
        limits: those in force.
        learned: limits that refusals have lowered, by budget.
        pauses: budgets that are closed, with the seconds that they stay so.
        organization: the account's name at Kimi, once a refusal has said it.
        usage: how much of each budget is taken.
        participants: the processes that share it.
    """

    configured: RateLimits | None
    limits: RateLimits
    learned: dict[Budget, int]
    pauses: dict[Budget, float]
    organization: str | None
    usage: Usage
    participants: tuple[Participant, ...]


def view(replica: Replica, now: float) -> AccountView:
    """The account as of ``now``."""
    books, configured = replica.books_at(now), replica.configured
    learned: dict[Budget, int] = {}
    for budget in BUDGETS:
        in_force = getattr(books.limits, budget)
        if configured is not None and in_force != getattr(configured, budget):
            learned[budget] = in_force
    places = {name: place for place, name in enumerate(replica.line, start=1)}
    dead = replica.dead(now)
    participants = tuple(
        Participant(
            name,
            max(now - process.seen, 0.0),
            len(process.charges),
            sum(charge.state == "pending" for charge in process.charges.values()),
            process in dead,
            places.get(name),
        )
        for name, process in replica.processes.items()
    )
    return AccountView(
        configured=configured,
        limits=books.limits,
        learned=learned,
        pauses=books.paused(now),
        organization=replica.organization,
        usage=replica.usage(now),
        participants=participants,
    )
