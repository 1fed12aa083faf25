"""CPUs, NUMA nodes, SMT siblings and last-level caches."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from virtirq.cpuset import MAX_CPUS, CpuSet, union
from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.host.paths import KernelPath
from virtirq.model import Node, Topology
from virtirq.values import pattern

_CPU = pattern(r"cpu(\d{1,5})", re.ASCII)
_NODE = pattern(r"node(\d{1,4})", re.ASCII)
# drivers/base/cacheinfo.c, size_show()
_SIZE = pattern(r"(\d{1,9})K", re.ASCII)
_DEEPEST: Final = 8
"""Cgroups inside each other that are looked into."""


def read_topology(reader: Reader) -> Topology:
    """The host's topology; what cannot be read is a gap of `reader` and empty here.

    Without ``online`` the CPUs of the nodes stand in, if those are there: offline CPUs are in
    no node's cpulist (drivers/base/node.c shows online CPUs only). Without nodes, those CPUs do
    that have a ``topology`` directory, which an offline one has not (drivers/base/topology.c).
    """
    nodes = _read_nodes(reader)
    online = reader.cpus(paths.CPU_ONLINE)
    if online is None:
        online = union(node.cpus for node in nodes.values()) or _by_directories(reader)
    possible = reader.cpus(paths.CPU_POSSIBLE)
    llcs = _read_llcs(reader, online)
    return Topology(
        online=online,
        possible=online if possible is None else possible,
        isolated=read_isolated(reader),
        nohz_full=_read_nohz_full(reader),
        nodes=nodes,
        siblings=_read_groups(reader, online, paths.CPU_SIBLINGS),
        llcs=tuple(llcs),
        llc_sizes={cpus: each.size for cpus, each in llcs.items() if each.size is not None},
        llc_levels={cpus: each.level for cpus, each in llcs.items()},
        packages=_read_packages(reader, online),
        performance=_read_if_there(reader, paths.CPU_PERFORMANCE),
        efficiency=_read_if_there(reader, paths.CPU_EFFICIENCY)
        | _read_if_there(reader, paths.CPU_LOW_POWER),
    )


def read_isolated(reader: Reader) -> CpuSet:
    """CPUs without a scheduling domain: since the boot, and by cpuset partitions.

    Nothing tells of the latter but the writes that make them: no uevent, and the file of the root
    cgroup is not one that poll(2) wakes for (Linux kernel, kernel/cgroup/cpuset.c, dfl_files).
    """
    return (reader.cpus(paths.CPU_ISOLATED) or CpuSet()) | _isolated_since(reader)


def _isolated_since(reader: Reader) -> CpuSet:
    mark = reader.mark()
    found = reader.cpus(paths.CGROUP_ISOLATED)
    if found is not None:
        return found
    if reader.fs.covers(paths.CGROUP_ISOLATED) and reader.mark() > mark:
        return CpuSet()  # it is there, and cannot be read
    found = _by_partitions(reader)
    reader.back_to(mark)  # no cgroups, or not those of version 2
    return found


def _by_partitions(reader: Reader, above: str = "", depth: int = 0) -> CpuSet:
    """The CPUs of isolated partitions before 6.7, which lists them nowhere.

    A partition has a parent that is one, and what it gives to those inside it is no longer its own
    (Linux 6.1, kernel/cgroup/cpuset.c, update_parent_subparts_cpumask()).
    """
    found = CpuSet()
    if depth == _DEEPEST:
        return found
    for name in reader.names(f"{paths.CGROUP_DIR}{above}", paths.CGROUP_PARTITION):
        if not reader.fs.isdir(f"{paths.CGROUP_DIR}{above}/{name}"):
            continue
        group = f"{above}/{name}".removeprefix("/")
        kind = reader.text(paths.CGROUP_PARTITION, group)
        if kind == "isolated":
            found |= reader.cpus(paths.CGROUP_CPUS, group) or CpuSet()
        if kind in ("root", "isolated"):
            found |= _by_partitions(reader, f"/{group}", depth + 1)
    return found


def _read_if_there(reader: Reader, path: KernelPath) -> CpuSet:
    """A CPU list that few hosts have, empty without it.

    A recording that was made before virtirq read the file says nothing about it, and that is not
    worth a line to everybody who looks at one.
    """
    if reader.fs.covers(path):
        return reader.cpus(path) or CpuSet()
    mark = reader.mark()
    found = reader.cpus(path)
    reader.back_to(mark)
    return found or CpuSet()


def _by_directories(reader: Reader) -> CpuSet:
    numbers = (
        match[1]
        for name in reader.names(paths.CPU_DIR, paths.CPU_SIBLINGS)
        if (match := _CPU.fullmatch(name)) and reader.fs.isdir(f"{paths.CPU_DIR}/{name}/topology")
    )
    return CpuSet(number for each in numbers if (number := int(each)) < MAX_CPUS)


def _read_nohz_full(reader: Reader) -> CpuSet:
    # Without nohz_full= the file reads "(null)" (drivers/base/cpu.c, print_cpus_nohz_full()).
    if reader.text(paths.CPU_NOHZ_FULL) in (None, "(null)"):
        return CpuSet()
    return reader.cpus(paths.CPU_NOHZ_FULL) or CpuSet()


def _read_nodes(reader: Reader) -> dict[int, Node]:
    mark = reader.mark()
    text = reader.text(paths.NODES_ONLINE)
    online = None if text is None else reader.cpus(paths.NODES_ONLINE)
    numbers = _node_directories(reader) if online is None else list(online)
    if numbers and text is None:
        reader.back_to(mark)  # nothing is unknown: every online node has a directory
    nodes = {}
    for number in numbers:
        cpus = reader.cpus(paths.NODE_CPUS, f"node{number}")
        if cpus is None:
            continue
        nodes[number] = Node(number, cpus, _read_distances(reader, number, numbers))
    return nodes


def _node_directories(reader: Reader) -> list[int]:
    """The nodes by their directories; none in a kernel without CONFIG_NUMA."""
    try:
        names = reader.fs.listdir(paths.NODE_DIR)
    except OSError as error:
        reader.failed(paths.NODE_CPUS, paths.NODE_DIR, error, optional=True)
        return []
    return sorted(int(match[1]) for name in names if (match := _NODE.fullmatch(name)))


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
    groups, left = [], online
    while left:
        cpu = left.first()
        group = reader.cpus(path, f"cpu{cpu}")
        if group is not None and cpu in group:
            groups.append(group)
            left -= group
        else:
            left -= CpuSet([cpu])
    return tuple(groups)


def _read_packages(reader: Reader, online: CpuSet) -> tuple[CpuSet, ...]:
    """The CPUs of each socket. Nothing is decided by them, so that they are not known is no gap."""
    mark = reader.mark()
    found = _read_groups(reader, online, paths.CPU_PACKAGE)
    reader.back_to(mark)
    return found


class _Llc(NamedTuple):
    """A last-level cache; its size in KiB where it is known."""

    level: int
    size: int | None


def _read_llcs(reader: Reader, online: CpuSet) -> dict[CpuSet, _Llc]:
    """The groups of CPUs that share a cache of the highest level that each has."""
    groups: dict[CpuSet, _Llc] = {}
    left = online
    while left:
        cpu = left.first()
        best, last = 0, None
        for index in reader.names(f"{paths.CPU_DIR}/cpu{cpu}/cache", paths.CACHE_LEVEL):
            if not index.startswith("index"):
                continue
            level = reader.number(paths.CACHE_LEVEL, f"cpu{cpu}", index)
            if level is not None and level > best:
                best, last = level, index
        group = last and reader.cpus(paths.CACHE_CPUS, f"cpu{cpu}", last)
        if group and cpu in group:
            groups[group] = _Llc(best, _read_size(reader, f"cpu{cpu}", str(last)))
            left -= group
        else:
            left -= CpuSet([cpu])
    return groups


def _read_size(reader: Reader, cpu: str, index: str) -> int | None:
    mark = reader.mark()
    text = reader.text(paths.CACHE_SIZE, cpu, index)
    if text is None:
        reader.back_to(mark)  # it is but a preference of `place`
        return None
    match = _SIZE.fullmatch(text)
    return int(match[1]) if match else None
