"""Text for people: lines and tables, plain in a pipe, coloured and fitted on a terminal.

rich is imported only when the output is a terminal.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Final, Literal, TextIO

from virtirq.ui.width import cells, padded
from virtirq.values import dataclass, field, replace

Style = Literal["", "bold", "dim", "good", "warn", "bad"]

_RICH: Final[dict[Style, str]] = {
    "": "",
    "bold": "bold",
    "dim": "dim",
    "good": "green",
    "warn": "yellow",
    "bad": "red bold",
}


_NARROW: Final = 18
"""A column of so many characters is not folded."""
_WORDS: Final = 24
"""So many characters hold some words in a line; a column of text gets no less."""
_HANGING: Final = 4


def printable(text: str) -> str:
    """The text without what would steer a terminal: recordings and guests are not to be trusted."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of text; what is not printable is replaced. `lines`: where it is to be broken."""

    text: str
    style: Style = ""
    lines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.text.isprintable():
            object.__setattr__(self, "text", printable(self.text))


@dataclass(frozen=True, slots=True)
class Line:
    """A line of its own, `indent` spaces in."""

    cells: tuple[Cell, ...]
    indent: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; numbers are right-aligned where `right` names their column."""

    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    indent: int = 0
    right: frozenset[int] = frozenset()
    headed: bool = True


@dataclass(slots=True)
class Document:
    """What a verb prints, from top to bottom."""

    blocks: list[Line | Table] = field(default_factory=list)

    def line(self, *cells: str | Cell, indent: int = 0) -> None:
        made = tuple(Cell(each) if isinstance(each, str) else each for each in cells)
        self.blocks.append(Line(made, indent))

    def table(self, table: Table) -> None:
        if table.rows:
            self.blocks.append(table)

    def print(self, out: TextIO | None = None) -> None:
        """To a terminal in colour and no wider than it is, elsewhere plain and whole."""
        out = out or sys.stdout
        if out.isatty() and os.environ.get("TERM") != "dumb":
            _print_rich(self, out)
        else:
            out.writelines(self._lines())

    def plain(self) -> str:
        return "".join(self._lines())

    def _lines(self) -> Iterator[str]:
        widths = _widths(self.blocks)
        for block in self.blocks:
            pad = " " * block.indent
            if isinstance(block, Line):
                text = pad + "".join(cell.text for cell in block.cells)
                yield f"{text.rstrip()}\n"
                continue
            head = [tuple(Cell(each) for each in block.headings)] if block.headed else []
            width = widths[block.headings]
            for row in (*head, *block.rows):
                yield f"{(pad + _aligned(row, width, block.right)).rstrip()}\n"


def _widths(blocks: Sequence[Line | Table]) -> dict[tuple[str, ...], list[int]]:
    """One width a column for all tables of the same headings, so that they line up."""
    widths: dict[tuple[str, ...], list[int]] = {}
    for block in blocks:
        if isinstance(block, Table):
            wide = widths.setdefault(block.headings, [cells(each) for each in block.headings])
            for row in block.rows:
                wide[:] = [max(a, cells(b.text)) for a, b in zip(wide, row, strict=True)]
    return widths


def _aligned(row: Sequence[Cell], widths: Sequence[int], right: frozenset[int]) -> str:
    return "  ".join(
        padded(cell.text, width, right=place in right)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    )


def _print_rich(document: Document, out: TextIO) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.style import Style as RichStyle
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(cell: Cell) -> Text:
        shown = "\n".join(cell.lines) if cell.lines else cell.text
        return Text(shown, style=RichStyle.parse(_RICH[cell.style]))

    console = Console(file=out, highlight=False, soft_wrap=False)
    widths = _widths(document.blocks)
    for block in document.blocks:
        if isinstance(block, Line):
            console.print(Padding(Text.assemble(*map(text, block.cells)), (0, 0, 0, block.indent)))
            continue
        whole = widths[block.headings]
        gaps = block.indent + 2 * (len(whole) - 1)
        fits = gaps + sum(whole) <= console.width
        wide = whole if fits else [min(width, _NARROW) for width in whole[:-1]]
        if not fits and gaps + sum(wide) + min(whole[-1], _WORDS) > console.width:
            # Columns would go missing, or words be cut: better that lines are broken.
            for line in Document([block]).plain().splitlines():
                for piece in _wrapped(line, console.width, block.indent + _HANGING):
                    console.print(Text(piece, overflow="fold"))
            continue
        table = RichTable(
            box=None,
            padding=(0, 2, 0, 0),
            pad_edge=False,
            header_style="dim",
            show_header=block.headed,
        )
        last = len(block.headings) - 1
        for place, heading in enumerate(block.headings):
            table.add_column(
                heading,
                justify="right" if place in block.right else "left",
                overflow="fold",
                min_width=None if place == last else wide[place],
                no_wrap=place != last and whole[place] <= _NARROW,
            )
        for row in block.rows:
            cells = row if fits else (*(_narrowed(each) for each in row[:-1]), row[-1])
            table.add_row(*map(text, cells))
        console.print(Padding(table, (0, 0, 0, block.indent)))


def _wrapped(line: str, width: int, hanging: int) -> list[str]:
    """Broken between words, what follows further in."""
    import textwrap

    blank = " " * min(hanging, width // 4)
    return textwrap.wrap(line, width, subsequent_indent=blank, break_on_hyphens=False)


def _narrowed(cell: Cell) -> Cell:
    """A list of CPUs over several lines, none of its numbers cut."""
    lines = [""]
    for part in re.findall(r"[^,]+,?|,", cell.text):
        if len(lines[-1]) + len(part) > _NARROW and lines[-1]:
            lines.append("")
        lines[-1] += part
    return replace(cell, lines=tuple(lines))
