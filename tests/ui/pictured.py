"""Hosts to draw: two sockets with eight CPUs each, and with sixty-four and two hundred vectors."""

from __future__ import annotations

from dataclasses import replace

from tests.policy.facts import function, guest, msix, snapshot
from virtirq.cpuset import CpuSet, union
from virtirq.model import Guest, Interrupt, Node, PciAddress, PciDevice, Snapshot, Topology
from virtirq.policy.config import Config
from virtirq.policy.plan import plan

_KINDS = (0x020000, 0x010802, 0x030000)


def two_sockets(cores: int, guests: int, vectors: int, *, hybrid: bool = False) -> Snapshot:
    """Sockets of `cores` cores with two threads each; every fourth vector is on a wrong CPU.

    Each guest has two cores of one node and a device on it, with `vectors` vectors; one guest's
    device is on the other node, and the last guest is not pinned.
    """
    every = 2 * cores
    nodes = [
        CpuSet(
            [
                *range(n * cores, n * cores + cores),
                *range(every + n * cores, every + n * cores + cores),
            ]
        )
        for n in range(2)
    ]
    siblings = tuple(CpuSet([core, every + core]) for core in range(every))
    half = [
        CpuSet(list(node)[: cores // 2] + list(node)[cores : cores + cores // 2]) for node in nodes
    ]
    llcs = tuple(
        part for node, first in zip(nodes, half, strict=True) for part in (first, node - first)
    )
    topology = Topology(
        union(nodes),
        union(nodes),
        isolated=CpuSet([1, every + 1]),
        nodes={n: Node(n, cpus, {n: 10, 1 - n: 21}) for n, cpus in enumerate(nodes)},
        siblings=siblings,
        llcs=llcs,
        llc_sizes=dict.fromkeys(llcs, 32768),
        llc_levels=dict.fromkeys(llcs, 3),
        packages=tuple(nodes),
        performance=union(half) if hybrid else CpuSet(),
        efficiency=union(nodes) - union(half) if hybrid else CpuSet(),
    )
    pci: list[PciDevice] = []
    made: list[Guest] = []
    interrupts: list[Interrupt] = []
    for number in range(guests):
        node = number % 2
        address = PciAddress(
            0, 0x21 + node * 0x60 + number // 16, number // 2 % 8 * 4 % 32, number // 2 % 8
        )
        far = number == 2
        pci.append(function(address, 1 - node if far else node, class_code=_KINDS[number % 3]))
        first = node * cores + (number // 2 * 2 + 1) % (cores - 1)
        seats = [first, every + first, first + 1, every + first + 1]
        pins = [None] * 4 if number == guests - 1 else [str(cpu) for cpu in seats]
        made.append(guest(f"router-{number:02d}", pins, [address]))
        for vector in range(vectors):
            wrong = (number + vector) % 4 == 0
            cpu = (seats[vector % 4] + 3 + number) % (2 * every) if wrong else seats[vector % 4]
            at = str(topology.online) if wrong else str(cpu)
            interrupts.append(msix(100 + len(interrupts), vector, address, at=at, on=str(cpu)))
    state = snapshot(topology, pci, interrupts, made, kernel="6.12.8")
    return _mostly_right(state)


def _mostly_right(state: Snapshot) -> Snapshot:
    """Those of the vectors that are not meant to be wrong go where the plan has them."""
    places = {pin.irq: pin.after for pin in plan(state, Config()).pins}

    def placed(each: Interrupt) -> Interrupt:
        if each.irq not in places or each.affinity == state.topology.online:
            return each
        on = places[each.irq]
        return replace(each, affinity=on, effective=CpuSet([on.first()]))

    return replace(state, interrupts=tuple(map(placed, state.interrupts)))
