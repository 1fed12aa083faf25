"""Our `dataclass` beside that of the standard library: whoever uses one must not see which."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, cast

import cattrs
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


def made(maker: Maker, options: dict[str, bool], name: str) -> Any:
    decorate, field = maker

    @decorate(**options)
    class Value:
        """A value."""

        one: int
        two: str = "2"
        three: tuple[int, ...] = field(default_factory=tuple)
        four: int = field(default=4, metadata={"key": "vier"})

        @property
        def twice(self) -> int:
            return 2 * self.one

    # As if it had been written at the top: then it can be pickled.
    Value.__name__ = Value.__qualname__ = name
    return Value


BOTH = []
for number, each in enumerate(OPTIONS):
    BOTH.append((made(OURS, each, f"Ours{number}"), made(THEIRS, each, f"Theirs{number}")))
    globals().update({cls.__name__: cls for cls in BOTH[-1]})


@pytest.fixture(params=BOTH, ids=[str(each) for each in OPTIONS])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return cast(tuple[Any, Any], request.param)


def test_the_description_is_the_same(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    assert hasattr(ours, "__dataclass_fields__")
    assert ours.__match_args__ == theirs.__match_args__
    assert ours.__doc__ == theirs.__doc__ == "A value."
    assert ours.__module__ == theirs.__module__
    assert repr(ours.__dataclass_params__) == repr(theirs.__dataclass_params__)
    told = [
        [(f.name, f.type, f.default, f.default_factory, f.metadata) for f in fields(cls)]
        for cls in both
    ]
    assert told[0] == told[1]
    assert ("__slots__" in vars(ours)) == ("__slots__" in vars(theirs))
    assert hasattr(ours(1), "__dict__") == hasattr(theirs(1), "__dict__")


ARGUMENTS = st.tuples(
    *(
        st.integers(0, 2),
        st.sampled_from("ab2"),
        st.lists(st.integers(0, 1), max_size=2).map(tuple),
    ),
    st.integers(3, 4),
)
NAMES = ("one", "two", "three", "four")


@given(ARGUMENTS, ARGUMENTS, st.integers(1, 4), st.integers(1, 4), st.sampled_from(NAMES))
def test_values_behave_the_same(
    one: tuple[Any, ...], two: tuple[Any, ...], by_place: int, by_name: int, changed: str
) -> None:
    """Made by place and by name, compared, hashed, shown, changed, copied and matched."""
    for pair in BOTH:
        told = []
        for cls in pair:
            value = cls(*one[:by_place])
            other = cls(**dict(list(zip(NAMES, two, strict=True))[:by_name]))
            change = {changed: "new"}
            replaced = values.replace(value, **change)
            known = {} if cls.__hash__ is None else {value: 1}
            told.append(
                (
                    *(value == other, value != other, value == cls(*one), value == one[0]),
                    *(known and known.get(other), known and known.get(cls(*one)), value.twice),
                    *(told_of(each) for each in (value, other, replaced, copy.copy(value))),
                    told_of(dataclasses.replace(value, **change)),
                    told_of(pickle.loads(pickle.dumps(value))),
                    pickle.loads(pickle.dumps(value)) == value,
                    dataclasses.astuple(value),
                    attempts(value),
                )
            )
        assert told[0] == told[1]


def told_of(value: Any) -> tuple[str, dict[str, Any]]:
    return re.sub(r"^\w+", "", repr(value)), dataclasses.asdict(value)


def attempts(value: Any) -> dict[str, str]:
    """What is raised by changing it in place."""
    found = {}
    ways = {"set": partial(setattr, value, "one", 9), "delete": partial(delattr, value, "two")}
    for name, change in ways.items():
        try:
            change()
        except (AttributeError, TypeError) as error:
            found[name] = type(error).__name__
    return found


def test_cattrs_takes_both(both: tuple[Any, Any]) -> None:
    told = []
    for cls in both:
        value = cattrs.structure({"one": "1", "three": ["2"]}, cls)
        with pytest.raises(cattrs.errors.ClassValidationError) as error:
            cattrs.structure({"one": "x"}, cls)
        why = str(error.value.exceptions[0])
        told.append((told_of(value), cattrs.unstructure(value), why))
    assert told[0] == told[1]


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


def test_what_is_not_a_field_is_refused(both: tuple[Any, Any]) -> None:
    for cls in both:
        with pytest.raises(TypeError):
            values.replace(cls(1), five=5)


def test_a_default_is_made_for_each() -> None:
    assert Corrected(1).more is not Corrected(1).more


@values.dataclass(frozen=True, slots=True)
class Kept:
    one: int
    two: str = ""


@values.dataclass(slots=True)
class Corrected:
    one: int
    more: list[int] = values.field(default_factory=list)

    def __post_init__(self) -> None:
        self.one += 1


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
