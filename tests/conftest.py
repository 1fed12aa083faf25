"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every run, and no deadline: a busy machine must not fail a test.
settings.register_profile(
    "virtirq",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("virtirq")

REPOSITORY = Path(__file__).parent.parent
LABS: Final = ("tests/kernel", "tests/full")
"""The quick one first: meanwhile the other is built."""


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that the tests are part of."""
    return REPOSITORY


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-output", action="store_true", help="write the golden outputs again"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The labs first, since they take longest."""
    items.sort(key=lambda item: _lab(item.nodeid))


def _lab(nodeid: str) -> int:
    """Which of the labs a test needs; their number, where it needs none."""
    directory = os.path.dirname(nodeid.partition("::")[0])
    return LABS.index(directory) if directory in LABS else len(LABS)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says loudly what a machine could not run: a skipped lab is not a passed one."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {str(each.longrepr[2]) for each in skipped if isinstance(each.longrepr, tuple)}
    for reason in sorted(each for each in reasons if "NOT RUN" in each):
        terminalreporter.write_line(f"!!! {reason.removeprefix('Skipped: ')}", red=True, bold=True)
