"""``virtirq help``: what there is, or what a verb takes."""

from __future__ import annotations

import argparse

from virtirq.errors import EXIT_OK
from virtirq.ui import arguments, report, verbs
from virtirq.ui.document import Document
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    from virtirq.ui.cli import no_such_verb, parser_of

    if args.topic is not None and args.topic not in verbs.NAMES:
        raise no_such_verb(args.topic)
    if args.json:
        names = verbs.NAMES if args.topic is None else [args.topic]
        told = [{"verb": name, "does": verbs.load(name).help} for name in names]
        show(args, lambda: {"schema": report.SCHEMA, "verbs": told}, Document)
    else:
        parser_of(args.topic).print_help()
    return EXIT_OK


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.completed(
        parser.add_argument("topic", metavar="VERB", nargs="?", help="a verb; all for none"),
        "verbs",
    )


VERB = Verb(run, "show what there is, or what a verb takes", arguments=_arguments)
