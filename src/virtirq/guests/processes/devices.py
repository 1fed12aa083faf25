"""PCI functions that a VFIO driver has on this host, by the ways in which processes hold them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from virtirq.errors import InputError
from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.model import PciAddress
from virtirq.values import dataclass, field, pattern

# The link leads to PCI-FUNCTION/vfio-dev/vfioN; that of a mediated device has a UUID before it.
_OF_PCI: Final = pattern(r"/([0-9a-f]{4,8}(?::[0-9a-f]{2}){2}\.[0-7])/vfio-dev/[^/]+", re.ASCII)
_GROUP: Final = pattern("[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, slots=True)
class VfioDevices:
    """`groups` by the number of the IOMMU group.

    `opened` are those that some process has open: VFIO enables a function when it is opened and
    disables it when it is closed (drivers/vfio/pci/vfio_pci_core.c, vfio_pci_core_enable() and
    _disable(); drivers/pci/pci-sysfs.c, enable_show()). One that an earlier driver left enabled is
    among them too, and so is one of which this is not known. It has no interrupts as long as nobody
    opens it.
    """

    groups: Mapping[int, frozenset[PciAddress]] = field(default_factory=dict)
    opened: frozenset[PciAddress] = frozenset()

    def in_groups(self, groups: frozenset[int]) -> frozenset[PciAddress]:
        """The functions in these groups that VFIO has.

        The others there are no process's: VFIO gives a group away only while no driver of the
        host's uses any function of it.
        """
        return frozenset().union(*(self.groups.get(group, frozenset()) for group in groups))


def read_vfio(reader: Reader) -> VfioDevices:
    """The functions that a VFIO driver has; none where the kernel has no VFIO."""
    bound = set(_named(reader)) or set(_bound(reader))
    groups: dict[int, set[PciAddress]] = {}
    for address in bound:
        match = _GROUP.fullmatch(reader.link(paths.PCI_IOMMU_GROUP, address) or "")
        if match is not None:
            groups.setdefault(int(match[0]), set()).add(address)
    return VfioDevices(
        {group: frozenset(them) for group, them in sorted(groups.items())},
        frozenset(each for each in bound if reader.text(paths.PCI_ENABLE, each) != "0"),
    )


def _named(reader: Reader) -> Iterator[PciAddress]:
    """Every device of VFIO has a name since 6.1, whether it can be opened by it or not.

    Linux kernel commit 3c28a76124b2 ("vfio: Add struct device to vfio_device").
    """
    for name in sorted(reader.names(paths.VFIO_DEVICE_DIR, paths.VFIO_DEVICE)):
        where = paths.VFIO_DEVICE.at(name)
        try:
            match = _OF_PCI.search(reader.fs.readlink(where))
        except OSError as error:
            reader.failed(paths.VFIO_DEVICE, where, error)
            continue
        if match is not None:
            yield PciAddress.parse(match[1])


def _bound(reader: Reader) -> Iterator[PciAddress]:
    """Before 6.1: by the driver's name, such as vfio-pci or mlx5_vfio_pci (drivers/vfio/pci)."""
    for name in reader.names(paths.PCI_DIR, paths.PCI_DRIVER):
        try:
            address = PciAddress.parse(name)
        except InputError:
            continue
        if "vfio" in (reader.link(paths.PCI_DRIVER, name) or ""):
            yield address
