"""HostFs, the one door to a host's ``/proc``, ``/sys`` and ``/run``.

Readers never open a kernel file in another way, so that whatever runs on this machine also runs
on a recorded one. `LiveFs` is the machine itself; `virtirq.host.tree` holds recorded trees and
`virtirq.host.scratch` a writable copy of one.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from abc import ABC, abstractmethod
from itertools import islice
from typing import Final, Literal

from virtirq.cpuset import CpuSet
from virtirq.errors import CpuSetError
from virtirq.host.paths import KernelPath
from virtirq.host.statx import FileId, file_id
from virtirq.model import Gap

_PIECE: Final = 16384  # read(2) of more costs as much as the open: its buffer is made anew
_PAGE: Final = 4096
"""What is shorter is whole: seq_file hands out a page or more at a time."""
_READING: Final = os.O_RDONLY | os.O_CLOEXEC
_BOTH: Final = os.O_RDWR | os.O_CLOEXEC
_WHITE: Final = "\0 \t\n"
_MOST: Final = 64 << 20
"""Bytes of a file that is read whole: ``/proc/kallsyms``, the largest of them, has some 10 MB."""
_DECIMAL: Final = re.compile(r"-?[0-9]{1,9}", re.ASCII)
_HEXADECIMAL: Final = re.compile(r"(?:0x)?[0-9a-f]{1,16}", re.ASCII)
_NO_WRITING: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class OpenFile(ABC):
    """A kernel file that is kept open: what is read and written is one and the same thing.

    A path may be another interrupt's from one call to the next. An open file of ``/proc/irq/N``
    belongs to the interrupt's descriptor: once the kernel has freed that, every call is EIO
    (kernel/irq/irqdesc.c, free_desc(); fs/proc/inode.c, use_pde()). Every method but `close`
    raises OSError as the kernel would.
    """

    @abstractmethod
    def read(self) -> str:
        """The content as it is now, without surrounding white space."""

    @abstractmethod
    def write(self, text: str) -> None:
        """One write(2) of `text`."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it."""


Look = tuple[OpenFile, int | None, bool, str | None]
"""What `HostFs.look` has found."""


class HostFs(ABC):
    """A host's files by absolute path. Every method raises OSError as the kernel would."""

    recording: str | None = None
    """Where a recorded host came from; None on the running machine."""
    writable: bool = False

    @abstractmethod
    def read(self, path: str) -> str:
        """The content, without surrounding white space."""

    def head(self, path: str, most: int) -> str:
        """As `read`, of a file that is as long as somebody likes: the first `most` bytes of it."""
        return decode(self.beginning(path, most))

    def beginning(self, path: str, most: int) -> bytes:
        """The first `most` bytes as they are: who pays for what is read counts all of them."""
        return self.read(path).encode()[:most]

    @abstractmethod
    def listdir(self, path: str) -> list[str]:
        """Names in a directory, in no particular order."""

    def first(self, path: str, most: int) -> list[str]:
        """As `listdir`, of a directory that somebody can fill: `most` names of it, and no more."""
        return self.listdir(path)[:most]

    @abstractmethod
    def readlink(self, path: str) -> str:
        """The target of a symbolic link as it is written."""

    @abstractmethod
    def mode(self, path: str) -> int:
        """The st_mode bits, links followed."""

    def file_id(self, path: str) -> FileId:
        """The file that a link leads to, as the kernel knows it without asking anybody."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)

    def write(self, path: str, text: str) -> None:
        """One write(2) of `text`: kernel files take a value in one piece."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def open(self, path: str) -> OpenFile:
        """The file for reading and writing.

        Where it may be read alone, what forbids the rest is raised by its `write`.
        """
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def incarnation(self, path: str) -> int | None:
        """A number that tells what is at a sysfs path from what was there before.

        None where nobody can tell: in a recording, or when there is nothing.
        """
        return None

    def look(self, path: str, sysfs: str, handler: str) -> Look:
        """What an interrupt is, in this order.

        Its file `path`, opened as by `open`; the `incarnation` of what is at `sysfs`; whether there
        is a directory `handler`, which is empty for none; what the file has, None where that cannot
        be read. That it can says that it was this interrupt that was looked at (see `OpenFile`).
        """
        file = self.open(path)
        incarnation, there = self.incarnation(sysfs), bool(handler) and self.isdir(handler)
        try:
            return file, incarnation, there, file.read()
        except OSError:
            return file, incarnation, there, None

    def refresh(self) -> None:  # noqa: B027 - only a scratch host has anything to do
        """Take note of what other processes did to the host since it was opened."""

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What, beside files, could not be had when the host was recorded."""
        return ()

    def covers(self, path: KernelPath) -> bool:
        """Whether the absence of a file that fits `path` is a fact about the host."""
        return True

    def isdir(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(self.mode(path))
        except OSError:
            return False


class LiveFs(HostFs):
    """The machine that virtirq runs on."""

    writable = True

    def read(self, path: str) -> str:
        # os.open and not open(): a quarter of the time, and a host has thousands of these.
        descriptor = os.open(path, _READING)
        try:
            content = os.read(descriptor, _PIECE)
            if len(content) >= _PAGE:
                content = _rest(descriptor, content, _MOST + 1)
        finally:
            os.close(descriptor)
        if len(content) > _MOST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
        return content.decode("utf-8", "replace").strip(_WHITE)

    def beginning(self, path: str, most: int) -> bytes:
        descriptor = os.open(path, _READING)
        try:
            content = os.read(descriptor, min(most, _PIECE))
            if len(content) >= _PAGE:
                content = _rest(descriptor, content, most)
        finally:
            os.close(descriptor)
        return content

    def open(self, path: str) -> OpenFile:
        return _opened(path)

    def look(self, path: str, sysfs: str, handler: str) -> Look:
        # The same system calls without our own between them: a vector waits for it.
        try:
            descriptor = os.open(path, _BOTH)
        except OSError:
            return super().look(path, sysfs, handler)
        file = _LiveFile(descriptor, path)
        try:
            incarnation = os.stat(sysfs).st_ino
        except OSError:
            incarnation = None
        there = bool(handler) and os.access(f"{handler}/", os.F_OK)
        try:
            content = os.pread(descriptor, _PIECE, 0)
            if len(content) < _PAGE:
                return file, incarnation, there, content.decode("utf-8", "replace").strip(_WHITE)
            return file, incarnation, there, file.read()
        except OSError:
            return file, incarnation, there, None

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def first(self, path: str, most: int) -> list[str]:
        with os.scandir(path) as entries:
            return [each.name for each in islice(entries, most)]

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def mode(self, path: str) -> int:
        return os.stat(path).st_mode

    def isdir(self, path: str) -> bool:
        # The slash asks for a directory; a third less than stat(2) and what is made of its answer.
        return os.access(f"{path}/", os.F_OK)

    def file_id(self, path: str) -> FileId:
        return file_id(path)

    def incarnation(self, path: str) -> int | None:
        # Inode numbers of sysfs are handed out in a circle, with a count of the rounds above them
        # (fs/kernfs/dir.c, __kernfs_new_node()): none comes twice within a boot.
        try:
            return os.stat(path).st_ino
        except OSError:
            return None

    def write(self, path: str, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _rest(descriptor: int, content: bytes, most: int) -> bytes:
    """The file from here on, after `content`, up to `most` bytes in all; put together once."""
    pieces, size = [content], len(content)
    while size < most and (more := os.read(descriptor, min(most - size, _PIECE))):
        pieces.append(more)
        size += len(more)
    return b"".join(pieces)


def _opened(path: str) -> _LiveFile:
    try:
        return _LiveFile(os.open(path, _BOTH), path)
    except OSError as error:
        if error.errno not in _NO_WRITING:
            raise
        return _LiveFile(os.open(path, _READING), path, refusal=error.errno)


class _LiveFile(OpenFile):
    """`refusal` is the errno with which the kernel would not open it for writing."""

    __slots__ = ("_descriptor", "_path", "_refusal")

    def __init__(self, descriptor: int, path: str, refusal: int | None = None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._refusal = refusal

    def read(self) -> str:
        content = os.pread(self._descriptor, _PIECE, 0)
        if len(content) >= _PAGE:
            while more := os.pread(self._descriptor, _PIECE, len(content)):
                content += more
        return decode(content)

    def write(self, text: str) -> None:
        if self._refusal is not None:
            raise OSError(self._refusal, os.strerror(self._refusal), self._path)
        # Not pwrite(2): files of seq_file refuse it (fs/seq_file.c, seq_open()).
        os.write(self._descriptor, text.encode())

    def close(self) -> None:
        os.close(self._descriptor)


def decode(content: bytes) -> str:
    """A kernel file's content as text, without surrounding white space and NUL.

    Old kernels end some node files with a NUL, and recordings of them still do.
    """
    return content.decode("utf-8", "replace").strip(_WHITE)


class Reader:
    """Reads through a HostFs and keeps the list of what could not be read.

    What is missing gives None and a gap, never a value: a gap names the path, or the pattern
    where many paths failed alike.
    """

    def __init__(self, fs: HostFs) -> None:
        self.fs = fs
        self._failed: list[tuple[str, str, str]] = []  # pattern, why, where

    def text(self, path: KernelPath, *names: object, most: int | None = None) -> str | None:
        """The file's content, or its first `most` bytes; None when absent or unreadable."""
        where = path.at(*names)
        try:
            return self.fs.read(where) if most is None else self.fs.head(where, most)
        except OSError as error:
            self.failed(path, where, error)
            return None

    def cpus(self, path: KernelPath, *names: object) -> CpuSet | None:
        """A file that holds a CPU list; None when absent, unreadable or malformed."""
        text = self.text(path, *names)
        if text is None:
            return None
        try:
            return CpuSet.parse(text)
        except CpuSetError as error:
            self.malformed(path, path.at(*names), error)
            return None

    def number(self, path: KernelPath, *names: object, base: Literal[10, 16] = 10) -> int | None:
        """A file that holds a number; None when absent, unreadable or malformed.

        At most nine decimal digits, or 64 bits in hexadecimal: where `base` is 16, or by ``0x``.
        """
        text = self.text(path, *names)
        if text is None:
            return None
        base = 16 if text.startswith("0x") else base
        if (_HEXADECIMAL if base == 16 else _DECIMAL).fullmatch(text):
            return int(text, base)
        self.malformed(path, path.at(*names), f"{text[:40]!r} is not a number")
        return None

    def link(self, path: KernelPath, *names: object) -> str | None:
        """The last component of a link's target; None when there is no link."""
        where = path.at(*names)
        try:
            return self.fs.readlink(where).rstrip("/").rpartition("/")[2]
        except OSError as error:
            self.failed(path, where, error)
            return None

    def names(self, directory: str, path: KernelPath) -> list[str]:
        """Names in a directory whose entries fit `path`; empty when absent or unreadable."""
        try:
            return self.fs.listdir(directory)
        except OSError as error:
            self.failed(path, directory, error)
            return []

    def failed(
        self, path: KernelPath, where: str, error: OSError, *, optional: bool = False
    ) -> None:
        """Note that `where` could not be read, unless its absence is a fact.

        `optional`: it is one here, though not for every file that fits `path`.
        """
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
            if not self.fs.covers(path):
                self.malformed(path, where, "not in this recording")
                return
            if path.optional or optional:
                return
        why = os.strerror(error.errno) if error.errno else str(error)
        self.malformed(path, where, why)

    def malformed(self, path: KernelPath, where: str, why: object) -> None:
        """Note that `where` holds something that cannot be understood."""
        self._failed.append((path.glob, str(why), where))

    def missed(self, *paths: KernelPath) -> bool:
        """Whether anything of these kinds could not be read."""
        globs = {path.glob for path in paths}
        return any(glob in globs for glob, _, _ in self._failed)

    def mark(self) -> int:
        """How much failed so far, for `back_to`."""
        return len(self._failed)

    def back_to(self, mark: int) -> None:
        """Forget what failed since: it was of something that is gone."""
        del self._failed[mark:]

    @property
    def gaps(self) -> tuple[Gap, ...]:
        alike: dict[tuple[str, str], set[str]] = {}
        for pattern, why, where in self._failed:
            alike.setdefault((pattern, why), set()).add(where)
        return tuple(
            Gap(pattern if len(where) > 1 else where.pop(), why)
            for (pattern, why), where in sorted(alike.items())
        )
