"""`dataclass` and its like of the standard library, for a program that is started often.

That of the standard library compiles some seven functions for each class where it is defined
(Lib/dataclasses.py, _process_class()) and imports `inspect`: most of the time that a command took
to start, of whose fifty classes few are ever used. Here what is alike for all classes is shared,
and `__init__` is compiled when the first of a class is made; so is a `pattern` when it is used.

To everybody else they are dataclasses: `dataclasses.fields()`, `asdict()` and `is_dataclass()`
work, as does what is built on them, for the standard library describes the fields once somebody
asks. To the type checker there is no difference at all. Left out is what nobody here needs:
inheritance, order, keyword-only fields.
"""

from __future__ import annotations

import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dataclasses import dataclass, field, replace
    from re import compile as pattern
else:

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True):
        """As `dataclasses.dataclass`."""
        if cls is None:
            return lambda cls: _made(cls, frozen, slots, eq)
        return _made(cls, frozen, slots, eq)

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
            self._text, self._flags = text, flags

        def __getattr__(self, name):
            found = getattr(re.compile(self._text, self._flags), name)
            setattr(self, name, found)
            return found


__all__ = ["dataclass", "field", "pattern", "replace"]

_NONE: Final = object()
"""Stands for a default that a call makes."""


class _Field:
    """The options of a field."""

    __slots__ = ("options",)

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options


class _Described:
    """What the standard library knows of a class; found out when it is asked for."""

    __slots__ = ("annotations", "defaults", "name", "options")

    def __init__(
        self,
        name: str,
        annotations: dict[str, Any],
        defaults: dict[str, Any],
        options: dict[str, bool],
    ) -> None:
        self.name = name
        self.annotations = annotations
        self.defaults = defaults
        self.options = options

    def __get__(self, _: object, owner: type) -> Any:
        import dataclasses

        members: dict[str, Any] = {
            name: dataclasses.field(**default.options) if isinstance(default, _Field) else default
            for name, default in self.defaults.items()
        }
        members |= {"__annotations__": self.annotations, "__module__": owner.__module__}
        twin: Any = dataclasses.dataclass(**self.options)(type(owner.__name__, (), members))
        found = getattr(twin, self.name)
        setattr(owner, self.name, found)
        return found


def _made(cls: type, frozen: bool, slots: bool, eq: bool) -> Any:
    members = dict(cls.__dict__)
    annotations: dict[str, Any] = members.get("__annotations__") or cls.__annotations__
    names = tuple(annotations)
    defaults = {name: members[name] for name in names if name in members}
    for name, default in defaults.items():
        if slots or isinstance(default, _Field):
            del members[name]
        if default.__class__.__hash__ is None:
            raise ValueError(f"a default for all: {name} of {cls.__name__}")
    for own in ("__dict__", "__weakref__"):
        members.pop(own, None)
    if slots:
        members["__slots__"] = names
    members |= {"__match_args__": names, "__qualname__": cls.__qualname__}
    options = {"frozen": frozen, "eq": eq}
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        members[name] = _Described(name, annotations, defaults, options)
    _share(members, names, frozen, eq)
    made: Any = type(cls.__name__, cls.__bases__, members)

    def first(self: Any, *values: object, **named: object) -> None:
        made.__init__ = _init(made, names, defaults, frozen, slots)
        made.__init__(self, *values, **named)

    made.__init__ = first
    return made


def _share(members: dict[str, Any], names: tuple[str, ...], frozen: bool, eq: bool) -> None:
    """What does not hang on the fields."""
    content = attrgetter(*names) if names else lambda _: ()

    def same(self: object, other: object) -> Any:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return content(self) == content(other)

    def hashed(self: object) -> int:
        return hash(content(self))

    members.setdefault("__repr__", _repr)
    if eq:
        members.setdefault("__eq__", same)
        members.setdefault("__hash__", hashed if frozen else None)
    if frozen:
        members["__setattr__"] = members["__delattr__"] = _refuse
        members["__getstate__"], members["__setstate__"] = _state, _take


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


def _init(
    made: Any, names: tuple[str, ...], defaults: dict[str, Any], frozen: bool, slots: bool
) -> Any:
    """The `__init__` of a class, compiled."""
    known: dict[str, Any] = {"_none": _NONE, "_set": object.__setattr__}
    parameters, lines = [], []
    for name in names:
        value = name
        if name not in defaults:
            parameters.append(name)
        else:
            default = defaults[name]
            options = default.options if isinstance(default, _Field) else {"default": default}
            if "default_factory" in options:
                known[f"_make_{name}"] = options["default_factory"]
                known[f"_default_{name}"] = _NONE
                value = f"_make_{name}() if {name} is _none else {name}"
            else:
                known[f"_default_{name}"] = options["default"]
            parameters.append(f"{name}=_default_{name}")
        if not frozen:
            lines.append(f" self.{name} = {value}")
        elif slots:
            known[f"_set_{name}"] = made.__dict__[name].__set__
            lines.append(f" _set_{name}(self, {value})")
        else:
            lines.append(f" _set(self, {name!r}, {value})")
    if hasattr(made, "__post_init__"):
        lines.append(" self.__post_init__()")
    text = f"def __init__({', '.join(['self', *parameters])}):\n" + "\n".join(lines or [" pass"])
    exec(text, known)  # noqa: S102 (as the standard library does it)
    init = known["__init__"]
    init.__qualname__ = f"{made.__qualname__}.__init__"
    return init
