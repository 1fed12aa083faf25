"""The running daemon, as others see it: a socket that answers with one JSON document.

A socket and not a file: it needs no room in ``/run``, is never stale, and answers only while
somebody lives behind it. The lock beside it is what keeps a second daemon out; the kernel drops
that however a process ends (flock(2)).
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final

from virtirq.control.counters import MALFORMED, Counters
from virtirq.control.log_entry import LogEntry
from virtirq.control.state import StateDirectory
from virtirq.errors import BusyError, InputError
from virtirq.model import Aimed, Finding, PciAddress, Severity
from virtirq.values import dataclass, field

SCHEMA: Final = 1
_LOCK: Final = "daemon.lock"
SOCKET: Final = "daemon.sock"
OWN_SOCKET: Final = "own.sock"
"""The same for the daemon's own user alone, whom nobody else keeps waiting there."""
WAIT: Final = 2.0  # seconds
_TIMEVAL: Final = struct.Struct("ll")  # struct timeval
_PAUSE: Final = 0.05
"""Seconds until one who was turned away asks again."""
_LARGEST: Final = 4 << 20
_PIECE: Final = 500
"""Vectors that are written in one go: half a millisecond."""


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """A daemon that runs. `since` is seconds since the epoch; `events` and `guests` say how it
    learns of interrupts and of guests. `spared` is the pid of the irqbalance that was told to
    leave our interrupts alone. `aimed` is what it knows of the guests' own choices: by device a
    mapping that is never changed in place. `readers` is by what it has read that, by guest key.
    `recent` is what it has logged last.
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
    recent: tuple[LogEntry, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            **self._rest_as_json(),
            "recent": [each.as_json() for each in self.recent],
            "aimed": {str(each): _aimed_as_json(aimed) for each, aimed in self.aimed.items()},
        }

    def _rest_as_json(self) -> dict[str, Any]:
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
            recent=tuple(map(LogEntry.from_json, data.get("recent", ()))),
        )


def _aimed_as_json(aimed: Mapping[int, Aimed]) -> dict[str, Any]:
    return {str(vector): [each.vcpu, each.why] for vector, each in aimed.items()}


class Writer:
    """Writes a daemon's status as its JSON document, in which most is as it was the last time.

    What a guest has chosen for a device is by far the largest part, and is kept as text for as long
    as it is the same mapping: those are made anew, and never changed.
    """

    def __init__(self) -> None:
        self._aimed: dict[PciAddress, tuple[Mapping[int, Aimed], str]] = {}

    def write(self, status: DaemonStatus) -> Generator[None, None, bytes]:
        """The document, as UTF-8. Yields now and then, when there was much to do.

        What it tells is what was so at the first step.
        """
        import json

        rest = json.dumps(status._rest_as_json())
        before, self._aimed, done = self._aimed, {}, 0
        for address, aimed in dict(status.aimed).items():
            known = before.get(address)
            if known is None or known[0] is not aimed:
                known = (aimed, f'"{address}": {json.dumps(_aimed_as_json(aimed))}')
                done += len(aimed)
            self._aimed[address] = known
            if done >= _PIECE:
                done = 0
                yield
        told = ", ".join(text for _, text in self._aimed.values())
        recent = ", ".join(each.text for each in status.recent)
        return f'{rest[:-1]}, "recent": [{recent}], "aimed": {{{told}}}}}'.encode()


def ask(state: Path) -> DaemonStatus | None:
    """The daemon that runs with this state directory; None when there is none.

    Raises BusyError for one that does not answer.
    """
    deadline = time.monotonic() + WAIT
    try:
        os.lstat(state / SOCKET)  # before what it takes to ask is imported
        import json

        while not (data := _answer(state / _socket_for_us(state), deadline)):
            if time.monotonic() + _PAUSE > deadline:
                raise TimeoutError("too many ask it just now")
            time.sleep(_PAUSE)
        return DaemonStatus.from_json(json.loads(data))
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        return None
    except (OSError, RecursionError, InputError, *MALFORMED) as error:
        raise BusyError(
            f"{state / SOCKET}: the daemon does not answer: {error}",
            hint="see 'systemctl status virtirq' and its log",
        ) from error


def _socket_for_us(state: Path) -> str:
    try:
        return OWN_SOCKET if os.lstat(state / OWN_SOCKET).st_uid == os.geteuid() else SOCKET
    except OSError:  # the daemon is of a version that has none, or is just starting
        return SOCKET


def _answer(path: Path, deadline: float) -> bytes:
    """Nothing where too many ask: we were turned away, or did not even come to wait."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asked:
        # In the kernel, where those who wait to connect have an order; not by polling, which who
        # connects in a loop is always ahead of.
        wait = max(0.001, deadline - time.monotonic())
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(*_split(wait)))
        try:
            asked.connect(str(path))
        except BlockingIOError:  # EAGAIN: that has taken too long (unix(7))
            return b""
        asked.settimeout(max(0.001, deadline - time.monotonic()))
        data = b""
        while piece := asked.recv(1 << 16):
            asked.settimeout(max(0.001, deadline - time.monotonic()))
            data += piece
            if len(data) > _LARGEST:
                raise ValueError("too much")
        return data


def _split(seconds: float) -> tuple[int, int]:
    """Seconds and microseconds."""
    return int(seconds), int(seconds % 1 * 1_000_000)


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
