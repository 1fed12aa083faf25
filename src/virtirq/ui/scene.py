"""What a picture of a host shows, before anything has a place: made of Snapshot and Plan.

Packages, nodes, caches, cores and PUs (CPUs) are hwloc's words, as lstopo(1) has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

from virtirq.cpuset import CpuSet, union
from virtirq.model import DevicePlan, Guest, GuestPlan, Plan, Snapshot, Topology, counted
from virtirq.policy.target import wide
from virtirq.ui.report import Row, Rows
from virtirq.values import dataclass

Verdict = Literal["right", "loose", "wrong", "left"]
"""Of a vector: where it should be; there by chance; elsewhere; nobody's to say."""
VERDICTS: Final[tuple[Verdict, ...]] = ("right", "loose", "wrong", "left")
_OF_STATUS: Final[Mapping[str, Verdict]] = {
    **dict.fromkeys(("in-place", "as-found", "applied", "unchanged", "pending"), "right"),
    "loose": "loose",
    **dict.fromkeys(("wrong-cpu", "wrong-node", "refused", "failed"), "wrong"),
}


_MANY: Final = 1000
"""More interrupts than this are told by device, CPU and verdict together."""
_MOST: Final = 3000
"""More lines than this, and nothing can be told from a picture."""


@dataclass(frozen=True, slots=True)
class Vector:
    """An interrupt: the CPU that takes it, None where that is not known, and what to say of it.

    `number`: of several that have all of that in common; `irq` is the first one's.
    """

    irq: int
    cpu: int | None
    verdict: Verdict
    told: str
    number: int = 1


@dataclass(frozen=True, slots=True)
class DrawnDevice:
    """`guest` is the number of its guest in `Scene.guests`; `home` where its interrupts belong."""

    address: str
    kind: str
    guest: int
    told: str
    vectors: tuple[Vector, ...]
    home: CpuSet


@dataclass(frozen=True, slots=True)
class Core:
    """`cpus` are its threads; `sort` is ``P`` or ``E`` on a hybrid CPU."""

    cpus: tuple[int, ...]
    sort: str = ""


@dataclass(frozen=True, slots=True)
class Cache:
    """A last-level cache and the cores below it; `level` is None where none is known."""

    level: int | None
    told: str
    cores: tuple[Core, ...]


@dataclass(frozen=True, slots=True)
class Band:
    """The part of a NUMA node that is in one package, and the node's devices."""

    package: int | None
    node: int | None
    told: str
    caches: tuple[Cache, ...]
    devices: tuple[DrawnDevice, ...]

    @property
    def cpus(self) -> tuple[int, ...]:
        return tuple(cpu for cache in self.caches for core in cache.cores for cpu in core.cpus)


@dataclass(frozen=True, slots=True)
class DrawnGuest:
    """`seats` are the CPUs of each vCPU that is pinned, by the vCPU's number."""

    name: str
    told: str
    unit: str
    seats: Mapping[int, CpuSet]
    counts: Mapping[Verdict, int]


@dataclass(frozen=True, slots=True)
class Scene:
    """A host at one time; `heading` says at which."""

    heading: str
    lines: tuple[str, ...]
    bands: tuple[Band, ...]
    guests: tuple[DrawnGuest, ...]
    isolated: CpuSet

    @property
    def counts(self) -> dict[Verdict, int]:
        return count(v for band in self.bands for device in band.devices for v in device.vectors)

    @property
    def readable(self) -> bool:
        """Whether anybody could tell one line of a picture from another."""
        lines = (len(device.vectors) for band in self.bands for device in band.devices)
        return sum(lines) <= _MOST


def verdict(status: str) -> Verdict:
    """What the word of a plan or an outcome comes to."""
    return _OF_STATUS.get(status, "left")


def count(vectors: Iterable[Vector]) -> dict[Verdict, int]:
    found = dict.fromkeys(VERDICTS, 0)
    for each in vectors:
        found[each.verdict] += each.number
    return found


def now(snapshot: Snapshot, plan: Plan) -> Scene:
    """The host as it is."""
    return _scene(snapshot, plan, "interrupts now", after=False)


def planned(snapshot: Snapshot, plan: Plan) -> Scene:
    """The host as it is to be once the plan was carried out."""
    pins = counted(len(plan.pins), "interrupt")
    return _scene(snapshot, plan, f"after 'virtirq apply': {pins} pinned", after=True)


def _scene(snapshot: Snapshot, plan: Plan, heading: str, *, after: bool) -> Scene:
    topology, rows = snapshot.topology, Rows(snapshot)
    many = len(plan.actions) > _MANY
    counts = _Counts(snapshot)
    of_node: dict[int | None, list[DrawnDevice]] = {}
    guests = []
    for number, each in enumerate(plan.guests):
        devices = []
        for device in each.devices:
            shown = [
                _vector(each, device, rows.of(action), counts, after=after)
                for action in device.actions
            ]
            if many:
                shown = list(_together(shown, f"{device.device.address}, {each.guest.name}"))
            drawn = _device(snapshot, each, device, number, tuple(shown))
            devices.append(drawn)
            of_node.setdefault(_node(snapshot, device), []).append(drawn)
        guests.append(_guest(topology, each.guest, devices))
    return Scene(
        heading,
        _host(snapshot),
        tuple(_bands(topology, of_node)),
        tuple(guests),
        topology.isolated | topology.nohz_full,
    )


def _host(snapshot: Snapshot) -> tuple[str, ...]:
    topology = snapshot.topology
    parts = [f"Linux {snapshot.kernel}" if snapshot.kernel else "kernel not known"]
    parts.append(f"{counted(len(topology.online), 'CPU')} online ({topology.online})")
    if offline := topology.possible - topology.online:
        parts.append(f"not online {offline}")
    if topology.isolated:
        parts.append(f"isolated {topology.isolated}")
    if topology.nohz_full:
        parts.append(f"nohz_full {topology.nohz_full}")
    return tuple(parts)


class _Counts:
    """How many interrupts there were, by IRQ."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._counts = {each.irq: each.counts for each in snapshot.interrupts}

    def told(self, irq: int) -> str:
        counts = self._counts.get(irq)
        return "" if counts is None else f"{sum(counts.values())} so far"


def _vector(
    guest: GuestPlan, device: DevicePlan, row: Row, counts: _Counts, *, after: bool
) -> Vector:
    name = row.kind if row.vector is None else f"{row.kind} {row.vector}"
    facts = [f"IRQ {row.irq}, {name} of {device.device.address}, {guest.guest.name}"]
    cpu, judged = _lands(row), verdict(row.status)
    if after and row.moves and row.after:
        # What the kernel picks of several CPUs it tells afterwards; where it is may be one of them.
        cpu = cpu if cpu in row.after else row.after.first()
        judged = "right"
        facts.append(f"to {_cpus(row.after)}, from {_cpus(row.before)}")
    else:
        facts.append(f"delivered to {_cpus(row.effective)}, may go to {_cpus(row.before)}")
        if row.after:
            facts.append(f"should be on {_cpus(row.after)}")
    facts.append(f"{row.status}: {row.reason}")
    facts.append(counts.told(row.irq))
    return Vector(row.irq, cpu, judged, "\n".join(filter(None, facts)))


def _together(vectors: Iterable[Vector], of: str) -> Iterator[Vector]:
    """One for all of a device's that one CPU takes, and that are judged alike."""
    alike: dict[tuple[int | None, Verdict], list[Vector]] = {}
    for each in vectors:
        alike.setdefault((each.cpu, each.verdict), []).append(each)
    for (cpu, judged), them in alike.items():
        first, *more = them
        if not more:
            yield first
            continue
        where = _cpus(None if cpu is None else CpuSet([cpu]))
        irqs = f"IRQs {first.irq} to {more[-1].irq}"
        told = f"{len(them)} interrupts of {of}\ndelivered to {where}: {irqs}"
        yield Vector(first.irq, cpu, judged, told, len(them))


def _lands(row: Row) -> int | None:
    """The CPU that takes the interrupt; the first of several, where an interrupt has several."""
    if row.effective:
        return row.effective.first()
    return row.before.first() if row.before and len(row.before) == 1 else None


def _cpus(cpus: CpuSet | None) -> str:
    if not cpus:
        return "a CPU that is not known" if cpus is None else "no CPU"
    return f"CPU {cpus}" if len(cpus) == 1 else f"CPUs {cpus}"


def _device(
    snapshot: Snapshot,
    guest: GuestPlan,
    device: DevicePlan,
    number: int,
    vectors: tuple[Vector, ...],
) -> DrawnDevice:
    pci = snapshot.pci.get(device.device.address)
    kind = pci.kind if pci else "absent"
    facts = [f"{device.device.address}, {kind}, of {guest.guest.name}"]
    if pci and pci.vendor is not None and pci.device is not None:
        driver = f", driver {pci.driver}" if pci.driver else ""
        facts.append(f"{pci.vendor:04x}:{pci.device:04x}{driver}")
    if pci and pci.physfn:
        facts.append(f"VF of {pci.physfn}")
        kind += " VF"
    facts.append("no NUMA node" if device.node is None else f"node {device.node}")
    facts.append(f"{device.directive} ({device.directive_from}): {device.note}")
    return DrawnDevice(
        str(device.device.address),
        kind,
        number,
        "\n".join(facts),
        vectors,
        device.target or CpuSet(),
    )


def _node(snapshot: Snapshot, device: DevicePlan) -> int | None:
    pci = snapshot.pci.get(device.device.address)
    node = pci.node if pci else None
    return node if node in snapshot.topology.nodes else None


def _guest(topology: Topology, guest: Guest, devices: Iterable[DrawnDevice]) -> DrawnGuest:
    seats = {
        vcpu.index: vcpu.cpus & topology.online
        for vcpu in guest.vcpus
        if vcpu.cpus is not None and not wide(vcpu.cpus, topology)
    }
    verdicts = count(vector for device in devices for vector in device.vectors)
    pinned = union(seats.values())
    facts = [
        f"{guest.name}, known from {guest.source}",
        f"{counted(len(guest.vcpus), guest.unit)}, "
        + (f"on {_cpus(pinned)}" if pinned else "not pinned"),
    ]
    if guest.emulator is not None and not wide(guest.emulator, topology):
        facts.append(f"emulator on {_cpus(guest.emulator)}")
    return DrawnGuest(guest.name, "\n".join(facts), guest.unit, seats, verdicts)


def _bands(topology: Topology, of_node: Mapping[int | None, list[DrawnDevice]]) -> Iterator[Band]:
    """In the order of the picture; what is on no node comes last."""
    places: list[tuple[int | None, int | None, CpuSet]] = []
    rest = topology.online
    for node in topology.nodes.values():
        left = node.cpus & rest
        rest -= left
        parts = [
            (number, node.number, part)
            for number, package in enumerate(topology.packages)
            if (part := package & left)
        ]
        left -= union(part for *_, part in parts)
        places += parts
        if left or not parts:
            places.append((None, node.number, left))
    if rest or None in of_node:
        places.append((None, None, rest))
    places.sort(key=lambda each: (each[1] is None, each[0] is None, each[0] or 0, each[1] or 0))
    begun: set[int | None] = set()
    for socket, of, cpus in places:
        devices = () if of in begun else tuple(of_node.get(of, ()))
        begun.add(of)
        if cpus or devices:
            told = _node_told(topology, of, cpus)
            yield Band(socket, of, told, _caches(topology, cpus), devices)


def _node_told(topology: Topology, number: int | None, cpus: CpuSet) -> str:
    if number is None:
        return f"on no NUMA node: {_cpus(cpus)}" if cpus else "devices without a NUMA node"
    distances = topology.nodes[number].distances
    far = ", ".join(f"{distance} to node {other}" for other, distance in sorted(distances.items()))
    return f"NUMA node {number}: {_cpus(cpus)}" + (f"\ndistances: {far}" if far else "")


def _caches(topology: Topology, cpus: CpuSet) -> tuple[Cache, ...]:
    found, rest = [], cpus
    for shared in topology.llcs:
        if part := shared & rest:
            level, size = topology.llc_levels.get(shared), topology.llc_sizes.get(shared)
            text = "last-level cache" if level is None else f"L{level}"
            told = f"{text} of {_cpus(shared)}" + (f", {_size(size)}" if size else "")
            found.append((part, Cache(level, told, _cores(topology, part))))
            rest -= part
    if rest:
        found.append((rest, Cache(None, "", _cores(topology, rest))))
    return tuple(cache for _, cache in sorted(found, key=lambda each: each[0].first()))


def _size(kib: int) -> str:
    return f"{kib // 1024} MiB" if kib >= 1024 else f"{kib} KiB"


def _cores(topology: Topology, cpus: CpuSet) -> tuple[Core, ...]:
    groups = [part for each in topology.siblings if (part := each & cpus)]
    groups += [CpuSet([cpu]) for cpu in cpus - union(groups)]
    return tuple(
        Core(tuple(group), _sort(topology, group))
        for group in sorted(groups, key=lambda each: each.first())
    )


def _sort(topology: Topology, core: CpuSet) -> str:
    if core <= topology.performance:
        return "P"
    return "E" if core <= topology.efficiency else ""
