"""PCI functions from sysfs (Documentation/ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Iterable
from typing import Final

from virtirq.errors import InputError
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.model import PciAddress, PciDevice
from virtirq.values import pattern

# The link leads to PCI-FUNCTION/vfio-dev/vfioN; that of a mediated device has a UUID before it.
_OF_PCI: Final = pattern(r"/([0-9a-f]{4,8}(?::[0-9a-f]{2}){2}\.[0-7])/vfio-dev/[^/]+", re.ASCII)


def list_addresses(reader: Reader) -> list[PciAddress]:
    """Every PCI function of the host, in order."""
    found = []
    for name in reader.names(paths.PCI_DIR, paths.PCI_VENDOR):
        try:
            found.append(PciAddress.parse(name))
        except InputError as error:
            reader.malformed(paths.PCI_VENDOR, f"{paths.PCI_DIR}/{name}", error)
    return sorted(found)


def read_devices(reader: Reader, addresses: Iterable[PciAddress]) -> dict[PciAddress, PciDevice]:
    """The functions at `addresses`; those that the host does not have are left out."""
    found = {}
    for address in addresses:
        where = f"{paths.PCI_DIR}/{address}"
        try:
            if stat.S_ISDIR(reader.fs.mode(where)):
                found[address] = _read_device(reader, address)
        except OSError as error:
            reader.failed(paths.PCI_VENDOR, where, error, optional=True)
    return found


def vfio_functions(fs: HostFs) -> set[PciAddress]:
    """The functions that a VFIO driver has, as far as that can be told: none where it cannot."""
    found: set[PciAddress] = set()
    try:
        if fs.recording is None and (names := fs.listdir(paths.VFIO_DEVICE_DIR)):
            links = (fs.readlink(paths.VFIO_DEVICE.at(name)) for name in names)
            return {PciAddress.parse(match[1]) for link in links if (match := _OF_PCI.search(link))}
    except OSError:
        pass  # a kernel before 6.1, or a device that went meanwhile
    try:
        names = fs.listdir(paths.PCI_DIR)
    except OSError:
        return found
    for name in names:
        address = _address(name)
        try:
            driver = fs.readlink(paths.PCI_DRIVER.at(name))
        except OSError:
            continue  # it has none
        vfio = "vfio" in driver.rpartition("/")[2] or fs.isdir(f"{paths.PCI_DIR}/{name}/vfio-dev")
        if address is not None and vfio:
            found.add(address)
    return found


def read_vectors(reader: Reader, address: PciAddress) -> dict[int, str | None]:
    """The function's MSI or MSI-X interrupts: IRQ number to ``msi`` or ``msix``, in order.

    The first that tells is asked: a function has the one or the other enabled, never both
    (drivers/pci/msi/msi.c, __pci_enable_msi_range(), __pci_enable_msix_range()). The mode is None
    where it cannot be told. Vectors come and go as the guest's driver pleases; what is asked and
    went meanwhile is left out.
    """
    directory = f"{paths.PCI_DIR}/{address}/msi_irqs"
    names = reader.names(directory, paths.PCI_MSI_IRQ)
    numbers = sorted(int(name) for name in names if name.isdecimal())
    mark, gone = reader.mark(), set()
    mode = None
    for irq in numbers:
        try:
            mode = _read_mode(reader.fs, address, irq)
        except OSError as error:
            # ENOENT or ENODEV (fs/kernfs/file.c, kernfs_seq_start()) of a vector freed meanwhile;
            # in a recording of a kernel before 3.14 only the name may be left.
            if reader.fs.recording is None and error.errno in (errno.ENOENT, errno.ENODEV):
                gone.add(irq)
            else:
                where = paths.PCI_MSI_IRQ.at(address, irq)
                reader.failed(paths.PCI_MSI_IRQ, where, error)
        if mode is not None:
            reader.back_to(mark)
            break
    return {irq: mode for irq in numbers if irq not in gone}


def _read_mode(fs: HostFs, address: PciAddress, irq: int) -> str | None:
    """``msi`` or ``msix``, None for what is neither. Raises OSError."""
    try:
        mode = fs.read(paths.PCI_MSI_IRQ.at(address, irq))
    except IsADirectoryError:  # before 3.14
        mode = fs.read(paths.PCI_MSI_MODE.at(address, irq))
    return mode if mode in ("msi", "msix") else None


def _read_device(reader: Reader, address: PciAddress) -> PciDevice:
    physfn = reader.link(paths.PCI_PHYSFN, address)
    return PciDevice(
        address=address,
        vendor=reader.number(paths.PCI_VENDOR, address),
        device=reader.number(paths.PCI_DEVICE, address),
        class_code=reader.number(paths.PCI_CLASS, address),
        driver=reader.link(paths.PCI_DRIVER, address),
        node=reader.number(paths.PCI_NODE, address),
        local_cpus=reader.cpus(paths.PCI_LOCAL_CPUS, address),
        physfn=_address(physfn),
        vfio_device=_has_vfio_device(reader, address),
    )


def _has_vfio_device(reader: Reader, address: PciAddress) -> bool:
    """Whether a VFIO driver, whatever it is called, has the function."""
    try:
        return bool(reader.fs.listdir(f"{paths.PCI_DIR}/{address}/vfio-dev"))
    except OSError:
        return False  # or a kernel before 6.1: then the driver's name tells


def _address(name: str | None) -> PciAddress | None:
    try:
        return PciAddress.parse(name) if name else None
    except InputError:
        return None


def read_intx_line(reader: Reader, address: PciAddress) -> int | None:
    """The IRQ of the function's INTx pin, None when it has none or it cannot be read.

    With plain MSI the file gives the first vector's IRQ instead, with MSI-X still the INTx line
    (drivers/pci/pci-sysfs.c, irq_show()).
    """
    return reader.number(paths.PCI_IRQ, address) or None
