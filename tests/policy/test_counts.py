"""What was counted between two looks, and shares of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.policy.counts import difference, percent

COUNTS = st.dictionaries(st.integers(0, 4), st.integers(1, 9), max_size=4)


@given(COUNTS, COUNTS)
def test_what_was_there_and_what_came_is_what_is_there(
    was: dict[int, int], more: dict[int, int]
) -> None:
    now = {cpu: was.get(cpu, 0) + more.get(cpu, 0) for cpu in {*was, *more}}
    assert difference(was, now) == more


@pytest.mark.parametrize(("was", "now"), [({0: 2}, {0: 1}), ({0: 2, 1: 1}, {0: 9}), ({3: 1}, {})])
def test_one_that_counts_less_was_set_up_anew(was: dict[int, int], now: dict[int, int]) -> None:
    assert difference(was, now) is None


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(0, 9, 0), (9, 9, 100), (1, 10**6, 1), (10**6 - 1, 10**6, 99), (37, 100, 37), (0.5, 1.0, 50)],
)
def test_all_and_none_are_said_of_nothing_else(part: float, whole: float, expected: int) -> None:
    assert percent(part, whole) == expected
