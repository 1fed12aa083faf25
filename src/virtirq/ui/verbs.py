"""What each verb does: gather the inputs, walk the one way, print, give the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from virtirq.control import cycle, sources
from virtirq.control.cycle import Done
from virtirq.errors import EXIT_FAILED, EXIT_FINDINGS, EXIT_OK, EXIT_PARTIAL, EXIT_PERMISSION
from virtirq.host.fs import HostFs
from virtirq.model import Finding, Guest, Plan, Snapshot
from virtirq.policy.config import Config, render_config
from virtirq.policy.findings import findings as find
from virtirq.policy.placement import plan as make_plan
from virtirq.ui import report, screens
from virtirq.ui.document import Document


class Inputs(NamedTuple):
    fs: HostFs
    guests: tuple[Guest, ...]
    config: Config


class View(NamedTuple):
    snapshot: Snapshot
    plan: Plan
    findings: tuple[Finding, ...]


def status(args: argparse.Namespace) -> int:
    view = _view(args)
    _show(
        args,
        lambda: report.as_json(*view),
        lambda: screens.status_screen(*view, short=sys.stdout.isatty()),
    )
    return EXIT_OK


def plan(args: argparse.Namespace) -> int:
    view = _view(args)
    part = cycle.chosen(view.plan, args.guests)
    _show(
        args,
        lambda: report.as_json(view.snapshot, part, view.findings),
        lambda: screens.plan_screen(view.snapshot, part),
    )
    return EXIT_OK


def apply(args: argparse.Namespace) -> int:
    if args.dry_run:
        return plan(args)
    fs, guests, config = _inputs(args)
    done = cycle.apply(fs, guests, config, sources.state_dir(args.sysroot), args.guests)
    return _done(args, done)


def restore(args: argparse.Namespace) -> int:
    fs, guests, _ = _inputs(args)
    done = cycle.restore(fs, guests, sources.state_dir(args.sysroot), args.guests)
    return _done(args, done)


def check(args: argparse.Namespace) -> int:
    view = _view(args)
    _show(
        args,
        lambda: {
            "schema": report.SCHEMA,
            "findings": report.findings_json(view.findings),
            "gaps": report.gaps_json(view.snapshot),
        },
        lambda: screens.findings_screen(view.findings),
    )
    return EXIT_FINDINGS if any(each.severity.rank for each in view.findings) else EXIT_OK


def explain(args: argparse.Namespace) -> int:
    from virtirq.ui import explanation

    advice = explanation.of_code(args.object)
    if advice is None:
        advice = explanation.of_object(args.object, *_view(args))
    _show(args, lambda: advice.data, lambda: advice.document)
    return EXIT_OK


def record(args: argparse.Namespace) -> int:
    from virtirq.host.recording import record as write

    fs = sources.open_fs(args.sysroot)
    domains = sources.redacted_domains(fs, args.domains, keep_names=args.keep_names)
    count = write(fs, args.file, domains)
    document = Document()
    document.line(f"{args.file}: {count} files; try: virtirq --sysroot {args.file} status")
    _show(args, lambda: {"schema": report.SCHEMA, "files": count}, lambda: document)
    return EXIT_OK


def config(args: argparse.Namespace) -> int:
    loaded = sources.load_config(args.config, args.sysroot)
    document = Document()
    if args.what == "show":
        for line in render_config(loaded).splitlines():
            document.line(line)
    else:
        document.line("the configuration is valid")
    _show(args, lambda: {"schema": report.SCHEMA, "valid": True}, lambda: document)
    return EXIT_OK


def demo(args: argparse.Namespace) -> int:
    from virtirq.ui import tour

    return tour.copy_to(args.dir) if args.dir else tour.run()


def _inputs(args: argparse.Namespace) -> Inputs:
    config = sources.load_config(args.config, args.sysroot)
    fs = sources.open_fs(args.sysroot)
    return Inputs(fs, sources.load_guests(fs, args.domains), config)


def _view(args: argparse.Namespace) -> View:
    fs, guests, config = _inputs(args)
    snapshot = cycle.observe(fs, guests)
    planned = make_plan(snapshot, config)
    return View(snapshot, planned, find(snapshot, planned))


def _done(args: argparse.Namespace, done: Done) -> int:
    def document() -> Document:
        shown = screens.plan_screen(done.snapshot, done.plan)
        shown.blocks += screens.outcome_screen(done).blocks
        return shown

    def data() -> Mapping[str, Any]:
        found = find(done.snapshot, done.plan)
        return report.as_json(done.snapshot, done.plan, found, done.outcomes)

    _show(args, data, document)
    return exit_code(done)


def exit_code(done: Done) -> int:
    """5 where /proc/irq cannot be written, 4 where some and 1 where all pins failed, else 0."""
    bad = sum(outcome.status.bad for outcome in done.outcomes)
    if done.fault:
        return EXIT_PERMISSION
    if not bad:
        return EXIT_OK
    return EXIT_PARTIAL if bad < len(done.outcomes) else EXIT_FAILED


def _show(
    args: argparse.Namespace,
    data: Callable[[], Mapping[str, Any]],
    document: Callable[[], Document],
) -> None:
    if args.quiet:
        return
    if args.json:
        print(json.dumps(data(), indent=2))
    else:
        document().print()
