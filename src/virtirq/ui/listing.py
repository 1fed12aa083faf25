"""``status`` as a list of interrupts, with util-linux's words for columns and their order.

The options are those of lsirq(1): ``--output``, ``--noheadings``, ``--pairs`` and ``--sort``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.errors import UsageError
from virtirq.model import DevicePlan, Directive, GuestPlan, PciDevice
from virtirq.ui.document import Cell, Document, Table
from virtirq.ui.inputs import View
from virtirq.ui.report import SCHEMA, Row, Rows


class _Entry(NamedTuple):
    guest: GuestPlan
    device: DevicePlan
    pci: PciDevice | None
    row: Row


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _shown(value: CpuSet | Directive | None) -> str | None:
    return None if value is None else str(value)


_Value = Callable[[_Entry], str | int | None]
COLUMNS: Final[dict[str, _Value]] = {
    "GUEST": lambda each: each.guest.guest.name,
    "DEVICE": lambda each: str(each.device.device.address),
    "CLASS": lambda each: each.pci.kind if each.pci else None,
    "DRIVER": lambda each: each.pci.driver if each.pci else None,
    "NODE": lambda each: each.device.node,
    "DIRECTIVE": lambda each: _shown(each.device.directive),
    "KIND": lambda each: each.row.kind,
    "VECTOR": lambda each: each.row.vector,
    "IRQ": lambda each: each.row.irq,
    "VCPU": lambda each: each.row.follows and each.row.follows.vcpu,
    "AFFINITY": lambda each: _shown(each.row.before),
    "ON": lambda each: _shown(each.row.effective),
    "WANTED": lambda each: _shown(each.row.after),
    "VERDICT": lambda each: each.row.status,
    "REASON": lambda each: each.row.reason,
    "TOTAL": lambda each: each.row.taken,
}
"""In the order of the help; their names are what --output, --sort and --pairs call them."""
DEFAULT: Final = ("GUEST", "DEVICE", "VECTOR", "IRQ", "AFFINITY", "ON", "WANTED", "VERDICT")
_NUMBERS: Final = frozenset({"NODE", "VECTOR", "IRQ", "VCPU", "TOTAL"})
_CPUS: Final = frozenset({"AFFINITY", "ON", "WANTED"})


class Listed(NamedTuple):
    """The columns' names, and a row for each interrupt."""

    names: Sequence[str]
    rows: Sequence[Sequence[str | int | None]]


def listed(args: argparse.Namespace, view: View) -> Listed:
    """Raises UsageError for a column that there is not."""
    names = _columns(args.output)
    entries = list(_entries(view))
    if args.sort:
        (by,) = _columns(args.sort)
        entries.sort(key=lambda each: _order(by, COLUMNS[by](each)))
    return Listed(names, [[COLUMNS[name](each) for name in names] for each in entries])


def as_json(found: Listed) -> dict[str, Any]:
    """As lsirq has it: an object for each row, by the columns' names in lower case."""
    names = [name.lower() for name in found.names]
    interrupts = [dict(zip(names, row, strict=True)) for row in found.rows]
    return {"schema": SCHEMA, "interrupts": interrupts}


def document(args: argparse.Namespace, found: Listed) -> Document:
    names = found.names
    rows = [[_text(value) for value in row] for row in found.rows]
    made = Document()
    if args.pairs:
        for row in rows:
            made.line(" ".join(f'{n}="{_quoted(v)}"' for n, v in zip(names, row, strict=True)))
        return made
    made.table(
        Table(
            tuple(names),
            tuple(tuple(Cell(value or "-") for value in row) for row in rows),
            right=frozenset(i for i, name in enumerate(names) if name in _NUMBERS),
            headed=not args.noheadings,
        )
    )
    return made


def _columns(text: str | None) -> Sequence[str]:
    """The names in a list; one that begins with + adds to the default, as util-linux has it."""
    if text is None:
        return DEFAULT
    names = [each.strip().upper() for each in text.removeprefix("+").split(",")]
    for name in names:
        if name not in COLUMNS:
            raise UsageError(f"there is no column {name!r}", hint=f"columns: {', '.join(COLUMNS)}")
    return (*DEFAULT, *names) if text.startswith("+") else names


def _entries(view: View) -> list[_Entry]:
    rows = Rows(view.snapshot)
    found: list[_Entry] = []
    for guest in view.plan.guests:
        for device in guest.devices:
            pci = view.snapshot.pci.get(device.device.address)
            found += [_Entry(guest, device, pci, rows.of(each)) for each in device.actions]
    return found


def _order(name: str, value: str | int | None) -> tuple[bool, int, str]:
    """What is not known comes last; numbers and CPUs by their value."""
    if value is None or value == "":
        return (True, 0, "")
    if isinstance(value, int):
        return (False, value, "")
    return (False, CpuSet.parse(value).first() if name in _CPUS else 0, value)


def _quoted(text: str) -> str:
    """As a shell reads it between double quotes."""
    return "".join(f"\\{each}" if each in '"\\$`' else each for each in text)
