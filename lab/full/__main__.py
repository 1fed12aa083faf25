"""python -m lab.full: the full lab by hand."""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from . import LabError, Machine, Start, build, cache, lab, snapshots
from .host import Host
from .smoke import smoke


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="lab: %(message)s")
    # Ended politely (by make, by a session's end), the machine still goes with us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return _do(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _do(options: argparse.Namespace) -> int:
    match options.verb:
        case "build":
            build()
        case "clean":
            cache.clean()
        case "smoke":
            smoke()
        case "resume":
            _resume(options)
        case "shell":
            with _host(options) as host:
                host.agent.shell()
        case "run":
            return _run(options)
    return 0


def _resume(options: argparse.Namespace) -> None:
    with _new(options) as host, snapshots.keep(host):
        print("The lab is up. `shell` and `run` use it from other terminals. Ctrl-C ends it.")
        signal.pause()


def _run(options: argparse.Namespace) -> int:
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    command = words[0] if len(words) == 1 else shlex.join(words)
    with _host(options) as host:
        done = host.run(command, timeout=options.timeout, check=False)
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


@contextmanager
def _host(options: argparse.Namespace) -> Iterator[Host]:
    """The machine that `resume` keeps in another terminal, or one for this command only."""
    kept = snapshots.attach()
    if kept is not None:
        yield kept
    else:
        with _new(options) as host:
            yield host


@contextmanager
def _new(options: argparse.Namespace) -> Iterator[Host]:
    start: Start = "guest" if options.guest else "cold" if options.cold else "booted"
    with lab(start, Machine(systemd=options.systemd)) as host:
        yield host


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.full", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="image and snapshots (done by the others when needed)")
    verbs.add_parser("smoke", help="the whole chain once, nested guest and all")
    verbs.add_parser("clean", help="delete what was built")
    start = argparse.ArgumentParser(add_help=False)
    form = start.add_mutually_exclusive_group()
    form.add_argument("--guest", action="store_true", help="with a nested guest running")
    form.add_argument("--cold", action="store_true", help="boot it instead of resuming")
    start.add_argument("--systemd", action="store_true", help="Debian's own boot")
    verbs.add_parser("shell", parents=[start], help="a root shell in the machine")
    verbs.add_parser("resume", parents=[start], help="keep a machine running")
    run = verbs.add_parser("run", parents=[start], help="one command in the machine")
    run.add_argument("--timeout", type=float, default=600, help="seconds (default: %(default)s)")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
