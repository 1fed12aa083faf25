"""Prometheus' own checker: the one on PATH, else the distribution's, unpacked into the cache."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from lab.kernel import LabUnavailable, cache_dir, call

_DEBIAN = "prometheus"
_FEDORA = "golang-github-prometheus"


def promtool() -> Path:
    """The program, fetched the first time and never installed. Raises LabUnavailable."""
    found = shutil.which("promtool")
    if found is not None:
        return Path(found)
    if shutil.which("apt-get") and shutil.which("dpkg"):
        return _cached(_apt)
    if shutil.which("dnf") and shutil.which("rpm2cpio") and shutil.which("cpio"):
        return _cached(_dnf)
    raise LabUnavailable("no promtool, and no apt and no dnf to fetch it with: put it on PATH")


def _cached(fill: Callable[[Path, Path], None]) -> Path:
    """The program kept in the cache; `fill(download, root)` unpacks its package when it is not."""
    final = cache_dir() / "promtool"
    if not final.is_file():
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=final.parent) as work:
            download, root = Path(work, "download"), Path(work, "root")
            download.mkdir()
            root.mkdir()
            fill(download, root)
            unpacked = root / "usr/bin/promtool"
            if not unpacked.is_file():
                raise LabUnavailable("the distribution's package has no promtool: put it on PATH")
            unpacked.rename(final)  # of the whole package, this is what is kept
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
