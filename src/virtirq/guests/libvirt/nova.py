"""OpenStack Nova's wish in its own metadata: ``hw:pci_irq_affinity_mask`` of the flavor.

Nova's libvirt driver writes the flavor's extra specs into the domain's metadata
(nova/virt/libvirt/config.py, LibvirtConfigGuestMetaNovaFlavor, ``<nova:extraSpecs>``). StarlingX
made this one: numbers of the guest's vCPUs whose CPUs get the interrupts of its PCI devices. Its
agent (starlingx/utilities, pci-irq-affinity-agent, utils.py) passes over vCPUs that the guest has
not, and pins nothing where it cannot read the mask or no vCPU is left of it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.guests.libvirt.reading import NOVA
from virtirq.guests.libvirt.values import shown
from virtirq.model import NATIVE, Directive
from virtirq.values import pattern

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_PART: Final = pattern(r"(\^)?\s*\+?(\d{1,9})\s*(?:-\s*\+?(\d{1,9}))?", re.ASCII)

KEY: Final = "hw:pci_irq_affinity_mask"
ORIGIN: Final = f"Nova flavor's {KEY}"


def read_mask(domain: Element, vcpus: int, problems: list[str]) -> tuple[Directive, str] | None:
    """The directive over numbers of the guest's `vcpus`, and from where it is.

    It is ``native`` where the mask means none of them.

    Never raises: what is wrong with the mask becomes a problem.
    """
    for spec in domain.iterfind("metadata/*/*/*/*"):
        if NOVA.match(spec.tag) and spec.get("name") == KEY:
            text = (spec.text or "").strip()
            found = _ranges(text)
            if found is None:
                problems.append(
                    f"Nova metadata: {KEY} {shown(text)} is not a list of vCPUs such as 1-3,^2:"
                    " its devices are left alone"
                )
                return NATIVE, f"{ORIGIN}, which is not understood"
            here, beyond = _within(found, vcpus)
            if not here:
                problems.append(
                    f"Nova metadata: {KEY} {shown(text)} leaves none of the guest's vCPUs"
                    f" 0 to {vcpus - 1}: its devices are left alone"
                )
                return NATIVE, f"{ORIGIN}, which names none of its vCPUs"
            if beyond:
                problems.append(
                    f"Nova metadata: {KEY} {shown(text)} names vCPUs past the guest's last,"
                    f" {vcpus - 1}"
                )
            return Directive(None, vcpus=here), ORIGIN
    return None


class _Range(NamedTuple):
    first: int
    last: int
    out: bool


def _ranges(text: str) -> list[_Range] | None:
    """The parts of a mask, blanks overlooked wherever they are; None where it is not one."""
    found = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _PART.fullmatch(part)
        if match is None:
            return None
        first = int(match[2])
        last = first if match[3] is None else int(match[3])
        if last < first:
            return None
        found.append(_Range(first, last, bool(match[1])))
    return found


def _within(ranges: list[_Range], vcpus: int) -> tuple[CpuSet, bool]:
    """The vCPUs that are meant, and whether there are any past the guest's last.

    Unlike in a libvirt cpuset, ^N counts wherever it stands.
    """
    named = {True: CpuSet(), False: CpuSet()}
    for first, last, out in ranges:
        named[out] |= CpuSet.span(min(first, vcpus), min(last, vcpus))
    meant, past = named[False] - named[True], CpuSet([vcpus])
    return meant - past, bool(meant & past)
