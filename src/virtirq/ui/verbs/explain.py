"""``virtirq explain``: why an object is where it is, or what a finding means."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from virtirq.control import cycle
from virtirq.cpuset import CpuSet
from virtirq.errors import InputError, UnknownGuestError
from virtirq.model import (
    DevicePlan,
    Finding,
    Guest,
    GuestPlan,
    Interrupt,
    PciAddress,
    Plan,
    Snapshot,
    counted,
)
from virtirq.policy.advice import ADVICE
from virtirq.policy.target import anywhere, wide
from virtirq.ui import arguments, inputs, report, screens
from virtirq.ui.document import Cell, Document
from virtirq.ui.output import Shown, show_all
from virtirq.ui.report import Row, Rows
from virtirq.ui.verbs import Verb
from virtirq.values import replace


def run(args: argparse.Namespace) -> int:
    told = of_code(args.object)
    if told is None:
        given = inputs.gather(args)
        view = inputs.look(given, args, counts=True)
        with inputs.naming(given):
            told = of_object(args.object, view.snapshot, view.plan, view.findings)
    return show_all(args, told)


def of_code(code: str) -> Shown | None:
    """What a finding's code means and what to do; None when there is no such code."""
    advice = ADVICE.get(code)
    if advice is None:
        return None
    document = Document()
    document.line(Cell(code, "bold"), f" ({advice.severity.value})")
    document.line(advice.meaning)
    document.line(f"What to do: {advice.remedy}.")
    data = {
        "schema": report.SCHEMA,
        "code": code,
        "severity": advice.severity.value,
        "meaning": advice.meaning,
        "remedy": advice.remedy,
    }
    return Shown(data, document)


def of_object(name: str, snapshot: Snapshot, plan: Plan, findings: Sequence[Finding]) -> Shown:
    """Why a guest's, device's or single interrupt is where it is. Raises UnknownGuestError."""
    part = _part(name, plan)
    if not part.guests:
        raise UnknownGuestError(
            f"{name!r} is no guest, guest's device, IRQ of one, or code of a finding",
            hint=_meant(name, plan),
            name=name,
        )
    subjects = inputs.subjects(part)
    concerned = [each for each in findings if each.subject in subjects]
    return Shown(report.as_json(snapshot, part, concerned), explained(snapshot, part, concerned))


def _meant(name: str, plan: Plan) -> str:
    from difflib import get_close_matches

    guests = [each.guest.name for each in plan.guests]
    devices = [str(device.device.address) for each in plan.guests for device in each.devices]
    alike = get_close_matches(name, [*guests, *devices, *ADVICE], n=1)
    if alike:
        return f"did you mean {alike[0]}?"
    return "see 'virtirq status' for guests, devices and IRQs; codes: " + ", ".join(sorted(ADVICE))


def _part(name: str, plan: Plan) -> Plan:
    """The guests, devices and actions that `name` means."""

    meant = _guests(name, plan)

    def devices(guest: GuestPlan) -> tuple[DevicePlan, ...]:
        if meant:
            return guest.devices if guest.guest.key in meant else ()
        if name.isdecimal():
            return tuple(
                _only(device, int(name))
                for device in guest.devices
                if any(action.irq == int(name) for action in device.actions)
            )
        address = _address(name)
        return tuple(device for device in guest.devices if device.device.address == address)

    parts = (
        GuestPlan(guest.guest, devices(guest))
        for guest in plan.guests
        if devices(guest) or guest.guest.key in meant
    )
    return Plan(tuple(parts))


def _guests(name: str, plan: Plan) -> set[str]:
    """Keys of the guests of this UUID or name; an id would be taken for an IRQ's number."""
    guests = [replace(guest.guest, domain_id=None) for guest in plan.guests]
    try:
        return {guest.key for guest in cycle.called(name, guests)}
    except UnknownGuestError:
        return set()


def _only(device: DevicePlan, irq: int) -> DevicePlan:
    return replace(device, actions=tuple(a for a in device.actions if a.irq == irq))


def _address(name: str) -> PciAddress | None:
    try:
        return PciAddress.parse(name)
    except InputError:
        return None


def explained(snapshot: Snapshot, part: Plan, findings: Sequence[Finding]) -> Document:
    """Why all of this part of a plan is where it is."""
    document = Document()
    rows = Rows(snapshot)
    interrupts = {(each.irq, each.key): each for each in snapshot.interrupts}
    for planned in part.guests:
        _guest(document, planned.guest, snapshot)
        for device in planned.devices:
            _device(document, snapshot, device)
            for action in device.actions:
                interrupt = interrupts.get((action.irq, action.key))
                _interrupt(document, rows.of(action), interrupt)
    for finding in findings:
        document.line()
        document.line(Cell(finding.code, "bold"), f" ({finding.severity.value}): {finding.message}")
        document.line(ADVICE[finding.code].meaning, indent=2)
        document.line(f"What to do: {finding.hint}.", indent=2)
    return document


def _guest(document: Document, guest: Guest, snapshot: Snapshot) -> None:
    document.line(Cell(f"guest {guest.name}", "bold"), f", known from {guest.source}")
    for vcpu in guest.vcpus:
        topology = snapshot.topology
        cpus = (
            f"{anywhere(topology)}: not pinned"
            if wide(vcpu.cpus, topology)
            else screens.named(vcpu.cpus or CpuSet())
        )
        # A thread was looked at, or else it is what the guest's definition says.
        thread = "" if vcpu.tid is None else f" (thread {vcpu.tid})"
        document.line(f"{guest.unit} {vcpu.index}{thread} may run on {cpus}", indent=2)
    if guest.emulator is not None:
        document.line(f"its emulator may run on {screens.named(guest.emulator)}", indent=2)
    reader = snapshot.readers.get(guest.key)
    if reader is not None:
        document.line(f"where it aims its vectors is read by {reader}", indent=2)


def _device(document: Document, snapshot: Snapshot, device: DevicePlan) -> None:
    pci = snapshot.pci.get(device.device.address)
    document.line()
    document.line(
        Cell(f"device {device.device.address}", "bold"),
        f", {pci.kind if pci else 'absent'}, driver {(pci and pci.driver) or 'none'}, "
        + (f"node {device.node}" if device.node is not None else "no NUMA node"),
    )
    document.line(
        f"asked: {device.directive or 'restore'}, from the {device.directive_from}", indent=2
    )
    document.line(f"that means: {device.note}", indent=2)


def _interrupt(document: Document, row: Row, interrupt: Interrupt | None) -> None:
    name = interrupt.own_action if interrupt else None
    document.line(Cell(f"IRQ {row.irq}", "bold"), f" {name or row.kind}", indent=2)
    where = f"affinity {screens.shown(row.before)}, delivered to CPU {screens.shown(row.effective)}"
    document.line(where, indent=4)
    verdict = "left alone" if row.after is None else f"should be on {screens.named(row.after)}"
    document.line(f"{verdict}: {row.reason}", indent=4)
    if interrupt is not None and interrupt.counts:
        total = sum(interrupt.counts.values())
        right = sum(n for cpu, n in interrupt.counts.items() if row.after and cpu in row.after)
        told = f"{counted(total, 'interrupt')} so far"
        if row.after is not None:
            told += f", {right} of them there"
        document.line(told, indent=4)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.completed(
        parser.add_argument(
            "object",
            metavar="OBJECT",
            help="a guest, a PCI address, an IRQ number or a finding's code",
        ),
        "objects",
    )


VERB = Verb(run, "say why an object is where it is, or what a finding means", arguments=_arguments)
