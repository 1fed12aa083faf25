"""KVM's routes as a way to learn where guests aim: whose they are, and a bpftrace that fails."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

import pytest

from virtirq.errors import UnavailableError
from virtirq.guests.vectors import by_kvm_routes
from virtirq.guests.vectors.by_kvm_routes import RoutesReader
from virtirq.host.kvm_routes import Route, Routes, open_routes
from virtirq.model import Aimed, Guest, PciAddress, Vcpu

NIC, DISK = PciAddress.parse("0000:41:00.0"), PciAddress.parse("0000:42:00.0")
WEB = Guest("web", "test", pid=900, vcpus=tuple(Vcpu(n, apic=n) for n in range(4)))
HOLES = Guest("odd", "test", pid=900, vcpus=tuple(Vcpu(n, apic=n * 2) for n in range(4)))
WANTED = {NIC: {0: 50, 1: 51}, DISK: {0: 60}}


def to(apic: int, *, logical: bool = False) -> tuple[int, int]:
    return 0xFEE0_0000 | apic << 12 | (4 if logical else 0), 0x4021


class FakeRoutes:
    def __init__(self, routes: dict[int, Route]) -> None:
        self.routes, self.closed, self.fails = routes, 0, False

    def read(self, irqs: Collection[int]) -> dict[int, Route]:
        if self.fails:
            raise UnavailableError("bpftrace has ended")
        return {irq: route for irq, route in self.routes.items() if irq in irqs}

    def close(self) -> None:
        self.closed += 1


def reader_of(*them: FakeRoutes | UnavailableError) -> RoutesReader:
    left = list(them)

    def start() -> Routes:
        one = left.pop(0)
        if isinstance(one, UnavailableError):
            raise one
        return cast(Routes, one)

    return RoutesReader("bpftrace", start)


def test_each_vector_is_for_the_vcpu_of_its_route() -> None:
    routes = {50: Route(900, *to(3)), 51: Route(900, *to(1)), 60: Route(900, *to(0xFF))}
    learned = reader_of(FakeRoutes(routes)).read(WEB, WANTED)
    assert learned[NIC].aimed == {0: Aimed(3), 1: Aimed(1)}
    assert learned[DISK].aimed == {0: Aimed(None, "it is for any of 4 vCPUs")}


def test_routes_of_another_vm_are_not_its_own() -> None:
    learned = reader_of(FakeRoutes({50: Route(901, *to(3))})).read(WEB, WANTED)
    assert learned[NIC].aimed == learned[DISK].aimed == {}


def test_routes_told_by_the_name_of_the_interrupt_are_those_of_this_vector() -> None:
    routes = {
        50: Route(None, *to(3), f"vfio-msix[0]({NIC})"),
        51: Route(None, *to(1), f"vfio-msix[2]({NIC})"),  # its number was given anew
        60: Route(None, *to(1), f"vfio-msi[0]({NIC})"),
    }
    learned = reader_of(FakeRoutes(routes)).read(WEB, WANTED)
    assert learned[NIC].aimed == {0: Aimed(3)}
    assert learned[DISK].aimed == {}


def test_what_is_no_message_says_why() -> None:
    learned = reader_of(FakeRoutes({50: Route(900, 0x1234, 0)})).read(WEB, WANTED)
    assert learned[NIC].aimed == {0: Aimed(None, "its address 0x1234 is no interrupt's")}


def test_a_logical_destination_counts_where_it_can_mean_one_thing_only() -> None:
    routes = FakeRoutes({50: Route(900, *to(4, logical=True))})
    assert reader_of(routes).read(WEB, WANTED)[NIC].aimed == {0: Aimed(2)}
    said = "its logical destination can mean two things"
    assert reader_of(routes).read(HOLES, WANTED)[NIC].aimed == {0: Aimed(None, said)}
    physical = FakeRoutes({50: Route(900, *to(4))})
    assert reader_of(physical).read(HOLES, WANTED)[NIC].aimed == {0: Aimed(2)}


def test_a_guest_whose_apics_are_not_known_starts_nothing() -> None:
    reader = reader_of()
    with pytest.raises(UnavailableError, match="APIC ids"):
        reader.read(Guest("web", "test", pid=900, vcpus=(Vcpu(0),)), WANTED)
    with pytest.raises(UnavailableError, match="its process is not known"):
        reader.read(Guest("web", "test", vcpus=(Vcpu(0, apic=0),)), WANTED)


def test_what_cannot_be_started_is_not_tried_at_each_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    works = FakeRoutes({50: Route(900, *to(3))})
    reader = reader_of(UnavailableError("bpftrace is not installed"), works)
    for _ in range(3):
        with pytest.raises(UnavailableError, match="bpftrace is not installed"):
            reader.read(WEB, WANTED)
    monkeypatch.setattr(by_kvm_routes, "_AGAIN", 0.0)
    assert reader.read(WEB, WANTED)[NIC].aimed == {0: Aimed(3)}


def test_one_that_dies_is_ended_and_the_next_one_started_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = FakeRoutes({}), FakeRoutes({50: Route(900, *to(3))})
    reader = reader_of(first, second)
    reader.read(WEB, WANTED)
    first.fails = True
    with pytest.raises(UnavailableError, match="bpftrace has ended"):
        reader.read(WEB, WANTED)
    assert first.closed == 1
    monkeypatch.setattr(by_kvm_routes, "_AGAIN", 0.0)
    assert reader.read(WEB, WANTED)[NIC].aimed == {0: Aimed(3)}
    reader.close()
    assert second.closed == 1


def test_what_is_left_of_others_is_cleared_at_the_end_though_nothing_was_started() -> None:
    cleared: list[int] = []
    RoutesReader("probes", open_routes, lambda: cleared.append(1)).close()
    assert cleared == [1]
