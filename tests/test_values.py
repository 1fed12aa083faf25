"""Our `dataclass` beside that of the standard library: whoever uses one must not see which."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq import values
from virtirq.values import pattern

OPTIONS: tuple[dict[str, bool], ...] = (
    {"frozen": True, "slots": True},
    {"frozen": True},
    {"slots": True},
    {},
    {"eq": False, "slots": True},
    {"frozen": True, "slots": True, "eq": False},
)
Maker = tuple[Callable[..., Any], Callable[..., Any]]
OURS: Maker = (values.dataclass, values.field)
THEIRS: Maker = (dataclasses.dataclass, dataclasses.field)


def made(maker: Maker, options: dict[str, bool]) -> Any:
    decorate, field = maker

    @decorate(**options)
    class Value:
        """A value."""

        one: int
        two: str = "2"
        three: list[int] = field(default_factory=list)
        four: int = field(default=4, metadata={"key": "vier"})

        @property
        def twice(self) -> int:
            return 2 * self.one

    return Value


@pytest.fixture(params=OPTIONS, ids=str)
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return made(OURS, request.param), made(THEIRS, request.param)


def test_the_description_is_the_same(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert hasattr(ours, "__dataclass_fields__")
    assert ours.__match_args__ == theirs.__match_args__
    assert ours.__doc__ == theirs.__doc__ == "A value."
    assert (ours.__name__, ours.__qualname__, ours.__module__) == (
        *(theirs.__name__, theirs.__qualname__, theirs.__module__),
    )
    assert repr(ours.__dataclass_params__) == repr(theirs.__dataclass_params__)
    told = [
        [(f.name, f.type, f.default, f.default_factory, f.metadata) for f in fields(cls)]
        for cls in both
    ]
    assert told[0] == told[1]
    assert ("__slots__" in vars(ours)) == ("__slots__" in vars(theirs))
    assert hasattr(ours(1), "__dict__") == hasattr(theirs(1), "__dict__")


@given(st.integers(), st.text(), st.lists(st.integers()), st.integers(0, 3))
def test_values_behave_the_same(one: int, two: str, three: list[int], given_: int) -> None:
    for options in OPTIONS:
        told = []
        for maker in (OURS, THEIRS):
            cls = made(maker, options)
            value = cls(one, *[two, three, 5][:given_])
            named = list({"two": two, "three": three, "four": 5}.items())[:given_]
            again = cls(one=one, **dict(named))
            other = cls(one + 1)
            replaced = values.replace(value, two="x")
            assert repr(replaced) == repr(dataclasses.replace(value, two="x"))
            told.append(
                (
                    *(repr(value), value == again, value == other, value != again, value == one),
                    *(value.twice, dataclasses.asdict(value), repr(replaced)),
                )
            )
        assert told[0] == told[1], options


def test_hashes(both: tuple[Any, Any]) -> None:
    for cls in both:
        one, same = cls(1, three=()), cls(1, three=())
        if cls.__hash__ is None:
            with pytest.raises(TypeError, match="unhashable"):
                hash(one)
        else:
            assert len({one, same}) == (1 if one == same else 2)
    assert (both[0].__hash__ is None) == (both[1].__hash__ is None)


@pytest.mark.parametrize(
    "arguments", [((), {}), ((1, 2, 3, 4, 5), {}), ((1,), {"one": 2}), ((1,), {"x": 2})]
)
def test_wrong_arguments(both: tuple[Any, Any], arguments: tuple[Any, Any]) -> None:
    told = []
    for cls in both:
        for _ in range(2):  # before and after there is one
            with pytest.raises(TypeError) as error:
                cls(*arguments[0], **arguments[1])
        told.append(re.sub(r"\S+__init__", "__init__", str(error.value)))
        cls(1)
    assert told[0] == told[1]


def test_changes(both: tuple[Any, Any]) -> None:
    for cls in both:
        value = cls(1)
        if cls.__dataclass_params__.frozen:
            with pytest.raises(dataclasses.FrozenInstanceError):
                value.one = 2
            with pytest.raises(dataclasses.FrozenInstanceError):
                del value.one
        else:
            value.one = 2
            assert value.twice == 4
        with pytest.raises(TypeError):
            values.replace(value, five=5)
        assert cls(1).three is not cls(1).three


@values.dataclass(frozen=True, slots=True)
class Kept:
    one: int
    two: str = ""


@values.dataclass(slots=True)
class Corrected:
    one: int

    def __post_init__(self) -> None:
        self.one += 1


def test_it_is_pickled() -> None:
    assert pickle.loads(pickle.dumps(Kept(1, "2"))) == Kept(1, "2")


def test_what_comes_after_the_fields() -> None:
    assert (Corrected(1).one, Corrected(1).one) == (2, 2)


def test_it_is_matched_by_place() -> None:
    match Kept(1, "2"):
        case Kept(one, two):
            assert (one, two) == (1, "2")


def test_a_default_that_all_would_share_is_refused() -> None:
    with pytest.raises(ValueError, match="one of Shared"):

        @values.dataclass
        class Shared:
            one: list[int] = []  # noqa: RUF012


def test_a_pattern_is_compiled_when_it_is_used() -> None:
    wrong = pattern("(")
    with pytest.raises(re.error):
        wrong.search("")
    digits = pattern(r"\d+", re.ASCII)
    for _ in range(2):
        match = digits.search("a12")
        assert match is not None
        assert match[0] == "12"
        assert digits.findall("1٣2") == ["1", "2"]
    assert digits.pattern == r"\d+"
