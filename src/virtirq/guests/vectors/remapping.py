"""Follows a message through the interrupt remapping of a guest's own IOMMU, as QEMU emulates it.

Registers are read where QEMU has them on every q35, and tables where the registers say: that is
the guest's word, so tables are read from its memory only, never from a device's registers.

VT-d: Intel's Virtualization Technology for Directed I/O specification, 5.1 and 9.10; QEMU,
hw/i386/intel_iommu.c. AMD-Vi: AMD I/O Virtualization Technology (IOMMU) Specification, 2.2.5;
QEMU, hw/i386/amd_iommu.c.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from struct import unpack_from
from typing import Final

from virtirq.guests.vectors.entries import Peek
from virtirq.guests.vectors.hardware import Iommu
from virtirq.guests.vectors.msi import Destination, Message, UndecodableError, delivery, destination

_VTD: Final = 0xFED9_0000  # QEMU, include/hw/i386/intel_iommu.h
_VTD_STATUS: Final = 0x1C
_VTD_TABLE: Final = 0xB8
_VTD_ENTRY: Final = 16
_AMD: Final = 0xFED8_0000  # QEMU, hw/i386/amd_iommu.h
_AMD_ENTRY: Final = 4
_AMD_ENTRY_GA: Final = 16
_AMD_DEVICE: Final = 32
_AMD_AS_IS, _AMD_REMAPPED = 1, 2
_GAP: Final = 1024
"""Bytes between two entries that are read along with them: a read costs more than its bytes."""
_MOST_READS: Final = 16
"""Of a table; more is read along where a guest strews its entries over it (1 MiB at most)."""

Resolved = dict[int, Destination | UndecodableError]
"""Where each vector's message goes, or why that cannot be told."""
_Decode = Callable[[bytes], Destination]


def resolve(
    peek: Peek,
    iommu: Iommu | None,
    ram: Collection[range],
    requester: int,
    messages: Mapping[int, Message],
) -> Resolved:
    """Where these messages go, by vector; `requester` is the function's bus, slot and function.

    Raises what `peek` does.
    """
    memory = _Memory(peek, ram)
    if iommu is Iommu.AMD and messages:
        found = _amd(memory, requester, messages)
        if found is not None:
            return found
    remapped = {vector: each for vector, each in messages.items() if each.remappable}
    done = {
        vector: _attempt(destination, each)
        for vector, each in messages.items()
        if vector not in remapped
    }
    if remapped and iommu is Iommu.INTEL:
        return done | _intel(memory, remapped)
    return done | {vector: _attempt(destination, each) for vector, each in remapped.items()}


class _Memory:
    """A guest's memory, of which only memory is read."""

    def __init__(self, peek: Peek, ram: Collection[range]) -> None:
        self.register = peek
        self._ram = ram

    def read(self, start: int, size: int) -> bytes:
        """Raises UndecodableError for what is not memory."""
        if not any(start in each and start + size - 1 in each for each in self._ram):
            raise UndecodableError(f"its remapping table at {start:#x} is not in memory")
        return self.register(start, size)

    def entries(self, base: int, size: int, indices: Collection[int]) -> dict[int, bytes]:
        """Entries of a table, by index. Raises UndecodableError."""
        found, gap = {}, _GAP // size
        while len(spans := list(_spans(indices, gap))) > _MOST_READS:
            gap *= 2
        for first, last in spans:
            piece = self.read(base + first * size, (last - first + 1) * size)
            for index in indices:
                if first <= index <= last:
                    found[index] = piece[(index - first) * size :][:size]
        return found


def _spans(indices: Collection[int], gap: int) -> Iterator[tuple[int, int]]:
    """The first and last of each group of numbers that are no more than `gap` apart."""
    ordered = sorted(indices)
    first = last = ordered[0] if ordered else 0
    for each in ordered:
        if each - last > gap:
            yield first, last
            first = each
        last = each
    if ordered:
        yield first, last


def _intel(memory: _Memory, messages: Mapping[int, Message]) -> Resolved:
    (status,) = unpack_from("<I", memory.register(_VTD + _VTD_STATUS, 4))
    if not status >> 25 & 1:
        error = UndecodableError("it names a remapping table while remapping is off")
        return dict.fromkeys(messages, error)
    (table,) = unpack_from("<Q", memory.register(_VTD + _VTD_TABLE, 8))
    wide = bool(table >> 11 & 1)

    def decode(entry: bytes) -> Destination:
        low, high = unpack_from("<II", entry)
        if not low & 1:
            raise UndecodableError("its remapping entry is not present")
        if low >> 15 & 1:
            raise UndecodableError("its remapping entry is a posted one")
        delivery(low >> 5 & 7)
        return Destination(high if wide else high >> 8 & 0xFF, bool(low >> 2 & 1), wide)

    indices = {vector: each.handle for vector, each in messages.items()}
    count = 1 << (table & 15) + 1
    return _decoded(memory, table & ~0xFFF, _VTD_ENTRY, count, indices, decode)


def _amd(memory: _Memory, requester: int, messages: Mapping[int, Message]) -> Resolved | None:
    """None where the guest does not have this function's interrupts remapped."""
    (devices,) = unpack_from("<Q", memory.register(_AMD, 8))
    (control,) = unpack_from("<Q", memory.register(_AMD + 0x18, 8))
    if not control & 1:
        return None
    ga, wide = bool(control >> 17 & 1), bool(control >> 50 & 1)
    try:
        table = memory.read(
            (devices & 0x000F_FFFF_FFFF_F000) + requester * _AMD_DEVICE, _AMD_DEVICE
        )
    except UndecodableError as error:
        return dict.fromkeys(messages, error)
    (setting,) = unpack_from("<Q", table, 16)
    treatment = setting >> 60 & 3
    if not setting & 1 or treatment == _AMD_AS_IS:
        return None
    if treatment != _AMD_REMAPPED:
        return dict.fromkeys(messages, UndecodableError("its interrupts are blocked"))

    def decode(entry: bytes) -> Destination:
        (low,) = unpack_from("<I", entry)
        if not low & 1:
            raise UndecodableError("its remapping entry is not valid")
        if low >> 7 & 1:
            raise UndecodableError("its remapping entry is a posted one")
        delivery(low >> 2 & 7)
        number = low >> 8 & 0xFF
        if ga and wide:
            number = low >> 8 & 0xFF_FFFF | unpack_from("<I", entry, 12)[0] >> 24 << 24
        return Destination(number, bool(low >> 6 & 1), ga and wide)

    indices = {vector: each.data & 0x7FF for vector, each in messages.items() if each.interrupt}
    others = {
        vector: _attempt(destination, each)
        for vector, each in messages.items()
        if vector not in indices
    }
    count = 1 << (setting >> 1 & 15)
    size = _AMD_ENTRY_GA if ga else _AMD_ENTRY
    return others | _decoded(memory, setting & 0x000F_FFFF_FFFF_FFC0, size, count, indices, decode)


def _decoded(
    memory: _Memory,
    base: int,
    size: int,
    count: int,
    indices: Mapping[int, int],
    decode: _Decode,
) -> Resolved:
    """What the entries of a table of `count` say, by vector; `indices` are the vectors' entries."""
    outside = UndecodableError("it names an entry behind the end of the remapping table")
    inside = {index for index in indices.values() if index < count}
    try:
        found = memory.entries(base, size, inside)
    except UndecodableError as error:
        return dict.fromkeys(indices, error)
    return {
        vector: _attempt(decode, found[index]) if index in found else outside
        for vector, index in indices.items()
    }


def _attempt(decode: Callable[..., Destination], what: object) -> Destination | UndecodableError:
    try:
        return decode(what)
    except UndecodableError as error:
        return error
