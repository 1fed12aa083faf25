"""A writable copy of a recorded host, in which writes behave as on an x86 kernel.

The copy is the recording, untouched, and a log of the writes beside it, one line each. What a
write does is modelled on the kernel's own rules:

* kernel/irq/proc.c, write_irq_affinity(): a mask without an online CPU is EINVAL, a malformed
  one too; a CPU past the last is ERANGE; an interrupt that user space cannot move is EPERM.
* arch/x86/kernel/apic/vector.c, assign_vector_locked(): an interrupt whose CPU is in the new
  mask stays there; otherwise it goes to the CPU of the mask with the fewest vectors
  (kernel/irq/matrix.c, matrix_find_best_cpu()), and with none left the write is ENOSPC.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Final

from virtirq.cpuset import CpuSet
from virtirq.errors import CpuSetError, RecordingError, of_file
from virtirq.host import paths
from virtirq.host.fs import HostFs, OpenFile
from virtirq.host.paths import KernelPath
from virtirq.host.tree import ArchiveFs, DirectoryFs, TreeFs
from virtirq.model import Gap
from virtirq.values import pattern

VECTORS_PER_CPU: Final = 200
"""Of 256, less exceptions and system vectors (arch/x86/include/asm/irq_vectors.h)."""

LOG: Final = "virtirq/scratch.jsonl"
_START: Final = b'{"irq": '
_MAX_LINE: Final = 1 << 17  # two lists of every other one of 8192 CPUs are 40 kB
_MAX_LOG: Final = 1 << 26
"""Bytes; a write of every interrupt of a large host is some 100."""
# RecursionError: a line of nothing but brackets.
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_IRQ_FILE = pattern(r"/proc/irq/(\d+)/(smp|effective)_affinity(_list)?", re.ASCII)


class ScratchFs(HostFs):
    """`base` with writes kept apart: in the file `log`, or in memory when that is None."""

    writable = True

    def __init__(self, base: TreeFs, log: Path | None = None) -> None:
        self.recording = base.recording
        self._base = base
        self._log = log
        self._moved: dict[int, tuple[CpuSet, CpuSet]] = {}
        self._torn = 0
        self.refresh()

    def refresh(self) -> None:
        """Read the log of writes, which other processes may have added to."""
        if self._log is not None and self._log.exists():
            self._moved.clear()
            self.__dict__.pop("_used", None)
            self._replay(self._log)

    def read(self, path: str) -> str:
        found = self._moved_file(path)
        return self._base.read(path) if found is None else found

    def listdir(self, path: str) -> list[str]:
        return self._base.listdir(path)

    def readlink(self, path: str) -> str:
        return self._base.readlink(path)

    def mode(self, path: str) -> int:
        return self._base.mode(path)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        return self._base.gaps

    def covers(self, path: KernelPath) -> bool:
        return self._base.covers(path)

    def write(self, path: str, text: str) -> None:
        match = _IRQ_FILE.fullmatch(path)
        if match is None or match[2] != "smp":
            raise _error(errno.EACCES, path)
        if not self._base.mode(path) & 0o200:
            raise _error(errno.EPERM, path)
        irq = int(match[1])
        try:
            wanted = CpuSet.parse(text) if match[3] else CpuSet.parse_mask(text)
        except CpuSetError:
            raise _error(errno.EINVAL, path) from None
        possible = self._cpus(paths.CPU_POSSIBLE)
        if wanted and possible and wanted.last() > possible.last():
            raise _error(errno.ERANGE if match[3] else errno.EOVERFLOW, path)
        allowed = wanted & self._cpus(paths.CPU_ONLINE)
        if not allowed:
            raise _error(errno.EINVAL, path)
        effective = self._effective(irq)
        placed = effective if effective & allowed else self._place(allowed, path)
        self._keep(irq, wanted, placed)
        if placed != effective:
            self._used.subtract(effective)
            self._used.update(placed)

    def open(self, path: str) -> OpenFile:
        self.mode(path)
        return _ScratchFile(self, path)

    def _place(self, allowed: CpuSet, path: str) -> CpuSet:
        best = min(allowed, key=lambda cpu: (self._used[cpu], cpu))
        if self._used[best] >= VECTORS_PER_CPU:
            raise _error(errno.ENOSPC, path)
        return CpuSet([best])

    @cached_property
    def _used(self) -> Counter[int]:
        names = self._base.listdir(paths.IRQ_DIR)
        irqs = [int(name) for name in names if name.isdecimal()]
        return Counter(cpu for irq in irqs for cpu in self._effective(irq))

    def _cpus(self, path: KernelPath) -> CpuSet:
        try:
            return CpuSet.parse(self._base.read(path.at()))
        except OSError:
            return CpuSet()

    def _effective(self, irq: int) -> CpuSet:
        if irq in self._moved:
            return self._moved[irq][1]
        try:
            return CpuSet.parse(self._base.read(paths.IRQ_EFFECTIVE.at(irq)))
        except (OSError, CpuSetError):
            return CpuSet()

    def _moved_file(self, path: str) -> str | None:
        match = _IRQ_FILE.fullmatch(path)
        if match is None or int(match[1]) not in self._moved:
            return None
        cpus = self._moved[int(match[1])][match[2] == "effective"]
        return str(cpus) if match[3] else cpus.mask()

    def _keep(self, irq: int, affinity: CpuSet, effective: CpuSet) -> None:
        if self._log is not None:
            told = {"irq": irq, "affinity": str(affinity), "effective": str(effective)}
            try:
                self._append(self._log, f"{json.dumps(told)}\n".encode())
            except OSError as error:
                # Not the kernel's answer: an ENOSPC of the disk is no want of vectors.
                raise RecordingError(f"{self._log}: {error.strerror}") from error
        self._moved[irq] = (affinity, effective)

    def _append(self, log: Path, line: bytes) -> None:
        # One write(2) with O_APPEND: a kill leaves the line whole or absent, like the kernel.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(log, flags, 0o644)
        try:
            size = os.fstat(descriptor).st_size - self._torn
            if self._torn:
                os.ftruncate(descriptor, size)
                self._torn = 0
            if os.write(descriptor, line) != len(line):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    def _replay(self, log: Path) -> None:
        try:
            with log.open("rb") as file:
                content = file.read(_MAX_LOG + 1)
            if len(content) > _MAX_LOG:
                raise ValueError(f"more than {_MAX_LOG >> 20} MiB")
            *lines, tail = content.split(b"\n")
            for line in lines:
                told = json.loads(line)
                if type(told["irq"]) is not int:
                    raise ValueError("irq is not a number")
                self._moved[told["irq"]] = (
                    CpuSet.parse(told["affinity"]),
                    CpuSet.parse(told["effective"]),
                )
            # The disk was full, or the machine died: what the line told has not happened.
            if not (tail.startswith(_START) or _START.startswith(tail)) or len(tail) > _MAX_LINE:
                raise ValueError("it ends in something else than a piece of a line")
            self._torn = len(tail)
        except (*_MALFORMED, CpuSetError) as error:
            raise RecordingError(f"{log}: malformed log of writes: {error}") from error
        except OSError as error:
            raise RecordingError(f"{log}: {error.strerror}") from error


class _ScratchFile(OpenFile):
    """Nothing of a recording goes away, so its path will do."""

    def __init__(self, fs: ScratchFs, path: str) -> None:
        self._fs = fs
        self._path = path

    def read(self) -> str:
        return self._fs.read(self._path)

    def write(self, text: str) -> None:
        self._fs.write(self._path, text)

    def close(self) -> None:
        pass


def open_host(root: Path) -> TreeFs | ScratchFs:
    """The host recorded in a directory or archive; writable where the directory is a scratch.

    Raises RecordingError where `root` is no such thing, DeploymentError where it may not be read.
    """
    try:
        if root.is_dir():
            base = DirectoryFs(root)
            log = root / LOG
            # A log that is a link out of the tree would have the writes go elsewhere.
            ours = log.is_file() and log.resolve().is_relative_to(root.resolve())
            return ScratchFs(base, log) if ours else base
        if root.is_file():
            return ArchiveFs(root)
    except OSError as error:
        raise of_file(root, error, RecordingError) from error
    raise RecordingError(f"{root}: no such directory or archive")


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
