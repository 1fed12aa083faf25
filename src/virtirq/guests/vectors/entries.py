"""Finds a function's MSI entries in a guest's physical memory, and reads them.

The way there is the guest's own: configuration space (PCI Express Base Specification, 7.2.2),
bridges, the function's capabilities, the BAR that holds its MSI-X table. QEMU answers such reads
from its own copies: of a table it never touches the device (hw/vfio/pci.c, hw/pci/msix.c).

What stands there is the guest's writing. Every walk is bounded, and whatever comes out is only
ever a message to be decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from struct import error as StructError  # noqa: N812
from struct import unpack_from
from typing import Any, Final

from virtirq.errors import UnavailableError
from virtirq.guests.vectors.hardware import Hardware, Slot
from virtirq.guests.vectors.msi import Message

Peek = Callable[[int, int], bytes]
"""So many bytes of guest-physical memory from an address on. Raises VirtirqError."""

_HOST_BRIDGE: Final = 0x29C0_8086  # the q35's (QEMU, include/hw/pci/pci_ids.h)
_PCIEXBAR: Final = 0x60
_PCIEXBAR_BASE: Final = 0xF_F000_0000
_HEADER: Final = 0x40
_CONFIG: Final = 256
_COMMAND_MEMORY: Final = 2
_HAS_CAPABILITIES: Final = 0x10
_MSI: Final = 0x05
_MSIX: Final = 0x11
_MOST_CAPABILITIES: Final = 48  # as many as fit (Linux, drivers/pci/pci.c, PCI_FIND_CAP_TTL)
_MOST_BRIDGES: Final = 32
ENTRY: Final = 16
_ADDRESSES: Final = 1 << 52
"""x86 has no more of physical memory (Intel SDM, volume 3, Physical-Address Width)."""


def whole(peek: Peek) -> Peek:
    """`peek`, which gives all that was asked for, and is asked for what can be there only.

    A guest can write any 64 bits as an address, and libvirt may have less to give. Raises
    UnavailableError, and what `peek` does.
    """

    def checked(start: int, size: int) -> bytes:
        if start + size > _ADDRESSES:
            raise UnavailableError(f"no memory has the address {start:#x}")
        found = peek(start, size)
        if len(found) != size:
            raise UnavailableError(f"of {size} bytes of memory at {start:#x}, {len(found)} came")
        return found

    return checked


class ConfigSpace:
    """The configuration space of a guest, which begins at `base`, and where its buses are."""

    def __init__(self, peek: Peek, hardware: Hardware) -> None:
        """Raises UnavailableError when it is not where it should be: the guest may be starting."""
        self.peek, self.hardware = whole(peek), hardware
        self.base, self._most_buses = self._found()
        self._buses: dict[int, int] = dict(hardware.roots)

    def config(self, slot: Slot, size: int = _CONFIG) -> bytes:
        """The first bytes of a function's configuration. Raises UnavailableError."""
        bus = self.bus(slot.bus)
        if bus >= self._most_buses:
            raise UnavailableError("its bus is behind the end of the configuration space")
        place = bus << 20 | slot.slot << 15 | slot.function << 12
        found = self.peek(self.base + place, size)
        if found[:2] in (b"\xff\xff", b"\0\0"):
            raise UnavailableError("the guest does not see it")
        return found

    def bus(self, index: int) -> int:
        """The number that the guest has given the bus of this controller.

        Raises UnavailableError.
        """
        path: list[int] = []
        while index not in self._buses:
            bridge = self.hardware.bridges.get(index)
            if bridge is None or len(path) == _MOST_BRIDGES or index in path:
                raise UnavailableError("the way to its bus is not known")
            path.append(index)
            index = bridge.bus
        for each in reversed(path):
            header = self.config(self.hardware.bridges[each], _HEADER)
            primary, secondary = header[0x18], header[0x19]
            if header[0x0E] & 0x7F != 1 or secondary <= primary:
                raise UnavailableError("the guest has not numbered its bus")
            self._buses[each] = secondary
        return self._buses[path[0]] if path else self._buses[index]

    def _found(self) -> tuple[int, int]:
        """Where it is, and for how many buses. Reads no more of a wrong place than one word."""
        for base in self.hardware.ecam:
            if self.peek(base, 4) != _HOST_BRIDGE.to_bytes(4, "little"):
                continue
            (register,) = unpack_from("<Q", self.peek(base + _PCIEXBAR, 8))
            if register & 1 and register & _PCIEXBAR_BASE == base:
                return base, 256 >> (register >> 1 & 3)
        raise UnavailableError("its configuration space is not set up")


def messages(peek: Peek, config: bytes, most: int) -> Mapping[int, Message]:
    """The entries of vectors below `most`, by vector, of a function that has this configuration.

    Empty while the guest's driver does not use them. Raises UnavailableError.
    """
    if config[0x0E] & 0x7F:
        raise UnavailableError("what the guest has there is a bridge")
    capabilities = _capabilities(config)
    msix, msi = capabilities.get(_MSIX), capabilities.get(_MSI)
    if msix is not None and _fields("<H", config, msix + 2)[0] >> 15:
        return _msix(peek, config, msix, most)
    if msi is not None and _fields("<H", config, msi + 2)[0] & 1:
        return _msi(config, msi, most)
    return {}


def _capabilities(config: bytes) -> dict[int, int]:
    """The offset of each kind of capability; of a kind that is there twice, the first."""
    found: dict[int, int] = {}
    if not config[0x06] & _HAS_CAPABILITIES:
        return found
    at = config[0x34] & 0xFC
    for _ in range(_MOST_CAPABILITIES):
        if at < _HEADER:
            break
        found.setdefault(config[at], at)
        at = config[at + 1] & 0xFC
    return found


def _msix(peek: Peek, config: bytes, at: int, most: int) -> dict[int, Message]:
    control, place = _fields("<HI", config, at + 2)
    if not config[0x04] & _COMMAND_MEMORY:
        return {}
    count = min((control & 0x7FF) + 1, most)
    all_masked = bool(control >> 14 & 1)
    base = _bar(config, place & 7) + (place & ~7)
    return table(peek, base, count, all_masked=all_masked)


def table(peek: Peek, base: int, count: int, *, all_masked: bool = False) -> dict[int, Message]:
    """The first entries of an MSI-X table (PCI Local Bus Specification, 6.8.2)."""
    entries = peek(base, count * ENTRY) if count > 0 else b""
    found = {}
    for vector in range(count):
        address, data, control = unpack_from("<QII", entries, vector * ENTRY)
        found[vector] = Message(address, data, all_masked or bool(control & 1))
    return found


def _bar(config: bytes, number: int) -> int:
    """Where a BAR is in memory. Raises UnavailableError."""
    if number > 5:
        raise UnavailableError("its MSI-X table is in no BAR")
    at = 0x10 + 4 * number
    (low,) = unpack_from("<I", config, at)
    base = low & 0xFFFF_FFF0
    if low & 6 == 4 and number < 5:
        base |= unpack_from("<I", config, at + 4)[0] << 32
    if low & 1 or not base:
        raise UnavailableError("the BAR of its MSI-X table is not in memory")
    return int(base)


def _msi(config: bytes, at: int, most: int) -> dict[int, Message]:
    """MSI: one message, of which each vector changes the lowest bits of the data."""
    (control,) = _fields("<H", config, at + 2)
    long = bool(control >> 7 & 1)
    address, data = _fields("<QH" if long else "<IH", config, at + 4)
    count = 1 << min(control >> 4 & 7, 5)
    mask = 0
    if control >> 8 & 1:
        (mask,) = _fields("<I", config, at + (0x10 if long else 0x0C))
    return {
        vector: Message(address, (data & ~(count - 1)) | vector, bool(mask >> vector & 1))
        for vector in range(min(count, most))
    }


def _fields(form: str, config: bytes, at: int) -> tuple[Any, ...]:
    """Part of a capability, which may begin too near to the end. Raises UnavailableError."""
    try:
        return unpack_from(form, config, at)
    except StructError as error:
        raise UnavailableError("its capability is cut off by the end of its space") from error
