"""The screens of the verbs: Snapshot, Plan, Outcomes and Findings as documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from virtirq.control.cycle import Done
from virtirq.cpuset import CpuSet, union
from virtirq.model import (
    Action,
    DevicePlan,
    Finding,
    Gap,
    Guest,
    GuestPlan,
    Outcome,
    Pin,
    Plan,
    Severity,
    Snapshot,
    Status,
    counted,
)
from virtirq.policy.room import MAKES_ROOM
from virtirq.policy.target import anywhere, wide
from virtirq.ui.document import Cell, Document, Style, Table
from virtirq.ui.report import Row, Rows, count_outcomes
from virtirq.values import replace

if TYPE_CHECKING:
    from virtirq.control.daemon_status import DaemonStatus

_MANY: Final = 12
"""On a terminal, more rows than this that are in place are told in one line."""

_SEEN_AT_ONCE: Final = 9
"""Findings; of more, a line at the end says how many there are of what."""
_STYLES: Final[dict[str, Style]] = {
    "in-place": "good",
    "as-found": "good",
    "applied": "good",
    "unchanged": "good",
    "native": "dim",
    "pending": "warn",
    "in-use": "warn",
    "unread": "warn",
    "refused": "bad",
    "failed": "bad",
    "wrong-cpu": "bad",
    "wrong-node": "bad",
}
_SEVERITY: Final[dict[Severity, Style]] = {
    Severity.ERROR: "bad",
    Severity.WARNING: "warn",
    Severity.NOTE: "dim",
}
_SAY_ENOUGH: Final = frozenset(
    {
        *("in-place", "wrong-cpu", "wrong-node", "loose", "unknown-place", "pending", "native"),
        *("no-target", "target-offline"),
    }
)
"""Verdicts whose reason ``status`` leaves to ``plan`` and ``explain``."""


_STATUS_COLUMNS: Final = ("AFFINITY", "ON", "SHOULD BE", "VERDICT")


def status_screen(
    snapshot: Snapshot,
    plan: Plan,
    findings: Sequence[Finding],
    daemon: DaemonStatus | None,
    *,
    short: bool,
    stopped: Sequence[Guest] = (),
    whole: Plan | None = None,
) -> Document:
    """Guests, devices, vectors: where each is and where it should be. `short` for terminals.

    `stopped` are guests that are defined and do not run; `whole` is what `plan` is a part of.
    """
    document = Document()
    _host(document, snapshot)
    if snapshot.recording is None:
        _daemon(document, daemon)
    rows = Rows(snapshot)
    for guest in plan.guests:
        _guest(document, snapshot, guest)
        for device in guest.devices:
            _device(document, snapshot, device)
            _vectors(document, [rows.of(action) for action in device.actions], short=short)
    for each in stopped:
        document.line()
        count = _vcpus(snapshot, each)
        document.line(Cell(each.name, "bold"), f"  is defined but does not run, {count}")
        for held in each.devices:
            asked = held.directive or each.directive
            told = f"{asked} ({held.directive_from or each.directive_from})" if asked else ""
            document.line(Cell(str(held.address), "bold"), f"  {told}".rstrip(), indent=2)
    _endnotes(document, snapshot, whole or plan, findings)
    return document


def summary_screen(
    snapshot: Snapshot,
    plan: Plan,
    findings: Sequence[Finding],
    daemon: DaemonStatus | None,
    *,
    stopped: Sequence[Guest] = (),
) -> Document:
    """A line for each guest."""
    document = Document()
    _host(document, snapshot)
    if snapshot.recording is None:
        _daemon(document, daemon)
    document.line()
    rows = [_summary(snapshot, each, findings) for each in plan.guests]
    rows += [(Cell(each.name, "bold"), Cell("does not run"), *[Cell("-")] * 4) for each in stopped]
    document.table(
        Table(
            ("GUEST", "VCPUS", "DEVICES", "INTERRUPTS", "TO PIN", "FINDINGS"),
            tuple(rows),
            right=frozenset({2, 3, 4, 5}),
        )
    )
    _endnotes(document, snapshot, plan, findings)
    return document


def _summary(
    snapshot: Snapshot, planned: GuestPlan, findings: Sequence[Finding]
) -> tuple[Cell, ...]:
    actions = [action for device in planned.devices for action in device.actions]
    pins = sum(isinstance(action, Pin) for action in actions)
    name = planned.guest.name
    its = {name, *(f"{name} {device.device.address}" for device in planned.devices)}
    found = [each for each in findings if each.subject in its]
    worst = max((each.severity for each in found), key=lambda each: each.rank, default=None)
    return (
        Cell(name, "bold"),
        Cell(_vcpus(snapshot, planned.guest)),
        Cell(str(len(planned.devices))),
        Cell(str(len(actions))),
        Cell(str(pins), "warn" if pins else "good"),
        Cell(str(len(found)), _SEVERITY[worst] if worst else "good"),
    )


def problems_of(plan: Plan, findings: Sequence[Finding]) -> Plan:
    """What is to be pinned, cannot be, or has a finding that is a warning or worse."""
    subjects = {each.subject for each in findings if each.severity.rank}
    guests = []
    for guest in plan.guests:
        devices = []
        for device in guest.devices:
            wrong = tuple(each for each in device.actions if _is_problem(each))
            if wrong or f"{guest.guest.name} {device.device.address}" in subjects:
                devices.append(replace(device, actions=wrong))
        if devices or guest.guest.name in subjects:
            guests.append(replace(guest, devices=tuple(devices)))
    return Plan(tuple(guests))


def _is_problem(action: Action) -> bool:
    return isinstance(action, Pin) or _STYLES.get(action.reason.code) in ("warn", "bad")


def plan_screen(snapshot: Snapshot, plan: Plan) -> Document:
    """Every action with before, after and reason; the same lines in dry run and real run."""
    document = Document()
    rows = Rows(snapshot)
    for guest in plan.guests:
        for device in guest.devices:
            asked = device.directive or "restore"
            document.line(
                Cell(f"{guest.guest.name} {device.device.address}", "bold"),
                f"  {asked} ({device.directive_from}): {device.note}",
            )
            document.table(_plan_table(rows.of(action) for action in device.actions))
    pins, all_ = len(plan.pins), len(plan.actions)
    document.line(f"{pins} of {all_} interrupts to move, {all_ - pins} left as they are")
    return document


def outcome_screen(done: Done) -> Document:
    """What became of the plan: a sum, and a line for whatever did not simply work."""
    from virtirq.control.executor import NOT_TRIED

    document = Document()
    tried, not_tried, idle = list[Outcome](), Counter[str](), Counter[str]()
    for outcome in done.outcomes:
        if outcome.reason.startswith(NOT_TRIED):
            not_tried[outcome.reason.removeprefix(NOT_TRIED)] += 1
        else:
            tried.append(outcome)
    for outcome in tried:
        if _as_planned(outcome):
            continue
        if outcome.crowded and outcome.pin.idle:
            idle[outcome.reason] += 1
            continue
        document.line(
            Cell(outcome.status.value, _STYLES.get(outcome.status.value, "warn")),
            f": IRQ {outcome.pin.irq} {outcome.pin.key}: {outcome.reason}",
        )
    for reason, number in idle.items():
        refused = Cell(Status.REFUSED.value, _STYLES.get(Status.REFUSED.value, "warn"))
        document.line(refused, f": {number} that have never fired: {reason}")
    hints = {outcome.hint for outcome in done.outcomes if outcome.hint}
    for hint in sorted(hints):
        document.line(f"hint: {hint}")
    counted = [f"{number} {status.value}" for status, number in count_outcomes(tried).items()]
    counted += [f"{number} not tried ({why})" for why, number in not_tried.items()]
    document.line(", ".join(counted) or "nothing to move")
    return document


def _as_planned(outcome: Outcome) -> bool:
    """Whether there is no more to say than the plan's own line did."""
    if outcome.status is Status.UNCHANGED:
        from virtirq.control.executor import THERE

        return outcome.reason == THERE
    if outcome.pin.reason.code == MAKES_ROOM:
        return False  # the plan knew nothing of it
    return outcome.status is Status.APPLIED and outcome.reason == outcome.pin.reason.text


def findings_screen(findings: Sequence[Finding]) -> Document:
    """Findings, the worst first, each with what to do."""
    document = Document()
    for each in findings:
        document.line(
            Cell(each.severity.value, _SEVERITY[each.severity]),
            f": {each.code}: {each.subject}: {each.message}",
        )
        document.line(Cell(f"hint: {each.hint}", "dim"), indent=4)
    if not findings:
        document.line(Cell("nothing found", "good"))
    if len(findings) > _SEEN_AT_ONCE:
        codes = Counter(each.code for each in findings)
        parts = ", ".join(f"{number} {code}" for code, number in codes.most_common())
        document.line(f"{number_of(findings)}: {parts}")
    return document


def number_of(findings: Sequence[Finding]) -> str:
    """How many there are, and how many of them are warnings or worse."""
    worse = sum(each.severity is not Severity.NOTE for each in findings)
    return f"{counted(len(findings), 'finding')} ({counted(worse, 'warning')})"


def _host(document: Document, snapshot: Snapshot) -> None:
    topology = snapshot.topology
    parts = [f"Linux {snapshot.kernel}" if snapshot.kernel else "kernel not known"]
    parts.append(f"CPUs {topology.online} on {counted(len(topology.nodes) or 1, 'node')}")
    if topology.isolated:
        parts.append(f"isolated {topology.isolated}")
    running = snapshot.irqbalance.running
    if running is not None:
        parts.append("irqbalance runs" if running else "no irqbalance")
    if snapshot.recording is not None:
        parts.append(f"recorded host {snapshot.recording}")
    document.line(", ".join(parts))
    if not snapshot.guests:
        document.line("no guest with passed-through devices is known")


def _daemon(document: Document, daemon: DaemonStatus | None) -> None:
    if daemon is None:
        document.line(Cell("no daemon runs: what guests set up anew is not pinned", "dim"))
        return
    from datetime import datetime

    since = datetime.fromtimestamp(daemon.since).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    document.line(f"daemon runs since {since} (pid {daemon.pid}, {daemon.events}, {daemon.guests})")


def _guest(document: Document, snapshot: Snapshot, planned: GuestPlan) -> None:
    document.line()
    document.line(Cell(planned.guest.name, "bold"), f"  {_vcpus(snapshot, planned.guest)}")
    reader = snapshot.readers.get(planned.guest.key)
    if reader is not None:
        document.line(f"where it aims its vectors is read by {reader}", indent=2)
    if not planned.devices:
        document.line(Cell("no passed-through PCI devices", "dim"), indent=2)


def _vcpus(snapshot: Snapshot, guest: Guest) -> str:
    count = counted(len(guest.vcpus), guest.unit)
    topology = snapshot.topology
    pinned = union(vcpu.cpus for vcpu in guest.vcpus if vcpu.cpus and not wide(vcpu.cpus, topology))
    if not pinned:
        isolated = topology.general != topology.online
        return f"{count}, not pinned" + (f": on {anywhere(topology)}" if isolated else "")
    nodes = sorted({str(snapshot.topology.node_of(cpu)) for cpu in pinned})
    where = f" (node {', '.join(nodes)})" if "None" not in nodes else ""
    return f"{count} on CPUs {pinned}{where}"


def _device(document: Document, snapshot: Snapshot, device: DevicePlan) -> None:
    pci = snapshot.pci.get(device.device.address)
    kind = pci.kind if pci else "absent"
    node = f", node {device.node}" if device.node is not None else ""
    if pci and pci.physfn:
        kind += f" VF of {pci.physfn}"
    document.line(Cell(str(device.device.address), "bold"), f"  {kind}{node}", indent=2)
    document.line(f"{device.directive} ({device.directive_from}): {device.note}", indent=4)


def _vectors(document: Document, rows: list[Row], *, short: bool) -> None:
    if short and sum(row.status == "in-place" for row in rows) > _MANY:
        placed = [row for row in rows if row.status == "in-place"]
        rows = [row for row in rows if row.status != "in-place"]
        on = union(row.effective or row.before or CpuSet() for row in placed)
        irqs = sorted(row.irq for row in placed)
        count = counted(len(placed), "interrupt")
        told = f"{count} in place on CPUs {on} (IRQs {irqs[0]} to {irqs[-1]})"
        document.line(Cell(told, "good"), indent=4)
    # What was dealt says nothing of the guest: only what it has chosen itself is shown.
    chosen = any(row.follows and row.follows.chosen for row in rows)
    document.table(
        Table(
            ("VECTOR", "IRQ", *(("VCPU",) if chosen else ()), *_STATUS_COLUMNS),
            tuple(
                (
                    _cell(_vector(row)),
                    Cell(str(row.irq)),
                    *((_cell(_chosen(row)),) if chosen else ()),
                    _cell(shown(row.before)),
                    _cell(shown(row.effective)),
                    _cell(shown(row.after)),
                    _verdict(row),
                )
                for row in rows
            ),
            indent=4,
            right=frozenset({1}),
        )
    )


def _plan_table(rows: Iterable[Row]) -> Table:
    return Table(
        ("", "VECTOR", "IRQ", "BEFORE", "AFTER", "WHY"),
        tuple(
            (
                _cell("pin" if row.moves else "keep", "bold" if row.moves else "dim"),
                _cell(_vector(row)),
                Cell(str(row.irq)),
                _cell(shown(row.before)),
                _cell(shown(row.after) if row.moves else shown(row.before)),
                _cell(row.reason),
            )
            for row in rows
        ),
        indent=2,
        right=frozenset({2}),
    )


def _endnotes(
    document: Document, snapshot: Snapshot, plan: Plan, findings: Sequence[Finding]
) -> None:
    document.line()
    pins, all_ = len(plan.pins), len(plan.actions)
    told = f"{pins} of {all_} interrupts are to be pinned" if pins else "nothing to move"
    document.line(Cell(told, "warn" if pins else "good") if all_ else "no interrupts")
    if findings:
        document.line(f"{number_of(findings)}: see 'virtirq check'")
    gap_lines(document, snapshot.gaps)


def gap_lines(document: Document, gaps: Iterable[Gap]) -> None:
    """What could not be read, and why."""
    for gap in gaps:
        document.line(Cell(f"not read: {gap.path}: {gap.error}", "dim"))


def with_gaps(document: Document, snapshot: Snapshot) -> Document:
    """Says that something was not read: all of it where no guest is known, else where to look."""
    if not snapshot.guests:
        gap_lines(document, snapshot.gaps)
    elif snapshot.gaps:
        count = len(snapshot.gaps)
        what = "1 kind of file" if count == 1 else f"{count} kinds of file"
        document.line(f"{what} could not be read: 'virtirq status' lists them")
    return document


def _verdict(row: Row) -> Cell:
    """The word that JSON and metrics have for it, too."""
    text = row.status if row.status in _SAY_ENOUGH else f"{row.status}: {row.reason}"
    return _cell(text, _STYLES.get(row.status, "warn" if row.moves else "dim"))


def named(cpus: CpuSet) -> str:
    """``CPU 4`` or ``CPUs 4-7``."""
    return f"CPU {cpus}" if len(cpus) == 1 else f"CPUs {cpus}"


def _chosen(row: Row) -> str:
    """The vCPU that the guest has chosen for a vector."""
    return str(row.follows.vcpu) if row.follows and row.follows.chosen else "-"


def _vector(row: Row) -> str:
    return row.kind if row.vector is None else f"{row.kind} {row.vector}"


def shown(cpus: CpuSet | None) -> str:
    return "-" if cpus is None else str(cpus)


# A host may have a hundred thousand interrupts, whose rows say much the same.
_cell = lru_cache(4096)(Cell)
