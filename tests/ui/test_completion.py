"""What Tab gives, in the shells themselves."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import need_program
from tests.ui.cases import hostdev
from tests.ui.terminal import terminal
from tests.ui.test_cli import DEMO
from virtirq.model import Directive
from virtirq.policy.advice import ADVICE
from virtirq.ui import verbs
from virtirq.ui.cli import main
from virtirq.ui.completion import KINDS
from virtirq.ui.listing import COLUMNS
from virtirq.ui.top.table import COLUMNS as OF_TOP

PROGRAM = Path(sys.executable).parent / "virtirq"
S = f"-s {DEMO}"


def values(capsys: pytest.CaptureFixture[str], kind: str, current: str, line: str) -> list[str]:
    assert main(["--complete-values", kind, current, "--", *shlex.split(line)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out.splitlines()


@pytest.mark.parametrize(
    ("kind", "current", "line", "there"),
    [
        ("guests", "", f"{S} plan", ["build", "db", "web"]),
        ("guests", "", f"plan --sysroot={DEMO}", ["build", "db", "web"]),
        ("guests", "", f"{S} top -s RATE", ["build", "db", "web"]),
        ("guests", "", "-s /nonexistent plan", []),
        ("guests", "", f"{S} --config /nonexistent plan", []),
        ("devices", "", f"{S} get web", ["0000:42:00.0", "0000:43:10.0"]),
        ("verbs", "", "help", list(verbs.NAMES)),
        ("column", "", "top -s", list(OF_TOP)),
        ("column", "", "status --sort", list(COLUMNS)),
        ("columns", "GUEST,IR", "status -o", [f"GUEST,{e}" for e in COLUMNS if e != "GUEST"]),
        ("columns", "+", "top -o", [f"+{name}" for name in OF_TOP]),
        ("no-such-kind", "", "status", []),
    ],
)
def test_values(
    kind: str, current: str, line: str, there: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert values(capsys, kind, current, line) == there


def test_directives_and_objects(capsys: pytest.CaptureFixture[str]) -> None:
    words = values(capsys, "directives", "", "set web")
    assert words == [str(Directive.parse(word)) for word in words]
    assert len(words) == 4
    both = values(capsys, "settable", "", f"{S} set web")
    assert both == [*words, "0000:42:00.0", "0000:43:10.0"]
    assert values(capsys, "settable", "", f"{S} set web 0000:42:00.0") == words
    objects = values(capsys, "objects", "", f"{S} explain")
    assert set(objects) > {*ADVICE, "web", "0000:43:10.0"}


def test_names_that_a_shell_might_run_are_not_offered(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = S
    for number, name in enumerate(
        ("$(touch x)", "`x`", "a b", "a;b", "-v*", "-rf", "größe", "vm_1.a")
    ):
        file = tmp_path / f"{number}.xml"
        file.write_text(hostdev(name.replace("&", ""), f"{0x41 + number}", "4"))
        line += f" --domain {file}"
    shown = values(capsys, "guests", "", f"{line} plan")
    assert shown == ["build", "db", "größe", "vm_1.a", "web"]


def test_every_kind_is_asked_for() -> None:
    script = subprocess.run(
        [PROGRAM, "--print-completion", "bash"], capture_output=True, text=True, check=True
    ).stdout
    for kind in KINDS:
        assert f"COMPGEN=_virtirq_{kind}\n" in script, kind
        assert f"\n_virtirq_{kind}() " in script


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the script of each shell, and the program, called virtirq."""
    root = tmp_path_factory.mktemp("completion")
    (root / "virtirq").symlink_to(PROGRAM)
    for shell, name in (("bash", "virtirq.bash"), ("zsh", "_virtirq"), ("fish", "virtirq.fish")):
        done = subprocess.run(
            [PROGRAM, "--print-completion", shell], capture_output=True, text=True, check=True
        )
        (root / name).write_text(done.stdout)
    return root


def run(scripts: Path, *words: str) -> str:
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "HOME": str(scripts), "TERM": "dumb"},
        cwd=scripts,
    )
    return done.stdout


# The line up to the cursor, and what Tab offers for the word at its end.
LINES = [
    (f"virtirq {S} plan ", {"build", "db", "web"}),
    (f"virtirq {S} plan w", {"web"}),
    (f"virtirq {S} get web 0000:4", {"0000:42:00.0", "0000:43:10.0"}),
    ("virtirq explain node-m", {"node-mismatch"}),
    ("virtirq status -o GUEST,VE", {"GUEST,VECTOR", "GUEST,VERDICT"}),
    ("virtirq top -s RA", {"RATE"}),
    (f"virtirq {S} set web na", {"native"}),
    ("virtirq help pl", {"place", "plan"}),
    ("virtirq eve", {"events"}),
]


def bash(scripts: Path, line: str) -> set[str]:
    """As readline does it: the words are cut at colons, too, and so is what is offered."""
    script = f"""
        source {scripts}/virtirq.bash
        COMP_LINE={shlex.quote(line)} COMP_POINT=${{#COMP_LINE}}
        pieces={shlex.quote(line)}
        COMP_WORDS=({" ".join(map(shlex.quote, pieces_of(line)))})
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _virtirq 2>/dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    offered = run(scripts, "bash", "--norc", "-c", script).split()
    last = line.rpartition(" ")[2]
    kept = last.rpartition(":")
    return {kept[0] + kept[1] + each for each in offered}


def pieces_of(line: str) -> list[str]:
    """The words of a line as bash has them in COMP_WORDS: a colon is a word of its own."""
    found = []
    for word in line.split(" "):
        parts = word.replace(":", " : ").split() or [""]
        found += parts
    return found


@pytest.mark.parametrize(("line", "offered"), LINES)
def test_bash(line: str, offered: set[str], scripts: Path) -> None:
    assert bash(scripts, line) == offered


@pytest.mark.parametrize(("line", "offered"), LINES)
def test_fish(line: str, offered: set[str], scripts: Path) -> None:
    need_program("fish")
    script = f"source {scripts}/virtirq.fish; complete -C {shlex.quote(line)}"
    shown = run(scripts, "fish", "--no-config", "-c", script)
    assert {each.split("\t")[0] for each in shown.splitlines()} == offered


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        (f"virtirq {S} plan w", "plan web"),
        (f"virtirq {S} get web 0000:43", "get web 0000:43:10.0"),
        (f"virtirq {S} set web na", "set web native"),
        ("virtirq explain node-m", "explain node-mismatch"),
        ("virtirq top --sort RA", "top --sort RATE"),
    ],
)
def test_zsh(line: str, completed: str, scripts: Path) -> None:
    """In a terminal: its completion works nowhere else."""
    need_program("zsh")
    (scripts / ".zshrc").write_text(
        f"PS1='> '; fpath=({scripts} $fpath); autoload -U compinit; compinit -u -D; print ready\n"
    )
    path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
    env = {"PATH": path, "HOME": str(scripts), "ZDOTDIR": str(scripts)}
    with terminal("-i", columns=200, env=env, program=("zsh", "-o", "NO_GLOBAL_RCS")) as there:
        there.wait_for_text("ready")
        there.wait_for(lambda lines: any(each.startswith(">") for each in lines))
        there.type(f"{line}\t")
        there.wait_for_text(completed)
