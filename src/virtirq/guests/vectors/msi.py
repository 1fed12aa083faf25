"""What a guest writes into an MSI or MSI-X entry, understood: the vCPUs that the message goes to.

x86 only. The form of a message is the Intel SDM's (volume 3, Message Signalled Interrupts), with
KVM's way to name more than 255 destinations (Documentation/virt/kvm/x86/msr.rst,
KVM_FEATURE_MSI_EXT_DEST_ID) and the address's upper half as x2APIC uses it.

Everything here is the guest's own writing. It is decoded without trust, and whoever uses the
answer holds it against the vCPUs that the guest has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from virtirq.values import dataclass, field

_INTERRUPTS: Final = 0xFEE
"""Bits 31:20 of every interrupt message's address."""
_FIXED, _LOWEST = 0, 1
ALL: Final = 0xFF
"""The destination that means every APIC, where destinations have 8 bits."""
ALL_X2APIC: Final = 0xFFFF_FFFF
_FLAT: Final = 8
"""So many APICs have a bit each in a flat logical destination."""


class UndecodableError(Exception):
    """What was read says of no vCPU that the interrupt is for it; the text says why."""


class Message(NamedTuple):
    """One entry as the guest wrote it: `address` has 64 bits, `data` 32."""

    address: int
    data: int
    masked: bool = False

    @property
    def empty(self) -> bool:
        """Whether nothing was ever written there."""
        return self.address == 0 and self.data == 0

    @property
    def low(self) -> int:
        return self.address & 0xFFFF_FFFF

    @property
    def interrupt(self) -> bool:
        """Whether its address is one of those that are interrupts, and not memory."""
        return self.low >> 20 == _INTERRUPTS

    @property
    def remappable(self) -> bool:
        """Whether it names an entry of VT-d's remapping table (VT-d specification, 5.1.2.2)."""
        return self.interrupt and bool(self.low & 0x10)

    @property
    def handle(self) -> int:
        """The index of that entry: the handle, with the subhandle where one is given."""
        index = (self.low >> 5 & 0x7FFF) | (self.low >> 2 & 1) << 15
        return index + (self.data & 0xFFFF) if self.low & 8 else index


class Destination(NamedTuple):
    """Where a message goes: an APIC id, or a set of them where it is `logical`.

    `wide`: it has 32 bits, as x2APIC's have, and not xAPIC's 8.
    """

    number: int
    logical: bool = False
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Apics:
    """A guest's APICs: the vCPU number by APIC id, for the vCPUs that are online.

    `logical` are the logical ids (LDR) by APIC id, where somebody has read them; `cluster`: those
    are of the cluster model (DFR 0x0FFFFFFF). Where they are not known, what every common guest
    does is taken for granted: flat, one bit for each CPU in their order (Linux,
    arch/x86/kernel/apic/apic_flat_64.c).
    """

    vcpus: Mapping[int, int]
    logical: Mapping[int, int] = field(default_factory=dict)
    cluster: bool = False


def delivery(mode: int) -> None:
    """Raises UndecodableError unless it is delivered to CPUs as an interrupt: fixed, or lowest."""
    if mode not in (_FIXED, _LOWEST):
        raise UndecodableError(f"its delivery mode is {mode}, which is no device's")


def destination(message: Message) -> Destination:
    """Where a message of compatibility format goes. Raises UndecodableError."""
    low, high = message.low, message.address >> 32 & 0xFFFF_FFFF
    if not message.interrupt:
        raise UndecodableError(f"its address {message.address:#x} is no interrupt's")
    if message.remappable:
        raise UndecodableError("it names an entry of a remapping table")
    delivery(message.data >> 8 & 7)
    number = low >> 12 & 0xFF
    if high:
        number |= high & 0xFFFF_FF00
    else:
        number |= (low >> 5 & 0x7F) << 8
    return Destination(number, logical=bool(low & 4), wide=number > 0xFF)


def vcpus(destination: Destination, apics: Apics) -> frozenset[int]:
    """The vCPUs, by number, that may get an interrupt for this destination. Never empty.

    Raises UndecodableError where none of the guest's does, or nobody can tell.
    """
    everyone = destination.number == (ALL_X2APIC if destination.wide else ALL)
    if everyone:
        ids = set(apics.vcpus)
    elif destination.logical:
        ids = _logical(destination, apics)
    else:
        ids = {destination.number} & apics.vcpus.keys()
    if not ids:
        raise UndecodableError(f"no vCPU has the APIC id {destination.number:#x}")
    return frozenset(apics.vcpus[each] for each in ids)


def _logical(destination: Destination, apics: Apics) -> set[int]:
    if destination.wide:
        return _x2apic_cluster(destination.number) & apics.vcpus.keys()
    if apics.logical:
        return {
            each
            for each, logical in apics.logical.items()
            if each in apics.vcpus and _meets(destination.number, logical, cluster=apics.cluster)
        }
    if len(apics.vcpus) > _FLAT:
        raise UndecodableError(
            f"its destination is logical among {len(apics.vcpus)} vCPUs, and their logical ids"
            " are not known"
        )
    in_order = sorted(apics.vcpus)
    if destination.number >> len(in_order):
        raise UndecodableError(f"its logical destination {destination.number:#x} is not flat")
    return {each for bit, each in enumerate(in_order) if destination.number >> bit & 1}


def _x2apic_cluster(number: int) -> set[int]:
    """x2APIC's logical ids follow from the APIC ids: a cluster of 16, and a bit within."""
    return {number >> 16 << 4 | bit for bit in range(16) if number >> bit & 1}


def _meets(number: int, logical: int, *, cluster: bool) -> bool:
    if cluster:
        return number >> 4 == logical >> 4 and bool(number & logical & 0xF)
    return bool(number & logical)
