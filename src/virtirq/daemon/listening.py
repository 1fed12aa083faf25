"""A socket of the daemon's in its state directory, for others to connect to."""

from __future__ import annotations

import socket
from pathlib import Path

from virtirq.errors import DeploymentError


def listen(path: Path, mode: int, backlog: int) -> socket.socket:
    """A stream socket at `path` that who may write by `mode` can connect to; it does not block.

    One that is there is of a daemon that was killed: whoever calls this has the daemon's lock.
    Raises DeploymentError.
    """
    listening = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    try:
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        path.chmod(mode)  # before anybody can connect
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        raise DeploymentError(f"{path}: {error.strerror}") from error
    return listening
