"""Learns where a QEMU guest aims its vectors through its own monitor: for guests without libvirt.

QEMU's memory map says where each MSI-X table is, whatever the machine; ``pmemsave`` then reads it,
which stops no vCPU. What it reads comes back through a memfd that is passed to QEMU, so that
nothing is written to a file and no path has to mean the same to both. Where somebody else is using
the monitor, that is said and tried another time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from virtirq.errors import UnavailableError
from virtirq.guests.processes.monitor import Monitor, session
from virtirq.guests.vectors.by_peek import Learned, Wanted
from virtirq.guests.vectors.entries import ENTRY, Peek, table, whole
from virtirq.guests.vectors.hardware import Iommu
from virtirq.guests.vectors.msi import Apics
from virtirq.guests.vectors.reader import aimed, in_use
from virtirq.guests.vectors.remapping import resolve
from virtirq.host.fs import HostFs
from virtirq.model import Guest, GuestVectors, PciAddress
from virtirq.values import pattern

_MOST_TABLE: Final = 2048 * ENTRY
"""Bytes of an MSI-X table: PCI has no larger one."""
# "info mtree -f -o" (system/memory.c, mtree_print_flatview() and mtree_print_owner()).
_SECTION: Final = pattern(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([a-z/-]+)\): (\S+)(.*)$", re.ASCII
)
_OWNER: Final = pattern(r" owner:\{(?:dev|obj) (?:id|path)=([^}]+)\}", re.ASCII)
_DEVICE: Final = "child<vfio-pci>"
_PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon")


class MemoryMap(NamedTuple):
    """Guest-physical memory as QEMU has it: what is memory, and the MSI-X tables by owner."""

    ram: tuple[range, ...]
    tables: Mapping[str, range]
    iommu: Iommu | None


def parse_memory_map(text: str) -> MemoryMap:
    """What ``info mtree -f -o`` prints."""
    ram, tables, iommu = [], {}, None
    counts = False
    for line in text.splitlines():
        if line.startswith("FlatView"):
            counts = False
        elif line.lstrip().startswith('AS "memory"'):
            counts = True
        section = _SECTION.match(line) if counts else None
        if section is None:
            continue
        place = range(int(section[1], 16), int(section[2], 16) + 1)
        match section[3], section[4]:
            case "ram", _:
                ram.append(place)
            case "i/o", name if name.startswith("msix-table"):
                owner = _OWNER.search(section[5])
                if owner is not None:
                    tables[owner[1]] = place
            case "i/o", "intel_iommu":
                iommu = Iommu.INTEL
            case "i/o", name if name.startswith("amdvi"):
                iommu = Iommu.AMD
    return MemoryMap(tuple(ram), tables, iommu)


class QmpReader:
    """Reads QEMU guests that have a monitor to themselves."""

    name: Final = "its QEMU monitor"

    def __init__(self, fs: HostFs) -> None:
        self._fs = fs

    def read(self, guest: Guest, wanted: Wanted) -> Learned:
        with session(self._fs, guest) as monitor:
            return _read(monitor, guest, wanted)

    def close(self) -> None:
        """Nothing is kept open."""


def _read(monitor: Monitor, guest: Guest, wanted: Wanted) -> Learned:
    memory = parse_memory_map(_command(monitor, "info mtree -f -o"))
    if memory.iommu is Iommu.AMD:
        raise UnavailableError("it has an AMD-Vi, which cannot be followed through its monitor")
    apics, owners = _apics(monitor, guest), _owners(monitor)
    peek: Peek = whole(monitor.peek)
    found = {}
    for address, vectors in wanted.items():
        place = memory.tables.get(owners.get(address, ""))
        if place is None:
            found[address] = GuestVectors({}, "the guest has no MSI-X table of it in memory")
            continue
        size = place.stop - place.start
        if size > _MOST_TABLE:
            found[address] = GuestVectors(
                {}, f"its monitor tells of an MSI-X table of {size} bytes"
            )
            continue
        count = min(max(vectors, default=-1) + 1, size // ENTRY)
        used = in_use(table(peek, place.start, count))
        found[address] = aimed(resolve(peek, memory.iommu, memory.ram, 0, used), apics)
    return found


def _command(monitor: Monitor, line: str) -> str:
    return str(monitor.ask("human-monitor-command", **{"command-line": line}))


def _apics(monitor: Monitor, guest: Guest) -> Apics:
    """The APIC id of each vCPU, from QEMU's own objects."""
    online = {vcpu.index for vcpu in guest.vcpus}
    found = {}
    for cpu in monitor.ask("query-cpus-fast"):
        apic = monitor.ask("qom-get", path=cpu["qom-path"], property="apic-id")
        if cpu["cpu-index"] in online:
            found[int(apic)] = int(cpu["cpu-index"])
    return Apics(found)


def _owners(monitor: Monitor) -> dict[PciAddress, str]:
    """What the memory map calls each device of the host's: its id, or the path of its object."""
    found = {}
    for place in _PLACES:
        for each in monitor.ask("qom-list", path=place):
            if each["type"] == _DEVICE:
                path = f"{place}/{each['name']}"
                address = PciAddress.parse(monitor.ask("qom-get", path=path, property="host"))
                found[address] = each["name"] if place == _PLACES[0] else path
    return found
