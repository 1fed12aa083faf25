"""``virtirq check``: what is wrong here, and what to do."""

from __future__ import annotations

import argparse

from virtirq.errors import EXIT_FINDINGS, EXIT_OK
from virtirq.ui import arguments, inputs, report, screens
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    given = inputs.gather(args)
    view = inputs.look(given, args)
    with inputs.naming(given):
        view = inputs.only(view, args.guests)
    show(
        args,
        lambda: {
            "schema": report.SCHEMA,
            "host": report.host_json(view.snapshot),
            "findings": report.findings_json(view.findings),
            "gaps": report.gaps_json(view.snapshot.gaps),
        },
        lambda: screens.with_gaps(screens.findings_screen(view.findings), view.snapshot),
    )
    return EXIT_FINDINGS if any(each.severity.rank for each in view.findings) else EXIT_OK


VERB = Verb(
    run,
    "report findings",
    "Exits 3 if any is a warning or worse. Those about the host are told where no GUEST is named.",
    arguments.guests,
)
