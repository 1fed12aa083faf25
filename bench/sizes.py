"""What each verb takes for each interrupt of a large host, and how that grows: ``bench.sizes``."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench import tree
from bench.measure import Row, Spread, child, cpu, system_calls
from virtirq.control.journal import locked_journal
from virtirq.cpuset import CpuSet
from virtirq.model import InterruptKey, Remembered

VERBS = ("status", "plan", "check", "metrics", "apply")
SIZES = (16, 64, 256)
"""Guests, each with a device of 256 vectors: 4,096, 16,384 and 65,536 interrupts."""
VECTORS = 256
_BATCH = 64
_CODES = (0, 3)
"""`check` finds that they are not where they should be."""


def measured(rounds: int) -> dict[str, list[Row]]:
    """Rows by the number of interrupts; what a host with next to none takes is taken off.

    Each round goes through all sizes: what the machine is in the mood for now, it is not for all of
    a quarter of an hour, and the spread is to say so.
    """
    small, sizes = (1, 16), [(guests, VECTORS) for guests in SIZES]
    passes = [{size: _measured(*size) for size in (small, *sizes)} for _ in range(rounds)]
    all_of = {size: _together([each[size] for each in passes]) for size in passes[0]}
    none = all_of[small]
    found: dict[str, list[Row]] = {}
    took: dict[str, list[float]] = {verb: [] for verb in VERBS}
    for guests in SIZES:
        rows, more = [], guests * VECTORS - 16
        for verb, size in all_of[guests, VECTORS].items():
            memory = (size.memory - none[verb].memory) / more
            start = statistics.median(none[verb].cpu)
            each = Spread.of([(one - start) / more * 1e6 for one in size.cpu])
            aim = "" if verb == "apply" else "100 µs, 1 KiB"
            calls = (size.calls - none[verb].calls) / more if size.calls else None
            rows.append(Row(f"{verb}, {memory:.2f} KiB", each, "µs", calls=calls, aim=aim))
            took[verb].append(each.median)
        rows.append(_journal(guests * VECTORS))
        found[f"{guests * VECTORS:,} interrupts"] = rows
    for verb, them in took.items():
        assert max(them) < 2 * min(them), f"{verb} does not grow with the interrupts alone: {them}"
    return found


def _journal(count: int) -> Row:
    """Reading what is known of so many interrupts, as it is before anything is moved."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        state = Path(directory, "state")
        with locked_journal(state, "bench") as journal:
            for first in range(0, count, _BATCH):
                moved = [_moved(number) for number in range(first, first + _BATCH)]
                journal.move(*moved)
                journal.moved(*((each.key, each.written[0]) for each in moved))

        def read() -> None:
            with locked_journal(state, "bench") as journal:
                assert len(journal.remembered()) == count

        used = Spread.of([cpu(read) * 1e3 for _ in range(3)])
    return Row("the journal of all, read", used, "ms in all", aim="1,000 ms in all")


def _moved(number: int) -> Remembered:
    guest, vector = divmod(number, VECTORS)
    device = tree.address_of(guest)
    return Remembered(
        InterruptKey(device, f"vfio-msix[{vector}]({device})"),
        f"6b1f1a8e-0000-4000-8000-{guest:012x}",
        CpuSet([tree.ELSEWHERE]),
        (CpuSet([tree.cpus_of(guest)[vector % 2]]),),
        name=f"guest{guest:03d}",
        irq=1000 + number,
        incarnation=number,
    )


class _Size(NamedTuple):
    """`cpu` in seconds, of each round; `memory` in KiB; system `calls` where they are counted."""

    cpu: list[float]
    memory: int
    calls: int


def _together(rounds: Sequence[dict[str, _Size]]) -> dict[str, _Size]:
    """What came of several, by verb."""
    found = {}
    for verb in VERBS:
        them = [each[verb] for each in rounds]
        used = [one for each in them for one in each.cpu]
        found[verb] = _Size(used, max(each.memory for each in them), them[0].calls)
    return found


def _measured(guests: int, vectors: int) -> dict[str, _Size]:
    inside = tree.Tree(guests, vectors)
    found = {}
    for verb in VERBS:
        command = [sys.executable, "-m", "virtirq", *inside.domains, verb]
        inside.reset()
        ran = child(*command, codes=_CODES)
        if verb == "apply":
            assert inside.moved() == inside.count, ran.output[-500:]
        inside.reset()
        calls = system_calls(*command, codes=_CODES) if guests < 20 else 0
        found[verb] = _Size([ran.cpu], ran.memory, calls)
    inside.close()
    return found
