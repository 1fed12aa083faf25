"""Is irqbalance running? It moves interrupts that others pinned.

irqbalance listens on ``/run/irqbalance/irqbalance<PID>.sock`` (its own irqbalance-ui finds it
there); where its unit gives it no such directory, the unit's cgroup names its process.
"""

from __future__ import annotations

import re

from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.model import Irqbalance

_BAN = "--banmod=vfio-pci"
_SOCKET = re.compile(r"irqbalance(\d{1,9})\.sock", re.ASCII)
_PID = re.compile(r"\d{1,9}", re.ASCII)


def read_irqbalance(reader: Reader) -> Irqbalance:
    """Whether irqbalance runs, with its process id; ``running`` is None when that is not known.

    A socket outlives a killed irqbalance, so on a live host its process must exist too.
    """
    pids = [
        int(match[1])
        for name in reader.names(paths.IRQBALANCE_DIR, paths.IRQBALANCE_SOCKET)
        if (match := _SOCKET.fullmatch(name))
    ]
    cgroup = (reader.text(paths.IRQBALANCE_CGROUP) or "").split()
    pids += [int(pid) for pid in cgroup if _PID.fullmatch(pid)]
    for pid in pids:
        if reader.fs.recording is not None or reader.fs.isdir(f"/proc/{pid}"):
            return Irqbalance(True, pid, spares_vfio=_spares_vfio(reader, pid))
    if reader.missed(paths.IRQBALANCE_SOCKET, paths.IRQBALANCE_CGROUP):
        return Irqbalance(None)
    return Irqbalance(False)


def _spares_vfio(reader: Reader, pid: int) -> bool:
    """Whether it was told to; no recording holds the arguments of processes."""
    if reader.fs.recording is not None:
        return False
    return _BAN in (reader.text(paths.PROCESS_ARGUMENTS, pid) or "").split("\0")
