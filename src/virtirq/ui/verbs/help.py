"""``virtirq help``: what there is, or what a verb takes."""

from __future__ import annotations

import argparse

from virtirq.errors import EXIT_OK
from virtirq.ui import verbs
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    from virtirq.ui.cli import no_such_verb, parser_of

    if args.topic is not None and args.topic not in verbs.NAMES:
        raise no_such_verb(args.topic)
    parser_of(args.topic).print_help()
    return EXIT_OK


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", metavar="VERB", nargs="?", help="a verb; all for none")


VERB = Verb(run, "show what there is, or what a verb takes", arguments=_arguments)
