"""What a process's open files say of the devices and vCPUs that it has.

A link ``/proc/PID/fd/N`` shows a file that has a path by its path, as its own mount namespace has
it, and one that has none by a name that the kernel gave it. A path is as good as whoever made it:
in a mount namespace of their own, users may put any file at ``/dev/vfio/42``. So

* a group (``/dev/vfio/42``, ``/dev/vfio/noiommu-42``; drivers/vfio/group.c, vfio_create_group())
  counts for a process that also has a device of VFIO's open, for which no path can stand:
  ``anon_inode:[vfio-device]`` (vfio_device_open_file()). As long as that is open nobody else can
  open the group (vfio_group_fops_open()).
* a device opened by its own name (``/dev/vfio/devices/vfio3``, since 6.6; device_cdev.c,
  vfio_device_devnode()) has a path only. Since 6.18 ``fdinfo`` tells the device of both kinds, by
  its path in sysfs (vfio_main.c, vfio_device_show_fdinfo()), and that is believed before all else.

A container (``/dev/vfio/vfio``) or an I/O address space (``/dev/iommu``) holds no device by itself.

The link is read, and nothing is asked of the file behind it: stat(2) on somebody's FUSE file waits
for that somebody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from virtirq.guests.processes.threads import text_of
from virtirq.guests.processes.values import sysfs_address
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import PciAddress

MOST_DESCRIPTORS: Final = 65536
"""A process with more open files is none that uses VFIO: QEMU has a few for each vector."""

# " (deleted)" is there once a container's /dev is gone, and a leading directory where it is below
# another root; a /dev that was unmounted itself is not in the path (fs/d_path.c, seen on 6.18).
_GROUP: Final = re.compile(r"(?:/.*)?/vfio/(?:noiommu-)?([0-9]{1,9})(?: \(deleted\))?", re.ASCII)
_CDEV: Final = re.compile(r"(?:/.*)?/vfio/devices/(vfio[0-9]{1,9})(?: \(deleted\))?", re.ASCII)
_DEVICE: Final = "anon_inode:[vfio-device"
# virt/kvm/kvm_main.c, create_vcpu_fd(); older kernels leave the number out
_VCPU: Final = re.compile(r"anon_inode:kvm-vcpu(?::[0-9]{1,9})?", re.ASCII)
# Files without a path whose name is the user's: mm/memfd.c, drivers/dma-buf/dma-buf.c
_NAMED_BY_USERS: Final = ("/memfd:", "/dmabuf:")
_SYSFS: Final = re.compile(r"^vfio-device-syspath:\s*(/\S+)$", re.MULTILINE | re.ASCII)


class Kind(Enum):
    """What is open: an IOMMU group, a device by its own name or through a group, or a vCPU."""

    GROUP = "group"
    CDEV = "cdev"
    DEVICE = "device"
    VCPU = "vcpu"


class Descriptor(NamedTuple):
    """An open file that means something here: `name` is the group's number or the device's name."""

    kind: Kind
    name: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """All that a process has open of VFIO and KVM.

    `devices` are those that the kernel told itself; `untold` counts devices opened through a group
    of which it did not.
    """

    groups: frozenset[int] = frozenset()
    cdevs: frozenset[str] = frozenset()
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
    """What these descriptors of the process hold.

    Raises PermissionError: root sees the names of another process's descriptors without
    CAP_SYS_PTRACE, but not what they are (fs/proc/base.c, proc_fd_access_allowed()).
    """
    groups: set[int] = set()
    cdevs: set[str] = set()
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
        elif found.kind is Kind.GROUP:
            groups.add(int(found.name))
        elif told := _SYSFS.search(text_of(fs, paths.DESCRIPTOR_INFO.at(pid, name)) or ""):
            address = sysfs_address(told[1])
            if address is not None:  # else it is no PCI function, and has no interrupt of its own
                devices.add(address)
        elif found.kind is Kind.CDEV:
            cdevs.add(found.name)
        else:
            untold += 1
    return Held(frozenset(groups), frozenset(cdevs), frozenset(devices), untold, vcpus)
