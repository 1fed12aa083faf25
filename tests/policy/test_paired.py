from __future__ import annotations

import random
from itertools import chain, combinations, product
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.policy.paired import LEAST, MOST, estimate, holm, interval, least_seen, p_value

SOME = st.lists(st.integers(-1000, 1000).map(lambda n: n / 8), min_size=1, max_size=9)


def by_flips(differences: list[float]) -> float:
    """Straight from the definition: all signs, one side, twice."""
    seen = sum(differences)
    flips = [
        sum(sign * abs(each) for sign, each in zip(signs, differences, strict=True))
        for signs in product((1, -1), repeat=len(differences))
    ]
    more = sum(each >= seen for each in flips)
    less = sum(each <= seen for each in flips)
    return min(1.0, 2 * min(more, less) / len(flips))


@given(SOME)
def test_it_is_the_share_of_sign_flips(differences: list[float]) -> None:
    assert p_value(differences) == by_flips(differences)


@given(SOME)
def test_the_other_sign_is_as_likely(differences: list[float]) -> None:
    assert p_value(differences) == p_value([-each for each in differences])
    assert estimate(differences) == -estimate([-each for each in differences])


@given(SOME, st.sampled_from([0.05, 0.1, 0.5]))
def test_the_interval_is_what_is_not_refused(differences: list[float], level: float) -> None:
    found = interval(differences, level)
    if found is None:
        assert 2 / 2 ** len(differences) > level
        return
    low, high = found
    inner = [low + share * (high - low) for share in (0.001, 0.3, 0.5, 0.999)]
    if high - low > 1e-6:
        assert all(p_value([each - theta for each in differences]) > level for theta in inner)
    for theta in (low - 1e-6, high + 1e-6):
        assert p_value([each - theta for each in differences]) <= level


@given(SOME)
def test_its_ends_are_means_of_subsets(differences: list[float]) -> None:
    subsets = chain.from_iterable(
        combinations(differences, size) for size in range(1, len(differences) + 1)
    )
    means = sorted(map(mean, subsets))
    allowed = int(0.2 / 2 * 2 ** len(differences))
    found = interval(differences, 0.2)
    if allowed:
        assert found is not None
        assert found[0] == pytest.approx(means[allowed - 1], abs=1e-9)
        assert found[1] == pytest.approx(means[-allowed], abs=1e-9)


def test_no_verdict_below_six() -> None:
    assert p_value([1.0] * (LEAST - 1)) > 0.05
    assert interval([1.0] * (LEAST - 1), 0.05) is None
    assert p_value([1.0] * LEAST) <= 0.05
    assert interval([1.0] * LEAST, 0.05) == (1.0, 1.0)


@pytest.mark.parametrize("many", [0, MOST + 1])
def test_so_many_only(many: int) -> None:
    with pytest.raises(ValueError, match=str(many)):
        p_value([1.0] * many)


@given(SOME.filter(lambda each: len(each) >= LEAST))
def test_what_is_as_large_as_the_least_seen_is_seen(differences: list[float]) -> None:
    least = least_seen(differences, 0.05)
    assert least is not None
    noise = [each - estimate(differences) for each in differences]
    for sign in (1, -1):
        assert p_value([each + sign * (least + 1e-6) for each in noise]) <= 0.05


def test_holm() -> None:
    # An example of Holm's own method worked by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, 0.04.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_same_against_itself_differs_in_one_of_twenty_at_most() -> None:
    chance = random.Random(1)
    runs = 2000  # of 6 pairs: 2 of 64 ways to flip are as extreme, which is 3.1%
    found = sum(
        p_value([chance.lognormvariate(0, 0.3) - chance.lognormvariate(0, 0.3) for _ in range(6)])
        <= 0.05
        for _ in range(runs)
    )
    assert 0 < found <= 0.05 * runs


def test_a_tenth_more_is_found() -> None:
    chance = random.Random(2)
    missed = sum(
        p_value([0.0953 + chance.gauss(0, 0.05) for _ in range(10)]) > 0.05 for _ in range(200)
    )
    assert missed <= 10
