"""Which CPUs vectors go to: many devices, masks over vCPU numbers, real-time vCPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from tests.cases.room import Room, guest, mask
from tests.hostmaker import MadeHost, passthrough

A = "0000:82:00.0"


def vfs(count: int, vectors: int = 2, nodes: int = 1) -> list[str]:
    return [f"0000:{0x40 + n % nodes:02x}:{n // 8:02x}.{n % 8}" for n in range(count)]


def host(count: int, vectors: int, nodes: int = 1, cpus: int = 32, **more: object) -> MadeHost:
    each = cpus // nodes
    return MadeHost(
        online=f"0-{cpus - 1}",
        nodes={n: f"{n * each}-{n * each + each - 1}" for n in range(nodes)},
        devices=[
            passthrough(address, vectors=vectors, first_irq=100 + 64 * n, node=n % nodes)
            for n, address in enumerate(vfs(count, nodes=nodes))
        ],
        **more,  # type: ignore[arg-type]
    )


def spread(load: Counter[int], cpus: Sequence[int]) -> int:
    """By how much the fullest of these CPUs has more than the emptiest."""
    return max(load[cpu] for cpu in cpus) - min(load[cpu] for cpu in cpus)


class TestManyDevices:
    @pytest.mark.parametrize(
        ("count", "vectors", "nodes", "vcpus"),
        [(12, 2, 1, 28), (24, 2, 2, 56), (48, 1, 1, 8), (8, 3, 1, 5), (5, 1, 1, 4), (3, 33, 1, 8)],
    )
    def test_all_cpus_of_the_guest_are_used(
        self, count: int, vectors: int, nodes: int, vcpus: int
    ) -> None:
        """A device with few vectors does not begin where every other begins."""
        cpus, each = 64, 64 // nodes
        pins = [n % nodes * each + n // nodes for n in range(vcpus)]
        room = Room(
            host(count, vectors, nodes, cpus),
            [guest(vfs(count, nodes=nodes), list(map(str, pins)))],
        )
        assert sum(room.load.values()) == count * vectors
        for node in range(nodes):
            there = [cpu for cpu in pins if cpu // each == node]
            assert set(room.load) >= set(there) or count * vectors < vcpus
            assert spread(room.load, there) <= 1

    def test_one_vector_each_by_the_hundred_over_a_pool(self) -> None:
        room = Room(host(200, 1), [guest(vfs(200), vcpus=4, shared="8-15")])
        assert spread(room.load, range(8, 16)) == 0

    def test_vfs_of_guests_that_share_a_pool(self) -> None:
        """Each guest begins elsewhere in it, though none knows of the others' vectors."""
        them = [guest([vf], ["8-15"] * 2, name=f"g{n}") for n, vf in enumerate(vfs(64))]
        load = Room(host(64, 1), them).load
        assert sum(load.values()) == 64
        assert max(load.values()) <= 10

    def test_a_devices_own_vectors_follow_vcpus_in_order(self) -> None:
        room = Room(host(1, 6), [guest(vfs(1), ["4", "5", "6", "7"])])
        assert room.on[vfs(1)[0]] == ["4", "5", "6", "7", "4", "5"]


class TestMasks:
    """hw:pci_irq_affinity_mask, as StarlingX's agent reads it."""

    HOST = MadeHost(online="0-15", devices=[passthrough(A, vectors=6, first_irq=100)])
    PINS = ("4", "5", "6", "7")

    @pytest.mark.parametrize(
        ("text", "cpus"),
        [
            ("1-3", "5-7"),
            (" 1 - 3 ", "5-7"),
            ("1,3", "5,7"),
            ("0-3,^2", "4-5,7"),
            ("^2,0-3", "4-5,7"),
            ("0 , 2", "4,6"),
            ("2-9", "6-7"),  # those that the guest has not are passed over
            ("3,3,3", "7"),
            ("0-3", "4-7"),
        ],
    )
    def test_the_vcpus_that_are_meant(self, text: str, cpus: str) -> None:
        assert Room(self.HOST, [guest([A], self.PINS, more=mask(text))]).cpus == cpus

    @pytest.mark.parametrize("text", ["3-1", "one", "1-", "-1", "1-3-5", "0x1", "", "9", "1,^1"])
    def test_what_is_none_leaves_all_alone(self, text: str) -> None:
        """Rather than `auto`, which would use vCPUs that the mask was to spare."""
        room = Room(self.HOST, [guest([A], self.PINS, more=mask(text))])
        assert room.on[A] == ["-"] * 6
        assert "setting-not-understood" in room.codes

    def test_of_more_vcpus_than_the_guest_has_it_is_told(self) -> None:
        assert Room(self.HOST, [guest([A], self.PINS, more=mask("2-9"))]).codes == {
            "setting-not-understood"
        }

    def test_wide_numbers(self) -> None:
        wide = MadeHost(online="0-255", devices=[passthrough(A, vectors=6, first_irq=100)])
        pins = [str(cpu) for cpu in range(100, 228)]
        room = Room(wide, [guest([A], pins, more=mask("120-127"))])
        assert room.on[A] == ["220", "221", "222", "223", "224", "225"]

    def test_past_the_thousandth(self) -> None:
        wide = MadeHost(online="0-2047", devices=[passthrough(A, vectors=3, first_irq=100)])
        pins = [str(cpu) for cpu in range(900, 2000)]
        assert Room(wide, [guest([A], pins, more=mask("1023-1024"))]).cpus == "1923-1924"
        beyond = Room(wide, [guest([A], pins, more=mask("1099-99999"))])
        assert (beyond.cpus, beyond.codes) == ("1999", {"setting-not-understood"})

    def test_over_a_pool(self) -> None:
        room = Room(self.HOST, [guest([A], ["4-7"] * 4, more=mask("1-2"))])
        assert room.cpus == "4-7"


class TestRealtimeVcpus:
    HOST = MadeHost(online="0-15", devices=[passthrough(A, vectors=5, first_irq=100)])
    PINS = ("8", "9", "10", "11")

    @staticmethod
    def sched(vcpus: str, scheduler: str = "fifo") -> str:
        priority = " priority='1'" if scheduler in ("fifo", "rr") else ""
        return f"<vcpusched vcpus='{vcpus}' scheduler='{scheduler}'{priority}/>"

    @pytest.mark.parametrize(
        ("tune", "cpus"),
        [
            (sched("2-3"), "8-9"),
            (sched("2-3", "rr"), "8-9"),
            (sched("1") + sched("3", "rr"), "8,10"),
            (sched("0-3,^1"), "9"),
            (sched("2-3", "batch"), "8-11"),
            (sched("2-3", "idle"), "8-11"),
            (sched("0-3"), "8-11"),  # all of them: then there is no other
            (sched("7"), "8-11"),
        ],
    )
    def test_kept_off(self, tune: str, cpus: str) -> None:
        assert Room(self.HOST, [guest([A], self.PINS, tune=tune)]).cpus == cpus

    def test_whom_a_mask_names_has_them(self) -> None:
        own = guest([A], self.PINS, tune=self.sched("2-3"), more=mask("2-3"))
        assert Room(self.HOST, [own]).cpus == "10-11"

    def test_a_cpu_that_a_calm_vcpu_shares_with_one(self) -> None:
        own = guest([A], ["8-9", "8-9", "9", "10"], tune=self.sched("2-3"))
        assert Room(self.HOST, [own]).cpus == "8"

    def test_what_is_asked_for_by_number_is_done(self) -> None:
        own = guest([A], self.PINS, tune=self.sched("2-3"), cpuset="10")
        assert Room(self.HOST, [own]).cpus == "10"
