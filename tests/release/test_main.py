"""What is said of a source that is not the committed one."""

from __future__ import annotations

import subprocess
from pathlib import Path

from release.__main__ import uncommitted
from tests.needs import need_program


def test_what_is_not_committed(tmp_path: Path) -> None:
    need_program("git")

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True)

    for name in ("same", "changed", "gone"):
        (tmp_path / name).write_text(name)
    assert uncommitted(tmp_path) == []  # no checkout
    (tmp_path / ".gitignore").write_text("ignored\n")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@a.invalid", "commit", "-qm", "all")
    assert uncommitted(tmp_path) == []
    (tmp_path / "changed").write_text("other")
    (tmp_path / "gone").unlink()
    for name in ("new", "ignored", "in two words"):
        (tmp_path / name).touch()
    assert sorted(uncommitted(tmp_path)) == ["changed", "gone", "in two words", "new"]
