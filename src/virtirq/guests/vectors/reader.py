"""Which vCPU a guest aims each vector of its devices at, read from its own physical memory."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial

from virtirq.errors import UnavailableError
from virtirq.guests.vectors import msi
from virtirq.guests.vectors.entries import ConfigSpace, messages
from virtirq.guests.vectors.msi import Apics, Destination, Message, UndecodableError
from virtirq.guests.vectors.remapping import resolve
from virtirq.model import Aimed, Guest, GuestVectors, PciAddress


def read_vectors(
    space: ConfigSpace, apics: Apics, wanted: Mapping[PciAddress, int]
) -> dict[PciAddress, GuestVectors]:
    """What the guest has written for each device; `wanted` says how many vectors are of interest.

    Masked entries and such as were never written are left out: Linux parks vectors that it does not
    use, and a guest that moves one masks it for a moment. Raises what the space's `peek` raises.
    """
    return {address: _of_device(space, apics, address, most) for address, most in wanted.items()}


def apics_of(guest: Guest) -> Apics:
    """The guest's APICs. Raises UnavailableError where that is not known of every vCPU."""
    known = {vcpu.apic: vcpu.index for vcpu in guest.vcpus if vcpu.apic is not None}
    if not known or len(known) != len(guest.vcpus):
        raise UnavailableError("the APIC ids of its vCPUs are not known")
    return Apics(known)


def in_use(entries: Mapping[int, Message]) -> dict[int, Message]:
    """The entries that the guest uses: neither masked nor never written."""
    return {v: each for v, each in entries.items() if not each.masked and not each.empty}


def aimed(resolved: Mapping[int, Destination | UndecodableError], apics: Apics) -> GuestVectors:
    """What destinations, by vector, mean for vCPUs."""
    once = cache(partial(_aimed, apics=apics))  # vectors are many, destinations few
    return GuestVectors({vector: once(each) for vector, each in resolved.items()})


def _of_device(space: ConfigSpace, apics: Apics, address: PciAddress, most: int) -> GuestVectors:
    hardware, peek = space.hardware, space.peek
    slot = hardware.slots.get(address)
    if slot is None:
        return GuestVectors({}, "where the guest sees it is not known")
    try:
        found = messages(peek, space.config(slot), most)
        requester = space.bus(slot.bus) << 8 | slot.slot << 3 | slot.function
    except UnavailableError as error:
        return GuestVectors({}, str(error))
    resolved = resolve(peek, hardware.iommu, hardware.ram, requester, in_use(found))
    return aimed(resolved, apics)


def _aimed(where: Destination | UndecodableError, apics: Apics) -> Aimed:
    if isinstance(where, UndecodableError):
        return Aimed(None, str(where))
    try:
        targets = msi.vcpus(where, apics)
    except UndecodableError as error:
        return Aimed(None, str(error))
    if len(targets) > 1:
        return Aimed(None, f"it is for any of {len(targets)} vCPUs")
    return Aimed(min(targets))
