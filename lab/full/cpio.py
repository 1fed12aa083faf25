"""Writes an initramfs (cpio "newc", compressed), as any user and with the same bytes each time."""

from __future__ import annotations

import gzip
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Entry:
    """One member: a directory, a file, or a symbolic link whose data is its target."""

    path: str
    mode: int
    data: bytes = b""


def directory(path: str) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755)


def file(path: str, data: bytes, *, executable: bool = False) -> Entry:
    return Entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(path: str, target: str) -> Entry:
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def write(target: Path, entries: list[Entry]) -> None:
    """Write the archive; parents are added, since the kernel does not make them."""
    members = {entry.path: entry for entry in _parents(entries)}
    members |= {entry.path: entry for entry in entries}
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as out:
        for inode, path in enumerate(sorted(members), start=1):
            out.write(_member(inode, members[path]))
        out.write(_member(0, Entry("TRAILER!!!", 0)))


def _parents(entries: list[Entry]) -> list[Entry]:
    paths = {str(parent) for entry in entries for parent in PurePosixPath(entry.path).parents}
    return [directory(path) for path in paths - {"."}]


def _member(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    # magic, then 13 fields: inode, mode, uid, gid, nlink, mtime, size, four device
    # numbers, name length, checksum (unused in this format)
    fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(head + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
