"""The daemon's sockets that others connect to: in its state directory, and of an address."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

from virtirq.errors import DeploymentError, UnavailableError


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


def listen_on(host: str, port: int, backlog: int) -> socket.socket:
    """A TCP socket of an address as `parse_listen` gives it; port 0 takes a free one.

    Raises DeploymentError and UnavailableError.
    """
    try:
        return _listening(host, port, backlog)
    except OSError as error:
        where = f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
        problem = DeploymentError if error.errno == errno.EACCES else UnavailableError
        raise problem(
            f"[metrics] listen: {where}: {error.strerror or error}",
            hint="'ss -ltnp' shows who listens where; [metrics] listen names another address",
        ) from error


def _listening(host: str, port: int, backlog: int) -> socket.socket:
    """Raises OSError."""
    address: tuple[Any, ...] = ("::", port)
    family, both = socket.AF_INET6, not host and socket.has_dualstack_ipv6()
    if not both:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = found[0]
    # Not so that two may share it: but what is left of the one before is no hindrance (socket(7)).
    listening = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        listening.bind(address)
        listening.listen(backlog)
    except BaseException:
        listening.close()
        raise
    return listening
