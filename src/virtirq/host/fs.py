"""HostFs, the one door to a host's ``/proc``, ``/sys`` and ``/run``.

Readers never open a kernel file in another way, so that whatever runs on this machine also runs
on a recorded one. `LiveFs` is the machine itself; `virtirq.host.tree` holds recorded trees and
`virtirq.host.scratch` a writable copy of one.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from typing import Final

from virtirq.host.paths import KernelPath
from virtirq.model import Gap

READ_LIMIT: Final = 1 << 20
"""Bytes; no file of the manifest is as large (per_cpu_count of 8192 CPUs is 90 kB)."""


class HostFs(ABC):
    """A host's files by absolute path. Every method raises OSError as the kernel would."""

    recording: str | None = None
    """Where a recorded host came from; None on the running machine."""
    writable: bool = False

    @abstractmethod
    def read(self, path: str) -> str:
        """The content, without surrounding white space."""

    @abstractmethod
    def listdir(self, path: str) -> list[str]:
        """Names in a directory, in no particular order."""

    @abstractmethod
    def readlink(self, path: str) -> str:
        """The target of a symbolic link as it is written."""

    @abstractmethod
    def mode(self, path: str) -> int:
        """The st_mode bits, links followed."""

    def write(self, path: str, text: str) -> None:
        """One write(2) of `text`: kernel files take a value in one piece."""
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

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
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, READ_LIMIT)
            if len(content) >= 4096:  # seq_file hands out a page or more at a time
                while more := os.read(descriptor, READ_LIMIT):
                    content += more
        finally:
            os.close(descriptor)
        return decode(content)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def readlink(self, path: str) -> str:
        return os.readlink(path)

    def mode(self, path: str) -> int:
        return os.stat(path).st_mode

    def write(self, path: str, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def decode(content: bytes) -> str:
    """A kernel file's content as text, without surrounding white space and NUL.

    Old kernels end some node files with a NUL, and recordings of them still do.
    """
    return content.decode("utf-8", "replace").strip("\0 \t\n")


class Reader:
    """Reads through a HostFs and keeps the list of what could not be read.

    What is missing gives None and a gap, never a value: a gap names the path, or the pattern
    where many paths failed alike.
    """

    def __init__(self, fs: HostFs) -> None:
        self.fs = fs
        self._failed: dict[tuple[str, str], list[str]] = {}

    def text(self, path: KernelPath, *names: object) -> str | None:
        """The file's content; None when absent or unreadable."""
        where = path.at(*names)
        try:
            return self.fs.read(where)
        except OSError as error:
            self.failed(path, where, error)
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

    def failed(self, path: KernelPath, where: str, error: OSError) -> None:
        """Note that `where` could not be read, unless its absence is a fact."""
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL):
            if not self.fs.covers(path):
                self._failed.setdefault((path.glob, "not in this recording"), []).append(where)
                return
            if path.optional:
                return
        why = os.strerror(error.errno) if error.errno else str(error)
        self._failed.setdefault((path.glob, why), []).append(where)

    def malformed(self, path: KernelPath, where: str, why: object) -> None:
        """Note that `where` holds something that cannot be understood."""
        self._failed.setdefault((path.glob, str(why)), []).append(where)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        return tuple(
            Gap(where[0] if len(set(where)) == 1 else pattern, why)
            for (pattern, why), where in sorted(self._failed.items())
        )
