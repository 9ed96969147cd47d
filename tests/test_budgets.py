"""The rule of admission, told as rows of (time, what happens, outcome)."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_async.budgets import GUARD, Budgets, Charge, Denial
from kimi_async.limits import Cost, RateLimits
from kimi_async.refusal import Refusal

MINUTE = 60 * (1 + GUARD)


def send(books, now, tokens=10):
    """Admit and send at once."""
    charge = books.reserve(now, Cost(tokens))
    assert isinstance(charge, Charge)
    books.sent(now, charge)
    return charge


def test_rpm_boundary():
    """Three a minute: the fourth waits until the first is a minute and a guard old."""
    books = Budgets(RateLimits(rpm=3))
    for now in (0.0, 1.0, 2.0):
        send(books, now)
    assert books.reserve(10.0, Cost(10)) == Denial("rpm", pytest.approx(MINUTE - 10))
    assert isinstance(books.reserve(MINUTE - 0.001, Cost(10)), Denial)
    assert isinstance(books.reserve(MINUTE, Cost(10)), Charge)


@pytest.mark.parametrize(("tokens", "fits"), [(120, True), (121, False)])
def test_tpm_boundary(tokens, fits):
    """1,000 a minute with 880 taken: 120 fit, 121 do not."""
    books = Budgets(RateLimits(tpm=1000))
    send(books, 0.0, 880)
    assert isinstance(books.reserve(1.0, Cost(tokens)), Charge) is fits


def test_tpd_boundary():
    """The day's tokens leave after a day, a whole minute bucket at a time."""
    books = Budgets(RateLimits(tpd=1000))
    send(books, 0.0, 1000)
    denial = books.reserve(3600.0, Cost(1))
    assert denial.reason == "tpd"
    assert denial.wait == pytest.approx(86_400 + GUARD * 60 - 3600)


def test_a_slot_is_held_from_admission_to_the_end():
    """Pending and sent alike use a slot; no clock brings it back."""
    books = Budgets(RateLimits(concurrency=1))
    charge = books.reserve(0.0, Cost(10))
    assert books.reserve(0.0, Cost(10)) == Denial("concurrency", math.inf)
    books.sent(1.0, charge)
    assert books.reserve(500.0, Cost(10)) == Denial("concurrency", math.inf)
    books.end(charge, answered=True)
    assert isinstance(books.reserve(500.0, Cost(10)), Charge)


def test_pending_requests_count_however_long_they_connect():
    """A request still connecting after two minutes has its whole minute before it."""
    books = Budgets(RateLimits(rpm=1))
    charge = books.reserve(0.0, Cost(10))
    assert isinstance(books.reserve(120.0, Cost(10)), Denial)
    books.sent(130.0, charge)
    assert books.reserve(140.0, Cost(10)).wait == pytest.approx(MINUTE - 10)


def test_cancelling_before_sending_leaves_no_trace():
    """Nothing of a cancelled reservation is left in any budget."""
    books = Budgets(RateLimits(concurrency=1, rpm=1, tpm=10, tpd=10))
    before = books.usage(0.0)
    books.cancel(books.reserve(0.0, Cost(10)))
    assert books.usage(0.0) == before


@pytest.mark.parametrize("first", ["cancel", "end"])
@pytest.mark.parametrize("second", ["cancel", "end", "sent"])
def test_a_second_ending_is_a_programmers_error(first, second):
    """Exactly one ending."""
    books = Budgets(RateLimits())
    charge = books.reserve(0.0, Cost(10))
    act = {
        "cancel": lambda: books.cancel(charge),
        "end": lambda: books.end(charge, answered=True),
        "sent": lambda: books.sent(0.0, charge),
    }
    if first == "end":
        act["sent"]()
    act[first]()
    usage = books.usage(0.0)
    with pytest.raises(RuntimeError, match=r"ended|sent"):
        act[second]()
    assert books.usage(0.0) == usage


def test_all_four_budgets_or_none():
    """A cost that fits three of four takes nothing of the three."""
    books = Budgets(RateLimits(concurrency=5, rpm=5, tpm=100, tpd=5))
    assert books.reserve(0.0, Cost(50)).reason == "tpd"
    usage = books.usage(0.0)
    assert (usage.concurrency.used, usage.rpm.used, usage.tpm.used, usage.tpd.used) == (0, 0, 0, 0)


def test_the_longest_wait_is_the_one_named():
    """TPM empties later than RPM: the denial names TPM."""
    books = Budgets(RateLimits(rpm=2, tpm=100))
    send(books, 0.0, 1)
    send(books, 30.0, 99)
    assert books.reserve(40.0, Cost(50)) == Denial("tpm", pytest.approx(30 + MINUTE - 40))


# -- what refusals teach --------------------------------------------------------------------------------------


def test_a_refused_requests_tokens_leave_but_its_request_stays():
    """TPM and TPD forget it; RPM does not, for Kimi counts attempts."""
    books = Budgets(RateLimits(rpm=10, tpm=1000, tpd=1000))
    charge = send(books, 0.0, 400)
    books.refuse(1.0, charge, Refusal("budget", "rpm"))
    usage = books.usage(1.0)
    assert (usage.concurrency.used, usage.rpm.used, usage.tpm.used, usage.tpd.used) == (0, 1, 0, 0)


def test_current_above_ours_is_foreign_usage():
    """We sent 400 of a limit of 1,000; the gateway counts 1,100 with ours: 700 are somebody else's."""
    books = Budgets(RateLimits(tpm=1000))
    charge = send(books, 0.0, 400)
    lesson = books.refuse(1.0, charge, Refusal("budget", "tpm", limit=1000, current=1100))
    assert (lesson.explained, lesson.foreign, lesson.adopted) == (True, 700, None)
    assert isinstance(books.reserve(1.0, Cost(300)), Charge)
    assert books.reserve(1.0, Cost(1)) == Denial("tpm", pytest.approx(MINUTE))


def test_requests_above_ours_are_foreign_as_well():
    """We sent 3 of a limit of 60, the last one was one too many: 58 are somebody else's, for a minute at most."""
    books = Budgets(RateLimits(rpm=60))
    charges = [send(books, at, 1) for at in (0.0, 0.5, 0.5)]
    refusal = Refusal("budget", "rpm", limit=60, current=61)
    lesson = books.refuse(1.0, charges[1], refusal)
    assert (lesson.explained, lesson.foreign) == (True, 58)
    assert books.reserve(1.0, Cost(1)) == Denial("rpm", pytest.approx(MINUTE - 0.5))
    lesson = books.refuse(1.0, charges[2], refusal)
    assert (lesson.explained, lesson.foreign) == (True, 0)


@pytest.mark.parametrize(("rpm", "missing", "foreign"), [(60, 3, 0), (60, 4, 4), (3, 1, 0), (3, 2, 2)])
def test_a_few_requests_too_many_may_be_our_own(rpm, missing, foreign):
    """Left our window, and not yet the gateway's: 5 % of them, or one, are not booked, but widen the guard."""
    books = Budgets(RateLimits(rpm=rpm))
    charges = [send(books, 0.0, 1) for _ in range(rpm + 1 - missing)]
    lesson = books.refuse(1.0, charges[-1], Refusal("budget", "rpm", limit=rpm, current=rpm + 1))
    assert (lesson.explained, lesson.foreign) == (bool(foreign), foreign)


@pytest.mark.parametrize("sent", [1, 20])
def test_what_others_spend_of_their_own_part_is_not_booked(sent):
    """We keep to half of the account's limits; the other half is theirs, and all that is above it is booked."""
    books = Budgets(RateLimits(rpm=30, tpm=3000))
    charges = [send(books, 0.0, 100) for _ in range(sent)]
    lesson = books.refuse(1.0, charges[-1], Refusal("budget", "rpm", limit=60, current=61))
    assert lesson.foreign == 30 + 1 - sent
    books = Budgets(RateLimits(rpm=30, tpm=3000))
    charges = [send(books, 0.0, 100) for _ in range(sent)]
    lesson = books.refuse(1.0, charges[-1], Refusal("budget", "tpm", limit=6000, current=6050))
    assert lesson.foreign == 3000 + 50 - 100 * sent


def test_a_day_that_the_gateway_says_is_spent_is_closed_until_it_says():
    """Retry-After is exact; booking the day's usage as of now would keep it closed for 24 hours more."""
    books = Budgets(RateLimits(tpd=1000))
    charge = send(books, 0.0, 10)
    refusal = Refusal("budget", "tpd", limit=1000, current=1010, retry_after=7200.0)
    lesson = books.refuse(1.0, charge, refusal)
    assert (lesson.explained, lesson.foreign) == (True, 0)
    assert books.reserve(1.0, Cost(10)) == Denial("tpd", pytest.approx(7200.0))
    assert isinstance(books.reserve(7201.0, Cost(10)), Charge)


def test_a_spent_day_stays_closed_when_an_older_probe_passes():
    """The probe was under way when another request learned that the day is over."""
    books = Budgets(RateLimits(concurrency=9))
    older = send(books, 0.0)
    paused(books)
    probe = send(books, 1.0)
    books.refuse(1.5, older, Refusal("budget", "tpd", retry_after=50.0))
    books.end(probe, answered=True)
    assert books.reserve(2.0, Cost(1)) == Denial("tpd", pytest.approx(49.5))


def test_an_ended_reservation_teaches_nothing():
    """The error comes before the lesson."""
    books = Budgets(RateLimits(rpm=20))
    charge = send(books, 0.0)
    books.end(charge, answered=True)
    with pytest.raises(RuntimeError, match="exactly once"):
        books.refuse(1.0, charge, Refusal("budget", "rpm", limit=3))
    assert books.limits.rpm == 20


def test_a_lower_limit_is_adopted_and_explains_the_refusal():
    """Configured 20 RPM, the gateway says 3, and we sent 4: the books now explain it."""
    books = Budgets(RateLimits(rpm=20))
    charges = [send(books, float(second)) for second in range(4)]
    lesson = books.refuse(4.0, charges[3], Refusal("budget", "rpm", limit=3, retry_after=1.0))
    assert (lesson.adopted, lesson.explained) == (3, True)
    assert books.limits.rpm == 3
    assert books.reserve(5.0, Cost(10)).wait == pytest.approx(1 + MINUTE - 5)


@pytest.mark.parametrize("limit", [20, 21])
def test_a_limit_that_is_not_lower_is_not_adopted(limit):
    """Whoever configured 20 wants no more than 20."""
    books = Budgets(RateLimits(rpm=20))
    lesson = books.refuse(0.0, send(books, 0.0), Refusal("budget", "rpm", limit=limit))
    assert (lesson.adopted, lesson.explained, books.limits.rpm) == (None, False, 20)


def test_pauses_double_up_to_a_window_while_probes_are_refused():
    """retry_after 1 s, then 2, 4, ... and never more than a minute and its guard."""
    books, refusal, now = Budgets(RateLimits(concurrency=9)), Refusal("budget", "concurrency", retry_after=1.0), 0.0
    pauses = []
    for _ in range(8):
        charge = send(books, now)
        books.refuse(now, charge, refusal)
        pauses.append(books.pause(now, refusal))
        denial = books.reserve(now, Cost(1))
        assert denial.reason == "concurrency"
        now += denial.wait
    assert pauses == [1, 2, 4, 8, 16, 32, pytest.approx(MINUTE), pytest.approx(MINUTE)]


def test_refusals_of_one_burst_are_one_lesson():
    """Five requests under way when the first refusal came say nothing new; one admitted after it does."""
    books, refusal = Budgets(RateLimits(concurrency=9)), Refusal("budget", "concurrency", retry_after=1.0)
    burst = [send(books, 0.0) for _ in range(5)]
    lessons = [books.refuse(0.1, charge, refusal) for charge in burst]
    assert [lesson.echo for lesson in lessons] == [False, True, True, True, True]
    assert not books.refuse(0.2, send(books, 0.2), refusal).echo


def paused(books):
    """Refuse one request at time 0, for one second."""
    refusal = Refusal("budget", "concurrency", retry_after=1.0)
    charge = send(books, 0.0)
    books.refuse(0.0, charge, refusal)
    books.pause(0.0, refusal)


def test_after_a_pause_one_probe_goes_first():
    """The others follow when its answer has come."""
    books = Budgets(RateLimits(concurrency=9))
    paused(books)
    probe = books.reserve(1.0, Cost(1))
    assert books.reserve(1.0, Cost(1)) == Denial("probe", math.inf)
    books.sent(1.0, probe)
    books.end(probe, answered=True)
    assert isinstance(books.reserve(1.0, Cost(1)), Charge)


def test_a_probe_that_meets_no_refusal_for_a_while_has_passed():
    """Answers may take minutes, refusals come at once."""
    books = Budgets(RateLimits(concurrency=9))
    paused(books)
    books.sent(1.0, books.reserve(1.0, Cost(1)))
    assert books.reserve(1.2, Cost(1)) == Denial("probe", pytest.approx(1.0))
    assert isinstance(books.reserve(2.2, Cost(1)), Charge)


@pytest.mark.parametrize("ending", ["cancelled", "failed"])
def test_a_probe_without_an_answer_hands_over_to_the_next(ending):
    """Cancelled before it left, or its connection broke: the next one probes, alone."""
    books = Budgets(RateLimits(concurrency=9))
    paused(books)
    probe = books.reserve(1.0, Cost(1))
    if ending == "cancelled":
        books.cancel(probe)
    else:
        books.sent(1.0, probe)
        books.end(probe, answered=False)
    assert isinstance(books.reserve(1.0, Cost(1)), Charge)
    assert books.reserve(1.0, Cost(1)).reason == "probe"


def test_unexplained_refusals_widen_the_guard_and_quiet_minutes_narrow_it():
    """0.3 s doubles up to 3 s; after each quiet minute it halves, back to 0.3."""
    books, refusal, now, guards = Budgets(RateLimits(tpm=1000)), Refusal("budget", "tpm", retry_after=1.0), 0.0, []
    for _ in range(5):
        charge = send(books, now)
        books.refuse(now, charge, refusal)
        books.pause(now, refusal)
        guards.append(books.guard)
        now += books.reserve(now, Cost(1)).wait
    assert guards == pytest.approx([0.6, 1.2, 2.4, 3.0, 3.0])
    for _ in range(10):
        now += 61.0
        books.reserve(now, Cost(1))
    assert books.guard == pytest.approx(0.3)


def test_the_guard_never_exceeds_a_twentieth():
    """Refusals in quick succession stop widening it at 3 s."""
    books, refusal = Budgets(RateLimits(tpm=1000)), Refusal("budget", "tpm", retry_after=0.001)
    now = 0.0
    for _ in range(8):
        charge = send(books, now)
        books.refuse(now, charge, refusal)
        books.pause(now, refusal)
        now += 1.0
    assert books.guard == pytest.approx(3.0)


# -- properties -----------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["arrive", "arrive and send", "send", "end", "cancel"]),
        st.one_of(st.just(0.0), st.floats(0.0, 30.0)),
        st.integers(1, 400),
        st.one_of(st.just(0.0), st.floats(0.0, 0.3)),  # as much as the default guard allows
    ),
    max_size=120,
)


@settings(max_examples=300)
@given(STEPS)
def test_no_sliding_minute_at_the_gateway_exceeds_a_limit(steps):
    """Whatever arrives, is sent, ends or is cancelled when, with delays that vary up to the guard."""
    limits = RateLimits(concurrency=4, rpm=3, tpm=1000)
    books, now, pending, sent, arrivals = Budgets(limits), 0.0, [], [], []
    for action, gap, tokens, delay in steps:
        now += gap
        if action.startswith("arrive"):
            verdict = books.reserve(now, Cost(tokens))
            if isinstance(verdict, Denial) and verdict.reason != "concurrency":
                now += verdict.wait  # the very moment at which a window has room
                verdict = books.reserve(now, Cost(tokens))
            if isinstance(verdict, Charge):
                pending.append(verdict)
        if action.endswith("send") and pending:
            charge = pending.pop()
            books.sent(now, charge)
            sent.append(charge)
            arrivals.append((now + delay, charge.tokens))
        if action == "end" and sent:
            books.end(sent.pop(tokens % len(sent)), answered=True)
        if action == "cancel" and pending:
            books.cancel(pending.pop(tokens % len(pending)))
        assert len(pending) + len(sent) <= limits.concurrency
    for end, _ in arrivals:
        window = [tokens for at, tokens in arrivals if end - 60.0 < at <= end]
        assert len(window) <= limits.rpm
        assert sum(window) <= limits.tpm


@settings(max_examples=300)
@given(STEPS)
def test_a_denial_names_the_first_moment_at_which_the_cost_fits(steps):
    """Just before it does not fit; at that moment it does: no capacity is lost."""
    books, now, pending = Budgets(RateLimits(rpm=5, tpm=1000, tpd=5000, day=600.0)), 0.0, []
    for action, gap, tokens, _ in steps:
        now += gap
        if action == "send" and pending:
            books.sent(now, pending.pop())
        elif action.startswith("arrive"):
            verdict = books.reserve(now, Cost(tokens))
            if isinstance(verdict, Charge):
                pending.append(verdict)
            elif not pending:
                twin = books.replica(now)
                assert isinstance(twin.reserve(now + verdict.wait * 0.999, Cost(tokens)), Denial)
                now += verdict.wait
                admitted = books.reserve(now, Cost(tokens))
                assert isinstance(admitted, Charge)
                pending.append(admitted)
