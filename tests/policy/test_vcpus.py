"""A directive over the guest's vCPU numbers, as Nova's metadata gives it."""

from __future__ import annotations

import pytest

from virtirq.cpuset import CpuSet
from virtirq.model import Directive, Guest, GuestDevice, Node, PciAddress, PciDevice, Topology, Vcpu
from virtirq.policy.config import Config
from virtirq.policy.directives import asked_for
from virtirq.policy.target import Taken, target_of

NIC = PciAddress.parse("0000:82:00.0")
HOST = Topology(
    online=CpuSet.parse("0-7"),
    possible=CpuSet.parse("0-7"),
    nodes={0: Node(0, CpuSet.parse("0-3")), 1: Node(1, CpuSet.parse("4-7"))},
)
PINS = ("2", "3", "4-5", None)


def guest(*pins: str | None) -> Guest:
    vcpus = tuple(
        Vcpu(index, None if pin is None else CpuSet.parse(pin)) for index, pin in enumerate(pins)
    )
    return Guest("vm", "test", vcpus=vcpus, devices=(GuestDevice(NIC, "hostdev"),))


def wanted(vcpus: str) -> Directive:
    return Directive(None, vcpus=CpuSet.parse(vcpus))


@pytest.mark.parametrize(
    ("vcpus", "cpus", "seats", "note"),
    [
        ("0", "2", [0], "vCPUs 0: CPUs 2 of its vCPUs"),
        ("0,2", "2,4-5", [0], "vCPUs 0,2: CPUs 2,4-5 of its vCPUs, 2 of them on the device's node"),
        ("2", "4-5", [2], "vCPUs 2: CPUs 4-5 of its vCPUs"),
        ("1,9", "3", [1], "vCPUs 1: CPUs 3 of its vCPUs; it has no vCPU 9"),
        ("8-9", None, [], "vm has none of vCPUs 8-9: left alone"),
        ("3", "0-3", [None], "vCPUs 3: vCPUs are not pinned: CPUs 0-3 local to the device"),
    ],
)
def test_target(vcpus: str, cpus: str | None, seats: list[int | None], note: str) -> None:
    target = target_of(wanted(vcpus), guest(*PINS), PciDevice(NIC, node=0), HOST, Taken())
    assert (None if target.cpus is None else str(target.cpus)) == cpus
    assert [seat.vcpu for seat in target.seats] == seats
    assert target.note == note


def test_vectors_are_dealt_over_the_vcpus() -> None:
    device = GuestDevice(NIC, "hostdev", directive=wanted("0"))
    assert asked_for(guest(*PINS), device, None, Config()).spread.value == "vector"
    explicit = GuestDevice(NIC, "hostdev", directive=Directive.parse("0"))
    assert asked_for(guest(*PINS), explicit, None, Config()).spread.value == "mask"


def test_it_is_shown_as_what_it_is() -> None:
    assert str(wanted("0,2")) == "vcpus 0,2"
