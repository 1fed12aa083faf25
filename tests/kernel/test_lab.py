"""Boots a stock kernel with real VFIO interrupts and reports what was found there."""

from __future__ import annotations

import ast
import compileall
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from lab import kernel, quick
from lab.kernel import LabUnavailable
from tests.kernel.results import RESULTS, Report
from tests.needs import not_run

INSIDE = sorted(Path(__file__).parent.glob("inside*.py"))
ROOT = Path(__file__).parents[2]
PYTEST: Final = (
    *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--noconftest"),
    *map(str, INSIDE),
)
SILENCE: Final = 300.0
"""Seconds in which nothing comes of any test. The longest that one takes is a twentieth of that."""


def scenarios() -> list[str]:
    trees = [ast.parse(each.read_text()) for each in INSIDE]
    nodes = (each for tree in trees for each in ast.walk(tree))
    names = [each.name for each in nodes if isinstance(each, ast.FunctionDef)]
    return [name for name in names if name.startswith("test_")]


def compile_all() -> None:
    """To do that in the lab takes it most of a minute, and it would forget it.

    pytest compiles test modules in a way of its own, when it collects them.
    """
    for directory in ("src", "lab", "tests/kernel"):
        compileall.compile_dir(ROOT / directory, quiet=2)
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": ""}
    words = [*PYTEST, "--collect-only", "-qq"]
    subprocess.run(words, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=False)


@dataclass(frozen=True)
class Run:
    """What came of the lab's run."""

    report: Report
    trouble: str
    """Why it did not come to its end; empty if it did."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The kernel is booted once for all scenarios. What was told before a mishap counts."""
    told = tmp_path_factory.mktemp("lab")
    results = told / "results"
    env = {RESULTS: str(results), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONUNBUFFERED": "1"}
    compile_all()
    command = [*PYTEST, "-v", "-p", "tests.kernel.results", "--basetemp=/tmp/inside"]
    trouble = ""
    try:
        kernel.vmlinuz()
        done = quick.run(
            quick.one_nic(), command, silence=SILENCE, cwd=ROOT, writable=[told], env=env
        )
        if done.returncode not in (0, 1):
            trouble = f"pytest ended with status {done.returncode}:\n{done.output}"
    except LabUnavailable as error:
        not_run(f"the tests on a running kernel: {error}")
    except quick.GuestTimeoutError as error:
        trouble = f"{error}\nwhat it had printed:\n{error.output[-4000:]}"
    except quick.GuestError as error:
        trouble = str(error)
    return Run(Report.read(results), trouble)


@pytest.mark.lab
@pytest.mark.parametrize("scenario", scenarios())
def test_on_a_running_kernel(run: Run, scenario: str) -> None:
    begun = [case for case in run.report.unfinished if case.partition("[")[0] == scenario]
    assert not begun, f"it did not end: {run.trouble}"
    if scenario not in run.report.failures:
        reason = next(iter(run.trouble.splitlines()), "nobody knows why")
        during = ", ".join(run.report.unfinished) or "no test"
        pytest.fail(f"it was not run (during {during}: {reason})", pytrace=False)
    assert run.report.failures[scenario] == [], "\n".join(run.report.failures[scenario])


@pytest.mark.lab
def test_the_lab_ran_to_its_end(run: Run) -> None:
    assert not run.trouble, run.trouble
    assert run.report.ended
    assert run.report.elsewhere == []
    assert set(run.report.failures) == set(scenarios())
