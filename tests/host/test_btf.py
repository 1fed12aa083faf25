"""BTF: fields by path, in types made by hand, in hostile bytes, and in this machine's own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.host.btf import Btf, BtfError, Field

Member = tuple[str, int, int]
"""Name, type, and offset in bits."""


class Types:
    """BTF in the making (include/uapi/linux/btf.h); each method gives the number of a new type.

    A module's continues that of the kernel, `base`, and uses its strings where it can.
    """

    def __init__(self, base: Types | None = None) -> None:
        self._first: int = base._first + base._count if base else 1
        self._base_strings: bytes = base._strings if base else b""
        self._strings: bytes = b"" if base else b"\0"
        self._types = b""
        self._count: int = 0

    def blob(self) -> bytes:
        strings = self._strings or b"\0"
        sizes = (len(self._types), len(self._types), len(strings))
        return struct.pack("HBBIIIII", 0xEB9F, 1, 0, 24, 0, *sizes) + self._types + strings

    def add(
        self, kind: int, name: str, rest: int, parts: int = 0, more: bytes = b"", flag: bool = False
    ) -> int:
        info = flag << 31 | kind << 24 | parts
        self._types += struct.pack("III", self._string(name), info, rest) + more
        self._count += 1
        return self._first + self._count - 1

    def number(self, size: int, bits: int = 0, offset: int = 0) -> int:
        return self.add(1, "int", size, more=struct.pack("I", offset << 16 | (bits or 8 * size)))

    def pointer(self, target: int = 0) -> int:
        return self.add(2, "", target)

    def alias(self, target: int, kind: int = 8) -> int:
        return self.add(kind, "alias" if kind == 8 else "", target)

    def struct(
        self, name: str, size: int, members: Sequence[Member], kind: int = 4, flag: bool = False
    ) -> int:
        packed = [struct.pack("III", self._string(each[0]), *each[1:]) for each in members]
        return self.add(kind, name, size, len(members), b"".join(packed), flag)

    def _string(self, text: str) -> int:
        wanted = text.encode() + b"\0"
        known = self._base_strings + self._strings
        at = 0 if not text else known.find(b"\0" + wanted) + 1
        if text and not at:
            self._strings += wanted
            return len(known)
        return at


def made(name: str, *members: Member, types: Types | None = None) -> Btf:
    types = types or Types()
    types.struct(name, 64, members)
    return Btf(types.blob())


def test_a_field_is_found_where_it_is() -> None:
    types = Types()
    number, pointer = types.number(4), types.pointer()
    found = made("irqaction", ("flags", number, 0), ("dev_id", pointer, 64), types=types)
    assert found.field("irqaction", "flags") == Field(0, 4)
    assert found.field("irqaction", "dev_id") == Field(8, 8)


def test_a_path_leads_through_structures_and_other_names_of_them() -> None:
    types = Types()
    pointer = types.pointer()
    head = types.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    inner = types.struct("wait_queue_head", 24, [("lock", types.number(4), 0), ("head", head, 64)])
    alias = types.alias(types.alias(types.alias(inner), 9), 10)  # const volatile wait_queue_head_t
    found = made("eventfd_ctx", ("kref", types.number(4), 0), ("wqh", alias, 128), types=types)
    assert found.field("eventfd_ctx", "wqh") == Field(16, 24)
    assert found.field("eventfd_ctx", "wqh.head") == Field(24, 16)
    assert found.field("eventfd_ctx", "wqh.head.prev") == Field(32, 8)
    assert found.field("list_head", "prev") == Field(8, 8)


def test_members_of_what_has_no_name_are_their_owners() -> None:
    types = Types()
    number = types.number(4)
    message = types.struct("", 12, [("low", number, 0), ("high", number, 32), ("data", number, 64)])
    pin = types.struct("", 8, [("chip", number, 0), ("pin", number, 32)])
    union = types.struct("", 12, [("irqchip", pin, 0), ("msi", message, 0)], kind=5)
    deeper = types.struct("", 16, [("", types.alias(union, 10), 32)])
    found = made("entry", ("gsi", number, 0), ("", deeper, 32), types=types)
    assert found.field("entry", "msi.data") == Field(16, 4)
    assert found.field("entry", "irqchip.pin") == Field(12, 4)
    assert found.field("entry", "msi") == Field(8, 12)


def test_where_there_is_a_flag_offsets_have_a_width_beside_them() -> None:
    types = Types()
    number = types.number(4)
    members = [("whole", number, 32), ("some", number, 5 << 24 | 64), ("last", number, 96)]
    types.struct("flags", 16, members, flag=True)
    found = Btf(types.blob())
    assert found.field("flags", "whole") == Field(4, 4)
    assert found.field("flags", "last") == Field(12, 4)
    with pytest.raises(BtfError, match="struct flags: no field some"):
        found.field("flags", "some")


@pytest.mark.parametrize(
    ("bits", "offset", "place"), [(5, 0, 32), (5, 3, 32), (32, 0, 33), (0, 2, 32)]
)
def test_bit_fields_of_the_older_form_are_no_fields(bits: int, offset: int, place: int) -> None:
    types = Types()
    odd = types.number(4, bits, offset)
    with pytest.raises(BtfError):
        made("flags", ("some", odd, place), types=types).field("flags", "some")


@pytest.mark.parametrize(
    ("struct_", "path", "message"),
    [
        ("irq_desc", "action", "struct irq_desc is not known"),
        ("kvm", "memory", "struct kvm: no field memory"),
        ("kvm", "mm.owner", "struct kvm: no field mm.owner"),  # nothing is behind a pointer
        ("kvm", "pid.number", "struct kvm: no field pid.number"),
        ("kvm", "", "struct kvm: no field "),
        ("kvm", "m", "struct kvm: no field m"),
        ("kv", "mm", "struct kv is not known"),
        ("kvm", "list", "struct kvm: list is neither"),
        ("empty", "mm", "struct empty is not known"),
        ("only_declared", "mm", "struct only_declared is not known"),
    ],
)
def test_what_is_not_there_is_named(struct_: str, path: str, message: str) -> None:
    types = Types()
    number = types.number(4)
    array = types.add(3, "", 0, more=struct.pack("III", number, number, 4))
    types.struct("empty", 0, [])
    types.add(7, "only_declared", 0)
    members = [("mm", types.pointer(), 0), ("pid", number, 64), ("list", array, 96)]
    found = made("kvm", *members, types=types)
    with pytest.raises(BtfError) as raised:
        found.field(struct_, path)
    assert message in str(raised.value)


def test_a_module_continues_the_kernels_types_and_strings() -> None:
    kernel = Types()
    pointer = kernel.pointer()
    head = kernel.struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    module = Types(base=kernel)
    own = module.struct("own", 8, [("one", module.number(8), 0)])
    module.struct("irqfd", 40, [("prev", head, 64), ("own", own, 192), ("to", pointer, 256)])
    found = Btf(kernel.blob(), module.blob())
    assert found.field("irqfd", "prev.prev") == Field(16, 8)
    assert found.field("irqfd", "own.one") == Field(24, 8)
    assert found.field("list_head", "next") == Field(0, 8)


def test_a_structure_that_is_defined_again_must_be_the_same() -> None:
    kernel = Types()
    number = kernel.number(4)
    kernel.struct("twice", 8, [("a", number, 0), ("b", number, 32)])
    alike, unlike, less = Types(kernel), Types(kernel), Types(kernel)
    alike.struct("twice", 12, [("a", number, 0), ("b", number, 32), ("c", number, 64)])
    unlike.struct("twice", 12, [("a", number, 0), ("c", number, 32), ("b", number, 64)])
    less.struct("twice", 8, [("a", number, 0)])
    assert Btf(kernel.blob(), alike.blob()).field("twice", "b") == Field(4, 4)
    assert Btf(kernel.blob(), unlike.blob()).field("twice", "a") == Field(0, 4)
    for other in (unlike, less):
        with pytest.raises(BtfError, match="twice"):
            Btf(kernel.blob(), other.blob()).field("twice", "b")


def test_kinds_that_are_not_asked_for_are_passed_over() -> None:
    types = Types()
    number = types.number(4)
    trailers = {3: 12, 14: 4, 17: 4}
    each = {6: 8, 13: 8, 15: 12, 19: 12}
    for kind in range(1, 20):
        if kind in each:
            types.add(kind, "x", 4, 3, b"\xff" * each[kind] * 3)
        elif kind not in (1, 4, 5):
            types.add(kind, "x", 4, more=b"\xff" * trailers.get(kind, 0))
    assert made("s", ("f", number, 96), types=types).field("s", "f") == Field(12, 4)
    types.add(20, "from the future", 4)
    with pytest.raises(BtfError, match="kind 20"):
        Btf(types.blob())


def test_types_that_lead_back_to_themselves_come_to_an_end() -> None:
    types = Types()
    types.alias(1)  # typedef of itself
    types.struct("within", 8, [("", 2, 0)])  # in itself, and without a name
    types.struct("odd", 8, [("f", 1, 0), ("", 1, 0)])
    found = Btf(types.blob())
    for name in ("within", "odd"):
        with pytest.raises(BtfError):
            found.field(name, "f")
        with pytest.raises(BtfError):
            found.field(name, "g")


def test_work_does_not_grow_faster_than_the_bytes() -> None:
    """Each has two of the next without a name: so many ways, and each is gone only once."""
    types = Types()
    for depth in range(2000):
        types.struct(f"s{depth}", 8, [("", depth + 2, 0), ("", depth + 2, 32)])
    types.struct("last", 8, [("f", types.number(4), 0)])
    types.struct("s", 8, [("", 1, 0)])
    with pytest.raises(BtfError, match="no field g"):
        Btf(types.blob()).field("s", "g")
    many = Types()
    for _ in range(1000):
        many.struct("s", 8, [("", 1, 0)])
    with pytest.raises(BtfError, match="more than 16"):
        Btf(many.blob()).field("s", "g")


def whole() -> tuple[bytes, bytes]:
    kernel = Types()
    number, pointer = kernel.number(4), kernel.pointer()
    inner = kernel.struct("", 8, [("low", number, 0), ("high", number, 32)], kind=5)
    kernel.struct("outer", 24, [("name", kernel.alias(pointer), 0), ("", inner, 64)])
    module = Types(kernel)
    module.struct("own", 8, [("outer", 5, 0)])
    return kernel.blob(), module.blob()


def fields(base: bytes, split: bytes = b"") -> None:
    """Whatever it is, it says something about some fields, or BtfError."""
    try:
        found = Btf(base, split)
    except BtfError:
        return
    for struct_ in ("outer", "own", ""):
        for path in ("name", "low", "high", "outer.high", "outer.name", "", "."):
            try:
                field = found.field(struct_, path)
            except BtfError:
                continue
            assert 0 <= field.offset < 1 << 40
            assert 0 <= field.size < 1 << 32


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes(base: bytes, split: bytes) -> None:
    fields(base, split)


@given(st.data())
def test_broken_types(data: st.DataObject) -> None:
    blobs = [bytearray(each) for each in whole()]
    for _ in range(data.draw(st.integers(1, 4))):
        blob = blobs[data.draw(st.integers(0, 1))]
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blobs[1])))
    fields(bytes(blobs[0]), bytes(blobs[1]) if cut % 2 else bytes(blobs[1][:cut]))


@given(st.binary(max_size=400))
def test_any_types(types: bytes) -> None:
    strings = b"\0outer\0low\0"
    sizes = (len(types), len(types), len(strings))
    fields(struct.pack("HBBIIIII", 0xEB9F, 1, 0, 24, 0, *sizes) + types + strings)


@pytest.mark.parametrize("cut", range(len(whole()[0])))
def test_nothing_is_found_in_the_first_part_of_it(cut: int) -> None:
    with pytest.raises(BtfError):
        Btf(whole()[0][:cut])


VMLINUX = Path("/sys/kernel/btf/vmlinux")


@pytest.mark.skipif(not VMLINUX.exists(), reason="this machine's kernel has no BTF")
def test_this_machines_kernel() -> None:
    found = Btf(VMLINUX.read_bytes())
    assert found.field("list_head", "next") == Field(0, 8)
    assert found.field("list_head", "prev") == Field(8, 8)
    pid, tgid = found.field("task_struct", "pid"), found.field("task_struct", "tgid")
    assert (pid.size, tgid.size) == (4, 4)
    assert tgid.offset == pid.offset + 4  # include/linux/sched.h
    # In a structure without a name within (include/linux/mm_types.h).
    assert found.field("mm_struct", "pgd").size == 8
    with pytest.raises(BtfError, match="struct list_head: no field first"):
        found.field("list_head", "first")
