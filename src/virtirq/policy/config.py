"""The configuration: ``/etc/virtirq/virtirq.toml`` and ``conf.d/*.toml``.

`Config` is what the rest of virtirq sees; `parse_config` makes one of TOML texts and refuses
whatever it does not know, naming file, key path and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from virtirq.errors import ConfigError, DirectiveError, InputError
from virtirq.model import AUTO, CLASS_WORDS, OTHER_CLASS, Directive, PciAddress, Spread
from virtirq.policy.listen import parse_listen
from virtirq.values import dataclass, field, replace

if TYPE_CHECKING:
    from dataclasses import Field

    from cattrs import Converter


@dataclass(frozen=True)
class Rule:
    """One ``[[rule]]``: a directive for the devices that meet every condition given.

    `guest` and `driver` are glob patterns, `owner` is the user that the guest's process runs as, by
    its number (a name is one that nobody has looked up), `source` is ``libvirt`` or
    ``process``. `address` is a PCI address with globs; `device` is ``vendor:device`` in hexadecimal
    with globs, or an address as well. `class_` is a word that ``status`` shows (``network``) or
    leading hexadecimal digits of the class code (``0200``), `kind` is ``machine`` or ``process``
    (one that holds devices and runs no vCPUs).
    """

    directive: Directive
    guest: str | None = None
    owner: int | str | None = None
    source: str | None = None
    kind: str | None = None
    address: str | None = None
    device: str | None = None
    class_: str | None = field(default=None, metadata={"key": "class"})
    driver: str | None = None
    node: int | None = None
    spread: Spread | None = None
    origin: str = field(default="rule", metadata={"key": None})


@dataclass(frozen=True)
class IrqbalanceConfig:
    """``[irqbalance]``: `cooperate`: whether the daemon tells it to leave our interrupts alone."""

    cooperate: bool = True


@dataclass(frozen=True)
class GuestVectorsConfig:
    """``[guest_vectors]``: `follow`: whether the daemon reads where guests aim their vectors."""

    follow: bool = True


@dataclass(frozen=True)
class ProcessesConfig:
    """``[processes]``: `find`: whether guests are found by the processes that hold devices."""

    find: bool = True


@dataclass(frozen=True)
class MetricsConfig:
    """``[metrics]``: `listen` is ``address:port``; empty: the daemon serves no metrics.

    `vectors`: whether there are series for each vector.
    """

    listen: str = ""
    vectors: bool = True


@dataclass(frozen=True)
class LibvirtConfig:
    """``[libvirt]``: `uri` is where guests are asked for; empty: as virsh does for root."""

    uri: str = ""


@dataclass(frozen=True)
class Config:
    """All settings, with their defaults. `spread` None: by directive."""

    default: Directive = AUTO
    spread: Spread | None = None
    restore_on_stop: bool = False
    irqbalance: IrqbalanceConfig = IrqbalanceConfig()
    guest_vectors: GuestVectorsConfig = GuestVectorsConfig()
    processes: ProcessesConfig = ProcessesConfig()
    metrics: MetricsConfig = MetricsConfig()
    libvirt: LibvirtConfig = LibvirtConfig()
    rules: tuple[Rule, ...] = field(default=(), metadata={"key": "rule"})
    default_from: str = field(default="built-in default", metadata={"key": None})


def parse_config(
    sources: Iterable[tuple[str, str]], number_of: Callable[[str], int | None] | None = None
) -> Config:
    """The configuration that (file name, TOML text) pairs give together.

    A later file's value replaces an earlier one's; rules add up in order. `number_of` gives a
    user's number, or None for one that is not there; without it, names stay. Raises ConfigError
    with all that is wrong in any of the files.
    """
    converter: Converter | None = None
    merged: dict[str, Any] = {}
    rules: list[Rule] = []
    problems: list[str] = []
    for name, text in sources:
        import tomllib
        from dataclasses import fields

        try:
            table = tomllib.loads(text)
            converter = converter or _converter(number_of)
            part = _structure(converter, name, table)
        except ConfigError as error:
            problems += error.problems
            continue
        except ValueError as error:  # TOMLDecodeError, or int() of thousands of digits
            problems.append(f"{name}: not TOML: {error}")
            continue
        except RecursionError:
            problems.append(f"{name}: not TOML: nested too deeply")
            continue
        rules += [
            replace(rule, origin=f"rule {number} of {name}")
            for number, rule in enumerate(part.rules, start=1)
        ]
        for each in fields(Config):
            if _key(each) in table and each.name != "rules":
                told, here = getattr(part, each.name), merged.get(each.name)
                merged[each.name] = told if here is None else _over(here, told, table[each.name])
        if "default" in table:
            merged["default_from"] = f"default of {name}"
    if problems:
        raise ConfigError.of(problems)
    return Config(**merged, rules=tuple(rules))


def _over(earlier: Any, later: Any, table: Any) -> Any:
    """A setting of a later file over that of an earlier one; of a table, key by key."""
    if not isinstance(later, _TABLES):
        return later
    return replace(earlier, **{key: getattr(later, key) for key in table})


def render_config(config: Config) -> str:
    """The configuration as TOML, every setting spelled out and where it came from as comments."""
    from dataclasses import asdict, fields

    lines = [f'default = "{config.default}"  # {_comment(config.default_from)}']
    if config.spread is None:
        lines.append('# spread: "vector" for words, "mask" for a CPU list')
    else:
        lines.append(f'spread = "{config.spread.value}"')
    lines.append(f"restore_on_stop = {str(config.restore_on_stop).lower()}")
    for name in ("irqbalance", "guest_vectors", "processes", "metrics", "libvirt"):
        lines += ["", f"[{name}]"]
        lines += [
            f"{key} = {str(value).lower() if isinstance(value, bool) else _quoted(value)}"
            for key, value in asdict(getattr(config, name)).items()
        ]
    for rule in config.rules:
        lines += ["", f"[[rule]]  # {_comment(rule.origin)}"]
        for each in fields(Rule):
            key, value = _key(each), getattr(rule, each.name)
            if key is None or value is None:
                continue
            shown = value.value if isinstance(value, Spread) else value
            lines.append(f"{key} = {shown if isinstance(shown, int) else _quoted(str(shown))}")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A TOML basic string: a JSON string is one, where all that is not printable is escaped."""
    import json

    shown = json.dumps(text, ensure_ascii=False)
    if shown.isprintable():
        return shown
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in shown)


def _comment(text: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in text)


def _key(each: Field[Any]) -> str | None:
    """The TOML key of a setting; None for what is not one."""
    key: str | None = each.metadata.get("key", each.name)
    return key


def _structure(converter: Converter, name: str, table: dict[str, Any]) -> Config:
    from cattrs.errors import BaseValidationError

    try:
        return converter.structure(table, Config)
    except BaseValidationError as error:
        raise ConfigError.of(
            [
                f"{name}: {path}: {problem}" if path else f"{name}: {problem}"
                for path, problem in _problems(error, "")
            ]
        ) from error


def _converter(number_of: Callable[[str], int | None] | None) -> Converter:
    """A cattrs converter that knows our words and refuses unknown keys and wrong types."""
    from dataclasses import fields

    from cattrs import Converter
    from cattrs.gen import make_dict_structure_fn, override

    converter = Converter(forbid_extra_keys=True)
    converter.register_structure_hook(str, _exactly(str, "a string"))
    converter.register_structure_hook(int, _exactly(int, "a whole number"))
    converter.register_structure_hook(bool, _exactly(bool, "true or false"))
    converter.register_structure_hook(Directive, _directive)
    converter.register_structure_hook(Spread, _spread)
    converter.register_structure_hook_func(lambda t: t == tuple[Rule, ...], _rules(converter))
    forms = {**_FORMS, "owner": _owner(number_of)}
    for cls in (Rule, *_TABLES, Config):
        keys = {each.name: _key(each) for each in fields(cls)}
        overrides = {
            name: override(omit=True)
            if key is None
            else override(rename=key, struct_hook=forms.get(name))
            for name, key in keys.items()
            if key != name or name in forms
        }
        converter.register_structure_hook(
            cls,
            _of_table(
                make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True, **overrides)  # type: ignore[arg-type]
            ),
        )
    return converter


_TABLES: Final = (
    IrqbalanceConfig,
    GuestVectorsConfig,
    ProcessesConfig,
    MetricsConfig,
    LibvirtConfig,
)


class _BadValueError(ValueError):
    """A value that a person can mend; the text says what is allowed."""


def _exactly(cls: type, what: str) -> Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) is not cls:
            raise _BadValueError(f"{_shown(value)} is not {what}")
        return value

    return check


def _of_table(structure: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def check(value: Any, cls: Any) -> Any:
        if not isinstance(value, dict):
            raise _BadValueError(f"{_shown(value)} is not a table")
        return structure(value, cls)

    return check


def _rules(converter: Converter) -> Callable[[Any, Any], tuple[Rule, ...]]:
    def structure(value: Any, _: Any) -> tuple[Rule, ...]:
        if not isinstance(value, list):
            raise _BadValueError("is not a list of tables: write [[rule]]")
        return tuple(converter.structure(value, list[Rule]))

    return structure


def _directive(value: Any, _: Any) -> Directive:
    if not isinstance(value, str):
        raise _BadValueError(f"{_shown(value)} is not a directive in quotes")
    try:
        return Directive.parse(value)
    except DirectiveError as error:
        raise _BadValueError(f"{error} ({error.hint})") from error


def _spread(value: Any, _: Any) -> Spread:
    for spread in Spread:
        if value == spread.value:
            return spread
    raise _BadValueError(f'{_shown(value)} is not a spread: "vector" or "mask"')


def _node(value: Any, _: Any) -> int:
    # CONFIG_NODES_SHIFT is 10 at most (arch/x86/Kconfig, arch/arm64/Kconfig).
    if type(value) is not int or not -1 <= value <= 1023:
        raise _BadValueError(f"{_shown(value)} is not a node: 0 to 1023, or -1 for none")
    return value


def _owner(number_of: Callable[[str], int | None] | None) -> Callable[[Any, Any], int | str]:
    def check(value: Any, _: Any) -> int | str:
        # 2**32 - 1 is no user (kernel, include/linux/uidgid.h, INVALID_UID).
        if type(value) is int and 0 <= value < 2**32 - 1:
            return value
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.@-]{0,255}\$?", value, re.ASCII):
            number = value if number_of is None else number_of(value)
            if number is None:
                raise _BadValueError(f"there is no user {value} here")
            return number
        raise _BadValueError(
            f'{_shown(value)} is not a user: a name such as "libvirt-qemu", or a number'
        )

    return check


def _listen(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise _BadValueError(f'{_shown(value)} is not an address: "127.0.0.1:9191", or ""')
    try:
        if value:
            parse_listen(value)
    except ValueError as error:
        raise _BadValueError(str(error)) from error
    return value


def _matching(pattern: str, what: str) -> Callable[[Any, Any], str]:
    """A string of this form; a condition that can never be met is a slip of the pen."""

    def check(value: Any, _: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.ASCII):
            raise _BadValueError(f"{_shown(value)} is not {what}")
        return value

    return check


def _address(value: Any, _: Any) -> str:
    """A PCI address, in the one form that there is, or a pattern for it."""
    if isinstance(value, str):
        if re.fullmatch(r"[0-9a-fA-F:.?*!\[\]-]*[?*\[][0-9a-fA-F:.?*!\[\]-]*", value, re.ASCII):
            return value
        with suppress(InputError):
            return str(PciAddress.parse(value))
    raise _BadValueError(f"{_shown(value)} is not a PCI address such as 0000:82:00.0, or 0000:82:*")


def _device(value: Any, _: Any) -> str:
    if isinstance(value, str):
        if re.fullmatch(r"(?=.*[:*])[0-9a-fA-F:?*!\[\]-]+", value, re.ASCII):
            return value
        with suppress(_BadValueError):
            return _address(value, None)
    raise _BadValueError(
        f"{_shown(value)} is not vendor:device in hexadecimal, such as 8086:1572 or 8086:*,"
        " or a PCI address"
    )


_CLASSES: Final = (*CLASS_WORDS.values(), OTHER_CLASS)
_FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "node": _node,
    "source": _matching("libvirt|process", 'a source of guests: "libvirt" or "process"'),
    "kind": _matching("machine|process", 'a kind of guest: "machine" or "process"'),
    "listen": _listen,
    "address": _address,
    "device": _device,
    "class_": _matching(
        "|".join((r"[0-9a-fA-F]{1,6}|\*", *_CLASSES)),
        f"a class: {', '.join(_CLASSES)}, or leading hexadecimal digits such as 0200",
    ),
}


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # thousands of digits, or of tables in tables
        return f"this {type(value).__name__}"


def _problems(error: BaseException, path: str) -> Any:
    """Walks cattrs' exception groups to (key path, problem) pairs, in order."""
    from dataclasses import fields

    from cattrs.errors import ForbiddenExtraKeysError, IterableValidationError

    for each in getattr(error, "exceptions", ()):
        where = path
        for note in getattr(each, "__notes__", ()):
            index = getattr(note, "index", None)
            if isinstance(error, IterableValidationError):
                where = f"{path}[{index + 1}]" if isinstance(index, int) else path
            elif name := getattr(note, "name", None):
                where = f"{path}.{_toml_name(name)}".lstrip(".")
        if isinstance(each, ForbiddenExtraKeysError):
            allowed = ", ".join(key for f in fields(each.cl) if (key := _key(f)) is not None)
            for extra in sorted(each.extra_fields):
                shown = extra if re.fullmatch(r"[\w-]+", extra, re.ASCII) else repr(extra)[:60]
                yield f"{path}.{shown}".lstrip("."), f"unknown key; allowed are {allowed}"
        elif getattr(each, "exceptions", None):
            yield from _problems(each, where)
        elif isinstance(each, KeyError):
            yield path, f"{_toml_name(str(each.args[0]))} is missing"
        else:
            yield where, str(each)


def _toml_name(name: str) -> str:
    return {"class_": "class", "rules": "rule"}.get(name, name)
