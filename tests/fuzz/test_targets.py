"""A few made-up inputs of each target, the same ones on every run; and whether a fault is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import engine
from tests.fuzz.engine import Feed, Mutator, Target, ViolationError, inputs, need, shrunk
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_what_must_hold_holds(name: str) -> None:
    for data in inputs(TARGETS[name], TARGETS[name].inputs):
        try:
            TARGETS[name].check(data)
        except Exception as error:
            pytest.fail(f"{data!r}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_of_use(name: str) -> None:
    """As they are, they break nothing, and there are some that are more than nothing."""
    assert any(len(each) > 3 for each in TARGETS[name].seeds())
    assert all(len(each) <= engine.LARGEST for each in TARGETS[name].seeds())


def test_the_same_inputs_on_every_run() -> None:
    target = TARGETS["cpu-list"]
    assert list(inputs(target, 50)) == list(inputs(target, 50))
    assert list(inputs(target, 50)) != list(inputs(target, 50, seed=1))


def test_what_broke_it_once_is_among_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu-list").mkdir()
    (tmp_path / "cpu-list" / "reads-forever").write_bytes(b"\xff-")
    monkeypatch.setattr(engine, "CORPUS", tmp_path)
    assert b"\xff-" in inputs(TARGETS["cpu-list"], 0)


def test_every_input_that_is_kept_is_of_a_target() -> None:
    kept = {each.name for each in engine.CORPUS.iterdir()} if engine.CORPUS.is_dir() else set()
    assert kept <= TARGETS.keys()


def test_a_fault_behind_three_branches_is_found() -> None:
    def check(data: bytes) -> None:
        need(not (b"vfio" in data and data.endswith(b"\xff") and len(data) > 9), "a fault")

    made = Target("made", check, lambda: [b"abcdefgh"], (b"vfio",))
    with pytest.raises(ViolationError, match="a fault"):
        _run(made)


def _run(made: Target) -> None:
    for data in inputs(made, 50_000):
        made.check(data)


def test_an_input_is_made_small() -> None:
    assert shrunk(b"x" * 100 + b"key" + b"y" * 50, lambda data: b"key" in data) == b"key"


def test_a_feed_never_ends() -> None:
    feed = Feed(b"\x05\x02ab\x1ec")
    assert (feed.number(4), feed.pick("xyz"), feed.parts()) == (1, "z", [b"ab", b"c"])
    assert (feed.number(1000), feed.take(3), feed.parts()) == (0, b"\0\0\0", [b""])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])


def test_work_is_bounded(tmp_path: Path) -> None:
    """In a process of its own, in which every block of virtirq's counts how often it is entered."""
    done = run("--here", "--seed=1", "--inputs=200", f"--cache={tmp_path}", "command-line")
    assert done.returncode == 0, done.stderr
    places = int(done.stdout.split()[3])
    assert places > 40  # it has counted
    assert len(list((tmp_path / "corpus" / "command-line").iterdir())) > 10


def test_a_fault_is_told_and_kept(tmp_path: Path) -> None:
    """Of a program that has one: its own bound on work, set to nothing."""
    code = (
        "import dataclasses, sys; from pathlib import Path; from tests.fuzz import __main__ as m;"
        " from tests.fuzz import instrument; instrument.install();"
        " from tests.fuzz.targets import TARGETS;"
        " TARGETS['cpu-list'] = dataclasses.replace(TARGETS['cpu-list'], steps=0, most=5);"
        " c = m.Campaign('cpu-list', Path(sys.argv[1]), '1'); c.run(60, 50); print(c.faults)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "too much work" in done.stderr, done.stderr
    (kept,) = (tmp_path / "broken" / "cpu-list").iterdir()
    assert kept.name in done.stdout


def test_who_names_no_target_is_told() -> None:
    done = run("nothing")
    assert done.returncode == 2
    assert "--list prints them" in done.stderr


def test_inputs_do_not_grow_without_end() -> None:
    import random

    make = Mutator(random.Random(1))
    data = b"x" * engine.LARGEST
    assert all(len(make.changed([data])) <= engine.LARGEST for _ in range(100))
