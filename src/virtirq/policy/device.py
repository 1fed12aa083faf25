"""Where each interrupt of one device of one guest should be, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.model import (
    NATIVE,
    Action,
    Aimed,
    DevicePlan,
    Follows,
    Guest,
    GuestDevice,
    Interrupt,
    InterruptKind,
    Keep,
    PciAddress,
    PciDevice,
    Pin,
    Reason,
    Spread,
    Topology,
    VfioAction,
)
from virtirq.policy.deal import Deal, Dealt, Seat
from virtirq.policy.directives import Asked
from virtirq.policy.target import Target, far_from, within
from virtirq.values import replace

_NO_CHOICE: Final = Aimed(None)
# A host may have a hundred thousand interrupts, of which much the same is said.
_reason: Final = lru_cache(1024)(Reason)
_SAID: Final = 512
_WHYS: Final = 32
"""Of a device: its vectors come from few places, and go to few."""


@lru_cache(8192)
def _only(cpu: int) -> CpuSet:
    return CpuSet([cpu])


class _Place(NamedTuple):
    """Where an interrupt should be, and what to call that. `equal` CPUs would serve as well."""

    cpus: CpuSet
    said: str
    equal: CpuSet
    alternatives: tuple[CpuSet, ...] = ()
    follows: Follows | None = None


class DesiredDevice:
    """What is wanted of one device of one guest; what its interrupts share.

    `aimed` is the guest's own choice of a vCPU for each vector, as far as it is known.
    """

    def __init__(
        self,
        guest: Guest,
        device: GuestDevice,
        pci: PciDevice | None,
        asked: Asked,
        asks: Mapping[PciAddress, Asked],
        target: Target,
        topology: Topology,
        dealt: Dealt,
        beside: Sequence[DesiredDevice],
    ) -> None:
        """`asks`: what is asked for each device of the guest of which it decides.

        `dealt` is what is known of its deal, and kept by the caller; `beside` are the guest's
        devices, this one too.
        """
        self.guest, self.device, self.pci = guest, device, pci
        self.asks, self.asked = asks, asked
        self.target, self.seated, self.topology = target, target.seated, topology
        self.node = pci.node if pci and pci.node is not None and pci.node >= 0 else None
        at = device.address
        routing = ((at.domain << 8 | at.bus) << 5 | at.slot) << 3 | at.function
        self.deal = Deal(target.seats, routing)
        self._far = far_from(pci, topology)
        self.dealt, self._beside = dealt, beside
        self.aimed: Mapping[int, Aimed] = {}
        self._told: dict[tuple[CpuSet, int | None, int, str], _Place] = {}
        """Of many vectors much the same is said; `_SAID` at most, for a guest may choose words."""
        self._whys: dict[tuple[str, CpuSet | None, CpuSet | None], Reason] = {}

    @property
    def follows(self) -> bool:
        """Whether vectors go where the guest aims them, if that is known."""
        return bool(self.target.following) and self.asked.spread is Spread.VECTOR

    @property
    def deals(self) -> bool:
        """Whether its vectors are dealt one CPU each."""
        return bool(self.target.seats) and self.asked.spread is Spread.VECTOR

    def find(self, interrupts: Sequence[Interrupt]) -> None:
        """These are the device's interrupts: what is dealt, and where that has begun if it shows.

        A start that is known already stays what it is.
        """
        dealt = {
            order: interrupt
            for order, interrupt in _in_order(interrupts)
            if self.deals and self._hindrance(interrupt, interrupt.own_action or "") is None
        }
        self.dealt.orders = frozenset(dealt)
        if dealt and self.dealt.start is None:
            # Orders that are but guessed shift with every vector that comes or goes.
            numbered = {order: each for order, each in dealt.items() if each.numbered}
            places = {
                order: each.affinity
                for order, each in (numbered or dealt).items()
                if each.affinity is not None and self._choice(each)[0] is None
            }
            self.dealt.start = self.deal.found(places)

    def begin(self) -> int:
        """Where the deal begins: where it has, or else so that the emptiest CPUs get the vectors.

        How full a CPU is counts the guest's own vectors, so another guest changes nothing.
        """
        if self.dealt.start is None:
            load = Counter(cpu for each in self._beside if each is not self for cpu in each.places)
            self.dealt.start = self.deal.begin(self.dealt.orders or {0}, load)
        return self.dealt.start

    @property
    def places(self) -> Iterable[int]:
        """The CPU of each vector that there is, as far as its place is decided."""
        if not self.deals or self.dealt.start is None:
            return
        for order in self.dealt.orders:
            choice = self.aimed.get(order, _NO_CHOICE).vcpu
            seat = None if choice is None else self.target.following.get(choice)
            if seat is None:
                yield self.deal(order, self.dealt.start)[1]
            else:
                yield self.deal.within(seat, order)

    def plan(self, interrupts: tuple[Interrupt, ...]) -> DevicePlan:
        """What to do about these, which have been found (`find`)."""
        note = self.target.note
        if self.pci is None:
            note = "the host has no such device"
        else:
            if self.pci.driver and not self.pci.is_vfio:
                note += f"; its driver is {self.pci.driver}, not a VFIO driver"
            if not interrupts:
                note += "; no interrupts yet"
        return DevicePlan(
            self.device,
            self.asked.directive,
            self.asked.origin,
            self.target.cpus,
            note,
            code=self.target.code,
            node=self.node,
            actions=tuple(
                self._decide(interrupt, order) for order, interrupt in _in_order(interrupts)
            ),
        )

    def decide(self, interrupt: Interrupt) -> Action:
        """What to do about one interrupt, whose vector number is known where it has one."""
        return self._decide(interrupt, interrupt.vector or 0)

    def appeared(self, interrupt: Interrupt) -> Action:
        """What to do about one that the guest has just set up, wherever the kernel put it."""
        self.dealt.orders |= {interrupt.vector or 0}
        action = self.decide(interrupt)
        if not isinstance(action, Pin):
            return action
        place = self._place(interrupt, interrupt.vector or 0)
        return replace(action, reason=Reason("new", f"to {place.said}"))

    def _decide(self, interrupt: Interrupt, order: int) -> Action:
        key = interrupt.key
        hindrance = self._hindrance(interrupt, key.action)
        if hindrance is not None:
            return Keep(interrupt.irq, key, self.guest.key, hindrance)
        place = self._place(interrupt, order)
        if interrupt.affinity == place.cpus:
            reason = _in_place(interrupt, place.said)
        elif interrupt.settable is False:
            text = "the kernel manages its affinity and takes none from user space"
            reason = Reason("managed", text)
        else:
            return Pin(
                interrupt.irq,
                key,
                self.guest.key,
                before=interrupt.affinity,
                after=place.cpus,
                reason=self._misplaced(interrupt, place),
                kind=interrupt.kind,
                alternatives=place.alternatives,
                follows=place.follows,
                idle=interrupt.idle,
            )
        return Keep(interrupt.irq, key, self.guest.key, reason, place.cpus, place.follows)

    def _hindrance(self, interrupt: Interrupt, own: str) -> Reason | None:
        """Why this interrupt is not ours to move, if it is not; `own` is its own action."""
        if self.target.cpus is None:
            return Reason(self.target.code, self.target.note)
        if interrupt.actions is None:
            if interrupt.kind is InterruptKind.INTX:
                return Reason("intx-unknown", "who else is on the line is not known")
            return None  # a recording without names; the executor checks the name once more
        if not interrupt.actions:
            return Reason("unused", "allocated, but without a handler: the guest does not use it")
        if not own:
            driver = (self.pci and self.pci.driver) or "a host driver"
            return Reason("host-driver", f"held by {driver}, not by VFIO: not the guest's")
        return self._sharing(own, interrupt.actions)

    def _sharing(self, own: str, actions: tuple[str, ...]) -> Reason | None:
        """Why a line that others are on is not this device's to move, if it is not.

        The first by name moves it, for all devices of the guest that are on it.
        """
        if len(actions) == 1:
            return None
        others = {name: VfioAction.parse(name) for name in sorted(actions) if name != own}
        if not others:
            return None
        asks = {
            name: self.asks[action.device].directive
            for name, action in others.items()
            if action is not None and action.device in self.asks
        }
        if asks.keys() != others.keys():
            return Reason("intx-shared", f"the line is shared with {', '.join(others)}")
        native = [name for name, directive in asks.items() if directive == NATIVE]
        if native:
            return Reason("native", f"the line is shared with {native[0]}, which is native")
        first = min(others)
        if own < first:
            return None
        same = asks[first] == self.asked.directive
        return Reason(
            "intx-follows" if same else "intx-shared", f"the line goes where {first} goes"
        )

    def _place(self, interrupt: Interrupt, order: int) -> _Place:
        """Where the interrupt should be."""
        if self.asked.spread is Spread.MASK and self.target.cpus is not None:
            cpus = self.target.cpus if self.asked.directive.word is None else self.seated
            return _Place(cpus, f"all of CPUs {cpus}{self._off_node(cpus)}", cpus)
        own, why = self._choice(interrupt)
        if own is not None:
            seat, cpu = own, self.deal.within(own, order)
        else:
            seat, cpu = self.deal(order, self.begin())
        known = seat.cpus, seat.vcpu, cpu, why
        place = self._told.get(known)
        if place is None:
            if len(self._told) == _SAID:
                self._told.clear()
            place = self._told[known] = self._at(seat, cpu, why, chosen=own is not None)
        return place

    def _at(self, seat: Seat, cpu: int, why: str, *, chosen: bool) -> _Place:
        cpus = _only(cpu)
        of = "" if seat.vcpu is None else f" of {self.guest.unit} {seat.vcpu}"
        return _Place(
            cpus,
            f"CPU {cpu}{of}{why}{self._off_node(cpus)}",
            seat.cpus,
            () if self.target.cpus is None else (seat.cpus, self.seated, self.target.cpus),
            None if seat.vcpu is None else Follows(seat.vcpu, chosen=chosen),
        )

    def _choice(self, interrupt: Interrupt) -> tuple[Seat | None, str]:
        """The seat that the guest has chosen for it, if that can be followed, and what to say."""
        following = self.target.following
        choice = self.aimed.get(interrupt.vector) if interrupt.vector is not None else None
        if choice is None or not following:
            return None, ""
        if choice.vcpu is None:
            return None, f" ({choice.why})" if choice.why else ""
        seat = following.get(choice.vcpu)
        if seat is None:
            return None, f" (the guest aims it at vCPU {choice.vcpu}, which has no CPU of those)"
        return seat, ", where the guest aims it"

    def _misplaced(self, interrupt: Interrupt, place: _Place) -> Reason:
        known = place.said, interrupt.effective, interrupt.affinity
        why = self._whys.get(known)
        if why is None:
            if len(self._whys) == _WHYS:
                self._whys.clear()
            why = self._whys[known] = self._why(interrupt, place)
        return why

    def _why(self, interrupt: Interrupt, place: _Place) -> Reason:
        where = f"to {place.said}"
        now = interrupt.effective or interrupt.affinity
        if now is None:
            return _reason("unknown-place", f"{where}; where it is now is not known")
        if now <= place.cpus:
            loose = f"{where}: is there, but affinity {interrupt.affinity} lets it move"
            return _reason("loose", loose)
        if now <= place.equal:
            return _reason("loose", f"{where}: CPU {now} would do, but another is dealt to it")
        if interrupt.effective is None and now & place.cpus:
            return _reason("loose", f"{where}: affinity {now} lets it be elsewhere")
        if self.target.cpus is not None and now & self.target.cpus:
            return _reason("wrong-cpu", f"{where}, from CPU {now}")
        node = self._node(now) if self.node is not None and self._is_far(now) else None
        if node is not None and node != self._node(place.cpus):
            return _reason("wrong-node", f"{where}, from CPU {now} on node {node}")
        return _reason("wrong-cpu", f"{where}, from CPU {now} outside the target")

    def _off_node(self, cpus: CpuSet) -> str:
        node = self._node(cpus) if self.node is not None and self._is_far(cpus) else None
        if node is None:
            return ""
        return f", on the wrong node: {node}, its device is on {self.node}"

    def _is_far(self, cpus: CpuSet) -> bool:
        return within(self._far, cpus, self.topology)

    def _node(self, cpus: CpuSet) -> int | None:
        """The node that all of `cpus` are on, None when there is no one such node."""
        node = self.topology.node_of(cpus.first()) if cpus else None
        return node if node is not None and cpus <= self.topology.nodes[node].cpus else None


def _in_place(interrupt: Interrupt, where: str) -> Reason:
    if interrupt.effective and interrupt.affinity and not interrupt.effective <= interrupt.affinity:
        # Set, but the interrupt controller is told at the next interrupt only
        # (kernel/irq/migration.c, irq_move_masked_irq()).
        text = f"{where}; moves there from CPU {interrupt.effective} at its next interrupt"
        return _reason("pending", text)
    return _reason("in-place", f"on {where}")


def _in_order(interrupts: Iterable[Interrupt]) -> Iterable[tuple[int, Interrupt]]:
    """Each interrupt with the order in which it is dealt: its vector number where it is known.

    Only a recording without action names leaves it open; IRQ numbers, which the kernel hands
    out in vector order when all vectors are allocated at once, stand in there.
    """
    ordered = sorted(interrupts, key=lambda each: (each.vector or 0, each.irq))
    for place, interrupt in enumerate(ordered):
        yield (interrupt.vector or 0) if interrupt.numbered else place, interrupt
