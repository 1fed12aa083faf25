"""Where `place` would have a guest: sorts of cores, caches, what is pinned already."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.cases.room import CXL, Room, guest
from tests.hostmaker import MadeHost, passthrough
from virtirq.cpuset import CpuSet
from virtirq.errors import NoRoomError, UsageError

A, B = "0000:01:00.0", "0000:02:00.0"
DEVICES = [passthrough(A, first_irq=100), passthrough(B, first_irq=110)]


def pairs(cores: int, step: int = 1, first: int = 0) -> list[str]:
    """Cores of two threads: neighbours, or (`step` > 1) so far apart."""
    if step == 1:
        return [f"{first + 2 * n}-{first + 2 * n + 1}" for n in range(cores)]
    return [f"{first + n},{first + n + step}" for n in range(cores)]


THREADS = "<cpu><topology sockets='1' cores='{}' threads='2'/></cpu>"


class TestHybrid:
    """Performance cores 0-11 with two threads each, efficiency cores 12-19."""

    HOST = MadeHost(
        online="0-19",
        siblings=[*pairs(6), *map(str, range(12, 20))],
        llcs=["0-19"],
        performance="0-11",
        efficiency="12-19",
        devices=DEVICES,
    )
    REVERSED = MadeHost(
        online="0-15",
        siblings=[*map(str, range(8)), *pairs(4, first=8)],
        llcs=["0-15"],
        performance="8-15",
        efficiency="0-7",
        devices=DEVICES,
    )

    @pytest.mark.parametrize(
        ("vcpus", "cpus", "emulator"),
        [
            (8, "0-4,6,8,10", "12-19"),
            (12, "0-11", "12-19"),
            (1, "0", "12-19"),
            (6, "0,2,4,6,8,10", "12-19"),
        ],
    )
    def test_guests_get_the_performance_cores(self, vcpus: int, cpus: str, emulator: str) -> None:
        placed = Room(self.HOST, [guest([A], vcpus=vcpus)]).place()
        assert (placed[0], placed[1]) == (cpus, emulator)

    def test_threads_of_a_core_together(self) -> None:
        xml = guest([A], vcpus=8, more=THREADS.format(4))
        assert Room(self.HOST, [xml]).place()[0] == "0-7"

    def test_more_than_there_are(self) -> None:
        """A whole efficiency core does more than the second thread of another."""
        cpus, _, notes = Room(self.HOST, [guest([A], vcpus=13)]).place()
        assert cpus == "0,2,4,6,8,10,13-19"
        assert "CPUs 13-19 are efficiency cores: there are not enough others" in notes

    def test_in_any_order(self) -> None:
        placed = Room(self.REVERSED, [guest([A], vcpus=4)]).place()
        assert (placed[0], placed[1]) == ("8,10,12,14", "0-7")

    def test_beside_another_guest(self) -> None:
        other = guest([B], [str(n) for n in range(6)], name="other")
        assert Room(self.HOST, [guest([A], vcpus=6), other]).place()[0] == "6-11"

    def test_who_wants_efficiency_cores_says_so(self) -> None:
        assert Room(self.HOST, [guest([A], vcpus=4)]).place(cpus="12-15")[0] == "12-15"

    @pytest.mark.parametrize(
        ("vcpus", "cpus", "emulator"),
        [(4, "0,2,4,6", "12-19"), (6, "0,2,4,6,8,10", "12-19"), (7, "0,2,4,6,8,10,13", "12,14-19")],
    )
    def test_smt_switched_off(self, vcpus: int, cpus: str, emulator: str) -> None:
        """Every other performance CPU is offline."""
        off = MadeHost(
            online="0,2,4,6,8,10,12-19",
            possible="0-19",
            llcs=["0,2,4,6,8,10,12-19"],
            performance="0,2,4,6,8,10",
            efficiency="12-19",
            devices=DEVICES,
        )
        assert Room(off, [guest([A], vcpus=vcpus)]).place()[:2] == (cpus, emulator)

    def test_isolated_cpus_of_both_sorts(self) -> None:
        kept = Room(self.HOST, [guest([A], vcpus=4)]).but(isolated="8-15")
        assert kept.place()[:2] == ("8-11", "16-19")

    def test_without_smt(self) -> None:
        plain = MadeHost(
            online="0-7", llcs=["0-7"], performance="0-3", efficiency="4-7", devices=DEVICES
        )
        assert Room(plain, [guest([A], vcpus=4)]).place()[:2] == ("0-3", "4-7")


class TestPartsOfOneSocket:
    """Two sockets of four nodes, each of which is a last-level cache of four CPUs."""

    NODES: Mapping[int, str] = {n: f"{4 * n}-{4 * n + 3}" for n in range(8)}
    HOST = MadeHost(
        online="0-31",
        nodes=NODES,
        distances={
            n: [10 if n == other else 11 if n // 4 == other // 4 else 20 for other in range(8)]
            for n in range(8)
        },
        devices=[passthrough(A, first_irq=100, node=5)],
    )
    FULL = "it leaves no core of node{} to the host alone"

    @pytest.mark.parametrize(
        ("vcpus", "cpus", "emulator", "notes"),
        [
            (3, "21-23", "20", ""),
            (
                4,
                "20-23",
                "16-19,24-31",
                f"{FULL.format(' 5')}; node 5 has no CPU left for its emulator",
            ),
            (6, "17-18,20-23", "16,19", "node 5 is too small for it alone"),
            (15, "17-31", "16", "node 5 is too small for it alone"),
            (
                *(16, "16-31", "0-15"),
                f"{FULL.format('s 4-7')}; nodes 4-7 have no CPU left for its emulator;"
                " node 5 is too small for it alone",
            ),
        ],
    )
    def test_a_guest_has_as_many_as_it_needs(
        self, vcpus: int, cpus: str, emulator: str, notes: str
    ) -> None:
        assert Room(self.HOST, [guest([A], vcpus=vcpus)]).place() == (cpus, emulator, notes)

    def test_and_no_more_than_the_socket(self) -> None:
        with pytest.raises(NoRoomError, match="node 5 has 4 CPUs") as caught:
            Room(self.HOST, [guest([A], vcpus=17)]).place()
        assert "--cpus LIST" in (caught.value.hint or "")

    def test_who_asks_for_a_node_gets_that_or_none(self) -> None:
        with pytest.raises(NoRoomError, match="node 5 has 4 CPUs"):
            Room(self.HOST, [guest([A], vcpus=6)]).place(node=5)

    def test_no_mismatch_comes_of_it(self) -> None:
        room = Room(self.HOST, [guest([A], [*map(str, range(16, 24))])])
        assert "node-mismatch" not in room.codes
        assert room.cpus == "20"  # one vector, and the nearest node has CPUs of the guest

    def test_memory_without_cpus_is_none_of_them(self) -> None:
        made = MadeHost(
            online="0-7",
            nodes={0: "0-3", 1: "4-7", 2: "", 3: ""},
            distances=CXL,
            devices=[passthrough(A, first_irq=100, node=2)],
        )
        with pytest.raises(NoRoomError, match="node 0 has 4 CPUs"):
            Room(made, [guest([A], vcpus=6)]).place()


class TestCaches:
    """Two chiplets of 8 cores, one with three times the cache."""

    HOST = MadeHost(
        online="0-31",
        siblings=pairs(16, 16),
        llcs=["0-7,16-23", "8-15,24-31"],
        llc_sizes={"0-7,16-23": 98304, "8-15,24-31": 32768},
        devices=DEVICES,
    )

    def test_the_larger_cache(self) -> None:
        xml = guest([A], vcpus=16, more=THREADS.format(8))
        assert Room(self.HOST, [xml]).place()[:2] == ("0-7,16-23", "8-15,24-31")

    def test_the_larger_cache_wherever_it_is(self) -> None:
        turned = Room(self.HOST, [guest([A], vcpus=8)]).but(
            llc_sizes={"0-7,16-23": 32768, "8-15,24-31": 98304}
        )
        assert turned.place()[0] == "8-15"

    def test_what_another_guest_has_is_gone(self) -> None:
        other = guest([B], [str(n) for n in range(6)], name="other")
        assert Room(self.HOST, [guest([A], vcpus=6), other]).place()[0] == "9-14"

    def test_asked_for_by_number(self) -> None:
        assert Room(self.HOST, [guest([A], vcpus=8)]).place(cpus="8-15,24-31")[0] == "8-15"

    @pytest.mark.parametrize(
        ("cpus", "error"),
        [
            ("30-35", "CPUs 32-35 of 30-35 are not online"),
            ("8-9", "CPUs 8-9 have 2 CPUs on cores"),
        ],
    )
    def test_what_cannot_be(self, cpus: str, error: str) -> None:
        with pytest.raises((UsageError, NoRoomError), match=error):
            Room(self.HOST, [guest([A], vcpus=8)]).place(cpus=cpus)

    def test_three_chiplets(self) -> None:
        """Whoever fits into the largest has it, whoever does not has the next that fits."""
        made = MadeHost(
            online="0-15",
            llcs=["0-3", "4-7", "8-15"],
            llc_sizes={"0-3": 98304, "4-7": 32768, "8-15": 32768},
            devices=DEVICES,
        )
        assert Room(made, [guest([A], vcpus=4)]).place()[0] == "0-3"
        cpus, _, _ = Room(made, [guest([A], vcpus=6)]).place()
        assert set(CpuSet.parse(cpus)) < set(range(8, 16))

    def test_sizes_are_not_known(self) -> None:
        cpus, _, _ = Room(self.HOST, [guest([A], vcpus=8)]).but(llc_sizes={}).place()
        assert {*CpuSet.parse(cpus)} <= {*range(8, 16), *range(24, 32)}  # the host keeps core 0


class TestWhatIsThereAlready:
    HOST = MadeHost(
        online="0-31",
        siblings=pairs(16, 16),
        llcs=["0-7,16-23", "8-15,24-31"],
        llc_sizes={"0-7,16-23": 98304, "8-15,24-31": 32768},
        devices=DEVICES,
    )
    PINS = tuple(str(cpu) for core in range(8) for cpu in (core, core + 16))

    @pytest.mark.parametrize("emulator", ["8,24", "8", "8-15,24-31", "9-10"])
    def test_an_emulators_pin_is_kept(self, emulator: str) -> None:
        xml = guest([A], self.PINS, emulator=emulator, more=THREADS.format(8))
        assert Room(self.HOST, [xml]).place() == ("0-7,16-23", None, "")

    @pytest.mark.parametrize("emulator", ["0", "0-31", "0,16"])
    def test_one_on_the_vcpus_cpus_is_not(self, emulator: str) -> None:
        xml = guest([A], self.PINS, emulator=emulator, more=THREADS.format(8))
        assert Room(self.HOST, [xml]).place()[1] == "8-15,24-31"

    def test_one_on_another_guests_is_not(self) -> None:
        other = guest([B], ["8", "24"], name="other")
        xml = guest([A], self.PINS, emulator="8,24")
        assert Room(self.HOST, [xml, other]).place()[1] == "9-15,25-31"

    def test_siblings_of_vcpus_are_left_alone(self) -> None:
        """A core is one guest's; of its own, the emulator takes a vCPU's sibling last."""
        other = guest([B], [str(n) for n in range(6)], name="other")
        room = Room(self.HOST, [guest([A], vcpus=4), other])
        assert room.place()[:2] == ("9-12", "6-8,13-15,22-24,29-31")
        full = Room(self.HOST, [guest([A], vcpus=16)])
        assert full.place(cpus="0-15")[:2] == ("0-15", "16-31")

    def test_one_beside_vcpus_that_move_is_kept(self) -> None:
        assert Room(self.HOST, [guest([A], vcpus=4, emulator="8,24")]).place()[1] is None


class TestAlternatives:
    """On a desktop two guests may be for one GPU, of which one runs at a time."""

    HOST = MadeHost(online="0-7", siblings=pairs(4), devices=DEVICES)

    def test_they_may_have_the_same_cpus(self) -> None:
        other = guest([A], ["2", "3", "4", "5", "6", "7"], name="linux")
        assert Room(self.HOST, [guest([A], vcpus=6, name="win"), other]).place("win")[0] == "2-7"

    def test_others_may_not(self) -> None:
        other = guest([B], ["2", "3", "4", "5", "6", "7"], name="linux")
        with pytest.raises(NoRoomError, match="win has 6 vCPUs, and node 0 has 2 CPUs on cores"):
            Room(self.HOST, [guest([A], vcpus=6, name="win"), other]).place("win")
