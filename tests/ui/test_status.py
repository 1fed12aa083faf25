"""``status`` and ``check`` of some guests: names and globs, problems, summaries and lists."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hostmaker import MadeHost, MadeInterrupt, passthrough
from tests.ui.test_cli import DEMO
from virtirq.policy import stakes
from virtirq.ui import listing
from virtirq.ui.cli import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["-s", str(DEMO), *words])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *words: run(capsys, *words)


def guests(shown: str) -> list[str]:
    return re.findall(r"^(\w+)  \d+ vCPU", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("names", "there"),
    [
        ((), ["build", "db", "web"]),
        (("web",), ["web"]),
        (("web", "db"), ["db", "web"]),
        (("*b",), ["db", "web"]),
        (("[bd]*",), ["build", "db"]),
        (("w?b", "web"), ["web"]),
    ],
)
@pytest.mark.parametrize("verb", ["status", "plan"])
def test_guests_by_name_and_glob(
    verb: str, names: tuple[str, ...], there: list[str], say: Any
) -> None:
    if verb == "status":
        assert guests(say("status", *names)[1]) == there
    told = json.loads(say(verb, *names, "-J")[1])
    assert [each["name"] for each in told["guests"]] == there


def test_findings_are_those_of_the_guests(say: Any) -> None:
    code, out, _ = say("check", "db")
    assert code == 3
    told = [line for line in out.splitlines() if not line.startswith("    hint: ")]
    assert {line.split(": ")[2].split()[0] for line in told} == {"db"}
    told = json.loads(say("status", "db", "-J")[1])
    assert {each["subject"].split()[0] for each in told["findings"]} == {"db"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("status", "wib"), "no guest is called 'wib'\nhint: did you mean web?"),
        (("check", "x*"), "no guest is called 'x*'\nhint: guests here: build, db, web"),
        (("place", "w*"), "no guest is called 'w*'\nhint: guests here: build, db, web"),
        (("stat",), "there is no verb 'stat'\nhint: did you mean status?"),
        (("frob",), "there is no verb 'frob'\nhint: verbs: status, top, plan"),
        (("explain", "nodemismatch"), "code of a finding\nhint: did you mean node-mismatch?"),
        (("explain", "0000:41:00.1"), "code of a finding\nhint: did you mean 0000:41:00.0?"),
        (("help", "stats"), "there is no verb 'stats'\nhint: did you mean status?"),
        (("status", "-o", "guest,irk"), "there is no column 'IRK'\nhint: columns: GUEST, DEVICE"),
    ],
)
def test_did_you_mean(words: tuple[str, ...], told: str, say: Any) -> None:
    code, out, err = say(*words)
    assert (code, out) == (2, "")
    assert told in err


def test_problems_alone(say: Any, tmp_path: Any) -> None:
    config = tmp_path / "virtirq.toml"
    config.write_text('default = "native"\n[[rule]]\nguest = "db"\ndirective = "auto"\n')
    shown = say("--config", str(config), "status", "--problems")[1]
    assert guests(shown) == ["db"]
    assert shown.count("wrong-cpu") == 7
    config.write_text('default = "native"\n')
    shown = say("--config", str(config), "status", "--problems")[1]
    assert guests(shown) == ["db"], "it is on another node than its device"
    assert "VERDICT" not in shown
    assert "nothing to move" in shown


def test_a_summary_has_a_line_for_each_guest(say: Any) -> None:
    lines = say("status", "--summary")[1].splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("GUEST"))
    assert lines[head].split() == [
        *("GUEST", "VCPUS", "DEVICES", "INTERRUPTS", "TO", "PIN", "FINDINGS")
    ]
    rows = [line.split() for line in lines[head + 1 : head + 4]]
    assert [(row[0], *row[-4:-1]) for row in rows] == [
        ("build", "2", "4", "4"),
        ("db", "2", "7", "7"),
        ("web", "2", "8", "8"),
    ]


@pytest.mark.parametrize(
    ("lines", "words", "short"),
    [
        (20, (), True),
        (200, (), False),
        (0, (), False),  # not known
        (20, ("web",), False),
        (20, ("--problems",), False),
        (200, ("--summary",), True),
    ],
)
def test_more_than_a_screenful_is_a_summary(
    lines: int, words: tuple[str, ...], short: bool, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = os.terminal_size((80, lines))
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: size)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1)
    shown = say("status", *words)[1]
    assert ("INTERRUPTS" in shown) is short
    assert ("'virtirq status GUEST' shows one" in shown) is (short and not words)


def test_a_list_of_interrupts(say: Any) -> None:
    lines = say("status", "-o", "guest,device,vector,irq,verdict", "web")[1].splitlines()
    assert lines[0].split() == ["GUEST", "DEVICE", "VECTOR", "IRQ", "VERDICT"]
    assert len(lines) == 9
    assert lines[1].split() == ["web", "0000:42:00.0", "0", "60", "wrong-cpu"]
    bare = say("status", "-o", "guest,device,vector,irq,verdict", "-n", "web")[1].splitlines()
    assert [line.split() for line in bare] == [line.split() for line in lines[1:]]


def test_its_usual_columns_and_more(say: Any) -> None:
    usual = say("status", "--noheadings", "web")[1].splitlines()
    more = say("status", "-o", "+driver", "-n", "web")[1].splitlines()
    assert [line.split()[:-1] for line in more] == [line.split() for line in usual]
    assert {line.split()[-1] for line in more} == {"vfio-pci"}


@pytest.mark.parametrize(
    ("column", "order"),
    [("irq", int), ("on", int), ("total", int), ("guest", str), ("verdict", str)],
)
def test_its_order(column: str, order: type, say: Any) -> None:
    values = [order(each) for each in say("status", "-no", column, "--sort", column)[1].split()]
    assert len(values) == 19
    assert values == sorted(values)


def test_pairs_are_as_a_shell_reads_them(say: Any) -> None:
    line = say("status", "-P", "-o", "guest,irq,wanted", "web")[1].splitlines()[0]
    assert line == 'GUEST="web" IRQ="60" WANTED="4"'
    assert listing._quoted('a"b$c`d\\e') == 'a\\"b\\$c\\`d\\\\e'


def test_every_column_can_be_shown_and_sorted_by(say: Any) -> None:
    for column in listing.COLUMNS:
        code, out, err = say("status", "-n", "-o", column.lower(), "--sort", column)
        assert (code, err) == (0, "")
        assert len(out.splitlines()) == 19


def test_a_guest_beside_isolated_cpus_is_described_alike(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    host = MadeHost(
        online="0-7",
        nodes={0: "0-7"},
        isolated="4-7",
        devices=(passthrough("0000:82:00.0", vectors=2, first_irq=40, node=0),),
    ).write(tmp_path / "host")
    file = tmp_path / "vm.xml"
    file.write_text(
        "<domain type='kvm'><name>vm</name><vcpu>2</vcpu><devices>"
        "<hostdev mode='subsystem' type='pci'><source>"
        "<address domain='0' bus='0x82' slot='0' function='0'/></source></hostdev></devices>"
        "</domain>"
    )
    for verb in ("plan", "check", "status", "explain vm"):
        main(["-s", str(host), "--domain", str(file), *verb.split()])
        shown = capsys.readouterr().out
        assert "every CPU that is not isolated, 0-3" in shown, verb
        assert "every CPU\n" not in shown, verb


def test_help_of_a_verb_and_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "plan"]) == 0
    assert capsys.readouterr().out.startswith("usage: virtirq plan ")
    assert main(["help"]) == 0
    whole = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out == whole
    with pytest.raises(SystemExit):
        main(["-V"])
    assert capsys.readouterr().out.startswith("virtirq ")


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host where, while `check` waits, a guest's interrupts and the host's own go astray."""
    host = MadeHost(
        online="0-7",
        devices=(passthrough("0000:82:00.0", vectors=2, first_irq=40),),
        interrupts=(MadeInterrupt(9, ("disk0",)),),
    ).write(tmp_path / "host")
    for name, pins in (("web", "23"), ("db", "45")):
        devices = (
            "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0x82' slot='0'"
            " function='0'/></source></hostdev>"
        )
        (tmp_path / f"{name}.xml").write_text(
            f"<domain type='kvm'><name>{name}</name><vcpu>2</vcpu><cputune>"
            + "".join(f"<vcpupin vcpu='{i}' cpuset='{cpu}'/>" for i, cpu in enumerate(pins))
            + f"</cputune><devices>{devices if name == 'web' else ''}</devices></domain>"
        )

    def come(seconds: float) -> None:
        assert seconds == 5
        for irq, counts in (
            (9, "0,0,9,0,0,0,0,0"),
            (40, "0,0,5,0,0,0,0,0"),
            (41, "0,0,0,0,15,0,0,0"),
        ):
            (host / f"sys/kernel/irq/{irq}/per_cpu_count").write_text(counts)

    monkeypatch.setattr("virtirq.ui.verbs.check.time.sleep", come)
    monkeypatch.setattr("virtirq.ui.verbs.check.time.monotonic", iter((10.0, 15.0)).__next__)
    return tmp_path


def test_check_tells_what_is_at_stake(counted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--domain={counted / name}.xml" for name in ("web", "db")]
    main(["-s", str(counted / "host"), *given, "check", "--rates", "5", "-J"])
    told = json.loads(capsys.readouterr().out)
    assert told["rates"] == {
        "seconds": 5.0,
        "guests": [
            {"guest": "db", "own": 0.0, "others": {}, "elsewhere": 0.0},
            {"guest": "web", "own": 1.0, "others": {"db": 3.0}, "elsewhere": 0.0},
        ],
        "host_on_vcpus": 1.8,
    }
    found = {each["code"]: each["message"] for each in told["findings"]}
    assert found["taken-elsewhere"].startswith("75% of its 4 interrupts a second")
    assert found["host-interrupts-on-vcpus"].endswith("interrupt 9 (disk0) on CPU 2")


def test_who_misspells_a_guest_does_not_wait(
    counted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtirq.ui.verbs.check.time.sleep", pytest.fail)
    given = ["-s", str(counted / "host"), f"--domain={counted}/web.xml", "check", "--rates", "5"]
    assert main([*given, "wbe"]) == 2
    assert capsys.readouterr().err.endswith("hint: did you mean web?\n")


def test_of_some_guests_only_theirs_is_told(
    counted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--domain={counted / name}.xml" for name in ("web", "db")]
    for name, told in (("web", {"taken-elsewhere"}), ("db", set())):
        monotonic = iter((10.0, 15.0)).__next__
        with pytest.MonkeyPatch.context() as clock:
            clock.setattr("virtirq.ui.verbs.check.time.monotonic", monotonic)
            main(["-s", str(counted / "host"), *given, "check", name, "--rates", "5", "-J"])
        found = json.loads(capsys.readouterr().out)
        assert {each["code"] for each in found["findings"]} & stakes.CODES == told
        assert [each["guest"] for each in found["rates"]["guests"]] == [name]
        for irq in (9, 40, 41):
            (counted / f"host/sys/kernel/irq/{irq}/per_cpu_count").write_text("0,0,0,0,0,0,0,0")


def test_a_recording_stands_still_and_nothing_is_counted(say: Any) -> None:
    assert json.loads(say("check", "-J")[1])["rates"] is None
