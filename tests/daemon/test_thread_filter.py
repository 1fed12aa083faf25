"""The filter by which the kernel tells of some threads alone; `tests/kernel` has it at work."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.daemon import thread_filter
from virtirq.daemon.thread_filter import LONGEST, Run, _by, _to, _to_or_by, about, runs_of

MOST_TID = 4_194_304  # PID_MAX_LIMIT
TIDS = st.sets(st.integers(1, MOST_TID), min_size=1, max_size=300)


@pytest.mark.parametrize(
    ("runs", "own", "text"),
    [
        ([], False, "tid == 0 && tid == 1"),
        ([], True, "tid == 0 && tid == 1"),
        ([(7, 7)], False, "tid == 7"),
        ([(9, 12), (7, 7)], False, "tid == 7 || tid >= 9 && tid <= 12"),
        ([(7, 7)], True, "tid == 7 || tid == 0 && (common_pid == 7)"),
        (
            [(7, 7), (9, 10)],
            True,
            "tid == 7 || tid >= 9 && tid <= 10"
            " || tid == 0 && (common_pid == 7 || common_pid >= 9 && common_pid <= 10)",
        ),
    ],
)
def test_a_filter(runs: list[Run], own: bool, text: str) -> None:
    assert about(runs, own=own)[0] == text


@pytest.mark.parametrize(
    ("tids", "text"),
    [
        ([], "common_pid == 0 && common_pid == 1"),
        ([7, 9, 10], "common_pid == 7 || common_pid >= 9 && common_pid <= 10"),
    ],
)
def test_a_filter_for_what_they_do(tids: list[int], text: str) -> None:
    assert [about(runs_of(tids), own=own)[1] for own in (True, False)] == [text, text]


@pytest.mark.parametrize(
    ("tids", "runs"),
    [
        ([], []),
        ([5], [(5, 5)]),
        ([12, 9, 10, 11, 7, 9], [(7, 7), (9, 12)]),
        (range(1, 100), [(1, 99)]),
    ],
)
def test_runs(tids: Iterable[int], runs: list[Run]) -> None:
    assert runs_of(tids) == runs


def test_runs_that_overlap_are_one() -> None:
    found = about([(5, 9), (20, 30), (10, 12), (1, 3), (22, 25), (3, 4)], own=False)[0]
    assert found == "tid >= 1 && tid <= 12 || tid >= 20 && tid <= 30"


def test_guests_are_told_apart_however_many_they_are() -> None:
    """The threads between two guests are let in where those are near, and no others."""
    guests = [(1_000_000 + 400 * n, 1_000_000 + 400 * n + 20) for n in range(400)]
    far = (4_000_000, 4_000_020)
    for text in about([*guests, far], own=False):
        assert not passes(text, tid=2_000_000, caller=2_000_000)
        assert passes(text, tid=far[0], caller=far[0])


def passes(text: str, tid: int, caller: int) -> bool:
    # && binds before ||, as in Python (Documentation/trace/events.rst).
    python = text.replace("||", "or").replace("&&", "and")
    return bool(eval(python, {"tid": tid, "common_pid": caller}))


@given(TIDS, st.booleans())
def test_every_thread_passes_and_the_kernel_takes_it(tids: set[int], own: bool) -> None:
    done_to, done_by = about(runs_of(tids), own=own)
    assert max(len(done_to), len(done_by)) <= LONGEST
    nobody = 5_000_000
    assert all(passes(done_to, tid, nobody) for tid in tids)
    assert all(passes(done_to, 0, tid) is own for tid in tids)
    assert not passes(done_to, nobody, min(tids))
    assert all(passes(done_by, 0, tid) for tid in tids)
    assert not passes(done_by, min(tids), nobody)


@given(TIDS, st.booleans())
def test_the_order_of_runs_and_how_they_are_cut_make_no_difference(
    tids: set[int], own: bool
) -> None:
    runs = runs_of(tids)
    pieces = [(tid, tid) for tid in sorted(tids, reverse=True)]
    assert about(runs, own=own) == about([*pieces, *runs], own=own)


@given(
    st.sets(st.integers(1, 60), min_size=1, max_size=7),
    st.booleans(),
    st.integers(90, 300),
)
def test_no_fewer_others_could_be_let_in(tids: set[int], own: bool, longest: int) -> None:
    """Of all ways to join so many runs, by brute force; and one run more would not fit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread_filter, "LONGEST", longest)
        found = about(runs_of(tids), own=own)
    ways = list(ways_to_join(runs_of(tids)))
    for text, write in zip(found, (_to_or_by if own else _to, _by), strict=True):
        mine = next(way for way in ways if write(way) == text)
        assert len(text) <= longest
        assert mine in nearest(ways, len(mine))
        more = nearest(ways, len(mine) + 1)
        assert not more or any(len(write(way)) > longest for way in more)


def ways_to_join(runs: list[Run]) -> Iterable[list[Run]]:
    for number in range(len(runs)):
        for cuts in combinations(range(1, len(runs)), number):
            starts, ends = (0, *cuts), (*cuts, len(runs))
            yield [(runs[a][0], runs[b - 1][1]) for a, b in zip(starts, ends, strict=True)]


def nearest(ways: list[list[Run]], number: int) -> list[list[Run]]:
    """Those of so many runs that let in the fewest."""
    found = [way for way in ways if len(way) == number]
    sizes = [sum(last - first for first, last in way) for way in found]
    return [way for way, size in zip(found, sizes, strict=True) if size == min(sizes)]
