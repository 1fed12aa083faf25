"""Has a running daemon leave one guest's interrupts alone for a while.

A connection to the daemon's socket holds the guest for as long as it is open: however its other end
dies, the kernel closes it, and the daemon puts everything right at once.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from virtirq.errors import BusyError, DeploymentError

SOCKET: Final = "hold.sock"
HELD: Final = b"held\n"
LONGEST: Final = 1024
"""Bytes of a request or an answer: a line each, a guest's key and what became of it."""
_WAIT: Final = 10.0


@contextmanager
def held(state: Path, key: str) -> Iterator[bool]:
    """Until this is left, the daemon moves no interrupt of the guest of this key.

    False where no daemon runs. Raises BusyError where it does not do so, DeploymentError where this
    user may not ask.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asked:
        asked.settimeout(_WAIT)
        try:
            asked.connect(str(state / SOCKET))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            yield False
            return
        except PermissionError as error:
            raise DeploymentError(
                f"{state / SOCKET}: {error.strerror}", hint="run as root"
            ) from error
        except OSError as error:
            raise _no_answer(state, error) from error
        try:
            asked.sendall(f"{key}\n".encode())
            answer = asked.makefile("rb").readline(LONGEST)
        except OSError as error:
            raise _no_answer(state, error) from error
        if answer != HELD:
            said = answer.decode(errors="replace").strip() or "it has hung up"
            raise _no_answer(state, said)
        yield True


def _no_answer(state: Path, why: object) -> BusyError:
    return BusyError(
        f"{state / SOCKET}: the daemon does not leave the guest alone: {why}",
        hint="see 'systemctl status virtirq' and its log",
    )
