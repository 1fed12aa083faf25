"""The screen of ``top``: what is known, in so many lines of so many columns. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from virtirq.model import counted
from virtirq.ui.document import Style, printable
from virtirq.ui.top.rates import Places
from virtirq.ui.top.table import COLUMNS, DEFAULT, NUMBERS, Id, Row, View, shown
from virtirq.ui.width import cells, padded, shortened

KEYS: Final = (
    ("q", "quit"),
    ("/", "filter by guest, device, IRQ or CPU"),
    ("p", "pause, go on"),
    ("v", "by vector"),
    ("b", "by device"),
    ("g", "by guest"),
    ("c", "by CPU"),
    ("d", "sort by rate"),
    ("t", "sort by total"),
    ("i", "sort by IRQ (or CPU)"),
    ("n", "sort by name"),
    ("w", "sort by what is taken elsewhere"),
    ("Enter", "explain what is selected"),
    ("r", "look for new guests and devices"),
    ("h ?", "this help"),
    ("arrows", "select; Page Up and Down, Home, End too"),
)
FOOT: Final = (
    "q quit  / filter  p pause  v b g c view  d t i n w sort  Enter explain  h help",
    "q quit  / filter  p pause  g c view  Enter explain  h help",
    "q quit  / filter  h help",
    "h help",
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What was measured. `at` is the time of day; `rows` are in order, and filtered.

    `of` is how many interrupts those are; `seconds` 0: nothing was measured yet. `gaps` is what
    could not be read, and why; `trouble` why it is not what there is now.
    """

    at: str
    rows: Sequence[Row]
    of: int
    places: Places
    seconds: float
    unread: int = 0
    recorded: bool = False
    gaps: Sequence[str] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """What the person has asked for. `typing`: the filter is being typed. `marked`: what is
    selected is shown so.

    `over` is text over the list (help, an explanation) from line `scrolled` on; `first` is the row
    at the top of the list.
    """

    view: View = View.VECTOR
    sort: str = "RATE"
    columns: Sequence[str] | None = None
    filter: str = ""
    typing: bool = False
    paused: bool = False
    selected: Id | None = None
    marked: bool = True
    first: int = 0
    over: tuple[str, ...] = ()
    scrolled: int = 0
    every: float = 2.0


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a line; `reverse`: as a heading or what is selected."""

    text: str
    style: Style = ""
    reverse: bool = False


ScreenLine = tuple[Span, ...]
_HEAD: Final = 3
"""Lines above the rows, their headings included."""
_SHRINK: Final = {"GUEST": 8, "VCPUS": 8, "ON": 5, "WANTED": 6}
"""Columns of text that may be cut, and how short; the others tell nothing when they are cut."""
_WIDEST: Final = 24
_DROPPED_FIRST: Final = (
    *("TOTAL", "WANTED", "DELTA", "DEVICES", "NODE", "ON", "VCPUS", "IRQS", "DEVICE"),
    *("TARGET", "VECTOR", "ELSE"),
)


def room(height: int) -> int:
    """How many rows of the list fit."""
    return max(0, height - _HEAD - 1)


def render(frame: Frame, state: State, width: int, height: int) -> list[ScreenLine]:
    """Exactly `height` lines, none wider than `width`."""
    if width < 1 or height < 1:
        return []
    if state.over:
        body = [(Span(each),) for each in wrapped(state.over, width)[state.scrolled :]]
        foot = "q back  arrows scroll" if len(body) > height - 1 else "q back"
        lines: list[ScreenLine] = [*_filled(body, height - 1), (Span(foot, "dim"),)]
    else:
        lines = [_title(frame, state), _sums(frame)]
        lines += _table(frame, state, width, room(height))
        lines = [*_filled(lines, height - 1), (_foot(state, width),)]
    return [_cut(line, width) for line in lines[-height:]]


def follow(frame: Frame, state: State, width: int, height: int) -> State:
    """The list moved so that what is selected is on the screen; text no further than its end."""
    if state.over:
        last = max(0, len(wrapped(state.over, width)) - max(1, height - 1))
        return replace(state, scrolled=min(state.scrolled, last))
    places = [row.id for row in frame.rows]
    if state.selected not in places:  # its row is gone, or nobody has chosen any
        return replace(state, selected=None, first=0)
    at = places.index(state.selected)
    fits = max(1, room(height))
    first = min(max(state.first, at - fits + 1), at)
    return replace(state, first=max(0, min(first, len(places) - fits)))


def selected(frame: Frame, state: State) -> Id | None:
    """The row that is selected: the first of the list, until somebody has chosen another."""
    if state.selected is not None:
        return state.selected
    return frame.rows[0].id if frame.rows else None


def plain(frame: Frame, state: State) -> list[str]:
    """The list as batch mode prints it: whole, as wide as it is."""
    table = _table(frame, state, None, len(frame.rows))
    lines = [_title(frame, state), _sums(frame), *table]
    return ["".join(span.text for span in line).rstrip() for line in lines]


def _title(frame: Frame, state: State) -> ScreenLine:
    by = "CPU" if state.view is View.CPU else state.view.value
    parts = [f"by {by}", _SORTED.get(state.sort, f"in the order of {state.sort}")]
    if state.filter:
        parts.append(f"filter {printable(state.filter)!r}")
    parts += [frame.at, f"every {state.every:g} s"]
    paused = (Span("  PAUSED", "warn"),) if state.paused else ()
    return (Span("virtirq top", "bold"), *paused, Span(f"  {', '.join(parts)}"))


_SORTED: Final = {
    "RATE": "busiest first",
    "TOTAL": "most in all first",
    "ELSE": "most elsewhere first",
    "GUEST": "by name",
}


def _sums(frame: Frame) -> ScreenLine:
    if frame.trouble:
        return (Span(f"as it was before: {frame.trouble}", "warn"),)
    count = counted(frame.of, "interrupt")
    if frame.unread:
        count += f" ({frame.unread} more could not be read)"
    if frame.recorded:
        count += " (recorded)"
    if not frame.seconds:
        return (Span(f"{count}; measuring"),)
    all_ = frame.places.all
    told = f"{count}, {shown('RATE', all_ / frame.seconds)}/s"
    parts = []
    for words, number, style in _told(frame.places):
        share = frame.places.share(number)
        if share is not None:
            parts.append(Span(f"{share}% {words}", style if number else "dim"))
    spans = [Span(told)]
    for place, part in enumerate(parts):
        spans += [Span(", " if place else ": "), part]
    return tuple(spans)


def _told(places: Places) -> Iterable[tuple[str, int, Style]]:
    yield "on target", places.target, "good"
    yield "on node", places.node, "warn"
    yield "elsewhere", places.elsewhere, "bad"


def _table(frame: Frame, state: State, width: int | None, lines: int) -> list[ScreenLine]:
    """So many lines of the list; for no `width` as wide as they are."""
    names = list(state.columns or DEFAULT[state.view])
    chosen = selected(frame, state) if state.marked else None
    here = frame.rows[state.first : state.first + lines]
    texts = [[_text(name, row) for name in names] for row in here]
    room_ = None if width is None else width - 1
    keep, widths = _fitted(names, texts, room_, whole=state.columns is not None)
    names = [names[place] for place in keep]
    heading = _joined(names, names, widths)
    made: list[ScreenLine] = [(Span(padded(f" {heading}", width or 0), reverse=True),)]
    for row, each in zip(here, texts, strict=True):
        line = _mark(row) + _joined([each[place] for place in keep], names, widths)
        is_chosen = row.id == chosen
        made.append(
            (Span(padded(line, width or 0) if is_chosen else line, _style(row), is_chosen),)
        )
    if not frame.rows:
        what = "none fits the filter" if state.filter else "no interrupt of a guest's device"
        made.append((Span(f" {what}", "dim"),))
        if not state.filter:
            told = [f"not read: {each}" for each in frame.gaps]
            told = told if width is None else wrapped(told, width - 1)
            made += [(Span(f" {printable(each)}", "warn"),) for each in told]
    return made


def _text(name: str, row: Row) -> str:
    """What there is no rate of yet is not shown as none."""
    if name in ("RATE", "DELTA") and not row.seconds:
        return "-"
    return printable(shown(name, COLUMNS[name](row)))


def _mark(row: Row) -> str:
    """What is not as it should be, for who sees no colours."""
    return "!" if row.places.elsewhere else "~" if row.places.node else " "


def _style(row: Row) -> Style:
    places = row.places
    if not places.all:
        return "dim"
    return "bad" if places.elsewhere else "warn" if places.node else ""


def _fitted(
    names: Sequence[str], texts: Sequence[Sequence[str]], width: int | None, *, whole: bool
) -> tuple[list[int], list[int]]:
    """The places of the columns that fit, and how wide each is; all of them for `whole`."""
    keep = list(range(len(names)))
    widths = [
        max(cells(name), *(cells(row[place]) for row in texts)) if texts else cells(name)
        for place, name in enumerate(names)
    ]
    if width is None:
        return keep, widths
    widths = [min(each, _WIDEST) for each in widths]
    gone: list[str] = []
    while True:
        spare = width - sum(widths[place] for place in keep) - 2 * (len(keep) - 1)
        for place in sorted(keep, key=lambda each: -widths[each]):
            least = max(_SHRINK.get(names[place], widths[place]), cells(names[place]))
            if spare < 0 and widths[place] > least:
                less = min(widths[place] - least, -spare)
                widths[place] -= less
                spare += less
        if spare >= 0 or whole:
            break
        drop = next((each for each in _DROPPED_FIRST if each in names and each not in gone), None)
        if drop is None:
            break
        gone.append(drop)
        keep = [place for place in keep if names[place] != drop]
        spare = width - sum(widths[place] for place in keep) - 2 * (len(keep) - 1)
    return keep, [widths[place] for place in keep]


def _joined(texts: Sequence[str], names: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        padded(shortened(text, width), width, right=name in NUMBERS)
        for text, name, width in zip(texts, names, widths, strict=True)
    )


def _foot(state: State, width: int) -> Span:
    if state.typing:
        return Span(f"filter: {printable(state.filter)}_   Enter keeps it, Escape drops it", "bold")
    return Span(next((each for each in FOOT if len(each) < width), ""), "dim")


def wrapped(lines: Iterable[str], width: int) -> list[str]:
    """Lines broken between words, what follows further in."""
    import textwrap

    found = []
    for line in lines:
        blank = " " * min(len(line) - len(line.lstrip()) + 2, width // 4)
        broken = textwrap.wrap(line, max(width, 1), subsequent_indent=blank, break_on_hyphens=False)
        found += broken or [""]
    return found


def help_lines() -> tuple[str, ...]:
    wide = max(len(key) for key, _ in KEYS)
    return (
        "Keys of virtirq top",
        "",
        *(f"  {key.ljust(wide)}  {what}" for key, what in KEYS),
        "",
        "TARGET, NODE and ELSE are the percentage of interrupts that were taken where they should"
        " be, on another CPU of that node or the device's, and elsewhere.",
        "A line begins with ! where some were taken elsewhere, with ~ where some were on the node.",
    )


def _cut(line: ScreenLine, width: int) -> ScreenLine:
    made, left = [], width
    for span in line:
        text = span.text if cells(span.text) <= left else shortened(span.text, left)
        if text:
            made.append(replace(span, text=text))
        left -= cells(text)
    return tuple(made)


def _filled(lines: Sequence[ScreenLine], height: int) -> list[ScreenLine]:
    return [*lines[:height], *[()] * (height - len(lines))]
