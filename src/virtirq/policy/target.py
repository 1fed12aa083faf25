"""What a directive means right now: the CPUs, and how vectors are dealt over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from virtirq.cpuset import CpuSet, union
from virtirq.model import Directive, Guest, PciDevice, Topology, Word


@dataclass(frozen=True, slots=True)
class Seat:
    """What a vector may follow: a vCPU and the CPUs it may run on, or a part of the host."""

    cpus: CpuSet
    vcpu: int | None = None


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


def target_of(
    directive: Directive, guest: Guest, device: PciDevice | None, topology: Topology, taken: CpuSet
) -> Target:
    """The target of a guest's device; `taken` are the CPUs that guests' vCPUs are pinned to."""
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


def runs_on(cpus: CpuSet | None, topology: Topology) -> CpuSet | None:
    """The online CPUs where a thread with this mask runs; None for all of them.

    A thread that nobody pinned keeps off isolated CPUs, allowed there or not: those are in no
    scheduling domain (Documentation/admin-guide/kernel-parameters.txt, isolcpus=).
    """
    if not wide(cpus, topology):
        return (cpus or CpuSet()) & topology.online
    return None if topology.general == topology.online else topology.general


def pinned_cpus(guests: Iterable[Guest], topology: Topology) -> CpuSet:
    """The CPUs that some guest's vCPUs are dedicated to.

    A vCPU that may use all CPUs without ``isolcpus=`` is dedicated to none, whether somebody
    wrote that down or it is what every thread gets.
    """
    return union(
        vcpu.cpus
        for guest in guests
        for vcpu in guest.vcpus
        if vcpu.cpus is not None and not topology.general <= vcpu.cpus
    )


def local_to(device: PciDevice | None, topology: Topology) -> CpuSet | None:
    """The online CPUs of the device's node, None when it has no node or it is not known.

    For a device without a node the kernel's ``local_cpulist`` names every CPU: that tells
    nothing (drivers/pci/pci-sysfs.c, local_cpulist_show()).
    """
    if device is None or device.node is None or device.node < 0:
        return None
    node = topology.nodes.get(device.node)
    cpus = node.cpus if node is not None else device.local_cpus
    return (cpus & topology.online) or None if cpus is not None else None


class Deal:
    """Deals a device's vectors over seats.

    Vector *i* follows seat *i mod n*. Seats with the same CPUs (vCPUs that share a pool) deal
    their vectors over it in turn, so that each CPU of a pool gets its share; each device starts
    at a CPU of its own. The answer depends on seats, device and vector alone: neither another
    vector nor another guest changes it.
    """

    def __init__(self, seats: Sequence[Seat], place: int = 0) -> None:
        """`place` (the device's routing ID) says where in a pool the device starts."""
        # Multiples of the golden ratio spread evenly over a circle, be they of 1 (VFs), 8 or 256
        # (slots, buses): guests that share a pool do not all begin at its first CPU.
        self._start = place * 0x9E3779B9 % 2**32
        self._seats = seats
        self._cpus = {cpus: tuple(cpus) for cpus in {seat.cpus for seat in seats}}
        sharing: Counter[CpuSet] = Counter()
        self._places = []
        for seat in seats:
            self._places.append(sharing[seat.cpus])
            sharing[seat.cpus] += 1
        self._sharing = sharing

    def within(self, seat: Seat, order: int) -> int:
        """The CPU for the vector of this order where it follows this seat, whatever is dealt."""
        cpus = tuple(seat.cpus)
        return cpus[(order + (self._start * len(cpus) >> 32)) % len(cpus)]

    def __call__(self, order: int) -> tuple[Seat, int]:
        """The seat that the vector of this order follows, and its CPU there."""
        round_, place = divmod(order, len(self._seats))
        seat = self._seats[place]
        turn = round_ * self._sharing[seat.cpus] + self._places[place]
        cpus = self._cpus[seat.cpus]
        return seat, cpus[(turn + (self._start * len(cpus) >> 32)) % len(cpus)]


def _left(why: str) -> Target:
    return Target(None, why, code="no-target")


def _auto(guest: Guest, device: PciDevice | None, topology: Topology) -> Target:
    if not guest.vcpus:
        return _left(f"{guest.name} has no {guest.unit} whose CPUs are known")
    places = {vcpu.index: runs_on(vcpu.cpus, topology) for vcpu in guest.vcpus}
    if all(cpus is None for cpus in places.values()):
        return _beside(device, topology, f"{guest.unit}s are not pinned")
    seats = tuple(
        Seat(topology.online if cpus is None else cpus, index)
        for index, cpus in sorted(places.items())
    )
    cpus = union(seat.cpus for seat in seats)
    if not cpus:
        wanted = union(vcpu.cpus or CpuSet() for vcpu in guest.vcpus)
        return Target(None, f"the {guest.unit}s' CPUs {wanted} are offline", code="target-offline")
    local = local_to(device, topology)
    near = _near(seats, local)
    note = f"CPUs {cpus} of its {guest.unit}s"
    if union(seat.cpus for seat in near) != cpus:
        note += f", {union(seat.cpus for seat in near)} of them on the device's node"
    following = {
        index: Seat((local and cpus & local) or cpus, index)
        for index, cpus in places.items()
        if cpus
    }
    return Target(cpus, note, seats=near, following=following)


def _of_vcpus(wanted: CpuSet, guest: Guest, device: PciDevice | None, topology: Topology) -> Target:
    """As `auto`, for some of the guest's vCPUs."""
    chosen = tuple(vcpu for vcpu in guest.vcpus if vcpu.index in wanted)
    if not chosen:
        return _left(f"{guest.name} has none of vCPUs {wanted}: left alone")
    target = _auto(replace(guest, vcpus=chosen), device, topology)
    missing = wanted - CpuSet(vcpu.index for vcpu in chosen)
    gone = f"; it has no vCPU {missing}" if missing else ""
    named = CpuSet(vcpu.index for vcpu in chosen)
    return replace(target, note=f"vCPUs {named}: {target.note}{gone}")


def _near(seats: Sequence[Seat], local: CpuSet | None) -> tuple[Seat, ...]:
    """The seats cut down to the device's node, or as they are when none reaches it."""
    if local is not None and any(seat.cpus & local for seat in seats):
        seats = [Seat(seat.cpus & local, seat.vcpu) for seat in seats]
    return tuple(seat for seat in seats if seat.cpus)


def _emulator(guest: Guest, device: PciDevice | None, topology: Topology, taken: CpuSet) -> Target:
    cpus = runs_on(guest.emulator, topology)
    if cpus is None:
        # It is asked for to keep interrupts off vCPUs; `auto` follows vCPUs that may run anywhere.
        return _beside(device, topology, "the emulator is not pinned", taken)
    if not cpus:
        return Target(
            None, f"the emulator's CPUs {guest.emulator} are offline", code="target-offline"
        )
    near = _near((Seat(cpus),), local_to(device, topology))
    return Target(cpus, f"CPUs {cpus} of its emulator", seats=near)


def _beside(
    device: PciDevice | None, topology: Topology, why: str, taken: CpuSet | None = None
) -> Target:
    """Where nothing says which CPUs: those local to the device, and not `taken` if any are left."""
    local = local_to(device, topology)
    if local is None:
        return _left(f"{why} and {_nowhere(device)}: left alone")
    cpus = _unreserved((local - (taken or CpuSet())) or local, topology)
    note = f"{why}: CPUs {cpus} local to the device"
    return Target(cpus, note, seats=(Seat(cpus),))


def _local(device: PciDevice | None, topology: Topology, taken: CpuSet) -> Target:
    local = local_to(device, topology)
    if local is None:
        return _left(f"{_nowhere(device)}, so nothing is local: left alone")
    cpus = _unreserved(local - taken, topology)
    if not cpus:
        return _left(f"guests' vCPUs are pinned to all local CPUs {local}: left alone")
    return Target(cpus, f"local CPUs {cpus}, where no vCPU is pinned", seats=(Seat(cpus),))


def _unreserved(cpus: CpuSet, topology: Topology) -> CpuSet:
    """`cpus` without those that are kept free for someone, as long as that leaves any.

    An isolated CPU that no guest has yet is kept for one; a nohz_full CPU is to be left alone.
    """
    shared = cpus & topology.general
    return (shared - topology.nohz_full) or shared or cpus


def _nowhere(device: PciDevice | None) -> str:
    """Why nothing is local to the device."""
    if device is None or device.node is None or device.node < 0:
        return "the device has no NUMA node"
    return f"no CPU of the device's node {device.node} is online"


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
