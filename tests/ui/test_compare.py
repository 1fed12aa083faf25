"""``virtirq compare`` on a scratch copy of the demo's host, where nothing fires but time passes."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.ui.schema import valid
from virtirq.host.scratch import LOG
from virtirq.policy.comparison import EXACT, OWN, Block, Part, turns
from virtirq.ui import comparison_screen
from virtirq.ui.cli import main


class Ran(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def virtirq(*words: str) -> Ran:
    """In this process: to start another takes most of a second."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return Ran(code, out.getvalue(), err.getvalue())


QUICK = ("--for", "0.02", "--settle", "0", "--rounds", "7")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    root = tmp_path / "host"
    assert virtirq("demo", str(root)).returncode == 0
    return root


def places(root: Path) -> dict[int, str]:
    plan = json.loads(virtirq("-s", str(root), "-J", "plan").stdout)
    return {
        each["irq"]: each["before"]
        for guest in plan["guests"]
        for device in guest["devices"]
        for each in device["interrupts"]
    }


def written(root: Path) -> int:
    """How much was moved so far."""
    log = root / LOG
    return log.stat().st_size if log.exists() else 0


def remembered(root: Path) -> str:
    done = virtirq("-s", str(root), "restore", "--dry-run")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_is_as_it_was(host: Path) -> None:
    before = places(host)
    done = virtirq("-s", str(host), "compare", "db", "as-is", "auto", "1", *QUICK, "--seed", "5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("db: as-is, auto, 1; 7 rounds of 0.02 s each")
    assert places(host) == before
    assert remembered(host).startswith("0 of 0 interrupts to move")


def test_json_has_every_block(host: Path) -> None:
    words = ("compare", "db", "as-is", "1", *QUICK, "--metric", "echo 4", "--more-is-better")
    done = virtirq("-s", str(host), "-J", *words)
    found = valid(done.stdout, "compare")
    assert len(found["blocks"]) == 14
    assert {each["figures"]["metric"] for each in found["blocks"]} == {4.0}
    (verdict,) = [each for each in found["verdicts"] if each["measure"] == "metric"]
    assert (verdict["says"], verdict["difference"], verdict["rounds"]) == ("none_seen", 0.0, 7)


def test_nothing_is_kept_that_is_not_better(host: Path) -> None:
    done = virtirq("-s", str(host), "compare", "db", "as-is", "1", *QUICK, "--keep")
    assert done.returncode == 0, done.stderr
    assert "nothing is kept: no policy is told from as-is for the better" in done.stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("db", "auto"), 2, "takes two policies at least"),
        (("db", "auto", "auto"), 2, "auto is given twice"),
        (("db", "auto", "fast"), 2, "'fast' is not a directive"),
        (("nobody", "auto", "1"), 2, "no guest is called 'nobody'"),
        (("db", "auto", "1", "--for", "0"), 2, "0 is not between 0.01 and 86400 seconds"),
        (("db", "auto", "1", "--for", "soon"), 2, "'soon' is not a number of seconds"),
        (("db", "auto", "1", "--settle", "-1"), 2, "-1 is not between 0 and 86400 seconds"),
        (("db", "auto", "1", "--rounds", "25"), 2, "'25' is not a number from 1 to 24"),
        (("db", "auto", "1", "--seed", "x"), 2, "'x' is not a number"),
        (("db", "auto", "as-is", "--keep"), 2, "as-is is nothing to keep"),
        (("db", "auto", "1", "--rounds", "3", "--keep"), 2, "no verdict in fewer than 6 rounds"),
        (("db", "exact", "1"), 6, "where db aims its vectors is not known"),
        (("db", "auto", "900"), 6, "900 means nothing for db"),
        (("db", "auto", "1", "--metric", "exit 9"), 2, "--metric 'exit 9' ended with 9"),
    ],
)
def test_bad_input_is_one_line(host: Path, words: tuple[str, ...], code: int, said: str) -> None:
    before = places(host)
    done = virtirq("-s", str(host), "compare", *words)
    assert done.returncode == code, done.stderr
    first, *rest = done.stderr.splitlines()
    assert said in first
    assert all(each.startswith("hint: ") for each in rest)
    assert places(host) == before


def test_a_recording_cannot_be_tried_on() -> None:
    demo = Path(__file__).parents[2] / "src/virtirq/demo/two-node.tar.xz"
    done = virtirq("-s", str(demo), "compare", "db", "auto", "1")
    assert done.returncode == 2, done.stderr
    assert "is a recording" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_at_any_moment_all_is_as_it_was(host: Path, number: signal.Signals) -> None:
    before, chance = places(host), random.Random(number)
    words = ("compare", "db", "as-is", "1", "2", "--for", "0.05", "--settle", "0.01")
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-m", "virtirq", "-s", str(host), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while not written(host) and child.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.3))
        os.kill(child.pid, number)
        _, said = child.communicate()  # until the other process has ended as well
        if number is not signal.SIGKILL:
            assert child.returncode == 128 + number
            assert "all is where it was before" in said
        assert written(host)
        assert places(host) == before
        assert remembered(host).startswith("0 of 0 interrupts to move")
        (host / LOG).write_text("")


def made(base: float, other: float, share: float) -> list[Block]:
    chance = random.Random(1)
    mean = {"auto": base, "exact": other}
    return [
        Block(
            policy,
            number,
            10.0,
            round(chance.gauss(12000, 100)),
            {OWN: Part(100, 100), EXACT: Part(37 if policy == "auto" else round(share), 100)},
            {"metric": chance.gauss(mean[policy], 1)},
        )
        for number, policy in turns(["auto", "exact"], 10, 1)
    ]


def test_what_it_says() -> None:
    screen = comparison_screen.screen("web", ["auto", "exact"], made(100, 80, 100), 10.0, 7).plain()
    assert (
        screen
        == """\
web: auto, exact; 10 rounds of 10 s each, in random turns (seed 7)
                                 auto        exact
  interrupts/s             1,204 ±7.4  1,201 ±0.95
  on the guest's CPUs            100%         100%
  on the very vCPU's CPU          37%         100%
  metric                  100.2 ±0.65  80.08 ±0.36
  exact beside auto: interrupts/s: no difference seen; one of 0.56% would have been
  exact beside auto: on the guest's CPUs: no difference seen; one of 0 points would have been
  exact beside auto: on the very vCPU's CPU: 63 points more (+63 points to +63 points; p 0.002)
  exact beside auto: metric: 20% less (-21% to -19%; p 0.002)
"""
    )
