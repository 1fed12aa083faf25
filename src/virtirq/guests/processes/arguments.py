"""Command lines of processes, so much of each user's: anybody can have many, and long ones."""

from __future__ import annotations

from collections import Counter
from typing import Final

from virtirq.guests.processes.owners import owner_of
from virtirq.guests.processes.values import MOST_BYTES, split
from virtirq.host import paths
from virtirq.host.fs import HostFs, decode

_MOST_OF_USER: Final = 64 << 20
"""Bytes of one user's command lines that are read; QEMU's has some ten thousand."""


class Arguments:
    """Reads command lines. `skipped` are users of whom not all were read."""

    def __init__(self, fs: HostFs) -> None:
        self._fs = fs
        self._users: dict[int, int] = {}
        self._read: Counter[int] = Counter()
        self.skipped: set[int] = set()

    def of(self, pid: int) -> list[str]:
        """The process's command line; none of one that has none, is hidden, or comes too late."""
        user = self.user(pid)
        most = min(MOST_BYTES, _MOST_OF_USER - self._read[user])
        if most <= 0:
            self.skipped.add(user)
            return []
        try:
            content = self._fs.beginning(paths.PROCESS_ARGUMENTS.at(pid), most)
        except OSError:
            return []
        self._read[user] += len(content)  # NULs, too, of which nothing is left in the end
        return split(decode(content))

    def user(self, pid: int) -> int:
        """Whose part of what is read in all the process is; -1 when it has ended."""
        if pid not in self._users:
            owner = owner_of(self._fs, pid)
            self._users[pid] = -1 if owner is None else owner.uid
        return self._users[pid]
