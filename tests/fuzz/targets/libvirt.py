"""What libvirt, and whoever may define domains, tells: domain XML and what is in its metadata."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from tests.fuzz.engine import decoded, files, lines, need, target, text_of
from virtirq.errors import DomainXmlError, InputError, UnavailableError
from virtirq.guests.libvirt import nova
from virtirq.guests.libvirt.domainxml import MAX_VCPUS, parse_domain
from virtirq.guests.libvirt.reading import NAMESPACE, read_domain
from virtirq.guests.libvirt.redaction import redact
from virtirq.guests.libvirt.rfcxml import Moved, decode_document, to_attributes, to_metadata
from virtirq.guests.libvirt.settings import read_settings
from virtirq.guests.vectors.hardware import parse_hardware
from virtirq.model import Directive, Guest, PciAddress

_RFC = """<domain type='kvm'><name>g</name><vcpu current="1">2</vcpu><metadata>
<virtirq:irqs xmlns:virtirq="urn:virtirq:1" cpuset='auto'><virtirq:device address='0000:82:00.0'
cpuset='2-5,^3'/></virtirq:irqs></metadata><devices><hostdev cpuset="4" mode='subsystem' type='pci'>
<source><address domain='0' bus='0x82' slot='0' function='1'/></source><alias name='ua-x'/>
</hostdev>
<hostdev mode='subsystem' type='pci'><source><address bus='0x82'/></source></hostdev>
<interface type='network' cpuset='native'><mac address='52:54:00:0a:0b:0c'/></interface>
<disk type='nvme' cpuset='local'><source><address bus='7'/></source></disk></devices></domain>"""
_Q35 = """<domain><name>g</name><os><type arch='x86_64' machine='pc-q35-9.0'>hvm</type>
<loader type='pflash'/></os><memory unit='KiB'>4194304</memory><devices>
<controller type='pci' index='0' model='pcie-root'/><controller type='pci' index='1'
model='pcie-root-port'><address type='pci' bus='0x00' slot='0x02' function='0x0'/></controller>
<controller type='pci' index='2' model='pcie-expander-bus'><target busNr='254'/></controller>
<hostdev mode='subsystem' type='pci'><source><address bus='0x82' slot='0'/></source>
<address type='pci' bus='0x01' slot='0x00' function='0x0'/></hostdev><iommu model='intel'/>
<memory><target><size unit='KiB'>1048576</size></target></memory></devices></domain>"""
_OTHERS = """<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>g</name>
<vcpu placement='static' cpuset='1-4'>4</vcpu><cputune><vcpupin vcpu='0' cpuset='4'/>
<vcpusched vcpus='0' scheduler='fifo'/><emulatorpin cpuset='0'/></cputune><iothreads>1</iothreads>
<numatune><memory nodeset='0'/></numatune><cpu><topology sockets='1' cores='2' threads='2'/></cpu>
<seclabel model='dac'><label>+107:+107</label></seclabel><qemu:commandline>
<qemu:arg value='-device'/>
<qemu:arg value='vfio-pci,host=82:00.1'/></qemu:commandline></domain>"""
_WORDS = (
    "<hostdev <devices> </devices> <metadata> </metadata> <domain> <!-- --> <![CDATA[ ]]> "
    "&#65; &lt;"
    " cpuset='2-5' type='pci' address='0000:82:00.0' <virtirq:device xmlns:virtirq='urn:virtirq:1'"
    " xmlns='urn:virtirq:2' <vcpu> current='1' <!DOCTYPE alias='x' mac='52:54:00:0a:0b:0c' <?xml ?>"
)
_documents = files("guests/libvirt/domains/*.xml")


def _seeds() -> list[bytes]:
    return [*_documents(), _RFC.encode(), _Q35.encode(), _OTHERS.encode()]


def _hostdevs(root: ElementTree.Element) -> Iterator[tuple[int, ...]]:
    """The functions that <hostdev> gives, by another reading."""
    domain = root if root.tag == "domain" else root.find("domain")
    for each in [] if domain is None else domain.findall("./devices/hostdev"):
        place = each.find("address")
        kept = place is None or place.get("type") != "unassigned"
        if each.get("type") == "pci" and each.get("mode", "subsystem") == "subsystem" and kept:
            source = each.find("source/address")
            need(source is not None, "a hostdev without an address was accepted")
            assert source is not None
            texts = (
                source.get(name, "0").strip() for name in ("domain", "bus", "slot", "function")
            )
            # strtoul() with base 0
            octal = (re.sub(r"^\+?0(?=[0-7])", "0o", text) for text in texts)
            yield tuple(int(text, 0) for text in octal)


def _parsed(text: str) -> Guest | None:
    try:
        return parse_domain(text, where="x")
    except DomainXmlError as error:
        need(str(error).startswith("x: ") and "\n" not in str(error), "where, in one line")
        return None


@target("domain-xml", _seeds, _WORDS, steps=40)
def domain_xml(data: bytes) -> None:
    guest = _parsed(decoded(data))
    if guest is None:
        return
    root = ElementTree.fromstring(decoded(data))
    domain = root if root.tag == "domain" else root.find("domain")
    assert domain is not None
    name = domain.find("name")
    assert name is not None
    need(len(name) or guest.name == name.text, "its name is what stands there")
    indexes = [vcpu.index for vcpu in guest.vcpus]
    need(indexes == sorted(set(indexes)) and len(indexes) <= MAX_VCPUS, "each vCPU once")
    need(all(vcpu.cpus is None or vcpu.cpus for vcpu in guest.vcpus), "no vCPU without any CPU")
    apics = [vcpu.apic for vcpu in guest.vcpus if vcpu.apic is not None]
    need(len(apics) == len(set(apics)), "each vCPU has an APIC of its own")
    addresses = [device.address for device in guest.devices]
    need(len(addresses) == len(set(addresses)), "each device once")
    hostdevs = {PciAddress(*each) for each in _hostdevs(root)}
    ours = {each.address for each in guest.devices if each.source == "hostdev"}
    need(ours <= hostdevs <= set(addresses), "the devices that stand there")
    written = {
        Directive.parse(text)
        for each in domain.iter(f"{{{NAMESPACE}}}device")
        if (text := each.get("cpuset")) is not None and _is_directive(text)
    }
    for each in guest.devices:
        from_metadata = each.directive_from == "device metadata"
        need(not from_metadata or each.directive in written, "a setting that stands there")
    need(len(guest.problems) <= 51, "few problems are told")


def _is_directive(text: str) -> bool:
    try:
        Directive.parse(text)
    except InputError:
        return False
    return True


@target(
    "hardware", _seeds, _WORDS + " machine='pc-q35-8.2' <controller index='1' busNr='4294967295'"
)
def hardware(data: bytes) -> None:
    try:
        found = parse_hardware(decoded(data))
    except (DomainXmlError, UnavailableError) as error:
        need("\n" not in str(error), "one line")
        return
    need(all(each.stop <= 1 << 53 and each.start >= 1 << 20 for each in found.ram), "memory")
    need(set(found.ecam) <= {0xB0000000, 0xE0000000} and found.ecam, "the places that are tried")
    slots = (*found.slots.values(), *found.bridges.values())
    need(all(0 <= each.slot < 32 and 0 <= each.function < 8 for each in slots), "a slot of a bus")


@target("rfc-xml", _seeds, _WORDS, steps=120, most=100_000)
def rfc_xml(data: bytes) -> None:
    try:
        text = decode_document(data)
        moved = to_metadata(text)
    except DomainXmlError:
        return
    again = to_metadata(moved.text)
    need(again == Moved(moved.text, ()), "once moved, there is nothing to move")
    back = to_attributes(moved.text)
    there = to_metadata(back.text)
    need(to_attributes(back.text).text == back.text, "once back, there is nothing to put back")
    before, after, twice = (_parsed(each) for each in (text, moved.text, there.text))
    need(
        (before is None) == (after is None) == (twice is None), "what libvirt takes, it still takes"
    )
    if before is None or after is None or twice is None:
        return
    need(_asked(after) == _asked(twice), "there and back, all is asked for that was")
    need({each.address for each in before.devices} == _asked(after).keys(), "the same devices")
    by_attribute = {each.address: each.directive for each in before.devices if each.directive}
    need(by_attribute.items() <= _asked(after).items(), "what attributes asked for is asked for")


def _asked(guest: Guest) -> dict[PciAddress, Directive | None]:
    return {each.address: each.directive for each in guest.devices}


_IRQS = f"<domain><metadata><v:irqs xmlns:v='{NAMESPACE}' %s</v:irqs></metadata></domain>"


@target(
    "metadata",
    lines(
        ">",
        "cpuset='auto'><v:device address='0000:82:00.0' cpuset='2-5,^3'/>",
        "><v:device mac='52:54:0:a:b:c' cpuset='native'/><v:device alias='ua-\"x' cpuset='1'/>",
    ),
    "<v:device /> address=' mac=' alias=' cpuset=' ' &amp; &quot; 0000:82:00.0",
)
def metadata(data: bytes) -> None:
    try:
        domain = read_domain(_IRQS % decoded(data))
    except DomainXmlError:
        return
    found = read_settings(domain)
    ours = found.element().replace("<irqs", f"<irqs xmlns='{NAMESPACE}'", 1)
    try:
        again = read_settings(read_domain(f"<domain><metadata>{ours}</metadata></domain>"))
    except DomainXmlError as error:
        raise AssertionError(f"our own element is not understood: {error}") from error
    need(not again.problems, f"our own element has problems: {again.problems}")
    need(again.for_all == found.for_all or _same(again.for_all, found.for_all), "for all")
    each = [(one.selector, one.setting.directive) for one in found.devices]
    need([(one.selector, one.setting.directive) for one in again.devices] == each, "for each")
    need(len({selector for selector, _ in each}) == len(each), "one setting for each device")
    for selector, directive in each[:3]:
        changed = found.with_device(selector, directive)
        need(len(changed.devices) == len(each), "set again, there is no more than before")
        need(changed.with_device(selector, None).of_device([selector]) is None, "unset is unset")


def _same(one: object, other: object) -> bool:
    directives = (getattr(one, "directive", None), getattr(other, "directive", None))
    return directives[0] == directives[1]


@target("nova-mask", lines("1-3,^2", " 0 , 2 - 3 ", "0,99", "^1", "+1-+3"), "^ - , + 0 3")
def nova_mask(data: bytes) -> None:
    root = ElementTree.Element("domain")
    names = ("instance", "flavor", "extraSpecs", "extraSpec")
    spec = ElementTree.SubElement(root, "metadata")
    for each in names:
        space = "{http://openstack.org/xmlns/libvirt/nova/1.1}"
        spec = ElementTree.SubElement(spec, f"{space}{each}")
    spec.set("name", nova.KEY)
    spec.text = text_of(data)
    problems: list[str] = []
    found = nova.read_mask(root, 4, problems)
    need(found is not None and all("\n" not in each for each in problems), "an answer, and lines")
    assert found is not None
    asked = found[0]
    need(bool(asked.vcpus) != bool(asked.word), "vCPUs, or left alone")
    if asked.vcpus:
        parts = [each.strip() for each in spec.text.split(",") if each.strip()]
        named: dict[bool, set[int]] = {True: set(), False: set()}
        for part in parts:
            ends = [int(each) for each in part.removeprefix("^").split("-")]
            named[part.startswith("^")] |= {n for n in range(4) if ends[0] <= n <= ends[-1]}
        need(set(asked.vcpus) == named[False] - named[True], "the vCPUs that are named")


@target("redaction", _seeds, _WORDS, steps=80, most=60_000)
def redaction(data: bytes) -> None:
    """What a recording keeps of a guest is as it was, without what names it."""
    text = decoded(data)
    guest = _parsed(text)
    if guest is None:
        return
    told = redact(text, name="g1")
    again = _parsed(told)
    need(again is not None, "what is recorded can be read")
    assert again is not None
    ours = [(each.index, each.cpus, each.apic) for each in guest.vcpus]
    need(ours == [(each.index, each.cpus, each.apic) for each in again.vcpus], "its vCPUs")
    need(_asked(guest) == _asked(again), "its devices, and what is asked for them")
    need(guest.directive == again.directive, "what is asked for all")
    secrets = [guest.uuid, *(each.mac for each in guest.devices)]
    kept = ("52:54:00:00:00:0", "00000000-0000")
    need(not any(each and each in told and not each.startswith(kept) for each in secrets), "no id")
    need(redact(told, name="g1") == told, "redacted twice, it is the same")
