"""Answers `virtirq` commands from a process that has it loaded: runs in the lab.

Loading takes seconds there, and the tests of the daemon ask for the plan again and again.

usage: warm.py SOCKET serve    the words of a command come on the socket, its output goes back
       warm.py SOCKET WORD…    has it answered
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import socket
import sys


def serve(path: str) -> None:
    from virtirq.ui.cli import main

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    main(["--json", "plan"])  # loads the rest
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            asked, _ = server.accept()
            if os.fork() == 0:
                words = asked.recv(1 << 16).decode().split("\0")
                with contextlib.redirect_stdout(io.StringIO()) as shown:
                    main(words)
                asked.sendall(shown.getvalue().encode())
                os._exit(0)
            asked.close()


def ask(path: str, *words: str) -> None:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(path)
        asking.sendall("\0".join(words).encode())
        while piece := asking.recv(1 << 16):
            os.write(1, piece)


if __name__ == "__main__":
    place, *rest = sys.argv[1:]
    if rest == ["serve"]:
        serve(place)
    else:
        ask(place, *rest)
