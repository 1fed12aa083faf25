"""What a verb shows, as plain data: one shape for JSON, tables and tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from virtirq.cpuset import CpuSet, union
from virtirq.model import (
    Action,
    DevicePlan,
    Directive,
    Finding,
    Follows,
    Gap,
    Guest,
    Outcome,
    Pin,
    Plan,
    Snapshot,
    Spread,
    Status,
    Topology,
    Vcpu,
    by_device,
)
from virtirq.policy.advice import ADVICE
from virtirq.policy.config import Config
from virtirq.policy.target import wide

if TYPE_CHECKING:
    from virtirq.control.daemon_status import DaemonStatus
    from virtirq.policy.stakes import Stakes

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
    name: str | None = None
    counts: Mapping[int, int] | None = None

    @property
    def taken(self) -> int | None:
        """How many interrupts were taken, None when not known."""
        return None if self.counts is None else sum(self.counts.values())

    @property
    def taken_there(self) -> int | None:
        """How many of them where they should be; None also where there is no such place."""
        if self.counts is None or self.after is None:
            return None
        return sum(count for cpu, count in self.counts.items() if cpu in self.after)

    @property
    def moves(self) -> bool:
        return self.action == "pin"


class Rows:
    """Makes rows of actions; knows the snapshot's interrupts and what became of pins."""

    def __init__(self, snapshot: Snapshot, outcomes: Iterable[Outcome] = ()) -> None:
        # A device is on a line once, whatever the action is called: none, where it is given up.
        self._interrupts = {
            device: {each.irq: each for each in them}
            for device, them in by_device(snapshot.interrupts).items()
        }
        self._outcomes = {(each.pin.irq, each.pin.key): each for each in outcomes}

    def of(self, action: Action) -> Row:
        interrupt = self._interrupts.get(action.key.device, {}).get(action.irq)
        effective = interrupt.effective if interrupt else None
        pin = isinstance(action, Pin)
        status, reason, hint = action.reason.code, action.reason.text, None
        outcome = self._outcomes.get((action.irq, action.key)) if self._outcomes else None
        if outcome is not None:
            status, reason, hint = outcome.status.value, outcome.reason, outcome.hint
            effective = outcome.effective or effective
        return Row(
            irq=action.irq,
            kind=interrupt.kind.value if interrupt else "msix",
            vector=interrupt.vector if interrupt else None,
            before=interrupt.affinity if interrupt else None,
            after=wanted_of(action),
            effective=effective,
            action="pin" if pin else "keep",
            status=status,
            reason=reason,
            follows=action.follows,
            hint=hint,
            name=interrupt.own_action if interrupt else None,
            counts=interrupt.counts if interrupt else None,
        )


def wanted_of(action: Action) -> CpuSet | None:
    """Where the interrupt should be; None for no opinion."""
    return action.after if isinstance(action, Pin) else action.wanted


def near(snapshot: Snapshot, device: DevicePlan, wanted: CpuSet | None) -> CpuSet:
    """CPUs of the device's node, and of the nodes where an interrupt should be."""
    return union(
        node.cpus
        for node in snapshot.topology.nodes.values()
        if node.number == device.node or (wanted and node.cpus & wanted)
    )


def as_json(
    snapshot: Snapshot,
    plan: Plan,
    findings: Iterable[Finding],
    outcomes: Iterable[Outcome] | None = None,
    whole: Plan | None = None,
) -> dict[str, Any]:
    """The one JSON shape of ``status``, ``plan``, ``apply``, ``restore`` and ``explain``.

    `outcomes` where something was carried out; `whole` is what `plan` is a part of.
    """
    whole = whole or plan
    done = None if outcomes is None else tuple(outcomes)
    rows = Rows(snapshot, done or ())
    ended = {} if done is None else {"outcomes": _outcomes(done)}
    return {
        "schema": SCHEMA,
        "host": host_json(snapshot),
        "guests": [
            {
                **guest_json(planned.guest, snapshot.topology),
                "vectors_read_by": snapshot.readers.get(planned.guest.key),
                "devices": [_device(snapshot, rows, device) for device in planned.devices],
            }
            for planned in plan.guests
        ],
        "totals": {"interrupts": len(whole.actions), "to_pin": len(whole.pins)},
        **ended,
        "findings": findings_json(findings),
        "gaps": gaps_json(snapshot.gaps),
    }


def host_json(snapshot: Snapshot) -> dict[str, Any]:
    """What is known of the host itself."""
    topology, balance = snapshot.topology, snapshot.irqbalance
    return {
        "kernel": snapshot.kernel,
        "boot_id": snapshot.boot_id,
        "recording": snapshot.recording,
        "cpus": {
            "online": str(topology.online),
            "possible": str(topology.possible),
            "isolated": str(topology.isolated),
            "nohz_full": str(topology.nohz_full),
            "performance": str(topology.performance),
            "efficiency": str(topology.efficiency),
        },
        "nodes": [
            {
                "node": node.number,
                "cpus": str(node.cpus),
                "distances": {str(other): far for other, far in sorted(node.distances.items())},
            }
            for _, node in sorted(topology.nodes.items())
        ],
        "irqbalance": {
            "running": balance.running,
            "pid": balance.pid,
            "spares_vfio": balance.spares_vfio,
            "banned": list(balance.banned),
        },
        "posting": {"active": snapshot.posting.active, "basis": snapshot.posting.basis},
    }


def guest_json(guest: Guest, topology: Topology | None) -> dict[str, Any]:
    """A guest without its devices; without a topology no node of its vCPUs is known."""
    return {
        "name": guest.name,
        "uuid": guest.uuid,
        "id": guest.domain_id,
        "pid": guest.pid,
        "owner": guest.owner,
        "source": guest.source,
        "kind": guest.kind,
        "directive": _directive(guest.directive),
        "directive_from": guest.directive_from,
        "vcpus": [_vcpu(vcpu, topology) for vcpu in guest.vcpus],
        "emulator": _text(guest.emulator),
        "iothreads": {str(number): str(cpus) for number, cpus in sorted(guest.iothreads.items())},
        "memory_nodes": None if guest.memory_nodes is None else sorted(guest.memory_nodes),
        "problems": list(guest.problems),
    }


def _vcpu(vcpu: Vcpu, topology: Topology | None) -> dict[str, Any]:
    """`pinned`: whether it may not run just anywhere. `cpus` are all that are known it may use."""
    pinned = vcpu.cpus is not None and not (topology and wide(vcpu.cpus, topology))
    nodes = None
    if topology is not None and vcpu.cpus is not None:
        nodes = sorted({n for cpu in vcpu.cpus if (n := topology.node_of(cpu)) is not None})
    return {
        "vcpu": vcpu.index,
        "cpus": _text(vcpu.cpus),
        "pinned": pinned,
        "nodes": nodes,
        "thread": vcpu.tid,
        "realtime": vcpu.realtime,
    }


def _device(snapshot: Snapshot, rows: Rows, planned: DevicePlan) -> dict[str, Any]:
    device, pci = planned.device, snapshot.pci.get(planned.device.address)
    known = pci is not None and pci.vendor is not None and pci.device is not None
    return {
        "address": str(device.address),
        "alias": device.alias,
        "mac": device.mac,
        "element": device.source,
        "present": pci is not None,
        "class": pci and pci.kind,
        "id": f"{pci.vendor:04x}:{pci.device:04x}" if pci and known else None,
        "driver": pci and pci.driver,
        "physfn": None if pci is None or pci.physfn is None else str(pci.physfn),
        "directive": _directive(planned.directive),
        "directive_from": planned.directive_from,
        "target": _text(planned.target),
        "node": planned.node,
        "code": planned.code,
        "note": planned.note,
        "interrupts": [_interrupt(rows.of(action)) for action in planned.actions],
    }


def defined_json(guest: Guest, topology: Topology | None) -> dict[str, Any]:
    """A guest and its own settings, without the interrupts of its devices."""
    from virtirq.ui.settings_table import rows_of

    return {
        **guest_json(guest, topology),
        "devices": [row._asdict() for row in rows_of(guest)],
    }


def _directive(directive: Directive | None) -> str | None:
    return None if directive is None else str(directive)


def gaps_json(gaps: Iterable[Gap]) -> list[dict[str, str]]:
    return [{"path": gap.path, "error": gap.error} for gap in gaps]


def findings_json(findings: Iterable[Finding]) -> list[dict[str, str | None]]:
    """Findings, each with what its code means."""
    return [{**each.as_json(), "meaning": _meaning(each.code)} for each in findings]


def rates_json(told: Stakes | None, plan: Plan) -> dict[str, Any] | None:
    """Where interrupts were taken, of the guests of this plan; None where nothing was counted."""
    if told is None:
        return None
    names = {each.guest.name for each in plan.guests}
    return {
        "seconds": round(told.seconds, 3),
        "guests": [
            {
                "guest": each.guest,
                "own": round(each.own, 1),
                "others": {name: round(rate, 1) for name, rate in each.others.items()},
                "elsewhere": round(each.rest, 1),
            }
            for each in told.guests
            if each.guest in names
        ],
        "host_on_vcpus": round(told.host.total, 1),
    }


def _meaning(code: str) -> str | None:
    """None for a code that only another version of the daemon knows."""
    return ADVICE[code].meaning if code in ADVICE else None


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
        "irqbalance_told": daemon.spared,
    }


def config_json(config: Config) -> dict[str, Any]:
    """The effective configuration with where each setting came from."""
    from dataclasses import asdict

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


def _outcomes(outcomes: Iterable[Outcome]) -> dict[str, int]:
    return {status.value: number for status, number in count_outcomes(outcomes).items()}


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
        "name": row.name,
        "counts": row.counts and {str(cpu): count for cpu, count in sorted(row.counts.items())},
        "taken": row.taken,
        "taken_there": row.taken_there,
    }
    return shown | ({"hint": row.hint} if row.hint else {})


def _vcpu_from(follows: Follows | None) -> str | None:
    """Who has chosen the vCPU: the guest itself, or the spread of vectors over its vCPUs."""
    return None if follows is None else "guest" if follows.chosen else "spread"


def _text(cpus: CpuSet | None) -> str | None:
    return None if cpus is None else str(cpus)
