"""What was sent within a window of time: pure arithmetic, time is an argument.

A window slides: at time ``now`` it holds what was stamped in ``(now - span, now]``. The log is exact, one entry
a request. That matters: a token bucket of the same limit starts full and refills meanwhile, so it lets up to
twice the limit into one window.
"""

import math
from collections import deque
from datetime import datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

TICK = 1e-6
"""Seconds. Two times closer than this are equal: timers fire that early, and sums of floats round."""


class Entry:
    """Requests and tokens that share one stamp."""

    __slots__ = ("at", "requests", "tokens")

    def __init__(self, at: float, requests: int, tokens: int) -> None:
        self.at = at
        self.requests = requests
        self.tokens = tokens


class Log(Protocol):
    """A window's content; ``requests`` and ``tokens`` are its sums as of the last ``expire``."""

    requests: int
    tokens: int
    due: float
    """When ``expire`` next has something to forget; infinite while there is nothing."""

    def add(self, now: float, requests: int, tokens: int) -> Entry:
        """Book at ``now``; times never go back."""

    def expire(self, now: float) -> None:
        """Forget what has left the window."""

    def retract(self, now: float, entry: Entry, tokens: int) -> None:
        """Take tokens back out of an entry, unless it has left the window by itself."""

    def wait(self, now: float, requests: int, tokens: int) -> float:
        """Seconds until that many requests and tokens have left the window."""

    def copy(self) -> "Log":
        """A log with the same content, whose later bookings leave this one untouched."""


class SlidingLog:
    """The exact sliding window.

    Args:
        span: length of the window in seconds; may be changed at any time.
        resolution: entries that start less than this many seconds apart share one bucket, which leaves the
            window when its last part does: never too early, at most ``resolution`` late. 0 keeps every entry.
    """

    __slots__ = ("_entries", "_first", "_resolution", "due", "requests", "span", "tokens")

    def __init__(self, span: float, resolution: float = 0.0) -> None:
        self.span = span
        self.due = math.inf
        self.requests = 0
        self.tokens = 0
        self._resolution = resolution
        self._first = 0.0
        self._entries: deque[Entry] = deque()

    def add(self, now: float, requests: int, tokens: int) -> Entry:
        """Book at ``now``; times never go back."""
        self.requests += requests
        self.tokens += tokens
        if now - self._first < self._resolution and self._entries:
            bucket = self._entries[-1]
            bucket.at = now
            bucket.requests += requests
            bucket.tokens += tokens
            return bucket
        entry = Entry(now, requests, tokens)
        if not self._entries:
            self.due = now + self.span - TICK
        self._entries.append(entry)
        self._first = now
        return entry

    def expire(self, now: float) -> None:
        """Forget what has left the window."""
        entries = self._entries
        horizon = now - self.span + TICK
        while entries and entries[0].at <= horizon:
            entry = entries.popleft()
            self.requests -= entry.requests
            self.tokens -= entry.tokens
        self.due = entries[0].at + self.span - TICK if entries else math.inf

    def retract(self, now: float, entry: Entry, tokens: int) -> None:
        """Take tokens back out of an entry, unless it has left the window by itself."""
        self.expire(now)
        if self._entries and entry.at >= self._entries[0].at:  # a window that has grown gets nothing back
            entry.tokens -= tokens
            self.tokens -= tokens

    def wait(self, now: float, requests: int, tokens: int) -> float:
        """Seconds until that many requests and tokens have left the window.

        Asked for more than it holds, the rest has yet to be booked, and cannot leave within a span from now.
        """
        for entry in self._entries:
            if requests <= 0 and tokens <= 0:
                return 0.0
            requests -= entry.requests
            tokens -= entry.tokens
            if requests <= 0 and tokens <= 0:
                return max(entry.at + self.span - now, 0.0)
        return self.span if requests > 0 or tokens > 0 else 0.0

    def copy(self) -> "SlidingLog":
        """A log with the same content, whose later bookings leave this one untouched, and its buckets as they are."""
        twin = SlidingLog(self.span)
        twin.due, twin.requests, twin.tokens = self.due, self.requests, self.tokens
        twin._entries.extend(Entry(entry.at, entry.requests, entry.tokens) for entry in self._entries)
        return twin


class CalendarLog:
    """A day that ends at midnight in one time zone.

    The gateway's clock and the way there are not exact, so what is booked within ``guard`` seconds before a
    midnight counts for both days, and a day's bookings are kept until ``guard`` seconds after it.

    Args:
        zone: an IANA time zone.
        epoch: the Unix time at which the clock that is passed as ``now`` showed zero.
        guard: seconds.
    """

    __slots__ = ("_days", "_epoch", "_guard", "_zone", "due", "requests", "tokens")

    def __init__(self, zone: ZoneInfo, epoch: float, guard: float) -> None:
        self.due = math.inf
        self.requests = 0
        self.tokens = 0
        self._zone = zone
        self._epoch = epoch
        self._guard = guard
        self._days: deque[Entry] = deque()

    def add(self, now: float, requests: int, tokens: int) -> Entry:
        """Book at ``now``; the entry's stamp is the time at which its day is over."""
        over = self._midnight_after(now + self._guard) + self._guard
        if not self._days or self._days[-1].at < over - TICK:
            self._days.append(Entry(over, 0, 0))
            self.due = self._days[0].at - TICK
        day = self._days[-1]
        for booked in (self, day):
            booked.requests += requests
            booked.tokens += tokens
        return day

    def expire(self, now: float) -> None:
        """Forget the days that are over."""
        while self._days and self._days[0].at <= now + TICK:
            day = self._days.popleft()
            self.requests -= day.requests
            self.tokens -= day.tokens
        self.due = self._days[0].at - TICK if self._days else math.inf

    def retract(self, now: float, entry: Entry, tokens: int) -> None:
        """Take tokens back out of a day that is not over."""
        self.expire(now)
        if entry.at > now + TICK:
            entry.tokens -= tokens
            self.tokens -= tokens

    def wait(self, now: float, requests: int, tokens: int) -> float:
        """Seconds until that many requests and tokens belong to days that are over."""
        for day in self._days:
            requests -= day.requests
            tokens -= day.tokens
            if requests <= 0 and tokens <= 0:
                return max(day.at - now, 0.0)
        return self._midnight_after(now + self._guard) + self._guard - now

    def copy(self) -> "CalendarLog":
        """A log with the same content, whose later bookings leave this one untouched."""
        twin = CalendarLog(self._zone, self._epoch, self._guard)
        twin.due, twin.requests, twin.tokens = self.due, self.requests, self.tokens
        twin._days.extend(Entry(day.at, day.requests, day.tokens) for day in self._days)
        return twin

    def _midnight_after(self, now: float) -> float:
        local = datetime.fromtimestamp(now + self._epoch, self._zone)
        midnight = datetime.combine(local.date() + timedelta(days=1), datetime.min.time(), self._zone)
        return midnight.timestamp() - self._epoch
