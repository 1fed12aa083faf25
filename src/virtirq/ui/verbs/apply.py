"""``virtirq apply``: one cycle: plan, write, read back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from virtirq.control import cycle, sources
from virtirq.model import Finding, counted
from virtirq.ui import arguments, inputs, progress
from virtirq.ui.output import show_done
from virtirq.ui.verbs import Verb, plan


def run(args: argparse.Namespace) -> int:
    if args.dry_run:
        return plan.run(args)
    given = inputs.gather(args, must=True)
    state = sources.state_dir(args.sysroot)
    progress.step(f"pinning the interrupts of {counted(len(given.guests), 'guest')}")
    with inputs.naming(given):
        done = cycle.apply(
            given.fs, given.guests, given.config, state, args.guests, counts=args.json
        )
    if args.sysroot is None:
        from virtirq.ui.events import own

        own.tell(done, "pin", "apply")

    def findings() -> Sequence[Finding]:
        given.fs.refresh()
        view = inputs.seen(given.fs, given.guests, given.config, given.found.gaps, None)
        return view.findings

    return show_done(args, done, findings)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.dry_run(parser)
    arguments.guests(parser)


VERB = Verb(run, "pin the interrupts: plan, write, read back", arguments=_arguments)
