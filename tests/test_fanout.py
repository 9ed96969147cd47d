"""Many pieces of work, a bounded number at a time."""

import asyncio
from itertools import count, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_async.fanout import as_completed, each

from .conftest import run_virtual


def clock():
    """The loop's time, from zero."""
    return round(asyncio.get_running_loop().time() - 1000.0, 4)


async def aiter_of(items):
    """The same items, asynchronously."""
    for item in items:
        yield item


SOURCES = [pytest.param(lambda items: items, id="sync"), pytest.param(aiter_of, id="async")]


async def collect(results):
    """All results, and the error they ended with."""
    found = []
    try:
        async for result in results:
            found.append(result)  # noqa: PERF401 - a comprehension would lose them
    except Exception as exc:  # noqa: BLE001 - what it ended with is what is asked
        return found, exc
    return found, None


async def after(seconds):
    """Work that takes as long as its item says."""
    await asyncio.sleep(seconds)
    return seconds


@pytest.mark.parametrize("source", SOURCES)
async def test_results_come_in_the_order_of_completion(source):
    """Not in that of the items."""
    assert await collect(as_completed(source([3, 1, 2]), after, 3)) == ([1, 2, 3], None)
    assert clock() == 3.0


@pytest.mark.parametrize("source", SOURCES)
async def test_no_more_than_so_many_are_under_way(source):
    """Ten pieces of a second each, four at a time: three seconds, and never five at once."""
    under_way, most = 0, 0

    async def work(item):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(1)
        under_way -= 1
        return item

    results, error = await collect(as_completed(source(range(10)), work, 4))
    assert (sorted(results), error) == (list(range(10)), None)
    assert (most, clock()) == (4, 3.0)


@pytest.mark.parametrize("source", SOURCES)
async def test_items_are_taken_only_as_workers_come_free(source):
    """An endless source is fine; a consumer that dawdles stops the taking."""
    taken = []

    def items():
        for number in count():
            taken.append(number)
            yield number

    results = as_completed(source(items()), after_a_second, 3)
    assert [await anext(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    await asyncio.sleep(1000)
    assert len(taken) <= 5 + 3 * 3
    await results.aclose()
    had = len(taken)
    await asyncio.sleep(1000)
    assert len(taken) == had


async def after_a_second(item):
    """Work of a second."""
    await asyncio.sleep(1)
    return item


async def test_nothing_is_taken_before_the_first_result_is_asked_for():
    """A generator that nobody consumes does nothing."""
    taken = []
    results = as_completed((taken.append(item) for item in range(3)), after_a_second, 2)
    await asyncio.sleep(10)
    assert taken == []
    await results.aclose()


@pytest.mark.parametrize("source", SOURCES)
async def test_a_source_that_fails_loses_nothing_under_way(source):
    """What was begun is finished and yielded; then the error is raised."""

    def items():
        yield from [5, 3, 4]
        raise OSError("disk")

    results, error = await collect(as_completed(source(items()), after, 4))
    assert results == [3, 4, 5]
    assert isinstance(error, OSError)


async def test_a_source_that_fails_at_once():
    """Nothing, and the error."""

    def items():
        raise OSError("disk")
        yield

    results, error = await collect(as_completed(items(), after, 4))
    assert (results, str(error)) == ([], "disk")


async def test_work_that_raises_ends_the_rest():
    """Its error is raised; the others are cancelled, not left running."""
    cancelled = []

    async def work(item):
        if item == 1:
            await asyncio.sleep(1)
            raise ValueError("one")
        try:
            await asyncio.sleep(item)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    results, error = await collect(as_completed([0, 1, 50, 60], work, 3))
    assert (results, str(error)) == ([0], "one")
    assert sorted(cancelled) == [50, 60]
    assert clock() == 1.0


async def test_work_that_was_cancelled_from_outside_does_not_hang():
    """Somebody cancels a future that the work awaits: that is an outcome, not silence."""
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(1, future.cancel)
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await anext(as_completed([future], await_it, 2))
    assert clock() == 1.0


async def await_it(future):
    """Work that is somebody else's."""
    return await future


async def test_a_consumer_that_stops_early_cancels_the_rest():
    """Closing the generator ends every task."""
    before = asyncio.all_tasks()
    results = as_completed(count(1), after, 5)
    assert await anext(results) == 1
    assert len(asyncio.all_tasks()) == len(before) + 5
    await results.aclose()
    assert asyncio.all_tasks() == before


async def test_a_cancelled_consumer_cancels_the_rest():
    """No task outlives it."""
    before = asyncio.all_tasks()
    consumer = asyncio.create_task(collect(as_completed(count(100), after, 5)))
    await asyncio.sleep(1)
    consumer.cancel()
    await asyncio.wait([consumer])
    assert consumer.cancelled()
    assert asyncio.all_tasks() == before


async def test_nothing_to_do():
    """No items, no results, no waiting."""
    assert await collect(as_completed([], after, 5)) == ([], None)


async def test_an_async_source_is_never_asked_twice_at_once():
    """An async generator would raise."""
    asking = 0

    async def items():
        nonlocal asking
        for number in range(20):
            assert asking == 0
            asking += 1
            await asyncio.sleep(1)
            asking -= 1
            yield number

    results, error = await collect(as_completed(items(), after_a_second, 8))
    assert (sorted(results), error) == (list(range(20)), None)


async def test_results_may_be_anything():
    """None and exceptions as values among them."""
    values = [None, ValueError("a value"), StopAsyncIteration()]

    async def work(item):
        return item

    assert await collect(as_completed(values, work, 1)) == (values, None)


@pytest.mark.parametrize("source", SOURCES)
async def test_each_is_any_iterable_asynchronously(source):
    """Lazily."""
    items = each(source(count()))
    assert [await anext(items) for _ in range(3)] == list(islice(count(), 3))
    await items.aclose()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 5), max_size=30), st.integers(1, 8), st.floats(0, 2))
def test_every_item_comes_out_once_whatever_the_timing(items, in_flight, pause):
    """Fast and slow work, fast and slow consumers."""

    async def main():
        found = []
        async for result in as_completed(items, after, in_flight):
            found.append(result)
            await asyncio.sleep(pause)
        return found

    assert sorted(run_virtual(main())) == sorted(items)
