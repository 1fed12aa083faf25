"""A guest as libvirt's domain XML describes it: text in, values out.

What libvirt ignores is ignored here, and what it refuses is refused, as far as these elements
go (libvirt, src/conf/domain_conf.c, virDomainDefParseXML()). `reading` has the elements,
`devices` the PCI functions, `settings` and `nova` what was asked for them.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

from virtirq.cpuset import CpuSet, union
from virtirq.errors import DomainXmlError
from virtirq.guests.libvirt import nova
from virtirq.guests.libvirt.devices import functions, holders, merged
from virtirq.guests.libvirt.reading import read_domain
from virtirq.guests.libvirt.settings import matched, read_settings
from virtirq.guests.libvirt.values import (
    cpus_of,
    number_of,
    required,
    shown,
    unsigned,
    uuid_of_text,
    word_of,
)
from virtirq.guests.vectors.apic import apic_ids
from virtirq.model import Guest, Vcpu
from virtirq.values import pattern, replace

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MAX_VCPUS: Final = 8192
"""More vCPUs, and more I/O threads, than any hypervisor has (KVM on x86: 4096)."""

_MAX_PROBLEMS: Final = 50
_DAC_LABEL: Final = pattern(r"\+?([0-9]{1,10}):\+?[0-9]{1,10}", re.ASCII)
_REALTIME: Final = frozenset({"fifo", "rr"})
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
        return understand(read_domain(text))
    except DomainXmlError as error:
        raise DomainXmlError(f"{where}: {error}", hint=error.hint) from error


def understand(domain: Element) -> Guest:
    """The guest of a <domain> that `reading.read_domain` gave. Raises DomainXmlError."""
    problems: list[str] = []
    shared = _shared_cpus(domain)
    vcpus = _vcpus(domain, shared, problems)
    held = holders(domain)
    devices = merged(functions(held, problems), problems)
    settings = read_settings(domain)
    problems += settings.problems
    for_device = matched(settings, held, problems)
    for_all, origin = None, None
    if settings.for_all is not None:
        for_all, origin = settings.for_all.directive, "domain metadata"
    elif (mask := nova.read_mask(domain, _vcpu_numbers(domain)[0], problems)) is not None:
        for_all, origin = mask
    return Guest(
        name=_name(domain),
        source="domain-xml",
        uuid=_uuid(domain),
        vcpus=vcpus,
        emulator=_emulator(domain, shared),
        iothreads=_iothreads(domain, shared),
        memory_nodes=_memory_nodes(domain),
        threads=_threads(domain),
        owner=_owner(domain),
        devices=tuple(
            replace(device, directive=for_device[device.address], directive_from="device metadata")
            if device.address in for_device
            else device
            for device in devices
        ),
        directive=for_all,
        directive_from=origin,
        problems=_at_most(problems),
    )


def _name(domain: Element) -> str:
    text = domain.findtext("name")
    if not text:
        raise DomainXmlError("<domain> has no <name>")
    return checked_name(text)


def checked_name(name: str) -> str:
    # libvirt refuses newlines only; other control characters would play with terminals.
    if not name or any(unicodedata.category(character) == "Cc" for character in name):
        raise DomainXmlError(f"<name> {shown(name)} is not a name")
    return name


def _uuid(domain: Element) -> str | None:
    text = domain.findtext("uuid")
    if text is None:
        return None
    uuid = uuid_of_text(text)
    if uuid is None:
        raise DomainXmlError(f"<uuid> {shown(text)} is not a UUID")
    return uuid


def _owner(domain: Element) -> int | None:
    """The user id that libvirt runs QEMU as, where it says so.

    A running guest's label is ``+107:+107`` (libvirt, src/security/security_dac.c,
    virSecurityDACGenLabel()); one that a person wrote may have names.
    """
    for label in domain.iterfind("seclabel"):
        match = _DAC_LABEL.fullmatch(label.findtext("label", "").strip())
        if label.get("model") == "dac" and match is not None:
            return int(match[1])
    return None


def _shared_cpus(domain: Element) -> CpuSet | None:
    """CPUs of the threads that have no pin of their own."""
    vcpu = domain.find("vcpu")
    if vcpu is None or "cpuset" not in vcpu.attrib:
        return None
    # With placement='auto' numad chooses, and libvirt does not even look at cpuset
    # (src/conf/domain_conf.c, virDomainVcpuParse()).
    return None if word_of(vcpu, "placement", "static", "auto") == "auto" else cpus_of(vcpu)


def _vcpus(domain: Element, shared: CpuSet | None, problems: list[str]) -> tuple[Vcpu, ...]:
    most, online = _vcpu_numbers(domain)
    apics = _apics(domain, most)
    pins: dict[int, CpuSet] = {}
    for pin in domain.iterfind("cputune/vcpupin"):
        index = required(pin, "vcpu")
        if index >= most:
            # libvirt drops such pins with a warning (virDomainVcpuPinDefParseXML()).
            problems.append(f"<vcpupin> of vCPU {index}: the guest has vCPUs 0 to {most - 1}")
        elif index in pins:
            raise DomainXmlError(f"<vcpupin> of vCPU {index} is there twice")
        else:
            pins[index] = cpus_of(pin)
    realtime = union(
        cpus_of(each, "vcpus")
        for each in domain.iterfind("cputune/vcpusched")
        if each.get("scheduler") in _REALTIME
    )
    return tuple(
        Vcpu(index, pins.get(index, shared), apic=apics.get(index), realtime=index in realtime)
        for index in sorted(online)
    )


def _vcpu_numbers(domain: Element) -> tuple[int, set[int]]:
    """How many vCPUs the guest can have, and the numbers of those that are online."""
    vcpu = domain.find("vcpu")
    if vcpu is None:
        most = current = 1
    else:
        word_of(vcpu, "placement", "static", "auto")
        most = unsigned("<vcpu>", (vcpu.text or "").strip(), most=MAX_VCPUS)
        if not most:
            raise DomainXmlError("<vcpu> is 0: a guest has at least one vCPU")
        current = number_of(vcpu, "current", default=most)
        if current > most:
            raise DomainXmlError(f"<vcpu> current {current} is more than the {most} vCPUs")
    each = domain.findall("vcpus/vcpu")
    if not each:
        return most, set(range(current))
    online: set[int] = set()
    for element in each:
        index = required(element, "id")
        if index >= most:
            raise DomainXmlError(f"<vcpus>: vCPU {index}: the guest has vCPUs 0 to {most - 1}")
        enabled = word_of(element, "enabled", "yes", "no")
        if enabled is None:
            raise DomainXmlError(f"<vcpus>: vCPU {index} has no enabled attribute")
        (online.add if enabled == "yes" else online.discard)(index)
    return most, online


def _apics(domain: Element, vcpus: int) -> dict[int, int]:
    """QEMU's APIC ids by vCPU number, as far as they can be told, of a guest on x86."""
    topology = domain.find("cpu/topology")
    if topology is None:
        # libvirt then asks for so many sockets (src/qemu/qemu_command.c, qemuBuildSmpCommandLine())
        return apic_ids(vcpus)
    product, counts = 1, {}
    for name in ("sockets", "dies", "clusters", "cores", "threads"):
        optional = name in ("dies", "clusters")
        count = number_of(topology, name, default=1) if optional else required(topology, name)
        if not count:
            raise DomainXmlError(f"<topology> {name} is 0")
        counts[name] = count
        product *= count
    if product != vcpus and domain.get("type") in _QEMU_TYPES:
        raise DomainXmlError(
            f"<topology> makes {product} vCPUs, <vcpu> is {vcpus}",
            hint="sockets * dies * clusters * cores * threads must be the number in <vcpu>",
        )
    if product != vcpus or counts.pop("clusters") != 1:  # x86 has none
        return {}
    return apic_ids(vcpus, counts["dies"], counts["cores"], counts["threads"])


def _threads(domain: Element) -> int:
    topology = domain.find("cpu/topology")
    return 1 if topology is None else number_of(topology, "threads", default=1) or 1


def _emulator(domain: Element, shared: CpuSet | None) -> CpuSet | None:
    pins = domain.findall("cputune/emulatorpin")
    if len(pins) > 1:
        raise DomainXmlError("<emulatorpin> is there twice")
    return cpus_of(pins[0]) if pins else shared


def _iothreads(domain: Element, shared: CpuSet | None) -> dict[int, CpuSet]:
    """CPUs by I/O thread number; threads that are not restricted are left out."""
    pins: dict[int, CpuSet] = {}
    numbers = _iothread_numbers(domain)
    for pin in domain.iterfind("cputune/iothreadpin"):
        number = required(pin, "iothread")
        if number not in numbers:
            raise DomainXmlError(f"<iothreadpin> of I/O thread {number}: there is no such thread")
        if number in pins:
            raise DomainXmlError(f"<iothreadpin> of I/O thread {number} is there twice")
        pins[number] = cpus_of(pin)
    found = {number: pins.get(number, shared) for number in sorted(numbers)}
    return {number: cpus for number, cpus in found.items() if cpus is not None}


def _iothread_numbers(domain: Element) -> set[int]:
    """<iothreadids>, filled up with the lowest free numbers to the count in <iothreads>."""
    text = (domain.findtext("iothreads") or "").strip()
    count = unsigned("<iothreads>", text, most=MAX_VCPUS) if text else 0
    numbers: set[int] = set()
    for element in domain.iterfind("iothreadids/iothread"):
        number = required(element, "id")
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
        placement = word_of(memory, "placement", "static", "auto")
        if "nodeset" in memory.attrib:
            found.append(cpus_of(memory, "nodeset"))
    found += [cpus_of(each, "nodeset") for each in domain.iterfind("numatune/memnode")]
    # With placement='auto' libvirt forgets the nodeset (numa_conf.c, virDomainNumatuneSet()).
    return frozenset(union(found)) if found and placement != "auto" else None


def _at_most(problems: list[str]) -> tuple[str, ...]:
    more = len(problems) - _MAX_PROBLEMS
    return (*problems[:_MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else ()))
