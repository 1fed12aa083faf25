"""Recorded hosts: a directory tree, or a tar archive of one in any compression.

Our own recordings (``virtirq record``) carry ``/virtirq/recording.json``, which says what was
recorded and what could not be read then. Other trees of ``/proc`` and ``/sys``, such as hwloc's
gathered Linux trees, carry none: there a kind of file counts as recorded when at least one of
its kind is there.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from virtirq.errors import RecordingError
from virtirq.host.archive import DIRECTORY, FILE, HARD_LINK, LINK, members
from virtirq.host.fs import HostFs, decode
from virtirq.host.paths import KernelPath
from virtirq.model import Gap
from virtirq.values import dataclass

RECORDING: Final = "/virtirq/recording.json"
FORMAT: Final = 1
_MAX_LINKS: Final = 40  # as MAXSYMLINKS in include/linux/namei.h
_MAX_MEMBERS: Final = 1_000_000
"""Folders that are only named on the way to a member included."""
_FREE_MEMBERS: Final = 50_000
"""Beyond as many, an archive has at least a byte for each: the most regular host that can be made
up takes three when xz has packed it."""
_MAX_BYTES: Final = 1 << 30
_FREE_BYTES: Final = 1 << 26
_MAX_RATIO: Final = 2000
"""Unpacked bytes for each that is packed, beyond `_FREE_BYTES`; the same host has 350."""
_MAX_FILE: Final = 1 << 24
_PIECE: Final = 1 << 16
_MAX_DEPTH: Final = 64
_MAX_PATH: Final = 4096  # PATH_MAX in include/uapi/linux/limits.h


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, link or directory of a tree."""

    mode: int
    link: str = ""


class TreeFs(HostFs):
    """A recorded tree. Links are followed inside the tree only, as chroot(2) would."""

    def __init__(self, label: str) -> None:
        self.recording = label
        self._prefix = ""
        self._real: dict[str, str] = {}

    # What a kind of tree knows of its entries; the path is resolved already.
    def _entry(self, path: str) -> Entry | None:
        raise NotImplementedError

    def _names(self, path: str) -> list[str]:
        raise NotImplementedError

    def _content(self, path: str) -> bytes:
        raise NotImplementedError

    def read(self, path: str) -> str:
        real = self._resolve(path)
        entry = self._found(real, path)
        if stat.S_ISDIR(entry.mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(entry.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return decode(self._content(real))

    def listdir(self, path: str) -> list[str]:
        real = self._resolve(path)
        entry = self._found(real, path)
        if not stat.S_ISDIR(entry.mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return self._names(real)

    def readlink(self, path: str) -> str:
        directory, name = posixpath.split(path)
        real = posixpath.join(self._resolve(directory), name)
        entry = self._found(real, path)
        if not stat.S_ISLNK(entry.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return entry.link

    def mode(self, path: str) -> int:
        return self._found(self._resolve(path), path).mode

    def covers(self, path: KernelPath) -> bool:
        recorded = self._recorded
        if recorded is not None:
            return path.pattern in recorded
        if path not in self._seen:
            self._seen[path] = self._any("", path.pattern.split("/")[1:])
        return self._seen[path]

    @cached_property
    def _seen(self) -> dict[KernelPath, bool]:
        return {}

    @cached_property
    def _description(self) -> Mapping[str, Any]:
        try:
            real = self._resolve(RECORDING)
            entry = self._entry(real)
            if entry is None:
                return {}
            if not stat.S_ISREG(entry.mode):
                raise ValueError("not a file")
            return _checked(json.loads(self._content(real)))
        except RecordingError as error:
            raise RecordingError(f"{self.recording}: {error}", hint=error.hint) from error
        except (OSError, ValueError, RecursionError) as error:
            raise RecordingError(f"{self.recording}: {RECORDING} is malformed: {error}") from error

    @cached_property
    def _recorded(self) -> frozenset[str] | None:
        patterns = self._description.get("patterns")
        return None if patterns is None else frozenset(patterns)

    @cached_property
    def _errors(self) -> Mapping[str, int]:
        errors: Mapping[str, int] = self._description.get("errors", {})
        return errors

    @property
    def gaps(self) -> tuple[Gap, ...]:
        told: Mapping[str, str] = self._description.get("gaps", {})
        return tuple(Gap(path, error) for path, error in told.items())

    def _any(self, base: str, parts: list[str]) -> bool:
        """Whether the tree holds anything that fits the pattern."""
        for index, part in enumerate(parts):
            if "{" in part:
                try:
                    names = self.listdir(base or "/")
                except OSError:
                    return False
                head, tail = part[: part.index("{")], part[part.index("}") + 1 :]
                return any(
                    self._any(f"{base}/{name}", parts[index + 1 :])
                    for name in names
                    if name.startswith(head) and name.endswith(tail)
                )
            base = f"{base}/{part}"
        directory, name = posixpath.split(base)
        try:
            return self._entry(posixpath.join(self._resolve(directory), name)) is not None
        except OSError:
            return False

    def _found(self, real: str, path: str) -> Entry:
        if path in self._errors:
            raise OSError(self._errors[path], os.strerror(self._errors[path]), path)
        entry = self._entry(real)
        if entry is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return entry

    def _resolve(self, path: str) -> str:
        """The path with every link followed; what is missing stays as it is written."""
        known = self._real.get(path)
        if known is not None:
            return known
        head, _, name = path.rpartition("/")
        if head and name not in ("", ".", ".."):
            # What is beside another needs no look at all that leads there.
            step = f"{self._resolve(head).rstrip('/')}/{name}"
            entry = self._entry(step)
            if entry is None or not stat.S_ISLNK(entry.mode):
                self._real[path] = step
                return step
        todo = path.split("/")[::-1]
        real, links = "", 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                real = real.rpartition("/")[0]
                continue
            step = f"{real}/{part}"
            entry = self._entry(step)
            if entry is not None and stat.S_ISLNK(entry.mode):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                if entry.link.startswith("/"):
                    real = ""
                todo.extend(entry.link.split("/")[::-1])
                continue
            real = step
        self._real[path] = real or "/"
        return self._real[path]

    def _is_root(self, path: str) -> bool:
        """Whether proc or sys is there, and it is not /proc itself, which has a sys of its own."""
        if self._entry(f"{path}/proc") is not None:
            return True
        return self._entry(f"{path}/sys") is not None and self._entry(f"{path}/sys/vm") is None

    def _find_prefix(self) -> None:
        """Archives often hold one top folder; the host's root is where proc or sys is."""
        if self._is_root(""):
            return
        tops = sorted(name for name in self._names("/") if not name.startswith("."))
        for top in tops:
            entry = self._entry(f"/{top}")
            if entry is None or not stat.S_ISDIR(entry.mode):
                continue  # a link would lead out of the tree
            if self._is_root(f"/{top}"):
                self._prefix = f"/{top}"
                self._real.clear()
                return
        raise RecordingError(
            f"{self.recording}: holds neither proc nor sys",
            hint="give a directory or tar archive made by 'virtirq record' or a tree of /proc"
            " and /sys",
        )


class DirectoryFs(TreeFs):
    """A directory that holds a host's ``proc`` and ``sys``."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self._root = str(root)
        self._find_prefix()

    def _at(self, path: str) -> str:
        return f"{self._root}{self._prefix}{path}"

    def _entry(self, path: str) -> Entry | None:
        try:
            mode = os.lstat(self._at(path)).st_mode
            return Entry(mode, os.readlink(self._at(path)) if stat.S_ISLNK(mode) else "")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _names(self, path: str) -> list[str]:
        return os.listdir(self._at(path))

    def _content(self, path: str) -> bytes:
        descriptor = os.open(self._at(path), os.O_RDONLY | os.O_CLOEXEC)
        try:
            # In pieces: a sysctl of a live tree refuses a read of that size with ENOMEM
            # (fs/proc/proc_sysctl.c, proc_sys_call_handler()).
            pieces: list[bytes] = []
            while (piece := os.read(descriptor, _PIECE)) and len(pieces) * _PIECE < _MAX_FILE:
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(descriptor)


class ArchiveFs(TreeFs):
    """A tar archive, held in memory: its members are small and many."""

    def __init__(self, archive: Path) -> None:
        super().__init__(str(archive))
        self._members: dict[str, Entry] = {"/": Entry(stat.S_IFDIR | 0o755)}
        self._alike: dict[tuple[int, str], Entry] = {}
        self._data: dict[str, bytes] = {}
        self._children: dict[str, dict[str, None]] = {"/": {}}
        self._load(archive)
        self._find_prefix()

    def _load(self, archive: Path) -> None:
        try:
            hard = self._read(archive)
        except PermissionError:
            raise
        except (EOFError, OSError, ValueError) as error:
            why = str(error).partition("\n")[0].rstrip(": ")
            raise RecordingError(f"{archive}: not a readable tar archive: {why}") from error
        for path, target in hard:
            if target in self._data:
                self._data[path] = self._data[target]
                self._put(path, self._members[target])

    def _read(self, archive: Path) -> list[tuple[str, str]]:
        """The hard links, which may come before what they are links to."""
        most = min(_MAX_MEMBERS, _FREE_MEMBERS + archive.stat().st_size)
        total = 0
        hard: list[tuple[str, str]] = []
        with _open_archive(archive) as stream:
            for count, member in enumerate(
                members(stream, max_file=_MAX_FILE, max_size=_MAX_BYTES)
            ):
                total += member.size
                name = member.name
                if (
                    max(count, len(self._members)) > most
                    or total > _MAX_BYTES
                    or max(len(name), len(member.link)) > _MAX_PATH
                    or name.count("/") > _MAX_DEPTH
                ):
                    raise RecordingError(f"{archive}: larger than any host's tree")
                path = posixpath.normpath("/" + name.strip("/"))
                if member.kind == DIRECTORY:
                    self._put(path, self._entry_of(stat.S_IFDIR | member.mode))
                elif member.kind == LINK:
                    self._put(path, self._entry_of(stat.S_IFLNK | 0o777, member.link))
                elif member.kind == HARD_LINK:
                    hard.append((path, posixpath.normpath("/" + member.link.strip("/"))))
                elif member.kind == FILE:
                    self._data[path] = member.data
                    self._put(path, self._entry_of(stat.S_IFREG | member.mode))
        return hard

    def _entry_of(self, mode: int, link: str = "") -> Entry:
        """One for all that are alike: there are few, of a great many members."""
        return self._alike.setdefault((mode, link), Entry(mode, link))

    def _put(self, path: str, entry: Entry) -> None:
        if path == "/":
            return
        self._members[path] = entry
        if stat.S_ISDIR(entry.mode):
            self._children.setdefault(path, {})
        while path != "/":
            parent, _, name = path.rpartition("/")
            parent = parent or "/"
            siblings = self._children.setdefault(parent, {})
            if name in siblings:
                return
            siblings[name] = None
            self._members.setdefault(parent, self._members["/"])
            path = parent

    def _key(self, path: str) -> str:
        return path if not self._prefix else self._prefix if path == "/" else self._prefix + path

    def _entry(self, path: str) -> Entry | None:
        return self._members.get(self._key(path))

    def _names(self, path: str) -> list[str]:
        return list(self._children.get(self._key(path), ()))

    def _content(self, path: str) -> bytes:
        return self._data[self._key(path)]


def _checked(told: Any) -> Mapping[str, Any]:
    """The content of a recording.json. Raises ValueError, or RecordingError for its format."""
    if not isinstance(told, dict) or "format" not in told:
        raise ValueError("it names no format")
    if told["format"] != FORMAT:
        raise RecordingError(
            f"recording format {told['format']!r:.40} is not {FORMAT}",
            hint="read it with the virtirq that recorded it, or record the host again",
        )
    patterns, errors = told.get("patterns"), told.get("errors", {})
    if patterns is not None and not (
        isinstance(patterns, list) and all(isinstance(each, str) for each in patterns)
    ):
        raise ValueError("patterns is not a list of strings")
    if not isinstance(errors, dict) or not all(
        isinstance(number, int) and number in errno.errorcode for number in errors.values()
    ):
        raise ValueError("errors does not give an errno for each path")
    gaps = told.get("gaps", {})
    if not isinstance(gaps, dict) or not all(isinstance(each, str) for each in gaps.values()):
        raise ValueError("gaps does not give a text for each thing")
    return told


class _Bounded:
    """A stream that ends in an error when more comes out of it than any host's tree has.

    Errors of the programs and modules that unpack are ValueError.
    """

    def __init__(self, file: Any, most: int) -> None:
        self._file = file
        self._left = most

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._file.read(size)
        except (OSError, EOFError, ValueError):
            raise
        except Exception as error:  # zlib.error and lzma.LZMAError: not imported for their names
            raise ValueError(str(error)) from error
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.EFBIG, "larger than any host's tree")
        return data


@contextmanager
def _open_archive(archive: Path) -> Iterator[_Bounded]:
    """What is in it, unpacked on the way."""
    most = min(_MAX_BYTES, _FREE_BYTES + _MAX_RATIO * archive.stat().st_size)
    with archive.open("rb") as file:
        magic = file.read(6)
    if not magic.startswith(b"\x28\xb5\x2f\xfd"):
        with _opener(magic)(archive, "rb") as unpacked:
            yield _Bounded(unpacked, most)
        return
    # Zstandard came to Python in 3.14; until then its own program unpacks it.
    import shutil
    import subprocess

    zstd = shutil.which("zstd")
    if zstd is None:
        raise RecordingError(
            f"{archive}: compressed with Zstandard, and there is no zstd command",
            hint="install zstd, or unpack the archive and give its directory",
        )
    with subprocess.Popen(
        [zstd, "-dcq", "--", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as unpack:
        try:
            stream = _Bounded(unpack.stdout, most)
            yield stream
            # What follows the archive is padding, unless someone is up to no good.
            if len(stream.read(_MAX_FILE)) < _MAX_FILE and unpack.wait():
                raise RecordingError(f"{archive}: not a readable tar archive: zstd failed")
        finally:
            unpack.kill()


def _opener(magic: bytes) -> Callable[..., Any]:
    """What opens a file that starts so; the modules are large, and rarely all needed."""
    if magic.startswith(b"\x1f\x8b"):
        import gzip

        return gzip.open
    if magic.startswith(b"BZh"):
        import bz2

        return bz2.open
    if magic == b"\xfd7zXZ\x00":
        import lzma

        return lzma.open
    return open
