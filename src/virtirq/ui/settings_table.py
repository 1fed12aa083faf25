"""A guest's devices and what each is asked for, as rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from virtirq.control.libvirt_settings import Definition
from virtirq.guests.libvirt.devices import Selector
from virtirq.model import Directive, Guest
from virtirq.ui.document import Cell, Table

NOT_SET: Final = "not set"


class Row(NamedTuple):
    """A device and what it is asked for; `directive` None: the configuration decides."""

    address: str | None
    alias: str | None
    mac: str | None
    element: str
    directive: str | None
    directive_from: str | None


def rows(there: Definition, guest: Guest) -> Iterator[Row]:
    """The guest's devices, those included that get their function when it starts."""
    yield from rows_of(guest)
    for holder in there.held:
        if holder.pooled:
            own = there.settings.of_device(holder.selectors)
            directive = guest.directive if own is None else own.directive
            origin = guest.directive_from if own is None else "device metadata"
            yield Row(None, holder.alias, holder.mac, holder.tag, text(directive), origin)


def rows_of(guest: Guest) -> Iterator[Row]:
    for device in guest.devices:
        own = device.directive is not None
        yield Row(
            str(device.address),
            device.alias,
            device.mac,
            device.source,
            text(device.directive if own else guest.directive),
            device.directive_from if own else guest.directive_from,
        )


def is_named(row: Row, names: tuple[Selector, ...]) -> bool:
    return any(each.name in (row.address, row.alias, row.mac) for each in names)


def table(rows: Iterator[Row] | list[Row]) -> Table:
    return Table(
        ("DEVICE", "ALIAS", "MAC", "ELEMENT", "SETTING", "FROM"),
        tuple(
            (
                Cell(row.address or "at start", "bold"),
                Cell(row.alias or "-"),
                Cell(row.mac or "-"),
                Cell(row.element),
                Cell(row.directive or "-"),
                Cell(row.directive_from or "not set: the configuration decides"),
            )
            for row in rows
        ),
        indent=2,
    )


def told(directive: str | None, origin: str | None) -> str:
    if directive is None:
        return f"{NOT_SET}: the configuration decides"
    return f"{directive} ({origin})"


def text(directive: Directive | None) -> str | None:
    return None if directive is None else str(directive)
