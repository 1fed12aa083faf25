"""Runs `virtirq` in a process that has it loaded, or in a child of one.

To start Python and to load virtirq takes the lab's machine four seconds at best, and its tests run
virtirq some hundred times. A child by fork(2) has it loaded, and is like the installed command in
all else: own output, no files of its parent's, and an exit status or the signal that it died of.
"""

from __future__ import annotations

import gc
import os
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib import import_module
from io import StringIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, NoReturn

import virtirq
from virtirq.ui import cli

_OTHERS: Final = ("cattrs", "defusedxml.ElementTree", "libvirt", "prometheus_client", "rich.table")
"""What virtirq imports only where it is needed, as it does most of its own modules."""

_ASKED: Final = 4800
"""How often what must happen is looked for, at least 240 seconds: a hundred times what it takes."""
_PAUSE: Final = 0.05


def until(condition: Callable[[], bool], why: Callable[[], str] = str) -> None:
    """Asks again and again. By count: asking takes a slow machine longer, so it gets longer."""
    for _ in range(_ASKED):
        if condition():
            return
        time.sleep(_PAUSE)
    raise AssertionError(f"waited for in vain: {why()}")


class Forked:
    """A child that makes a call; what of `subprocess.Popen` a test needs."""

    def __init__(self, call: Callable[[], int], out: int, err: int) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(call, out, err)

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def wait(self) -> int:
        status = self._reap(0)
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


@cache
def load_all() -> None:
    """What each command would load for itself."""
    own = (each.name for each in pkgutil.walk_packages(virtirq.__path__, "virtirq."))
    for name in (*own, *_OTHERS):
        if not name.endswith(".__main__"):
            with suppress(ImportError):
                import_module(name)


def start(words: Sequence[str], out: int, err: int) -> Forked:
    """`virtirq` with these words."""
    load_all()
    return Forked(lambda: cli.main(list(words)), out, err)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `virtirq` to its end, in this process: a child would copy each page that it touches."""
    load_all()
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        try:
            status = cli.main(list(words))
        except SystemExit as end:
            status = _status(end)
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


def run_as(user: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it as this user, who is in the group of that number alone."""

    def call() -> int:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        return cli.main(list(words))

    load_all()
    with TemporaryFile() as out, TemporaryFile() as err:
        status = Forked(call, out.fileno(), err.fileno()).wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(words, status, *texts)


def run_traced(log: Path, strace: Sequence[str], *words: str) -> int:
    """Run it under strace with these options; its status, below 0 for a signal."""

    def call() -> int:
        while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
            time.sleep(0.01)
        return cli.main(list(words))

    load_all()
    with open(os.devnull, "wb") as null:
        command = Forked(call, null.fileno(), null.fileno())
        tracer = subprocess.Popen(["strace", "-qq", "-o", log, *strace, "-p", str(command.pid)])
        status = command.wait()
        tracer.wait()
    return status


def _become(call: Callable[[], int], out: int, err: int) -> NoReturn:
    status = 1
    try:
        gc.freeze()  # nothing of the parent's is closed by being forgotten
        null = os.open(os.devnull, os.O_RDONLY)
        for number, file in enumerate((null, out, err)):
            os.dup2(file, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
        status = call()
    except SystemExit as end:
        status = _status(end)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _status(end: SystemExit) -> int:
    return end.code if isinstance(end.code, int) else int(bool(end.code))
