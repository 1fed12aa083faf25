"""What a command takes to start, beside an interpreter that does nothing: ``bench.startup``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.measure import Row, Spread, child, system_calls
from tests.hostmaker import MadeHost, passthrough

SMALL = MadeHost(online="0-7", devices=(passthrough("0000:41:00.0", vectors=16, first_irq=100),))
DOMAIN = """
<domain type='kvm' id='1'>
  <name>web</name>
  <uuid>6b1f1a8e-0000-4000-8000-000000000001</uuid>
  <vcpu>2</vcpu>
  <devices>
    <hostdev mode='subsystem' type='pci'>
      <source><address domain='0x0000' bus='0x41' slot='0x00' function='0x0'/></source>
    </hostdev>
  </devices>
</domain>
"""


def measured(rounds: int) -> list[Row]:
    """The host has eight CPUs, and one guest with one device of 16 vectors."""
    python = sys.executable
    with tempfile.TemporaryDirectory(prefix="virtirq-bench-") as directory:
        root = SMALL.write(Path(directory, "host"))
        domain = Path(directory, "web.xml")
        domain.write_text(DOMAIN)
        small = ["-s", str(root), "--domain", str(domain)]
        commands = {
            "python3 -c pass": [python, "-c", "pass"],
            "virtirq --version": [python, "-m", "virtirq", "--version"],
            "virtirq status, a small host": [python, "-m", "virtirq", *small, "status"],
            "virtirq status, this machine": [python, "-m", "virtirq", "status"],
        }
        for command in commands.values():
            child(*command)  # compiles what it imports
        figures: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                figures[name].append(child(*command).cpu * 1e3)
        calls = {name: float(system_calls(*command)) for name, command in commands.items()}
    bare, *_ = figures.values()
    aims = {"virtirq --version": "3", "virtirq status, a small host": "7"}
    return [
        Row(
            name,
            Spread.of(each),
            "ms",
            Spread.of([one / least for one, least in zip(each, bare, strict=True)]),
            calls=calls[name],
            aim=aims.get(name, ""),
        )
        for name, each in figures.items()
    ]
