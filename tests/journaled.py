"""A journal in memory, on virtual time, for tests: several processes on one, with delays, failures and crashes."""

import asyncio
import json
from itertools import count

from kimi_async.errors import LedgerUnavailable
from kimi_async.ledger.journal import TIGHTENING, Read, tightened
from kimi_async.ledger.replica import Entry, Replica


class Shelf:
    """What the processes share: the journal itself, and all of its history."""

    def __init__(self):
        self.entries = []
        self.history = []
        self.kept = None
        self.pruned = 0
        self.tight = 0
        self.ahead = 1e9
        self.listeners = {}
        self.organizations = {}
        self.addresses = count()
        self.at = 0.0

    def now(self):
        """The clock of all of them; outside of a loop no time passes."""
        try:
            return asyncio.get_running_loop().time() + self.ahead
        except RuntimeError:
            return self.at

    def replay(self, last):
        """The books after the history up to an entry."""
        replica = Replica()
        for entry in self.history[:last]:
            replica.apply(entry)
        return replica

    def operations(self):
        """What was entered, in order."""
        return [entry.operation for entry in self.history]


class FakeJournal:
    """One process' way to the shelf. ``fate`` decides over each call.

    Args:
        shelf: shared with other processes.
        fate: called before each append; returns seconds before and after it, and ``None``, ``"before"`` or ``"after"``
            for when it fails. A failure after it has happened is one that nobody can tell from the other.
        wakes: called for each wake-up; seconds until it arrives, None if it is lost.
    """

    def __init__(self, shelf, *, fate=lambda: (0.0, 0.0, None), wakes=lambda: 0.001):
        self.shelf = shelf
        self.fate = fate
        self.wakes = wakes
        self.running = asyncio.Event()
        self.running.set()
        self.appends = 0
        self.closed = False
        self.account = "default"

    def __repr__(self):
        return "<FakeJournal>"

    def now(self):
        return max(self.shelf.now(), self.shelf.at)

    def crash(self):
        """From now on nothing of this process arrives, until it is ``running`` again."""
        self.running.clear()

    async def append(self, last, process, lines, room=None, *, wake=None):
        before, after, failure = self.fate()
        await asyncio.sleep(before)
        await self.running.wait()
        if failure == "before":
            raise LedgerUnavailable("before")
        read = self._append(last, process, lines, room)
        if wake is not None:
            self.wake(wake)
        await asyncio.sleep(after)
        await self.running.wait()
        if failure == "after":
            raise LedgerUnavailable("after")
        return read

    def _append(self, last, process, lines, room):
        assert not self.closed
        self.appends += 1
        shelf = self.shelf
        stale = room is not None and shelf.tight > last
        snapshot = None
        if last < shelf.pruned:
            snapshot = json.loads(shelf.kept)
            last = snapshot["last"]
        entries = [entry for entry in shelf.entries if entry.id > last]
        if not lines or (stale and (snapshot is not None or tightened(entries, room))):
            return Read(snapshot, entries, appended=False)
        shelf.at = max(shelf.at, shelf.now())
        newest = len(shelf.history)
        own = [
            Entry(newest + n, shelf.at, process, operation, json.loads(json.dumps(detail)))
            for n, (operation, detail) in enumerate(lines, start=1)
        ]
        shelf.tight = max([entry.id for entry in own if entry.operation in TIGHTENING], default=shelf.tight)
        shelf.entries += own
        shelf.history += own
        return Read(snapshot, entries + own, appended=True)

    async def prune(self, state):
        await self.running.wait()
        if self.fate()[2]:
            raise LedgerUnavailable("prune")
        shelf = self.shelf
        before = json.loads(shelf.kept)["last"] if shelf.kept else 0
        if state["last"] > before:
            shelf.kept, shelf.pruned = json.dumps(state), before
            shelf.entries = [entry for entry in shelf.entries if entry.id > before]

    async def claim(self, organization):
        await self.running.wait()
        if self.fate()[2]:
            raise LedgerUnavailable("claim")
        self.shelf.organizations.setdefault(organization, set()).add(self.account)
        return sorted(self.shelf.organizations[organization])

    async def listen(self, on_wake):
        address = str(next(self.shelf.addresses))
        self.shelf.listeners[address] = on_wake
        return address

    def wake(self, address):
        delay = self.wakes()
        if delay is not None and address in self.shelf.listeners and self.running.is_set():
            asyncio.get_running_loop().call_later(delay, self.shelf.listeners[address])

    async def aclose(self):
        self.closed = True
