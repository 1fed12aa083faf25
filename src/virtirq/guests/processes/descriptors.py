"""What a process's open files say of the devices and vCPUs that it has.

A link ``/proc/PID/fd/N`` shows a file that has a path by its path, as its own mount namespace has
it, and one that has none by a name that the kernel gave it. A path is as good as whoever made it:
users may put any file at ``/home/me/vfio/devices/vfio3``, and in a mount namespace of their own at
``/dev/vfio/42``. So a path only says which files are worth a look; what counts is the number of the
device that was really opened:

* a group (``/dev/vfio/42``, ``/dev/vfio/noiommu-42``; drivers/vfio/group.c, vfio_create_group())
  counts for a process that also has a device of VFIO's open, for which no path can stand:
  ``anon_inode:[vfio-device]`` (vfio_device_open_file()). As long as that is open nobody else can
  open the group (vfio_group_fops_open()).
* a device may be opened by its own name (``/dev/vfio/devices/vfio3``, since 6.6; device_cdev.c,
  vfio_device_devnode()). That takes the permission to, and holds nothing before it is bound.
* since 6.18 ``fdinfo`` tells the device of ``[vfio-device]``, by its path in sysfs (vfio_main.c,
  vfio_device_show_fdinfo()).

Who may not open a file can still have a descriptor of it, by O_PATH: ``fdinfo`` tells. As link,
``fdinfo`` and file are asked for one after the other, and a descriptor may become another file in
between, the two that matter have to name the same inode.

A container (``/dev/vfio/vfio``) or an I/O address space (``/dev/iommu``) holds no device by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Final, NamedTuple

from virtirq.guests.processes.threads import text_of
from virtirq.guests.processes.values import sysfs_address
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import PciAddress
from virtirq.values import dataclass, pattern

MOST_DESCRIPTORS: Final = 65536
"""A process with more open files is none that uses VFIO: QEMU has a few for each vector."""

# " (deleted)" is there once a container's /dev is gone, and a leading directory where it is below
# another root; a /dev that was unmounted itself is not in the path (fs/d_path.c, seen on 6.18).
_GROUP: Final = pattern(r"(?:/.*)?/vfio/(?:noiommu-)?([0-9]{1,9})(?: \(deleted\))?", re.ASCII)
_CDEV: Final = pattern(r"(?:/.*)?/vfio/devices/(vfio[0-9]{1,9})(?: \(deleted\))?", re.ASCII)
_DEVICE: Final = "anon_inode:[vfio-device"
# virt/kvm/kvm_main.c, create_vcpu_fd(); older kernels leave the number out
_VCPU: Final = pattern(r"anon_inode:kvm-vcpu(?::[0-9]{1,9})?", re.ASCII)
# Files without a path whose name is the user's: mm/memfd.c, drivers/dma-buf/dma-buf.c
_NAMED_BY_USERS: Final = ("/memfd:", "/dmabuf:")
# The link leads to PCI-FUNCTION/vfio-dev/vfioN; that of a mediated device has a UUID before it.
_CDEV_OF_PCI: Final = pattern(
    r"/([0-9a-f]{4,8}(?::[0-9a-f]{2}){2}\.[0-7])/vfio-dev/vfio[0-9]+", re.ASCII
)
_GROUP_NODE: Final = pattern(r"/virtual/vfio/(?:noiommu-)?([0-9]{1,9})", re.ASCII)
_O_PATH: Final = 0o10000000  # include/uapi/asm-generic/fcntl.h; x86 and arm64 have no other
# What the kernel says of every file (fs/proc/fd.c, seq_show()). What comes below is the file's own,
# and users' words may be among it: a dma-buf's name, of 31 characters and line feeds, too
# (drivers/dma-buf/dma-buf.c, dma_buf_set_name()). No path of a device in sysfs fits into that.
_INFO: Final = pattern(
    r"pos:\t-?[0-9]+\nflags:\t([0-7]{1,20})\nmnt_id:\t([0-9]{1,20})(?:\nino:\t([0-9]{1,20}))?(?:\n|$)",
    re.ASCII,
)
_SYSFS: Final = pattern(r"^vfio-device-syspath: (/sys/devices/\S+)$", re.MULTILINE | re.ASCII)


class Kind(Enum):
    """What is open: an IOMMU group, a device by its own name or through a group, or a vCPU."""

    GROUP = "group"
    CDEV = "cdev"
    DEVICE = "device"
    VCPU = "vcpu"


class Descriptor(NamedTuple):
    """An open file that means something here: `name` is the group's number or the device's name.

    Of a group and of a device by its own name it is what the path says, which proves nothing.
    """

    kind: Kind
    name: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """All that a process has open of VFIO and KVM.

    `devices` are those that the kernel told itself; `untold` counts devices opened through a group
    of which it did not. `cdevs` were opened by their own names.
    """

    groups: frozenset[int] = frozenset()
    cdevs: frozenset[PciAddress] = frozenset()
    devices: frozenset[PciAddress] = frozenset()
    untold: int = 0
    vcpus: int = 0

    @property
    def any_device(self) -> bool:
        """Whether it has a device open, or what may be one."""
        return bool(self.cdevs or self.devices or self.untold)

    def __or__(self, other: Held) -> Held:
        return Held(
            self.groups | other.groups,
            self.cdevs | other.cdevs,
            self.devices | other.devices,
            self.untold + other.untold,
            self.vcpus + other.vcpus,
        )


def classify(link: str) -> Descriptor | None:
    """What a descriptor's link shows, None for anything that has no part in this."""
    if link.startswith("anon_inode:"):
        if link.startswith(_DEVICE):
            return Descriptor(Kind.DEVICE)
        return Descriptor(Kind.VCPU) if _VCPU.fullmatch(link) else None
    if "/vfio/" not in link or link.startswith(_NAMED_BY_USERS):
        return None
    if match := _GROUP.fullmatch(link):
        return Descriptor(Kind.GROUP, match[1])
    match = _CDEV.fullmatch(link)
    return Descriptor(Kind.CDEV, match[1]) if match else None


def descriptors(fs: HostFs, pid: int) -> list[str]:
    """The process's descriptors. Raises OSError: it has ended, or they are not to be seen."""
    return fs.first(f"{paths.PROC_DIR}/{pid}/fd", MOST_DESCRIPTORS + 1)


def read_descriptors(fs: HostFs, pid: int, names: Iterable[str]) -> Held:
    """What these descriptors hold. Raises PermissionError where they are not to be seen."""
    groups: set[int] = set()
    cdevs: set[PciAddress] = set()
    devices: set[PciAddress] = set()
    untold = vcpus = 0
    directory = paths.PROCESS_DESCRIPTOR.at(pid, "")
    for name in names:
        try:
            found = classify(fs.readlink(directory + name))
        except PermissionError:
            raise
        except OSError:
            continue  # closed meanwhile
        if found is None:
            continue
        if found.kind is Kind.VCPU:
            vcpus += 1
        elif found.kind is Kind.DEVICE:
            told = _SYSFS.search(text_of(fs, paths.DESCRIPTOR_INFO.at(pid, name)) or "")
            address = sysfs_address(told[1]) if told else None
            if address is not None:
                devices.add(address)
            elif told is None:  # else it is no PCI function, and has no interrupt of its own
                untold += 1
        else:
            where = _device_of(fs, pid, name)
            if match := _CDEV_OF_PCI.search(where):
                cdevs.add(PciAddress.parse(match[1]))
            elif match := _GROUP_NODE.search(where):
                groups.add(int(match[1]))
    return Held(frozenset(groups), frozenset(cdevs), frozenset(devices), untold, vcpus)


def _device_of(fs: HostFs, pid: int, name: str) -> str:
    """Where sysfs has the character device that a descriptor really has open; empty for none."""
    told = _INFO.match(text_of(fs, paths.DESCRIPTOR_INFO.at(pid, name)) or "")
    if told is None or int(told[1], 8) & _O_PATH:
        return ""
    try:
        file = fs.file_id(paths.PROCESS_DESCRIPTOR.at(pid, name))
        if file.device is None or told[2] != str(file.mount):
            return ""
        if told[3] not in (None, str(file.ino)):  # it is there since 5.14
            return ""
        return fs.readlink(paths.CHAR_DEVICE.at(file.device))
    except OSError:
        return ""


def has_vcpus(fs: HostFs, pid: int) -> bool:
    """Whether the process has a vCPU of KVM. Raises OSError: it has ended, or that is hidden."""
    directory = paths.PROCESS_DESCRIPTOR.at(pid, "")
    for name in descriptors(fs, pid):
        try:
            if _VCPU.fullmatch(fs.readlink(directory + name)):
                return True
        except PermissionError:
            raise
        except OSError:
            continue  # closed meanwhile
    return False
