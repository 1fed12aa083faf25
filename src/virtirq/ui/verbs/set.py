"""``virtirq set``: what a guest, or one of its devices, is asked for, kept in libvirt."""

from __future__ import annotations

import argparse

from virtirq.control import libvirt_settings
from virtirq.guests.libvirt import connection as libvirt
from virtirq.model import Directive
from virtirq.ui import arguments, inputs, report
from virtirq.ui.document import Cell, Document
from virtirq.ui.output import Shown, show_all
from virtirq.ui.settings_table import NOT_SET
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    uri = inputs.uri_of(args)
    return show_all(args, change(uri, args, Directive.parse(args.directive)))


def change(uri: str, args: argparse.Namespace, directive: Directive | None) -> Shown:
    """Set it; None takes the setting out."""
    with libvirt.connected(uri, write=True) as connection:
        changed = libvirt_settings.change(
            connection,
            args.guest,
            args.device,
            directive,
            arguments.affect_of(args),
            force=args.force,
        )
        hint = changed.is_live and not connection.remote
    command = arguments.again(args, "apply", changed.guest) if hint else None
    document = Document()
    for each in changed.changes:
        subject = f"{changed.guest} {each.subject}".rstrip()
        before = "unchanged" if each.before == each.after else f"was {each.before or NOT_SET}"
        document.line(f"{subject} ({each.where}): {each.after or NOT_SET}, {before}")
    if command:
        document.line(Cell(f"hint: run '{command}' to move its interrupts now", "dim"))
    changes = [each._asdict() for each in changed.changes]
    data = {
        "schema": report.SCHEMA,
        "guest": changed.guest,
        "changes": changes,
        "next": command,
    }
    return Shown(data, document)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guest(parser)
    arguments.device(parser, "settable")
    arguments.completed(
        parser.add_argument(
            "directive",
            metavar="DIRECTIVE",
            help="auto, native, emulator, local or a CPU list such as 2-5,^3",
        ),
        "directives",
    )
    arguments.affected(parser, "change the running guest", "change what it is started from next")
    arguments.force(parser)


VERB = Verb(
    run,
    "set what a guest, or one of its devices, is asked for",
    arguments.STORED,
    _arguments,
    refused=arguments.RECORDED,
    own=("--config",),
)
