"""Time to find guests by their processes, beside a floor: ``python -m bench.find_processes``.

The processes are real ones and read from the live /proc: forks of this one that do nothing, each
with 32 descriptors. The devices are made, for few machines have VFIO: two are open, and nobody
holds them, so that everybody is looked at. Where all devices are found before that it takes less,
and where none is open nothing is read of processes at all.

The floor lists the descriptors of the very same processes, reads each one's link, and does nothing
else; it is measured in the same run, in turns. To see the growth, a quarter and half of the
processes are measured too. Figures are medians; the ratios, of each turn, matter, not
the milliseconds.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import truediv

from tests.hostmaker import MadeDevice, MadeHost
from virtirq.guests.processes.find import find_processes, read_process
from virtirq.host import paths
from virtirq.host.fs import LiveFs
from virtirq.model import PciAddress

DESCRIPTORS = 32
DEVICES = tuple(PciAddress.parse(f"0000:4{number}:00.0") for number in (1, 2))


class MixedFs(LiveFs):
    """The processes of this machine, and the devices of a made one."""

    def __init__(self) -> None:
        devices = [MadeDevice(str(each), iommu_group=7 + n) for n, each in enumerate(DEVICES)]
        opened = {paths.PCI_ENABLE.at(each): "1" for each in DEVICES}
        cdevs = {
            f"/sys/class/vfio-dev/vfio{n}": f"../../devices/pci0000:40/{each}/vfio-dev/vfio{n}"
            for n, each in enumerate(DEVICES)
        }
        self._made = MadeHost(devices=devices, files=opened, links=cdevs).live()

    def read(self, path: str) -> str:
        return super().read(path) if path.startswith("/proc/") else self._made.read(path)

    def listdir(self, path: str) -> list[str]:
        return super().listdir(path) if path.startswith("/proc") else self._made.listdir(path)

    def readlink(self, path: str) -> str:
        return super().readlink(path) if path.startswith("/proc/") else self._made.readlink(path)


@contextmanager
def crowd(count: int) -> Iterator[list[int]]:
    """So many processes that do nothing; they end with this, and with this process."""
    gc.freeze()  # else collecting would copy each one's memory
    until, ours = os.pipe()
    more = [os.open("/dev/null", os.O_RDONLY) for _ in range(DESCRIPTORS - 4)]
    pids: list[int] = []
    try:
        for _ in range(count):
            pid = os.fork()
            if pid == 0:
                os.close(ours)
                os.read(until, 1)  # ends when nobody can write any more
                os._exit(0)
            pids.append(pid)
        yield pids
    finally:
        for each in (until, ours, *more):
            os.close(each)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def floor() -> int:
    """How many descriptors there are."""
    count = 0
    for pid in os.listdir("/proc"):
        if pid.isdecimal():
            with suppress(OSError):
                for each in os.listdir(f"/proc/{pid}/fd"):
                    os.readlink(f"/proc/{pid}/fd/{each}")
                    count += 1
    return count


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure(count: int, rounds: int) -> None:
    fs = MixedFs()
    times: dict[str, list[float]] = {}
    with crowd(count) as pids:
        assert find_processes(fs).guests == ()
        descriptors = floor()
        for _ in range(rounds):
            for name, work in (
                ("floor", floor),
                ("find_processes", lambda: find_processes(fs)),
                ("read_process", lambda: read_process(fs, pids[0])),
            ):
                times.setdefault(name, []).append(timed(work))
    print(f"{count} processes, {descriptors} descriptors with all others'")
    for name, each in times.items():
        ratio = statistics.median(map(truediv, each, times["floor"]))
        middle = statistics.median(each)
        beside = f"   {ratio:7.4f} times the floor" if name != "floor" else ""
        print(f"  {name:15} {middle * 1e3:9.2f} ms{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processes", type=int, default=5000)
    options = parser.parse_args()
    for part in (4, 2, 1):
        measure(options.processes // part, options.rounds)


if __name__ == "__main__":
    main()
