"""The PCI functions that a guest holds, by every element that can give it one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from virtirq.errors import DomainXmlError, InputError
from virtirq.guests.libvirt.reading import QEMU
from virtirq.guests.libvirt.values import UINT_MAX, any_base, mac_of_text, shown
from virtirq.guests.processes.qemu import read_qemu
from virtirq.guests.processes.values import host_address, sysfs_address
from virtirq.model import Directive, GuestDevice, PciAddress
from virtirq.values import dataclass, pattern, replace

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_ALIAS: Final = pattern(r"[!-~]{1,255}", re.ASCII)
_ADDRESS_PARTS: Final = {"domain": UINT_MAX, "bus": 0xFF, "slot": 0x1F, "function": 7}


@dataclass(frozen=True, slots=True)
class Holder:
    """An element of ``<devices>`` that can give the guest PCI functions, and the names it has.

    `pooled`: an interface that gets its VF from a network when the guest starts, if that network
    has VFs; libvirt's definition of the guest does not say.
    """

    tag: str
    addresses: tuple[PciAddress, ...] = ()
    alias: str | None = None
    mac: str | None = None
    directive: Directive | None = None
    pooled: bool = False
    kind: str = ""

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """Every name that a setting may use for it."""
        named = [Selector("address", str(address)) for address in self.addresses]
        if self.alias is not None:
            named.append(Selector("alias", self.alias))
        if self.mac is not None:
            named.append(Selector("mac", self.mac))
        return tuple(named)


class Selector(NamedTuple):
    """A device's name in a setting: `kind` is address, alias or mac, `name` in its one form."""

    kind: str
    name: str

    @classmethod
    def parse(cls, kind: str, text: str) -> Selector | None:
        """None when `text` is not such a name."""
        match kind:
            case "address":
                try:
                    return cls(kind, str(PciAddress.parse(text)))
                except InputError:
                    return None
            case "mac":
                mac = mac_of_text(text)
                return None if mac is None else cls(kind, mac)
            case _:
                return cls(kind, text.strip()) if text.strip() else None

    @classmethod
    def guess(cls, text: str) -> Selector:
        """What a person means: an address if it looks like one, a MAC, else an alias."""
        return cls.parse("address", text) or cls.parse("mac", text) or cls("alias", text.strip())


def holders(domain: Element) -> tuple[Holder, ...]:
    """Every <hostdev>, <interface> and <disk>, in order, and QEMU's own arguments.

    Raises DomainXmlError.
    """
    found = _overridden([_holder(element) for element in domain.iterfind("devices/*")], domain)
    given = given_by_arguments(domain)
    return (*found, Holder("qemu:commandline", given)) if given else tuple(found)


def _overridden(held: list[Holder], domain: Element) -> list[Holder]:
    """What <qemu:override> makes of them: QEMU's properties of the device of an alias.

    Only what says which function it is matters; ``x-no-kvm-msix`` and the like leave the host's
    interrupts as they are. libvirt: src/qemu/qemu_domain.c, qemuDomainXmlNsDefParse(); src/qemu/
    qemu_command.c, qemuBuildDeviceCommandlineFromJSON(). Where a definition has no alias, it is
    what libvirt will call the device (src/qemu/qemu_alias.c, qemuAssignDeviceHostdevAlias()).
    """
    changes = {
        device.get("alias", ""): address
        for device in domain.iterfind(f"{QEMU}override/{QEMU}device")
        if (address := property_address(device)) is not None
    }
    if not changes:
        return held
    count, made = 0, []
    for each in held:
        name = each.alias
        if each.tag == "hostdev" or each.kind == "hostdev":
            name, count = name or f"hostdev{count}", count + 1
        address = changes.get(name or "")
        made.append(replace(each, addresses=(address,)) if address and each.addresses else each)
    return made


def property_address(device: Element) -> PciAddress | None:
    """The function that properties name, if they do: sysfsdev wins over host."""
    given = {
        each.get("name"): each.get("value", "")
        for each in device.iterfind(f"{QEMU}frontend/{QEMU}property")
        if each.get("type") == "string"
    }
    if "sysfsdev" in given:
        return sysfs_address(given["sysfsdev"])
    return host_address(given.get("host", ""))


def given_by_arguments(domain: Element) -> tuple[PciAddress, ...]:
    """What <qemu:commandline> gives the guest: libvirt passes it on, and knows nothing of it.

    libvirt: src/qemu/qemu_domain.c, qemuDomainDefNamespaceParse().
    """
    return read_qemu(commandline(domain)).devices


def commandline(domain: Element) -> list[str]:
    """QEMU's words of <qemu:commandline>, after one for its name."""
    arguments = domain.iterfind(f"{QEMU}commandline/{QEMU}arg")
    return ["qemu", *(each.get("value", "") for each in arguments)]


def _holder(element: Element) -> Holder:
    directive = _attribute_directive(element)
    addresses = tuple(pci_addresses(element))
    mac = _mac_of(element) if addresses else _lenient_mac(element) if _of_network(element) else None
    return Holder(
        element.tag,
        addresses,
        alias_of(element),
        mac,
        directive,
        awaits_function(element),
        element.get("type", ""),
    )


def shared_macs(held: Iterable[Holder]) -> frozenset[str]:
    """MAC addresses that several of the interfaces have: they are no name for any of them.

    A bond's or a router's VFs may be given one MAC address on purpose; libvirt does not mind.
    """
    seen: dict[str, set[object]] = {}
    for number, each in enumerate(held):
        if each.mac is not None and (each.addresses or each.pooled):
            seen.setdefault(each.mac, set()).add(each.addresses or number)
    return frozenset(mac for mac, those in seen.items() if len(those) > 1)


def own_names(holder: Holder, shared: Collection[str]) -> tuple[Selector, ...]:
    """The names that are this element's alone, where `shared` are `shared_macs`."""
    return tuple(each for each in holder.selectors if each.kind != "mac" or each.name not in shared)


def functions(held: Iterable[Holder], problems: list[str]) -> Iterator[GuestDevice]:
    """Each PCI function as often as it is mentioned, with the RFC's attribute where it is."""
    for each in held:
        if each.directive and not each.addresses:
            problems.append(
                f"cpuset on <{each.tag} type={shown(each.kind)}>:"
                " the guest holds no PCI function through it"
            )
        for address in each.addresses:
            yield GuestDevice(
                address,
                source=each.tag,
                alias=each.alias,
                mac=each.mac,
                directive=each.directive,
                directive_from=f"{each.tag} cpuset attribute" if each.directive else None,
            )


def _lenient_mac(element: Element) -> str | None:
    mac = element.find("mac")
    return None if mac is None else mac_of_text(mac.get("address", ""))


def _attribute_directive(element: Element) -> Directive | None:
    text = element.get("cpuset")
    if text is None:
        return None
    try:
        return Directive.parse(text)
    except InputError as error:
        raise DomainXmlError(f"<{element.tag}> cpuset: {error}", hint=error.hint) from error


def awaits_function(element: Element) -> bool:
    """Whether it is an interface that gets a VF when the guest starts, if its network has any."""
    return _of_network(element) and element.find("actual") is None


def _of_network(element: Element) -> bool:
    return element.tag == "interface" and element.get("type") == "network"


def pci_addresses(element: Element) -> Iterator[PciAddress]:
    match element.tag:
        case "hostdev":
            return _hostdev_addresses(element)
        case "interface":
            return _interface_addresses(element)
        case _:
            return _disk_addresses(element)


def _hostdev_addresses(hostdev: Element) -> Iterator[PciAddress]:
    if hostdev.get("mode", "subsystem") != "subsystem" or _is_unassigned(hostdev):
        return
    kind = hostdev.get("type")
    if kind is None:
        raise DomainXmlError("<hostdev> has no type")
    if kind == "pci":
        yield _source_address("<hostdev>", hostdev)


def _interface_addresses(interface: Element) -> Iterator[PciAddress]:
    # A network of VFs: `virsh dumpxml` shows the running guest's interface as type='hostdev';
    # <domstatus> keeps type='network' and says in <actual> what came of it
    # (src/conf/domain_conf.c, virDomainNetDefFormat()).
    holder: Element | None = interface
    if interface.get("type") == "network":
        holder = interface.find("actual")
    if holder is None or holder.get("type") != "hostdev" or _is_unassigned(interface):
        return
    address = holder.find("source/address")
    kind = None if address is None else address.get("type")
    if kind is None and holder.find("source/vendor") is not None:
        return  # By libvirt's rule a USB device.
    if address is not None and kind is None:
        raise DomainXmlError("<interface type='hostdev'>: its source address has no type")
    if kind in (None, "pci"):
        yield _source_address("<interface type='hostdev'>", holder)


def _disk_addresses(disk: Element) -> Iterator[PciAddress]:
    """NVMe controllers that QEMU itself drives, anywhere in the disk's backing chain."""
    stores = [disk]
    while stores:
        store = stores.pop()
        if store.get("type") == "nvme":
            yield _source_address(f"<{store.tag} type='nvme'>", store)
        for path in ("mirror", "backingStore", "source/dataStore"):
            stores += store.findall(path)


def _is_unassigned(element: Element) -> bool:
    """Whether the device is taken from the host but not given to the guest."""
    address = element.find("address")
    return address is not None and address.get("type") == "unassigned"


def _source_address(label: str, holder: Element) -> PciAddress:
    element = holder.find("source/address")
    if element is None:
        raise DomainXmlError(f"{label} has no source address")
    # All zero is an address: s390 without UID checking has a function 0000:00:00.0.
    return PciAddress(
        *(
            any_base(f"{label} source address: {name}", element.get(name, "0"), most)
            for name, most in _ADDRESS_PARTS.items()
        )
    )


def alias_of(element: Element) -> str | None:
    alias = element.find("alias")
    name = "" if alias is None else alias.get("name", "")
    # libvirt's own are plain words, and it drops a person's that are not (USER_ALIAS_CHARS).
    return name if _ALIAS.fullmatch(name) else None


def _mac_of(element: Element) -> str | None:
    mac = element.find("mac")
    text = None if mac is None else mac.get("address")
    if text is None:
        return None
    found = mac_of_text(text)
    if found is None:
        raise DomainXmlError(f"<mac> address {shown(text)} is not a MAC address")
    return found


def merged(occurrences: Iterable[GuestDevice], problems: list[str]) -> list[GuestDevice]:
    """One device per address: two disks may be namespaces of one NVMe controller."""
    found: dict[PciAddress, GuestDevice] = {}
    for device in occurrences:
        first = found.setdefault(device.address, device)
        if None not in (first.directive, device.directive) and first.directive != device.directive:
            problems.append(
                f"{device.address} has two cpuset attributes: {first.directive} is used,"
                f" {device.directive} is not"
            )
        found[device.address] = replace(
            first,
            alias=first.alias or device.alias,
            mac=first.mac or device.mac,
            directive=first.directive or device.directive,
            directive_from=first.directive_from or device.directive_from,
        )
    return list(found.values())


# virtirq's own settings in <metadata>.
