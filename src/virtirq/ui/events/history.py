"""One history of what the journal and the daemon itself remember. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

from virtirq.control.log_entry import NAMES, LogEntry
from virtirq.ui.document import Cell, Document, Style, Table
from virtirq.ui.width import padded

_APART: Final = 2.0
"""Seconds between the daemon's time of an entry and the journal's: more, and they are two."""
_ERROR: Final = 3
WARNING: Final = 4


def merged(journal: Iterable[LogEntry], daemon: Iterable[LogEntry]) -> list[LogEntry]:
    """The journal's entries and those that the daemon alone has, by time.

    The daemon's texts may be cut.
    """
    there = list(journal)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for each in there:
        times[_begins(each)].append(each.at)
    there += [
        each
        for each in daemon
        if not any(abs(at - each.at) < _APART for at in times[_begins(each)])
    ]
    return sorted(there, key=lambda each: each.at)


def _begins(entry: LogEntry) -> str:
    """By what the same entry is known again; a second line is a traceback's."""
    return first_line(entry)[:300]


def wanted(names: Sequence[str], since: float | None) -> Callable[[LogEntry], bool]:
    """Whether an entry is of one of these guests (names or globs; all for none), and no older."""

    def fits(entry: LogEntry) -> bool:
        guest = entry.fields.get("guest", "")
        named = not names or any(guest == name or fnmatchcase(guest, name) for name in names)
        return named and (since is None or entry.at >= since)

    return fits


def table(
    entries: Iterable[LogEntry], told: Callable[[float], str], *, headed: bool, widest: int = 0
) -> Table:
    """`told` gives a time's text. `widest`: how wide a guest's name has been so far."""
    rows = tuple(
        (
            Cell(told(each.at), "dim"),
            Cell(padded(each.fields.get("guest") or "-", widest), "bold"),
            Cell(why(each) or "-"),
            Cell(first_line(each), _style(each)),
        )
        for each in entries
    )
    return Table(("TIME", "GUEST", "WHY", "WHAT"), rows, headed=headed)


def why(entry: LogEntry) -> str:
    """What gave rise to it, in a word; a finding's code; nothing where neither is known."""
    return entry.fields.get("reason", "").partition(":")[0] or entry.fields.get("finding", "")


def first_line(entry: LogEntry) -> str:
    return entry.message.split("\n", 1)[0]


def document(entries: Sequence[LogEntry], told: Callable[[float], str]) -> Document:
    made = Document()
    made.table(table(entries, told, headed=True))
    return made


def _style(entry: LogEntry) -> Style:
    if entry.priority <= _ERROR:
        return "bad"
    return "warn" if entry.priority <= WARNING else ""


_NUMBERS: Final = frozenset({"irq", "vector"})


def as_json(entry: LogEntry) -> dict[str, Any]:
    """All of an entry; what it does not tell is null."""
    fields: dict[str, Any] = {name: entry.fields.get(name) for name in NAMES}
    for name in _NUMBERS:
        text = fields[name]
        fields[name] = int(text) if text is not None and text.isdecimal() else None
    return {
        "at": round(entry.at, 6),
        "priority": entry.priority,
        "message": entry.message,
        **fields,
    }
