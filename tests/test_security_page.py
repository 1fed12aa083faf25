"""What docs/security.md names as shown by a test is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_test_that_is_named_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", PAGE))
    assert len(named) > 20
    assert [each for each in sorted(named) if not (ROOT / each).is_file()] == []


def test_every_bound_has_a_test_or_is_accepted() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    bodies = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len(bodies) > 30
    for *_, bound, shown in (each for each in bodies if each[-1] != "shown by"):
        assert "`tests/" in shown or "said" in shown or ".md" in shown or shown == "-", shown
        assert shown != "-" or bound.startswith(("none", "-")), bound
