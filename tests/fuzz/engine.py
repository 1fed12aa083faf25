"""Targets, and inputs for them: made of seeds by a generator of random numbers with a seed.

Nothing here depends on the time of day or on the machine, but for how far a run comes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

CORPUS: Final = Path(__file__).parent / "corpus"
"""Inputs that broke something once, by target."""
MARK: Final = b"\x1e"
"""What parts an input that is several texts: ASCII's record separator."""
LARGEST: Final = 1 << 13
"""Bytes of an input."""


class ViolationError(AssertionError):
    """Something that must hold of every input does not."""


def need(holds: object, what: str) -> None:
    """Raises ViolationError unless it `holds`."""
    if not holds:
        raise ViolationError(what)


@dataclass(frozen=True)
class Target:
    """`check` raises for an input that breaks something, ViolationError or whatever else.

    `seeds` gives inputs that are as they should be, or nearly; `words` are what such inputs are
    made of. `steps`: how much work each byte may cost, and `most` how much there may be in all
    beside that, as `instrument` counts it. `inputs`: so many are made for ``make test``.
    """

    name: str
    check: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes] = ()
    steps: int = 20
    most: int = 20_000
    inputs: int = 100


TARGETS: dict[str, Target] = {}


def target(
    name: str,
    seeds: Callable[[], Sequence[bytes]],
    words: str = "",
    *,
    steps: int = 20,
    most: int = 20_000,
    inputs: int = 100,
) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Makes a target of the function below; `words` are parted by blanks."""

    def add(check: Callable[[bytes], None]) -> Callable[[bytes], None]:
        listed = tuple(each.encode() for each in words.split())
        TARGETS[name] = Target(name, check, seeds, listed, steps, most, inputs)
        return check

    return add


def inputs(each: Target, count: int, seed: object = 0) -> Iterator[bytes]:
    """The seeds, what broke it once, and `count` changed ones: always the same."""
    known = [*each.seeds(), *broke(each.name)]
    yield from known
    make = Mutator(random.Random(f"{each.name} {seed}"), each.words)
    for _ in range(count):
        yield make.changed(known)


def broke(name: str) -> list[bytes]:
    """Inputs that broke a target once."""
    return [each.read_bytes() for each in sorted((CORPUS / name).glob("*"))]


_NUMBERS: Final = tuple(
    each.encode()
    for each in [
        "0",
        "1",
        "-1",
        "7",
        "8",
        "00",
        "255",
        "256",
        "4095",
        "16383",
        "16384",
        "65535",
        "65536",
        "2147483647",
        "2147483648",
        "4294967295",
        "4294967296",
        "18446744073709551615",
        "99999999999999999999",
        "0x10",
        "1e9",
        "NaN",
    ]
)
_BYTES: Final = (b"\0", b"\n", b"\t", b" ", b'"', b"'", b"\\", b"\x1b[2J", b"\xff", b"\xc3")
_TEXT: Final = tuple(
    each.encode("utf-8", "surrogatepass")
    for each in (
        "\u202e",
        "\u2028",
        "\ud800",
        "\x85",
        "\u0660",
        "\u00b2",
        "ß",
        "\U0001f600",
        "\x7f",
    )
)
_DIGITS: Final = re.compile(rb"[0-9]+")


@dataclass
class Mutator:
    """Makes inputs of others."""

    random: random.Random
    words: Sequence[bytes] = ()
    _ways: list[Callable[[bytearray, Sequence[bytes]], None]] = field(init=False)

    def __post_init__(self) -> None:
        ways = [self._flip, self._byte, self._drop, self._again, self._insert, self._number]
        self._ways = [*ways, self._swap, self._splice, *([self._word] * 3 if self.words else [])]

    def changed(self, known: Sequence[bytes]) -> bytes:
        """One of `known`, with a few changes."""
        data = bytearray(self.random.choice(known))
        for _ in range(self.random.choice((1, 1, 2, 3, 5, 9))):
            self.random.choice(self._ways)(data, known)
        return bytes(data[:LARGEST])

    def _span(self, data: bytearray) -> slice:
        start = self.random.randrange(len(data) + 1)
        return slice(start, start + min(int(self.random.expovariate(0.1)) + 1, 512))

    def _flip(self, data: bytearray, _: Sequence[bytes]) -> None:
        if data:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)

    def _byte(self, data: bytearray, _: Sequence[bytes]) -> None:
        if data:
            data[self.random.randrange(len(data))] = self.random.randrange(256)

    def _drop(self, data: bytearray, _: Sequence[bytes]) -> None:
        del data[self._span(data)]

    def _again(self, data: bytearray, _: Sequence[bytes]) -> None:
        piece = bytes(data[self._span(data)])
        at = self.random.randrange(len(data) + 1)
        data[at:at] = piece * self.random.choice((1, 1, 2, 30))

    def _insert(self, data: bytearray, _: Sequence[bytes]) -> None:
        at = self.random.randrange(len(data) + 1)
        data[at:at] = self.random.choice(self.random.choice((_BYTES, _TEXT, _NUMBERS)))

    def _word(self, data: bytearray, _: Sequence[bytes]) -> None:
        at = self.random.randrange(len(data) + 1)
        end = self.random.choice((at, self._span(data).stop))
        data[at : max(at, end)] = self.random.choice(self.words)

    def _number(self, data: bytearray, _: Sequence[bytes]) -> None:
        there = [each.span() for each in _DIGITS.finditer(data)]
        if there:
            data[slice(*self.random.choice(there))] = self.random.choice(_NUMBERS)

    def _swap(self, data: bytearray, _: Sequence[bytes]) -> None:
        one, other = self._span(data), self._span(data)
        data[one], data[other] = data[other], data[one]

    def _splice(self, data: bytearray, known: Sequence[bytes]) -> None:
        other = self.random.choice(known)
        at = self.random.randrange(len(other) + 1)
        data[self.random.randrange(len(data) + 1) :] = other[at:]


class Feed:
    """Takes an input apart into numbers, choices and pieces; of one that is too short, zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        found = self._data[self._at : self._at + size]
        self._at += size
        return found.ljust(size, b"\0")

    def number(self, below: int) -> int:
        size = max(1, ((below - 1).bit_length() + 7) // 8)
        return int.from_bytes(self.take(size), "little") % below

    def pick(self, among: Sequence[T]) -> T:
        return among[self.number(len(among))]

    def parts(self) -> list[bytes]:
        """What is left, cut at each `MARK`."""
        rest = self._data[self._at :]
        self._at = len(self._data)
        return rest.split(MARK)


def pieces(data: bytes, count: int) -> list[bytes]:
    """So many pieces of an input, cut at each `MARK`; those that are not there are empty."""
    return [*data.split(MARK), *[b""] * count][:count]


def shrunk(data: bytes, fails: Callable[[bytes], bool], tries: int = 2000) -> bytes:
    """A part of an input that still `fails`, as small as a few tries make it."""
    size = len(data) // 2
    while size and tries:
        at = 0
        while at < len(data) and tries:
            tries -= 1
            less = data[:at] + data[at + size :]
            if fails(less):
                data = less
            else:
                at += size
        size //= 2
    return data


def text_of(data: bytes) -> str:
    """As HostFs gives a file's content."""
    return data.decode("utf-8", "replace")


def decoded(data: bytes) -> str:
    """Any text at all, with lone surrogates where the bytes are no UTF-8."""
    return data.decode("utf-8", "surrogateescape")


def files(*patterns: str) -> Callable[[], list[bytes]]:
    """Seeds that are other tests' files, below ``tests/``."""
    return partial(_files, patterns)


def _files(patterns: Sequence[str]) -> list[bytes]:
    root = Path(__file__).parents[1]
    return [each.read_bytes() for one in patterns for each in sorted(root.glob(one))]


def lines(*texts: str) -> Callable[[], list[bytes]]:
    """Seeds that are given."""
    return lambda: [each.encode("utf-8", "surrogateescape") for each in texts]
