"""What is at stake: where the host's interrupts were taken between two looks at their counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

from virtirq.cpuset import union
from virtirq.model import Finding, GuestPlan, Plan, Topology
from virtirq.policy.counts import Counts, by_cpu, difference
from virtirq.policy.findings import taken_by_guests_cpus, taken_elsewhere
from virtirq.policy.target import claims_of
from virtirq.values import dataclass

CODES: Final = frozenset({"taken-elsewhere", "host-interrupts-on-vcpus"})
"""The findings of this: only who waits and counts has them."""

Counted = Iterable[tuple[int, Sequence[int]]]
"""IRQ numbers, and what each has counted (`virtirq.policy.counts.by_cpu`)."""


@dataclass(frozen=True, slots=True)
class OfGuest:
    """A guest's interrupts a second: on its own CPUs, by guest on those of others, on the rest.

    Its own are those that its vCPUs and its emulator are pinned to, and its devices' targets.
    """

    guest: str
    own: float
    others: Mapping[str, float]
    rest: float

    @property
    def total(self) -> float:
        return self.own + sum(self.others.values()) + self.rest


@dataclass(frozen=True, slots=True)
class OfHost:
    """Interrupts a second of no guest here, on CPUs that guests' threads are pinned to.

    By IRQ number and CPU.
    """

    on: Mapping[tuple[int, int], float]

    @property
    def total(self) -> float:
        return sum(self.on.values())

    @property
    def most(self) -> tuple[int, int] | None:
        """The interrupt and the CPU that have the most, the lowest of those that have as many."""
        return min(self.on, key=lambda each: (-self.on[each], each), default=None)


@dataclass(frozen=True, slots=True)
class Stakes:
    """Over so many seconds."""

    seconds: float
    guests: tuple[OfGuest, ...]
    host: OfHost


def came(before: Mapping[int, Sequence[int]], after: Counted) -> dict[int, Counts]:
    """What was taken in between, if anything, of those that were there before and all the time."""
    both = (
        (irq, difference(by_cpu(before[irq]), by_cpu(now))) for irq, now in after if irq in before
    )
    return {irq: taken for irq, taken in both if taken}


def stakes(plan: Plan, topology: Topology, between: Mapping[int, Counts], seconds: float) -> Stakes:
    """Of all the host's interrupts, by what `came` in so many seconds."""
    used = {each.guest.name: claims_of(each.guest, topology).used for each in plan.guests}
    users: dict[int, list[str]] = {}
    for name, cpus in used.items():
        for cpu in cpus:
            users.setdefault(cpu, []).append(name)
    guests = []
    theirs: set[int] = set()
    for planned in plan.guests:
        irqs = {action.irq for device in planned.devices for action in device.actions}
        theirs |= irqs
        by_cpu: Counter[int] = Counter()
        for irq in irqs:
            by_cpu.update(between.get(irq, {}))
        guests.append(_of_guest(planned, by_cpu, users, seconds))
    host = {
        (irq, cpu): count / seconds
        for irq, by_cpu in between.items()
        if irq not in theirs
        for cpu, count in by_cpu.items()
        if cpu in users
    }
    return Stakes(seconds, tuple(guests), OfHost(host))


def _of_guest(
    planned: GuestPlan,
    by_cpu: Mapping[int, int],
    users: Mapping[int, Sequence[str]],
    seconds: float,
) -> OfGuest:
    name = planned.guest.name
    targets = union(each.target for each in planned.devices if each.target is not None)
    mine, rest, others = 0, 0, Counter[str]()
    for cpu, count in by_cpu.items():
        whose = users.get(cpu, ())
        if cpu in targets or name in whose:
            mine += count
        elif whose:
            others[whose[0]] += count  # of several that share it, the first
        else:
            rest += count
    shares = {other: count / seconds for other, count in sorted(others.items())}
    return OfGuest(name, mine / seconds, shares, rest / seconds)


def findings(told: Stakes, handlers: Callable[[int], Iterable[str]]) -> Iterator[Finding]:
    """What a person should know of them. `handlers` are the names of those of an interrupt."""
    for each in told.guests:
        taken = sum(each.others.values())
        if taken >= _LEAST:
            most = sorted(each.others, key=lambda other: (-each.others[other], other))
            yield taken_elsewhere(each.guest, each.total, taken, most)
    if told.host.total >= _LEAST and told.host.most is not None:
        irq, cpu = told.host.most
        yield taken_by_guests_cpus(
            told.host.total, ",".join(handlers(irq)), irq, cpu, told.host.on[irq, cpu]
        )


_LEAST: Final = 1.0
"""Interrupts a second from which on they are told of."""
