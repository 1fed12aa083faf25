from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.policy.comparison import (
    EXACT,
    NEAR,
    OWN,
    PLANNED,
    RATE,
    Block,
    Figure,
    Part,
    Says,
    best,
    figures,
    least_rounds,
    turns,
    verdicts,
)

PING = "ping"


def blocks(
    rounds: int,
    policies: Sequence[str],
    measured: Callable[[str], float],
    interrupts: int = 1000,
) -> list[Block]:
    return [
        Block(
            policy,
            number,
            10.0,
            interrupts,
            {OWN: Part(interrupts // 2, interrupts)},
            {PING: measured(policy)},
        )
        for number, policy in turns(policies, rounds, 1)
    ]


@given(st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True), st.integers(1, 20))
def test_each_round_has_each_policy_once(policies: list[str], rounds: int) -> None:
    found = list(turns(policies, rounds, 7))
    assert Counter(found) == Counter((n, p) for n in range(rounds) for p in policies)
    assert [number for number, _ in found] == sorted(number for number, _ in found)


def test_the_order_is_not_always_the_same() -> None:
    orders = {tuple(p for n, p in turns("abc", 30, 7) if n == number) for number in range(30)}
    assert len(orders) == 6
    assert list(turns("abc", 9, 7)) == list(turns("abc", 9, 7))


def test_shares_and_rate() -> None:
    parts = {PLANNED: Part(90, 100), EXACT: Part(30, 60), NEAR: Part(0, 0)}
    block = Block("auto", 0, 4.0, 100, parts, {PING: 3.0})
    assert block.measures() == {RATE: 25.0, PLANNED: 0.9, EXACT: 0.5, PING: 3.0}
    idle = Block("auto", 0, 4.0, 0)
    assert idle.measures() == {RATE: 0.0}


def test_the_middle_and_the_middle_half() -> None:
    values = iter([1.0, 2.0, 3.0, 4.0, 100.0])
    found = figures(blocks(5, ["a"], lambda _: next(values)), "a")
    assert found[PING] == Figure(3.0, 2.0, 4.0)
    assert found[OWN] == Figure(0.5, 0.5, 0.5)
    assert NEAR not in found


def test_a_tenth_more_is_found_and_told_as_a_ratio() -> None:
    chance = random.Random(3)
    made = blocks(10, ["a", "b"], lambda p: chance.gauss(110 if p == "b" else 100, 2))
    found = {each.measure: each for each in verdicts(made, ["a", "b"])}
    ping = found[PING]
    assert ping.says is Says.MORE
    assert ping.low is not None
    assert ping.high is not None
    assert 0.05 < ping.low < 0.1 < ping.high < 0.15
    assert ping.p is not None
    assert ping.p < 0.01
    assert found[OWN].says is Says.NONE_SEEN
    assert found[OWN].p == 1.0
    assert found[OWN].least_seen == 0.0


def test_no_difference_seen_says_which_one_would_have_been() -> None:
    chance = random.Random(4)
    made = blocks(10, ["a", "b"], lambda _: chance.gauss(100, 2))
    (ping,) = [each for each in verdicts(made, ["a", "b"]) if each.measure == PING]
    assert ping.says is Says.NONE_SEEN
    assert ping.least_seen is not None
    assert 0.005 < ping.least_seen < 0.05


@pytest.mark.parametrize(("policies", "least"), [(2, 6), (3, 7), (4, 7), (5, 8)])
def test_too_few_rounds_for_any_verdict(policies: int, least: int) -> None:
    assert least_rounds(policies) == least
    names = "abcde"[:policies]
    for rounds, too_few in ((least - 1, True), (least, False)):
        grown = blocks(rounds, names, lambda p: 100.0 + 50 * names.index(p))
        says = {each.says for each in verdicts(grown, names) if each.measure == PING}
        assert says == ({Says.TOO_FEW} if too_few else {Says.MORE})


def test_what_is_not_above_zero_has_no_ratio() -> None:
    made = blocks(8, ["a", "b"], lambda p: 0.0 if p == "a" else 1.0)
    (ping,) = [each for each in verdicts(made, ["a", "b"]) if each.measure == PING]
    assert (ping.says, ping.p) == (Says.NO_RATIO, None)


def test_what_was_measured_of_one_only_is_not_compared() -> None:
    made = [
        Block(policy, number, 1.0, 1, {}, {PING: 1.0} if policy == "a" else {})
        for number, policy in turns("ab", 8, 1)
    ]
    (ping,) = [each for each in verdicts(made, "ab") if each.measure == PING]
    assert (ping.says, ping.rounds) == (Says.TOO_FEW, 0)


def test_200_comparisons_of_three_alike_find_no_more_than_they_may() -> None:
    chance = random.Random(5)
    found = 0
    for _ in range(200):
        made = blocks(8, "abc", lambda _: chance.lognormvariate(3, 0.4), 0)
        found += any(each.says in (Says.MORE, Says.LESS) for each in verdicts(made, "abc"))
    assert 0 < found <= 10


@pytest.mark.parametrize(("less", "wins"), [(True, "c"), (False, "b")])
def test_the_best(less: bool, wins: str) -> None:
    chance = random.Random(6)
    means = {"a": 100, "b": 130, "c": 70, "d": 100}
    made = blocks(10, list(means), lambda p: chance.gauss(means[p], 1))
    assert best(made, list(means), PING, less=less) == wins
    assert best(made, list(means), OWN, less=less) == "a"
