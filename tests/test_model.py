"""The values: their spellings, and what they derive from their fields."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq import errors, model
from virtirq.cpuset import CpuSet
from virtirq.errors import DirectiveError, InputError, VirtirqError
from virtirq.model import (
    AUTO,
    NATIVE,
    Directive,
    Gap,
    Guest,
    GuestDevice,
    Interrupt,
    InterruptKey,
    InterruptKind,
    Node,
    PciAddress,
    PciDevice,
    Severity,
    Status,
    Topology,
    VfioAction,
    Word,
    by_device,
)

NIC = PciAddress.parse("0000:82:00.0")
addresses = st.builds(
    PciAddress,
    st.one_of(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)),
    st.integers(0, 0xFF),
    st.integers(0, 0x1F),
    st.integers(0, 7),
)


class TestPciAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("0000:82:00.0", (0, 0x82, 0, 0)),
            ("82:00.0", (0, 0x82, 0, 0)),
            (" 0000:82:00.0\n", (0, 0x82, 0, 0)),
            ("FFFF:FF:1F.7", (0xFFFF, 0xFF, 0x1F, 7)),
            ("10000:e1:00.0", (0x10000, 0xE1, 0, 0)),
            ("ffffffff:00:00.0", (0xFFFFFFFF, 0, 0, 0)),
            ("pci_0000_82_00_0", (0, 0x82, 0, 0)),
            ("pci_10000_e1_1f_7", (0x10000, 0xE1, 0x1F, 7)),
        ],
    )
    def test_parse(self, text: str, address: tuple[int, ...]) -> None:
        assert PciAddress.parse(text) == address

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "82",
            "82:00",
            "82:00.8",
            "82:20.0",
            "82:00.00",
            "0:82:00.0",
            "000:82:00.0",
            "000000000:82:00.0",
            "0000-82:00.0",
            "0000:82:00.0:1",
            "0000:g2:00.0",
            "0000:82:00.0x",
            "0000:82:00.٣",
            "pci_82_00_0",
            "pci_0000_82_00_8",
            "pci_0000_82_20_0",
            "pci_0000:82:00.0",
            "0000_82_00_0",
            "0000:82:00.0\0",
            "../82:00.0",
            "x" * 10000,
        ],
    )
    def test_parse_refuses(self, text: str) -> None:
        with pytest.raises(InputError) as raised:
            PciAddress.parse(text)
        assert len(str(raised.value)) < 200
        assert str(raised.value).isprintable()

    @given(addresses)
    def test_round_trip(self, address: PciAddress) -> None:
        assert PciAddress.parse(str(address)) == address
        assert PciAddress.parse(str(address).upper()) == address

    def test_prints_as_sysfs_does(self) -> None:
        assert str(PciAddress(0, 2, 0, 3)) == "0000:02:00.3"
        assert str(PciAddress(0x10000, 2, 0x1F, 3)) == "10000:02:1f.3"

    @given(st.lists(addresses, max_size=5))
    def test_sorts_by_number(self, many: list[PciAddress]) -> None:
        assert sorted(many) == sorted(many, key=tuple)


class TestDirective:
    @pytest.mark.parametrize("word", list(Word))
    def test_words(self, word: Word) -> None:
        assert Directive.parse(f" {word.value}\n") == Directive(word)
        assert str(Directive(word)) == word.value

    def test_constants(self) -> None:
        assert Directive.parse("auto") == AUTO
        assert Directive.parse("native") == NATIVE

    @pytest.mark.parametrize(
        ("text", "cpus"), [("5", "5"), ("2-5,^3", "2,4-5"), (" 0-1 \n", "0-1")]
    )
    def test_cpus(self, text: str, cpus: str) -> None:
        assert Directive.parse(text) == Directive(None, CpuSet.parse(cpus))

    @given(st.frozensets(st.integers(0, 200), min_size=1))
    def test_round_trip(self, cpus: frozenset[int]) -> None:
        made = Directive(None, CpuSet(cpus))
        assert Directive.parse(str(made)) == made

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "leaves no CPU"),
            ("  ", "leaves no CPU"),
            ("1,^1", "leaves no CPU"),
            ("^1", "leaves no CPU"),
            ("AUTO", "is not a directive"),
            ("autoo", "is not a directive"),
            ("auto,native", "is not a directive"),
            ("all", "is not a directive"),
            ("16384", "outside 0-16383"),
            ("5-2", "backwards"),
            ("cpu3", "is not a CPU"),
            ("\x1b[2J", "is not"),
        ],
    )
    def test_refuses(self, text: str, says: str) -> None:
        with pytest.raises(DirectiveError, match=says) as raised:
            Directive.parse(text)
        assert raised.value.hint is not None
        assert all(word.value in raised.value.hint for word in Word)
        assert str(raised.value).isprintable()


class TestInterrupt:
    @pytest.mark.parametrize(
        ("actions", "own"),
        [
            (None, None),
            ((), None),
            (("vfio-msix[3](0000:82:00.0)",), "vfio-msix[3](0000:82:00.0)"),
            (("vfio-msix[3](0000:82:00.1)",), None),
            (("i801_smbus", "vfio-intx(0000:82:00.0)"), "vfio-intx(0000:82:00.0)"),
            (("nvme0q1",), None),
            (("evil(0000:82:00.0)",), None),
        ],
    )
    def test_own_action(self, actions: tuple[str, ...] | None, own: str | None) -> None:
        made = Interrupt(9, NIC, InterruptKind.MSIX, None, actions)
        assert made.own_action == own
        assert made.key == InterruptKey(NIC, own or "")
        assert str(made.key) == (own or "an unnamed interrupt of 0000:82:00.0")

    def test_by_device(self) -> None:
        other = PciAddress.parse("0000:02:00.0")
        many = [Interrupt(n, d, InterruptKind.MSI, 0) for n, d in ((1, NIC), (2, other), (3, NIC))]
        assert by_device(many) == {NIC: (many[0], many[2]), other: (many[1],)}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (None, "device"),
        (0x020000, "network"),
        (0x028000, "network"),
        (0x010802, "nvme"),
        (0x0C0330, "usb"),
        (0x0C0500, "serial-bus"),
        (0x030200, "display"),
        (0xFF0000, "device"),
    ],
)
def test_device_words(code: int | None, kind: str) -> None:
    assert PciDevice(NIC, class_code=code).kind == kind


def test_topology() -> None:
    online = CpuSet.parse("0-7")
    nodes = {0: Node(0, CpuSet.parse("0-3")), 2: Node(2, CpuSet.parse("4-7"))}
    made = Topology(online, CpuSet.parse("0-15"), CpuSet.parse("2-3,9"), nodes=nodes)
    assert str(made.general) == "0-1,4-7"
    assert [made.node_of(cpu) for cpu in (0, 3, 4, 8)] == [0, 0, 2, None]
    # With every CPU isolated the scheduler still has to use some.
    assert Topology(online, online, isolated=online).general == online


def test_a_guest_is_known_by_uuid_then_name() -> None:
    assert Guest("web", "xml", uuid="u").key == "u"
    assert Guest("web", "xml").key == "web"
    assert GuestDevice(NIC, "hostdev").directive is None


def test_ranks() -> None:
    assert [each.rank for each in Severity] == [0, 1, 2]
    assert {each for each in Status if each.bad} == {Status.REFUSED, Status.FAILED}


@pytest.mark.parametrize(
    "value",
    [kind for _, kind in inspect.getmembers(model, inspect.isclass) if is_dataclass(kind)],
)
def test_every_value_is_frozen(value: type) -> None:
    assert value.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert hasattr(value, "__slots__")


def test_a_frozen_value_refuses() -> None:
    gap = Gap("/proc", "no")
    with pytest.raises(dataclasses.FrozenInstanceError):
        gap.path = "/sys"  # type: ignore[misc]


def test_the_tree_of_errors_is_drawn_whole() -> None:
    """The docstring of errors.py names every type with its exit code, and no other."""
    drawn = errors.__doc__ or ""
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if kind.__module__ != errors.__name__:
            continue
        assert issubclass(kind, VirtirqError)
        assert name in drawn
        for line in drawn.splitlines():
            if name in line.split() and "[" in line:
                assert f"[{kind.exit_code}]" in line
        assert kind.__doc__
    error = DirectiveError("no", hint="do")
    assert (str(error), error.hint, error.exit_code) == ("no", "do", errors.EXIT_USAGE)


class TestVfioAction:
    @pytest.mark.parametrize(
        ("name", "kind", "vector"),
        [
            ("vfio-msix[0](0000:82:00.0)", InterruptKind.MSIX, 0),
            ("vfio-msi[31](0000:82:00.0)", InterruptKind.MSI, 31),
            ("vfio-intx(0000:82:00.0)", InterruptKind.INTX, None),
        ],
    )
    def test_the_kernels_names(self, name: str, kind: InterruptKind, vector: int | None) -> None:
        action = VfioAction(PciAddress(0, 0x82, 0, 0), kind, vector)
        assert VfioAction.parse(name) == action
        assert str(action) == name

    @pytest.mark.parametrize(
        "name",
        ["", "eth0-rx-0", "vfio-msix[0]", "vfio-msix[0](eth0)", "vfio-msix[0](0000:82:00.0)x"],
    )
    def test_others_names(self, name: str) -> None:
        assert VfioAction.parse(name) is None
