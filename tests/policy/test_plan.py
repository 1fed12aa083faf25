"""Plans: each verdict by hand, and what holds for every plan of every host."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.policy.facts import (
    GPU,
    NIC,
    USB,
    big_host,
    carried_out,
    configs,
    cpus,
    function,
    guest,
    intx,
    intx_action,
    msix,
    snapshot,
    snapshots,
)
from virtirq.cpuset import CpuSet
from virtirq.model import (
    AUTO,
    NATIVE,
    Action,
    DevicePlan,
    Directive,
    Guest,
    GuestDevice,
    Interrupt,
    InterruptKind,
    Keep,
    Pin,
    Plan,
    Snapshot,
    Spread,
    Word,
    by_device,
)
from virtirq.policy.config import Config
from virtirq.policy.deal import Deal
from virtirq.policy.plan import plan
from virtirq.policy.target import Taken, runs_on, target_of

PIN_CODES: Final = {"wrong-cpu", "wrong-node", "loose", "unknown-place"}
KEEP_CODES: Final = {
    "in-place",
    "pending",
    "native",
    "no-target",
    "target-offline",
    "claimed",
    "managed",
    "unused",
    "host-driver",
    "intx-shared",
    "intx-follows",
    "intx-unknown",
}


def the_device(made: Plan) -> DevicePlan:
    (of_guest,) = made.guests
    (device,) = of_guest.devices
    return device


def verdict(interrupt: Interrupt, **more: object) -> tuple[str, str, str]:
    """Action, reason's code and reason's text for the one interrupt of the one device."""
    (action,) = the_device(plan(snapshot(interrupts=[interrupt], **more), Config())).actions  # type: ignore[arg-type]
    return type(action).__name__, *action.reason


def where(made: Plan) -> dict[int, str]:
    """IRQ to what it is pinned to; interrupts that are kept are left out."""
    return {pin.irq: str(pin.after) for pin in made.pins}


# Verdicts ---------------------------------------------------------------------------------------


def test_each_vector_follows_its_vcpu() -> None:
    them = [msix(40 + vector, vector) for vector in range(5)]
    made = plan(snapshot(interrupts=them), Config())
    assert where(made) == {40: "0", 41: "1", 42: "0", 43: "1", 44: "0"}
    device = the_device(made)
    assert (device.target, device.node, device.code) == (cpus("0-1"), 0, "target")
    assert (device.directive, device.directive_from) == (AUTO, "built-in default")


def test_another_cpu_of_a_shared_pool_is_no_warning() -> None:
    """Nothing ties the vCPU to one CPU of its pool: each serves it equally well."""
    pool = cpus("0-1")
    shared = replace(guest(), vcpus=tuple(replace(each, cpus=pool) for each in guest().vcpus))
    (dealt,) = (
        pin.after
        for pin in plan(snapshot(interrupts=[msix(40, 0, on="7")], guests=[shared]), Config()).pins
    )
    (other,) = pool - dealt
    (pin,) = plan(snapshot(interrupts=[msix(40, 0, on=str(other))], guests=[shared]), Config()).pins
    text = f"to CPU {dealt} of vCPU 0: CPU {other} would do, but another is dealt to it"
    assert pin.reason == ("loose", text)


VERDICTS: Final = {
    "on another CPU of the target": (
        msix(40, 1, on="0"),
        ("Pin", "wrong-cpu", "to CPU 1 of vCPU 1, from CPU 0"),
    ),
    "on another CPU of the node": (
        msix(40, 1, on="3"),
        ("Pin", "wrong-cpu", "to CPU 1 of vCPU 1, from CPU 3 outside the target"),
    ),
    "on another node": (
        msix(40, 1, on="7"),
        ("Pin", "wrong-node", "to CPU 1 of vCPU 1, from CPU 7 on node 1"),
    ),
    "there by chance": (
        msix(40, 1, on="1"),
        ("Pin", "loose", "to CPU 1 of vCPU 1: is there, but affinity 0-7 lets it move"),
    ),
    "nothing known": (
        msix(40, 1, at=None, on=None),
        ("Pin", "unknown-place", "to CPU 1 of vCPU 1; where it is now is not known"),
    ),
    "effective not known, affinity elsewhere": (
        msix(40, 1, at="4-5", on=None),
        ("Pin", "wrong-node", "to CPU 1 of vCPU 1, from CPU 4-5 on node 1"),
    ),
    "effective not known, affinity reaches there": (
        msix(40, 1, at="0-7", on=None),
        ("Pin", "loose", "to CPU 1 of vCPU 1: affinity 0-7 lets it be elsewhere"),
    ),
    "in place": (msix(40, 1, at="1", on="1"), ("Keep", "in-place", "on CPU 1 of vCPU 1")),
    "in place, effective not known": (
        msix(40, 1, at="1", on=None),
        ("Keep", "in-place", "on CPU 1 of vCPU 1"),
    ),
    "set, not there yet": (
        msix(40, 1, at="1", on="7"),
        ("Keep", "pending", "CPU 1 of vCPU 1; moves there from CPU 7 at its next interrupt"),
    ),
    "managed by the kernel": (
        msix(40, 1, settable=False),
        ("Keep", "managed", "the kernel manages its affinity and takes none from user space"),
    ),
    "managed, but right": (
        msix(40, 1, at="1", on="1", settable=False),
        ("Keep", "in-place", "on CPU 1 of vCPU 1"),
    ),
    "without a handler": (
        msix(40, 1, actions=()),
        ("Keep", "unused", "allocated, but without a handler: the guest does not use it"),
    ),
    "of a host driver": (
        msix(40, 1, actions=("ice-0000:82:00.0:misc",)),
        ("Keep", "host-driver", "held by vfio-pci, not by VFIO: not the guest's"),
    ),
    "of another device's VFIO": (
        msix(40, 1, actions=(f"vfio-msix[1]({GPU})",)),
        ("Keep", "host-driver", "held by vfio-pci, not by VFIO: not the guest's"),
    ),
    "line of its own": (intx(16, on="1"), ("Pin", "wrong-cpu", "to CPU 0 of vCPU 0, from CPU 1")),
    "line with a host driver": (
        intx(16, NIC, "ahci[0000:00:17.0]"),
        ("Keep", "intx-shared", "the line is shared with ahci[0000:00:17.0]"),
    ),
    "line with another's device": (
        intx(16, NIC, intx_action(GPU)),
        ("Keep", "intx-shared", f"the line is shared with vfio-intx({GPU})"),
    ),
    "line with two": (
        intx(16, NIC, "xhci_hcd", "ahci"),
        ("Keep", "intx-shared", "the line is shared with ahci, xhci_hcd"),
    ),
    "line with what only looks like VFIO's": (
        intx(16, NIC, "vfio-intx(nonsense)"),
        ("Keep", "intx-shared", "the line is shared with vfio-intx(nonsense)"),
    ),
    "line of unknown handlers": (
        replace(intx(16), actions=None),
        ("Keep", "intx-unknown", "who else is on the line is not known"),
    ),
}


@pytest.mark.parametrize(("interrupt", "told"), VERDICTS.values(), ids=VERDICTS)
def test_verdict(interrupt: Interrupt, told: tuple[str, str, str]) -> None:
    assert verdict(interrupt) == told


def test_a_vector_without_names_goes_by_irq_number() -> None:
    """As in recordings of kernels that have no /sys/kernel/irq."""
    them = [replace(msix(40 + n, n, actions=None), vector=None) for n in (2, 0, 1)]
    assert where(plan(snapshot(interrupts=them), Config())) == {40: "0", 41: "1", 42: "0"}


def test_vectors_without_names_do_not_move_one_that_has_its() -> None:
    """Their orders are but guessed, and shift when another vector goes."""
    them = [msix(40, 0), msix(42, 2)]
    them += [replace(msix(irq, 0, actions=None), vector=None) for irq in (41, 43)]
    state = snapshot(interrupts=them)
    state = carried_out(state, plan(state, Config()))
    rest = tuple(each for each in state.interrupts if each.irq != 40)
    assert 42 not in where(plan(replace(state, interrupts=rest), Config()))


def test_a_plan_off_the_devices_node_says_so() -> None:
    far = {"guests": [guest(pins=("4",))]}
    off = "CPU 4 of vCPU 0, on the wrong node: 1, its device is on 0"
    assert verdict(msix(40, 0, on="5"), **far) == (
        "Pin",
        "wrong-cpu",
        f"to {off}, from CPU 5 outside the target",
    )
    assert verdict(msix(40, 0, at="4", on="4"), **far) == ("Keep", "in-place", f"on {off}")


@pytest.mark.parametrize(
    ("directive", "code"),
    [("native", "native"), ("20-30", "target-offline"), ("local", "no-target")],
)
def test_a_device_that_is_left_alone(directive: str, code: str) -> None:
    taken = guest(
        pins=("0", "1", "2", "3"), directive=Directive.parse(directive), directive_from="me"
    )
    made = the_device(plan(snapshot(interrupts=[msix(40, 0)], guests=[taken]), Config()))
    (action,) = made.actions
    assert (made.target, made.code, made.directive_from) == (None, code, "me")
    assert isinstance(action, Keep)
    assert action.reason == (code, made.note)
    assert action.wanted is None


def test_a_device_that_the_host_lacks() -> None:
    made = the_device(plan(snapshot(pci=[]), Config()))
    assert (made.note, made.node, made.actions) == ("the host has no such device", None, ())


def test_a_device_without_interrupts_yet() -> None:
    made = the_device(plan(snapshot(), Config()))
    assert made.note == "CPUs 0-1 of its vCPUs; no interrupts yet"
    assert made.target == cpus("0-1")


def test_a_device_that_a_host_driver_holds() -> None:
    state = snapshot(pci=[function(driver="ice")], interrupts=[msix(40, 0, actions=("ice-q0",))])
    made = the_device(plan(state, Config()))
    assert made.note == "CPUs 0-1 of its vCPUs; its driver is ice, not a VFIO driver"
    assert made.actions[0].reason.text == "held by ice, not by VFIO: not the guest's"
    for driver in (None, "vfio-pci", "mlx5_vfio_pci"):
        made = the_device(plan(snapshot(pci=[function(driver=driver)]), Config()))
        assert made.note == "CPUs 0-1 of its vCPUs; no interrupts yet"


def test_a_device_that_two_guests_name() -> None:
    two = [guest("b", pins=("3",)), guest("a", pins=("2",))]
    made = plan(snapshot(guests=two, interrupts=[msix(40, 0)]), Config())
    assert [each.guest.name for each in made.guests] == ["a", "b"]
    assert where(made) == {40: "2"}
    (claimed,) = made.guests[1].devices
    assert (claimed.code, claimed.note) == ("claimed", "a has this device too and decides")
    assert [action.reason.code for action in claimed.actions] == ["claimed"]


def test_devices_and_interrupts_come_in_order() -> None:
    it = guest(devices=[USB, NIC])
    them = [msix(9, 3), msix(12, 1), msix(7, 0, USB), msix(8, 0)]
    made = plan(snapshot(guests=[it], pci=[function(), function(USB)], interrupts=them), Config())
    assert [action.irq for action in made.actions] == [8, 12, 9, 7]


# Spread -----------------------------------------------------------------------------------------


def test_mask_of_an_explicit_cpuset_is_its_online_part() -> None:
    asked = guest(directive=Directive.parse("2-5,9"))
    state = snapshot(guests=[asked], interrupts=[msix(40, 0), msix(41, 1)])
    made = plan(state, Config())
    assert where(made) == {40: "2-5", 41: "2-5"}
    assert {pin.alternatives for pin in made.pins} == {()}
    assert made.pins[0].reason.text == "to all of CPUs 2-5, from CPU 7 on node 1"
    assert not plan(carried_out(state, made), Config()).pins


def test_mask_where_the_interrupt_is_on_one_of_its_cpus() -> None:
    asked = guest(directive=Directive.parse("2-5"))
    loose = "to all of CPUs 2-5: is there, but affinity 0-7 lets it move"
    assert verdict(msix(40, 0, on="4"), guests=[asked]) == ("Pin", "loose", loose)


def test_mask_of_a_word_prefers_the_devices_node() -> None:
    state = snapshot(guests=[guest(pins=("1", "5"))], interrupts=[msix(40, 0), msix(41, 1)])
    assert where(plan(state, Config(spread=Spread.MASK))) == {40: "1", 41: "1"}
    state = snapshot(interrupts=[msix(40, 0)])
    assert where(plan(state, Config(spread=Spread.MASK))) == {40: "0-1"}


def test_vector_of_an_explicit_cpuset_deals_it_out() -> None:
    asked = guest(directive=Directive.parse("2-5"))
    them = [msix(40 + vector, vector) for vector in range(8)]
    made = plan(snapshot(guests=[asked], interrupts=them), Config(spread=Spread.VECTOR))
    assert Counter(where(made).values()) == {"2": 2, "3": 2, "4": 2, "5": 2}


def test_alternatives_widen_from_the_vcpu_to_the_target() -> None:
    it = guest(pins=("0-1", "2", "6"))
    (pin,) = plan(snapshot(guests=[it], interrupts=[msix(40, 0)]), Config()).pins
    assert pin.alternatives == (cpus("0-1"), cpus("0-2"), cpus("0-2,6"))


# Shared INTx lines ------------------------------------------------------------------------------


def shared(*lines: Interrupt, guests: Iterable[Guest]) -> Snapshot:
    return snapshot(
        pci=[function(each) for each in (NIC, GPU, USB)], interrupts=lines, guests=list(guests)
    )


ON_ONE_LINE: Final = (
    intx(16, NIC, intx_action(GPU)),
    intx(16, GPU, intx_action(NIC)),
)


def verdicts(state: Snapshot) -> list[tuple[str, str]]:
    return [(type(a).__name__, a.reason.code) for a in plan(state, Config()).actions]


def test_a_line_of_one_guest_moves_once() -> None:
    state = shared(*ON_ONE_LINE, guests=[guest(devices=[GPU, NIC])])
    assert verdicts(state) == [("Pin", "wrong-node"), ("Keep", "intx-follows")]
    after = carried_out(state, plan(state, Config()))
    assert verdicts(after) == [("Keep", "in-place"), ("Keep", "intx-follows")]


def test_a_line_of_two_guests_is_left() -> None:
    state = shared(*ON_ONE_LINE, guests=[guest("a", devices=[GPU]), guest("b")])
    assert verdicts(state) == [("Keep", "intx-shared")] * 2


def test_a_line_of_two_guests_with_one_name_is_left() -> None:
    """Plain QEMU processes need not have names of their own."""
    two = [guest("qemu", devices=[GPU], pid=2), guest("qemu", pid=1)]
    assert verdicts(shared(*ON_ONE_LINE, guests=two)) == [("Keep", "intx-shared")] * 2


@pytest.mark.parametrize("native", [NIC, GPU])
def test_a_line_with_a_native_device_is_left(native: object) -> None:
    devices = [
        GuestDevice(each, "hostdev", directive=NATIVE if each is native else None)
        for each in (NIC, GPU)
    ]
    state = shared(*ON_ONE_LINE, guests=[guest(devices=devices)])
    assert verdicts(state) == [("Keep", "native")] * 2


def test_a_line_asked_for_in_two_ways_says_so() -> None:
    devices = [GuestDevice(NIC, "hostdev"), GuestDevice(GPU, "hostdev", directive=NATIVE)]
    devices[1] = replace(devices[1], directive=Directive.parse("3"))
    state = shared(*ON_ONE_LINE, guests=[guest(devices=devices)])
    assert verdicts(state) == [("Pin", "wrong-node"), ("Keep", "intx-shared")]
    assert (
        plan(state, Config()).actions[1].reason.text
        == f"the line goes where {intx_action(NIC)} goes"
    )


# Stability --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(snapshots(), configs(), st.data())
def test_a_vector_does_not_move_the_others(
    state: Snapshot, config: Config, data: st.DataObject
) -> None:
    """Vectors whose numbers are known stay where they were put when others come or go.

    What the kernel manages was put nowhere, and what is said of it is but where it would be.
    """
    state = carried_out(state, plan(state, config))
    vectors = [each for each in state.interrupts if each.vector is not None]
    assume(vectors)
    gone = data.draw(st.sampled_from(vectors))
    rest = replace(state, interrupts=tuple(each for each in state.interrupts if each is not gone))
    known = {each.irq for each in vectors if each.settable is not False} - {gone.irq}
    whole, part = wishes(plan(state, config)), wishes(plan(rest, config))
    assert {w for w in whole if w[0] in known} == {w for w in part if w[0] in known}


@settings(max_examples=60, deadline=None)
@given(snapshots(), configs())
def test_another_guest_does_not_move_the_others(state: Snapshot, config: Config) -> None:
    """Whoever comes last by name holds no device of the others; only `local` minds its pins, and
    `emulator` where it stands for that.
    """
    last = max(state.guests, key=lambda each: each.name)
    rest = replace(state, guests=tuple(each for each in state.guests if each is not last))
    whole, part = plan(state, config), plan(rest, config)
    for before, after in zip(part.guests, whole.guests, strict=False):
        for one, other in zip(before.devices, after.devices, strict=True):
            if one.directive == Directive(Word.LOCAL):
                continue
            unpinned = runs_on(before.guest.emulator, state.topology) is None
            if one.directive == Directive(Word.EMULATOR) and unpinned:
                continue
            lines = {each.irq for each in state.interrupts if each.kind is InterruptKind.INTX}
            assert one.target == other.target
            assert one.note == other.note
            assert [a for a in one.actions if a.irq not in lines] == [
                a for a in other.actions if a.irq not in lines
            ]


def wishes(made: Plan) -> set[tuple[int, str, CpuSet | None]]:
    return {(each.irq, each.guest, wish(each)) for each in made.actions}


def wish(action: Action) -> CpuSet | None:
    return action.after if isinstance(action, Pin) else action.wanted


# What holds for every plan ----------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(snapshots(), configs())
def test_every_plan(state: Snapshot, config: Config) -> None:
    made = plan(state, config)
    assert Counter(each.guest.name for each in made.guests) == Counter(
        each.name for each in state.guests
    )
    owners: dict[object, str] = {}
    for of_guest in made.guests:
        expected = Counter(each.address for each in of_guest.guest.devices)
        assert Counter(each.device.address for each in of_guest.devices) == expected
        for device in of_guest.devices:
            owner = owners.setdefault(device.device.address, of_guest.guest.name)
            assert (device.code == "claimed") == (owner != of_guest.guest.name)
            _holds_for_device(state, of_guest.guest, device)
            for action in device.actions:
                _holds_for_action(state, of_guest.guest, device, action)
    assert all(count == 1 for count in Counter(pin.irq for pin in made.pins).values())


def _holds_for_device(state: Snapshot, of: Guest, device: DevicePlan) -> None:
    mine = by_device(state.interrupts).get(device.device.address, ())
    assert Counter((a.irq, a.key) for a in device.actions) == Counter((i.irq, i.key) for i in mine)
    assert device.note.isprintable()
    assert device.directive_from
    if device.target is None:
        assert device.code in {"native", "no-target", "target-offline", "claimed"}
        assert all(isinstance(action, Keep) for action in device.actions)
    else:
        assert device.code == "target"
        assert device.target
        assert device.target <= state.topology.online
        assert device.directive != NATIVE


def _holds_for_action(state: Snapshot, of: Guest, device: DevicePlan, action: Action) -> None:
    assert action.guest == of.key
    assert action.key.device == device.device.address
    assert action.reason.text.isprintable()
    (interrupt,) = (
        each
        for each in state.interrupts
        if (each.device, each.irq) == (action.key.device, action.irq)
    )
    if isinstance(action, Keep):
        assert action.reason.code in KEEP_CODES
        if action.reason.code in ("in-place", "pending"):
            assert action.wanted == interrupt.affinity
    else:
        assert action.reason.code in PIN_CODES
        assert action.before == interrupt.affinity != action.after
        assert action.kind is interrupt.kind
        assert interrupt.settable is not False
        _may_be_moved(state, of, interrupt)
    wanted = wish(action)
    if wanted is not None:
        assert wanted
        assert device.target is not None
        assert wanted <= device.target
        for each in action.alternatives if isinstance(action, Pin) else ():
            assert each
            assert each <= device.target


def _may_be_moved(state: Snapshot, of: Guest, interrupt: Interrupt) -> None:
    """Every handler on the line is VFIO's, for a device that this guest alone holds."""
    if interrupt.actions is None:
        assert interrupt.kind is not InterruptKind.INTX
        return
    assert interrupt.own_action is not None
    mine = {each.address for each in of.devices}
    for name in interrupt.actions:
        (device,) = (each for each in mine if name.endswith(f"({each})"))
        first = min(g.name for g in state.guests if device in {d.address for d in g.devices})
        assert first == of.name


@settings(max_examples=150, deadline=None)
@given(snapshots(), configs())
def test_a_plan_that_was_carried_out_has_nothing_left_to_do(
    state: Snapshot, config: Config
) -> None:
    made = plan(state, config)
    again = plan(carried_out(state, made), config)
    assert again.pins == ()
    assert {a.irq for a in again.actions if a.reason.code == "in-place"} >= {
        pin.irq for pin in made.pins
    }


@settings(max_examples=100, deadline=None)
@given(snapshots(), configs(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(
    state: Snapshot, config: Config, chance: random.Random
) -> None:
    guests = [
        replace(
            each,
            devices=tuple(chance.sample(each.devices, len(each.devices))),
            vcpus=tuple(chance.sample(each.vcpus, len(each.vcpus))),
        )
        for each in state.guests
    ]
    chance.shuffle(guests)
    interrupts = [
        replace(
            each, actions=each.actions and tuple(chance.sample(each.actions, len(each.actions)))
        )
        for each in chance.sample(state.interrupts, len(state.interrupts))
    ]
    other = replace(state, guests=tuple(guests), interrupts=tuple(interrupts))
    one, two = plan(state, config), plan(other, config)
    assert one.actions == two.actions
    assert [
        (of.guest.key, device.device, device.target, device.note, device.code)
        for of in one.guests
        for device in of.devices
    ] == [
        (of.guest.key, device.device, device.target, device.note, device.code)
        for of in two.guests
        for device in of.devices
    ]


@settings(max_examples=100, deadline=None)
@given(snapshots(), configs())
def test_spread_is_one_cpu_of_the_deal_or_the_whole(state: Snapshot, config: Config) -> None:
    for directive in (AUTO, Directive(Word.EMULATOR)):
        for spread in Spread:
            told = replace(config, default=directive, rules=(), spread=spread)
            guests = tuple(
                replace(
                    each,
                    directive=None,
                    devices=tuple(replace(d, directive=None) for d in each.devices),
                )
                for each in state.guests
            )
            bare = replace(state, guests=guests)
            taken = Taken.by(guests, state.topology)
            for of in plan(bare, told).guests:
                for device in of.devices:
                    pci = state.pci.get(device.device.address)
                    target = target_of(directive, of.guest, pci, state.topology, taken)
                    for action in device.actions:
                        wanted = wish(action)
                        if wanted is not None and spread is Spread.MASK:
                            assert wanted == target.seated
                        elif wanted is not None:
                            assert len(wanted) == 1
                            assert wanted <= target.seated


def test_big_hosts_are_planned_vector_by_vector() -> None:
    """More than 64 CPUs, and the deal is even: 16 vCPUs, five devices' worth of vectors each."""
    state = big_host(guests=16, vectors=16 * 64)
    made = plan(state, Config())
    assert len(made.pins) == len(state.interrupts)
    assert max(pin.after.first() for pin in made.pins) > 64
    for of in made.guests:
        (device,) = of.devices
        load = Counter(wish(action) for action in device.actions)
        assert max(load.values()) - min(load.values()) == 0
    assert not plan(carried_out(state, made), Config()).pins


def test_planning_takes_steps_in_proportion_to_the_interrupts() -> None:
    """Counts, not times: each vector is dealt a fixed number of times, whatever the host holds."""
    counted = []
    for guests in (10, 40):
        calls = 0
        real = Deal.__call__

        def counting(
            self: Deal, order: int, start: int | None = None, real: object = real
        ) -> object:
            nonlocal calls
            calls += 1
            return real(self, order, start)  # type: ignore[operator]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Deal, "__call__", counting)
            plan(big_host(guests=guests, vectors=guests * 20), Config())
        counted.append(calls / (guests * 20))
    assert counted[0] == counted[1] <= 2
