"""VFIO's interrupts of devices that are not PCI functions: found, so that they can be told of.

drivers/vfio/platform/vfio_platform_irq.c and drivers/vfio/fsl-mc/vfio_fsl_mc_intr.c name them
``vfio-irq[40](fff51000.ethernet)``, drivers/vfio/cdx/intr.c ``vfio-msi[0](cdx-00:00)``.
"""

from __future__ import annotations

import re
from typing import Final

from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.host.interrupts import handlers
from virtirq.model import VfioAction
from virtirq.values import pattern

_NAME: Final = pattern(r"vfio-(?:irq|msi)\[\d{1,10}\]\(([^\s()]{1,80})\)", re.ASCII)
_DRIVERS: Final = (
    ("platform", "vfio-platform"),
    ("amba", "vfio-amba"),
    ("fsl-mc", "vfio-fsl-mc"),
    ("cdx", "vfio-cdx"),
)
"""Those of the kernel's tree that hand out what is on another bus and has interrupts."""


def other_interrupts(fs: HostFs) -> dict[str, list[int]]:
    """The IRQ numbers that VFIO has set up of devices on other buses than PCI, by device.

    All of the host's interrupts are looked at, but only where there is a driver for such a device.
    """
    if fs.recording is None and not any(fs.isdir(paths.VFIO_DRIVER.at(*d)) for d in _DRIVERS):
        return {}
    found: dict[str, list[int]] = {}
    try:
        numbers = sorted(int(each) for each in fs.listdir(paths.IRQ_SYSFS_DIR) if each.isdecimal())
    except OSError:
        return {}
    for irq in numbers:
        for device in _devices(fs, irq):
            found.setdefault(device, []).append(irq)
    return dict(sorted(found.items()))


def _devices(fs: HostFs, irq: int) -> list[str]:
    try:
        names = handlers(fs, irq)
    except OSError:
        return []  # freed meanwhile
    matches = (_NAME.fullmatch(each) for each in names if VfioAction.parse(each) is None)
    return [match[1] for match in matches if match]
