"""Records the host that `virtirq demo` shows: `python -m lab.record_demo`.

The quick lab's two-node machine runs with every device held through VFIO; `virtirq record`
records it there, with three guests: one on its devices' node, one on the wrong node, one whose
vCPUs are not pinned.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from . import quick
from .guest import held_devices
from .vfio import HeldDevice

_INSIDE = "--inside"
_NAME = "two-node.tar.xz"
_SHOTS = 20


def domain(name: str, pins: dict[int, str], vcpus: int, devices: list[str]) -> str:
    """Domain XML of a guest with these vCPU pins and host devices."""
    tune = "".join(f"<vcpupin vcpu='{vcpu}' cpuset='{cpus}'/>" for vcpu, cpus in pins.items())
    held = ""
    for device in devices:
        domain, bus, rest = device.split(":")
        slot, function = rest.split(".")
        held += (
            "<hostdev mode='subsystem' type='pci' managed='yes'><source>"
            f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
            "</source></hostdev>"
        )
    return (
        f"<domain type='kvm'><name>{name}</name><vcpu>{vcpus}</vcpu>"
        f"<cputune>{tune}</cputune><devices>{held}</devices></domain>"
    )


def guests(devices: list[HeldDevice]) -> dict[str, str]:
    """The guests' XML by name, from what the machine has."""
    on: dict[int, list[str]] = {}
    for device in devices:
        node = Path("/sys/bus/pci/devices", device.bdf, "numa_node").read_text()
        on.setdefault(int(node), []).append(device.bdf)
    (nic, disk, *vfs), (other_nic, other_disk), legacy = on[1], on[0], on[-1]
    return {
        "web": domain("web", {0: "4", 1: "5", 2: "6", 3: "7"}, 4, [nic, *vfs[:2]]),
        "db": domain("db", {0: "1", 1: "2", 2: "3"}, 3, [disk, *legacy]),
        "build": domain("build", {}, 2, [other_nic, other_disk]),
    }


def inside(results: Path) -> int:
    """In the lab."""
    virtirq = Path(sysconfig.get_path("scripts"), "virtirq")
    with held_devices() as devices, tempfile.TemporaryDirectory() as directory:
        for device in devices:
            _make_traffic(device)
        files: list[str] = []
        for name, text in guests(devices).items():
            file = Path(directory, f"{name}.xml")
            file.write_text(text)
            files += ["--domain", str(file)]
        return subprocess.call([virtirq, "record", "--keep-names", *files, str(results / _NAME)])


def _make_traffic(device: HeldDevice) -> None:
    """Interrupts on every vector, where a way to raise them is known."""
    try:
        for vector in range(device.vectors):
            for _ in range(_SHOTS):
                device.fire(vector)
                device.wait(vector)
    except NotImplementedError:
        return


def outside() -> int:
    """On this machine."""
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as results:
        command = [sys.executable, "-m", "lab.record_demo", _INSIDE, results]
        done = quick.run(
            quick.two_nodes(),
            command,
            cwd=root,
            timeout=600,
            writable=[Path(results)],
            stream=True,
        )
        if done.returncode == 0:
            shutil.copy(Path(results, _NAME), root / "src/virtirq/demo" / _NAME)
        return done.returncode


if __name__ == "__main__":
    sys.exit(inside(Path(sys.argv[2])) if sys.argv[1:2] == [_INSIDE] else outside())
