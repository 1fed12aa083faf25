"""Where interrupts of a guest were taken, by a trace of the host's kernel.

Pure: a trace and what the guest has chosen go in, counts come out. tests/bench has traces.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

GRACE: Final = 0.010
"""Seconds that a vector may be wrong after it was set up, or its vCPU moved."""
_NAME: Final = r"vfio-msix\[(\d+)\]\(([0-9a-f:.]+)\)"
_LINE: Final = re.compile(r"\[(\d{3,})\] .*? (\d+\.\d+): (\w+): (.*)$")
_TAKEN: Final = re.compile(rf"irq=\d+ name={_NAME}")
_REQUESTED: Final = re.compile(rf'irq=(\d+) name="{_NAME}"')
_PUT: Final = re.compile(r"irq=(\d+) vector=\d+ cpu=(\d+)")
_PINNED: Final = re.compile(r"pid=(\d+)")
BEGIN, END = "begin", "end"

Place = tuple[str, int]
"""A vector: its device and its number."""


class Event(NamedTuple):
    """`what` is the kernel's or our own name of it, `cpu` that which it happened on."""

    at: float
    cpu: int
    what: str
    text: str


class Share(NamedTuple):
    """So many `of` so many."""

    some: int
    of: int

    @property
    def part(self) -> float:
        """NaN of none."""
        return self.some / self.of if self.of else math.nan


@dataclass(frozen=True)
class Where:
    """What is right: each vector's vCPU, and the CPUs."""

    chosen: Mapping[Place, int]
    cpus: Mapping[int, int]  # of each vCPU
    near: frozenset[int]  # the devices' node's

    def very(self, place: Place) -> int:
        return self.cpus[self.chosen[place]]


@dataclass
class Taken:
    """What came of a phase, by vector."""

    total: Counter[Place] = field(default_factory=Counter)
    own: Counter[Place] = field(default_factory=Counter)  # on the guest's CPUs
    very: Counter[Place] = field(default_factory=Counter)  # on the very vCPU's
    near: Counter[Place] = field(default_factory=Counter)  # on the devices' node's
    late: Counter[Place] = field(default_factory=Counter)  # after `GRACE`
    late_very: Counter[Place] = field(default_factory=Counter)
    wrong: dict[Place, float] = field(default_factory=dict)  # seconds not on the very vCPU's CPU
    never: set[Place] = field(default_factory=set)  # wrong still at the end
    seconds: float = 0.0

    def __str__(self) -> str:
        total = max(1, self.total.total())
        own, very, near = (each.total() / total for each in (self.own, self.very, self.near))
        times = ", ".join(f"{1e3 * each:.0f}" for each in sorted(self.wrong.values()))
        return (
            f"{total}: {own:.0%} / {very:.0%}, {near:.0%} on the node,"
            f" {self.after_grace.part:.1%} after 10 ms; wrong for {times} of"
            f" {1e3 * self.seconds:.0f} ms, {len(self.never)} to the end"
        )

    @property
    def after_grace(self) -> Share:
        return Share(self.late_very.total(), self.late.total())

    def kept(self) -> dict[str, Any]:
        """All of it as JSON has it; `again` makes the same of that."""
        counts = {name: {_name(p): c for p, c in getattr(self, name).items()} for name in _COUNTS}
        wrong = {_name(place): seconds for place, seconds in self.wrong.items()}
        never = sorted(map(_name, self.never))
        return {**counts, "wrong": wrong, "never": never, "seconds": self.seconds}

    @classmethod
    def again(cls, kept: Mapping[str, Any]) -> Self:
        counts = {n: Counter({_place(p): c for p, c in kept[n].items()}) for n in _COUNTS}
        wrong = {_place(name): seconds for name, seconds in kept["wrong"].items()}
        never = set(map(_place, kept["never"]))
        return cls(**counts, wrong=wrong, never=never, seconds=kept["seconds"])


_COUNTS: Final = ("total", "own", "very", "near", "late", "late_very")


def _name(place: Place) -> str:
    return f"{place[0]}[{place[1]}]"


def _place(name: str) -> Place:
    device, _, number = name.removesuffix("]").partition("[")
    return device, int(number)


def events(trace: str) -> Iterator[Event]:
    """Those of a trace as tracefs prints it."""
    for line in trace.splitlines():
        found = _LINE.search(line)
        if found is not None:
            yield Event(float(found[2]), int(found[1]), found[3], found[4])


def count(
    trace: str, first: Mapping[int, tuple[Place, int]], where: Where, threads: Iterable[int]
) -> Taken:
    """What came between the marks.

    `first` has, by IRQ number, the vector and the CPU it is on when the trace begins. A vector
    counts from when it was set up for the last time, and all of them from when one of the guest's
    `threads` was moved.
    """
    told = list(events(trace))
    (begin,) = (each.at for each in told if each.text.strip() == BEGIN)
    (end,) = (each.at for each in told if each.text.strip() == END)
    told = [each for each in told if each.at <= end]
    start = max((each.at for each in told if _moves(each, threads)), default=begin)
    since = dict.fromkeys(where.chosen, max(begin, start))
    for each in told:
        if each.what == "requested" and (found := _REQUESTED.search(each.text)):
            place = found[3], int(found[2])
            since[place] = max(since.get(place, begin), each.at)
    result = Taken(seconds=end - begin)
    names = {irq: place for irq, (place, _) in first.items()}
    on = dict(first.values())
    spent = dict(since)
    """Until when each vector's time is counted."""
    result.wrong = dict.fromkeys(where.chosen, 0.0)

    def passed(place: Place, now: float) -> None:
        if place in spent and now > spent[place]:
            if on.get(place) != where.very(place):
                result.wrong[place] += now - spent[place]
            spent[place] = now

    for each in told:
        if each.what == "requested" and (found := _REQUESTED.search(each.text)):
            place = found[3], int(found[2])
            passed(place, each.at)
            names[int(found[1])] = place
        elif each.what == "vector_config" and (found := _PUT.search(each.text)):
            irq, cpu = map(int, found.groups())
            if irq in names:
                passed(names[irq], each.at)
                on[names[irq]] = cpu
        elif each.what == "irq_handler_entry" and (found := _TAKEN.search(each.text)):
            place = found[2], int(found[1])
            if place in where.chosen and each.at >= since[place]:
                _add(result, place, each, since[place], where)
    for place in where.chosen:
        passed(place, end)
        if on.get(place) != where.very(place):
            result.never.add(place)
    return result


def _moves(event: Event, threads: Iterable[int]) -> bool:
    found = _PINNED.search(event.text) if event.what == "pinned" else None
    return found is not None and int(found[1]) in threads


def _add(result: Taken, place: Place, event: Event, since: float, where: Where) -> None:
    very = event.cpu == where.very(place)
    result.total[place] += 1
    result.own[place] += event.cpu in where.cpus.values()
    result.very[place] += very
    result.near[place] += event.cpu in where.near
    if event.at >= since + GRACE:
        result.late[place] += 1
        result.late_very[place] += very
