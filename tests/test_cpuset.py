"""CpuSet against a model (a frozenset of int), and against text that wishes it ill."""

from __future__ import annotations

import copy
import itertools
import pickle

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from virtirq.cpuset import MAX_CPUS, CpuSet, union
from virtirq.errors import CpuSetError

LAST = MAX_CPUS - 1
numbers = st.integers(0, LAST)
small = st.integers(0, 70)
# Dense sets make ranges, wide ones make many mask groups.
sets = st.one_of(st.frozensets(small, max_size=60), st.frozensets(numbers, max_size=40))


def listed(cpus: frozenset[int]) -> str:
    """The kernel's %*pbl, written out the slow way."""
    pieces = []
    # Neighbours share the difference between their number and their place.
    places = enumerate(sorted(cpus))
    for _, group in itertools.groupby(places, key=lambda each: each[1] - each[0]):
        run = [cpu for _, cpu in group]
        pieces.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(pieces)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", []),
        ("  \n", []),
        ("0", [0]),
        ("007", [7]),
        ("0-3,8", [0, 1, 2, 3, 8]),
        ("8,0-3\n", [0, 1, 2, 3, 8]),
        (" 1 , 2 ", [1, 2]),
        ("3-3", [3]),
        ("1,1,1-2,2", [1, 2]),
        ("0-7,^3", [0, 1, 2, 4, 5, 6, 7]),
        ("0-7,^2-4", [0, 1, 5, 6, 7]),
        ("^3,0-4", [0, 1, 2, 3, 4]),
        ("0-4,^3,3", [0, 1, 2, 3, 4]),
        ("1,^1", []),
        ("^5", []),
        ("63-64,127-128", [63, 64, 127, 128]),
        ("1023-1025", [1023, 1024, 1025]),
        (f"{LAST}", [LAST]),
        (f"0-{LAST}", range(MAX_CPUS)),
    ],
)
def test_parse(text: str, cpus: list[int]) -> None:
    assert list(CpuSet.parse(text)) == sorted(cpus)


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "1,",
        ",1",
        "1,,2",
        "-",
        "-1",
        "1-",
        "1--2",
        "1-2-3",
        "3-1",
        "^",
        "^^1",
        "1^2",
        "1-^2",
        "0x1",
        "f",
        "1.5",
        "1e3",
        "1 2",
        "1;2",
        "+1",
        "1_0",
        "all",
        "N",
        "0-7:2/4",
        "1\0",
        "1\n2",
        "٣",
        "²",
        "１",
        str(MAX_CPUS),
        f"0-{MAX_CPUS}",
        f"{MAX_CPUS}-{MAX_CPUS}",
        "999999999",
        "0-999999999",
        "9" * 10,
        "9" * 5000,
        "0" * 10,
        "1," * 40000,
        "(null)",
        "\N{SNOWMAN}",
        "\x1b[31m1",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(CpuSetError) as raised:
        CpuSet.parse(text)
    told = str(raised.value)
    assert len(told.splitlines()) == 1
    assert len(told) < 250
    assert told.isprintable(), "a terminal must not be steered by what was parsed"


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", []),
        ("00000000", []),
        ("1", [0]),
        ("f\n", [0, 1, 2, 3]),
        ("0xF", [0, 1, 2, 3]),
        ("1,00000000", [32]),
        ("00000001,0000000f", [0, 1, 2, 3, 32]),
        ("80000000", [31]),
        ("0,00000000,00000001", [0]),
        (",".join(["80000000"] + ["00000000"] * 511), [LAST]),
        (",".join(["0", "80000000"] + ["00000000"] * 511), [LAST]),
    ],
)
def test_parse_mask(text: str, cpus: list[int]) -> None:
    assert list(CpuSet.parse_mask(text)) == cpus


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        ",",
        "g",
        "-1",
        "+1",
        "1_0",
        "fffffffff",
        "f,f",
        "f,",
        ",f",
        "1,0000000",
        "1 ,00000000",
        "0x0x1",
        "1,0x000000",
        "٣",
        "1\0",
        "1\n1",
        ",".join(["1"] + ["00000000"] * 512),
        "0" * 70000,
        "(null)",
    ],
)
def test_parse_mask_refuses(text: str) -> None:
    with pytest.raises(CpuSetError) as raised:
        CpuSet.parse_mask(text)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("cpu", [-1, MAX_CPUS, 10**30, -(10**30)])
def test_numbers_outside(cpu: int) -> None:
    with pytest.raises(CpuSetError):
        CpuSet([0, cpu])
    with pytest.raises(CpuSetError):
        CpuSet.span(0, cpu)
    with pytest.raises(CpuSetError):
        CpuSet.span(cpu, 0)
    assert cpu not in CpuSet([0, 1])


def test_the_largest() -> None:
    whole = CpuSet.span(0, LAST)
    assert len(whole) == MAX_CPUS
    assert (whole.first(), whole.last()) == (0, LAST)
    assert str(whole) == f"0-{LAST}"
    assert CpuSet.parse_mask(whole.mask()) == whole


@given(sets)
@example(frozenset())
@example(frozenset({0}))
@example(frozenset({LAST}))
@example(frozenset(range(64)))
def test_behaves_as_a_set(cpus: frozenset[int]) -> None:
    made = CpuSet(cpus)
    assert list(made) == sorted(cpus)
    assert len(made) == len(cpus)
    assert bool(made) == bool(cpus)
    assert set(made) == cpus
    assert str(made) == listed(cpus)
    assert list(made.ranges()) == sorted(made.ranges())
    assert all(cpu in made for cpu in cpus)
    assert not any(cpu + 1 in made for cpu in cpus if cpu + 1 not in cpus)
    if cpus:
        assert (made.first(), made.last()) == (min(cpus), max(cpus))


def test_an_empty_set_has_no_ends() -> None:
    with pytest.raises(ValueError, match="no first"):
        CpuSet().first()
    with pytest.raises(ValueError, match="no last"):
        CpuSet().last()


@given(sets, sets)
def test_algebra(left: frozenset[int], right: frozenset[int]) -> None:
    one, other = CpuSet(left), CpuSet(right)
    assert set(one & other) == left & right
    assert set(one | other) == left | right
    assert set(one - other) == left - right
    assert (one <= other) == (left <= right)
    assert (one == other) == (left == right)
    assert union([one, other]) == one | other
    assert set(one) == left, "an operation changed its operand"


@given(st.lists(sets, max_size=5))
def test_union(many: list[frozenset[int]]) -> None:
    assert set(union(map(CpuSet, many))) == frozenset().union(*many)


@given(sets)
def test_round_trips(cpus: frozenset[int]) -> None:
    made = CpuSet(cpus)
    assert CpuSet.parse(str(made)) == made
    assert CpuSet.parse(f" {made}\n") == made
    assert CpuSet.parse_mask(made.mask()) == made
    assert CpuSet.parse_mask(f"0x{made.mask()}".upper().replace("0X", "0x")) == made
    assert repr(made) == f"CpuSet({str(made)!r})"
    assert pickle.loads(pickle.dumps(made)) == made
    assert copy.deepcopy(made) == made == copy.copy(made)


@given(sets)
def test_mask_is_the_bits(cpus: frozenset[int]) -> None:
    mask = CpuSet(cpus).mask()
    assert int(mask.replace(",", ""), 16) == sum(1 << cpu for cpu in cpus)
    first, *rest = mask.split(",")
    assert all(len(group) == 8 for group in rest)
    assert first == first.lstrip("0") or first == "0"


@given(st.lists(st.tuples(st.booleans(), small, small), min_size=1, max_size=12))
def test_libvirt_cpusets(parts: list[tuple[bool, int, int]]) -> None:
    text, model = [], set[int]()
    for out, one, other in parts:
        low, high = sorted((one, other))
        text.append(f"{'^' if out else ''}{low}" + (f"-{high}" if high != low else ""))
        span = set(range(low, high + 1))
        model = model - span if out else model | span
    assert set(CpuSet.parse(",".join(text))) == model


@given(st.text(alphabet="0123456789,-^ fx\n\0", max_size=40))
def test_any_text_gives_a_set_or_the_error(text: str) -> None:
    for parse in (CpuSet.parse, CpuSet.parse_mask):
        try:
            made = parse(text)
        except CpuSetError:
            continue
        assert CpuSet.parse(str(made)) == made


@given(st.text(max_size=200))
def test_errors_are_one_printable_line(text: str) -> None:
    told = ""
    try:
        CpuSet.parse(text)
    except CpuSetError as error:
        told = str(error)
    assert told.isprintable()


@given(sets)
def test_equal_sets_hash_alike(cpus: frozenset[int]) -> None:
    one, other = CpuSet(sorted(cpus)), CpuSet(sorted(cpus, reverse=True))
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other}) == 1
    assert one != cpus
    assert one != str(one)


def test_nothing_changes_a_set() -> None:
    made = CpuSet([1, 2])
    with pytest.raises(AttributeError):
        made._bits = 0
    with pytest.raises(AttributeError):
        made.other = 0
    with pytest.raises(AttributeError):
        del made._bits
    kept = made
    made |= CpuSet([3])
    assert list(kept) == [1, 2]
    assert not hasattr(kept, "__dict__")


@pytest.mark.parametrize("what", ["1", 1.0, None, (1,)])
def test_only_numbers_are_in_it(what: object) -> None:
    assert what not in CpuSet([1])
