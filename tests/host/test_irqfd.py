"""What the BPF program needs of a kernel, and what its lines say."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.test_btf import Types
from virtirq.host import irqfd
from virtirq.host.btf import Btf, BtfError
from virtirq.host.irqfd import Answer, SymbolError, find_woken, offsets, parse, program

Layout = Mapping[str, Mapping[str, str]]
"""By structure its members: ``*`` is a pointer, ``u32`` and ``u16`` are numbers, and any other
word is a structure. A structure whose name begins with ``.`` has none, nor have such members."""

KERNEL: Layout = {
    "kobject": {"name": "*"},
    "irq_data": {"mask": "u32", "irq": "u32"},
    "irq_desc": {"irq_data": "irq_data", "action": "*", "kobj": "kobject"},
    "irqaction": {"handler": "*", "dev_id": "*", "name": "*"},
    "list_head": {"next": "*", "prev": "*"},
    "wait_queue_head": {"lock": "*", "head": "list_head"},
    "wait_queue_entry": {"flags": "*", "private": "*", "func": "*", "entry": "list_head"},
    "eventfd_ctx": {"kref": "*", "wqh": "wait_queue_head"},
    "seqcount": {"sequence": "u32"},
    "seqcount_spinlock": {"seqcount": "seqcount"},
    ".unnamed": {"owner": "*"},
    "mm_struct": {"pgd": "*", ".": ".unnamed"},
    "task_struct": {"pid": "u32", "tgid": "u32"},
}
MODULE: Layout = {
    ".msi": {"address_lo": "u32", "address_hi": "u32", "data": "u32"},
    ".union": {"msi": ".msi"},
    "kvm_kernel_irq_routing_entry": {"gsi": "u32", "type": "u32", "set": "*", ".": ".union"},
    "kvm": {"lock": "*", "mm": "*"},
    "kvm_kernel_irqfd": {
        "kvm": "*",
        "wait": "wait_queue_entry",
        "irq_entry": "kvm_kernel_irq_routing_entry",
        "irq_entry_sc": "seqcount_spinlock",
        "gsi": "u32",
        "eventfd": "*",
    },
}


def types(layout: Layout, base: Types | None = None, known: dict[str, int] | None = None) -> Types:
    """Each member takes 64 bytes, so that no two layouts look alike by chance."""
    made = Types(base)
    known = {} if known is None else known
    if not base:
        known |= {"*": made.pointer(), "u32": made.number(4), "u16": made.number(2)}
    for name, members in layout.items():
        listed = [
            (called.strip("."), known[kind], 512 * at)
            for at, (called, kind) in enumerate(members.items())
        ]
        known[name] = made.struct("" if name[0] == "." else name, 64 * len(listed), listed)
    return made


def blobs(kernel: Layout = KERNEL, module: Layout = MODULE) -> tuple[bytes, bytes]:
    known: dict[str, int] = {}
    base = types(kernel, None, known)
    return base.blob(), types(module, base, known).blob()


def without(layout: Layout, name: str, member: str) -> Layout:
    return {**layout, name: {k: v for k, v in layout[name].items() if k != member}}


AT = {
    "kobject": 128, "number": 64, "action": 64, "name": 128, "device": 64, "queue": 128, "next": 0,
    "entry": 192, "woken": 128, "wait": 64, "eventfd": 320, "changes": 192, "type": 192,
    "low": 320, "high": 384, "data": 448, "vm": 0, "memory": 64, "owner": 64, "process": 64,
}  # fmt: skip


def test_fields_are_where_btf_says() -> None:
    assert offsets(Btf(*blobs())) == AT


def test_a_kernel_with_kvm_built_in() -> None:
    assert offsets(Btf(blobs({**KERNEL, **MODULE}, {})[0])) == AT


NEEDED = [
    ("irq_desc", "irq_data"), ("irq_desc", "kobj"), ("irq_desc", "action"), ("irq_data", "irq"),
    ("irqaction", "dev_id"), ("irqaction", "name"), ("eventfd_ctx", "wqh"),
    ("wait_queue_head", "head"), ("wait_queue_entry", "func"), ("wait_queue_entry", "entry"),
    ("list_head", "next"), ("seqcount", "sequence"), (".unnamed", "owner"),
    ("task_struct", "tgid"), ("kvm_kernel_irqfd", "wait"), ("kvm_kernel_irqfd", "eventfd"),
    ("kvm_kernel_irqfd", "kvm"), ("kvm_kernel_irqfd", "irq_entry"),
    ("kvm_kernel_irqfd", "irq_entry_sc"), ("kvm_kernel_irq_routing_entry", "type"),
    (".msi", "address_lo"), (".msi", "address_hi"), (".msi", "data"), ("kvm", "mm"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "member"), NEEDED)
def test_a_field_that_this_kernel_has_not_is_named(name: str, member: str) -> None:
    whole = {**KERNEL, **MODULE}
    with pytest.raises(BtfError, match=rf"struct \w+: no field [\w.]*\b{member}\b"):
        offsets(Btf(blobs(without(whole, name, member), {})[0]))


def test_a_field_of_another_width_is_not_read() -> None:
    changed = {**MODULE, ".msi": {"address_lo": "u32", "address_hi": "u32", "data": "u16"}}
    with pytest.raises(BtfError, match=r"irqfd: irq_entry\.msi\.data has 2 bytes and not 4"):
        offsets(Btf(*blobs(KERNEL, changed)))


def test_without_kvm_its_structure_is_named() -> None:
    with pytest.raises(BtfError, match="struct kvm_kernel_irqfd is not known"):
        offsets(Btf(blobs()[0]))


def btf_of_this_machine() -> Btf:
    found = [Path("/sys/kernel/btf", name) for name in ("vmlinux", "kvm")]
    if not found[0].exists():
        pytest.skip("this machine's kernel has no BTF")
    return Btf(*(each.read_bytes() for each in found if each.exists()))


def test_this_machines_kernel() -> None:
    found = btf_of_this_machine()
    try:
        found.field("kvm_kernel_irqfd", "kvm")
    except BtfError:
        pytest.skip("this machine's kernel has no KVM")
    at = offsets(found)
    assert at["high"] == at["low"] + 4  # include/linux/kvm_host.h
    assert at["data"] == at["low"] + 8
    assert 0 < max(at.values()) < 1 << 16


SYMBOLS = [
    b"ffffffff81000000 T _text\n",
    b"ffffffff811eae70 t hwirq_show\n",
    b"ffffffff811eae71 t not_hwirq_show\n",
    b"ffffffff811eae72 t hwirq_show_not\n",
    b"ffffffff811eae73 t __pfx_irqfd_wakeup\n",
    b"ffffffffc0a11111 t hsm_irqfd_wakeup\t[acrn]\n",
]
KVM = b"ffffffffc0abcdef t irqfd_wakeup\t[kvm]\n"
XEN = b"ffffffffc0b22222 t irqfd_wakeup\t[xen_privcmd]\n"
BUILT_IN = b"ffffffff81285f20 t irqfd_wakeup\n"


@pytest.mark.parametrize(
    ("more", "address"),
    [
        ([KVM], 0xFFFF_FFFF_C0AB_CDEF),
        ([XEN, KVM], 0xFFFF_FFFF_C0AB_CDEF),
        ([KVM, BUILT_IN], 0xFFFF_FFFF_C0AB_CDEF),
        ([BUILT_IN], 0xFFFF_FFFF_8128_5F20),
        ([BUILT_IN, XEN], 0xFFFF_FFFF_8128_5F20),
        ([KVM.rstrip()], 0xFFFF_FFFF_C0AB_CDEF),
    ],
)
def test_kvms_own_function_is_found(more: list[bytes], address: int) -> None:
    assert find_woken(SYMBOLS + more) == address
    assert find_woken(more + SYMBOLS) == address


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"hwirq_show\(\) is there 0 times"),
        (SYMBOLS, r"irqfd_wakeup\(\) is there 0 times"),
        ([*SYMBOLS, XEN], r"irqfd_wakeup\(\) is there 0 times"),
        ([*SYMBOLS, BUILT_IN, BUILT_IN], r"irqfd_wakeup\(\) is there 2 times"),
        ([*SYMBOLS, KVM, KVM], r"irqfd_wakeup\(\) is there 2 times"),
        ([*SYMBOLS, KVM, SYMBOLS[1]], r"hwirq_show\(\) is there 2 times"),
        ([*SYMBOLS, b"0000000000000000 t irqfd_wakeup\t[kvm]\n"], "does not tell its addresses"),
        ([*SYMBOLS, b"irqfd_wakeup", b"x t irqfd_wakeup", b"\xff irqfd_wakeup\n"], "0 times"),
    ],
)
def test_where_it_cannot_be_told_which_it_is(lines: list[bytes], message: str) -> None:
    with pytest.raises(SymbolError, match=message):
        find_woken(lines)


@given(st.lists(st.one_of(st.binary(max_size=60), st.sampled_from([*SYMBOLS, KVM, XEN]))))
def test_any_symbols(lines: list[bytes]) -> None:
    try:
        found = find_woken(lines)
    except SymbolError:
        return
    assert found == 0xFFFF_FFFF_C0AB_CDEF


def test_the_program_has_all_that_it_was_given() -> None:
    at = {name: 1000 + number for number, name in enumerate(AT)}
    text = program(at, 0xFFFF_FFFF_C0AB_CDEF, 4711)
    assert text.startswith("kprobe:hwirq_show\n/pid == 4711/\n{")
    for offset in at.values():
        assert re.search(rf"\b{offset}\b", text)
    assert str(0xFFFF_FFFF_C0AB_CDEF) in text
    assert str(struct.unpack("Q", b"vfio-msi")[0]) in text
    assert text.count("{") == text.count("}")
    assert "unroll (8)" in text
    assert not re.search(r"\bwhile\b|@", text)  # it never goes on for long, and keeps nothing


LINES = {
    # Linux 6.1, bpftrace 0.17 and 0.23: one with a message, and one without
    b"irqfd 25336198214 42 2 2 2 4276092928 0 16384 128": Answer(
        25336198214, 42, routed=True, address=0xFEE0_0000, data=0x4000, pid=128
    ),
    b"irqfd 25336198214 46": Answer(25336198214, 46),
    b"irqfd 1 42 2 2 2 4276092928 74496 16384 128": Answer(
        1, 42, routed=True, address=0x12300_FEE0_0000, data=0x4000, pid=128
    ),
    # it is being changed, or has been
    b"irqfd 1 42 3 3 2 4276092928 0 16384 128": Answer(1, 42, changing=True),
    b"irqfd 1 42 2 4 2 4276092928 0 16384 128": Answer(1, 42, changing=True),
    # no entry, or a line of an interrupt controller's (KVM_IRQ_ROUTING_IRQCHIP); no process
    b"irqfd 1 42 2 2 0 0 0 0 128": Answer(1, 42),
    b"irqfd 1 42 2 2 1 1 5 0 128": Answer(1, 42),
    b"irqfd 1 42 2 2 2 4276092928 0 16384 0": Answer(1, 42),
    b"irqfd 0 4294967295 0 0 2 4294967295 4294967295 4294967295 4294967295": Answer(
        0, 2**32 - 1, routed=True, address=2**64 - 1, data=2**32 - 1, pid=2**32 - 1
    ),
}


@pytest.mark.parametrize(("line", "answer"), LINES.items())
def test_lines_of_the_program(line: bytes, answer: Answer) -> None:
    assert parse(line) == answer


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Attaching 1 probe...",
        b"Lost 3 events",
        b"irqfd",
        b"irqfd 1",
        b"irqfd 1 ",
        b"irqfd 1 42 ",
        b" irqfd 1 42",
        b"irqfd 1 42\n",
        b"irqfd 1 42\r",
        b"irqfd -1 42",
        b"irqfd 1 0x2a",
        b"irqfd 1  42",
        b"irqfd 1 4294967296",
        b"irqfd 1 42 2 2 2 4276092928 0 16384",
        b"irqfd 1 42 2 2 2 4276092928 0 16384 128 1",
        b"irqfd 1 42 2 2 2 4276092928 0 -1 128",
        b"irqfd 1 42 2 2 2 4276092928 0 4294967296 128",
        b"irqfd 1 42 2 2 2 4276092928 0 16384 12irqfd 2 43",
        b"irqfd 1 42irqfd 1 43",
        "irqfd 1 ４２".encode(),
    ],
)
def test_other_lines_say_nothing(line: bytes) -> None:
    assert parse(line) is None


WORDS = st.one_of(st.integers(-1, 2**65).map(str), st.sampled_from(["irqfd", "", "x", "\n"]))


@given(
    st.one_of(st.binary(), st.lists(WORDS).map(lambda each: " ".join(["irqfd", *each]).encode()))
)
def test_any_line(line: bytes) -> None:
    answer = parse(line)
    if answer is None:
        return
    words = line.decode().split(" ")
    assert len(words) in (3, 10)
    assert [answer.at, answer.irq] == [int(each) for each in words[1:3]]
    if answer.routed:
        assert not answer.changing
        assert words[3] == words[4]
        low, high, data, pid = (int(each) for each in words[6:])
        assert (answer.address, answer.data, answer.pid) == (high << 32 | low, data, pid)


NUMBERS = st.integers(0, 2**32 - 1)


@given(st.integers(0, 2**64 - 1), st.lists(NUMBERS, min_size=5, max_size=5), st.booleans())
def test_what_is_printed_is_read(at: int, numbers: list[int], busy: bool) -> None:
    irq, changes, low, high, data = numbers
    changes |= 1
    changes -= not busy
    line = f"irqfd {at} {irq} {changes} {changes} 2 {low} {high} {data} 77"
    expected = Answer(at, irq, True, False, high << 32 | low, data, 77)
    assert parse(line.encode()) == (Answer(at, irq, changing=True) if busy else expected)


def test_the_name_that_is_looked_for_is_vfios() -> None:
    assert irqfd._VFIO.to_bytes(8, sys.byteorder) == b"vfio-msi"
