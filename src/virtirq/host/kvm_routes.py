"""Where KVM sends the interrupts of passed-through devices, from a bpftrace that is ours alone.

One process, which is started once and then asked: reading a file of an interrupt's makes it print
a line about that interrupt (`virtirq.host.irqfd` has the program, and what it reads). Nothing in
the kernel outlives it, for its probe and its program are held by its open files (bpf(2),
perf_event_open(2)). It ends by itself when this process does, however that ends: it is told to
trace this process (-p), and to trace one that is gone would be no use (bpftrace(8)). Not by
PR_SET_PDEATHSIG, which is about the thread that has started it.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple, Protocol

from virtirq.errors import UnavailableError
from virtirq.host.btf import Btf, BtfError
from virtirq.host.fs import HostFs, LiveFs
from virtirq.host.irqfd import (
    IRQ_HARDWARE,
    MODULE,
    Answer,
    SymbolError,
    find_woken,
    offsets,
    parse,
    program,
)
from virtirq.host.paths import IRQ_SYSFS_DIR, PROC_DIR

ATTACH_SECONDS: Final = 120.0
"""What `open_routes` waits for bpftrace at most: it compiles, and starts from a cold disk."""
ANSWER_SECONDS: Final = 1.0
"""What `read` waits for answers before it asks again."""
ASKED: Final = 5
"""So often `read` asks, for each `_PIECE` interrupts, before bpftrace counts as hung."""
END_SECONDS: Final = 3.0
"""What `close` waits for bpftrace's own end before it is killed."""

_PIECE: Final = 64
"""Interrupts asked about in one go: their answers fit the buffer of one CPU."""
_BUFFER_PAGES: Final = 4  # of each CPU
_TRY_AGAIN: Final = 0.1
_LONGEST: Final = 1 << 16
_LAST_WORDS, _LONGEST_WORDS = 4, 200
_LARGEST: Final = 1 << 26  # a kernel's types take 5 to 10 MB
_CLOCKS_DIFFER: Final = 1_000_000  # ns; kernel/time/timekeeping.c, ktime_get_boot_fast_ns()

BTF_DIR: Final = "/sys/kernel/btf"  # Documentation/ABI/testing/sysfs-kernel-btf
SYMBOLS: Final = "/proc/kallsyms"  # kernel/kallsyms.c
LOCKDOWN: Final = "/sys/kernel/security/lockdown"  # security/lockdown/lockdown.c
PARANOID: Final = "/proc/sys/kernel/perf_event_paranoid"
KVM: Final = f"/sys/module/{MODULE}"  # there as well when it is part of the kernel
_FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"  # include/linux/proc_ns.h, PROC_PID_INIT_INO
# include/uapi/linux/capability.h
_SYS_ADMIN: Final = 1 << 21
_BPF_PERFMON: Final = 1 << 39 | 1 << 38
_PARANOID_AT_MOST: Final = 2


class Route(NamedTuple):
    """The message that KVM sends to a VM: an MSI's `address`, of 64 bits, and `data`, of 32.

    Whose it is: `pid` of the process whose VM it is, or the `action` under which VFIO has
    requested the interrupt.
    """

    pid: int | None
    address: int
    data: int
    action: str = ""


class RouteSource(Protocol):
    """Tells the routes of interrupts. For one thread at a time."""

    def read(self, irqs: Collection[int]) -> dict[int, Route]:
        """By IRQ number, of those that have one. Raises UnavailableError when there is no more to
        come: another may be opened.
        """

    def close(self) -> None: ...


class Routes:
    """An attached bpftrace. Get one from `open_routes`. For one thread at a time."""

    def __init__(self, fs: HostFs, command: Sequence[str], module: int | None) -> None:
        """Starts it and waits until it answers. Raises UnavailableError.

        `module` is the incarnation of KVM that the command is about.
        """
        self._fs = fs
        self._rest = b""
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._module = module
        self._pipe, end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._pipe, False)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                env=_environment(),
                process_group=0,  # a terminal's ^C is ours to heed
            )
        except OSError as error:
            os.close(self._pipe)
            raise UnavailableError(f"{command[0]}: {error.strerror}") from error
        finally:
            os.close(end)
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def read(self, irqs: Collection[int]) -> dict[int, Route]:
        """The route by IRQ number, for those of `irqs` that have one.

        Takes `ASKED` times `ANSWER_SECONDS` at most, for each 64 of them. Raises UnavailableError,
        and is closed then, when bpftrace does not answer, or has answered for a KVM that is no
        more: another may be opened. Older ones hear nothing of CPUs that came online after them.
        """
        if self._module != self._fs.incarnation(KVM):
            self.close()
            raise UnavailableError(f"{KVM}: it is not the one any more that was there")
        found: dict[int, Route] = {}
        left = iter(sorted(set(irqs)))
        try:
            while piece := list(islice(left, _PIECE)):
                found |= self._read(piece)
        except BaseException:
            self.close()
            raise
        return found

    def close(self) -> None:
        """End bpftrace, and wait until it has ended: `END_SECONDS` twice at most.

        May be called again.
        """
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        process = self._process
        process.terminate()  # if it has not ended yet
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)

    def _attach(self) -> None:
        with suppress(OSError):
            # A daemon may be spared when memory runs out. This is larger, and is not it.
            self._fs.write(f"{PROC_DIR}/{self._process.pid}/oom_score_adj", "0")
        irq = self._any_irq()
        deadline = time.monotonic() + ATTACH_SECONDS
        while (began := time.monotonic()) < deadline:
            asked = _now()
            self._ask(irq)
            while (left := began + _TRY_AGAIN - time.monotonic()) > 0:
                if any(each.irq == irq and each.at >= asked for each in self._answers(left)):
                    return
        raise self._failure(f"does not answer within {ATTACH_SECONDS:g} s")

    def _any_irq(self) -> int:
        try:
            names = self._fs.listdir(IRQ_SYSFS_DIR)
            return min(int(name) for name in names if name.isdecimal())
        except (OSError, ValueError) as error:
            raise UnavailableError(f"{IRQ_SYSFS_DIR}: no interrupts are there") from error

    def _read(self, irqs: Sequence[int]) -> dict[int, Route]:
        found: dict[int, Route] = {}
        silent, left = set(irqs), set(irqs)
        since = _now()
        for _ in range(ASKED):
            left = {irq for irq in sorted(left) if self._ask(irq)}
            silent &= left
            waiting = set(left)
            deadline = time.monotonic() + ANSWER_SECONDS
            while waiting and (seconds := deadline - time.monotonic()) > 0:
                for answer in self._answers(seconds):
                    if answer.at < since or answer.irq not in waiting:
                        continue
                    waiting.discard(answer.irq)
                    silent.discard(answer.irq)
                    if not answer.changing:
                        left.discard(answer.irq)
                    if answer.routed:
                        found[answer.irq] = Route(answer.pid, answer.address, answer.data)
            if not left:
                return found
        if silent:
            raise self._failure("does not answer")
        return found

    def _ask(self, irq: int) -> bool:
        """Whether there is such an interrupt. If so, there will be an answer."""
        try:
            self._fs.read(IRQ_HARDWARE.at(irq))
        except OSError:
            return False
        return True

    def _answers(self, seconds: float) -> list[Answer]:
        """What it has printed by now; waits so long for something. Raises UnavailableError."""
        if self._pipe < 0:
            raise UnavailableError("bpftrace was ended")
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return []
        data = os.read(self._pipe, _LONGEST)
        if not data:
            raise self._failure("has ended")
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:_LONGEST]
        found = []
        for line in lines:
            answer = parse(line)
            if answer is not None:
                found.append(answer)
            elif words := line.decode("utf-8", "replace").strip():
                self._words.append(words[:_LONGEST_WORDS])
        return found

    def _failure(self, what: str) -> UnavailableError:
        """Closes it. The error says what it has said last."""
        self.close()
        errors = [each for each in self._words if "ERROR" in each]
        said = errors or [each for each in self._words if not each.startswith("Attaching")]
        return UnavailableError(": ".join(filter(None, [f"bpftrace {what}", "; ".join(said)])))


def open_routes(fs: HostFs | None = None) -> Routes:
    """Starts bpftrace, and waits until it answers: seconds, `ATTACH_SECONDS` at most.

    Raises UnavailableError, which says what it lacks here.
    """
    fs = fs or LiveFs()
    if fs.recording is not None:
        raise UnavailableError("a recording has no kernel that could be asked")
    found = shutil.which("bpftrace", path=_path())
    if found is None:
        raise UnavailableError(
            "bpftrace is not installed", hint="install the distribution's package bpftrace"
        )
    _check_permitted(fs)
    module = fs.incarnation(KVM)
    text = program(kernel_offsets(fs), _woken(), os.getpid())
    return Routes(fs, [found, "-B", "line", "-p", str(os.getpid()), "-e", text], module)


def _check_permitted(fs: HostFs) -> None:
    """Raises UnavailableError for what would fail with less of an explanation later."""
    text = _word(fs, f"{PROC_DIR}/self/status", r"CapEff:\s*([0-9a-f]{1,16})\b")
    held = int(text, 16) if text else 0
    if text and not held & _SYS_ADMIN:
        if held & _BPF_PERFMON != _BPF_PERFMON:
            raise UnavailableError(
                "this process may not load programs into the kernel",
                hint="that takes root, and of the capabilities CAP_BPF and CAP_PERFMON",
            )
        # A level that Debian and Ubuntu have added; CAP_PERFMON is not enough for it.
        level = _word(fs, PARANOID, r"^(\d)$")
        if level and int(level) > _PARANOID_AT_MOST:
            raise UnavailableError(
                f"{PARANOID}: it is {level}",
                hint=f"set it to {_PARANOID_AT_MOST}, or add CAP_SYS_ADMIN",
            )
    check_readable(fs)


def check_readable(fs: HostFs) -> None:
    """Raises UnavailableError where nobody reads the kernel's memory, or not from here."""
    with suppress(OSError):
        if fs.readlink(f"{PROC_DIR}/self/ns/pid") != _FIRST_PID_NAMESPACE:
            raise UnavailableError(
                "process ids are not the host's here", hint="run it in the host's pid namespace"
            )
    if _word(fs, LOCKDOWN, r"\[(confidentiality)\]"):
        raise UnavailableError(
            f"{LOCKDOWN}: the kernel lets nobody read its memory",
            hint="lockdown=integrity would do (kernel_lockdown(7))",
        )


def _word(fs: HostFs, path: str, pattern: str) -> str | None:
    with suppress(OSError):
        if match := re.search(pattern, fs.read(path), re.ASCII):
            return match[1]
    return None


def kernel_offsets(fs: HostFs) -> dict[str, int]:
    """Where this kernel has the fields of `virtirq.host.irqfd`. Raises UnavailableError."""
    base, split = f"{BTF_DIR}/vmlinux", f"{BTF_DIR}/{MODULE}"
    try:
        kernel = _content(base)
    except OSError as error:
        raise UnavailableError(
            f"{base}: {error.strerror}", hint="a kernel with CONFIG_DEBUG_INFO_BTF describes itself"
        ) from error
    try:
        module = _content(split)
    except FileNotFoundError:
        if not fs.isdir(KVM):
            raise UnavailableError(f"the module {MODULE} is not loaded") from None
        module = b""  # it is part of the kernel, or has no BTF: then its types are not known
    except OSError as error:
        raise UnavailableError(f"{split}: {error.strerror}") from error
    try:
        return offsets(Btf(kernel, module))
    except BtfError as error:
        raise UnavailableError(
            f"{split if module else base}: {error}", hint="this kernel is not understood"
        ) from error


def _woken() -> int:
    try:
        with open(SYMBOLS, "rb") as file:
            return find_woken(file)
    except OSError as error:
        raise UnavailableError(f"{SYMBOLS}: {error.strerror}") from error
    except SymbolError as error:
        raise UnavailableError(
            f"{SYMBOLS}: {error}",
            hint="addresses take CAP_SYSLOG, and a kernel.kptr_restrict of 0 or 1",
        ) from error


def _content(path: str) -> bytes:
    # Not through HostFs, whose files are text.
    with open(path, "rb") as file:
        return file.read(_LARGEST)


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    """Ours, but for what a person has set for bpftraces of their own."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("BPFTRACE_")}
    return {**own, "BPFTRACE_PERF_RB_PAGES": str(_BUFFER_PAGES)}


def _now() -> int:
    """As bpf_ktime_get_boot_ns() tells it, but for what the two may differ."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - _CLOCKS_DIFFER
