"""Plain in a pipe, fitted and coloured on a terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from tests.ui.test_cli import DEMO
from virtirq.ui.cli import main
from virtirq.ui.document import Cell, Document, Table

COLOUR = re.compile(r"\x1b\[[0-9;]*[mK]")  # or what erases a line that said what takes so long


def on_terminal(columns: int, *words: str, **env: str) -> str:
    """What virtirq prints on a terminal that is so wide."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", **env}
    environment = {k: v for k, v in environment.items() if v or k not in ("NO_COLOR",)}
    process = subprocess.Popen(
        [sys.executable, "-m", "virtirq", "-s", str(DEMO), *words],
        stdout=theirs,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
    )
    os.close(theirs)
    with io.FileIO(ours, closefd=True) as file:
        shown = b""
        while True:
            try:
                piece = file.read(65536)
            except OSError:  # EIO: the other end is closed
                break
            if not piece:
                break
            shown += piece
    assert process.wait() in (0, 3)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("verb", ["status", "plan"])
def test_no_line_is_wider_than_the_terminal(columns: int, verb: str) -> None:
    shown = COLOUR.sub("", on_terminal(columns, verb, NO_COLOR=""))
    assert "0000:41:00.0" in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= columns
    assert {"status": "wrong-cpu", "plan": "to CPU 4 of vCPU 0"}[verb] in " ".join(shown.split())


@pytest.mark.parametrize(
    ("columns", "verb"), [(40, "status"), (40, "plan"), (60, "plan"), (40, "check")]
)
def test_no_word_is_cut(columns: int, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["-s", str(DEMO), verb])
    whole = capsys.readouterr().out.split()
    shown = COLOUR.sub("", on_terminal(columns, verb, NO_COLOR="")).split()
    assert set(whole) - set(shown) <= {str(DEMO)}


def test_a_list_of_cpus_is_broken_between_its_numbers() -> None:
    from virtirq.ui.document import _narrowed

    cell = Cell("0-3,8-11,16-19,24-27,32-35")
    assert _narrowed(cell).lines == ("0-3,8-11,16-19,", "24-27,32-35")
    assert _narrowed(Cell("0-3")).lines == ("0-3",)
    assert _narrowed(Cell("")).lines == ("",)


def test_colour_on_a_terminal_unless_told_otherwise() -> None:
    assert "\x1b[1;31m" in on_terminal(80, "status", NO_COLOR="")
    plain = on_terminal(80, "status", NO_COLOR="1")
    assert not re.search(r"\x1b\[(?:[0-9;]*;)?3[0-9]", plain)


def test_a_dumb_terminal_gets_plain_text() -> None:
    assert "\x1b" not in on_terminal(80, "status", TERM="dumb")


def test_many_interrupts_in_place_are_one_line_on_a_terminal() -> None:
    from virtirq.cpuset import CpuSet
    from virtirq.ui.report import Row
    from virtirq.ui.screens import _vectors

    cpus = CpuSet([1])
    rows = [
        Row(irq, "msix", irq - 9000, cpus, cpus, cpus, "keep", "in-place", "on CPU 1")
        for irq in range(9000, 9100)
    ]
    short, whole = Document(), Document()
    _vectors(short, rows, short=True)
    _vectors(whole, rows, short=False)
    assert short.plain() == "    100 interrupts in place on CPUs 1 (IRQs 9000 to 9099)\n"
    assert len(whole.plain().splitlines()) == 101


def test_nothing_that_is_shown_steers_the_terminal() -> None:
    document = Document()
    document.line("Linux 6.1\x1b]0;owned\x07", Cell("a\nb"))
    assert document.plain() == "Linux 6.1\N{REPLACEMENT CHARACTER}]0;owned" + (
        "\N{REPLACEMENT CHARACTER}a\N{REPLACEMENT CHARACTER}b\n"
    )


def test_tables_line_up_with_each_other() -> None:
    document = Document()
    for text in ("a", "long text"):
        document.line("above")
        document.table(Table(("ONE", "TWO"), ((Cell(text), Cell("1")),), right=frozenset({1})))
    assert document.plain() == (
        "above\nONE        TWO\na            1\nabove\nONE        TWO\nlong text    1\n"
    )
