"""The state directory, trusted only where nobody else can have put anything.

Root reads the journal and acts on it, so whoever can write there moves root's hand.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from virtirq.errors import DeploymentError

_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH


class ReadOnlyStateError(DeploymentError):
    """The directory is on a file system that takes nothing."""


class StateDirectory:
    """A directory of this user's alone, held open: what is opened in it cannot be elsewhere."""

    def __init__(self, path: Path) -> None:
        """Makes the directory if need be. Raises DeploymentError."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o755)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self.descriptor = os.open(path, flags)
        except OSError as error:
            raise _refused(path, error, link=path.is_symlink()) from error
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        found = os.fstat(self.descriptor)
        me = os.geteuid()
        if found.st_uid != me:
            hint = "run as root" if found.st_uid == 0 else "move it away: it is made anew"
            raise DeploymentError(
                f"{self.path}: belongs to user {found.st_uid}, and this is user {me}", hint=hint
            )
        if found.st_mode & _WRITABLE:
            raise DeploymentError(
                f"{self.path}: others than its owner can write there",
                hint="see that what is in it is yours, then 'chmod go-w' it",
            )

    def open(self, name: str, flags: int, *, make: bool = True) -> int:
        """A regular file there; never a link's target.

        Raises DeploymentError, and FileNotFoundError for one that is not there and not to be made.
        """
        # O_NONBLOCK: opening a FIFO must not wait for its other end.
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        where = self.path / name
        try:
            descriptor = os.open(name, flags, 0o600, dir_fd=self.descriptor)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not make:
                raise
            raise _refused(where, error, link=error.errno == errno.ELOOP) from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _irregular(where)
        return descriptor

    def close(self) -> None:
        os.close(self.descriptor)


def _refused(where: Path, error: OSError, *, link: bool) -> DeploymentError:
    if link:
        return DeploymentError(f"{where}: is a link, and is not followed", hint="move it away")
    if error.errno in (errno.EISDIR, errno.ENXIO):
        return _irregular(where)
    if error.errno == errno.EROFS:
        return ReadOnlyStateError(f"{where}: {error.strerror}")
    hint = "run as root" if error.errno in (errno.EACCES, errno.EPERM) else None
    return DeploymentError(f"{where}: {error.strerror}", hint=hint)


def _irregular(where: Path) -> DeploymentError:
    return DeploymentError(f"{where}: not a regular file", hint="move it away")
