"""What of a domain XML may leave the host: what virtirq reads, and no identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from virtirq.cpuset import CpuSet
from virtirq.errors import DomainXmlError
from virtirq.guests.libvirt import nova
from virtirq.guests.libvirt.devices import (
    awaits_function,
    given_by_arguments,
    pci_addresses,
    property_address,
)
from virtirq.guests.libvirt.domainxml import checked_name, understand
from virtirq.guests.libvirt.reading import NAMESPACE, NOVA, QEMU, read_domain
from virtirq.guests.libvirt.values import mac_of_text
from virtirq.model import Guest

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


def redact(
    text: str,
    *,
    name: str | None = None,
    where: str = "domain XML",
    seen: Guest | None = None,
) -> str:
    """The domain XML with nothing in it but what `parse_domain` reads, and no identity.

    `name` replaces the guest's name. The UUID is made from the name, MAC addresses become
    52:54:00:00:00:01, :02 and so on, and aliases that a person chose ua-1, ua-2, the same for the
    same. `parse_domain` gives the same guest for the result, these four apart. `seen` is the
    guest as it runs: where its threads really may run is written in place of the pins. Raises
    DomainXmlError where `parse_domain` does.
    """
    # Imported here: slow to import, and seldom needed.
    import uuid
    from xml.etree import ElementTree

    try:
        domain = read_domain(text)
        guest = understand(domain)
        shown = guest.name if name is None else checked_name(name)
    except DomainXmlError as error:
        raise DomainXmlError(f"{where}: {error}", hint=error.hint) from error
    _drop_what_says_nothing(domain)
    if seen is not None:
        _set_pins(domain, seen)
    _set_text(domain, "uuid", str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAMESPACE}/{shown}")))
    _set_text(domain, "name", shown)
    _renumber_macs(domain)
    _renumber_aliases(domain)
    ElementTree.register_namespace("virtirq", NAMESPACE)
    ElementTree.register_namespace("qemu", QEMU.strip("{}"))
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding="unicode") + "\n"


def _drop_what_says_nothing(domain: Element) -> None:
    """Takes out devices that give no PCI function and no setting, and Nova's other specs.

    An interface that may give one once the guest starts stays: a setting may name it.
    """
    for devices in domain.findall("devices"):
        devices[:] = [
            each
            for each in devices
            if "cpuset" in each.attrib or any(pci_addresses(each)) or awaits_function(each)
        ]
    domain[:] = [each for each in domain if each.tag != "seclabel" or each.get("model") == "dac"]
    _keep_devices_of_arguments(domain)
    _keep_functions_of_overrides(domain)
    for metadata in domain.findall("metadata"):
        for specs in metadata.findall("*/*/*"):
            if NOVA.match(specs.tag):
                specs[:] = [each for each in specs if each.get("name") == nova.KEY]
        metadata[:] = [
            each for each in metadata if not NOVA.match(each.tag) or each.find("*/*/*") is not None
        ]


def _keep_devices_of_arguments(domain: Element) -> None:
    """Of QEMU's own arguments just those that give a PCI function, in one spelling."""
    given = given_by_arguments(domain)
    tag = f"{QEMU}commandline"
    domain[:] = [each for each in domain if each.tag != tag]
    if given:
        domain.append(kept := domain.makeelement(tag, {}))
        for address in given:
            for word in ("-device", f"vfio-pci,host={address}"):
                kept.append(domain.makeelement(f"{QEMU}arg", {"value": word}))


def _keep_functions_of_overrides(domain: Element) -> None:
    """Of properties that QEMU's devices are given just the PCI function, in one spelling."""
    for override in domain.findall(f"{QEMU}override"):
        for device in override.findall(f"{QEMU}device"):
            address = property_address(device)
            device[:] = []
            if address is None:
                override.remove(device)
                continue
            device.append(frontend := domain.makeelement(f"{QEMU}frontend", {}))
            said = {"name": "host", "type": "string", "value": str(address)}
            frontend.append(domain.makeelement(f"{QEMU}property", said))
        if not override.findall(f"{QEMU}device"):
            domain.remove(override)


def _set_pins(domain: Element, guest: Guest) -> None:
    """<cputune> with a pin for each thread whose CPUs are known."""
    domain[:] = [each for each in domain if each.tag != "cputune"]
    for vcpu in domain.findall("vcpu"):
        vcpu.attrib.pop("cpuset", None)
    cputune = domain.makeelement("cputune", {})
    domain.append(cputune)
    pins = [("vcpupin", {"vcpu": str(each.index)}, each.cpus) for each in guest.vcpus]
    pins += [("emulatorpin", {}, guest.emulator)]
    pins += [
        ("iothreadpin", {"iothread": str(number)}, cpus) for number, cpus in guest.iothreads.items()
    ]
    for tag, which, cpus in pins:
        if cpus:
            cputune.append(domain.makeelement(tag, {**which, "cpuset": str(cpus)}))
    realtime = CpuSet(each.index for each in guest.vcpus if each.realtime)
    if realtime:
        policy = {"vcpus": str(realtime), "scheduler": "fifo", "priority": "1"}
        cputune.append(domain.makeelement("vcpusched", policy))


def _set_text(domain: Element, tag: str, text: str) -> None:
    """Makes <tag> the first child of <domain>, the only one of its kind, with this text."""
    found = domain.findall(tag)
    kept = found[0] if found else domain.makeelement(tag, {})
    kept.text = text
    domain[:] = [kept, *(child for child in domain if child.tag != tag)]


def _renumber_aliases(domain: Element) -> None:
    """libvirt reserves the prefix ua- for aliases that people choose (formatdomain, "alias")."""
    numbers: dict[str, int] = {}
    for element in domain.iter():
        attribute = "name" if element.tag == "alias" else "alias"
        alias = element.get(attribute, "")
        if alias.startswith("ua-"):
            element.set(attribute, f"ua-{numbers.setdefault(alias, len(numbers) + 1)}")


def _renumber_macs(domain: Element) -> None:
    numbers: dict[str, int] = {}
    for element in domain.iter():
        attribute = "address" if element.tag == "mac" else "mac"
        if attribute not in element.attrib:
            continue
        mac = mac_of_text(element.get(attribute, ""))
        if mac is None:
            # Whatever it is, it may be a MAC address in a spelling that is not known here.
            element.set(attribute, "redacted")
            continue
        number = numbers.setdefault(mac, len(numbers) + 1)
        element.set(
            attribute, f"52:54:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        )
