"""``virtirq events``: what was moved, by whom, when and why, and what virtirq did."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Final

from virtirq.control.cycle import STATE_DIR
from virtirq.control.log_entry import LogEntry
from virtirq.errors import EXIT_OK, BusyError, UsageError
from virtirq.model import Gap
from virtirq.ui import arguments, progress, report, screens
from virtirq.ui.document import Document
from virtirq.ui.events import history, journald, when
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb
from virtirq.ui.width import cells

if TYPE_CHECKING:
    from virtirq.control.daemon_status import DaemonStatus

_MOST: Final = 1000
"""Entries that are told where nobody says how many, or since when."""
_PAUSE: Final = 1.0
"""Seconds between two questions to a daemon that is followed."""
_REFUSED: Final = ("--sysroot", "--domain", "--config", "--connect")


def run(args: argparse.Namespace) -> int:
    if args.sysroot is not None or args.domains or args.config or args.connect:
        raise UsageError("events are this machine's daemon's", hint="leave out -s, --domain and -c")
    now = datetime.now().astimezone()
    since = None if args.since is None else when.parse(args.since, now)
    most = args.lines or (None if args.since else _MOST)
    progress.step("reading the journal")
    began = time.time()
    # Of some guests, so many entries may be few among those of others.
    logged = journald.read(since, None if args.guests else most and most + 1)
    daemon, gaps = _ask()
    running = daemon is not None or bool(gaps)  # or else it cannot be told
    gaps += logged.gaps
    fits = history.wanted(args.guests, since)
    known = history.merged([each.entry for each in logged.found], daemon.recent if daemon else ())
    found = [each for each in known if fits(each)]
    cut = most is not None and len(found) > most
    found = found[-most:] if most is not None else found
    if not (args.follow and args.json):
        show(
            args,
            lambda: {
                "schema": report.SCHEMA,
                "events": [history.as_json(each) for each in found],
                "gaps": report.gaps_json(gaps),
            },
            lambda: _document(args, found, gaps, cut=cut, running=running),
        )
    if args.follow:
        progress.end()
        _follow(args, daemon, logged, began, found)
    return EXIT_OK


def _ask() -> tuple[DaemonStatus | None, tuple[Gap, ...]]:
    """The daemon, if it runs; and what it cannot tell."""
    from virtirq.control.daemon_status import ask

    try:
        return ask(STATE_DIR), ()
    except BusyError as error:
        return None, (Gap("daemon", str(error)),)


def _document(
    args: argparse.Namespace,
    found: Sequence[LogEntry],
    gaps: Sequence[Gap],
    *,
    cut: bool,
    running: bool,
) -> Document:
    made = history.document(found, _told)
    if not found:
        of = f" of {', '.join(args.guests)}" if args.guests else ""
        what = f"nothing{of} since {args.since}" if args.since else f"nothing{of} since the boot"
        made.line(f"{what} is known to the daemon or the journal")
        if not running:
            made.line("no daemon runs: what guests do is not followed, nor who moves interrupts")
    elif cut:
        made.line(f"the last {len(found)}; --since or --lines show more")
    screens.gap_lines(made, gaps)
    return made


def _told(at: float) -> str:
    """The time of day, and the day unless it is today."""
    there = datetime.fromtimestamp(at).astimezone()
    today = there.date() == datetime.now().astimezone().date()
    return there.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def _follow(
    args: argparse.Namespace,
    daemon: DaemonStatus | None,
    logged: journald.Read,
    began: float,
    found: Sequence[LogEntry],
) -> None:
    """Until Ctrl-C. What has been `logged`, when that `began`, is not told again."""
    first = found if args.json else ()
    fits = history.wanted(args.guests, None)
    widest = max((cells(each.fields.get("guest", "")) for each in found), default=0)
    # A daemon whose log goes elsewhere, or that this user's journal hides, is asked itself.
    pids = {each.pid for each in logged.found}
    journaled = daemon.pid in pids if daemon is not None else bool(pids)
    try:
        for entry in chain(first, _journal(logged, began) if journaled else _daemon(daemon)):
            if not fits(entry) or args.quiet:
                continue
            if args.json:
                told = {"schema": report.SCHEMA, "event": history.as_json(entry)}
                print(json.dumps(told), flush=True)
                continue
            made = Document()
            made.table(history.table([entry], _told, headed=False, widest=widest))
            made.print()
            sys.stdout.flush()
    except KeyboardInterrupt:
        return


def _journal(logged: journald.Read, began: float) -> Iterator[LogEntry]:
    """From when it was read: what came meanwhile is not lost."""
    known = {(each.entry.at, each.entry.message) for each in logged.found}
    with journald.following(began) as entries:
        for each in entries:
            if (each.entry.at, each.entry.message) not in known:
                yield each.entry


def _daemon(daemon: DaemonStatus | None) -> Iterator[LogEntry]:
    """What the daemon logs, asked for now and then; one that comes later is asked, too."""
    last = daemon.recent[-1].at if daemon and daemon.recent else time.time()
    while True:
        time.sleep(_PAUSE)
        daemon, _ = _ask()
        for each in daemon.recent if daemon else ():
            if each.at > last:
                last = each.at
                yield each


def _lines(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 8 and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number above 0")
    return int(text)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.completed(
        parser.add_argument(
            "guests",
            metavar="GUEST",
            nargs="*",
            help="name or glob; all that happened, for none",
        ),
        "guests",
    )
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C"
    )
    parser.add_argument(
        "--since", metavar="TIME", help="such as 90min, 2h, 3d, 03:00, today or '2026-11-30 03:00'"
    )
    parser.add_argument(
        "-n", "--lines", metavar="N", type=_lines, help=f"the last N ({_MOST}, without --since)"
    )


VERB = Verb(
    run,
    "show what was moved, by whom, when and why",
    "Told from the journal, by journalctl, since the boot; the running daemon itself remembers its"
    " last 500 entries, which any user may read. --follow --json prints an event in each line.",
    _arguments,
    refused=_REFUSED,
    lasts=True,
)
