"""Arguments that several verbs take, so that each is spelt and explained once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from virtirq.guests.libvirt.connection import Affect

RECORDED: Final = ("--sysroot", "--domain")
"""Options of hosts that are not this one, where nothing can be set."""
KEPT: Final = "Settings are kept in the guest's <metadata> in libvirt."
STORED: Final = f"""\
{KEPT} With neither --live nor --config,
both are meant where the guest runs, and its definition where it does not."""


def common(
    parser: argparse.ArgumentParser,
    *,
    top: bool,
    own: Collection[str] = (),
    refused: Collection[str] = (),
) -> None:
    """Options that may stand before or after the verb.

    `own` are those that mean something else after the verb: --config as virsh has it, say. The
    verb's help leaves out those that it has no use for, and says why when they are given all the
    same: `refused`.
    """

    def told(option: str, text: str) -> str:
        return argparse.SUPPRESS if option in refused else text

    default: dict[str, Any] = {} if top else {"default": argparse.SUPPRESS}

    def free(*names: str) -> list[str]:
        return [each for each in names if each not in own]

    completed_as_path(
        parser.add_argument(
            *free("-s", "--sysroot"),
            metavar="DIR",
            type=some_path,
            help=told("--sysroot", "a recorded host: a directory tree or tar archive"),
            **default,
        )
    )
    completed_as_path(
        parser.add_argument(
            "--domain",
            metavar="FILE",
            type=_path,
            action="append",
            dest="domains" if top else "more_domains",
            default=[],
            help=told("--domain", "domain XML of a guest; may be repeated"),
        )
    )
    if free("--config"):
        completed_as_path(
            parser.add_argument(
                "--config",
                metavar="FILE",
                type=_path,
                help=told(
                    "--config", "configuration, a file or a directory, instead of /etc/virtirq"
                ),
                **default,
            )
        )
    parser.add_argument(
        "-c",
        "--connect",
        metavar="URI",
        help=told(
            "--connect",
            "libvirt to ask for guests, else $LIBVIRT_DEFAULT_URI or qemu:///system;"
            " is not asked where --sysroot or --domain give the guests",
        ),
        **default,
    )
    parser.add_argument(
        "-J", "--json", action="store_true", help=told("--json", "print JSON"), **default
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only", **default)
    parser.add_argument(
        *free("-d", "--debug"), action="store_true", help="show tracebacks of errors", **default
    )


def guest(parser: argparse.ArgumentParser) -> None:
    completed(
        parser.add_argument("guest", metavar="GUEST", help="name, UUID or id, as virsh takes it"),
        "guests",
    )


def device(parser: argparse.ArgumentParser, kind: str = "devices") -> None:
    completed(
        parser.add_argument(
            "device",
            metavar="DEVICE",
            nargs="?",
            help="PCI address, alias or MAC address of a passed-through device; all for none",
        ),
        kind,
    )


def affected(parser: argparse.ArgumentParser, live: str, config: str) -> None:
    parser.add_argument("--live", action="store_true", help=live)
    parser.add_argument("--config", action="store_true", dest="config_", help=config)


def affect_of(args: argparse.Namespace) -> Affect | None:
    """What ``--live`` and ``--config`` ask for; None for neither."""
    from virtirq.guests.libvirt.connection import Affect

    affect = (Affect.LIVE if args.live else Affect(0)) | (
        Affect.CONFIG if args.config_ else Affect(0)
    )
    return affect or None


def again(args: argparse.Namespace, *words: str) -> str:
    """A command line that goes to the same libvirt, for a hint."""
    connect = [] if args.connect is None else ["-c", args.connect]
    import shlex

    return shlex.join(["virtirq", *connect, *words])


def force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force",
        action="store_true",
        help="drop what is not understood of virtirq's metadata in the guest",
    )


def guests(parser: argparse.ArgumentParser) -> None:
    completed(
        parser.add_argument(
            "guests", metavar="GUEST", nargs="*", help="name, glob, UUID or id; all for none"
        ),
        "guests",
    )


def dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help="stop at the plan")


def seconds(least: float, most: float) -> Callable[[str], float]:
    """The type of an option that takes a time, in seconds."""

    def parse(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r:.40} is not a number of seconds") from None
        if not least <= found <= most:
            raise argparse.ArgumentTypeError(
                f"{text:.40} is not between {least:g} and {most:g} seconds"
            )
        return found

    return parse


def some_path(text: str) -> Path:
    """A path; not the empty one that an unset shell variable gives, which would be ``.``."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return _path(text)


def _path(text: str) -> Path:
    from pathlib import Path

    return Path(text)


def output(parser: argparse.ArgumentParser, what: str) -> None:
    """``-o FILE``, without which there is nothing to do."""
    completed_as_path(
        parser.add_argument("-o", "--output", metavar="FILE", type=_path, required=True, help=what)
    )


def completed_as_path(action: argparse.Action) -> None:
    action.complete = {  # type: ignore[attr-defined]
        "bash": "_shtab_compgen_files",
        "zsh": "_files",
        "fish": "(__fish_complete_path (commandline -ct))",
    }


def completed(action: argparse.Action, kind: str) -> None:
    """Its values are found when they are asked for: `kind` is one of `completion.KINDS`."""
    action.complete = {  # type: ignore[attr-defined]
        "bash": f"_virtirq_{kind}",
        "zsh": f"_virtirq_{kind}",
        "fish": f"(_virtirq_values {kind})",
    }
