"""A made guest's physical memory, as QEMU's q35 shows it: configuration space, tables, registers.

What was never written reads as zeros, as of unassigned memory in QEMU. Every peek is noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack

from virtirq.guests.vectors.hardware import Hardware, Iommu, Slot, q35_ram
from virtirq.model import PciAddress

ECAM = 0xB000_0000
EFI_ECAM = 0xE000_0000
VTD = 0xFED9_0000
AMD = 0xFED8_0000
NIC = PciAddress.parse("0000:82:00.0")
"""Where the host has the function that most tests are about."""
RAM = q35_ram(4 << 30)
_PAGE = 4096


class GuestMemory:
    """Memory that can be written by tests and peeked at. `peeks` are start and size of each."""

    def __init__(self, ecam: int | None = ECAM, *, pciexbar: int | None = None) -> None:
        """With the q35's host bridge at `ecam`; `pciexbar` is what it says, else just that."""
        self.peeks: list[tuple[int, int]] = []
        self.background = b""
        """Repeated wherever nothing was written."""
        self._pages: dict[int, bytearray] = {}
        self.ecam = ecam or 0
        if ecam is not None:
            bridge = self.function(0, 0, vendor=0x8086, device=0x29C0)
            bridge.put(0x60, "Q", ecam | 1 if pciexbar is None else pciexbar)

    def peek(self, start: int, size: int) -> bytes:
        self.peeks.append((start, size))
        found = bytearray()
        while len(found) < size:
            number, at = divmod(start + len(found), _PAGE)
            found += self._page(number)[at : at + size - len(found)]
        return bytes(found)

    def write(self, start: int, data: bytes) -> None:
        for place, byte in enumerate(data, start):
            number, at = divmod(place, _PAGE)
            if number not in self._pages:
                self._pages[number] = bytearray(self._page(number))
            self._pages[number][at] = byte

    def function(
        self, bus: int, slot: int, number: int = 0, *, vendor: int = 0x15B3, device: int = 0x1018
    ) -> Function:
        """A function with memory decoding and nothing else yet."""
        place = self.ecam + (bus << 20 | slot << 15 | number << 12)
        made = Function(self, place)
        made.put(0x00, "HHH", vendor, device, 0x0006)
        return made

    def table(self, base: int, *entries: tuple[int, ...]) -> None:
        """MSI-X entries: address, data and, where it is not 0, vector control."""
        for place, (address, data, *control) in enumerate(entries):
            self.write(base + 16 * place, pack("<QII", address, data, *(control or [0])))

    def vtd(self, table: int, *, on: bool = True, eime: bool = False, size: int = 15) -> None:
        """VT-d's registers: the remapping table is at `table`, of 2^(size+1) entries."""
        self.write(VTD + 0x1C, pack("<I", on << 25))
        self.write(VTD + 0xB8, pack("<Q", table | eime << 11 | size))

    def amd(self, devices: int, *, on: bool = True, ga: bool = False, xt: bool = False) -> None:
        """AMD-Vi's registers: the device table is at `devices`."""
        self.write(AMD, pack("<Q", devices | 1))
        self.write(AMD + 0x18, pack("<Q", on | ga << 17 | xt << 50))

    def _page(self, number: int) -> bytes | bytearray:
        if number in self._pages:
            return self._pages[number]
        return (self.background * _PAGE)[:_PAGE] if self.background else bytes(_PAGE)


class Function:
    """The configuration of a function, written as QEMU and the guest would."""

    def __init__(self, memory: GuestMemory, place: int) -> None:
        self.memory, self.place = memory, place
        self._last = 0x34
        """Where the offset of the next capability goes."""

    def put(self, at: int, form: str, *values: int) -> None:
        self.memory.write(self.place + at, pack(f"<{form}", *values))

    def bridge(self, primary: int, secondary: int) -> None:
        self.put(0x0E, "B", 1)
        self.put(0x18, "BBB", primary, secondary, secondary)

    def bar(self, number: int, base: int, *, wide: bool = True) -> None:
        """A memory BAR; a `wide` one has 64 bits and takes the next, too."""
        if wide:
            self.put(0x10 + 4 * number, "Q", base | 0xC)
        else:
            self.put(0x10 + 4 * number, "I", base)

    def capability(self, at: int, kind: int, form: str, *values: int) -> None:
        self.put(0x06, "B", 0x10)
        self.put(self._last, "B", at)
        self.put(at, f"BB{form}", kind, 0, *values)
        self._last = at + 1

    def msix(
        self,
        count: int,
        *,
        bar: int = 0,
        offset: int = 0,
        enabled: bool = True,
        masked: bool = False,
        at: int = 0x9C,
    ) -> None:
        control = count - 1 | masked << 14 | enabled << 15
        self.capability(at, 0x11, "HI", control, offset | bar)

    def msi(
        self,
        address: int,
        data: int,
        *,
        order: int = 0,
        enabled: bool = True,
        wide: bool = True,
        mask: int | None = None,
        at: int = 0x50,
    ) -> None:
        """MSI with 2^order messages enabled of 32; `mask`, where it can mask each."""
        control = enabled | 5 << 1 | order << 4 | wide << 7 | (mask is not None) << 8
        form = "HQH" if wide else "HIH"
        self.capability(at, 0x05, form, control, address, data)
        if mask is not None:
            self.put(at + (0x10 if wide else 0x0C), "I", mask)


def hardware(
    slot: Slot | None = None,
    *,
    bridges: dict[int, Slot] | None = None,
    roots: dict[int, int] | None = None,
    iommu: Iommu | None = None,
    ecam: Sequence[int] = (ECAM,),
    ram: tuple[range, ...] = RAM,
) -> Hardware:
    """A q35 with the NIC in a slot of its root bus, unless told otherwise."""
    return Hardware(
        ecam=tuple(ecam),
        bridges=bridges or {},
        roots={0: 0} if roots is None else roots,
        slots={NIC: slot or Slot(0, 3, 0)},
        iommu=iommu,
        ram=ram,
    )
