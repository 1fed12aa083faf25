"""The verbs on libvirt's guests: their settings and definitions, and another host's guests."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from virtirq.control import libvirt_settings, sources
from virtirq.control.libvirt_settings import Changed, Definition
from virtirq.errors import DomainXmlError, of_file
from virtirq.guests.libvirt import connection as libvirt
from virtirq.guests.libvirt.connection import Affect
from virtirq.guests.libvirt.devices import Selector
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.guests.libvirt.rfcxml import decode_document, to_attributes
from virtirq.model import Directive, Gap, Guest
from virtirq.ui import report, screens
from virtirq.ui.document import Cell, Document, Table

_NOT_SET: Final = "not set"


class Shown(NamedTuple):
    data: Mapping[str, Any]
    document: Document


class Row(NamedTuple):
    """A device and what it is asked for; `directive` None: the configuration decides."""

    address: str | None
    alias: str | None
    mac: str | None
    element: str
    directive: str | None
    origin: str | None


def get(uri: str, args: argparse.Namespace) -> Shown:
    """A guest's settings, or what one of its devices is asked for."""
    with libvirt.connected(uri) as connection:
        domain = connection.find(args.guest)
        where = libvirt_settings.which(connection, domain, affect_of(args))
        xml = connection.xml(domain, inactive=where is Affect.CONFIG)
        there = libvirt_settings.definition(connection, domain, where)
        guest = parse_domain(xml, where=domain.name())
        only = (
            None
            if args.device is None
            else libvirt_settings.device_names(there, guest.name, args.device)
        )
    rows = [row for row in _rows(there, guest) if only is None or _named(row, only)]
    data = {
        "schema": report.SCHEMA,
        "guest": guest.name,
        "where": where.words[0],
        "directive": _text(guest.directive),
        "directive_from": guest.directive_from,
        "devices": [row._asdict() for row in rows],
        "problems": list(guest.problems),
    }
    document = Document()
    if only is not None:
        for row in rows:
            document.line(_told(row.directive, row.origin))
        if not rows:  # the device is gone, its setting is not
            setting = there.settings.of_device(only)
            document.line(_told(_text(setting and setting.directive), "of a device that is gone"))
        return Shown(data, document)
    document.line(Cell(guest.name, "bold"), f" ({where.words[0]})")
    document.line(f"guest: {_told(_text(guest.directive), guest.directive_from)}", indent=2)
    document.table(_table(rows))
    for problem in guest.problems:
        document.line(Cell(f"not understood: {problem}", "warn"), indent=2)
    return Shown(data, document)


def set_(uri: str, args: argparse.Namespace) -> Shown:
    return _change(uri, args, Directive.parse(args.directive))


def unset(uri: str, args: argparse.Namespace) -> Shown:
    return _change(uri, args, None)


def define(uri: str, args: argparse.Namespace) -> Shown:
    """Define a domain from XML in the RFC's syntax."""
    file: Path = args.file
    try:
        data = sources.standard_input() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise of_file(file, error, DomainXmlError) from error
    try:
        text = decode_document(data)
        with libvirt.connected(uri, write=True) as connection:
            name, moved = libvirt_settings.define(connection, text, validate=args.validate)
    except DomainXmlError as error:
        raise DomainXmlError(f"{file}: {error}", hint=error.hint) from error
    document = Document()
    document.line(f"{name} is defined")
    for selector, directive in moved.settings:
        document.line(f"{name} {selector.name} (config): {directive}")
    settings = [
        {"device": selector.name, "directive": str(directive)}
        for selector, directive in moved.settings
    ]
    return Shown({"schema": report.SCHEMA, "guest": name, "settings": settings}, document)


def dumpxml(uri: str, args: argparse.Namespace) -> Mapping[str, Any]:
    """A guest's XML in the RFC's syntax; with secrets only over a connection that may write."""
    with libvirt.connected(uri, write=args.security_info) as connection:
        domain = connection.find(args.guest)
        xml = connection.xml(domain, inactive=args.inactive, secure=args.security_info)
        return {
            "schema": report.SCHEMA,
            "guest": domain.name(),
            "xml": to_attributes(xml).text,
        }


def remote_status(uri: str) -> Shown:
    """The guests of another host: what they ask for, without that host's interrupts."""
    with libvirt.connected(uri) as connection:
        live = connection.guests(None)
    document = Document()
    for guest in live.guests:
        document.line(Cell(guest.name, "bold"), f"  {_vcpus(guest)}")
        document.table(_table(_rows_of(guest)))
        document.line()
    if not live.guests:
        document.line("no guest runs there")
    document.line(f"{uri} is another host: its interrupts are not read here; run virtirq there")
    screens.gap_lines(document, live.gaps)
    guests = [
        {
            "name": guest.name,
            "uuid": guest.uuid,
            "source": guest.source,
            "directive": _text(guest.directive),
            "directive_from": guest.directive_from,
            "devices": [row._asdict() for row in _rows_of(guest)],
        }
        for guest in live.guests
    ]
    gaps = report.gaps_json([*live.gaps, Gap("interrupts", f"on another host: {uri}")])
    return Shown(
        {"schema": report.SCHEMA, "guests": guests, "findings": [], "gaps": gaps}, document
    )


def _change(uri: str, args: argparse.Namespace, directive: Directive | None) -> Shown:
    with libvirt.connected(uri, write=True) as connection:
        changed = libvirt_settings.change(
            connection, args.guest, args.device, directive, affect_of(args), force=args.force
        )
        hint = changed.is_live and not connection.remote
    document = Document()
    for each in changed.changes:
        subject = f"{changed.guest} {each.subject}".rstrip()
        before = "unchanged" if each.before == each.after else f"was {each.before or _NOT_SET}"
        document.line(f"{subject} ({each.where}): {each.after or _NOT_SET}, {before}")
    if hint:
        document.line(Cell(f"hint: {_apply(changed)}", "dim"))
    changes = [each._asdict() for each in changed.changes]
    return Shown({"schema": report.SCHEMA, "guest": changed.guest, "changes": changes}, document)


def _apply(changed: Changed) -> str:
    return f"run 'virtirq apply {changed.guest}' to move its interrupts now"


def affect_of(args: argparse.Namespace) -> Affect | None:
    """What ``--live`` and ``--config`` ask for; None for neither."""
    affect = (Affect.LIVE if args.live else Affect(0)) | (
        Affect.CONFIG if args.config_ else Affect(0)
    )
    return affect or None


def _rows(there: Definition, guest: Guest) -> Iterator[Row]:
    """The guest's devices, those included that get their function when it starts."""
    yield from _rows_of(guest)
    for holder in there.held:
        if holder.pooled:
            own = there.settings.of_device(holder.selectors)
            directive = guest.directive if own is None else own.directive
            origin = guest.directive_from if own is None else "device metadata"
            yield Row(None, holder.alias, holder.mac, holder.tag, _text(directive), origin)


def _rows_of(guest: Guest) -> Iterator[Row]:
    for device in guest.devices:
        own = device.directive is not None
        yield Row(
            str(device.address),
            device.alias,
            device.mac,
            device.source,
            _text(device.directive if own else guest.directive),
            device.directive_from if own else guest.directive_from,
        )


def _named(row: Row, names: tuple[Selector, ...]) -> bool:
    return any(each.name in (row.address, row.alias, row.mac) for each in names)


def _table(rows: Iterator[Row] | list[Row]) -> Table:
    return Table(
        ("DEVICE", "ALIAS", "MAC", "ELEMENT", "SETTING", "FROM"),
        tuple(
            (
                Cell(row.address or "at start", "bold"),
                Cell(row.alias or "-"),
                Cell(row.mac or "-"),
                Cell(row.element),
                Cell(row.directive or "-"),
                Cell(row.origin or "not set: the configuration decides"),
            )
            for row in rows
        ),
        indent=2,
    )


def _told(directive: str | None, origin: str | None) -> str:
    if directive is None:
        return f"{_NOT_SET}: the configuration decides"
    return f"{directive} ({origin})"


def _vcpus(guest: Guest) -> str:
    pinned = [vcpu for vcpu in guest.vcpus if vcpu.cpus is not None]
    count = f"{len(guest.vcpus)} vCPU" + ("" if len(guest.vcpus) == 1 else "s")
    if not pinned:
        return f"{count}, not pinned"
    return f"{count}: " + ", ".join(f"{each.index} on {each.cpus}" for each in pinned)


def _text(directive: Directive | None) -> str | None:
    return None if directive is None else str(directive)
