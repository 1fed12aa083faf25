"""A host in a namespace with what looks like a guest, whose NIC's interrupts are files.

`lab/boxes.py` and `lab/vmm.py` say how that is made.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Final

from lab import boxes
from tests.conftest import REPOSITORY
from tests.hostmaker import MadeHost, passthrough
from tests.needs import not_run

# As wide as those of the guest's CPUs are: a file is not made shorter by what is written to it.
ELSEWHERE: Final = "9"
NIC: Final = "0000:82:00.0"
VFIO: Final = "/dev/vfio/devices/vfio0"
AFFINITIES: Final = "cat /proc/irq/*/smp_affinity_list | paste -sd ' '"
FOUND: Final = f"{ELSEWHERE} {ELSEWHERE} {ELSEWHERE}\n"


def cpus() -> list[str]:
    """Two CPUs that a vCPU may really run on, one each."""
    able = [str(each) for each in sorted(os.sched_getaffinity(0)) if each < int(ELSEWHERE)]
    if len(able) < 2:
        not_run("the role with a guest: its two vCPUs need two CPUs with numbers below 9")
    return able[:2]


def pinned() -> str:
    """Its three vectors on the CPUs of its vCPUs in turn, as `AFFINITIES` prints them."""
    first, second = cpus()
    return f"{first} {second} {first}\n"


def made_host(root: Path) -> Path:
    """A host with a NIC by VFIO, whose three vectors are all on one CPU."""
    nic = passthrough(NIC, vectors=3, affinity=ELSEWHERE, effective="")
    real = f"../../devices/pci0000:80/{NIC}/vfio-dev/vfio0"
    links = {"/sys/class/vfio-dev/vfio0": real, "/sys/dev/char/1:3": real}  # /dev/null's number
    return MadeHost(
        online=f"0-{ELSEWHERE}", devices=[replace(nic, vfio_device=0)], links=links, foreign=True
    ).write(root)


def start_guest(box: boxes.Box) -> None:
    """What has the NIC open, its two vCPUs on a CPU each."""
    box.run(f"mkdir -p {Path(VFIO).parent}; touch {VFIO}; mount --bind /dev/null {VFIO}")
    box.run("cat > /opt/vmm.py", given=(REPOSITORY / "lab/vmm.py").read_text())
    words = f"python3 /opt/vmm.py {VFIO} {','.join(cpus())}"
    words += f" -name guest=web,debug-threads=on -device vfio-pci,host={NIC}"
    command = shlex.quote(f"exec -a qemu-system-x86_64 {words}")
    box.run(f"systemd-run --unit=guest bash -c {command}")
