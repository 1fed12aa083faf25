"""Moves interrupts of VFIO devices to other CPUs: runs in the lab, beside the daemon.

usage: adversary.py SEED MOST     a random one to a random CPU each half second to two, no more than
                                  so many times in `WINDOW` seconds each: short of a fight
       adversary.py SEED ACTION   this one, whenever it was put back

Prints what it has moved: time, IRQ, action, CPU.
"""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict, deque
from contextlib import suppress
from pathlib import Path

WINDOW = 65.0


def interrupts() -> dict[str, int]:
    found = {}
    for actions in Path("/sys/kernel/irq").glob("*/actions"):
        with suppress(OSError):
            name = actions.read_text().strip()
            if name.startswith("vfio-msi"):
                found[name] = int(actions.parent.name)
    return found


def affinity(irq: int) -> Path:
    return Path(f"/proc/irq/{irq}/smp_affinity_list")


def move(irq: int, name: str, chance: random.Random) -> None:
    before = affinity(irq).read_text().strip()
    cpu = chance.choice([each for each in map(str, range(8)) if each != before])
    affinity(irq).write_text(cpu)
    print(f"{time.monotonic():.3f} {irq} {name} {cpu}", flush=True)


def annoy(most: int, chance: random.Random) -> None:
    moves: defaultdict[str, deque[float]] = defaultdict(lambda: deque([-WINDOW] * most, most))
    while True:
        time.sleep(chance.uniform(0.5, 2))
        may = {
            name: irq
            for name, irq in sorted(interrupts().items())
            if time.monotonic() - moves[name][0] > WINDOW
        }
        if may:
            name = chance.choice(sorted(may))
            with suppress(OSError):  # the guest gave it up
                move(may[name], name, chance)
                moves[name].append(time.monotonic())


def fight(name: str, chance: random.Random) -> None:
    irq = interrupts()[name]
    right = affinity(irq).read_text()
    while True:
        move(irq, name, chance)
        while affinity(irq).read_text() != right:
            time.sleep(0.02)


def main(seed: str, what: str) -> None:
    chance = random.Random(int(seed))
    if what.isdigit():
        annoy(int(what), chance)
    else:
        fight(what, chance)


if __name__ == "__main__":
    main(*sys.argv[1:])
