"""Answers `virtirq` commands from a process that has it loaded: runs in the lab.

Loading takes seconds there, and the tests run virtirq some hundred times.

usage: warm.py load                  loads it once, so that it is compiled
       warm.py SOCKET serve          answers what is asked on the socket
       warm.py SOCKET WORD…          has the command with these words answered: output and status
       warm.py SOCKET --code SOURCE  has Python run there
"""

from __future__ import annotations

# What asks is started each time, and loads no more than it must: what serves does that.
import _socket
import sys

OTHERS = ("cattrs", "defusedxml.ElementTree", "libvirt", "prometheus_client", "qemu.qmp")
"""What virtirq imports only where it is needed, as it does most of its own modules."""


def load() -> None:
    import importlib
    import pkgutil
    from contextlib import suppress

    import virtirq

    own = [each.name for each in pkgutil.walk_packages(virtirq.__path__, "virtirq.")]
    for name in (*own, *OTHERS):
        if not name.endswith(".__main__"):
            with suppress(ImportError):
                importlib.import_module(name)


def serve(path: str) -> None:
    import os
    import signal

    load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = _socket.socket(_socket.AF_UNIX)
    server.bind(path)
    server.listen()
    while True:
        descriptor, _ = server._accept()  # type: ignore[attr-defined]
        asked = _socket.socket(fileno=descriptor)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            status, shown, said = answer(received(asked).decode().split("\0"))
            asked.sendall(f"{status}\0{shown}\0{said}".encode())
            os._exit(0)
        asked.close()


def answer(words: list[str]) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    import io
    import traceback
    from contextlib import redirect_stderr, redirect_stdout

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
    asking = _socket.socket(_socket.AF_UNIX)
    asking.connect(path)
    asking.sendall("\0".join(words).encode())
    asking.shutdown(_socket.SHUT_WR)
    status, shown, said = received(asking).decode().split("\0")
    sys.stdout.write(shown)
    sys.stderr.write(said)
    return int(status)


def received(line: _socket.socket) -> bytes:
    pieces = []
    while piece := line.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


if __name__ == "__main__":
    if sys.argv[1:] == ["load"]:
        load()
    elif sys.argv[2:] == ["serve"]:
        serve(sys.argv[1])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
