"""What all tests share."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that the tests are part of."""
    return REPOSITORY


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-output", action="store_true", help="write the golden outputs again"
    )


@pytest.hookimpl(tryfirst=True)  # xdist looks for the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side: each lab's one after the other, beside all that need none.

    A lab's host takes most of a small machine, and a module's tests share what they made. The labs
    come first, since they take longest.
    """
    items.sort(key=lambda item: item.get_closest_marker("lab") is None)
    for item in items:
        module = item.path.relative_to(REPOSITORY / "tests")
        lab = module.parts[0] if item.get_closest_marker("lab") else str(module)
        item.add_marker(pytest.mark.xdist_group(lab))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says loudly what a machine could not run: a skipped lab is not a passed one."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = {str(each.longrepr[2]) for each in skipped if isinstance(each.longrepr, tuple)}
    for reason in sorted(each for each in reasons if "NOT RUN" in each):
        terminalreporter.write_line(f"!!! {reason.removeprefix('Skipped: ')}", red=True, bold=True)
