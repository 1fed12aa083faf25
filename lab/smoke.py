"""The lab's own proof: `python -m lab.smoke` boots, pins real interrupts, and counts them.

Every vector of a NIC held through VFIO is sent to a CPU of its own, fired, and must have
raised each of its interrupts there.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from . import quick
from .guest import E1000E, bind, find
from .vfio import HeldDevice

_SHOTS = 50
_INSIDE = "--inside"


def counts(irq: int) -> list[int]:
    """How often this interrupt was taken, by CPU."""
    return [int(n) for n in Path(f"/sys/kernel/irq/{irq}/per_cpu_count").read_text().split(",")]


def inside() -> int:
    """In the guest."""
    bdf = find(E1000E)[0]
    bind(bdf)
    with HeldDevice(bdf, "msix") as device:
        good = [_pin_and_fire(device, vector, irq) for vector, irq in device.irqs().items()]
    return 0 if good and all(good) else 1


def _pin_and_fire(device: HeldDevice, vector: int, irq: int) -> bool:
    # The last vector goes to CPU 0: by default most would land there.
    before = counts(irq)
    cpu = (vector + 1) % len(before)
    Path(f"/proc/irq/{irq}/smp_affinity_list").write_text(str(cpu))
    begin = time.monotonic()
    for _ in range(_SHOTS):
        device.fire(vector)
        device.wait(vector)
    each = (time.monotonic() - begin) / _SHOTS
    gained = [now - then for then, now in zip(before, counts(irq), strict=True)]
    good = gained[cpu] == sum(gained) >= _SHOTS
    print(
        f"{device.bdf} vector {vector} irq {irq} sent to CPU {cpu}: by CPU {gained}, "
        f"{each * 1000:.1f} ms each: {'good' if good else 'WRONG'}"
    )
    return good


def outside() -> int:
    """On this machine."""
    checkout = Path(__file__).resolve().parents[1]
    begin = time.monotonic()
    command = [sys.executable, "-m", "lab.smoke", _INSIDE]
    done = quick.run(quick.one_nic(), command, cwd=checkout, stream=True)
    total = time.monotonic() - begin
    print(f"boot {done.boot_seconds:.1f} s, command {done.seconds:.1f} s, total {total:.1f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(inside() if sys.argv[1:] == [_INSIDE] else outside())
