"""How many system calls an interrupt costs, counted by strace on files of a made host."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hostmaker import MadeHost, passthrough
from tests.needs import need_program

DEVICE = "0000:41:00.0"
VECTORS = 128
LIMIT = 12
"""To move one: the look, the write, and what came of it."""
READING = 10
COUNTING = 13
"""To read one, and how often it was taken."""
HOST = MadeHost(
    online="0-7",
    siblings=(),
    devices=(passthrough(DEVICE, vectors=VECTORS, first_irq=100, affinity="4-7", effective="5"),),
    # A handler's directory, as procfs has it.
    files={
        f"/proc/irq/{100 + vector}/vfio-msix[{vector}]({DEVICE})/here": ""
        for vector in range(VECTORS)
    },
)
# The written values are as long as those before: a plain file is not truncated by a write.
MOVER = f"""
import os, sys
from pathlib import Path
from tests.hostmaker import RootedFs
from virtirq.control.executor import Executor
from virtirq.control.journal import locked_journal
from virtirq.cpuset import CpuSet
from virtirq.model import InterruptKey, PciAddress, Pin, Reason

root = Path(sys.argv[1])
device, after = PciAddress.parse({DEVICE!r}), CpuSet.parse("5-6")
pins = tuple(
    Pin(100 + v, InterruptKey(device, f"vfio-msix[{{v}}]({DEVICE})"), "web", None, after,
        Reason("wrong-cpu", "to where it belongs"))
    for v in range({VECTORS})
)
with locked_journal(root / "state", "b") as journal:
    executor = Executor(RootedFs(root), journal)
    executor.run(pins[:1])
    os.access("/begin", os.F_OK)
    outcomes = executor.run(pins[1:])
    os.access("/end", os.F_OK)
    known = {{str(each.original) for each in journal.remembered()}}
assert {{each.status.value for each in outcomes}} == {{"applied"}}, outcomes[0]
assert len(journal.remembered()) == {VECTORS} and known == {{"4-7"}}
"""
READER = f"""
import os, sys
from pathlib import Path
from tests.hostmaker import RootedFs
from virtirq.control.cycle import observe
from virtirq.cpuset import CpuSet
from virtirq.model import Guest, GuestDevice, PciAddress, Vcpu

fs = RootedFs(Path(sys.argv[1]))
held = (GuestDevice(PciAddress.parse({DEVICE!r}), "hostdev"),)
guests = [Guest("web", "test", vcpus=(Vcpu(0, CpuSet([0])),), devices=held)]
observe(fs, guests)
os.access("/begin", os.F_OK)
snapshot = observe(fs, guests, counts=sys.argv[2] == "counts")
os.access("/end", os.F_OK)
assert len(snapshot.interrupts) == {VECTORS} and snapshot.gaps == ()
assert all(each.settable and each.affinity and each.effective for each in snapshot.interrupts)
"""
STARTER = f"""
import os, sys
from pathlib import Path
from tests.hostmaker import RootedFs
from virtirq.control.at_once import begin, prepare
from virtirq.control.executor import Executor
from virtirq.control.journal import SharedJournal
from virtirq.cpuset import CpuSet
from virtirq.model import InterruptKey, PciAddress, Pin, Reason

root = Path(sys.argv[1])
device, after = PciAddress.parse({DEVICE!r}), CpuSet.parse("5-6")
fs, pins = RootedFs(root), [
    Pin(100 + v, InterruptKey(device, f"vfio-msix[{{v}}]({DEVICE})"), "web", None, after,
        Reason("new", "to where it belongs"))
    for v in range(2)
]
made = [prepare(pin, "web") for pin in pins]
shared = SharedJournal(root / "state", "b")
for pin, prepared in zip(pins, made):
    os.access("/begin", os.F_OK)
    begun = begin(fs, shared.take(), prepared, pin.irq)
    os.access("/end", os.F_OK)
    (outcome,) = Executor(fs, shared.taken).run((pin,), begun)
    assert begun.written and outcome.status.value == "applied"
    shared.release()
"""
# What an interpreter does for itself.
OWN = {"brk", "mmap", "munmap", "madvise", "futex"}


def traced(log: Path, *command: str) -> list[str]:
    """The system calls of a Python program between its marks, which are calls of access(2)."""
    done = subprocess.run(
        ["strace", "-qq", "-o", str(log), sys.executable, "-c", *command],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    between = re.split(r'access\("/(?:begin|end)"', log.read_text())[-2]
    return [name for name in re.findall(r"^(\w+)\(", between, re.MULTILINE) if name not in OWN]


def test_moving_an_interrupt_takes_few_of_them(tmp_path: Path) -> None:
    need_program("strace")
    root = HOST.write(tmp_path / "host")
    calls = Counter(traced(tmp_path / "log", MOVER, str(root)))
    moved = VECTORS - 1
    assert calls["fsync"] == -(-moved // 64), "one for a batch"
    assert calls["write"] == moved + 2 * calls["fsync"], "one each; two pieces of journal a batch"
    assert calls["openat"] == calls["close"] == 2 * moved
    assert calls.total() <= LIMIT * moved, calls


def test_the_first_of_a_device_takes_no_more_than_it_must(tmp_path: Path) -> None:
    """The lock, whose journal it is, the look; the journal's line on stable storage; the write."""
    need_program("strace")
    root = HOST.write(tmp_path / "host")
    lock, journal, *look, line, sync, write = traced(tmp_path / "log", STARTER, str(root))
    assert (lock, line, sync, write) == ("flock", "write", "fsync", "write")
    assert "stat" in journal
    assert len(look) == 4, look
    kinds = ("open", "stat", "access", "pread")
    assert all(kind in each for kind, each in zip(kinds, look, strict=True)), look


@pytest.mark.parametrize(("counts", "files"), [("counts", 4), ("", 3)])
def test_reading_an_interrupt_takes_few_of_them(tmp_path: Path, counts: str, files: int) -> None:
    """What it takes to read the device and the host's CPUs is counted, too."""
    need_program("strace")
    root = HOST.write(tmp_path / "host")
    calls = Counter(traced(tmp_path / "log", READER, str(root), counts))
    assert files * VECTORS < calls["read"] <= files * VECTORS + 40, "no file twice"
    assert calls.total() <= (COUNTING if counts else READING) * VECTORS, calls
