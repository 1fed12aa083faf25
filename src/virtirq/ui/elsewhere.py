"""Another host's guests: what they ask for, without that host's interrupts."""

from __future__ import annotations

import argparse

from virtirq.control import cycle
from virtirq.errors import EXIT_OK
from virtirq.guests.libvirt import connection as libvirt
from virtirq.model import Gap, Guest, counted
from virtirq.ui import report, screens, settings_table
from virtirq.ui.document import Cell, Document
from virtirq.ui.output import show


def status(args: argparse.Namespace, uri: str) -> int:
    """The guests of another host: what they ask for, without that host's interrupts."""
    with libvirt.connected(uri) as connection:
        live = connection.guests(None)
    there = live.guests
    if args.guests:
        keys = {g.key for name in args.guests for g in cycle.called(name, there, globs=True)}
        there = tuple(guest for guest in there if guest.key in keys)
    document = Document()
    for guest in there:
        document.line(Cell(guest.name, "bold"), f"  {_vcpus(guest)}")
        document.table(settings_table.table(settings_table.rows_of(guest)))
        document.line()
    if not live.guests:
        document.line("no guest runs there")
    document.line(f"{uri} is another host: its interrupts are not read here; run virtirq there")
    screens.gap_lines(document, live.gaps)
    guests = [report.defined_json(guest, None) for guest in there]
    gaps = report.gaps_json([*live.gaps, Gap("interrupts", f"on another host: {uri}")])
    data = {"schema": report.SCHEMA, "guests": guests, "findings": [], "gaps": gaps}
    show(args, lambda: data, lambda: document)
    return EXIT_OK


def _vcpus(guest: Guest) -> str:
    pinned = [vcpu for vcpu in guest.vcpus if vcpu.cpus is not None]
    count = counted(len(guest.vcpus), "vCPU")
    if not pinned:
        return f"{count}, not pinned"
    return f"{count}: " + ", ".join(f"{each.index} on {each.cpus}" for each in pinned)
