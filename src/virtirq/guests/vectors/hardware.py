"""What a QEMU guest sees of its machine, as far as it tells where its MSI entries are.

From the domain XML of a running guest, in which libvirt has filled in every address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from virtirq.errors import UnavailableError
from virtirq.guests.libvirt.devices import commandline, pci_addresses
from virtirq.guests.libvirt.reading import HARDWARE, read_domain
from virtirq.guests.libvirt.values import UINT_MAX, any_base, number_of, shown, unsigned
from virtirq.guests.processes.qemu import device_models
from virtirq.model import PciAddress
from virtirq.values import dataclass, pattern

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_Q35: Final = pattern(r"(?:pc-)?q35(?:-.{1,40})?", re.ASCII)
_X86: Final = frozenset({"x86_64", "i686"})
# SeaBIOS puts the configuration space where QEMU has it by default (src/fw/pciinit.c,
# mch_mem_addr_setup(); QEMU, include/hw/pci-host/q35.h). OVMF had it there, too, and newer ones
# have it above (OvmfPkg/OvmfPkgX64.dsc, PcdPciExpressBaseAddress).
_BIOS: Final = (0xB000_0000,)
_EFI: Final = (0xE000_0000, 0xB000_0000)
_GIB: Final = 1 << 30
# HyperTransport's addresses are from 1012 GiB on; below them, QEMU wants 32 GiB for large BARs.
_AMD_MOST: Final = 976 * _GIB
_ROOT: Final = "pcie-root"
_EXPANDER: Final = "pcie-expander-bus"


class Iommu(Enum):
    """An IOMMU that the guest sees and that may remap interrupts."""

    INTEL = "intel"
    AMD = "amd"


class Slot(NamedTuple):
    """Where libvirt has put a function: `bus` is the index of a PCI controller of the guest."""

    bus: int
    slot: int
    function: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """`ecam`: where the configuration space may be in guest-physical memory, the likeliest first.

    `bridges`: by controller index, the slot of the bridge that the bus is behind. `roots`: by
    controller index, the number of a root bus. `slots`: where the guest sees each function of the
    host's. `ram`: guest-physical addresses that are memory for certain.
    """

    ecam: tuple[int, ...]
    bridges: Mapping[int, Slot]
    roots: Mapping[int, int]
    slots: Mapping[PciAddress, Slot]
    iommu: Iommu | None
    ram: tuple[range, ...]


def parse_hardware(text: str) -> Hardware:
    """The hardware of the ``<domain>`` of a running guest.

    Raises UnavailableError where its configuration space is not in memory or memory is not to be
    read, and DomainXmlError.
    """
    domain = read_domain(text, HARDWARE)
    machine = domain.find("os/type")
    name = "" if machine is None else machine.get("machine", "")
    arch = "" if machine is None else machine.get("arch", "")
    if arch not in _X86:
        raise UnavailableError(f"its architecture {shown(arch)} is not x86")
    if not _Q35.fullmatch(name):
        raise UnavailableError(
            f"its machine {shown(name)} has no configuration space in memory",
            hint="machines of type q35 have it",
        )
    if _has_profile(domain):
        raise UnavailableError("each reading would have libvirt extend its AppArmor profile")
    bridges, roots = _buses(domain)
    iommu = _iommu(domain)
    return Hardware(
        ecam=_EFI if _has_efi(domain) else _BIOS,
        bridges=bridges,
        roots=roots,
        slots=dict(_slots(domain)),
        iommu=iommu,
        ram=_ram(domain, iommu),
    )


def q35_ram(size: int) -> tuple[range, ...]:
    """Where QEMU's q35 has so many bytes of memory, without the first megabyte and its ROMs.

    QEMU, hw/i386/pc_q35.c, pc_q35_init().
    """
    low = 2 * _GIB if size >= 0xB000_0000 else 0xB000_0000
    below = min(size, low)
    found = (range(1 << 20, below), range(4 * _GIB, 4 * _GIB + size - below))
    return tuple(each for each in found if each)


def _has_efi(domain: Element) -> bool:
    system, loader = domain.find("os"), domain.find("os/loader")
    firmware = "" if system is None else system.get("firmware", "")
    return firmware == "efi" or (loader is not None and loader.get("type") == "pflash")


def _has_profile(domain: Element) -> bool:
    """Whether libvirt lets it write to the file of a peek by a line in a profile of AppArmor's.

    Each peek has a file of its own, whose line stays until the guest ends, and the profile is
    compiled and loaded anew, while all else that is asked of the guest waits. From 10 MiB on
    nothing more can be added to it, and so nothing plugged in (libvirt, src/qemu/qemu_driver.c,
    qemuDomainMemoryPeek(); src/security/security_apparmor.c, reload_profile();
    src/security/virt-aa-helper.c, update_include_file()).
    """
    labels = domain.iterfind("seclabel")
    return any((each.get("model"), each.get("relabel")) == ("apparmor", "yes") for each in labels)


def _buses(domain: Element) -> tuple[dict[int, Slot], dict[int, int]]:
    bridges, roots = {}, {}
    for controller in domain.iterfind("devices/controller"):
        if controller.get("type") != "pci":
            continue
        index = number_of(controller, "index", default=0)
        model = controller.get("model")
        if model == _ROOT:
            roots[index] = 0
        elif model == _EXPANDER:
            target = controller.find("target")
            if target is not None and "busNr" in target.attrib:
                roots[index] = number_of(target, "busNr", default=0)
        elif (slot := _slot(controller)) is not None:
            bridges[index] = slot
    return bridges, roots


def _slots(domain: Element) -> Iterator[tuple[PciAddress, Slot]]:
    for element in domain.iterfind("devices/*"):
        if element.tag not in ("hostdev", "interface"):
            continue
        slot = _slot(element)
        if slot is not None:
            for address in pci_addresses(element):
                yield address, slot


def _slot(element: Element) -> Slot | None:
    address = element.find("address")
    if address is None or address.get("type") != "pci":
        return None
    parts = (("domain", UINT_MAX), ("bus", 0xFF), ("slot", 0x1F), ("function", 7))
    domain, *rest = (
        any_base(f"<{element.tag}> address: {name}", address.get(name, "0"), most)
        for name, most in parts
    )
    return None if domain else Slot(*rest)


def _iommu(domain: Element) -> Iommu | None:
    """libvirt's, or one that QEMU is told of behind libvirt's back: only newer ones know AMD's."""
    element = domain.find("devices/iommu")
    models = [] if element is None else [f"{element.get('model', '')}-iommu"]
    models += device_models(commandline(domain))
    return next((each for each in Iommu if f"{each.value}-iommu" in models), None)


def _ram(domain: Element, iommu: Iommu | None) -> tuple[range, ...]:
    """Of memory that is plugged in, and that of a guest that does not say how much, none.

    Nor of AMD's above 4 GiB where that may reach HyperTransport's addresses: QEMU then has it above
    1 TiB (hw/i386/pc.c, pc_set_amd_above_4g_mem_start()).
    """
    whole = domain.find("memory")
    if whole is None:
        return ()
    plugged = domain.findall("devices/memory/target/size")
    sizes = [_kibibytes(each) for each in (whole, *plugged)]
    known = [each for each in sizes if each is not None]
    if len(known) != len(sizes):
        return ()
    found = q35_ram((known[0] - sum(known[1:])) << 10)
    return found[:1] if iommu is Iommu.AMD and known[0] << 10 > _AMD_MOST else found


def _kibibytes(element: Element) -> int | None:
    """None in another unit: of a running guest libvirt gives no other."""
    if element.get("unit", "KiB") != "KiB":
        return None
    return unsigned(f"<{element.tag}>", (element.text or "").strip(), most=1 << 42)
