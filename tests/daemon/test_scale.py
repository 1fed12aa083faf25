"""What one guest costs does not depend on how many others there are: counted, not timed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crowd import VECTORS, CrowdFs, guest_of, irq_of, requested
from virtirq.control.counters import Counters
from virtirq.control.journal import SharedJournal
from virtirq.daemon.log import Log
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.timers import Timers
from virtirq.host import paths
from virtirq.policy import plan as module
from virtirq.policy import target
from virtirq.policy.config import Config

FEW, MANY = 5, 25
CASE = 3


@dataclass
class Crowd:
    """A Reconciler that knows so many guests, all in place; one more can be read."""

    fs: CrowdFs
    reconciler: Reconciler
    targets: list[str]

    def count(self, act: Callable[[Crowd], object]) -> tuple[Counter[str], Counter[str]]:
        """The calls that it makes, and the guests of which it computes targets."""
        self.fs.calls.clear()
        self.targets.clear()
        act(self)
        return Counter(self.fs.calls), Counter(self.targets)


@contextmanager
def crowd(state: Path, guests: int, targets: list[str], *, host: int = 0) -> Iterator[Crowd]:
    """`host`: how many guests could be there at all, if more."""

    def failed(error: BaseException) -> None:
        raise error

    fs = CrowdFs(max(guests + 1, host))
    journal = SharedJournal(state, "boot")
    loop = asyncio.new_event_loop()
    timers = Timers(loop.call_later, loop.time, failed)
    reconciler = Reconciler(fs, journal, Config(), Log(), Counters(), timers)
    reconciler.know(guest_of(number) for number in range(guests))
    yield Crowd(fs, reconciler, targets)
    journal.close()
    loop.close()


@pytest.fixture(autouse=True)
def stable_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nothing crashes, and thousands of interrupts are moved."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of guests of which a target was computed."""
    found: list[str] = []
    real = target.target_of

    def counting(*args: object) -> target.Target:
        found.append(args[1].name)  # type: ignore[attr-defined]
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "target_of", counting)
    return found


def repinned(crowd: Crowd) -> None:
    crowd.reconciler.update(guest_of(CASE, shift=1))


def read_again(crowd: Crowd) -> None:
    crowd.reconciler.update(guest_of(CASE))


def started_anew(crowd: Crowd) -> None:
    crowd.reconciler.update(guest_of(CASE, pid=99_999))


def stopped(crowd: Crowd) -> None:
    crowd.reconciler.gone(guest_of(CASE).key)


def one_more(crowd: Crowd) -> None:
    crowd.reconciler.update(guest_of(len(crowd.reconciler.guests)))


def asked_for_another(crowd: Crowd) -> None:
    crowd.reconciler.update(guest_of(CASE, asked="native"))


def a_vector(crowd: Crowd) -> None:
    irq = irq_of(CASE, 1, 2)
    crowd.fs.reset(irq)
    crowd.reconciler.freed(irq)
    crowd.reconciler.requested([requested(irq, 0.0)])
    assert crowd.fs.where(irq) != CrowdFs(1).where(irq), "it is pinned"


def aimed(crowd: Crowd) -> None:
    crowd.reconciler.followable(guest_of(CASE).key)


@pytest.mark.parametrize(
    "act",
    [read_again, repinned, started_anew, stopped, one_more, asked_for_another, a_vector, aimed],
)
def test_one_guest_costs_one_guest(
    act: Callable[[Crowd], object], tmp_path: Path, targets: list[str]
) -> None:
    found = []
    for guests in (FEW, MANY):
        with crowd(tmp_path / str(guests), guests, targets) as made:
            calls, names = made.count(act)
            found.append(calls)
            assert names.keys() <= {f"guest{CASE}", f"guest{guests}"}
            assert all(count == 4 for count in names.values()), "once for each device"
    assert found[0] == found[1]


def test_the_counts_would_tell(tmp_path: Path, targets: list[str]) -> None:
    """What concerns all does cost all."""
    found = []
    for guests in (FEW, 2 * FEW):
        with crowd(tmp_path / str(guests), guests, targets) as made:
            calls, names = made.count(lambda each: each.reconciler.look_at_all())
            assert not names
            found.append(calls["read"])
    assert found[1] == pytest.approx(2 * found[0], rel=0.1)


def test_a_start_reads_and_computes_once(tmp_path: Path, targets: list[str]) -> None:
    """Nothing is moved before all are known, and what was read by then is not read again."""
    with crowd(tmp_path, 0, targets, host=FEW) as made:
        calls, names = made.count(start)
        assert names == {f"guest{number}": 4 for number in range(FEW)}, "once for each device"
        interrupts = FEW * 4 * VECTORS
        # Of each interrupt: names, affinity, effective affinity; where it is before the write and
        # after it, and where it goes then. Of each device seven more, what its vectors are with it.
        assert calls["read"] == 6 * interrupts + 7 * FEW * 4
        assert calls["open"] == calls["write"] == calls["close"] == interrupts


def start(crowd: Crowd) -> None:
    crowd.reconciler.know([guest_of(number) for number in range(FEW)], only_note=True)
    assert not crowd.fs.calls["write"]
    crowd.reconciler.act_on_noted()


def test_all_are_in_place_and_each_was_looked_at_once(tmp_path: Path, targets: list[str]) -> None:
    with crowd(tmp_path, FEW, targets) as made:
        written = made.fs.calls["write"]
        assert written == FEW * 4 * VECTORS
        affinities = [paths.IRQ_AFFINITY.at(irq_of(g, 0, 0)) for g in range(FEW)]
        assert {made.fs.read(each) for each in affinities} == {str(g * 16) for g in range(FEW)}
