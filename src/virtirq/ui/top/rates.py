"""From two readings of the kernel's counts to rates. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.model import InterruptKey, PciAddress, Plan, Snapshot
from virtirq.policy.counts import Counts, difference, percent
from virtirq.ui.report import near, wanted_of


class Watched(NamedTuple):
    """An interrupt, and where it should be taken; `near` are the other CPUs of that node."""

    guest: str
    device: PciAddress
    kind: str
    vector: int | None
    irq: int
    key: InterruptKey
    wanted: CpuSet | None
    near: CpuSet

    @property
    def name(self) -> str:
        """As ``status`` shows it: ``msix 3``, ``intx``."""
        return self.kind if self.vector is None else f"{self.kind} {self.vector}"


def watched(snapshot: Snapshot, plan: Plan) -> tuple[Watched, ...]:
    """The interrupts of a plan, those once that two guests name."""
    kinds = {(each.irq, each.key): each for each in snapshot.interrupts}
    found = []
    for guest in plan.guests:
        for device in guest.devices:
            if device.code == "claimed":
                continue
            for action in device.actions:
                interrupt = kinds.get((action.irq, action.key))
                if interrupt is None:
                    continue
                found.append(
                    Watched(
                        guest.guest.name,
                        device.device.address,
                        interrupt.kind.value,
                        interrupt.vector,
                        action.irq,
                        action.key,
                        wanted_of(action),
                        near(snapshot, device, wanted_of(action)),
                    )
                )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Sample:
    """What was counted at a time, in seconds of a clock that only goes forward.

    `unread` interrupts have no counts.
    """

    at: float
    counts: Mapping[Watched, Counts] = field(default_factory=dict)
    unread: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """Interrupts taken between two samples: `delta` by CPU, and `total` since the set-up."""

    watched: Watched
    delta: Counts
    total: int


def taken(before: Sample, after: Sample, cpus: CpuSet | None = None) -> tuple[Taken, ...]:
    """What each interrupt did between the two; all of `cpus`, None for every CPU.

    Of one that was not looked at before, nobody knows when it was taken. All that one has counted
    that was set up anew meanwhile has come since.
    """
    was = {(each.irq, each.key): counts for each, counts in before.counts.items()}
    return tuple(
        Taken(each, _delta(was.get((each.irq, each.key), now), now, cpus), _sum(now, cpus))
        for each, now in after.counts.items()
    )


def _sum(counts: Counts, cpus: CpuSet | None) -> int:
    return sum(count for cpu, count in counts.items() if cpus is None or cpu in cpus)


def _delta(was: Counts, now: Counts, cpus: CpuSet | None) -> Counts:
    found = difference(was, now)
    if found is None:
        found = dict(now)
    return found if cpus is None else {cpu: found[cpu] for cpu in found if cpu in cpus}


class Places(NamedTuple):
    """Interrupts by where they were taken: where they should be, near there, elsewhere.

    Those that may be anywhere are `free`.
    """

    target: int = 0
    node: int = 0
    elsewhere: int = 0
    free: int = 0

    @property
    def all(self) -> int:
        return sum(self)

    def share(self, count: int) -> int | None:
        """Percent of those that should be somewhere; 100 only for all of them, 0 only for none."""
        judged = self.target + self.node + self.elsewhere
        if not judged:
            return None
        return percent(count, judged)


def places(each: Taken, only: int | None = None) -> Places:
    """Where one interrupt was taken; `only` what one CPU took of it."""
    wanted, kept, target, node = each.watched.wanted, each.watched.near, 0, 0
    delta = each.delta if only is None else {only: each.delta.get(only, 0)}
    all_ = sum(delta.values())
    if wanted is None:
        return Places(free=all_)
    for cpu, count in delta.items():
        if cpu in wanted:
            target += count
        elif cpu in kept:
            node += count
    return Places(target, node, all_ - target - node)


def together(many: Iterable[Places]) -> Places:
    sums = [0, 0, 0, 0]
    for each in many:
        for place, count in enumerate(each):
            sums[place] += count
    return Places(*sums)
