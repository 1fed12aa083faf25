"""What a directive means right now: the CPUs, and how vectors are dealt over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from virtirq.cpuset import CpuSet, union
from virtirq.model import Directive, Guest, PciDevice, Topology, Word
from virtirq.policy.deal import Seat
from virtirq.values import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Target:
    """`cpus` is None when the device is left alone; `note` then says why.

    `seats` are what vectors are dealt over, in order. Without a known vCPU to follow, only the
    part of the target on the device's node has seats, where there is such a part. `following` are
    the seats of the vCPUs, by number, that a vector may follow wherever the device is, because the
    guest says so.
    """

    cpus: CpuSet | None
    note: str
    code: str = "target"
    seats: tuple[Seat, ...] = ()
    following: Mapping[int, Seat] = field(default_factory=dict)

    @property
    def seated(self) -> CpuSet:
        """The CPUs that vectors are dealt over."""
        return union(seat.cpus for seat in self.seats)


class Claims(NamedTuple):
    """What one guest's threads say of CPUs.

    `sole`: CPUs of one vCPU each, or kept for guests by the host. `groups`: sets that vCPUs share,
    as many as there are CPUs: the guest's own, unless others may run there, too. `used`: all CPUs
    that its vCPUs or its emulator are pinned to.
    """

    sole: CpuSet = CpuSet()
    groups: tuple[CpuSet, ...] = ()
    used: CpuSet = CpuSet()


class Taken(NamedTuple):
    """The CPUs that are dedicated to guests' vCPUs: for certain, and by all appearances.

    A pool (more CPUs than vCPUs that may use them, or several guests on them: Nova's shared set,
    the kubelet's) is dedicated to nobody.
    """

    sole: CpuSet = CpuSet()
    groups: CpuSet = CpuSet()

    @property
    def all(self) -> CpuSet:
        return self.sole | self.groups

    @classmethod
    def by(cls, guests: Iterable[Guest], topology: Topology) -> Taken:
        """What these guests have."""
        return cls.of([claims_of(guest, topology) for guest in guests])

    @classmethod
    def of(cls, claims: Sequence[Claims]) -> Taken:
        """What guests with these claims have."""
        once = twice = CpuSet()
        for each in claims:
            twice |= once & each.used
            once |= each.used
        groups = (group for each in claims for group in each.groups if not group & twice)
        return cls(union(each.sole for each in claims), union(groups))


def target_of(
    directive: Directive, guest: Guest, device: PciDevice | None, topology: Topology, taken: Taken
) -> Target:
    """The target of a guest's device; `taken` are the CPUs that are guests' own."""
    if directive.vcpus:
        return _of_vcpus(directive.vcpus, guest, device, topology)
    match directive.word:
        case Word.NATIVE:
            return Target(None, "native: left alone", code="native")
        case Word.AUTO:
            return _auto(guest, device, topology)
        case Word.EMULATOR:
            return _emulator(guest, device, topology, taken)
        case Word.LOCAL:
            return _local(device, topology, taken)
        case None:
            return _explicit(directive.cpus, guest, topology)


def wide(cpus: CpuSet | None, topology: Topology) -> bool:
    """Whether a thread with this mask may run on every online CPU: nobody pinned it."""
    return cpus is None or topology.online <= cpus


def anywhere(topology: Topology) -> str:
    """Where a thread that nobody pinned may run, in words."""
    if topology.general == topology.online:
        return "every CPU"
    return f"every CPU that is not isolated, {topology.general}"


def runs_on(cpus: CpuSet | None, topology: Topology) -> CpuSet | None:
    """The online CPUs where a thread with this mask runs; None for all of them.

    A thread that nobody pinned keeps off isolated CPUs, allowed there or not: those are in no
    scheduling domain (Documentation/admin-guide/kernel-parameters.txt, isolcpus=).
    """
    if not wide(cpus, topology):
        return (cpus or CpuSet()) & topology.online
    return None if topology.general == topology.online else topology.general


def pinned_cpus(guests: Iterable[Guest], topology: Topology) -> CpuSet:
    """The CPUs that some guest's vCPUs are pinned to, be they theirs alone or a pool.

    A vCPU that may use all CPUs that are not isolated is pinned to none, whether somebody wrote
    that down or it is what every thread gets.
    """
    return union(
        vcpu.cpus
        for guest in guests
        for vcpu in guest.vcpus
        if vcpu.cpus is not None and not topology.general <= vcpu.cpus
    )


def claims_of(guest: Guest, topology: Topology) -> Claims:
    """What the guest's threads say of CPUs."""
    kept = topology.isolated | topology.nohz_full
    sole, used, shared = CpuSet(), CpuSet(), []
    for vcpu in guest.vcpus:
        cpus = vcpu.cpus
        if cpus is None or topology.general <= cpus:
            continue
        used |= cpus
        if len(cpus) == 1 or cpus <= kept or any(cpus <= core for core in topology.siblings):
            sole |= cpus
        else:
            shared.append(cpus)
    if guest.emulator is not None and not topology.general <= guest.emulator:
        used |= guest.emulator
    groups = tuple(cpus for cpus, sharers in pools(shared) if len(cpus) <= sharers)
    return Claims(sole, groups, used)


def pools(sets: Iterable[CpuSet]) -> list[tuple[CpuSet, int]]:
    """The sets joined where they overlap, and how many went into each."""
    joined: list[tuple[CpuSet, int]] = []
    for cpus, count in Counter(sets).items():
        apart = []
        for other, more in joined:
            if other & cpus:
                cpus, count = cpus | other, count + more
            else:
                apart.append((other, more))
        joined = [*apart, (cpus, count)]
    return joined


def local_to(device: PciDevice | None, topology: Topology) -> CpuSet | None:
    """The online CPUs nearest to the device; None when where it is is not known.

    They are those of its node, or where that has no CPUs (memory of a GPU or a CXL device), of
    the nearest one that has. Where one node has all CPUs, and in a kernel without CONFIG_NUMA,
    every device is local to all. For a device without a node the kernel's ``local_cpulist`` names
    every CPU: that tells nothing (drivers/pci/pci-sysfs.c, local_cpulist_show()).
    """
    if device is None:
        return None
    if device.node is not None and device.node >= 0:
        if device.node in topology.nodes:
            return topology.nearest(device.node, topology.online) or None
        if device.local_cpus is not None and device.local_cpus & topology.online:
            return device.local_cpus & topology.online
    return (topology.online or None) if one_node(topology) else None


def one_node(topology: Topology) -> bool:
    """Whether all online CPUs are on one node, or the kernel knows none."""
    return sum(1 for node in topology.nodes.values() if node.cpus & topology.online) < 2


def near_to(device: PciDevice | None, cpus: CpuSet, topology: Topology) -> CpuSet:
    """Those of `cpus` that are nearest to the device, all where that is not known."""
    if device is not None and device.node is not None and device.node in topology.nodes:
        return topology.nearest(device.node, cpus)
    return (cpus & (local_to(device, topology) or cpus)) or cpus


def is_far(device: PciDevice | None, cpus: CpuSet, topology: Topology) -> bool:
    """Whether the device is on another socket than all of these CPUs.

    Of an offline CPU no node is known, nor is it of a device without one.
    """
    return within(far_from(device, topology), cpus, topology)


def far_from(device: PciDevice | None, topology: Topology) -> CpuSet:
    """The online CPUs that are on other sockets than the device; none where that is not known."""
    local = local_to(device, topology)
    if local is None or one_node(topology):
        return CpuSet()
    homes = nodes_of(local, topology)
    return topology.online & union(
        node.cpus
        for number, node in topology.nodes.items()
        if homes and not any(home == number or topology.is_near(home, number) for home in homes)
    )


def within(far: CpuSet, cpus: CpuSet, topology: Topology) -> bool:
    """Whether there are online CPUs of these, and all of them are `far`."""
    return bool(far & cpus) and cpus & topology.online <= far


def nodes_of(cpus: CpuSet, topology: Topology) -> list[int]:
    """The nodes that these CPUs are on."""
    return [number for number, node in topology.nodes.items() if node.cpus & cpus]


def _left(why: str) -> Target:
    return Target(None, why, code="no-target")


def _auto(
    guest: Guest, device: PciDevice | None, topology: Topology, chosen: CpuSet | None = None
) -> Target:
    """`chosen`: someone has named these vCPUs, so it is they, real-time or not."""
    if not guest.vcpus:
        return _left(f"{guest.name} has no {guest.unit} whose CPUs are known")
    places = {vcpu.index: runs_on(vcpu.cpus, topology) for vcpu in guest.vcpus}
    if all(cpus is None for cpus in places.values()):
        return _beside(device, topology, f"{guest.unit}s are not pinned")
    dealt, kept_off = _calm(guest, places) if chosen is None else (places, "")
    seats = tuple(
        Seat(topology.online if cpus is None else cpus, index)
        for index, cpus in sorted(dealt.items())
    )
    cpus = union(seat.cpus for seat in seats)
    if not cpus:
        wanted = union(vcpu.cpus or CpuSet() for vcpu in guest.vcpus)
        return Target(None, f"the {guest.unit}s' CPUs {wanted} are offline", code="target-offline")
    near = _near(seats, device, topology)
    note = f"CPUs {cpus} of its {guest.unit}s{kept_off}"
    if all(wide(vcpu.cpus, topology) for vcpu in guest.vcpus):
        note = f"{guest.unit}s are not pinned: {anywhere(topology)}{kept_off}"
    nearest = union(seat.cpus for seat in near)
    if nearest != cpus:
        local = local_to(device, topology)
        where = "on the device's node" if local and nearest <= local else "nearest to the device"
        note += f", {nearest} of them {where}"
    following = {
        index: Seat(near_to(device, cpus, topology), index)
        for index, cpus in places.items()
        if cpus
    }
    return Target(cpus, note, seats=near, following=following)


def _calm(
    guest: Guest, places: Mapping[int, CpuSet | None]
) -> tuple[Mapping[int, CpuSet | None], str]:
    """The vCPUs that vectors are dealt to: none that is real-time, as long as there are others.

    An interrupt stops what its CPU runs, SCHED_FIFO or not. What the guest itself aims at a
    real-time vCPU follows that: the guest knows what it does.
    """
    realtime = CpuSet(vcpu.index for vcpu in guest.vcpus if vcpu.realtime)
    theirs = union(cpus for index, cpus in places.items() if index in realtime and cpus)
    others = (
        (index, None if cpus is None else cpus - theirs)
        for index, cpus in places.items()
        if index not in realtime
    )
    calm = {index: cpus for index, cpus in others if cpus is None or cpus}
    if not realtime or not calm:
        return places, ""
    return calm, f" {CpuSet(calm)}, not of real-time {guest.unit}s {realtime}"


def _of_vcpus(wanted: CpuSet, guest: Guest, device: PciDevice | None, topology: Topology) -> Target:
    """As `auto`, for some of the guest's vCPUs."""
    chosen = tuple(vcpu for vcpu in guest.vcpus if vcpu.index in wanted)
    if not chosen:
        return _left(f"{guest.name} has none of vCPUs {wanted}: left alone")
    target = _auto(replace(guest, vcpus=chosen), device, topology, wanted)
    missing = wanted - CpuSet(vcpu.index for vcpu in chosen)
    gone = f"; it has no vCPU {missing}" if missing else ""
    named = CpuSet(vcpu.index for vcpu in chosen)
    return replace(target, note=f"vCPUs {named}: {target.note}{gone}")


def _near(seats: Sequence[Seat], device: PciDevice | None, topology: Topology) -> tuple[Seat, ...]:
    """The seats cut down to the CPUs nearest to the device that any of them has."""
    near = near_to(device, union(seat.cpus for seat in seats), topology)
    return tuple(Seat(seat.cpus & near, seat.vcpu) for seat in seats if seat.cpus & near)


def _emulator(guest: Guest, device: PciDevice | None, topology: Topology, taken: Taken) -> Target:
    cpus = runs_on(guest.emulator, topology)
    if cpus is None:
        # It is asked for to keep interrupts off vCPUs; `auto` follows vCPUs that may run anywhere.
        return _beside(device, topology, "the emulator is not pinned", taken)
    if not cpus:
        return Target(
            None, f"the emulator's CPUs {guest.emulator} are offline", code="target-offline"
        )
    near = _near((Seat(cpus),), device, topology)
    return Target(cpus, f"CPUs {cpus} of its emulator", seats=near)


def _beside(
    device: PciDevice | None, topology: Topology, why: str, taken: Taken | None = None
) -> Target:
    """Where nothing says which CPUs: those local to the device, and not `taken` if any are left."""
    local = local_to(device, topology)
    if local is None:
        return _left(f"{why} and {_nowhere(device)}: left alone")
    cpus = _unreserved(local, topology, taken or Taken()) or _unreserved(local, topology, Taken())
    note = f"{why}: CPUs {cpus} local to the device"
    return Target(cpus, note, seats=(Seat(cpus),))


def _local(device: PciDevice | None, topology: Topology, taken: Taken) -> Target:
    local = local_to(device, topology)
    if local is None:
        return _left(f"{_nowhere(device)}, so nothing is local: left alone")
    cpus = _unreserved(local, topology, taken)
    if not cpus:
        return _left(f"guests' vCPUs are pinned to all local CPUs {local}: left alone")
    return Target(cpus, f"local CPUs {cpus}, dedicated to no vCPU", seats=(Seat(cpus),))


def _unreserved(cpus: CpuSet, topology: Topology, taken: Taken) -> CpuSet:
    """`cpus` without those of guests, and of those that are kept free for someone if others remain.

    An isolated CPU that no guest has yet is kept for one; a nohz_full CPU is to be left alone.
    CPUs that look like a guest's own, and may as well be a pool, come before either.
    """
    free = cpus - taken.all
    if not free:
        return free
    general = cpus & topology.general
    for some in (general - topology.nohz_full, general):
        if left := some - taken.all or some - taken.sole:
            return left
    return free


def _nowhere(device: PciDevice | None) -> str:
    """Why nothing is local to the device."""
    if device is None or device.node is None or device.node < 0:
        return "the device has no NUMA node"
    return f"nothing is known of the device's node {device.node}"


def _explicit(asked: CpuSet, guest: Guest, topology: Topology) -> Target:
    cpus = asked & topology.online
    if not cpus:
        return Target(None, f"CPUs {asked} are not online: left alone", code="target-offline")
    note = f"CPUs {cpus}"
    if cpus != asked:
        note += f" ({asked - cpus} of {asked} not online)"
    places = {vcpu.index: runs_on(vcpu.cpus, topology) for vcpu in guest.vcpus}
    following = {
        index: Seat(there & cpus, index)
        for index, there in places.items()
        if there is not None and there & cpus
    }
    return Target(cpus, note, seats=(Seat(cpus),), following=following)
