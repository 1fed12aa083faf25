"""Talks with the agent inside the machine."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import sys
import termios
import time
import tty
from dataclasses import dataclass
from typing import Any

from lab.patience import Patience

from .errors import AgentError

_POLL = 0.5
_SHORT = 3.0
# To end a command, and to tell what it had said.
_GRACE = 30.0


@dataclass(frozen=True)
class Reply:
    """A finished command."""

    returncode: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


@dataclass(frozen=True)
class Agent:
    """Where an agent listens, and the word that it wants to hear."""

    port: int
    token: str

    def run(self, command: str, *, patience: Patience, stdin: bytes = b"") -> Reply:
        """Run a command; its end is what is waited for."""
        request = {"op": "run", "command": command, "stdin": len(stdin)}
        try:
            with self._connect(patience.seconds) as line:
                line.sendall(self._head(request) + stdin)
                return _reply(line, patience)
        except (OSError, ValueError) as error:
            raise AgentError(f"the lab's agent did not answer: {error!r}") from error

    def wait(self, patience: Patience) -> bool:
        """Whether the agent answers in time."""
        request = {"op": "run", "command": "true", "stdin": 0}
        while not patience.ended():
            try:
                # Short: a connection made before the agent listened stays silent.
                with self._connect(2) as line:
                    line.sendall(self._head(request))
                    if _receive(line, Patience(_SHORT, patience.pid)):
                        return True
            except (OSError, ValueError):
                time.sleep(0.1)
        return False

    def shell(self) -> None:
        """A shell in the machine on this terminal, until it ends."""
        columns, rows = shutil.get_terminal_size()
        term = os.environ.get("TERM", "dumb")
        request = {"op": "shell", "rows": rows, "columns": columns, "term": term}
        with self._connect(None) as line:
            line.sendall(self._head(request))
            if line.recv(1) != b"\n":
                raise AgentError("the lab's agent gave no shell")
            _terminal(line)

    def _connect(self, timeout: float | None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def _head(self, request: dict[str, Any]) -> bytes:
        return json.dumps(request | {"token": self.token}).encode() + b"\n"


def _reply(line: socket.socket, patience: Patience) -> Reply:
    data = _receive(line, patience)
    if timed_out := not data:
        line.shutdown(socket.SHUT_WR)  # the agent ends the command, and tells what it had said
        data = _receive(line, Patience(_GRACE, patience.pid))
    first, found, rest = data.partition(b"\n")
    if not found:
        raise OSError("the answer broke off" if data else "there is none")
    head = json.loads(first)
    stdout, stderr = rest[: head["stdout"]], rest[head["stdout"] :]
    if len(stderr) < head["stderr"]:
        raise OSError("the answer broke off")
    return Reply(head["returncode"], stdout, stderr, timed_out)


def _receive(line: socket.socket, patience: Patience) -> bytes:
    """All up to the end of the connection; what came, where patience ended before."""
    data = b""
    line.settimeout(_POLL)
    while not patience.ended():
        try:
            piece = line.recv(1 << 20)
        except TimeoutError:
            continue
        if not piece:
            break
        patience.sign()
        data += piece
    return data


def _terminal(line: socket.socket) -> None:
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard) if os.isatty(keyboard) else None
    if before is not None:
        tty.setraw(keyboard, termios.TCSADRAIN)  # what was typed ahead stays
    try:
        _relay(line, keyboard)
    finally:
        if before is not None:
            termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def _relay(line: socket.socket, keyboard: int) -> None:
    sources = [line.fileno(), keyboard]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if line.fileno() in ready:
            data = line.recv(65536)
            if not data:
                return
            os.write(sys.stdout.fileno(), data)
        if keyboard in ready:
            typed = os.read(keyboard, 65536)
            if not typed:  # commands piped in: the shell sees their end
                sources.remove(keyboard)
                typed = b"\x04"
            line.sendall(typed)
