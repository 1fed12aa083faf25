"""``virtirq status``: guests, devices and vectors: where each is, and where it should be."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from virtirq.control import cycle
from virtirq.errors import EXIT_OK, UnknownGuestError
from virtirq.model import Guest, Plan
from virtirq.ui import arguments, inputs, report, screens
from virtirq.ui.document import Document
from virtirq.ui.inputs import View
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    if inputs.asks_libvirt(args):
        from virtirq.guests.libvirt.connection import is_remote

        uri = inputs.libvirt_uri(args)
        if is_remote(uri):
            from virtirq.ui import elsewhere

            return elsewhere.status(args, uri)
    names = args.guests
    given = inputs.gather(args, defined=args.all)
    view = inputs.look(given, args, counts=args.json or _is_listing(args))
    stopped = given.found.stopped
    with inputs.naming(given):
        view = inputs.only(view, names, stopped)
    if names:
        named = [guest for name in names for guest in _called(name, stopped)]
        stopped = tuple(guest for guest in stopped if guest in named)
    whole = view.plan
    if args.problems:
        view = view._replace(plan=screens.problems_of(view.plan, view.findings))
    if _is_listing(args):
        from virtirq.ui import listing

        listed = listing.listed(args, view)
        show(args, lambda: listing.as_json(listed), lambda: listing.document(args, listed))
        return EXIT_OK
    show(
        args,
        lambda: {
            **report.as_json(view.snapshot, view.plan, view.findings, whole=whole),
            **({"defined": _defined(view, stopped)} if args.all else {}),
            "daemon": report.daemon_json(view.daemon),
        },
        lambda: _screen(args, view, stopped, whole),
    )
    return EXIT_OK


def _defined(view: View, stopped: tuple[Guest, ...]) -> list[dict[str, Any]]:
    return [report.defined_json(each, view.snapshot.topology) for each in stopped]


def _called(name: str, guests: tuple[Guest, ...]) -> list[Guest]:
    try:
        return cycle.called(name, guests, globs=True)
    except UnknownGuestError:
        return []


def _screen(
    args: argparse.Namespace, view: View, stopped: tuple[Guest, ...], whole: Plan
) -> Document:
    if not args.summary:
        document = screens.status_screen(
            *view, short=sys.stdout.isatty(), stopped=stopped, whole=whole
        )
        if args.guests or args.problems or len(view.plan.guests) < 2 or not _is_beyond(document):
            return document
    document = screens.summary_screen(*view, stopped=stopped)
    if not args.summary:
        document.line(
            "'virtirq status GUEST' shows one of them, 'virtirq status --problems' what is not as"
            " it should be, 'virtirq status | less' all"
        )
    return document


def _is_listing(args: argparse.Namespace) -> bool:
    """Whether a list of interrupts is asked for, which may have how often each was taken."""
    return bool(args.output or args.noheadings or args.pairs or args.sort)


def _is_beyond(document: Document) -> bool:
    """Whether it is more than a screenful of the terminal that it goes to."""
    try:
        lines = os.get_terminal_size(sys.stdout.fileno()).lines
    except (OSError, ValueError):
        return False
    return 0 < lines < len(document.plain().splitlines())


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guests(parser)
    parser.add_argument(
        "-a", "--all", action="store_true", help="with guests that are defined and do not run"
    )
    parser.add_argument("--problems", action="store_true", help="only what is not as it should be")
    parser.add_argument("--summary", action="store_true", help="a line for each guest")
    _listing(parser)


def _listing(parser: argparse.ArgumentParser) -> None:
    """As lsirq(1) has them."""
    arguments.completed(
        parser.add_argument(
            "-o",
            "--output",
            metavar="COLUMNS",
            help="a list of interrupts with these columns; +COLUMNS adds to the usual ones; a wrong"
            " name tells which there are",
        ),
        "columns",
    )
    parser.add_argument(
        "-n", "--noheadings", action="store_true", help="that list without its head"
    )
    parser.add_argument("-P", "--pairs", action="store_true", help='that list as COLUMN="value"')
    arguments.completed(
        parser.add_argument(
            "--sort", metavar="COLUMN", help="that list in the order of this column"
        ),
        "column",
    )


VERB = Verb(
    run,
    "show guests, devices and vectors, and where each should be (the default)",
    "On a terminal, more than a screenful becomes --summary. With --output and its like, a list of"
    " interrupts, a line each.",
    _arguments,
)
