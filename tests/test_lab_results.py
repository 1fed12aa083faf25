"""What is known of a lab's tests when it died or hung: all that was told until then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernel.results import RESULTS, Report

TESTS = """
import os, pytest

def test_good(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_of_two(n): assert n == 1

@pytest.fixture
def broken(): raise OSError("no such thing")

def test_unfounded(broken): pass

def test_skipped(): pytest.skip("not here")

def test_last(): {last}

def test_never(): pass
"""


def run(directory: Path, last: str, tests: str = TESTS) -> Report:
    (directory / "test_it.py").write_text(tests.format(last=last))
    words = ["-q", "-p", "tests.kernel.results", "-p", "no:cacheprovider", "test_it.py"]
    results = directory / "results"
    root = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=directory,
        env={RESULTS: str(results), "PYTHONPATH": root, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        check=False,
    )
    return Report.read(results)


@pytest.mark.parametrize(("last", "died"), [("pass", False), ("os._exit(9)", True)])
def test_results_are_kept_however_it_ends(tmp_path: Path, last: str, died: bool) -> None:
    report = run(tmp_path, last)
    assert report.failures.pop("test_good") == []
    (failure,) = report.failures.pop("test_of_two")
    assert failure.startswith("test_of_two[2]: call: ")
    assert "assert 2 == 1" in failure
    (error,) = report.failures.pop("test_unfounded")
    assert error.startswith("test_unfounded: setup: ")
    (skipped,) = report.failures.pop("test_skipped")
    assert "not here" in skipped
    assert report.ended is not died
    assert report.unfinished == ({"test_last"} if died else set())
    # What had begun has no result of its own: its setup went well.
    ended = set() if died else {"test_never"}
    assert report.failures == {name: [] for name in {"test_last"} | ended}


def test_what_cannot_be_collected_is_told(tmp_path: Path) -> None:
    report = run(tmp_path, "pass", "import nothing_of_that_name\n")
    (failure,) = report.elsewhere
    assert "nothing_of_that_name" in failure
    assert report.failures == {}


def test_a_line_that_is_not_whole_is_not_read(tmp_path: Path) -> None:
    report = run(tmp_path, "pass")
    file = tmp_path / "results"
    file.write_text(file.read_text() + '{"kind": "call", "te')
    assert Report.read(file) == report


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert Report.read(tmp_path / "results") == Report()
