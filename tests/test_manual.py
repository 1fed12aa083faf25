"""The manual's pages: all of the command, the configuration and the findings is in them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.needs import need_program
from tools import manual
from virtirq import errors
from virtirq.model import CLASS_WORDS, OTHER_CLASS, Directive, Word
from virtirq.policy.advice import ADVICE
from virtirq.policy.config import Config, Rule, parse_config
from virtirq.ui import verbs
from virtirq.ui.cli import make_parser
from virtirq.ui.listing import COLUMNS

PAGES = sorted((REPOSITORY / "docs/man").iterdir())
NAMES = {page.name for page in PAGES}
_RENDER = ["man", "--warnings", "-E", "UTF-8", "-l"]


def rendered(page: Path) -> tuple[str, str]:
    """What man(1) shows of a page, unbroken and unhyphenated, and what it complains of."""
    need_program("man")
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {
        "LC_ALL": "C.UTF-8",
        "MANWIDTH": "1000",
        "MANPAGER": "cat",
        "PAGER": "cat",
    }
    done = subprocess.run(
        [*_RENDER, str(page)], capture_output=True, text=True, check=True, env=environment
    )
    return re.sub(".\b", "", done.stdout), done.stderr


def source(name: str) -> str:
    """A page as it is written, what is escaped put back."""
    text = (REPOSITORY / "docs/man" / name).read_text()
    for escape, plain in (("\\-", "-"), (r"\(aq", "'"), (r"\(dq", '"'), (r"\(ha", "^")):
        text = text.replace(escape, plain)
    return re.sub(r"\\f[BIR]", "", text)


def test_there_are_three() -> None:
    assert {"virtirq.8", "virtirq.toml.5", "virtirq-findings.7"} == NAMES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_generated_parts_are_as_generated(page: Path) -> None:
    text = page.read_text()
    assert manual.filled(text) == text, "run 'make manual', and look at the difference"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_man_has_no_complaint(page: Path) -> None:
    shown, complaints = rendered(page)
    assert complaints == ""
    assert re.search(r"^NAME$", shown, re.MULTILINE)


def test_a_complaint_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "bad.1"
    page.write_text(".TH BAD 1\n.SH NAME\nbad \\- is bad\n.PP\n\\*[nosuchstring]\n.sp 1z\n")
    assert "warning" in rendered(page)[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_whatis_finds_it(page: Path) -> None:
    need_program("lexgrog")
    done = subprocess.run(["lexgrog", str(page)], capture_output=True, text=True, check=True)
    name = page.name.rpartition(".")[0]
    assert f': "{name} - ' in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_it_refers_to_pages_that_are_there(page: Path) -> None:
    named = re.findall(r"^\.BR (virtirq\S*) \((\d)\)", page.read_text(), re.MULTILINE)
    assert named
    assert {f"{name.replace(chr(92), '')}.{section}" for name, section in named} <= NAMES


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def section(text: str, head: str) -> str:
    """From this heading to the next of its kind."""
    kind = head.partition(" ")[0]
    _, found, rest = text.partition(f"\n{head}\n")
    assert found, head
    return re.split(rf"^\{kind}\b|^\.SH\b", rest, maxsplit=1, flags=re.MULTILINE)[0]


def test_every_verb_and_option_is_in_it() -> None:
    page = source("virtirq.8")
    common = section(page, ".SH OPTIONS")
    for name in verbs.NAMES:
        assert section(page, f".SS {name}").strip()
    for parser in parsers(make_parser()):
        verb = parser.prog.partition(" ")[2]
        own = section(page, f".SS {verb}") if verb else ""
        for action in parser._actions:
            if action.help == argparse.SUPPRESS:
                continue
            for option in action.option_strings:
                told = re.compile(rf"(?<![\w-]){re.escape(option)}(?![\w-])")
                assert told.search(own) or told.search(common), (verb, option)


def test_an_option_that_is_missing_is_noticed() -> None:
    text = (REPOSITORY / "docs/man/virtirq.8").read_text()
    assert manual.filled(text.replace(r"\-\-problems", r"\-\-trouble")) == text


def test_every_word_of_the_command_is_in_it() -> None:
    page = source("virtirq.8")
    status = section(page, ".SH EXIT STATUS")
    for name, code in vars(errors).items():
        if name.startswith("EXIT_"):
            assert f"\n.B {code}\n" in status, name
    directives = section(page, ".SH DIRECTIVES")
    for word in Word:
        assert f"\n.B {word.value}\n" in directives
    columns = section(page, ".SS Columns")
    for column in COLUMNS:
        assert re.search(rf"\b{column}\b", columns)


def test_every_finding_is_in_it() -> None:
    page = source("virtirq-findings.7")
    for code, advice in ADVICE.items():
        told = " ".join(section(page, f".SS {code}").split())
        assert advice.severity.value in told
        assert " ".join(advice.meaning.split()) in told
        assert advice.remedy in told


def keys(settings: object) -> list[str]:
    assert dataclasses.is_dataclass(settings)
    found = [each.metadata.get("key", each.name) for each in dataclasses.fields(settings)]
    return [key for key in found if key is not None]


def test_every_key_is_in_it_with_its_default() -> None:
    page = source("virtirq.toml.5")
    config = Config()
    for each in dataclasses.fields(config):
        key, value = each.metadata.get("key", each.name), getattr(config, each.name)
        if key in (None, "rule"):
            continue
        if isinstance(value, Directive) or not dataclasses.is_dataclass(value):
            (kind,) = re.findall(
                rf"^\.BR {key} \" \((.*)\)\"$", section(page, ".SH TOP LEVEL"), re.M
            )
            assert kind.partition("; ")[2] == shown(value), key
            continue
        told = section(page, f".SH [{key}]")
        for name in keys(value):
            (kind,) = re.findall(rf"^\.BR {name} \" \((.*)\)\"$", told, re.M)
            assert kind.partition("; ")[2] == shown(getattr(value, name)), name
    rules = section(page, ".SH [[rule]]")
    for name in keys(Rule):
        assert re.search(rf"^\.BR {name} \" \(", rules, re.M), name


def shown(value: object) -> str:
    """A default, as the page writes it."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def test_every_class_is_in_it() -> None:
    told = section(source("virtirq.toml.5"), ".SH [[rule]]")
    for word in (*CLASS_WORDS.values(), OTHER_CLASS):
        assert re.search(rf"\b{word}\b", told), word


def test_its_example_is_a_configuration() -> None:
    _, _, rest = section(source("virtirq.toml.5"), ".SH EXAMPLES").partition(".EX\n")
    config = parse_config([("example", rest.partition("\n.EE")[0])])
    assert len(config.rules) == 2
