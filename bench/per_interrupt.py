"""Time per interrupt for read, plan and write, beside a floor: ``python -m bench.per_interrupt``.

The made host has 512 CPUs, 200 guests and 16,384 interrupts, in a directory in memory. The floor
of reading opens, reads and closes the very same files and does nothing else; that of writing reads
four files of each interrupt and writes one. They are measured in the same run, in turns. To see the
growth, a quarter of the host is measured too. Figures are medians; the ratios matter, not the
microseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.hostmaker import MadeHost, RootedFs, passthrough
from virtirq.control.cycle import observe
from virtirq.control.executor import Executor
from virtirq.control.journal import locked_journal
from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import Guest, GuestDevice, PciAddress, Plan, Status, Vcpu
from virtirq.policy.config import Config
from virtirq.policy.findings import findings
from virtirq.policy.plan import plan

CPUS, NODES, FIRST = 512, 4, 100
_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Files in memory, as those of /proc, /sys and /run are."""


class TracedFs(RootedFs):
    """Notes what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: list[str] = []

    def read(self, path: str) -> str:
        self.reads.append(self.root + path)
        return super().read(path)


def made(guests: int, vectors: int) -> tuple[MadeHost, list[Guest]]:
    """A host with this many guests, each with one device of this many vectors.

    A plain file is not truncated by a write, as one of procfs is: every affinity here, before and
    after, is a CPU of three digits. Without an effective affinity the written one is believed.
    """
    per_node = CPUS // NODES
    devices, running = [], []
    for number in range(guests):
        node = number % NODES
        address = f"{number // 256:04x}:{number % 256:02x}:00.0"
        devices.append(
            passthrough(
                address,
                vectors=vectors,
                first_irq=100 + number * vectors,
                node=node,
                affinity=str(FIRST + CPUS - 1),
                effective="",
            )
        )
        first = FIRST + node * per_node + (number // NODES * 2) % per_node
        vcpus = tuple(Vcpu(index, CpuSet([first + index])) for index in range(2))
        held = (GuestDevice(PciAddress.parse(address), "hostdev"),)
        running.append(Guest(f"guest{number:03d}", "bench", vcpus=vcpus, devices=held))
    nodes = {n: f"{FIRST + n * per_node}-{FIRST + (n + 1) * per_node - 1}" for n in range(NODES)}
    online = f"{FIRST}-{FIRST + CPUS - 1}"
    # A handler's directory, as procfs has it.
    handlers = {
        f"/proc/irq/{each.irq}/{each.actions[0]}/here": ""
        for device in devices
        for each in device.vectors
    }
    return MadeHost(online=online, nodes=nodes, devices=devices, files=handlers), running


def floor_read(files: list[str]) -> None:
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        os.read(descriptor, 1 << 16)
        os.close(descriptor)


def floor_write(root: Path, todo: Plan) -> None:
    """What it takes at least: whose it is, what it has, the write, and what came of it."""
    for pin in todo.pins:
        affinity = f"{root}{paths.IRQ_AFFINITY.at(pin.irq)}"
        floor_read([f"{root}{paths.IRQ_ACTIONS.at(pin.irq)}", affinity])
        descriptor = os.open(affinity, os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, str(pin.after).encode())
        os.close(descriptor)
        floor_read([affinity, f"{root}{paths.IRQ_EFFECTIVE.at(pin.irq)}"])


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def execute(fs: HostFs, todo: Plan, state: Path) -> None:
    with locked_journal(state, "bench") as journal:
        outcomes = Executor(fs, journal).run(todo.pins)
    assert {each.status for each in outcomes} == {Status.APPLIED}, "it measures failures"


def once(
    root: Path,
    state: Path,
    running: list[Guest],
    note: Callable[[str, Callable[[], object]], None],
) -> None:
    """One turn: read, plan, write, each beside its floor."""
    fs = TracedFs(root)
    snapshot = observe(fs, running)  # warms the caches, and says which files are read
    reads = fs.reads
    note("read floor", lambda: floor_read(reads))
    note("read", lambda: observe(fs, running))
    note("plan", lambda: plan(snapshot, Config()))
    todo = plan(snapshot, Config())
    note("findings", lambda: findings(snapshot, todo))
    assert len(todo.pins) == len(snapshot.interrupts)
    note("write", lambda: execute(fs, todo, state))
    note("write floor", lambda: floor_write(root, todo))


def measure(guests: int, vectors: int, rounds: int) -> None:
    host, running = made(guests, vectors)
    count = guests * vectors
    print(f"{CPUS} CPUs, {guests} guests, {count} interrupts")
    times: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        times.setdefault(name, []).append(timed(work) / count * 1e6)

    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="virtirq-bench-", dir=_MEMORY) as directory:
            root = host.write(Path(directory, "host"))
            once(root, Path(directory, "state"), running, note)
    middle = {name: statistics.median(each) for name, each in times.items()}
    for name, value in middle.items():
        floor = middle.get(f"{name} floor")
        beside = f"   {value / floor:4.1f} times its floor" if floor else ""
        print(f"  {name:12} {value:8.1f} µs an interrupt{beside}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for guests in (50, 100, 200):
        measure(guests, 82, options.rounds)


if __name__ == "__main__":
    main()
