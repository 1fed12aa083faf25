"""A made host whose guests take interrupts when a test says so."""

from __future__ import annotations

from pathlib import Path

from tests.hostmaker import MadeHost, passthrough
from tests.ui.cases import hostdev

CPUS = 8


def host(guests: int = 2, vectors: int = 2) -> MadeHost:
    """Each guest has one vCPU, on a CPU of its own while they last, and one device."""
    return MadeHost(
        online=f"0-{CPUS - 1}",
        nodes={0: "0-3", 1: "4-7"},
        devices=tuple(
            passthrough(
                f"0000:{0x40 + guest:02x}:00.0",
                vectors=vectors,
                first_irq=irq_of(guest, 0, vectors),
                node=0,
                affinity=str(guest % CPUS),
                counts={guest % CPUS: 10},
            )
            for guest in range(guests)
        ),
        domains={
            f"web{guest}": hostdev(f"web{guest}", f"{0x40 + guest:02x}", str(guest % CPUS))
            for guest in range(guests)
        },
    )


def irq_of(guest: int, vector: int, vectors: int = 2) -> int:
    return 100 + guest * vectors + vector


def counts_of(**by_cpu: int) -> str:
    """The file of an interrupt that was taken so often, as ``cpu3=7`` says."""
    return ",".join(str(by_cpu.get(f"cpu{cpu}", 0)) for cpu in range(CPUS))


def file_of(irq: int) -> str:
    return f"/sys/kernel/irq/{irq}/per_cpu_count"


def count(root: Path, irq: int, **by_cpu: int) -> None:
    """The interrupt of a host in a directory was taken so often, all in one go."""
    target = root / file_of(irq)[1:]
    beside = target.with_name("beside")
    beside.write_text(counts_of(**by_cpu) + "\n")
    beside.replace(target)
