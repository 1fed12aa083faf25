"""``virtirq report``: one page for a colleague or a bug report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from virtirq.control.log_entry import LogEntry
from virtirq.errors import EXIT_OK, UsageError
from virtirq.model import counted
from virtirq.ui import arguments, inputs, pages, progress
from virtirq.ui.document import Document
from virtirq.ui.inputs import Inputs, View
from virtirq.ui.output import show
from virtirq.ui.report_page import STYLE, Measured, body
from virtirq.ui.screens import number_of
from virtirq.ui.verbs import Verb

_EVENTS: Final = 200
"""Events that are on the page."""
_LOGGED: Final = 5000
"""Entries of all guests among which those of some are looked for."""


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
    left_out, events = "", None
    if args.redact:
        from virtirq.ui.anonymous import anonymous

        view = anonymous(view, given.config)
        left_out = (
            "names, UUIDs and MAC addresses of guests, names of files, events, and what the daemon"
            " found"
        )
    elif args.sysroot is None:
        view, events = _events(view, args.guests)
    page = pages.html("virtirq report", body(view, measured, time.time(), events, left_out), STYLE)
    pages.write(args.output, page.encode())
    document = Document()
    document.line(
        f"{args.output}: {counted(len(view.plan.guests), 'guest')},"
        f" {counted(len(view.plan.actions), 'interrupt')}, {number_of(view.findings)}"
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


def _events(view: View, names: Sequence[str]) -> tuple[View, list[LogEntry]]:
    """The last of what has happened to these guests, all for no names; what is not read, too."""
    from virtirq.ui.events import history, journald

    progress.step("reading the journal")
    logged = journald.read(None, _LOGGED if names else _EVENTS)
    recent = view.daemon.recent if view.daemon else ()
    fits = history.wanted(names, None)
    known = history.merged((each.entry for each in logged.found), recent)
    snapshot = replace(view.snapshot, gaps=(*view.snapshot.gaps, *logged.gaps))
    return view._replace(snapshot=snapshot), [each for each in known if fits(each)][-_EVENTS:]


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
        "--redact",
        action="store_true",
        help="call guests guest-1 and so on, without events, for strangers",
    )


VERB = Verb(
    run,
    "write one page to send: picture, findings with advice, every interrupt, events, versions",
    "It has no script and loads nothing.",
    _arguments,
    refused=("--json",),
)
