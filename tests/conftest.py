"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

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
LABS: Final = ("tests/full", "tests/kernel")


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
    items.sort(key=lambda item: _group(item.nodeid) not in LABS)


def _group(nodeid: str) -> str:
    """What a test belongs to that shares what it made: its lab, or its module."""
    module = nodeid.partition("::")[0]
    directory = os.path.dirname(module)
    return directory if directory in LABS else module


class BesideLabs(LoadScopeScheduling):
    """Each lab's tests one after the other, beside all that need none.

    A lab's host takes most of a small machine. ``--dist=loadgroup`` would do, but xdist 3.8 forgets
    the groups under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> BesideLabs:
    return BesideLabs(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says loudly what a machine could not run: a skipped lab is not a passed one."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {str(each.longrepr[2]) for each in skipped if isinstance(each.longrepr, tuple)}
    for reason in sorted(each for each in reasons if "NOT RUN" in each):
        terminalreporter.write_line(f"!!! {reason.removeprefix('Skipped: ')}", red=True, bold=True)
