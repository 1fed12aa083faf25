"""Events that anybody can cause are shut out when too many come, and what they told of is seen."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.daemon.test_timers import Clock
from virtirq.daemon.floods import FLOOD, LONGEST, Floods
from virtirq.daemon.timers import Timers
from virtirq.host.events import EventKind, KernelEvent
from virtirq.policy.pace import SHORTEST

WATCHED = (EventKind.ROUTED, EventKind.REPINNED, EventKind.ENDED, EventKind.STARTED)


class Kernel:
    """What of it is muted, what was acted on and looked at, and a clock that the test moves."""

    def __init__(self) -> None:
        self.muted: set[EventKind] = set()
        self.refuses = False
        self.looks: list[EventKind] = []
        self.clock = Clock()
        self.errors: list[BaseException] = []
        looks = {kind: lambda kind=kind: self.looks.append(kind) for kind in WATCHED}
        timers = Timers(self.clock.later, lambda: self.clock.now, self.errors.append)
        self.floods = Floods(looks, timers, lambda: self.clock.now)

    def mute(self, kind: EventKind, mute: bool) -> bool:
        assert (kind in self.muted) != mute
        if not self.refuses:
            (self.muted.add if mute else self.muted.discard)(kind)
        return not self.refuses

    def hear(self, *kinds: EventKind, times: int = FLOOD + 1) -> int:
        """These come so many times; how many are to be acted on."""
        events = [KernelEvent(kind, self.clock.now) for kind in kinds] * times
        return len(self.floods.admit(events, self.mute))

    def run_out(self) -> float:
        """The one timer; after how long."""
        assert self.clock.pending == 1
        before, looks = self.clock.now, len(self.looks)
        while len(self.looks) == looks:
            self.clock.pass_(0.5)
        return self.clock.now - before


def test_a_flood_is_shut_out_and_then_looked_at() -> None:
    kernel = Kernel()
    assert kernel.hear(EventKind.ROUTED, times=FLOOD) == FLOOD
    assert kernel.muted == set()
    assert kernel.hear(EventKind.ROUTED, times=1) == 0
    assert kernel.hear(EventKind.ROUTED) == 0, "what had come before the filter"
    assert (kernel.muted, kernel.looks) == ({EventKind.ROUTED}, [])
    assert kernel.run_out() == SHORTEST
    assert (kernel.muted, kernel.looks) == (set(), [EventKind.ROUTED])
    assert kernel.hear(EventKind.ROUTED, times=1) == 1


def test_of_all_that_is_read_at_once_no_more_is_acted_on() -> None:
    """The kernel's buffers hold thousands by the time that it is asked to keep them."""
    kernel = Kernel()
    assert kernel.hear(EventKind.ENDED, EventKind.FREED, times=20_000) == FLOOD + 20_000
    assert kernel.muted == {EventKind.ENDED}


def test_what_others_cause_is_acted_on_meanwhile_and_in_order() -> None:
    kernel = Kernel()
    kernel.hear(EventKind.ENDED)
    events = [
        KernelEvent(kind, float(at))
        for at, kind in enumerate([EventKind.MOVED, EventKind.ENDED, EventKind.REPINNED] * 2)
    ]
    told = kernel.floods.admit(events, kernel.mute)
    assert told == [each for each in events if each.kind is not EventKind.ENDED]


def test_who_keeps_at_it_is_shut_out_for_longer() -> None:
    kernel = Kernel()
    waits = []
    for _ in range(9):
        kernel.hear(EventKind.STARTED)
        waits.append(kernel.run_out())
    assert waits == [1, 2, 4, 8, *[LONGEST] * 5]
    kernel.clock.pass_(5 * LONGEST)
    kernel.hear(EventKind.STARTED)
    assert kernel.run_out() == SHORTEST


def test_one_kind_does_not_shut_out_another() -> None:
    kernel = Kernel()
    kernel.hear(EventKind.ROUTED, EventKind.REPINNED, times=FLOOD)
    assert kernel.muted == set()
    kernel.hear(EventKind.REPINNED, EventKind.FREED, times=1)
    assert kernel.muted == {EventKind.REPINNED}


def test_interrupts_are_never_shut_out() -> None:
    kernel = Kernel()
    kinds = (EventKind.REQUESTED, EventKind.MOVED, EventKind.FREED)
    assert kernel.hear(*kinds, times=10 * FLOOD) == 30 * FLOOD
    assert kernel.muted == set()


def test_a_steady_stream_is_a_flood_and_a_slow_one_is_not() -> None:
    kernel = Kernel()
    for _ in range(2 * FLOOD):
        kernel.hear(EventKind.ROUTED, times=1)
        kernel.clock.pass_(0.01)
    assert kernel.muted == set()
    for _ in range(2 * FLOOD):
        kernel.hear(EventKind.ROUTED, times=1)
        kernel.clock.pass_(0.001)
    assert kernel.muted == {EventKind.ROUTED}


def test_what_the_kernel_does_not_keep_is_not_acted_on_either() -> None:
    kernel = Kernel()
    kernel.refuses = True
    assert kernel.hear(EventKind.ROUTED) == FLOOD
    assert kernel.hear(EventKind.ROUTED) == 0
    kernel.refuses = False
    kernel.muted.add(EventKind.ROUTED)  # as the kernel has it is as well
    assert kernel.run_out() == SHORTEST
    assert kernel.looks == [EventKind.ROUTED]


def test_what_the_kernel_does_not_take_back_is_tried_again() -> None:
    kernel = Kernel()
    kernel.hear(EventKind.ROUTED)
    kernel.refuses = True
    kernel.run_out()
    assert (kernel.muted, kernel.looks) == ({EventKind.ROUTED}, [EventKind.ROUTED])
    kernel.refuses = False
    assert kernel.run_out() == LONGEST
    assert (kernel.muted, len(kernel.looks)) == (set(), 2)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*WATCHED, EventKind.FREED]),
            st.integers(1, 3 * FLOOD),
            st.sampled_from([0.0, 0.25, 0.5, 1.5, 20.0]),
        ),
        max_size=30,
    )
)
def test_whatever_comes_is_acted_on_or_looked_at_later(
    steps: list[tuple[EventKind, int, float]],
) -> None:
    kernel = Kernel()
    owed: set[EventKind] = set()
    """Kinds of which something was dropped that nothing has made up for yet."""
    for kind, times, pause in steps:
        acted_on = kernel.hear(kind, times=times)
        assert acted_on <= FLOOD or kind is EventKind.FREED
        if acted_on < times:
            owed.add(kind)
        kernel.looks.clear()
        kernel.clock.pass_(pause)
        owed -= set(kernel.looks)
        assert owed == kernel.muted
    kernel.clock.pass_(LONGEST)
    assert owed <= set(kernel.looks)
    assert kernel.muted == set()
    assert kernel.errors == []
