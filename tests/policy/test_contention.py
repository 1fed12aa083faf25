"""Contentions over interrupts: at once, later, later still, and forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.conftest import Clock
from virtirq.policy.contention import FEW, FIRST_WAIT, LONGEST_WAIT, WINDOW, Contention, Contentions


@pytest.fixture
def contentions(clock: Clock) -> Contentions[str]:
    return Contentions(clock)


def fight(contentions: Contentions[str], key: str = "a", who: str = "tuner") -> float:
    for _ in range(FEW):
        assert contentions.moved(key, who) == 0
    return contentions.moved(key, who)


def names(contentions: Contentions[str]) -> list[str]:
    return [key for key, _ in contentions.ongoing()]


def test_a_few_moves_are_undone_at_once(contentions: Contentions[str]) -> None:
    assert [contentions.moved("a", "tuner") for _ in range(FEW)] == [0] * FEW
    assert contentions.wait("a") == 0
    assert names(contentions) == []


def test_one_more_within_the_window_has_to_wait(
    contentions: Contentions[str], clock: Clock
) -> None:
    assert fight(contentions) == FIRST_WAIT
    assert contentions.wait("a") == FIRST_WAIT
    clock.now += FIRST_WAIT - 1
    assert contentions.wait("a") == 1
    clock.now += 1
    assert contentions.wait("a") == 0
    clock.now += 1
    assert contentions.wait("a") == 0
    assert names(contentions) == ["a"]


@pytest.mark.parametrize(
    ("apart", "waits"), [(WINDOW / FEW, True), (WINDOW / FEW + 0.001, False), (1.0, True)]
)
def test_how_many_in_how_long(
    contentions: Contentions[str], clock: Clock, apart: float, waits: bool
) -> None:
    delays = []
    for _ in range(FEW + 1):
        delays.append(contentions.moved("a", "tuner"))
        clock.now += apart
    assert any(delays) is waits


def test_each_wait_is_twice_the_one_before(contentions: Contentions[str], clock: Clock) -> None:
    waits = [fight(contentions)]
    for _ in range(7):
        clock.now += contentions.wait("a")
        waits.append(contentions.moved("a", "tuner"))
    assert waits == [10, 20, 40, 80, 160, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT]


def test_a_move_while_it_is_waited_for_changes_nothing(
    contentions: Contentions[str], clock: Clock
) -> None:
    fight(contentions)
    clock.now += 3
    assert contentions.moved("a", "tuner") == FIRST_WAIT - 3
    assert contentions.wait("a") == FIRST_WAIT - 3
    clock.now += FIRST_WAIT - 3
    assert contentions.moved("a", "tuner") == 2 * FIRST_WAIT


def test_a_slow_mover_is_waited_for_longer_too(contentions: Contentions[str], clock: Clock) -> None:
    fight(contentions)
    clock.now += WINDOW
    assert contentions.moved("a", "tuner") == 2 * FIRST_WAIT


def test_the_longer_it_waits_the_longer_it_has_to_be_quiet(
    contentions: Contentions[str], clock: Clock
) -> None:
    fight(contentions)
    for _ in range(3):
        clock.now += contentions.wait("a")
        contentions.moved("a", "tuner")
    assert contentions.wait("a") == 80
    clock.now += 160
    assert names(contentions) == ["a"]
    clock.now += 0.001
    assert names(contentions) == []


def test_peace_ends_it(contentions: Contentions[str], clock: Clock) -> None:
    fight(contentions)
    clock.now += WINDOW
    assert names(contentions) == ["a"]
    clock.now += 0.001
    assert names(contentions) == []
    assert contentions.moved("a", "tuner") == 0


def test_peace_ends_it_though_nobody_has_asked(contentions: Contentions[str], clock: Clock) -> None:
    fight(contentions)
    clock.now += WINDOW + 0.001
    assert contentions.moved("a", "late") == 0
    assert names(contentions) == []
    for _ in range(FEW - 1):
        assert contentions.moved("a", "late") == 0
    assert contentions.moved("a", "late") == FIRST_WAIT
    ((_, found),) = contentions.ongoing()
    assert (found.suspect, found.total) == ("late", FEW + 1)


def test_each_interrupt_has_its_own(contentions: Contentions[str]) -> None:
    fight(contentions, "a")
    assert contentions.wait("b") == 0
    assert contentions.moved("b", "tuner") == 0
    assert names(contentions) == ["a"]


def test_what_is_gone_is_forgotten(contentions: Contentions[str]) -> None:
    fight(contentions)
    contentions.forget("a")
    contentions.forget("never known")
    assert contentions.wait("a") == 0
    assert names(contentions) == []
    assert contentions.moved("a", "tuner") == 0


def test_the_suspect_is_who_moved_it_most_often(contentions: Contentions[str]) -> None:
    for who in ("irqbalance", "tuner", "tuner", "irqbalance", "tuner"):
        contentions.moved("a", who)
    ((_, found),) = contentions.ongoing()
    assert (found.suspect, found.total) == ("tuner", 5)


def test_who_calls_itself_ever_something_else_fills_no_memory(
    contentions: Contentions[str],
) -> None:
    for number in range(1000):
        contentions.moved("a", f"x{number}")
    ((_, found),) = contentions.ongoing()
    assert len(found.by) <= 9
    assert (found.suspect, found.total) == ("others", 1000)
    assert len(found.moves) <= FEW + 1


def test_nobody_is_suspected_of_nothing() -> None:
    assert (Contention().suspect, Contention().total, Contention().on) == (
        "someone unknown",
        0,
        False,
    )


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 2 * WINDOW)), max_size=60),
)
def test_waits_are_bounded_and_what_is_said_is_what_holds(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    contentions: Contentions[str] = Contentions(clock)
    for key, pause in steps:
        clock.now += pause
        before = contentions.wait(key)
        delay = contentions.moved(key, "tuner")
        assert 0 <= delay <= LONGEST_WAIT
        assert delay == contentions.wait(key)
        if before:
            assert delay == before, "a wait that is on is not made longer"
        assert delay == 0 or key in names(contentions)
