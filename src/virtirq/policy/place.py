"""Where a guest's vCPUs and emulator could run, next to its devices.

Pure: from where everybody's vCPUs are now to a proposal. Whole cores come first, in as few
last-level caches as possible; CPUs that are kept free for guests (``isolcpus=``, ``nohz_full=``)
where there are any, and else all but the node's first core, which the host needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from virtirq.cpuset import CpuSet, union
from virtirq.errors import NoRoomError
from virtirq.model import Guest, Node, Snapshot, Topology
from virtirq.policy.target import pinned_cpus

_LOCAL: Final = 10
"""A node's distance to itself (ACPI SLIT)."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A CPU for each vCPU, CPUs for the emulator (None: as it is), and the memory's node.

    `near` are the guest's devices on that node, out of all whose node is known. `notes` is what
    should be known before it is done.
    """

    guest: Guest
    node: int
    vcpus: Mapping[int, int]
    emulator: CpuSet | None
    near: int
    devices: int
    notes: tuple[str, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether any vCPU is to run elsewhere than it may now."""
        return any(vcpu.cpus != CpuSet([self.vcpus[vcpu.index]]) for vcpu in self.guest.vcpus)


def place(snapshot: Snapshot, guest: Guest, wanted: int | None = None) -> Placement:
    """A proposal for the guest, on the node of most of its devices or on the `wanted` one.

    Raises NoRoomError, which says what is missing.
    """
    if not guest.vcpus:
        raise NoRoomError(f"{guest.name}: how many vCPUs it has is not known")
    topology = snapshot.topology
    taken = pinned_cpus((each for each in snapshot.guests if each.key != guest.key), topology)
    at = [
        pci.node
        for device in guest.devices
        if (pci := snapshot.pci.get(device.address)) is not None and pci.node in topology.nodes
    ]
    node = _node(topology, guest, at, wanted)
    seats, notes = _seats(topology, guest, node, taken)
    emulator = _emulator(topology, node, taken | CpuSet(seats.values()))
    if emulator is None:
        notes += ("no CPU is left for its emulator, which stays where it is",)
    elif not emulator <= node.cpus:
        notes += (f"node {node.number} has no CPU left for its emulator",)
    iothreads = union(guest.iothreads.values())
    if iothreads - node.cpus:
        notes += (f"its I/O threads stay on CPUs {iothreads}",)
    return Placement(
        guest,
        node.number,
        seats,
        emulator,
        near=at.count(node.number),
        devices=len(at),
        notes=notes,
    )


def _node(topology: Topology, guest: Guest, at: Sequence[int | None], wanted: int | None) -> Node:
    nodes = topology.nodes
    if wanted is not None:
        if wanted not in nodes:
            known = CpuSet(nodes)
            raise NoRoomError(f"the host has no node {wanted}", hint=f"its nodes are {known}")
        return nodes[wanted]
    if len(nodes) == 1:
        return next(iter(nodes.values()))
    if not at:
        raise NoRoomError(
            f"{guest.name} has no device whose NUMA node is known",
            hint="name the node: --node N",
        )
    count = Counter(at)

    def worth(node: Node) -> tuple[int, int, int]:
        distance = sum(node.distances.get(each, _LOCAL) for each in at if each is not None)
        return -count[node.number], distance, node.number

    return min(nodes.values(), key=worth)


def _seats(
    topology: Topology, guest: Guest, node: Node, taken: CpuSet
) -> tuple[dict[int, int], tuple[str, ...]]:
    """A CPU for each vCPU, and what is to be said of that."""
    pool, reserve = _pool(topology, node, taken)
    count = len(guest.vcpus)
    notes: tuple[str, ...] = ()
    now = _now(guest, pool | reserve)
    if now is not None:
        return now, notes
    if len(pool | reserve) < count:
        raise _no_room(topology, guest, node, pool | reserve, taken)
    if len(pool) < count:
        pool |= reserve
        notes = (f"it leaves no core of node {node.number} to the host alone",)
    cores = _cores(topology, pool, guest.threads, count)
    numbers = sorted(vcpu.index for vcpu in guest.vcpus)
    cpus, split = _dealt(cores, guest.threads, count)
    if split:
        notes += ("vCPUs that it takes for threads of one core are not on one core",)
    strangers = _strangers(topology, CpuSet(cpus), taken)
    if strangers:
        notes += (f"another guest's vCPUs run on siblings of CPUs {strangers}",)
    return dict(zip(numbers, cpus, strict=True)), notes


def _pool(topology: Topology, node: Node, taken: CpuSet) -> tuple[CpuSet, CpuSet]:
    """The node's CPUs for guests that no guest has, and those that are better left to the host."""
    there = node.cpus & topology.online
    free = there - taken
    kept = topology.isolated | topology.nohz_full
    if kept & topology.online:
        return free & kept, CpuSet()
    first = next(iter(_all_cores(topology, there)), CpuSet())
    return free - first, free & first


def _now(guest: Guest, pool: CpuSet) -> dict[int, int] | None:
    """Where it is, if each vCPU has a CPU of its own there already."""
    found: dict[int, int] = {}
    for vcpu in guest.vcpus:
        if vcpu.cpus is None or len(vcpu.cpus) != 1 or not vcpu.cpus <= pool:
            return None
        found[vcpu.index] = vcpu.cpus.last()
    return found if len(set(found.values())) == len(found) else None


def _all_cores(topology: Topology, cpus: CpuSet) -> list[CpuSet]:
    """These CPUs by core; each of which the core is not known, alone."""
    known = [core & cpus for core in topology.siblings if core & cpus]
    alone = cpus - union(known)
    return sorted([*known, *(CpuSet([cpu]) for cpu in alone)], key=CpuSet.first)


def _cores(topology: Topology, pool: CpuSet, threads: int, count: int) -> list[CpuSet]:
    """The pool's cores, the best first: those of nobody else, and in few caches."""
    cores = _all_cores(topology, pool)
    shared = {core for core in cores for each in topology.siblings if core != each and core <= each}

    def room(llc: CpuSet) -> int:
        inside = [core for core in cores if core <= llc and core not in shared]
        return sum(threads for core in inside if len(core) >= threads)

    caches = [llc for llc in topology.llcs if llc & pool]
    fits = any(room(llc) >= count for llc in caches)
    # The smallest that fits, so that larger ones stay whole for larger guests; else the largest.
    caches.sort(key=lambda llc: (room(llc) < count, room(llc)) if fits else (False, -room(llc)))

    def key(core: CpuSet) -> tuple[bool, int, int]:
        cache = next((place for place, llc in enumerate(caches) if core <= llc), len(caches))
        return core in shared, cache, core.first()

    return sorted(cores, key=key)


def _dealt(cores: Sequence[CpuSet], threads: int, count: int) -> tuple[list[int], bool]:
    """So many CPUs, in the order of vCPUs; whether vCPUs of one core had to be torn apart."""
    groups = [list(core)[:threads] for core in cores if len(core) >= threads]
    if threads > 1 and len(groups) * threads >= count:
        return [cpu for group in groups for cpu in group][:count], False
    # One after another on cores of their own, and on their siblings when those are used up.
    deep = max(len(core) for core in cores)
    each = [list(core) for core in cores]
    cpus = [core[place] for place in range(deep) for core in each if place < len(core)]
    return cpus[:count], threads > 1


def _strangers(topology: Topology, mine: CpuSet, taken: CpuSet) -> CpuSet:
    """Those of my CPUs that have a sibling to which another guest's vCPU is pinned."""
    cores = [core for core in topology.siblings if core & mine and core & taken]
    return union(core & mine for core in cores)


def _emulator(topology: Topology, node: Node, used: CpuSet) -> CpuSet | None:
    """CPUs where nobody's vCPUs are pinned, of the node if it has any."""
    free = topology.general - topology.nohz_full - used
    return (free & node.cpus) or free or None


def _no_room(
    topology: Topology, guest: Guest, node: Node, pool: CpuSet, taken: CpuSet
) -> NoRoomError:
    kept = "isolated " if topology.isolated | topology.nohz_full else ""
    count = len(guest.vcpus)
    text = (
        f"{guest.name} has {count} vCPUs, and node {node.number} has {len(pool)}"
        f" {kept}CPUs that are not another guest's"
    )
    with_room = [
        each
        for each in topology.nodes.values()
        if each.number != node.number and len(union(_pool(topology, each, taken))) >= count
    ]
    if not with_room:
        return NoRoomError(text, hint="no other node has as many either")
    nearest = min(with_room, key=lambda each: (node.distances.get(each.number, 0), each.number))
    return NoRoomError(text, hint=f"node {nearest.number} has room: --node {nearest.number}")
