"""Where the kernel cannot trace, nothing is told, and nothing left; tests/full has the rest."""

from __future__ import annotations

from pathlib import Path

from virtirq.control.injection_trace import _any, injection_trace
from virtirq.host.injections import EVENTS


def tracefs(root: Path, *events: str) -> list[str]:
    (root / "instances").mkdir(parents=True)
    for event in events:
        (root / "events" / event).mkdir(parents=True)
    return [str(root / "not-there"), str(root)]


def test_without_tracefs_or_kvms_events_there_is_none(tmp_path: Path) -> None:
    for roots in ([str(tmp_path)], tracefs(tmp_path / "a", *EVENTS[:2])):
        with injection_trace(900, roots) as trace:
            assert trace is None
    with injection_trace(None, tracefs(tmp_path / "b", *EVENTS)) as trace:
        assert trace is None


def test_what_cannot_be_traced_tells_nothing_and_stays_nowhere(tmp_path: Path) -> None:
    with injection_trace(900, tracefs(tmp_path, *EVENTS)) as trace:
        assert trace is not None
        (tmp_path / "instances" / "virtirq-compare-900").mkdir()  # as one that was killed left it
        assert trace.look([65], [819], {}, 1.0, sleep=lambda _: None) == []
        assert list((tmp_path / "instances").iterdir()) == []


def test_a_filter_of_too_many_is_none() -> None:
    assert _any("irq", {66, 65}) == "irq == 65 || irq == 66"
    assert _any("irq", range(100)) == ""
