"""Hold a device through VFIO with its interrupts armed, as a VM's monitor would.

    with HeldDevice("0000:01:00.0", "msix", 3) as device:
        device.fire(0)
        device.wait(0)

As a command, `python3 -m lab.vfio BDF --mode msix --vectors 3` takes one command a line
on stdin and answers each with one line: `ok ...` or `error ...`.

For the known NICs `fire` makes the device itself raise the interrupt, so the host counts
it. VFIO's own trigger (VFIO_IRQ_SET_ACTION_TRIGGER without data) would signal the eventfd
past the interrupt controller, and /proc/interrupts would never see it.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import select
import struct
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

Mode = Literal["intx", "msi", "msix"]

_DEVICES = Path("/sys/bus/pci/devices")


# --- the kernel's interface: linux/vfio.h -------------------------------------------


def _request(number: int) -> int:
    return (ord(";") << 8) + 100 + number


_SET_IOMMU = _request(2)
_GROUP_SET_CONTAINER = _request(4)
_GROUP_GET_DEVICE_FD = _request(6)
_GET_REGION_INFO = _request(8)
_GET_IRQ_INFO = _request(9)
_SET_IRQS = _request(10)

_TYPE1_IOMMU = 1
_BAR0, _CONFIG = 0, 7
_DATA_NONE, _DATA_EVENTFD = 1 << 0, 1 << 2
_ACTION_UNMASK, _ACTION_TRIGGER = 1 << 4, 1 << 5
_INDEX: dict[Mode, int] = {"intx": 0, "msi": 1, "msix": 2}

_PCI_COMMAND = 4
_PCI_MEMORY_AND_MASTER = 0x6


@dataclass(frozen=True)
class _Region:
    """A BAR or the configuration space: a range of the device's file.

    Read and written through the file and not mapped: the kernel then makes each access
    as wide as asked, which registers need.
    """

    device: int
    offset: int

    def read32(self, register: int) -> int:
        value: int = struct.unpack("<I", os.pread(self.device, 4, self.offset + register))[0]
        return value

    def write32(self, register: int, value: int) -> None:
        os.pwrite(self.device, struct.pack("<I", value), self.offset + register)

    def set16(self, register: int, bits: int) -> None:
        at = self.offset + register
        old = struct.unpack("<H", os.pread(self.device, 2, at))[0]
        os.pwrite(self.device, struct.pack("<H", old | bits), at)


def _open_group(bdf: str) -> int:
    link = _DEVICES / bdf / "iommu_group"
    if not link.exists():
        raise FileNotFoundError(f"{bdf} has no IOMMU group: is the IOMMU on?")
    return os.open(f"/dev/vfio/{link.resolve().name}", os.O_RDWR)


def _region(device: int, index: int) -> _Region:
    info = bytearray(struct.pack("=4I2Q", 32, 0, index, 0, 0, 0))
    fcntl.ioctl(device, _GET_REGION_INFO, info)
    return _Region(device, struct.unpack("=4I2Q", info)[5])


def _irq_count(device: int, mode: Mode) -> int:
    info = bytearray(struct.pack("=4I", 16, 0, _INDEX[mode], 0))
    fcntl.ioctl(device, _GET_IRQ_INFO, info)
    count: int = struct.unpack("=4I", info)[3]
    return count


def _set_irqs(
    device: int, mode: Mode, flags: int, start: int, count: int, data: bytes = b""
) -> None:
    head = struct.pack("=5I", 20 + len(data), flags, _INDEX[mode], start, count)
    fcntl.ioctl(device, _SET_IRQS, head + data)


# --- making devices raise interrupts ------------------------------------------------


class _Source:
    """A device that can be told to raise an interrupt; this one cannot."""

    def __init__(self, name: str) -> None:
        self.name = name

    def arm(self, bar: _Region, mode: Mode) -> None:
        """Called whenever interrupts were enabled."""

    def fire(self, bar: _Region, mode: Mode, vector: int) -> None:
        raise NotImplementedError(f"no way is known to make {self.name} raise interrupts")

    def acknowledge(self, bar: _Region, mode: Mode) -> None:
        """Called after each interrupt was seen."""

    def silence(self, bar: _Region) -> None:
        """Called before interrupts are disabled."""


class _E1000(_Source):
    """Intel 82540EM (e1000: INTx only) and 82574L (e1000e)."""

    _CTRL_EXT, _ICR, _ICS, _IMS, _IMC, _EIAC, _IVAR = 0x18, 0xC0, 0xC8, 0xD0, 0xD8, 0xDC, 0xE4
    _PBA, _IAME, _EIAME = 1 << 31, 1 << 27, 1 << 24
    _LINK_CHANGE = 1 << 2  # any cause would do where all causes share one interrupt
    _FIRST_CAUSE = 20  # RxQ0, RxQ1, TxQ0, TxQ1, Other: one for each MSI-X vector
    _CAUSES = 5
    _THROTTLE_SECONDS = 0.02  # far more than the 128 us that it can be

    def arm(self, bar: _Region, mode: Mode) -> None:
        bar.write32(self._IMC, 0xFFFFFFFF)
        if mode != "msix":
            bar.write32(self._IMS, self._LINK_CHANGE)
            return
        auto = self._PBA | self._IAME | self._EIAME
        bar.write32(self._CTRL_EXT, bar.read32(self._CTRL_EXT) | auto)
        # Each cause goes to the vector of the same number (bit 3 of a field: it is valid).
        bar.write32(self._IVAR, 1 << 31 | sum((8 | i) << 4 * i for i in range(self._CAUSES)))
        causes = ((1 << self._CAUSES) - 1) << self._FIRST_CAUSE
        bar.write32(self._EIAC, causes)
        bar.write32(self._IMS, causes)

    def fire(self, bar: _Region, mode: Mode, vector: int) -> None:
        cause = 1 << (self._FIRST_CAUSE + vector) if mode == "msix" else self._LINK_CHANGE
        bar.write32(self._ICS, cause)

    def acknowledge(self, bar: _Region, mode: Mode) -> None:
        if mode != "msix":  # those causes clear themselves (EIAC)
            bar.write32(self._ICR, 0xFFFFFFFF)

    def silence(self, bar: _Region) -> None:
        # QEMU dies of an assertion when MSI-X is off before its throttling timer ran out.
        bar.write32(self._IMC, 0xFFFFFFFF)
        time.sleep(self._THROTTLE_SECONDS)


class _Igb(_Source):
    """Intel 82576 (igb) with MSI-X."""

    _GPIE, _EICS, _EIMS, _EIAC = 0x1514, 0x1520, 0x1524, 0x152C
    _MULTIPLE_MSIX, _EIAME, _PBA = 1 << 4, 1 << 30, 1 << 31
    _ALL = 0x1FFFFFF

    def arm(self, bar: _Region, mode: Mode) -> None:
        bar.write32(self._GPIE, self._MULTIPLE_MSIX | self._EIAME | self._PBA)
        bar.write32(self._EIAC, self._ALL)
        bar.write32(self._EIMS, self._ALL)

    def fire(self, bar: _Region, mode: Mode, vector: int) -> None:
        if mode != "msix":
            raise NotImplementedError("igb is only made to raise MSI-X interrupts")
        bar.write32(self._EICS, 1 << vector)


def _source(bdf: str) -> _Source:
    vendor, model = ((_DEVICES / bdf / name).read_text().strip() for name in ("vendor", "device"))
    known = {("0x8086", "0x100e"): _E1000, ("0x8086", "0x10d3"): _E1000, ("0x8086", "0x10c9"): _Igb}
    return known.get((vendor, model), _Source)(f"{vendor}:{model}")


# --- holding a device ---------------------------------------------------------------


class HeldDevice:
    """A device that is bound to vfio-pci, held open, with interrupts armed.

    It is held from `with` to the end of the block; `vectors` of 0 stands for all it has.
    """

    def __init__(self, bdf: str, mode: Mode = "msix", vectors: int = 0) -> None:
        self.bdf = bdf
        self.mode = mode
        self._wanted = vectors
        self._eventfds: list[int] = []
        self._source = _source(bdf)
        self._files = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as files:
            self._device = self._open(files)
            self._bar = _region(self._device, _BAR0)
            _region(self._device, _CONFIG).set16(_PCI_COMMAND, _PCI_MEMORY_AND_MASTER)
            self.enable(self._wanted)
            self._files = files.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._files:  # closed even when disabling fails
            if self.vectors:
                self.disable()

    def _open(self, files: ExitStack) -> int:
        """The device's file. The order of closing matters: device, group, container."""
        container = os.open("/dev/vfio/vfio", os.O_RDWR)
        files.callback(os.close, container)
        group = _open_group(self.bdf)
        files.callback(os.close, group)
        fcntl.ioctl(group, _GROUP_SET_CONTAINER, struct.pack("=i", container))
        fcntl.ioctl(container, _SET_IOMMU, _TYPE1_IOMMU)
        # With a buffer that it may change, ioctl() returns the kernel's answer: the file.
        device: int = fcntl.ioctl(group, _GROUP_GET_DEVICE_FD, bytearray(self.bdf.encode() + b"\0"))
        files.callback(os.close, device)
        return device

    @property
    def vectors(self) -> int:
        """How many are armed now."""
        return len(self._eventfds)

    @property
    def capacity(self) -> int:
        """How many the device has in this mode."""
        return _irq_count(self._device, self.mode)

    def enable(self, vectors: int = 0) -> None:
        """Arm this many vectors, from none."""
        self._arm(0, vectors or self.capacity)

    def grow(self, vectors: int) -> None:
        """Arm more, leaving the armed ones as they are: MSI-X and Linux 6.5 or later."""
        self._arm(self.vectors, vectors)

    def _arm(self, start: int, count: int) -> None:
        new = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(count)]
        data = struct.pack(f"={count}i", *new)
        try:
            flags = _DATA_EVENTFD | _ACTION_TRIGGER
            _set_irqs(self._device, self.mode, flags, start, count, data)
        except OSError:
            _close(new)
            raise
        if start == 0:
            self._close_eventfds()
        self._eventfds += new
        self._source.arm(self._bar, self.mode)

    def disable(self) -> None:
        """Free every interrupt, as a guest's driver does when it unloads."""
        self._source.silence(self._bar)
        _set_irqs(self._device, self.mode, _DATA_NONE | _ACTION_TRIGGER, 0, 0)
        self._close_eventfds()

    def fire(self, vector: int = 0) -> None:
        """Have the device raise an interrupt."""
        if not 0 <= vector < self.vectors:
            raise ValueError(f"vector {vector} is not armed")
        self._source.fire(self._bar, self.mode, vector)

    def wait(self, vector: int = 0, timeout: float = 5) -> int:
        """How many interrupts came since the last call; waits for one."""
        eventfd = self._eventfds[vector]
        if not select.select([eventfd], [], [], timeout)[0]:
            raise TimeoutError(f"no interrupt from {self.bdf} vector {vector} in {timeout:g} s")
        count = os.eventfd_read(eventfd)
        self._source.acknowledge(self._bar, self.mode)
        if self.mode == "intx":  # a level: the kernel keeps it masked until told
            _set_irqs(self._device, self.mode, _DATA_NONE | _ACTION_UNMASK, 0, 1)
        return count

    def irqs(self) -> dict[int, int]:
        """The host's interrupt number of each armed vector."""
        return irqs(self.bdf)

    def _close_eventfds(self) -> None:
        _close(self._eventfds)
        self._eventfds = []


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def irqs(bdf: str) -> dict[int, int]:
    """The host's interrupt number of each vector that VFIO armed for this device."""
    pattern = re.compile(rf"\s*(\d+):.*\bvfio-(?:intx|msix?\[(\d+)\])\({re.escape(bdf)}\)")
    lines = Path("/proc/interrupts").read_text().splitlines()
    found = filter(None, map(pattern.match, lines))
    return {int(match[2] or 0): int(match[1]) for match in found}


# --- the command --------------------------------------------------------------------


def _obey(device: HeldDevice, line: str) -> str:
    """Do what one line says; the answer is for the same line's sender."""
    verb, *rest = line.split()
    number = int(rest[0]) if rest else 0
    match verb:
        case "fire":
            device.fire(number)
            return f"fired {device.wait(number)}"
        case "enable":
            device.enable(number)
        case "grow":
            device.grow(number)
        case "disable":
            device.disable()
        case "irqs":
            pass
        case _:
            raise ValueError(f"no such command: {verb}")
    return " ".join(["irqs", *(f"{vector}={irq}" for vector, irq in device.irqs().items())])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m lab.vfio", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "commands: fire N, disable, enable [N], grow N, irqs, quit"
    parser.add_argument("bdf", help="address of a device that is bound to vfio-pci")
    parser.add_argument("--mode", choices=get_args(Mode), default="msix")
    parser.add_argument("--vectors", type=int, default=0, help="how many to arm (default: all)")
    options = parser.parse_args(arguments)
    try:
        with HeldDevice(options.bdf, options.mode, options.vectors) as device:
            print(f"ok {_obey(device, 'irqs')}", flush=True)
            for line in filter(str.strip, sys.stdin):
                if line.strip() == "quit":
                    break
                try:
                    print(f"ok {_obey(device, line)}", flush=True)
                except (NotImplementedError, OSError, ValueError) as error:
                    print(f"error {error}", flush=True)
    except OSError as error:
        print(f"error {error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
