"""``virtirq status``: guests, devices and vectors: where each is, and where it should be."""

from __future__ import annotations

import argparse
import sys

from virtirq.errors import EXIT_OK
from virtirq.ui import inputs, report, screens
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    if inputs.asks_libvirt(args):
        from virtirq.guests.libvirt.connection import is_remote

        uri = inputs.libvirt_uri(args)
        if is_remote(uri):
            from virtirq.ui import elsewhere

            return elsewhere.status(args, uri)
    view = inputs.look(inputs.gather(args), args)
    show(
        args,
        lambda: {
            **report.as_json(view.snapshot, view.plan, view.findings),
            "daemon": report.daemon_json(view.daemon),
        },
        lambda: screens.status_screen(*view, short=sys.stdout.isatty()),
    )
    return EXIT_OK


VERB = Verb(run, "show guests, devices and vectors, and where each should be (the default)")
