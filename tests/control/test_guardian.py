from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virtirq.control.guardian import guarded

PROGRAM = """
import os, sys, time
from pathlib import Path
from virtirq.control.guardian import guarded

def undo():
    with open(sys.argv[1], "a") as log:
        log.write(f"{os.getpid() == me}\\n")

me = os.getpid()
with guarded(undo):
    print("within", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def started(log: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(log)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "within\n"
    return child


def test_killed_the_other_one_undoes(log: Path) -> None:
    child = started(log)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    assert child.stdout is not None
    assert child.stdout.read() == ""  # the other one has ended, too
    assert log.read_text() == "False\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_it_undoes_itself(log: Path, number: signal.Signals) -> None:
    child = started(log)
    child.send_signal(number)
    assert child.wait() == 128 + number
    assert log.read_text() == "True\n"


def test_left_by_itself_or_by_an_error(log: Path) -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)
    with guarded(lambda: done.append(os.getpid())):
        assert not done
    with pytest.raises(ValueError, match="wrong"), guarded(lambda: done.append(os.getpid())):
        raise ValueError("wrong")
    assert done == [os.getpid()] * 2
    assert signal.getsignal(signal.SIGINT) is before


def test_where_undoing_fails_the_other_one_tries(log: Path) -> None:
    me = os.getpid()

    def undo() -> None:
        if os.getpid() == me:
            raise OSError("no room")
        log.write_text("undone")

    with pytest.raises(OSError, match="no room"), guarded(undo):
        pass
    assert log.read_text() == "undone"


def test_no_signal_disturbs_the_undoing(log: Path) -> None:
    def undo() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        log.write_text("undone")

    with guarded(undo):
        pass
    assert log.read_text() == "undone"
