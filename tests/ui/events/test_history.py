"""One history of two memories."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from virtirq.control.log_entry import LogEntry
from virtirq.ui.events.history import as_json, document, merged, wanted

MOVED = LogEntry(
    100.0,
    6,
    "IRQ 65 vfio-msix[0](0000:43:10.0): to CPU 5; found at 0-7, not our 5: irqbalance (pid 7)",
    {"guest": "web", "irq": "65", "reason": "drift: wrong-cpu", "mover": "irqbalance (pid 7)"},
)
STOPPED = LogEntry(101.0, 6, "stopped")
FAILED = LogEntry(99.0, 4, "refused\nand a second line", {"guest": "db", "finding": "vectors-low"})


def test_what_both_have_is_told_once() -> None:
    later = replace(MOVED, at=100.001)
    assert merged([MOVED], [later, STOPPED]) == [MOVED, STOPPED]
    assert merged([], [MOVED, FAILED]) == [FAILED, MOVED]
    again = replace(MOVED, at=105.0)
    assert merged([MOVED], [again]) == [MOVED, again]
    whole = replace(MOVED, message=MOVED.message * 5)
    assert merged([whole], [replace(whole, message=whole.message[:399] + "…")]) == [whole]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"))))
def test_a_journal_that_has_everything_stays_as_it_is(entries: list[tuple[int, str]]) -> None:
    found = [LogEntry(float(at), 6, text) for at, text in sorted(entries)]
    assert merged(found, found) == found
    assert merged(found, []) == found
    assert merged([], found) == found


def test_of_some_guests_and_times() -> None:
    everything = [FAILED, MOVED, STOPPED]
    for names, since, there in (
        ([], None, everything),
        (["web"], None, [MOVED]),
        (["w*", "db"], None, [FAILED, MOVED]),
        (["mail"], None, []),
        ([], 100.0, [MOVED, STOPPED]),
    ):
        assert list(filter(wanted(names, since), everything)) == there


def test_as_a_person_reads_it() -> None:
    shown = document([FAILED, MOVED, STOPPED], lambda at: f"t{at:.0f}").plain()
    assert shown == (
        "TIME  GUEST  WHY          WHAT\n"
        "t99   db     vectors-low  refused\n"
        "t100  web    drift        IRQ 65 vfio-msix[0](0000:43:10.0): to CPU 5; found at 0-7,"
        " not our 5: irqbalance (pid 7)\n"
        "t101  -      -            stopped\n"
    )


def test_as_json_has_all_of_it() -> None:
    told = as_json(MOVED)
    assert (told["irq"], told["mover"], told["vector"]) == (65, "irqbalance (pid 7)", None)
    assert as_json(replace(MOVED, fields={"irq": "many"}))["irq"] is None
