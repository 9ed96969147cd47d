"""The line before a limiter: by place, and quick to leave."""

from hypothesis import given
from hypothesis import strategies as st

from kimi_async.limits import Cost
from kimi_async.line import Line, Waiter


def waiters(*places):
    """One for each place."""
    return [Waiter(place, Cost(1)) for place in places]


def test_the_earliest_place_is_the_head():
    """A refused request comes back to its own."""
    line = Line()
    second, third, first = waiters(2, 3, 1)
    for waiter in (second, third):
        line.join(waiter)
    assert line.head is second
    line.join(first)
    assert (line.head, list(line)) == (first, [first, second, third])


def test_two_at_one_place_stand_in_the_order_they_came():
    """Nobody forbids it."""
    line = Line()
    one, other = waiters(7, 7)
    line.join(one)
    line.join(other)
    assert list(line) == [one, other]


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=80))
def test_whoever_leaves_the_order_of_the_rest_is_kept(steps):
    """At any time the line is those who joined and have not left, by place, and its head the first."""
    line, present = Line(), []
    for place, joins in steps:
        if joins or not present:
            (waiter,) = waiters(place)
            line.join(waiter)
            present.append(waiter)
        else:
            line.leave(present.pop(place % len(present)))
        expected = sorted(present, key=lambda waiter: waiter.place)
        assert list(line) == expected
        assert len(line) == len(expected)
        assert line.head is (expected[0] if expected else None)
