"""Back to how virtirq found things: another plan, from what the journal remembers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from virtirq.model import (
    Action,
    DevicePlan,
    Guest,
    GuestDevice,
    GuestPlan,
    Interrupt,
    InterruptKind,
    Keep,
    PciAddress,
    Pin,
    Plan,
    Reason,
    Remembered,
    Snapshot,
)

SOMEONE: Final = "someone, or the kernel when a CPU went offline"
"""Who may have moved an interrupt that virtirq did not (kernel/irq/cpuhotplug.c)."""


def restore_plan(snapshot: Snapshot, remembered: Iterable[Remembered]) -> Plan:
    """Puts back what still holds a value that virtirq wrote; the rest is kept, and said.

    Only interrupts that are gone for certain have nothing to restore and are left out. `settled`
    tells of the rest which are done with.
    """
    found = _Found(snapshot)
    names: dict[str, str] = {}
    by_guest: dict[str, dict[PciAddress, list[Action]]] = {}
    for entry in sorted(remembered, key=_in_restore_order):
        action = found.decide(entry)
        if action is None:
            continue
        names[entry.guest] = entry.name or entry.guest
        devices = by_guest.setdefault(entry.guest, {})
        devices.setdefault(entry.key.device, []).append(action)
    known = {guest.key: guest for guest in snapshot.guests}
    return Plan(
        tuple(
            GuestPlan(
                known.get(key) or remembered_guest(key, names[key]),
                tuple(
                    DevicePlan(
                        GuestDevice(address, "journal"),
                        directive=None,
                        directive_from="journal",
                        target=None,
                        note="as found before virtirq moved it",
                        actions=tuple(actions),
                    )
                    for address, actions in devices.items()
                ),
            )
            for key, devices in by_guest.items()
        )
    )


def remembered_guest(key: str, name: str) -> Guest:
    """A guest of whom only the journal knows."""
    return Guest(name or key, "journal", uuid=key if name and name != key else None)


def settled(action: Action) -> bool:
    """Whether nothing of virtirq's is left on an interrupt that a restore leaves alone."""
    return isinstance(action, Keep) and action.reason.code in ("as-found", "changed-since")


class _Found:
    """Finds what is remembered among the interrupts of a host."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._online = snapshot.topology.online
        self._named = {each.key: each for each in snapshot.interrupts if each.own_action}
        self._numbered = {(each.device, each.irq): each for each in snapshot.interrupts}
        nameless = {each.device for each in snapshot.interrupts if each.actions is None}
        self._unread = snapshot.unread | nameless

    def decide(self, entry: Remembered) -> Action | None:
        """What to do about one interrupt, None when it is gone for certain.

        Its action may be away: for a moment while the guest moves a vector, for good on the INTx
        line of a guest that has stopped. The affinity stays all the same, so the number then
        finds it, if it is still the device's and nobody else is on it.
        """
        interrupt = self._named.get(entry.key)
        if interrupt is not None:
            return self._restore(interrupt, entry)
        interrupt = self._numbered.get((entry.key.device, entry.irq))
        line = entry.kind is InterruptKind.INTX
        if interrupt is not None and (interrupt.kind is InterruptKind.INTX) is line:
            if interrupt.actions == ():
                return self._restore(interrupt, entry)
            if line and interrupt.actions and interrupt.affinity in (None, *entry.written):
                others = ", ".join(interrupt.actions)
                text = f"still as virtirq left it, but {others} has the line now: left"
                return _keep(entry, Reason("in-use", text))
        if entry.key.device in self._unread:
            return _keep(entry, Reason("unread", "what became of it could not be read: left"))
        return None

    def _restore(self, interrupt: Interrupt, entry: Remembered) -> Action:
        now = interrupt.affinity
        if now == entry.original:
            reason = Reason("as-found", f"already as found: {entry.original}")
        elif now is None:
            reason = Reason("unknown-place", "its affinity cannot be read: left")
        elif now not in entry.written:
            wrote = " or ".join(map(str, entry.written))
            text = f"{SOMEONE}, moved it to {now} since virtirq wrote {wrote}: left"
            reason = Reason("changed-since", text)
        else:
            text = f"as found: {entry.original}"
            if self._online and not entry.original & self._online:
                text += ", of which no CPU is online now"
            return Pin(
                interrupt.irq,
                entry.key,
                entry.guest,
                before=now,
                after=entry.original,
                reason=Reason("restore", text),
                kind=interrupt.kind,
            )
        return Keep(interrupt.irq, entry.key, entry.guest, reason)


def _keep(entry: Remembered, reason: Reason) -> Keep:
    return Keep(entry.irq, entry.key, entry.guest, reason)


def _in_restore_order(entry: Remembered) -> tuple[PciAddress, list[tuple[int, str]]]:
    """By device, kind and vector: the numbers in an action's name count as numbers."""
    pieces = re.split(r"([0-9]{1,9})", entry.key.action)
    return entry.key.device, [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces]
