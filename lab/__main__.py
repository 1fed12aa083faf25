"""`python -m lab`: a person's way into the lab."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import quick
from .kernel import LabUnavailable


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    forms = parser.add_subparsers(required=True, metavar="FORM")
    _add_quick(forms.add_parser("quick", help=_first_line(quick), description=quick.__doc__))
    options = parser.parse_args()
    # Ends like an error would, so that no guest is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        status: int = options.run(options)
    except (LabUnavailable, quick.GuestError, quick.GuestTimeoutError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _first_line(module: object) -> str:
    return (module.__doc__ or "").partition("\n")[0]


def _add_quick(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--machine", choices=sorted(quick.MACHINES), default="one_nic")
    parser.add_argument("--kernel", type=Path, help="a vmlinuz instead of the distribution's")
    parser.add_argument(
        "--silence", type=float, default=600, help="seconds without any output until it gives up"
    )
    parser.add_argument(
        "--writable",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a directory of this machine that the guest may change",
    )
    parser.add_argument("command", nargs="*", help="what to run (default: a shell)")
    parser.set_defaults(run=_quick)


def _quick(options: argparse.Namespace) -> int:
    machine = quick.MACHINES[options.machine]()
    if not options.command:
        return quick.shell(machine, image=options.kernel, writable=options.writable)
    return quick.run(
        machine,
        options.command,
        silence=options.silence,
        writable=options.writable,
        image=options.kernel,
        stream=True,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
