"""The generated parts of the manual's pages: ``python -m tools.manual`` writes them again.

The pages are written by hand, in ``docs/man``. What is between ``.\\" generated: NAME`` and
``.\\" end`` is not: options and verbs come from the parser, columns and findings from their tables.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Final

from virtirq.policy.advice import ADVICE
from virtirq.ui import verbs
from virtirq.ui.cli import make_parser
from virtirq.ui.listing import COLUMNS

PAGES: Final = Path(__file__).parents[1] / "docs" / "man"
_PART: Final = re.compile(r'^(\.\\" generated: (\w+))\n.*?^(\.\\" end)$', re.DOTALL | re.MULTILINE)
_OPTION: Final = re.compile(r"(?<![\w\\-])\\-\\-[a-z](?:[a-z]|\\-(?=[a-z]))*")
"""A long option, escaped."""
_ESCAPED: Final = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"}


def filled(text: str) -> str:
    """The page with its generated parts as they are to be. Raises KeyError for an unknown one."""
    return _PART.sub(lambda part: f"{part[1]}\n{''.join(_PARTS[part[2]]())}{part[3]}", text)


def roff(text: str) -> str:
    """Text as troff takes it anywhere in a line, to be shown and copied as it is."""
    return "".join(
        _ESCAPED.get(each) or (each if each.isascii() else f"\\[u{ord(each):04X}]") for each in text
    )


def options() -> Iterator[str]:
    """What every verb takes, as a list."""
    for action in make_parser([])._actions:
        if action.option_strings and action.help is not argparse.SUPPRESS:
            yield _option(action)


def commands() -> Iterator[str]:
    """The verbs, with what each takes besides `options`."""
    parsers = _parsers(make_parser())
    for name in verbs.NAMES:
        verb, parser = verbs.load(name), parsers[name]
        yield f".SS {name}\n.nh\n.ad l\n{_synopsis(parser)}\n.hy\n.ad b\n.PP\n"
        yield f"{_prose(parser.description or '')}\n"
        if verb.refused:
            yield f"Takes no {_listed(sorted(verb.refused))}.\n"
        for action in _own(parser):
            yield _option(action)


def columns() -> Iterator[str]:
    yield f"{roff(', '.join(COLUMNS))}.\n"


def findings() -> Iterator[str]:
    """Each finding by its code, in alphabetical order."""
    for code, advice in sorted(ADVICE.items()):
        yield f".SS {roff(code)}\n.IR {advice.severity.value} .\n{_prose(advice.meaning)}\n"
        yield f".IP\nWhat to do: {_prose(advice.remedy)}.\n"


_PARTS: Final[Mapping[str, Callable[[], Iterator[str]]]] = {
    "options": options,
    "verbs": commands,
    "columns": columns,
    "findings": findings,
}


def _parsers(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Of each verb."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    raise AssertionError("the parser has no verbs")


def _own(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """What the verb has besides the options that all have: those it has under a name of its own."""
    common = {
        (each.dest.removeprefix("more_"), *each.option_strings) for each in make_parser([])._actions
    }
    return [
        each
        for each in parser._actions
        if (each.dest.removeprefix("more_"), *each.option_strings) not in common
        and each.help is not argparse.SUPPRESS
    ]


def _synopsis(parser: argparse.ArgumentParser) -> str:
    own = _own(parser)
    words = [rf"\fB{roff(parser.prog)}\fR"]
    given = [_spelt(each, each.option_strings[0], r"\~") for each in own if each.option_strings]
    words += [f"[{each}]" for each in given]
    words += [_word(each) for each in own if not each.option_strings]
    return "\n".join(words)


def _word(action: argparse.Action) -> str:
    """A positional argument, as a synopsis has it."""
    name = rf"\fI{roff(_metavar(action))}\fR"
    return {"?": f"[{name}]", "*": rf"[{name}\[u2026]]", "+": rf"{name}\[u2026]"}.get(
        str(action.nargs), name
    )


def _option(action: argparse.Action) -> str:
    if not action.option_strings:
        head = rf"\fI{roff(_metavar(action))}\fR"
    else:
        *some, last = action.option_strings
        head = "".join(rf"\fB{roff(each)}\fR, " for each in some) + _spelt(action, last)
    return f".TP\n{head}\n{_prose(_sentence(_help(action)))}\n"


def _spelt(action: argparse.Action, name: str, space: str = " ") -> str:
    shown = rf"\fB{roff(name)}\fR"
    return shown if action.nargs == 0 else rf"{shown}{space}\fI{roff(_metavar(action))}\fR"


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def _help(action: argparse.Action) -> str:
    text = action.help or ""
    # argparse's own words for these two changed between versions of Python.
    if isinstance(action, argparse._HelpAction):
        return "show this help and exit"
    if isinstance(action, argparse._VersionAction):
        return "show the version and exit"
    return text % {"default": action.default, "prog": "virtirq"} if "%" in text else text


def _sentence(text: str) -> str:
    begun = text if text.startswith("libvirt") else f"{text[:1].upper()}{text[1:]}"
    return begun if begun.endswith(".") else f"{begun}."


def _listed(names: list[str]) -> str:
    return ", ".join(rf"\fB{roff(each)}\fR" for each in names)


def _prose(text: str) -> str:
    """A paragraph; no line of it begins with what troff takes for a request."""
    marked = _OPTION.sub(r"\\fB\g<0>\\fR", roff(text))
    lines = wrap(marked, 90, break_long_words=False, break_on_hyphens=False)
    return "\n".join(rf"\&{line}" if line.startswith(".") else line for line in lines)


def main() -> None:
    for page in sorted(PAGES.iterdir()):
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
