"""``virtirq top``: how often each interrupt is taken, and where."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, Final

from virtirq.cpuset import CpuSet
from virtirq.errors import EXIT_OK, CpuSetError, UsageError
from virtirq.ui import arguments, inputs, progress, report
from virtirq.ui.top import screen, table
from virtirq.ui.top.app import App, Options
from virtirq.ui.top.sampler import Sampler
from virtirq.ui.top.screen import State
from virtirq.ui.top.table import View
from virtirq.ui.verbs import Verb

_UNITS: Final = {"": 1, "K": 1_000, "M": 1_000_000, "G": 1_000_000_000}


def run(args: argparse.Namespace) -> int:
    batch = args.batch or args.json
    if not batch and not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise UsageError("top needs a terminal", hint="--batch prints what it would show")
    view = View(args.by)
    names = None if args.output is None else tuple(table.columns(args.output, view))
    sort = "RATE" if args.sort is None else table.columns(args.sort, view)[-1]
    given = inputs.gather(args)

    def look() -> inputs.View:
        found = given if first else inputs.gather(args)
        first.clear()
        seen = inputs.look(found, args)
        with inputs.naming(found):
            return inputs.only(seen, args.guests)

    first = [True]
    state = State(view=view, sort=sort, columns=names, every=args.delay, marked=not batch)
    options = Options(args.cpu_list, args.threshold)
    app = App(Sampler(given.fs, look), state, options)
    progress.end()
    if batch:
        return _batch(args, app)
    from virtirq.ui.top import terminal

    terminal.run(app, args.iter)
    return EXIT_OK


def _batch(args: argparse.Namespace, app: App) -> int:
    count = 0
    while args.iter is None or count < args.iter:
        time.sleep(args.delay)
        app.update()
        if not args.quiet:
            told = [json.dumps(as_json(app))] if args.json else screen.plain(app.frame(), app.state)
            print("\n".join([""] * bool(count and not args.json) + told), flush=True)
        count += 1
    return EXIT_OK


def as_json(app: App) -> dict[str, Any]:
    """One update."""
    frame = app.frame()
    return {
        "schema": report.SCHEMA,
        "at": round(app.measured_at, 3),
        "seconds": round(frame.seconds, 3),
        "by": app.state.view.value,
        "interrupts": frame.of,
        "unread": frame.unread,
        "on_target": frame.places.target,
        "on_node": frame.places.node,
        "elsewhere": frame.places.elsewhere,
        "rows": [table.as_json(row) for row in frame.rows],
    }


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text[:9]) > 0 and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number above 0")
    return int(text)


def _threshold(text: str) -> int:
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    try:
        found = float(number) * _UNITS[unit]
        return int(found)
    except (ValueError, KeyError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r:.40} is not a number, such as 500 or 1.2K"
        ) from None


def _cpu_list(text: str) -> CpuSet:
    try:
        return CpuSet.parse(text)
    except CpuSetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guests(parser)
    parser.add_argument(
        "-b", "--batch", action="store_true", help="print each update, for a file or a pipe"
    )
    parser.add_argument(
        "--by",
        choices=[each.value for each in View],
        default=View.VECTOR.value,
        help="a line for each of these (vector); keys v, b, g and c",
    )
    parser.add_argument(
        "-C", "--cpu-list", metavar="LIST", type=_cpu_list, help="count on these CPUs alone"
    )
    parser.add_argument(
        "-d",
        "--delay",
        metavar="SECONDS",
        type=arguments.seconds(0.1, 86_400),
        default=2.0,
        help="between updates (2)",
    )
    parser.add_argument("-n", "--iter", metavar="N", type=_count, help="end after so many updates")
    arguments.completed(
        parser.add_argument(
            "-o",
            "--output",
            metavar="COLUMNS",
            help="these columns; +COLUMNS adds to the usual ones; a wrong name tells which there"
            " are",
        ),
        "columns",
    )
    arguments.completed(
        parser.add_argument(
            "-s",
            "--sort",
            metavar="COLUMN",
            help="in the order of this column (RATE); keys d, t, i, n",
        ),
        "column",
    )
    parser.add_argument(
        "-t",
        "--threshold",
        metavar="MIN",
        type=_threshold,
        default=0,
        help="leave out what counts less in all, such as 500 or 1.2K",
    )


VERB = Verb(
    run,
    "show how often each interrupt is taken, and whether where it should be",
    "Its options are those of irqtop(1): -d and -s mean --delay and --sort here, and a recorded"
    " host is named by --sysroot, or by -s before the verb. --json prints each update in one line."
    " Key h shows the keys.",
    _arguments,
    own=("-s", "-d"),
    lasts=True,
)
