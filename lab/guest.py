"""Inside the quick lab: give devices to vfio-pci, make VFs, and hold them all.

`python3 -m lab.guest [COMMAND ...]` sets the whole machine up as a host that runs VMs with
these devices would be, runs the command (default: a shell), and lets go again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from .vfio import HeldDevice, Mode

_PCI = Path("/sys/bus/pci")

E1000E, E1000, IGB, NVME = "8086:10d3", "8086:100e", "8086:10c9", "1b36:0010"
# How each kind is held; a VF is of the kind of its own device number, so igb's is another.
_MODES: dict[str, Mode] = {E1000E: "msix", E1000: "intx", NVME: "msix", "8086:10ca": "msix"}
_SRIOV_DRIVERS = {IGB: "igb", NVME: "nvme"}


def find(kind: str) -> list[str]:
    """Addresses of the devices with this vendor:device number."""
    return [path.name for path in sorted((_PCI / "devices").iterdir()) if kind_of(path) == kind]


def kind_of(device: Path) -> str:
    names = (device / name for name in ("vendor", "device"))
    return ":".join(path.read_text().strip().removeprefix("0x") for path in names)


def bind(bdf: str, driver: str = "vfio-pci") -> None:
    """Give a device to this driver, whoever has it now."""
    modprobe(driver)
    device = _PCI / "devices" / bdf
    if (device / "driver").exists():
        (device / "driver/unbind").write_text(bdf)
    (device / "driver_override").write_text(driver)
    (_PCI / "drivers_probe").write_text(bdf)
    if not (device / "driver").exists():
        raise OSError(f"{driver} did not take {bdf}")


@cache
def modprobe(driver: str) -> None:
    """Load a driver; without udev in the guest nothing is loaded by itself."""
    modules = [driver] if driver != "vfio-pci" else [driver, "vfio_iommu_type1"]
    subprocess.run(["modprobe", "--all", *modules], check=True)


def make_vfs(pf: str, count: int = 0) -> list[str]:
    """Create VFs that no driver takes; `count` of 0 stands for all the device can have."""
    device = _PCI / "devices" / pf
    bind(pf, _SRIOV_DRIVERS[kind_of(device)])
    total = int((device / "sriov_totalvfs").read_text())
    (device / "sriov_drivers_autoprobe").write_text("0")
    (device / "sriov_numvfs").write_text(str(count or total))
    return sorted(link.resolve().name for link in device.glob("virtfn*"))


def can_make_vfs(bdf: str) -> bool:
    return (_PCI / "devices" / bdf / "sriov_totalvfs").exists()


@contextmanager
def held_devices() -> Iterator[list[HeldDevice]]:
    """Everything this machine has to pass through, bound and armed, until the block ends."""
    known = [bdf for kind in (*_MODES, IGB) for bdf in find(kind)]
    physical = [bdf for bdf in known if can_make_vfs(bdf)]
    whole = [bdf for bdf in known if bdf not in physical]
    virtual = [vf for pf in physical for vf in make_vfs(pf)]
    with ExitStack() as stack:
        held = []
        for bdf in whole + virtual:
            bind(bdf)
            mode = _MODES[kind_of(_PCI / "devices" / bdf)]
            held.append(stack.enter_context(HeldDevice(bdf, mode)))
        yield held


def main(command: Sequence[str]) -> int:
    with held_devices():
        return subprocess.call(list(command) or ["bash"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
