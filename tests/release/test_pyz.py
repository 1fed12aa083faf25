"""virtirq.pyz: what is in it, which Python runs it, what it installs and takes away."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from release import pyz
from tests.needs import need_program

STARTER = pyz.FILES / "__main__.py"
BASE = os.path.realpath(sys.executable)
"""This Python without what is installed in this environment."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_program("make")
    return pyz.pyz(tmp_path_factory.mktemp("packed"))


def run(program: Path, *words: str, python: str = BASE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-I", str(program), *words], capture_output=True, text=True, check=False
    )


def test_it_comes_out_alike(packed: Path, tmp_path: Path) -> None:
    assert pyz.pyz(tmp_path).read_bytes() == packed.read_bytes()


def test_it_starts_by_itself(packed: Path) -> None:
    assert os.access(packed, os.X_OK)
    assert packed.read_bytes().startswith(b"#!/usr/bin/env python3\n")


def test_it_has_the_licence_of_all_that_is_in_it(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        licences = [
            re.sub(r"[-_.]", "", name.partition("/")[0]).lower()
            for name in archive.namelist()
            if re.search(r"\.dist-info/.*(licen|copying)", name, re.IGNORECASE)
        ]
    for each in pyz.needed():
        name = re.sub(r"[-_.]", "", f"{each.name}{each.version}distinfo").lower()
        assert name in licences, each.name


def test_it_is_pure_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pyz, "needed", lambda: [distribution("libvirt-python")])
    pytest.importorskip("libvirt")
    with pytest.raises(ValueError, match="not pure Python: libvirt-python: libvirtmod"):
        pyz.pyz(tmp_path)


def test_the_main_job_by_a_bare_python(packed: Path, tmp_path: Path) -> None:
    done = run(packed, "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert "affinities are as they were found" in done.stdout
    config = tmp_path / "virtirq.toml"
    config.write_text('default = "auot"')
    done = run(packed, "config", "check", "--config", str(config))
    assert done.returncode == 2
    assert "'auot' is not a directive" in done.stderr


def test_what_is_packed_is_what_is_imported(packed: Path, tmp_path: Path) -> None:
    """Also where libvirt's bindings bring other versions along."""
    (tmp_path / "shtab").mkdir()
    (tmp_path / "shtab/__init__.py").write_text("raise ImportError")
    words = [BASE, str(packed), "--print-completion", "fish"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# Which Python runs it.


def test_an_old_python_understands_the_starter() -> None:
    ast.parse(STARTER.read_text(), feature_version=(3, 6))


@pytest.fixture(scope="module")
def better() -> Callable[..., str | None]:
    found: dict[str, Any] = runpy.run_path(str(STARTER), run_name="starter")
    better: Callable[..., str | None] = found["better"]
    return better


HERE = None
DEBIAN = "usr/lib/python3/dist-packages"
FEDORA = "usr/lib64/python3.12/site-packages"


@pytest.mark.parametrize(
    ("version", "imported", "there", "bound", "chosen"),
    [
        # Bookworm, Proxmox VE 8; its own 3.11 with what the distribution has for it.
        ((3, 11), True, [11], {DEBIAN: 11}, HERE),
        # A Python of a virtual environment, whose libvirt is the distribution's.
        ((3, 11), False, [11], {DEBIAN: 11}, HERE),
        # RHEL 9: python3 is 3.9.
        ((3, 9), True, [11], {}, 11),
        ((3, 9), True, [11, 12], {}, 12),
        ((3, 9), True, [11, 12, 13], {FEDORA: 12}, 12),
        ((3, 9), False, [], {}, HERE),
        # A newer Python than the distribution's comes first on PATH.
        ((3, 14), False, [13, 14], {DEBIAN: 13}, 13),
        ((3, 14), False, [13, 14], {}, HERE),
        ((3, 14), True, [13, 14], {DEBIAN: 13}, HERE),
        # Bindings without the Python that they are for.
        ((3, 14), False, [14], {DEBIAN: 13}, HERE),
        ((3, 11), False, [11, 12], {DEBIAN: 12}, 12),
        # Too old to be any good, and so is what it has.
        ((3, 9), False, [], {DEBIAN: 9}, HERE),
    ],
)
def test_which_python_runs_it(
    tmp_path: Path,
    better: Callable[..., str | None],
    version: tuple[int, int],
    imported: bool,
    there: list[int],
    bound: dict[str, int],
    chosen: int | None,
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for minor in there:
        (programs / f"python3.{minor}").touch(mode=0o755)
    for place, minor in bound.items():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / f"libvirtmod.cpython-3{minor}-x86_64-linux-gnu.so").touch()
    path = f"/absent:{programs}"
    # The tree's own root has no bindings elsewhere.
    found = better(version, imported, path, f"{tmp_path}/")
    assert found == (None if chosen is None else f"{programs}/python3.{chosen}")


def test_there_is_no_going_round_in_circles(
    tmp_path: Path, better: Callable[..., str | None]
) -> None:
    """Whatever is there, the one that is chosen chooses none."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / DEBIAN).mkdir(parents=True)
    for minor in (11, 12, 13, 14):
        (programs / f"python3.{minor}").touch(mode=0o755)
    for bound in (None, 11, 12, 13, 14):
        if bound is not None:
            (tmp_path / DEBIAN / f"libvirtmod.cpython-3{bound}-x86_64-linux-gnu.so").touch()
        for start in (6, 9, 11, 12, 13, 14):
            program = better((3, start), False, str(programs), f"{tmp_path}/")
            if program is not None:
                chosen = int(program.rpartition(".")[2])
                assert better((3, chosen), False, str(programs), f"{tmp_path}/") is None


# What it installs.


def test_it_installs_and_takes_away(packed: Path, tmp_path: Path, repository: Path) -> None:
    root = tmp_path / "root"
    done = run(packed, "install", "--verbose", "--destdir", str(root))
    assert (done.returncode, done.stderr) == (0, "")
    files = {str(each.relative_to(root)) for each in root.rglob("*") if each.is_file()}
    assert sorted(done.stdout.splitlines()) == sorted(f"installed /{name}" for name in files)
    below = "usr/local/"
    assert {
        f"{below}bin/virtirq",
        f"{below}lib/systemd/system/virtirq.service",
        f"{below}share/bash-completion/completions/virtirq",
        f"{below}share/doc/virtirq/README.md",
    } <= files
    assert all(name.startswith(below) for name in files)
    unit = (root / below / "lib/systemd/system/virtirq.service").read_text()
    assert "ExecStart=/usr/local/bin/virtirq daemon\n" in unit
    program = root / below / "bin/virtirq"
    assert program.read_bytes() == packed.read_bytes()
    for each in root.rglob("*"):
        mode = 0o755 if each.is_dir() or each == program else 0o644
        assert each.stat().st_mode & 0o7777 == mode, each

    assert run(program, "install", "--destdir", str(root)).stdout == "all is there already\n"
    (root / "etc/virtirq").mkdir(parents=True)
    (root / below / "bin/other").touch()
    done = run(program, "uninstall", "--destdir", str(root))
    assert done.returncode == 0
    assert done.stdout.endswith("left: /etc/virtirq\n")
    assert [each.name for each in root.rglob("*") if each.is_file()] == ["other"]
    assert [str(each.relative_to(root)) for each in root.rglob("*virtirq*")] == ["etc/virtirq"]
    done = run(packed, "uninstall", "--destdir", str(root))
    assert done.stdout == "nothing was there\nleft: /etc/virtirq\n"


def test_it_tells_in_a_few_lines(packed: Path, tmp_path: Path) -> None:
    for what, told in (("install", "installed"), ("uninstall", "removed")):
        done = run(packed, what, "--destdir", str(tmp_path))
        program, unit, others = done.stdout.splitlines()
        assert program == f"{told} /usr/local/bin/virtirq"
        assert unit == f"{told} /usr/local/lib/systemd/system/virtirq.service"
        assert re.fullmatch(rf"{told} [3-9]\d files below /usr/local/share/: .*", others)


def test_what_is_changed_is_put_right(packed: Path, tmp_path: Path) -> None:
    run(packed, "install", "--destdir", str(tmp_path))
    unit = tmp_path / "usr/local/lib/systemd/system/virtirq.service"
    unit.write_text("")
    done = run(packed, "install", "--destdir", str(tmp_path))
    assert done.stdout == "installed /usr/local/lib/systemd/system/virtirq.service\n"
    assert unit.read_text()


def test_not_beside_the_distributions_package(packed: Path, tmp_path: Path) -> None:
    there = tmp_path / "usr/lib/systemd/system/virtirq.service"
    there.parent.mkdir(parents=True)
    there.touch()
    done = run(packed, "install", "--destdir", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("virtirq: error: the distribution's package is installed: /usr")
    assert not (tmp_path / "usr/local").exists()


def test_what_cannot_be_written_is_said(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "usr").touch()
    done = run(packed, "install", "--destdir", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"virtirq: error: {tmp_path}/usr: File exists\n"
