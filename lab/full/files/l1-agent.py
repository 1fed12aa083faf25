"""Runs commands inside the lab's host.

One request per connection. A request is a JSON line, followed by `stdin` bytes of input:
{"token", "op": "run", "command", "stdin"} is answered with a JSON line
{"returncode", "stdout", "stderr"} and that many bytes of output and errors, and the command is
killed when the other side ends its half of the connection before it is done;
{"token", "op": "shell", "rows", "columns", "term"} turns the connection into a terminal.
"""

import fcntl
import hmac
import json
import os
import pty
import select
import signal
import socketserver
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

PORT = 7000
DIRECTORY = "/root"


def token() -> str:
    words = Path("/proc/cmdline").read_text().split()
    return next(word.removeprefix("lab.token=") for word in words if word.startswith("lab.token="))


class Request(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline()
        if not line:
            return
        request = json.loads(line)
        # Any user of the machine that runs the lab can connect to the forwarded port.
        if not hmac.compare_digest(request["token"], token()):
            return
        if request["op"] == "run":
            self.run(request)
        else:
            self.shell(request)

    def run(self, request: dict[str, Any]) -> None:
        # A file: communicate() does not go on giving input once it has timed out.
        with open(os.memfd_create("stdin"), "w+b") as stdin:
            stdin.write(self.rfile.read(request["stdin"]))
            stdin.seek(0)
            process = subprocess.Popen(
                ["/bin/sh", "-c", request["command"]],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd=DIRECTORY,
            )
        while True:
            try:
                stdout, stderr = process.communicate(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                pass
            if select.select([self.connection], [], [], 0)[0]:
                os.killpg(process.pid, signal.SIGKILL)
                stdout, stderr = _rest(process)
                break
        head = {"returncode": process.returncode, "stdout": len(stdout), "stderr": len(stderr)}
        self.wfile.write(json.dumps(head).encode() + b"\n" + stdout + stderr)

    def shell(self, request: dict[str, Any]) -> None:
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(DIRECTORY)
            os.environ |= {"TERM": request["term"], "HOME": "/root"}
            os.execvp("bash", ["bash", "-i"])
        size = struct.pack("HHHH", request["rows"], request["columns"], 0, 0)
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)
        try:
            # Only after this may the other side type: nothing is then left in rfile's buffer.
            self.wfile.write(b"\n")
            _relay(self.connection.fileno(), terminal)
        finally:
            os.close(terminal)  # hangs up whatever still runs on it
            os.waitpid(child, 0)


def _rest(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """What a killed command had said; one that escaped its session may hold the pipes open."""
    try:
        return process.communicate(timeout=2)
    except subprocess.TimeoutExpired as late:
        return late.stdout or b"", late.stderr or b""


def _relay(connection: int, terminal: int) -> None:
    while True:
        ready, _, _ = select.select([connection, terminal], [], [])
        try:
            if terminal in ready:
                data = os.read(terminal, 65536)
                target = connection
            else:
                data = os.read(connection, 65536)
                target = terminal
        except OSError:  # the shell ended
            return
        if not data:
            return
        os.write(target, data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    Server(("0.0.0.0", PORT), Request).serve_forever()
