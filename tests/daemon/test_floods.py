"""Events that anybody can cause are shut out when too many come, and what they told of is seen."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from virtirq.daemon.floods import FLOOD, LONGEST, Floods
from virtirq.daemon.timers import Handle
from virtirq.host.events import EventKind, KernelEvent
from virtirq.policy.pace import SHORTEST


class Kernel:
    """What of it is muted, what was looked at, and a clock that the test moves."""

    def __init__(self) -> None:
        self.muted: set[EventKind] = set()
        self.refuses = False
        self.looks: list[EventKind] = []
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[[], object]]] = []
        kinds = (EventKind.ROUTED, EventKind.REPINNED)
        looks = {kind: lambda kind=kind: self.looked(kind) for kind in kinds}
        self.floods = Floods(looks, self.later, lambda: self.now)

    def later(self, delay: float, call: Callable[[], object]) -> Handle:
        self.timers.append((self.now + delay, call))
        return SimpleNamespace(cancel=lambda: None)

    def looked(self, kind: EventKind) -> None:
        self.looks.append(kind)

    def mute(self, kind: EventKind, mute: bool) -> bool:
        assert (kind in self.muted) != mute
        if not self.refuses:
            (self.muted.add if mute else self.muted.discard)(kind)
        return not self.refuses

    def hear(self, *kinds: EventKind, times: int = FLOOD) -> None:
        self.floods.seen([KernelEvent(kind, self.now) for kind in kinds] * times, self.mute)

    def run_out(self) -> float:
        """The one timer; after how long."""
        (timer,) = self.timers
        self.timers.clear()
        waited, self.now = timer[0] - self.now, timer[0]
        timer[1]()
        return waited


def test_a_flood_is_shut_out_and_then_looked_at() -> None:
    kernel = Kernel()
    kernel.hear(EventKind.ROUTED, times=FLOOD - 1)
    assert kernel.muted == set()
    kernel.hear(EventKind.ROUTED, times=1)
    kernel.hear(EventKind.ROUTED)  # what had come before the filter
    assert (kernel.muted, kernel.looks) == ({EventKind.ROUTED}, [])
    assert kernel.run_out() == SHORTEST
    assert (kernel.muted, kernel.looks) == (set(), [EventKind.ROUTED])


def test_who_keeps_at_it_is_shut_out_for_longer() -> None:
    kernel = Kernel()
    waits = []
    for _ in range(9):
        kernel.hear(EventKind.REPINNED)
        waits.append(kernel.run_out())
    assert waits == [1, 2, 4, 8, *[LONGEST] * 5]
    kernel.now += 5 * LONGEST
    kernel.hear(EventKind.REPINNED)
    assert kernel.run_out() == SHORTEST


def test_one_kind_does_not_shut_out_another() -> None:
    kernel = Kernel()
    kernel.hear(EventKind.ROUTED, EventKind.REPINNED, times=FLOOD - 1)
    assert kernel.muted == set()
    kernel.hear(EventKind.REPINNED, EventKind.FREED, times=1)
    assert kernel.muted == {EventKind.REPINNED}


def test_interrupts_are_never_shut_out() -> None:
    kernel = Kernel()
    kernel.hear(EventKind.REQUESTED, EventKind.MOVED, EventKind.FREED, times=10 * FLOOD)
    assert kernel.muted == set()


def test_a_steady_stream_is_a_flood_and_a_slow_one_is_not() -> None:
    kernel = Kernel()
    for _ in range(2 * FLOOD):
        kernel.hear(EventKind.ROUTED, times=1)
        kernel.now += 0.01
    assert kernel.muted == set()
    for _ in range(2 * FLOOD):
        kernel.hear(EventKind.ROUTED, times=1)
        kernel.now += 0.001
    assert kernel.muted == {EventKind.ROUTED}


def test_what_the_kernel_does_not_take_back_is_tried_again() -> None:
    kernel = Kernel()
    kernel.hear(EventKind.ROUTED)
    kernel.refuses = True
    kernel.run_out()
    assert (kernel.muted, kernel.looks) == ({EventKind.ROUTED}, [EventKind.ROUTED])
    kernel.refuses = False
    assert kernel.run_out() == LONGEST
    assert (kernel.muted, len(kernel.looks)) == (set(), 2)
