"""Is irqbalance running? It moves interrupts that others pinned.

irqbalance listens on ``/run/irqbalance/irqbalance<PID>.sock`` (its own irqbalance-ui finds it
there); where its unit gives it no such directory, the unit's cgroup names its process.
"""

from __future__ import annotations

import re

from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.model import Irqbalance

_SOCKET = re.compile(r"irqbalance(\d+)\.sock", re.ASCII)


def read_irqbalance(reader: Reader) -> Irqbalance:
    """Whether irqbalance runs, with its process id; ``running`` is None when that is not known.

    A socket outlives a killed irqbalance, so on a live host its process must exist too.
    """
    pids = [
        int(match[1])
        for name in reader.names(paths.IRQBALANCE_DIR, paths.IRQBALANCE_SOCKET)
        if (match := _SOCKET.fullmatch(name))
    ]
    pids += [int(pid) for pid in (reader.text(paths.IRQBALANCE_CGROUP) or "").split()]
    for pid in pids:
        if reader.fs.recording is not None or reader.fs.isdir(f"/proc/{pid}"):
            return Irqbalance(True, pid)
    if not reader.fs.covers(paths.IRQBALANCE_SOCKET):
        return Irqbalance(None)
    return Irqbalance(False)
