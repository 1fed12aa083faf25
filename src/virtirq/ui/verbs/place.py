"""``virtirq place``: where a guest could run next to its devices, and pinning it there."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from virtirq.control import cycle, libvirt_pinning, libvirt_settings
from virtirq.cpuset import CpuSet
from virtirq.errors import CpuSetError, UsageError
from virtirq.guests.libvirt import connection as libvirt
from virtirq.model import Gap, Snapshot, counted
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
    snapshot = cycle.observe(given.fs, guests, gaps=given.found.gaps, counts=False)
    with inputs.naming(given):
        proposal = propose(snapshot, args.guest, args.node, args.cpus)
    # Its definition may say something else than where it runs.
    # Asked for one of the two by name, libvirt is asked: it may not run, or be defined otherwise.
    todo = args.apply and (proposal.changes or args.config_ or args.live)
    done, notes = carry_out(uri, proposal, args) if todo else ([], [])
    return show_all(args, shown(args, proposal, given.found.gaps, done, notes))


def _options(args: argparse.Namespace) -> list[str]:
    """What narrows the choice, as it is written on the command line."""
    node = [] if args.node is None else ["--node", str(args.node)]
    return node + ([] if args.cpus is None else ["--cpus", str(args.cpus)])


def propose(
    snapshot: Snapshot, name: str, node: int | None, cpus: CpuSet | None = None
) -> Placement:
    """For the guest of this name, UUID or id. Raises UnknownGuestError, NoRoomError, UsageError."""
    guest = cycle.named(name, snapshot.guests)
    if guest.kind != "machine":
        raise UsageError(f"{guest.name} has no vCPUs", hint="place it by its own options")
    return place(snapshot, guest, node, cpus)


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
    args: argparse.Namespace,
    placement: Placement,
    gaps: Iterable[Gap],
    done: Sequence[str],
    notes: Sequence[str],
) -> Shown:
    """The proposal, and where it was carried out (nowhere: it was not)."""
    guest = placement.guest
    told = (*placement.notes, *notes)
    document = Document()
    count = counted(len(guest.vcpus), "vCPU")
    where = "" if placement.node is None else f" on node {placement.node}"
    if placement.devices and placement.node is not None:
        where += f" with {placement.near} of its {placement.devices} devices"
    there = "" if placement.moves else ": they are there already"
    document.line(Cell(guest.name, "bold"), f"  {count}{where}{there}")
    rows = [
        (f"vCPU {vcpu.index}", _any(vcpu.cpus), str(placement.vcpus[vcpu.index]))
        for vcpu in guest.vcpus
    ]
    rows.append(("emulator", _any(guest.emulator), _any(placement.emulator or guest.emulator)))
    now = _nodes(guest.memory_nodes)
    memory = None if placement.memory is None else frozenset([placement.memory])
    if memory is not None and memory != guest.memory_nodes:
        rows.append(("memory", now, f"{_nodes(memory)}, from its next start on"))
    else:
        rows.append(("memory", now, now))
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
    command = None
    if "live" in done:
        command = arguments.again(args, "apply", guest.name)
    elif not done and placement.changes and guest.source == libvirt.SOURCE:
        command = arguments.again(args, "place", guest.name, *_options(args), "--apply")
    if "live" in done:
        document.line(Cell(f"hint: run '{command}', unless a daemon runs", "dim"))
    elif done and guest.domain_id is None:
        document.line(f"{guest.name} does not run: it counts from its next start on")
    elif done:
        document.line("it counts from the guest's next start on")
    elif not placement.changes:
        document.line("nothing to change")
    elif command is not None:
        document.line(Cell(f"hint: '{command}' pins it so, through libvirt", "dim"))
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
            "after": None if placement.memory is None else [placement.memory],
        },
        "notes": list(told),
        "applied": list(done),
        "next": command,
        "gaps": report.gaps_json(gaps),
    }
    return Shown(data, document)


def _any(cpus: CpuSet | None) -> str:
    return "any" if cpus is None else str(cpus)


def _nodes(nodes: frozenset[int] | None) -> str:
    return "any node" if nodes is None else f"node {CpuSet(nodes)}"


def _cpus(text: str) -> CpuSet:
    try:
        found = CpuSet.parse(text)
    except CpuSetError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r:.40} leaves no CPU")
    return found


def _node(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 5):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not the number of a node")
    return int(text)


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.guest(parser)
    parser.add_argument(
        "--node", metavar="N", type=_node, help="on this NUMA node, not that of most of its devices"
    )
    parser.add_argument(
        "--cpus", metavar="LIST", type=_cpus, help="on these CPUs, such as 0-7,16-23"
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
    own=("--config",),
)
