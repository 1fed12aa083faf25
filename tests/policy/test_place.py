"""Where a guest could run: a table of hosts, and what holds on every host."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.facts import GPU, NIC, USB, cpus, function, guest, host, snapshot
from virtirq.cpuset import CpuSet
from virtirq.errors import NoRoomError, UsageError
from virtirq.model import Guest, Node, Topology
from virtirq.policy.place import Placement, place
from virtirq.policy.target import pinned_cpus

LOOSE: Final = (None, None)


def smt(online: str = "0-15", nodes: tuple[str, ...] = ("0-3,8-11", "4-7,12-15")) -> Topology:
    """Eight cores of two threads, on two nodes; each node's cores are in two caches."""
    made = host(online, nodes)
    siblings = tuple(CpuSet([core, core + 8]) for core in range(8))
    llcs = tuple(CpuSet([c, c + 1, c + 8, c + 9]) for c in (0, 2, 4, 6))
    distances = {0: {0: 10, 1: 21}, 1: {0: 21, 1: 10}}
    known = {
        number: Node(number, node.cpus, distances[number]) for number, node in made.nodes.items()
    }
    return replace(made, nodes=known, siblings=siblings, llcs=llcs)


HYBRID: Final = replace(
    host("0-15", ("0-15",)),
    siblings=(*(CpuSet([p, p + 1]) for p in range(0, 8, 2)), *(CpuSet([e]) for e in range(8, 16))),
    llcs=(cpus("0-15"),),
    performance=cpus("0-7"),
    efficiency=cpus("8-15"),
)
CHIPLETS: Final = replace(
    host("0-11", ("0-11",)),
    siblings=(*(CpuSet([c, c + 4]) for c in range(4)), CpuSet([8, 10]), CpuSet([9, 11])),
    llcs=(cpus("0-7"), cpus("8-11")),
    llc_sizes={cpus("0-7"): 98304, cpus("8-11"): 32768},
)
"""Four cores beside a large cache, and two beside a small one."""


def far_memory() -> Topology:
    """Two nodes, and memory of a device nearer to the second."""
    return replace(host(), nodes={**host().nodes, 2: Node(2, cpus(""), {0: 80, 1: 40, 2: 10})})


def other(pins: str, name: str = "other") -> Guest:
    return guest(name, [str(cpu) for cpu in cpus(pins)], devices=())


class Case(NamedTuple):
    """`them`: the CPUs of the vCPUs in order; `emulator` "" for none."""

    topology: Topology
    guest: Guest
    others: tuple[Guest, ...]
    node: int | None
    them: tuple[int, ...]
    emulator: str
    notes: tuple[str, ...] = ()
    nodes: tuple[int, ...] = (1,)  # of the devices
    wanted: int | None = None
    asked: str = ""


FOUR: Final = (None,) * 4
CASES: Final[dict[str, Case]] = {
    "all but the first core": Case(host(), guest(pins=LOOSE), (), 1, (5, 6), "4,7"),
    "as many as there are": Case(
        host(), guest(pins=FOUR), (), 1, (4, 5, 6, 7), "0-3",
        (
            "it leaves no core of node 1 to the host alone",
            "node 1 has no CPU left for its emulator",
        ),
    ),
    "beside another guest": Case(host(), guest(pins=LOOSE), (other("5"),), 1, (6, 7), "4"),
    "an unpinned guest takes nothing": Case(
        host(), guest(pins=LOOSE), (guest("o", LOOSE, ()),), 1, (5, 6), "4,7"
    ),
    "each on a core of its own": Case(smt(), guest(pins=LOOSE), (), 1, (6, 7), "4-5,12-13"),
    "more than cores": Case(smt(), guest(pins=FOUR), (), 1, (6, 7, 5, 14), "4,12"),
    "threads of one core": Case(
        smt(), guest(pins=FOUR, threads=2), (), 1, (6, 14, 7, 15), "4-5,12-13"
    ),
    "threads with no cores for them": Case(
        smt("0-12,15"), guest(pins=LOOSE, threads=2), (other("7"),), 1, (5, 6), "4,12",
        ("vCPUs that it takes for threads of one core are not on one core",),
    ),
    "no core that another guest has": Case(
        smt(), guest(pins=(None,)), (other("5-6"),), 1, (7,), "4,12"
    ),
    "whole cores first": Case(
        smt("0-4,6-15"), guest(pins=(None,)), (), 1, (6,), "4,7,12-13,15"
    ),
    "the smallest cache that fits": Case(
        smt(), guest(pins=(None,)), (), 1, (5,), "4,6-7,12,14-15"
    ),
    "isolated CPUs": Case(
        host(isolated="2-3,6-7"), guest(pins=LOOSE), (), 1, (6, 7), "4-5"
    ),
    "isolated CPUs elsewhere count": Case(
        host(isolated="6-7", nohz_full="6-7"), guest(pins=(None,)), (other("6"),), 1, (7,), "4-5"
    ),
    "where it is already": Case(host(), guest(pins=("7", "5")), (), 1, (7, 5), "4,6"),
    "where another is, too": Case(host(), guest(pins=("6", "7")), (other("7"),), 1, (5, 6), "4"),
    "twice on one CPU": Case(host(), guest(pins=("6", "6")), (), 1, (5, 6), "4,7"),
    "nothing is left for the emulator": Case(
        host(), guest(pins=FOUR), (other("0-3"),), 1, (4, 5, 6, 7), "",
        (
            "it leaves no core of node 1 to the host alone",
            "no CPU is left for its emulator, which stays where it is",
        ),
    ),
    "the node of most devices": Case(
        host(), guest(pins=LOOSE, devices=(NIC, GPU, USB)), (), 0, (1, 2), "0,3", nodes=(1, 0, 0)
    ),
    "as many here as there": Case(
        host(), guest(pins=LOOSE, devices=(NIC, GPU)), (), 0, (1, 2), "0,3", nodes=(1, 0)
    ),
    "the node that is asked for": Case(
        host(), guest(pins=LOOSE), (), 0, (1, 2), "0,3", wanted=0
    ),
    "one node, and a device without": Case(
        host("0-3", ("0-3",)), guest(pins=LOOSE), (), 0, (1, 2), "0,3", nodes=(-1,)
    ),
    "I/O threads elsewhere": Case(
        host(), guest(pins=LOOSE, iothreads={1: cpus("0"), 2: cpus("6")}), (), 1, (5, 6), "4,7",
        ("its I/O threads stay on CPUs 0,6",),
    ),
    "I/O threads there": Case(
        host(), guest(pins=LOOSE, iothreads={1: cpus("4")}), (), 1, (5, 6), "4,7"
    ),
    "offline CPUs": Case(host("0-5,7"), guest(pins=LOOSE), (), 1, (5, 7), "4"),
    # hybrid CPUs: 4 performance cores of two threads, and 8 efficiency cores
    "performance cores": Case(HYBRID, guest(pins=FOUR), (), 0, (0, 2, 4, 6), "8-15", nodes=(0,)),
    "and their siblings": Case(
        HYBRID, guest(pins=(None,) * 6), (), 0, (0, 2, 4, 6, 1, 3), "8-15", nodes=(0,)
    ),
    "threads of performance cores": Case(
        HYBRID, guest(pins=FOUR, threads=2), (), 0, (0, 1, 2, 3), "8-15", nodes=(-1,)
    ),
    "more than there are performance cores": Case(
        HYBRID, guest(pins=(None,) * 10), (), 0, (0, 2, 4, 6, 9, 10, 11, 12, 13, 14), "8,15",
        ("CPUs 9-14 are efficiency cores: there are not enough others",), nodes=(0,),
    ),
    "from a mixture to one sort": Case(
        HYBRID, guest(pins=("0", "9")), (), 0, (0, 2), "8-15", nodes=(0,)
    ),
    "on efficiency cores, as someone chose": Case(
        HYBRID, guest(pins=("9", "10")), (), 0, (9, 10), "8,11-15", nodes=(0,)
    ),
    # a larger cache on one chiplet
    "the larger cache": Case(
        CHIPLETS, guest(pins=FOUR, threads=2), (), 0, (0, 4, 1, 5), "2-3,6-11", nodes=(0,)
    ),
    "all of the larger cache": Case(
        CHIPLETS, guest(pins=(None,) * 8, threads=2), (), 0, (0, 4, 1, 5, 2, 6, 3, 7), "8-11",
        nodes=(0,),
    ),
    "the larger cache has no room": Case(
        CHIPLETS, guest(pins=LOOSE, threads=2), (other("0-3"),), 0, (9, 11), "8,10", nodes=(0,)
    ),
    # kernels without NUMA, nodes without CPUs, one node that says -1
    "a kernel without NUMA": Case(
        host(nodes=()), guest(pins=LOOSE), (), None, (1, 2), "0,3-7", nodes=(-1,)
    ),
    "its only node has a name all the same": Case(
        host(nodes=()), guest(pins=LOOSE), (), None, (1, 2), "0,3-7", wanted=0
    ),
    "the node next to memory without CPUs": Case(
        far_memory(), guest(pins=LOOSE), (), 1, (5, 6), "4,7", nodes=(2,)
    ),
    # the emulator
    "an emulator that someone pinned": Case(
        host(), guest(pins=LOOSE, emulator=cpus("0,3")), (), 1, (5, 6), ""
    ),
    "an emulator on the way": Case(
        host(), guest(pins=LOOSE, emulator=cpus("5")), (), 1, (5, 6), "4,7"
    ),
    "an emulator on another guest's": Case(
        host(), guest(pins=LOOSE, emulator=cpus("0")), (other("0"),), 1, (5, 6), "4,7"
    ),
    "an emulator in a pool": Case(
        host(), guest(pins=LOOSE, emulator=cpus("0-3")), (guest("o", ("0-3",) * 2, ()),), 1,
        (5, 6), "",
    ),
    # CPUs that were asked for
    "these CPUs": Case(host(), guest(pins=LOOSE), (), 0, (2, 3), "0-1", asked="2-3"),
    "the best of these": Case(
        HYBRID, guest(pins=LOOSE), (), 0, (6, 7), "8-15", nodes=(0,), asked="6-15"
    ),
    "these, isolated or not": Case(
        host(isolated="6-7"), guest(pins=LOOSE), (), 0, (0, 1), "2-3", asked="0-1"
    ),
    "these, on two nodes": Case(
        host(), guest(pins=LOOSE), (), None, (3, 4), "0-2,5-7", asked="3-4"
    ),
    # who never runs at the same time
    "in place of another with the same device": Case(
        host(), guest(pins=LOOSE), (guest("twin", ("5", "6"), (NIC,)),), 1, (5, 6), "4,7"
    ),
    "beside another with another device": Case(
        host("0-7"), guest(pins=LOOSE), (guest("twin", ("5",), (GPU,)),), 1, (6, 7), "4"
    ),
    "beside another that runs as well": Case(
        host(), guest(pins=LOOSE, pid=1), (guest("twin", ("5",), (NIC,), pid=2),), 1, (6, 7), "4"
    ),
}  # fmt: skip


def seated(case: Case) -> Placement:
    devices = zip((NIC, GPU, USB), case.nodes, strict=False)
    state = snapshot(
        case.topology,
        [function(address, node) for address, node in devices],
        guests=[case.guest, *case.others],
    )
    return place(state, case.guest, case.wanted, cpus(case.asked) if case.asked else None)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_place(case: Case) -> None:
    found = seated(case)
    assert (found.node, tuple(found.vcpus.values())) == (case.node, case.them)
    assert found.emulator == (cpus(case.emulator) if case.emulator else None)
    assert found.notes == case.notes


def test_nothing_to_do() -> None:
    """Where it is, with an emulator that someone pinned: not even that is touched."""
    there = guest(pins=("5", "6"), emulator=cpus("4"), memory_nodes=frozenset({1}))
    found = place(snapshot(host(), [function(node=1)], guests=[there]), there)
    assert (found.moves, found.changes, found.emulator) == (False, False, None)
    far = replace(there, memory_nodes=frozenset({0}))
    assert place(snapshot(host(), [function(node=1)], guests=[far]), far).changes
    one = host("0-7", ("0-7",))
    assert place(snapshot(one, guests=[far]), far).memory is None, "there is no other node"


@pytest.mark.parametrize(
    ("name", "moves"),
    [("where it is already", False), ("twice on one CPU", True), ("isolated CPUs", True)],
)
def test_whether_anything_is_to_be_done(name: str, moves: bool) -> None:
    assert seated(CASES[name]).moves is moves


NOT_THERE: Final[dict[str, tuple[Case, str, str]]] = {
    "no such node": (
        Case(host(), guest(pins=LOOSE), (), 1, (), "", wanted=7),
        "node 7 is not there", "nodes with CPUs are 0-1",
    ),
    "a node without CPUs": (
        Case(host("0-3"), guest(pins=LOOSE), (), 1, (), "", wanted=1),
        "node 1 has no CPUs", "nodes with CPUs are 0",
    ),
    "no node at all": (
        Case(host(nodes=()), guest(pins=LOOSE), (), 1, (), "", wanted=1),
        "node 1 is not there", "the kernel knows no nodes",
    ),
    "CPUs that are offline": (
        Case(host(), guest(pins=LOOSE), (), 1, (), "", asked="6-9"),
        "CPUs 8-9 of 6-9 are not online", "online are 0-7",
    ),
    "CPUs of another node": (
        Case(host(), guest(pins=LOOSE), (), 1, (), "", asked="2-5", wanted=1),
        "CPUs 2-3 of 2-5 are not of node 1, or not online", "online are 4-7",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "message", "hint"), NOT_THERE.values(), ids=NOT_THERE)
def test_what_the_host_does_not_have(case: Case, message: str, hint: str) -> None:
    """Asked for on the command line, so it is bad usage and no want of room."""
    with pytest.raises(UsageError) as caught:
        seated(case)
    assert (str(caught.value), caught.value.hint) == (message, hint)


REFUSED: Final[dict[str, tuple[Case, str, str | None]]] = {
    "no room": (
        Case(smt(), guest(pins=FOUR), (other("4-7,12"),), 1, (), ""),
        "vm has 4 vCPUs, and node 1 has 0 CPUs on cores that are not another guest's",
        "node 0 has room: --node 0",
    ),
    "no room anywhere": (
        Case(host(), guest(pins=(None,) * 5), (), 1, (), ""),
        "vm has 5 vCPUs, and node 1 has 4 CPUs on cores that are not another guest's",
        "no other node has as many either; --cpus LIST takes any",
    ),
    "isolated CPUs alone": (
        Case(host(isolated="7"), guest(pins=LOOSE), (), 1, (), ""),
        "vm has 2 vCPUs, and node 1 has 1 isolated CPUs on cores that are not another guest's",
        "no other node has as many either; --cpus LIST takes any",
    ),
    "no device": (
        Case(host(), guest(pins=LOOSE, devices=()), (), 1, (), ""),
        "vm has no device whose NUMA node is known",
        "name the node: --node N",
    ),
    "a device without a node": (
        Case(host(), guest(pins=LOOSE), (), 1, (), "", nodes=(-1,)),
        "vm has no device whose NUMA node is known",
        "name the node: --node N",
    ),
    "CPUs that were asked for": (
        Case(host(), guest(pins=LOOSE), (other("2"),), 1, (), "", asked="2-3"),
        "vm has 2 vCPUs, and CPUs 2-3 have 1 CPUs on cores that are not another guest's",
        "name more CPUs, or others",
    ),
    "a kernel without NUMA": (
        Case(host(nodes=()), guest(pins=(None,) * 9), (), 1, (), ""),
        "vm has 9 vCPUs, and the host has 8 CPUs on cores that are not another guest's",
        None,
    ),
}


@pytest.mark.parametrize(("case", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_no_place(case: Case, message: str, hint: str | None) -> None:
    with pytest.raises(NoRoomError) as caught:
        seated(case)
    assert (str(caught.value), caught.value.hint) == (message, hint)


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Topology, list[Guest]]:
    """Hosts with cores of one or two threads, isolated CPUs or none, and guests here and there."""
    topology = smt() if draw(st.booleans()) else host("0-15", ("0-7", "8-15"))
    isolated = draw(st.one_of(st.just([]), st.lists(st.integers(0, 15), max_size=12)))
    online = CpuSet(range(16)) - CpuSet(draw(st.lists(st.integers(1, 15), max_size=4)))
    topology = replace(topology, isolated=CpuSet(isolated), online=online)
    pins = st.lists(st.one_of(st.none(), st.integers(0, 15).map(str)), min_size=1, max_size=5)
    others = [guest(f"other{each}", draw(pins), ()) for each in range(draw(st.integers(0, 3)))]
    me = guest("me", draw(pins), threads=draw(st.sampled_from([1, 2])))
    return topology, [me, *others]


@settings(max_examples=300, deadline=None)
@given(hosts(), st.sampled_from([0, 1]))
def test_a_place_is_a_place(made: tuple[Topology, list[Guest]], node: int) -> None:
    topology, guests = made
    me, *others = guests
    state = snapshot(topology, [function(node=node)], guests=guests)
    try:
        found = place(state, me)
    except NoRoomError:
        return
    mine, theirs = CpuSet(found.vcpus.values()), pinned_cpus(others, topology)
    assert set(found.vcpus) == {vcpu.index for vcpu in me.vcpus}
    assert len(mine) == len(me.vcpus), "each has a CPU of its own"
    assert mine <= topology.nodes[node].cpus & topology.online
    assert not mine & theirs
    cores = [core for core in topology.siblings if core & mine]
    assert not any(core & theirs for core in cores), "a core is one guest's"
    if topology.isolated & topology.online:
        assert mine <= topology.isolated
    if found.emulator is not None:
        assert not found.emulator & (mine | theirs)
        assert found.emulator <= topology.general
    # Once it is there, it stays there.
    there = replace(
        me,
        vcpus=tuple(replace(vcpu, cpus=CpuSet([found.vcpus[vcpu.index]])) for vcpu in me.vcpus),
    )
    again = place(snapshot(topology, [function(node=node)], guests=[there, *others]), there)
    assert (again.vcpus, again.moves) == (found.vcpus, False)
    # The order in which guests are told makes no difference.
    other_way = snapshot(topology, [function(node=node)], guests=[*reversed(others), me])
    assert place(other_way, me) == found
