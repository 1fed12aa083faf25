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
    """The host of the first `guests` guests. `calls` counts what was asked, by kind of call.

    All paths are made beforehand: who measures its reader does not measure it.
    """

    writable = True

    def __init__(self, guests: int) -> None:
        self._affinity: dict[int, str] = {}
        self._files = dict(_FILES)
        self._affinities: dict[str, int] = {}
        self._effective: dict[str, int] = {}
        self._modes: dict[str, int] = {}
        self._names = {"/sys/devices/system/node": ["node0", "node1"]}
        self._drivers: set[str] = set()
        for guest in range(guests):
            for device in range(DEVICES):
                self._make(guest, device)
        self.calls: Counter[str] = Counter()

    def _make(self, guest: int, device: int) -> None:
        home = f"{paths.PCI_DIR}/{address_of(guest, device)}"
        irqs = range(irq_of(guest, device, 0), irq_of(guest, device, VECTORS))
        self._names[f"{home}/msi_irqs"] = [str(irq) for irq in irqs]
        self._files |= {f"{home}/{name}": text for name, text in _FUNCTION.items()}
        self._drivers.add(f"{home}/driver")
        self._modes |= dict.fromkeys((home, f"{home}/msi_irqs"), stat.S_IFDIR | 0o755)
        for irq in irqs:
            name = action_of(irq)
            self._files[f"{home}/msi_irqs/{irq}"] = "msix"
            self._files[paths.IRQ_ACTIONS.at(irq)] = name
            self._affinities[paths.IRQ_AFFINITY.at(irq)] = irq
            self._effective[paths.IRQ_EFFECTIVE.at(irq)] = irq
            self._modes[f"{home}/msi_irqs/{irq}"] = stat.S_IFREG | 0o444
            self._modes[paths.IRQ_AFFINITY.at(irq)] = stat.S_IFREG | 0o644
            places = (paths.IRQ_DIR, paths.IRQ_SYSFS_DIR)
            self._modes |= {f"{place}/{irq}": stat.S_IFDIR | 0o555 for place in places}
            self._modes[f"{paths.IRQ_DIR}/{irq}/{name}"] = stat.S_IFDIR | 0o555

    def reset(self, irq: int) -> None:
        """The guest sets the interrupt up anew: it is as the kernel makes it."""
        self._affinity.pop(irq, None)

    def where(self, irq: int) -> str:
        return self._affinity.get(irq, f"{CPUS // 2}-{CPUS - 1}")

    def read(self, path: str) -> str:
        self.calls["read"] += 1
        text = self._files.get(path)
        if text is not None:
            return text
        irq = self._affinities.get(path)
        if irq is not None:
            return self.where(irq)
        irq = self._effective.get(path)
        if irq is not None:
            return self.where(irq).partition("-")[0]
        raise _absent(path)

    def listdir(self, path: str) -> list[str]:
        self.calls["listdir"] += 1
        names = self._names.get(path)
        if names is None:
            raise _absent(path)
        return names

    def readlink(self, path: str) -> str:
        self.calls["readlink"] += 1
        if path not in self._drivers:
            raise _absent(path)
        return "../../bus/pci/drivers/vfio-pci"

    def mode(self, path: str) -> int:
        self.calls["mode"] += 1
        mode = self._modes.get(path)
        if mode is None:
            raise _absent(path)
        return mode

    def write(self, path: str, text: str) -> None:
        self.calls["write"] += 1
        self._affinity[self._affinities[path]] = text

    def open(self, path: str) -> OpenFile:
        self.calls["open"] += 1
        if path not in self._affinities:
            raise _absent(path)
        return _Opened(self, path)

    def incarnation(self, path: str) -> int | None:
        self.calls["incarnation"] += 1
        return 1


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
