"""What takes so long: a line on standard error, on a terminal alone, once a second has gone by."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

_AFTER: Final = 1.0
"""Seconds: what is quicker needs no excuse."""
_AGAIN: Final = 0.5
_ERASED: Final = "\r\x1b[K"
_WIDEST: Final = 60
_NONE: Final = frozenset({"daemon", "demo", "help", "compare"})
"""Verbs that say themselves how they get on, or are not to end."""


class Progress:
    """Tells `out` what is at work, in a thread, from `start` until `end`."""

    def __init__(self, out: TextIO, after: float = _AFTER, columns: int = 80) -> None:
        from threading import Event, Lock, Thread  # most commands have no terminal to tell

        self._out = out
        self._columns = columns
        self._after = after
        self._what = ""
        self._told = False
        self._over = Event()
        self._turn = Lock()
        self._teller = Thread(target=self._tell, name="progress", daemon=True)
        self._began = time.monotonic()

    def start(self) -> None:
        self._teller.start()

    def step(self, what: str) -> None:
        self._what = what[:_WIDEST]

    def end(self) -> None:
        """Nothing is left of it; whatever is printed now stands in a line of its own."""
        with self._turn:
            self._over.set()
            if self._told:
                self._out.write(_ERASED)
                self._out.flush()
            self._told = False

    def _tell(self) -> None:
        wait = self._after
        while not self._over.wait(wait):
            wait = _AGAIN
            with self._turn:
                if not self._over.is_set() and self._what:
                    told = f" … {time.monotonic() - self._began:.0f} s"
                    # A line that breaks is not erased as a whole.
                    what = self._what[: max(0, self._columns - 1 - len(told))]
                    self._out.write(f"{_ERASED}{what}{told}")
                    self._out.flush()
                    self._told = True


_now: Progress | None = None


def step(what: str) -> None:
    """This is at work from now on."""
    if _now is not None:
        _now.step(what)


def end() -> None:
    """The answer comes."""
    if _now is not None:
        _now.end()


@contextmanager
def shown(args: argparse.Namespace) -> Iterator[None]:
    """What the verb says by `step`, where there is somebody to see it."""
    global _now
    typed = "-" in map(str, args.domains)  # the person is typing
    if args.quiet or args.verb in _NONE or typed or not _is_terminal():
        yield
        return
    _now = Progress(sys.stderr, columns=columns())
    _now.start()
    try:
        yield
    finally:
        _now.end()
        _now = None


def columns() -> int:
    """How wide the terminal is, as shutil.get_terminal_size() has it."""
    told = os.environ.get("COLUMNS", "")
    if told.isascii() and told.isdecimal() and int(told[:5]):
        return int(told[:5])
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):  # closed, detached, or no terminal
        return 80


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    except (AttributeError, ValueError):  # it is closed
        return False
