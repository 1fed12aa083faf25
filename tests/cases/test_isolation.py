"""CPUs that are kept free: isolcpus=, cpuset partitions, nohz_full=, and who is on them."""

from __future__ import annotations

import pytest

from tests.cases.room import Room, guest
from tests.hostmaker import MadeHost, passthrough
from virtirq.errors import NoRoomError

A, B = "0000:82:00.0", "0000:83:00.0"


def host(**more: object) -> MadeHost:
    given: dict[str, object] = {"online": "0-15", "nodes": {0: "0-15"}}
    return MadeHost(
        devices=[
            passthrough(A, vectors=4, first_irq=100),
            passthrough(B, vectors=4, first_irq=200),
        ],
        **(given | more),  # type: ignore[arg-type]
    )


BOTH_WAYS = pytest.mark.parametrize(
    "kept",
    [
        {"isolated": "8-15"},
        {"partitions": "8-15"},
        {"isolated": "8-11", "partitions": "12-15"},
        {"isolated": "8-13", "partitions": "10-15"},
    ],
    ids=["isolcpus", "partition", "both", "overlapping"],
)


@BOTH_WAYS
class TestIsolated:
    def test_local_keeps_off(self, kept: dict[str, str]) -> None:
        room = Room(host(**kept), [guest([A], ["4", "5", "8", "9"], cpuset="local")])
        assert room.target(A) == "0-3,6-7"

    def test_who_is_not_pinned_keeps_off(self, kept: dict[str, str]) -> None:
        assert set(Room(host(**kept), [guest([A], vcpus=2)]).load) <= set(range(8))

    def test_an_emulator_that_nobody_pinned_keeps_off(self, kept: dict[str, str]) -> None:
        room = Room(host(**kept), [guest([A], ["8", "9"], cpuset="emulator")])
        assert room.target(A) == "0-7"

    def test_beside_a_guest_that_floats_on_the_rest(self, kept: dict[str, str]) -> None:
        """Nova's dedicated and shared guests on one host: the pool is nobody's."""
        others = guest([B], vcpus=4, shared="0-7", name="floating")
        room = Room(host(**kept), [guest([A], ["8", "9"], cpuset="local", name="rt"), others])
        assert room.target(A) == "0-7"
        assert room.codes == set()

    def test_whom_it_is_not_kept_for_is_told(self, kept: dict[str, str]) -> None:
        room = Room(host(**kept), [guest([A], ["4", "5"], cpuset="4,9")])
        assert "isolated-conflict" in room.codes

    def test_what_is_ones_own_is_no_conflict(self, kept: dict[str, str]) -> None:
        own = guest([A], ["8", "9"], emulator="12", cpuset="emulator")
        assert Room(host(**kept), [own]).codes == set()
        assert Room(host(**kept), [guest([A], ["8", "9"], cpuset="8")]).codes == set()

    def test_an_io_threads_own_cpu(self, kept: dict[str, str]) -> None:
        pin = "<iothreadpin iothread='1' cpuset='13'/>"
        own = guest([A], ["8", "9"], tune=pin, cpuset="13", more="<iothreads>1</iothreads>")
        assert Room(host(**kept), [own]).codes == set()

    def test_anothers_emulator_is_a_conflict(self, kept: dict[str, str]) -> None:
        other = guest([B], ["10"], emulator="12", name="other")
        room = Room(host(**kept), [guest([A], ["8", "9"], cpuset="12"), other])
        assert room.codes == {"isolated-conflict"}

    def test_place_takes_them(self, kept: dict[str, str]) -> None:
        cpus, emulator, _ = Room(host(**kept), [guest([A], vcpus=4)]).place()
        assert (cpus, emulator) == ("8-11", "0-7")

    def test_a_pool_there_is_told(self, kept: dict[str, str]) -> None:
        room = Room(host(**kept), [guest([A], vcpus=8, shared="8-15")])
        (found,) = [each for each in room.findings if each.code == "pool-on-isolated"]
        assert "8 vCPUs share isolated CPUs 8-15 as one pool" in found.message
        assert "'virtirq place vm'" in (found.hint or "")


class TestPoolsOnIsolatedCpus:
    KEPT = host(isolated="8-15")

    @pytest.mark.parametrize(
        ("pins", "told"),
        [
            (["8-9", "8-9"], True),
            (["8-9", "9-10"], True),
            (["8-15", "8-15", "8-15"], True),
            (["6-9", "6-9"], True),
            (["8", "9"], False),
            (["8,10", "9,11"], False),
            (["8", "8"], False),
            (["4-7", "4-7"], False),
            (["7-8", "7-8"], False),
        ],
    )
    def test_only_where_the_scheduler_would_have_to_choose(
        self, pins: list[str], told: bool
    ) -> None:
        assert ("pool-on-isolated" in Room(self.KEPT, [guest([A], pins)]).codes) is told

    def test_of_two_guests(self) -> None:
        """Each with one vCPU on the same two: both may sit on one while the other idles."""
        two = [guest([A], ["8-9"], name="a"), guest([B], ["8-9"], name="b")]
        subjects = {
            f.subject for f in Room(self.KEPT, two).findings if f.code == "pool-on-isolated"
        }
        assert subjects == {"a", "b"}


class TestHintsThatHelp:
    """What a hint names as a way out is one."""

    @staticmethod
    def hint(room: Room, code: str) -> str:
        (found,) = [each for each in room.findings if each.code == code and "vm" in each.subject]
        return found.hint or ""

    @pytest.mark.parametrize(
        ("kept", "pins", "others", "helps"),
        [
            ("8-15", ["8-15"] * 8, [], True),
            ("14-15", ["14-15"] * 4, [], False),  # more vCPUs than CPUs
            ("8-15", ["8-15"] * 2, ["8-15"] * 2, False),  # another guest may run there, too
            ("8-15", ["8-11"] * 2, ["12-15"] * 2, True),
        ],
    )
    def test_a_pool_on_isolated_cpus(
        self, kept: str, pins: list[str], others: list[str], helps: bool
    ) -> None:
        them = [guest([A], pins), *([guest([B], others, name="o")] if others else [])]
        room = Room(host(isolated=kept), them)
        assert ("virtirq place vm" in self.hint(room, "pool-on-isolated")) is helps
        if helps:
            room.place()
        else:
            with pytest.raises(NoRoomError):
                room.place()

    @pytest.mark.parametrize(("other", "helps"), [(["0"], True), (["0", "1", "2", "3"], False)])
    def test_a_guest_on_another_node(self, other: list[str], helps: bool) -> None:
        made = MadeHost(
            online="0-7",
            nodes={0: "0-3", 1: "4-7"},
            devices=[
                passthrough(A, first_irq=100, node=0),
                passthrough(B, first_irq=200, node=0),
            ],
        )
        room = Room(made, [guest([A], ["4", "5"]), guest([B], other, name="o")])
        assert ("virtirq place vm" in self.hint(room, "node-mismatch")) is helps
        if helps:
            assert room.place()[0] == "1-2"
        else:
            with pytest.raises(NoRoomError):
                room.place()


class TestNohzFull:
    HOST = host(online="0-19", nodes={0: "0-15", 1: "16-19"}, nohz_full="4-15")

    def test_local_stays_on_the_pool(self) -> None:
        dedicated = guest([A], ["5", "6", "7"], cpuset="local", name="dedicated")
        floating = guest([B], ["0-3,16-19"] * 4, name="floating")
        for them in ([dedicated], [dedicated, floating], [floating, dedicated]):
            room = Room(self.HOST, them)
            assert room.target(A) == "0-3"
            assert "isolated-conflict" not in room.codes

    @pytest.mark.parametrize("nohz_full", ["1-15", "0-15"])
    def test_where_nearly_all_are(self, nohz_full: str) -> None:
        room = Room(host(nohz_full=nohz_full), [guest([A], ["5", "6"], cpuset="local")])
        assert room.target(A) == ("0" if nohz_full == "1-15" else "0-4,7-15")

    def test_an_emulator_that_nobody_pinned(self) -> None:
        room = Room(self.HOST, [guest([A], ["5", "6"], cpuset="emulator")])
        assert room.target(A) == "0-3"

    def test_with_isolcpus_as_well(self) -> None:
        kept = host(nohz_full="4-15", isolated="4-15")
        assert Room(kept, [guest([A], ["5", "6"], cpuset="local")]).target(A) == "0-3"


class TestPools:
    """A pool that several guests may use is nobody's; CPUs of one vCPU each are its guest's."""

    @pytest.mark.parametrize(
        ("others", "target"),
        [
            ([guest([B], ["0-7"] * 8, name="a")], "10-15"),  # as many vCPUs as CPUs: its own
            ([guest([B], ["0-7"] * 4, name="a")], "0-7,10-15"),  # more CPUs than vCPUs: a pool
            ([guest([B], ["0-7"] * 8, name="a"), guest([], ["0-7"] * 8, name="b")], "0-7,10-15"),
            ([guest([B], ["0", "1", "2", "3"], name="a")], "4-7,10-15"),
            ([guest([B], ["0-1", "2-3"], name="a")], "0-7,10-15"),
        ],
    )
    def test_local_beside_others(self, others: list[str], target: str) -> None:
        room = Room(host(), [guest([A], ["8", "9"], cpuset="local"), *others])
        assert room.target(A) == target
        assert "pinned-conflict" not in room.codes

    def test_a_core_of_its_own_is_its_own(self) -> None:
        """One vCPU on both threads of a core."""
        cores = host(siblings=[f"{cpu},{cpu + 8}" for cpu in range(8)])
        other = guest([B], ["0,8", "1,9"], name="a")
        room = Room(cores, [guest([A], ["2", "10"], cpuset="local"), other])
        assert room.target(A) == "3-7,11-15"
