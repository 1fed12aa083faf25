"""Running the tools that the build needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from .errors import BuildError

# Debian's package of each tool.
_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "apt-get": "apt",
    "newuidmap": "uidmap",
}


def need(*tools: str) -> None:
    """Say all that is missing at once, before minutes are spent."""
    if os.geteuid() != 0:
        tools = (*tools, "newuidmap")  # for `unshare --map-auto`
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        packages = sorted({_PACKAGES.get(tool, tool) for tool in missing})
        raise BuildError(
            f"missing on this machine: {', '.join(missing)}; install: {' '.join(packages)}"
        )


def as_root(command: Sequence[str]) -> list[str]:
    """The command as root, or as root of a user namespace when a plain user builds.

    Its own mount namespace, too: whatever a failed build leaves mounted inside the tree
    goes with the process, and can never be deleted through.
    """
    if os.geteuid() == 0:
        return ["unshare", "--mount", "--", *command]
    return ["unshare", "--map-root-user", "--map-auto", "--mount", "--", *command]


def call(command: Sequence[str], *, env: dict[str, str] | None = None) -> str:
    """Run a tool to its end and return what it printed."""
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-15:])
        raise BuildError(f"{command[0]} failed with status {done.returncode}:\n{tail}")
    return done.stdout
