"""``virtirq place``: where a guest could run next to its devices, and pinning it there."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from virtirq.control import cycle, libvirt_pinning, libvirt_settings
from virtirq.cpuset import CpuSet
from virtirq.errors import UsageError
from virtirq.guests.libvirt import connection as libvirt
from virtirq.model import Gap, Guest, Snapshot
from virtirq.policy.place import Placement, place
from virtirq.ui import arguments, inputs, report, screens
from virtirq.ui.document import Cell, Document, Table
from virtirq.ui.output import Shown, show_all
from virtirq.ui.verbs import Verb


def run(args: argparse.Namespace) -> int:
    uri = inputs.uri_of(args) if args.apply else ""
    if (args.live or args.config_) and not args.apply:
        raise UsageError(
            "--live and --config say what --apply changes: add that, or leave them out"
        )
    given = inputs.gather(args, defined=True)
    guests = (*given.guests, *given.found.stopped)
    snapshot = cycle.observe(given.fs, guests, gaps=given.found.gaps)
    with inputs.naming(given):
        proposal = propose(snapshot, args.guest, args.node)
    done, notes = carry_out(uri, proposal, args) if args.apply else ([], [])
    return show_all(args, shown(proposal, given.found.gaps, done, notes))


def propose(snapshot: Snapshot, name: str, node: int | None) -> Placement:
    """For the guest of this name, UUID or id. Raises UnknownGuestError, NoRoomError, UsageError."""
    guest = cycle.named(name, snapshot.guests)
    if guest.kind != "machine":
        raise UsageError(f"{guest.name} has no vCPUs", hint="place it by its own options")
    return place(snapshot, guest, node)


def carry_out(
    uri: str, placement: Placement, args: argparse.Namespace
) -> tuple[Sequence[str], Sequence[str]]:
    """Pin the guest as proposed; where that was done, and what is to be known of it."""
    guest = placement.guest
    if guest.source != libvirt.SOURCE:
        raise UsageError(
            f"{guest.name} is not libvirt's: virtirq pins no threads itself",
            hint="use what has started it, or taskset(1)",
        )
    with libvirt.connected(uri, write=True) as connection:
        domain = connection.find(guest.uuid or guest.name)
        affect = libvirt_settings.affected(connection, domain, arguments.affect_of(args))
        notes = libvirt_pinning.place(connection, domain, placement, affect)
    return affect.words, notes


def shown(
    placement: Placement, gaps: Iterable[Gap], done: Sequence[str], notes: Sequence[str]
) -> Shown:
    """The proposal, and where it was carried out (nowhere: it was not)."""
    guest = placement.guest
    told = (*placement.notes, *notes)
    document = Document()
    count = screens.plural(len(guest.vcpus), "vCPU")
    where = f"with {placement.near} of its {placement.devices} devices" if placement.devices else ""
    there = "" if placement.moves else ": they are there already"
    document.line(
        Cell(guest.name, "bold"), f"  {count} on node {placement.node} {where}".rstrip() + there
    )
    rows = [
        (f"vCPU {vcpu.index}", _any(vcpu.cpus), str(placement.vcpus[vcpu.index]))
        for vcpu in guest.vcpus
    ]
    rows.append(("emulator", _any(guest.emulator), _any(placement.emulator or guest.emulator)))
    rows.append(("memory", _nodes(guest), f"node {placement.node}, from its next start on"))
    document.table(
        Table(
            ("", "NOW", "THEN"),
            tuple(tuple(Cell(each) for each in row) for row in rows),
            indent=2,
        )
    )
    for note in told:
        document.line(Cell(f"note: {note}", "warn"), indent=2)
    if done:
        document.line(f"pinned so: {', '.join(done)}")
        document.line(Cell(f"hint: run 'virtirq apply {guest.name}', unless a daemon runs", "dim"))
    elif guest.source == libvirt.SOURCE:
        document.line(
            Cell(f"hint: 'virtirq place {guest.name} --apply' pins it so, through libvirt", "dim")
        )
    screens.gap_lines(document, gaps)
    data = {
        "schema": report.SCHEMA,
        "guest": guest.name,
        "node": placement.node,
        "devices_near": placement.near,
        "devices": placement.devices,
        "vcpus": [
            {
                "vcpu": vcpu.index,
                "before": None if vcpu.cpus is None else str(vcpu.cpus),
                "after": str(placement.vcpus[vcpu.index]),
            }
            for vcpu in guest.vcpus
        ],
        "emulator": {
            "before": None if guest.emulator is None else str(guest.emulator),
            "after": None if placement.emulator is None else str(placement.emulator),
        },
        "memory_nodes": {
            "before": None if guest.memory_nodes is None else sorted(guest.memory_nodes),
            "after": [placement.node],
        },
        "notes": list(told),
        "applied": list(done),
        "gaps": report.gaps_json(gaps),
    }
    return Shown(data, document)


def _any(cpus: CpuSet | None) -> str:
    return "any" if cpus is None else str(cpus)


def _nodes(guest: Guest) -> str:
    return "any node" if guest.memory_nodes is None else f"node {CpuSet(guest.memory_nodes)}"


def _node(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 5):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not the number of a node")
    return int(text)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guest(parser)
    parser.add_argument(
        "--node", metavar="N", type=_node, help="on this NUMA node, not that of most of its devices"
    )
    parser.add_argument("--apply", action="store_true", help="pin it so, through libvirt")
    arguments.affected(
        parser,
        "with --apply: the running guest, and not its definition",
        "with --apply: its definition, and not the running guest",
    )


VERB = Verb(
    run,
    "show where a guest could run next to its devices, or pin it there",
    "It is given CPUs that no other guest's vCPUs, running or not, are pinned to.",
    _arguments,
    own_config=True,
)
