"""What each directive means on which host, and how vectors are dealt over it."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.facts import cpus, directives, function, guest, host, subsets, topologies
from virtirq.cpuset import CpuSet, union
from virtirq.model import AUTO, NATIVE, Directive, Guest, PciDevice, Topology, Vcpu, Word
from virtirq.policy.deal import Deal, Seat
from virtirq.policy.target import Taken, Target, local_to, pinned_cpus, runs_on, target_of

EMULATOR, LOCAL = Directive(Word.EMULATOR), Directive(Word.LOCAL)
RT = host(isolated="2-3,5-7")
"""Housekeeping on CPUs 0-1 of node 0 and CPU 4 of node 1."""


def explicit(text: str) -> Directive:
    return Directive.parse(text)


class Case(NamedTuple):
    directive: Directive
    topology: Topology
    guest: Guest
    device: PciDevice | None
    cpus: str | None
    note: str
    seats: str | None = None
    """What vectors are dealt over, one part for each seat; None for all of `cpus`."""
    code: str = "target"
    taken: str = ""


UNPINNED: Any = (None, None)
NODELESS = function(node=-1)

CASES = {
    "native": Case(
        NATIVE, host(), guest(), function(), None, "native: left alone", code="native"
    ),
    # auto, from where the vCPUs may run
    "auto, one CPU each": Case(
        AUTO, host(), guest(pins=("2", "1")), function(), "1-2", "CPUs 1-2 of its vCPUs", "2/1"
    ),
    "auto, a shared pool": Case(
        AUTO, host(), guest(pins=("0-2", "0-2")), function(), "0-2", "CPUs 0-2 of its vCPUs",
        "0-2/0-2",
    ),
    "auto, beside the device": Case(
        AUTO, host(), guest(pins=("4", "5")), function(), "4-5", "CPUs 4-5 of its vCPUs", "4/5"
    ),
    "auto, across nodes": Case(
        AUTO, host(), guest(pins=("4", "1", "5", "2")), function(), "1-2,4-5",
        "CPUs 1-2,4-5 of its vCPUs, 1-2 of them on the device's node", "1/2",
    ),
    "auto, pools across nodes": Case(
        AUTO, host(), guest(pins=("2-5", "6")), function(), "2-6",
        "CPUs 2-6 of its vCPUs, 2-3 of them on the device's node", "2-3",
    ),
    "auto, across nodes, device without node": Case(
        AUTO, host(), guest(pins=("4", "1")), NODELESS, "1,4", "CPUs 1,4 of its vCPUs", "4/1"
    ),
    "auto, pinned, device that the host lacks": Case(
        AUTO, host(), guest(), None, "0-1", "CPUs 0-1 of its vCPUs", "0/1"
    ),
    "auto, some offline": Case(
        AUTO, host("0,2-7"), guest(pins=("0", "1", "2-3")), function(), "0,2-3",
        "CPUs 0,2-3 of its vCPUs", "0/2-3",
    ),
    "auto, all offline": Case(
        AUTO, host("0-3"), guest(pins=("6", "7-8")), function(), None,
        "the vCPUs' CPUs 6-8 are offline", code="target-offline",
    ),
    "auto, no vCPUs": Case(
        AUTO, host(), guest(pins=()), function(), None, "vm has no vCPU whose CPUs are known",
        code="no-target",
    ),
    "auto, on isolated CPUs": Case(
        AUTO, RT, guest(pins=("2", "3")), function(), "2-3", "CPUs 2-3 of its vCPUs", "2/3"
    ),
    # auto, when nothing is pinned
    "auto, not pinned": Case(
        AUTO, host(), guest(pins=UNPINNED), function(node=1), "4-7",
        "vCPUs are not pinned: CPUs 4-7 local to the device",
    ),
    "auto, live affinity of every CPU": Case(
        AUTO, host(), guest(pins=("0-7", "0-63")), function(), "0-3",
        "vCPUs are not pinned: CPUs 0-3 local to the device",
    ),
    "auto, not pinned, no node": Case(
        AUTO, host(), guest(pins=UNPINNED), NODELESS, None,
        "vCPUs are not pinned and the device has no NUMA node: left alone", code="no-target",
    ),
    "auto, not pinned, node not known": Case(
        AUTO, host(), guest(pins=UNPINNED), function(node=None), None,
        "vCPUs are not pinned and the device has no NUMA node: left alone", code="no-target",
    ),
    "auto, not pinned, no device": Case(
        AUTO, host(), guest(pins=UNPINNED), None, None,
        "vCPUs are not pinned and the device has no NUMA node: left alone", code="no-target",
    ),
    "auto, not pinned, node offline": Case(
        AUTO, host("0-3"), guest(pins=UNPINNED), function(node=1), "0-3",
        "vCPUs are not pinned: CPUs 0-3 local to the device",
    ),
    "auto, not pinned, isolcpus": Case(
        AUTO, RT, guest(pins=UNPINNED), function(), "0-1,4",
        "vCPUs are not pinned: every CPU that is not isolated, 0-1,4,"
        " 0-1 of them on the device's node", "0-1/0-1",
    ),
    "auto, housekeeping affinity, isolcpus": Case(
        AUTO, RT, guest(pins=("0-1,4", "0-1,4")), function(node=1), "0-1,4",
        "CPUs 0-1,4 of its vCPUs, 4 of them on the device's node", "4/4",
    ),
    "auto, not pinned, local CPUs all isolated": Case(
        AUTO, host(isolated="4-7"), guest(pins=UNPINNED), function(node=1), "0-3",
        "vCPUs are not pinned: every CPU that is not isolated, 0-3", "0-3/0-3",
    ),
    "auto, not pinned, nohz_full": Case(
        AUTO, host(nohz_full="1-3"), guest(pins=UNPINNED), function(), "0",
        "vCPUs are not pinned: CPUs 0 local to the device",
    ),
    "auto, not pinned, local CPUs all nohz_full": Case(
        AUTO, host(nohz_full="0-3"), guest(pins=UNPINNED), function(), "0-3",
        "vCPUs are not pinned: CPUs 0-3 local to the device",
    ),
    # auto, when some are
    "auto, one of two pinned": Case(
        AUTO, host(), guest(pins=("2", None)), function(), "0-7",
        "CPUs 0-7 of its vCPUs, 0-3 of them on the device's node", "2/0-3",
    ),
    "auto, one of two pinned, isolcpus": Case(
        AUTO, RT, guest(pins=("2", None)), NODELESS, "0-2,4", "CPUs 0-2,4 of its vCPUs",
        "2/0-1,4",
    ),
    "auto, one of two pinned, the other allowed on isolated CPUs": Case(
        AUTO, RT, guest(pins=("2", "0-7")), NODELESS, "0-2,4", "CPUs 0-2,4 of its vCPUs",
        "2/0-1,4",
    ),
    # emulator
    "emulator": Case(
        EMULATOR, host(), guest(emulator=cpus("6-7")), function(), "6-7",
        "CPUs 6-7 of its emulator",
    ),
    "emulator, across nodes": Case(
        EMULATOR, host(), guest(emulator=cpus("0,4")), function(node=1), "0,4",
        "CPUs 0,4 of its emulator", "4",
    ),
    "emulator, partly offline": Case(
        EMULATOR, host("0-6"), guest(emulator=cpus("6-7")), function(), "6",
        "CPUs 6 of its emulator",
    ),
    "emulator, offline": Case(
        EMULATOR, host("0-5"), guest(emulator=cpus("6-7")), function(), None,
        "the emulator's CPUs 6-7 are offline", code="target-offline",
    ),
    "emulator, not pinned": Case(
        EMULATOR, host(), guest(emulator=None), function(), "0-3",
        "the emulator is not pinned: CPUs 0-3 local to the device",
    ),
    "emulator, not pinned, vCPUs are": Case(
        EMULATOR, host(), guest(emulator=None), function(), "0,3",
        "the emulator is not pinned: CPUs 0,3 local to the device", taken="1-2,4",
    ),
    "emulator, not pinned, vCPUs on all local CPUs": Case(
        EMULATOR, host(), guest(emulator=None), function(), "0-3",
        "the emulator is not pinned: CPUs 0-3 local to the device", taken="0-3",
    ),
    "emulator, not pinned, isolcpus": Case(
        EMULATOR, RT, guest(emulator=None), function(), "0-1,4",
        "CPUs 0-1,4 of its emulator", "0-1",
    ),
    "emulator, pinned to the housekeeping CPUs": Case(
        EMULATOR, host(isolated="2-7"), guest(emulator=cpus("0-1")), function(node=1), "0-1",
        "CPUs 0-1 of its emulator",
    ),
    "auto, pinned to the housekeeping CPUs": Case(
        AUTO, host(isolated="2-7"), guest(pins=("0-1", "0-1")), function(node=1), "0-1",
        "CPUs 0-1 of its vCPUs", "0-1/0-1",
    ),
    "emulator, on every CPU": Case(
        EMULATOR, host(), guest(emulator=cpus("0-7")), NODELESS, None,
        "the emulator is not pinned and the device has no NUMA node: left alone",
        code="no-target",
    ),
    # local
    "local": Case(
        LOCAL, host(), guest(), function(), "2-3", "local CPUs 2-3, dedicated to no vCPU",
        taken="0-1,4",
    ),
    "local, isolated CPUs are kept": Case(
        LOCAL, RT, guest(), function(), "0-1", "local CPUs 0-1, dedicated to no vCPU"
    ),
    "local, nohz_full CPUs are kept": Case(
        LOCAL, host(nohz_full="1-3"), guest(), function(), "0",
        "local CPUs 0, dedicated to no vCPU",
    ),
    "local, only isolated CPUs left": Case(
        LOCAL, RT, guest(), function(), "3", "local CPUs 3, dedicated to no vCPU",
        taken="0-2",
    ),
    "local, none left": Case(
        LOCAL, host("0-2,4"), guest(), function(), None,
        "guests' vCPUs are pinned to all local CPUs 0-2: left alone", code="no-target",
        taken="0-3",
    ),
    "local, no node": Case(
        LOCAL, host(), guest(), NODELESS, None,
        "the device has no NUMA node, so nothing is local: left alone", code="no-target",
    ),
    "local, node offline": Case(
        LOCAL, host("4-7"), guest(), function(), "4-7", "local CPUs 4-7, dedicated to no vCPU"
    ),
    "local, a node that nobody knows": Case(
        LOCAL, host(), guest(), function(node=5), None,
        "nothing is known of the device's node 5, so nothing is local: left alone",
        code="no-target",
    ),
    # CPUs that someone wrote down
    "explicit": Case(explicit("2-5,^3"), host(), guest(), NODELESS, "2,4-5", "CPUs 2,4-5"),
    "explicit, any CPUs of the host": Case(explicit("7"), RT, guest(), None, "7", "CPUs 7"),
    "explicit, partly offline": Case(
        explicit("2-9"), host("0-3"), guest(), function(), "2-3", "CPUs 2-3 (4-9 of 2-9 not online)"
    ),
    "explicit, offline": Case(
        explicit("8-9"), host(), guest(), function(), None, "CPUs 8-9 are not online: left alone",
        code="target-offline",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_target(case: Case) -> None:
    target = target_of(
        case.directive, case.guest, case.device, case.topology, Taken(cpus(case.taken))
    )
    assert (target.cpus, target.note, target.code) == (
        None if case.cpus is None else cpus(case.cpus),
        case.note,
        case.code,
    )
    seats = case.cpus if case.seats is None else case.seats
    assert [seat.cpus for seat in target.seats] == [
        cpus(each) for each in (seats or "").split("/") if each
    ]


def test_seats_follow_vcpus_by_number() -> None:
    mixed = guest(vcpus=(Vcpu(7, cpus("1")), Vcpu(0, cpus("4")), Vcpu(2, cpus("3"))))
    target = target_of(AUTO, mixed, function(), host(), Taken())
    assert target.seats == (Seat(cpus("3"), 2), Seat(cpus("1"), 7))
    target = target_of(AUTO, mixed, NODELESS, host(), Taken())
    assert [seat.vcpu for seat in target.seats] == [0, 2, 7]


@pytest.mark.parametrize(
    ("mask", "topology", "place"),
    [
        (None, host(), None),
        ("0-7", host(), None),
        ("0-6", host(), "0-6"),
        ("0-8191", host(), None),
        ("0-1,4", RT, "0-1,4"),
        ("0-2,4", RT, "0-2,4"),
        (None, RT, "0-1,4"),
        ("0-7", RT, "0-1,4"),
        ("2", RT, "2"),
        ("0-7", host(isolated="0-7"), None),
        ("0-3", host("0-3", possible="0-7"), None),
        ("4-7", host("0-3", possible="0-7"), ""),
    ],
)
def test_where_a_thread_runs(mask: str | None, topology: Topology, place: str | None) -> None:
    found = runs_on(None if mask is None else cpus(mask), topology)
    assert found == (None if place is None else cpus(place))


def test_pinned_cpus() -> None:
    guests = [guest(pins=("1", None)), guest(pins=("0-7", "3-4")), guest(pins=())]
    assert pinned_cpus(guests, host()) == cpus("1,3-4")
    assert pinned_cpus([], host()) == CpuSet()


@pytest.mark.parametrize(
    ("device", "topology", "local"),
    [
        (function(), host(), "0-3"),
        (function(), host("1,4"), "1"),
        (function(), host("4-7"), "4-7"),
        (function(node=-1, local_cpus=cpus("0-7")), host(), None),
        (function(node=None, local_cpus=cpus("0-7")), host(), None),
        (function(node=5), host(), None),
        (function(node=5, local_cpus=cpus("6-9")), host(), "6-7"),
        (function(node=0, local_cpus=cpus("6-7")), host(), "0-3"),
        (None, host(), None),
    ],
)
def test_local_to(device: PciDevice | None, topology: Topology, local: str | None) -> None:
    assert local_to(device, topology) == (None if local is None else cpus(local))


def dealt(seats: tuple[Seat, ...], vectors: int) -> list[int]:
    deal = Deal(seats)
    return [deal(vector)[1] for vector in range(vectors)]


def test_vector_follows_vcpu() -> None:
    seats = tuple(Seat(cpus(each), number) for number, each in enumerate(("4", "2", "7")))
    assert dealt(seats, 7) == [4, 2, 7, 4, 2, 7, 4]
    assert [Deal(seats)(vector)[0].vcpu for vector in range(4)] == [0, 1, 2, 0]


def test_vcpus_of_one_pool_deal_it_out() -> None:
    assert dealt((Seat(cpus("0-3"), 0), Seat(cpus("0-3"), 1)), 6) == [0, 1, 2, 3, 0, 1]
    assert dealt((Seat(cpus("5-7")),), 5) == [5, 6, 7, 5, 6]


def test_a_pool_beside_a_pinned_vcpu() -> None:
    seats = (Seat(cpus("9"), 0), Seat(cpus("0-2"), 1), Seat(cpus("0-2"), 2))
    assert dealt(seats, 9) == [9, 0, 1, 9, 2, 0, 9, 1, 2]


pools = st.lists(subsets(range(6), least=1), min_size=1, max_size=3)


@settings(deadline=None)
@given(st.lists(subsets(range(70), least=1), min_size=1, max_size=6), st.integers(0, 3000))
def test_a_vector_goes_to_its_vcpu(where: list[CpuSet], vector: int) -> None:
    seats = tuple(Seat(each, number) for number, each in enumerate(where))
    seat, cpu = Deal(seats)(vector)
    assert seat is seats[vector % len(seats)]
    assert cpu in seat.cpus


@settings(deadline=None)
@given(pools, st.data())
def test_each_cpu_of_a_pool_gets_its_share(of: list[CpuSet], data: st.DataObject) -> None:
    """Full rounds over every vCPU differ by one vector at most between two CPUs of a pool."""
    where = data.draw(st.lists(st.sampled_from(of), min_size=1, max_size=8))
    rounds = data.draw(st.integers(1, 5))
    deal = Deal(tuple(Seat(each, number) for number, each in enumerate(where)))
    for pool in set(where):
        count = Counter(
            cpu for seat, cpu in map(deal, range(rounds * len(where))) if seat.cpus == pool
        )
        shares = [count[cpu] for cpu in pool]
        assert max(shares) - min(shares) <= 1


def random_guest(everywhere: list[int]) -> st.SearchStrategy[Guest]:
    vcpus = st.lists(st.none() | subsets(everywhere), max_size=5).map(
        lambda them: tuple(Vcpu(index, each) for index, each in enumerate(them))
    )
    emulator = st.none() | subsets(everywhere)
    return st.builds(Guest, st.just("vm"), st.just("test"), vcpus=vcpus, emulator=emulator)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_every_target(data: st.DataObject) -> None:
    topology = data.draw(topologies())
    everywhere = sorted({*topology.possible, 5})
    it = data.draw(random_guest(everywhere))
    device = function(node=data.draw(st.sampled_from([None, -1, 0, 1, 2])))
    taken = Taken(data.draw(subsets(everywhere)), data.draw(subsets(everywhere)))
    directive = data.draw(directives(everywhere))
    target = target_of(directive, it, device, topology, taken)
    assert target.note.isprintable()
    if target.cpus is None:
        assert target.code in {"native", "no-target", "target-offline"}
        assert not target.seats
        return
    assert target.code == "target"
    assert target.cpus
    assert target.cpus <= topology.online
    assert target.seated
    assert target.seated <= target.cpus
    assert all(seat.cpus for seat in target.seats)
    _means_what_it_says(directive, target, it, device, topology, taken)


def _means_what_it_says(
    directive: Directive,
    target: Target,
    it: Guest,
    device: PciDevice,
    topology: Topology,
    taken: Taken,
) -> None:
    assert target.cpus is not None
    local = local_to(device, topology)
    if directive.word is None:
        assert target.cpus == target.seated == directive.cpus & topology.online
        return
    if directive.word is Word.LOCAL:
        assert local is not None
        assert target.cpus <= local - taken.sole
        keeping = local & topology.general - topology.nohz_full
        if keeping - taken.all:
            assert target.cpus == keeping - taken.all
        elif keeping - taken.sole and local - taken.all:
            assert target.cpus == keeping - taken.sole
        else:
            assert target.cpus <= local - taken.all or target.cpus <= topology.general
        return
    if directive.word is Word.AUTO:
        of_guest = union(each.cpus or CpuSet() for each in it.vcpus)
        free = all(runs_on(each.cpus, topology) is None for each in it.vcpus)
    else:
        of_guest = it.emulator or CpuSet()
        free = runs_on(it.emulator, topology) is None
    if free:
        assert local is not None
        assert target.cpus <= local
        assert target.cpus <= topology.general or not local & topology.general
    else:
        assert target.cpus <= of_guest | topology.general
        there = target.cpus & union(node.cpus for node in topology.nodes.values())
        if local is not None and target.cpus & local:
            assert target.seated == target.cpus & local
        elif device.node in topology.nodes and there:
            assert target.seated == there  # each other node is as far as the next
        else:
            assert target.seated == target.cpus
