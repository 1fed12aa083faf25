"""A guest's hardware from its XML: where its configuration space, buses and memory are."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.errors import DomainXmlError, UnavailableError
from virtirq.guests.vectors.hardware import Hardware, Iommu, Slot, parse_hardware, q35_ram
from virtirq.model import PciAddress

GIB: Final = 1 << 30
NIC: Final = PciAddress.parse("0000:82:00.0")
VF: Final = PciAddress.parse("0000:82:02.1")
POOLED: Final = PciAddress.parse("0000:84:10.0")
Q35: Final = "<type arch='x86_64' machine='pc-q35-7.2'>hvm</type>"


def at(bus: int, slot: int = 0, function: int = 0, domain: int = 0) -> str:
    """Where the guest has it, as libvirt writes it."""
    return (
        f"<address type='pci' domain='{domain:#06x}' bus='{bus:#04x}' slot='{slot:#04x}'"
        f" function='{function:#x}'/>"
    )


def of(address: PciAddress) -> str:
    """Which of the host's functions it is."""
    return (
        f"<source><address domain='{address.domain:#06x}' bus='{address.bus:#04x}'"
        f" slot='{address.slot:#04x}' function='{address.function:#x}'/></source>"
    )


def hostdev(address: PciAddress, place: str, more: str = "") -> str:
    return (
        f"<hostdev mode='subsystem' type='pci' managed='yes'>{of(address)}{more}{place}</hostdev>"
    )


def port(index: int, place: str, model: str = "pcie-root-port") -> str:
    target = f"<target chassis='{index}' port='0x10'/>"
    return (
        f"<controller type='pci' index='{index}' model='{model}'><model name='x'/>"
        f"{target}{place}</controller>"
    )


ROOT: Final = "<controller type='pci' index='0' model='pcie-root'/>"


def domain(devices: str = "", *, system: str = Q35, memory: str = "8388608") -> str:
    return (
        f"<domain type='kvm'><name>web</name><memory unit='KiB'>{memory}</memory>"
        f"<vcpu>2</vcpu><os>{system}</os><devices>{ROOT}{devices}</devices></domain>"
    )


def parsed(devices: str = "", **more: str) -> Hardware:
    return parse_hardware(domain(devices, **more))


def test_a_guest_as_libvirt_starts_it() -> None:
    """Two VFs of a network, one behind a switch, and a NIC on a node's own root bus."""
    pxb = (
        "<controller type='pci' index='4' model='pcie-expander-bus'><model name='pxb-pcie'/>"
        f"<target busNr='180'><node>1</node></target>{at(0, 4)}</controller>"
    )
    vf = (
        "<interface type='hostdev' managed='yes'><mac address='52:54:00:6b:3c:58'/><driver/>"
        f"<source>{at(VF.bus, VF.slot, VF.function)}</source>{at(3, 1)}</interface>"
    )
    pooled = (
        "<interface type='network'><source network='vfs'/><actual type='hostdev' managed='yes'>"
        f"<source>{at(POOLED.bus, POOLED.slot)}</source></actual>{at(3, 2)}</interface>"
    )
    devices = (
        port(1, at(0, 2, 0))
        + port(2, at(1), "pcie-switch-upstream-port")
        + port(3, at(2, 3), "pcie-switch-downstream-port")
        + pxb
        + port(5, at(4, 1))
        + f"<controller type='usb' index='0' model='qemu-xhci'>{at(0, 29)}</controller>"
        + hostdev(NIC, at(5), "<driver name='vfio'/><alias name='hostdev0'/><rom bar='off'/>")
        + vf
        + pooled
        + "<interface type='bridge'><source bridge='br0'/><model type='virtio'/>"
        + at(0, 9)
        + "</interface><iommu model='intel'><driver intremap='on' eim='on'/></iommu>"
    )
    assert parsed(devices) == Hardware(
        ecam=(0xB000_0000,),
        bridges={1: Slot(0, 2, 0), 2: Slot(1, 0, 0), 3: Slot(2, 3, 0), 5: Slot(4, 1, 0)},
        roots={0: 0, 4: 180},
        slots={NIC: Slot(5, 0, 0), VF: Slot(3, 1, 0), POOLED: Slot(3, 2, 0)},
        iommu=Iommu.INTEL,
        ram=(range(1 << 20, 2 * GIB), range(4 * GIB, 10 * GIB)),
    )


def test_a_status_file_of_libvirt() -> None:
    text = f"<domstatus state='running'>{domain(hostdev(NIC, at(1, 2, 3)))}</domstatus>"
    assert parse_hardware(text).slots == {NIC: Slot(1, 2, 3)}


@pytest.mark.parametrize(
    "machine", ["q35", "pc-q35", "pc-q35-2.4", "pc-q35-10.0", "pc-q35-rhel9.4.0", "pc-q35-noble-v2"]
)
def test_machines_that_can_be_read(machine: str) -> None:
    assert parsed(system=f"<type arch='x86_64' machine='{machine}'>hvm</type>").ecam


@pytest.mark.parametrize(
    ("system", "why"),
    [
        ("<type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>", "its machine 'pc-i440fx-7.2'"),
        ("<type arch='x86_64' machine='pc'>hvm</type>", "its machine 'pc' has no configuration"),
        ("<type arch='x86_64' machine='microvm'>hvm</type>", "its machine 'microvm'"),
        ("<type arch='x86_64' machine='pc-q35-'>hvm</type>", "its machine 'pc-q35-'"),
        ("<type arch='x86_64' machine='xq35'>hvm</type>", "its machine 'xq35'"),
        ("<type arch='aarch64' machine='virt'>hvm</type>", "its architecture 'aarch64' is not x86"),
        ("<type>hvm</type>", "its architecture '' is not x86"),
        ("", "its architecture '' is not x86"),
    ],
)
def test_machines_that_cannot(system: str, why: str) -> None:
    with pytest.raises(UnavailableError, match=why):
        parsed(system=system)


@pytest.mark.parametrize(
    ("system", "ecam"),
    [
        (Q35, (0xB000_0000,)),
        (f"{Q35}<loader readonly='yes' type='rom'>/x/bios.bin</loader>", (0xB000_0000,)),
        (
            f"{Q35}<loader readonly='yes' type='pflash'>/x/OVMF.fd</loader>",
            (0xE000_0000, 0xB000_0000),
        ),
    ],
)
def test_where_the_firmware_has_the_configuration_space(system: str, ecam: tuple[int, ...]) -> None:
    assert parsed(system=system).ecam == ecam


def test_firmware_that_libvirt_chose() -> None:
    text = domain().replace("<os>", "<os firmware='efi'>")
    assert parse_hardware(text).ecam == (0xE000_0000, 0xB000_0000)


def test_what_is_not_on_a_bus_that_can_be_read() -> None:
    nowhere = (
        hostdev(NIC, "<address type='unassigned'/>")
        + hostdev(VF, at(1, domain=1))
        + hostdev(POOLED, "")
        + "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/></source></hostdev>"
        + port(1, at(0, 2, domain=1))
        + port(2, "")
        + "<controller type='pci' index='3' model='pcie-expander-bus'/>"
        + "<controller type='scsi' index='4' model='virtio-scsi'>"
        + at(0, 7)
        + "</controller>"
    )
    found = parsed(nowhere)
    assert (found.slots, found.bridges, found.roots) == ({}, {}, {0: 0})
    assert (found.iommu, parsed("<iommu model='virtio'/>").iommu) == (None, None)
    assert parsed("<iommu model='amd'/>").iommu is Iommu.AMD


@pytest.mark.parametrize(
    ("words", "iommu"),
    [
        (["-device", "amd-iommu,intremap=on"], Iommu.AMD),
        (["-device", "intremap=on,driver=amd-iommu"], Iommu.AMD),
        (["-device", "{&quot;driver&quot;:&quot;intel-iommu&quot;}"], Iommu.INTEL),
        (["-device", "virtio-iommu-pci"], None),
        (["-device", "vfio-pci,host=41:00.0", "-device", "amd-iommu"], Iommu.AMD),
        (["amd-iommu"], None),
    ],
)
def test_an_iommu_that_libvirt_knows_nothing_of(words: list[str], iommu: Iommu | None) -> None:
    """Else what it remaps would be read as if it named vCPUs itself."""
    arguments = "".join(f"<q:arg value='{each}'/>" for each in words)
    uri = "http://libvirt.org/schemas/domain/qemu/1.0"
    more = f"<q:commandline xmlns:q='{uri}'>{arguments}</q:commandline></domain>"
    assert parse_hardware(domain("").replace("</domain>", more)).iommu is iommu


@pytest.mark.parametrize("part", ["bus='0x100'", "slot='32'", "function='8'", "bus='x'"])
def test_an_address_that_is_none(part: str) -> None:
    with pytest.raises(DomainXmlError, match="address: "):
        parsed(hostdev(NIC, f"<address type='pci' {part}/>"))


LABEL: Final = "<label>libvirt-6f0b9be0</label>"


@pytest.mark.parametrize(
    ("label", "readable"),
    [
        (f"<seclabel type='dynamic' model='apparmor' relabel='yes'>{LABEL}</seclabel>", False),
        (f"<seclabel type='static' model='apparmor' relabel='yes'>{LABEL}</seclabel>", False),
        (f"<seclabel type='static' model='apparmor' relabel='no'>{LABEL}</seclabel>", True),
        ("<seclabel type='none' model='apparmor'/>", True),
        (f"<seclabel type='dynamic' model='selinux' relabel='yes'>{LABEL}</seclabel>", True),
        (f"<seclabel type='dynamic' model='dac' relabel='yes'>{LABEL}</seclabel>", True),
    ],
)
def test_a_profile_of_apparmors_is_not_made_longer(label: str, readable: bool) -> None:
    """As libvirt would for each peek."""
    text = domain().replace("</domain>", f"{label}</domain>")
    if readable:
        assert parse_hardware(text) == parse_hardware(domain())
        return
    with pytest.raises(UnavailableError, match="have libvirt extend its AppArmor profile"):
        parse_hardware(text)


# Memory -----------------------------------------------------------------------------------------

MIB: Final = 1 << 20
LAYOUTS: Final = {
    "nothing": (0, ()),
    "no more than what ROMs have": (MIB, ()),
    "a little": (64 * MIB, (range(MIB, 64 * MIB),)),
    "just below the limit": (0xB000_0000 - MIB, (range(MIB, 0xAFF0_0000),)),
    "at the limit it is parted": (
        0xB000_0000,
        (range(MIB, 2 * GIB), range(4 * GIB, 4 * GIB + 0x3000_0000)),
    ),
    "a lot": (512 * GIB, (range(MIB, 2 * GIB), range(4 * GIB, 514 * GIB))),
}


@pytest.mark.parametrize(("size", "ranges"), LAYOUTS.values(), ids=LAYOUTS)
def test_where_memory_is(size: int, ranges: tuple[range, ...]) -> None:
    assert q35_ram(size) == ranges
    assert parsed(memory=str(size >> 10)).ram == ranges


@given(st.integers(0, 1 << 45))
def test_all_memory_but_the_first_megabyte_is_somewhere(size: int) -> None:
    found = q35_ram(size)
    assert sum(each.stop - each.start for each in found) == max(0, size - MIB)
    for each in found:
        assert MIB <= each.start < each.stop
        assert each.stop <= 0xB000_0000 or each.start == 4 * GIB


DIMM: Final = (
    "<memory model='dimm'><target><size unit='KiB'>1048576</size><node>0</node></target></memory>"
)


def test_memory_that_is_plugged_in_does_not_count() -> None:
    """It is elsewhere, and shifts nothing: <memory> is the sum."""
    assert parsed(DIMM * 2, memory=str(10 << 20)).ram == q35_ram(8 * GIB)
    assert parsed(DIMM * 8, memory=str(8 << 20)).ram == ()
    assert parsed(DIMM * 9, memory=str(8 << 20)).ram == ()


def test_memory_that_is_not_known_is_none() -> None:
    no_size = domain().replace("<memory unit='KiB'>8388608</memory>", "")
    assert parse_hardware(no_size).ram == ()
    assert parse_hardware(domain().replace("unit='KiB'", "unit='GiB'")).ram == ()
    assert parsed(DIMM.replace("KiB", "MiB")).ram == ()
    with pytest.raises(DomainXmlError, match="<memory> 'much' is not a number"):
        parsed(memory="much")
    with pytest.raises(DomainXmlError, match="<memory> '9999999999999999' is more than"):
        parsed(memory="9999999999999999")


def test_amds_memory_may_be_above_a_terabyte() -> None:
    """Where anything would reach what HyperTransport has, QEMU moves all that is above 4 GiB."""
    low = (range(MIB, 2 * GIB),)
    amd = "<iommu model='amd'/>"
    assert parsed(amd, memory=str(900 << 20)).ram == q35_ram(900 * GIB)
    assert parsed(amd, memory=str(1000 << 20)).ram == low
    assert parsed(amd + DIMM * 200, memory=str(1000 << 20)).ram == low
    assert parsed("<iommu model='intel'/>", memory=str(1000 << 20)).ram == q35_ram(1000 * GIB)
