"""``virtirq plan``: what would change, and why."""

from __future__ import annotations

import argparse

from virtirq.control import cycle
from virtirq.errors import EXIT_OK
from virtirq.ui import arguments, inputs, report, screens
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    found = inputs.gather(args)
    view = inputs.look(found, args, counts=args.json)
    with inputs.naming(found):
        part = cycle.chosen(view.plan, args.guests)
    show(
        args,
        lambda: report.as_json(view.snapshot, part, view.findings),
        lambda: screens.with_gaps(screens.plan_screen(view.snapshot, part), view.snapshot),
    )
    return EXIT_OK


VERB = Verb(run, "show what would change and why", arguments=arguments.guests)
