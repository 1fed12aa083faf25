"""virtirq.pyz: the program with all that it needs but Python and libvirt's bindings, in one file.

What it needs is taken from the environment that this runs in, so the same environment gives the
same bytes. Only what is pure Python can be in it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from . import ROOT, python

NAME: Final = "virtirq.pyz"
EXTRAS: Final = frozenset({"qmp"})
STARTER: Final = b"#!/usr/bin/env python3\n"
FILES: Final = Path(__file__).with_name("files")
_LEFT_OUT: Final = (".pyc", ".pyi", "/RECORD", "/INSTALLER", "/REQUESTED", "/direct_url.json")
_BINARY: Final = (".so", ".pyd")


def pyz(directory: Path) -> Path:
    """Made in the directory. Raises ValueError for a dependency that is not pure Python."""
    directory.mkdir(parents=True, exist_ok=True)
    contents = dict(_contents())
    made = directory / NAME
    with made.open("wb") as file:
        file.write(STARTER)
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(contents):
                entry = zipfile.ZipInfo(name)  # of 1980
                entry.create_system, entry.external_attr = 3, 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, contents[name], compresslevel=9)
    made.chmod(0o755)
    return made


def needed() -> list[Distribution]:
    """All that virtirq needs at run time, and what these need."""
    found: dict[str, Distribution] = {}
    waiting = [Requirement(f"virtirq[{','.join(EXTRAS)}]")]
    while waiting:
        asked = waiting.pop()
        extras = asked.extras or {""}
        there = distribution(asked.name)
        if asked.name != "virtirq":
            if asked.name in found:
                continue
            found[asked.name] = there
        for line in there.requires or ():
            wanted = Requirement(line)
            marker = wanted.marker
            if marker is None or any(marker.evaluate({"extra": each}) for each in extras):
                waiting.append(wanted)
    return [found[name] for name in sorted(found)]


def _contents() -> Iterator[tuple[str, bytes]]:
    """Name to bytes."""
    for path in FILES.glob("*.py"):
        yield path.name, path.read_bytes()
    for each in needed():
        yield from _files(each)
    with tempfile.TemporaryDirectory() as work:
        with zipfile.ZipFile(python.wheel(Path(work))) as own:
            yield from ((name, own.read(name)) for name in own.namelist())
        share = Path(work, "share")
        _install(share)
        for path in filter(Path.is_file, share.rglob("*")):
            yield str(path.relative_to(work)), path.read_bytes()


def _files(installed: Distribution) -> Iterator[tuple[str, bytes]]:
    for path in installed.files or ():
        name = str(path)
        if name.startswith("..") or name.endswith(_LEFT_OUT):
            continue  # a script beside it, or of this environment alone
        if name.endswith(_BINARY):
            raise ValueError(f"not pure Python: {installed.name}: {name}")
        yield name, path.read_binary()


def _install(share: Path) -> None:
    """What `make install` puts below /usr/local."""
    program = Path(sys.executable).with_name("virtirq")
    places = [f"DESTDIR={share}", "PREFIX=/usr/local", f"VIRTIRQ={program}"]
    subprocess.run(["make", "-s", "-C", str(ROOT), "install", *places], check=True)
