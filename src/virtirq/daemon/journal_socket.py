"""What journald is told, in its native protocol (systemd's "Native Journal Protocol" page).

Not by python-systemd, which has to be built against libsystemd's headers.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Final, Self, TypedDict

JOURNAL_SOCKET: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "virtirq"
_TIMEVAL: Final = struct.Struct("ll")  # struct timeval
_LONGEST: Final = 1 << 14
"""Bytes of a value; more is cut. All of a record then fits into one datagram (net.core.wmem_default
is 208 kB), and no memfd need be sealed and passed for it."""
_CUT: Final = b"\xe2\x80\xa6"  # an ellipsis


class Fields(TypedDict, total=False):
    """What a record may tell beside its message; see `FIELDS`."""

    guest: str | None
    device: object
    irq: int | None
    vector: int | None
    action: str | None
    status: str | None
    before: object
    after: object
    reason: str | None
    mover: str | None
    finding: str | None


FIELDS: Final[Mapping[str, str]] = {
    "guest": "VIRTIRQ_GUEST",  # its name
    "device": "VIRTIRQ_DEVICE",  # PCI address, 0000:82:00.0
    "irq": "VIRTIRQ_IRQ",
    "vector": "VIRTIRQ_VECTOR",
    "action": "VIRTIRQ_ACTION",  # what virtirq did: pin, keep, restore, …
    "status": "VIRTIRQ_STATUS",  # what came of it: applied, refused, …
    "before": "VIRTIRQ_BEFORE",  # CPU lists, 2-5,8
    "after": "VIRTIRQ_AFTER",
    "reason": "VIRTIRQ_REASON",
    "mover": "VIRTIRQ_MOVER",  # who had moved it before: irqbalance (pid 812)
    "finding": "VIRTIRQ_FINDING",  # a code of `virtirq check`
}
"""Names in `Log`'s calls to names in the journal."""


class JournalSocket:
    """Where journald listens."""

    def __init__(self, path: str = JOURNAL_SOCKET, patience: float = 0.0) -> None:
        """Waits so many seconds for a journal that has no room. Raises OSError."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(patience > 0)
        if patience:  # in the kernel: a socket that is not connected always polls as writable
            limit = _TIMEVAL.pack(int(patience), int(patience % 1 * 1_000_000))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def tell(self, datagram: bytes) -> bool:
        """Whether it could be told."""
        try:
            # To the address each time: journald's socket may be made anew.
            self._socket.sendto(datagram, self._path)
        except OSError:
            return False
        return True


def datagram(message: str, priority: int, fields: Mapping[str, str], logger: str = "") -> bytes:
    """An entry as the protocol has it. `fields` are by their `FIELDS`, `priority` syslog(3)'s."""
    values = {"MESSAGE": message, "PRIORITY": str(priority), "SYSLOG_IDENTIFIER": IDENTIFIER}
    if logger:
        values["LOGGER"] = logger
    values |= {FIELDS[name]: value for name, value in fields.items()}
    return b"".join(_assignment(field, value) for field, value in values.items())


def texts(fields: Fields) -> dict[str, str]:
    """Those that tell anything."""
    return {name: str(value) for name in FIELDS if (value := fields.get(name)) is not None}


def _assignment(field: str, value: str) -> bytes:
    """One field; its name is ours, and its value cannot end before it ends.

    Names may hold anything, also bytes that are no UTF-8 (surrogates here): shown as ``\\udcff``.
    """
    data = cut_bytes(value.encode(errors="backslashreplace"), _LONGEST)
    if b"\n" in data:
        return b"%s\n%s%s\n" % (field.encode(), len(data).to_bytes(8, "little"), data)
    return b"%s=%s\n" % (field.encode(), data)


def printable(text: str) -> str:
    """With a sign for whatever would steer a terminal; journalctl(1) shows such as "blob data"."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def cut_bytes(data: bytes, longest: int) -> bytes:
    """At most so many bytes, whole characters of UTF-8, and a mark where something is missing."""
    if len(data) <= longest:
        return data
    kept = data[: longest - len(_CUT)]
    return kept.decode(errors="ignore").encode() + _CUT
