"""What ``top`` lists: rows by vector, device, guest or CPU, in an order, of some columns. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from virtirq.cpuset import CpuSet, union
from virtirq.errors import UsageError
from virtirq.ui.top.rates import Places, Taken, places, together


class View(Enum):
    """What a row stands for."""

    VECTOR = "vector"
    DEVICE = "device"
    GUEST = "guest"
    CPU = "cpu"


class Id(NamedTuple):
    """What a row is, from one update to the next."""

    guest: str = ""
    device: str = ""
    irq: int | None = None
    cpu: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row; None is what such a row has not. `seconds` is how long was measured."""

    id: Id
    places: Places
    total: int
    on: CpuSet
    seconds: float
    wanted: CpuSet | None = None
    kind: str | None = None
    vector: int | None = None
    devices: int | None = None
    irqs: int | None = None
    vcpus: Sequence[str] = field(default=())
    by_cpu: Mapping[int, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        return self.places.all / self.seconds if self.seconds else 0.0


def rows(
    view: View,
    found: Iterable[Taken],
    seconds: float,
    vcpus: Mapping[int, Sequence[str]],
    cpus: CpuSet | None = None,
) -> list[Row]:
    """`vcpus` are the names of the vCPUs that have a CPU for themselves or share it."""
    found = list(found)
    if view is View.CPU:
        return _by_cpu(found, seconds, vcpus, cpus)
    groups: defaultdict[Id, list[Taken]] = defaultdict(list)
    for each in found:
        one = each.watched
        device = "" if view is View.GUEST else str(one.device)
        groups[Id(one.guest, device, one.irq if view is View.VECTOR else None)].append(each)
    return [_group(id_, members, seconds, view) for id_, members in groups.items()]


def _group(id_: Id, members: Sequence[Taken], seconds: float, view: View) -> Row:
    by_cpu: Counter[int] = Counter()
    for each in members:
        by_cpu.update(each.delta)
    one = members[0].watched
    wanted = [each.watched.wanted for each in members if each.watched.wanted is not None]
    single = view is View.VECTOR
    return Row(
        id_,
        together(map(places, members)),
        sum(each.total for each in members),
        CpuSet(by_cpu),
        seconds,
        wanted=union(wanted) if wanted else None,
        kind=one.name if single else None,
        vector=one.vector if single else None,
        devices=len({each.watched.device for each in members}) if view is View.GUEST else None,
        irqs=None if single else len(members),
        by_cpu=by_cpu,
    )


def _by_cpu(
    found: Iterable[Taken],
    seconds: float,
    vcpus: Mapping[int, Sequence[str]],
    only: CpuSet | None,
) -> list[Row]:
    """The CPUs that took any, should have, or have a vCPU. Each interrupt is looked at once."""
    here: defaultdict[int, list[Places]] = defaultdict(list)
    counts: Counter[int] = Counter()
    due: Counter[int] = Counter()
    wanted: Counter[CpuSet] = Counter()
    for each in found:
        if each.watched.wanted is not None:
            wanted[each.watched.wanted] += 1
        for cpu, count in each.delta.items():
            here[cpu].append(places(each, cpu))
            counts[cpu] += count
    for cpus, number in wanted.items():
        for cpu in cpus:
            due[cpu] += number
    return [
        Row(
            Id(cpu=cpu),
            together(here.get(cpu, ())),
            counts[cpu],
            CpuSet([cpu]),
            seconds,
            irqs=due[cpu],
            vcpus=vcpus.get(cpu, ()),
            by_cpu={cpu: counts[cpu]} if counts[cpu] else {},
        )
        for cpu in sorted({*here, *due, *vcpus})
        if only is None or cpu in only
    ]


Value = str | int | float | None
COLUMNS: Final[Mapping[str, Callable[[Row], Value]]] = {
    "GUEST": lambda row: row.id.guest or None,
    "DEVICE": lambda row: row.id.device or None,
    "VECTOR": lambda row: row.kind,
    "IRQ": lambda row: row.id.irq,
    "CPU": lambda row: row.id.cpu,
    "VCPUS": lambda row: ",".join(row.vcpus) or None,
    "DEVICES": lambda row: row.devices,
    "IRQS": lambda row: row.irqs,
    "ON": lambda row: str(row.on) or None,
    "WANTED": lambda row: None if row.wanted is None else str(row.wanted),
    "RATE": lambda row: row.rate,
    "TARGET": lambda row: row.places.share(row.places.target),
    "NODE": lambda row: row.places.share(row.places.node),
    "ELSE": lambda row: row.places.share(row.places.elsewhere),
    "DELTA": lambda row: row.places.all,
    "TOTAL": lambda row: row.total,
}
"""By the names that --output, --sort and the headings have for them."""
_SHARES: Final = ("RATE", "TARGET", "NODE", "ELSE")
DEFAULT: Final[Mapping[View, Sequence[str]]] = {
    View.VECTOR: ("GUEST", "DEVICE", "VECTOR", "IRQ", "ON", "WANTED", *_SHARES, "TOTAL"),
    View.DEVICE: ("GUEST", "DEVICE", "IRQS", "ON", "WANTED", *_SHARES, "TOTAL"),
    View.GUEST: ("GUEST", "DEVICES", "IRQS", "ON", *_SHARES, "TOTAL"),
    View.CPU: ("CPU", "IRQS", *_SHARES, "DELTA", "VCPUS"),
}
NUMBERS: Final = frozenset(COLUMNS) - {"GUEST", "DEVICE", "VECTOR", "ON", "WANTED", "VCPUS"}
_DESCENDING: Final = frozenset({"RATE", "DELTA", "TOTAL", "TARGET", "NODE", "ELSE", "IRQS"})
_CPU_LISTS: Final = frozenset({"ON", "WANTED"})
NAME: Final = "GUEST"
"""Sorting by it sorts by device and vector, too."""


def columns(text: str | None, view: View) -> Sequence[str]:
    """The names in a list; one that begins with + adds to the usual. Raises UsageError."""
    if text is None:
        return DEFAULT[view]
    names = [each.strip().upper() for each in text.removeprefix("+").split(",")]
    for name in names:
        if name not in COLUMNS:
            raise UsageError(f"there is no column {name!r}", hint=f"columns: {', '.join(COLUMNS)}")
    return (*DEFAULT[view], *names) if text.startswith("+") else names


def in_order(found: Iterable[Row], by: str) -> list[Row]:
    """Largest first where that is what one looks for; what is not known comes last."""
    named = sorted(found, key=_name)
    if by == NAME:
        return named
    value = COLUMNS[by]
    return sorted(named, key=lambda row: _order(by, value(row)))


def _name(row: Row) -> tuple[str, str, int, int]:
    return row.id.guest, row.id.device, row.vector or 0, row.id.cpu or row.id.irq or 0


def _order(by: str, value: Value) -> tuple[bool, float, str]:
    if value is None:
        return (True, 0.0, "")
    if isinstance(value, str):
        return (False, CpuSet.parse(value).first() if by in _CPU_LISTS else 0.0, value)
    return (False, -value if by in _DESCENDING else value, "")


def matches(row: Row, text: str) -> bool:
    """Whether a person who filters by `text` means this row."""
    wanted = text.lower()
    parts = (row.id.guest, row.id.device, row.kind, *row.vcpus)
    if any(wanted in part.lower() for part in parts if part):
        return True
    numbers = (row.id.irq, row.id.cpu)
    return any(text == str(number) for number in numbers if number is not None)


def shown(name: str, value: Value) -> str:
    """A value as the column has it."""
    if value is None:
        return "-"
    if name == "RATE":
        return f"{value:.1f}" if value and float(value) < 100 else f"{value:.0f}"
    return f"{value}%" if name in ("TARGET", "NODE", "ELSE") else str(value)


def as_json(row: Row) -> dict[str, Any]:
    """All that is known of a row, whatever columns are shown."""
    by_cpu = {str(cpu): count for cpu, count in sorted(row.by_cpu.items())}
    return {
        "guest": row.id.guest or None,
        "device": row.id.device or None,
        "irq": row.id.irq,
        "name": row.kind,
        "cpu": row.id.cpu,
        "vcpus": list(row.vcpus),
        "devices": row.devices,
        "irqs": row.irqs,
        "wanted": None if row.wanted is None else str(row.wanted),
        "rate": round(row.rate, 3),
        "delta": row.places.all,
        "delta_by_cpu": by_cpu,
        "on_target": row.places.target,
        "on_node": row.places.node,
        "elsewhere": row.places.elsewhere,
        "total": row.total,
    }
