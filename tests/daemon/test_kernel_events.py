"""The filter by which the kernel tells of some threads alone; `tests/kernel` has the rest."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.daemon.kernel_events import _LONGEST_FILTER, _about


@pytest.mark.parametrize(
    ("tids", "own", "text"),
    [
        ([], False, "tid == 0 && tid == 1"),
        ([], True, "tid == 0 && tid == 1"),
        ([7], False, "tid == 7"),
        ([12, 9, 10, 11, 7], False, "tid == 7 || tid >= 9 && tid <= 12"),
        ([7], True, "tid == 7 || tid == 0 && (common_pid == 7)"),
        (
            [9, 10, 7],
            True,
            "tid == 7 || tid >= 9 && tid <= 10"
            " || tid == 0 && (common_pid == 7 || common_pid >= 9 && common_pid <= 10)",
        ),
        (range(1, 10_000, 2), False, "tid >= 1 && tid <= 9999"),
    ],
)
def test_a_filter(tids: Collection[int], own: bool, text: str) -> None:
    assert _about(tids, own=own)[0] == text


@pytest.mark.parametrize(
    ("tids", "text"),
    [
        ([], "common_pid == 0 && common_pid == 1"),
        ([7, 9, 10], "common_pid == 7 || common_pid >= 9 && common_pid <= 10"),
        (range(1, 10_000, 2), "common_pid >= 1 && common_pid <= 9999"),
    ],
)
def test_a_filter_for_what_they_do(tids: Collection[int], text: str) -> None:
    assert [_about(tids, own=own)[1] for own in (True, False)] == [text, text]


@given(st.sets(st.integers(1, 4_194_304), min_size=1, max_size=300), st.booleans())
def test_every_thread_passes_and_the_kernel_takes_it(tids: set[int], own: bool) -> None:
    done_to, done_by = _about(tids, own=own)
    assert max(len(done_to), len(done_by)) <= _LONGEST_FILTER

    def passes(tid: int, caller: int, text: str = done_to) -> bool:
        # && binds before ||, as in Python (Documentation/trace/events.rst).
        python = text.replace("||", "or").replace("&&", "and")
        return bool(eval(python, {"tid": tid, "common_pid": caller}))

    assert all(passes(tid, 5_000_000) for tid in tids)
    assert all(passes(0, tid) is own for tid in tids)
    assert not passes(5_000_000, min(tids))
    assert all(passes(0, tid, done_by) for tid in tids)
    assert not passes(min(tids), 5_000_000, done_by)
