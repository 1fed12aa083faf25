"""``virtirq dumpxml``: a guest's XML in the RFC's syntax, the inverse of ``define``."""

from __future__ import annotations

import argparse
import sys

from virtirq.errors import EXIT_OK
from virtirq.guests.libvirt import connection as libvirt
from virtirq.guests.libvirt.rfcxml import to_attributes
from virtirq.ui import arguments, inputs, progress, report
from virtirq.ui.document import Document
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    # With secrets only over a connection that may write.
    with libvirt.connected(inputs.uri_of(args), write=args.security_info) as connection:
        domain = connection.find(args.guest)
        xml = connection.xml(domain, inactive=args.inactive, secure=args.security_info)
        name, text = domain.name(), to_attributes(xml).text
    if args.json:
        data = {"schema": report.SCHEMA, "guest": name, "xml": text}
        show(args, lambda: data, Document)
    elif not args.quiet:
        progress.end()
        sys.stdout.write(text)  # as it is: no line may be folded
    return EXIT_OK


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guest(parser)
    parser.add_argument(
        "--inactive", action="store_true", help="what the guest is started from next"
    )
    parser.add_argument(
        "--security-info", action="store_true", help="with passwords, as define needs them"
    )


VERB = Verb(
    run,
    "print a guest's domain XML with the settings as <hostdev cpuset='…'>",
    "The inverse of define.",
    _arguments,
    refused=arguments.RECORDED,
)
