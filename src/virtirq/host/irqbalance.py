"""Is irqbalance running? It moves interrupts that others pinned.

irqbalance listens on ``/run/irqbalance/irqbalance<PID>.sock`` (its own irqbalance-ui finds it
there); where its unit gives it no such directory, the unit's cgroup names its process.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from getopt import GetoptError, gnu_getopt
from typing import Final

from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.host.pci import list_addresses, read_devices
from virtirq.model import Irqbalance
from virtirq.values import pattern

_NAME: Final = "irqbalance"
_SOCKET = pattern(r"irqbalance(\d{1,9})\.sock", re.ASCII)
_PID = pattern(r"\d{1,9}", re.ASCII)
_USER = pattern(r"^Uid:\s+(\d+)\s", re.MULTILINE | re.ASCII)
_MOST_ARGUMENTS: Final = 1 << 17
"""Bytes of a command line: any process can make its own as long as it likes."""
_MOST_STATUS: Final = 1 << 16
# irqbalance: irqbalance.c, version()
_VERSION = pattern(r"irqbalance version (\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?", re.ASCII)
# irqbalance: irqbalance.c, parse_command_line()
_SHORT: Final = "odfjVi:p:s:c:l:m:t:e:"
_LONG: Final = (
    *("oneshot", "debug", "foreground", "powerthresh=", "banirq=", "deepestcache=", "pid="),
    *("policyscript=", "journal", "banmod=", "interval=", "version", "migrateval="),
)


def read_irqbalance(reader: Reader) -> Irqbalance:
    """Whether irqbalance runs, with its process id; ``running`` is None when that is not known.

    A socket outlives a killed irqbalance, so on a live host its process must exist too, and not
    say that it is another program: process ids are reused.
    """
    pids = [
        int(match[1])
        for name in reader.names(paths.IRQBALANCE_DIR, paths.IRQBALANCE_SOCKET)
        if (match := _SOCKET.fullmatch(name))
    ]
    cgroup = (reader.text(paths.IRQBALANCE_CGROUP) or "").split()
    pids += [int(pid) for pid in cgroup if _PID.fullmatch(pid)]
    for pid in pids:
        if reader.fs.recording is not None:  # no recording holds the arguments of processes
            return Irqbalance(True, pid)
        if not reader.fs.isdir(f"/proc/{pid}"):
            continue
        if not _may_be_roots(reader.fs, pid):
            continue
        arguments = reader.text(paths.PROCESS_ARGUMENTS, pid, most=_MOST_ARGUMENTS)
        words = [] if arguments is None else arguments.split("\0")
        if arguments is None or any(_is_its_name(each) for each in words):
            banned = _banned_modules(words)
            return Irqbalance(True, pid, _spares_vfio(reader, banned), banned)
    if reader.missed(paths.IRQBALANCE_SOCKET, paths.IRQBALANCE_CGROUP):
        return Irqbalance(None)
    return Irqbalance(False)


def read_start(fs: HostFs, pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot; None when there is none.

    With the boot it tells a process from every other that had or will have its id.
    """
    try:
        # proc_pid_stat(5), field 22; the second is the name in brackets, and may hold anything.
        fields = fs.read(paths.PROCESS_STAT.at(pid)).rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def read_version(fs: HostFs, pid: int) -> tuple[int, int, int] | None:
    """The version of the irqbalance that runs as `pid`, out of its program; None if not found.

    Nothing is executed. Its socket does not tell, and the file under /usr may be newer.
    """
    try:
        match = _VERSION.search(fs.read(paths.PROCESS_PROGRAM.at(pid)))
    except OSError:
        return None
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def _may_be_roots(fs: HostFs, pid: int) -> bool:
    """Whether it is not known for certain that the process is another user's.

    A socket that was left behind may bear the number of anybody's process by now, which then says
    of itself what it likes.
    """
    try:
        user = _USER.search(fs.head(paths.THREAD_STATUS.at(pid, pid), _MOST_STATUS))
    except OSError:
        return True
    return user is None or user[1] == "0"


def _is_its_name(argument: str) -> bool:
    return argument.rpartition("/")[2].startswith(_NAME)


def _spares_vfio(reader: Reader, banned: tuple[str, ...]) -> bool:
    """Whether the interrupts of every VFIO device of the host are left alone by that.

    A VFIO driver need not be called so: there are mlx5_vfio_pci and its like, and drivers of
    vendors with VFIO inside.
    """
    if not banned:
        return False
    devices = read_devices(reader, list_addresses(reader)).values()
    drivers = {each.driver for each in devices if each.is_vfio} or {"vfio-pci"}
    spared = Irqbalance(True, banned=banned)
    return all(spared.spares(driver) for driver in drivers)


def _banned_modules(arguments: Sequence[str]) -> tuple[str, ...]:
    """The modules whose interrupts it was told to leave alone."""
    try:
        options, _ = gnu_getopt(arguments[1:], _SHORT, _LONG)
    except GetoptError:  # of another version; then it is told what it knows already
        return ()
    return tuple(value for name, value in options if name in ("-m", "--banmod"))
