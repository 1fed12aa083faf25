"""``virtirq report``: one page for a colleague or a bug report."""

from __future__ import annotations

import argparse
import time

from virtirq.errors import EXIT_OK, UsageError
from virtirq.ui import arguments, inputs, pages, progress
from virtirq.ui.document import Document
from virtirq.ui.inputs import Inputs, View
from virtirq.ui.output import show
from virtirq.ui.report_page import STYLE, Measured, body
from virtirq.ui.screens import plural
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    if args.json:
        raise UsageError(
            "a report is a page, not JSON", hint="'virtirq status --json' tells what is in it"
        )
    pages.suffix_of(args.output, (".html",))
    given = inputs.gather(args)
    view, measured = _seen(given, args)
    with inputs.naming(given):
        view = inputs.only(view, args.guests)
    left_out = ""
    if args.redact:
        from virtirq.ui.anonymous import anonymous

        view = anonymous(view, given.config)
        left_out = "names, UUIDs and MAC addresses of guests, and what the daemon found"
    page = pages.html("virtirq report", body(view, measured, time.time(), left_out), STYLE)
    pages.write(args.output, page.encode())
    document = Document()
    warnings = sum(each.severity.rank > 0 for each in view.findings)
    document.line(
        f"{args.output}: {plural(len(view.plan.guests), 'guest')},"
        f" {plural(len(view.plan.actions), 'interrupt')},"
        f" {plural(len(view.findings), 'finding')}, {warnings} of them warnings"
    )
    if str(args.output) != pages.STDOUT:
        show(args, dict, lambda: document)
    return EXIT_OK


def _seen(given: Inputs, args: argparse.Namespace) -> tuple[View, Measured | None]:
    """The host, and how often each interrupt came, where that is asked for."""
    first = inputs.look(given, args, counts=True)
    if args.rates is None:
        return first, None
    progress.step(f"counting for {args.rates:g} seconds")
    begun = time.monotonic()
    time.sleep(args.rates)
    view = inputs.look(given, args, counts=True)
    return view, Measured.between(first.snapshot, view.snapshot, time.monotonic() - begun)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guests(parser)
    arguments.output(parser, "the page, an .html; - for stdout")
    parser.add_argument(
        "--rates",
        metavar="SECONDS",
        type=arguments.seconds(0.1, 3600),
        help="count interrupts for so long, and tell how many there were a second",
    )
    parser.add_argument(
        "--redact", action="store_true", help="call guests guest-1 and so on, for strangers"
    )


VERB = Verb(
    run,
    "write one page to send: picture, findings with advice, every interrupt, versions",
    "It has no script and loads nothing.",
    _arguments,
    refused=("--json",),
)
