"""The pace of following: at once, then at most so often, slower for who keeps on, and forgotten."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.policy.pace import LONGEST, SHORTEST, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace[str]:
    return Pace(clock)


def as_often_as_allowed(pace: Pace[str], clock: Clock, times: int) -> list[float]:
    """The seconds from each change to the next."""
    waits = []
    for _ in range(times):
        pace.changed("a")
        waits.append(pace.wait("a"))
        clock.now += waits[-1]
        assert pace.wait("a") == 0
    return waits


def test_the_first_change_is_at_once(pace: Pace[str]) -> None:
    assert pace.wait("a") == 0


def test_the_next_has_to_wait_a_second(pace: Pace[str], clock: Clock) -> None:
    pace.changed("a")
    assert pace.wait("a") == SHORTEST == 1
    clock.now += 0.75
    assert pace.wait("a") == 0.25
    clock.now += 0.25
    assert pace.wait("a") == 0
    clock.now += 100
    assert pace.wait("a") == 0


def test_who_keeps_on_waits_longer_and_longer(pace: Pace[str], clock: Clock) -> None:
    waits = as_often_as_allowed(pace, clock, 10)
    assert waits == [1, 2, 4, 8, 16, 32, LONGEST, LONGEST, LONGEST, LONGEST]


@pytest.mark.parametrize(("times", "interval"), [(1, 1), (2, 2), (3, 4), (8, LONGEST)])
def test_after_a_calm_it_is_the_first_again(
    pace: Pace[str], clock: Clock, times: int, interval: float
) -> None:
    assert as_often_as_allowed(pace, clock, times)[-1] == interval
    clock.now += 3 * interval + 0.001  # four of them since the last change
    pace.changed("a")
    assert pace.wait("a") == SHORTEST


def test_who_comes_by_no_faster_than_it_may_is_not_slowed_down(
    pace: Pace[str], clock: Clock
) -> None:
    """irqbalance in a guest looks every ten seconds, or every second if it is told to."""
    for seconds in (1.0, 3.0, 10.0) * 5:
        pace.changed("a")
        clock.now += seconds
        assert pace.wait("a") == 0


def test_who_calms_down_is_let_off_step_by_step(pace: Pace[str], clock: Clock) -> None:
    assert as_often_as_allowed(pace, clock, 5)[-1] == 16
    pace.changed("a")
    intervals = []
    for _ in range(6):
        clock.now += 33
        pace.changed("a")
        intervals.append(pace._steps["a"].interval)
    assert intervals == [16, 8, 1, 1, 1, 1]


def test_each_has_its_own_pace(pace: Pace[str], clock: Clock) -> None:
    as_often_as_allowed(pace, clock, 3)
    pace.changed("a")
    pace.changed("b")
    assert (pace.wait("a"), pace.wait("b"), pace.wait("c")) == (8, 1, 0)


def test_what_is_not_wanted_any_more_is_forgotten(pace: Pace[str], clock: Clock) -> None:
    for key in ("a", "b"):
        pace.changed(key)
    pace.keep(lambda key: key == "a")
    assert (pace.wait("a"), pace.wait("b")) == (SHORTEST, 0)
    pace.changed("b")
    assert pace.wait("b") == SHORTEST
    pace.keep(lambda key: False)
    assert pace._steps == {}


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0, 100)), max_size=60))
def test_nobody_changes_more_often_than_once_a_second(steps: list[tuple[int, float]]) -> None:
    """Whatever a guest does; and nobody has to wait for more than the longest."""
    clock = Clock()
    pace: Pace[int] = Pace(clock)
    changes: dict[int, list[float]] = {}
    for key, later in steps:
        clock.now += later
        assert 0 <= pace.wait(key) <= LONGEST
        if pace.wait(key) == 0:
            changes.setdefault(key, []).append(clock.now)
            pace.changed(key)
            assert SHORTEST <= pace.wait(key) <= LONGEST
    for times in changes.values():
        # Not compared to the interval itself: floating point.
        assert all(b - a > SHORTEST - 1e-6 for a, b in pairwise(times))
        for first in times:
            assert sum(first <= each < first + 15 for each in times) <= 15


def test_a_restless_guest_moves_little_in_an_hour(pace: Pace[str], clock: Clock) -> None:
    end, changes = clock.now + 3600, 0
    while clock.now < end:
        if pace.wait("a") == 0:
            pace.changed("a")
            changes += 1
        clock.now += 0.5
    assert changes <= 6 + 3600 / LONGEST
