"""What holds on any host: see `hosts`."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.facts import carried_out
from tests.policy.hosts import host_of, without
from virtirq.cpuset import CpuSet, union
from virtirq.errors import NoRoomError
from virtirq.model import Guest, PciAddress, Pin, Snapshot, Topology
from virtirq.policy.config import Config
from virtirq.policy.place import place
from virtirq.policy.plan import plan

HOSTS = st.integers(0, 2**32).map(host_of)
CONFIG = Config()


def wanted(state: Snapshot) -> dict[int, CpuSet]:
    """Where each interrupt is to be."""
    return {
        each.irq: cpus
        for each in plan(state, CONFIG).actions
        if (cpus := each.after if isinstance(each, Pin) else each.wanted) is not None
    }


def own(guest: Guest, topology: Topology) -> CpuSet | None:
    """The online CPUs that its vCPUs are pinned to; None where one is not."""
    sets = [vcpu.cpus for vcpu in guest.vcpus]
    if any(cpus is None or topology.online <= cpus for cpus in sets):
        return None
    return union(cpus for cpus in sets if cpus is not None) & topology.online


def nearest(topology: Topology, node: int | None, cpus: CpuSet) -> CpuSet:
    """Those on the nearest node that has some; written down another way than the policy's."""
    if node is None or node not in topology.nodes:
        return cpus
    row = {**dict.fromkeys(topology.nodes, 20), **topology.nodes[node].distances, node: 10}
    for distance in sorted(set(row.values())):
        there = union(topology.nodes[each].cpus for each, far in row.items() if far == distance)
        if there & cpus:
            return there & cpus
    return cpus


@given(HOSTS)
@settings(max_examples=100)
def test_targets_are_online_and_the_guests_own_and_near(state: Snapshot) -> None:
    topology = state.topology
    to = wanted(state)
    for guest in state.guests:
        mine = own(guest, topology)
        for device in guest.devices:
            node = state.pci[device.address].node
            for each in state.interrupts:
                if each.device != device.address or each.irq not in to:
                    continue
                cpus = to[each.irq]
                assert cpus
                assert cpus <= topology.online
                if mine:
                    assert cpus <= nearest(topology, node, mine)
                elif len(topology.online - topology.isolated):
                    assert not cpus & topology.isolated


@given(HOSTS)
@settings(max_examples=100)
def test_from_nothing_the_load_of_a_guests_cpus_is_even(state: Snapshot) -> None:
    """By at most one, among CPUs that all of its devices may use alike."""
    for device_plans in (each.devices for each in plan(state, CONFIG).guests):
        loads: dict[CpuSet, Counter[int]] = {}
        for each in device_plans:
            guest = next(g for g in state.guests if each.device in g.devices)
            mine = own(guest, state.topology)
            if not mine:
                continue
            near = nearest(state.topology, state.pci[each.device.address].node, mine)
            load = loads.setdefault(near, Counter())
            load.update(cpu for a in each.actions if isinstance(a, Pin) for cpu in a.after)
        for near, load in loads.items():
            if any(other & near for other in loads if other != near):
                continue
            assert max(load[cpu] for cpu in near) - min(load[cpu] for cpu in near) <= 1


@given(HOSTS, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_what_is_in_place_stays(state: Snapshot, random: object) -> None:
    """A device, a guest or a vector comes or goes."""
    choose = random.choice  # type: ignore[attr-defined]
    guest: Guest = choose(state.guests)
    gone: PciAddress = choose(guest.devices).address
    irq: int = choose(state.interrupts).irq
    fewer = replace(state, interrupts=tuple(e for e in state.interrupts if e.irq != irq))
    for less in (without(state, device=gone), without(state, key=guest.key), fewer):
        placed = carried_out(less, plan(less, CONFIG))
        assert not plan(placed, CONFIG).pins
        # It comes: what was there stays, and so it does when it goes again.
        there = {each.irq: each for each in placed.interrupts}
        grown = replace(
            state, interrupts=tuple(there.get(each.irq, each) for each in state.interrupts)
        )
        assert not {pin.irq for pin in plan(grown, CONFIG).pins} & there.keys()
        full = carried_out(grown, plan(grown, CONFIG))
        assert not plan(full, CONFIG).pins
        left = replace(less, interrupts=tuple(e for e in full.interrupts if e.irq in there))
        assert not plan(left, CONFIG).pins


@given(HOSTS)
@settings(max_examples=100)
def test_places(state: Snapshot) -> None:
    topology = state.topology
    for guest in state.guests:
        with suppress(NoRoomError):
            made = place(state, guest)
            cpus = CpuSet(made.vcpus.values())
            assert len(cpus) == len(guest.vcpus)
            assert cpus <= topology.online
            others = [each for each in state.guests if each.key != guest.key]
            sets = (vcpu.cpus for each in others for vcpu in each.vcpus)
            theirs = union(cpus for cpus in sets if cpus and not topology.general <= cpus)
            assert not cpus & theirs
            for core in topology.siblings:
                assert not (core & cpus and core & theirs)
            slow, where = cpus & topology.efficiency, topology.online
            if topology.nodes:  # of several, those that it was given CPUs of: the nearest
                where = union(node.cpus for node in topology.nodes.values() if node.cpus & cpus)
            taken = theirs | union(core for core in topology.siblings if core & theirs)
            kept = (topology.isolated | topology.nohz_full) & topology.online
            fast = (where & topology.performance & (kept or where)) - taken
            host = 0 if kept else 2  # a core that is left to the host
            assert not (slow and len(fast) - host >= len(cpus) and made.moves)
