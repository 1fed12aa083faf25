"""The screens that README.md shows are what a run on the recorded host prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_BLOCK = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MORE = "…"


def sessions(text: str) -> list[list[tuple[str, list[str]]]]:
    """The blocks with a prompt: of each, the command lines and the lines that follow them."""
    found = []
    for block in _BLOCK.findall(text):
        if not block.startswith("$ "):
            continue
        runs: list[tuple[str, list[str]]] = []
        for line in block.splitlines():
            if line.startswith("$ "):
                runs.append((line.removeprefix("$ "), []))
            else:
                runs[-1][1].append(line)
        found.append(runs)
    return found


def unlike(shown: list[str], printed: list[str]) -> str | None:
    """The first line of `shown` that was not printed in this order; ``…`` stands for any lines.

    What is shown may end before what is printed does, and begin later: a host's first lines, say.
    """
    at, skipping = 0, True
    for line in shown:
        if line == _MORE:
            skipping = True
            continue
        rest = printed[at:]
        if line not in rest or (not skipping and rest[0] != line):
            return line
        at += rest.index(line) + 1
        skipping = False
    return None


README = sessions((REPOSITORY / "README.md").read_text())


def test_there_are_screens() -> None:
    assert sum(len(runs) for runs in README) >= 4


@pytest.mark.parametrize("runs", README)
def test_the_screens_come_from_a_run(runs: list[tuple[str, list[str]]], tmp_path: Path) -> None:
    def run(*words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "virtirq", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    run("demo", "host")
    for line, shown in runs:
        program, *words = shlex.split(line)
        assert program == "virtirq"
        assert unlike(shown, run(*words)) is None, line


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        ("a b", None),
        ("b c", None),
        ("a … d", None),
        ("a c", "c"),
        ("b a", "a"),
        ("a x", "x"),
        ("x", "x"),
        ("… d …", None),
    ],
)
def test_what_was_not_printed_is_noticed(shown: str, wrong: str | None) -> None:
    assert unlike(shown.split(), list("abcd")) == wrong
