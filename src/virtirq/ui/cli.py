"""The command line: the parser, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from virtirq import __version__
from virtirq.errors import EXIT_FAILED, UsageError, VirtirqError

_SHELLS: Final = ("bash", "zsh", "fish")
_RECORDED: Final = ("--sysroot", "--domain")
"""Options of hosts that are not this one, where nothing can be set."""
_KEPT: Final = "Settings are kept in the guest's <metadata> in libvirt."
_STORED: Final = f"""\
{_KEPT} With neither --live nor --config,
both are meant where the guest runs, and its definition where it does not."""
_EPILOG: Final = """\
exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 findings, 4 applied in part,
5 not permitted or read-only, 6 dependency or connection missing"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code. Only a bug, or ``--debug``, shows a traceback."""
    _prepare_output()
    parser = make_parser()
    words = sys.argv[1:] if argv is None else argv
    try:
        _refuse_unknown_options(parser, words)
        args = parser.parse_args(words)
    except UsageError as error:
        _complain(str(error), error.hint)
        return error.exit_code
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except VirtirqError as error:
        if args.debug:
            import traceback

            traceback.print_exc()
        _complain(str(error), error.hint)
        return error.exit_code
    except BrokenPipeError:
        _drop_output()  # the reader (head, less) has seen enough
        return EXIT_FAILED
    except OSError as error:
        if args.debug:
            raise
        _drop_output()
        where = f"{error.filename}: " if error.filename else "the output could not be written: "
        _complain(f"{where}{error.strerror or error}")
        return EXIT_FAILED
    except (MemoryError, RecursionError) as error:
        if args.debug:
            raise
        _complain(f"the input is too large or too deep ({type(error).__name__})")
        return EXIT_FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130


def _prepare_output() -> None:
    """Output may be closed, or in an encoding that lacks a guest's name; neither may be fatal."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """What is still in the buffer goes nowhere: the interpreter must not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str, hint: str | None = None) -> None:
    from virtirq.ui.document import printable

    print(printable(f"virtirq: error: {text}"), file=sys.stderr)
    if hint:
        print(printable(f"hint: {hint}"), file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as everything else here does: in one line, and what to do in another."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"'{self.prog} --help' shows what there is")


def _refuse_unknown_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Raises UsageError for a misspelt option, where argparse would blame the word behind it."""
    options = {
        each for made in _parsers(parser) for a in made._actions for each in a.option_strings
    }
    for word in words:
        name = word.partition("=")[0]
        if word == "--":
            return
        if word.startswith("--") and name not in options:
            from difflib import get_close_matches

            meant = _meant(parser, words)
            names = [each[2:] for each in meant._option_string_actions if each.startswith("--")]
            alike = get_close_matches(name[2:], names, n=1)
            help_ = f"'{meant.prog} --help' shows what there is"
            hint = f"did you mean --{alike[0]}?" if alike else help_
            raise UsageError(f"there is no option {name}", hint=hint)


def _meant(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the verb that is among the words; without one, the whole."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for number, word in enumerate(words):
                if word in action.choices:
                    return _meant(action.choices[word], words[number + 1 :])
    return parser


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser, and those of its verbs."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; shell completions are made from it."""
    parser = _Parser(
        prog="virtirq",
        description="Pin the host interrupts of passed-through devices to their guests' CPUs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"virtirq {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=_SHELLS,
        metavar="SHELL",
        help="print the shell completion for bash, zsh or fish",
    )
    _common(parser, top=True)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    def verb(
        name: str,
        help_: str,
        more: str = "",
        *,
        config: bool = True,
        refused: Collection[str] = (),
    ) -> argparse.ArgumentParser:
        made = verbs.add_parser(
            name,
            help=help_,
            description=f"{help_[0].upper()}{help_[1:]}. {more}".strip(),
            allow_abbrev=False,
        )
        _common(made, top=False, config=config, refused=refused)
        return made

    verb("status", "show guests, devices and vectors, and where each should be (the default)")
    _guests(verb("plan", "show what would change and why"))
    apply = verb("apply", "pin the interrupts: plan, write, read back")
    apply.add_argument("-n", "--dry-run", action="store_true", help="stop at the plan")
    _guests(apply)
    restore = verb("restore", "put affinities back as they were found")
    restore.add_argument("-n", "--dry-run", action="store_true", help="stop at the plan")
    _guests(restore)
    verb("check", "report findings", "Exits 3 if any is a warning or worse.")
    explain = verb("explain", "say why an object is where it is, or what a finding means")
    explain.add_argument(
        "object", metavar="OBJECT", help="a guest, a PCI address, an IRQ number or a finding's code"
    )
    place = verb(
        "place",
        "show where a guest could run next to its devices, or pin it there",
        "It is given CPUs that no other guest's vCPUs, running or not, are pinned to.",
        config=False,
    )
    _guest(place)
    place.add_argument(
        "--node", metavar="N", type=_node, help="on this NUMA node, not that of most of its devices"
    )
    place.add_argument("--apply", action="store_true", help="pin it so, through libvirt")
    _affected(
        place,
        "with --apply: the running guest, and not its definition",
        "with --apply: its definition, and not the running guest",
    )
    get = verb(
        "get",
        "show a guest's settings, or what one of its devices is asked for",
        _KEPT
        + " With neither --live nor --config, as it runs; of one that does not, its definition.",
        config=False,
        refused=_RECORDED,
    )
    _guest(get)
    _device(get)
    _affected(get, "as the guest runs", "as it is defined")
    set_ = verb(
        "set",
        "set what a guest, or one of its devices, is asked for",
        _STORED,
        config=False,
        refused=_RECORDED,
    )
    _guest(set_)
    _device(set_)
    set_.add_argument(
        "directive",
        metavar="DIRECTIVE",
        help="auto, native, emulator, local or a CPU list such as 2-5,^3",
    )
    _affected(set_, "change the running guest", "change what it is started from next")
    _force(set_)
    unset = verb(
        "unset",
        "take out a guest's own setting, or one of its devices'",
        _STORED,
        config=False,
        refused=_RECORDED,
    )
    _guest(unset)
    _device(unset)
    _affected(unset, "change the running guest", "change what it is started from next")
    _force(unset)
    define = verb(
        "define",
        "define a guest from domain XML with the RFC's <hostdev cpuset='…'>",
        "The attribute may stand on <hostdev>, <interface> and <disk type='nvme'>; libvirt does"
        " not know it, so it is moved into the guest's <metadata>.",
        refused=_RECORDED,
    )
    _path(define.add_argument("file", metavar="FILE", type=Path, help="domain XML; - for stdin"))
    define.add_argument(
        "--validate", action="store_true", help="let libvirt check the XML against its schema"
    )
    dumpxml = verb(
        "dumpxml",
        "print a guest's domain XML with the settings as <hostdev cpuset='…'>",
        "The inverse of define.",
        refused=_RECORDED,
    )
    _guest(dumpxml)
    dumpxml.add_argument(
        "--inactive", action="store_true", help="what the guest is started from next"
    )
    dumpxml.add_argument(
        "--security-info", action="store_true", help="with passwords, as define needs them"
    )
    verb(
        "daemon",
        "keep interrupts where they belong, in the foreground, until SIGTERM",
        "SIGHUP reads the configuration again.",
        refused=("--sysroot", "--json"),
    )
    verb("metrics", "print Prometheus metrics once, for a textfile collector", refused=("--json",))
    record = verb("record", "record this host for --sysroot, bug reports and tests")
    record.add_argument("--keep-names", action="store_true", help="do not rename the guests")
    _path(
        record.add_argument(
            "file", metavar="FILE", type=Path, help="archive to write: .tar, .tar.gz, .bz2 or .xz"
        )
    )
    config = verb("config", "show or check the configuration")
    config.add_argument(
        "what",
        choices=("show", "check"),
        metavar="{show,check}",
        help="effective values, or errors only",
    )
    demo = verb(
        "demo",
        "run the main job on a scratch copy of a recorded host",
        refused=("--sysroot", "--domain", "--config", "--connect", "--json"),
    )
    _path(
        demo.add_argument(
            "dir",
            metavar="DIR",
            type=Path,
            nargs="?",
            help="instead, make a scratch copy there to try verbs on with --sysroot DIR",
        )
    )
    return parser


def _common(
    parser: argparse.ArgumentParser,
    *,
    top: bool,
    config: bool = True,
    refused: Collection[str] = (),
) -> None:
    """Options that may stand before or after the verb.

    `config` is false where --config after the verb is virsh's. The verb's help leaves out those
    that it has no use for, and says why when they are given all the same: `refused`.
    """

    def told(option: str, text: str) -> str:
        return argparse.SUPPRESS if option in refused else text

    default: dict[str, Any] = {} if top else {"default": argparse.SUPPRESS}
    _path(
        parser.add_argument(
            "-s",
            "--sysroot",
            metavar="DIR",
            type=_some_path,
            help=told("--sysroot", "a recorded host: a directory tree or tar archive"),
            **default,
        )
    )
    _path(
        parser.add_argument(
            "--domain",
            metavar="FILE",
            type=Path,
            action="append",
            dest="domains" if top else "more_domains",
            default=[],
            help=told("--domain", "domain XML of a guest; may be repeated"),
        )
    )
    if config:
        _path(
            parser.add_argument(
                "--config",
                metavar="FILE",
                type=Path,
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
        "-d", "--debug", action="store_true", help="show tracebacks of errors", **default
    )


def _guest(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guest", metavar="GUEST", help="name, UUID or id, as virsh takes it")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "device",
        metavar="DEVICE",
        nargs="?",
        help="PCI address, alias or MAC address of a passed-through device; all for none",
    )


def _affected(parser: argparse.ArgumentParser, live: str, config: str) -> None:
    parser.add_argument("--live", action="store_true", help=live)
    parser.add_argument("--config", action="store_true", dest="config_", help=config)


def _force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force",
        action="store_true",
        help="drop what is not understood of virtirq's metadata in the guest",
    )


def _guests(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("guests", metavar="GUEST", nargs="*", help="name, UUID or id; all for none")


def _node(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 5):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not the number of a node")
    return int(text)


def _some_path(text: str) -> Path:
    """A path; not the empty one that an unset shell variable gives, which would be ``.``."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return Path(text)


def _path(action: argparse.Action) -> None:
    action.complete = {  # type: ignore[attr-defined]
        "bash": "_shtab_compgen_files",
        "zsh": "_files",
        "fish": "__fish_complete_path",
    }


def _run(args: argparse.Namespace) -> int:
    if args.print_completion:
        import shtab

        print(shtab.complete(make_parser(), shell=args.print_completion))
        return 0
    from virtirq.ui import verbs

    args.domains = [*args.domains, *getattr(args, "more_domains", [])]
    verb: Callable[[argparse.Namespace], int] = getattr(verbs, args.verb or "status")
    return verb(args)
