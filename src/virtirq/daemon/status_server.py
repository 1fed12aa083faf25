"""The daemon's side of its sockets: whoever asks gets one JSON document.

Anybody on the host may ask, so what that can cost is bounded, in documents and in connections: the
document is made a few times a second at most, in pieces, and a few are let in in each turn. Who
else asks waits in the kernel's queue; who has several connections that do not read is turned away;
who does not read is hung up on. The kernel's queue is anybody's to fill, and so root has a socket
with a queue of its own.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from virtirq.control.daemon_status import OWN_SOCKET, SOCKET, WAIT, DaemonStatus, Writer
from virtirq.daemon.listening import listen
from virtirq.daemon.timers import Timers
from virtirq.policy.budget import NEVER, Budget

DOCUMENTS: Final = Budget(0.05, least=0.25, longest=1.0)
"""Of writing documents: one is told to whoever asks until another may be written."""
TURNS: Final = Budget(0.1, least=0.05, longest=0.25)
"""Of letting in who asks: one turn, and later the next."""
_TAKES: Final = 0.01
"""Seconds of a turn after which nobody else is let in, however slow this host: interrupts wait."""
_IN_A_TURN: Final = 8
"""Who is answered in one turn; who has hung up by then or is turned away costs next to nothing."""
_MOST: Final = 64
"""Connections at once."""
_MOST_SLOW: Final = 4
"""Those of one user that do not read, so that no other user is kept out."""
_BACKLOG: Final = 64
"""Who may wait to be let in: for less than the time that `ask` waits."""
_MODES: Final = {SOCKET: 0o666, OWN_SOCKET: 0o600}
"""Whoever may look at the host may ask at the first; at the other our own user alone."""
_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred (unix(7))
_NOTHING: Final = memoryview(b"")


@dataclass(slots=True, eq=False)
class _Asker:
    connection: socket.socket
    user: int
    rest: memoryview = _NOTHING
    """What of the document it has not taken yet."""
    slow: bool = False
    """Whether we wait for it to take more."""


class StatusServer:
    """Answers whoever asks, until `close`; `tell` gives what is so.

    `timers` go by `clock`. `urgent`: whether something waits for the loop that comes first.
    """

    def __init__(
        self,
        directory: Path,
        tell: Callable[[], DaemonStatus],
        timers: Timers,
        clock: Callable[[], float] = time.monotonic,
        urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        self._directory = directory
        self._tell = tell
        self._timers = timers
        self._clock = clock
        self._urgent = urgent
        self._put_off = False
        """Whether something urgent was let past just now."""
        self._listening: dict[str, socket.socket] = {}
        self._askers: set[_Asker] = set()
        self._writer = Writer()
        self._being_written: Generator[None, None, bytes] | None = None
        self._document = b""
        self._told_until = NEVER
        """Until when it is told to whoever asks."""
        self._took = 0.0
        """Seconds that what is there of the next one took to write."""

    def start(self) -> None:
        """Raises DeploymentError."""
        self._loop = asyncio.get_running_loop()
        for name, mode in _MODES.items():
            self._listening[name] = listen(self._directory / name, mode, _BACKLOG)
            self._listen(name)

    def close(self) -> None:
        self._timers.cancel("status")
        for asker in tuple(self._askers):
            self._hang_up(asker)
        for name, listening in self._listening.items():
            self._loop.remove_reader(listening)
            listening.close()
            with suppress(OSError):
                (self._directory / name).unlink()
        self._listening.clear()

    def _listen(self, name: str) -> None:
        self._loop.add_reader(self._listening[name], self._let_in, name)

    def _let_in(self, name: str) -> None:
        """Let a few in, and the next ones in the next turn."""
        listening = self._listening[name]
        began = self._clock()
        until, full = began + _TAKES, False
        room = _IN_A_TURN if name == OWN_SOCKET else min(_IN_A_TURN, _MOST - len(self._askers))
        for _ in range(_BACKLOG):
            if not room:
                break
            try:
                connection, _ = listening.accept()
            except BlockingIOError:
                break
            except OSError as error:
                full = error.errno in _NO_ROOM
                break
            room -= self._take(connection)
            if self._clock() >= until or self._urgent():
                break
        now = self._clock()
        pause = WAIT if full else TURNS.wait(TURNS.used(now, now - began), now)
        self._loop.remove_reader(listening)
        self._timers.soon(("status", "turn", name), pause, partial(self._listen, name))

    def _take(self, connection: socket.socket) -> bool:
        """Whether it gets an answer."""
        connection.setblocking(False)
        if _has_hung_up(connection):
            connection.close()
            return False
        asker = _Asker(connection, _user(connection))
        slow = sum(each.slow and each.user == asker.user for each in self._askers)
        if slow >= _MOST_SLOW:
            connection.close()
            return False
        self._askers.add(asker)
        if self._being_written is None and DOCUMENTS.wait(self._told_until, self._clock()):
            self._answer(asker)
        else:
            self._timers.soon(("status", "write"), 0.0, self._write)
        return True

    def _write(self) -> None:
        """A piece of the document, and the answers when it is whole."""
        self._put_off = not self._put_off and self._urgent()
        if self._put_off:  # until the loop has been at it once
            self._timers.soon(("status", "write"), 0.0, self._write)
            return
        began = self._clock()
        if self._being_written is None:
            self._took = 0.0
            self._being_written = self._writer.write(self._tell())
        try:
            next(self._being_written)
        except StopIteration as done:
            self._document, self._being_written = done.value, None
            now = self._clock()
            self._told_until = DOCUMENTS.used(now, self._took + now - began)
            for asker in [each for each in self._askers if not each.slow]:
                self._answer(asker)
        else:
            self._took += self._clock() - began
            self._timers.soon(("status", "write"), 0.0, self._write)

    def _answer(self, asker: _Asker) -> None:
        asker.rest = memoryview(self._document)
        self._send(asker)

    def _send(self, asker: _Asker) -> None:
        try:
            asker.rest = asker.rest[asker.connection.send(asker.rest) :]
        except BlockingIOError:
            pass
        except OSError:  # it has hung up
            asker.rest = _NOTHING
        if not asker.rest:
            self._hang_up(asker)
        elif not asker.slow:
            asker.slow = True
            self._loop.add_writer(asker.connection, self._send, asker)
            self._timers.soon(self._limit(asker), WAIT, partial(self._hang_up, asker))

    def _hang_up(self, asker: _Asker) -> None:
        if asker.slow:
            self._loop.remove_writer(asker.connection)
            self._timers.cancel(*self._limit(asker))
        self._askers.discard(asker)
        asker.connection.close()

    @staticmethod
    def _limit(asker: _Asker) -> tuple[str, str, _Asker]:
        return "status", "limit", asker


def _user(connection: socket.socket) -> int:
    """Whose the process is that has connected."""
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(found)[1])


def _has_hung_up(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
