"""From a guest's memory to its vCPUs: whole readings, of usual guests and of hostile ones."""

from __future__ import annotations

from struct import pack
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.guests.vectors.guestmemory import AMD, ECAM, NIC, VTD, Function, GuestMemory, hardware
from virtirq.errors import LibvirtError, UnavailableError, VirtirqError
from virtirq.guests.vectors.entries import ConfigSpace, Peek
from virtirq.guests.vectors.hardware import Hardware, Iommu, Slot
from virtirq.guests.vectors.msi import Apics, Destination, UndecodableError
from virtirq.guests.vectors.reader import aimed, apics_of, read_vectors
from virtirq.model import Aimed, Guest, GuestVectors, PciAddress, Vcpu

GPU: Final = PciAddress.parse("0000:83:00.0")
BAR: Final = 0x38_0000_0000
FOUR: Final = Apics({number: number for number in range(4)})
TABLE: Final = 0x0123_0000
MOST_VECTORS: Final = 2048
"""Entries of the largest MSI-X table (PCI Local Bus Specification, 6.8.2.3)."""


def to(apic: int) -> tuple[int, int]:
    """An entry as Linux writes it for one CPU."""
    return 0xFEE0_0000 | apic << 12, 0x4041


def made(*entries: tuple[int, ...], bus: int = 0, slot: int = 3) -> tuple[GuestMemory, Function]:
    """A guest whose NIC has these entries."""
    memory = GuestMemory()
    nic = memory.function(bus, slot)
    nic.bar(0, BAR)
    nic.msix(64, offset=0x3000)
    memory.table(BAR + 0x3000, *entries)
    return memory, nic


def read_all(
    peek: Peek, known: Hardware, apics: Apics, wanted: dict[PciAddress, int]
) -> dict[PciAddress, GuestVectors]:
    return read_vectors(ConfigSpace(peek, known), apics, wanted)


def read(memory: GuestMemory, known: Hardware | None = None, apics: Apics = FOUR) -> GuestVectors:
    (found,) = read_all(memory.peek, known or hardware(), apics, {NIC: 8}).values()
    return found


def vcpus(found: GuestVectors) -> dict[int, int | None]:
    assert not found.why
    return {vector: each.vcpu for vector, each in found.aimed.items()}


# Usual guests -----------------------------------------------------------------------------------


def test_a_linux_guest() -> None:
    memory, _ = made(
        *(to(2), to(0), (*to(1), 1), (0, 0, 1), (0, 0)),
        *((0xFEE0_300C, 0x4051), (0xFEE0_2000, 0x0400), to(9)),
    )
    assert read(memory) == GuestVectors(
        {
            0: Aimed(2),
            1: Aimed(0),
            5: Aimed(None, "it is for any of 2 vCPUs"),
            6: Aimed(None, "its delivery mode is 4, which is no device's"),
            7: Aimed(None, "no vCPU has the APIC id 0x9"),
        }
    )


def test_vcpus_are_told_by_their_apic_ids() -> None:
    memory, _ = made(to(4), to(3))
    assert vcpus(read(memory, apics=Apics({0: 0, 1: 1, 2: 2, 4: 3}))) == {0: 3, 1: None}


def test_a_guest_that_moves_a_vector() -> None:
    memory, _ = made(to(2))
    assert vcpus(read(memory)) == {0: 2}
    memory.table(BAR + 0x3000, (*to(3), 1))
    assert vcpus(read(memory)) == {}
    memory.table(BAR + 0x3000, to(3))
    assert vcpus(read(memory)) == {0: 3}


def test_a_guest_that_moves_the_bar() -> None:
    memory, nic = made(to(2))
    nic.bar(0, 0x40_0000_0000)
    memory.table(0x40_0000_3000, to(3))
    assert vcpus(read(memory)) == {0: 3}


def test_a_driver_that_lets_go_and_another_that_masks_all() -> None:
    memory, nic = made(to(2))
    nic.put(0x9E, "H", 63)
    assert read(memory) == GuestVectors()
    nic.put(0x9E, "H", 63 | 1 << 15 | 1 << 14)
    assert read(memory) == GuestVectors()
    nic.put(0x9E, "H", 63 | 1 << 15)
    nic.put(0x04, "H", 0)
    assert read(memory) == GuestVectors()
    nic.put(0x04, "H", 2)
    assert vcpus(read(memory)) == {0: 2}


def test_a_device_with_msi() -> None:
    memory = GuestMemory()
    memory.function(0, 3).msi(0xFEE0_3000, 0x4050, order=1, mask=2)
    assert vcpus(read(memory)) == {0: 3}


def behind(*links: tuple[int, Slot, int], root: int = 0) -> tuple[GuestMemory, Hardware]:
    """A NIC at the end of bridges: controller, where libvirt has it, number of the bus behind."""
    memory, _ = made(to(2), bus=links[-1][2], slot=0)
    bus = root
    for _index, slot, secondary in links:
        memory.function(bus, slot.slot, slot.function).bridge(bus, secondary)
        bus = secondary
    known = hardware(
        Slot(links[-1][0], 0, 0),
        bridges={index: slot for index, slot, _ in links},
        roots={0: 0, 7: root},
    )
    return memory, known


def test_behind_bridges() -> None:
    assert vcpus(read(*behind((1, Slot(0, 2, 1), 1)))) == {0: 2}
    assert vcpus(read(*behind((1, Slot(0, 2, 0), 4), (2, Slot(1, 0, 0), 5)))) == {0: 2}


def test_on_a_root_bus_of_a_node() -> None:
    memory, known = behind((8, Slot(7, 1, 0), 181), root=180)
    assert vcpus(read(memory, known)) == {0: 2}
    memory, _ = made(to(1), bus=180, slot=1)
    assert vcpus(read(memory, hardware(Slot(7, 1, 0), roots={0: 0, 7: 180}))) == {0: 1}


def remapped(iommu: Iommu, bus: int = 0) -> GuestMemory:
    """Three vectors; those that are not remapped would be for vCPU 0."""
    if iommu is Iommu.INTEL:
        memory, _ = made(*((0xFEE0_0298, number) for number in range(3)), bus=bus)
        memory.vtd(TABLE, eime=True)
        for number, low in enumerate((0x0022_0001, 0x0022_000D, 0)):
            memory.write(TABLE + 16 * (20 + number), pack("<II", low, (2, 0x8, 3)[number]))
        return memory
    memory, _ = made(*((0xFEE0_0000, number) for number in range(3)), bus=bus)
    memory.amd(TABLE + 0x10_0000, ga=True, xt=True)
    requester = bus << 8 | 3 << 3
    dte = pack("<QQQQ", 3, 0, TABLE | 1 | 9 << 1 | 2 << 60, 0)
    memory.write(TABLE + 0x10_0000 + 32 * requester, dte)
    for number, low in enumerate((0x0000_0201, 0x0000_0841, 0)):
        memory.write(TABLE + 16 * number, pack("<IIII", low, 0, 0x22, 0))
    return memory


@pytest.mark.parametrize("iommu", Iommu)
@pytest.mark.parametrize("bus", [0, 5])
def test_behind_an_iommu_of_the_guests(iommu: Iommu, bus: int) -> None:
    known = hardware(Slot(1 if bus else 0, 3, 0), roots={0: 0, 1: 5}, iommu=iommu)
    missing = {Iommu.INTEL: "present", Iommu.AMD: "valid"}[iommu]
    assert read(remapped(iommu, bus), known) == GuestVectors(
        {0: Aimed(2), 1: Aimed(3), 2: Aimed(None, f"its remapping entry is not {missing}")}
    )


@pytest.mark.parametrize("iommu", Iommu)
def test_an_iommu_that_the_guest_does_not_use(iommu: Iommu) -> None:
    memory, _ = made(to(2), to(3))
    assert vcpus(read(memory, hardware(iommu=iommu))) == {0: 2, 1: 3}


# Several devices --------------------------------------------------------------------------------


def pair() -> tuple[GuestMemory, Hardware]:
    """A NIC, and a GPU on another function of its slot."""
    memory, _ = made(to(2))
    gpu = memory.function(0, 3, 1)
    gpu.bar(2, 0x50_0000_0000)
    gpu.msix(1, bar=2)
    memory.table(0x50_0000_0000, to(1))
    known = hardware()
    slots = {NIC: Slot(0, 3, 0), GPU: Slot(0, 3, 1)}
    return memory, Hardware(known.ecam, {}, {0: 0}, slots, None, known.ram)


def test_each_device_has_its_own() -> None:
    memory, known = pair()
    found = read_all(memory.peek, known, FOUR, {NIC: 4, GPU: 4})
    assert {address: vcpus(each) for address, each in found.items()} == {NIC: {0: 2}, GPU: {0: 1}}
    assert len(memory.peeks) == 2 + 2 * 2


def test_what_cannot_be_read_of_one_is_said_of_that_one() -> None:
    memory, known = pair()
    memory.function(0, 3, 0, vendor=0xFFFF)
    other = PciAddress.parse("0000:84:00.0")
    found = read_all(memory.peek, known, FOUR, {NIC: 4, GPU: 4, other: 1})
    assert found == {
        NIC: GuestVectors({}, "the guest does not see it"),
        GPU: GuestVectors({0: Aimed(1)}),
        other: GuestVectors({}, "where the guest sees it is not known"),
    }


def test_an_address_of_no_memory_is_the_devices_fault() -> None:
    memory, nic = made(to(2))
    nic.bar(0, 2**64 - 0x10000)
    assert read(memory).why == f"no memory has the address {2**64 - 0x10000 + 0x3000:#x}"
    nic.put(0xA0, "I", 0xFFFF_FFF8)
    assert read(memory).why == f"no memory has the address {2**64 - 0x10000 + 0xFFFF_FFF8:#x}"


def test_a_guest_of_which_nothing_can_be_read() -> None:
    with pytest.raises(UnavailableError, match="its configuration space is not set up"):
        read(GuestMemory(None))

    def fails(start: int, size: int) -> bytes:
        raise LibvirtError("cannot read memory of web: not running")

    with pytest.raises(LibvirtError):
        read_all(fails, hardware(), FOUR, {NIC: 1})
    assert read_all(GuestMemory().peek, hardware(), FOUR, {}) == {}


def test_no_more_entries_are_read_than_there_can_be() -> None:
    memory, nic = made(*(to(number % 4) for number in range(64)))
    nic.msix(2048, offset=0x3000)
    read_all(memory.peek, hardware(), FOUR, {NIC: 10**9})
    assert memory.peeks[-1] == (BAR + 0x3000, 16 * MOST_VECTORS)


def test_as_many_vectors_as_are_of_interest() -> None:
    memory, _ = made(*(to(number % 4) for number in range(64)))
    (found,) = read_all(memory.peek, hardware(), FOUR, {NIC: 3}).values()
    assert vcpus(found) == {0: 0, 1: 1, 2: 2}
    (found,) = read_all(memory.peek, hardware(), FOUR, {NIC: 0}).values()
    assert found == GuestVectors()


# Of which vCPUs ---------------------------------------------------------------------------------


def test_apic_ids_of_a_guest() -> None:
    guest = Guest("web", "libvirt", vcpus=(Vcpu(0, apic=0), Vcpu(3, apic=5)))
    assert apics_of(guest) == Apics({0: 0, 5: 3})


@pytest.mark.parametrize(
    "each",
    [(), (Vcpu(0),), (Vcpu(0, apic=0), Vcpu(1)), (Vcpu(0, apic=1), Vcpu(1, apic=1))],
)
def test_apic_ids_that_are_not_known_of_every_vcpu(each: tuple[Vcpu, ...]) -> None:
    with pytest.raises(UnavailableError, match="the APIC ids of its vCPUs are not known"):
        apics_of(Guest("web", "libvirt", vcpus=each))


def test_what_destinations_mean() -> None:
    assert aimed(
        {0: Destination(1), 3: Destination(0xFF), 4: UndecodableError("so"), 5: Destination(7)},
        FOUR,
    ) == GuestVectors(
        {
            0: Aimed(1),
            3: Aimed(None, "it is for any of 4 vCPUs"),
            4: Aimed(None, "so"),
            5: Aimed(None, "no vCPU has the APIC id 0x7"),
        }
    )
    assert aimed({0: Destination(0xFF)}, Apics({3: 1})).aimed == {0: Aimed(1)}


# Hostile guests ---------------------------------------------------------------------------------

BYTES: Final = st.binary(min_size=1, max_size=40)
PLACES: Final = st.tuples(st.integers(0, 0xFF), st.binary(min_size=1, max_size=12))
ADDRESSES: Final = st.one_of(
    st.integers(0, 2**64 - 1),
    st.integers(0, 0x1_8000_0000),
    st.sampled_from([0, ECAM, VTD, AMD, 0xFEE0_0000, 2**64 - 16]),
)


INTERRUPTS: Final = st.one_of(
    st.integers(0, 0xF_FFFF).map(lambda low: 0xFEE0_0000 | low),
    st.integers(0, 0xFF).map(lambda apic: 0xFEE0_0000 | apic << 12),
    st.integers(0, 0xFF).map(lambda index: 0xFEE0_0018 | index << 5),
    ADDRESSES,
)
RARELY: Final = st.integers(0, 5).map(lambda number: not number)


@st.composite
def hostile(draw: st.DrawFn) -> tuple[GuestMemory, Hardware]:
    """A NIC behind two bridges, and then whatever the guest would write anywhere."""
    memory, made = behind((1, Slot(0, 2, 0), 4), (2, Slot(1, 0, 0), 5))
    iommu = draw(st.sampled_from([None, *Iommu]))
    known = hardware(
        made.slots[NIC], bridges=dict(made.bridges), roots=dict(made.roots), iommu=iommu
    )
    memory.background = draw(st.just(b"") | BYTES)
    words = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=60)
    memory.write(TABLE, b"".join(pack("<I", each) for each in draw(words)))
    memory.vtd(TABLE, eime=draw(st.booleans()), size=draw(st.integers(0, 15)))
    memory.amd(0x0200_0000, ga=draw(st.booleans()), xt=draw(st.booleans()))
    setting = TABLE | 1 | draw(st.integers(0, 15)) << 1 | draw(st.sampled_from([0, 1, 2, 2])) << 60
    memory.write(0x0200_0000 + 32 * (5 << 8) + 16, pack("<Q", setting))
    small = st.integers(0, 0x47) | st.integers(0, 2**32 - 1)
    memory.table(BAR + 0x3000, *draw(st.lists(st.tuples(INTERRUPTS, small), max_size=12)))
    functions = [ECAM, ECAM + 0x1_0000, ECAM + (4 << 20), ECAM + (5 << 20)]
    if draw(RARELY):
        for at, data in draw(st.lists(PLACES, max_size=3)):
            memory.write(draw(st.sampled_from(functions)) + at, data)
    if draw(RARELY):
        memory.write(functions[-1] + 0x10, draw(st.binary(min_size=24, max_size=24)))
    if draw(RARELY):
        memory.write(functions[-1] + 0x34, draw(st.binary(min_size=220, max_size=220)))
    if draw(RARELY):
        memory.write(draw(ADDRESSES), draw(BYTES))
    for register in (VTD + 0x1C, VTD + 0xB8, AMD, AMD + 0x18):
        if draw(RARELY):
            memory.write(register, pack("<Q", draw(ADDRESSES)))
    return memory, known


@settings(max_examples=250)
@given(
    hostile(),
    st.dictionaries(
        st.integers(0, 20) | st.integers(0, 300), st.integers(0, 300), min_size=1, max_size=12
    ),
    st.integers(0, 20) | st.integers(0, 5000),
    st.integers(0, 90),
)
def test_whatever_a_guest_writes(
    guest: tuple[GuestMemory, Hardware], ids: dict[int, int], most: int, fail: int
) -> None:
    """Ends, asks for little, says it in words, and names no vCPU that the guest has not.

    At `fail`, libvirt gives less than it was asked for.
    """
    memory, known = guest

    def peek(start: int, size: int) -> bytes:
        assert 0 <= start < 2**52
        found = memory.peek(start, size)
        return found[: size // 2] if len(memory.peeks) == fail else found

    try:
        found = read_all(peek, known, Apics(ids), {NIC: most})[NIC]
    except VirtirqError:
        return
    finally:
        assert len(memory.peeks) <= 2 + 2 + 2 + 3 + 16
        assert sum(size for _, size in memory.peeks) <= 4096 + 16 * MOST_VECTORS + (1 << 20)
    assert found.why.isprintable()
    assert found.aimed.keys() <= set(range(min(most, MOST_VECTORS)))
    for each in found.aimed.values():
        assert each.why.isprintable()
        assert len(each.why) < 100
        assert each.vcpu is None or each.vcpu in ids.values()
        assert (each.vcpu is None) == bool(each.why)


@settings(max_examples=150)
@given(st.binary(min_size=256, max_size=256), BYTES)
def test_whatever_stands_in_a_configuration(config: bytes, background: bytes) -> None:
    memory = GuestMemory()
    memory.background = background
    memory.write(memory.function(0, 3).place, config)
    memory.write(memory.function(0, 3).place, b"\xb3\x15")
    for part, value in ((0x06, 0x10), (0x0E, 0), (0x34, 0x40), (0x40, 0x11), (0x43, 0x80)):
        if config[part] & 7:  # more often than not, so far that there is something to decode
            memory.write(memory.function(0, 3).place + part, bytes([value]))
    try:
        found = read(memory)
    except VirtirqError:
        return
    finally:
        assert len(memory.peeks) <= 4
    assert {each.vcpu for each in found.aimed.values()} <= {None, 0, 1, 2, 3}
