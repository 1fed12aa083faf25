"""What is printed with ``--json`` is as docs/virtirq.schema.json says, for every verb."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.ui.cases import CASES, NATIVE_DISKS, Case
from tests.ui.schema import SCHEMA, valid
from tests.ui.test_cli import DEMO, SINGLE, interrupts
from virtirq.errors import InterruptedByUserError, VirtirqError
from virtirq.policy.config import Rule
from virtirq.ui import verbs
from virtirq.ui.cli import main
from virtirq.ui.complaint import kind_of

DOCUMENTS = [each["$ref"].rpartition("/")[2] for each in SCHEMA["anyOf"]]
SHOWN_BY = {
    "status": "status",
    "apply": "plan",
    "restore": "plan",
    "plan": "plan",
    "check": "check",
    "explain": "plan",
    "place": "place",
    "compare": "compare",
    "record": "record",
    "config": "config",
    "help": "help",
    "top": "top",
    "events": "events",
}
"""Verbs that need no libvirt; those that do are in test_libvirt_verbs.py."""
NONE = {"metrics", "daemon", "demo", "draw", "report"}
"""Verbs that refuse --json."""


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    for name in SCHEMA["$defs"]:
        Draft202012Validator.check_schema(SCHEMA["$defs"][name])


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every part that describes an object of ours."""
    if isinstance(schema, dict):
        if "properties" in schema:
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


def test_nothing_passes_that_is_not_described() -> None:
    found = list(objects(SCHEMA["$defs"]))
    assert len(found) > 20
    assert all(each["additionalProperties"] is False for each in found)


def test_every_part_is_used() -> None:
    text = json.dumps(SCHEMA)
    for name in SCHEMA["$defs"]:
        assert f'"#/$defs/{name}"' in text, name


def test_every_verb_has_its_document() -> None:
    libvirts = {"get", "set", "unset", "define", "dumpxml"}
    assert set(verbs.NAMES) == set(SHOWN_BY) | NONE | libvirts
    assert set(SHOWN_BY.values()) <= set(DOCUMENTS)


def test_errors_are_of_the_kinds_that_are_listed() -> None:
    kinds, known = set(), [VirtirqError]
    for each in known:
        known += (sub for sub in each.__subclasses__() if sub.__module__ == VirtirqError.__module__)
        kinds.add(kind_of(each))
    assert set(SCHEMA["$defs"]["error_kind"]["enum"]) == kinds


ASKED = [
    case
    for case in CASES
    if case.exit in (0, 3)
    and not case.files
    and "{bare}" not in case.line
    and case.name not in ("version", "quiet")
    and not NONE & set(shlex.split(case.line))
]


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.name)
def test_the_table_of_command_lines(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    words = [each.format(demo=DEMO, single=SINGLE) for each in shlex.split(case.line)]
    code, out, err = run(capsys, "-J", *words)
    verb = next((word for word in words if word in verbs.NAMES), "status")
    assert (code, err) == (case.exit, "")
    name = "explain_code" if case.name.startswith("explain-code") else SHOWN_BY[verb]
    valid(out, name)


WRONG = [case for case in CASES if case.exit == 2 and not case.files and "{" not in case.line]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.name)
def test_errors_in_json(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *shlex.split(case.line), "-J")
    assert (code, out) == (case.exit, "")
    error = valid(err, "error")["error"]
    assert error["exit"] == case.exit
    code, _, text = run(capsys, *shlex.split(case.line))
    assert text.splitlines()[0] == f"virtirq: error: {error['message']}"


@pytest.mark.parametrize("words", ["status --bogus -qJ", "--json nonsense", "-J nonsense -- x"])
def test_json_is_asked_for_wherever_it_stands(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *words.split())
    assert (code, valid(err, "error")["error"]["kind"]) == (2, "usage")


@pytest.mark.parametrize("words", ["nonsense", "nonsense -- -J", "-q nonsense --jsonx"])
def test_errors_are_lines_otherwise(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = run(capsys, *words.split())
    assert err.startswith("virtirq: error: ")


def test_ctrl_c_is_an_error_like_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    kind = kind_of(InterruptedByUserError)
    real = verbs.load
    monkeypatch.setattr(verbs, "load", lambda name: replace(real(name), run=interrupted))
    assert run(capsys, "plan") == (130, "", "virtirq: error: interrupted\n")
    code, _, err = run(capsys, "-J", "plan")
    assert (code, valid(err, "error")["error"]["kind"]) == (130, kind)


def test_apply_and_restore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(tmp_path / "scratch")
    assert run(capsys, "demo", root)[0] == 0
    told = valid(run(capsys, "-Js", root, "apply")[1], "plan")
    assert told["outcomes"] == {"applied": 19}
    assert told["totals"] == {"interrupts": 19, "to_pin": 19}
    assert "outcomes" not in valid(run(capsys, "-Js", root, "restore", "-n")[1], "plan")
    assert valid(run(capsys, "-Js", root, "restore")[1], "plan")["outcomes"] == {"applied": 19}
    assert valid(run(capsys, "-Js", root, "restore")[1], "plan")["outcomes"] == {}


def test_other_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo = ("-J", "-s", str(DEMO))
    config = tmp_path / "virtirq.toml"
    config.write_text(NATIVE_DISKS)
    told = valid(run(capsys, "-J", "--config", str(config), "config", "show")[1], "config")
    named = {each.metadata.get("key", each.name) or "from" for each in fields(Rule)}
    assert set(told["rules"][0]) == named
    valid(run(capsys, *demo, "record", str(tmp_path / "host.tar"))[1], "record")
    valid(run(capsys, *demo, "help")[1], "help")
    assert valid(run(capsys, *demo, "help", "set")[1], "help")["verbs"][0]["verb"] == "set"
    valid(run(capsys, *demo, "status", "--all")[1], "status")
    listed = valid(run(capsys, *demo, "status", "-o", "irq,on,vcpu")[1], "list")["interrupts"]
    assert len(listed) == 19
    assert listed[0].keys() == {"irq", "on", "vcpu"}


def test_json_tells_what_the_text_tells(capsys: pytest.CaptureFixture[str]) -> None:
    """Facts that a person reads, each looked up in the document."""
    demo = ("-s", str(DEMO))
    data = valid(run(capsys, "-J", *demo, "status")[1], "status")
    text = run(capsys, *demo, "status")[1]
    host = data["host"]
    assert f"Linux {host['kernel']}, CPUs {host['cpus']['online']} on" in text
    assert f"{len(host['nodes'])} nodes" in text
    assert ("irqbalance runs" if host["irqbalance"]["running"] else "no irqbalance") in text
    pins, all_ = data["totals"]["to_pin"], data["totals"]["interrupts"]
    assert f"{pins} of {all_} interrupts are to be pinned" in text
    for guest in data["guests"]:
        told = run(capsys, *demo, "explain", guest["name"])[1]
        assert f"guest {guest['name']}, known from {guest['source']}\n" in told
        for vcpu in guest["vcpus"]:
            where = "" if not vcpu["pinned"] else f"CPU {vcpu['cpus']}"
            assert f"vCPU {vcpu['vcpu']} may run on {where}" in told
        assert (f"emulator may run on CPUs {guest['emulator']}" in told) == bool(guest["emulator"])
        for device in guest["devices"]:
            assert f"{device['address']}, {device['class']}, driver {device['driver']}, " in told
            assert f"asked: {device['directive']}, from the {device['directive_from']}\n" in told
            assert f"that means: {device['note']}\n" in told
        for each in interrupts({"guests": [guest]}):
            assert f"IRQ {each['irq']} {each['name']}\n" in told
            if each["counts"]:
                there = each["taken_there"]
                assert f"{each['taken']} interrupts so far, {there} of them there\n" in told
        for finding in data["findings"]:
            if finding["subject"].split(" ")[0] == guest["name"]:
                assert finding["meaning"] in told


@pytest.mark.parametrize(
    "broken",
    [
        {"schema": 2},
        {"findings": [{"code": "x"}]},
        {"more": 1},
        {"gaps": None},
    ],
)
def test_the_schema_bites(broken: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "-J", "-s", str(SINGLE), "check")[1]
    valid(text, "check")
    with pytest.raises(ValidationError):
        valid(json.dumps({**json.loads(text), **broken}), "check")
