"""MSI messages: entries as guests really write them, and whatever else could stand there."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.guests.vectors.msi import (
    Apics,
    Destination,
    Message,
    UndecodableError,
    delivery,
    destination,
    vcpus,
)

FOUR: Final = Apics({number: number for number in range(4)})

# By vector: the entry's address and data, and where it goes.
REAL: Final = {
    "Linux, xAPIC, physical": (0xFEE0_1000, 0x4041, Destination(1)),
    "Linux since 5.15, without the level bit": (0xFEE0_2000, 0x0023, Destination(2)),
    "Linux, xAPIC, flat": (0xFEE0_100C, 0x4041, Destination(1, logical=True)),
    "Linux, xAPIC, flat, lowest priority": (0xFEE0_800C, 0x4161, Destination(8, logical=True)),
    "Linux, xAPIC, flat, all of four": (0xFEE0_F00C, 0x4151, Destination(15, logical=True)),
    "logical without a hint": (0xFEE0_2004, 0x0050, Destination(2, logical=True)),
    "physical with a hint": (0xFEE0_5008, 0x0030, Destination(5)),
    "everyone": (0xFEEF_F000, 0x0041, Destination(0xFF)),
    "APIC id 254, the last that has 8 bits": (0xFEEF_E000, 0x0022, Destination(0xFE)),
    "x2APIC id 0x123 in KVM's extended bits": (
        0xFEE2_3020,
        0x0022,
        Destination(0x123, wide=True),
    ),
    "x2APIC id 0x7fff, the last of those": (
        0xFEEF_FFE0,
        0x0022,
        Destination(0x7FFF, wide=True),
    ),
    "x2APIC id 0x123 as KVM's routes have it": (
        0x100_FEE2_3000,
        0x0022,
        Destination(0x123, wide=True),
    ),
    "x2APIC cluster 2 as KVM's routes have it": (
        0x0002_0000_FEE0_800C,
        0x0022,
        Destination(0x2_0008, logical=True, wide=True),
    ),
    "everyone, as KVM's routes have it": (
        0xFFFF_FF00_FEEF_F000,
        0x0022,
        Destination(0xFFFF_FFFF, wide=True),
    ),
    "extended bits mean nothing beside an upper half": (
        0x100_FEE2_3FE0,
        0x0022,
        Destination(0x123, wide=True),
    ),
    "the upper half's lowest byte is reserved": (0x55_FEE0_1000, 0x0022, Destination(1)),
}


@pytest.mark.parametrize(("address", "data", "there"), REAL.values(), ids=REAL)
def test_where_an_entry_goes(address: int, data: int, there: Destination) -> None:
    assert destination(Message(address, data)) == there


@pytest.mark.parametrize(
    ("address", "data", "why"),
    [
        (0, 0, "its address 0x0 is no interrupt's"),
        (0xFED0_1000, 0x41, "its address 0xfed01000 is no interrupt's"),
        (0xFEF0_0000, 0x41, "its address 0xfef00000 is no interrupt's"),
        (0x1_FED0_1000, 0x41, "its address 0x1fed01000 is no interrupt's"),
        (0xFEE0_0298, 0, "it names an entry of a remapping table"),
        (0xFEE0_1000, 0x0241, "its delivery mode is 2, which is no device's"),
        (0xFEE0_1000, 0x0400, "its delivery mode is 4, which is no device's"),
        (0xFEE0_1000, 0x0500, "its delivery mode is 5, which is no device's"),
        (0xFEE0_1000, 0x0700, "its delivery mode is 7, which is no device's"),
    ],
)
def test_what_is_not_for_a_vcpu(address: int, data: int, why: str) -> None:
    with pytest.raises(UndecodableError, match=why):
        destination(Message(address, data))


def test_two_delivery_modes_are_a_devices() -> None:
    taken = []
    for mode in range(8):
        try:
            delivery(mode)
        except UndecodableError:
            continue
        taken.append(mode)
    assert taken == [0, 1]


@pytest.mark.parametrize(
    ("address", "data", "handle"),
    [
        (0xFEE0_0298, 0, 20),  # as Linux writes it: format 1, subhandle valid
        (0xFEE0_0298, 3, 23),  # the fourth vector of a device with MSI
        (0xFEE0_0290, 3, 20),  # without a subhandle the data mean nothing
        (0xFEE0_0038, 0x1_0002, 3),  # a subhandle has 16 bits
        (0xFEE0_003C, 0, 0x8001),  # bit 2 is the handle's highest
        (0xFEEF_FFF4, 0, 0xFFFF),
        (0xFEEF_FFFC, 0xFFFF, 0x1_FFFE),
        (0x1_FEE0_0298, 0, 20),
    ],
)
def test_the_handle_of_a_remappable_message(address: int, data: int, handle: int) -> None:
    message = Message(address, data)
    assert message.remappable
    assert message.handle == handle


@pytest.mark.parametrize("address", [0xFEE0_0288, 0xFED0_0298, 0, 0x10])
def test_a_message_that_is_not_remappable(address: int) -> None:
    assert not Message(address, 0).remappable


def test_an_entry_that_was_never_written() -> None:
    assert Message(0, 0, masked=True).empty
    assert not Message(0xFEE0_0000, 0).empty
    assert not Message(0, 1).empty


def sparse(*ids: int) -> Apics:
    """vCPU i has the i-th of these APIC ids."""
    return Apics({apic: index for index, apic in enumerate(ids)})


WIDE = sparse(*range(20))
THREES = sparse(0, 1, 2, 4, 5, 6)  # two sockets of three cores
AIMS: Final = {
    "one": (Destination(2), FOUR, {2}),
    "one, whose APIC id is not its number": (Destination(5), THREES, {4}),
    "everyone": (Destination(0xFF), FOUR, {0, 1, 2, 3}),
    "everyone, logical": (Destination(0xFF, logical=True), FOUR, {0, 1, 2, 3}),
    "everyone by 32 bits": (Destination(0xFFFF_FFFF, wide=True), FOUR, {0, 1, 2, 3}),
    "everyone of one": (Destination(0xFF), sparse(0), {0}),
    "APIC id 255 of x2APIC": (Destination(0xFF, wide=True), Apics({0xFF: 7, 0: 0}), {7}),
    "flat": (Destination(8, logical=True), FOUR, {3}),
    "flat, two": (Destination(6, logical=True), FOUR, {1, 2}),
    "flat goes by the order, not by APIC id": (Destination(0x10, logical=True), THREES, {4}),
    "flat, the last of eight": (Destination(0x80, logical=True), sparse(*range(8)), {7}),
    "x2APIC cluster 0": (Destination(0x8, logical=True, wide=True), WIDE, {3}),
    "x2APIC cluster 1": (Destination(0x1_0008, logical=True, wide=True), WIDE, {19}),
    "x2APIC, the upper half of a cluster": (
        Destination(0xC00, logical=True, wide=True),
        WIDE,
        {10, 11},
    ),
    "x2APIC, some of a cluster": (
        Destination(0x1_FFFF, logical=True, wide=True),
        WIDE,
        {16, 17, 18, 19},
    ),
    "x2APIC goes by APIC id": (Destination(0x10, logical=True, wide=True), THREES, {3}),
    "known logical ids, flat": (
        Destination(0x2, logical=True),
        Apics({0: 0, 1: 1}, logical={0: 0x2, 1: 0x1}),
        {0},
    ),
    "known logical ids, clusters": (
        Destination(0x11, logical=True),
        Apics({0: 0, 1: 1, 2: 2}, logical={0: 0x01, 1: 0x11, 2: 0x12}, cluster=True),
        {1},
    ),
    "known logical ids of more than eight": (
        Destination(0x21, logical=True),
        Apics(
            {each: each for each in range(12)},
            logical={each: each // 4 << 4 | 1 << each % 4 for each in range(12)},
            cluster=True,
        ),
        {8},
    ),
    "a known logical id of a vCPU that is gone": (
        Destination(0x3, logical=True),
        Apics({1: 1}, logical={0: 0x1, 1: 0x2}),
        {1},
    ),
}


@pytest.mark.parametrize(("there", "apics", "wanted"), AIMS.values(), ids=AIMS)
def test_which_vcpus_that_is(there: Destination, apics: Apics, wanted: set[int]) -> None:
    assert vcpus(there, apics) == wanted


@pytest.mark.parametrize(
    ("there", "apics", "why"),
    [
        (Destination(4), FOUR, "no vCPU has the APIC id 0x4"),
        (Destination(3), THREES, "no vCPU has the APIC id 0x3"),
        (Destination(0), Apics({}), "no vCPU has the APIC id 0x0"),
        (Destination(0xFF), Apics({}), "no vCPU has the APIC id 0xff"),
        (Destination(0, logical=True), FOUR, "no vCPU has the APIC id 0x0"),
        (Destination(0x10, logical=True), FOUR, "its logical destination 0x10 is not flat"),
        (Destination(0x11, logical=True), FOUR, "its logical destination 0x11 is not flat"),
        (
            Destination(1, logical=True),
            sparse(*range(9)),
            "its destination is logical among 9 vCPUs, and their logical ids are not known",
        ),
        (Destination(0x2_0001, logical=True, wide=True), WIDE, "no vCPU has the APIC id 0x20001"),
        (Destination(0xFFFF_FFFE, logical=True, wide=True), WIDE, "no vCPU has"),
        (
            Destination(0x31, logical=True),
            Apics({0: 0}, logical={0: 0x01}, cluster=True),
            "no vCPU has the APIC id 0x31",
        ),
    ],
)
def test_destinations_that_are_no_vcpus(there: Destination, apics: Apics, why: str) -> None:
    with pytest.raises(UndecodableError, match=why):
        vcpus(there, apics)


@given(
    st.integers(0, 0x7FFF),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 1]),
    st.integers(0x10, 0xFE),
    st.booleans(),
)
def test_what_a_guest_means_is_what_is_understood(
    number: int, logical: bool, hint: bool, mode: int, vector: int, upper: bool
) -> None:
    """Put together from the fields of the SDM and of KVM, in both ways to write a long id."""
    address = 0xFEE << 20 | (number & 0xFF) << 12 | hint << 3 | logical << 2
    address |= (number >> 8) << 40 if upper else (number >> 8) << 5
    told = destination(Message(address, mode << 8 | vector))
    assert told == Destination(number, logical, wide=number > 0xFF)


MESSAGES: Final = st.builds(
    Message,
    st.one_of(
        st.integers(0, 2**64 - 1),
        st.builds(
            lambda high, low: high << 32 | 0xFEE0_0000 | low,
            st.sampled_from([0, 0, 0x100, 0xFFFF_FFFF]) | st.integers(0, 2**32 - 1),
            st.integers(0, 0xF_FFFF),
        ),
    ),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)
GUESTS: Final = st.builds(
    Apics,
    st.dictionaries(
        st.sampled_from([*range(20), 0xFE, 0xFF, 0x100, 0x7FFF]), st.integers(0, 300), max_size=12
    ),
    logical=st.just({}) | st.dictionaries(st.integers(0, 20), st.integers(0, 0xFF), max_size=12),
    cluster=st.booleans(),
)


@given(MESSAGES, GUESTS)
def test_no_message_means_a_vcpu_that_the_guest_has_not(message: Message, apics: Apics) -> None:
    assert 0 <= message.handle <= 0x1_FFFE
    try:
        found = vcpus(destination(message), apics)
    except UndecodableError:
        return
    assert found
    assert found <= set(apics.vcpus.values())


@given(st.builds(Destination, st.integers(0, 2**32 - 1), st.booleans(), st.booleans()), GUESTS)
def test_no_destination_does_either(there: Destination, apics: Apics) -> None:
    try:
        found = vcpus(there, apics)
    except UndecodableError:
        return
    assert found
    assert found <= set(apics.vcpus.values())
