"""The kernel's description of its own types (BTF): where in a structure a field is.

Only as much of it as that takes. The format is include/uapi/linux/btf.h's, explained in
Documentation/bpf/btf.rst; that of a module ("split") continues the numbering of types and the
strings of the kernel's own.

The bytes are not trusted: whatever they are, an answer or `BtfError` comes after a time, and with
memory, that their length bounds.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("HBBIIIII")
_TYPE: Final = struct.Struct("III")
_MEMBER: Final = struct.Struct("III")
_INT, _PTR, _STRUCT, _UNION, _ENUM, _ENUM64 = 1, 2, 4, 5, 6, 19
# What only renames or qualifies another type: typedef, volatile, const, restrict, type tag.
_TRANSPARENT: Final = frozenset({8, 9, 10, 11, 18})
# What follows a type of each kind: bytes, and bytes for each of its `vlen` parts.
_TRAILER: Final = {
    _INT: (4, 0),
    _PTR: (0, 0),
    3: (12, 0),  # array
    _STRUCT: (0, 12),
    _UNION: (0, 12),
    _ENUM: (0, 8),
    7: (0, 0),  # forward declaration
    8: (0, 0),
    9: (0, 0),
    10: (0, 0),
    11: (0, 0),
    12: (0, 0),  # function
    13: (0, 8),  # its prototype
    14: (4, 0),  # variable
    15: (0, 12),  # section of variables
    16: (0, 0),  # floating point
    17: (4, 0),  # declaration tag
    18: (0, 0),
    _ENUM64: (0, 12),
}
_POINTER: Final = 8
_DEEPEST: Final = 32
"""So many typedefs and qualifiers in a row are no type any more."""
_MOST_ALIKE: Final = 16
"""Structures of one name. A module may have its own copy of one of the kernel's."""


class BtfError(Exception):
    """It cannot be told where the field is; the text says why."""


class Field(NamedTuple):
    """`offset` in bytes, from the start of the structure that was asked about; `size` in bytes."""

    offset: int
    size: int


class Btf:
    """The types of the kernel, and of one module where `split` is given."""

    def __init__(self, base: bytes, split: bytes = b"") -> None:
        """Raises BtfError."""
        self._strings = b""
        self._types = b""
        self._at = array("Q", [0])  # where each type is in _types, by number; 0 is void
        self._structures: dict[int, list[int]] = {}  # by where their name is in _strings
        for data in filter(None, (base, split)):
            types, strings = _sections(data)
            start = len(self._types)
            self._types += types
            self._strings += strings
            self._index(start)
        if not self._strings:
            raise BtfError("there is nothing in it")

    def field(self, structure: str, path: str) -> Field:
        """Where a field is: ``irq_data.irq`` is one of a structure within.

        Members of unions and structures without a name count as their owner's. Raises BtfError.
        """
        alike = list(islice(self._named(structure), _MOST_ALIKE + 1))
        if len(alike) > _MOST_ALIKE:
            raise BtfError(f"struct {structure}: there are more than {_MOST_ALIKE} of it")
        try:
            found = {self._field(each, path) for each in alike}
        except BtfError as error:
            raise BtfError(f"struct {structure}: {error}") from error
        if not found:
            raise BtfError(f"struct {structure} is not known")
        if len(found) > 1:
            raise BtfError(
                f"struct {structure}: {path} is not in the same place in all of its kind"
            )
        return found.pop()

    def _index(self, start: int) -> None:
        unpack, end, at = _TYPE.unpack_from, len(self._types), start
        while at < end:
            if end - at < _TYPE.size:
                raise BtfError("it ends within a type")
            name, info, _ = unpack(self._types, at)
            kind, count = info >> 24 & 0x1F, info & 0xFFFF
            if kind not in _TRAILER:
                raise BtfError(f"its types of kind {kind} are not known")
            if kind in (_STRUCT, _UNION) and count:
                self._structures.setdefault(name, []).append(len(self._at))
            self._at.append(at)
            whole, each = _TRAILER[kind]
            at += _TYPE.size + whole + each * count
        if at != end:
            raise BtfError("it ends within a type")

    def _named(self, name: str) -> Iterator[int]:
        wanted = name.encode() + b"\0"
        for at, numbers in self._structures.items():
            if self._strings.startswith(wanted, at):
                yield from numbers

    def _field(self, number: int, path: str) -> Field:
        offset = 0
        for name in path.split("."):
            member = self._member(number, name.encode() + b"\0")
            if member is None:
                raise BtfError(f"no field {path}")
            offset += member[0]
            number = self._plain(member[1])
        size = self._size(number)
        if size is None:
            raise BtfError(f"{path} is neither a number nor a pointer nor a structure")
        return Field(offset, size)

    def _member(self, number: int, name: bytes) -> tuple[int, int] | None:
        """Offset in bytes, and type, of a member; bit fields have none."""
        seen, left = {number}, [(0, number)]
        while left:
            offset, owner = left.pop()
            for called, kind, place in self._members(owner):
                if place % 8:
                    continue
                if self._strings.startswith(name, called):
                    return offset + place // 8, kind
                if self._strings.startswith(b"\0", called):
                    within = self._plain(kind)
                    if within not in seen:
                        seen.add(within)
                        left.append((offset + place // 8, within))
        return None

    def _members(self, number: int) -> Iterator[tuple[int, int, int]]:
        """Name, type and offset in bits of each member, but for bit fields."""
        info, _ = self._type(number)
        if info >> 24 & 0x1F not in (_STRUCT, _UNION):
            return
        at, count = self._at[number] + _TYPE.size, info & 0xFFFF
        members = memoryview(self._types)[at : at + count * _MEMBER.size]
        for name, kind, offset in _MEMBER.iter_unpack(members):
            if info >> 31:  # then the upper bits are the width of a bit field, or zero
                if offset >> 24:
                    continue
                offset &= 0xFF_FFFF
            yield name, kind, offset

    def _plain(self, number: int) -> int:
        """The type without its other names and qualifiers."""
        for _ in range(_DEEPEST):
            info, target = self._type(number)
            if info >> 24 & 0x1F not in _TRANSPARENT:
                return number
            number = target
        raise BtfError("a type is defined by itself")

    def _size(self, number: int) -> int | None:
        info, size = self._type(number)
        kind = info >> 24 & 0x1F
        if kind == _PTR:
            return _POINTER
        if kind == _INT:
            (bits,) = struct.unpack_from("I", self._types, self._at[number] + _TYPE.size)
            return size if bits & 0xFF_00FF == size * 8 else None  # else it is a bit field
        return size if kind in (_STRUCT, _UNION, _ENUM, _ENUM64) else None

    def _type(self, number: int) -> tuple[int, int]:
        """The kind with its flags, and the size or the type meant, of a type."""
        if not 0 < number < len(self._at):
            raise BtfError("a type is not in it")
        _, info, rest = _TYPE.unpack_from(self._types, self._at[number])
        return info, rest


def _sections(data: bytes) -> tuple[bytes, bytes]:
    """Types and strings."""
    if len(data) < _HEADER.size:
        raise BtfError("it is too short")
    magic, version, _, length, types, types_size, strings, strings_size = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != 1:
        raise BtfError("it is no BTF of version 1")
    found = []
    for start, size in ((types, types_size), (strings, strings_size)):
        if length + start + size > len(data):
            raise BtfError("it is too short")
        found.append(data[length + start : length + start + size])
    if not found[1].endswith(b"\0"):
        raise BtfError("its strings have no end")
    return found[0], found[1]
