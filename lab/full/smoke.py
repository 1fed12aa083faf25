"""The whole chain once, and how long each step took."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import E1000E, IGB_VFS, GuestSpec, Host, LabError, lab
from .host import Vector


def smoke() -> None:
    """Resume; a pinned guest with three real devices; its counters grow; all is given back."""
    begin = time.monotonic()
    with lab() as host:
        _said("machine resumed", begin)
        with _step("NVMe plugged in"):
            nvme = host.plug_nvme(1)
        devices = (E1000E[1], IGB_VFS[1][0], nvme)
        begin = time.monotonic()
        with host.guest(GuestSpec(pins=("4", "5"), hostdevs=devices)) as guest:
            _said("guest ready", begin)
            with _step("traffic"):
                before = host.vectors()
                guest.traffic(2)
                after = host.vectors()
            for device in devices:
                _grew(device, before, after)
            _show(after)
            with _step("guest's driver reloaded"):
                guest.reload("e1000e")
            begin = time.monotonic()
        _said("guest destroyed", begin)
        _given_back(host, devices)
        begin = time.monotonic()
    _said("machine gone", begin)


def _grew(device: str, before: list[Vector], after: list[Vector]) -> None:
    was, now = (
        sum(vector.total for vector in vectors if device in vector.actions)
        for vectors in (before, after)
    )
    if now <= was:
        raise LabError(f"{device}: traffic, but no interrupts: {was} before, {now} after")


def _given_back(host: Host, devices: tuple[str, ...]) -> None:
    if host.vectors():
        raise LabError(f"vectors are left over: {host.vectors()}")
    for device in devices:
        link = f"/sys/bus/pci/devices/{device}/driver"
        driver = host.run(f"basename $(readlink {link}) || true").stdout.strip()
        if driver == "vfio-pci":
            raise LabError(f"{device} is still bound to vfio-pci")


def _show(vectors: list[Vector]) -> None:
    for v in vectors:
        counts = " ".join(map(str, v.counts))
        print(f"  {v.irq:4} {v.actions:30} on {v.affinity:6} really {v.effective:3} {counts}")


@contextmanager
def _step(name: str) -> Iterator[None]:
    begin = time.monotonic()
    yield
    _said(name, begin)


def _said(name: str, begin: float) -> None:
    print(f"{name}: {time.monotonic() - begin:.1f} s", file=sys.stderr)
