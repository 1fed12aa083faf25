"""What the screen of ``top`` looks like, as golden screens, and what holds of every screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ui.top.frames import BY_CPU, BY_DEVICE, BY_GUEST, crowd, few, frame, watched
from virtirq.ui.top.rates import Taken
from virtirq.ui.top.screen import (
    Frame,
    ScreenLine,
    State,
    follow,
    help_lines,
    plain,
    render,
    selected,
)
from virtirq.ui.top.table import COLUMNS, Id, View
from virtirq.ui.width import cells, shortened

SCREENS = Path(__file__).parent / "screens"
FEW, CROWD = few(), crowd()


class Case(NamedTuple):
    found: list[Taken]
    state: State
    width: int = 80
    height: int = 24
    seconds: float = 2.0


CASES = {
    "few-80": Case(FEW, State(), height=12),
    "few-40": Case(FEW, State(), 40, 12),
    "few-200": Case(FEW, State(), 200, 12),
    "few-by-cpu": Case(FEW, BY_CPU, height=16),
    "few-by-device": Case(FEW, BY_DEVICE, height=8),
    "crowd-80": Case(CROWD, State()),
    "crowd-by-guest-80": Case(CROWD, BY_GUEST),
    "crowd-by-guest-40": Case(CROWD, BY_GUEST, 40, 12),
    "crowd-elsewhere": Case(CROWD, replace(BY_GUEST, sort="ELSE"), height=12),
    "crowd-far-down": Case(CROWD, replace(BY_GUEST, selected=Id("guest07")), height=12),
    "filtered": Case(CROWD, State(filter="guest03"), height=10),
    "filtered-none": Case(CROWD, State(filter="mail"), height=8),
    "typing": Case(FEW, State(filter="we", typing=True), height=10),
    "paused": Case(FEW, State(paused=True), height=10),
    "measuring": Case([replace(each, delta={}) for each in FEW], State(), height=10, seconds=0.0),
    "no-guests": Case([], State(), height=8),
    "columns": Case(FEW, State(columns=("IRQ", "ON", "DELTA"), sort="IRQ"), height=10),
    "help": Case(FEW, State(over=help_lines())),
    "help-40": Case(FEW, State(over=help_lines(), scrolled=3), 40, 12),
    "a-very-small-window": Case(FEW, State(), 12, 4),
}


def text(lines: list[ScreenLine]) -> str:
    """A line each: the style of its first piece with text, upper case where reversed."""
    told = []
    for line in lines:
        piece = next((each for each in line if each.text.strip()), None)
        mark = (piece.style[:1] or "-") if piece else " "
        mark = mark.upper().replace("-", ">") if piece and piece.reverse else mark
        told.append(f"{mark}|{''.join(each.text for each in line).rstrip()}\n")
    return "".join(told)


def drawn(case: Case) -> list[ScreenLine]:
    made = frame(case.found, case.state, case.seconds)
    return render(made, follow(made, case.state, case.width, case.height), case.width, case.height)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, pytestconfig: pytest.Config) -> None:
    golden = SCREENS / f"{name}.txt"
    shown = text(drawn(CASES[name]))
    if pytestconfig.getoption("--regenerate-output"):
        golden.write_text(shown)
    assert shown == golden.read_text()


def test_no_golden_is_left_over() -> None:
    assert {each.stem for each in SCREENS.iterdir()} == set(CASES)


STATES = st.builds(
    State,
    view=st.sampled_from(View),
    sort=st.sampled_from(list(COLUMNS)),
    columns=st.none() | st.lists(st.sampled_from(list(COLUMNS)), min_size=1).map(tuple),
    filter=st.sampled_from(["", "web", "0000:22:00.0", "52", "nobody"]),
    typing=st.booleans(),
    paused=st.booleans(),
    selected=st.none() | st.just(Id("web", "0000:43:10.0", 69)),
    first=st.integers(0, 5),
    over=st.just(()) | st.just(("a", "b " * 60)),
    scrolled=st.integers(0, 5),
)


@given(STATES, st.integers(0, 120), st.integers(0, 30))
def test_a_screen_is_never_larger_than_its_window(state: State, width: int, height: int) -> None:
    found = [*FEW, Taken(watched("ｇäst\x1b[2J\n" * 3, 80, "1"), {1: 1}, 1)]
    made = frame(found, state)
    lines = render(made, follow(made, state, width, height), width, height)
    assert len(lines) == (height if width else 0)
    for line in lines:
        shown = "".join(each.text for each in line)
        assert cells(shown) <= width
        assert shown.isprintable()


@given(st.integers(0, 39), st.integers(5, 30))
def test_what_is_selected_is_on_the_screen(number: int, height: int) -> None:
    state = replace(BY_GUEST, selected=Id(f"guest{number:02}"))
    made = frame(CROWD, state)
    lines = render(made, follow(made, state, 80, height), 80, height)
    (chosen,) = [line for line in lines[3:] if line and line[0].reverse]
    assert f"guest{number:02}" in chosen[0].text


def test_the_first_row_is_selected_until_another_is() -> None:
    state = State()
    made = frame(FEW, state)
    assert selected(made, state) == made.rows[0].id == Id("web", "0000:43:10.0", 65)
    # What was chosen stays chosen when its place changes; what is gone does not.
    chosen = replace(state, selected=Id("web", "0000:43:10.0", 70), sort="IRQ")
    assert selected(frame(FEW, chosen), follow(made, chosen, 80, 24)) == chosen.selected
    gone = replace(state, selected=Id("mail"))
    assert follow(made, gone, 80, 24).selected is None


def test_batch_cuts_nothing() -> None:
    long = watched("g" * 60, 80, "1,3,5,7,9,11,13,15,17,19,21,23,25")
    state = State(marked=False)
    made = frame([Taken(long, {1: 1}, 1)], state)
    (line,) = plain(made, state)[3:]
    assert "g" * 60 in line
    assert str(long.wanted) in line


@pytest.mark.parametrize(
    ("whole", "width", "kept"),
    [
        ("web", 3, "web"),
        ("website", 4, "web…"),
        ("größe", 3, "gr…"),
        ("ｗｅｂ", 4, "ｗ…"),
        ("x", 0, ""),
    ],
)
def test_shortened(whole: str, width: int, kept: str) -> None:
    assert shortened(whole, width) == kept
    assert cells(kept) <= width


def test_help_names_each_key_of_the_last_line() -> None:
    frame_ = Frame("", (), 0, frame([], State()).places, 0.0)
    foot = "".join(each.text for each in render(frame_, State(), 100, 5)[-1])
    told = "\n".join(help_lines())
    for key in ("q", "/", "p", "v", "b", "g", "c", "d", "t", "i", "n", "w", "Enter", "h"):
        assert f"  {key} " in told
        assert key in foot


def test_batch_mode_leaves_nothing_out() -> None:
    made = frame(CROWD, State())
    many = replace(made, rows=[*made.rows] * 70)
    assert len(many.rows) > 10_000
    assert len(plain(many, State())) == 3 + len(many.rows)


def test_who_sees_no_guests_sees_why() -> None:
    made = replace(frame([], State()), gaps=["guests: cannot connect to \x1b libvirt"])
    told = text(render(made, State(), 30, 10))
    assert "w| not read: guests: cannot" in told
    assert told.isprintable() or "\x1b" not in told
    assert "not read" not in text(render(made, State(filter="x"), 30, 10))
    assert plain(made, State())[-1] == " not read: guests: cannot connect to \ufffd libvirt"
