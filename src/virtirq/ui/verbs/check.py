"""``virtirq check``: what is wrong here, what is at stake, and what to do."""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Final

from virtirq.errors import EXIT_FINDINGS, EXIT_OK
from virtirq.host.fs import HostFs
from virtirq.host.interrupts import count_all, handlers
from virtirq.policy import stakes
from virtirq.policy.findings import in_order
from virtirq.ui import arguments, inputs, progress, report, screens
from virtirq.ui.inputs import Inputs, View
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb
from virtirq.values import replace

_RATES: Final = 1.0
"""Seconds that a running host is counted for."""


def run(args: argparse.Namespace) -> int:
    given = inputs.gather(args)
    view = inputs.look(given, args)
    # All that is to be said of the interrupts themselves is said by the plan and in the findings.
    whole = view = view._replace(snapshot=replace(view.snapshot, interrupts=()))
    with inputs.naming(given):
        view = inputs.only(whole, args.guests)
    told = _at_stake(given, whole, args)
    if told is not None:
        concerned = inputs.subjects(view.plan)
        more = stakes.findings(told, partial(_handlers, given.fs))
        some = (each for each in more if not args.guests or each.subject in concerned)
        view = view._replace(findings=in_order((*view.findings, *some)))
    show(
        args,
        lambda: {
            "schema": report.SCHEMA,
            "host": report.host_json(view.snapshot),
            "findings": report.findings_json(view.findings),
            "rates": report.rates_json(told, view.plan),
            "gaps": report.gaps_json(view.snapshot.gaps),
        },
        lambda: screens.with_gaps(screens.findings_screen(view.findings), view.snapshot),
    )
    return EXIT_FINDINGS if any(each.severity.rank for each in view.findings) else EXIT_OK


def _at_stake(given: Inputs, view: View, args: argparse.Namespace) -> stakes.Stakes | None:
    """None where nothing is counted: without guests, or in a recording, which stands still."""
    seconds = args.rates
    if seconds is None:
        seconds = _RATES if given.fs.recording is None else 0.0
    if not seconds or not view.plan.guests:
        return None
    progress.step(f"counting for {seconds:g} seconds")
    topology = view.snapshot.topology
    begun, before = time.monotonic(), dict(count_all(given.fs, topology.possible))
    time.sleep(seconds)
    given.fs.refresh()
    passed = time.monotonic() - begun
    # The second look is not kept, and most have counted nothing meanwhile.
    between = stakes.came(before, count_all(given.fs, topology.possible, before))
    return stakes.stakes(view.plan, topology, between, passed)


def _handlers(fs: HostFs, irq: int) -> tuple[str, ...]:
    """None where nobody can tell: it may have been freed since."""
    try:
        return handlers(fs, irq)
    except OSError:
        return ()


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guests(parser)
    parser.add_argument(
        "--rates",
        metavar="SECONDS",
        type=arguments.seconds(0, 3600),
        help=f"count interrupts for so long, 0 for not at all; else {_RATES:g} on a running host",
    )


VERB = Verb(
    run,
    "report findings, and how many interrupts go astray",
    "Exits 3 if any is a warning or worse. Those about the host are told where no GUEST is named.",
    _arguments,
)
