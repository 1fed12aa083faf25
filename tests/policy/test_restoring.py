"""Plans that put back: what is found again, what is left, and that nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.facts import (
    GPU,
    NIC,
    carried_out,
    configs,
    cpus,
    intx,
    intx_action,
    moved,
    msix,
    snapshot,
    snapshots,
    subsets,
)
from virtirq.model import (
    Action,
    InterruptKey,
    InterruptKind,
    Keep,
    Pin,
    Plan,
    Remembered,
    Snapshot,
)
from virtirq.policy.config import Config
from virtirq.policy.plan import plan
from virtirq.policy.restoring import SOMEONE, restore_plan, settled

RESTORE_KEEP_CODES: Final = {"as-found", "changed-since", "unknown-place", "in-use", "unread"}


def remembered(
    vector: int = 0, original: str = "0-7", written: tuple[str, ...] = ("1",), guest: str = "vm"
) -> Remembered:
    key = InterruptKey(NIC, f"vfio-msix[{vector}]({NIC})")
    return Remembered(key, guest, cpus(original), tuple(map(cpus, written)))


def restored(at: str | None, *entries: Remembered) -> tuple[Action, ...]:
    return restore_plan(snapshot(interrupts=[msix(40, 0, at=at, on=None)]), entries).actions


def test_restore_puts_back_what_virtirq_wrote() -> None:
    (pin,) = restored("1", remembered())
    assert isinstance(pin, Pin)
    assert (pin.before, pin.after, pin.irq) == (cpus("1"), cpus("0-7"), 40)
    assert pin.reason == ("restore", "as found: 0-7")
    assert pin.alternatives == ()


def test_restore_after_a_crash_between_writes() -> None:
    for at in "1", "2":
        (pin,) = restored(at, remembered(written=("1", "2")))
        assert isinstance(pin, Pin)


@pytest.mark.parametrize(
    ("at", "reason"),
    [
        ("0-7", ("as-found", "already as found: 0-7")),
        ("3", ("changed-since", f"{SOMEONE}, moved it to 3 since virtirq wrote 1 or 2: left")),
        ("1-2", ("changed-since", f"{SOMEONE}, moved it to 1-2 since virtirq wrote 1 or 2: left")),
        (None, ("unknown-place", "its affinity cannot be read: left")),
    ],
)
def test_restore_leaves_what_is_not_its_own(at: str | None, reason: tuple[str, str]) -> None:
    (keep,) = restored(at, remembered(written=("1", "2")))
    assert isinstance(keep, Keep)
    assert keep.reason == reason


def test_restore_leaves_out_what_is_gone() -> None:
    assert restored("1", remembered(vector=5)) == ()
    reused = snapshot(interrupts=[msix(40, 0, actions=("ahci",), at="1")])
    assert restore_plan(reused, [remembered()]) == Plan()
    assert restore_plan(snapshot(), [remembered()]) == Plan()


def absent(actions: tuple[str, ...] | None, at: str = "1", irq: int = 40) -> Snapshot:
    return snapshot(interrupts=[msix(irq, 0, actions=actions, at=at)])


def by_number(**more: object) -> Remembered:
    return replace(remembered(), irq=40, **more)  # type: ignore[arg-type]


def test_restore_finds_by_number_what_has_no_action_now() -> None:
    (pin,) = restore_plan(absent(()), [by_number()]).pins
    assert (pin.irq, pin.key, str(pin.after)) == (40, by_number().key, "0-7")
    line = replace(intx(40, at="1"), actions=())
    entry = by_number(kind=InterruptKind.INTX)
    (pin,) = restore_plan(snapshot(interrupts=[line]), [entry]).pins
    assert (pin.irq, pin.kind) == (40, InterruptKind.INTX)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (absent((), at="3"), "changed-since"),
        (absent((), at="0-7"), "as-found"),
        (absent(None), "unread"),
        (absent((), irq=41), None),
        (absent(("ahci",)), None),
        (replace(absent((), irq=41), unread=frozenset([NIC])), "unread"),
        (replace(absent(("ahci",)), unread=frozenset([NIC])), "unread"),
        (replace(absent((), irq=41), unread=frozenset([GPU])), None),
        (snapshot(interrupts=[replace(intx(40, at="1"), actions=())]), None),  # not the vector
    ],
)
def test_restore_without_a_name(state: Snapshot, code: str | None) -> None:
    actions = restore_plan(state, [by_number()]).actions
    assert [each.reason.code for each in actions] == ([code] if code else [])
    assert [settled(each) for each in actions] == ([code not in ("unread",)] if code else [])


def test_a_line_that_others_have_now_is_said_as_long_as_it_is_as_we_left_it() -> None:
    entry = by_number(kind=InterruptKind.INTX)
    for at, codes in ("1", ["in-use"]), ("2", []):
        line = replace(intx(40, at=at), actions=("ahci", "eth0"))
        actions = restore_plan(snapshot(interrupts=[line]), [entry]).actions
        assert [each.reason.code for each in actions] == codes
        assert not any(map(settled, actions))
        assert all("but ahci, eth0 has the line" in each.reason.text for each in actions)


def test_restore_is_in_the_order_of_device_kind_and_vector() -> None:
    numbers = (10, 9, 100, 0, 1)
    state = snapshot(interrupts=[msix(40 + n, n, at="1") for n in numbers])
    pins = restore_plan(state, map(remembered, numbers)).pins
    assert [pin.irq - 40 for pin in pins] == sorted(numbers)


def test_an_original_without_an_online_cpu_is_said() -> None:
    (pin,) = restored("1", remembered(original="8-9"))
    assert pin.reason.text == "as found: 8-9, of which no CPU is online now"


def test_restore_goes_by_name_and_not_by_irq_number() -> None:
    state = snapshot(interrupts=[msix(99, 0, at="1"), msix(40, 1, at="1")])
    assert [pin.irq for pin in restore_plan(state, [remembered()]).pins] == [99]


def test_restore_by_guest_there_or_gone() -> None:
    state = snapshot(interrupts=[msix(40, 0, at="1"), msix(41, 1, at="1")])
    made = restore_plan(state, [remembered(), remembered(1, guest="gone")])
    assert [(each.guest.name, each.guest.source) for each in made.guests] == [
        ("vm", "test"),
        ("gone", "journal"),
    ]
    (told,) = restore_plan(state, [replace(remembered(guest="u-1"), name="web")]).guests
    assert (told.guest.name, told.guest.uuid, told.guest.key) == ("web", "u-1", "u-1")
    for of in made.guests:
        (device,) = of.devices
        assert (device.directive, device.directive_from, device.target) == (None, "journal", None)
        assert len(device.actions) == 1


def test_a_line_is_restored_under_its_own_name() -> None:
    entry = Remembered(InterruptKey(NIC, intx_action(NIC)), "vm", cpus("0-7"), (cpus("0"),))
    (pin,) = restore_plan(snapshot(interrupts=[intx(16, at="0")]), [entry]).pins
    assert (pin.irq, pin.kind) == (16, InterruptKind.INTX)


@settings(max_examples=150, deadline=None)
@given(snapshots(), configs(), st.data())
def test_restore_undoes_a_plan_and_nothing_else(
    state: Snapshot, config: Config, data: st.DataObject
) -> None:
    """Some pins are carried out, then someone moves a few interrupts by hand."""
    pins = [
        each for each in plan(state, config).pins if each.before is not None and each.key.action
    ]
    journal = [
        Remembered(each.key, each.guest, each.before, (each.after,))
        for each in pins
        if each.before is not None
    ]
    after = replace(state, interrupts=moved(state.interrupts, {p.irq: p.after for p in pins}))
    by_hand = {
        pin.irq: data.draw(subsets(state.topology.online, least=1))
        for pin in pins
        if data.draw(st.integers(0, 3)) == 0
    }
    after = replace(after, interrupts=moved(after.interrupts, by_hand))
    undo = restore_plan(after, journal)
    assert {a.key for a in undo.actions} == {each.key for each in journal}
    for action in undo.actions:
        (entry,) = (each for each in journal if each.key == action.key)
        now = by_hand.get(action.irq, entry.written[0])
        if isinstance(action, Pin):
            assert action.before == now
            assert now in entry.written
            assert action.after == entry.original
        else:
            assert action.reason.code in RESTORE_KEEP_CODES
            assert now == entry.original or now not in entry.written
    back = carried_out(after, undo)
    assert not restore_plan(back, journal).pins
    first = {each.irq: each.affinity for each in state.interrupts}
    assert all(
        each.affinity == by_hand.get(each.irq, first[each.irq])
        or by_hand.get(each.irq) in {p.after for p in pins if p.irq == each.irq}
        for each in back.interrupts
        if (each.irq, each.key) in {(p.irq, p.key) for p in pins}
    )
