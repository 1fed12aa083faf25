"""An immutable set of CPU numbers, in the three spellings of the field.

* CPU list, ``0-3,8``: sysfs and ``/proc/irq/N/smp_affinity_list``
  (Documentation/admin-guide/cputopology.rst).
* libvirt cpuset, ``0-7,^3``: a CPU list in which ``^`` takes a CPU out again
  (libvirt, formatdomain, "CPU Allocation").
* mask, ``ff,ffffffff``: hexadecimal, 32-bit groups, the highest first
  (``/proc/irq/N/smp_affinity``, ``bitmap_parse()`` in lib/bitmap-str.c).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from virtirq.errors import CpuSetError
from virtirq.values import pattern

MAX_CPUS: Final = 16384
"""What libvirt takes in a cpuset (src/conf/domain_conf.h, VIR_DOMAIN_CPUMASK_LEN).

Twice the largest NR_CPUS that Kconfig allows on x86 (arch/x86/Kconfig, NR_CPUS_RANGE_END).
"""

_MAX_TEXT: Final = 65536
_CACHED_TEXT: Final = 256
_RANGE = pattern(r"(\^)?(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
_HEX_GROUP = pattern(r"[0-9a-fA-F]{1,8}", re.ASCII)


class CpuSet:
    """Immutable set of CPU numbers, 0 to 16383. Iterates in ascending order."""

    __slots__ = ("_bits",)
    _bits: int

    def __init__(self, cpus: Iterable[int] = ()) -> None:
        """Raises CpuSetError for a number outside 0 to 16383."""
        bits = 0
        for cpu in cpus:
            bits |= 1 << _checked(cpu)
        object.__setattr__(self, "_bits", bits)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("CpuSet is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("CpuSet is immutable")

    def __reduce__(self) -> tuple[object, ...]:
        return (CpuSet, (tuple(self),))

    @classmethod
    def _of(cls, bits: int) -> CpuSet:
        made = cls.__new__(cls)
        object.__setattr__(made, "_bits", bits)
        return made

    @classmethod
    def span(cls, first: int, last: int) -> CpuSet:
        """The CPUs `first` to `last`, both included."""
        _checked(first), _checked(last)
        if last < first:
            return _EMPTY
        return cls._of(((1 << (last - first + 1)) - 1) << first)

    @classmethod
    def parse(cls, text: str) -> CpuSet:
        """A CPU list or libvirt cpuset: ``0-3,8``, ``0-7,^3``, with ``""`` as the empty set.

        As in libvirt, ``^`` takes out of what stands before it. Raises CpuSetError.
        """
        return _parsed(text) if len(text) <= _CACHED_TEXT else cls._parse(text)

    @classmethod
    def _parse(cls, text: str) -> CpuSet:
        if len(text) > _MAX_TEXT:
            raise CpuSetError(f"CPU list of {len(text)} characters: more than {_MAX_TEXT}")
        stripped = text.strip()
        if not stripped:
            return _EMPTY
        bits = 0
        for part in stripped.split(","):
            match = _RANGE.fullmatch(part.strip())
            if match is None:
                inside = "" if part == text else f" in {_shown(text)}"
                raise CpuSetError(
                    f"{_shown(part)}{inside} is not a CPU, a range of CPUs or ^CPU",
                    hint="write a CPU list such as 2-5,8 or 0-7,^3",
                )
            first = int(match[2])
            last = int(match[3]) if match[3] is not None else first
            if last < first:
                raise CpuSetError(f"range {_shown(part)} in {_shown(text)} runs backwards")
            piece = cls.span(first, last)._bits
            bits = bits & ~piece if match[1] else bits | piece
        return cls._of(bits)

    @classmethod
    def parse_mask(cls, text: str) -> CpuSet:
        """A hexadecimal mask, ``f`` or ``00000001,00000000``. Raises CpuSetError."""
        if len(text) > _MAX_TEXT:
            raise CpuSetError(f"CPU mask of {len(text)} characters: more than {_MAX_TEXT}")
        groups = text.strip().removeprefix("0x").split(",")
        bits = 0
        for place, group in enumerate(groups):
            # Only the first group may be short: the kernel pads the others to eight digits.
            if not _HEX_GROUP.fullmatch(group) or (place and len(group) != 8):
                raise CpuSetError(
                    f"{_shown(text)} is not a CPU mask",
                    hint="write hexadecimal digits in groups of eight, such as 1,0000000f",
                )
            bits = bits << 32 | int(group, 16)
        if bits.bit_length() > MAX_CPUS:
            raise CpuSetError(f"CPU mask {_shown(text)} goes past CPU {MAX_CPUS - 1}")
        return cls._of(bits)

    def __str__(self) -> str:
        """The CPU list that the kernel would print: ``0-3,8``; empty for the empty set."""
        return _list_of(self._bits)

    def __repr__(self) -> str:
        return f"CpuSet({str(self)!r})"

    def mask(self) -> str:
        """The mask without leading zero groups: ``f``, ``1,0000000f``; ``0`` for the empty set."""
        groups = []
        bits = self._bits
        while bits >> 32:
            groups.append(f"{bits & 0xFFFFFFFF:08x}")
            bits >>= 32
        groups.append(f"{bits:x}")
        return ",".join(reversed(groups))

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Maximal runs as (first, last), ascending."""
        bits, base = self._bits, 0
        while bits:
            skip = (bits & -bits).bit_length() - 1
            bits >>= skip
            run = (~bits & (bits + 1)).bit_length() - 1
            yield base + skip, base + skip + run - 1
            bits >>= run
            base += skip + run

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges():
            yield from range(first, last + 1)

    def __contains__(self, cpu: object) -> bool:
        return isinstance(cpu, int) and cpu >= 0 and bool(self._bits >> cpu & 1)

    def __len__(self) -> int:
        return self._bits.bit_count()

    def __bool__(self) -> bool:
        return self._bits != 0

    def __eq__(self, other: object) -> bool:
        return self._bits == other._bits if isinstance(other, CpuSet) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._bits)

    def __and__(self, other: CpuSet) -> CpuSet:
        return CpuSet._of(self._bits & other._bits)

    def __or__(self, other: CpuSet) -> CpuSet:
        return CpuSet._of(self._bits | other._bits)

    def __sub__(self, other: CpuSet) -> CpuSet:
        return CpuSet._of(self._bits & ~other._bits)

    def __le__(self, other: CpuSet) -> bool:
        """Subset."""
        return not self._bits & ~other._bits

    def first(self) -> int:
        """The lowest CPU. Raises ValueError when empty."""
        if not self._bits:
            raise ValueError("an empty CPU set has no first CPU")
        return (self._bits & -self._bits).bit_length() - 1

    def last(self) -> int:
        """The highest CPU. Raises ValueError when empty."""
        if not self._bits:
            raise ValueError("an empty CPU set has no last CPU")
        return self._bits.bit_length() - 1


def union(sets: Iterable[CpuSet]) -> CpuSet:
    """The CPUs that are in any of the sets."""
    bits = 0
    for each in sets:
        bits |= each._bits
    return CpuSet._of(bits)


def _checked(cpu: int) -> int:
    if not 0 <= cpu < MAX_CPUS:
        raise CpuSetError(f"CPU {cpu} is outside 0-{MAX_CPUS - 1}")
    return cpu


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


@lru_cache(512)
def _parsed(text: str) -> CpuSet:
    """A host has few different lists, and thousands of files that hold them."""
    return CpuSet._parse(text)


@lru_cache(512)
def _list_of(bits: int) -> str:
    return ",".join(
        str(first) if first == last else f"{first}-{last}"
        for first, last in CpuSet._of(bits).ranges()
    )


_EMPTY: Final = CpuSet()
