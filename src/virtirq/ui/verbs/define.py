"""``virtirq define``: domain XML with the RFC's ``<hostdev cpuset='…'>``, into libvirt."""

from __future__ import annotations

import argparse
from pathlib import Path

from virtirq.control import libvirt_settings, sources
from virtirq.errors import DomainXmlError, of_file
from virtirq.guests.libvirt import connection as libvirt
from virtirq.guests.libvirt.rfcxml import decode_document
from virtirq.ui import arguments, inputs, report
from virtirq.ui.document import Document
from virtirq.ui.output import Shown, show_all
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    return show_all(args, _define(inputs.uri_of(args), args.file, validate=args.validate))


def _define(uri: str, file: Path, *, validate: bool) -> Shown:
    try:
        data = sources.standard_input() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise of_file(file, error, DomainXmlError) from error
    try:
        text = decode_document(data)
        with libvirt.connected(uri, write=True) as connection:
            name, moved = libvirt_settings.define(connection, text, validate=validate)
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


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.completed_as_path(
        parser.add_argument("file", metavar="FILE", type=Path, help="domain XML; - for stdin")
    )
    parser.add_argument(
        "--validate", action="store_true", help="let libvirt check the XML against its schema"
    )


VERB = Verb(
    run,
    "define a guest from domain XML with the RFC's <hostdev cpuset='…'>",
    "The attribute may stand on <hostdev>, <interface> and <disk type='nvme'>; libvirt does"
    " not know it, so it is moved into the guest's <metadata>.",
    _arguments,
    refused=arguments.RECORDED,
)
