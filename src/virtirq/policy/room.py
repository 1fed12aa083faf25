"""Who gets the vectors of a CPU where there are not enough of them.

x86 has about 200 for devices on each CPU (arch/x86/include/asm/irq_vectors.h), and only the kernel
knows how many are left. A guest whose devices set up more than its CPUs can take uses few of them:
those that have never fired have no claim on room. They are moved last, and where one that has fired
finds none, one that has not makes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from virtirq.cpuset import CpuSet, union
from virtirq.model import (
    Action,
    DevicePlan,
    Interrupt,
    PciAddress,
    Pin,
    Plan,
    Reason,
    Topology,
)
from virtirq.values import replace

MAKES_ROOM: Final = "makes-room"
"""The reason of a pin that takes something out of another's way."""


VECTORS_LOW: Final = 180
"""Vectors in use on a CPU from which on the rest (of about 200) is called low."""


def short(load: Mapping[int, int]) -> CpuSet:
    """The CPUs that are short of vectors; `load` are those in use, by CPU."""
    return CpuSet(cpu for cpu, count in load.items() if count >= VECTORS_LOW)


def crowding(plan: Plan, load: Mapping[int, int]) -> set[PciAddress]:
    """Devices of guests that have something moved to CPUs that may become short of vectors."""
    pins = plan.pins
    more = Counter(cpu for pin in pins for cpu in pin.after)
    crowded = short({cpu: count + load.get(cpu, 0) for cpu, count in more.items()})
    guests = {pin.guest for pin in pins if pin.after & crowded} if crowded else ()
    return {
        device.device.address
        for each in plan.guests
        if each.guest.key in guests
        for device in each.devices
    }


def with_counts(plan: Plan, interrupts: Iterable[Interrupt]) -> Plan:
    """The plan, made without these counts, as it is with them."""
    idle = {(each.irq, each.key) for each in interrupts if each.idle}

    def known(action: Action) -> Action:
        if isinstance(action, Pin) and (action.irq, action.key) in idle:
            return replace(action, idle=True)
        return action

    def of_device(planned: DevicePlan) -> DevicePlan:
        return replace(planned, actions=tuple(map(known, planned.actions)))

    return Plan(
        tuple(replace(each, devices=tuple(map(of_device, each.devices))) for each in plan.guests)
    )


def making_room(
    lacking: Iterable[Pin],
    actions: Iterable[Action],
    interrupts: Iterable[Interrupt],
    topology: Topology,
) -> tuple[Pin, ...]:
    """Where to move idle interrupts in the way of `lacking`, which the kernel had no vector for.

    They are of the same guest, and go to CPUs that nobody here waits for. `actions` are all that is
    decided of the guests' interrupts; `interrupts` have the counts.
    """
    lacking = tuple(lacking)
    wanted = union(room_of(pin) for pin in lacking)
    elsewhere = topology.general - wanted
    if not elsewhere:
        return ()
    counted = {(each.irq, each.key): each for each in interrupts}
    idle: dict[tuple[str, int], list[tuple[Action, Interrupt]]] = {}
    for action in actions:
        interrupt = counted.get((action.irq, action.key))
        if interrupt is None or not interrupt.idle:
            continue
        ours = isinstance(action, Pin) or action.wanted is not None
        if ours and interrupt.effective is not None and len(interrupt.effective) == 1:
            place = action.guest, interrupt.effective.first()
            idle.setdefault(place, []).append((action, interrupt))
    made = []
    for pin in lacking:
        for cpu in (*pin.after, *(room_of(pin) - pin.after)):
            if them := idle.get((pin.guest, cpu)):
                action, interrupt = them.pop()
                made.append(_away(action, interrupt, cpu, elsewhere))
                break
    return tuple(made)


def room_of(pin: Pin) -> CpuSet:
    """The CPUs of which one will do."""
    return pin.after | union(pin.alternatives)


def _away(action: Action, interrupt: Interrupt, cpu: int, elsewhere: CpuSet) -> Pin:
    text = f"never fired: makes room on CPU {cpu} for one that has"
    return Pin(
        action.irq,
        action.key,
        action.guest,
        before=interrupt.affinity,
        after=elsewhere,
        reason=Reason(MAKES_ROOM, text),
        kind=interrupt.kind,
    )
