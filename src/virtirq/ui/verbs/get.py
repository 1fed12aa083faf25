"""``virtirq get``: a guest's settings, or what one of its devices is asked for."""

from __future__ import annotations

import argparse

from virtirq.control import libvirt_settings
from virtirq.guests.libvirt import connection as libvirt
from virtirq.guests.libvirt.connection import Affect
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.ui import arguments, inputs, report, settings_table
from virtirq.ui.document import Cell, Document
from virtirq.ui.output import Shown, show_all
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    return show_all(args, _get(inputs.uri_of(args), args))


def _get(uri: str, args: argparse.Namespace) -> Shown:
    with libvirt.connected(uri) as connection:
        domain = connection.find(args.guest)
        where = libvirt_settings.which(connection, domain, arguments.affect_of(args))
        xml = connection.xml(domain, inactive=where is Affect.CONFIG)
        there = libvirt_settings.definition(connection, domain, where)
        guest = parse_domain(xml, where=domain.name())
        only = (
            None
            if args.device is None
            else libvirt_settings.device_names(there, guest.name, args.device)
        )
    rows = [
        row
        for row in settings_table.rows(there, guest)
        if only is None or settings_table.is_named(row, only)
    ]
    data = {
        "schema": report.SCHEMA,
        "guest": guest.name,
        "where": where.words[0],
        "directive": settings_table.text(guest.directive),
        "directive_from": guest.directive_from,
        "devices": [row._asdict() for row in rows],
        "problems": list(guest.problems),
    }
    document = Document()
    told = settings_table.told
    if only is not None:
        for row in rows:
            document.line(told(row.directive, row.directive_from))
        if not rows:  # the device is gone, its setting is not
            setting = there.settings.of_device(only)
            directive = settings_table.text(setting and setting.directive)
            document.line(told(directive, "of a device that is gone"))
        return Shown(data, document)
    document.line(Cell(guest.name, "bold"), f" ({where.words[0]})")
    directive = settings_table.text(guest.directive)
    document.line(f"guest: {told(directive, guest.directive_from)}", indent=2)
    document.table(settings_table.table(rows))
    for problem in guest.problems:
        document.line(Cell(f"not understood: {problem}", "warn"), indent=2)
    return Shown(data, document)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guest(parser)
    arguments.device(parser)
    arguments.affected(parser, "as the guest runs", "as it is defined")


VERB = Verb(
    run,
    "show a guest's settings, or what one of its devices is asked for",
    arguments.KEPT
    + " With neither --live nor --config, as it runs; of one that does not, its definition.",
    _arguments,
    refused=arguments.RECORDED,
    own=("--config",),
)
