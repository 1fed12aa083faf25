"""Whose a process is: the user that it belongs to, and whether its word is as good as root's."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from virtirq.guests.processes.threads import number, text_of
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.values import pattern

_UID: Final = pattern(r"^Uid:\s+(\d+)\s+(\d+)\s", re.MULTILINE | re.ASCII)
_PERMITTED: Final = pattern(r"^CapPrm:\s+([0-9a-f]+)$", re.MULTILINE | re.ASCII)
_SYS_ADMIN: Final = 1 << 21  # CAP_SYS_ADMIN, include/uapi/linux/capability.h
_NOBODY_LOGGED_IN: Final = 2**32 - 1


class Owner(NamedTuple):
    """The user of a process. `root`: the host's own, and not the root of some container."""

    uid: int
    root: bool = False


def owner_of(fs: HostFs, pid: int) -> Owner | None:
    """The process's user; None when it has ended.

    Of a program that runs with another's rights (setuid) it is who started it.
    """
    text = text_of(fs, paths.THREAD_STATUS.at(pid, pid)) or ""
    match = _UID.search(text)
    if match is None:
        return None
    real, effective = int(match[1]), int(match[2])
    permitted = _PERMITTED.search(text)
    able = permitted is not None and bool(int(permitted[1], 16) & _SYS_ADMIN)
    return Owner(real or effective, real == effective == 0 and able)


def speaks_for_root(fs: HostFs, pid: int, owner: Owner | None) -> bool:
    """Whether what a process says of itself is root's word.

    sudo(8) and the like are root's while they ask for a password, under whatever arguments the
    user gave them: a process of a login session is its user's, as the kernel keeps it for audit.
    """
    if owner is None or not owner.root:
        return False
    user = number(text_of(fs, paths.LOGIN_USER.at(pid)), digits=10)
    return user in (None, 0, _NOBODY_LOGGED_IN)
