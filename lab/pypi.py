"""Programs from PyPI that the tests ask and the project does not depend on, kept in the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from lab.full import BuildError, cache, process
from lab.kernel import LabUnavailable


@dataclass(frozen=True, slots=True)
class Programs:
    """Installed beside nothing else."""

    directory: Path

    def environment(self) -> dict[str, str]:
        """In which these programs run, and find each other."""
        path = f"{self.directory}/bin:{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "PYTHONPATH": str(self.directory), "PATH": path}

    def words(self, name: str) -> list[str]:
        """The start of a command line."""
        return [sys.executable, f"{self.directory}/bin/{name}"]


def programs(kind: str, *requirements: str) -> Programs:
    """Those of the requirements, fetched the first time. Raises LabUnavailable.

    Not in a virtual environment: that cannot be moved to where it is to be.
    """

    def build(work: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        process.call([*pip, f"--target={work}", *requirements])

    try:
        key = cache.digest(sys.executable, sys.version, *requirements)
        return Programs(cache.artefact(kind, key, build))
    except (BuildError, subprocess.SubprocessError, OSError) as error:
        raise LabUnavailable(f"no {kind} from PyPI: {error}") from error
