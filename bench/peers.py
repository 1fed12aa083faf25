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
    device = tree.address_of(0)
    lines = "".join(
        f"{irq}: 1 0 IR-PCI-MSIX-{device} {vector}-edge vfio-msix[{vector}]({device})\n"
        for vector, irq in enumerate(inside.irqs)
    )
    with tempfile.NamedTemporaryFile("w") as table:
        table.write("      CPU100 CPU101\n" + lines)
        table.flush()
        tree.cover("/proc/interrupts", table.name)
        rows, said = _measured(inside, rounds)
        tree.uncover("/proc/interrupts")
    inside.close()
    return rows, said


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
            said.append(f"{name} is not installed here")
        else:
            commands[f"{name} {words[0]}"] = [program, *words]
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
        rows.append(Row(moves, Spread.of(each), "µs", ratio, beside, calls))
    return rows, said
