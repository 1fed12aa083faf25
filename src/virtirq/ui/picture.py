"""A `Scene` as SVG: where everything is drawn. No script, no network, nothing but the drawing.

Each part of a NUMA node is a band: its CPUs in a row, under bars that name the guests whose vCPUs
are pinned there, and below them the node's devices with a mark for each vector. A line leads from
each mark to the CPU that takes the interrupt. What is known of a part is in its <title>, which
viewers show where the pointer is.

Parts that lstopo(1) draws have its ids and classes (``PU_3_rect``, class ``PU``), so what is made
for its pictures finds them here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from virtirq.ui.document import printable
from virtirq.ui.scene import Band, Cache, Core, DrawnDevice, Scene, Vector, Verdict
from virtirq.ui.style import CHARACTER, GUEST_COLOURS, STYLE
from virtirq.ui.width import cells, shortened
from virtirq.values import dataclass, field

_MARGIN: Final = 16
_PAD: Final = 10
_LINE: Final = 16
"""From one line of text to the next."""
_BESIDE: Final = 1800
"""Pictures that are no wider together stand beside each other, others below each other."""
_NARROWEST: Final = 640
_ROW: Final = 1680
"""How wide a row of CPUs or devices is to be at most, where that can be chosen."""
_CELLS: Final = 128
"""CPUs in a row at most."""
_CELL: Final = (20, 60)
_CELL_HEIGHT: Final = 34
_ROOMY: Final = 40
"""A cell so wide has room for a letter beside its number."""
_CORE_GAP: Final = 4
_CACHE_GAP: Final = 12
_BAR: Final = 15
_PITCH: Final = 11
"""From one vector's mark to the next."""
_MARKS: Final = 48
"""Vectors of a device in a row at most."""
_DEVICE: Final = 78
_BETWEEN: Final = 6
"""From one device to the next, at least."""
_LEGEND: Final = 300
_CROWD: Final = 100
"""More wrong lines than this are drawn thinner, or nothing else could be seen."""
WORDS: Final[Mapping[Verdict, str]] = {
    "right": "in place",
    "loose": "there by chance",
    "wrong": "on a wrong CPU",
    "left": "left alone",
}


def svg(scenes: Sequence[Scene]) -> str:
    """The drawing of a host; of several scenes of it, one beside the other."""
    root = element(scenes)
    indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def element(scenes: Sequence[Scene]) -> Element:
    """The drawing as an element, as HTML takes it too."""
    panels = [
        _Panel(scene, "" if number == 0 else f"after{number}_")
        for number, scene in enumerate(scenes)
    ]
    beside = sum(panel.width + _MARGIN for panel in panels) <= _BESIDE
    crowded = any(each.counts["wrong"] > _CROWD for each in scenes)
    kind = "virtirq crowded" if crowded else "virtirq"
    root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "class": kind})
    _title(root, "Interrupts of passed-through devices, and the CPUs that take them")
    SubElement(root, "style").text = STYLE
    ground = SubElement(root, "rect", {"class": "ground"})
    x = y = width = height = 0.0
    for panel in panels:
        panel.draw(root, x, y)
        width, height = max(width, x + panel.width), max(height, y + panel.height)
        x, y = (x + panel.width, y) if beside else (x, y + panel.height)
    size = {"width": _number(width), "height": _number(height)}
    root.attrib.update(size | {"viewBox": f"0 0 {size['width']} {size['height']}"})
    ground.attrib.update(size)
    return root


class _Point(NamedTuple):
    x: float
    y: float


@dataclass(slots=True)
class _Cell:
    """A CPU in the picture."""

    x: float
    y: float
    width: float

    @property
    def bottom(self) -> float:
        return self.y + _CELL_HEIGHT


@dataclass(slots=True)
class _Row:
    """Caches, or parts of them, that stand in one row; bars of guests are in `lanes` above them."""

    caches: list[Cache] = field(default_factory=list)
    cells: int = 0
    bars: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Guest, first and last place in the row, lane."""
    lanes: int = 0

    @property
    def cpus(self) -> list[int]:
        return [cpu for cache in self.caches for core in cache.cores for cpu in core.cpus]


class _Panel:
    """One scene. Its size is known before it is drawn."""

    def __init__(self, scene: Scene, prefix: str) -> None:
        self._scene, self._prefix = scene, prefix
        self._ids: Counter[str] = Counter()
        self._numbers: Counter[str] = Counter()
        self._cells: dict[int, _Cell] = {}
        self._marks: list[tuple[Vector, _Point]] = []
        self._labels = Element("g")
        """Above all lines: no pointer finds them, so what is below them tells what it is."""
        self._on: dict[int, dict[int, list[int]]] = {}
        """Guest to vCPUs, by CPU."""
        for number, guest in enumerate(scene.guests):
            for vcpu, cpus in sorted(guest.seats.items()):
                for cpu in cpus:
                    self._on.setdefault(cpu, {}).setdefault(number, []).append(vcpu)
        self._rows = [self._arranged(band) for band in scene.bands]
        most = max((row.cells for rows in self._rows for row in rows), default=1)
        self._cell = min(max(_ROW // max(most, 1) - _CORE_GAP, _CELL[0]), _CELL[1])
        inner = max((self._row_width(row) for rows in self._rows for row in rows), default=0)
        devices = max((len(band.devices) for band in scene.bands), default=0)
        wanted = min(devices * (_DEVICE + _BETWEEN), _ROW)
        self._inner = max(inner, wanted, _NARROWEST - 2 * (_MARGIN + 2 * _PAD))
        self.width = self._inner + 2 * (_MARGIN + 2 * _PAD)
        self._devices = [self._shelved(band) for band in scene.bands]
        self._head = _wrapped(" · ".join(scene.lines), int((self.width - 2 * _MARGIN) / CHARACTER))
        self._top = _MARGIN + _LINE * (3 + len(self._head))
        self._columns = max(1, int((self.width - 2 * _MARGIN) // _LEGEND))
        legend = -(-len(scene.guests) // self._columns) * _LINE
        self._heights = [
            self._band_height(band, rows, shelves)
            for band, rows, shelves in zip(scene.bands, self._rows, self._devices, strict=True)
        ]
        self._packages = {band.package for band in scene.bands if band.package is not None}
        self.height = (
            self._top
            + sum(height + _PAD for height in self._heights)
            + len(self._packages) * (_LINE + _PAD)
            + (legend + _LINE + _MARGIN)
        )

    def _arranged(self, band: Band) -> list[_Row]:
        """The rows of its CPUs, broken between cores."""
        rows = [_Row()]
        for cache in band.caches:
            part: list[Core] = []
            for core in cache.cores:
                if rows[-1].cells + len(core.cpus) > _CELLS and rows[-1].cells:
                    if part:
                        rows[-1].caches.append(Cache(cache.level, cache.told, tuple(part)))
                    rows.append(_Row())
                    part = []
                part.append(core)
                rows[-1].cells += len(core.cpus)
            rows[-1].caches.append(Cache(cache.level, cache.told, tuple(part)))
        for row in rows:
            self._bar(row)
        return [row for row in rows if row.cells]

    def _bar(self, row: _Row) -> None:
        """Over each run of CPUs that a guest has a bar, in the first lane with room for it."""
        place = {cpu: number for number, cpu in enumerate(row.cpus)}
        taken: list[int] = []
        runs = []
        for number in range(len(self._scene.guests)):
            mine = [place[cpu] for cpu in row.cpus if number in self._on.get(cpu, ())]
            runs += [(first, last, number) for first, last in _runs(mine)]
        for first, last, number in sorted(runs):
            lane = next((lane for lane, end in enumerate(taken) if end < first), len(taken))
            taken[lane : lane + 1] = [last]
            row.bars.append((number, first, last, lane))
        row.lanes = len(taken)

    def _row_width(self, row: _Row) -> float:
        cores = sum(len(cache.cores) for cache in row.caches)
        return row.cells * self._cell + cores * _CORE_GAP + len(row.caches) * _CACHE_GAP

    def _shelved(self, band: Band) -> list[list[DrawnDevice]]:
        """The rows of its devices, those that belong further left first."""
        order = {cpu: number for number, cpu in enumerate(band.cpus)}

        def where(device: DrawnDevice) -> tuple[float, int, str]:
            home = [order[cpu] for cpu in device.home if cpu in order]
            return (sum(home) / len(home) if home else len(order), device.guest, device.address)

        shelves: list[list[DrawnDevice]] = []
        room = 0.0
        for device in sorted(band.devices, key=where):
            width = _device_width(device) + _BETWEEN
            if width > room:
                shelves.append([])
                room = self._inner + _BETWEEN
            shelves[-1].append(device)
            room -= width
        return shelves

    def _band_height(
        self, band: Band, rows: Sequence[_Row], shelves: Sequence[Sequence[DrawnDevice]]
    ) -> float:
        height: float = _LINE + _PAD
        height += sum(_row_height(row) + _PAD for row in rows)
        if shelves:
            height += _gap(band) if rows else 0
            height += sum(_shelf_height(shelf) + _PAD for shelf in shelves)
        return height

    def draw(self, root: Element, x: float, y: float) -> None:
        """Its upper left corner at x, y."""
        place = {"transform": f"translate({_number(x)} {_number(y)})"} if x or y else {}
        panel = SubElement(root, "g", {"class": "Machine"} | place)
        self._heading(panel)
        # What is drawn later lies above: lines go behind boxes, but for those that are to be seen.
        ground, calm, boxes, loud, marks = (SubElement(panel, "g") for _ in range(5))
        self._labels = SubElement(panel, "g")
        at = float(self._top)
        package = None
        for number, band in enumerate(self._scene.bands):
            if band.package != package and band.package is not None:
                at = self._package(ground, at, number)
            elif band.package is None and package is not None:
                at += _PAD
            package = band.package
            self._band(ground, boxes, band, number, at)
            at += self._heights[number] + _PAD
        self._lines(calm, loud, marks)
        self._legend(panel, at + (_PAD if package is not None else 0))

    def _heading(self, panel: Element) -> None:
        y = _MARGIN + 4.0
        _text(panel, self._scene.heading, _MARGIN, y, "heading")
        for line in self._head:
            y += _LINE
            _text(panel, line, _MARGIN, y, "facts")
        y += _LINE + 4
        x = float(_MARGIN)
        for verdict, number in self._scene.counts.items():
            if not number and verdict != "right":
                continue
            sample = SubElement(panel, "g", {"class": f"vector {verdict}"})
            _shape(sample, "line", "line", x1=x, y1=y - 4, x2=x + 26, y2=y - 4)
            _mark(sample, verdict, _Point(x + 26, y - 4))
            said = f"{number} {WORDS[verdict]}"
            _text(panel, said, x + 36, y, "facts")
            x += 36 + CHARACTER * len(said) + 18

    def _package(self, ground: Element, y: float, first: int) -> float:
        """The box around the bands of a package. Where they begin."""
        package = self._scene.bands[first].package
        here = [
            height
            for band, height in zip(self._scene.bands, self._heights, strict=True)
            if band.package == package
        ]
        logical = self._numbers["Package"]
        self._numbers["Package"] += 1
        height = sum(here) + len(here) * _PAD + _LINE
        box = self._box(
            ground, "Package", logical, _MARGIN - 4, y, self.width - 2 * (_MARGIN - 4), height
        )
        _title(box, f"Package {package}")
        self._label("Package", logical, f"Package L#{logical}", _MARGIN + 4, y + 12)
        return y + _LINE + 4

    def _band(self, ground: Element, boxes: Element, band: Band, number: int, y: float) -> None:
        x = float(_MARGIN + _PAD)
        logical = self._numbers["NUMANode"]
        self._numbers["NUMANode"] += 1
        box = self._box(
            ground, "NUMANode", logical, x - 4, y, self.width - 2 * x + 8, self._heights[number]
        )
        _title(box, band.told)
        name = f"NUMANode P#{band.node}" if band.node is not None else "on no NUMA node"
        self._label("NUMANode", logical, name, x + 4, y + 13)
        y += _LINE + _PAD / 2
        for row in self._rows[number]:
            self._row(ground, boxes, row, x + _PAD, y)
            y += _row_height(row) + _PAD
        if self._rows[number] and band.devices:
            y += _gap(band)
        for shelf in self._devices[number]:
            self._shelf(boxes, shelf, x + _PAD, y)
            y += _shelf_height(shelf) + _PAD

    def _row(self, ground: Element, boxes: Element, row: _Row, x: float, y: float) -> None:
        top = y + row.lanes * _BAR + (4 if row.lanes else 0)
        at, edges = x, []
        for cache in row.caches:
            begin = at
            cores = []
            for core in cache.cores:
                cores.append((core, at))
                for cpu in core.cpus:
                    self._cells[cpu] = _Cell(at, top + _LINE, self._cell)
                    edges.append(at)
                    at += self._cell
                at += _CORE_GAP
            self._cache(ground, cache, begin, top, at - begin - _CORE_GAP)
            for core, where in cores:
                self._core(boxes, core.cpus, core.sort, where)
            at += _CACHE_GAP
        for guest, first, last, lane in row.bars:
            left, right = edges[first], edges[last] + self._cell
            self._guest_bar(boxes, guest, left, right - left, top - 4 - (lane + 1) * _BAR)

    def _cache(self, ground: Element, cache: Cache, x: float, y: float, width: float) -> None:
        if not cache.told:
            return
        kind = f"L{cache.level}" if cache.level is not None else "Cache"
        logical = self._numbers[kind]
        self._numbers[kind] += 1
        box = self._box(
            ground, kind, logical, x - 3, y, width + 6, _LINE + _CELL_HEIGHT + 4, "cache"
        )
        _title(box, cache.told)
        size = cache.told.rpartition(", ")[2] if ", " in cache.told else ""
        sorts = {core.sort for core in cache.cores}
        cores = f"{next(iter(sorts))} cores" if len(sorts) == 1 and "" not in sorts else ""
        text = _cut(" ".join(filter(None, (kind, size, cores))), width)
        self._label(kind, logical, text, x + 1, y + 12, "cache")

    def _core(self, boxes: Element, cpus: Sequence[int], sort: str, x: float) -> None:
        logical = self._numbers["Core"]
        self._numbers["Core"] += 1
        y = self._cells[cpus[0]].y
        width = len(cpus) * self._cell
        sorts = {"P": "performance", "E": "efficiency"}
        box = self._box(boxes, "Core", logical, x, y, width, _CELL_HEIGHT, sorts.get(sort, ""))
        kind = f", {sorts[sort]}" if sort else ""
        _title(box, f"Core of CPUs {', '.join(map(str, cpus))}{kind}")
        for cpu in cpus:
            self._cpu(boxes, cpu, sort)

    def _cpu(self, boxes: Element, cpu: int, sort: str) -> None:
        cell = self._cells[cpu]
        logical = self._numbers["PU"]
        self._numbers["PU"] += 1
        on = self._on.get(cpu, {})
        guests = self._scene.guests
        isolated = cpu in self._scene.isolated
        kinds = ["isolated"] if isolated else []
        if len(on) == 1:
            kinds.append(_colour(next(iter(on))))
        elif on:
            kinds.append("shared")
        box = self._box(
            boxes, "PU", logical, cell.x, cell.y, cell.width, _CELL_HEIGHT, " ".join(kinds)
        )
        box.set("data-cpu", str(cpu))
        told = [f"CPU {cpu}" + (", isolated" if isolated else "")]
        told += [
            f"{guests[guest].unit} {', '.join(map(str, vcpus))} of {guests[guest].name}"
            for guest, vcpus in on.items()
        ]
        _title(box, "\n".join(told))
        middle = cell.x + cell.width / 2
        on_it = kinds[-1] if kinds else ""
        text = str(cpu)
        self._label("PU", logical, text, middle, cell.y + 13, f"{on_it} {_fitting(text, cell)}")
        if sort and cell.width >= _ROOMY:
            _text(self._labels, sort, cell.x + 4, cell.y + 10, f"label {on_it} small")
        vcpus = [vcpu for each in on.values() for vcpu in each]
        if vcpus:
            text = f"v{vcpus[0]}" if len(vcpus) == 1 else f"×{len(vcpus)}"
            kind = f"label vcpu {on_it} {_fitting(text, cell)}"
            _text(self._labels, text, middle, cell.y + 27, kind)

    def _guest_bar(self, boxes: Element, guest: int, x: float, width: float, y: float) -> None:
        drawn = self._scene.guests[guest]
        bar = SubElement(boxes, "g", {"class": f"guest {_colour(guest)}"})
        _title(bar, drawn.told)
        _shape(bar, "rect", "", x=x, y=y, width=width, height=_BAR - 2, rx=2)
        name = _cut(drawn.name, width - 4)
        _text(self._labels, name, x + 3, y + 10, f"label name {_colour(guest)}")

    def _shelf(self, boxes: Element, shelf: Sequence[DrawnDevice], x: float, y: float) -> None:
        spare = self._inner - sum(_device_width(device) + _BETWEEN for device in shelf)
        step = max(0.0, min(spare / len(shelf), 40)) + _BETWEEN
        for device in shelf:
            self._device(boxes, device, x, y)
            x += _device_width(device) + step

    def _device(self, boxes: Element, device: DrawnDevice, x: float, y: float) -> None:
        logical = self._numbers["PCI"]
        self._numbers["PCI"] += 1
        width, rows = _device_width(device), _mark_rows(device)
        box = self._box(
            boxes, "PCI", logical, x, y, width, _device_height(device), _colour(device.guest)
        )
        _title(box, device.told)
        below = y + 8 + rows * _PITCH
        guest = self._scene.guests[device.guest].name
        address = re.sub("^0000:", "", device.address)
        colour = _colour(device.guest)
        lines = ((address, colour), (guest, f"{colour} name"), (device.kind, colour))
        for line, (text, kind) in enumerate(lines):
            self._label("PCI", logical, _cut(text, width - 8), x + 5, below + 10 + line * 13, kind)
        for number, vector in enumerate(device.vectors):
            row, column = divmod(number, _MARKS)
            at = _Point(x + 8 + column * _PITCH, y + 8 + row * _PITCH)
            self._marks.append((vector, at))

    def _lines(self, calm: Element, loud: Element, marks: Element) -> None:
        """From each mark to its CPU; lines that end at one CPU end beside each other."""
        ends: Counter[int] = Counter(
            vector.cpu for vector, _ in self._marks if vector.cpu in self._cells
        )
        used: Counter[int] = Counter()
        for vector, mark in sorted(self._marks, key=lambda each: each[1].x):
            name = self._id(f"IRQ_{vector.irq}")
            kinds = {"class": f"vector {vector.verdict}", "data-irq": str(vector.irq)}
            spot = SubElement(marks, "g", {"id": f"{name}_mark"} | kinds)
            _title(spot, vector.told)
            _mark(spot, vector.verdict, mark)
            cell = self._cells.get(vector.cpu) if vector.cpu is not None else None
            if cell is None or vector.cpu is None:
                continue
            kinds["data-cpu"] = str(vector.cpu)
            used[vector.cpu] += 1
            share = used[vector.cpu] / (ends[vector.cpu] + 1)
            near = cell.bottom if cell.bottom <= mark.y else cell.y
            path = _curve(mark, _Point(cell.x + cell.width * share, near))
            above = loud if vector.verdict == "wrong" else calm
            line = SubElement(above, "g", {"id": name} | kinds)
            _title(line, vector.told)
            # A wider one that nobody sees is easier to point at.
            SubElement(line, "path", {"class": "touch", "d": path})
            SubElement(line, "path", {"class": "line", "id": f"{name}_line", "d": path})

    def _legend(self, panel: Element, y: float) -> None:
        y += _LINE
        for number, guest in enumerate(self._scene.guests):
            row, column = divmod(number, self._columns)
            x, at = _MARGIN + column * _LEGEND, y + row * _LINE
            entry = SubElement(panel, "g", {"class": f"guest {_colour(number)}"})
            _title(entry, guest.told)
            _shape(entry, "rect", "", x=x, y=at - 10, width=12, height=12, rx=2)
            bad = guest.counts["wrong"]
            said = f"{bad} of {sum(guest.counts.values())} wrong" if bad else "in place"
            if not bad and guest.counts["loose"]:
                said = f"{guest.counts['loose']} by chance"
            if not sum(guest.counts.values()):
                said = "no interrupts"
            room = _LEGEND - 30 - CHARACTER * (len(said) + 2)
            name = _cut(guest.name + ("" if guest.seats else " (not pinned)"), room)
            _text(entry, name, x + 18, at, "facts")
            _text(
                entry,
                said,
                x + 18 + CHARACTER * (cells(name) + 2),
                at,
                "facts bad" if bad else "facts dim",
            )

    def _box(
        self,
        parent: Element,
        kind: str,
        logical: int,
        x: float,
        y: float,
        width: float,
        height: float,
        more: str = "",
    ) -> Element:
        """A group with the box of a part in it."""
        group = SubElement(parent, "g")
        name = self._id(f"{kind}_{logical}_rect")
        shape = _shape(
            group, "rect", f"{kind} {more}".strip(), x=x, y=y, width=width, height=height
        )
        shape.set("id", name)
        return group

    def _label(
        self, kind: str, logical: int, text: str, x: float, y: float, more: str = ""
    ) -> None:
        made = _text(self._labels, text, x, y, f"label {kind} {more}".strip())
        made.set("id", self._id(f"{kind}_{logical}_text"))

    def _id(self, name: str) -> str:
        """The name, made unique as lstopo does."""
        number = self._ids[name]
        self._ids[name] += 1
        return f"{self._prefix}{name}" + (f"_{number}" if number else "")


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    first = last = None
    for place in places:
        if last is not None and place == last + 1:
            last = place
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = place
    if first is not None and last is not None:
        yield first, last


def _row_height(row: _Row) -> float:
    return row.lanes * _BAR + (4 if row.lanes else 0) + _LINE + _CELL_HEIGHT + 4


def _gap(band: Band) -> float:
    """What the lines between CPUs and devices take: the more there are, the more."""
    return (
        40 + min(len(band.cpus), 48) + min(sum(len(device.vectors) for device in band.devices), 64)
    )


def _mark_rows(device: DrawnDevice) -> int:
    return max(1, -(-len(device.vectors) // _MARKS))


def _device_width(device: DrawnDevice) -> float:
    return max(_DEVICE, min(len(device.vectors), _MARKS) * _PITCH + 6)


def _device_height(device: DrawnDevice) -> float:
    return 8 + _mark_rows(device) * _PITCH + 3 * 13 + 4


def _shelf_height(shelf: Sequence[DrawnDevice]) -> float:
    return max(_device_height(device) for device in shelf)


def _curve(start: _Point, end: _Point) -> str:
    """Leaves a mark upwards, and comes to a CPU from below, or from above to one further down."""
    bend = max(24.0, abs(start.y - end.y) * 0.5)
    if end.y < start.y:
        first, second = start.y - bend, end.y + bend
    else:
        first, second = start.y + bend, end.y - bend
    points = ((start.x, first), (end.x, second), (end.x, end.y))
    curve = ", ".join(f"{_number(x)} {_number(y)}" for x, y in points)
    return f"M{_number(start.x)} {_number(start.y)} C{curve}"


def _mark(group: Element, verdict: Verdict, at: _Point) -> None:
    """A dot; what is wrong is told by its form too, not by colour alone."""
    if verdict == "wrong":
        x, y = at
        corners = ((x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y))
        points = " ".join(f"{_number(a)},{_number(b)}" for a, b in corners)
        SubElement(group, "polygon", {"class": "mark", "points": points})
    else:
        _shape(group, "circle", "mark", cx=at.x, cy=at.y, r=3.5)


def _fitting(text: str, cell: _Cell) -> str:
    """How a text is set in the middle of a cell."""
    return "middle small" if len(text) * CHARACTER > cell.width - 2 else "middle"


def _colour(guest: int) -> str:
    return f"g{guest % GUEST_COLOURS}"


def _shape(parent: Element, tag: str, kind: str, **numbers: float) -> Element:
    made = SubElement(parent, tag, {name: _number(value) for name, value in numbers.items()})
    if kind:
        made.set("class", kind)
    return made


def _text(parent: Element, text: str, x: float, y: float, kind: str) -> Element:
    made = SubElement(parent, "text", {"x": _number(x), "y": _number(y), "class": kind})
    made.text = printable(text)
    return made


def _title(parent: Element, text: str) -> None:
    """What is shown where the pointer is; it comes first in its parent."""
    title = Element("title")
    title.text = "\n".join(map(printable, text.split("\n")))
    parent.insert(0, title)


def _cut(text: str, width: float) -> str:
    """As much of it as there is room for."""
    room = int(width / CHARACTER)
    return shortened(text, room) if room > 1 else ""


def _wrapped(text: str, room: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, max(room, 20), break_on_hyphens=False)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
