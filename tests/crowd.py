"""A host with as many guests as somebody wants, made up as it is read, and read by count.

256 CPUs on two nodes; each guest has 16 vCPUs, each on a CPU of its own, and four devices with 20
vectors each. Nothing is a file: 400 guests have 32,000 interrupts.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter

from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.host.events import EventKind, KernelEvent
from virtirq.host.fs import HostFs, OpenFile
from virtirq.model import Directive, Guest, GuestDevice, InterruptKind, PciAddress, Vcpu, VfioAction

CPUS, VCPUS, DEVICES, VECTORS = 256, 16, 4, 20
FIRST_IRQ = 1000
_FILES = {
    paths.CPU_ONLINE.at(): f"0-{CPUS - 1}",
    paths.CPU_POSSIBLE.at(): f"0-{CPUS - 1}",
    paths.CPU_ISOLATED.at(): "",
    paths.NODES_ONLINE.at(): "0-1",
    paths.NODE_CPUS.at("node0"): f"0-{CPUS // 2 - 1}",
    paths.NODE_CPUS.at("node1"): f"{CPUS // 2}-{CPUS - 1}",
    paths.NODE_DISTANCE.at("node0"): "10 21",
    paths.NODE_DISTANCE.at("node1"): "21 10",
    paths.BOOT_ID.at(): "boot",
}
_FUNCTION = {"vendor": "0x8086", "device": "0x10ca", "class": "0x020000", "numa_node": "1"}


def address_of(guest: int, device: int) -> PciAddress:
    number = guest * DEVICES + device
    return PciAddress(number >> 13, number >> 5 & 0xFF, number & 0x1F, 0)


def _number_of(address: PciAddress) -> int:
    return (address.domain << 8 | address.bus) << 5 | address.slot


def irq_of(guest: int, device: int, vector: int) -> int:
    return FIRST_IRQ + (guest * DEVICES + device) * VECTORS + vector


def action_of(irq: int) -> str:
    number, vector = divmod(irq - FIRST_IRQ, VECTORS)
    guest, device = divmod(number, DEVICES)
    return str(VfioAction(address_of(guest, device), InterruptKind.MSIX, vector))


def guest_of(number: int, *, pid: int | None = None, shift: int = 0, asked: str = "") -> Guest:
    """The guest of this number; `shift` has its vCPUs so many CPUs further on."""
    first = 10_000 + number * 100
    return Guest(
        f"guest{number}",
        "libvirt",
        uuid=f"uuid-{number}",
        pid=first if pid is None else pid,
        vcpus=tuple(
            Vcpu(index, CpuSet([(number * VCPUS + index + shift) % CPUS]), first + 8 + index)
            for index in range(VCPUS)
        ),
        devices=tuple(
            GuestDevice(address_of(number, device), "hostdev") for device in range(DEVICES)
        ),
        directive=Directive.parse(asked) if asked else None,
    )


def requested(irq: int, at: float) -> KernelEvent:
    """A guest has set the vector up."""
    return KernelEvent(EventKind.REQUESTED, at, irq, action_of(irq))


class CrowdFs(HostFs):
    """The host of the first `guests` guests. `calls` counts what was asked, by kind of call."""

    writable = True

    def __init__(self, guests: int) -> None:
        self._guests = guests
        self._affinity: dict[int, str] = {}
        self.calls: Counter[str] = Counter()

    def reset(self, irq: int) -> None:
        """The guest sets the interrupt up anew: it is as the kernel makes it."""
        self._affinity.pop(irq, None)

    def where(self, irq: int) -> str:
        return self._affinity.get(irq, f"{CPUS // 2}-{CPUS - 1}")

    def read(self, path: str) -> str:
        self.calls["read"] += 1
        known = _FILES.get(path)
        if known is not None:
            return known
        parts = path.split("/")
        if path.startswith("/proc/irq/") and len(parts) == 5:
            irq = self._irq(parts[3], path)
            where = self.where(irq)
            return where if parts[4] == "smp_affinity_list" else where.partition("-")[0]
        if path.startswith("/sys/kernel/irq/") and parts[-1] == "actions":
            return action_of(self._irq(parts[4], path))
        if path.startswith("/sys/bus/pci/devices/"):
            self._device(parts[5], path)
            if parts[6] == "msi_irqs":
                return "msix"
            if parts[6] in _FUNCTION:
                return _FUNCTION[parts[6]]
        raise _absent(path)

    def listdir(self, path: str) -> list[str]:
        self.calls["listdir"] += 1
        parts = path.split("/")
        if path.startswith("/sys/bus/pci/devices/") and parts[-1] == "msi_irqs":
            first = FIRST_IRQ + self._device(parts[5], path) * VECTORS
            return [str(irq) for irq in range(first, first + VECTORS)]
        if path == "/sys/devices/system/node":
            return ["node0", "node1"]
        raise _absent(path)

    def readlink(self, path: str) -> str:
        self.calls["readlink"] += 1
        if path.endswith("/driver"):
            return "../../bus/pci/drivers/vfio-pci"
        raise _absent(path)

    def mode(self, path: str) -> int:
        self.calls["mode"] += 1
        if path.endswith("smp_affinity_list"):
            return stat.S_IFREG | 0o644
        if path.startswith(("/proc/irq/", "/sys/kernel/irq/")):
            self._irq(path.rpartition("/")[2], path)
            return stat.S_IFDIR | 0o555
        if path.startswith("/sys/bus/pci/devices/"):
            self._device(path.split("/")[5], path)
            return stat.S_IFDIR | 0o755
        raise _absent(path)

    def write(self, path: str, text: str) -> None:
        self.calls["write"] += 1
        self._affinity[self._irq(path.split("/")[3], path)] = text

    def open(self, path: str) -> OpenFile:
        self.calls["open"] += 1
        self._irq(path.split("/")[3], path)
        return _Opened(self, path)

    def incarnation(self, path: str) -> int | None:
        self.calls["incarnation"] += 1
        return 1

    def _irq(self, name: str, path: str) -> int:
        irq = int(name) if name.isdecimal() else -1
        if not 0 <= irq - FIRST_IRQ < self._guests * DEVICES * VECTORS:
            raise _absent(path)
        return irq

    def _device(self, name: str, path: str) -> int:
        number = _number_of(PciAddress.parse(name))
        if number >= self._guests * DEVICES:
            raise _absent(path)
        return number


class _Opened(OpenFile):
    """An affinity, opened: read and written as by its path."""

    def __init__(self, fs: CrowdFs, path: str) -> None:
        self._fs, self._path = fs, path

    def read(self) -> str:
        return self._fs.read(self._path)

    def write(self, text: str) -> None:
        self._fs.write(self._path, text)

    def close(self) -> None:
        self._fs.calls["close"] += 1


def _absent(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
