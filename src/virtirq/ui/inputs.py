"""What a verb looks at: the guests and the host that the options name, planned and judged."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from virtirq.control import cycle, sources
from virtirq.control.cycle import STATE_DIR
from virtirq.control.sources import Found
from virtirq.errors import BusyError, ConfigError, UnknownGuestError, UsageError, VirtirqError
from virtirq.guests.libvirt.devices import Selector
from virtirq.host.fs import HostFs
from virtirq.model import NATIVE, Finding, Gap, Guest, Plan, Snapshot, counted
from virtirq.policy.config import Config
from virtirq.policy.directives import unmatched
from virtirq.policy.findings import findings as find
from virtirq.policy.findings import (
    guests_not_read,
    in_order,
    journal_unusable,
    rules_unmatched,
)
from virtirq.ui import progress
from virtirq.values import replace

if TYPE_CHECKING:
    from virtirq.control.daemon_status import DaemonStatus


class Inputs(NamedTuple):
    """`guests` are those that were `found`, and those that are claimed, to be left alone.

    `defined` asks libvirt for those that do not run.
    """

    fs: HostFs
    guests: tuple[Guest, ...]
    config: Config
    found: Found
    defined: Callable[[], tuple[Guest, ...]] = tuple


class View(NamedTuple):
    snapshot: Snapshot
    plan: Plan
    findings: tuple[Finding, ...]
    daemon: DaemonStatus | None


@contextmanager
def naming(inputs: Inputs) -> Iterator[None]:
    """A guest that is not there may be one that does not run, or that libvirt was not asked for.

    Then that is said.
    """
    try:
        yield
    except UnknownGuestError as error:
        if inputs.found.failed is not None:
            raise inputs.found.failed from error
        for guest in inputs.found.stopped or inputs.defined():
            if _concerns(error.name, guest):
                import shlex

                what = "" if error.name in (guest.name, guest.uuid) else f"{error.name} is of "
                raise UnknownGuestError(
                    f"{what}{guest.name}{',' if what else ''}"
                    f"{' which' if what else ''} is defined but does not run",
                    hint=f"start it: virsh start {shlex.quote(guest.name)}; until then, only"
                    " get, set, unset, place and 'status --all' have to do with it",
                    name=error.name,
                ) from error
        raise


def _concerns(name: str, guest: Guest) -> bool:
    """Whether the name is this guest's, or one of its devices'."""
    try:
        return bool(cycle.called(name, [guest]))
    except UnknownGuestError:
        address = Selector.parse("address", name)
        return address is not None and any(
            address.name == str(device.address) for device in guest.devices
        )


def only(view: View, names: Sequence[str], stopped: Sequence[Guest] = ()) -> View:
    """The part that concerns these guests, all for no names. Raises UnknownGuestError."""
    if not names:
        return view
    part = cycle.chosen(view.plan, names, stopped)
    concerned = subjects(part)
    found = tuple(each for each in view.findings if each.subject in concerned)
    return view._replace(plan=part, findings=found)


def subjects(plan: Plan) -> set[str]:
    """What findings about the plan's guests and devices call them."""
    return {
        subject
        for guest in plan.guests
        for subject in (
            guest.guest.name,
            *(f"{guest.guest.name} {device.device.address}" for device in guest.devices),
        )
    }


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
    progress.step("reading the recording" if args.sysroot else "opening the host")
    fs = sources.open_fs(args.sysroot)
    progress.step("asking libvirt for guests" if asks_libvirt(args) else "reading guests")
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
    ask = partial(sources.defined_guests, fs, args.connect, config.libvirt.uri)
    return Inputs(
        fs, (*found.guests, *claimed), config, found, ask if asks_libvirt(args) else tuple
    )


def look(inputs: Inputs, args: argparse.Namespace, *, counts: bool = False) -> View:
    """`counts`: with how often each interrupt was taken."""
    fs, gaps = inputs.fs, inputs.found.gaps
    progress.step(f"reading the interrupts of {counted(len(inputs.guests), 'guest')}")
    try:
        daemon = daemon_of(args)
    except BusyError as error:
        daemon, gaps = None, (*gaps, Gap("daemon", str(error)))
    view = seen(fs, inputs.guests, inputs.config, gaps, daemon, counts=counts)
    unread = inputs.found.unread
    if unread:
        more = [guests_not_read(unread)]
    else:
        snapshot = view.snapshot
        more = list(rules_unmatched(unmatched(inputs.config, snapshot.guests, snapshot.pci)))
    if fs.writable:
        from virtirq.control.journal import examine

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
    *,
    counts: bool = False,
) -> View:
    snapshot = cycle.observe(fs, guests, gaps=gaps, counts=counts)
    if daemon is not None and daemon.spared == snapshot.irqbalance.pid:
        snapshot = replace(snapshot, irqbalance=replace(snapshot.irqbalance, spares_vfio=True))
    if daemon is not None:
        snapshot = replace(snapshot, aimed=daemon.aimed, readers=daemon.readers)
    snapshot, planned = cycle.planned(fs, snapshot, config)
    found = find(snapshot, planned)
    if daemon is not None:
        # What is seen here is newer than what the daemon has seen of the same.
        here = {(each.code, each.subject) for each in found}
        told = (each for each in daemon.findings if (each.code, each.subject) not in here)
        found = in_order((*found, *told))
    return View(snapshot, planned, found, daemon)


def daemon_of(args: argparse.Namespace) -> DaemonStatus | None:
    """The daemon of this machine, if one runs. Raises BusyError for one that does not answer."""
    if args.sysroot is not None:
        return None
    from virtirq.control.daemon_status import ask

    return ask(STATE_DIR)
