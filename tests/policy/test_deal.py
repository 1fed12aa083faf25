"""How vectors are dealt: in order from where a device's deal begins, and evenly over a guest."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.facts import carried_out, cpus, function, guest, host, msix, snapshot
from virtirq.cpuset import CpuSet
from virtirq.model import (
    Guest,
    Interrupt,
    Keep,
    Node,
    PciAddress,
    Pin,
    Snapshot,
    Topology,
    by_device,
)
from virtirq.policy.config import Config
from virtirq.policy.deal import Deal, Seat
from virtirq.policy.plan import Desired, plan

WIDE = host("0-63", ("0-31", "32-63"))


def each_on(text: str) -> tuple[Seat, ...]:
    return tuple(Seat(CpuSet([cpu]), number) for number, cpu in enumerate(cpus(text)))


def vf(number: int, bus: int = 0x41) -> PciAddress:
    return PciAddress(0, bus + (number >> 8), number >> 3 & 31, number & 7)


def test_in_order_from_where_it_begins() -> None:
    deal = Deal(each_on("4-7"))
    assert [deal(order, 2)[1] for order in range(6)] == [6, 7, 4, 5, 6, 7]
    assert [deal(order)[1] for order in range(4)] == [4, 5, 6, 7]
    pool = Deal((Seat(cpus("4-7"), 0), Seat(cpus("4-7"), 1)))
    assert [pool(order, 1)[1] for order in range(5)] == [5, 6, 7, 4, 5]
    assert [pool(order, 1)[0].vcpu for order in range(3)] == [1, 0, 1]


@pytest.mark.parametrize(
    ("orders", "load", "start"),
    [
        (range(2), {}, 0),
        (range(2), {4: 1, 5: 1}, 2),
        (range(2), {4: 1, 5: 1, 6: 1, 7: 1}, 0),
        (range(3), {4: 1}, 1),
        (range(3), {4: 1, 5: 1}, 2),  # over the end, and on from the start
        (range(1), {4: 1, 6: 1}, 1),
        (range(1), {4: 2, 5: 1, 6: 2, 7: 2}, 1),
        (range(4), {5: 9}, 2),
        (range(9), {4: 1}, 1),  # twice around, and one more
        ([3], {}, 0),
        ([3], {7: 1}, 1),
        ([0, 2], {4: 1}, 1),
    ],
)
def test_it_begins_where_it_is_emptiest(
    orders: list[int], load: dict[int, int], start: int
) -> None:
    assert Deal(each_on("4-7")).begin(orders, load) == start


@pytest.mark.parametrize(
    ("places", "start"),
    [
        ({0: "4", 1: "5"}, 0),
        ({0: "6", 1: "7", 2: "4"}, 2),
        ({1: "4"}, 3),
        ({0: "6", 1: "0-63", 2: "0-63"}, 2),  # two that are new
        ({0: "0-63"}, None),
        ({0: "9"}, None),  # elsewhere
        ({0: "4", 1: "4", 2: "4", 3: "4"}, None),  # someone had another idea
        ({0: "5", 1: "7"}, 1),
        ({}, None),
    ],
)
def test_what_is_in_place_says_where_it_began(places: dict[int, str], start: int | None) -> None:
    found = Deal(each_on("4-7")).found({order: cpus(each) for order, each in places.items()})
    assert found == start


def holding(counts: list[int], *, on: str = "4-11", name: str = "vm", bus: int = 0x41) -> Guest:
    return guest(name, [str(cpu) for cpu in cpus(on)], [vf(at, bus) for at in range(len(counts))])


def interrupts(counts: list[int], bus: int = 0x41) -> list[Interrupt]:
    """So many vectors for each device, wherever the kernel put them."""
    base = bus * 1000000
    return [
        msix(base + 1000 * at + vector, vector, vf(at, bus), at="0-63", on="63")
        for at, count in enumerate(counts)
        for vector in range(count)
    ]


def planned(counts: list[int], on: str = "4-11", topology: Topology = WIDE) -> Snapshot:
    return snapshot(
        topology,
        [function(vf(at), node=-1) for at in range(len(counts))],
        interrupts(counts),
        [holding(counts, on=on)],
    )


def load_of(state: Snapshot) -> Counter[int]:
    """How many vectors each CPU has, once they are where they should be."""
    after = carried_out(state, plan(state, Config()))
    return Counter(each.affinity.first() for each in after.interrupts if each.affinity)


@pytest.mark.parametrize("pooled", [False, True])
@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(1, 12))
def test_from_nothing_the_load_is_even(pooled: bool, counts: list[int], vcpus: int) -> None:
    """Whatever devices a guest has: no CPU of it has two vectors more than another."""
    on = f"4-{3 + vcpus}"
    state = planned(counts, on)
    if pooled:
        state = replace(state, guests=(guest(pins=[on] * vcpus, devices=state.guests[0].devices),))
    load = load_of(state)
    assert set(load) <= set(cpus(on))
    shares = [load[cpu] for cpu in cpus(on)]
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("devices", "each"), [(24, 2), (56, 1), (300, 1), (7, 9), (3, 257), (128, 1)]
)
def test_many_devices_use_all_of_the_guest(devices: int, each: int) -> None:
    """GPUs and NVMe of an HPC guest, and hundreds of VFs with one vector each."""
    load = load_of(planned([each] * devices, "4-59"))
    total = devices * each
    assert sum(load.values()) == total
    assert len(load) == min(56, total)
    assert max(load.values()) == -(-total // 56)


def test_devices_of_two_nodes_keep_to_them() -> None:
    """24 devices with two vectors on two nodes of a guest that spans both."""
    devices = [function(vf(at), node=at % 2) for at in range(24)]
    state = snapshot(WIDE, devices, interrupts([2] * 24), [holding([2] * 24, on="4-31,36-63")])
    load = load_of(state)
    assert set(load.values()) == {1}
    assert len([cpu for cpu in load if cpu < 32]) == len([cpu for cpu in load if cpu > 31]) == 24


def test_who_has_least_choice_chooses_first() -> None:
    """A device on a node of the guest's, and one that may use all of it."""
    nodes = {number: Node(number, cpus(f"{4 * number}-{4 * number + 3}")) for number in (0, 1)}
    topology = replace(host("0-7"), nodes=nodes)
    state = snapshot(
        topology,
        [function(vf(0), node=-1), function(vf(1), node=0)],
        interrupts([4, 4]),
        [holding([4, 4], on="0-7")],
    )
    assert set(load_of(state).values()) == {1}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["device", "vector", "guest", "remove", "unload"]), st.integers(0, 9)
    ),
    max_size=8,
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(1, 8), STEPS)
def test_what_is_in_place_stays(
    counts: list[int], vcpus: int, steps: list[tuple[str, int]]
) -> None:
    """Devices, vectors and guests come and go: nothing that is there moves for that."""
    on = f"4-{3 + vcpus}"
    state = planned(counts, on)
    state = carried_out(state, plan(state, Config()))
    for number, (step, which) in enumerate(steps):
        before = {each.key: each.affinity for each in state.interrupts}
        (it, *others), them = state.guests, list(state.interrupts)
        of = it.devices[which % len(it.devices)] if it.devices else None
        if step == "device" or of is None:
            address = vf(which, 0x50 + number)
            it = replace(it, devices=(*it.devices, replace(guest().devices[0], address=address)))
            state = replace(state, pci={**state.pci, address: function(address, node=-1)})
            them += [
                msix(90000 + 100 * number + vector, vector, address, at="0-63", on="63")
                for vector in range(which + 1)
            ]
        elif step == "vector":
            vector = sum(each.device == of.address for each in them)
            irq = 80000 + number
            them.append(msix(irq, vector, of.address, at="0-63", on="63"))
        elif step == "guest":
            others.append(guest(f"other{number}", [str(4 + which), on], devices=()))
        elif step == "remove":
            it = replace(it, devices=tuple(each for each in it.devices if each is not of))
            them = [each for each in them if each.device != of.address]
        else:
            last = (
                max((e.vector or 0) for e in them if e.device == of.address)
                if any(e.device == of.address for e in them)
                else None
            )
            them = [e for e in them if e.device != of.address or e.vector != last]
        state = replace(state, guests=(it, *others), interrupts=tuple(them))
        made = plan(state, Config())
        moved = {pin.key for pin in made.pins} & before.keys()
        assert not moved
        state = carried_out(state, made)
        assert not plan(state, Config()).pins


def test_a_new_device_takes_the_emptiest_and_a_removed_one_leaves_a_gap() -> None:
    state = planned([2, 2, 2], "4-9")
    state = carried_out(state, plan(state, Config()))
    (it,) = state.guests
    less = replace(
        state,
        guests=(replace(it, devices=(it.devices[0], it.devices[2])),),
        interrupts=tuple(each for each in state.interrupts if each.device != vf(1)),
    )
    assert not plan(less, Config()).pins
    new = vf(7)
    more = replace(
        less,
        guests=(
            replace(it, devices=(*less.guests[0].devices, replace(it.devices[1], address=new))),
        ),
        pci={**less.pci, new: function(new, node=-1)},
        interrupts=(*less.interrupts, msix(900, 0, new), msix(901, 1, new)),
    )
    assert [str(pin.after) for pin in plan(more, Config()).pins] == ["6", "7"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=8),
    st.integers(1, 8),
    st.lists(st.integers(0, 7), min_size=1, max_size=30),
)
def test_from_the_event_alone_as_from_the_whole(
    counts: list[int], vcpus: int, events: list[int]
) -> None:
    """Vectors appear one at a time: what the event says is what a plan of the whole host says."""
    on = f"4-{3 + vcpus}"
    state = planned(counts, on)
    state = carried_out(state, plan(state, Config()))
    kept = Desired.of_snapshot(state, Config())
    kept.deal(by_device(state.interrupts))
    for number, event in enumerate(events):
        device = vf(event % len(counts))
        vector = sum(each.device == device for each in state.interrupts)
        irq = 70000 + number
        new = msix(irq, vector, device, at="0-63", on="63")
        wanted = kept.of(device)
        assert wanted is not None
        told = wanted.appeared(replace(new, irq=0, affinity=None, effective=None))
        state = replace(state, interrupts=(*state.interrupts, new))
        made = plan(state, Config())
        actions = {each.irq: each for each in made.actions}
        assert isinstance(told, Pin)
        action = actions.pop(irq)
        assert isinstance(action, Pin)
        assert (action.after, action.follows) == (told.after, told.follows)
        assert action.alternatives == told.alternatives
        assert all(isinstance(each, Keep) for each in actions.values())
        state = carried_out(state, made)


def test_what_was_decided_is_kept_through_changes_of_the_guest() -> None:
    """A device's deal is its guest's run's: another vCPU, directive or device leaves it alone."""
    state = planned([1, 1, 1], "4-11")
    (it,) = state.guests
    it = replace(it, pid=7)
    kept = Desired(state.topology, Config())
    kept.change([it], pci=state.pci)
    kept.deal(by_device(state.interrupts))
    assert [kept.dealt[vf(at)].start for at in range(3)] == [0, 1, 2]
    kept.change([replace(it, devices=it.devices[1:])], pci=state.pci)
    assert vf(0) not in kept.dealt or kept.dealt[vf(0)].start is None
    assert [kept.dealt[vf(at)].start for at in (1, 2)] == [1, 2]
    kept.change([it], pci=state.pci)
    found = kept.of(vf(0))
    assert found is not None
    assert isinstance(told := found.appeared(interrupts([1])[0]), Pin)
    assert str(told.after) == "7"  # next to what is there
    # A new run of the guest begins anew.
    kept.change([replace(it, pid=8)], pci=state.pci)
    assert {each.start for each in kept.dealt.values()} == {None}
