"""Reads a few bytes of the kernel's memory, by two probes in a tracefs instance of their own.

What a probe prints may be what an argument of its function points to (Documentation/trace/
kprobetrace.rst, FETCHARGS). That takes root and no capability, no program and nothing that is
loaded into the kernel, and nothing happens but when we ask::

    asked   on hwirq_show(), which runs when /sys/kernel/irq/N/hwirq is read: the name under which
            VFIO has requested this interrupt, and the eventfd that is its cookie
    read    on default_affinity_write(), which runs when /proc/irq/default_smp_affinity is written
            to: that file is root's alone to write, and what is written says where to read

What is written there begins with a word that is no mask of CPUs, so that the kernel refuses it
(lib/bitmap.c, bitmap_parse()). The first probe follows nothing but what the types of the kernel
make sure of, for everybody can read that file; the cookie of another driver could lead anywhere, to
registers of devices, too. The second reads within the kernel's map of all memory alone, where
there are no such registers (Documentation/arch/x86/x86_64/mm.rst), and a hole in it harms nobody
(mm/maccess.c, copy_from_kernel_nofault()): what is told then is what was in the buffer before, so
whoever reads has to know again what he has found. A number that nobody else knows is added to each
address in the kernel: root in a container who may write to that file cannot have it read what he
likes.
"""

from __future__ import annotations

import errno
import os
import random
import struct
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from virtirq.errors import UnavailableError
from virtirq.values import pattern

_NAME: Final = "virtirq_routes"
"""Of the instance, and of the group of its probes."""
_PROBES: Final = ("asked", "read")
_BUFFER_KB: Final = 16
"""Of each CPU: no more than one answer is ever waited for."""
_REFUSED: Final = b"!virtirq"
_MASK: Final = "/proc/irq/default_smp_affinity"  # kernel/irq/proc.c
_ASKED_FILE: Final = "/sys/kernel/irq/{irq}/hwirq"  # kernel/irq/irqdesc.c
_LONGEST: Final = 1 << 16
_WORD: Final = 8
MOST_WORDS: Final = 64
"""That one reading has at most (kernel/trace/trace_probe.h, MAX_ARRAY_LEN)."""
_ALL: Final = 1 << 64
_OFFSETS: Final = range(1 << 16, 1 << 31)
"""The kernel has such an offset in an int (kernel/trace/trace_probe.h, struct fetch_insn)."""

# kernel/trace/trace_output.c: "…: EVENT: (FUNCTION+0x0/0x10) ARGUMENTS". No text of a user's is in
# them: VFIO names its interrupts itself, and those alone are told of.
_ASKED: Final = pattern(
    rb": asked: \([^)]*\) irq=(\d{1,10}) cookie=0x([0-9a-f]{1,16}) first=0x([0-9a-f]{1,16})"
    rb' last=0x([0-9a-f]{1,16}) name="(vfio-msi[^"]{1,100})"$'
)
_READ: Final = pattern(
    rb": read: \([^)]*\) at=0x([0-9a-f]{1,16}) to=(.{1,300}) words=\{((?:0x[0-9a-f]{1,16},?)+)\}$"
)


class Requested(NamedTuple):
    """An interrupt of VFIO's: the name of its action, and where the kernel has its eventfd."""

    name: str
    eventfd: int


class Piece(NamedTuple):
    """What is in the kernel's memory from `at` on; `symbol` is what the pointer there is called,
    such as ``irqfd_wakeup+0x0/0x1f0 [kvm]``, that was asked about, too.
    """

    at: int
    data: bytes
    symbol: str

    def number(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")


def probes(at: Mapping[str, int], words: int, key: int) -> dict[str, str]:
    """By name what each probe is on, and what it tells. `key` is added to each address."""
    number, action = at["number"] - at["kobject"], at["action"] - at["kobject"]
    name, cookie = (f"{at[field]:+d}({action:+d}($arg1))" for field in ("name", "device"))
    where, which = f"+u{len(_REFUSED)}($arg2)", f"+u{len(_REFUSED) + _WORD}($arg2)"
    return {
        "asked": f"hwirq_show irq={number:+d}($arg1):u32 cookie={cookie}:x64"
        f" first=@page_offset_base:x64 last=@vmalloc_base:x64 name=+0({name}):string",
        "read": f"default_affinity_write at={where}:x64 to=+{key}({which}):symbol"
        f" words=+{key}({where}):x64[{words}]",
    }


class KernelMemory:
    """Two probes that are ready. Get one from `open_kernel_memory`. For one thread at a time."""

    def __init__(self, root: Path, at: Mapping[str, int], words: int) -> None:
        """`at`: where fields are, by the names of `virtirq.host.irqfd`; each reading has so many
        words. Raises OSError.
        """
        self._root = root
        self._instance = root / "instances" / _NAME
        self._key = random.SystemRandom().choice(_OFFSETS)
        self._pipe = self._mask = -1
        self._thread = 0
        self._memory = range(0)
        self._probes = probes(at, words, self._key)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def requested(self, irq: int) -> Requested | None:
        """None for one that is not VFIO's. Raises UnavailableError."""
        self._listen()
        try:
            self._show(irq)
        except OSError:
            return None
        for line in self._lines():
            found = _ASKED.search(line)
            if found is not None and int(found[1]) == irq:
                cookie, first, last = (int(each, 16) for each in found.group(2, 3, 4))
                self._memory = range(first, last)
                return Requested(found[5].decode(), cookie)
        return None

    def read(self, address: int, symbol_at: int | None = None) -> Piece | None:
        """What is there; None outside of the map of memory. Raises UnavailableError."""
        where = address if symbol_at is None else symbol_at
        if any(each not in self._memory or each % _WORD for each in (address, where)):
            return None
        self._listen()
        asked = [(each - self._key) % _ALL for each in (address, where)]
        try:
            self._hand(_REFUSED + struct.pack("<QQ", *asked))
        except OSError as error:
            raise UnavailableError(f"{_MASK}: {error.strerror}") from error
        for line in self._lines():
            found = _READ.search(line)
            if found is not None and int(found[1], 16) == asked[0]:
                words = [int(each, 16) for each in found[3].split(b",")]
                data = struct.pack(f"<{len(words)}Q", *words)
                return Piece(address, data, found[2].decode("utf-8", "replace"))
        raise UnavailableError("the kernel's probes do not answer")

    def close(self) -> None:
        """Take everything away again that was made. May be called again."""
        for descriptor in (self._pipe, self._mask):
            if descriptor >= 0:
                os.close(descriptor)
        self._pipe = self._mask = -1
        with suppress(OSError):
            take_away(self._root)

    def _make(self) -> None:
        take_away(self._root)  # what one that was killed has left
        self._instance.mkdir(mode=0o700)
        self._set("buffer_size_kb", str(_BUFFER_KB))
        self._set("options/irq-info", "0")
        for name, text in self._probes.items():
            _define(self._root, f"p:{_NAME}/{name} {text}")
        for name in self._probes:
            self._set(f"events/{_NAME}/{name}/filter", "common_pid == 0")
            self._set(f"events/{_NAME}/{name}/enable", "1")
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        self._pipe = os.open(self._instance / "trace_pipe", os.O_RDONLY | flags)
        self._mask = os.open(_MASK, os.O_WRONLY | flags)

    def _listen(self) -> None:
        """Have the kernel tell what this thread asks, and nobody else."""
        thread = threading.get_native_id()
        if thread == self._thread:
            return
        try:
            self._set(f"events/{_NAME}/read/filter", f"common_pid == {thread}")
            self._set(
                f"events/{_NAME}/asked/filter", f'common_pid == {thread} && name ~ "vfio-msi*"'
            )
        except OSError as error:
            raise UnavailableError(f"{self._instance}: {error.strerror}") from error
        self._thread = thread

    def _show(self, irq: int) -> None:
        """Runs the one probe. Raises OSError where there is no such interrupt."""
        Path(_ASKED_FILE.format(irq=irq)).read_bytes()

    def _hand(self, data: bytes) -> None:
        """Runs the other. Raises OSError."""
        try:
            os.write(self._mask, data)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise

    def _lines(self) -> Iterable[bytes]:
        """What was told by now: it is there as soon as the call that asked has returned."""
        data = b""
        while True:
            try:
                piece = os.read(self._pipe, _LONGEST)
            except BlockingIOError:
                break
            except OSError as error:  # the instance was taken from us
                raise UnavailableError(f"{self._instance}: {error.strerror}") from error
            if not piece:
                break
            data += piece
        return data.splitlines()

    def _set(self, name: str, value: str) -> None:
        _write(self._instance / name, value)


def take_away(root: Path) -> None:
    """What is left of probes that nobody uses. Raises OSError where somebody does."""
    with suppress(FileNotFoundError):
        (root / "instances" / _NAME).rmdir()
    for name in _PROBES:
        if (root / "events" / _NAME / name).is_dir():
            _define(root, f"-:{_NAME}/{name}")


def _define(root: Path, text: str) -> None:
    # Appended, for truncating it takes away everybody's probes.
    path = root / "kprobe_events"
    try:
        _write(path, text, os.O_APPEND)
    except OSError as error:
        error.filename = f"{path}: {' '.join(text.split()[:2])}"
        raise


def _write(path: Path, text: str, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
    try:
        os.write(descriptor, f"{text}\n".encode())
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
