"""Something is done at the end, however this process ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

_DONE: Final = b"."
_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def guarded(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` when this is left, and if this process is killed in it, from another one.

    A signal that asks the process to end leaves by SystemExit, with 128 and its number as a shell
    tells it; none counts while `undo` runs. The other process is a child in a session of its own,
    so that a terminal's Ctrl-C is not for it; it keeps what is open here open until it ends.
    `undo` may be called by both, and has to do by itself what it does: a child has no threads.
    """
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _wait(theirs, ours, undo)
    os.close(theirs)
    before = {each: signal.signal(each, _leave) for each in _ENDS}
    try:
        yield
    finally:
        for each in _ENDS:
            signal.signal(each, signal.SIG_IGN)
        try:
            undo()
            with suppress(BrokenPipeError):
                os.write(ours, _DONE)
        finally:
            os.close(ours)
            os.waitpid(child, 0)
            for each, handler in before.items():
                signal.signal(each, handler)


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _wait(theirs: int, ours: int, undo: Callable[[], None]) -> None:
    status = 1
    try:
        os.setsid()
        for each in _ENDS:
            signal.signal(each, signal.SIG_IGN)
        os.close(ours)
        if os.read(theirs, 1) != _DONE:
            undo()
        status = 0
    finally:
        os._exit(status)
