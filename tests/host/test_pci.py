"""PCI functions and their vectors."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostmaker import MadeDevice, MadeFs, MadeHost, MadeInterrupt, passthrough
from virtirq.cpuset import CpuSet
from virtirq.host.fs import Reader
from virtirq.host.pci import list_addresses, read_devices, read_intx_line, read_vectors
from virtirq.model import Gap, PciAddress, PciDevice

BASE = "/sys/bus/pci/devices"
NIC = PciAddress.parse("0000:82:00.0")
VMD = PciAddress.parse("10000:e1:00.0")
HOST = MadeHost(
    online="0-7",
    nodes={0: "0-3", 1: "4-7"},
    devices=(
        MadeDevice(
            str(NIC),
            vendor=0x15B3,
            device=0x1018,
            class_code=0x020700,
            node=1,
            iommu_group=42,
            physfn="0000:82:00.1",
        ),
        MadeDevice(str(VMD), node=-1, driver=None, class_code=0x010802),
        MadeDevice("0000:00:1f.3", node=None, driver="snd_hda_intel"),
    ),
)


def read(fs: MadeFs, *addresses: PciAddress) -> tuple[Mapping[PciAddress, PciDevice], list[Gap]]:
    reader = Reader(fs)
    return read_devices(reader, addresses), list(reader.gaps)


@pytest.mark.parametrize("symlinked", [False, True])
def test_devices(symlinked: bool) -> None:
    fs = replace(HOST, symlinked=symlinked).fs()
    reader = Reader(fs)
    addresses = list_addresses(reader)
    assert list(map(str, addresses)) == ["0000:00:1f.3", "0000:82:00.0", "10000:e1:00.0"]
    found = read_devices(reader, addresses)
    assert reader.gaps == ()
    assert found[NIC] == PciDevice(
        NIC,
        vendor=0x15B3,
        device=0x1018,
        class_code=0x020700,
        driver="vfio-pci",
        node=1,
        local_cpus=CpuSet.parse("4-7"),
        physfn=PciAddress.parse("0000:82:00.1"),
    )
    vmd = found[VMD]
    assert (vmd.node, vmd.driver, vmd.physfn) == (-1, None, None)
    assert vmd.local_cpus == CpuSet.parse("0-7")
    sound = found[addresses[0]]
    assert (sound.node, sound.driver) == (None, "snd_hda_intel")


def test_a_device_that_the_host_does_not_have() -> None:
    found, gaps = read(HOST.fs(), PciAddress.parse("0000:99:00.0"), NIC)
    assert list(found) == [NIC]
    assert gaps == []


def test_a_tree_without_pci_does_not_say_that_the_device_is_absent() -> None:
    found, gaps = read(MadeHost(foreign=True).fs(), NIC)
    assert found == {}
    assert gaps == [Gap(f"{BASE}/{NIC}", "not in this recording")]


def test_a_device_that_may_not_be_read() -> None:
    fs = HOST.fs()
    fs.faults[f"{BASE}/{NIC}"] = errno.EACCES
    found, gaps = read(fs, NIC)
    assert found == {}
    assert gaps == [Gap(f"{BASE}/{NIC}", os.strerror(errno.EACCES))]


def test_a_file_in_place_of_a_device() -> None:
    assert read(MadeHost(files={f"{BASE}/{NIC}": "x"}).fs(), NIC) == ({}, [])


@pytest.mark.parametrize("name", ["vendor", "device", "class", "numa_node", "irq"])
@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "0x", "0xg", "1_0", "1.5", "--1", "0b1", "٣", "1 2", "9" * 5000),
        *("0x" + "f" * 5000, "\x1b[2J", "-0x1", "0X10"),
    ],
)
def test_no_number(name: str, text: str) -> None:
    fs = HOST.fs()
    path = f"{BASE}/{NIC}/{name}"
    fs.set(path, text)
    reader = Reader(fs)
    found = read_devices(reader, [NIC])[NIC]
    line = read_intx_line(reader, NIC)
    fields = (found.vendor, found.device, found.class_code, found.node, line)
    assert fields[("vendor", "device", "class", "numa_node", "irq").index(name)] is None
    assert [gap.path for gap in reader.gaps] == [path]
    assert reader.gaps[0].error.isprintable()
    assert len(reader.gaps[0].error) < 80


def test_odd_names_are_told() -> None:
    fs = HOST.fs()
    for name in ("0000:82:00", "x", "..."):
        fs.set(f"{BASE}/{name}/vendor", "0x1")
    reader = Reader(fs)
    assert len(list_addresses(reader)) == 3
    assert {gap.path for gap in reader.gaps} == {f"{BASE}/{n}" for n in ("0000:82:00", "x", "...")}


def test_odd_links_are_not_known() -> None:
    links = {
        f"{BASE}/{NIC}/physfn": "../virtual",
        f"{BASE}/{NIC}/driver": "/",
    }
    found, gaps = read(replace(HOST, links=links).fs(), NIC)
    assert found[NIC].physfn is None
    assert not found[NIC].driver
    assert gaps == []


def test_local_cpus_malformed() -> None:
    fs = HOST.fs()
    fs.set(f"{BASE}/{NIC}/local_cpulist", "4-")
    found, gaps = read(fs, NIC)
    assert found[NIC].local_cpus is None
    assert [gap.path for gap in gaps] == [f"{BASE}/{NIC}/local_cpulist"]


def test_no_pci_at_all() -> None:
    reader = Reader(MadeHost(removed=("/sys/bus",)).fs())
    assert list_addresses(reader) == []
    assert reader.gaps == (Gap(BASE, os.strerror(errno.ENOENT)),)


class TestVectors:
    @pytest.mark.parametrize("old_msi", [False, True])
    @pytest.mark.parametrize("symlinked", [False, True])
    @pytest.mark.parametrize("kind", ["msi", "msix"])
    def test_modes(self, kind: str, symlinked: bool, old_msi: bool) -> None:
        device = passthrough(str(NIC), vectors=3, first_irq=40, kind=kind)
        host = MadeHost(devices=(device,), symlinked=symlinked, old_msi=old_msi)
        reader = Reader(host.fs())
        assert read_vectors(reader, NIC) == {40: kind, 41: kind, 42: kind}
        assert reader.gaps == ()

    def test_none(self) -> None:
        reader = Reader(HOST.fs())
        assert read_vectors(reader, NIC) == {}
        assert reader.gaps == ()

    def test_none_in_a_tree_of_someone_elses(self) -> None:
        reader = Reader(replace(HOST, foreign=True).fs())
        assert read_vectors(reader, NIC) == {}
        assert [gap.error for gap in reader.gaps] == ["not in this recording"]

    def test_what_cannot_be_told_is_not_made_up(self) -> None:
        fs = MadeHost(devices=(passthrough(str(NIC), kind="intx"),)).fs()
        for name, text in (("41", "msi-y"), ("42", ""), ("x", "msix"), ("-1", "msix")):
            fs.set(f"{BASE}/{NIC}/msi_irqs/{name}", text)
        fs.set(f"{BASE}/{NIC}/msi_irqs/43/other", "")
        assert read_vectors(Reader(fs), NIC) == {41: None, 42: None, 43: None}

    def test_one_that_tells_is_enough(self) -> None:
        fs = MadeHost(devices=(passthrough(str(NIC), vectors=200, first_irq=40),)).live()
        fs.set(f"{BASE}/{NIC}/msi_irqs/39", "")
        assert read_vectors(Reader(fs), NIC) == dict.fromkeys(range(39, 240), "msix")
        assert [name for operation, name in fs.calls if operation == "read"] == [
            f"{BASE}/{NIC}/msi_irqs/{irq}" for irq in (39, 40)
        ]

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
    def test_unreadable(self, number: int) -> None:
        fs = MadeHost(devices=(passthrough(str(NIC), vectors=2, first_irq=40),)).live()
        fs.faults["read", f"{BASE}/{NIC}/msi_irqs/40"] = number
        reader = Reader(fs)
        assert read_vectors(reader, NIC) == {40: "msix", 41: "msix"}
        assert not reader.gaps
        fs.faults["read", f"{BASE}/{NIC}/msi_irqs/41"] = number
        reader = Reader(fs)
        assert read_vectors(reader, NIC) == {40: None, 41: None}
        assert reader.gaps == (Gap(f"{BASE}/*/msi_irqs/*", os.strerror(number)),)
        fs.faults["listdir", f"{BASE}/{NIC}/msi_irqs"] = number
        reader = Reader(fs)
        assert read_vectors(reader, NIC) == {}
        assert reader.gaps == (Gap(f"{BASE}/{NIC}/msi_irqs", os.strerror(number)),)

    @pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
    def test_freed_between_listing_and_reading(self, number: int) -> None:
        fs = MadeHost(devices=(passthrough(str(NIC), vectors=3, first_irq=40),)).live()
        fs.faults["read", f"{BASE}/{NIC}/msi_irqs/40"] = number
        reader = Reader(fs)
        assert read_vectors(reader, NIC) == {41: "msix", 42: "msix"}
        assert reader.gaps == ()


@pytest.mark.parametrize(("text", "line"), [("0", None), ("16", 16), ("255", 255)])
def test_intx_line(text: str, line: int | None) -> None:
    fs = HOST.fs()
    fs.set(f"{BASE}/{NIC}/irq", text)
    reader = Reader(fs)
    assert read_intx_line(reader, NIC) == line
    assert reader.gaps == ()


numbers = st.integers(0, 0xFFFF)


@given(
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 255),
    numbers,
    numbers,
    st.integers(0, 0xFFFFFF),
    st.one_of(st.none(), st.integers(-1, 7)),
    st.booleans(),
)
def test_any_device_comes_back(
    domain: int,
    bus: int,
    vendor: int,
    device: int,
    class_code: int,
    node: int | None,
    symlinked: bool,
) -> None:
    address = PciAddress(domain, bus, 3, 1)
    made = MadeDevice(str(address), vendor, device, class_code, node, intx=MadeInterrupt(5))
    reader = Reader(MadeHost(devices=(made,), symlinked=symlinked).fs())
    found = read_devices(reader, list_addresses(reader))
    assert reader.gaps == ()
    told = found[address]
    assert (told.vendor, told.device, told.class_code) == (vendor, device, class_code)
    assert told.node == node
    assert read_intx_line(reader, address) == 5
