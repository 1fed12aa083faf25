"""How wide a text is on terminals and in fixed-width fonts. Pure."""

from __future__ import annotations

import unicodedata
from typing import Final

_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"
_WITHOUT: Final = ("Mn", "Me", "Cf")
"""Marks that stand above or below another character, and what only steers: they take no place."""


def cells(text: str) -> int:
    """How many columns it takes."""
    if text.isascii():
        return len(text)
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    if unicodedata.category(character) in _WITHOUT:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shortened(text: str, room: int) -> str:
    """As much of it as there is room for, with a sign where something is missing."""
    if cells(text) <= room:
        return text
    taken = used = 0
    for each in text:  # in one pass: a guest's name may have thousands of characters
        used += _cells(each)
        if used > room - 1:
            break
        taken += 1
    return text[:taken] + _ELLIPSIS if room > 0 else ""


def padded(text: str, width: int, *, right: bool = False) -> str:
    """So wide at least, the text at its left or `right`."""
    blank = " " * (width - cells(text))
    return blank + text if right else text + blank
