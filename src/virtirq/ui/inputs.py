"""What a verb looks at: the guests and the host that the options name, planned and judged."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from virtirq.control import cycle, sources
from virtirq.control.cycle import STATE_DIR
from virtirq.control.journal import examine
from virtirq.control.sources import Found
from virtirq.errors import BusyError, ConfigError, UnknownGuestError, UsageError, VirtirqError
from virtirq.host.fs import HostFs
from virtirq.model import NATIVE, Finding, Gap, Guest, Plan, Snapshot
from virtirq.policy.config import Config
from virtirq.policy.findings import findings as find
from virtirq.policy.findings import guests_not_read, in_order, journal_unusable
from virtirq.policy.plan import plan as make_plan

if TYPE_CHECKING:
    from virtirq.control.daemon_status import DaemonStatus


class Inputs(NamedTuple):
    """`guests` are those that were `found`, and those that are claimed, to be left alone."""

    fs: HostFs
    guests: tuple[Guest, ...]
    config: Config
    found: Found


class View(NamedTuple):
    snapshot: Snapshot
    plan: Plan
    findings: tuple[Finding, ...]
    daemon: DaemonStatus | None


@contextmanager
def naming(inputs: Inputs) -> Iterator[None]:
    """A guest that is not there may be one that libvirt was not asked for: then that is said."""
    try:
        yield
    except UnknownGuestError as error:
        if inputs.found.failed is not None:
            raise inputs.found.failed from error
        raise


def uri_of(args: argparse.Namespace) -> str:
    """Where libvirt is asked, by a verb that needs it. Raises UsageError."""
    if args.sysroot is not None or args.domains:
        raise UsageError(f"{args.verb} works on libvirt's guests: leave out -s and --domain")
    return libvirt_uri(args)


def libvirt_uri(args: argparse.Namespace) -> str:
    """``-c``, else what the environment, the configuration or libvirt itself has for it."""
    from virtirq.guests.libvirt.connection import default_uri

    uri: str | None = args.connect
    return uri or default_uri(sources.load_config(args.config).libvirt.uri)


def asks_libvirt(args: argparse.Namespace) -> bool:
    return args.sysroot is None and (args.connect is not None or not args.domains)


def gather(
    args: argparse.Namespace,
    *,
    must: bool = False,
    claims: bool = True,
    defined: bool = False,
    undoing: bool = False,
) -> Inputs:
    """`must`: the guests have to be known, so that it cannot be that nothing is done for them.

    `claims`: with guests of whom nothing but an unprivileged process's command line tells. They are
    shown, and left alone. `defined`: with those of libvirt's that do not run, as `stopped`.
    `undoing`: a configuration that is not valid is no reason to stop.
    """
    try:
        config = sources.load_config(args.config, args.sysroot)
    except ConfigError:
        if not undoing:
            raise
        config = Config()
    fs = sources.open_fs(args.sysroot)
    found = sources.find_guests(
        fs,
        args.domains,
        args.connect,
        default=config.libvirt.uri,
        must=must,
        processes=config.processes.find,
        defined=defined,
    )
    claimed = (
        replace(guest, directive=NATIVE, directive_from="its command line alone tells of it")
        for guest in (found.claimed if claims else ())
    )
    return Inputs(fs, (*found.guests, *claimed), config, found)


def look(inputs: Inputs, args: argparse.Namespace) -> View:
    fs, gaps = inputs.fs, inputs.found.gaps
    try:
        daemon = daemon_of(args)
    except BusyError as error:
        daemon, gaps = None, (*gaps, Gap("daemon", str(error)))
    view = seen(fs, inputs.guests, inputs.config, gaps, daemon)
    unread = inputs.found.unread
    more = [guests_not_read(unread)] if unread else []
    if fs.writable:
        try:
            examine(sources.state_dir(args.sysroot), view.snapshot.boot_id)
        except VirtirqError as error:
            more.append(journal_unusable(str(error)))
    return view._replace(findings=in_order((*view.findings, *more)))


def seen(
    fs: HostFs,
    guests: Sequence[Guest],
    config: Config,
    gaps: Sequence[Gap],
    daemon: DaemonStatus | None,
) -> View:
    snapshot = cycle.observe(fs, guests, gaps=gaps)
    if daemon is not None and daemon.spared == snapshot.irqbalance.pid:
        snapshot = replace(snapshot, irqbalance=replace(snapshot.irqbalance, spares_vfio=True))
    if daemon is not None:
        snapshot = replace(snapshot, aimed=daemon.aimed, readers=daemon.readers)
    planned = make_plan(snapshot, config)
    found = find(snapshot, planned)
    if daemon is not None:
        found = in_order((*found, *daemon.findings))
    return View(snapshot, planned, found, daemon)


def daemon_of(args: argparse.Namespace) -> DaemonStatus | None:
    """The daemon of this machine, if one runs. Raises BusyError for one that does not answer."""
    if args.sysroot is not None:
        return None
    from virtirq.control.daemon_status import ask

    return ask(STATE_DIR)
