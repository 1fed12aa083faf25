"""Nodes as they are: without a number, without CPUs, without NUMA, parts of one socket, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from tests.cases.room import CXL, Room, guest
from tests.hostmaker import MadeHost, passthrough
from virtirq.cpuset import CpuSet
from virtirq.errors import UsageError

A, B = "0000:82:00.0", "0000:83:00.0"


def host(node: int | None = -1, **more: object) -> MadeHost:
    return MadeHost(
        devices=[passthrough(A, vectors=4, first_irq=100, node=node)],
        **more,  # type: ignore[arg-type]
    )


class TestOneNodeWithoutANumber:
    """Firmware of one-socket hosts gives devices no node: then all of it is local."""

    HOST = host(online="0-7", nodes={0: "0-7"}, isolated="2-3,6-7")

    @pytest.mark.parametrize(
        ("config", "xml", "target"),
        [
            ('default = "local"', guest([A], ["2", "3"]), "0-1,4-5"),
            ("", guest([A], vcpus=2), "0-1,4-5"),
            ('default = "emulator"', guest([A], ["2", "3"]), "0-1,4-5"),
            ('default = "emulator"', guest([A], ["2", "3"], emulator="1"), "1"),
        ],
    )
    def test_what_is_local(self, config: str, xml: str, target: str) -> None:
        room = Room(self.HOST, [xml], config)
        assert (room.target(A), room.cpus) == (target, target)
        assert "device-without-node" not in room.codes

    @pytest.mark.parametrize("nodes", [{1: "0-7"}, {0: "0-7", 1: ""}, {0: "", 8: "0-7"}, {}])
    def test_whatever_the_one_node_is(self, nodes: Mapping[int, str]) -> None:
        room = Room(host(online="0-7", nodes=nodes), [guest([A], ["2", "3"])], 'default = "local"')
        assert room.target(A) == "0-1,4-7"
        assert room.codes == set()

    def test_without_the_file_at_all(self) -> None:
        one = host(None, online="0-7", nodes={0: "0-7"})
        assert Room(one, [guest([A], ["2", "3"], cpuset="local")]).target(A) == "0-1,4-7"

    def test_the_other_has_its_cpus_offline(self) -> None:
        one = host(online="0-3", possible="0-7", nodes={0: "0-3", 1: ""})
        assert Room(one, [guest([A], ["1", "2"], cpuset="local")]).target(A) == "0,3"

    def test_of_two_nodes_it_is_told(self) -> None:
        room = Room(host(online="0-7", nodes={0: "0-3", 1: "4-7"}), [guest([A], vcpus=2)])
        assert room.on[A] == ["-"] * 4
        assert room.codes >= {"device-without-node", "vcpus-not-pinned"}


class TestKernelWithoutNuma:
    HOST = host(-1, online="0-7", nodes={}, siblings=["0,4", "1,5", "2,6", "3,7"])

    def test_place(self) -> None:
        room = Room(self.HOST, [guest([A], vcpus=3)])
        assert room.place()[0] == room.place(node=0)[0] == "1-3"
        with pytest.raises(UsageError, match="node 1 is not there") as caught:
            room.place(node=1)
        assert caught.value.hint == "the kernel knows no nodes"

    def test_all_is_local(self) -> None:
        assert Room(self.HOST, [guest([A], ["1", "5"], cpuset="local")]).target(A) == "0,2-4,6-7"

    def test_that_there_is_none_is_no_gap(self) -> None:
        assert Room(self.HOST, [guest([A], ["1", "5"])]).snapshot.gaps == ()


class TestNodesWithoutCpus:
    """Memory of GPUs, CXL devices and HBM are nodes of their own."""

    GRACE: Mapping[int, Sequence[int]] = {
        0: (10, 40, 80, 120),
        1: (40, 10, 120, 80),
        2: (80, 120, 10, 160),
        3: (120, 80, 160, 10),
    }

    @pytest.mark.parametrize(
        ("node", "target"), [(0, "0-3"), (1, "4-7"), (2, "0-3"), (3, "4-7"), (4, "0-7")]
    )
    def test_the_nearest_has_them(self, node: int, target: str) -> None:
        nodes = {0: "0-3", 1: "4-7", 2: "", 3: ""}
        distances = self.GRACE
        if node == 4:  # as near to one as to the other
            nodes, distances = (
                {**nodes, 4: ""},
                {
                    **{number: (*row, 60) for number, row in self.GRACE.items()},
                    4: (60, 60, 90, 90, 10),
                },
            )
        made = host(node, online="0-7", nodes=nodes, distances=distances)
        assert Room(made, [guest([A], vcpus=2)]).target(A) == target
        assert "node-mismatch" not in Room(made, [guest([A], ["0", "4"])]).codes

    def test_a_mismatch_is_with_the_nearest(self) -> None:
        made = host(3, online="0-7", nodes={0: "0-3", 1: "4-7", 2: "", 3: ""}, distances=self.GRACE)
        assert "node-mismatch" in Room(made, [guest([A], ["0", "1"])]).codes
        assert "node-mismatch" not in Room(made, [guest([A], ["4", "5"])]).codes

    def test_place_goes_to_the_nearest(self) -> None:
        made = host(3, online="0-7", nodes={0: "0-3", 1: "4-7", 2: "", 3: ""}, distances=self.GRACE)
        assert Room(made, [guest([A], vcpus=2)]).place()[0] == "5-6"
        with pytest.raises(UsageError, match="node 3 has no CPUs"):
            Room(made, [guest([A], vcpus=2)]).place(node=3)

    @pytest.mark.parametrize(("node", "near"), [(0, "0-7"), (1, "8-15"), (2, "0-7"), (3, "8-15")])
    def test_memory_of_cxl_devices(self, node: int, near: str) -> None:
        """A node behind each socket, nearer to it than the other socket is."""
        made = host(
            node,
            online="0-15",
            nodes={0: "0-7", 1: "8-15", 2: "", 3: ""},
            distances=CXL,
        )
        assert Room(made, [guest([A], vcpus=2)]).target(A) == near
        own = {"0-7": "1", "8-15": "9"}[near]
        across = Room(made, [guest([A], ["1", "9"])])
        assert across.cpus == own
        assert "node-mismatch" not in across.codes
        far = Room(made, [guest([A], [{"1": "9", "9": "1"}[own]])])
        assert "node-mismatch" in far.codes
        assert CpuSet.parse(Room(made, [guest([A], vcpus=2)]).place()[0]) <= CpuSet.parse(near)

    def test_memory_on_the_package(self) -> None:
        """Eight clusters, and high-bandwidth memory that is a node beside each."""

        def distance(one: int, other: int) -> int:
            if one == other:
                return 10
            if one % 8 == other % 8:
                return 13
            return (12 if one % 8 // 4 == other % 8 // 4 else 21) + 2 * (one > 7 or other > 7)

        made = host(
            13,
            online="0-15",
            nodes={n: f"{2 * n}-{2 * n + 1}" if n < 8 else "" for n in range(16)},
            distances={n: [distance(n, other) for other in range(16)] for n in range(16)},
        )
        assert Room(made, [guest([A], vcpus=2)]).target(A) == "10-11"
        assert "node-mismatch" not in Room(made, [guest([A], ["14", "15"])]).codes
        assert "node-mismatch" in Room(made, [guest([A], ["0", "1"])]).codes

    def test_all_cpus_of_the_node_are_offline(self) -> None:
        made = host(
            1,
            online="0-3,8-11",
            possible="0-11",
            nodes={0: "0-3", 1: "", 2: "8-11"},
            distances={0: (10, 12, 21), 1: (12, 10, 21), 2: (21, 21, 10)},
        )
        assert Room(made, [guest([A], vcpus=2)]).target(A) == "0-3"


class TestPartsOfOneSocket:
    """Sub-NUMA clusters, NPS4 and L3 as NUMA make many nodes of one socket."""

    NODES: Mapping[int, str] = {0: "0-3", 1: "4-7", 2: "8-11", 3: "12-15"}

    @staticmethod
    def two_by_two(near: int, far: int) -> Mapping[int, Sequence[int]]:
        return {
            0: (10, near, far, far),
            1: (near, 10, far, far),
            2: (far, far, 10, near),
            3: (far, far, near, 10),
        }

    @pytest.mark.parametrize(("near", "far"), [(11, 20), (11, 21), (12, 32), (15, 20), (12, 17)])
    @pytest.mark.parametrize(("pin", "told"), [("0", False), ("4", False), ("8", True)])
    def test_neighbours_are_no_mismatch(self, near: int, far: int, pin: str, told: bool) -> None:
        made = host(0, online="0-15", nodes=self.NODES, distances=self.two_by_two(near, far))
        room = Room(made, [guest([A], [pin])])
        assert ("node-mismatch" in room.codes) is (told and far >= 20)
        reasons = " ".join(each.reason.text for each in room.plan.actions)
        assert ("on the wrong node" in reasons) is (told and far >= 20)

    def test_of_a_guest_on_both_those_nearer_by_come_first(self) -> None:
        made = host(0, online="0-15", nodes=self.NODES, distances=self.two_by_two(12, 32))
        assert Room(made, [guest([A], ["4", "5", "8", "9"])]).cpus == "4-5"

    def test_what_is_local_stays_the_nodes_own(self) -> None:
        made = host(1, online="0-15", nodes=self.NODES, distances=self.two_by_two(12, 32))
        assert Room(made, [guest([A], ["0"], cpuset="local")]).target(A) == "4-7"


class TestOfflineCpus:
    def test_no_node_is_known_of_them(self) -> None:
        made = host(0, online="0-7", possible="0-15", nodes={0: "0-3", 1: "4-7"})
        assert Room(made, [guest([A], ["10", "11"])]).codes == {"target-offline"}

    @pytest.mark.parametrize(
        ("pins", "codes"),
        [
            (["0", "9"], set()),
            (["4", "9"], {"node-mismatch"}),
            (["0-1,8-9", "0-1,8-9"], set()),
        ],
    )
    def test_with_others_that_are_online(self, pins: list[str], codes: set[str]) -> None:
        """nosmt, and a definition from before it."""
        made = host(0, online="0-7", possible="0-15", nodes={0: "0-3", 1: "4-7"})
        assert Room(made, [guest([A], pins)]).codes == codes

    def test_vectors_keep_to_those_online(self) -> None:
        made = host(0, online="0-7", possible="0-15", nodes={0: "0-3", 1: "4-7"})
        assert Room(made, [guest([A], ["0", "9", "2"])]).on[A] == ["0", "2", "0", "2"]


class TestMissingFiles:
    """Trees that somebody copied together lack ``online``."""

    GONE = ("/sys/devices/system/cpu/online", "/sys/devices/system/node/online")

    def test_who_is_pinned_is_pinned(self) -> None:
        made = host(0, online="0-7", nodes={0: "0-3", 1: "4-7"}, removed=self.GONE, foreign=True)
        room = Room(made, [guest([A], ["2", "3"])])
        assert room.on[A] == ["2", "3", "2", "3"]
        assert "vcpus-not-pinned" not in room.codes
        assert {gap.path for gap in room.snapshot.gaps} >= {self.GONE[0]}

    @pytest.mark.parametrize("gone", GONE)
    def test_either_alone(self, gone: str) -> None:
        made = host(1, online="0-7", nodes={0: "0-3", 1: "4-7"}, removed=[gone], foreign=True)
        assert Room(made, [guest([A], vcpus=2)]).target(A) == "4-7"

    def test_without_nodes_either(self) -> None:
        made = host(-1, online="0-7", nodes={}, removed=self.GONE, foreign=True)
        assert Room(made, [guest([A], ["2", "3"])]).on[A] == ["2", "3", "2", "3"]
