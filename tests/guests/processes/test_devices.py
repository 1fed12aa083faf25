"""Functions that VFIO has: with names of their own since 6.1, by their drivers before."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.hostmaker import MadeDevice, MadeHost
from virtirq.guests.processes.devices import VfioDevices, read_vfio
from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.model import Gap, PciAddress

A, B, C = "0000:41:00.0", "0000:41:00.1", "0000:42:00.0"
ADDRESS = {each: PciAddress.parse(each) for each in (A, B, C)}
ENABLED = {paths.PCI_ENABLE.at(A): "1", paths.PCI_ENABLE.at(B): "0", paths.PCI_ENABLE.at(C): "2"}
NEW = MadeHost(
    devices=(
        MadeDevice(A, iommu_group=7),
        MadeDevice(B, iommu_group=7),
        MadeDevice(C, iommu_group=9, driver="mlx5_vfio_pci"),
    ),
    links={
        "/sys/class/vfio-dev/vfio0": f"../../devices/pci0000:40/{A}/vfio-dev/vfio0",
        "/sys/class/vfio-dev/vfio1": f"../../devices/pci0000:40/{B}/vfio-dev/vfio1",
        "/sys/class/vfio-dev/vfio2": f"../../devices/pci0000:40/0000:40:03.0/{C}/vfio-dev/vfio2",
        "/sys/class/vfio-dev/vfio3": (
            f"../../devices/pci0000:40/{C}/6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11/vfio-dev/vfio3"
        ),
        "/sys/class/vfio-dev/vfio4": "../../devices/platform/fff51000.ethernet/vfio-dev/vfio4",
    },
    files=ENABLED,
)
OLD = replace(
    NEW,
    devices=(*NEW.devices, MadeDevice("0000:43:00.0", driver="nvme", iommu_group=7)),
    links={"/sys/bus/pci/devices/odd/driver": "../../../bus/pci/drivers/vfio-pci"},
)
GROUPS = {7: frozenset({ADDRESS[A], ADDRESS[B]}), 9: frozenset({ADDRESS[C]})}
OPENED = frozenset({ADDRESS[A], ADDRESS[C]})


def test_by_name() -> None:
    reader = Reader(NEW.live())
    assert read_vfio(reader) == VfioDevices(GROUPS, OPENED)
    assert reader.gaps == ()


def test_by_driver() -> None:
    reader = Reader(OLD.live())
    assert read_vfio(reader) == VfioDevices(GROUPS, OPENED)
    assert reader.gaps == ()


def test_no_vfio() -> None:
    reader = Reader(MadeHost().live())
    assert read_vfio(reader) == VfioDevices()
    assert reader.gaps == ()


def test_what_may_be_open_counts_as_open() -> None:
    fs = NEW.live()
    fs.faults[paths.PCI_ENABLE.at(B)] = errno.EIO
    reader = Reader(fs)
    assert read_vfio(reader).opened == set(ADDRESS.values())
    assert [gap.path for gap in reader.gaps] == [paths.PCI_ENABLE.at(B)]


@pytest.mark.parametrize("where", ["/sys/class/vfio-dev", "/sys/class/vfio-dev/vfio0"])
def test_what_cannot_be_read_is_a_gap(where: str) -> None:
    fs = NEW.live()
    fs.faults[where] = errno.EACCES
    reader = Reader(fs)
    read_vfio(reader)
    assert reader.gaps == (Gap(where, "Permission denied"),)


def test_in_groups() -> None:
    vfio = VfioDevices(GROUPS)
    assert vfio.in_groups(frozenset({9, 10})) == {ADDRESS[C]}
    assert vfio.in_groups(frozenset()) == frozenset()
