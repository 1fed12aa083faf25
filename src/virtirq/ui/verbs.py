"""What each verb does: gather the inputs, walk the one way, print, give the exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from virtirq.control import cycle, sources
from virtirq.control.cycle import STATE_DIR, Done
from virtirq.control.journal import examine
from virtirq.control.sources import Found
from virtirq.errors import (
    EXIT_FAILED,
    EXIT_FINDINGS,
    EXIT_OK,
    EXIT_PARTIAL,
    EXIT_PERMISSION,
    BusyError,
    ConfigError,
    UnknownGuestError,
    UsageError,
    VirtirqError,
)
from virtirq.host.fs import HostFs
from virtirq.model import NATIVE, Finding, Gap, Guest, Plan, Snapshot
from virtirq.policy.config import Config, render_config
from virtirq.policy.findings import findings as find
from virtirq.policy.findings import guests_not_read, in_order, journal_unusable
from virtirq.policy.plan import plan as make_plan
from virtirq.ui import report, screens
from virtirq.ui.document import Document

if TYPE_CHECKING:
    from virtirq.control.daemon_status import DaemonStatus
    from virtirq.daemon.service import Inside, Server
    from virtirq.ui.settings import Shown


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
def _naming(inputs: Inputs) -> Iterator[None]:
    """A guest that is not there may be one that libvirt was not asked for: then that is said."""
    try:
        yield
    except UnknownGuestError as error:
        if inputs.found.failed is not None:
            raise inputs.found.failed from error
        raise


def status(args: argparse.Namespace) -> int:
    if _asks_libvirt(args):
        from virtirq.guests.libvirt.connection import is_remote

        uri = _libvirt_uri(args)
        if is_remote(uri):
            from virtirq.ui import settings

            return _shown(args, settings.remote_status(uri))
    view = _view(_inputs(args), args)
    _show(
        args,
        lambda: {
            **report.as_json(view.snapshot, view.plan, view.findings),
            "daemon": report.daemon_json(view.daemon),
        },
        lambda: screens.status_screen(*view, short=sys.stdout.isatty()),
    )
    return EXIT_OK


def plan(args: argparse.Namespace) -> int:
    inputs = _inputs(args)
    view = _view(inputs, args)
    with _naming(inputs):
        part = cycle.chosen(view.plan, args.guests)
    _show(
        args,
        lambda: report.as_json(view.snapshot, part, view.findings),
        lambda: _with_gaps(screens.plan_screen(view.snapshot, part), view.snapshot),
    )
    return EXIT_OK


def apply(args: argparse.Namespace) -> int:
    if args.dry_run:
        return plan(args)
    inputs = _inputs(args, must=True)
    state = sources.state_dir(args.sysroot)
    with _naming(inputs):
        done = cycle.apply(inputs.fs, inputs.guests, inputs.config, state, args.guests)

    def found() -> Sequence[Finding]:
        inputs.fs.refresh()
        return _seen(inputs.fs, inputs.guests, inputs.config, inputs.found.gaps, None).findings

    return _done(args, done, found)


def restore(args: argparse.Namespace) -> int:
    daemon = None if args.dry_run else _daemon(args)
    if daemon is not None:
        raise BusyError(
            f"a daemon runs (pid {daemon.pid}) and would move them again",
            hint="stop it first, or have it leave a guest alone: 'virtirq set GUEST native'",
        )
    inputs = _inputs(args, claims=False, undoing=True)
    state = sources.state_dir(args.sysroot)
    done = cycle.restore(inputs.fs, inputs.guests, state, args.guests, dry_run=args.dry_run)
    if args.dry_run:
        _show(
            args,
            lambda: report.as_json(done.snapshot, done.plan, ()),
            lambda: screens.plan_screen(done.snapshot, done.plan),
        )
        return EXIT_OK
    code = _done(args, done)
    return code if args.guests or args.sysroot is not None else _release(code)


def _release(code: int) -> int:
    """Gives irqbalance its freedom back, too; `code`, or that it could not be told."""
    from virtirq.control.irqbalance import IrqbalanceClient, State

    bans = IrqbalanceClient(STATE_DIR, sources.open_fs(None))
    told = bans.release()
    bans.close()
    if told.state is State.REFUSED:
        what = f"irqbalance (pid {told.pid}) was not told that interrupts are its own again"
        print(f"virtirq: error: {what}: {told.reason}", file=sys.stderr)
        print("hint: run 'virtirq restore' once more, or restart irqbalance", file=sys.stderr)
        return code or EXIT_FAILED
    return code


def check(args: argparse.Namespace) -> int:
    view = _view(_inputs(args), args)
    _show(
        args,
        lambda: {
            "schema": report.SCHEMA,
            "findings": [each.as_json() for each in view.findings],
            "gaps": report.gaps_json(view.snapshot.gaps),
        },
        lambda: _with_gaps(screens.findings_screen(view.findings), view.snapshot),
    )
    return EXIT_FINDINGS if any(each.severity.rank for each in view.findings) else EXIT_OK


def explain(args: argparse.Namespace) -> int:
    from virtirq.ui import explanation

    advice = explanation.of_code(args.object)
    if advice is None:
        inputs = _inputs(args)
        view = _view(inputs, args)
        with _naming(inputs):
            advice = explanation.of_object(args.object, view.snapshot, view.plan, view.findings)
    _show(args, lambda: advice.data, lambda: advice.document)
    return EXIT_OK


def place(args: argparse.Namespace) -> int:
    from virtirq.ui import placing

    uri = _uri(args) if args.apply else ""
    if (args.live or args.config_) and not args.apply:
        raise UsageError(
            "--live and --config say what --apply changes: add that, or leave them out"
        )
    inputs = _inputs(args, defined=True)
    guests = (*inputs.guests, *inputs.found.stopped)
    snapshot = cycle.observe(inputs.fs, guests, gaps=inputs.found.gaps)
    with _naming(inputs):
        proposal = placing.propose(snapshot, args.guest, args.node)
    done, notes = placing.do(uri, proposal, args) if args.apply else ([], [])
    return _shown(args, placing.shown(proposal, inputs.found.gaps, done, notes))


def record(args: argparse.Namespace) -> int:
    from virtirq.host.recording import record as write

    fs = sources.open_fs(args.sysroot)
    domains, gaps = sources.redacted_domains(
        fs,
        args.domains,
        uri=args.connect,
        default=sources.load_config(args.config, args.sysroot).libvirt.uri,
        keep_names=args.keep_names,
    )
    # Not the errors themselves, which may name guests.
    unread = {"guests": "not all were read when this host was recorded"} if gaps else {}
    count = write(fs, args.file, domains, unread)
    document = Document()
    document.line(f"{args.file}: {count} files; try: virtirq --sysroot {args.file} status")
    screens.gap_lines(document, gaps)
    data = {"schema": report.SCHEMA, "files": count, "gaps": report.gaps_json(gaps)}
    _show(args, lambda: data, lambda: document)
    return EXIT_OK


def config(args: argparse.Namespace) -> int:
    loaded = sources.load_config(args.config, args.sysroot)
    document = Document()
    if args.what == "show":
        for line in render_config(loaded).splitlines():
            document.line(line)
    else:
        document.line("the configuration is valid")
    _show(args, lambda: report.config_json(loaded), lambda: document)
    return EXIT_OK


def demo(args: argparse.Namespace) -> int:
    from virtirq.ui import tour

    if args.sysroot or args.domains or args.config or args.connect or args.json:
        raise UsageError(
            "demo shows the recorded host that ships with virtirq: it takes no options"
        )
    return tour.copy_to(args.dir) if args.dir else tour.run()


def daemon(args: argparse.Namespace) -> int:
    # Nothing here speaks TLS, and asyncio does without (asyncio/sslproto.py): some 6 MB less, for
    # as long as the host runs. None stands for a module that is not there (sys.modules).
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    from virtirq.daemon import service as service
    from virtirq.daemon.log import set_up
    from virtirq.guests.libvirt.connection import default_uri

    if args.sysroot is not None or args.json:
        raise UsageError("the daemon is this machine's: leave out --sysroot and --json")
    if args.connect is not None and args.domains:
        raise UsageError("the daemon takes its guests from libvirt or from files: leave out one")
    config = sources.load_config(args.config)
    return service.run(
        service.Setup(
            state=STATE_DIR,
            load=lambda: sources.load_config(args.config),
            uri=None if args.domains else args.connect or default_uri(config.libvirt.uri),
            must=bool(args.connect or config.libvirt.uri or not config.processes.find),
            guests=sources.load_guests(sources.open_fs(None), args.domains),
            serve=_serve,
        ),
        set_up(debug=args.debug),
    )


def _serve(listen: str, inside: Callable[[], Inside]) -> Server:
    """Serves the daemon's metrics."""
    if sys.modules.get("ssl") is None:
        sys.modules.pop("ssl", None)  # prometheus_client cannot do without
    from virtirq.ui import metrics as pages

    def page() -> str:
        now = inside()
        view = _seen(sources.open_fs(None), now.guests, now.config, (), now.daemon_status)
        return pages.render(view.snapshot, view.plan, view.findings, view.daemon)

    return pages.serve(listen, page)


def metrics(args: argparse.Namespace) -> int:
    from virtirq.ui import metrics as pages

    if args.json:
        raise UsageError("metrics are Prometheus text: leave out --json")
    page = pages.render(*_view(_inputs(args), args))
    if not args.quiet:
        sys.stdout.write(page)
    return EXIT_OK


def get(args: argparse.Namespace) -> int:
    from virtirq.ui import settings

    return _shown(args, settings.get(_uri(args), args))


def set(args: argparse.Namespace) -> int:
    from virtirq.ui import settings

    return _shown(args, settings.set_(_uri(args), args))


def unset(args: argparse.Namespace) -> int:
    from virtirq.ui import settings

    return _shown(args, settings.unset(_uri(args), args))


def define(args: argparse.Namespace) -> int:
    from virtirq.ui import settings

    return _shown(args, settings.define(_uri(args), args))


def dumpxml(args: argparse.Namespace) -> int:
    from virtirq.ui import settings

    data = settings.dumpxml(_uri(args), args)
    if args.json:
        _show(args, lambda: data, Document)
    elif not args.quiet:
        sys.stdout.write(data["xml"])  # as it is: no line may be folded
    return EXIT_OK


def _uri(args: argparse.Namespace) -> str:
    """Where libvirt is asked, by a verb that needs it. Raises UsageError."""
    if args.sysroot is not None or args.domains:
        raise UsageError(f"{args.verb} works on libvirt's guests: leave out -s and --domain")
    return _libvirt_uri(args)


def _libvirt_uri(args: argparse.Namespace) -> str:
    """``-c``, else what the environment, the configuration or libvirt itself has for it."""
    from virtirq.guests.libvirt.connection import default_uri

    uri: str | None = args.connect
    return uri or default_uri(sources.load_config(args.config).libvirt.uri)


def _asks_libvirt(args: argparse.Namespace) -> bool:
    return args.sysroot is None and (args.connect is not None or not args.domains)


def _inputs(
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


def _view(inputs: Inputs, args: argparse.Namespace) -> View:
    fs, gaps = inputs.fs, inputs.found.gaps
    try:
        daemon = _daemon(args)
    except BusyError as error:
        daemon, gaps = None, (*gaps, Gap("daemon", str(error)))
    view = _seen(fs, inputs.guests, inputs.config, gaps, daemon)
    unread = inputs.found.unread
    more = [guests_not_read(unread)] if unread else []
    if fs.writable:
        try:
            examine(sources.state_dir(args.sysroot), view.snapshot.boot_id)
        except VirtirqError as error:
            more.append(journal_unusable(str(error)))
    return view._replace(findings=in_order((*view.findings, *more)))


def _seen(
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


def _daemon(args: argparse.Namespace) -> DaemonStatus | None:
    """The daemon of this machine, if one runs. Raises BusyError for one that does not answer."""
    if args.sysroot is not None:
        return None
    from virtirq.control.daemon_status import ask

    return ask(STATE_DIR)


def _done(
    args: argparse.Namespace, done: Done, found: Callable[[], Sequence[Finding]] = tuple
) -> int:
    """Tell what was done; `found` is asked for what is to be said afterwards."""

    def document() -> Document:
        shown = screens.plan_screen(done.snapshot, done.plan)
        shown.blocks += screens.outcome_screen(done).blocks
        return shown

    def data() -> Mapping[str, Any]:
        return report.as_json(done.snapshot, done.plan, found(), done.outcomes)

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


def _with_gaps(document: Document, snapshot: Snapshot) -> Document:
    """Says that something was not read: all of it where no guest is known, else where to look."""
    if not snapshot.guests:
        screens.gap_lines(document, snapshot.gaps)
    elif snapshot.gaps:
        count = len(snapshot.gaps)
        what = "1 kind of file" if count == 1 else f"{count} kinds of file"
        document.line(f"{what} could not be read: 'virtirq status' lists them")
    return document


def _shown(args: argparse.Namespace, shown: Shown) -> int:
    _show(args, lambda: shown.data, lambda: shown.document)
    return EXIT_OK


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
