"""What a person should know about the host, its guests and where their interrupts go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Final

from virtirq.cpuset import CpuSet, union
from virtirq.model import (
    DevicePlan,
    Directive,
    Finding,
    Guest,
    GuestPlan,
    InterruptKey,
    PciAddress,
    Pin,
    Plan,
    Snapshot,
    Word,
    counted,
)
from virtirq.policy.advice import ADVICE
from virtirq.policy.config import Rule
from virtirq.policy.contention import Contention
from virtirq.policy.counts import percent
from virtirq.policy.place import finds_room
from virtirq.policy.room import room_of, short
from virtirq.policy.target import (
    Taken,
    anywhere,
    is_far,
    local_to,
    one_node,
    pinned_cpus,
    pools,
    wide,
)

_NAMED: Final = 3
"""Guests that a finding names before it breaks off."""


def findings(snapshot: Snapshot, plan: Plan) -> tuple[Finding, ...]:
    """Every finding, the worst first, then by code and subject. `plan` is for `snapshot`."""
    full = short(snapshot.vectors_on)
    found = list(_of_host(snapshot, plan, full))
    still, room = _still_pools(snapshot), _Room(snapshot)
    for guest in plan.guests:
        found += _of_guest(snapshot, guest, still, room)
        for device in guest.devices:
            found += _of_device(snapshot, guest.guest, device, full, room)
    return in_order(found)


class _Room:
    """Whether a guest could be placed next to its devices: no hint leads to where none is."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._found: dict[str, bool] = {}
        """By guest: each of its devices asks."""

    def __call__(self, guest: Guest) -> bool:
        if guest.key not in self._found:
            self._found[guest.key] = self._has_room(guest)
        return self._found[guest.key]

    def _has_room(self, guest: Guest) -> bool:
        mine = pinned_cpus([guest], self._snapshot.topology)
        alone = CpuSet(cpu for cpu in mine if self._users[cpu] == 1)
        return finds_room(self._snapshot, guest, CpuSet(self._users) - alone)

    @cached_property
    def _users(self) -> Counter[int]:
        """How many guests have vCPUs pinned to each CPU."""
        topology = self._snapshot.topology
        return Counter(
            cpu for each in self._snapshot.guests for cpu in pinned_cpus([each], topology)
        )


def in_order(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first, then by code and subject."""
    return tuple(sorted(found, key=lambda each: (-each.severity.rank, each.code, each.subject)))


def _finding(
    code: str, subject: str, message: str, guest: str = "", *, room: bool = True
) -> Finding:
    """`guest` is whom a hint's command is about; `room`: whether it could be placed elsewhere."""
    advice = ADVICE[code]
    hint = advice.remedy if room else advice.no_room
    if guest:
        import shlex

        hint = hint.replace("GUEST", shlex.quote(guest))
    return Finding(code, advice.severity, subject, message, hint)


def _some(names: Iterable[str]) -> str:
    """The first of them, and whether there are more."""
    first, more = list(islice(names, _NAMED + 1)), ", ..."
    return ", ".join(first[:_NAMED]) + (more if len(first) > _NAMED else "")


def contested(guest: str, key: InterruptKey, contention: Contention) -> Finding:
    """Someone moves an interrupt as often as the daemon puts it back."""
    text = (
        f"{key.action} was moved {contention.total} times by others, most often by"
        f" {contention.suspect};"
        f" it is put back {contention.wait:.0f} seconds after each move"
    )
    return _finding("affinity-contested", f"{guest} {key.device}", text)


def irqbalance_untold(pid: int, why: str) -> Finding:
    """The daemon could not tell irqbalance which interrupts to leave alone."""
    return _finding("irqbalance-untold", "host", f"irqbalance (pid {pid}) was not told: {why}")


def left_alone(guest: str) -> Finding:
    """Policies are compared for it, or the like."""
    return _finding("guest-left-alone", guest, "its interrupts are left alone for a while")


def device_unclaimed(address: PciAddress, count: int) -> Finding:
    """Somebody uses the device by VFIO, and which guest that is cannot be told."""
    text = f"{counted(count, 'interrupt')} of VFIO's, and no guest that has it"
    return _finding("device-unclaimed", str(address), text)


def device_not_pci(device: str, irqs: Sequence[int]) -> Finding:
    """VFIO has interrupts of a device on another bus, such as a SoC's."""
    some = _some(map(str, irqs))
    text = f"{counted(len(irqs), 'interrupt')} of VFIO's ({some}), and it is no PCI function"
    return _finding("device-not-pci", device, text)


def taken_elsewhere(guest: str, a_second: float, astray: float, others: Sequence[str]) -> Finding:
    """Of a guest's interrupts `a_second`, so many on CPUs of `others`, who have most first."""
    text = (
        f"{percent(astray, a_second)}% of its {rate(a_second)} interrupts a second are taken on"
        f" other guests' CPUs ({_some(others)})"
    )
    return _finding("taken-elsewhere", guest, text)


def taken_by_guests_cpus(
    a_second: float, name: str, irq: int, cpu: int, of_those: float
) -> Finding:
    """Interrupts `a_second` of the host's own; `of_those` are of this `irq` and on this `cpu`."""
    called = f"interrupt {irq}" + (f" ({name})" if name else "")
    text = (
        f"{rate(a_second)} interrupts a second of no guest are taken on CPUs that guests are pinned"
        f" to; most, {rate(of_those)}, are {called} on CPU {cpu}"
    )
    return _finding("host-interrupts-on-vcpus", "host", text)


def rate(a_second: float) -> str:
    """So many a second, for people: ``12,400``, ``3.5``."""
    return f"{a_second:,.0f}" if a_second >= 10 else f"{a_second:.1f}".removesuffix(".0")


def journal_unusable(why: str) -> Finding:
    """Nothing can be moved, or put back."""
    return _finding("journal-unusable", "host", why)


def guests_not_read(why: str) -> Finding:
    """There may be guests that nothing is known of."""
    return _finding("guests-not-read", "host", why)


def libvirt_silent(why: str) -> Finding:
    """The daemon has lost libvirt, or libvirt does not answer it."""
    return _finding("libvirt-silent", "host", why)


def events_polled(why: str) -> Finding:
    """The kernel's events are not to be had."""
    return _finding("events-polled", "host", f"no events of the kernel: {why}")


def followed(guest: str, reader: str, why_not: Iterable[str]) -> Finding:
    """A guest's vectors go to the vCPUs that it aims them at."""
    text = f"where it aims its vectors is read by {reader}"
    return _finding("vectors-followed", guest, "; ".join((text, *why_not)))


def not_followed(subject: str, why_not: Iterable[str]) -> Finding:
    """Which vCPUs a guest aims its vectors, or those of one of its devices, at is not known."""
    text = f"where it aims its vectors cannot be read: {'; '.join(why_not)}"
    return _finding("vectors-not-followed", subject, text)


def rules_unmatched(rules: Iterable[Rule]) -> Iterator[Finding]:
    """Rules that fit no device of any guest that is known now."""
    for rule in rules:
        yield _finding("rule-unmatched", "host", f"{rule.origin} fits no device of a guest")


def _of_host(snapshot: Snapshot, plan: Plan, full: CpuSet) -> Iterator[Finding]:
    targets = union(d.target for g in plan.guests for d in g.devices if d.target is not None)
    irqbalance = snapshot.irqbalance
    if irqbalance.running and targets:
        drivers = _drivers(snapshot, plan)
        loose = sorted(each for each in drivers if not irqbalance.spares(each))
        pid = f" (pid {irqbalance.pid})" if irqbalance.pid else ""
        text = f"irqbalance{pid} may undo pins"
        if loose and irqbalance.banned:
            banned = ", ".join(irqbalance.banned)
            text += f" of {', '.join(loose)}, whose name has none of {banned} (--banmod=) in it"
        if loose:
            yield _finding("irqbalance-running", "host", text)
    if snapshot.posting.active:
        basis = snapshot.posting.basis
        yield _finding("interrupts-posted", "host", f"device interrupts may be posted: {basis}")
    for address, count in snapshot.unclaimed.items():
        yield device_unclaimed(address, count)
    for device, irqs in snapshot.not_pci.items():
        yield device_not_pci(device, irqs)
    wanted = targets & full
    if wanted:
        most = max(snapshot.vectors_on[cpu] for cpu in wanted)
        text = f"up to {most} of about 200 vectors are in use on target CPUs {wanted}"
        idle = sum(1 for pin in plan.pins if pin.idle and room_of(pin) <= wanted)
        if idle:
            text += f"; no room there for {counted(idle, 'interrupt')} that never fired"
        yield _finding("vectors-low", f"CPU {wanted}", text)


def _of_guest(
    snapshot: Snapshot, planned: GuestPlan, still: _Pools, room: _Room
) -> Iterator[Finding]:
    guest = planned.guest
    for problem in guest.problems:
        yield _finding("setting-not-understood", guest.name, problem)
    yield from _pools_on_isolated(snapshot, guest, still, room)
    directives = [each.directive for each in planned.devices if each.directive is not None]
    where = anywhere(snapshot.topology)
    loose = {vcpu for each in directives for vcpu in _unpinned_vcpus(each, guest, snapshot)}
    if loose:
        some = "" if len(loose) == len(guest.vcpus) else f"{len(loose)} of "
        text = f"{some}its {len(guest.vcpus)} {guest.unit}s may run on {where}"
        yield _finding("vcpus-not-pinned", guest.name, text)
    if any(_unpinned_emulator(each, guest, snapshot) for each in directives):
        yield _finding("emulator-not-pinned", guest.name, f"its emulator may run on {where}")


def _drivers(snapshot: Snapshot, plan: Plan) -> set[str]:
    """The VFIO drivers of the devices that have targets; a device without one gets vfio-pci."""
    devices = [
        snapshot.pci.get(device.device.address)
        for guest in plan.guests
        for device in guest.devices
        if device.target is not None
    ]
    return {
        each.driver if each is not None and each.driver and each.is_vfio else "vfio-pci"
        for each in devices
    }


_Pools = Sequence[tuple[CpuSet, int]]
"""Sets of CPUs, and how many vCPUs share each."""


def _on_isolated(snapshot: Snapshot, guest: Guest) -> list[CpuSet]:
    """The isolated CPUs of each vCPU that may run on several of them."""
    isolated = snapshot.topology.isolated & snapshot.topology.online
    there = (vcpu.cpus & isolated for vcpu in guest.vcpus if vcpu.cpus is not None)
    return [cpus for cpus in there if len(cpus) > 1]


def _still_pools(snapshot: Snapshot) -> _Pools:
    """Isolated CPUs that vCPUs share: the scheduler has no domain there and moves none of them."""
    them = [cpus for guest in snapshot.guests for cpus in _on_isolated(snapshot, guest)]
    return [pool for pool in pools(them) if pool[1] > 1]


def _pools_on_isolated(
    snapshot: Snapshot, guest: Guest, still: _Pools, room: _Room
) -> Iterator[Finding]:
    own = _on_isolated(snapshot, guest)
    for cpus, sharers in still:
        mine = sum(1 for each in own if each <= cpus)
        if mine:
            others = f" with {sharers - mine} of other guests" if sharers > mine else ""
            text = (
                f"{mine} {guest.unit}{'s' if mine > 1 else ''} share{'' if mine > 1 else 's'}"
                f" isolated CPUs {cpus} as one pool{others}, among which the kernel does not"
                " balance: all stay where they started"
            )
            yield _finding("pool-on-isolated", guest.name, text, guest.name, room=room(guest))


def _unpinned_vcpus(directive: Directive, guest: Guest, snapshot: Snapshot) -> set[int]:
    """The vCPUs that the directive follows wherever they run."""
    if directive.word is not Word.AUTO and not directive.vcpus:
        return set()
    return {
        vcpu.index
        for vcpu in guest.vcpus
        if (not directive.vcpus or vcpu.index in directive.vcpus)
        and wide(vcpu.cpus, snapshot.topology)
    }


def _unpinned_emulator(directive: Directive, guest: Guest, snapshot: Snapshot) -> bool:
    return directive.word is Word.EMULATOR and wide(guest.emulator, snapshot.topology)


def _of_device(
    snapshot: Snapshot, guest: Guest, plan: DevicePlan, full: CpuSet, room: _Room
) -> Iterator[Finding]:
    topology = snapshot.topology
    subject = f"{guest.name} {plan.device.address}"
    pci = snapshot.pci.get(plan.device.address)
    if pci is None:
        yield _finding("device-missing", subject, plan.note)
        return
    reasons = {action.reason.code for action in plan.actions}
    if plan.code == "claimed":
        yield _finding("device-claimed-twice", subject, plan.note)
    unpinned = plan.directive is not None and (
        _unpinned_vcpus(plan.directive, guest, snapshot)
        or _unpinned_emulator(plan.directive, guest, snapshot)
    )
    if plan.code == "no-target" and not unpinned:  # which is told of the guest
        yield _finding("no-target", subject, plan.note)
    if plan.code == "target-offline":
        yield _finding("target-offline", subject, plan.note)
    elif plan.directive and plan.directive.cpus - topology.online and plan.target:
        gone = plan.directive.cpus - topology.online
        yield _finding("target-offline", subject, f"CPUs {gone} of its CPU list are not online")
    if pci.node == -1 and not one_node(topology):
        yield _finding("device-without-node", subject, "its NUMA node is not known to the firmware")
    pinned = pinned_cpus([guest], topology)
    if is_far(pci, pinned, topology):
        local = local_to(pci, topology)
        text = f"{guest.unit}s on CPUs {pinned}, device on node {pci.node} (CPUs {local})"
        yield _finding("node-mismatch", subject, text, guest.name, room=room(guest))
    if plan.target is not None:
        own = pinned
        threads = (guest.emulator, *guest.iothreads.values())
        own |= union(cpus for cpus in threads if cpus is not None and not wide(cpus, topology))
        foreign = (plan.target & (topology.isolated | topology.nohz_full)) - own
        if foreign:
            text = f"its interrupts may go to isolated CPUs {foreign}, not its {guest.unit}s'"
            yield _finding("isolated-conflict", subject, text)
        beyond = plan.target - pinned
        theirs = beyond & Taken.by(_others(snapshot, guest), topology).all if beyond else beyond
        if theirs:
            text = (
                f"its interrupts may go to CPUs {theirs}, to which other guests' vCPUs are pinned"
            )
            yield _finding("pinned-conflict", subject, text)
    if "intx-shared" in reasons:
        shared = next(a for a in plan.actions if a.reason.code == "intx-shared")
        yield _finding("intx-shared", subject, f"IRQ {shared.irq}: {shared.reason.text}")
    yield from _misplaced(subject, plan, full)


def _others(snapshot: Snapshot, guest: Guest) -> Iterator[Guest]:
    return (each for each in snapshot.guests if each.key != guest.key)


_MISPLACED: Final = (
    ("wrong-cpu", "wrong-cpu", "are delivered to another CPU than planned"),
    ("wrong-node", "wrong-node", "are delivered on another node than planned"),
    ("loose", "affinity-loose", "are well placed, but not pinned as planned"),
    ("unknown-place", "place-unknown", "are at places that could not be read"),
)
"""Reason of the pins, code of the finding, and what to say of them."""


def _misplaced(subject: str, plan: DevicePlan, full: CpuSet) -> Iterator[Finding]:
    """What is not where it should be, but for what never fired and finds no room: see _of_host."""
    there = [each for each in plan.actions if isinstance(each, Pin)]
    there = [each for each in there if not (each.idle and room_of(each) <= full)]
    for reason, code, what in _MISPLACED:
        pins = [each for each in there if each.reason.code == reason]
        if pins:
            yield _finding(code, subject, f"{len(pins)} of {len(plan.actions)} interrupts {what}")
