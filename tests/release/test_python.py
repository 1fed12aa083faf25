"""Wheel and source: all that belongs in them, and the same bytes wherever they are made."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from release import EPOCH, python


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The same source, copied another day by another user with another umask."""
    place = tmp_path_factory.mktemp("elsewhere") / "copy"
    for name in ("src", "release", "docs", "packaging", "tools"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / name, place / name, ignore=ignored)
    for path in repository.iterdir():
        if path.is_file():
            shutil.copy(path, place)
    for path in place.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
        os.utime(path, (0, 1_000_000_000))
    return place


def test_the_wheel_comes_out_alike(tmp_path: Path, other: Path) -> None:
    here = python.wheel(tmp_path / "here")
    there = python.wheel(tmp_path / "there", other)
    assert here.read_bytes() == there.read_bytes()
    with zipfile.ZipFile(here) as made:
        assert {each.date_time[0] for each in made.infolist()} == {2020}
        names = set(made.namelist())
    assert {"virtirq/ui/cli.py", "virtirq/py.typed", "virtirq/demo/two-node.tar.xz"} <= names
    assert not [name for name in names if not name.startswith("virtirq")]


def test_the_source_comes_out_alike(tmp_path: Path, other: Path) -> None:
    made = [python.sdist(tmp_path / name, other) for name in ("here", "there")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_the_source_is_all_that_git_has(tmp_path: Path, repository: Path) -> None:
    """But what concerns this place alone: Debian adds its own, and CI has what it runs."""
    asked = ["git", "-C", str(repository), "ls-files", "--cached", "--others", "--exclude-standard"]
    known = subprocess.run(asked, capture_output=True, text=True, check=False)
    if known.returncode != 0:
        pytest.skip("not a checkout")
    wanted = {
        name
        for name in known.stdout.splitlines()
        if not name.startswith(("debian/", ".ci/")) and (repository / name).is_file()
    }
    with tarfile.open(python.sdist(tmp_path)) as made:
        (root,) = {name.partition("/")[0] for name in made.getnames()}
        names = {name.removeprefix(f"{root}/") for name in made.getnames()}
        assert {each.mtime for each in made} == {EPOCH}
        assert {(each.uid, each.gid) for each in made} == {(0, 0)}
    assert names - {"PKG-INFO"} == wanted
