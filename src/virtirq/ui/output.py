"""Prints what a verb has to show: JSON or a document, or nothing where that is asked."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from virtirq.control.cycle import Done
from virtirq.errors import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL, EXIT_PERMISSION
from virtirq.model import Finding
from virtirq.ui import progress, report, screens
from virtirq.ui.document import Document


class Shown(NamedTuple):
    data: Mapping[str, Any]
    document: Document


def show(
    args: argparse.Namespace,
    data: Callable[[], Mapping[str, Any]],
    document: Callable[[], Document],
) -> None:
    """Only what is asked for is made."""
    progress.end()
    if args.quiet:
        return
    if args.json:
        import json

        print(json.dumps(data(), indent=2))
    else:
        document().print()


def show_all(args: argparse.Namespace, shown: Shown) -> int:
    """For a verb that has no more to do."""
    show(args, lambda: shown.data, lambda: shown.document)
    return EXIT_OK


def show_done(
    args: argparse.Namespace, done: Done, found: Callable[[], Sequence[Finding]] = tuple
) -> int:
    """Tell what was done; `found` is asked for what is to be said afterwards. The exit code."""

    def document() -> Document:
        shown = screens.plan_screen(done.snapshot, done.plan)
        shown.blocks += screens.outcome_screen(done).blocks
        return shown

    def data() -> Mapping[str, Any]:
        return report.as_json(done.snapshot, done.plan, found(), done.outcomes)

    show(args, data, document)
    return exit_code(done)


def exit_code(done: Done) -> int:
    """5 where /proc/irq cannot be written, 4 where some and 1 where all pins failed, else 0."""
    bad = sum(outcome.status.bad for outcome in done.outcomes)
    if done.fault:
        return EXIT_PERMISSION
    if not bad:
        return EXIT_OK
    return EXIT_PARTIAL if bad < len(done.outcomes) else EXIT_FAILED
