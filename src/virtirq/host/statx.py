"""What file a link leads to, asked of nobody but the kernel.

stat(2) of a file that somebody serves by FUSE waits for that somebody. statx(2) with
``AT_STATX_DONT_SYNC`` answers from what the kernel has (Linux kernel, fs/fuse/dir.c,
fuse_update_get_attr()). Python has no statx of its own before 3.15.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from functools import cache
from typing import Any, Final, NamedTuple

_AT_FDCWD: Final = -100
_DONT_SYNC: Final = 0x4000
_MASK: Final = 0x1 | 0x100 | 0x1000  # STATX_TYPE, STATX_INO, STATX_MNT_ID (since 5.8)
# struct statx (include/uapi/linux/stat.h): stx_mode, stx_ino, stx_rdev_{major,minor}, stx_mnt_id
_STATX: Final = struct.Struct("=28xH2xQ88x2I8xQ104x")


class FileId(NamedTuple):
    """A file: its inode number within a mount, and ``major:minor`` of a character device."""

    ino: int
    mount: int
    device: str | None = None


def file_id(path: str) -> FileId:
    """The file at a path, links followed. Raises OSError."""
    buffer, statx = bytearray(_STATX.size), _statx()
    if statx is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), path)
    import ctypes

    place = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    if statx(_AT_FDCWD, os.fsencode(path), _DONT_SYNC, _MASK, place):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    mode, ino, major, minor, mount = _STATX.unpack(buffer)
    return FileId(ino, mount, f"{major}:{minor}" if stat.S_ISCHR(mode) else None)


@cache
def _statx() -> Any:
    """The C library's function, which glibc has since 2.28; None where there is none."""
    import ctypes

    return getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
