"""APIC ids: by topology, as QEMU counts them."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.guests.vectors.apic import apic_ids

# dies, cores, threads; then vCPU number: APIC id
TOPOLOGIES: Final = {
    "sockets only": ((1, 1, 1), {0: 0, 1: 1, 7: 7, 300: 300}),
    "powers of two leave no holes": ((2, 4, 2), {0: 0, 1: 1, 15: 15, 16: 16, 40: 40}),
    "three cores": ((1, 3, 1), {0: 0, 2: 2, 3: 4, 5: 6, 6: 8, 11: 14}),
    "six cores of three threads": ((1, 6, 3), {2: 2, 3: 4, 5: 6, 17: 22, 18: 32, 36: 64}),
    "three dies of six cores of four threads": (
        (3, 6, 4),
        {23: 23, 24: 32, 47: 55, 48: 64, 71: 87, 72: 128, 96: 160},
    ),
    "three dies of one": ((3, 1, 1), {2: 2, 3: 4, 4: 5}),
    "five threads": ((1, 1, 5), {4: 4, 5: 8, 9: 12, 10: 16}),
}


@pytest.mark.parametrize(("levels", "some"), TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_ids_by_topology(levels: tuple[int, int, int], some: dict[int, int]) -> None:
    dies, cores, threads = levels
    found = apic_ids(max(some) + 1, dies, cores, threads)
    assert {number: found[number] for number in some} == some


@given(st.integers(0, 600), *[st.integers(1, 9)] * 3)
def test_each_level_has_bits_of_its_own(vcpus: int, dies: int, cores: int, threads: int) -> None:
    found = apic_ids(vcpus, dies, cores, threads)
    assert list(found) == list(range(vcpus))
    assert sorted(set(found.values())) == list(found.values())  # unique, and in order
    for number, apic in found.items():
        rest = apic
        for count in (threads, cores, dies):
            width = len(f"{count - 1:b}") if count > 1 else 0
            part, rest = rest % 2**width, rest >> width
            assert part == number % count
            number //= count
        assert rest == number


def ids(vcpu: str, topology: str = "", kind: str = "kvm") -> list[int | None]:
    """The APIC ids of a domain's vCPUs."""
    guest = parse_domain(
        f"<domain type='{kind}'><name>web</name>{vcpu}<cpu>{topology}</cpu></domain>"
    )
    return [each.apic for each in guest.vcpus]


def test_of_a_domain() -> None:
    assert ids("<vcpu>3</vcpu>") == [0, 1, 2]
    assert ids("<vcpu>6</vcpu>", "<topology sockets='2' cores='3' threads='1'/>") == [
        *(0, 1, 2, 4, 5, 6)
    ]
    assert ids("<vcpu>6</vcpu>", "<topology sockets='1' dies='2' cores='3' threads='1'/>") == [
        *(0, 1, 2, 4, 5, 6)
    ]
    assert ids("<vcpu>6</vcpu>", "<topology sockets='2' cores='1' threads='3'/>") == [
        *(0, 1, 2, 4, 5, 6)
    ]


def test_vcpus_that_are_off_keep_their_ids() -> None:
    """QEMU counts the vCPUs that the guest could have."""
    topology = "<topology sockets='2' cores='3' threads='1'/>"
    assert ids("<vcpu current='4'>6</vcpu>", topology) == [0, 1, 2, 4]
    some = (
        "<vcpu current='2'>6</vcpu><vcpus><vcpu id='0' enabled='yes'/><vcpu id='4' enabled='yes'/>"
        "<vcpu id='5' enabled='no'/></vcpus>"
    )
    assert ids(some, topology) == [0, 5]


def test_where_they_cannot_be_told() -> None:
    clusters = "<topology sockets='1' clusters='2' cores='2' threads='1'/>"
    assert ids("<vcpu>4</vcpu>", clusters) == [None] * 4
    odd = "<topology sockets='1' cores='3' threads='1'/>"
    assert ids("<vcpu>4</vcpu>", odd, kind="xen") == [None] * 4
