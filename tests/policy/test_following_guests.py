"""Plans that follow a guest's own choice: where they do, where not, and never beyond its CPUs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.facts import (
    GPU,
    NIC,
    aims,
    carried_out,
    configs,
    cpus,
    function,
    guest,
    host,
    intx,
    msix,
    snapshot,
    snapshots,
)
from virtirq.cpuset import CpuSet, union
from virtirq.model import (
    Action,
    Aimed,
    Directive,
    Follows,
    Guest,
    Interrupt,
    Pin,
    Plan,
    Snapshot,
    Spread,
    Vcpu,
    Word,
    by_device,
)
from virtirq.policy.config import Config
from virtirq.policy.deal import Deal, Seat
from virtirq.policy.device import _SAID
from virtirq.policy.plan import Desired, plan
from virtirq.policy.target import Taken, target_of

SEVERAL: Final = Aimed(None, "it is for any of 2 vCPUs")


def planned(
    aimed: Mapping[int, Aimed] | None,
    them: list[Interrupt] | None = None,
    config: Config | None = None,
    **more: Any,
) -> list[Action]:
    """What becomes of the NIC's vectors 0, 1, … where the guest aims them like this."""
    interrupts = [msix(40 + n, n, on="7") for n in range(4)] if them is None else them
    state = snapshot(interrupts=interrupts, aimed={NIC: aimed} if aimed else {}, **more)
    return list(plan(state, config or Config()).actions)


def places(actions: list[Action]) -> list[str]:
    return [str(each.after if isinstance(each, Pin) else each.wanted) for each in actions]


FAR: Final = guest(pins=("0", "1", "4", "5-6"))
"""Two vCPUs on the NIC's node and two on the other."""


# Where it goes ----------------------------------------------------------------------------------


def test_a_vector_goes_to_the_vcpu_that_the_guest_aims_it_at() -> None:
    spread = planned(None, guests=[FAR])
    assert places(spread) == ["0", "1", "0", "1"]
    assert [each.follows for each in spread] == [Follows(0), Follows(1), Follows(0), Follows(1)]
    aimed = {0: Aimed(1), 1: Aimed(1), 2: Aimed(2)}
    followed = planned(aimed, guests=[FAR])
    assert places(followed) == ["1", "1", "4", "1"]
    assert [each.follows for each in followed] == [
        *(Follows(1, chosen=True), Follows(1, chosen=True), Follows(2, chosen=True), Follows(1)),
    ]


def test_it_says_why() -> None:
    told = [
        each.reason.text for each in planned({0: Aimed(1), 1: SEVERAL, 2: Aimed(2)}, guests=[FAR])
    ]
    assert told == [
        "to CPU 1 of vCPU 1, where the guest aims it, from CPU 7 on node 1",
        "to CPU 1 of vCPU 1 (it is for any of 2 vCPUs), from CPU 7 on node 1",
        "to CPU 4 of vCPU 2, where the guest aims it, on the wrong node: 1, its device is on 0,"
        " from CPU 7 outside the target",
        "to CPU 1 of vCPU 1, from CPU 7 on node 1",
    ]
    (there,) = planned({0: Aimed(1)}, [msix(40, 0, at="1", on="1")])
    assert there.reason == ("in-place", "on CPU 1 of vCPU 1, where the guest aims it")


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (SEVERAL, " (it is for any of 2 vCPUs)"),
        (Aimed(None, "its address 0x0 is no interrupt's"), " (its address 0x0 is no interrupt's)"),
        (Aimed(None), ""),
        (Aimed(17), " (the guest aims it at vCPU 17, which has no CPU of those)"),
        (Aimed(-1), " (the guest aims it at vCPU -1, which has no CPU of those)"),
    ],
)
def test_without_one_vcpu_the_spread_rule_decides(choice: Aimed, why: str) -> None:
    (action,) = planned({1: choice}, [msix(40, 1, on="0")])
    assert places([action]) == ["1"]
    assert action.follows == Follows(1)
    assert action.reason == ("wrong-cpu", f"to CPU 1 of vCPU 1{why}, from CPU 0")


def test_a_vcpu_of_several_cpus_deals_its_vectors_over_them() -> None:
    pool = guest(pins=("4", "0-3"))
    them = [msix(40 + n, n) for n in range(16)]
    found = planned({n: Aimed(1) for n in range(16)}, them, guests=[pool])
    assert Counter(places(found)) == {"0": 4, "1": 4, "2": 4, "3": 4}
    for one in (0, 3, 9):  # the others have no say in it
        alone = planned({one: Aimed(1)}, [msix(40 + one, one)], guests=[pool])
        assert places(alone) == [places(found)[one]]
    pin = found[0]
    assert isinstance(pin, Pin)
    assert pin.alternatives[0] == cpus("0-3")
    assert (
        "another is dealt to it"
        in planned(
            {0: Aimed(1)}, [msix(40, 0, on=str((cpus("0-3") - pin.after).first()))], guests=[pool]
        )[0].reason.text
    )


def test_of_several_cpus_those_near_the_device_are_taken() -> None:
    pool = guest(pins=("0", "2-5"))
    them = [msix(40 + n, n) for n in range(4)]
    found = planned({n: Aimed(1) for n in range(4)}, them, guests=[pool])
    assert Counter(places(found)) == {"2": 2, "3": 2}


def test_devices_begin_at_different_cpus_of_a_vcpu() -> None:
    """Else the many small VFs of a host would all use the pool's first."""
    seat = Seat(cpus("0-7"), 0)
    first = {Deal([seat], place).within(seat, 0) for place in range(16)}
    assert len(first) > 4


def test_what_is_full_falls_back_to_the_guests_other_cpus() -> None:
    (pin,) = planned({0: Aimed(3)}, [msix(40, 0)], guests=[FAR])
    assert isinstance(pin, Pin)
    assert [str(each) for each in pin.alternatives] == ["5-6", "0-1", "0-1,4-6"]


def test_the_guest_changes_its_mind() -> None:
    state = snapshot(interrupts=[msix(40, 0)], guests=[FAR])
    made = Desired.of_snapshot(state, Config())
    found = by_device(state.interrupts)
    for aimed, there in (
        ({0: Aimed(2)}, "4"),
        ({}, "0"),
        ({0: Aimed(1)}, "1"),
        ({1: Aimed(2)}, "0"),
    ):
        made.follow(NIC, aimed)
        assert places(list(made.plan(found).actions)) == [there]
    made.follow(GPU, {0: Aimed(0)})  # nobody's: no matter


def test_whatever_a_guest_writes_nothing_grows_by_it() -> None:
    """The address that it writes is in what is said."""
    vector = msix(40, 0, on="7")
    desired = Desired.of_snapshot(snapshot(interrupts=[vector]), Config())
    device = desired.of(NIC)
    assert device is not None
    for address in range(3 * _SAID):
        desired.follow(NIC, {0: Aimed(None, f"its address {address:#x} is no interrupt's")})
        assert f"its address {address:#x} is" in device.decide(vector).reason.text
        assert len(device._told) <= _SAID


def test_a_vector_that_appears_is_followed_at_once() -> None:
    state = snapshot(guests=[FAR], aimed={NIC: {3: Aimed(2)}})
    aim = Desired.of_snapshot(state, Config()).of(NIC)
    assert aim is not None
    assert aim.follows
    pin = aim.appeared(msix(43, 3, at=None, on=None))
    assert isinstance(pin, Pin)
    assert (str(pin.after), pin.follows) == ("4", Follows(2, chosen=True))
    assert pin.reason.code == "new"
    assert pin.reason.text.startswith("to CPU 4 of vCPU 2, where the guest aims it")


# Never beyond what was asked for ----------------------------------------------------------------


def test_an_explicit_list_is_a_bound() -> None:
    asked = replace(FAR, directive=Directive.parse("1,4-5"))
    vector = Config(spread=Spread.VECTOR)
    aimed = {0: Aimed(0), 1: Aimed(1), 2: Aimed(2), 3: Aimed(3)}
    without = planned(None, config=vector, guests=[asked])
    followed = planned(aimed, config=vector, guests=[asked])
    assert places(followed) == [places(without)[0], "1", "4", "5"]
    assert [each.follows for each in followed] == [
        *(None, Follows(1, chosen=True), Follows(2, chosen=True), Follows(3, chosen=True)),
    ]


def test_vcpus_that_were_chosen_are_a_bound() -> None:
    asked = replace(FAR, directive=Directive(None, vcpus=cpus("0,2")))
    without = planned(None, guests=[asked])
    followed = planned({n: Aimed(n) for n in range(4)}, guests=[asked])
    assert places(followed) == ["0", places(without)[1], "4", places(without)[3]]


def test_offline_cpus_are_none() -> None:
    state: dict[str, Any] = {"topology": host("0-4"), "guests": [FAR]}
    them = [msix(40 + n, n, at="0-4", on="3") for n in range(4)]
    found = planned({n: Aimed(n) for n in range(4)}, them, **state)
    assert places(found) == ["0", "1", "4", places(planned(None, them, **state))[3]]
    half: dict[str, Any] = {"topology": host("0-5"), "guests": [FAR]}
    assert places(planned({3: Aimed(3)}, [msix(40, 3, on="1")], **half)) == ["5"]


def test_a_vcpu_that_nobody_pinned_is_not_followed() -> None:
    """It may run anywhere: there is no place to follow it to."""
    some = guest(pins=("0", None, "0-7"))
    for number in (1, 2):
        without = planned(None, guests=[some])
        assert places(planned({0: Aimed(number)}, guests=[some])) == places(without)
    isolated = host(isolated="4-7")
    (found,) = planned({0: Aimed(1)}, [msix(40, 0)], topology=isolated, guests=[some])
    assert cpus(places([found])[0]) <= cpus("0-3")


@pytest.mark.parametrize("word", [Word.NATIVE, Word.EMULATOR, Word.LOCAL])
def test_words_that_mean_no_vcpus(word: Word) -> None:
    asked = guest(pins=("0", "4"), emulator=cpus("2"), directive=Directive(word))
    aimed = {n: Aimed(1) for n in range(4)}
    without, followed = planned(None, guests=[asked]), planned(aimed, guests=[asked])
    assert followed == without
    aim = Desired.of_snapshot(snapshot(guests=[asked]), Config()).of(NIC)
    assert aim is not None
    assert not aim.follows


def test_a_mask_is_one_for_all() -> None:
    aimed = {n: Aimed(1) for n in range(4)}
    for config, asked in (
        (Config(spread=Spread.MASK), FAR),
        (Config(), replace(FAR, directive=Directive.parse("1,4-5"))),
    ):
        without = planned(None, config=config, guests=[asked])
        assert planned(aimed, config=config, guests=[asked]) == without
        aim = Desired.of_snapshot(snapshot(guests=[asked]), config).of(NIC)
        assert aim is not None
        assert not aim.follows


def test_a_line_is_not_aimed() -> None:
    aimed = {0: Aimed(1)}
    (found,) = planned(aimed, [intx(16)])
    assert (places([found]), found.follows) == (["0"], Follows(0))


def test_a_vector_whose_number_is_not_known_is_not_followed() -> None:
    nameless = [replace(msix(40 + n, n, actions=None), vector=None) for n in range(2)]
    assert places(planned({0: Aimed(1), 1: Aimed(0)}, nameless)) == ["0", "1"]


def test_a_device_of_two_guests_follows_the_one_that_decides() -> None:
    two = [guest("a", pins=("2",)), guest("b", pins=("3", "3"))]
    found = planned({0: Aimed(1), 1: Aimed(0)}, [msix(40, 0), msix(41, 1)], guests=two)
    assert places(found) == ["2", "2", "None", "None"]


def test_one_devices_choice_is_not_anothers() -> None:
    both = guest(pins=("0", "1"), devices=(NIC, GPU))
    state = snapshot(
        pci=[function(NIC), function(GPU)],
        interrupts=[msix(40, 0, NIC), msix(50, 0, GPU)],
        guests=[both],
        aimed={GPU: {0: Aimed(1)}},
    )
    assert places(list(plan(state, Config()).actions)) == ["0", "1"]


# For every guest --------------------------------------------------------------------------------


def wanted(made: Plan) -> dict[tuple[str, int, int], CpuSet | None]:
    """Where each interrupt should be, by guest, device and IRQ."""
    return {
        (each.guest.key, place, action.irq): (
            action.after if isinstance(action, Pin) else action.wanted
        )
        for each in made.guests
        for place, device in enumerate(each.devices)
        for action in device.actions
    }


def may_use(owner: Guest, directive: Directive, state: Snapshot) -> CpuSet:
    """The CPUs that are the guest's by what was asked for: told anew, in few words."""
    online = state.topology.online
    if directive.cpus:
        return directive.cpus & online
    pinned = [v.cpus for v in owner.vcpus if v.cpus is not None and not online <= v.cpus]
    if directive.word is not Word.AUTO or len(pinned) < len(owner.vcpus):
        return online
    return union(pinned) & online


@settings(max_examples=150)
@given(st.data(), snapshots(), configs())
def test_a_guest_only_chooses_among_its_own_cpus(
    data: st.DataObject, state: Snapshot, config: Config
) -> None:
    without = plan(state, config)
    state = replace(state, aimed=data.draw(aims(state)))
    made = plan(state, config)
    before, after = wanted(without), wanted(made)
    assert after.keys() == before.keys()
    for each, same in zip(made.guests, without.guests, strict=True):
        owners_cpus = {v.index: v.cpus for v in each.guest.vcpus}
        for place, (device, other) in enumerate(zip(each.devices, same.devices, strict=True)):
            assert device.target == other.target
            assert device.directive is not None
            bound = may_use(each.guest, device.directive, state)
            vectors = {
                each.irq: each.vector
                for each in state.interrupts
                if each.device == device.device.address
            }
            aimed = state.aimed.get(device.device.address, {})
            for action in device.actions:
                key = (each.guest.key, place, action.irq)
                there = after[key]
                assert (there is None) == (before[key] is None)
                if there is None:
                    continue
                assert device.target is not None
                assert there
                assert there <= device.target <= state.topology.online
                assert there <= bound
                vector = vectors[action.irq]
                choice = aimed.get(vector) if vector is not None else None
                vcpu = None if choice is None else choice.vcpu
                if vcpu not in owners_cpus:
                    assert there == before[key]
                if action.follows is not None and action.follows.chosen:
                    assert action.follows.vcpu == vcpu
                    own = owners_cpus[action.follows.vcpu]
                    assert own is None or there <= own
                elif there != before[key]:
                    raise AssertionError("moved without a reason")


@settings(max_examples=80)
@given(st.data(), snapshots(), configs())
def test_a_plan_that_follows_is_stable_and_of_no_order(
    data: st.DataObject, state: Snapshot, config: Config
) -> None:
    state = replace(state, aimed=data.draw(aims(state)))
    made = plan(state, config)
    assert plan(state, config) == made
    assert plan(carried_out(state, made), config).pins == ()
    turned = replace(
        state,
        interrupts=tuple(reversed(state.interrupts)),
        aimed={
            address: dict(reversed(list(each.items())))
            for address, each in reversed(list(state.aimed.items()))
        },
    )
    assert wanted(plan(turned, config)) == wanted(made)
    after = Desired.of_snapshot(replace(state, aimed={}), config)
    for address, each in state.aimed.items():
        after.follow(address, each)
    assert after.plan(by_device(state.interrupts)) == made


@settings(max_examples=60)
@given(snapshots(), configs())
def test_a_pinned_vcpu_gets_what_is_aimed_at_it(state: Snapshot, config: Config) -> None:
    """Whatever the device's node is, and whichever vCPU that is."""
    online = state.topology.online
    rng = random.Random(len(state.interrupts))
    for each in Desired.of_snapshot(state, config)._entries.values():
        owner, own = each.guest, each.devices
        pinned = [v for v in owner.vcpus if v.cpus and v.cpus & online and not online <= v.cpus]
        for aim in own:
            if not aim.follows or aim.asked.directive.word is not Word.AUTO or not pinned:
                continue
            chosen: Vcpu = rng.choice(pinned)
            aim.aimed = {0: Aimed(chosen.index)}
            pin = aim.appeared(msix(999, 0, aim.device.address, at=None, on=None))
            assert isinstance(pin, Pin)
            assert chosen.cpus is not None
            assert pin.after <= chosen.cpus & online
            assert pin.follows == Follows(chosen.index, chosen=True)


def test_following_seats_are_of_vcpus_that_can_be_followed() -> None:
    """The table by which vectors follow: who is in it, and with which CPUs."""
    some = guest(pins=("0-1", None, "9", "6-9", "0-7"))
    topology = host()
    found = target_of(Directive(Word.AUTO), some, function(), topology, Taken())
    assert {index: str(seat.cpus) for index, seat in found.following.items()} == {
        0: "0-1",
        3: "6-7",
    }
    found = target_of(Directive.parse("1-6"), some, function(), topology, Taken())
    assert {index: str(seat.cpus) for index, seat in found.following.items()} == {0: "1", 3: "6"}
    assert {seat.vcpu for seat in found.following.values()} == {0, 3}
    for word in (Word.NATIVE, Word.EMULATOR, Word.LOCAL):
        assert target_of(Directive(word), some, function(), topology, Taken()).following == {}
