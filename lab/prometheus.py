"""Prometheus itself, and its checker: those on PATH, else the distribution's, from its package."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lab.kernel import LabUnavailable, cache_dir, call

_DEBIAN: Final = "prometheus"
_FEDORA: Final = "golang-github-prometheus"
_PROGRAMS: Final = ("promtool", "prometheus")


def promtool() -> Path:
    """The checker. Raises LabUnavailable."""
    return _program("promtool")


def prometheus() -> Path:
    """The server. Raises LabUnavailable."""
    return _program("prometheus")


def _program(name: str) -> Path:
    """Fetched the first time, and never installed."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    if shutil.which("apt-get") and shutil.which("dpkg"):
        return _cached(name, _apt)
    if shutil.which("dnf") and shutil.which("rpm2cpio") and shutil.which("cpio"):
        return _cached(name, _dnf)
    raise LabUnavailable(f"no {name}, and no apt and no dnf to fetch it with: put it on PATH")


def _cached(name: str, fill: Callable[[Path, Path], None]) -> Path:
    """The program kept in the cache; `fill(download, root)` unpacks its package when it is not."""
    final = cache_dir() / name
    if not final.is_file():
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=final.parent) as work:
            download, root = Path(work, "download"), Path(work, "root")
            download.mkdir()
            root.mkdir()
            fill(download, root)
            for each in _PROGRAMS:  # of the whole package, these are what is kept
                unpacked = root / "usr/bin" / each
                if not unpacked.is_file():
                    raise LabUnavailable(
                        f"the distribution's package has no {each}: put it on PATH"
                    )
                unpacked.rename(cache_dir() / each)
    return final


def _apt(download: Path, root: Path) -> None:
    # `apt-get download` takes no target: it fills the current directory.
    call(["apt-get", "-q", "download", _DEBIAN], cwd=download)
    for package in download.glob("*.deb"):
        call(["dpkg", "-x", str(package), str(root)])


def _dnf(download: Path, root: Path) -> None:
    """Fedora's form of the same. Written from the manuals; not tried on a Fedora machine."""
    call(["dnf", "-q", "download", f"--destdir={download}", _FEDORA], cwd=download)
    for package in download.glob("*.rpm"):
        archive = download / "cpio"
        with archive.open("wb") as out:
            subprocess.run(["rpm2cpio", str(package)], stdout=out, check=True)
        with archive.open("rb") as source:
            subprocess.run(["cpio", "-idm", "--quiet"], cwd=root, stdin=source, check=True)
