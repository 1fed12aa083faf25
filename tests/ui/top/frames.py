"""Hosts with so many guests, as ``top`` has measured them: no host is read."""

from __future__ import annotations

from collections.abc import Sequence

from virtirq.cpuset import CpuSet
from virtirq.model import InterruptKey, PciAddress
from virtirq.ui.top.rates import Taken, Watched, places, together
from virtirq.ui.top.screen import Frame, State
from virtirq.ui.top.table import View, in_order, matches, rows

SECONDS = 2.0


def watched(
    guest: str,
    irq: int,
    wanted: str | None,
    vector: int = 0,
    near: str = "0-7",
    device: str = "0000:43:10.0",
) -> Watched:
    address = PciAddress.parse(device)
    key = InterruptKey(address, f"vfio-msix[{vector}]({address})")
    cpus = None if wanted is None else CpuSet.parse(wanted)
    return Watched(guest, address, "msix", vector, irq, key, cpus, CpuSet.parse(near))


def few() -> list[Taken]:
    """One of each kind: as it should be, elsewhere on the node, elsewhere, idle, without a wish."""
    return [
        Taken(watched("web", 65, "5"), {5: 24690}, 1_234_567),
        Taken(watched("web", 69, "6", 1), {6: 900, 4: 100}, 97_000),
        Taken(watched("web", 70, "7", 2), {7: 1, 12: 399}, 400),
        Taken(watched("db", 51, "1-3", 0, "0-3", "0000:22:00.0"), {}, 14),
        Taken(watched("db", 52, None, 1, "", "0000:22:00.0"), {0: 30, 9: 11}, 41),
    ]


def crowd(guests: int = 40, vectors: int = 4) -> list[Taken]:
    """Each guest has a device and a CPU of its own; that of every seventh goes astray."""
    return [
        Taken(
            watched(
                f"guest{guest:02}",
                1000 + guest * vectors + vector,
                str(guest),
                vector,
                "0-63",
                f"0000:{guest:02x}:00.0",
            ),
            {64 + guest if guest % 7 == 3 else guest: 100 * guest + vector},
            1000 * guest + vector,
        )
        for guest in range(guests)
        for vector in range(vectors)
    ]


def frame(found: Sequence[Taken], state: State, seconds: float = SECONDS) -> Frame:
    names: dict[int, list[str]] = {}
    for each in found:
        for cpu in each.watched.wanted or ():
            name = f"{each.watched.guest}/{cpu}"
            if name not in names.setdefault(cpu, []):
                names[cpu].append(name)
    table = rows(state.view, found, seconds, names)
    if state.filter:
        table = [row for row in table if matches(row, state.filter)]
    return Frame(
        "03:14:15",
        in_order(table, state.sort),
        len(found),
        together(map(places, found)),
        seconds,
    )


BY_GUEST = State(view=View.GUEST)
BY_CPU = State(view=View.CPU)
BY_DEVICE = State(view=View.DEVICE)
