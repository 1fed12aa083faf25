"""Prometheus, its checker and Alertmanager: those on PATH, else the distribution's packages."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from lab.full import process
from lab.kernel import LabUnavailable, cache_dir, filled, unpack_debs, unpack_rpms

_DEBIAN: Final = "prometheus"
_FEDORA: Final = "golang-github-prometheus"
_PROGRAMS: Final = ("promtool", "prometheus")
_ALERTMANAGER: Final = "prometheus-alertmanager"
# Debian's looks for its templates where its package puts them. $0: the unpacked package.
_IN_PLACE: Final = (
    'mount -t overlay share -o "lowerdir=$0/usr/share:/usr/share" /usr/share; exec "$@"'
)


def promtool() -> Path:
    """The checker. Raises LabUnavailable."""
    return _program("promtool")


def prometheus() -> Path:
    """The server. Raises LabUnavailable."""
    return _program("prometheus")


def alertmanager() -> list[str]:
    """The start of a command line of what Prometheus tells of alerts. Raises LabUnavailable."""
    found = shutil.which(_ALERTMANAGER) or shutil.which("alertmanager")
    if found is not None:
        return [found]
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise LabUnavailable("no alertmanager, and no apt to fetch it with: put it on PATH")
    final = cache_dir() / _ALERTMANAGER
    if not final.is_dir():
        with filled(partial(unpack_debs, [_ALERTMANAGER])) as root, suppress(OSError):
            root.rename(final)  # fails when somebody else was quicker
    program = final / "usr/bin" / _ALERTMANAGER
    return process.as_root(["sh", "-ec", _IN_PLACE, str(final), str(program)])


def _program(name: str) -> Path:
    """Fetched the first time, and never installed."""
    found = shutil.which(name)
    if found is not None:
        return Path(found)
    if shutil.which("apt-get") and shutil.which("dpkg"):
        return _cached(name, partial(unpack_debs, [_DEBIAN]))
    if shutil.which("dnf") and shutil.which("rpm2cpio") and shutil.which("cpio"):
        return _cached(name, partial(unpack_rpms, [_FEDORA]))
    raise LabUnavailable(f"no {name}, and no apt and no dnf to fetch it with: put it on PATH")


def _cached(name: str, fill: Callable[[Path, Path], None]) -> Path:
    """The program kept in the cache; `fill(download, root)` unpacks its package when it is not."""
    final = cache_dir() / name
    if not final.is_file():
        with filled(fill) as root:
            for each in _PROGRAMS:  # of the whole package, these are what is kept
                unpacked = root / "usr/bin" / each
                if not unpacked.is_file():
                    raise LabUnavailable(
                        f"the distribution's package has no {each}: put it on PATH"
                    )
                unpacked.rename(cache_dir() / each)
    return final
