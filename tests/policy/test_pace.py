"""The pace of following: at once, then at most so often, slower for who keeps on, and forgotten."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.conftest import Clock
from virtirq.policy.pace import AT_ONCE, LONGEST, SHORTEST, WINDOW, Pace, SetUps


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


# How often a guest may set its vectors up -------------------------------------------------------


@pytest.fixture
def set_ups(clock: Clock) -> SetUps[str]:
    return SetUps(clock)


def set_up(set_ups: SetUps[str], vectors: int, device: str = "a") -> list[float]:
    """The waits that the vectors of one set are given."""
    return [set_ups.appeared(device, vector) for vector in range(vectors)]


@pytest.mark.parametrize("vectors", [1, 16, 257, 2048])
def test_a_guest_that_boots_is_served_at_once(
    set_ups: SetUps[str], clock: Clock, vectors: int
) -> None:
    for _ in range(3):  # boots, reloads a driver, boots again
        for _ in range(5):
            assert max(set_up(set_ups, vectors)) == 0
            clock.now += 0.5
    assert set_ups.wait("a") == 0


@pytest.mark.parametrize("vectors", [2, 64, 255])
def test_sets_that_grow_one_by_one_are_one_driver_s(set_ups: SetUps[str], vectors: int) -> None:
    """As of a VMM before Linux 6.5, which frees all for one more."""
    for size in range(1, vectors + 1):
        assert max(set_up(set_ups, size)) == 0
    assert max(set_up(set_ups, vectors)) == 0


def test_a_guest_that_moves_all_its_vectors_is_served_at_once(set_ups: SetUps[str]) -> None:
    """Each is masked and unmasked, and so requested twice; irqbalance in a guest does so."""
    assert max(set_up(set_ups, 512)) == 0
    for vector in range(512):
        assert set_ups.appeared("a", vector) == 0
        assert set_ups.appeared("a", vector) == 0


def looked_at(set_ups: SetUps[str], clock: Clock, every: float, seconds: float) -> int:
    """How often vectors are looked at of a guest that sets them up so often.

    At once where they may be, and once when the wait is over.
    """
    looks, due, end = 0, float("inf"), clock.now + seconds
    while clock.now < end:
        if clock.now >= due:
            looks, due = looks + 1, float("inf")
        delay = set_up(set_ups, 4)[-1]
        if delay:
            due = min(due, clock.now + delay)
        else:
            looks += 1
        clock.now += every
    return looks


def test_one_that_switches_them_off_and_on_is_slowed_down(
    set_ups: SetUps[str], clock: Clock
) -> None:
    assert looked_at(set_ups, clock, 0.001, 1.0) <= AT_ONCE + 2
    assert looked_at(set_ups, clock, 0.01, 600.0) <= 6 + 600 / LONGEST


def test_it_waits_longer_and_longer(set_ups: SetUps[str], clock: Clock) -> None:
    waits = []
    for _ in range(AT_ONCE):
        assert set_ups.appeared("a", 0) == 0
    for _ in range(9):
        waits.append(set_ups.appeared("a", 0))
        clock.now += waits[-1]
    assert waits == [1, 2, 4, 8, 16, 32, LONGEST, LONGEST, LONGEST]


def test_all_of_the_device_wait(set_ups: SetUps[str], clock: Clock) -> None:
    for _ in range(AT_ONCE + 1):
        set_ups.appeared("a", 0)
    clock.now += 0.25
    assert set_ups.appeared("a", 1) == set_ups.wait("a") == 0.75
    assert set_ups.appeared("b", 0) == set_ups.wait("b") == 0


def test_after_a_quiet_time_it_is_the_first_again(set_ups: SetUps[str], clock: Clock) -> None:
    for _ in range(AT_ONCE + 1):
        set_ups.appeared("a", 0)
    clock.now += WINDOW + 1
    assert set_ups.appeared("a", 0) == 0
    assert set_ups.wait("a") == 0


def test_a_device_that_is_given_on_begins_anew(set_ups: SetUps[str]) -> None:
    for _ in range(AT_ONCE + 1):
        set_ups.appeared("a", 0)
    set_ups.forget("a")
    set_ups.forget("none")
    assert set_ups.wait("a") == set_ups.appeared("a", 0) == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5), st.sampled_from([0, 0.01, 0.5, 3.0, 70])),
        max_size=200,
    )
)
def test_whatever_a_guest_does_its_waits_are_bounded(
    steps: list[tuple[int, int, float]],
) -> None:
    clock = Clock()
    set_ups: SetUps[int] = SetUps(clock)
    at_once: dict[tuple[int, int], list[float]] = {}
    for device, vector, pause in steps:
        before = set_ups.wait(device)
        delay = set_ups.appeared(device, vector)
        assert 0 <= delay <= LONGEST
        assert delay == set_ups.wait(device)
        assert not before or delay == before, "a wait that is on is not made longer"
        if not delay:
            at_once.setdefault((device, vector), []).append(clock.now)
        clock.now += pause
    for times in at_once.values():
        for first in times:
            within = sum(first <= each <= first + WINDOW for each in times)
            assert within <= 2 * (AT_ONCE + 6), "in two windows, and once more for each vector"


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.5, 2.0, 40.0])), max_size=150))
def test_what_is_free_need_not_wait(happens: list[tuple[int, float]]) -> None:
    clock = Clock()
    made = SetUps[str](clock)
    for vector, later in happens:
        clock.now += later
        free = made.is_free("a", vector)
        assert made.appeared("a", vector) == 0 or not free


def test_a_guest_that_boots_is_free(set_ups: SetUps[str]) -> None:
    for _ in range(4):
        for vector in range(300):
            assert set_ups.is_free("a", vector)
            set_ups.appeared("a", vector)
