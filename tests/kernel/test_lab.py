"""Boots a stock kernel with real VFIO interrupts and reports what was found there."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab import kernel, quick
from lab.kernel import LabUnavailable
from tests.needs import not_run

INSIDE = sorted(Path(__file__).parent.glob("inside*.py"))
ROOT = Path(__file__).parents[2]


def scenarios() -> list[str]:
    trees = [ast.parse(each.read_text()) for each in INSIDE]
    nodes = (each for tree in trees for each in ast.walk(tree))
    names = [each.name for each in nodes if isinstance(each, ast.FunctionDef)]
    return [name for name in names if name.startswith("test_")]


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Scenario to the failures of its cases; the kernel is booted once for all of them."""
    results = tmp_path_factory.mktemp("lab")
    junit = results / "junit.xml"
    command = [
        *(sys.executable, "-m", "pytest", *map(str, INSIDE), "-q", "-p", "no:cacheprovider"),
        *("-p", "no:hypothesispytest", f"--junitxml={junit}", "--basetemp=/tmp/inside"),
    ]
    try:
        kernel.vmlinuz()
        done = quick.run(
            quick.one_nic(), command, timeout=900, cwd=ROOT, writable=[results],
            env={"PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
    except LabUnavailable as error:
        not_run(f"the tests on a running kernel: {error}")
    if not junit.exists():
        pytest.fail(f"nothing was run in the lab:\n{done.output}")
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(junit).iter("testcase"):
        name = case.get("name", "").partition("[")[0]
        failures = found.setdefault(name, [])
        for kind in ("failure", "error", "skipped"):
            failures += [f"{case.get('name')}: {each.text}" for each in case.iter(kind)]
    found[""] = [done.output] if done.returncode not in (0, 1) else []
    return found


@pytest.mark.lab
@pytest.mark.parametrize("scenario", scenarios())
def test_on_a_running_kernel(report: dict[str, list[str]], scenario: str) -> None:
    assert scenario in report, "it was not run"
    assert report[scenario] == [], "\n".join(report[scenario])


@pytest.mark.lab
def test_the_lab_ran_to_its_end(report: dict[str, list[str]]) -> None:
    assert report[""] == []
    assert set(report) - {""} == set(scenarios())
