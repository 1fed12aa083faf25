"""Finding and reading MSI entries: buses, capabilities and BARs, as guests leave them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.guests.vectors.guestmemory import ECAM, EFI_ECAM, NIC, Function, GuestMemory, hardware
from virtirq.errors import UnavailableError
from virtirq.guests.vectors.entries import ConfigSpace, messages, whole
from virtirq.guests.vectors.hardware import Hardware, Slot
from virtirq.guests.vectors.msi import Message

BAR: Final = 0xFE80_0000
HIGH: Final = 0x38_0000_0000
FIRST: Final = (0xFEE0_1000, 0x4041)
SECOND: Final = (0xFEE0_2000, 0x0023)


def space(memory: GuestMemory, **more: object) -> ConfigSpace:
    return ConfigSpace(memory.peek, hardware(**more))  # type: ignore[arg-type]


# The configuration space -------------------------------------------------------------------------


def test_it_is_where_the_firmware_puts_it() -> None:
    memory = GuestMemory()
    memory.function(0, 3)
    assert space(memory).config(Slot(0, 3, 0))[:2] == b"\xb3\x15"
    assert memory.peeks == [(ECAM, 4), (ECAM + 0x60, 8), (ECAM + 0x1_8000, 256)]


def test_of_a_place_where_it_is_not_one_word_is_read() -> None:
    """It may be a register of a device there."""
    memory = GuestMemory()
    space(memory, ecam=(EFI_ECAM, ECAM))
    assert memory.peeks == [(EFI_ECAM, 4), (ECAM, 4), (ECAM + 0x60, 8)]
    memory = GuestMemory(EFI_ECAM)
    space(memory, ecam=(EFI_ECAM, ECAM))
    assert memory.peeks == [(EFI_ECAM, 4), (EFI_ECAM + 0x60, 8)]


@pytest.mark.parametrize("pciexbar", [0, ECAM, 0xC000_0001, ECAM | 1 << 32 | 1, 2**64 - 1])
def test_it_must_say_itself_that_it_is_there(pciexbar: int) -> None:
    with pytest.raises(UnavailableError, match="its configuration space is not set up"):
        space(GuestMemory(pciexbar=pciexbar))


def test_a_guest_that_has_not_set_it_up_yet() -> None:
    with pytest.raises(UnavailableError, match="its configuration space is not set up"):
        space(GuestMemory(None))
    other = GuestMemory()
    other.function(0, 0, vendor=0x8086, device=0x1237)  # an i440FX
    with pytest.raises(UnavailableError, match="its configuration space is not set up"):
        space(other)


@pytest.mark.parametrize(("length", "buses"), [(0, 256), (1, 128), (2, 64), (3, 32)])
def test_it_may_have_fewer_buses(length: int, buses: int) -> None:
    memory = GuestMemory(pciexbar=ECAM | length << 1 | 1)
    memory.function(buses - 1, 0)
    for root in (buses, 256, 2**32 - 1):
        found = space(memory, roots={0: 0, 1: buses - 1, 2: root})
        assert found.config(Slot(1, 0, 0))
        before = len(memory.peeks)
        with pytest.raises(UnavailableError, match="behind the end of the configuration space"):
            found.config(Slot(2, 0, 0))
        assert len(memory.peeks) == before


@pytest.mark.parametrize("vendor", [0xFFFF, 0])
def test_a_slot_that_is_empty(vendor: int) -> None:
    memory = GuestMemory()
    memory.function(0, 3, vendor=vendor)
    with pytest.raises(UnavailableError, match="the guest does not see it"):
        space(memory).config(Slot(0, 3, 0))


def test_each_function_has_its_own() -> None:
    memory = GuestMemory()
    memory.function(7, 31, 5, device=0x1234)
    config = space(memory, roots={0: 7}).config(Slot(0, 31, 5))
    assert config[2:4] == b"\x34\x12"


# Buses ------------------------------------------------------------------------------------------


def bridged(*links: tuple[Slot, int]) -> tuple[GuestMemory, Hardware]:
    """Bridges one behind another: where libvirt has each, and the number of the bus behind it."""
    memory, bus, bridges = GuestMemory(), 0, {}
    for index, (slot, secondary) in enumerate(links, 1):
        memory.function(bus, slot.slot, slot.function).bridge(bus, secondary)
        bridges[index], bus = slot, secondary
    return memory, hardware(bridges=bridges)


def test_buses_have_the_numbers_that_the_guest_gave() -> None:
    memory, made = bridged((Slot(0, 2, 1), 5), (Slot(1, 0, 0), 6), (Slot(2, 3, 0), 0x42))
    found = ConfigSpace(memory.peek, made)
    assert [found.bus(index) for index in range(4)] == [0, 5, 6, 0x42]
    assert len(memory.peeks) == 2 + 3  # each bridge is read once
    memory.function(0x42, 1)
    assert found.config(Slot(3, 1, 0))


def test_a_way_of_many_bridges() -> None:
    chain = [(Slot(number, 1, 0), number + 1) for number in range(33)]
    memory, made = bridged(*chain)
    assert ConfigSpace(memory.peek, made).bus(32) == 32
    with pytest.raises(UnavailableError, match="the way to its bus is not known"):
        ConfigSpace(memory.peek, made).bus(33)


@pytest.mark.parametrize("bridges", [{}, {2: Slot(1, 0, 0)}, {1: Slot(2, 0, 0), 2: Slot(1, 0, 0)}])
def test_a_way_that_leads_nowhere(bridges: dict[int, Slot]) -> None:
    memory = GuestMemory()
    found = space(memory, bridges=bridges)
    before = len(memory.peeks)
    for index in (1, 2):
        with pytest.raises(UnavailableError, match="the way to its bus is not known"):
            found.bus(index)
    assert len(memory.peeks) == before


@pytest.mark.parametrize(
    ("kind", "primary", "secondary"),
    [(1, 0, 0), (1, 5, 5), (1, 5, 4), (0, 0, 5), (2, 0, 5), (0x80, 0, 5)],
)
def test_a_bridge_without_numbers(kind: int, primary: int, secondary: int) -> None:
    memory = GuestMemory()
    bridge = memory.function(0, 2)
    bridge.bridge(primary, secondary)
    bridge.put(0x0E, "B", kind)
    with pytest.raises(UnavailableError, match="the guest has not numbered its bus"):
        space(memory, bridges={1: Slot(0, 2, 0)}).bus(1)


def test_a_bridge_of_several_functions() -> None:
    memory = GuestMemory()
    bridge = memory.function(0, 2)
    bridge.bridge(0, 5)
    bridge.put(0x0E, "B", 0x81)
    assert space(memory, bridges={1: Slot(0, 2, 0)}).bus(1) == 5


# Entries ----------------------------------------------------------------------------------------

Make = Callable[[GuestMemory, Function], object]


def read(make: Make, most: int = 4) -> dict[int, Message]:
    """The entries of a NIC that was made like this."""
    memory = GuestMemory()
    make(memory, memory.function(0, 3))
    found = space(memory)
    return dict(messages(memory.peek, found.config(hardware().slots[NIC]), most))


def refused(make: Make) -> str:
    with pytest.raises(UnavailableError) as caught:
        read(make)
    return str(caught.value)


def usual(memory: GuestMemory, nic: Function) -> None:
    """A ConnectX VF: 64-bit BAR, two vectors in use, a third that is parked."""
    nic.bar(0, HIGH)
    nic.msix(12, offset=0x2000)
    memory.table(HIGH + 0x2000, FIRST, SECOND, (*FIRST, 1), (0, 0, 1))


def test_the_entries_of_msix() -> None:
    assert read(usual) == {
        0: Message(0xFEE0_1000, 0x4041),
        1: Message(0xFEE0_2000, 0x0023),
        2: Message(0xFEE0_1000, 0x4041, masked=True),
        3: Message(0, 0, masked=True),
    }


def test_no_more_than_is_of_interest_is_read() -> None:
    memory = GuestMemory()
    nic = memory.function(0, 3)
    usual(memory, nic)
    config = space(memory).config(Slot(0, 3, 0))
    memory.peeks.clear()
    assert list(messages(memory.peek, config, 2)) == [0, 1]
    assert memory.peeks == [(HIGH + 0x2000, 32)]
    memory.peeks.clear()
    assert list(messages(memory.peek, config, 100)) == list(range(12))
    assert memory.peeks == [(HIGH + 0x2000, 12 * 16)]
    memory.peeks.clear()
    assert messages(memory.peek, config, 0) == {}
    assert memory.peeks == []


def test_a_table_of_2048() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        nic.bar(4, HIGH)
        nic.msix(2048, bar=4)
        memory.table(HIGH + 2047 * 16, SECOND)

    found = read(make, 5000)
    assert len(found) == 2048
    assert found[2047] == Message(*SECOND)


def test_reserved_bits_mask_nothing() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        memory.table(HIGH + 0x2000, (*FIRST, 0xFFFF_FFFE), (*SECOND, 0xFFFF_FFFF))

    assert [each.masked for each in read(make, 2).values()] == [False, True]


def test_all_are_masked_at_once() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        nic.put(0x9E, "H", 11 | 1 << 14 | 1 << 15)

    assert {each.masked for each in read(make).values()} == {True}


@pytest.mark.parametrize(
    "undo",
    [
        lambda nic: nic.put(0x9E, "H", 11),  # the driver has let go
        lambda nic: nic.put(0x04, "H", 0x0004),  # memory decoding is off
        lambda nic: nic.put(0x06, "B", 0),  # no capabilities at all
        lambda nic: nic.put(0x34, "B", 0),
        lambda nic: nic.put(0x9C, "B", 0x10),  # another capability
    ],
)
def test_what_the_driver_does_not_use(undo: Callable[[Function], None]) -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        undo(nic)

    assert read(make) == {}


@pytest.mark.parametrize("bar", range(6))
def test_a_bar_of_32_bits(bar: int) -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        for other in range(6):
            nic.bar(other, BAR + 0x10_0000 * (other + 1), wide=False)
        nic.bar(bar, BAR, wide=False)
        nic.msix(2, bar=bar, offset=0x808)
        memory.table(BAR + 0x808, FIRST, SECOND)

    assert read(make) == {0: Message(*FIRST), 1: Message(*SECOND)}


@pytest.mark.parametrize("bar", range(5))
def test_a_bar_of_64_bits(bar: int) -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        nic.bar(bar, HIGH)
        nic.msix(1, bar=bar)
        memory.table(HIGH, FIRST)

    assert read(make) == {0: Message(*FIRST)}


@pytest.mark.parametrize("kind", [0x0, 0x2, 0x4, 0x8, 0xC])
def test_bits_of_a_bar_that_are_no_address(kind: int) -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        nic.put(0x10, "Q", BAR | kind)
        nic.msix(1)
        memory.table(BAR, FIRST)

    assert read(make) == {0: Message(*FIRST)}


def test_the_last_bar_has_no_upper_half() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        nic.put(0x24, "II", BAR | 4, 1)
        nic.msix(1, bar=5)
        memory.table(BAR, FIRST)

    assert read(make) == {0: Message(*FIRST)}


def test_a_guest_that_moves_the_bar() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        nic.bar(0, BAR)
        memory.table(BAR + 0x2000, SECOND)

    assert read(make)[0] == Message(*SECOND)


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (lambda nic: nic.put(0x10, "Q", 0xC001), "the BAR of its MSI-X table is not in memory"),
        (lambda nic: nic.put(0x10, "Q", 0xC), "the BAR of its MSI-X table is not in memory"),
        (lambda nic: nic.put(0x10, "I", 0), "the BAR of its MSI-X table is not in memory"),
        (lambda nic: nic.put(0xA0, "I", 6), "its MSI-X table is in no BAR"),
        (lambda nic: nic.put(0xA0, "I", 7), "its MSI-X table is in no BAR"),
        (lambda nic: nic.put(0x0E, "B", 1), "what the guest has there is a bridge"),
        (lambda nic: nic.put(0x0E, "B", 0x81), "what the guest has there is a bridge"),
    ],
)
def test_a_table_that_is_nowhere(break_it: Callable[[Function], None], why: str) -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        nic.bar(0, HIGH, wide=True)
        nic.put(0x14, "I", 0)
        nic.bar(0, BAR, wide=True)
        break_it(nic)

    assert refused(make) == why


def test_a_device_of_several_functions() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        nic.put(0x0E, "B", 0x80)

    assert len(read(make)) == 4


# Capabilities -----------------------------------------------------------------------------------


def test_the_capability_is_one_of_several() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        nic.capability(0x60, 0x10, "H", 2)
        nic.capability(0x48, 0x03, "H", 0)
        usual(memory, nic)
        nic.capability(0xC0, 0x09, "H", 0)

    assert len(read(make)) == 4


def test_the_first_of_two_is_it() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        nic.msix(1, offset=0x5000, at=0xC0)

    assert read(make)[0] == Message(*FIRST)


@pytest.mark.parametrize("at", [0x40, 0xE8, 0xEC, 0xF0, 0xF4])
def test_wherever_it_fits(at: int) -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        nic.capability(0xFC, 0x09, "H", 0)  # one that ends where the space does
        nic.bar(0, HIGH)
        nic.msix(1, at=at)
        memory.table(HIGH, FIRST)

    assert read(make) == {0: Message(*FIRST)}


def test_a_capability_that_is_cut_off() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        nic.capability(0xFC, 0x11, "H", 1 << 15)

    assert refused(make) == "its capability is cut off by the end of its space"

    def msi(at: int, control: int) -> Make:
        return lambda memory, nic: nic.capability(at, 0x05, "H", control)

    for at, control in ((0xFC, 1), (0xF8, 1), (0xF4, 1 | 1 << 7), (0xF4, 1 | 1 << 8)):
        assert refused(msi(at, control)) == "its capability is cut off by the end of its space"
    assert read(msi(0xFC, 0)) == {}
    assert read(msi(0xF4, 1)) == {0: Message(0, 0)}


@pytest.mark.parametrize("to", [0x40, 0x9C, 0x9F])
def test_capabilities_in_a_circle(to: int) -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        nic.capability(0x40, 0x09, "H", 0)
        nic.capability(0x9C, 0x10, "H", 0)
        nic.put(0x9D, "B", to)

    assert read(make) == {}


def test_a_circle_behind_it() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        nic.put(0x9D, "B", 0x9C)

    assert len(read(make)) == 4


@pytest.mark.parametrize("at", [0x28, 0x38, 0x3B])
def test_a_capability_in_the_header_ends_the_list(at: int) -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        nic.put(0x34, "B", at)
        nic.put(at & 0xFC, "BBHI", 0x11, 0x9C, 0x8000, 0x2000)

    assert read(make) == {}


def test_the_lowest_bits_of_a_link_are_reserved() -> None:
    def make(memory: GuestMemory, nic: Function) -> None:
        usual(memory, nic)
        nic.put(0x34, "B", 0x9C | 3)

    assert len(read(make)) == 4


# MSI --------------------------------------------------------------------------------------------


def test_one_message_of_msi() -> None:
    for wide in (False, True):
        made = read(lambda _, nic, wide=wide: nic.msi(*FIRST, wide=wide))  # type: ignore[misc]
        assert made == {0: Message(*FIRST)}
    assert read(lambda _, nic: nic.msi(0x100_FEE2_3000, 0x22)) == {
        0: Message(0x100_FEE2_3000, 0x22)
    }


def test_several_messages_of_msi_differ_in_the_lowest_bits() -> None:
    made = read(lambda _, nic: nic.msi(0xFEE0_1000, 0x4048, order=3), 32)
    assert [each.data for each in made.values()] == list(range(0x4048, 0x4050))
    assert {each.address for each in made.values()} == {0xFEE0_1000}
    sloppy = read(lambda _, nic: nic.msi(0xFEE0_1000, 0x404F, order=3), 32)
    assert sloppy == made  # the device sets these bits, whatever stands there


@pytest.mark.parametrize(("order", "count"), [(0, 1), (1, 2), (5, 32), (6, 32), (7, 32)])
def test_how_many_messages_msi_has(order: int, count: int) -> None:
    def make(_: GuestMemory, nic: Function) -> None:
        nic.msi(0xFEE0_1000, 0x40, order=order)

    assert list(read(make, 2048)) == list(range(count))
    assert list(read(make, 1)) == [0]
    assert read(make, 0) == {}


@pytest.mark.parametrize("wide", [False, True])
def test_messages_of_msi_may_be_masked(wide: bool) -> None:
    made = read(lambda _, nic: nic.msi(0xFEE0_1000, 0x40, order=2, mask=0b0110, wide=wide), 32)
    assert [each.masked for each in made.values()] == [False, True, True, False]


def test_msi_that_is_off_or_yields_to_msix() -> None:
    assert read(lambda _, nic: nic.msi(*FIRST, enabled=False)) == {}

    def both(memory: GuestMemory, nic: Function) -> None:
        nic.msi(*SECOND)
        usual(memory, nic)

    assert read(both)[0] == Message(*FIRST)

    def msix_off(memory: GuestMemory, nic: Function) -> None:
        both(memory, nic)
        nic.put(0x9E, "H", 11)

    assert read(msix_off) == {0: Message(*SECOND)}

    def msix_off_and_masked(memory: GuestMemory, nic: Function) -> None:
        both(memory, nic)
        nic.put(0x9E, "H", 11 | 1 << 14)

    assert read(msix_off_and_masked) == {0: Message(*SECOND)}


# What is asked for ------------------------------------------------------------------------------


def test_all_that_was_asked_for_must_come() -> None:
    def short(start: int, size: int) -> bytes:
        return bytes(size - 1)

    with pytest.raises(UnavailableError, match="of 16 bytes of memory at 0x1000, 15 came"):
        whole(short)(0x1000, 16)
    assert whole(GuestMemory().peek)(ECAM, 4) == b"\x86\x80\xc0\x29"


def test_addresses_that_no_memory_has_are_not_asked_for() -> None:
    memory = GuestMemory()
    assert whole(memory.peek)(2**52 - 16, 16) == bytes(16)
    for start in (2**52 - 15, 2**52, 2**64 - 16, 2**65):
        with pytest.raises(UnavailableError, match="no memory has the address 0x"):
            whole(memory.peek)(start, 16)
    assert memory.peeks == [(2**52 - 16, 16)]
