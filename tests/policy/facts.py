"""Makes hosts, guests and interrupts for tests of policy: by hand, and at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from hypothesis import strategies as st

from virtirq.cpuset import CpuSet, union
from virtirq.model import (
    AUTO,
    NATIVE,
    Aimed,
    Directive,
    Guest,
    GuestDevice,
    Interrupt,
    InterruptKind,
    Node,
    PciAddress,
    PciDevice,
    Plan,
    Snapshot,
    Spread,
    Topology,
    Vcpu,
    Word,
)
from virtirq.policy.config import Config, Rule

NIC = PciAddress.parse("0000:82:00.0")
GPU = PciAddress.parse("0000:83:00.0")
USB = PciAddress.parse("0000:84:00.0")


def cpus(text: str) -> CpuSet:
    return CpuSet.parse(text)


def host(
    online: str = "0-7",
    nodes: Sequence[str] = ("0-3", "4-7"),
    *,
    possible: str | None = None,
    isolated: str = "",
    nohz_full: str = "",
) -> Topology:
    """Two nodes of four CPUs, unless told otherwise; `nodes` may name offline CPUs."""
    return Topology(
        online=cpus(online),
        possible=cpus(possible or online),
        isolated=cpus(isolated),
        nohz_full=cpus(nohz_full),
        nodes={number: Node(number, cpus(each)) for number, each in enumerate(nodes)},
    )


def function(address: PciAddress = NIC, node: int | None = 0, **more: object) -> PciDevice:
    """A network function that vfio-pci holds."""
    made = PciDevice(address, 0x8086, 0x1572, 0x020000, "vfio-pci", node)
    return replace(made, **more)  # type: ignore[arg-type]


def guest(
    name: str = "vm",
    pins: Sequence[str | None] = ("0", "1"),
    devices: Iterable[PciAddress | GuestDevice] = (NIC,),
    **more: object,
) -> Guest:
    """A guest whose vCPUs may run on `pins`, in order; None for a vCPU that is not pinned."""
    made = Guest(
        name,
        "test",
        vcpus=tuple(
            Vcpu(index, None if pin is None else cpus(pin)) for index, pin in enumerate(pins)
        ),
        devices=tuple(
            each if isinstance(each, GuestDevice) else GuestDevice(each, "hostdev")
            for each in devices
        ),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def msix(
    irq: int,
    vector: int,
    device: PciAddress = NIC,
    *,
    at: str | None = "0-7",
    on: str | None = "7",
    **more: object,
) -> Interrupt:
    """Vector `vector` of `device`, with affinity `at` and delivered to CPU `on`."""
    made = Interrupt(
        irq,
        device,
        InterruptKind.MSIX,
        vector,
        (f"vfio-msix[{vector}]({device})",),
        None if at is None else cpus(at),
        None if on is None else cpus(on),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def intx(
    irq: int, device: PciAddress = NIC, *others: str, at: str = "0-7", on: str | None = "7"
) -> Interrupt:
    """The INTx line of `device`, with the actions `others` on it too."""
    return Interrupt(
        irq,
        device,
        InterruptKind.INTX,
        None,
        (*others, intx_action(device)),
        cpus(at),
        None if on is None else cpus(on),
    )


def intx_action(device: PciAddress) -> str:
    return f"vfio-intx({device})"


def snapshot(
    topology: Topology | None = None,
    pci: Iterable[PciDevice] | None = None,
    interrupts: Iterable[Interrupt] = (),
    guests: Iterable[Guest] | None = None,
    **more: object,
) -> Snapshot:
    """The host of `host()` with the guest of `guest()`, whose device is that of `function()`."""
    made = Snapshot(
        topology=topology or host(),
        pci={each.address: each for each in ([function()] if pci is None else pci)},
        interrupts=tuple(interrupts),
        guests=tuple([guest()] if guests is None else guests),
    )
    return replace(made, **more)  # type: ignore[arg-type]


def moved(interrupts: Iterable[Interrupt], places: Mapping[int, CpuSet]) -> tuple[Interrupt, ...]:
    """The interrupts, with the IRQs of `places` having that affinity and delivered within it."""
    return tuple(
        replace(each, affinity=places[each.irq], effective=CpuSet([places[each.irq].first()]))
        if each.irq in places
        else each
        for each in interrupts
    )


def carried_out(before: Snapshot, plan: Plan) -> Snapshot:
    """What the host looks like once a kernel has taken every pin of the plan."""
    places = {pin.irq: pin.after for pin in plan.pins}
    return replace(before, interrupts=moved(before.interrupts, places))


# Random hosts -----------------------------------------------------------------------------------

_NUMBERS = [*range(9), 31, 32, 63, 64, 65, 127, 128, 300, 8191]
_FOREIGN = ("ahci[0000:00:17.0]", "xhci_hcd", "vfio-intx(0000:ff:1f.7)", "vfio-intx(?)")


def subsets(of: Iterable[int], *, least: Literal[0, 1] = 0) -> st.SearchStrategy[CpuSet]:
    """Sets of the CPUs `of`; one drawn number each, which is quicker than drawing each member."""
    them = sorted(of)
    return st.integers(2**least - 1, 2 ** len(them) - 1).map(
        lambda bits: CpuSet(cpu for place, cpu in enumerate(them) if bits >> place & 1)
    )


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Sparse CPU numbers, some offline, some isolated or nohz_full, on one to three nodes."""
    possible = draw(subsets(_NUMBERS, least=1))
    online = draw(subsets(possible, least=1))
    of_node, rest = [], possible
    for _ in range(draw(st.integers(0, 2))):
        of_node.append(draw(subsets(rest)) if rest else CpuSet())
        rest -= of_node[-1]
    of_node += [rest] if draw(st.booleans()) else []
    reserved = st.one_of(st.just(CpuSet()), subsets(possible))
    return Topology(
        online=online,
        possible=possible,
        isolated=draw(reserved),
        nohz_full=draw(reserved),
        nodes={number: Node(number, each) for number, each in enumerate(of_node)},
    )


def directives(of: Iterable[int]) -> st.SearchStrategy[Directive]:
    words = st.sampled_from([AUTO, NATIVE, Directive(Word.EMULATOR), Directive(Word.LOCAL)])
    return st.one_of(words, subsets(of, least=1).map(lambda them: Directive(None, them)))


def configs(of: Iterable[int] = tuple(_NUMBERS)) -> st.SearchStrategy[Config]:
    """Configurations whose rules can meet the guests and devices of `snapshots()`."""
    spreads = st.none() | st.sampled_from(Spread)
    rules = st.builds(
        Rule,
        directives(of),
        guest=st.none() | st.sampled_from(["vm*", "vm1", "[!v]*"]),
        device=st.none() | st.sampled_from(["8086:*", "*:1572", "10de:*"]),
        class_=st.none() | st.sampled_from(["network", "0200", "02", "*", "display"]),
        driver=st.none() | st.sampled_from(["vfio-pci", "*"]),
        node=st.none() | st.integers(-1, 2),
        spread=spreads,
    )
    return st.builds(
        Config, directives(of), spread=spreads, rules=st.lists(rules, max_size=2).map(tuple)
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Hosts with guests, devices and interrupts in every state that a reader can report."""
    topology = draw(topologies())
    everywhere = sorted({*topology.possible, 2, 64})
    addresses = [PciAddress(0, 0x82, 0, number) for number in range(draw(st.integers(1, 5)))]
    pci = {
        each: PciDevice(
            each,
            draw(st.sampled_from([None, 0x8086, 0x10DE])),
            0x1572,
            draw(st.sampled_from([None, 0x020000, 0x030000])),
            draw(st.sampled_from([None, "vfio-pci", "ice"])),
            draw(st.sampled_from([None, -1, 0, 1, 2])),
            draw(st.none() | subsets(topology.possible)),
        )
        for each in addresses
        if draw(st.integers(0, 7))
    }
    count = draw(st.integers(1, 3))
    setting = st.one_of(st.none(), st.none(), directives(everywhere))
    # Mostly one guest names a device, at times another does too.
    holders = {each: {draw(st.integers(0, 2)), draw(st.integers(0, 12))} for each in addresses}
    guests = tuple(
        Guest(
            f"vm{number}",
            "test",
            uuid=draw(st.sampled_from([None, f"uuid-{9 - number}"])),
            vcpus=tuple(
                Vcpu(index, draw(st.none() | subsets(everywhere)))
                for index in range(draw(st.integers(0, 5)))
            ),
            emulator=draw(st.none() | subsets(everywhere)),
            devices=tuple(
                GuestDevice(each, "hostdev", directive=draw(setting))
                for each in addresses
                if number in {holder % count if holder < 6 else None for holder in holders[each]}
            ),
            directive=draw(setting),
        )
        for number in range(count)
    )
    return Snapshot(
        topology, pci=pci, interrupts=draw(_interrupts(addresses, topology)), guests=guests
    )


def aims(state: Snapshot) -> st.SearchStrategy[dict[PciAddress, dict[int, Aimed]]]:
    """Guests' own choices for the vectors of these devices: some sensible, some anything at all."""
    numbers = st.integers(0, 5) | st.integers(-1, 2**40)
    choices = st.builds(Aimed, numbers) | st.builds(Aimed, st.none(), st.sampled_from(["", "why"]))
    devices = [device.address for guest in state.guests for device in guest.devices]
    vectors = st.dictionaries(st.integers(0, 9) | st.integers(-1, 4096), choices, max_size=8)
    return st.dictionaries(st.sampled_from([*devices, NIC, USB]), vectors, max_size=6)


@st.composite
def _interrupts(
    draw: st.DrawFn, addresses: Sequence[PciAddress], topology: Topology
) -> tuple[Interrupt, ...]:
    lines: dict[int, list[PciAddress]] = {}
    found = []
    places: dict[int, tuple[CpuSet | None, CpuSet | None]] = {}

    def place() -> tuple[CpuSet | None, CpuSet | None]:
        affinity = draw(st.none() | subsets(topology.possible, least=1))
        return affinity, draw(st.none() | subsets(topology.online, least=1))

    for place_, address in enumerate(addresses):
        kind = draw(st.sampled_from([*InterruptKind, InterruptKind.INTX]))
        if kind is InterruptKind.INTX:
            lines.setdefault(draw(st.sampled_from([16, 16, 17])), []).append(address)
            continue
        numbers = draw(st.lists(st.integers(0, 9), max_size=6, unique=True))
        for number in sorted(numbers):
            name = f"vfio-{kind.value}[{number}]({address})"
            actions = draw(st.sampled_from([(name,)] * 5 + [None, (), ("ice-q0",)]))
            affinity, effective = place()
            known = number if actions and actions[0] == name else None
            settable = draw(st.sampled_from([None, True, True, False]))
            irq = 100 + 20 * place_ + number
            found.append(
                Interrupt(
                    irq, address, kind, known, actions, affinity, effective, settable=settable
                )
            )
    for irq, sharers in lines.items():
        foreign = draw(st.sampled_from([None] * 6 + list(_FOREIGN)))
        names = (*map(intx_action, sharers), *([foreign] if foreign else []))
        readable = draw(st.integers(0, 5))
        places[irq] = place()
        found += [
            Interrupt(
                irq,
                address,
                InterruptKind.INTX,
                None,
                tuple(draw(st.permutations(names))) if readable else None,
                *places[irq],
            )
            for address in sharers
        ]
    return tuple(found)


def big_host(*, sockets: int = 8, guests: int = 200, vectors: int = 16_384) -> Snapshot:
    """512 CPUs, and guests of a few pinned vCPUs or of a shared pool, with many vectors."""
    size = 64
    nodes = {
        number: Node(number, CpuSet.span(number * size, number * size + size - 1))
        for number in range(sockets)
    }
    everything = union(node.cpus for node in nodes.values())
    pci, interrupts, made = {}, [], []
    each = vectors // guests
    for number in range(guests):
        node = number % sockets
        address = PciAddress(0, 0x40 + number // 64, number // 8 % 8, number % 8)
        pci[address] = function(address, node)
        first = node * size + number // sockets * 2 % size
        pool = nodes[node].cpus if number % 3 == 0 else None
        made.append(
            Guest(
                f"vm{number:03d}",
                "test",
                vcpus=tuple(Vcpu(i, pool or CpuSet([first + i % 2])) for i in range(16)),
                devices=(GuestDevice(address, "hostdev"),),
            )
        )
        share = each + (number < vectors - each * guests)
        interrupts += [
            msix(1000 + number * 200 + vector, vector, address, at=str(everything), on="0")
            for vector in range(share)
        ]
    return snapshot(Topology(everything, everything, nodes=nodes), pci.values(), interrupts, made)
