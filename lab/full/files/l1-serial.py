"""Tells a nested guest one thing over its serial line, and prints what it answers.

usage: l1-serial.py SOCKET SECONDS COMMAND [--no-reply]

SECONDS without a word from the guest are too many.

The line is a socket with nobody on it until now: unlike a terminal that no one holds open,
it neither queues what the guest printed before nor swallows what is typed.

It is started for each thing that is told, some hundred times, on a machine that is emulated: the
standard library's socket would take three times as long to load as all the rest.
"""

import _socket
import sys
import time

EX_TIMEOUT = 124


def main(path: str, silence: str, command: str, *flags: str) -> int:
    line = _socket.socket(_socket.AF_UNIX)
    line.connect(path)
    token = f"{time.monotonic_ns():x}"
    line.sendall(f"{token} {command}\n".encode())
    if "--no-reply" in flags:
        time.sleep(0.5)  # let QEMU take it from the socket before the socket closes
        return 0
    return _reply(line, token, float(silence))


def _reply(line: _socket.socket, token: str, silence: float) -> int:
    begin, end = f"L2: begin {token}".encode(), f"L2: end {token} ".encode()
    seen = b""
    line.settimeout(silence)
    while True:
        try:
            data = line.recv(65536)
        except TimeoutError:
            print(f"no answer in time; so far: {seen!r}", file=sys.stderr)
            return EX_TIMEOUT
        if not data:
            print("the guest is gone", file=sys.stderr)
            return EX_TIMEOUT
        seen += data
        _, found, after = seen.partition(end)
        if found and b"\n" in after:
            body = seen.partition(begin)[2].partition(end)[0]
            sys.stdout.write(body.replace(b"\r", b"").lstrip(b"\n").decode(errors="replace"))
            return int(after.split(b"\n")[0])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
