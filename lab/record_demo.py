"""Records the host that `virtirq demo` shows: `python -m lab.record_demo`.

The full lab's host runs three guests under libvirt with real VFIO devices: one pinned on its
devices' node, one pinned on the wrong node, one not pinned, with a device that uses INTx. They
make traffic, and `virtirq record` records the host there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import full
from .full import E1000E, IGB_VFS, GuestSpec, Host

_ROOT = Path(__file__).resolve().parents[1]
_NAME = "two-node.tar.xz"


def wheels(directory: Path, python: str) -> None:
    """virtirq's wheel and those of what it needs at run time, for that version of Python."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(directory), str(_ROOT)], check=True)
    (wheel,) = directory.glob("virtirq-*.whl")
    download = ["download", "--only-binary=:all:", "--python-version", python]
    subprocess.run([*pip, *download, "-d", str(directory), f"{wheel}[qmp]"], check=True)


def guests(host: Host) -> tuple[GuestSpec, ...]:
    """What runs on the host."""
    near, far = host.plug_nvme(1), host.plug_nvme(0)
    return (
        GuestSpec("web", pins=("4", "5", "6", "7"), hostdevs=(IGB_VFS[1][0], near)),
        GuestSpec("db", pins=("1", "2", "3"), hostdevs=(E1000E[1], far)),
        # This driver can be told not to use MSI.
        GuestSpec(
            "build",
            pins=("", ""),
            hostdevs=(E1000E[0], IGB_VFS[0][0]),
            kernel_args="e1000e.IntMode=0",
        ),
    )


@contextmanager
def demo_host() -> Iterator[Host]:
    """The host with virtirq installed, while its guests make traffic."""
    full.build()
    with tempfile.TemporaryDirectory() as directory, full.lab() as host, ExitStack() as running:
        wheels(Path(directory), host.python_version())
        host.install_wheels(Path(directory))
        for spec in guests(host):
            guest = running.enter_context(host.guest(spec))
            guest.traffic(2)
        yield host


def main() -> int:
    with demo_host() as host:
        print(host.run(["virtirq", "record", "--keep-names", f"/tmp/{_NAME}"]).stdout)
        host.get(f"/tmp/{_NAME}", _ROOT / "src/virtirq/demo" / _NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
