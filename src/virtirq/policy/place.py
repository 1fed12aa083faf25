"""Where a guest's vCPUs and emulator could run, next to its devices.

Pure: from where everybody's vCPUs are now to a proposal. Whole cores come first, in as few
last-level caches as possible, and in the largest of those that the host has; CPUs that are kept
free for guests (``isolcpus=``, ``nohz_full=``) where there are any, and else all but one core,
which the host needs. Of hybrid CPUs, guests get the performance ones. A core is one guest's. Where
a socket is several nodes (sub-NUMA clusters, L3 as NUMA), a guest that is too large for one has
those next to it as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from virtirq.cpuset import CpuSet, union
from virtirq.errors import NoRoomError, UsageError
from virtirq.model import Guest, Snapshot, Topology
from virtirq.policy.target import Taken, local_to, nodes_of, one_node, pinned_cpus, wide
from virtirq.values import dataclass

_LOCAL: Final = 10
"""A node's distance to itself (ACPI SLIT)."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A CPU for each vCPU, CPUs for the emulator and a node for memory (None: as it is).

    `node` is None where the kernel knows no nodes, or the CPUs are on several. `near` are the
    guest's devices on that node, out of all whose node is known. `notes` is what should be known
    before it is done.
    """

    guest: Guest
    node: int | None
    vcpus: Mapping[int, int]
    emulator: CpuSet | None
    near: int
    devices: int
    notes: tuple[str, ...] = ()
    memory: int | None = None

    @property
    def moves(self) -> bool:
        """Whether any vCPU is to run elsewhere than it may now."""
        return any(vcpu.cpus != CpuSet([self.vcpus[vcpu.index]]) for vcpu in self.guest.vcpus)

    @property
    def changes(self) -> bool:
        """Whether there is anything to do."""
        memory = None if self.memory is None else frozenset([self.memory])
        return (
            self.moves
            or self.emulator is not None
            or (memory is not None and memory != self.guest.memory_nodes)
        )


@dataclass(frozen=True, slots=True)
class _Where:
    """A part of the host: a node, the CPUs that were asked for, or (`node` None) all of it.

    `node` is where to begin where there are several.
    """

    name: str
    cpus: CpuSet
    node: int | None = None
    asked: bool = False
    several: bool = False

    @property
    def has(self) -> str:
        """The name with its verb."""
        return f"{self.name} {'have' if self.asked or self.several else 'has'}"


def place(
    snapshot: Snapshot, guest: Guest, wanted: int | None = None, cpus: CpuSet | None = None
) -> Placement:
    """A proposal for the guest: on the node of most of its devices, on the `wanted` one, on `cpus`.

    Raises NoRoomError, which says what is missing, and UsageError for what the host does not have.
    """
    if not guest.vcpus:
        raise NoRoomError(f"{guest.name}: how many vCPUs it has is not known")
    topology = snapshot.topology
    others = [each for each in snapshot.guests if _may_run_beside(each, guest)]
    taken = pinned_cpus(others, topology)
    at = _device_nodes(snapshot, guest)
    where = _where(topology, guest, at, wanted, cpus)
    if wanted is None and cpus is None:
        where = _wide_enough(topology, guest, where, taken)
    seats, notes = _seats(topology, guest, where, taken)
    mine = CpuSet(seats.values())
    emulator, more = _emulator(topology, guest, where, Taken.by(others, topology).all, mine)
    notes += more
    if len(nodes_of(mine, topology)) > 1 and where.node is not None:
        notes += (f"node {where.node} is too small for it alone",)
    iothreads = union(guest.iothreads.values())
    if iothreads - where.cpus:
        notes += (f"its I/O threads stay on CPUs {iothreads}",)
    on = nodes_of(mine, topology)
    node = on[0] if len(on) == 1 else None
    return Placement(
        guest,
        node,
        seats,
        emulator,
        near=sum(1 for each in at if each == node),
        devices=len(at),
        notes=notes,
        memory=None if one_node(topology) else node,
    )


def finds_room(snapshot: Snapshot, guest: Guest, taken: CpuSet) -> bool:
    """Whether `place` has a proposal, where others' vCPUs are pinned to `taken`."""
    topology = snapshot.topology
    try:
        where = _where(topology, guest, _device_nodes(snapshot, guest), None, None)
    except NoRoomError:
        return False
    where = _wide_enough(topology, guest, where, taken)
    return len(union(_pool(topology, where, taken))) >= len(guest.vcpus)


def _may_run_beside(other: Guest, guest: Guest) -> bool:
    """Whether both may run at once: not where one of them has to wait for a device of the other."""
    if other.key == guest.key:
        return False
    shared = {each.address for each in other.devices} & {each.address for each in guest.devices}
    return not shared or (_runs(other) and _runs(guest))


def _runs(guest: Guest) -> bool:
    return guest.pid is not None or guest.domain_id is not None


def _device_nodes(snapshot: Snapshot, guest: Guest) -> list[int]:
    """The node with CPUs nearest to each device, as far as it is known."""
    topology = snapshot.topology
    locals_ = (local_to(snapshot.pci.get(each.address), topology) for each in guest.devices)
    found = (nodes_of(local, topology) for local in locals_ if local is not None)
    return [nodes[0] for nodes in found if nodes]


def _where(
    topology: Topology,
    guest: Guest,
    at: Sequence[int],
    wanted: int | None,
    cpus: CpuSet | None,
) -> _Where:
    nodes = {
        number: _Where(f"node {number}", node.cpus & topology.online, number)
        for number, node in topology.nodes.items()
        if node.cpus & topology.online
    }
    if wanted is not None and wanted not in (nodes.keys() or {0}):
        what = "has no CPUs" if wanted in topology.nodes else "is not there"
        known = f"nodes with CPUs are {CpuSet(nodes)}" if nodes else "the kernel knows no nodes"
        raise UsageError(f"node {wanted} {what}", hint=known)
    whole = _Where("the host", topology.online)
    here = whole if wanted is None else nodes.get(wanted, whole)
    if cpus is not None:
        if cpus - here.cpus:
            there = "online" if here is whole else f"of {here.name}, or not online"
            raise UsageError(
                f"CPUs {cpus - here.cpus} of {cpus} are not {there}",
                hint=f"online are {here.cpus}",
            )
        on = nodes_of(cpus, topology)
        return _Where(f"CPUs {cpus}", cpus, on[0] if len(on) == 1 else None, asked=True)
    if wanted is not None or not nodes:
        return here
    if len(nodes) == 1:
        return next(iter(nodes.values()))
    if not at:
        raise NoRoomError(
            f"{guest.name} has no device whose NUMA node is known",
            hint="name the node: --node N",
        )
    count = Counter(at)

    def worth(number: int) -> tuple[int, int, int]:
        distances = topology.nodes[number].distances
        return -count[number], sum(distances.get(each, _LOCAL) for each in at), number

    return nodes[min(nodes, key=worth)]


def _wide_enough(topology: Topology, guest: Guest, where: _Where, taken: CpuSet) -> _Where:
    """The node with as many of its neighbours in the socket as the guest needs; else the node."""
    if where.node is None:
        return where
    numbers, wide = [where.node], where
    near = _socket(topology, where.node)[1:]
    while len(union(_pool(topology, wide, taken))) < len(guest.vcpus):
        if not near:
            return where
        more = topology.nodes[near[0]].cpus & topology.online
        numbers.append(near.pop(0))
        wide = _Where(f"nodes {CpuSet(numbers)}", wide.cpus | more, where.node, several=True)
    return wide


def _socket(topology: Topology, node: int) -> list[int]:
    """The node and those of the same socket that have CPUs, the nearest first."""
    distances = {
        each: topology.distance(node, each) for each in nodes_of(topology.online, topology)
    }
    near = (each for each in distances if topology.is_near(node, each))
    return sorted(near, key=lambda each: (distances[each], each))


def _seats(
    topology: Topology, guest: Guest, where: _Where, taken: CpuSet
) -> tuple[dict[int, int], tuple[str, ...]]:
    """A CPU for each vCPU, and what is to be said of that."""
    pool, reserve = _pool(topology, where, taken)
    count = len(guest.vcpus)
    notes: tuple[str, ...] = ()
    now = _now(topology, guest, pool | reserve)
    if now is not None:
        return now, notes
    if len(pool | reserve) < count:
        raise _no_room(topology, guest, where, pool | reserve, taken)
    fast = pool - topology.efficiency
    if len(fast) >= count:
        pool = fast
    elif len(pool) < count:
        pool |= reserve
        notes = (f"it leaves no core of {where.name} to the host alone",)
    cores = _cores(topology, pool, guest.threads, count)
    numbers = sorted(vcpu.index for vcpu in guest.vcpus)
    cpus, split = _dealt(cores, guest.threads, count)
    if split:
        notes += ("vCPUs that it takes for threads of one core are not on one core",)
    slow = CpuSet(cpus) & topology.efficiency
    if slow and topology.performance:
        notes += (f"CPUs {slow} are efficiency cores: there are not enough others",)
    return dict(zip(numbers, cpus, strict=True)), notes


def _pool(topology: Topology, where: _Where, taken: CpuSet) -> tuple[CpuSet, CpuSet]:
    """CPUs for guests on cores that no guest has, and those that are better left to the host."""
    there = where.cpus & topology.online
    free = there - _cores_of(topology, taken)
    if where.asked:
        return free, CpuSet()
    kept = topology.isolated | topology.nohz_full
    if kept & topology.online:
        return free & kept, CpuSet()
    host = _for_the_host(topology, there)
    return free - host, free & host


def _for_the_host(topology: Topology, there: CpuSet) -> CpuSet:
    """The core that the host keeps: an efficiency core, or one of the smallest cache."""
    if topology.performance and there & topology.efficiency:
        there &= topology.efficiency
    sizes = {llc: size for llc, size in topology.llc_sizes.items() if llc & there}
    if len(set(sizes.values())) > 1:
        there &= min(sizes, key=lambda llc: (sizes[llc], llc.first()))
    return next(iter(_all_cores(topology, there)), CpuSet())


def _now(topology: Topology, guest: Guest, pool: CpuSet) -> dict[int, int] | None:
    """Where it is, if each vCPU has a CPU of its own there already, and all of one sort."""
    found: dict[int, int] = {}
    for vcpu in guest.vcpus:
        if vcpu.cpus is None or len(vcpu.cpus) != 1 or not vcpu.cpus <= pool:
            return None
        found[vcpu.index] = vcpu.cpus.last()
    if len(set(found.values())) != len(found):
        return None
    here, fast = CpuSet(found.values()), pool - topology.efficiency
    mixed = bool(here & topology.efficiency and here & topology.performance)
    return None if mixed and len(fast) >= len(found) else found


def _cores_of(topology: Topology, cpus: CpuSet) -> CpuSet:
    """These CPUs with all of their siblings."""
    return cpus | union(core for core in topology.siblings if core & cpus)


def _all_cores(topology: Topology, cpus: CpuSet) -> list[CpuSet]:
    """These CPUs by core; each of which the core is not known, alone."""
    known = [core & cpus for core in topology.siblings if core & cpus]
    alone = cpus - union(known)
    return sorted([*known, *(CpuSet([cpu]) for cpu in alone)], key=CpuSet.first)


def _cores(topology: Topology, pool: CpuSet, threads: int, count: int) -> list[CpuSet]:
    """The pool's cores, the best first: performance cores, whole ones, and in few caches."""
    cores = _all_cores(topology, pool)
    torn = {core for core in cores for each in topology.siblings if core != each and core <= each}

    def room(llc: CpuSet) -> int:
        inside = [core for core in cores if core <= llc and core not in torn]
        return sum(threads for core in inside if len(core) >= threads)

    def worth(llc: CpuSet) -> tuple[bool, int, int]:
        """Of those that fit the largest; of equals the one that fits best, so that others stay
        whole for larger guests. Where none fits, the largest again, and with most room.
        """
        fits = room(llc) >= count
        return not fits, -topology.llc_sizes.get(llc, 0), room(llc) if fits else -room(llc)

    caches = sorted((llc for llc in topology.llcs if llc & pool), key=worth)

    def key(core: CpuSet) -> tuple[bool, bool, int, int]:
        cache = next((place for place, llc in enumerate(caches) if core <= llc), len(caches))
        return bool(core & topology.efficiency), core in torn, cache, core.first()

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


def _emulator(
    topology: Topology, guest: Guest, where: _Where, taken: CpuSet, mine: CpuSet
) -> tuple[CpuSet | None, tuple[str, ...]]:
    """CPUs for the emulator, None for where it is; what is to be said of that.

    Where someone has pinned it to CPUs that are nobody's, it stays. A vCPU's sibling is for the
    emulator where there is nothing else.
    """
    now = guest.emulator
    pinned = now is not None and not wide(now, topology) and bool(now & topology.online)
    if pinned and now is not None and not now & (mine | taken):
        return None, ()
    free = topology.general - topology.nohz_full - mine - taken
    here = socket = topology.online
    if where.node is not None:
        here = where.cpus | topology.nodes[where.node].cpus
        socket = union(topology.nodes[each].cpus for each in _socket(topology, where.node))
    near = free & here
    if not free:
        return None, ("no CPU is left for its emulator, which stays where it is",)
    cpus = near or free & socket or free
    cpus = (cpus - _cores_of(topology, mine | taken)) or cpus
    cpus = (cpus & topology.efficiency) or cpus if topology.performance else cpus
    if not near:
        return cpus, (f"{where.has} no CPU left for its emulator",)
    return cpus, ()


def _no_room(
    topology: Topology, guest: Guest, where: _Where, pool: CpuSet, taken: CpuSet
) -> NoRoomError:
    count = len(guest.vcpus)
    kept = "isolated " if topology.isolated | topology.nohz_full and not where.asked else ""
    text = (
        f"{guest.name} has {count} vCPUs, and {where.has} {len(pool)}"
        f" {kept}CPUs on cores that are not another guest's"
    )
    if where.asked:
        return NoRoomError(text, hint="name more CPUs, or others")
    if where.node is None:
        return NoRoomError(text)
    with_room = list(_with_room(topology, where.node, taken, count))
    if not with_room:
        return NoRoomError(text, hint="no other node has as many either; --cpus LIST takes any")
    nearest = min(with_room, key=lambda each: (topology.distance(where.node or 0, each), each))
    return NoRoomError(text, hint=f"node {nearest} has room: --node {nearest}")


def _with_room(topology: Topology, but: int, taken: CpuSet, count: int) -> Iterable[int]:
    """The other nodes with so many CPUs for guests."""
    for number, node in topology.nodes.items():
        there = _Where(f"node {number}", node.cpus & topology.online, number)
        if number != but and len(union(_pool(topology, there, taken))) >= count:
            yield number
