"""Attributes of domain XML as libvirt reads them: text to numbers, sets and words, or an error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from virtirq.cpuset import CpuSet
from virtirq.errors import DomainXmlError, InputError
from virtirq.values import pattern

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SHOWN: Final = 60
"""Characters of someone else's text that a message holds."""

UINT_MAX: Final = 0xFFFFFFFF
_MAX_LIST: Final = 65536

_NUMBER: Final = pattern(r"\+?[0-9]+", re.ASCII)
# strtoul() with base 0, as virPCIDeviceAddressParseXML() has it: 010 is eight.
_ANY_BASE: Final = pattern(r"\+?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
_ANY_BASE_DIGITS: Final = 11  # of 0xffffffff in octal
_UUID: Final = pattern(r"[- ]*(?:[0-9a-fA-F]{2}[- ]*){16}", re.ASCII)
_MAC: Final = pattern(r"[0-9a-fA-F]{1,2}(?::[0-9a-fA-F]{1,2}){5}", re.ASCII)


def cpus_of(element: Element, name: str = "cpuset") -> CpuSet:
    """A set that must be there and must not be empty (virBitmapParse() and its callers)."""
    text = element.get(name)
    if text is None:
        raise DomainXmlError(f"<{element.tag}> has no {name}")
    try:
        cpus = CpuSet.parse(_tidy(text) if len(text) <= _MAX_LIST else text)
    except InputError as error:
        raise DomainXmlError(f"<{element.tag}> {name}: {error}", hint=error.hint) from error
    if not cpus:
        raise DomainXmlError(f"<{element.tag}> {name} {shown(text)} is empty")
    return cpus


def _tidy(text: str) -> str:
    """Without what virBitmapParse() overlooks: blanks around numbers, a comma at the end."""
    parts = ["-".join(map(str.strip, part.split("-"))) for part in text.split(",")]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    return ",".join(parts)


def required(element: Element, name: str) -> int:
    text = element.get(name)
    if text is None:
        raise DomainXmlError(f"<{element.tag}> has no {name}")
    return unsigned(f"<{element.tag}> {name}", text)


def number_of(element: Element, name: str, *, default: int) -> int:
    return required(element, name) if name in element.attrib else default


def unsigned(label: str, text: str, *, most: int = UINT_MAX) -> int:
    """A decimal number from 0 to `most`, as virStrToLong_uip() reads it."""
    stripped = text.strip()
    if not _NUMBER.fullmatch(stripped):
        raise DomainXmlError(f"{label} {shown(text)} is not a number")
    digits = stripped.lstrip("+").lstrip("0") or "0"
    if len(digits) > len(str(most)) or int(digits) > most:
        raise DomainXmlError(f"{label} {shown(text)} is more than {most}")
    return int(digits)


def any_base(label: str, text: str, most: int) -> int:
    match = _ANY_BASE.fullmatch(text.strip())
    if match is None:
        raise DomainXmlError(f"{label} {shown(text)} is not a number")
    digits = match[1]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    if len(digits.lstrip("0xX")) > _ANY_BASE_DIGITS or int(digits, base) > most:
        raise DomainXmlError(f"{label} {shown(text)} is more than {most:#x}")
    return int(digits, base)


def word_of(element: Element, name: str, *allowed: str) -> str | None:
    text = element.get(name)
    if text is not None and text not in allowed:
        raise DomainXmlError(
            f"<{element.tag}> {name} {shown(text)} is not one of {', '.join(allowed)}"
        )
    return text


def mac_of_text(text: str) -> str | None:
    """As libvirt prints it: 52:54:00:0a:0b:0c."""
    if not _MAC.fullmatch(text.strip()):
        return None
    return ":".join(f"{int(part, 16):02x}" for part in text.strip().split(":"))


def uuid_of_text(text: str) -> str | None:
    """As libvirt prints it, in lower case and with dashes; None for what is none.

    As liberal as virUUIDParse() in libvirt, src/util/viruuid.c.
    """
    if not _UUID.fullmatch(text.strip()):
        return None
    digits = re.sub("[- ]", "", text.strip()).lower()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def local_name(tag: str) -> str:
    """The name without its namespace, short enough to show."""
    return tag.rpartition("}")[2][:SHOWN]


def shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 3] + "...")
