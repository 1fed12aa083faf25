"""``virtirq report``: one page with all that there is to see of a host, as HTML elements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from xml.etree.ElementTree import Element, SubElement

from virtirq import __version__
from virtirq.control.daemon_status import DaemonStatus
from virtirq.control.log_entry import LogEntry
from virtirq.model import DevicePlan, Finding, GuestPlan, InterruptKey, Snapshot, counted
from virtirq.policy.advice import ADVICE
from virtirq.ui import picture, scene
from virtirq.ui.document import printable
from virtirq.ui.events import history
from virtirq.ui.inputs import View
from virtirq.ui.report import Rows

Key = tuple[int, InterruptKey]


class Measured(NamedTuple):
    """How many interrupts a second there were, over so many seconds."""

    seconds: float
    rates: Mapping[Key, float]

    @classmethod
    def between(cls, one: Snapshot, other: Snapshot, seconds: float) -> Measured:
        """Of what is there at both times, and is the same interrupt."""
        before = {(each.irq, each.key): each.counts for each in one.interrupts}
        rates = {}
        for each in other.interrupts:
            was = before.get((each.irq, each.key))
            if was is None or each.counts is None:
                continue
            came = sum(each.counts.values()) - sum(was.values())
            if came >= 0:  # else it was set up anew meanwhile
                rates[each.irq, each.key] = came / seconds
        return cls(seconds, rates)


STYLE: Final = """\
h1 {font-size: 1.5em} h2 {font-size: 1.2em; margin-top: 2em}
table {border-collapse: collapse; margin: .5em 0}
th, td {text-align: left; vertical-align: top; padding: .15em 1em .15em 0}
th {font-weight: normal; opacity: .7}
.vectors td, .vectors th {white-space: nowrap}
.vectors td.why {white-space: normal; min-width: 20em}
td.number {text-align: right; font-variant-numeric: tabular-nums}
.wide {overflow-x: auto}
.warning, .error, .wrong {color: #d1001f; font-weight: bold}
.loose {color: #a86a00}
.note, .left {opacity: .7}
summary {cursor: pointer; margin: .4em 0}
details > div {margin-left: 1.2em}
@media (prefers-color-scheme: dark) {
.warning, .error, .wrong {color: #ff5a66} .loose {color: #e0a030}
}
@media print {details {display: block}}
"""


def body(
    view: View,
    measured: Measured | None,
    taken: float,
    events: Sequence[LogEntry] | None = None,
    left_out: str = "",
) -> list[Element]:
    """The page's parts. `taken` is seconds since the epoch; `left_out` is what is not told.

    `events` are the last of what has happened; None where nobody could know, or is to.
    """
    parts = [_part("h1", "Interrupts of passed-through devices")]
    parts.append(_facts(view, taken, left_out))
    parts.append(_part("h2", "Picture"))
    scenes = [scene.now(view.snapshot, view.plan)]
    if view.plan.pins:
        scenes.append(scene.planned(view.snapshot, view.plan))
    if all(each.readable for each in scenes):
        wide = Element("div", {"class": "wide"})
        wide.append(picture.element(scenes))
        parts.append(wide)
    else:
        parts.append(_part("p", f"{len(view.plan.actions)} interrupts are too many for one."))
    parts += [_part("h2", "Findings"), _findings(view.findings)]
    parts.append(_part("h2", "Guests"))
    tell = _Teller(view, measured)
    parts += [tell.guest(each) for each in view.plan.guests]
    if not view.plan.guests:
        parts.append(_part("p", "No guest with passed-through devices is known."))
    if view.daemon is not None:
        parts += _daemon(view.daemon)
    if events is not None:
        parts += _events(events)
    if view.snapshot.gaps:
        parts.append(_part("h2", "Not read"))
        rows = ((gap.path, gap.error) for gap in view.snapshot.gaps)
        parts.append(_table(("file", "why"), rows))
    return parts


def _facts(view: View, taken: float, left_out: str) -> Element:
    snapshot, topology = view.snapshot, view.snapshot.topology
    counts = scene.now(snapshot, view.plan).counts
    running = {None: "not known", False: "does not run", True: "runs"}[snapshot.irqbalance.running]
    rows = [
        ("taken", _time(taken)),
        ("virtirq", __version__),
        ("kernel", snapshot.kernel or "not known"),
        ("CPUs online", f"{len(topology.online)}: {topology.online}"),
        ("isolated, nohz_full", f"{topology.isolated or 'none'}, {topology.nohz_full or 'none'}"),
        ("NUMA nodes", ", ".join(f"{n.number}: {n.cpus}" for n in topology.nodes.values())),
        ("irqbalance", running),
        ("posted interrupts", snapshot.posting.basis),
        (
            "interrupts",
            ", ".join(f"{number} {picture.WORDS[each]}" for each, number in counts.items()),
        ),
    ]
    if snapshot.recording:
        rows.append(("recorded host", snapshot.recording))
    elif view.daemon is None:
        rows.append(("daemon", "none runs: what guests set up anew is not pinned"))
    if left_out:
        rows.append(("left out", left_out))
    return _table((), rows)


def _findings(found: Sequence[Finding]) -> Element:
    if not found:
        return _part("p", "None: all is as it should be.")
    table = Element("table")
    _row(table, "th", ("", "finding", "of", "what", "what to do"))
    for each in found:
        row = _row(
            table, "td", (each.severity.value, each.code, each.subject, each.message, each.hint)
        )
        row[0].set("class", each.severity.value)
        row[1].set("title", ADVICE[each.code].meaning)
    wide = Element("div", {"class": "wide"})
    wide.append(table)
    return wide


class _Teller:
    """Tells of guests, and of each of their interrupts."""

    def __init__(self, view: View, measured: Measured | None) -> None:
        self._view, self._measured = view, measured
        self._rows = Rows(view.snapshot)
        self._counts = {(each.irq, each.key): each.counts for each in view.snapshot.interrupts}
        self._told = {
            guest.name: guest.told for guest in scene.now(view.snapshot, view.plan).guests
        }

    def guest(self, guest: GuestPlan) -> Element:
        """Open where something is not as it should be."""
        rows = [self._rows.of(action) for device in guest.devices for action in device.actions]
        bad = sum(scene.verdict(row.status) == "wrong" for row in rows)
        part = Element("details", {"open": ""} if any(row.moves for row in rows) else {})
        _, *facts = self._told[guest.guest.name].split("\n")
        said = f"{guest.guest.name}: {', '.join(facts)}, {counted(len(rows), 'interrupt')}"
        SubElement(part, "summary").text = printable(said + (f", {bad} wrong" if bad else ""))
        inside = SubElement(part, "div")
        for device in guest.devices:
            inside.extend(self._device(device))
        if not guest.devices:
            inside.append(_part("p", "no passed-through PCI devices"))
        return part

    def _device(self, device: DevicePlan) -> list[Element]:
        pci = self._view.snapshot.pci.get(device.device.address)
        kind = pci.kind if pci else "absent"
        node = "" if device.node is None else f", node {device.node}"
        driver = f", {pci.driver}" if pci and pci.driver else ""
        head = f"{device.device.address}: {kind}{node}{driver}"
        asked = f"{device.directive} ({device.directive_from}): {device.note}"
        table = Element("table", {"class": "vectors"})
        heads = ["vector", "IRQ", "affinity", "on", "should be", "verdict", "why", "so far"]
        if self._measured is not None:
            heads.append(f"per second, over {self._measured.seconds:.3g} s")
        _row(table, "th", heads)
        for action in device.actions:
            row = self._rows.of(action)
            key = (action.irq, action.key)
            cells = [
                row.kind if row.vector is None else f"{row.kind} {row.vector}",
                str(row.irq),
                *(_cpus(each) for each in (row.before, row.effective, row.after)),
                *(row.status, row.reason, self._taken(key)),
            ]
            if self._measured is not None:
                rate = self._measured.rates.get(key)
                cells.append("-" if rate is None else f"{rate:.1f}")
            shown = _row(table, "td", cells)
            shown[5].set("class", scene.verdict(row.status))
            shown[6].set("class", "why")
            for each in (shown[1], *shown[7:]):
                each.set("class", "number")
        wide = Element("div", {"class": "wide"})
        wide.append(table)
        return [_part("h3", head), _part("p", asked), wide]

    def _taken(self, key: Key) -> str:
        counts = self._counts.get(key)
        return "-" if counts is None else str(sum(counts.values()))


def _events(events: Sequence[LogEntry]) -> list[Element]:
    head = _part("h2", "Events")
    if not events:
        return [head, _part("p", "None is known to the daemon or the journal since the boot.")]
    table = Element("table")
    _row(table, "th", ("time", "guest", "why", "what"))
    for each in events:
        what = history.first_line(each)
        cells = (_time(each.at), each.fields.get("guest") or "-", history.why(each) or "-", what)
        row = _row(table, "td", cells)
        if each.priority <= history.WARNING:
            row[3].set("class", "warning")
    wide = Element("div", {"class": "wide"})
    wide.append(table)
    return [head, wide]


def _daemon(daemon: DaemonStatus) -> list[Element]:
    rows = [
        ("version", daemon.version),
        ("runs since", _time(daemon.since)),
        ("events of interrupts", daemon.events),
        ("guests from", daemon.guests),
    ]
    if daemon.counters is not None:
        rows += [
            (f"moved after {why}, {end}", str(number))
            for (why, end), number in sorted(daemon.counters.moves.items())
        ]
        rows += [
            (f"moved away by {who}", str(number))
            for who, number in sorted(daemon.counters.drift.items())
        ]
    return [_part("h2", "Daemon"), _table((), rows)]


def _cpus(cpus: object) -> str:
    return "-" if cpus is None else str(cpus)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")


def _part(tag: str, text: str) -> Element:
    made = Element(tag)
    made.text = printable(text)
    return made


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Element:
    table = Element("table")
    if heads:
        _row(table, "th", heads)
    for first, *rest in rows:
        row = _row(table, "td", rest)
        head = _part("th", first)
        row.insert(0, head)
    return table


def _row(table: Element, tag: str, cells: Iterable[str]) -> Element:
    row = SubElement(table, "tr")
    row.extend(_part(tag, each) for each in cells)
    return row
