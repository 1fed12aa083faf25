"""Messages through a guest's own IOMMU: entries as Linux writes them, and tables that are none."""

from __future__ import annotations

from collections.abc import Iterable
from struct import pack
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.guests.vectors.guestmemory import AMD, RAM, VTD, GuestMemory
from virtirq.guests.vectors.hardware import Iommu
from virtirq.guests.vectors.msi import Destination, Message, UndecodableError
from virtirq.guests.vectors.remapping import resolve

TABLE: Final = 0x1_2340_0000
DEVICES: Final = 0x1_0000_0000
ENTRIES: Final = 0x0123_4000
REQUESTER: Final = 0x0503  # 05:00.3

# The address of handle 20 with a subhandle, as Linux writes it into every entry of a device.
SHV20: Final = 0xFEE0_0298


def said(found: Destination | UndecodableError) -> Destination | str:
    return str(found) if isinstance(found, UndecodableError) else found


def through(
    memory: GuestMemory,
    iommu: Iommu | None,
    messages: Iterable[Message],
    ram: tuple[range, ...] = RAM,
) -> list[Destination | str]:
    numbered = dict(enumerate(messages))
    found = resolve(memory.peek, iommu, ram, REQUESTER, numbered)
    assert found.keys() == numbered.keys()
    return [said(found[vector]) for vector in numbered]


def vtd(*entries: tuple[int, int, int], eime: bool = True, size: int = 15) -> GuestMemory:
    """A guest with remapping on; `entries` are an index and two words of each."""
    memory = GuestMemory()
    memory.vtd(TABLE, eime=eime, size=size)
    for index, low, high in entries:
        memory.write(TABLE + 16 * index, pack("<IIQ", low, high, 0x4_0503))
    return memory


# By name: the entry's first two words, whether ids are of 32 bits, and where it goes.
IRTES: Final = {
    "Linux, x2APIC, physical": (0x0022_0001, 3, True, Destination(3, wide=True)),
    "Linux, x2APIC, physical, a large id": (
        0x0022_0001,
        0x123,
        True,
        Destination(0x123, wide=True),
    ),
    "Linux, x2APIC, cluster": (
        0x0022_000D,
        0x1_0008,
        True,
        Destination(0x1_0008, logical=True, wide=True),
    ),
    "Linux, xAPIC, physical": (0x0022_0009, 0x0300, False, Destination(3)),
    "Linux, xAPIC, flat": (0x0022_000D, 0x0400, False, Destination(4, logical=True)),
    "Linux, xAPIC, flat, lowest priority": (
        0x0022_002D,
        0x0400,
        False,
        Destination(4, logical=True),
    ),
    "xAPIC has eight bits only": (0x0022_0001, 0xFFFF_03FF, False, Destination(3)),
    "not present": (0x0022_0000, 3, True, "its remapping entry is not present"),
    "never written": (0, 0, True, "its remapping entry is not present"),
    "posted": (0x0000_8001, 3, True, "its remapping entry is a posted one"),
    "an NMI": (0x0022_0081, 3, True, "its delivery mode is 4, which is no device's"),
}


@pytest.mark.parametrize(("low", "high", "eime", "there"), IRTES.values(), ids=IRTES)
def test_an_entry_of_vtd(low: int, high: int, eime: bool, there: Destination | str) -> None:
    memory = vtd((20, low, high), eime=eime)
    assert through(memory, Iommu.INTEL, [Message(SHV20, 0)]) == [there]


def test_each_vector_has_its_entry() -> None:
    """Entries next to each other are read at once; of a far one, not all that is between."""
    memory = vtd(*((20 + number, 0x0022_0001, number) for number in range(4)), (9000, 1, 7))
    far = Message(0xFEE0_0010 | (9000 << 5), 0)
    found = through(memory, Iommu.INTEL, [*(Message(SHV20, n) for n in range(4)), far])
    assert found == [Destination(number, wide=True) for number in (0, 1, 2, 3, 7)]
    assert memory.peeks == [
        (VTD + 0x1C, 4),
        (VTD + 0xB8, 8),
        (TABLE + 20 * 16, 4 * 16),
        (TABLE + 9000 * 16, 16),
    ]


def test_a_table_without_holes_is_read_at_once() -> None:
    memory = vtd(*((number, 0x0022_0001, number) for number in range(500)))
    found = through(memory, Iommu.INTEL, [Message(0xFEE0_0018, number) for number in range(500)])
    assert found == [Destination(number, wide=True) for number in range(500)]
    assert memory.peeks[2:] == [(TABLE, 500 * 16)]


def test_the_highest_bit_of_a_handle() -> None:
    memory = vtd((0x8001, 0x0022_0001, 5))
    assert through(memory, Iommu.INTEL, [Message(0xFEE0_003C, 0)]) == [Destination(5, wide=True)]


@pytest.mark.parametrize(("size", "last"), [(0, 1), (3, 15), (15, 0xFFFF)])
def test_a_table_has_an_end(size: int, last: int) -> None:
    memory = vtd((last, 0x0022_0001, 5), (last + 1, 0x0022_0001, 6), size=size)
    found = through(memory, Iommu.INTEL, [Message(0xFEE0_0018, last), Message(0xFEE0_0038, last)])
    outside = "it names an entry behind the end of the remapping table"
    assert found == [Destination(5, wide=True), outside]
    assert memory.peeks[2:] == [(TABLE + 16 * last, 16)]


def test_remapping_that_is_off() -> None:
    memory = vtd((20, 0x0022_0001, 3))
    memory.vtd(TABLE, on=False)
    told = through(memory, Iommu.INTEL, [Message(SHV20, 0), Message(0xFEE0_2000, 0x41)])
    assert told == ["it names a remapping table while remapping is off", Destination(2)]
    assert memory.peeks == [(VTD + 0x1C, 4)]


def test_without_an_iommu_nothing_more_is_read() -> None:
    memory = vtd((20, 0x0022_0001, 3))
    told = through(memory, None, [Message(SHV20, 0), Message(0xFEE0_2000, 0x41), Message(1, 1)])
    assert told == [
        "it names an entry of a remapping table",
        Destination(2),
        "its address 0x1 is no interrupt's",
    ]
    plain = through(memory, Iommu.INTEL, [Message(0xFEE0_2000, 0x41), Message(0xFEE0_2000, 0x400)])
    assert plain == [Destination(2), "its delivery mode is 4, which is no device's"]
    assert through(memory, Iommu.INTEL, []) == through(memory, Iommu.AMD, []) == []
    assert memory.peeks == []


@pytest.mark.parametrize(
    "table",
    [
        0,  # the first megabyte has ROMs
        0xF_E000,
        0xB000_0000,  # the configuration space
        0xFEBF_0000,  # some device's registers
        RAM[0].stop - 0x1000,  # ends behind the end of memory
        RAM[1].stop - 0x1000,
        RAM[1].stop,
        0x000F_FFFF_FFFF_F000,
        0xFFFF_FFFF_FFFF_F000,
    ],
)
def test_tables_are_read_from_memory_only(table: int) -> None:
    memory = vtd()
    memory.vtd(table)
    (told,) = through(memory, Iommu.INTEL, [Message(0xFEE0_0018, 0x100)])
    assert told == f"its remapping table at {table + 0x1000:#x} is not in memory"
    assert [start for start, _ in memory.peeks] == [VTD + 0x1C, VTD + 0xB8]


def test_entries_on_both_sides_of_the_end_of_memory() -> None:
    for edge in (RAM[0].start, RAM[0].stop, RAM[1].start, RAM[1].stop):
        memory = vtd()
        memory.vtd(edge - 0x1000)
        told = through(memory, Iommu.INTEL, [Message(0xFEE0_0018, 255), Message(0xFEE0_0018, 256)])
        assert told == [f"its remapping table at {edge - 16:#x} is not in memory"] * 2
        assert len(memory.peeks) == 2


def test_a_guest_whose_memory_is_not_known() -> None:
    memory = vtd((20, 0x0022_0001, 3))
    (told,) = through(memory, Iommu.INTEL, [Message(SHV20, 0)], ram=())
    assert told == f"its remapping table at {TABLE + 320:#x} is not in memory"


def test_a_table_at_either_end_of_memory() -> None:
    for table in (RAM[0].start, RAM[0].stop - 0x1000, RAM[1].start, RAM[1].stop - 0x1000):
        memory = GuestMemory()
        memory.vtd(table, eime=True)
        memory.write(table + 255 * 16, pack("<II", 0x0022_0001, 9))
        told = through(memory, Iommu.INTEL, [Message(0xFEE0_0018, 255)])
        assert told == [Destination(9, wide=True)]


# AMD-Vi -----------------------------------------------------------------------------------------


def amd(
    entry: bytes = b"",
    *,
    index: int = 5,
    dte: int = 1 | 9 << 1 | 2 << 60,
    on: bool = True,
    ga: bool = False,
    xt: bool = False,
    entries: int = ENTRIES,
) -> GuestMemory:
    """A guest whose NIC has one entry. `dte`: the bits beside the table of the third quad word."""
    memory = GuestMemory()
    memory.amd(DEVICES, on=on, ga=ga, xt=xt)
    memory.write(DEVICES + 32 * REQUESTER, pack("<QQQQ", 3, 0, dte | entries, 0))
    memory.write(entries + len(entry) * index, entry)
    return memory


def legacy(low: int) -> bytes:
    return pack("<I", low)


def long(low: int, vector: int = 0x22, high: int = 0) -> bytes:
    """A 128-bit entry: destination 31:8 of the first word, vector, and the destination's rest."""
    return pack("<IIII", low, 0, vector, high)


# Linux writes this address, and the index as data.
FIFTH: Final = Message(0xFEE0_0000, 5)
IRTES_AMD: Final = {
    "legacy, physical": (legacy(0x0022_0301), {}, Destination(3)),
    "legacy, flat": (legacy(0x0022_0445), {}, Destination(4, logical=True)),
    "legacy, flat, lowest priority": (legacy(0x0022_0445), {}, Destination(4, logical=True)),
    "legacy has no other destination": (legacy(0xFF22_0301), {"xt": True}, Destination(3)),
    "128 bits, xAPIC": (long(0x0000_0301), {"ga": True}, Destination(3)),
    "128 bits, xAPIC, flat": (long(0x0000_0441), {"ga": True}, Destination(4, logical=True)),
    "128 bits, xAPIC has eight bits only": (
        long(0x0012_0301, high=0x0100_0000),
        {"ga": True},
        Destination(3),
    ),
    "128 bits, x2APIC": (
        long(0x0001_2301),
        {"ga": True, "xt": True},
        Destination(0x123, wide=True),
    ),
    "128 bits, x2APIC, all bits": (
        long(0x1234_5601, high=0xABFF_FFFF),
        {"ga": True, "xt": True},
        Destination(0xAB12_3456, wide=True),
    ),
    "128 bits, x2APIC, cluster": (
        long(0x0100_0841),
        {"ga": True, "xt": True},
        Destination(0x1_0008, logical=True, wide=True),
    ),
    "not valid": (legacy(0x0022_0300), {}, "its remapping entry is not valid"),
    "128 bits, not valid": (long(0x300), {"ga": True}, "its remapping entry is not valid"),
    "posted": (long(0x0000_0381), {"ga": True}, "its remapping entry is a posted one"),
    "an NMI": (legacy(0x0022_0311), {}, "its delivery mode is 4, which is no device's"),
}


@pytest.mark.parametrize(("entry", "made", "there"), IRTES_AMD.values(), ids=IRTES_AMD)
def test_an_entry_of_amd(entry: bytes, made: dict[str, bool], there: Destination | str) -> None:
    assert through(amd(entry, **made), Iommu.AMD, [FIFTH]) == [there]


@pytest.mark.parametrize(
    "made",
    [{"on": False}, {"dte": 9 << 1 | 2 << 60}, {"dte": 1 | 9 << 1 | 1 << 60}],
    ids=["the IOMMU is off", "not for this device", "passed on as they are"],
)
def test_amd_that_remaps_nothing_here(made: dict[str, int]) -> None:
    memory = amd(legacy(0x0022_0301), **made)  # type: ignore[arg-type]
    assert through(memory, Iommu.AMD, [Message(0xFEE0_2000, 0x41)]) == [Destination(2)]


@pytest.mark.parametrize("treatment", [0, 3])
def test_amd_that_lets_nothing_through(treatment: int) -> None:
    memory = amd(legacy(0x0022_0301), dte=1 | 9 << 1 | treatment << 60)
    assert through(memory, Iommu.AMD, [FIFTH]) == ["its interrupts are blocked"]


def test_of_amd_what_is_no_interrupt() -> None:
    memory = amd(legacy(0x0022_0301))
    told = through(memory, Iommu.AMD, [FIFTH, Message(0xFED0_0000, 5), Message(0x1000, 5)])
    assert told == [
        Destination(3),
        "its address 0xfed00000 is no interrupt's",
        "its address 0x1000 is no interrupt's",
    ]


@pytest.mark.parametrize("length", [0, 3, 9, 11])
def test_amds_tables_have_an_end(length: int) -> None:
    last = (1 << length) - 1
    memory = amd(legacy(0x0022_0301), index=last, dte=1 | length << 1 | 2 << 60)
    found = through(memory, Iommu.AMD, [Message(0xFEE0_0000, last), Message(0xFEE0_0000, last + 1)])
    outside = "it names an entry behind the end of the remapping table"
    assert found[0] == Destination(3)
    # of 2048 entries none is behind the end: an index has eleven bits
    assert found[1] == (outside if length < 11 else "its remapping entry is not valid")


def test_an_index_has_eleven_bits() -> None:
    memory = amd(legacy(0x0022_0301), dte=1 | 15 << 1 | 2 << 60)
    assert through(memory, Iommu.AMD, [Message(0xFEE0_0000, 0xFFFF_F805)]) == [Destination(3)]


def test_the_device_table_has_the_requester() -> None:
    memory = amd(legacy(0x0022_0301))
    through(memory, Iommu.AMD, [FIFTH])
    assert memory.peeks == [
        (AMD, 8),
        (AMD + 0x18, 8),
        (DEVICES + 32 * 0x0503, 32),
        (ENTRIES + 5 * 4, 4),
    ]


@pytest.mark.parametrize("place", [0, 0xB000_0000, 0x000F_FFFF_FFFF_F000])
def test_amds_tables_are_read_from_memory_only(place: int) -> None:
    memory = amd()
    memory.amd(place)
    (told,) = through(memory, Iommu.AMD, [FIFTH])
    assert told == f"its remapping table at {place + 32 * REQUESTER:#x} is not in memory"
    memory = amd(entries=place)
    (told,) = through(memory, Iommu.AMD, [FIFTH])
    assert told == f"its remapping table at {place + 20:#x} is not in memory"
    assert all(start in (AMD, AMD + 0x18, DEVICES + 32 * REQUESTER) for start, _ in memory.peeks)


# Whatever a guest may write ---------------------------------------------------------------------

WORDS: Final = st.integers(0, 2**64 - 1)
MESSAGES: Final = st.lists(
    st.builds(
        Message,
        st.integers(0, 0xF_FFFF).map(lambda low: 0xFEE0_0000 | low) | WORDS,
        st.integers(0, 0xFFFF) | st.integers(0, 2**32 - 1),
    ),
    max_size=60,
)


@given(
    st.sampled_from([None, *Iommu]),
    MESSAGES,
    st.tuples(WORDS, WORDS, WORDS),
    st.booleans(),
    st.binary(min_size=1, max_size=64),
)
def test_no_registers_lead_out_of_memory(
    iommu: Iommu | None,
    messages: list[Message],
    registers: tuple[int, int, int],
    near: bool,
    background: bytes,
) -> None:
    memory = GuestMemory()
    memory.background = background
    first, second, third = (each & 0x1_7FFF_FFFF for each in registers) if near else registers
    memory.write(VTD + 0x1C, pack("<I", second & 0xFFFF_FFFF))
    memory.write(VTD + 0xB8, pack("<Q", first))
    memory.write(AMD, pack("<Q", first))
    memory.write(AMD + 0x18, pack("<Q", second | 1))
    devices = (first & 0x000F_FFFF_FFFF_F000) + 32 * REQUESTER
    memory.write(devices, pack("<QQQQ", 0, 0, third | 1 | 2 << 60, 0))
    through(memory, iommu, messages)
    assert len(memory.peeks) <= 3 + 16
    assert sum(size for _, size in memory.peeks) <= 64 + (1 << 20)
    registers_of = {(VTD + 0x1C, 4), (VTD + 0xB8, 8), (AMD, 8), (AMD + 0x18, 8)}
    for start, size in set(memory.peeks) - registers_of:
        assert any(start in each and start + size - 1 in each for each in RAM)


def test_entries_strewn_over_a_table_are_read_in_a_few_pieces() -> None:
    memory = vtd(*((number * 97, 0x0022_0001, number) for number in range(600)))
    strewn = [Message(0xFEE0_0018, number * 97) for number in range(600)]
    assert through(memory, Iommu.INTEL, strewn) == [
        Destination(number, wide=True) for number in range(600)
    ]
    assert len(memory.peeks) <= 2 + 16
    assert sum(size for _, size in memory.peeks) <= 12 + (1 << 20)
