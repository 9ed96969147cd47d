"""Work that mostly waits, several pieces at a time.

Each piece is first got ready, which may keep the processor busy; when all that were begun together are ready, they go,
one after the other in short intervals, and no other is begun before they have ended. So nobody's imports are in
anybody's way, and nobody's burst in the first moment.
"""

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol, TypeVar

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

STAGGER = 0.3
"""Seconds between two that go: more than what the first burst of a file takes."""


class Stopped(Exception):
    """The run ends before this piece of it has."""


class Lane:
    """Where one piece of work runs, as the work sees it. One without a ``start`` is on its own, and never waits.

    Args:
        start: of all that were begun together.
        delay: seconds from there.
    """

    def __init__(self, start: "Start | None" = None, delay: float = 0.0) -> None:
        self._start = start or Start(1)
        self._delay = delay
        self._wait: Callable[[], float] = lambda: 0.0
        self._arrived = False
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._process: subprocess.Popen[str] | None = None

    def watch(self, process: "subprocess.Popen[str]") -> None:
        """Have a process killed when the run is stopped."""
        with self._lock:
            self._process = process
            if self._stopped.is_set():
                process.kill()

    def begin_at(self, share: float, period: float) -> None:
        """When this one's turn has come, wait until a period of ``time.monotonic()`` is over by so much of it."""
        delay = self._delay
        self._wait = lambda: (share * period + delay - time.monotonic()) % period

    def ready(self) -> None:
        """Wait for all others, and then for one's turn.

        Raises:
            Stopped: the run has been stopped.
        """
        self.arrive()
        self._start.wait()
        self._stopped.wait(self._delay)
        self._stopped.wait(self._wait())
        self.check()

    def arrive(self) -> None:
        """Let nobody wait for this one any longer."""
        if not self._arrived:
            self._arrived = True
            self._start.arrive()

    def stop(self) -> None:
        """From another thread: what waits or runs here ends soon."""
        with self._lock:
            self._stopped.set()
            if self._process:
                self._process.kill()
        self._start.open()

    def check(self) -> None:
        """See that the run goes on.

        Raises:
            Stopped: it does not.
        """
        if self._stopped.is_set():
            raise Stopped


class Start:
    """Where those that were begun together wait for each other: a barrier that one may also leave.

    Args:
        count: of them.
    """

    def __init__(self, count: int) -> None:
        self._awaited = count
        self._lock = threading.Lock()
        self._opened = threading.Event()

    def arrive(self) -> None:
        """One more is ready, or will never be."""
        with self._lock:
            self._awaited -= 1
            if self._awaited == 0:
                self.open()

    def open(self) -> None:
        """Let everybody go."""
        self._opened.set()

    def wait(self) -> None:
        """Until all have arrived."""
        self._opened.wait()


class Work(Protocol[R_co]):
    """A piece of work. It calls ``lane.ready()`` when it is ready, in time or never."""

    @property
    def long(self) -> bool:
        """Whether others may be begun while this one is under way, since they hardly matter to it."""

    @property
    def kin(self) -> str:
        """Only pieces of one kin are begun together."""

    def __call__(self, lane: Lane) -> R_co:
        """Do it."""


def side_by_side(pieces: Iterable[Work[R]], lanes: int) -> Generator[R, None, None]:
    """What pieces of work return, as soon as they do; begun in their order, as many at a time as there are lanes.

    Long ones are begun beside them. Whoever closes the iterator, or is interrupted in it, stops all that is under way.
    """
    waiting = deque(pieces)
    under_way: dict[Future[R], tuple[Lane, Work[R]]] = {}
    threads = ThreadPoolExecutor(lanes + sum(work.long for work in waiting), "lane")
    try:
        while waiting or under_way:
            if all(work.long for _, work in under_way.values()):
                batch = list(_batch(waiting, lanes))
                start = Start(len(batch))
                for place, work in enumerate(batch):
                    lane = Lane(start, place * STAGGER)
                    under_way[threads.submit(_run, work, lane)] = lane, work
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                del under_way[future]
                yield future.result()
    finally:
        for lane, _ in under_way.values():
            lane.stop()
        threads.shutdown(cancel_futures=True)


def _batch(waiting: deque[Work[R]], lanes: int) -> Iterator[Work[R]]:
    """The next ones: as many of one kin as there are lanes, and the long ones between them."""
    kin: str | None = None
    while waiting and (waiting[0].long or (lanes and kin in {None, waiting[0].kin})):
        work = waiting.popleft()
        if not work.long:
            lanes, kin = lanes - 1, work.kin
        yield work


def _run(work: Work[R], lane: Lane) -> R:
    try:
        return work(lane)
    finally:
        lane.arrive()
