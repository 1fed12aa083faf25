"""The daemon's side of `virtirq.control.holding`: who asks for it has a guest left alone.

The socket is root's alone. A guest is held for as long as the connection is open, so that whatever
becomes of who asked, it is looked after again.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from virtirq.control.holding import HELD, LONGEST, SOCKET
from virtirq.daemon.listening import listen
from virtirq.daemon.timers import Timers

_PAUSE: Final = 0.25
"""Seconds until who could not be let in is let in."""
_MOST: Final = 16
"""Connections at once; who else asks is turned away."""


class Holds:
    """Lets root hold guests, by key. `hold` says whether there is such a guest."""

    def __init__(
        self,
        directory: Path,
        hold: Callable[[str], bool],
        release: Callable[[str], object],
        timers: Timers,
    ) -> None:
        self._path = directory / SOCKET
        self._hold = hold
        self._release = release
        self._timers = timers
        self._listening: socket.socket | None = None
        self._holders: dict[socket.socket, str] = {}
        """What each connection holds; nothing until it has asked."""
        self._held = Counter[str]()

    @property
    def held(self) -> frozenset[str]:
        """The keys of the guests that are left alone."""
        return frozenset(self._held)

    def start(self) -> None:
        """Raises DeploymentError."""
        self._loop = asyncio.get_running_loop()
        self._listening = listen(self._path, 0o600, _MOST)
        self._listen()

    def _listen(self) -> None:
        if self._listening is not None:
            self._loop.add_reader(self._listening, self._let_in, self._listening)

    def close(self) -> None:
        self._timers.cancel("holds")
        for holder in tuple(self._holders):
            self._hang_up(holder)
        if self._listening is not None:
            self._loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        with suppress(OSError):
            self._path.unlink()

    def _let_in(self, listening: socket.socket) -> None:
        try:
            holder, _ = listening.accept()
        except BlockingIOError:  # it has hung up
            return
        except OSError:  # no room: it stays to be let in, and the loop would hear of nothing else
            self._loop.remove_reader(listening)
            self._timers.soon(("holds",), _PAUSE, self._listen)
            return
        if len(self._holders) >= _MOST:
            holder.close()
            return
        holder.setblocking(False)
        self._holders[holder] = ""
        self._loop.add_reader(holder, self._heard, holder)

    def _heard(self, holder: socket.socket) -> None:
        """It asks, which is one line in one piece, or it has gone."""
        try:
            said = holder.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        key = said.decode(errors="replace").removesuffix("\n")
        if not key or self._holders[holder]:
            self._hang_up(holder)
            return
        known = bool(self._held[key]) or self._hold(key)
        if known:
            self._holders[holder] = key
            self._held[key] += 1
        else:
            del self._held[key]
        try:
            holder.send(HELD if known else b"it knows no such guest\n")
        except OSError:
            known = False
        if not known:
            self._hang_up(holder)

    def _hang_up(self, holder: socket.socket) -> None:
        key = self._holders.pop(holder)
        self._loop.remove_reader(holder)
        holder.close()
        if not key:
            return
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self._release(key)
