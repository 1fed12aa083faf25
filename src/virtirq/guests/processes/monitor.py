"""A QEMU guest's own monitor (QMP): for what libvirt is not there to ask.

A monitor serves one client at a time (QEMU, docs/interop/qmp-spec.rst), so who asks lets go of it
soon. Where somebody else is using it, that is said. Every error is an UnavailableError.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from virtirq.errors import InputError, UnavailableError
from virtirq.guests.processes.owners import Owner, owner_of
from virtirq.guests.processes.qemu import options, pairs
from virtirq.guests.processes.values import MOST_BYTES, split
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import Guest

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

_WAIT: Final = 2.0
"""Seconds for one answer of a monitor."""
_PATIENCE: Final = 10.0
"""Seconds for all the answers that a reading takes: how many those are, a monitor says."""
_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_FDSET: Final = 0x76697274
"""The number of our set of descriptors within QEMU, which nobody else's is."""
MALFORMED: Final = (
    *(ValueError, KeyError, TypeError, AttributeError, InputError),
    *(OverflowError, RecursionError),
)
"""What comes of answers that are none: a QEMU that was broken into says what it likes."""


def monitor_of(words: Sequence[str]) -> str | None:
    """The path of the QMP socket that a QEMU with this command line listens at."""
    sockets: dict[str, str] = {}
    controls: list[str] = []
    for option, value in options(words, ("qmp", "chardev", "mon")):
        told = pairs(value, {"qmp": "dev", "chardev": "backend", "mon": "chardev"}[option])
        if option == "qmp" and told.get("dev", "").startswith("unix:"):
            return told["dev"].removeprefix("unix:")
        if option == "chardev" and told.get("backend") == "socket" and "path" in told:
            sockets[told.get("id", "")] = told["path"]
        if option == "mon" and told.get("mode") == "control":
            controls.append(told.get("chardev", ""))
    return next((sockets[each] for each in controls if each in sockets), None)


@contextmanager
def session(fs: HostFs, guest: Guest) -> Iterator[Monitor]:
    """With the monitor that the guest has to itself. Raises UnavailableError."""
    if guest.pid is None:
        raise UnavailableError("its process is not known")
    try:
        words = split(fs.head(paths.PROCESS_ARGUMENTS.at(guest.pid), MOST_BYTES))
    except OSError as error:
        raise UnavailableError(f"its process: {error.strerror}") from error
    path = monitor_of(words)
    if path is None:
        raise UnavailableError("it has no monitor with a socket of its own")
    owner = owner_of(fs, guest.pid)
    with _own_socket(path, owner) as there, connected(there, guest.pid, path) as monitor:
        try:
            yield monitor
        except MALFORMED as error:
            raise UnavailableError("its monitor answers what it was not asked") from error


class Monitor:
    """A QMP session. Raises UnavailableError for whatever goes wrong."""

    def __init__(self, client: QMPClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self._loop = client, loop
        self._memory = os.memfd_create("virtirq", os.MFD_CLOEXEC)
        self._number = -1
        self._until = time.monotonic() + _PATIENCE

    def close(self) -> None:
        if self._number >= 0:
            with suppress(UnavailableError):  # however long it has taken already
                _wait(self._loop, self._client.execute("remove-fd", {"fdset-id": _FDSET}))
        os.close(self._memory)

    def ask(self, command: str, **arguments: Any) -> Any:
        if time.monotonic() > self._until:
            raise UnavailableError(f"its monitor takes more than {_PATIENCE:g} seconds")
        return _wait(self._loop, self._client.execute(command, arguments))

    def peek(self, start: int, size: int) -> bytes:
        if self._number < 0:
            self._pass(self._memory)
            self._number = int(self.ask("add-fd", **{"fdset-id": _FDSET})["fd"])
        name = f"/proc/self/fd/{self._number}"
        self.ask("pmemsave", val=start, size=size, filename=name)
        return os.pread(self._memory, size, 0)

    def _pass(self, descriptor: int) -> None:
        from qemu.qmp import QMPError

        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as error:  # it has hung up meanwhile
            raise UnavailableError(f"its monitor: {error}") from error


def _wait(loop: asyncio.AbstractEventLoop, what: Any) -> Any:
    """What a monitor answers. Raises UnavailableError."""
    from qemu.qmp import QMPError

    try:
        return loop.run_until_complete(asyncio.wait_for(what, _WAIT))
    except TimeoutError as error:
        raise UnavailableError("its monitor does not answer, or serves someone else") from error
    except (QMPError, OSError, EOFError) as error:
        raise UnavailableError(f"its monitor: {error}") from error


@contextmanager
def _own_socket(path: str, owner: Owner | None) -> Iterator[str]:
    """Where a socket can be connected to, if it is of the guest's own user, or raises.

    A command line can name any socket of the host, and some servers do not survive whoever connects
    and says nothing: so it is looked at first, and what was looked at is what is connected to.
    bind(2) gives the socket's file to the user that binds. Raises UnavailableError.
    """
    if owner is None:
        raise UnavailableError("its process has ended")
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UnavailableError(f"its monitor {path}: {why}") from error
    try:
        file = os.fstat(descriptor)
        if not stat.S_ISSOCK(file.st_mode):
            raise UnavailableError(f"its monitor {path} is no socket")
        if file.st_uid != owner.uid:
            raise UnavailableError(
                f"its monitor {path} is of user {file.st_uid}, and the guest of user {owner.uid}"
            )
        if owner.uid == 0 and not owner.root:
            raise UnavailableError(
                f"its monitor {path} is root's, and it may be a container's root"
            )
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def connected(path: str, pid: int, name: str = "") -> Iterator[Monitor]:
    """A session with the monitor of this process, and no other's. Raises UnavailableError.

    `name` is what a person knows the path by.
    """
    name = name or path
    try:
        if sys.modules.get("ssl", ...) is None:
            del sys.modules["ssl"]  # qemu.qmp cannot do without
        from qemu.qmp import QMPClient
    except ImportError as error:
        raise UnavailableError(
            "the Python module qemu.qmp is not installed", hint="pip install qemu.qmp"
        ) from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asked:
        try:
            asked.settimeout(_WAIT)  # QEMU lets one wait while it serves another
            asked.connect(path)
            peer = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        except (BlockingIOError, TimeoutError) as error:
            raise UnavailableError(f"its monitor {name} serves someone else") from error
        except OSError as error:
            raise UnavailableError(f"its monitor {name}: {error.strerror}") from error
        # Of all that the same user listens at, only the guest's own is spoken to.
        if _PEER.unpack(peer)[0] != pid:
            raise UnavailableError(f"its monitor {name} is another process's")
        asked.setblocking(False)
        loop = asyncio.new_event_loop()
        client = QMPClient("virtirq")
        try:
            _wait(loop, client.connect(asked))
            monitor = Monitor(client, loop)
            try:
                yield monitor
            finally:
                monitor.close()
        finally:
            with suppress(UnavailableError):
                _wait(loop, client.disconnect())
            loop.close()
