"""The line that waiters stand in: first come, first served, whatever a request costs."""

import asyncio
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from .limits import Cost


class Waiter:
    """One request in line. It sleeps until it is woken, to look whether its turn has come."""

    __slots__ = ("_alarm", "_woken", "admitted", "cost", "left", "place")

    def __init__(self, place: int, cost: Cost) -> None:
        self.place = place
        self.cost = cost
        self.admitted = False
        self.left = False
        self._alarm: asyncio.Future[None] | None = None
        self._woken = False

    def look(self) -> None:
        """It looks now: what happened up to here has woken it."""
        self._woken = False

    async def sleep(self) -> None:
        """Wait for the next ``wake``, or for none if there was one since the last ``look``."""
        if self._woken:
            return
        self._alarm = asyncio.get_running_loop().create_future()
        try:
            await self._alarm
        finally:
            self._alarm = None

    def wake(self) -> None:
        """Let it look again."""
        self._woken = True
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)


class Line:
    """Waiters by their place, the earliest at the head.

    Joining at the end costs O(1), joining in between, for a refused request that keeps its place, and leaving
    cost O(log n). One who leaves from the middle is forgotten later, at the latest when half the line has left.
    """

    __slots__ = ("_heap", "_joined", "_left", "head")

    def __init__(self) -> None:
        self.head: Waiter | None = None
        """Whose turn it is."""
        self._heap: list[tuple[int, int, Waiter]] = []  # the second decides between two at one place
        self._joined = count()
        self._left = 0

    def __len__(self) -> int:
        return len(self._heap) - self._left

    def __iter__(self) -> Iterator[Waiter]:
        """The waiters in order."""
        return (waiter for _, _, waiter in sorted(self._heap) if not waiter.left)

    def join(self, waiter: Waiter) -> None:
        """Stand in line, at the waiter's place."""
        heappush(self._heap, (waiter.place, next(self._joined), waiter))
        self.head = self._heap[0][-1]

    def leave(self, waiter: Waiter) -> None:
        """Go, whether served or not, and wake the one whose turn it becomes."""
        was_head = waiter is self.head
        waiter.left = True
        self._left += 1
        while self._heap and self._heap[0][-1].left:
            heappop(self._heap)
            self._left -= 1
        if self._left > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if not entry[-1].left]
            heapify(self._heap)
            self._left = 0
        self.head = self._heap[0][-1] if self._heap else None
        if was_head and self.head is not None:
            self.head.wake()
