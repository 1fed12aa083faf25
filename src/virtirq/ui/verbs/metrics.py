"""``virtirq metrics``: the page of metrics once, for a textfile collector."""

from __future__ import annotations

import argparse
import sys

from virtirq.errors import EXIT_OK, UsageError
from virtirq.ui import inputs, progress, prometheus
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    if args.json:
        raise UsageError("metrics are Prometheus text: leave out --json")
    given = inputs.gather(args)
    vectors = given.config.metrics.vectors
    view = inputs.look(given, args, counts=vectors)
    progress.end()
    if not args.quiet:
        sys.stdout.writelines(prometheus.pieces(*view, vectors=vectors))
    return EXIT_OK


VERB = Verb(run, "print Prometheus metrics once, for a textfile collector", refused=("--json",))
