"""The running daemon, as others see it: a socket that answers with one JSON document.

A socket and not a file: it needs no room in ``/run``, is never stale, and answers only while
somebody lives behind it. The lock beside it is what keeps a second daemon out; the kernel drops
that however a process ends (flock(2)).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from virtirq.control.counters import MALFORMED, Counters
from virtirq.control.state import StateDirectory
from virtirq.errors import BusyError, InputError
from virtirq.model import Aimed, Finding, PciAddress, Severity

SCHEMA: Final = 1
_LOCK: Final = "daemon.lock"
SOCKET: Final = "daemon.sock"
WAIT: Final = 2.0  # seconds
_LARGEST: Final = 4 << 20


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """A daemon that runs. `since` is seconds since the epoch; `events` and `guests` say how it
    learns of interrupts and of guests. `spared` is the pid of the irqbalance that was told to
    leave our interrupts alone. `aimed` is what it knows of the guests' own choices,
    `readers` by what it has read that, by guest key.
    """

    pid: int
    since: float
    version: str
    events: str
    guests: str
    spared: int | None = None
    findings: tuple[Finding, ...] = ()
    counters: Counters | None = None
    aimed: Mapping[PciAddress, Mapping[int, Aimed]] = field(default_factory=dict)
    readers: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "pid": self.pid,
            "since": self.since,
            "version": self.version,
            "events": self.events,
            "guests": self.guests,
            "spared": self.spared,
            "findings": [each.as_json() for each in self.findings],
            "tally": self.counters and self.counters.as_json(),
            "aimed": {
                str(address): {
                    str(vector): [each.vcpu, each.why] for vector, each in vectors.items()
                }
                for address, vectors in self.aimed.items()
            },
            "readers": dict(self.readers),
        }

    @classmethod
    def from_json(cls, data: Any) -> DaemonStatus:
        """The inverse of `as_json`. Raises what is in `MALFORMED` for anything else."""
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        spared = data["spared"]
        return cls(
            pid=int(data["pid"]),
            since=float(data["since"]),
            version=str(data["version"]),
            events=str(data["events"]),
            guests=str(data["guests"]),
            spared=None if spared is None else int(spared),
            findings=tuple(
                Finding(
                    str(each["code"]),
                    Severity(each["severity"]),
                    str(each["subject"]),
                    str(each["message"]),
                    str(each["hint"]),
                )
                for each in data["findings"]
            ),
            counters=None if data["tally"] is None else Counters.from_json(data["tally"]),
            aimed={
                PciAddress.parse(address): {
                    int(vector): Aimed(None if vcpu is None else int(vcpu), str(why))
                    for vector, (vcpu, why) in vectors.items()
                }
                for address, vectors in data["aimed"].items()
            },
            readers={str(key): str(reader) for key, reader in data["readers"].items()},
        )


def ask(state: Path) -> DaemonStatus | None:
    """The daemon that runs with this state directory; None when there is none.

    Raises BusyError for one that does not answer.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asked:
            asked.settimeout(WAIT)
            asked.connect(str(state / SOCKET))
            data = _all_of(asked)
        return DaemonStatus.from_json(json.loads(data))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None
    except (OSError, RecursionError, InputError, *MALFORMED) as error:
        raise BusyError(
            f"{state / SOCKET}: the daemon does not answer: {error}",
            hint="see 'systemctl status virtirq' and its log",
        ) from error


def _all_of(asked: socket.socket) -> bytes:
    data, deadline = b"", time.monotonic() + WAIT
    while piece := asked.recv(1 << 16):
        asked.settimeout(max(0.001, deadline - time.monotonic()))
        data += piece
        if len(data) > _LARGEST:
            raise ValueError("too much")
    return data


class Lock:
    """What makes this process the one daemon, until it ends or `close`."""

    def __init__(self, directory: Path) -> None:
        """Raises BusyError when another has it, and DeploymentError."""
        state = StateDirectory(directory)
        try:
            self._file = state.open(_LOCK, os.O_RDWR)
        finally:
            state.close()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise BusyError(
                f"{directory}: another virtirq daemon runs", hint="see 'virtirq status'"
            ) from None

    def close(self) -> None:
        os.close(self._file)
