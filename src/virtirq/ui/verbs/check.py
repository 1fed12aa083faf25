"""``virtirq check``: what is wrong here, and what to do."""

from __future__ import annotations

import argparse

from virtirq.errors import EXIT_FINDINGS, EXIT_OK
from virtirq.ui import inputs, report, screens
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    view = inputs.look(inputs.gather(args), args)
    show(
        args,
        lambda: {
            "schema": report.SCHEMA,
            "findings": [each.as_json() for each in view.findings],
            "gaps": report.gaps_json(view.snapshot.gaps),
        },
        lambda: screens.with_gaps(screens.findings_screen(view.findings), view.snapshot),
    )
    return EXIT_FINDINGS if any(each.severity.rank for each in view.findings) else EXIT_OK


VERB = Verb(run, "report findings", "Exits 3 if any is a warning or worse.")
