"""Every command line of `cases.py`: exit code, output and errors against a golden file."""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.ui import cases
from tests.ui.cases import CASES, Case
from virtirq.errors import VirtirqError
from virtirq.ui import cli, verbs
from virtirq.ui.cli import main, make_parser
from virtirq.ui.verbs import Verb

GOLDEN = REPOSITORY / "tests/golden"
DEMO = REPOSITORY / "src/virtirq/demo/two-node.tar.xz"
SINGLE = REPOSITORY / "tests/hosts/single-node.tar.xz"


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two-node host without its guests."""
    root = tmp_path_factory.mktemp("hosts") / "bare"
    assert virtirq("demo", str(root)).returncode == 0
    shutil.rmtree(root / "virtirq/domains")
    return root


def virtirq(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "80", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "virtirq", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


def steady(text: str) -> str:
    """Without what argparse words anew from one Python to the next."""
    text = re.sub(r"(?s)^usage: .*?(?=^virtirq)", "", text, flags=re.MULTILINE)
    return re.sub(r"\(choose from .*\)", "(choose from …)", text)


def typed(case: Case, places: dict[str, Path]) -> list[str]:
    return [word.format(**places) for word in shlex.split(case.line)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case: Case, bare: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    places = {"demo": DEMO, "single": SINGLE, "bare": bare, "absent": tmp_path / "absent"}
    for name in ("empty", "used"):
        places[name] = tmp_path / name
        places[name].mkdir()
    (tmp_path / "used" / "file").touch()
    for name, text in case.files.items():
        places[name] = tmp_path / name
        places[name].write_text(text)
    done = virtirq(*typed(case, places))
    assert "Traceback" not in done.stderr
    assert done.returncode == case.exit, done.stderr
    shown = f"$ virtirq {case.line}\n{done.stdout}"
    if done.stderr:
        shown += f"--- stderr\n{steady(done.stderr)}"
    for name, place in sorted(places.items(), key=lambda item: -len(str(item[1]))):
        shown = shown.replace(str(place), f"{{{name}}}")
    golden = GOLDEN / f"{case.name}.txt"
    if pytestconfig.getoption("--regenerate-output"):
        golden.write_text(shown)
    assert shown == golden.read_text()


def test_no_golden_is_left_over() -> None:
    assert {each.stem for each in GOLDEN.iterdir()} == {case.name for case in CASES}
    assert len({case.name for case in CASES}) == len(CASES)


def test_every_verb_and_option_is_in_the_table() -> None:
    """Whatever the parser knows, some case types (or another test of this folder)."""
    elsewhere = Path(__file__).parent.rglob("test_*.py")
    source = " ".join(case.line for case in CASES) + " ".join(
        each.read_text() for each in elsewhere
    )
    parser = make_parser()
    (verbs,) = (a for a in parser._actions if a.dest == "verb")
    assert isinstance(verbs.choices, dict)
    for verb, sub in verbs.choices.items():
        assert re.search(rf"\b{verb}\b", source), verb
        for action in (*parser._actions, *sub._actions):
            options = action.option_strings
            assert not options or any(
                re.search(rf"(?<![\w-]){option}\b", source) for option in options
            ), options


def test_every_error_class_is_shown_by_a_test() -> None:
    tests = " ".join(each.read_text() for each in (REPOSITORY / "tests").rglob("*.py"))
    known = [VirtirqError]
    for each in known:
        known += (sub for sub in each.__subclasses__() if sub.__module__ == VirtirqError.__module__)
        assert re.search(rf"\b{each.__name__}\b", tests), each


def test_help_names_every_verb_and_the_exit_codes() -> None:
    shown = virtirq("--help").stdout
    (verbs,) = (a for a in make_parser()._actions if a.dest == "verb")
    for verb in verbs.choices or ():
        assert re.search(rf"^ +{verb} +\w", shown, re.MULTILINE), verb
    assert re.findall(r"\b[0-6] (?=[a-z])", shown.partition("exit codes:")[2])


@pytest.mark.parametrize("option", ["-d", "--debug"])
def test_debug_shows_the_traceback(option: str, tmp_path: Path) -> None:
    done = virtirq(option, "-s", str(tmp_path / "absent"), "status")
    assert done.returncode == 2
    assert "RecordingError" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("virtirq: error: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(shell: str) -> None:
    done = virtirq("--print-completion", shell)
    assert done.returncode == 0
    for word in ("status", "restore", "--sysroot"):
        assert word.strip("-") in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_a_shell_that_an_older_shtab_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debian 13's."""
    monkeypatch.setattr("shtab.SUPPORTED_SHELLS", ["bash", "zsh", "tcsh"])
    assert main(["--print-completion", "fish"]) == 6
    assert capsys.readouterr().err.startswith("virtirq: error: the shtab that is installed makes")


def test_a_closed_pipe_is_not_an_error_message() -> None:
    script = f"{shlex.quote(sys.executable)} -m virtirq -s {shlex.quote(str(DEMO))} plan | head -1"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("build 0000:21:00.0")
    assert done.stderr == ""


def test_scratch_host_apply_status_restore(tmp_path: Path) -> None:
    """What a person does with `virtirq demo DIR`."""
    root = tmp_path / "scratch"
    assert virtirq("demo", str(root)).returncode == 0
    before = virtirq("-s", str(root), "status", "-J").stdout
    planned = virtirq("-s", str(root), "plan").stdout
    done = virtirq("-s", str(root), "apply")
    assert done.returncode == 0
    # The same lines in dry run and real run, and then what became of them.
    assert done.stdout.startswith(planned)
    assert done.stdout.splitlines()[-1] == "19 applied"
    assert virtirq("-s", str(root), "plan").stdout.splitlines()[-1].startswith("0 of 19")
    applied = json.loads(virtirq("-s", str(root), "apply", "--json").stdout)
    assert {i["status"] for i in interrupts(applied)} == {"in-place"}
    assert virtirq("-s", str(root), "restore", "web").stdout.splitlines()[-1] == "8 applied"
    assert virtirq("-s", str(root), "restore").returncode == 0
    after = json.loads(virtirq("-s", str(root), "status", "-J").stdout)
    for now, was in zip(interrupts(after), interrupts(json.loads(before)), strict=True):
        assert now["before"] == was["before"]


def interrupts(data: Any) -> list[dict[str, Any]]:
    return [i for g in data["guests"] for d in g["devices"] for i in d["interrupts"]]


def test_apply_in_part_is_told_and_exits_4(tmp_path: Path) -> None:
    """CPU 4 has no interrupt vector left, and web may use no other."""
    root = tmp_path / "scratch"
    virtirq("demo", str(root))
    for irq in range(1000, 1200):
        directory = root / f"proc/irq/{irq}"
        directory.mkdir()
        for name in ("smp_affinity_list", "effective_affinity_list"):
            (directory / name).write_text("4\n")
    config = tmp_path / "virtirq.toml"
    config.write_text('[[rule]]\nguest = "web"\ndirective = "4"\n')
    done = virtirq("-s", str(root), "--config", str(config), "apply")
    assert done.returncode == 4
    assert done.stdout.count("\nrefused: IRQ") == 5
    assert "\nrefused: 1 that have never fired" in done.stdout
    assert "no interrupt vector left on CPUs 4\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "13 applied, 6 refused"
    assert virtirq("-s", str(root), "--config", str(config), "apply", "web").returncode == 1
    assert virtirq("-s", str(root), "check").stdout.count("vectors-low") == 1


def test_a_directory_for_state_that_cannot_be_made_exits_5(tmp_path: Path) -> None:
    root = tmp_path / "scratch"
    virtirq("demo", str(root))
    (root / "run").touch()
    done = virtirq("-s", str(root), "apply")
    assert done.returncode == 5
    assert done.stderr == f"virtirq: error: {root}/run/virtirq: Not a directory\n"


def test_output_that_cannot_be_written_is_told() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "virtirq", "-s", str(SINGLE), "status"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    text = "virtirq: error: the output could not be written: No space left on device\n"
    assert done.stderr == text


def test_closed_output_is_no_output() -> None:
    command = f"{shlex.quote(sys.executable)} -m virtirq -s {shlex.quote(str(SINGLE))} >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_the_encoding_lacks_is_escaped(bare: Path, tmp_path: Path) -> None:
    domain = tmp_path / "vm.xml"
    domain.write_text(cases.hostdev("größe", "41", "4"), encoding="utf-8")
    words = ("-s", str(bare), "--domain", str(domain), "plan")
    done = virtirq(*words, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.startswith("gr\\xf6\\xdfe 0000:41:00.0")


def test_a_domain_from_the_standard_input(bare: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "virtirq", "-s", str(bare), "--domain", "-", "plan"],
        input=cases.hostdev("piped", "41", "4"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("piped 0000:41:00.0")


def test_a_monster_of_a_file_is_refused_unread(tmp_path: Path) -> None:
    monster = tmp_path / "monster"
    with monster.open("wb") as file:
        file.truncate(1 << 40)
    for words in (("--domain", str(monster), "status"), ("--config", str(monster), "status")):
        done = virtirq("-s", str(SINGLE), *words)
        assert done.returncode == 2
        assert done.stderr == f"virtirq: error: {monster}: larger than 16 MiB\n"


def test_a_scratch_host_does_not_lead_out_of_its_tree(tmp_path: Path) -> None:
    root = tmp_path / "scratch"
    virtirq("demo", str(root))
    (tmp_path / "elsewhere").mkdir()
    (root / "run").symlink_to(tmp_path / "elsewhere")
    done = virtirq("-s", str(root), "apply")
    assert done.returncode == 2
    assert done.stderr.startswith(f"virtirq: error: {root}/run: is a link")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_recording_of_a_recording_shows_the_same(tmp_path: Path, suffix: str) -> None:
    archive = str(tmp_path / f"host.{suffix}")
    done = virtirq("-s", str(DEMO), "record", "--keep-names", archive)
    assert done.returncode == 0, done.stderr
    shown = virtirq("-s", str(DEMO), "status").stdout.replace(str(DEMO), "")
    assert virtirq("-s", archive, "status").stdout.replace(archive, "") == shown


def test_a_recording_renames_guests(tmp_path: Path) -> None:
    archive = str(tmp_path / "host.tar")
    assert virtirq("-s", str(DEMO), "record", archive).returncode == 0
    told = json.loads(virtirq("-s", archive, "plan", "--json").stdout)
    assert [guest["name"] for guest in told["guests"]] == ["guest1", "guest2", "guest3"]


def test_the_demo_holds() -> None:
    done = virtirq("demo")
    assert done.returncode == 0, done.stderr
    assert "19 of 19 moved interrupts have the planned affinity and CPU" in done.stdout
    assert "19 of 19 affinities are as they were found" in done.stdout
    assert "recording" in done.stdout.splitlines()[0]


def test_a_journal_that_cannot_be_used_is_told_of(tmp_path: Path) -> None:
    root = tmp_path / "scratch"
    assert virtirq("demo", str(root)).returncode == 0
    state = root / "run/virtirq"
    state.mkdir(parents=True)
    (state / "journal.jsonl").write_text("hello\n")
    done = virtirq("-J", "-s", str(root), "check")
    (found,) = (f for f in json.loads(done.stdout)["findings"] if f["code"] == "journal-unusable")
    assert done.returncode == 3
    assert found["message"].startswith(f"{state}/journal.jsonl: line 1 is malformed")


def test_restore_needs_no_valid_configuration(tmp_path: Path) -> None:
    root, config = tmp_path / "scratch", tmp_path / "virtirq.toml"
    assert virtirq("demo", str(root)).returncode == 0
    config.write_text("default = 7\n")
    assert virtirq("-s", str(root), "apply", "web").returncode == 0
    assert virtirq("--config", str(config), "-s", str(root), "apply").returncode == 2
    done = virtirq("--config", str(config), "-s", str(root), "restore")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "8 applied")


def test_restore_can_say_first_what_it_would_do(tmp_path: Path) -> None:
    root = tmp_path / "scratch"
    assert virtirq("demo", str(root)).returncode == 0
    assert virtirq("-s", str(root), "apply", "web").returncode == 0
    for _ in range(2):  # it was not done
        shown = virtirq("-s", str(root), "restore", "--dry-run")
        assert shown.returncode == 0
        assert shown.stdout.splitlines()[-1] == "8 of 8 interrupts to move, 0 left as they are"
    told = json.loads(virtirq("-J", "-s", str(root), "restore", "-n", "web").stdout)
    assert {each["status"] for each in interrupts(told)} == {"restore"}
    done = virtirq("-s", str(root), "restore")
    assert done.stdout.startswith(shown.stdout)


def test_findings_of_apply_are_those_afterwards(tmp_path: Path) -> None:
    root = tmp_path / "scratch"
    assert virtirq("demo", str(root)).returncode == 0

    def codes(*words: str) -> set[str]:
        told = json.loads(virtirq("-J", "-s", str(root), *words).stdout)
        return {each["code"] for each in told["findings"]}

    before = codes("status")
    assert before - codes("apply") == {"wrong-cpu", "affinity-loose"}


def test_a_closed_standard_input_is_said() -> None:
    script = f"{shlex.quote(sys.executable)} -m virtirq --domain - plan <&-"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "virtirq: error: -: the standard input is closed\n",
    )


def test_a_live_tree_is_a_host_and_a_part_of_it_is_not() -> None:
    done = virtirq("-J", "-s", "/", "status")
    assert done.returncode == 0
    assert not [gap for gap in json.loads(done.stdout)["gaps"] if "osrelease" in gap["path"]]
    done = virtirq("-s", "/proc", "status")
    assert done.returncode == 2
    assert "holds neither proc nor sys" in done.stderr


def test_who_lasts_collects_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short command leaves that to its end: nothing of what it made is looked through."""
    lasting = {name for name in verbs.NAMES if verbs.load(name).lasts}
    assert lasting == {"top", "compare", "events", "daemon"}
    for lasts in (False, True):
        verb = Verb(lambda _: 4 + gc.isenabled(), "does something", lasts=lasts)
        monkeypatch.setattr(verbs, "load", lambda _, verb=verb: verb)
        monkeypatch.setattr(sys, "argv", ["virtirq", "status"])
        try:
            assert cli.command() == 4 + lasts
            assert gc.get_freeze_count() > 0
        finally:
            gc.enable()
            gc.unfreeze()
