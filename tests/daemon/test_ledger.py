"""Which IRQ number is whose: by number and by device, and which numbers are kept."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from virtirq.daemon.ledger import Ledger, is_line
from virtirq.model import InterruptKey, InterruptKind, PciAddress, VfioAction

A, B = PciAddress(0, 0x41, 0, 0), PciAddress(0, 0x42, 0, 0)


def vector(number: int, device: PciAddress = A) -> InterruptKey:
    return InterruptKey(device, str(VfioAction(device, InterruptKind.MSIX, number)))


def line(device: PciAddress) -> InterruptKey:
    return InterruptKey(device, str(VfioAction(device, InterruptKind.INTX)))


def test_a_vector() -> None:
    ledger = Ledger()
    ledger.appeared(100, vector(3), kept=True)
    assert ledger.at(100) == {vector(3): True}
    assert ledger.numbers(A) == (100,)
    assert ledger.vectors(A) == {3: 100}
    assert ledger.kept == {100}
    assert (ledger.count, ledger.keeps(100)) == (1, True)
    ledger.forget(100)
    assert (ledger.at(100), ledger.numbers(A), ledger.vectors(A), ledger.count) == ({}, (), {}, 0)


def test_a_number_that_is_another_devices_by_now() -> None:
    ledger = Ledger()
    ledger.appeared(100, vector(0), kept=True)
    ledger.appeared(100, vector(1, B), kept=False)
    assert (ledger.numbers(A), ledger.numbers(B)) == ((), (100,))
    assert ledger.at(100) == {vector(1, B): False}
    assert ledger.kept == frozenset()


def test_a_vector_that_has_another_number_by_now() -> None:
    ledger = Ledger()
    ledger.remember(A, {100: {vector(0): True}, 101: {vector(1): True}})
    ledger.remember(A, {101: {vector(0): True}, 102: {vector(1): True}})
    assert ledger.vectors(A) == {0: 101, 1: 102}
    assert ledger.numbers(A) == (101, 102)


def test_a_line_that_two_are_on() -> None:
    ledger = Ledger()
    ledger.remember(A, {20: {line(A): True}})
    ledger.remember(B, {20: {line(B): False}})
    assert is_line(line(A))
    assert not is_line(vector(0))
    assert ledger.on_lines_with([A]) == {A, B}
    assert ledger.on_lines_with([]) == set()
    assert ledger.keeps(20)
    ledger.remember(A, {})
    assert ledger.at(20) == {line(B): False}
    assert not ledger.keeps(20)
    assert ledger.on_lines_with([A]) == {A}


def test_that_others_are_kept_is_told() -> None:
    told: list[frozenset[int]] = []
    ledger = Ledger(lambda: told.append(ledger.kept))
    ledger.appeared(100, vector(0), kept=True)
    ledger.appeared(100, vector(0), kept=True)
    ledger.appeared(101, vector(1), kept=False)
    assert told == [{100}]
    ledger.remember(A, {101: {vector(1): True}})
    assert told[-1] == {101}
    ledger.forget(101)
    ledger.forget(101)
    assert told[-2:] == [{101}, frozenset()]


KEYS = [vector(0), vector(1), line(A), vector(0, B), line(B)]
FOUND = st.dictionaries(
    st.integers(0, 4), st.dictionaries(st.sampled_from(KEYS), st.booleans()), max_size=3
)
STEP = st.one_of(
    st.tuples(st.just("remember"), st.sampled_from([A, B]), FOUND),
    st.tuples(st.just("appeared"), st.integers(0, 4), st.sampled_from(KEYS)),
    st.tuples(st.just("forget"), st.integers(0, 4), st.none()),
)


@given(st.lists(STEP, max_size=20))
def test_the_indexes_say_what_the_numbers_say(steps: list[tuple[str, object, object]]) -> None:
    ledger = Ledger()
    for what, first, second in steps:
        if what == "remember":
            found = {
                irq: {key: kept for key, kept in keys.items() if key.device == first}
                for irq, keys in second.items()  # type: ignore[attr-defined]
            }
            ledger.remember(first, {irq: keys for irq, keys in found.items() if keys})  # type: ignore[arg-type]
        elif what == "appeared":
            ledger.appeared(first, second, kept=True)  # type: ignore[arg-type]
        else:
            ledger.forget(first)  # type: ignore[arg-type]
        numbers = defaultdict(set)
        for irq, keys in ledger.everything().items():
            assert keys
            for key in keys:
                numbers[key.device].add(irq)
        for device in (A, B):
            assert set(ledger.numbers(device)) == numbers[device]
            for number, irq in ledger.vectors(device).items():
                assert vector(number, device) in ledger.at(irq)
        everything = ledger.everything()
        assert ledger.kept == {irq for irq in everything if any(ledger.at(irq).values())}
