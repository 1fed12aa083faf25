"""What is wanted, computed guest by guest: as all at once, and with no more work than needed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.facts import configs, cpus, function, guest, host, snapshots
from virtirq.model import (
    Aimed,
    Directive,
    Guest,
    GuestDevice,
    PciAddress,
    Snapshot,
    Vcpu,
    by_device,
)
from virtirq.policy import plan as module
from virtirq.policy import target
from virtirq.policy.config import Config
from virtirq.policy.plan import Desired, plan
from virtirq.policy.target import Target


@settings(max_examples=150)
@given(snapshots(), configs(), st.integers())
def test_guest_by_guest_is_as_all_at_once(state: Snapshot, config: Config, order: int) -> None:
    """Whatever came and went in between, and in whatever order."""
    rng = random.Random(order)
    guests = list({each.key: each for each in state.guests}.values())
    state = replace(state, guests=tuple(guests))
    made = Desired(state.topology, config)
    told: dict[PciAddress, Target] = {}
    for each in rng.choices(guests, k=2 * len(guests)) if guests else ():
        # Another form of the guest at first, or one that leaves again.
        was = replace(each, vcpus=each.vcpus[: rng.randrange(3)], devices=each.devices[::-1][:2])
        changed = (
            made.change([was], pci=state.pci)
            if rng.random() < 0.7
            else made.change(remove=[each.key])
        )
        note(made, told, changed, state)
    for each in rng.sample(guests, len(guests)):
        note(made, told, made.change([each], pci=state.pci), state)
    assert made.plan(by_device(state.interrupts)) == plan(state, config)


def note(
    made: Desired, told: dict[PciAddress, Target], changed: frozenset[PciAddress], state: Snapshot
) -> None:
    """What is told to have changed has, and nothing else has."""
    now = {
        address: each.target
        for address in {device.address for g in state.guests for device in g.devices}
        if (each := made.of(address))
    }
    assert {each for each in now if told.get(each) != now[each]} <= changed
    told.clear()
    told.update(now)


A, B, C = (PciAddress(0, 0x41, slot, 0) for slot in range(3))
PCI = {each: function(each) for each in (A, B, C)}


def holding(name: str, *devices: PciAddress, on: str = "1", asked: str = "auto") -> Guest:
    return replace(
        guest(name),
        uuid=f"u-{name}",
        pid=100,
        vcpus=(Vcpu(0, cpus(on)),),
        devices=tuple(GuestDevice(each, "hostdev") for each in devices),
        directive=Directive.parse(asked),
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The guests of which targets were computed."""
    names: list[str] = []

    def target_of(directive: object, of: Guest, *rest: object) -> Target:
        names.append(of.name)
        return real(directive, of, *rest)  # type: ignore[arg-type]

    real = target.target_of
    monkeypatch.setattr(module, "target_of", target_of)
    return names


def test_a_change_of_one_guest_computes_that_guest(counted: list[str]) -> None:
    made = Desired(host(), Config())
    for name, address in (("a", A), ("b", B), ("c", C)):
        made.change([holding(name, address)], pci=PCI)
    counted.clear()
    assert made.change([holding("b", B)], pci=PCI) == frozenset(), "nothing is another than before"
    assert made.change([holding("b", B, on="2")], pci=PCI) == {B}
    assert made.change(remove=["u-c"]) == frozenset()
    assert counted == ["b", "b"]


def test_others_count_where_they_matter(counted: list[str]) -> None:
    made = Desired(host(), Config())
    made.change([holding("a", A)], pci=PCI)
    made.change([holding("b", B, on="0", asked="local")], pci=PCI)
    counted.clear()
    assert made.change([holding("c", C, on="2")], pci=PCI) == {B, C}, "b keeps off CPU 2 now"
    assert sorted(counted) == ["b", "c"]
    counted.clear()
    made.change([holding("c", C, on="2", asked="native")], pci=PCI)
    assert counted == ["c"], "it is pinned as it was"


def test_two_that_have_one_device() -> None:
    made = Desired(host(), Config())
    made.change([holding("b", A, on="2")], pci=PCI)
    assert made.change([holding("a", A, B, on="1")], pci=PCI) == {A, B}
    assert made.of(A) is not None
    assert made.of(A).guest.name == "a"  # type: ignore[union-attr]
    assert made.change(remove=["u-a"]) == {A}
    assert made.of(A).guest.name == "b"  # type: ignore[union-attr]
    assert made.of(B) is None


class TestWhatItAimsAt:
    def test_is_kept_while_it_runs(self) -> None:
        made = Desired(host(), Config())
        made.change([holding("a", A)], pci=PCI)
        made.follow(A, {0: Aimed(0)})
        made.change([holding("a", A, B)], pci=PCI)
        assert made.aimed == {A: {0: Aimed(0)}}

    def test_is_forgotten_with_its_run(self) -> None:
        made = Desired(host(), Config())
        made.change([holding("a", A)], pci=PCI)
        made.follow(A, {0: Aimed(0)})
        assert made.change([replace(holding("a", A), pid=101)], pci=PCI) == {A}, (
            "it has not chosen yet"
        )
        assert made.aimed == {}

    def test_is_not_the_next_holders(self) -> None:
        made = Desired(host(), Config())
        made.change([holding("a", A)], pci=PCI)
        made.follow(A, {0: Aimed(0)})
        made.change(remove=["u-a"])
        assert made.aimed == {}
        made.change([holding("b", A)], pci=PCI)
        assert made.aimed == {}

    def test_of_what_nobody_has(self) -> None:
        made = Desired(host(), Config())
        made.follow(A, {0: Aimed(0)})
        assert made.aimed == {}
