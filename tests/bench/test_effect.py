"""What `make effect` makes of a trace, and how it is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import effect_report, taken
from bench.effect import Kept, by_chance
from bench.effect_report import EXACT, PHASES, Found
from bench.taken import Place, Share, Taken, Where

NIC, DISK = ("0000:41:00.0", 0), ("0000:42:00.0", 2)
WHERE = Where({NIC: 0, DISK: 1}, {0: 4, 1: 5}, frozenset(range(4, 8)))
FIRST = {30: (NIC, 6), 31: (DISK, 5)}
THREAD = 77


def line(at: float, cpu: int, what: str, text: str) -> str:
    return f" CPU 1/KVM-12 [{cpu:03}] d.h1. {at:12.6f}: {what}: {text}"


def fires(at: float, place: Place, cpu: int) -> str:
    return line(at, cpu, "irq_handler_entry", f"irq=9 name=vfio-msix[{place[1]}]({place[0]})")


def put(at: float, irq: int, cpu: int) -> str:
    return line(at, 3, "vector_config", f"irq={irq} vector=37 cpu={cpu} apicdest=0x0000000{cpu}")


def requested(at: float, irq: int, place: Place) -> str:
    name = f"vfio-msix[{place[1]}]({place[0]})"
    return line(at, 1, "requested", f'(request_threaded_irq+0x0/0x1b0) irq={irq} name="{name}"')


def pinned(at: float, thread: int) -> str:
    return line(at, 2, "pinned", f"(sched_setaffinity+0x0/0x2d0) pid={thread}")


def mark(at: float, text: str) -> str:
    return line(at, 0, "tracing_mark_write", text)


def trace(*lines: str) -> str:
    head = "# tracer: nop\n#                              | | |   TIMESTAMP\n"
    return head + "\n".join((mark(100.0, "begin"), *lines, mark(110.0, "end"))) + "\n"


def count(*lines: str, where: Where = WHERE, threads: tuple[int, ...] = ()) -> Taken:
    return taken.count(trace(*lines), FIRST, where, threads)


def test_a_steady_phase() -> None:
    found = count(fires(101, NIC, 6), fires(102, NIC, 4), fires(103, DISK, 5), fires(104, DISK, 1))
    assert found.total == {NIC: 2, DISK: 2}
    assert (found.own.total(), found.very.total(), found.near.total()) == (2, 2, 3)
    assert found.wrong == {NIC: 10.0, DISK: 0.0}
    assert found.never == {NIC}


def test_only_what_is_between_the_marks_counts() -> None:
    text = "\n".join((fires(99, NIC, 4), trace(fires(101, NIC, 4)).rstrip(), fires(110.5, NIC, 4)))
    assert taken.count(text, FIRST, WHERE, ()).total == {NIC: 1}


def test_a_vector_counts_from_when_it_was_set_up_last_and_is_wrong_until_it_is_moved() -> None:
    found = count(
        fires(101, NIC, 6),  # of the old one
        requested(102, 40, NIC),
        fires(102.5, NIC, 7),  # a driver tries it, and sets it up once more
        requested(103, 40, NIC),
        put(103.001, 40, 7),
        fires(103.005, NIC, 7),
        put(103.020, 40, 4),
        fires(103.500, NIC, 4),
        put(105.0, 99, 4),  # somebody else's
    )
    assert found.total[NIC] == 2
    assert found.very[NIC] == 1
    assert found.after_grace == Share(1, 1)
    assert found.wrong[NIC] == pytest.approx(0.020)
    assert found.never == set()


def test_after_a_vcpu_was_moved_all_count_from_that_moment() -> None:
    where = Where(WHERE.chosen, {0: 4, 1: 7}, WHERE.near)
    found = count(
        fires(101, DISK, 5),
        pinned(101.5, 12),  # another's thread
        pinned(102, THREAD),
        fires(102.001, DISK, 5),
        put(102.030, 31, 7),
        fires(103, DISK, 7),
        fires(104, NIC, 6),
        where=where,
        threads=(THREAD,),
    )
    assert found.total == {DISK: 2, NIC: 1}
    assert found.very == {DISK: 1, NIC: 0}
    assert found.wrong[DISK] == pytest.approx(0.030)
    assert found.wrong[NIC] == pytest.approx(8.0)


# What is kept.


def test_what_is_kept_of_a_phase_is_all_of_it() -> None:
    found = count(fires(101, NIC, 6), fires(102, NIC, 4), fires(103, DISK, 5))
    assert found.never
    assert Taken.again(json.loads(json.dumps(found.kept()))) == found


def test_a_run_that_ended_early_is_gone_on_with_and_a_policy_measured_anew_alone(
    tmp_path: Path,
) -> None:
    kept = Kept(tmp_path / "made" / "found.jsonl")
    assert kept.lacks(2, ("nothing", EXACT)) == [
        (1, "nothing"),
        (1, EXACT),
        (2, "nothing"),
        (2, EXACT),
    ]
    phases = FOUND["nothing"]
    for number, policy in ((1, "nothing"), (1, EXACT), (2, "nothing")):
        kept.add(number, policy, {name: some[0] for name, some in phases.items()})
    assert kept.lacks(2, ("nothing", EXACT)) == [(2, EXACT)]
    assert kept.found() == {"nothing": phases, EXACT: {n: some[:1] for n, some in phases.items()}}
    kept.forget(("nothing",))
    assert kept.lacks(2, ("nothing", EXACT)) == [(1, "nothing"), (2, "nothing"), (2, EXACT)]


# How it is told.


def run(own: int, very: int, of: int = 100, wrong: float = 0.5, never: bool = False) -> Taken:
    places = [(f"0000:41:00.{each}", 0) for each in range(8)]
    made = Taken(seconds=10.0)
    for number, place in enumerate(places):
        made.total[place] = made.late[place] = made.near[place] = of
        made.own[place] = of * (number < own)
        made.very[place] = made.late_very[place] = of * (number < very)
        made.wrong[place] = wrong
    made.never = set(places) if never else set()
    return made


FOUND: Found = {
    "nothing": {name: [run(4, 2, wrong=9.0, never=True)] * 2 for name in PHASES},
    "auto": {name: [run(8, 4)] * 2 for name in PHASES},
    EXACT: {name: [run(8, 8, wrong=0.012)] * 2 for name in PHASES},
}
ROWS = effect_report.rows(FOUND)


def test_a_row() -> None:
    row = ROWS[0]
    assert [(each.own, each.very) for each in row.cells.values()] == [(0.5, 0.25)] * 4
    assert (row.near, row.very) == (1.0, 0.25)
    assert ROWS[2].cells["steady"].after_grace == 1.0
    # Half of 16 vectors: sqrt(0.25 / 15) of 8, twice over, at 99%.
    assert row.spread == pytest.approx(2.58 * (2 * 0.25 / 15) ** 0.5)
    assert ROWS[2].spread == 0.01


def test_the_table() -> None:
    assert effect_report.table(ROWS).splitlines()[2:] == [
        "| nothing | 50% / 25% | 50% / 25% | 50% / 25% | 50% / 25% | 100% | to the end | 47 |",
        "| auto | 100% / 50% | 100% / 50% | 100% / 50% | 100% / 50% | 100% | 500 ms | 47 |",
        f"| guest-exact |{' 100% / 100% |' * 4} 100% | 12 ms | 1 |",
    ]


def test_the_middle_and_the_longest_differ() -> None:
    runs = [run(8, 8, wrong=0.0), run(8, 8, wrong=0.0), run(8, 4, wrong=3.0, never=True)]
    assert effect_report.wrong(runs) == (0.0, None)


def test_another_run_is_compared_with_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme, picture = tmp_path / "README.md", tmp_path / "effect.svg"
    readme.write_text("before\n<!-- written by make effect -->\n<!-- end -->\nafter\n")
    monkeypatch.setattr(effect_report, "README", readme)
    monkeypatch.setattr(effect_report, "PICTURE", picture)
    assert list(effect_report.unlike_last_time(ROWS)) == []
    effect_report.write(ROWS, 2, "2026-01-01")
    page = readme.read_text()
    assert page.startswith("before\n<!--")
    assert page.endswith("<!-- end -->\nafter\n")
    assert list(effect_report.unlike_last_time(ROWS)) == []
    worse = effect_report.rows({**FOUND, EXACT: {name: [run(8, 3)] for name in PHASES}})
    found = list(effect_report.unlike_last_time(worse))
    assert found[0] == "guest-exact, steady: 38% on the very vCPU's CPU, and it was 100%"
    better = effect_report.rows({**FOUND, "nothing": {name: [run(8, 8)] * 2 for name in PHASES}})
    assert "nothing and auto have changed places" in effect_report.unlike_last_time(better)
    effect_report.write(ROWS, 2, "2026-01-01")
    assert readme.read_text() == page


def test_the_picture_has_a_bar_for_each_cell() -> None:
    root = ElementTree.fromstring(effect_report.picture(ROWS))
    widths = Counter(
        each.get("class")
        for each in root.iter("{http://www.w3.org/2000/svg}rect")
        if each.get("x") == str(effect_report._LEFT) and each.get("y") != "10"
    )
    assert widths == {"a": 12, "o": 12, "v": 12}


def test_chance() -> None:
    assert by_chance(1, 0.05) == 1
    assert by_chance(20, 0.05) == 5
