"""CPUs, NUMA nodes, SMT siblings and last-level caches."""

from __future__ import annotations

from typing import Final

from virtirq.cpuset import CpuSet
from virtirq.errors import CpuSetError
from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.host.paths import KernelPath
from virtirq.model import Node, Topology

_LEVELS: Final = tuple("123456789")


def read_topology(reader: Reader) -> Topology:
    """The host's topology; what cannot be read is a gap of `reader` and empty here.

    Without ``online`` the CPUs of the nodes stand in, if those are there: offline CPUs are in
    no node's cpulist (drivers/base/node.c shows online CPUs only).
    """
    nodes = _read_nodes(reader)
    online = read_cpus(reader, paths.CPU_ONLINE)
    if online is None:
        online = CpuSet(cpu for node in nodes.values() for cpu in node.cpus)
    possible = read_cpus(reader, paths.CPU_POSSIBLE)
    return Topology(
        online=online,
        possible=online if possible is None else possible,
        isolated=read_cpus(reader, paths.CPU_ISOLATED) or CpuSet(),
        nohz_full=_read_nohz_full(reader),
        nodes=nodes,
        siblings=_read_groups(reader, online, paths.CPU_SIBLINGS),
        llcs=_read_llcs(reader, online),
    )


def read_cpus(reader: Reader, path: KernelPath, *names: object) -> CpuSet | None:
    """A file that holds a CPU list; None when absent, unreadable or malformed."""
    text = reader.text(path, *names)
    if text is None:
        return None
    try:
        return CpuSet.parse(text)
    except CpuSetError as error:
        reader.malformed(path, path.at(*names), error)
        return None


def _read_nohz_full(reader: Reader) -> CpuSet:
    # Without nohz_full= the file reads "(null)" (drivers/base/cpu.c, print_cpus_nohz_full()).
    if reader.text(paths.CPU_NOHZ_FULL) in (None, "(null)"):
        return CpuSet()
    return read_cpus(reader, paths.CPU_NOHZ_FULL) or CpuSet()


def _read_nodes(reader: Reader) -> dict[int, Node]:
    numbers = list(read_cpus(reader, paths.NODES_ONLINE) or ())
    nodes = {}
    for number in numbers:
        cpus = read_cpus(reader, paths.NODE_CPUS, f"node{number}")
        if cpus is None:
            continue
        nodes[number] = Node(number, cpus, _read_distances(reader, number, numbers))
    return nodes


def _read_distances(reader: Reader, number: int, numbers: list[int]) -> dict[int, int]:
    text = reader.text(paths.NODE_DISTANCE, f"node{number}")
    if text is None:
        return {}
    try:
        return dict(zip(numbers, map(int, text.split()), strict=True))
    except ValueError:
        where = paths.NODE_DISTANCE.at(f"node{number}")
        reader.malformed(paths.NODE_DISTANCE, where, "not one number for each node")
        return {}


def _read_groups(reader: Reader, online: CpuSet, path: KernelPath) -> tuple[CpuSet, ...]:
    """Disjoint groups of CPUs, each named by every one of its members."""
    groups, seen = [], CpuSet()
    for cpu in online:
        if cpu in seen:
            continue
        group = read_cpus(reader, path, f"cpu{cpu}")
        if group is not None and cpu in group:
            groups.append(group)
            seen |= group
    return tuple(groups)


def _read_llcs(reader: Reader, online: CpuSet) -> tuple[CpuSet, ...]:
    """The groups of CPUs that share a cache of the highest level that each has."""
    groups, seen = [], CpuSet()
    for cpu in online:
        if cpu in seen:
            continue
        best, last = 0, None
        for index in reader.names(f"{paths.CPU_DIR}/cpu{cpu}/cache", paths.CACHE_LEVEL):
            if not index.startswith("index"):
                continue
            level = reader.text(paths.CACHE_LEVEL, f"cpu{cpu}", index)
            # One digit: the kernel knows no more than a few levels.
            if level is not None and level in _LEVELS and int(level) > best:
                best, last = int(level), index
        group = last and read_cpus(reader, paths.CACHE_CPUS, f"cpu{cpu}", last)
        if group and cpu in group:
            groups.append(group)
            seen |= group
    return tuple(groups)
