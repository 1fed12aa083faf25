"""The kernel's filter for the events of some threads alone, no longer than the kernel takes it.

A guest's vCPUs have thread ids in a row, as a rule, so threads are told as runs. Where there are
too many runs for one filter, the nearest are joined: so the fewest threads of others are let in.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Final

Run = tuple[int, int]
"""The first and the last of thread ids in a row."""
LONGEST: Final = 3000
"""Bytes; the kernel takes less than a page (kernel/trace/trace_events.c, event_filter_write())."""
NO_THREAD: Final = "tid == 0 && tid == 1"
NOBODY: Final = "common_pid == 0 && common_pid == 1"


def runs_of(tids: Iterable[int]) -> list[Run]:
    """The same thread ids as runs, in order."""
    return _merged((tid, tid) for tid in tids)


def about(runs: Iterable[Run], *, own: bool) -> tuple[str, str]:
    """Filters for what is done to these threads, and for what they do.

    `own`: who does it to itself says 0 (sched_setaffinity(2)).
    """
    wanted = _merged(runs)
    if not wanted:
        return NO_THREAD, NOBODY
    return _longest_of(wanted, _to_or_by if own else _to), _longest_of(wanted, _by)


def _to(runs: Iterable[Run]) -> str:
    return _in_any("tid", runs)


def _by(runs: Iterable[Run]) -> str:
    return _in_any("common_pid", runs)


def _to_or_by(runs: Sequence[Run]) -> str:
    return f"{_to(runs)} || tid == 0 && ({_by(runs)})"


def _in_any(name: str, runs: Iterable[Run]) -> str:
    return " || ".join(
        f"{name} == {first}" if first == last else f"{name} >= {first} && {name} <= {last}"
        for first, last in runs
    )


def _merged(runs: Iterable[Run]) -> list[Run]:
    """The same in order, of which no two overlap or touch."""
    merged: list[Run] = []
    for first, last in sorted(runs):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _longest_of(wanted: Sequence[Run], text: Callable[[Sequence[Run]], str]) -> str:
    """The text of as many runs as fit into it.

    What is let in of others is what is in the gaps that are left out, so the widest gaps stay.
    """
    widest = sorted(range(1, len(wanted)), key=lambda at: wanted[at - 1][1] - wanted[at][0])

    def parted(gaps: int) -> str:
        starts = [0, *sorted(widest[:gaps])]
        ends = [*starts[1:], len(wanted)]
        return text([(wanted[a][0], wanted[b - 1][1]) for a, b in zip(starts, ends, strict=True)])

    # One more gap never makes it shorter.
    fitting = bisect_right(range(1, len(wanted)), LONGEST, key=lambda gaps: len(parted(gaps)))
    return parted(fitting)
