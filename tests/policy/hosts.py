"""Random hosts as there are: from a desktop to sixteen nodes, with whatever firmware makes of them.

A seed gives a host, so that an example costs little to draw; a failing one is made again by its
seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from tests.policy.facts import function, guest, msix, snapshot
from virtirq.cpuset import CpuSet, union
from virtirq.model import Guest, Interrupt, Node, PciAddress, PciDevice, Snapshot, Topology


def topology_of(random: Random) -> Topology:
    """One to sixteen nodes, some of memory alone; sparse, offline, isolated, hybrid, with SMT."""
    count = random.choice([1, 1, 2, 2, 4, 8, 16])
    threads = random.choice([1, 2])
    stride = random.choice([1, 1, 3])
    cores: list[list[CpuSet]] = []
    number = 0
    for _ in range(count):
        mine = []
        for _ in range(random.choice([0, 1, 2, 4]) if cores else 4):
            mine.append(CpuSet(number + stride * each for each in range(threads)))
            number += stride * threads
        cores.append(mine)
    if random.random() < 0.3:  # second threads are numbered after all first ones
        cores = _apart(cores, threads)
    everything = union(core for mine in cores for core in mine)
    offline = CpuSet()
    if random.random() < 0.3:
        offline = CpuSet(cpu for cpu in everything if random.random() < 0.2)
    if threads == 2 and random.random() < 0.2:  # nosmt
        offline |= CpuSet(cpu for mine in cores for core in mine for cpu in [*core][1:])
    online = (everything - offline) or everything
    nodes = {
        each: Node(each, union(mine) & online, _distances(each, count))
        for each, mine in enumerate(cores)
    }
    siblings = tuple(core & online for mine in cores for core in mine if core & online)
    kept = [core for core in siblings if random.random() < 0.5]
    fast = [core for core in siblings if random.random() < 0.5]
    hybrid = random.random() < 0.25
    return Topology(
        online=online,
        possible=everything,
        isolated=union(kept) if random.random() < 0.3 else CpuSet(),
        nohz_full=union(kept) if random.random() < 0.2 else CpuSet(),
        nodes={} if count == 1 and random.random() < 0.2 else nodes,
        siblings=siblings,
        llcs=tuple(node.cpus for node in nodes.values() if node.cpus),
        performance=union(fast) if hybrid else CpuSet(),
        efficiency=online - union(fast) if hybrid else CpuSet(),
    )


def _apart(cores: Sequence[Sequence[CpuSet]], threads: int) -> list[list[CpuSet]]:
    whole = sum(len(mine) for mine in cores)
    numbers = iter(range(whole))
    return [
        [
            CpuSet(number + whole * each for each in range(threads))
            for _, number in zip(mine, numbers, strict=False)
        ]
        for mine in cores
    ]


def _distances(node: int, count: int) -> dict[int, int]:
    """Sockets of four nodes."""
    near = {
        other: 12 if other // 4 == node // 4 else 21 + 11 * (abs(other - node) > 7)
        for other in range(count)
    }
    return {**near, node: 10}


def host_of(seed: int, guests: int = 3) -> Snapshot:
    """A host with some guests: pinned one to one, sharing a pool, or not pinned."""
    random = Random(seed)
    topology = topology_of(random)
    free = list(topology.online)
    random.shuffle(free)
    made: list[Guest] = []
    pci: list[PciDevice] = []
    interrupts: list[Interrupt] = []
    for number in range(random.randint(1, guests)):
        vcpus = random.randint(1, 6)
        match random.choice(["own", "own", "pool", "any"]):
            case "own" if len(free) >= vcpus:
                pins: list[str | None] = [str(free.pop()) for _ in range(vcpus)]
            case "any":
                pins = [None] * vcpus
            case _:
                pool = random.sample(list(topology.online), random.randint(1, len(topology.online)))
                pins = [str(CpuSet(pool))] * vcpus
        mine = []
        for each in range(random.randint(1, 6)):
            address = PciAddress(0, 0x40 + number, each // 8, each % 8)
            pci.append(function(address, random.choice([-1, *topology.nodes])))
            mine.append(address)
            first = 100 * len(pci)
            interrupts += [
                msix(first + vector, vector, address, at=str(topology.online), on=None)
                for vector in range(random.choice([1, 1, 2, 3, 5, 9]))
            ]
        made.append(guest(f"g{number}", pins, mine))
    return snapshot(topology, pci, interrupts, made)


def without(state: Snapshot, *, device: PciAddress | None = None, key: str = "") -> Snapshot:
    """The host without a device, or without a guest and what it has."""
    guests = [each for each in state.guests if each.key != key]
    gone = {device} | {d.address for g in state.guests if g.key == key for d in g.devices}
    return replace(
        state,
        guests=tuple(
            replace(each, devices=tuple(d for d in each.devices if d.address not in gone))
            for each in guests
        ),
        interrupts=tuple(each for each in state.interrupts if each.device not in gone),
    )
