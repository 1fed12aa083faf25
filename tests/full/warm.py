"""Answers `virtirq` commands from a process that has it loaded: runs in the lab.

Loading takes seconds there, and the tests run virtirq some hundred times.

usage: warm.py load                  loads it once, so that it is compiled
       warm.py SOCKET serve          answers what is asked on the socket
       warm.py SOCKET WORD…          has the command with these words answered: output and status
       warm.py SOCKET --code SOURCE  has Python run there
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pkgutil
import signal
import socket
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress

OTHERS = ("cattrs", "defusedxml.ElementTree", "libvirt", "prometheus_client", "qemu.qmp")
"""What virtirq imports only where it is needed, as it does most of its own modules."""


def load() -> None:
    import virtirq

    own = [each.name for each in pkgutil.walk_packages(virtirq.__path__, "virtirq.")]
    for name in (*own, *OTHERS):
        if not name.endswith(".__main__"):
            with suppress(ImportError):
                importlib.import_module(name)


def serve(path: str) -> None:
    load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            asked, _ = server.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                server.close()
                words = json.loads(asked.makefile().readline())
                asked.sendall(json.dumps(answer(words)).encode())
                os._exit(0)
            asked.close()


def answer(words: list[str]) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    from virtirq.ui.cli import main

    status = 1
    with redirect_stdout(io.StringIO()) as shown, redirect_stderr(io.StringIO()) as said:
        try:
            if words[0] == "--code":
                exec(words[1], {"__name__": "__main__"})
                status = 0
            else:
                status = main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
    return status, shown.getvalue(), said.getvalue()


def ask(path: str, words: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        asking.sendall(json.dumps(words).encode() + b"\n")
        status, shown, said = json.loads(asking.makefile().read())
    sys.stdout.write(shown)
    sys.stderr.write(said)
    return int(status)


if __name__ == "__main__":
    if sys.argv[1:] == ["load"]:
        load()
    elif sys.argv[2:] == ["serve"]:
        serve(sys.argv[1])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
