"""A whole virtualisation host inside QEMU, for tests and for looking around.

    with full.lab() as host:
        spec = full.GuestSpec(pins=("4", "5"), hostdevs=(full.E1000E[1],))
        with host.guest(spec) as guest:
            guest.traffic()
            print(host.vectors())

The first use builds an image and boots it; later ones resume a snapshot in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from . import cache, snapshots
from .errors import AgentError, BootError, BuildError, CommandError, GuestError, LabError
from .guest import LIVE_GUEST, Guest, GuestSpec, hostdev_xml
from .host import Host, Job, Result, Vector
from .machine import E1000E, IGB, IGB_VFS, NVME, VIRTIO, Machine
from .snapshots import Parts

__all__ = [
    "E1000E",
    "IGB",
    "IGB_VFS",
    "LIVE_GUEST",
    "NVME",
    "VIRTIO",
    "AgentError",
    "BootError",
    "BuildError",
    "CommandError",
    "Guest",
    "GuestError",
    "GuestSpec",
    "Host",
    "Job",
    "LabError",
    "Machine",
    "Result",
    "Start",
    "Vector",
    "build",
    "hostdev_xml",
    "lab",
]

Start = Literal["booted", "guest", "cold"]


@contextmanager
def lab(start: Start = "booted", machine: Machine | None = None) -> Iterator[Host]:
    """A host of your own, gone with all you did to it at the end of the block.

    "booted" resumes it with libvirt up and no guest; "guest" with `LIVE_GUEST` running
    (`host.live_guest()`); "cold" boots it, for what must be seen from the start.
    """
    form = machine or Machine()
    parts = Parts.ensure()
    with cache.scratch() as scratch:
        if start == "cold":
            running = snapshots.boot(parts, form, scratch)
        else:
            take = snapshots.booted if start == "booted" else snapshots.with_guest
            running = snapshots.resume(parts, form, take(parts, form), scratch)
        with running as host:
            if start == "guest":
                Guest(host, LIVE_GUEST).virsh("resume")
            yield host


def build() -> None:
    """Make everything that `lab` would make on its first use."""
    snapshots.with_guest(Parts.ensure(), Machine())
