"""Members of a tar archive, one after the other, from a stream that may be up to no good.

What is read: POSIX's ustar and pax, GNU tar's long names and large numbers (POSIX.1-2008, pax,
"Interchange Format"; GNU tar's manual, "Basic Tar Format"). Python's tarfile does more than a
recording needs, takes several times as long, and believes a header's negative sizes and modes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

_BLOCK: Final = 512
_PIECE: Final = 1 << 16
_MAX_HEADER: Final = 1 << 16
"""Bytes of a long name or of a pax header."""
FILE, HARD_LINK, LINK, DIRECTORY, OTHER = "file", "hard link", "link", "directory", "other"
_KINDS: Final = {
    b"\0": FILE, b"0": FILE, b"7": FILE, b"1": HARD_LINK, b"2": LINK, b"5": DIRECTORY,
    b"3": OTHER, b"4": OTHER, b"6": OTHER,
}  # fmt: skip
_LONG_NAME, _LONG_LINK, _PAX, _SPARSE = b"L", b"K", (b"x", b"X", b"g"), b"S"


class Stream(Protocol):
    def read(self, size: int) -> bytes: ...


class Member(NamedTuple):
    """A file, link or directory. `mode` has the permission bits alone; `size` is in bytes."""

    name: str
    kind: str
    mode: int
    link: str
    size: int
    data: bytes = b""


def members(stream: Stream, *, max_file: int, max_size: int) -> Iterator[Member]:
    """The members in order, of each file the first `max_file` bytes.

    Raises ValueError for what is no archive or has a member of more than `max_size` bytes,
    EOFError for one that is cut short, and what the stream raises.
    """
    name = link = ""
    pax: dict[str, str] = {}
    empty = True
    while header := stream.read(_BLOCK):
        if len(header) < _BLOCK:
            raise EOFError("it is cut short")
        if not header.strip(b"\0"):
            if empty:
                raise ValueError("it is empty")
            return
        empty = False
        _check(header)
        size, kind = _number(header[124:136], "size"), header[156:157]
        if kind in (_LONG_NAME, _LONG_LINK, *_PAX):
            if size > _MAX_HEADER:
                raise ValueError("larger than any host's tree")
            data = _content(stream, size, size)
            if kind == _LONG_NAME:
                name = _text(data)
            elif kind == _LONG_LINK:
                link = _text(data)
            elif kind != b"g":
                pax = _records(data)
            continue
        if kind == _SPARSE or any(key.startswith("GNU.sparse.") for key in pax):
            raise ValueError("it holds a sparse file, as no kernel file is")
        if "size" in pax:
            if not pax["size"].isascii() or not pax["size"].isdecimal():
                raise ValueError("a size is malformed")
            size = int(pax["size"][:20])
        if size > max_size:
            raise ValueError("larger than any host's tree")
        name = pax.get("path") or name or _name(header)
        link = pax.get("linkpath") or link or _text(header[157:257])
        what = _KINDS.get(kind, OTHER)
        if kind == b"\0" and name.endswith("/"):
            what = DIRECTORY  # as before there was a type for it
        data = b""
        if what == FILE or kind not in _KINDS:
            data = _content(stream, size, max_file if what == FILE else 0)
        mode = _number(header[100:108], "mode") & 0o7777
        yield Member(name, what, mode, link, size, data)
        name = link = ""
        pax = {}
    if empty:
        raise ValueError("it is empty")


def _content(stream: Stream, size: int, wanted: int) -> bytes:
    """The first `wanted` bytes of what is `size` long, and the stream behind it."""
    data = stream.read(min(size, wanted))
    left = -(-size // _BLOCK) * _BLOCK - len(data)
    if len(data) < min(size, wanted):
        raise EOFError("it is cut short")
    while left:
        skipped = len(stream.read(min(left, _PIECE)))
        if not skipped:
            raise EOFError("it is cut short")
        left -= skipped
    return data


def _check(header: bytes) -> None:
    told = _number(header[148:156], "check sum")
    rest = header[:148] + header[156:]
    unsigned = sum(rest) + 8 * ord(" ")
    # Some old programs summed signed characters.
    if told != unsigned and told != unsigned - 256 * sum(c > 127 for c in rest):
        raise ValueError("a header's check sum is wrong")


def _number(field: bytes, what: str) -> int:
    """Octal digits, or GNU's binary number; raises ValueError for what is negative, too."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise ValueError(f"a {what} is malformed")
    return int(digits, 8)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    return name


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _records(data: bytes) -> dict[str, str]:
    """A pax header's ``LENGTH KEY=VALUE`` records."""
    found = {}
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 9 else 0
        record = data[len(length) + 1 : size - 1]
        key, equals, value = record.partition(b"=")
        if not space or not equals or data[size - 1 : size] != b"\n":
            raise ValueError("a pax header is malformed")
        found[key.decode("utf-8", "replace")] = _text(value)
        data = data[size:]
    return found
