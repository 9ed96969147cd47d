"""A replica written down and read again: row by row; that it goes on the same is a property of replicas."""

import json
import math

import pytest

from kimi_async.budgets import Room
from kimi_async.ledger.replica import Entry, Replica
from kimi_async.ledger.snapshot import dump, restore
from kimi_async.limits import Cost, RateLimits

ZERO = 1_000_000_000.0


def replica(*rows, limits=None):
    """One process ``a`` with limits, and rows of (seconds, operation, detail); the first of them is entry 3."""
    made = Replica()
    account = {"concurrency": 9, "rpm": 9, "tpm": 900, "tpd": 9000} if limits is None else limits
    for number, (at, operation, detail) in enumerate(
        [(0.0, "join", {"address": "1"}), (0.0, "limits", account), *rows], start=1
    ):
        made.apply(Entry(number, ZERO + at, "a", operation, detail))
    return made


def follow(made, *rows):
    """The same entries for a replica and its copy, in step; the copy's state at each."""
    copy = restore(json.loads(json.dumps(dump(made))))
    for number, (at, operation, detail) in enumerate(rows, start=made.last + 1):
        entry = Entry(number, ZERO + at, "a", operation, detail)
        assert copy.apply(entry) == made.apply(entry)
        assert dump(copy) == dump(made)
    return copy


SENT = [(0.0, "reserve", {"tokens": 100}), (1.0, "sent", {"charge": 3})]
REFUSAL = {"kind": "budget", "budget": "tpm"}


def test_a_new_replica_is_written_and_read():
    """Nothing has happened, nobody has set limits."""
    assert dump(restore(dump(Replica()))) == dump(Replica())
    assert restore(dump(Replica())).configured is None


def test_it_is_json_all_the_way():
    """Infinities as null; numbers to the last bit."""
    made = replica(*SENT, (1.1 + 1e-9, "reserve", {"tokens": 7}))
    state = dump(made)
    assert json.loads(json.dumps(state, allow_nan=False)) == state


@pytest.mark.parametrize("state", ["pending", "sent", "ended"])
def test_reservations_in_every_state(state):
    """What is still to happen to them happens to the copy as well."""
    rows = [*SENT, (2.0, "end", {"charge": 3, "answered": True})][: ["pending", "sent", "ended"].index(state) + 1]
    copy = follow(replica(*rows), *[(3.0 + at, operation, detail) for at, operation, detail in SENT[1:]])
    assert copy.books.usage(ZERO + 5).tpm.used == 100


def test_a_refusal_takes_its_tokens_out_of_the_copy():
    """The copy's reservations know their entries in both windows."""
    copy = follow(replica(*SENT), (2.0, "refuse", {"charge": 3, **REFUSAL}))
    usage = copy.books.usage(ZERO + 2)
    assert (usage.rpm.used, usage.tpm.used, usage.tpd.used) == (1, 0, 0)


def test_a_request_older_than_a_minute_is_refused_in_the_copy():
    """Its entry has left the minute by itself; the day's is still there."""
    copy = follow(replica(*SENT), (70.0, "alive", {}), (71.0, "refuse", {"charge": 3, **REFUSAL}))
    assert copy.books.usage(ZERO + 71).tpd.used == 0


def test_pauses_guards_and_probes():
    """A pause is on, the guard is wide, and a probe is under way."""
    made = replica(*SENT, (2.0, "refuse", {"charge": 3, **REFUSAL, "pause": True}))
    copy = follow(made, (4.0, "reserve", {"tokens": 5}))
    assert copy.books.guard == pytest.approx(0.6)
    copy = follow(made)
    assert copy.verdict(ZERO + 4.0, "a", Cost(1)) == ("probe", math.inf)
    follow(made, (4.0, "sent", {"charge": made.last}), (5.0, "end", {"charge": made.last, "answered": True}))
    assert isinstance(made.verdict(ZERO + 5.0, "a", Cost(1)), Room)


def test_adopted_limits_beside_the_configured_ones():
    """The copy still knows what the account's owner said."""
    made = replica(*SENT, (2.0, "refuse", {"charge": 3, **REFUSAL, "limit": 500}))
    copy = follow(made, (3.0, "limits", {"concurrency": 9, "rpm": 9, "tpm": 900, "tpd": 9000}))
    assert (copy.books.limits.tpm, copy.configured.tpm) == (500, 900)


def test_a_day_of_the_calendar():
    """Midnight in Shanghai is 16:00 UTC; ZERO is 01:46:40 UTC."""
    limits = {"tpd": 100, "day_zone": "Asia/Shanghai"}
    made = replica(*SENT, limits=limits)
    copy = follow(made, (60.0, "alive", {}))
    assert isinstance(copy.configured, RateLimits)
    reason, wait = copy.verdict(ZERO + 60, "a", Cost(1))
    assert (reason, wait) == ("tpd", pytest.approx(14 * 3600 + 13 * 60 + 20 - 60, abs=1))
    assert made.verdict(ZERO + 60, "a", Cost(1)) == (reason, wait)


def test_the_lines_order():
    """First come, first served in the copy too."""
    made = replica()
    for number, name in enumerate(["c", "b", "d"], start=3):
        made.apply(Entry(number, ZERO, name, "join", {"address": name}))
    for number, name in enumerate(["c", "b", "d"], start=6):
        made.apply(Entry(number, ZERO, name, "wait", {}))
    copy = restore(dump(made))
    assert list(copy.line) == ["c", "b", "d"]
    assert copy.processes["b"].address == "b"
