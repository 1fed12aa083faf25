"""Something that takes long, in a terminal and elsewhere."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.ui.cases import hostdev
from tests.ui.terminal import terminal
from tests.ui.test_cli import SINGLE
from virtirq.ui.progress import Progress


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A guest's definition that comes when somebody writes it."""
    file = tmp_path / "vm.xml"
    os.mkfifo(file)
    return file


def test_a_terminal_is_told_and_left_clean(slow: Path) -> None:
    with terminal("-s", str(SINGLE), "--domain", str(slow), "check") as there:
        there.wait_for_text("reading guests … ")
        slow.write_text(hostdev("slow", "41", "1"))
        there.end()
        assert there.display[0].partition(":")[0] in ("note", "warning")
        assert not any("…" in line for line in there.display)


def test_a_screen_that_is_drawn_over_it_is_left_alone(slow: Path) -> None:
    with terminal("-s", str(SINGLE), "--domain", str(slow), "top", "-d0.1") as there:
        there.wait_for_text("reading guests … ")
        slow.write_text(hostdev("slow", "41", "1"))
        there.wait_for_text("q quit")
        assert not any("…" in line for line in there.display)
        there.type("q")
        assert there.end() == 0


def test_nobody_else_is_told(slow: Path) -> None:
    words = ["-m", "virtirq", "-s", str(SINGLE), "--domain", str(slow), "check"]
    with subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        slow.write_text(hostdev("slow", "41", "1"))
        out, error = process.communicate()
    assert "…" not in out
    assert error == ""


def test_what_is_quick_needs_no_excuse() -> None:
    out = io.StringIO()
    progress = Progress(out, after=1000.0)
    progress.start()
    progress.step("reading guests")
    progress.end()
    assert out.getvalue() == ""


@pytest.mark.parametrize("columns", [8, 20, 40, 80])
def test_it_stays_in_one_line(columns: int) -> None:
    """What breaks into a second line is not erased."""
    told = threading.Event()

    class Screen(io.StringIO):
        def flush(self) -> None:
            told.set()

    out = Screen()
    progress = Progress(out, after=0.0, columns=columns)
    progress.step("reading the interrupts of 200 guests")
    progress.start()
    assert told.wait(60)
    progress.end()
    shown = out.getvalue().split("\r\x1b[K")
    assert shown[0] == shown[-1] == ""
    assert all(len(each) < columns and each.endswith(" s") for each in shown[1:-1])
