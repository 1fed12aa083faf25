"""The command line: the parser, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Final, NoReturn

from virtirq import __version__
from virtirq.errors import (
    EXIT_FAILED,
    EXIT_OK,
    InterruptedByUserError,
    UsageError,
    VirtirqError,
)
from virtirq.ui import arguments, progress, verbs
from virtirq.ui.complaint import complain
from virtirq.values import pattern

_SHELLS: Final = ("bash", "zsh", "fish")
_DEFAULT: Final = "status"
_LISTS_VERBS: Final = frozenset({"-h", "--help", "--print-completion"})
_VALUES: Final = "--complete-values"
"""Asked by a shell's completion, never by a person: see completion.py."""
_SHORT_JSON: Final = pattern("-[a-zA-Z]*J")
_EPILOG: Final = """\
exit codes: 0 ok, 1 failed, 2 usage or bad input, 3 findings, 4 applied in part,
5 not permitted or read-only, 6 dependency or connection missing"""


def command() -> int:
    """`main`, for a process that does nothing else.

    What it makes stays until its end: looking through that for what nobody needs, again and again
    and then once more, would take a quarter of a short command's time. Who lasts, does so.
    """
    gc.disable()
    try:
        return main()
    finally:
        gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit code. Only a bug, or ``--debug``, shows a traceback."""
    _prepare_output()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == [_VALUES]:
        from virtirq.ui import completion

        completion.print_values(words[1:])
        return EXIT_OK
    try:
        args = _parsed(words)
    except UsageError as error:
        return complain(error, as_json=_asks_for_json(words))
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except VirtirqError as error:
        if args.debug:
            import traceback

            traceback.print_exc()
        return complain(error, as_json=args.json)
    except BrokenPipeError:
        _drop_output()  # the reader (head, less) has seen enough
        return EXIT_FAILED
    except OSError as error:
        if args.debug:
            raise
        _drop_output()
        where = f"{error.filename}: " if error.filename else "the output could not be written: "
        return complain(VirtirqError(f"{where}{error.strerror or error}"), as_json=args.json)
    except (MemoryError, RecursionError) as error:
        if args.debug:
            raise
        what = f"the input is too large or too deep ({type(error).__name__})"
        return complain(VirtirqError(what), as_json=args.json)
    except KeyboardInterrupt:
        return complain(InterruptedByUserError("interrupted"), as_json=args.json)


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


def _asks_for_json(words: Sequence[str]) -> bool:
    """Whether a command line that could not be understood asks for JSON."""
    options = list(takewhile(lambda word: word != "--", words))
    return "--json" in options or any(map(_SHORT_JSON.fullmatch, options))


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as everything else here does: in one line, and what to do in another."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"'{self.prog} --help' shows what there is")

    def _get_formatter(self) -> argparse.HelpFormatter:
        # Asked for with each argument that is added; its own width comes from shutil, with all
        # the formats of archives that this imports.
        made: Callable[..., argparse.HelpFormatter] = self.formatter_class
        return made(prog=self.prog, width=progress.columns() - 2)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """Raises UsageError. The arguments of verbs that are not meant are not even imported."""
    meant = [name for name in verbs.NAMES if name in words]
    if not _LISTS_VERBS.intersection(words):
        with suppress(UsageError):
            return _with_verb(make_parser(meant), words)
    whole = make_parser()
    _refuse_unknown_options(whole, words)
    _refuse_unknown_verb(whole, words)
    return _with_verb(whole, words)


def _with_verb(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Where no verb is typed, the default one, with its own defaults."""
    args = parser.parse_args(words)
    if args.verb is None and not args.print_completion:
        return make_parser([_DEFAULT]).parse_args([*words, _DEFAULT])
    return args


def _refuse_unknown_verb(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Raises UsageError for the first word that is no option, nor an option's, and no verb."""
    taking = {
        option
        for action in parser._actions
        if action.nargs is None and action.option_strings
        for option in action.option_strings
    }
    before = ""
    for word in words:
        if not word.startswith("-") and before not in taking:
            if word not in verbs.NAMES:
                raise no_such_verb(word)
            return
        before = word


def no_such_verb(name: str) -> UsageError:
    """The error, with the verb that may be meant."""
    from difflib import get_close_matches

    alike = get_close_matches(name, verbs.NAMES, n=1)
    hint = f"did you mean {alike[0]}?" if alike else f"verbs: {', '.join(verbs.NAMES)}"
    return UsageError(f"there is no verb {name[:60]!r}", hint=hint)


def parser_of(name: str | None) -> argparse.ArgumentParser:
    """A verb's parser; without one, the whole."""
    whole = make_parser()
    return whole if name is None else _meant(whole, [name])


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


def make_parser(names: Sequence[str] = verbs.NAMES) -> argparse.ArgumentParser:
    """The parser of the command line with these verbs; shell completions are made from it."""
    parser = _Parser(
        prog="virtirq",
        description="Pin the host interrupts of passed-through devices to their guests' CPUs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"virtirq {__version__}")
    parser.add_argument(
        "--print-completion",
        choices=_SHELLS,
        metavar="SHELL",
        help="print the shell completion for bash, zsh or fish",
    )
    arguments.common(parser, top=True)
    made_of = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name in names:
        verb = verbs.load(name)
        made = made_of.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}. {verb.more}".strip(),
            allow_abbrev=False,
        )
        arguments.common(made, top=False, own=verb.own, refused=verb.refused)
        verb.arguments(made)
    return parser


def _run(args: argparse.Namespace) -> int:
    if args.print_completion:
        from virtirq.ui import completion

        print(completion.script(args.print_completion, make_parser()))
        return 0
    args.domains = [*args.domains, *getattr(args, "more_domains", [])]
    verb = verbs.load(args.verb)
    if verb.lasts:
        gc.enable()
    with progress.shown(args):
        return verb.run(args)
