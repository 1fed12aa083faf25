"""Fights over interrupts: at once, later, later still, and forgotten."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.policy.contention import FEW, FIRST_WAIT, LONGEST_WAIT, WINDOW, Fight, Fights


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fights(clock: Clock) -> Fights[str]:
    return Fights(clock)


def fight(fights: Fights[str], key: str = "a", who: str = "tuner") -> float:
    for _ in range(FEW):
        assert fights.moved(key, who) == 0
    return fights.moved(key, who)


def names(fights: Fights[str]) -> list[str]:
    return [key for key, _ in fights.ongoing()]


def test_a_few_moves_are_undone_at_once(fights: Fights[str]) -> None:
    assert [fights.moved("a", "tuner") for _ in range(FEW)] == [0] * FEW
    assert fights.wait("a") == 0
    assert names(fights) == []


def test_one_more_within_the_window_has_to_wait(fights: Fights[str], clock: Clock) -> None:
    assert fight(fights) == FIRST_WAIT
    assert fights.wait("a") == FIRST_WAIT
    clock.now += FIRST_WAIT - 1
    assert fights.wait("a") == 1
    clock.now += 1
    assert fights.wait("a") == 0
    clock.now += 1
    assert fights.wait("a") == 0
    assert names(fights) == ["a"]


@pytest.mark.parametrize(
    ("apart", "waits"), [(WINDOW / FEW, True), (WINDOW / FEW + 0.001, False), (1.0, True)]
)
def test_how_many_in_how_long(fights: Fights[str], clock: Clock, apart: float, waits: bool) -> None:
    delays = []
    for _ in range(FEW + 1):
        delays.append(fights.moved("a", "tuner"))
        clock.now += apart
    assert any(delays) is waits


def test_each_wait_is_twice_the_one_before(fights: Fights[str], clock: Clock) -> None:
    waits = [fight(fights)]
    for _ in range(7):
        clock.now += fights.wait("a")
        waits.append(fights.moved("a", "tuner"))
    assert waits == [10, 20, 40, 80, 160, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT]


def test_a_move_while_it_is_waited_for_changes_nothing(fights: Fights[str], clock: Clock) -> None:
    fight(fights)
    clock.now += 3
    assert fights.moved("a", "tuner") == FIRST_WAIT - 3
    assert fights.wait("a") == FIRST_WAIT - 3
    clock.now += FIRST_WAIT - 3
    assert fights.moved("a", "tuner") == 2 * FIRST_WAIT


def test_a_slow_mover_is_waited_for_longer_too(fights: Fights[str], clock: Clock) -> None:
    fight(fights)
    clock.now += WINDOW
    assert fights.moved("a", "tuner") == 2 * FIRST_WAIT


def test_the_longer_it_waits_the_longer_it_has_to_be_quiet(
    fights: Fights[str], clock: Clock
) -> None:
    fight(fights)
    for _ in range(3):
        clock.now += fights.wait("a")
        fights.moved("a", "tuner")
    assert fights.wait("a") == 80
    clock.now += 160
    assert names(fights) == ["a"]
    clock.now += 0.001
    assert names(fights) == []


def test_peace_ends_it(fights: Fights[str], clock: Clock) -> None:
    fight(fights)
    clock.now += WINDOW
    assert names(fights) == ["a"]
    clock.now += 0.001
    assert names(fights) == []
    assert fights.moved("a", "tuner") == 0


def test_peace_ends_it_though_nobody_has_asked(fights: Fights[str], clock: Clock) -> None:
    fight(fights)
    clock.now += WINDOW + 0.001
    assert fights.moved("a", "late") == 0
    assert names(fights) == []
    for _ in range(FEW - 1):
        assert fights.moved("a", "late") == 0
    assert fights.moved("a", "late") == FIRST_WAIT
    ((_, found),) = fights.ongoing()
    assert (found.suspect, found.total) == ("late", FEW + 1)


def test_each_interrupt_has_its_own(fights: Fights[str]) -> None:
    fight(fights, "a")
    assert fights.wait("b") == 0
    assert fights.moved("b", "tuner") == 0
    assert names(fights) == ["a"]


def test_what_is_gone_is_forgotten(fights: Fights[str]) -> None:
    fight(fights)
    fights.forget("a")
    fights.forget("never known")
    assert fights.wait("a") == 0
    assert names(fights) == []
    assert fights.moved("a", "tuner") == 0


def test_the_suspect_is_who_moved_it_most_often(fights: Fights[str]) -> None:
    for who in ("irqbalance", "tuner", "tuner", "irqbalance", "tuner"):
        fights.moved("a", who)
    ((_, found),) = fights.ongoing()
    assert (found.suspect, found.total) == ("tuner", 5)


def test_who_calls_itself_ever_something_else_fills_no_memory(fights: Fights[str]) -> None:
    for number in range(1000):
        fights.moved("a", f"x{number}")
    ((_, found),) = fights.ongoing()
    assert len(found.by) <= 9
    assert (found.suspect, found.total) == ("others", 1000)
    assert len(found.moves) <= FEW + 1


def test_nobody_is_suspected_of_nothing() -> None:
    assert (Fight().suspect, Fight().total, Fight().on) == ("someone unknown", 0, False)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.floats(0, 2 * WINDOW)), max_size=60),
)
def test_waits_are_bounded_and_what_is_said_is_what_holds(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    fights: Fights[str] = Fights(clock)
    for key, pause in steps:
        clock.now += pause
        before = fights.wait(key)
        delay = fights.moved(key, "tuner")
        assert 0 <= delay <= LONGEST_WAIT
        assert delay == fights.wait(key)
        if before:
            assert delay == before, "a wait that is on is not made longer"
        assert delay == 0 or key in names(fights)
