"""Where interrupts were taken between two looks, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.facts import GPU, NIC, cpus, guest, host, msix, snapshot, snapshots
from virtirq.model import Snapshot, Vcpu
from virtirq.policy.config import Config
from virtirq.policy.plan import plan
from virtirq.policy.stakes import came, findings, stakes

NIC_IRQ, GPU_IRQ, DISK, OTHER = 100, 120, 40, 41
Counts = dict[int, dict[int, int]]


def two_guests() -> Snapshot:
    """web has the NIC and CPUs 2 and 3, db the GPU and CPU 4; CPU 5 is nobody's."""
    web = guest(name="web", pins=("2", "3"), devices=(NIC,))
    db = guest(name="db", pins=("4",), devices=(GPU,))
    return snapshot(
        topology=host(),
        interrupts=[msix(NIC_IRQ, 0), msix(GPU_IRQ, 0, GPU)],
        guests=[web, db],
    )


def looked(counts: Counts) -> dict[int, tuple[int, ...]]:
    """As a look tells it."""
    return {irq: (0, *chain.from_iterable(by.items())) for irq, by in counts.items()}


def said(state: Snapshot, before: Counts, after: Counts, seconds: float = 2.0) -> list[str]:
    told = stakes(
        plan(state, Config()), state.topology, came(looked(before), looked(after).items()), seconds
    )
    found = findings(told, lambda irq: (f"disk{irq}",))
    return [f"{each.code}: {each.subject}: {each.message}" for each in found]


NOTHING: Counts = {NIC_IRQ: {}, GPU_IRQ: {}, DISK: {}, OTHER: {}}


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        pytest.param({}, [], id="nothing came"),
        pytest.param({NIC_IRQ: {2: 10**6, 3: 9}, DISK: {0: 99, 5: 99}}, [], id="all in its place"),
        pytest.param(
            {NIC_IRQ: {2: 15_624, 4: 9_176}},
            [
                "taken-elsewhere: web: 37% of its 12,400 interrupts a second are taken on other"
                " guests' CPUs (db)"
            ],
            id="on another guest's",
        ),
        pytest.param({NIC_IRQ: {2: 10, 5: 10_000}}, [], id="on nobody's"),
        pytest.param({NIC_IRQ: {4: 1}}, [], id="one in two seconds is no matter"),
        pytest.param(
            {NIC_IRQ: {2: 10**6, 4: 3}, GPU_IRQ: {3: 7}},
            [
                "taken-elsewhere: db: 100% of its 3.5 interrupts a second are taken on other"
                " guests' CPUs (web)",
                "taken-elsewhere: web: 1% of its 500,002 interrupts a second are taken on other"
                " guests' CPUs (db)",
            ],
            id="each on the other's",
        ),
        pytest.param(
            {DISK: {0: 10**6, 3: 8, 4: 4}, OTHER: {2: 10}},
            [
                "host-interrupts-on-vcpus: host: 11 interrupts a second of no guest are taken on"
                " CPUs that guests are pinned to; most, 5, are interrupt 41 (disk41) on CPU 2"
            ],
            id="the host's own",
        ),
    ],
)
def test_what_is_said(after: Counts, expected: list[str]) -> None:
    assert said(two_guests(), NOTHING, {**NOTHING, **after}) == expected


def test_an_explicit_target_is_its_own_whoever_is_pinned_there() -> None:
    state = two_guests()
    web = replace(state.guests[0], vcpus=(Vcpu(0, cpus("4")),))
    assert said(replace(state, guests=(web, state.guests[1])), NOTHING, {NIC_IRQ: {4: 99}}) == []


def test_many_guests_are_named_by_what_they_take() -> None:
    state = two_guests()
    others = [guest(name=f"vm{cpu}", pins=(str(cpu),), devices=()) for cpu in (4, 5, 6, 7)]
    state = replace(state, topology=host(online="0-9"), guests=(state.guests[0], *others))
    (line,) = said(state, NOTHING, {NIC_IRQ: {cpu: cpu for cpu in (4, 5, 6, 7)}})
    assert line.endswith("guests' CPUs (vm7, vm6, vm5, ...)")


def test_what_was_set_up_meanwhile_or_is_gone_does_not_count() -> None:
    before, after = (
        {0: {}, 1: {0: 5}, 2: {0: 5, 1: 3}, 3: {0: 1}},
        {0: {}, 1: {0: 7}, 2: {0: 90}, 4: {0: 9}},
    )
    assert came(looked(before), looked(after).items()) == {1: {0: 2}}


_COUNTS = st.dictionaries(
    st.integers(98, 130),
    st.dictionaries(st.integers(0, 9), st.integers(1, 10**9), max_size=4),
    max_size=12,
)


@given(state=snapshots(), before=_COUNTS, after=_COUNTS)
def test_each_interrupt_of_a_guest_is_somewhere_once(
    state: Snapshot, before: Counts, after: Counts
) -> None:
    planned = plan(state, Config())
    between = came(looked(before), looked(after).items())
    told = stakes(planned, state.topology, between, 1.0)
    for one, each in zip(planned.guests, told.guests, strict=True):
        irqs = {action.irq for device in one.devices for action in device.actions}
        assert each.total == sum(sum(between.get(irq, {}).values()) for irq in irqs)
        assert one.guest.name not in each.others
    theirs = {a.irq for g in planned.guests for d in g.devices for a in d.actions}
    assert not theirs & {irq for irq, _ in told.host.on}
