"""A terminal that a program runs in: a pseudo terminal, and pyte to say what is on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyte

_LIMIT = 120.0
"""Seconds after which what does not come never will: a machine may be slow."""


class Terminal:
    """virtirq, or another `program`, in a terminal of its own, of so many `columns` and `lines`."""

    def __init__(
        self,
        *words: str,
        columns: int = 80,
        lines: int = 24,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = (sys.executable, "-m", "virtirq"),
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self.raw = b""
        self._ours, self._theirs = pty.openpty()
        self.resize(columns, lines)
        self.modes = termios.tcgetattr(self._ours)
        # LINES and COLUMNS, which readline sets for its whole process, would have the last word.
        inherited = {k: v for k, v in os.environ.items() if k not in ("LINES", "COLUMNS")}
        self._process = subprocess.Popen(
            [*program, *words],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**inherited, "TERM": "linux", "LC_ALL": "C.UTF-8", **(env or {})},
            start_new_session=True,
            preexec_fn=_controlling,
        )

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    @property
    def display(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    def wait_for(self, holds: Callable[[list[str]], bool]) -> list[str]:
        """The screen, once this holds of it."""
        deadline = time.monotonic() + _LIMIT
        while not holds(self.display):
            if time.monotonic() > deadline:
                raise AssertionError("that does not come\n" + "\n".join(self.display))
            if not self._read():
                raise AssertionError("it has ended\n" + "\n".join(self.display))
        return self.display

    def wait_for_text(self, text: str) -> list[str]:
        return self.wait_for(lambda lines: any(text in line for line in lines))

    def end(self) -> int:
        """The exit code, once the program has ended; all that it wrote is on the screen."""
        os.close(self._theirs)
        self._theirs = -1
        deadline = time.monotonic() + _LIMIT
        while self._read():
            if time.monotonic() > deadline:
                raise AssertionError("it does not end\n" + "\n".join(self.display))
        return self._process.wait(_LIMIT)

    def now(self) -> list[object]:
        """How the terminal is set."""
        return termios.tcgetattr(self._ours)

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], _LIMIT)[0]:
            raise AssertionError("nothing more comes\n" + "\n".join(self.display))
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # EIO: nobody has the other side open
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        for descriptor in (self._ours, self._theirs):
            if descriptor >= 0:
                os.close(descriptor)


def _controlling() -> None:
    """Ctrl-C typed there is the program's, though a shell that runs the tests beside ignores it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def terminal(
    *words: str,
    columns: int = 80,
    lines: int = 24,
    env: Mapping[str, str] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "virtirq"),
) -> Iterator[Terminal]:
    made = Terminal(*words, columns=columns, lines=lines, env=env, program=program)
    try:
        yield made
    finally:
        made.close()
