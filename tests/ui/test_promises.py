"""What docs/stability.md promises to stay, word by word, in promises.txt.

`make golden` writes it again: a version that is given out has all of it there. A line more is a
MINOR; a line that goes or changes is what a MAJOR is for, or before 1.0.0 what CHANGELOG.md says
under *Changed* or *Removed*.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest

from release.changes import UNRELEASED, sections
from tests.conftest import REPOSITORY
from tests.ui.schema import SCHEMA
from tests.ui.test_prometheus import DEMO, families, page_of_demo
from virtirq import errors
from virtirq.daemon.journal_socket import FIELDS
from virtirq.guests.libvirt.reading import NAMESPACE
from virtirq.guests.libvirt.settings import SELECTORS
from virtirq.model import Word
from virtirq.policy.advice import ADVICE
from virtirq.policy.config import Rule
from virtirq.ui.cli import main, make_parser

GOLDEN: Final = Path(__file__).with_name("promises.txt")


def command_line() -> Iterator[str]:
    parser = make_parser()
    yield from options(parser, "virtirq")
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb, each in action.choices.items():
                yield from options(each, f"virtirq {verb}")


def options(parser: argparse.ArgumentParser, prefix: str) -> Iterator[str]:
    yield prefix
    for action in parser._actions:
        if action.help is not argparse.SUPPRESS:
            yield from (f"{prefix} {option}" for option in action.option_strings)


def exit_codes() -> Iterator[str]:
    for name, code in vars(errors).items():
        if name.startswith("EXIT_"):
            yield f"exit code {code} {name.removeprefix('EXIT_').lower()}"


def json_fields() -> Iterator[str]:
    """By the name that their object has in the schema."""
    for name, part in SCHEMA["$defs"].items():
        yield from (f"json {each}" for each in described(part, name))


def described(part: dict[str, Any], path: str) -> Iterator[str]:
    kind = part.get("$ref", "").rpartition("/")[2] or part.get("type", "any")
    yield f"{path}: {kind if isinstance(kind, str) else ' or '.join(kind)}"
    for name, each in part.get("properties", {}).items():
        yield from described(each, f"{path}.{name}")
    if isinstance(part.get("items"), dict):
        yield from described(part["items"], f"{path}[]")
    if isinstance(part.get("additionalProperties"), dict):
        yield from described(part["additionalProperties"], f"{path}.*")


def settings(told: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in told.items():
        if isinstance(value, dict):
            yield from settings(value, f"{prefix}{key}.")
        elif key not in ("schema", "default_from", "rules"):
            yield f"configuration {prefix}{key}, by default {json.dumps(value)}"


def conditions() -> Iterator[str]:
    """And what a rule asks for."""
    for each in fields(Rule):
        if (key := each.metadata.get("key", each.name)) is not None:
            yield key


def metrics() -> Iterator[str]:
    for name, family in families(page_of_demo()).items():
        labels = sorted({label for sample in family.samples for label in sample.labels})
        yield f"metric {name}, a {family.type}, by {', '.join(labels) or 'nothing'}"


def test_what_is_promised_is_there(
    capsys: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> None:
    assert main(["--json", "-s", str(DEMO), "config", "show"]) == 0
    told = json.loads(capsys.readouterr().out)
    promises = [
        *command_line(),
        *(f"directive {each.value}" for each in Word),
        *exit_codes(),
        *json_fields(),
        *(f"finding {code}" for code in ADVICE),
        *settings(told),
        *(f"configuration rule.{each}" for each in conditions()),
        f"namespace {NAMESPACE}",
        *(f"namespace {NAMESPACE} device {each}" for each in SELECTORS),
        *metrics(),
        *(f"log {each}" for each in FIELDS.values()),
    ]
    if pytestconfig.getoption("--regenerate-output"):
        GOLDEN.write_text("".join(f"{each}\n" for each in dict.fromkeys(promises)))
    promised, there = set(GOLDEN.read_text().splitlines()), set(promises)
    assert promised - there == set()
    newest = sections((REPOSITORY / "CHANGELOG.md").read_text())[0]
    assert newest.version == UNRELEASED or there - promised == set()
