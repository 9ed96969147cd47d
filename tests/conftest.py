"""Virtual time: a loop whose clock jumps to the next timer as soon as everything waits."""

import asyncio
import selectors

import pytest

TURN = 1e-9
"""Seconds that a turn of the loop takes, or a timer that rounding sets for right now would never be over."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never blocks on timers: advances the loop's clock by what it was asked to wait."""

    loop: "VirtualTimeLoop"

    def select(self, timeout=None):
        if timeout is None:  # no timer: a thread or a socket must bring the next event
            return super().select(5.0) or pytest.fail("everything waits, and no timer will ever end it")
        ready = super().select(0)
        self.loop.now += TURN if ready else max(timeout, TURN)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on virtual time."""

    def __init__(self):
        selector = _JumpingSelector()
        selector.loop = self
        self.now = 1000.0
        super().__init__(selector)

    def time(self):
        return self.now


def pytest_asyncio_loop_factories(config, item):
    """Tests marked ``real_time`` use sockets and threads; all others run on virtual time."""
    if item.get_closest_marker("real_time"):
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualTimeLoop}


def run_virtual(main):
    """Run a coroutine on virtual time, for tests that make many loops, such as hypothesis's."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


@pytest.fixture(autouse=True)
def _state_of_its_own(tmp_path_factory, monkeypatch):
    """No test reads or writes what the user keeps, or another test: ledgers, histories."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
