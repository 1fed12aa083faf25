"""virtirq beside what else moves interrupts, on the same tree: ``bench.peers``.

Each moves the 512 interrupts of one device, or as many of them as it wants. A hook script in dash
that reads each affinity before it writes, and one that writes alone; irqbalance's ``--oneshot`` and
tuna where they are installed. What a peer does beside (nothing remembered, nothing read back, no
check whose the interrupt is) is its own affair; the table says what each takes for what it does.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import tree
from bench.measure import Row, Spread, child, system_calls

VECTORS = 512
_READS = """
i=0
for irq in $(ls /sys/bus/pci/devices/{device}/msi_irqs); do
    cat /proc/irq/$irq/smp_affinity_list >> /dev/null
    echo $(({first} + i % 2)) > /proc/irq/$irq/smp_affinity_list
    i=$((i + 1))
done
"""
_WRITES = """
i=0
for irq in $(ls /sys/bus/pci/devices/{device}/msi_irqs); do
    echo $(({first} + i % 2)) > /proc/irq/$irq/smp_affinity_list
    i=$((i + 1))
done
"""


def measured(rounds: int) -> tuple[list[Row], list[str]]:
    """The rows, and what is to be said of them: who was not there, who moved nothing."""
    inside = tree.Tree(1, VECTORS, masks=True)
    with tempfile.TemporaryDirectory() as directory:
        for name, text in _tables(inside.irqs).items():
            Path(directory, name).write_text(text)
            tree.cover(f"/proc/{name}", f"{directory}/{name}")
        rows, said = _measured(inside, rounds)
        for name in ("interrupts", "stat"):
            tree.uncover(f"/proc/{name}")
    inside.close()
    return rows, said


def _tables(irqs: Sequence[int]) -> dict[str, str]:
    """What others read of /proc, for all the CPUs of the tree: irqbalance waits until it is so."""
    device, cpus = tree.address_of(0), range(tree.FIRST, tree.FIRST + tree.CPUS)
    head = " ".join(f"CPU{cpu}" for cpu in cpus)
    counts = " ".join(["1", *"0" * (tree.CPUS - 1)])
    lines = [
        f"{irq}: {counts} IR-PCI-MSIX-{device} {vector}-edge vfio-msix[{vector}]({device})"
        for vector, irq in enumerate(irqs)
    ]
    times = "10 20 30 40 50 60 70 0 0 0"
    stat = [f"cpu {times}", *(f"cpu{cpu} {times}" for cpu in cpus)]
    return {
        "interrupts": "\n".join([f"      {head}", *lines, ""]),
        "stat": "\n".join([*stat, "intr 1", "ctxt 1", "btime 1", "processes 1", ""]),
    }


def _measured(inside: tree.Tree, rounds: int) -> tuple[list[Row], list[str]]:
    said = []
    commands = {"virtirq apply": [sys.executable, "-m", "virtirq", *inside.domains, "apply"]}
    first, _ = tree.cpus_of(0)
    for name, text in (("hook in dash, cat and echo", _READS), ("hook in dash, echo", _WRITES)):
        if dash := shutil.which("dash"):
            script = text.format(device=tree.address_of(0), first=first)
            commands[name] = [dash, "-c", script]
    others = {
        "tuna": ["--irqs=vfio*", f"--cpus={first}", "--move"],
        "irqbalance": ["--oneshot", "--foreground"],
    }
    for name, words in others.items():
        program = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            said.append(f"**{name} is not installed here**")
            print(f"bench: {name} is not installed: apt install {name}", file=sys.stderr)
        else:
            # irqbalance looks again and again at what it does not understand.
            commands[f"{name} {words[0]}"] = ["timeout", "--kill-after=1", "60", program, *words]
    figures: dict[str, list[float]] = {name: [] for name in commands}
    moved: dict[str, int] = {}
    for name in list(commands):
        try:
            for _ in range(2):
                child(*commands[name])
        except AssertionError as error:
            said.append(f"{name} does not run on the tree: {str(error)[-120:]!r}")
            del commands[name], figures[name]
    for _ in range(rounds):
        for name, command in commands.items():
            inside.reset()
            figures[name].append(child(*command).cpu / VECTORS * 1e6)
            moved[name] = inside.moved()
    rows = []
    ours = figures["virtirq apply"]
    for name, each in figures.items():
        inside.reset()
        calls = system_calls(*commands[name]) / VECTORS
        ratio = Spread.of([mine / one for mine, one in zip(ours, each, strict=True)])
        beside = "" if name == "virtirq apply" else "of it"
        moves = f"{name}, moved {moved[name]}"
        if not moved[name]:
            said.append(f"{name} moves none: no interrupt happens on a made host")
        rows.append(Row(moves, Spread.of(each), "µs", ratio, beside, calls))
    return rows, said
