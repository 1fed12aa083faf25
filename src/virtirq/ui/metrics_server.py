"""Metrics are served by a process of their own.

A page takes as long to make as a look at every interrupt takes, and who reacts to the kernel's
events must not share Python's lock with that: at each system call it would wait for its turn.
The server keeps nothing: for each page it asks the daemon for guests and configuration, through a
socket that the two share, and for the rest as everybody does. It lives as long as that socket.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from virtirq.control import sources
from virtirq.control.daemon_status import ask
from virtirq.errors import UnavailableError

if TYPE_CHECKING:
    from virtirq.daemon.service import Inside

BACKLOG: Final = 8
_ASKED: Final = b"?"
_PAUSE: Final = 5.0
"""Seconds until a server that has ended is started again."""
_NICE: Final = 5
_LENGTH: Final = 8
_START: Final = (
    "import sys; sys.path[:] = {path!r}; from virtirq.ui import metrics_server as s; s.main()"
)
"""The program that runs now, wherever it came from: a file for everything, say."""


class MetricsServer:
    """Keeps a server at a listening socket, which it closes, until `close`.

    `inside` is called in another thread.
    """

    def __init__(self, listening: socket.socket, inside: Callable[[], Inside], state: Path) -> None:
        self._listening = listening
        self._inside = inside
        self._state = state
        self._closing = threading.Event()
        self._pickles: dict[int, tuple[Any, bytes]] = {}
        self._ours: socket.socket | None = None
        self._thread = threading.Thread(target=self._keep, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more. Does not wait for a page that is being made."""
        self._closing.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        ours = self._ours
        if ours is not None:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _keep(self) -> None:
        while not self._closing.is_set():
            ours, theirs = socket.socketpair()
            with ours:
                self._ours = ours
                with theirs:
                    process = self._started(theirs)
                with suppress(OSError):
                    while not self._closing.is_set() and ours.recv(len(_ASKED)):
                        answer = self._told()
                        ours.sendall(len(answer).to_bytes(_LENGTH) + answer)
            process.kill()
            process.wait()
            self._closing.wait(_PAUSE)

    def _started(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        descriptors = self._listening.fileno(), theirs.fileno()
        words = [sys.executable, "-c", _START.format(path=sys.path)]
        return subprocess.Popen(
            [*words, *map(str, descriptors), str(self._state)],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
        )

    def _told(self) -> bytes:
        """The guests and the configuration; nothing where the daemon does not say."""
        try:
            inside = self._inside()
        except Exception:  # whatever it is, the daemon itself ends of it, or it is late
            return b""
        them = [inside.config, *inside.guests]
        known, self._pickles = self._pickles, {}
        for each in them:  # what is still the same is not told anew
            before, text = known.get(id(each), (None, b""))
            if before is not each:
                text = pickle.dumps(each)
            self._pickles[id(each)] = each, text
        return b"".join(self._pickles[id(each)][1] for each in them)


def main() -> None:
    """The server's process: descriptors of both sockets, and the state directory."""
    # The daemon is asked to end, not the server: that ends with the daemon.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    listening, daemon = (socket.socket(fileno=int(each)) for each in sys.argv[1:3])
    with suppress(OSError):
        os.nice(_NICE)  # who reacts comes first
    from virtirq.ui import prometheus

    state = Path(sys.argv[3])
    prometheus.Server(listening, lambda: page(daemon, state))
    ended = select.poll()
    ended.register(daemon, select.POLLRDHUP)
    ended.poll()
    os._exit(0)  # with whatever page is being made


def page(daemon: socket.socket, state: Path) -> str:
    """Raises VirtirqError, and TimeoutError for a daemon that does not answer in time."""
    from virtirq.ui import inputs, prometheus

    daemon.sendall(_ASKED)
    with daemon.makefile("rb") as answer:
        length = int.from_bytes(answer.read(_LENGTH))
        if not length:
            raise TimeoutError
        told = answer.read(length)
    config, *guests = _opened(told)
    status = ask(state)
    if status is None:
        raise UnavailableError("virtirq is stopping")
    vectors = config.metrics.vectors
    view = inputs.seen(sources.open_fs(None), guests, config, (), status, counts=vectors)
    return prometheus.render(*view, vectors=vectors)


def _opened(told: bytes) -> list[Any]:
    import io

    found, file = [], io.BytesIO(told)
    while file.tell() < len(told):
        found.append(pickle.load(file))  # noqa: S301 (from the daemon itself)
    return found
