"""What a key does: from one state to the next. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from typing import Final

from virtirq.ui.top.screen import Frame, State, help_lines
from virtirq.ui.top.table import Id, View


class Does(Enum):
    """What is asked for beside another state."""

    NOTHING = "nothing"
    QUIT = "quit"
    EXPLAIN = "explain"
    LOOK = "look"
    """Look for guests and devices anew."""
    SAMPLE = "sample"
    """Others are shown: read those now."""


UP: Final = "up"
DOWN: Final = "down"
PAGE_UP: Final = "page up"
PAGE_DOWN: Final = "page down"
HOME: Final = "home"
END: Final = "end"
ENTER: Final = "enter"
ESCAPE: Final = "escape"
BACKSPACE: Final = "backspace"
_VIEWS: Final = {"v": View.VECTOR, "b": View.DEVICE, "g": View.GUEST, "c": View.CPU}
_SORTS: Final = {"d": "RATE", "t": "TOTAL", "i": "IRQ", "n": "GUEST", "w": "ELSE"}
_LONGEST: Final = 60
_FAR: Final = 1 << 30
"""A line that no text has: who knows how wide the screen is stops at the last one."""


def pressed(key: str, state: State, frame: Frame, rows: int) -> tuple[State, Does]:
    """`rows` is how many of the list are on the screen, which is how far a page goes."""
    if state.typing:
        return _typed(key, state)
    if state.over:
        return _over(key, state, rows)
    if key in ("q", "Q"):
        return state, Does.QUIT
    if key == "/":
        return replace(state, typing=True), Does.NOTHING
    if key == "p":
        return replace(state, paused=not state.paused), Does.NOTHING
    if key in _VIEWS:
        view = _VIEWS[key]
        sort = "RATE" if state.sort == "CPU" else state.sort
        return replace(state, view=view, sort=sort, selected=None, first=0), Does.NOTHING
    if key in _SORTS:
        by_cpu = key == "i" and state.view is View.CPU
        sort = "CPU" if by_cpu else _SORTS[key]
        return replace(state, sort=sort, selected=None, first=0), Does.NOTHING
    if key in ("h", "?"):
        return replace(state, over=help_lines(), scrolled=0), Does.NOTHING
    if key == "r":
        return state, Does.LOOK
    if key == ENTER:
        return state, Does.EXPLAIN if frame.rows else Does.NOTHING
    if key == ESCAPE and state.filter:
        return replace(state, filter=""), Does.SAMPLE
    return _moved(key, state, [row.id for row in frame.rows], rows), Does.NOTHING


def _typed(key: str, state: State) -> tuple[State, Does]:
    if key == ENTER:
        return replace(state, typing=False), Does.NOTHING
    if key == ESCAPE:
        return replace(state, typing=False, filter=""), Does.SAMPLE
    if key == BACKSPACE:
        return replace(state, filter=state.filter[:-1]), Does.SAMPLE
    if len(key) == 1 and key.isprintable() and len(state.filter) < _LONGEST:
        return replace(state, filter=state.filter + key), Does.SAMPLE
    return state, Does.NOTHING


def _over(key: str, state: State, rows: int) -> tuple[State, Does]:
    steps = {UP: -1, DOWN: 1, PAGE_UP: -rows, PAGE_DOWN: rows, " ": rows}
    if key in steps:
        return replace(state, scrolled=max(0, state.scrolled + steps[key])), Does.NOTHING
    if key in (HOME, END):
        return replace(state, scrolled=0 if key == HOME else _FAR), Does.NOTHING
    return replace(state, over=(), scrolled=0), Does.NOTHING


def _moved(key: str, state: State, ids: Sequence[Id], rows: int) -> State:
    steps = {UP: -1, DOWN: 1, PAGE_UP: -rows, PAGE_DOWN: rows, HOME: -len(ids), END: len(ids)}
    if key not in steps or not ids:
        return state
    at = ids.index(state.selected) if state.selected in ids else state.first
    return replace(state, selected=ids[min(max(0, at + steps[key]), len(ids) - 1)])
