"""``top`` without its terminal: what is read when, and what is on the screen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from virtirq.cpuset import CpuSet
from virtirq.errors import VirtirqError
from virtirq.model import GuestPlan, Plan, counted
from virtirq.ui import inputs
from virtirq.ui.document import Document, printable
from virtirq.ui.inputs import View as Look
from virtirq.ui.top import keys, screen
from virtirq.ui.top.keys import Does
from virtirq.ui.top.rates import Sample, Taken, Watched, taken, together
from virtirq.ui.top.rates import places as places_of
from virtirq.ui.top.sampler import Sampler
from virtirq.ui.top.screen import Frame, State
from virtirq.ui.top.table import Id, Row, View, in_order, matches, rows

_LOOK_AGAIN: Final = 30.0
"""Seconds after which guests are looked for again, should nothing have told of them."""
_SHARE: Final = 10
"""Looking takes no more than one part of so many of the time: a host may have thousands."""


@dataclass(frozen=True, slots=True)
class Options:
    """`cpus` limits what is counted to these; rows below `threshold` in all are left out."""

    cpus: CpuSet | None = None
    threshold: int = 0


class App:
    """Holds the last two samples and the state; `wall` tells the time of day."""

    def __init__(
        self,
        sampler: Sampler,
        state: State,
        options: Options,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._sampler = sampler
        self._options = options
        self._wall = wall
        self._trouble = ""
        self.state = state
        self._looked = 0.0
        self._look_took = 0.0
        self._frame: tuple[tuple[object, ...], Frame] | None = None
        self._before = self._after = Sample(0.0)
        self._at = 0.0
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self._before = self._after = self._sampler.sample(self._is_shown)
        self._looked = self._looked or self._after.at
        self._at = self._wall()

    def update(self) -> None:
        """Measure again. Devices and guests are looked at anew where something tells of it."""
        since = self._after.at - self._looked
        if since >= self._look_took * _SHARE and (self._sampler.is_stale or since > _LOOK_AGAIN):
            self.look()
        self._before, self._after = self._after, self._sampler.sample(self._is_shown)
        self._at = self._wall()

    def look(self) -> None:
        """What cannot be looked at, a guest that has ended, say, is told, and shown as it was."""
        began = self._sampler.now()
        try:
            self._sampler.look()
            self._trouble = ""
        except VirtirqError as error:
            self._trouble = printable(str(error))
        self._looked = self._sampler.now()
        self._look_took = self._looked - began

    def frame(self) -> Frame:
        """What was measured between the last two samples."""
        state = self.state
        of = (self._before, self._after, state.view, state.sort, state.filter)
        if self._frame is None or any(a is not b for a, b in zip(self._frame[0], of, strict=True)):
            self._frame = (of, self._made())
        return self._frame[1]

    def _made(self) -> Frame:
        before, after, view = self._before, self._after, self._sampler.view
        seconds = after.at - before.at
        found = taken(before, after, self._options.cpus)
        table = self._rows(found, seconds)
        return Frame(
            at=time.strftime("%H:%M:%S", time.localtime(self._at)),
            rows=in_order(table, self.state.sort),
            of=len(found),
            places=together(map(places_of, found)),
            seconds=seconds,
            unread=after.unread,
            recorded=view.snapshot.recording is not None,
            gaps=[f"{gap.path}: {gap.error}" for gap in view.snapshot.gaps],
            trouble=self._trouble,
        )

    @property
    def measured_at(self) -> float:
        """Seconds since the epoch."""
        return self._at

    def _rows(self, found: tuple[Taken, ...], seconds: float) -> list[Row]:
        state, cpus = self.state, self._options.cpus
        table = rows(state.view, found, seconds, self._sampler.vcpus, cpus)
        return [
            row
            for row in table
            if row.total >= self._options.threshold
            and (state.view is not View.CPU or not state.filter or matches(row, state.filter))
        ]

    def _is_shown(self, each: Watched) -> bool:
        """By the filter; what a CPU's rows are filtered by is not known before they are counted."""
        if not self.state.filter or self.state.view is View.CPU:
            return True
        text = self.state.filter.lower()
        return any(
            text in part.lower() for part in (each.guest, str(each.device), each.name)
        ) or self.state.filter == str(each.irq)

    # The person.

    def press(self, key: str, height: int) -> bool:
        """Whether to go on."""
        frame = self.frame()
        view = self.state.view
        self.state, does = keys.pressed(key, self.state, frame, screen.room(height))
        if does is Does.QUIT:
            return False
        if does is Does.LOOK:
            self.look()
            self.restart()
        elif does is Does.EXPLAIN:
            chosen = screen.selected(frame, self.state)
            if chosen is not None:
                self._explain(chosen)
        elif does is Does.SAMPLE or (self.state.view is not view and self.state.filter):
            self.restart()
        return True

    def lines(self, width: int, height: int) -> list[screen.ScreenLine]:
        frame = self.frame()
        self.state = screen.follow(frame, self.state, width, height)
        return screen.render(frame, self.state, width, height)

    def _explain(self, chosen: Id) -> None:
        view = self._sampler.view
        told = Document()
        if chosen.cpu is not None:
            told = self._of_cpu(chosen.cpu, view)
        else:
            from virtirq.ui.verbs.explain import explained

            part = _part(chosen, view.plan)
            subjects = inputs.subjects(part)
            findings = [each for each in view.findings if each.subject in subjects]
            told = explained(view.snapshot, part, findings)
        lines = told.plain().splitlines() or ["nothing is known of it any more: r looks again"]
        self.state = replace(self.state, over=tuple(lines), scrolled=0)

    def _of_cpu(self, cpu: int, view: Look) -> Document:
        document = Document()
        topology = view.snapshot.topology
        node = topology.node_of(cpu)
        sorts = [
            name
            for name, cpus in (("isolated", topology.isolated), ("nohz_full", topology.nohz_full))
            if cpu in cpus
        ]
        where = "" if node is None else f" of node {node}"
        document.line(f"CPU {cpu}{where}{''.join(f', {each}' for each in sorts)}")
        vcpus = ", ".join(self._sampler.vcpus.get(cpu, ())) or "none is pinned here"
        document.line(f"vCPUs: {vcpus}", indent=2)
        due = [each for each in self._sampler.watched if each.wanted and cpu in each.wanted]
        document.line(f"{counted(len(due), 'interrupt')} should be here:", indent=2)
        for each in due:
            document.line(f"IRQ {each.irq} {each.name} of {each.guest} {each.device}", indent=4)
        strangers = sorted(
            (each.delta[cpu], each.watched)
            for each in taken(self._before, self._after)
            if cpu in each.delta and cpu not in (each.watched.wanted or ())
        )
        were = "was" if len(strangers) == 1 else "were"
        document.line(f"{len(strangers)} that should not {were} taken here just now:", indent=2)
        for count, each in reversed(strangers):
            where = f"IRQ {each.irq} {each.name} of {each.guest} {each.device}"
            document.line(f"{count} of {where}", indent=4)
        return document


def _part(chosen: Id, plan: Plan) -> Plan:
    """The guest, device or interrupt that a row stands for."""

    def parts() -> Iterator[GuestPlan]:
        for guest in plan.guests:
            if guest.guest.name != chosen.guest:
                continue
            devices = [
                each
                for each in guest.devices
                if not chosen.device or str(each.device.address) == chosen.device
            ]
            if chosen.irq is not None:
                devices = [
                    replace(each, actions=tuple(a for a in each.actions if a.irq == chosen.irq))
                    for each in devices
                ]
            yield GuestPlan(guest.guest, tuple(devices))

    return Plan(tuple(parts()))
