"""What the daemon counts: bounded, and the same after its way through JSON."""

from __future__ import annotations

import copy
import json
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.control.counters import (
    CYCLE_SECONDS,
    MALFORMED,
    OTHERS,
    REACTION_SECONDS,
    Counters,
    Histogram,
    Trigger,
)
from virtirq.model import Status

TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
COUNTS = st.integers(0, 2**60)


def histograms(bounds: tuple[float, ...]) -> st.SearchStrategy[Histogram]:
    size = len(bounds) + 1
    return st.builds(
        Histogram,
        st.just(bounds),
        st.lists(COUNTS, min_size=size, max_size=size),
        st.floats(0, allow_infinity=False, allow_nan=False),
    )


TALLIES = st.builds(
    Counters,
    moves=st.dictionaries(st.tuples(TEXT, TEXT), COUNTS, max_size=6).map(Counter),
    drift=st.dictionaries(TEXT, COUNTS, max_size=6).map(Counter),
    events=st.dictionaries(TEXT, COUNTS, max_size=6).map(Counter),
    lost=COUNTS,
    reactions=histograms(REACTION_SECONDS),
    cycles=histograms(CYCLE_SECONDS),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(TALLIES)
def test_there_and_back(counters: Counters) -> None:
    assert Counters.from_json(json.loads(json.dumps(counters.as_json()))) == counters


def test_one_that_has_counted_nothing() -> None:
    assert Counters.from_json(Counters().as_json()) == Counters()


def test_what_it_looks_like() -> None:
    counters = Counters(lost=1)
    counters.moves[Trigger.NEW.value, Status.APPLIED.value] += 2
    counters.drifted("tuner")
    counters.events["moved"] += 3
    counters.reactions.observe(0.0003)
    told = counters.as_json()
    assert told["moves"] == [["new", "applied", 2]]
    assert (told["drift"], told["events"], told["lost"]) == ({"tuner": 1}, {"moved": 3}, 1)
    assert told["reactions"] == {"counts": [0, 0, 1, *[0] * 10], "total": 0.0003}


@pytest.mark.parametrize(
    ("value", "place"), [(0.0, 0), (1.0, 0), (1.5, 1), (2.0, 1), (2.1, 2), (1e9, 2), (-1.0, 0)]
)
def test_bounds_are_upper_and_inclusive(value: float, place: int) -> None:
    """As Prometheus has them: le."""
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value)
    assert histogram.counts == [int(each == place) for each in range(3)]
    assert histogram.total == value


def test_two_histograms_share_nothing() -> None:
    Counters().reactions.observe(1)
    assert sum(Counters().reactions.counts) == 0


@pytest.mark.parametrize("bounds", [REACTION_SECONDS, CYCLE_SECONDS])
def test_the_bounds_rise(bounds: tuple[float, ...]) -> None:
    assert list(bounds) == sorted(set(bounds))


def test_only_so_many_names_are_kept() -> None:
    counters = Counters()
    for number in range(1000):
        counters.drifted(f"x{number}")
        counters.drifted("x0")
    assert len(counters.drift) <= 17
    assert counters.drift["x0"] == 1001
    assert counters.drift[OTHERS] == 1000 - 16
    assert counters.drift.total() == 2000


def changed(path: str, value: Any) -> Any:
    data: Any = copy.deepcopy(Counters().as_json())
    *steps, last = path.split(".")
    inner = data
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return data


@pytest.mark.parametrize(
    "data",
    [
        {},
        changed("lost", "many"),
        changed("lost", None),
        changed("moves", [["new", "applied"]]),
        changed("moves", [["new", "applied", "x"]]),
        changed("moves", 3),
        changed("drift", {"x": None}),
        changed("reactions", {}),
        changed("reactions.counts", [0] * 12),
        changed("reactions.counts", [0] * 14),
        changed("cycles.counts", ["x"] * 12),
        changed("cycles.total", "x"),
    ],
)
def test_anything_else_is_refused(data: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        Counters.from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        changed("drift", [1]),
        changed("events", "x"),
        changed("lost", float("inf")),
        changed("reactions.counts", [float("inf")] * 13),
    ],
)
def test_and_with_the_errors_that_it_promises(data: Any) -> None:
    with pytest.raises(MALFORMED):
        Counters.from_json(data)


@given(
    st.sampled_from(["moves", "drift", "events", "lost", "reactions", "cycles", "cycles.total"]),
    JSON,
)
def test_whatever_else_is_refused_or_taken(path: str, value: Any) -> None:
    with suppress(*MALFORMED):
        Counters.from_json(changed(path, value))
