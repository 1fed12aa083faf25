"""How wide a text is, beside what the terminal of the tests (by wcwidth) makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wcwidth import wcswidth

from virtirq.ui.document import Cell, Document, Table
from virtirq.ui.width import cells, padded, shortened


@pytest.mark.parametrize(
    "text",
    [
        "web",
        "",
        "gäst",
        "ga\u0308st",
        "客人",
        "ｇast",
        "שרת",
        "ที่นี่",
        "हिं",
        "\u20ddx",
        "🖥",
        "🐧🐧",
        "e\u0301" * 9,
    ],
)
def test_as_a_terminal_has_it(text: str) -> None:
    assert cells(text) == wcswidth(text)


@given(st.text(), st.integers(-2, 30))
def test_what_is_cut_fits_and_is_a_beginning(text: str, room: int) -> None:
    cut = shortened(text, room)
    assert cells(cut) <= max(room, 0)
    assert text.startswith(cut.removesuffix("\N{HORIZONTAL ELLIPSIS}"))
    assert (cut == text) == (cells(text) <= room) or not text


@given(st.text(), st.integers(0, 30), st.booleans())
def test_what_is_padded_is_so_wide(text: str, width: int, right: bool) -> None:
    made = padded(text, width, right=right)
    assert cells(made) == max(width, cells(text))
    assert text in made


def test_columns_of_a_table_line_up() -> None:
    made = Document()
    made.table(Table(("A", "B"), tuple((Cell(each), Cell("|")) for each in ("客人", "ที่นี่", "web"))))
    assert {cells(line.partition("|")[0]) for line in made.plain().splitlines()[1:]} == {6}
