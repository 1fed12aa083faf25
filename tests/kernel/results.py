"""Tells what comes of each test as it comes: a plugin for the pytest that runs in the lab.

`VIRTIRQ_RESULTS` names a file that gets a JSON line for each test that begins and for each part of
one that ends. A lab that dies or hangs takes with it no more than what it had not told.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

RESULTS: Final = "VIRTIRQ_RESULTS"


def _tell(**what: Any) -> None:
    file = os.open(os.environ[RESULTS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, json.dumps(what).encode() + b"\n")
    finally:
        os.close(file)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if not report.passed:
        _tell(kind="collected", test=report.nodeid, failure=report.longreprtext)


def pytest_runtest_logstart(nodeid: str) -> None:
    _tell(kind="begun", test=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    failure = "" if report.passed else f"{report.when}: {report.longreprtext}"
    _tell(kind=report.when, test=report.nodeid, seconds=report.duration, failure=failure)


def pytest_sessionfinish() -> None:
    _tell(kind="ended")


@dataclass
class Report:
    """What was told, up to now or up to the end."""

    failures: dict[str, list[str]] = field(default_factory=dict)
    """By the function's name, for all that have ended; its cases are taken together."""
    unfinished: set[str] = field(default_factory=set)
    elsewhere: list[str] = field(default_factory=list)
    """What failed outside of any test."""
    ended: bool = False

    @classmethod
    def read(cls, file: Path) -> Report:
        text = file.read_text() if file.exists() else ""
        return cls.of(line for line in text.splitlines(keepends=True) if line.endswith("\n"))

    @classmethod
    def of(cls, lines: Iterable[str]) -> Report:
        report = cls()
        for line in lines:
            report._take(json.loads(line))
        return report

    def _take(self, told: dict[str, Any]) -> None:
        case = told.get("test", "").rpartition("::")[2]
        match told["kind"]:
            case "begun":
                self.unfinished.add(case)
            case "ended":
                self.ended = True
            case "collected":
                self.elsewhere.append(f"{told['test']}: {told['failure']}")
            case part:
                failures = self.failures.setdefault(case.partition("[")[0], [])
                if told["failure"]:
                    failures.append(f"{case}: {told['failure']}")
                if part == "teardown":
                    self.unfinished.discard(case)
