"""Where the lab keeps what is slow to make: images, initramfs files, snapshots.

Every artefact is a directory named after a hash of what it was made from, so an
artefact is never out of date: a changed recipe simply asks for another name.
When something new is made, what no one asked for in a week is deleted, and all but the latest few.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import process

logger = logging.getLogger(__name__)

_KEPT = 3  # of each kind, beside the new one
_KEPT_UNUSED = 7 * 24 * 3600
_RUNS = "runs"


def root() -> Path:
    """The cache directory; created on first use, readable by its owner only."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "virtirq-lab" / "full"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def digest(*parts: str | bytes) -> str:
    """A short name for these inputs; the lengths keep ("ab", "c") and ("a", "bc") apart."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()[:12]


@contextmanager
def _lock(name: str) -> Iterator[None]:
    """One process at a time; the others wait, and then find the work done."""
    with (root() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def artefact(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The artefact of this kind and key, built into its directory if it is not there.

    A half-built one never has the name. The lock makes it certain that a work directory
    already there was left by a build that died, and not by one still going on.
    """
    target = root() / f"{kind}-{key}"
    with _lock(kind):
        if not target.exists():
            _prune(kind)
            logger.info("making %s", target.name)
            work = target.with_name(f".{target.name}.partial")
            remove(work)
            work.mkdir()
            build(work)
            work.rename(target)
        os.utime(target)  # used now
    return target


def _prune(kind: str) -> None:
    """Make room: snapshots are large, and each change to the lab makes new ones."""
    found = sorted(root().glob(f"{kind}-*/"), key=lambda path: path.stat().st_mtime, reverse=True)
    old = time.time() - _KEPT_UNUSED
    for number, path in enumerate(found):
        if number >= _KEPT or path.stat().st_mtime < old:
            remove(path)


def clean() -> None:
    """Delete every artefact. What runs keeps its files until it ends."""
    for path in root().iterdir():
        if path.is_dir() and path.name != _RUNS:
            remove(path)


def remove(path: Path) -> None:
    """Delete a directory, also one that a failed build filled as root of its namespace."""
    if path.exists():
        process.call(process.as_root(["rm", "-rf", "--one-file-system", str(path)]))


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory for one running machine, on the cache's disk since /tmp may be memory.

    A lock inside it lives as long as its owner, which is how the next run tells what a
    killed one left behind from what is still in use.
    """
    runs = root() / _RUNS
    runs.mkdir(exist_ok=True)
    with _lock(_RUNS):
        for old in runs.iterdir():
            if not _in_use(old):
                remove(old)
        path = Path(tempfile.mkdtemp(dir=runs))
        handle = (path / "owner").open("w")
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield path
    finally:
        handle.close()
        remove(path)


def running() -> Iterator[Path]:
    """The directories of machines that run now, the newest first."""
    runs = root() / _RUNS
    found = sorted(runs.glob("*"), key=lambda run: run.stat().st_mtime, reverse=True)
    yield from (run for run in found if _in_use(run))


def _in_use(run: Path) -> bool:
    try:
        with (run / "owner").open("r+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
