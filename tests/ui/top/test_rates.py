"""From counts to rates, and where interrupts were taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.ui.top.frames import few, watched
from virtirq.cpuset import CpuSet
from virtirq.ui.top.rates import Places, Sample, Taken, places, taken, together
from virtirq.ui.top.table import View, rows

ONE = watched("web", 65, "4-5", near="4-7")
COUNTS = st.dictionaries(st.integers(0, 9), st.integers(1, 1000))


def between(before: dict[int, int] | None, after: dict[int, int]) -> Taken:
    first = Sample(0.0, {} if before is None else {ONE: before})
    (found,) = taken(first, Sample(2.0, {ONE: after}))
    return found


def test_what_was_taken_meanwhile() -> None:
    assert between({4: 10, 6: 5}, {4: 15, 6: 5, 9: 1}) == Taken(ONE, {4: 5, 9: 1}, 21)


def test_what_was_set_up_anew_began_at_none() -> None:
    assert between({4: 10, 6: 5}, {4: 3}) == Taken(ONE, {4: 3}, 3)


def test_of_what_was_not_looked_at_nothing_is_known() -> None:
    assert between(None, {4: 1_000_000}).delta == {}


def test_another_wish_is_the_same_interrupt() -> None:
    moved = ONE._replace(wanted=CpuSet([9]))
    (found,) = taken(Sample(0.0, {ONE: {4: 1}}), Sample(1.0, {moved: {4: 3}}))
    assert found == Taken(moved, {4: 2}, 3)


@given(COUNTS, COUNTS)
def test_nothing_is_lost_or_made_up(before: dict[int, int], more: dict[int, int]) -> None:
    after = {cpu: before.get(cpu, 0) + more.get(cpu, 0) for cpu in before.keys() | more}
    found = between(before, after)
    assert found.delta == more
    told = places(found)
    assert told.all == sum(more.values())
    assert told.target == sum(count for cpu, count in more.items() if cpu in (4, 5))
    assert told.node == sum(count for cpu, count in more.items() if cpu in (6, 7))


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3))
def test_shares_hide_nothing(counts: list[int]) -> None:
    told = Places(*counts)
    for count in counts:
        share = told.share(count)
        if not sum(counts):
            assert share is None
            continue
        assert share is not None
        assert (share == 0) == (count == 0)
        assert (share == 100) == (count == sum(counts))


def test_every_view_has_all_of_it() -> None:
    found = few()
    whole = together(map(places, found))
    for view in View:
        table = rows(view, found, 2.0, {})
        assert together(row.places for row in table) == whole, view
        assert sum(row.rate for row in table) == whole.all / 2.0


def test_some_cpus_only() -> None:
    first, last = Sample(0.0, {ONE: {4: 1}}), Sample(1.0, {ONE: {4: 2, 6: 7}})
    (found,) = taken(first, last, CpuSet([6, 8]))
    assert found == Taken(ONE, {6: 7}, 7)
    table = rows(View.CPU, [found], 1.0, {6: ["web/1"], 9: ["db/0"]}, CpuSet([6, 8]))
    assert [row.id.cpu for row in table] == [6]
