"""What was counted between two looks at an interrupt, and shares of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Counts = Mapping[int, int]
"""Interrupts taken, by CPU."""


def by_cpu(counted: Sequence[int]) -> dict[int, int]:
    """Of a mark, and CPUs and counts in turn (`virtirq.host.interrupts.count_all`)."""
    return dict(zip(counted[1::2], counted[2::2], strict=True))


def difference(was: Counts, now: Counts) -> dict[int, int] | None:
    """What was taken in between; None where the interrupt was set up anew meanwhile.

    It counts less then: the kernel begins at none (kernel/irq/irqdesc.c, desc_set_defaults()).
    """
    if any(now.get(cpu, 0) < count for cpu, count in was.items()):
        return None
    return {cpu: count - was.get(cpu, 0) for cpu, count in now.items() if count > was.get(cpu, 0)}


def percent(part: float, whole: float) -> int:
    """How many hundredths `part` is of `whole`; 100 only for all of it, 0 only for none."""
    if part in (0, whole):
        return 100 * bool(part)
    return min(99, max(1, round(100 * part / whole)))
