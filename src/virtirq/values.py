"""`dataclass` and its like of the standard library, for a program that is started often.

That of the standard library compiles some seven functions for each class where it is defined
(Lib/dataclasses.py, _process_class()) and imports `inspect`: half of the time that a command took
to start, of whose fifty classes few are ever used. Here what is alike for all classes is shared,
and `__init__` is compiled when the first of a class is made; so is a `pattern` when it is used.

To everybody else they are dataclasses: `dataclasses.fields()`, `asdict()` and `is_dataclass()`
work, as does what is built on them, for the standard library describes the fields once somebody
asks. To the type checker they are those of the standard library (as `dataclass_transform` they
would be typed less: `replace` not at all). Left out is what nobody here needs: inheritance, order,
keyword-only fields. `tests/test_values.py` holds both beside each other.
"""

from __future__ import annotations

import re
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
    from re import compile as pattern
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True):
        """As `dataclasses.dataclass`."""
        make = partial(_made, frozen=frozen, slots=slots, eq=eq)
        return make if cls is None else make(cls)

    def field(**options):
        """As `dataclasses.field`: `default`, `default_factory` and `metadata`."""
        return _Field(options)

    def replace(value, /, **changes):
        """As `dataclasses.replace`."""
        for name in value.__match_args__:
            if name not in changes:
                changes[name] = getattr(value, name)
        return type(value)(**changes)

    class pattern:  # noqa: N801 (it stands for a function)
        """As `re.compile`, which is done when it is first used."""

        def __init__(self, text, flags=0):
            self._arguments = text, flags

        def __getattr__(self, name):
            found = getattr(re.compile(*self._arguments), name)
            setattr(self, name, found)
            return found


__all__ = ["dataclass", "field", "pattern", "replace"]

_NONE: Final = object()
"""Stands for a default that a call makes."""
_OF_ITS_OWN: Final = ("__dict__", "__weakref__")


class _Field(NamedTuple):
    """A field that has more than a default."""

    options: dict[str, Any]


class _Described:
    """What the standard library knows of a class; found out when it is asked for."""

    def __init__(self, name: str, members: dict[str, Any], options: dict[str, bool]) -> None:
        self._name, self._members, self._options = name, members, options

    def __get__(self, _: object, owner: type) -> Any:
        import dataclasses

        members = {
            name: dataclasses.field(**value.options) if isinstance(value, _Field) else value
            for name, value in self._members.items()
        }
        twin: Any = dataclasses.dataclass(**self._options)(type(owner.__name__, (), members))
        found = getattr(twin, self._name)
        setattr(owner, self._name, found)
        return found


def _made(cls: type, *, frozen: bool, slots: bool, eq: bool) -> Any:
    members = {key: value for key, value in vars(cls).items() if key not in _OF_ITS_OWN}
    names = tuple(cls.__annotations__)
    defaults = {name: members[name] for name in names if name in members}
    for name, default in defaults.items():
        if default.__class__.__hash__ is None:
            raise ValueError(f"a default for all: {name} of {cls.__name__}")
        if slots or isinstance(default, _Field):
            del members[name]
    told = {"__annotations__": cls.__annotations__, "__module__": cls.__module__, **defaults}
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        members[name] = _Described(name, told, {"frozen": frozen, "slots": slots, "eq": eq})
    members |= {"__match_args__": names, "__qualname__": cls.__qualname__}
    if slots:
        members["__slots__"] = names
    _share(members, names, frozen=frozen, eq=eq)
    made: Any = type(cls.__name__, cls.__bases__, members)

    def first(self: Any, *values: object, **named: object) -> None:
        made.__init__ = _init(made, defaults, frozen=frozen, slots=slots)
        made.__init__(self, *values, **named)

    made.__init__ = first
    return made


def _share(members: dict[str, Any], names: tuple[str, ...], *, frozen: bool, eq: bool) -> None:
    """What is alike for all classes, whatever their fields."""
    content = attrgetter(*names) if names else lambda _: ()

    def same(self: object, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return content(self) == content(other)

    members.setdefault("__repr__", _repr)
    if eq:
        members.setdefault("__eq__", same)
        members.setdefault("__hash__", (lambda self: hash(content(self))) if frozen else None)
    if frozen:
        members |= {"__setattr__": _refuse, "__delattr__": _refuse}
        members |= {"__getstate__": _state, "__setstate__": _take}


def _repr(self: Any) -> str:
    told = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{self.__class__.__qualname__}({told})"


def _refuse(_: object, name: str, *__: object) -> None:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"cannot change field {name!r}")


def _state(self: Any) -> list[object]:
    return [getattr(self, name) for name in self.__match_args__]


def _take(self: Any, state: list[object]) -> None:
    for name, value in zip(self.__match_args__, state, strict=True):
        object.__setattr__(self, name, value)


def _init(made: Any, defaults: dict[str, Any], *, frozen: bool, slots: bool) -> Any:
    """The `__init__` of a class, compiled."""
    known: dict[str, Any] = {"_none": _NONE, "_set": object.__setattr__}
    parameters, lines = ["self"], []
    for name in made.__match_args__:
        value, store = name, f"self.{name} = {{}}"
        if name in defaults:
            default = defaults[name]
            options = default.options if isinstance(default, _Field) else {"default": default}
            known[f"_default_{name}"] = options.get("default", _NONE)
            if "default_factory" in options:
                known[f"_make_{name}"] = options["default_factory"]
                value = f"_make_{name}() if {name} is _none else {name}"
        parameters.append(f"{name}=_default_{name}" if name in defaults else name)
        if frozen and slots:  # by the slot itself: half as long as by object.__setattr__
            known[f"_set_{name}"] = vars(made)[name].__set__
            store = f"_set_{name}(self, {{}})"
        elif frozen:
            store = f"_set(self, {name!r}, {{}})"
        lines.append(store.format(value))
    if hasattr(made, "__post_init__"):
        lines.append("self.__post_init__()")
    text = f"def __init__({', '.join(parameters)}):\n " + "\n ".join(lines or ["pass"])
    exec(text, known)  # noqa: S102 (as the standard library does it)
    init = known["__init__"]
    init.__qualname__ = f"{made.__qualname__}.__init__"
    return init
