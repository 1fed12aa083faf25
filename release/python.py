"""The wheel and the source, by hatchling; neither needs a network, and both come out alike."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from virtirq import __version__

from . import EPOCH, ROOT


def wheel(directory: Path, root: Path = ROOT) -> Path:
    """Made in the directory, which may be a new one."""
    _build("wheel", directory, root)
    return directory / f"virtirq-{__version__}-py3-none-any.whl"


def sdist(directory: Path, root: Path = ROOT) -> Path:
    """The same for the source."""
    _build("sdist", directory, root)
    return directory / f"virtirq-{__version__}.tar.gz"


def _build(what: str, directory: Path, root: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", what, "-d", str(directory.absolute())],
        cwd=root,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"hatchling makes no {what}: {done.stderr.strip()}")
