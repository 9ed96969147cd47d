"""How the mock counts: timetables of each policy, what holds for any traffic, and the account's one decision."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kimi_async.errors import ConfigurationError
from kimi_async.limits import RateLimits
from kimi_async.mock.account import Account, Refusal
from kimi_async.mock.fate import Dice
from kimi_async.mock.faults import Faults
from kimi_async.mock.policies import fits, open_window
from kimi_async.mock.settings import MockSettings

MINUTE = 60.0


def offer(window, now, amount=1):
    """Admit what fits, as the account does."""
    if not fits(window, now, amount):
        return False
    window.charge(now, amount)
    return True


def most_in_any_window(charges, window):
    """The largest sum in any half-open interval of that length; one that is largest ends at a charge."""
    return max((sum(amount for t, amount in charges if end - window < t <= end) for end, _ in charges), default=0)


@pytest.mark.parametrize(
    ("policy", "admitted"),
    [
        ("sliding", [3, 0, 0, 3]),
        ("fixed", [3, 3, 0, 0]),
        ("bucket", [3, 0, 1, 2]),
        ("gcra", [1, 0, 1, 1]),
    ],
)
def test_timetable_of_the_docstring(policy, admitted):
    """Three requests at 0:58, 1:02, 1:18 and 1:58 with a limit of 3: the table in the module's docstring."""
    window = open_window(policy, 3, window=MINUTE)
    assert [sum(offer(window, now) for _ in range(3)) for now in (58, 62, 78, 118)] == admitted


@pytest.mark.parametrize(
    ("policy", "phase", "story"),
    [
        ("sliding", 0, [(0, 100, True), (0, 1, False), (59.999, 1, False), (60, 100, True), (119.999, 1, False)]),
        ("sliding", 0, [(0, 60, True), (30, 40, True), (60, 60, True), (60, 1, False), (90, 41, False)]),
        ("sliding", 0, [(0, 101, False), (0, 100, True)]),
        ("fixed", 0, [(59, 100, True), (59.999, 1, False), (60, 100, True), (119, 1, False), (120, 100, True)]),
        ("fixed", 0.5, [(29, 100, True), (30, 100, True), (60, 1, False), (89.9, 1, False), (90, 100, True)]),
        ("bucket", 0, [(0, 100, True), (0, 1, False), (30, 51, False), (30, 50, True), (90, 100, True)]),
        ("gcra", 0, [(0, 1, True), (0.59, 1, False), (0.6, 1, True), (1.19, 1, False), (9, 1, True), (9, 1, False)]),
    ],
)  # fmt: skip
def test_boundaries_of_a_limit_of_100(policy, phase, story):
    """Rows of (time, amount, admitted?): the last that fits, and one more."""
    window = open_window(policy, 100, window=MINUTE, phase=phase)
    assert [offer(window, now, amount) for now, amount, _ in story] == [admitted for *_, admitted in story]


@pytest.mark.parametrize(
    ("policy", "story"),
    [
        ("sliding", [(10, 30, 0), (10, 31, 50), (10, 90, 50), (10, 91, 55), (10, 121, 55), (60, 91, 5), (65, 121, 0)]),
        ("fixed", [(10, 30, 0), (10, 31, 50), (10, 121, 50), (60, 91, 0)]),
        ("bucket", [(10, 50, 0), (10, 51, 0.5), (10, 120, 35), (10, 121, 35), (50, 121, 0)]),
    ],
)
def test_when_more_will_fit(policy, story):
    """60 of 120 at 0:00 and 30 at 0:05; rows of (time, amount, seconds): what never fits waits for all to be gone."""
    window = open_window(policy, 120, window=MINUTE)
    window.charge(0, 60)
    window.charge(5, 30)
    assert [window.fits_in(now, amount) for now, amount, _ in story] == pytest.approx([wait for *_, wait in story])


@given(
    charges=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=20),
    amount=st.integers(1, 20),
    policy=st.sampled_from(["sliding", "fixed", "bucket"]),
)
def test_after_that_wait_it_fits_and_no_earlier(charges, amount, policy):
    """Whatever came before."""
    window = open_window(policy, 20, window=MINUTE)
    now = 0
    for gap, charged in charges:
        offer(window, now := now + gap, charged)
    wait = window.fits_in(now, amount)
    if wait > 0.01:
        assert not fits(window, now + wait - 0.01, amount)
    assert fits(window, now + wait + 1e-6, amount)


def test_gcra_lets_a_burst_through_if_told_to():
    """A burst of 3 at RPM 60: three at once, then one a second."""
    window = open_window("gcra", 60, window=MINUTE, burst=3)
    assert [offer(window, now) for now in (0, 0, 0, 0, 1, 1, 2)] == [True, True, True, False, True, False, True]


def arrivals(gaps, amounts):
    """Rows of (time, amount) from the seconds between them."""
    return list(zip(accumulate(gaps), amounts, strict=False))


traffic = st.builds(arrivals, st.lists(st.integers(0, 40), max_size=60), st.lists(st.integers(1, 12), max_size=60))


@given(traffic=traffic, limit=st.integers(1, 20))
def test_sliding_never_exceeds_the_limit_in_any_window(traffic, limit):
    """Whatever comes, no minute holds more than the limit."""
    window = open_window("sliding", limit, window=MINUTE)
    assert most_in_any_window([row for row in traffic if offer(window, *row)], MINUTE) <= limit


@given(traffic=traffic, limit=st.integers(1, 20), policy=st.sampled_from(["fixed", "bucket"]))
def test_others_let_at_most_twice_the_limit_through(traffic, limit, policy):
    """The worst that a fixed window's edge or a full bucket can do."""
    window = open_window(policy, limit, window=MINUTE)
    assert most_in_any_window([row for row in traffic if offer(window, *row)], MINUTE) <= 2 * limit


@given(traffic=traffic, limit=st.integers(1, 20), phase=st.floats(0, 0.99))
def test_what_slides_fits_everywhere(traffic, limit, phase):
    """Traffic that respects every sliding minute is never refused by a fixed window or a bucket."""
    sliding = open_window("sliding", limit, window=MINUTE)
    others = [open_window(policy, limit, window=MINUTE, phase=phase) for policy in ("fixed", "bucket")]
    for row in traffic:
        if offer(sliding, *row):
            assert [offer(other, *row) for other in others] == [True, True]


def account(policy="sliding", *, charge_refused=False, **budgets):
    """An account with those limits only."""
    return Account(MockSettings(limits=RateLimits(**budgets), policy=policy, charge_refused=charge_refused))


def refusals(account, story):
    """The budgets that refused each (time, tokens) of the story; slots are never given back."""
    found = [account.admit(*row) for row in story]
    return [None if refusal is None else refusal.budget for refusal in found]


@pytest.mark.parametrize(
    ("budgets", "story", "expected"),
    [
        ({"concurrency": 2}, [(0, 1), (0, 1), (0, 1)], [None, None, "concurrency"]),
        ({"rpm": 2}, [(0, 1), (1, 1), (2, 1), (60, 1)], [None, None, "rpm", None]),
        ({"tpm": 10}, [(0, 4), (1, 6), (2, 1), (60, 4), (60, 1)], [None, None, "tpm", None, "tpm"]),
        ({"tpd": 10}, [(0, 10), (60, 1), (86_399, 1), (86_400, 10)], [None, "tpd", "tpd", None]),
        ({"concurrency": 1, "rpm": 1, "tpm": 1, "tpd": 1}, [(0, 1), (0, 1)], [None, "concurrency"]),
        ({"rpm": 1, "tpm": 1, "tpd": 1}, [(0, 1), (0, 1)], [None, "rpm"]),
        ({"tpm": 1, "tpd": 1}, [(0, 1), (0, 1)], [None, "tpm"]),
    ],
)
def test_the_first_budget_without_room_refuses(budgets, story, expected):
    """Each budget alone at its boundary, and their order."""
    assert refusals(account(**budgets), story) == expected


def test_a_refused_request_charges_nothing():
    """Refused for tokens, it takes no request; refused for requests, no tokens."""
    small = account(rpm=2, tpm=10)
    assert refusals(small, [(0, 8), (0, 3), (0, 2), (0, 1)]) == [None, "tpm", None, "rpm"]
    assert small.stats().charged_tokens == 10
    assert small.stats().refused == {"concurrency": 0, "rpm": 1, "tpm": 1, "tpd": 0}


def test_a_refused_request_may_charge_a_request():
    """With charge_refused, hammering keeps the door shut: the refusal of 0:30 still counts at 1:00."""
    strict = account(rpm=1, charge_refused=True)
    assert refusals(strict, [(0, 1), (30, 1), (60, 1), (120, 1)]) == [None, "rpm", "rpm", None]


@pytest.mark.parametrize(
    ("budgets", "refusal"),
    [
        ({"concurrency": 1}, Refusal("concurrency", 1, 2, 1)),
        ({"rpm": 1}, Refusal("rpm", 1, 2, 1)),
        ({"tpm": 100, "minute": 1.5}, Refusal("tpm", 100, 120, 2)),
        ({"tpd": 100}, Refusal("tpd", 100, 120, 86_390)),
    ],
)
def test_a_refusal_counts_itself_into_current(budgets, refusal):
    """60 tokens at 0 s; 60 more at 10 s, or at 1 s of a short minute, would make 120 of 100."""
    full = account(**budgets)
    full.admit(0, 60)
    assert full.admit(1 if "minute" in budgets else 10, 60) == refusal


@pytest.mark.parametrize(
    ("policy", "tokens", "retry_after"), [("sliding", 30, 86_398), ("sliding", 40, 86_399), ("fixed", 30, 86_397)]
)
def test_a_day_without_room_tells_when_the_request_fits(policy, tokens, retry_after):
    """The 10 tokens of 0:00 are not enough; those of 0:01 are for 30. A fixed day ends at its edge."""
    day = account(policy, tpd=100)
    for now, charged in ((0, 10), (1, 20), (2, 70)):
        assert day.admit(now, charged) is None
    assert day.admit(3, tokens).retry_after == retry_after


def test_only_the_slot_comes_back():
    """Released, the slot serves the next request; its tokens are gone for the minute."""
    one = account(concurrency=1, tpm=10)
    assert refusals(one, [(0, 5), (1, 5)]) == [None, "concurrency"]
    one.release()
    assert refusals(one, [(2, 6), (2, 5)]) == ["tpm", None]
    with pytest.raises(AssertionError):
        (one.release(), one.release())


def test_gcra_counts_tokens_like_a_bucket():
    """A request may cost more than its even share of tokens, as long as it is alone."""
    even = account("gcra", rpm=60, tpm=600)
    assert refusals(even, [(0, 600), (0.5, 1), (1, 10), (1, 1), (2, 11)]) == [None, "rpm", None, "rpm", "tpm"]


def test_peaks_tell_what_a_bucket_let_through():
    """A full bucket, emptied and then drained as it refills: 19 requests in a minute that allows 10."""
    bucket = account("bucket", rpm=10)
    for now in (*[0] * 10, *range(6, 60, 6)):
        assert bucket.admit(now, 2) is None
    stats = bucket.stats()
    assert (stats.max_window_requests, stats.max_window_tokens) == (19, 38)
    assert (stats.admitted, stats.peak_in_flight, stats.in_flight) == (19, 19, 19)


@pytest.mark.parametrize(
    ("throw", "fault"),
    [(0, "error_5xx"), (0.0999, "error_5xx"), (0.1, "overload"), (0.35, "drop"), (0.65, "garble"), (0.99, "cut")],
)  # fmt: skip
def test_a_throw_picks_a_fault(throw, fault):
    """Faults share the unit interval in their order."""
    assert Faults(error_5xx=0.1, overload=0.2, drop=0.25, garble=0.25, cut=0.2).pick(throw) == fault


def test_no_faults_by_default():
    """Without probabilities, no throw means anything."""
    assert [Faults().pick(throw) for throw in (0, 0.5, 0.999)] == [None] * 3


def test_overload_comes_in_bursts():
    """One second at the end of each ten, from the first request on; none where none is asked for."""
    faults = Faults(overload_every=10, overload_lasts=1)
    assert [faults.overloaded(at) for at in (0, 8.9, 9, 9.9, 10, 19, 20)] == [0, 0, 1, 1, 0, 1, 0]
    assert not any(Faults().overloaded(at) for at in (0, 8.9, 9))


@pytest.mark.parametrize(
    "wrong",
    [
        {"drop": -0.1},
        {"slow": 1.1},
        {"drop": 0.6, "garble": 0.6},
        {"cut": 1.1},
        {"overload_lasts": 1},
        {"overload_every": 2, "overload_lasts": 3},
        {"overload_every": 2, "overload_lasts": -1},
    ],
)
def test_impossible_probabilities_are_refused(wrong):
    """At construction, not in the middle of a run."""
    with pytest.raises(ConfigurationError):
        Faults(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency": -1},
        {"phase": 1},
        {"burst": 0},
        {"completion_ratio": 0},
        {"tokens_per_second": 0},
        {"tokens_per_chunk": 0},
        {"batch_seconds": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    """Likewise."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        MockSettings(**wrong)


def test_settings_survive_json():
    """As they do on their way to another process."""
    settings = MockSettings(
        limits=RateLimits.guide(),
        policy="gcra",
        faults=Faults(drop=0.1, cut=0.2),
        tokens_per_chunk=7,
        bad_keys=frozenset({"k"}),
    )
    assert MockSettings.from_json(settings.to_json()) == settings
    assert "bad_keys" not in repr(settings)


bodies = st.lists(st.binary(max_size=4), max_size=12)


@given(bodies=bodies, order=st.randoms())
def test_fates_do_not_depend_on_the_order_of_arrival(bodies, order):
    """The multiset of fates of a set of bodies is the same in any order."""
    settings = MockSettings(faults=Faults(drop=0.3, slow=0.5), tokens_per_second=50)
    shuffled = order.sample(bodies, len(bodies))
    one, other = (
        sorted((body, repr(dice.roll(body, max_tokens=100, n=2))) for body in sequence)
        for dice, sequence in ((Dice(settings), bodies), (Dice(settings), shuffled))
    )
    assert one == other


def test_a_repeated_body_gets_another_fate():
    """So a retry can succeed; another seed changes everything."""
    dice, other = Dice(MockSettings()), Dice(MockSettings(seed=1))
    fates = [roller.roll(b"{}", max_tokens=1000, n=1) for roller in (dice, dice, other)]
    assert len({fate.latency for fate in fates}) == 3
    assert [fate.repeated for fate in fates] == [False, True, False]


@given(max_tokens=st.integers(1, 10_000), n=st.integers(1, 5))
def test_completions_are_within_max_tokens(max_tokens, n):
    """Each choice has at least one token and at most max_tokens."""
    fate = Dice(MockSettings(completion_spread=2)).roll(b"", max_tokens=max_tokens, n=n)
    assert len(fate.completion_tokens) == n
    assert all(1 <= tokens <= max_tokens for tokens in fate.completion_tokens)
