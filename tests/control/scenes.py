"""The host and guest that the tests of this room play with."""

from __future__ import annotations

from dataclasses import replace

from tests.hostmaker import MadeFs, MadeHost, MadeInterrupt, passthrough
from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.model import Guest, GuestDevice, PciAddress, Vcpu

NIC = PciAddress.parse("0000:41:00.0")
DISK = PciAddress.parse("0000:42:00.0")
FIRST = 100
VECTORS = 4

HOST = MadeHost(
    online="0-7",
    nodes={0: "0-3", 1: "4-7"},
    devices=(
        passthrough(str(NIC), vectors=VECTORS, first_irq=FIRST, node=1, affinity="4-7"),
        passthrough(str(DISK), kind="intx", first_irq=20, node=1, affinity="0-3"),
    ),
    interrupts=(MadeInterrupt(9, ("acpi",)),),
)
WEB = Guest(
    "web",
    "test",
    vcpus=tuple(Vcpu(index, CpuSet([4 + index])) for index in range(4)),
    devices=(GuestDevice(NIC, "hostdev"), GuestDevice(DISK, "hostdev")),
)
NIC_ONLY = replace(WEB, devices=WEB.devices[:1])
IRQS = (20, *range(FIRST, FIRST + VECTORS))


def affinities(fs: MadeFs) -> dict[int, str]:
    """IRQ to affinity, as a CPU list, of every interrupt that the guest may have."""
    found = {}
    for irq in IRQS:
        try:
            found[irq] = fs.read(paths.IRQ_AFFINITY.at(irq))
        except FileNotFoundError:
            continue
    return found
