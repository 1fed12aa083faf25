"""CPUs, nodes, siblings and caches: sparse, offline, large and malformed."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostmaker import MadeHost
from virtirq.cpuset import MAX_CPUS, CpuSet, union
from virtirq.host.fs import HostFs, Reader
from virtirq.host.topology import read_topology
from virtirq.model import Gap, Topology

CPU = "/sys/devices/system/cpu"
NODE = "/sys/devices/system/node"
CGROUP = "/sys/fs/cgroup/cpuset.cpus.isolated"


def read(fs: HostFs) -> tuple[Topology, tuple[Gap, ...]]:
    reader = Reader(fs)
    return read_topology(reader), reader.gaps


def shown(groups: tuple[CpuSet, ...]) -> list[str]:
    return [str(group) for group in groups]


def test_a_two_socket_host() -> None:
    made, gaps = read(
        MadeHost(
            online="0-7",
            possible="0-15",
            isolated="2-3",
            nohz_full="3",
            nodes={0: "0-1,4-5", 1: "2-3,6-7"},
            siblings=("0,4", "1,5", "2,6", "3,7"),
            packages=("0-1,4-5", "2-3,6-7"),
        ).fs()
    )
    assert gaps == ()
    assert shown(made.packages) == ["0-1,4-5", "2-3,6-7"]
    assert set(made.llc_levels.values()) == {3}
    assert (str(made.online), str(made.possible)) == ("0-7", "0-15")
    assert (str(made.isolated), str(made.nohz_full)) == ("2-3", "3")
    assert {n: str(node.cpus) for n, node in made.nodes.items()} == {0: "0-1,4-5", 1: "2-3,6-7"}
    assert made.nodes[1].distances == {0: 21, 1: 10}
    assert shown(made.siblings) == ["0,4", "1,5", "2,6", "3,7"]
    assert shown(made.llcs) == ["0-1,4-5", "2-3,6-7"]
    assert [made.node_of(cpu) for cpu in (0, 3, 5, 6, 8)] == [0, 1, 0, 1, None]


def test_offline_and_sparse_cpus() -> None:
    made, gaps = read(
        MadeHost(
            online="0,2,5-6,63-64,1023,1025",
            possible="0-2047",
            nodes={0: "0,2,5-6", 3: "63-64", 7: "1023,1025"},
            distances={0: (10, 20, 30), 3: (20, 10, 40), 7: (30, 40, 10)},
            siblings=("0,2", "5-6", "63-64", "1023,1025"),
        ).fs()
    )
    assert gaps == ()
    assert 1 not in made.online
    assert list(made.nodes) == [0, 3, 7]
    assert made.nodes[3].distances == {0: 20, 3: 10, 7: 40}
    assert made.node_of(1025) == 7
    assert union(made.siblings) == made.online


@pytest.mark.parametrize("count", [1, 64, 65, 1024, 1025, MAX_CPUS])
def test_any_number_of_cpus(count: int) -> None:
    whole = f"0-{count - 1}" if count > 1 else "0"
    halves = [f"0-{count // 2 - 1}", f"{count // 2}-{count - 1}"] if count > 1 else ["0"]
    made, gaps = read(MadeHost(online=whole, nodes=dict(enumerate(halves))).fs())
    assert gaps == ()
    assert len(made.online) == len(made.possible) == count
    assert union(node.cpus for node in made.nodes.values()) == made.online
    assert len(made.siblings) == count
    assert len(made.llcs) == len(halves)


def test_a_host_larger_than_any() -> None:
    fs = MadeHost().fs()
    fs.set(f"{CPU}/possible", f"0-{MAX_CPUS}")
    made, gaps = read(fs)
    assert made.possible == made.online
    assert gaps == (Gap(f"{CPU}/possible", "CPU 16384 is outside 0-16383"),)


def test_without_numa() -> None:
    made, gaps = read(MadeHost(online="0-3", nodes={}).fs())
    assert (made.nodes, gaps) == ({}, ())
    assert made.node_of(0) is None


def test_a_node_without_cpus() -> None:
    made, gaps = read(MadeHost(online="0-3", nodes={0: "0-3", 1: ""}).fs())
    assert not made.nodes[1].cpus
    assert gaps == ()


def test_old_kernels_end_node_files_with_a_nul() -> None:
    files = {f"{NODE}/node0/cpulist": "0-3\0", f"{NODE}/node0/distance": "10\n\0"}
    made, gaps = read(MadeHost(online="0-3", files=files).fs())
    assert str(made.nodes[0].cpus) == "0-3"
    assert made.nodes[0].distances == {0: 10}
    assert gaps == ()


@pytest.mark.parametrize(("text", "cpus"), [("(null)", ""), ("", ""), (" ", ""), ("1-2", "1-2")])
def test_nohz_full(text: str, cpus: str) -> None:
    made, gaps = read(MadeHost(files={f"{CPU}/nohz_full": text}).fs())
    assert str(made.nohz_full) == cpus
    assert gaps == ()


def test_a_kernel_without_nohz_full() -> None:
    made, gaps = read(MadeHost(nohz_full=None).fs())
    assert (str(made.nohz_full), gaps) == ("", ())


@pytest.mark.parametrize(
    ("boot", "partitions", "isolated"),
    [
        ("", None, ""),
        ("2-3", None, "2-3"),
        ("", "6-7", "6-7"),
        ("2-3", "3,6-7", "2-3,6-7"),  # Linux 7.0 has the partitions in both
        ("", "", ""),
    ],
)
def test_isolation_at_boot_and_since(boot: str, partitions: str | None, isolated: str) -> None:
    host = MadeHost(isolated=boot, partitions=partitions)
    for fs in (host.fs(), host.live()):
        made, gaps = read(fs)
        assert (str(made.isolated), gaps) == (isolated, ())


def test_partitions_that_an_older_recording_says_nothing_of() -> None:
    host = MadeHost(isolated="2", foreign=True, removed=(CGROUP,))
    made, gaps = read(host.fs())
    assert (str(made.isolated), gaps) == ("2", ())
    fs = MadeHost(partitions="2").live()
    fs.faults[CGROUP] = errno.EACCES
    made, gaps = read(fs)
    assert [each.path for each in gaps] == [CGROUP]


@pytest.mark.parametrize(
    ("cgroups", "isolated"),
    [
        ({"machine.slice": ("isolated", "4-7")}, "4-7"),
        ({"machine.slice": ("root", "4-7")}, ""),
        ({"machine.slice": ("member", "4-7"), "machine.slice/a": ("isolated", "6")}, ""),
        (
            {"machine.slice": ("isolated invalid (Cpu list in cpuset.cpus not exclusive)", "0-7")},
            "",
        ),
        # What is given to one inside is not among the effective CPUs of the one outside.
        ({"m": ("isolated", "4-5"), "m/a": ("isolated", "6"), "m/a/b": ("isolated", "7")}, "4-7"),
        ({"m": ("isolated", "4-5"), "m/a": ("root", "6-7")}, "4-5"),
        ({"m": ("root", "4-5"), "m/a": ("isolated", "6-7"), "n": ("isolated", "2")}, "2,6-7"),
        ({"/".join("m" * depth): ("isolated", str(depth)) for depth in range(1, 99)}, "1-8"),
        ({}, ""),
    ],
)
def test_partitions_before_they_were_listed(
    cgroups: dict[str, tuple[str, str]], isolated: str
) -> None:
    """Linux 6.1, Debian 12's and RHEL 9's: there is no cpuset.cpus.isolated."""
    files = {}
    for group, (kind, cpus) in cgroups.items():
        files[f"/sys/fs/cgroup/{group}/cpuset.cpus.partition"] = kind
        files[f"/sys/fs/cgroup/{group}/cpuset.cpus.effective"] = cpus
    host = MadeHost(online="0-7", files={"/sys/fs/cgroup/cgroup.procs": "1", **files})
    for fs in (host.live(), replace(host, foreign=True).fs()):
        made, gaps = read(fs)
        assert (str(made.isolated), gaps) == (isolated, ())
    made, _ = read(replace(host, partitions="1").live())
    assert str(made.isolated) == "1"


def test_the_smallest_of_three_sorts_of_cores() -> None:
    """Core Ultra 200H: two of its cores have neither the others' speed nor their cache."""
    made, gaps = read(
        MadeHost(
            online="0-15",
            performance="0-5",
            efficiency="6-13",
            files={"/sys/devices/cpu_lowpower/cpus": "14-15"},
        ).fs()
    )
    assert (str(made.performance), str(made.efficiency), gaps) == ("0-5", "6-15", ())


def test_hybrid_cpus_and_caches_by_size() -> None:
    """Ryzen 7950X3D and Core Ultra at once."""
    host = MadeHost(
        performance="0-3",
        efficiency="4-7",
        llcs=("0-3", "4-7"),
        llc_sizes={"0-3": 98304, "4-7": 32768},
    )
    made, gaps = read(host.fs())
    assert gaps == ()
    assert (str(made.performance), str(made.efficiency)) == ("0-3", "4-7")
    assert {str(llc): size for llc, size in made.llc_sizes.items()} == {"0-3": 98304, "4-7": 32768}
    assert read(MadeHost().fs())[0].llc_sizes == {}


def test_nodes_by_their_directories() -> None:
    """Trees that others have gathered have no node/online; nothing is unknown for that."""
    host = MadeHost(nodes={0: "0-3", 2: "4-7"}, distances={0: [10, 12], 2: [12, 10]})
    whole, _ = read(host.fs())
    for kind in (host, replace(host, foreign=True)):
        made, gaps = read(replace(kind, removed=(f"{NODE}/online",)).fs())
        assert (made, gaps) == (whole, ())


def test_online_cpus_without_the_file() -> None:
    host = MadeHost(online="0-5", possible="0-7", nodes={0: "0-3", 1: "4-5"})
    made, gaps = read(replace(host, removed=(f"{CPU}/online", f"{NODE}/online")).fs())
    assert (str(made.online), [each.path for each in gaps]) == ("0-5", [f"{CPU}/online"])
    made, gaps = read(replace(host, removed=(f"{CPU}/online", NODE)).fs())
    assert (str(made.online), [each.path for each in gaps]) == ("0-5", [f"{CPU}/online"])
    assert made.nodes == {}


# A file that says nonsense: the path, what it says, and what is then not known.
NONSENSE = [
    (f"{CPU}/online", "all", "online"),
    (f"{CPU}/possible", "0-", "possible"),
    (f"{CPU}/isolated", "\x1b[2J", "isolated"),
    (f"{CPU}/nohz_full", "(nil)", "nohz_full"),
    (f"{NODE}/node1/cpulist", "4-7 ", None),
    (f"{NODE}/node1/cpulist", "^", "nodes"),
    (f"{NODE}/online", "0,1,", "directories"),
    (f"{NODE}/node1/distance", "10", "distances"),
    (f"{NODE}/node1/distance", "10 x", "distances"),
    (f"{NODE}/node1/distance", "", "distances"),
    (f"{NODE}/node1/distance", "1 2 3", "distances"),
    (f"{NODE}/node1/distance", "9" * 5000 + " 1", "distances"),
    (f"{CPU}/cpu3/topology/thread_siblings_list", "x", "siblings"),
    (f"{CPU}/cpu0/cache/index3/shared_cpu_list", "x", "llcs"),
]


@pytest.mark.parametrize(("path", "text", "field"), NONSENSE)
def test_nonsense_is_a_gap(path: str, text: str, field: str | None) -> None:
    host = MadeHost(online="0-7", nodes={0: "0-3", 1: "4-7"})
    good, _ = read(host.fs())
    made, gaps = read(replace(host, files={path: text}).fs())
    if field is None:
        assert (made, gaps) == (good, ())
        return
    assert len(gaps) == 1
    assert gaps[0].path == path
    if field == "distances":
        assert made.nodes[1].distances == {}
        made = replace(made, nodes={**made.nodes, 1: good.nodes[1]})
    elif field == "directories":
        field = "nodes"  # all is known by another way
    elif field == "nodes":
        assert 1 not in made.nodes
        made = replace(made, nodes=good.nodes)
    elif field == "siblings":
        assert shown(made.siblings) == ["0", "1", "2", "4", "5", "6", "7"]
        made = replace(made, siblings=good.siblings)
    elif field in ("isolated", "nohz_full"):
        assert not getattr(made, field)
    # The neighbours of what is wrong are as they were.
    assert made == good


@pytest.mark.parametrize("level", ["", "x", "0", "-1", "²", "1e3", "9" * 5000, "None"])
def test_nonsense_of_a_cache(level: str) -> None:
    """A level that is none is passed over; the caches that are fine say what is last."""
    made, _ = read(MadeHost(online="0-1", files={f"{CPU}/cpu0/cache/index4/level": level}).fs())
    assert shown(made.llcs) == ["0-1"]


def test_caches() -> None:
    files = {
        f"{CPU}/cpu{cpu}/cache/{index}": text
        for cpu, pair in ((0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3"))
        for index, text in (
            ("index2/level", "2"),
            ("index2/shared_cpu_list", str(cpu)),
            ("index10/level", "4"),
            ("index10/shared_cpu_list", pair),
            ("uevent", ""),
        )
    }
    made, gaps = read(MadeHost(online="0-3", files=files).fs())
    assert shown(made.llcs) == ["0-1", "2-3"], "the highest level, whatever its index"
    assert gaps == ()


def test_caches_that_the_kernel_does_not_know() -> None:
    made, gaps = read(MadeHost(llcs=(), siblings=()).fs())
    assert (made.llcs, made.siblings, made.llc_levels, gaps) == ((), (), {}, ())


def test_that_sockets_are_not_known_is_no_gap() -> None:
    made, gaps = read(MadeHost().fs())
    assert (made.packages, gaps) == ((), ())


class TestMissing:
    def test_online_of_the_nodes_stands_in(self) -> None:
        host = MadeHost(online="0-3", nodes={0: "0-1", 1: "2-3"})
        made, gaps = read(replace(host, removed=(f"{CPU}/online",)).fs())
        assert str(made.online) == "0-3"
        assert gaps == (Gap(f"{CPU}/online", os.strerror(errno.ENOENT)),)

    def test_everything(self) -> None:
        made, gaps = read(MadeHost(foreign=True, removed=("/sys/*",)).fs())
        assert made == Topology(CpuSet(), CpuSet())
        assert {gap.error for gap in gaps} == {"not in this recording"}
        assert {gap.path for gap in gaps} >= {
            f"{CPU}/online",
            f"{CPU}/possible",
            f"{CPU}/isolated",
            f"{CPU}/nohz_full",
            f"{NODE}/online",
        }

    def test_kinds_are_gaps_of_their_own(self) -> None:
        gone = (f"{CPU}/cpu*/topology", f"{CPU}/cpu*/cache", f"{NODE}/node*/distance")
        host = MadeHost(online="0-3", nodes={0: "0-1", 1: "2-3"}, foreign=True, removed=gone)
        made, gaps = read(host.fs())
        assert (made.siblings, made.llcs) == ((), ())
        assert [node.distances for node in made.nodes.values()] == [{}, {}]
        assert [gap.path for gap in gaps] == [
            f"{CPU}/*/cache/*/level",
            f"{CPU}/*/topology/thread_siblings_list",
            f"{NODE}/*/distance",
        ]

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
    @pytest.mark.parametrize("name", ["online", "possible", "isolated", "nohz_full"])
    def test_unreadable(self, name: str, number: int) -> None:
        fs = MadeHost().fs()
        fs.faults[f"{CPU}/{name}"] = number
        _, gaps = read(fs)
        assert gaps == (Gap(f"{CPU}/{name}", os.strerror(number)),)


@given(
    st.lists(st.frozensets(st.integers(0, 300), min_size=1, max_size=6), min_size=1, max_size=6),
    st.frozensets(st.integers(0, 300), max_size=20),
)
def test_any_topology_comes_back(groups: list[frozenset[int]], offline: frozenset[int]) -> None:
    disjoint: list[CpuSet] = []
    for group in groups:
        left = CpuSet(group - offline) - union(disjoint)
        if left:
            disjoint.append(left)
    if not disjoint:
        return
    online = str(union(disjoint))
    made, gaps = read(
        MadeHost(
            online=online,
            possible="0-300",
            nodes={2 * n: str(cpus) for n, cpus in enumerate(disjoint)},
            siblings=[str(cpus) for cpus in disjoint],
        ).fs()
    )
    assert gaps == ()
    assert str(made.online) == online
    assert {node.cpus for node in made.nodes.values()} == set(disjoint)
    assert set(made.siblings) == set(made.llcs) == set(disjoint)
