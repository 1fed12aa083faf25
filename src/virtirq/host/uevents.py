"""The kernel's uevents: devices bound to a driver or let go, CPUs that come and go.

Heard from the kernel itself (lib/kobject_uevent.c, netlink group 1) and not from udevd: nothing
that udevd adds is needed, and a container need not have one.
"""

from __future__ import annotations

import errno
import re
import socket
from contextlib import suppress
from typing import Final

from virtirq.errors import InputError
from virtirq.model import PciAddress
from virtirq.values import dataclass, pattern

_NETLINK_KOBJECT_UEVENT: Final = 15  # include/uapi/linux/netlink.h
_KERNEL: Final = 1
_LARGEST: Final = 1 << 14  # UEVENT_BUFFER_SIZE is 2 kB
_MOST_READ: Final = 256
_CPU: Final = pattern(r"/devices/system/cpu/cpu(\d{1,5})", re.ASCII)
_RECEIVE_BUFFER: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Uevent:
    """One event: `function` is the PCI function, or `cpu` the CPU, that it is about."""

    action: str
    function: PciAddress | None = None
    cpu: int | None = None


def parse(message: bytes) -> Uevent | None:
    """What a message tells of a PCI function's driver or of a CPU; None for all else."""
    head, *pairs = message.decode("utf-8", "replace").split("\0")
    action, separator, path = head.partition("@")
    if not separator:
        return None
    subsystem = next((pair[10:] for pair in pairs if pair.startswith("SUBSYSTEM=")), "")
    if subsystem == "cpu" and action in ("online", "offline"):
        match = _CPU.fullmatch(path)
        return Uevent(action, cpu=int(match[1])) if match else None
    # Since 4.14 (1455cf8dbfd0, "driver core: emit uevents when device is bound to a driver").
    if subsystem == "pci" and action in ("bind", "unbind", "add", "remove"):
        with suppress(InputError):
            return Uevent(action, function=PciAddress.parse(path.rpartition("/")[2]))
    return None


class Uevents:
    """A socket on which the kernel tells; `read` does not block."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            _NETLINK_KOBJECT_UEVENT,
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self._socket.bind((0, _KERNEL))
        except BaseException:
            self._socket.close()
            raise
        self.lost = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Uevent]:
        """What happened since the last call; sets `lost` when the socket's buffer was full."""
        found = []
        for _ in range(_MOST_READ):
            try:
                message, (sender, _) = self._socket.recvfrom(_LARGEST)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost = True
                continue
            if sender == 0 and (event := parse(message)) is not None:  # 0 is the kernel
                found.append(event)
        return found

    def close(self) -> None:
        self._socket.close()
