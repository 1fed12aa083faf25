"""A made host over this machine's /proc/irq, /sys and /run, for this process and its children.

What runs in it is the product as it is installed: it opens the paths that it opens everywhere. The
files are tmpfs's, which is the harder case: opening one of procfs or sysfs takes the kernel longer,
so a program's own time weighs less there. A file of tmpfs is not truncated by a write, as one of
procfs is: every affinity of the tree is a CPU of three digits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.hostmaker import MadeHost, passthrough
from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.model import PciAddress

CPUS, NODES, FIRST = 512, 4, 100
ELSEWHERE = FIRST + CPUS - 1
"""Where every interrupt is before it is moved."""
_INSIDE = "VIRTIRQ_BENCH_INSIDE"
_COVERED = (
    *(paths.IRQ_DIR, paths.IRQ_SYSFS_DIR, paths.PCI_DIR, paths.CPU_DIR, paths.NODE_DIR),
    "/run",
)


def go_inside() -> None:
    """Run this program again in a mount namespace of its own, unless it is there."""
    if os.environ.get(_INSIDE):
        return
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    main = sys.modules["__main__"]
    spec = main.__spec__
    words = ["-m", spec.name.removesuffix(".__main__")] if spec else [str(main.__file__)]
    environment = os.environ | {_INSIDE: "1"}
    # What is installed is compiled already, and nobody's lines are written one by one to a file.
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
        environment.pop(name, None)
    command = ["unshare", *user, "--mount", "--propagation", "private", sys.executable, *words]
    os.execvpe("unshare", [*command, *sys.argv[1:]], environment)


class Tree:
    """A host with `guests` guests, each with one device of `vectors` vectors, in place."""

    def __init__(self, guests: int, vectors: int, *, masks: bool = False) -> None:
        """`masks`: with the files that hold hexadecimal masks, and what else peers read."""
        self.count = guests * vectors
        self._root = tempfile.mkdtemp(prefix="virtirq-bench-")
        _mount("-t", "tmpfs", "-o", "mode=755,nr_inodes=0,size=3g", "tmpfs", self._root)
        root = Path(self._root, "host")
        _host(guests, vectors, masks=masks).write(root)
        self.domains = []
        for number in range(guests):
            file = Path(self._root, f"{number}.xml")
            file.write_text(_domain(number))
            self.domains += ["--domain", str(file)]
        Path(root, "run").mkdir()
        for path in _COVERED:
            _mount("--bind", f"{root}{path}", path)
        Path("/run/irqbalance").mkdir()
        self.irqs = tuple(range(1000, 1000 + self.count))
        self._lists = [paths.IRQ_AFFINITY.at(irq) for irq in self.irqs]
        self._masks = [f"/proc/irq/{irq}/smp_affinity" for irq in self.irqs if masks]
        self._mask = CpuSet([ELSEWHERE]).mask()

    def reset(self) -> None:
        """Every interrupt as it was at first, and nothing in the journal."""
        for path in self._lists:
            descriptor = os.open(path, os.O_WRONLY)
            os.write(descriptor, f"{ELSEWHERE}".encode())
            os.close(descriptor)
        for path in self._masks:
            Path(path).write_text(f"{self._mask}\n")
        Path("/run/virtirq/journal.jsonl").unlink(missing_ok=True)

    def moved(self) -> int:
        """How many interrupts are not where they were at first."""
        left = {str(ELSEWHERE), self._mask}
        written = (Path(path).read_text().strip() not in left for path in self._lists)
        masked = (Path(path).read_text().strip() not in left for path in self._masks)
        return max(sum(written), sum(masked))

    def close(self) -> None:
        for path in (*reversed(_COVERED), self._root):
            uncover(path)
        os.rmdir(self._root)


def cover(path: str, other: str) -> None:
    """Have another file stand where one is."""
    _mount("--bind", other, path)


def uncover(path: str) -> None:
    subprocess.run(["umount", "--lazy", path], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def address_of(number: int) -> PciAddress:
    """The device of a guest."""
    return PciAddress(number >> 8, number & 0xFF, 0, 0)


def cpus_of(number: int) -> tuple[int, int]:
    """The CPUs of a guest's two vCPUs, on its device's node."""
    per_node = CPUS // NODES
    # The last two of a node are nobody's: there is where interrupts are at first.
    first = FIRST + number % NODES * per_node + (number // NODES * 2) % (per_node - 2)
    return first, first + 1


def _host(guests: int, vectors: int, *, masks: bool) -> MadeHost:
    """Interrupts have been taken by two CPUs each; without an effective affinity (not every
    kernel and controller has one) the written one counts as reached."""
    devices = []
    for number in range(guests):
        taken = dict.fromkeys((*cpus_of(number), ELSEWHERE), 12345)
        devices.append(
            passthrough(
                str(address_of(number)),
                vectors=vectors,
                first_irq=1000 + number * vectors,
                node=number % NODES,
                affinity=str(ELSEWHERE),
                effective="",
                counts=taken,
            )
        )
    per_node = CPUS // NODES
    nodes = {n: f"{FIRST + n * per_node}-{FIRST + (n + 1) * per_node - 1}" for n in range(NODES)}
    # A handler's directory, as procfs has it.
    handlers = {
        f"/proc/irq/{each.irq}/{each.actions[0]}/here": ""
        for device in devices
        for each in device.vectors
    }
    if masks:
        for number in range(guests):
            at = f"{paths.PCI_DIR}/{address_of(number)}"
            for name in ("subsystem_vendor", "subsystem_device", "revision"):
                handlers[f"{at}/{name}"] = "0x0"
            handlers[f"{at}/local_cpus"] = CpuSet.parse(nodes[number % NODES]).mask()
    return MadeHost(
        online=f"{FIRST}-{FIRST + CPUS - 1}",
        nodes=nodes,
        packages=tuple(nodes.values()),
        siblings=[f"{cpu},{cpu + 1}" for cpu in range(FIRST, FIRST + CPUS, 2)],
        devices=devices,
        files=handlers,
        masks=masks,
    )


def _domain(number: int) -> str:
    at = address_of(number)
    one, other = cpus_of(number)
    return f"""
<domain type='kvm' id='{number + 1}'>
  <name>guest{number:03d}</name>
  <uuid>6b1f1a8e-0000-4000-8000-{number:012x}</uuid>
  <vcpu>2</vcpu>
  <cputune>
    <vcpupin vcpu='0' cpuset='{one}'/>
    <vcpupin vcpu='1' cpuset='{other}'/>
  </cputune>
  <devices>
    <hostdev mode='subsystem' type='pci' managed='yes'>
      <source>
        <address domain='{at.domain}' bus='{at.bus:#04x}' slot='{at.slot:#04x}' function='0x0'/>
      </source>
    </hostdev>
  </devices>
</domain>
"""
