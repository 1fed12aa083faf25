"""What a verb shows, as plain data: one shape for JSON, tables and tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.model import (
    Action,
    Directive,
    Finding,
    Follows,
    Gap,
    Guest,
    Interrupt,
    InterruptKey,
    Outcome,
    Pin,
    Plan,
    Snapshot,
    Spread,
    Status,
)
from virtirq.policy.config import Config

if TYPE_CHECKING:
    from virtirq.control.daemon_status import DaemonStatus

SCHEMA: Final = 1


class Row(NamedTuple):
    """One interrupt. `status`: the plan's verdict, or the outcome once it was carried out."""

    irq: int
    kind: str
    vector: int | None
    before: CpuSet | None
    after: CpuSet | None
    effective: CpuSet | None
    action: str
    status: str
    reason: str
    follows: Follows | None = None
    hint: str | None = None

    @property
    def moves(self) -> bool:
        return self.action == "pin"


class Rows:
    """Makes rows of actions; knows the snapshot's interrupts and what became of pins."""

    def __init__(self, snapshot: Snapshot, outcomes: Iterable[Outcome] = ()) -> None:
        self._interrupts: Mapping[tuple[int, InterruptKey], Interrupt] = {
            (each.irq, each.key): each for each in snapshot.interrupts
        }
        self._numbered = {(each.irq, each.device): each for each in snapshot.interrupts}
        self._outcomes = {(each.pin.irq, each.pin.key): each for each in outcomes}

    def of(self, action: Action) -> Row:
        where = (action.irq, action.key)
        # A restore may name an interrupt that has no action now.
        interrupt = self._interrupts.get(where) or self._numbered.get(
            (action.irq, action.key.device)
        )
        effective = interrupt.effective if interrupt else None
        pin = isinstance(action, Pin)
        status, reason, hint = action.reason.code, action.reason.text, None
        outcome = self._outcomes.get(where)
        if outcome is not None:
            status, reason, hint = outcome.status.value, outcome.reason, outcome.hint
            effective = outcome.effective or effective
        return Row(
            irq=action.irq,
            kind=interrupt.kind.value if interrupt else "msix",
            vector=interrupt.vector if interrupt else None,
            before=interrupt.affinity if interrupt else None,
            after=action.after if isinstance(action, Pin) else action.wanted,
            effective=effective,
            action="pin" if pin else "keep",
            status=status,
            reason=reason,
            follows=action.follows,
            hint=hint,
        )


def as_json(
    snapshot: Snapshot,
    plan: Plan,
    findings: Iterable[Finding],
    outcomes: Iterable[Outcome] = (),
) -> dict[str, Any]:
    """The one JSON shape of ``status``, ``plan``, ``apply`` and ``restore``."""
    rows = Rows(snapshot, outcomes)
    return {
        "schema": SCHEMA,
        "guests": [
            {
                "name": planned.guest.name,
                "uuid": planned.guest.uuid,
                "source": planned.guest.source,
                "kind": planned.guest.kind,
                "vectors_read_by": snapshot.readers.get(planned.guest.key),
                "devices": [
                    {
                        "address": str(device.device.address),
                        "directive": _directive(device.directive),
                        "directive_from": device.directive_from,
                        "target": _text(device.target),
                        "node": device.node,
                        "note": device.note,
                        "interrupts": [_interrupt(rows.of(action)) for action in device.actions],
                    }
                    for device in planned.devices
                ],
            }
            for planned in plan.guests
        ],
        "findings": [each.as_json() for each in findings],
        "gaps": gaps_json(snapshot.gaps),
    }


def defined_json(guest: Guest) -> dict[str, Any]:
    """A guest that is defined and does not run, with its own settings."""
    return {
        "name": guest.name,
        "uuid": guest.uuid,
        "source": guest.source,
        "directive": _directive(guest.directive),
        "directive_from": guest.directive_from,
        "devices": [
            {
                "address": str(device.address),
                "directive": _directive(device.directive or guest.directive),
                "directive_from": device.directive_from or guest.directive_from,
            }
            for device in guest.devices
        ],
    }


def _directive(directive: Directive | None) -> str | None:
    return None if directive is None else str(directive)


def gaps_json(gaps: Iterable[Gap]) -> list[dict[str, str]]:
    return [{"path": gap.path, "error": gap.error} for gap in gaps]


def daemon_json(daemon: DaemonStatus | None) -> dict[str, Any] | None:
    """The running daemon; None when there is none."""
    if daemon is None:
        return None
    return {
        "pid": daemon.pid,
        "since": daemon.since,
        "version": daemon.version,
        "events": daemon.events,
        "guests": daemon.guests,
    }


def config_json(config: Config) -> dict[str, Any]:
    """The effective configuration with where each setting came from."""

    def text(value: object) -> object:
        return None if value is None else value.value if isinstance(value, Spread) else str(value)

    return {
        "schema": SCHEMA,
        "default": str(config.default),
        "default_from": config.default_from,
        "spread": text(config.spread),
        "restore_on_stop": config.restore_on_stop,
        "irqbalance": asdict(config.irqbalance),
        "guest_vectors": asdict(config.guest_vectors),
        "processes": asdict(config.processes),
        "metrics": asdict(config.metrics),
        "libvirt": asdict(config.libvirt),
        "rules": [
            {
                "from": rule.origin,
                "guest": rule.guest,
                "owner": rule.owner,
                "source": rule.source,
                "kind": rule.kind,
                "address": rule.address,
                "device": rule.device,
                "class": rule.class_,
                "driver": rule.driver,
                "node": rule.node,
                "directive": str(rule.directive),
                "spread": text(rule.spread),
            }
            for rule in config.rules
        ],
    }


def count_outcomes(outcomes: Iterable[Outcome]) -> dict[Status, int]:
    """How many outcomes of each status there are, in the order of `Status`."""
    counted = dict.fromkeys(Status, 0)
    for each in outcomes:
        counted[each.status] += 1
    return {status: number for status, number in counted.items() if number}


def _interrupt(row: Row) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "irq": row.irq,
        "kind": row.kind,
        "vector": row.vector,
        "before": _text(row.before),
        "after": _text(row.after),
        "effective": _text(row.effective),
        "action": row.action,
        "status": row.status,
        "reason": row.reason,
        "vcpu": row.follows and row.follows.vcpu,
        "vcpu_from": _vcpu_from(row.follows),
    }
    return shown | ({"hint": row.hint} if row.hint else {})


def _vcpu_from(follows: Follows | None) -> str | None:
    """Who has chosen the vCPU: the guest itself, or the spread of vectors over its vCPUs."""
    return None if follows is None else "guest" if follows.chosen else "spread"


def _text(cpus: CpuSet | None) -> str | None:
    return None if cpus is None else str(cpus)
