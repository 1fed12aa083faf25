"""Statistics of paired differences, without any assumption about their distribution.

If a change makes no difference, each difference is as likely to have the other sign, so all 2^n
ways to flip the signs of n differences are equally likely: what is seen is compared with all of
them. Everything here is exact, and follows from one count: of how many subsets of the differences
the mean is at most θ. (E. J. G. Pitman, "Significance tests which may be applied to samples from
any populations", 1937; J. L. Hodges and E. L. Lehmann, "Estimates of location based on rank
tests", 1963; S. Holm, "A simple sequentially rejective multiple test procedure", 1979.)
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Final

MOST: Final = 24
"""Differences that are taken: twice 2^12 sums are made of them. More tell next to nothing."""
LEAST: Final = 6
"""Fewer cannot tell at 5%: with five, the most extreme of all 32 is seen once in 16 times."""
_HALVINGS: Final = 40


def estimate(differences: Sequence[float]) -> float:
    """The middle of all means of two of them, each with itself too: Hodges and Lehmann's."""
    means: list[float] = sorted(
        (a + b) / 2 for a, b in combinations_with_replacement(differences, 2)
    )
    half = len(means) // 2
    return (means[half] + means[~half]) / 2


def p_value(differences: Sequence[float]) -> float:
    """How likely it is to see so much, or more, if there is no difference; both sides count."""
    sums = _Sums(differences, 0.0)
    return min(1.0, 2 * min(sums.at_most_zero, sums.at_least_zero) / (1 << len(differences)))


def interval(differences: Sequence[float], level: float) -> tuple[float, float] | None:
    """All that is not refused as the difference at this level, such as 0.05.

    None where so few cannot refuse anything.
    """
    allowed = int(level / 2 * (1 << len(differences)))
    if allowed < 1:
        return None
    return _lower(differences, allowed), -_lower([-each for each in differences], allowed)


def least_seen(differences: Sequence[float], level: float) -> float | None:
    """The smallest difference that would have been told from none, with this much noise."""
    middle = estimate(differences)
    found = interval([each - middle for each in differences], level)
    return None if found is None else max(-found[0], found[1])


def least_pairs(level: float) -> int:
    """How many differences it takes until so little can be refused at all."""
    return next(count for count in range(LEAST, MOST + 1) if 2 / 2**count <= level)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same for several questions asked at once, so that all answers together hold."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = highest
    return adjusted


def _lower(differences: Sequence[float], allowed: int) -> float:
    """The lowest θ of which it is not refused that the difference is more."""
    low, high = min(differences), max(differences)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _Sums(differences, middle).at_most_zero <= allowed:
            low = middle
        else:
            high = middle
    return low


class _Sums:
    """How many subsets of the differences less θ, the empty one too, have which sum."""

    def __init__(self, differences: Sequence[float], theta: float) -> None:
        if not differences or len(differences) > MOST:
            raise ValueError(f"1 to {MOST} differences, not {len(differences)}")
        rest = [each - theta for each in differences]
        # Sums of floats that are zero by right: not told from zero.
        self._tiny = 1e-12 * sum(map(abs, rest))
        half = len(rest) // 2
        self._left, self._right = _all_sums(rest[:half]), sorted(_all_sums(rest[half:]))

    @property
    def at_most_zero(self) -> int:
        return sum(bisect_right(self._right, self._tiny - each) for each in self._left)

    @property
    def at_least_zero(self) -> int:
        count = len(self._right)
        return sum(count - bisect_left(self._right, -self._tiny - each) for each in self._left)


def _all_sums(values: Sequence[float]) -> list[float]:
    sums = [0.0]
    for value in values:
        sums += [each + value for each in sums]
    return sums
