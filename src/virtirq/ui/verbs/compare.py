"""``virtirq compare``: what policies do for a guest, measured in turns."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from virtirq.control import cycle, libvirt_settings, sources
from virtirq.control.comparing import (
    AS_IS,
    COMMAND,
    STATISTICS,
    Comparison,
    Policy,
    check_policies,
)
from virtirq.control.guardian import guarded
from virtirq.control.guest_aims import guest_aims
from virtirq.control.guest_statistics import guest_statistics
from virtirq.control.holding import held
from virtirq.control.injection_trace import injection_trace
from virtirq.errors import EXIT_OK, UsageError
from virtirq.policy import paired
from virtirq.policy.comparison import EXACT, OWN, Block, best, least_rounds, turns
from virtirq.ui import arguments, comparison_screen, inputs
from virtirq.ui.document import Cell, Document, printable
from virtirq.ui.output import show
from virtirq.ui.verbs import Verb

_SECONDS: Final = 10.0
_SETTLE: Final = 1.0
_ROUNDS: Final = 10
_SHORTEST: Final = 0.01
_LONGEST: Final = 24 * 3600.0


def run(args: argparse.Namespace) -> int:
    policies = [Policy.parse(text) for text in args.policies]
    check_policies(policies)
    names = [policy.name for policy in policies]
    if args.keep and AS_IS in names[1:]:
        raise UsageError(f"{AS_IS} is nothing to keep", hint=f"name it first: {AS_IS} {names[0]}")
    least = least_rounds(len(policies))
    if args.rounds < least and args.keep:
        raise UsageError(f"no verdict in fewer than {least} rounds", hint="leave --rounds out")
    given = inputs.gather(args, must=True)
    with inputs.naming(given):
        guest = cycle.named(args.guest, given.guests)
    state = sources.state_dir(args.sysroot)
    seed = secrets.randbits(32) if args.seed is None else args.seed
    of_libvirt = guest.told_by == "libvirt" and inputs.asks_libvirt(args)
    uri = inputs.libvirt_uri(args) if of_libvirt else None
    blocks: list[Block] = []
    with (
        held(state, guest.key),
        guest_aims(given.fs, None if args.sysroot else state, guest, uri) as aims,
        guest_statistics(given.fs, guest, uri, STATISTICS) as statistics,
        injection_trace(None if args.sysroot else guest.pid) as trace,
    ):
        comparison = Comparison(
            given.fs, given.guests, guest, given.config, state, policies, aims, statistics, trace
        )
        by_name = dict(zip(names, policies, strict=True))
        order = ((number, by_name[name]) for number, name in turns(names, args.rounds, seed))
        told = partial(_told, rounds=args.rounds, quiet=args.quiet)
        made = comparison.blocks(order, args.seconds, args.settle, args.metric, told)
        try:
            with guarded(comparison.put_back), _progress():
                blocks += made
        except SystemExit:
            count = f"{len(blocks)} of {args.rounds * len(policies)}"
            print(f"interrupted: {count} measured; all is where it was before", file=sys.stderr)
            raise
    show(
        args,
        lambda: comparison_screen.as_json(guest.name, names, blocks, args.seconds, seed),
        lambda: comparison_screen.screen(guest.name, names, blocks, args.seconds, seed),
    )
    if args.keep:
        _keep(args, uri, guest.name, names, blocks)
    return EXIT_OK


@contextmanager
def _progress() -> Iterator[None]:
    """A terminal's line of progress is taken away at the end."""
    try:
        yield
    finally:
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _told(number: int, policy: Policy, trouble: str, *, rounds: int, quiet: bool) -> None:
    if quiet:
        return
    text = f"round {number + 1} of {rounds}: {policy.name}"
    erased = "\r\033[K" if sys.stderr.isatty() else ""
    if trouble:
        print(erased + printable(f"{text}: once more: {trouble}"), file=sys.stderr)
    elif erased:
        print(erased + text, end="", file=sys.stderr, flush=True)


def _keep(
    args: argparse.Namespace, uri: str | None, guest: str, names: list[str], blocks: list[Block]
) -> None:
    """Set the winner as the guest's directive, if there is one."""
    document = Document()
    measured = {name for block in blocks for name in block.measures()}
    measure = next((each for each in (COMMAND, EXACT, OWN) if each in measured), OWN)
    less = measure == COMMAND and not args.more_is_better
    winner = best(blocks, names, measure, less=less)
    if winner == names[0]:
        document.line(f"nothing is kept: no policy is told from {winner} for the better")
    elif uri is None:
        document.line(f"nothing is kept: {guest} is not libvirt's, so its setting is a [[rule]]")
    else:
        from virtirq.guests.libvirt import connection as libvirt

        directive = Policy.parse(winner).directive
        with libvirt.connected(uri, write=True) as connection:
            changed = libvirt_settings.change(connection, guest, None, directive)
        before = changed.changes[0].before
        undo = ("unset", guest) if before is None else ("set", guest, str(before))
        document.line(f"{guest}: {directive} is kept, which was the best in '{measure}'")
        command = arguments.again(args, *undo)
        document.line(Cell(f"hint: '{command}' takes it back", "dim"))
    if not args.quiet:
        document.print(sys.stderr if args.json else None)


def _rounds(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= paired.MOST):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number from 1 to {paired.MOST}")
    return int(text)


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number")
    return int(text)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guest(parser)
    parser.add_argument(
        "policies",
        metavar="POLICY",
        nargs="+",
        help="auto, native, emulator, local, a CPU list, exact (each vector where the guest aims"
        " it) or as-is; the others are compared with the first",
    )
    parser.add_argument(
        "--for",
        metavar="SECONDS",
        dest="seconds",
        type=arguments.seconds(_SHORTEST, _LONGEST),
        default=_SECONDS,
        help=f"how long a policy is measured in each round; else {_SECONDS:g}",
    )
    parser.add_argument(
        "--settle",
        metavar="SECONDS",
        type=arguments.seconds(0, _LONGEST),
        default=_SETTLE,
        help=f"how long a policy holds before it is measured; else {_SETTLE:g}",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=_rounds,
        default=_ROUNDS,
        help=f"how often all policies are measured, {paired.MOST} at most; else {_ROUNDS}",
    )
    parser.add_argument(
        "--metric",
        metavar="COMMAND",
        help="run this by a shell while each policy is measured; the last number that it prints"
        " is compared, too, and less of it is better",
    )
    parser.add_argument(
        "--more-is-better", action="store_true", help="more of what --metric prints is better"
    )
    parser.add_argument(
        "--seed", metavar="N", type=_seed, help="take turns as the comparison did that told this"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="set the best policy as the guest's directive, in libvirt, if one is told from the"
        " first: by --metric, else by the share of interrupts on the very vCPU's CPU",
    )


VERB = Verb(
    run,
    "measure what policies do for a guest, in turns",
    "Each policy is applied and measured in every round, in random order. However it ends, the\n"
    "guest's interrupts are afterwards where they were before.",
    _arguments,
    lasts=True,
)
