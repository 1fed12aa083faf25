"""``virtirq top`` as a person has it: in a terminal, with keys."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.needs import need_program
from tests.ui.schema import valid
from tests.ui.terminal import terminal
from tests.ui.test_cli import DEMO, virtirq
from tests.ui.top.hosts import count, host, irq_of
from virtirq.ui.cli import main

DOWN = "\x1b[B"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return host(guests=40).write(tmp_path / "host")


def test_a_session(root: Path) -> None:
    with terminal("-s", str(root), "top", "-d", "0.1") as there:
        shown = there.wait_for_text("0/s")
        assert shown[0].startswith("virtirq top  by vector, busiest first")
        assert shown[1] == "80 interrupts (recorded), 0/s"
        assert shown[-1].startswith("q quit")
        there.type("t")  # in all: what is counted now stays where it is
        there.wait_for_text("most in all first")
        count(root, irq_of(3, 1), cpu3=10, cpu6=1_000_000)
        there.wait_for(lambda lines: lines[3].startswith(" web3   0000:43:00.0  msix 1  107"))
        there.type("p")
        there.wait_for_text("PAUSED")
        there.type("\r")
        shown = there.wait_for_text("IRQ 107 vfio-msix[1](0000:43:00.0)")
        assert shown[0] == "guest web3, known from domain-xml"
        there.type("q")
        there.wait_for_text("PAUSED")
        there.type("g")
        there.wait_for_text("by guest")
        there.type("n" + DOWN * 30)
        there.wait_for_text("web35")  # the list has moved
        there.type("/web17\r")
        there.wait_for(lambda lines: "web17" in lines[3] and not lines[4])
        there.type("p")
        there.wait_for_text("2 interrupts (recorded), 0/s")
        there.type("h")
        there.wait_for_text("sort by what is taken elsewhere")
        there.type("x")  # any key goes back
        there.wait_for_text("2 interrupts (recorded)")
        there.type("\x1b")
        there.wait_for_text("80 interrupts")
        there.resize(40, 10)
        there.signal(signal.SIGWINCH)
        shown = there.wait_for(lambda lines: lines[-1] == "q quit  / filter  h help")
        assert len(shown) == 10
        there.type("q")
        assert there.end() == 0
        assert there.now() == there.modes


@pytest.mark.parametrize("how", ["\x03", signal.SIGTERM])
def test_however_it_ends_the_terminal_is_as_it_was(how: str | signal.Signals) -> None:
    with terminal("-s", str(DEMO), "top") as there:
        there.wait_for_text("q quit")
        if isinstance(how, signal.Signals):
            there.signal(how)
        else:
            there.type(how)
        assert there.end() == 0
        assert there.now() == there.modes
        assert "Traceback" not in there.raw.decode()


def test_without_colour_it_says_the_same(root: Path) -> None:
    colours = re.compile(rb"\x1b\[[0-9;]*3[0-7][0-9;]*m")
    found = {}
    for no in ("", "1"):
        with terminal("-s", str(root), "top", "-d0.1", env={"NO_COLOR": no}) as there:
            there.wait_for_text("0/s")
            there.type("pc")
            there.wait_for_text("PAUSED  by CPU")
            count(root, irq_of(1, 0), cpu5=1000 if no else 500)
            there.type("pt")
            there.wait_for_text("most in all first")
            found[no] = there.display[2]
            there.type("\x03")
            assert there.end() == 0
            assert bool(colours.search(there.raw)) == (no == "")
    assert found[""] == found["1"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no-such-terminal", "nothing is known of the terminal 'no-such-terminal'"),
        ("dumb", "the cursor of the terminal 'dumb' cannot be moved"),
    ],
)
def test_a_terminal_on_which_nothing_can_be_drawn(name: str, told: str) -> None:
    with terminal("-s", str(DEMO), "top", env={"TERM": name}) as there:
        assert there.end() == 2
        assert told in "".join(there.display)
        assert there.now() == there.modes


STOPPED = 'stty sane; "$@"; echo stopped: $?; read go; fg > /dev/null; echo ended: $?'


def test_stopped_it_gives_the_terminal_back_and_goes_on_when_told(root: Path) -> None:
    need_program("bash")
    top = (sys.executable, "-m", "virtirq", "-s", str(root), "top", "-d0.1", "web3")
    with terminal(program=("bash", "-mc", STOPPED, "bash", *top)) as there:
        there.wait_for_text("0/s")
        before = there.now()
        there.type("\x1a")  # Ctrl-Z
        there.wait_for_text("stopped: 148")  # by SIGTSTP, as bash tells it
        assert before != there.now(), "the shell has the terminal as it was"
        count(root, irq_of(3, 1), cpu3=10, cpu6=500_000)
        there.resize(79, 9)
        there.type("\n")
        shown = there.wait_for(lambda lines: any("500010" in line for line in lines))
        assert len(shown) == 9
        there.wait_for(lambda lines: lines[-1].startswith("q quit"))
        there.type("q")
        there.wait_for_text("ended: 0")
        assert there.end() == 0


def test_batch(root: Path) -> None:
    done = virtirq("-s", str(root), "top", "-b", "-n2", "-d0.1", "web3", "--by", "guest")
    assert done.returncode == 0
    first, second = done.stdout.split("\n\n")
    for each in (first, second):
        lines = each.splitlines()
        assert lines[1:3] == [
            "2 interrupts (recorded), 0/s",
            " GUEST  DEVICES  IRQS  ON  RATE  TARGET  NODE  ELSE  TOTAL",
        ]
        assert lines[3].split() == ["web3", "1", "2", "-", "0", "-", "-", "-", "20"]


def test_json_is_a_line_an_update(root: Path) -> None:
    done = virtirq("--sysroot", str(root), "top", "-J", "-n2", "-d0.1", "web[12]", "-C1")
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        told = valid(line, "top")
        assert told["interrupts"] == 4
        totals = {(row["guest"], row["total"]) for row in told["rows"]}
        assert totals == {("web1", 10), ("web2", 0)}
    assert json.loads(lines[0])["by"] == "vector"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("", "top needs a terminal"),
        ("-b -s NOPE", "there is no column 'NOPE'"),
        ("-b -o IRQ,", "there is no column ''"),
        ("-b -d 0", "0 is not between 0.1 and 86400 seconds"),
        ("-b -d soon", "'soon' is not a number of seconds"),
        ("-b -d nan", "nan is not between 0.1 and 86400 seconds"),
        ("-b -n 0", "'0' is not a number above 0"),
        ("-b -t much", "'much' is not a number, such as 500 or 1.2K"),
        ("-b -C 1-", "is not a CPU"),
        ("-b mail", "no guest is called 'mail'"),
        ("-b --by irq", "invalid choice: 'irq'"),
    ],
)
def test_wrong_inputs(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["-s", str(DEMO), "top", *line.split()])
    out, error = capsys.readouterr()
    assert (code, out) == (2, "")
    assert told in error
    assert error.count("\n") <= 2
