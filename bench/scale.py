"""What one guest costs the daemon's loop, by how many there are: ``python -m bench.scale``.

Guests of 16 vCPUs and four devices with 20 vectors each, on a made host that answers from memory:
what is measured is the daemon's own work, as CPU time of its one thread, and how many files it
asks for. Each figure is the median over so many guests, after as many to warm up; beside it what it
is with ten guests. The outcomes are asserted: a wrong one is not measured.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.crowd import DEVICES, VCPUS, VECTORS, CrowdFs, guest_of, irq_of, requested
from virtirq.control.counters import Counters
from virtirq.control.journal import SharedJournal
from virtirq.daemon.log import Log
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.timers import Timers
from virtirq.policy.config import Config

MOST = 1.3
"""How many times as much CPU an act may cost with the most guests as with the fewest."""
START = 3.0
"""Seconds of CPU that a start with `STARTING` guests may cost."""
STARTING = 200
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None


class Crowd:
    """A Reconciler that knows so many guests, and what was measured of it."""

    def __init__(self, guests: int, state: Path) -> None:
        self.guests = guests
        self.fs = CrowdFs(guests + 100)
        self.loop = asyncio.new_event_loop()
        self.timers = Timers(self.loop.call_later, self.loop.time, self._failed)
        self.journal = SharedJournal(state, "boot")
        log = logging.Logger("bench")
        log.addHandler(logging.NullHandler())
        self.reconciler = Reconciler(
            self.fs, self.journal, Config(), Log(log), Counters(), self.timers
        )
        begin = time.process_time()
        self.reconciler.know([guest_of(number) for number in range(guests)], only_note=True)
        self.reconciler.act_on_noted()
        self.reconciler.flush()
        self.start = time.process_time() - begin
        for number in range(0, guests, 7):
            self.check(number)

    def _failed(self, error: BaseException) -> None:
        raise error

    def check(self, number: int, shift: int = 0) -> None:
        """Each device's vectors are on the vCPUs' CPUs in order, wherever that begins."""
        cpus = [str(vcpu.cpus) for vcpu in guest_of(number, shift=shift).vcpus]
        for device in range(DEVICES):
            start = cpus.index(self.fs.where(irq_of(number, device, 0)))
            for vector in range(VECTORS):
                where = self.fs.where(irq_of(number, device, vector))
                assert where == cpus[(start + vector) % VCPUS], (number, device, vector, where)

    def close(self) -> None:
        self.journal.close()
        self.loop.close()


def read_again(crowd: Crowd, number: int) -> None:
    crowd.reconciler.update(guest_of(number))
    crowd.check(number)


def repinned(crowd: Crowd, number: int) -> None:
    crowd.reconciler.update(guest_of(number, shift=1))
    crowd.check(number, 1)


def stopped(crowd: Crowd, number: int) -> None:
    crowd.reconciler.gone(guest_of(number).key)
    assert crowd.reconciler.registry.get(guest_of(number).key) is None


def started(crowd: Crowd, number: int) -> None:
    crowd.reconciler.update(guest_of(crowd.guests + number))
    crowd.check(crowd.guests + number)


def vector(crowd: Crowd, number: int) -> None:
    irq = irq_of(number, 1, 2)
    before = crowd.fs.where(irq)
    crowd.fs.reset(irq)
    crowd.reconciler.freed(irq)
    crowd.reconciler.requested([requested(irq, time.monotonic())])
    assert crowd.fs.where(irq) == before


def followed(crowd: Crowd, number: int) -> None:
    found = crowd.reconciler.followable(guest_of(number).key)
    assert sum(map(len, found.values())) == DEVICES * VECTORS


ACTS: dict[str, Callable[[Crowd, int], None]] = {
    "read again, as it was": read_again,
    "a vector appears": vector,
    "what it could follow": followed,
    "re-pinned": repinned,
    "one more starts": started,
    "stops": stopped,
}


@contextmanager
def crowd(guests: int) -> Iterator[Crowd]:
    with tempfile.TemporaryDirectory(prefix="virtirq-bench-", dir=_MEMORY) as directory:
        made = Crowd(guests, Path(directory, "state"))
        try:
            yield made
        finally:
            made.close()


def measure(
    crowds: dict[int, Crowd], act: Callable[[Crowd, int], None]
) -> dict[int, tuple[float, int]]:
    """Milliseconds of CPU and files asked for, of one guest; by how many there are, in turns."""
    times: dict[int, list[float]] = {guests: [] for guests in crowds}
    calls: dict[int, int] = {}
    for number in range(7):  # the last that are on one node wherever they are shifted
        for guests, made in crowds.items():
            made.fs.calls.clear()
            begin = time.process_time()
            act(made, number)
            times[guests].append(time.process_time() - begin)
            calls[guests] = made.fs.calls.total()
            made.reconciler.flush()
    return {n: (statistics.median(each[1:]) * 1e3, calls[n]) for n, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("guests", type=int, nargs="*", default=[10, 100, 200, 400])
    options = parser.parse_args()
    gc.disable()  # as the daemon does while it starts
    with ExitStack() as stack:
        crowds = {guests: stack.enter_context(crowd(guests)) for guests in options.guests}
        gc.collect()
        gc.freeze()
        found = {name: measure(crowds, act) for name, act in ACTS.items()}
        starts = {guests: made.start for guests, made in crowds.items()}
    sys.exit(tell(found, starts))


def tell(found: dict[str, dict[int, tuple[float, int]]], starts: dict[int, float]) -> str | None:
    """Print the table; what is beyond what is allowed."""
    few, many = min(starts), max(starts)
    print(f"Python {sys.version.split()[0]}; {VCPUS} vCPUs, {DEVICES * VECTORS} vectors a guest")
    print(f"{'ms of CPU (files asked for)':32}" + "".join(f"{n:>16}" for n in starts))
    bad = []
    for name, row in found.items():
        cells = (f"{row[n][0]:8.2f} ({row[n][1]})" for n in starts)
        ratio = row[many][0] / max(row[few][0], 0.01)
        print(f"{name:32}" + "".join(f"{cell:>16}" for cell in cells) + f"   x {ratio:.2f}")
        if ratio > MOST or row[many][1] != row[few][1]:
            bad.append(name)
    print(f"{'a start, all in place':32}" + "".join(f"{starts[n]:>14.2f} s" for n in starts))
    if starts.get(STARTING, 0.0) > START:
        bad.append(f"a start with {STARTING} guests")
    return f"more than {MOST} times, or too much: {', '.join(bad)}" if bad else None


if __name__ == "__main__":
    main()
