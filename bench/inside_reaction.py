"""Inside the lab's host: has a device set its vectors up again and again, and takes the times.

``python3 inside_reaction.py BDF ROUNDS PID CPU...``: one line of JSON. The times are the kernel's
own: from the entry of request_threaded_irq() to the entry of irq_set_affinity() in process PID,
both from one tracefs instance with one clock. Where each vector should be is CPU i modulo n.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

from lab.vfio import HeldDevice

TRACEFS = Path("/sys/kernel/tracing")
INSTANCE = TRACEFS / "instances/reaction"
EVENTS = (
    "requested request_threaded_irq irq=$arg1:u32 name=+0($arg5):string",
    "moved irq_set_affinity irq=$arg1:u32",
)
LINE = re.compile(r"-(\d+) +\[\d+\] +(\d+\.\d+): (\w+): .*\birq=(\d+)")
GRACE = 0.01
SHOTS = 20


def append(text: str) -> None:
    descriptor = os.open(TRACEFS / "kprobe_events", os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def counts(irq: int) -> list[int]:
    return [int(n) for n in Path(f"/sys/kernel/irq/{irq}/per_cpu_count").read_text().split(",")]


def main(bdf: str, rounds: str, pid: str, *cpus: str) -> None:
    INSTANCE.mkdir()
    for each in EVENTS:
        append(f"p:reaction/{each}")
    (INSTANCE / "trace_clock").write_text("mono")
    (INSTANCE / "options/irq-info").write_text("0")
    (INSTANCE / "buffer_size_kb").write_text("4096")
    (INSTANCE / "events/reaction/requested/filter").write_text('name ~ "vfio-*"')
    (INSTANCE / "events/reaction/moved/filter").write_text(f"common_pid == {pid}")
    for each in EVENTS:
        (INSTANCE / f"events/reaction/{each.split()[0]}/enable").write_text("1")
    wrong = total = 0
    try:
        with HeldDevice(bdf, "msix") as device:
            for _ in range(int(rounds)):
                device.disable()
                time.sleep(0.05)
                device.enable()
                time.sleep(GRACE)
                irqs = device.irqs()
                before = {vector: counts(irq) for vector, irq in irqs.items()}
                for vector in irqs:
                    for _ in range(SHOTS):
                        device.fire(vector)
                        device.wait(vector)
                for vector, irq in irqs.items():
                    gained = [n - m for m, n in zip(before[vector], counts(irq), strict=True)]
                    total += sum(gained)
                    wrong += sum(gained) - gained[int(cpus[vector % len(cpus)])]
        found = (INSTANCE / "trace").read_text()
    finally:
        for each in EVENTS:
            (INSTANCE / f"events/reaction/{each.split()[0]}/enable").write_text("0")
        INSTANCE.rmdir()
        for each in EVENTS:
            append(f"-:reaction/{each.split()[0]}")
    waiting: dict[str, float] = {}
    took: list[float] = []
    for match in LINE.finditer(found):
        at, number = float(match[2]), match[4]
        if match[3] == "requested":
            waiting[number] = at
        elif number in waiting:
            took.append(at - waiting.pop(number))
    counted = {"unanswered": len(waiting), "interrupts": total, "wrong": wrong}
    print(json.dumps({"seconds": took, **counted}))


if __name__ == "__main__":
    main(*sys.argv[1:])
