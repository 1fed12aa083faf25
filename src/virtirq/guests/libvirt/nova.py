"""OpenStack Nova's wish in its own metadata: ``hw:pci_irq_affinity_mask`` of the flavor.

Nova's libvirt driver writes the flavor's extra specs into the domain's metadata
(nova/virt/libvirt/config.py, LibvirtConfigGuestMetaNovaFlavor, ``<nova:extraSpecs>``). StarlingX
made this one: numbers of the guest's vCPUs whose CPUs get the interrupts of its PCI devices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtirq.cpuset import CpuSet
from virtirq.errors import InputError
from virtirq.guests.libvirt.reading import NOVA
from virtirq.guests.libvirt.values import shown
from virtirq.model import Directive

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

KEY: Final = "hw:pci_irq_affinity_mask"
ORIGIN: Final = f"Nova flavor's {KEY}"


def read_mask(domain: Element, problems: list[str]) -> Directive | None:
    """The directive over vCPU numbers that the flavor holds; never raises."""
    for spec in domain.iterfind("metadata/*/*/*/*"):
        if NOVA.match(spec.tag) and spec.get("name") == KEY:
            text = (spec.text or "").strip()
            try:
                vcpus = _vcpus(text)
            except InputError as error:
                problems.append(f"Nova metadata: {KEY}: {error}")
                return None
            if not vcpus:
                problems.append(f"Nova metadata: {KEY} {shown(text)} leaves no vCPU")
                return None
            return Directive(None, vcpus=vcpus)
    return None


def _vcpus(text: str) -> CpuSet:
    # Unlike in a libvirt cpuset, ^N counts wherever it stands (nova/virt/hardware.py,
    # parse_cpu_spec()): put to the end, it means the same here.
    parts = sorted(text.split(","), key=lambda part: part.strip().startswith("^"))
    return CpuSet.parse(",".join(part for part in parts if part.strip()))
