"""``virtirq config``: the effective configuration, or its errors."""

from __future__ import annotations

import argparse
import sys

from virtirq.control import sources
from virtirq.errors import EXIT_OK, ConfigError
from virtirq.policy.config import render_config
from virtirq.ui import report
from virtirq.ui.document import Document, printable
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    try:
        loaded = sources.load_config(args.config, args.sysroot)
    except ConfigError as error:
        if args.what == "show":
            raise
        *others, last = error.problems
        for each in others:
            print(printable(f"virtirq: error: {each}"), file=sys.stderr)
        raise ConfigError(last) from error
    document = Document()
    if args.what == "show":
        for line in render_config(loaded).splitlines():
            document.line(line)
    else:
        document.line("the configuration is valid")
    show(args, lambda: report.config_json(loaded), lambda: document)
    return EXIT_OK


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        choices=("show", "check"),
        metavar="{show,check}",
        help="effective values, or errors only",
    )


VERB = Verb(run, "show or check the configuration", arguments=_arguments)
