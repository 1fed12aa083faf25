"""What hostile clients of the status socket cost: ``python -m bench.status_socket``.

On a host with 800 devices of 16 vectors each, whose guests' choices are all known, some clients
connect in a loop, one kind reads the answer, one hangs up at once, one never reads. For each: how
late the daemon's loop is with its other work, and how much of a CPU it takes, beside the same
without them; guests' choices change all the while. An honest one asks meanwhile, and must be
answered, but where it is the user's own processes that take what a user may have.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from virtirq.control.counters import Counters
from virtirq.control.daemon_status import SOCKET, DaemonStatus, ask
from virtirq.daemon.status_server import DOCUMENTS, StatusServer
from virtirq.daemon.timers import Timers
from virtirq.model import Aimed, PciAddress

TICK = 0.005
"""Seconds between two pieces of the loop's other work."""
MOST_CPU = 0.25
"""Of one CPU, what hostile clients may cost the loop."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--clients", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as state:
        asyncio.run(measure(Path(state), options.seconds, options.clients))


async def measure(state: Path, seconds: float, clients: int) -> None:
    loop = asyncio.get_running_loop()
    aimed = {
        PciAddress(0, bus, slot, 0): {vector: Aimed(vector % 8) for vector in range(16)}
        for bus in range(25)
        for slot in range(32)
    }
    made = 0

    def tell() -> DaemonStatus:
        nonlocal made
        made += 1
        aimed[PciAddress(0, made % 25, 0, 0)] = {vector: Aimed(made % 8) for vector in range(16)}
        return DaemonStatus(1, 0.0, "x", "e", "g", counters=Counters(), aimed=aimed)

    def failed(error: BaseException) -> None:
        raise error

    server = StatusServer(state, tell, Timers(loop.call_later, loop.time, failed), loop.time)
    server.start()
    first = await asyncio.to_thread(ask, state)
    assert first is not None
    assert len(first.aimed) == len(aimed)
    quiet = await lateness(seconds)
    print(f"{'quiet':>20}: {told(quiet)}")
    for client in (reads, hangs_up, never_reads):
        made = 0
        hostile = Hostile(client, state / SOCKET, clients)
        began, used = time.monotonic(), time.process_time()
        late = await lateness(seconds)
        lasted, used = time.monotonic() - began, time.process_time() - used
        honest = await asyncio.to_thread(ask, state) if client is not never_reads else first
        hostile.stop()
        print(
            f"{client.__name__:>20}: {told(late)}; {used / lasted:.0%} of a CPU;"
            f" {hostile.done.value / lasted:.0f} connections/s,"
            f" {made / lasted:.1f} documents/s"
        )
        assert honest is not None
        assert len(honest.aimed) == len(aimed)
        assert made <= (lasted + 1) / DOCUMENTS.least + 1
        assert used < MOST_CPU * lasted
        assert statistics.median(late) < 1.5 * statistics.median(quiet) + TICK
    server.close()


async def lateness(seconds: float) -> list[float]:
    """By how many seconds each of some timers is late."""
    found, end = [], time.monotonic() + seconds
    while (at := time.monotonic()) < end:
        await asyncio.sleep(TICK)
        found.append(time.monotonic() - at - TICK)
    return found


def told(late: list[float]) -> str:
    late = sorted(late)
    tail = late[int(len(late) * 0.99)]
    return (
        f"late by {statistics.median(late) * 1e3:.1f} ms (median),"
        f" {tail * 1e3:.1f} (99 %), {late[-1] * 1e3:.1f} (worst)"
    )


Client = Callable[[socket.socket], object]


class Hostile:
    """Processes that connect in a loop."""

    def __init__(self, client: Client, path: Path, number: int) -> None:
        self.done: Synchronized[int] = multiprocessing.Value("i", 0)
        self._processes = [
            multiprocessing.Process(
                target=connect, args=(client, str(path), self.done), daemon=True
            )
            for _ in range(number)
        ]
        for each in self._processes:
            each.start()

    def stop(self) -> None:
        for each in self._processes:
            each.terminate()
            each.join()


def connect(client: Client, path: str, done: Synchronized[int]) -> None:
    kept = []
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
            kept.append(client(connection))
        except OSError:
            time.sleep(0.001)
            kept.clear()
            continue
        kept = kept[-200:]
        with done.get_lock():
            done.value += 1


def reads(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass
    connection.close()


def hangs_up(connection: socket.socket) -> None:
    connection.close()


def never_reads(connection: socket.socket) -> socket.socket:
    return connection


if __name__ == "__main__":
    main()
