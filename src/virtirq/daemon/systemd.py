"""What systemd is told of the daemon: sd_notify(3) and sd_watchdog_enabled(3).

Spoken here and not by python-systemd, which has to be built against libsystemd's headers: the
protocol is one datagram of ``NAME=value`` lines, promised to stay (systemd's "Portability and
Stability" page).
"""

from __future__ import annotations

import os
import re
import socket
import struct
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Final

_MICROSECONDS: Final = 1_000_000
_FOREVER: Final = (1 << 64) - 1  # USEC_INFINITY: no watchdog either
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_LONGEST_STATUS: Final = 300
"""Characters. A datagram past 4096 bytes is dropped whole (systemd: src/basic/constants.h,
NOTIFY_BUFFER_MAX)."""
_WAIT: Final = struct.pack("ll", 5, 0)
"""A struct timeval: what matters is waited for so long when systemd is too busy to read."""


class ServiceManager:
    """systemd as the one who started this process; where it did not, every call does nothing.

    No call raises: that systemd cannot be told is no reason to stop.

    `watchdog` is the interval in seconds after which systemd takes a silent service for hung
    (``WatchdogSec=``), None for no watchdog. `ping_every` is half of that, as
    sd_watchdog_enabled(3) advises.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Takes what systemd has set out of `environ` (``os.environ``), so no child speaks for us.

        The socket is opened here and kept: each call is one system call.
        """
        variables = os.environ if environ is None else environ
        self._address = _address(variables.pop("NOTIFY_SOCKET", ""))
        self.watchdog = _watchdog(
            variables.pop("WATCHDOG_USEC", ""), variables.pop("WATCHDOG_PID", "")
        )
        self.ping_every = None if self.watchdog is None else self.watchdog / 2
        self._socket: socket.socket | None = None
        if self._address is not None:
            with suppress(OSError):
                self._socket = socket.socket(
                    socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
                )
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _WAIT)

    def ready(self, status: str | None = None) -> None:
        """At work: started, or done with a reload. `status` is for people, as in `status`."""
        self._send("READY=1", *_status(status))

    def reloading(self) -> None:
        """The configuration is being read again; `ready` must follow.

        Only of who is ready: the READY=1 that ends it would end the start as well.
        """
        # sd_notify(3): CLOCK_MONOTONIC, so that systemd can tell it from an earlier reload.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str | None = None) -> None:
        """On the way out."""
        self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> None:
        """What it does now, for people: one line; what is not printable is replaced."""
        self._send(*_status(text), wait=False)

    def ping(self) -> None:
        """Still alive: WATCHDOG=1, to be sent every `ping_every` seconds."""
        self._send("WATCHDOG=1", wait=False)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str, wait: bool = True) -> None:
        if self._socket is None or self._address is None:
            return
        # To the address each time, not connected once: whoever listens may have been replaced.
        with suppress(OSError):
            flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
            self._socket.sendto("\n".join(lines).encode(), flags, self._address)


def _address(name: str) -> str | bytes | None:
    """The socket's address: a path, or ``@name`` in the abstract namespace (unix(7)).

    The third form, ``vsock:``, is a virtual machine's own systemd telling its host's.
    """
    if len(name) < 2 or "\0" in name:
        return None
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    return name if name.startswith("/") else None


def _watchdog(interval: str, pid: str) -> float | None:
    """Seconds; None where there is no watchdog, or where it is for another process."""
    if pid and pid != str(os.getpid()):
        return None
    if not _NUMBER.fullmatch(interval) or not 0 < int(interval) < _FOREVER:
        return None
    return int(interval) / _MICROSECONDS


def _status(text: str | None) -> tuple[str, ...]:
    """The line that carries it; it may name guests, who must not start lines of their own."""
    if text is None:
        return ()
    clean = "".join(
        each if each.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for each in text[:_LONGEST_STATUS]
    )
    return (f"STATUS={clean}",)
