"""Many pieces of work, a bounded number at a time, results as they complete."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Done:
    """A worker's last word: the source is exhausted, or has failed."""

    def __init__(self, source_error: BaseException | None = None) -> None:
        self.source_error = source_error


class _Failed:
    """A piece of work raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def as_completed(
    items: Iterable[T] | AsyncIterable[T], work: Callable[[T], Awaitable[R]], in_flight: int
) -> AsyncGenerator[R, None]:
    """Yield ``work(item)`` for each item, in the order of completion.

    Items are taken one by one, as workers come free, and results wait for the consumer, so memory is bounded by
    ``in_flight`` however many items there are. If taking an item fails, what is under way is finished and yielded
    before the error is raised. If ``work`` raises, or the consumer closes the generator, the rest is cancelled.

    Args:
        items: may be infinite.
        work: what to do with an item; it takes care of its own failures.
        in_flight: how many at a time, at least 1.
    """
    source = each(items)
    taking = asyncio.Lock()
    results: asyncio.Queue[R | _Done | _Failed] = asyncio.Queue(in_flight)
    workers = [asyncio.create_task(_work(source, taking, work, results)) for _ in range(in_flight)]
    source_error: BaseException | None = None
    try:
        running = in_flight
        while running:
            result = await results.get()
            if isinstance(result, _Failed):
                raise result.error
            if isinstance(result, _Done):
                running -= 1
                source_error = source_error or result.source_error
            else:
                yield result
        if source_error is not None:
            raise source_error
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _work(
    source: AsyncIterator[T],
    taking: asyncio.Lock,
    work: Callable[[T], Awaitable[R]],
    results: "asyncio.Queue[R | _Done | _Failed]",
) -> None:
    """One worker: take an item, work, hand the result over, until there are no more."""
    while True:
        async with taking:
            try:
                item = await anext(source)
            except StopAsyncIteration:
                return await results.put(_Done())
            except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - raised where the results are consumed
                _raise_if_cancelled()
                return await results.put(_Done(exc))
        try:
            result = await work(item)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001 - likewise
            _raise_if_cancelled()
            return await results.put(_Failed(exc))
        await results.put(result)


def _raise_if_cancelled() -> None:
    """Go on as cancelled if this worker was; a future that the work awaited may have been, and is an outcome."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    """The items of any iterable, asynchronously."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
