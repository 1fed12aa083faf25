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

from .errors import AgentError

# What a slow, loaded machine may need beyond a command's own time limit.
_GRACE = 15.0


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

    def run(self, command: str, *, timeout: float, stdin: bytes = b"") -> Reply:
        request = {"op": "run", "command": command, "timeout": timeout, "stdin": len(stdin)}
        try:
            with self._connect(timeout + _GRACE) as line:
                line.sendall(self._head(request) + stdin)
                return _reply(line)
        except (OSError, ValueError) as error:
            raise AgentError(f"the lab's agent did not answer: {error}") from error

    def wait(self, timeout: float) -> bool:
        """Whether the agent answers within this time."""
        deadline = time.monotonic() + timeout
        request = {"op": "run", "command": "true", "timeout": 5, "stdin": 0}
        while time.monotonic() < deadline:
            try:
                # Short: a connection made before the agent listened stays silent.
                with self._connect(2) as line:
                    line.sendall(self._head(request))
                    _reply(line)
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


def _reply(line: socket.socket) -> Reply:
    with line.makefile("rb") as answer:
        head = json.loads(answer.readline() or b"no answer")
        stdout, stderr = answer.read(head["stdout"]), answer.read(head["stderr"])
    if len(stderr) < head["stderr"]:
        raise OSError("the answer broke off")
    return Reply(head["returncode"], stdout, stderr, head["timed_out"])


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
