"""How long interrupts take to the vCPU, from traces."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.host.injections import delays

NIC, DISK = "vfio-msix[0](0000:41:00.0)", "vfio-msix[1](0000:42:00.0)"
FIRST, SECOND = 819, 820
THREADS = (FIRST, SECOND)
RECORDED: Final = Path(__file__).with_name("injections.trace").read_text()
"""By Linux 6.12 in the lab, but for most ticks of the guest's clock: vectors 40 and 41 are used on
both vCPUs, and one came twice before it was given.
"""
AIMED: Final = {
    f"vfio-msix[{number}](0000:{bus}:00.0)": thread
    for bus, threads in (("41", (479, 478, 479)), ("43", (478, 479, 478, 479, 478)))
    for number, thread in enumerate(threads)
}


def taken(at: float, cpu: int, action: str = NIC) -> str:
    return f"          <idle>-0       [{cpu:03}] {at:.6f}: irq_handler_entry: irq=65 name={action}"


def routed(at: float, cpu: int, vector: int) -> str:
    words = f"dst 0 vec {vector} (Fixed|physical|edge)"
    return f"          <idle>-0       [{cpu:03}] {at:.6f}: kvm_msi_set_irq: {words}"


def given_to(at: float, thread: int, vector: int, text: str = "IRQ 0x{:x}") -> str:
    head = f"       CPU 0/KVM-{thread}     [004] {at:.6f}: kvm_inj_virq: "
    return head + text.format(vector)


def seen(*lines: str, aimed: dict[str, int] | None = None) -> list[float]:
    return [round(each, 6) for each in delays("\n".join(lines), THREADS, aimed or {})]


def test_a_recorded_trace() -> None:
    found = delays(RECORDED, (478, 479), AIMED)
    assert [round(1e6 * each) for each in found] == [
        2247,  # e1000e 1, on CPU 7
        21826,  # e1000e 2, which waited when it came once more
        21855,  # e1000e 0, with the same vector as the first
        1162,  # igb 3
        1177,  # igb 1
        11590,  # igb 4, with the same vector as igb 3
        3683,  # igb 2
        12645,  # igb 0
    ]


def test_a_recorded_trace_where_it_is_not_known_which_vcpu_each_is_for() -> None:
    """Of two that have the same vector at the same time, one is seen."""
    found = delays(RECORDED, (478, 479), {})
    assert [round(1e6 * each) for each in found] == [2247, 21826, 21855, 1536, 1177, 3683, 12645]


@pytest.mark.parametrize("text", ["IRQ 0x{:x}", "irq {}"])
def test_an_interrupts_way(text: str) -> None:
    assert seen(taken(1, 7), routed(1.000010, 7, 37), given_to(1.000250, FIRST, 37, text)) == [
        0.00025
    ]


def test_two_at_once_on_two_cpus() -> None:
    found = seen(
        taken(1.0, 6),
        taken(1.00001, 7, DISK),
        routed(1.00002, 7, 38),
        routed(1.00003, 6, 37),
        given_to(1.0001, FIRST, 38),
        given_to(1.0002, FIRST, 37),
    )
    assert found == [0.00009, 0.0002]


def test_two_vcpus_have_the_same_vector_for_different_things() -> None:
    lines = (
        taken(1.0, 6),
        routed(1.00002, 6, 37),
        taken(1.1, 6, DISK),
        routed(1.10002, 6, 37),
        given_to(1.2, SECOND, 37),
        given_to(1.3, FIRST, 37),
    )
    assert seen(*lines, aimed={NIC: FIRST, DISK: SECOND}) == [0.1, 0.3]


def test_what_comes_while_one_waits_is_one_with_it() -> None:
    found = seen(
        taken(1.0, 6),
        routed(1.00001, 6, 37),
        taken(1.1, 6),
        routed(1.10001, 6, 37),
        given_to(1.2, FIRST, 37),
        given_to(1.3, FIRST, 37),
    )
    assert found == [0.2]


@pytest.mark.parametrize(
    "lines",
    [
        [given_to(1, FIRST, 37)],  # a timer of its own
        [taken(1, 6), given_to(2, FIRST, 37)],  # nothing was routed: INTx
        [routed(1, 6, 37), given_to(2, FIRST, 37)],  # by a thread of the kernel's
        [taken(1, 6), routed(1, 7, 37), given_to(2, FIRST, 37)],
        [taken(1, 6), routed(1, 6, 37), given_to(2, 4711, 37)],  # another guest's
        [taken(1, 6), routed(1, 6, 37), given_to(2, FIRST, 37, "IRQ 0x{:x} [reinjected]")],
        [taken(1, 6), routed(1, 6, 37), given_to(2, FIRST, 37, "Soft/INTn 0x{:x}")],
        ["# tracer: nop", "CPU:3 [LOST 77 EVENTS]", ""],
    ],
)
def test_what_is_no_way_of_an_interrupt(lines: list[str]) -> None:
    assert seen(*lines) == []


WAY = (taken(1, 6), routed(1, 6, 37), given_to(2, FIRST, 37))


@given(st.lists(st.sampled_from(WAY), max_size=9))
def test_none_is_told_twice(lines: list[str]) -> None:
    found = seen(*lines)
    assert len(found) <= min(lines.count(each) for each in WAY)
    assert set(found) <= {1.0}


@given(st.text())
def test_no_trace_is_too_strange(text: str) -> None:
    delays(text, THREADS, {})
