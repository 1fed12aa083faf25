"""A part of a CPU's time: how long who has used some of it has to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.policy.budget import NEVER, Budget

TENTH = Budget(0.1, longest=10.0)
AHEAD = Budget(0.1, longest=10.0, ahead=5.0)
LEAST = Budget(0.1, longest=10.0, least=0.25)
NOW = 1000.0


@pytest.mark.parametrize(
    ("budget", "left", "took", "wait"),
    [
        (TENTH, NEVER, 0.0, 0.0),
        (TENTH, NEVER, 0.5, 4.5),
        (TENTH, -3.0, 0.5, 4.5),  # what was not used is not saved
        (TENTH, 2.0, 0.5, 7.0),
        (TENTH, NEVER, 5.0, 10.0),
        (TENTH, 9.0, 1.0, 10.0),
        (AHEAD, NEVER, 0.5, 0.0),
        (AHEAD, 2.0, 0.5, 2.0),
        (AHEAD, 5.0, 0.5, 5.0),
        (AHEAD, NEVER, 1000.0, 10.0),
        (LEAST, NEVER, 0.0, 0.25),
        (LEAST, NEVER, 0.01, 0.25),
        (LEAST, NEVER, 0.1, 0.9),
        (Budget(1.0, longest=10.0), NEVER, 1000.0, 0.0),  # all of it
        (Budget(0.1, longest=0.0), NEVER, 1000.0, 0.0),
    ],
)
def test_who_has_used_some_waits(budget: Budget, left: float, took: float, wait: float) -> None:
    """`left`: seconds from now until it was used up before."""
    until = budget.used(NOW, took, NOW + left)
    assert budget.wait(until, NOW) == pytest.approx(wait)
    assert budget.wait(until, NOW + wait + 0.001) == 0


BUDGETS = st.builds(
    Budget,
    st.sampled_from([0.05, 0.1, 0.25]),
    longest=st.just(1e9),
    least=st.sampled_from([0.0, 0.25]),
    ahead=st.sampled_from([0.0, 5.0]),
)


@given(BUDGETS, st.lists(st.tuples(st.floats(0.001, 3.0), st.floats(0.0, 20.0)), min_size=1))
def test_it_is_a_part_of_the_time(budget: Budget, uses: list[tuple[float, float]]) -> None:
    """Of all until who keeps to it is to be served next, however it came; less what is ahead."""
    until, now, used = NEVER, NOW, 0.0
    for took, idle in uses:
        now += budget.wait(until, now) + idle + took
        used += took
        until = budget.used(now, took, until)
    passed = now + budget.wait(until, now) - NOW
    assert used <= budget.part * (passed + budget.ahead) + 1e-6


@given(st.lists(st.floats(0.0, 0.09), max_size=300))
def test_who_comes_now_and_then_never_waits(uses: list[float]) -> None:
    until = NEVER
    for second, took in enumerate(uses):
        assert AHEAD.wait(until, float(second)) == 0
        until = AHEAD.used(float(second), took, until)
