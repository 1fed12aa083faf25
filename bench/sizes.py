"""What each verb takes for each interrupt of a large host, and how that grows: ``bench.sizes``."""

from __future__ import annotations

import statistics
import sys
from typing import NamedTuple

from bench import tree
from bench.measure import Row, Spread, child, system_calls

VERBS = ("status", "plan", "check", "metrics", "apply")
SIZES = (16, 64, 256)
"""Guests, each with a device of 256 vectors: 4,096, 16,384 and 65,536 interrupts."""
VECTORS = 256
_CODES = (0, 3)
"""`check` finds that they are not where they should be."""


def measured(rounds: int) -> dict[str, list[Row]]:
    """Rows by the number of interrupts; what a host with next to none takes is taken off."""
    none = _measured(1, 16, rounds)
    found: dict[str, list[Row]] = {}
    for guests in SIZES:
        rows, more = [], guests * VECTORS - 16
        for verb, size in _measured(guests, VECTORS, rounds).items():
            memory = (size.memory - none[verb].memory) / more
            start = statistics.median(none[verb].cpu)
            each = Spread.of([(one - start) / more * 1e6 for one in size.cpu])
            aim = "" if verb == "apply" else "100 µs, 1 KiB"
            calls = (size.calls - none[verb].calls) / more if size.calls else None
            rows.append(Row(f"{verb}, {memory:.2f} KiB", each, "µs", calls=calls, aim=aim))
        found[f"{guests * VECTORS:,} interrupts"] = rows
    return found


class _Size(NamedTuple):
    """`cpu` in seconds, of each round; `memory` in KiB; system `calls` where they are counted."""

    cpu: list[float]
    memory: int
    calls: int


def _measured(guests: int, vectors: int, rounds: int) -> dict[str, _Size]:
    inside = tree.Tree(guests, vectors)
    found = {}
    for verb in VERBS:
        command = [sys.executable, "-m", "virtirq", *inside.domains, verb]
        used, memory = [], 0
        for _ in range(rounds):
            inside.reset()
            ran = child(*command, codes=_CODES)
            used.append(ran.cpu)
            memory = max(memory, ran.memory)
            if verb == "apply":
                assert inside.moved() == inside.count, ran.output[-500:]
        inside.reset()
        calls = system_calls(*command, codes=_CODES) if guests < 100 else 0
        found[verb] = _Size(used, memory, calls)
    inside.close()
    return found
