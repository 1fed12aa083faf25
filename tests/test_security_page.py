"""What docs/security.md and docs/support.md name as shown by a test is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "security.md").read_text()


@pytest.mark.parametrize(("page", "least"), [("security", 50), ("support", 10)])
def test_every_test_that_is_named_is_there(page: str, least: int) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.:]+)`", text))
    assert len(named) > least
    assert [each for each in sorted(named) if not is_there(each)] == []


def is_there(name: str) -> bool:
    """A file, a folder, or a function of a file, be it in a class."""
    path, _, function = name.partition("::")
    if not function:
        return (ROOT / path).exists()
    if not (ROOT / path).is_file():
        return False
    tree = ast.parse((ROOT / path).read_text())
    return function in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert is_there("tests/test_security_page.py::is_there")
    assert not is_there("tests/test_security_page.py::nothing_of_that_name")
    assert not is_there("tests/nothing.py")


def test_every_bound_has_a_test_or_is_accepted() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    bodies = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len(bodies) > 30
    for *_, bound, shown in (each for each in bodies if each[-1] != "shown by"):
        assert "`tests/" in shown or "said" in shown or ".md" in shown or shown == "-", shown
        assert shown != "-" or bound.startswith(("none", "-")), bound
