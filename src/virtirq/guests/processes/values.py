"""What command lines of virtual machine monitors are made of: text to values, or None."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from typing import Final

from virtirq.errors import InputError
from virtirq.model import PciAddress
from virtirq.values import dataclass, pattern

MOST_WORDS: Final = 65536
"""Words of a command line that are looked at; a process may have some two million."""

MOST_BYTES: Final = 1 << 20
"""Bytes of a command line that are read: QEMU's with a hundred disks is a tenth of it."""

MOST_CHARACTERS: Final = 131072
"""Characters of a word that are looked at: MAX_ARG_STRLEN, include/uapi/linux/binfmts.h.

execve(2) takes no longer one, but a process may write over the NULs between its words.
"""

MOST_NAME: Final = 100
"""Characters of a name that are kept: it goes to terminals and logs."""

_UUID: Final = pattern(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_NO_UUID: Final = "00000000-0000-0000-0000-000000000000"
# Any number of digits, as sscanf() and strtoul() take it: QEMU, hw/core/qdev-properties-system.c,
# set_pci_host_devaddr(); kvmtool, vfio/core.c, vfio_device_pci_parser().
_HOST: Final = pattern(
    r"(?:(?:0x)?([0-9a-f]{1,8}):)?(?:0x)?([0-9a-f]{1,4}):(?:0x)?([0-9a-f]{1,4})\.([0-7])",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line, understood. `vmm` is empty for a program that runs no guests.

    `devices` are the PCI functions that it names, in order. What was plugged in later it does not
    know, nor what came by a configuration file or an API socket.
    """

    vmm: str = ""
    name: str | None = None
    uuid: str | None = None
    devices: tuple[PciAddress, ...] = ()


def split(text: str) -> list[str]:
    """The words of ``/proc/PID/cmdline``: each ends with a NUL (proc(5))."""
    if not text:
        return []
    words = text.split("\0", MOST_WORDS)[:MOST_WORDS]
    return [word if len(word) <= MOST_CHARACTERS else "" for word in words]


def program_of(words: Sequence[str]) -> str:
    """The program's name, without its directory."""
    return words[0].rpartition("/")[2] if words else ""


def sysfs_address(path: str) -> PciAddress | None:
    """The PCI function of a path in sysfs, such as ``/sys/bus/pci/devices/0000:41:00.0/``.

    None for a mediated device: its path ends in a UUID, and it has no interrupt of its own.
    """
    try:
        return PciAddress.parse(posixpath.basename(posixpath.normpath(path)))
    except InputError:
        return None


def host_address(text: str) -> PciAddress | None:
    """``41:0.0``, ``0000:41:00.0``; None when it is no address."""
    match = _HOST.fullmatch(text.strip())
    if match is None:
        return None
    domain, bus, slot, function = (int(part or "0", 16) for part in match.groups())
    return PciAddress(domain, bus, slot, function) if bus <= 0xFF and slot <= 0x1F else None


def uuid_of(text: str) -> str | None:
    """The UUID in its one form; None for none, and for the one that means none."""
    lower = text.strip().lower()
    return lower if _UUID.fullmatch(lower) and lower != _NO_UUID else None


def name_of(text: str) -> str | None:
    """A name that can be shown: whoever starts a process chooses it, and with it every character.

    What a terminal might obey (control characters, line feeds, marks that turn text around)
    becomes a question mark.
    """
    kept = text[:MOST_NAME]
    shown = "".join(each if each.isprintable() else "?" for each in kept).strip()
    return f"{shown}…" if len(text) > MOST_NAME else shown or None
