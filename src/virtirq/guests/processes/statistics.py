"""What KVM has counted for the vCPUs of a QEMU guest, by its own monitor."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from virtirq.guests.processes.monitor import session
from virtirq.host.fs import HostFs
from virtirq.model import Guest, VcpuCounts


def ask_vcpu_statistics(fs: HostFs, guest: Guest, names: Collection[str]) -> VcpuCounts:
    """Those of `names` that its kernel keeps; none without KVM. Raises UnavailableError.

    For that, too, where QEMU has no such command yet (query-stats, since QEMU 7.1).
    """
    with session(fs, guest) as monitor:
        wanted = {"provider": "kvm", "names": list(names)}
        told = monitor.ask("query-stats", target="vcpu", providers=[wanted])
        return parse_statistics(told, monitor.ask("query-cpus-fast"), names)


def parse_statistics(told: Any, cpus: Any, names: Collection[str]) -> VcpuCounts:
    """What query-stats and query-cpus-fast answer (QEMU, qapi/stats.json and machine.json).

    Raises what reading something else as that raises: `monitor.MALFORMED`.
    """
    vcpus = {str(each["qom-path"]): int(each["cpu-index"]) for each in cpus}
    found: dict[int, dict[str, int]] = {}
    for each in told:
        vcpu = vcpus.get(each["qom-path"])
        for one in each["stats"]:
            if vcpu is not None and one["name"] in names:
                found.setdefault(vcpu, {})[one["name"]] = int(one["value"])
    return found
