"""``virtirq restore``: affinities as they were found, from the journal."""

from __future__ import annotations

import argparse

from virtirq.control import cycle, sources
from virtirq.control.cycle import STATE_DIR
from virtirq.errors import EXIT_OK, BusyError, VirtirqError
from virtirq.model import counted
from virtirq.ui import arguments, inputs, progress, report, screens
from virtirq.ui.complaint import complain
from virtirq.ui.output import show, show_done
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    daemon = None if args.dry_run else inputs.daemon_of(args)
    if daemon is not None:
        raise BusyError(
            f"a daemon runs (pid {daemon.pid}) and would move them again",
            hint="stop it first, or have it leave a guest alone: 'virtirq set GUEST native'",
        )
    given = inputs.gather(args, claims=False, undoing=True)
    state = sources.state_dir(args.sysroot)
    progress.step(f"putting back the interrupts of {counted(len(given.guests), 'guest')}")
    with inputs.naming(given):
        done = cycle.restore(
            given.fs, given.guests, state, args.guests, dry_run=args.dry_run, counts=args.json
        )
    if args.dry_run:
        show(
            args,
            lambda: report.as_json(done.snapshot, done.plan, ()),
            lambda: screens.plan_screen(done.snapshot, done.plan),
        )
        return EXIT_OK
    if args.sysroot is None:
        from virtirq.ui.events import own

        own.tell(done, "restore", "restore")
    code = show_done(args, done)
    return code if args.guests or args.sysroot is not None else _release(code, as_json=args.json)


def _release(code: int, *, as_json: bool) -> int:
    """Gives irqbalance its freedom back, too; `code`, or that it could not be told."""
    from virtirq.control.irqbalance import IrqbalanceClient, State

    bans = IrqbalanceClient(STATE_DIR, sources.open_fs(None))
    told = bans.release()
    bans.close()
    if told.state is State.REFUSED:
        what = f"irqbalance (pid {told.pid}) was not told that interrupts are its own again"
        error = VirtirqError(
            f"{what}: {told.reason}",
            hint="run 'virtirq restore' once more, or restart irqbalance",
        )
        failed = complain(error, as_json=as_json)
        return code or failed
    return code


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.dry_run(parser)
    arguments.guests(parser)


VERB = Verb(run, "put affinities back as they were found", arguments=_arguments)
