"""Work that waits, several pieces at a time: who begins when, and what happens if one fails or the run stops."""

import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

import pytest

from benchmarks import lanes
from benchmarks.lanes import Lane, Stopped, side_by_side


@dataclass
class Piece:
    """Gets ready, goes, and returns its name; tells a diary when."""

    name: str
    diary: list[str] = field(default_factory=list)
    fails: bool = False
    long: bool = False
    kin: str = ""
    until: threading.Event | None = None

    def __call__(self, lane):
        self.diary.append(f"{self.name} comes")
        if self.fails:
            raise ValueError(self.name)
        lane.ready()
        self.diary.append(f"{self.name} goes")
        if self.until:
            self.until.wait(10)
        self.diary.append(f"{self.name} ends")
        return self.name


@pytest.fixture(autouse=True)
def _no_stagger(monkeypatch):
    monkeypatch.setattr(lanes, "STAGGER", 0.0)


def diary_of(count, names, **options):
    """What pieces of those names did."""
    diary: list[str] = []
    found = list(side_by_side([Piece(name, diary, **options) for name in names], count))
    assert sorted(found) == sorted(names)
    return diary


def test_nobody_goes_before_all_that_were_begun_together_have_come():
    """Three lanes for five pieces: three, and when these have ended two more."""
    diary = diary_of(3, "abcde")
    assert {line[2:] for line in diary[:3]} == {"comes"}
    assert {line[0] for line in diary[:9]} == set("abc")
    assert set(diary[9:11]) == {"d comes", "e comes"}


def test_one_lane_is_one_after_the_other():
    """In the order in which they are given."""
    assert diary_of(1, "ab") == ["a comes", "a goes", "a ends", "b comes", "b goes", "b ends"]


def test_what_is_begun_together_is_of_one_kin():
    """Though there are lanes left; a long piece goes with any."""
    diary: list[str] = []
    kins = {"a": "x", "b": "x", "c": "y", "L": "z", "d": "y"}
    pieces = [Piece(name, diary, kin=kin, long=name == "L") for name, kin in kins.items()]
    assert sorted(side_by_side(pieces, 9)) == sorted(kins)
    assert {line[0] for line in diary[:6]} == set("ab")
    assert {line[2:] for line in diary[6:9]} == {"comes"}


def test_a_long_piece_goes_on_beside_the_others_and_takes_no_lane():
    """It comes with the first of them and ends when all others have."""
    last = threading.Event()
    diary: list[str] = []
    pieces = [Piece("L", diary, long=True, until=last), *(Piece(name, diary) for name in "abc")]
    found = []
    for name in side_by_side(pieces, 2):
        found.append(name)
        if name == "c":
            last.set()
    assert found[-1] == "L"
    assert {line[0] for line in diary[:3]} == set("Lab")


def test_one_who_fails_before_it_is_ready_keeps_nobody_waiting():
    """The failure is the caller's; the others are stopped."""
    with pytest.raises(ValueError, match="b"):
        list(side_by_side([Piece("a"), Piece("b", fails=True)], 2))


@pytest.mark.parametrize("delay", [0.0, 0.05])
def test_one_may_begin_at_a_part_of_a_clocks_period(monkeypatch, delay):
    """In its turn, of those that begin together."""
    lane, waits = Lane(delay=delay), []
    monkeypatch.setattr(lane._stopped, "wait", waits.append)
    monkeypatch.setattr(lanes.time, "monotonic", lambda: 100.0)
    lane.begin_at(0.75, 6.0)
    lane.ready()
    assert waits == pytest.approx([delay, delay + 0.5])  # to 100.5, which is 16.75 periods


def test_what_was_begun_is_handed_on_before_the_next_begin():
    """As soon as it is there."""
    diary: list[str] = []
    found = side_by_side([Piece("a", diary), Piece("b", diary)], 1)
    assert next(found) == "a"
    assert "b comes" not in diary
    assert list(found) == ["b"]


class Sleeper:
    """A process that would sleep for long."""

    long = False
    kin = ""

    def __init__(self):
        self.status = None

    def __call__(self, lane):
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True) as process:
            lane.watch(process)
            lane.ready()
            self.status = process.wait()
            lane.check()


@pytest.mark.real_time
def test_who_stops_the_run_stops_what_is_under_way():
    """As after Ctrl-C: the processes are gone, and nothing else begins."""
    sleepers, later = [Sleeper(), Sleeper()], Piece("later")
    quick = Piece("quick", long=True)
    found = side_by_side([quick, *sleepers, later], 2)
    assert next(found) == "quick"
    began = time.monotonic()
    found.close()
    assert time.monotonic() - began < 30
    assert all(sleeper.status != 0 for sleeper in sleepers)
    assert later.diary == []


def test_a_lane_that_was_stopped_lets_nothing_begin():
    """Neither what waits for its turn nor what comes later."""
    lane = Lane()
    lane.stop()
    with pytest.raises(Stopped):
        lane.ready()
