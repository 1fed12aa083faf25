"""A guest as libvirt's domain XML describes it: text in, values out.

One table, `_DOCUMENT`, names the elements and attributes that mean something here. The reader
keeps those and forgets the rest while it reads, so hostile input costs little, and `redact()`
cannot let through what `parse_domain()` does not read.

What libvirt ignores is ignored here, and what it refuses is refused, as far as these elements
go (libvirt, src/conf/domain_conf.c, virDomainDefParseXML()).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from virtirq.cpuset import CpuSet, union
from virtirq.errors import DomainXmlError, InputError
from virtirq.model import Directive, Guest, GuestDevice, PciAddress, Vcpu

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NAMESPACE: Final = "urn:virtirq:1"
"""XML namespace of virtirq's settings in a domain's ``<metadata>``."""

MAX_VCPUS: Final = 8192
"""More vCPUs, and more I/O threads, than any hypervisor has (KVM on x86: 4096)."""

_MAX_TEXT: Final = 16 << 20
_MAX_ELEMENTS: Final = 200_000
# libxml2 refuses deeper documents to libvirt too (parserInternals.h, xmlParserMaxDepth).
_MAX_DEPTH: Final = 256
_MAX_CONTENT: Final = 4096
_MAX_LIST: Final = 65536
_MAX_PROBLEMS: Final = 50
_SHOWN: Final = 60
_UINT_MAX: Final = 0xFFFFFFFF

_NUMBER: Final = re.compile(r"\+?[0-9]+", re.ASCII)
# strtoul() with base 0, as virPCIDeviceAddressParseXML() has it: 010 is eight.
_ANY_BASE: Final = re.compile(r"\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
_ANY_BASE_DIGITS: Final = 11  # of 0xffffffff in octal
_MAC: Final = re.compile(r"[0-9a-fA-F]{1,2}(?::[0-9a-fA-F]{1,2}){5}", re.ASCII)
_UUID: Final = re.compile(r"[- ]*(?:[0-9a-fA-F]{2}[- ]*){16}", re.ASCII)
_ALIAS: Final = re.compile(r"[!-~]{1,255}", re.ASCII)
_OURS: Final = re.compile(r"\{(urn:virtirq:[0-9]{1,9})\}(.*)", re.ASCII)
_ADDRESS_PARTS: Final = {"domain": _UINT_MAX, "bus": 0xFF, "slot": 0x1F, "function": 7}
# The QEMU driver alone ties the topology to the number of vCPUs (qemu_validate.c).
_QEMU_TYPES: Final = frozenset({"kvm", "qemu", "hvf"})


def parse_domain(text: str, *, where: str = "domain XML") -> Guest:
    """The guest of a ``<domain>``, or of the ``<domstatus>`` that libvirt keeps in /run.

    `Vcpu.cpus`, `Guest.emulator` and `Guest.iothreads` hold what libvirt would give each thread:
    its own pin, else ``<vcpu cpuset>`` (src/qemu/qemu_process.c, qemuProcessSetupPid()). vCPUs
    that are offline are left out. virtirq's settings in ``<metadata>`` that cannot be understood
    are `Guest.problems`: another tool may have written them, and they must not hide the guest.

    Raises DomainXmlError, which begins with `where` and names the element.
    """
    try:
        return _guest(_read(text))
    except DomainXmlError as error:
        raise DomainXmlError(f"{where}: {error}", hint=error.hint) from error


def redact(text: str, *, name: str | None = None, where: str = "domain XML") -> str:
    """The domain XML with nothing in it but what `parse_domain` reads, and no identity.

    `name` replaces the guest's name. The UUID is made from the name, and MAC addresses become
    52:54:00:00:00:01, :02 and so on, the same for the same. `parse_domain` gives the same guest
    for the result, these three apart. Raises DomainXmlError where `parse_domain` does.
    """
    # Imported here: slow to import, and seldom needed.
    import uuid
    from xml.etree import ElementTree

    try:
        domain = _read(text)
        guest = _guest(domain)
        shown = guest.name if name is None else _checked_name(name)
    except DomainXmlError as error:
        raise DomainXmlError(f"{where}: {error}", hint=error.hint) from error
    _drop_what_says_nothing(domain)
    _set_text(domain, "uuid", str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAMESPACE}/{shown}")))
    _set_text(domain, "name", shown)
    _renumber_macs(domain)
    ElementTree.register_namespace("virtirq", NAMESPACE)
    ElementTree.indent(domain)
    return ElementTree.tostring(domain, encoding="unicode") + "\n"


# Reading: XML to a tree of the elements that mean something.


@dataclass(frozen=True, slots=True, eq=False)
class _Rule:
    """What is kept of an element: attributes, child elements, and whether its text is."""

    attributes: frozenset[str] = frozenset()
    children: Mapping[str, _Rule] = field(default_factory=dict)
    text: bool = False

    def child(self, tag: str) -> _Rule | None:
        return self.children.get(tag)

    def kept(self, attributes: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in attributes.items() if name in self.attributes}


class _OurRule(_Rule):
    """An element of virtirq's namespace: what is unknown there is kept by name, to be told."""

    def child(self, tag: str) -> _Rule | None:
        return self.children.get("*") if tag.startswith(f"{{{NAMESPACE}}}") else None

    def kept(self, attributes: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value if name in self.attributes else ""
            for name, value in attributes.items()
            if not name.startswith("{") or _OURS.match(name)
        }


class _MetadataRule(_Rule):
    """``<metadata>``: other tools' elements are not kept."""

    def child(self, tag: str) -> _Rule | None:
        ours = _OURS.fullmatch(tag)
        if ours is None:
            return None
        return self.children["irqs"] if ours[1] == NAMESPACE else self.children["other version"]


def _rule(attributes: str = "", /, *, text: bool = False, **children: _Rule) -> _Rule:
    return _Rule(frozenset(attributes.split()), children, text)


_PCI: Final = _rule("type domain bus slot function")
_SOURCE: Final = _rule(address=_PCI, vendor=_rule())
# What a disk stands on or is copied to; backing stores nest.
_STORE_PARTS: Final[dict[str, _Rule]] = {}
_STORE: Final = _Rule(frozenset({"type"}), _STORE_PARTS)
_STORE_PARTS.update(source=_rule(address=_PCI, dataStore=_STORE), backingStore=_STORE)
_IRQS: Final = _OurRule(
    frozenset({"cpuset"}),
    {"*": _OurRule(frozenset({"cpuset", "address", "alias", "mac"}), {"*": _rule()})},
)
_DOMAIN: Final = _rule(
    "type",
    name=_rule(text=True),
    uuid=_rule(text=True),
    metadata=_MetadataRule(frozenset(), {"irqs": _IRQS, "other version": _rule()}),
    vcpu=_rule("placement cpuset current", text=True),
    vcpus=_rule(vcpu=_rule("id enabled")),
    iothreads=_rule(text=True),
    iothreadids=_rule(iothread=_rule("id")),
    cputune=_rule(
        vcpupin=_rule("vcpu cpuset"),
        emulatorpin=_rule("cpuset"),
        iothreadpin=_rule("iothread cpuset"),
    ),
    numatune=_rule(memory=_rule("placement nodeset"), memnode=_rule("nodeset")),
    cpu=_rule(topology=_rule("sockets dies clusters cores threads")),
    devices=_rule(
        hostdev=_rule(
            "mode type cpuset", source=_SOURCE, alias=_rule("name"), address=_rule("type")
        ),
        interface=_rule(
            "type cpuset",
            mac=_rule("address"),
            source=_SOURCE,
            actual=_rule("type", source=_SOURCE),
            alias=_rule("name"),
            address=_rule("type"),
        ),
        disk=_Rule(
            frozenset({"type", "cpuset"}),
            {**_STORE_PARTS, "mirror": _STORE, "alias": _rule("name")},
        ),
    ),
)
_DOCUMENT: Final = _rule(domain=_DOMAIN, domstatus=_rule(domain=_DOMAIN))


class _Keeper:
    """Target of the XML parser: keeps what the rules name, refuses what is too much."""

    def __init__(self, element: type[Element]) -> None:
        self._element = element
        self._rules: list[_Rule | None] = [_DOCUMENT]
        self._open: list[Element] = [element("document")]
        self._elements = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise DomainXmlError(f"more than {_MAX_ELEMENTS} elements")
        if len(self._rules) > _MAX_DEPTH:
            raise DomainXmlError(f"elements are more than {_MAX_DEPTH} deep")
        above = self._rules[-1]
        rule = above and above.child(tag)
        if rule is not None:
            kept = self._element(tag, rule.kept(attributes))
            self._open[-1].append(kept)
            self._open.append(kept)
        elif above is _DOCUMENT:
            raise DomainXmlError(
                f"the root element is <{tag[:_SHOWN]}>, not <domain>",
                hint="give what `virsh dumpxml GUEST` prints",
            )
        self._rules.append(rule)

    def end(self, _tag: str) -> None:
        if self._rules.pop() is not None:
            self._open.pop()

    def data(self, text: str) -> None:
        rule = self._rules[-1]
        if rule is None or not rule.text:
            return
        element = self._open[-1]
        element.text = (element.text or "") + text
        if len(element.text) > _MAX_CONTENT:
            raise DomainXmlError(f"<{element.tag}> holds more than {_MAX_CONTENT} characters")

    def close(self) -> Element:
        return self._open[0]


def _read(text: str) -> Element:
    """The <domain> element with what the rules keep of it."""
    if len(text) > _MAX_TEXT:
        raise DomainXmlError(f"{len(text)} characters: more than {_MAX_TEXT}")
    # Imported here: most runs of the command read no XML, and this takes as long as all else.
    from xml.etree.ElementTree import Element, ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import DefusedXMLParser

    parser = DefusedXMLParser(target=_Keeper(Element), forbid_dtd=True)
    try:
        parser.feed(text)
        document: Element = parser.close()
    except ParseError as error:
        raise DomainXmlError(f"not well-formed XML: {error.msg}") from error
    except DefusedXmlException as error:
        raise DomainXmlError(
            "has a document type declaration (<!DOCTYPE>)",
            hint="libvirt writes none; take it out",
        ) from error
    except UnicodeEncodeError as error:
        raise DomainXmlError("not well-formed XML: a lone surrogate") from error
    domain = document.find("domain")
    if domain is None:
        domain = document.find("domstatus/domain")
    if domain is None:
        raise DomainXmlError("<domstatus> has no <domain>")
    return domain


# Understanding: the tree to a Guest.


def _guest(domain: Element) -> Guest:
    problems: list[str] = []
    shared = _shared_cpus(domain)
    vcpus = _vcpus(domain, shared, problems)
    occurrences = tuple(_occurrences(domain, problems))
    for_all, for_device = _settings(domain, occurrences, problems)
    devices = _merged(occurrences, problems)
    return Guest(
        name=_name(domain),
        source="domain-xml",
        uuid=_uuid(domain),
        vcpus=vcpus,
        emulator=_emulator(domain, shared),
        iothreads=_iothreads(domain, shared),
        memory_nodes=_memory_nodes(domain),
        devices=tuple(
            replace(device, directive=for_device[device.address], directive_from="device metadata")
            if device.address in for_device
            else device
            for device in devices
        ),
        directive=for_all,
        directive_from=None if for_all is None else "domain metadata",
        problems=_at_most(problems),
    )


def _name(domain: Element) -> str:
    text = domain.findtext("name")
    if not text:
        raise DomainXmlError("<domain> has no <name>")
    return _checked_name(text)


def _checked_name(name: str) -> str:
    # libvirt refuses newlines only; other control characters would play with terminals.
    if not name or any(unicodedata.category(character) == "Cc" for character in name):
        raise DomainXmlError(f"<name> {_shown(name)} is not a name")
    return name


def _uuid(domain: Element) -> str | None:
    text = domain.findtext("uuid")
    if text is None:
        return None
    # As liberal as virUUIDParse() in libvirt, src/util/viruuid.c.
    if not _UUID.fullmatch(text.strip()):
        raise DomainXmlError(f"<uuid> {_shown(text)} is not a UUID")
    digits = re.sub("[- ]", "", text.strip()).lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _shared_cpus(domain: Element) -> CpuSet | None:
    """CPUs of the threads that have no pin of their own."""
    vcpu = domain.find("vcpu")
    if vcpu is None or "cpuset" not in vcpu.attrib:
        return None
    # With placement='auto' numad chooses, and libvirt does not even look at cpuset
    # (src/conf/domain_conf.c, virDomainVcpuParse()).
    return None if _word(vcpu, "placement", "static", "auto") == "auto" else _cpus(vcpu)


def _vcpus(domain: Element, shared: CpuSet | None, problems: list[str]) -> tuple[Vcpu, ...]:
    most, online = _vcpu_numbers(domain)
    _check_topology(domain, most)
    pins: dict[int, CpuSet] = {}
    for pin in domain.iterfind("cputune/vcpupin"):
        index = _required(pin, "vcpu")
        if index >= most:
            # libvirt drops such pins with a warning (virDomainVcpuPinDefParseXML()).
            problems.append(f"<vcpupin> of vCPU {index}: the guest has vCPUs 0 to {most - 1}")
        elif index in pins:
            raise DomainXmlError(f"<vcpupin> of vCPU {index} is there twice")
        else:
            pins[index] = _cpus(pin)
    return tuple(Vcpu(index, pins.get(index, shared)) for index in sorted(online))


def _vcpu_numbers(domain: Element) -> tuple[int, set[int]]:
    """How many vCPUs the guest can have, and the numbers of those that are online."""
    vcpu = domain.find("vcpu")
    if vcpu is None:
        most = current = 1
    else:
        _word(vcpu, "placement", "static", "auto")
        most = _unsigned("<vcpu>", (vcpu.text or "").strip(), most=MAX_VCPUS)
        if not most:
            raise DomainXmlError("<vcpu> is 0: a guest has at least one vCPU")
        current = _number(vcpu, "current", default=most)
        if current > most:
            raise DomainXmlError(f"<vcpu> current {current} is more than the {most} vCPUs")
    each = domain.findall("vcpus/vcpu")
    if not each:
        return most, set(range(current))
    online: set[int] = set()
    for element in each:
        index = _required(element, "id")
        if index >= most:
            raise DomainXmlError(f"<vcpus>: vCPU {index}: the guest has vCPUs 0 to {most - 1}")
        enabled = _word(element, "enabled", "yes", "no")
        if enabled is None:
            raise DomainXmlError(f"<vcpus>: vCPU {index} has no enabled attribute")
        (online.add if enabled == "yes" else online.discard)(index)
    return most, online


def _check_topology(domain: Element, vcpus: int) -> None:
    topology = domain.find("cpu/topology")
    if topology is None:
        return
    product = 1
    for name in ("sockets", "dies", "clusters", "cores", "threads"):
        optional = name in ("dies", "clusters")
        count = _number(topology, name, default=1) if optional else _required(topology, name)
        if not count:
            raise DomainXmlError(f"<topology> {name} is 0")
        product *= count
    if product != vcpus and domain.get("type") in _QEMU_TYPES:
        raise DomainXmlError(
            f"<topology> makes {product} vCPUs, <vcpu> is {vcpus}",
            hint="sockets * dies * clusters * cores * threads must be the number in <vcpu>",
        )


def _emulator(domain: Element, shared: CpuSet | None) -> CpuSet | None:
    pins = domain.findall("cputune/emulatorpin")
    if len(pins) > 1:
        raise DomainXmlError("<emulatorpin> is there twice")
    return _cpus(pins[0]) if pins else shared


def _iothreads(domain: Element, shared: CpuSet | None) -> dict[int, CpuSet]:
    """CPUs by I/O thread number; threads that are not restricted are left out."""
    pins: dict[int, CpuSet] = {}
    numbers = _iothread_numbers(domain)
    for pin in domain.iterfind("cputune/iothreadpin"):
        number = _required(pin, "iothread")
        if number not in numbers:
            raise DomainXmlError(f"<iothreadpin> of I/O thread {number}: there is no such thread")
        if number in pins:
            raise DomainXmlError(f"<iothreadpin> of I/O thread {number} is there twice")
        pins[number] = _cpus(pin)
    found = {number: pins.get(number, shared) for number in sorted(numbers)}
    return {number: cpus for number, cpus in found.items() if cpus is not None}


def _iothread_numbers(domain: Element) -> set[int]:
    """<iothreadids>, filled up with the lowest free numbers to the count in <iothreads>."""
    text = (domain.findtext("iothreads") or "").strip()
    count = _unsigned("<iothreads>", text, most=MAX_VCPUS) if text else 0
    numbers: set[int] = set()
    for element in domain.iterfind("iothreadids/iothread"):
        number = _required(element, "id")
        if not number:
            raise DomainXmlError("<iothread> id is 0")
        if number in numbers:
            raise DomainXmlError(f"<iothread> id {number} is there twice")
        numbers.add(number)
    lowest = 1
    while len(numbers) < count:
        numbers.add(lowest)
        lowest += 1
    return numbers


def _memory_nodes(domain: Element) -> frozenset[int] | None:
    """Host NUMA nodes that the guest's memory comes from; None when libvirt was not told."""
    found = []
    placement = None
    memory = domain.find("numatune/memory")
    if memory is not None:
        placement = _word(memory, "placement", "static", "auto")
        if "nodeset" in memory.attrib:
            found.append(_cpus(memory, "nodeset"))
    found += [_cpus(each, "nodeset") for each in domain.iterfind("numatune/memnode")]
    # With placement='auto' libvirt forgets the nodeset (numa_conf.c, virDomainNumatuneSet()).
    return frozenset(union(found)) if found and placement != "auto" else None


# Devices.


def _occurrences(domain: Element, problems: list[str]) -> Iterator[GuestDevice]:
    """Each PCI function as often as it is mentioned, with the RFC's attribute where it is."""
    for element in domain.iterfind("devices/*"):
        directive = _attribute_directive(element)
        addresses = list(_addresses(element))
        alias, mac = _alias(element), _mac_of(element) if addresses else None
        if directive and not addresses:
            problems.append(
                f"cpuset on <{element.tag} type={_shown(element.get('type', ''))}>:"
                " the guest holds no PCI function through it"
            )
        for address in addresses:
            yield GuestDevice(
                address,
                source=element.tag,
                alias=alias,
                mac=mac,
                directive=directive,
                directive_from=f"{element.tag} cpuset attribute" if directive else None,
            )


def _attribute_directive(element: Element) -> Directive | None:
    text = element.get("cpuset")
    if text is None:
        return None
    try:
        return Directive.parse(text)
    except InputError as error:
        raise DomainXmlError(f"<{element.tag}> cpuset: {error}", hint=error.hint) from error


def _addresses(element: Element) -> Iterator[PciAddress]:
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
            _any_base(f"{label} source address: {name}", element.get(name, "0"), most)
            for name, most in _ADDRESS_PARTS.items()
        )
    )


def _any_base(label: str, text: str, most: int) -> int:
    match = _ANY_BASE.fullmatch(text.strip())
    if match is None:
        raise DomainXmlError(f"{label} {_shown(text)} is not a number")
    digits = match[1]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    if len(digits.lstrip("0xX")) > _ANY_BASE_DIGITS or int(digits, base) > most:
        raise DomainXmlError(f"{label} {_shown(text)} is more than {most:#x}")
    return int(digits, base)


def _alias(element: Element) -> str | None:
    alias = element.find("alias")
    name = "" if alias is None else alias.get("name", "")
    # libvirt's own are plain words, and it drops a person's that are not (USER_ALIAS_CHARS).
    return name if _ALIAS.fullmatch(name) else None


def _mac_of(element: Element) -> str | None:
    mac = element.find("mac")
    text = None if mac is None else mac.get("address")
    if text is None:
        return None
    found = _mac(text)
    if found is None:
        raise DomainXmlError(f"<mac> address {_shown(text)} is not a MAC address")
    return found


def _mac(text: str) -> str | None:
    """As libvirt prints it: 52:54:00:0a:0b:0c."""
    if not _MAC.fullmatch(text.strip()):
        return None
    return ":".join(f"{int(part, 16):02x}" for part in text.strip().split(":"))


def _merged(occurrences: tuple[GuestDevice, ...], problems: list[str]) -> list[GuestDevice]:
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


def _settings(
    domain: Element, occurrences: tuple[GuestDevice, ...], problems: list[str]
) -> tuple[Directive | None, dict[PciAddress, Directive]]:
    """The setting for all devices and those for single ones; never raises."""
    metadata = domain.find("metadata")
    known = None
    for element in metadata if metadata is not None else ():
        if not element.tag.startswith(f"{{{NAMESPACE}}}"):
            version = element.tag[1:].partition("}")[0]
            problems.append(f"metadata of {version} is for another version of virtirq")
        elif _local(element.tag) != "irqs":
            problems.append(f"metadata: <{_local(element.tag)}> is not known")
        elif known is not None:
            problems.append("metadata: <irqs> is there twice: the first is used")
        else:
            known = element
    if known is None:
        return None, {}
    _tell_unknown(known, ("cpuset",), "device", problems)
    for_all = _metadata_directive(known, "<irqs>", problems) if "cpuset" in known.attrib else None
    return for_all, _device_settings(known, occurrences, problems)


def _device_settings(
    irqs: Element, occurrences: tuple[GuestDevice, ...], problems: list[str]
) -> dict[PciAddress, Directive]:
    names = _names(occurrences)
    seen: set[tuple[str, str]] = set()
    found: dict[PciAddress, Directive] = {}
    for element in irqs:
        if _local(element.tag) != "device":
            continue
        _tell_unknown(element, ("cpuset", *_SELECTORS), None, problems)
        given = [kind for kind in _SELECTORS if kind in element.attrib]
        if len(given) != 1:
            problems.append("metadata: <device> needs one of address, alias and mac")
            continue
        text = element.get(given[0], "")
        label = f"<device {given[0]}={_shown(text)}>"
        directive = _metadata_directive(element, label, problems)
        selector = _selector(given[0], text)
        if selector is None:
            problems.append(f"metadata: {label}: that is not {_SELECTORS[given[0]]}")
        elif selector not in names:
            problems.append(f"metadata: {label}: the guest holds no such device")
        elif selector in seen:
            problems.append(f"metadata: {label} is there twice: the first is used")
        elif directive is not None:
            seen.add(selector)
            problems += [
                f"metadata: {label}: {found[address]} is set for {address} already"
                for address in names[selector]
                if found.get(address, directive) != directive
            ]
            for address in names[selector]:
                found.setdefault(address, directive)
    return found


_SELECTORS: Final = {"address": "a PCI address", "alias": "an alias", "mac": "a MAC address"}


def _selector(kind: str, text: str) -> tuple[str, str] | None:
    """A device's name in the form that `_names` has it; None when malformed."""
    match kind:
        case "address":
            try:
                return kind, str(PciAddress.parse(text))
            except InputError:
                return None
        case "mac":
            mac = _mac(text)
            return None if mac is None else (kind, mac)
        case _:
            return (kind, text.strip()) if text.strip() else None


def _names(occurrences: tuple[GuestDevice, ...]) -> dict[tuple[str, str], dict[PciAddress, None]]:
    """The functions that each name means: an alias of a disk may stand for several."""
    names: dict[tuple[str, str], dict[PciAddress, None]] = {}
    for device in occurrences:
        spelled = (("address", str(device.address)), ("alias", device.alias), ("mac", device.mac))
        for kind, value in spelled:
            if value is not None:
                names.setdefault((kind, value), {})[device.address] = None
    return names


def _metadata_directive(element: Element, label: str, problems: list[str]) -> Directive | None:
    text = element.get("cpuset")
    if text is None:
        problems.append(f"metadata: {label} has no cpuset")
        return None
    try:
        return Directive.parse(text)
    except InputError as error:
        problems.append(f"metadata: {label}: {error}")
        return None


def _tell_unknown(
    element: Element, attributes: tuple[str, ...], child: str | None, problems: list[str]
) -> None:
    label = f"metadata: <{_local(element.tag)}>"
    problems += [
        f"{label} has an attribute that is not known: {_shown(_local(name))}"
        for name in element.attrib
        if name not in attributes
    ]
    problems += [
        f"{label} has an element that is not known: <{_local(each.tag)}>"
        for each in element
        if _local(each.tag) != child
    ]


# Redacting.


def _drop_what_says_nothing(domain: Element) -> None:
    """Takes out the devices that give no PCI function and no setting."""
    for devices in domain.findall("devices"):
        devices[:] = [each for each in devices if "cpuset" in each.attrib or any(_addresses(each))]


def _set_text(domain: Element, tag: str, text: str) -> None:
    """Makes <tag> the first child of <domain>, the only one of its kind, with this text."""
    found = domain.findall(tag)
    kept = found[0] if found else domain.makeelement(tag, {})
    kept.text = text
    domain[:] = [kept, *(child for child in domain if child.tag != tag)]


def _renumber_macs(domain: Element) -> None:
    numbers: dict[str, int] = {}
    for element in domain.iter():
        attribute = "address" if element.tag == "mac" else "mac"
        if attribute not in element.attrib:
            continue
        mac = _mac(element.get(attribute, ""))
        if mac is None:
            # Whatever it is, it may be a MAC address in a spelling that is not known here.
            element.set(attribute, "redacted")
            continue
        number = numbers.setdefault(mac, len(numbers) + 1)
        element.set(
            attribute, f"52:54:00:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        )


# Attributes.


def _cpus(element: Element, name: str = "cpuset") -> CpuSet:
    """A set that must be there and must not be empty (virBitmapParse() and its callers)."""
    text = element.get(name)
    if text is None:
        raise DomainXmlError(f"<{element.tag}> has no {name}")
    try:
        cpus = CpuSet.parse(_tidy(text) if len(text) <= _MAX_LIST else text)
    except InputError as error:
        raise DomainXmlError(f"<{element.tag}> {name}: {error}", hint=error.hint) from error
    if not cpus:
        raise DomainXmlError(f"<{element.tag}> {name} {_shown(text)} is empty")
    return cpus


def _tidy(text: str) -> str:
    """Without what virBitmapParse() overlooks: blanks around numbers, a comma at the end."""
    parts = ["-".join(map(str.strip, part.split("-"))) for part in text.split(",")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return ",".join(parts)


def _required(element: Element, name: str) -> int:
    text = element.get(name)
    if text is None:
        raise DomainXmlError(f"<{element.tag}> has no {name}")
    return _unsigned(f"<{element.tag}> {name}", text)


def _number(element: Element, name: str, *, default: int) -> int:
    return _required(element, name) if name in element.attrib else default


def _unsigned(label: str, text: str, *, most: int = _UINT_MAX) -> int:
    """A decimal number from 0 to `most`, as virStrToLong_uip() reads it."""
    stripped = text.strip()
    if not _NUMBER.fullmatch(stripped):
        raise DomainXmlError(f"{label} {_shown(text)} is not a number")
    digits = stripped.lstrip("+").lstrip("0") or "0"
    if len(digits) > len(str(most)) or int(digits) > most:
        raise DomainXmlError(f"{label} {_shown(text)} is more than {most}")
    return int(digits)


def _word(element: Element, name: str, *allowed: str) -> str | None:
    text = element.get(name)
    if text is not None and text not in allowed:
        raise DomainXmlError(
            f"<{element.tag}> {name} {_shown(text)} is not one of {', '.join(allowed)}"
        )
    return text


def _local(tag: str) -> str:
    """The name without its namespace, short enough to show."""
    return tag.rpartition("}")[2][:_SHOWN]


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")


def _at_most(problems: list[str]) -> tuple[str, ...]:
    more = len(problems) - _MAX_PROBLEMS
    return (*problems[:_MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else ()))
