"""Which threads run vCPUs: by name, by KVM, by guest time, or because it makes no difference."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostmaker import MadeFs, MadeHost
from virtirq.cpuset import CpuSet
from virtirq.guests.processes.threads import (
    MOST_THREADS,
    Places,
    kvm_threads,
    machine,
    named_threads,
    stat_fields,
    vms,
    workers,
)
from virtirq.model import Vcpu

PID = 500


def stat(comm: str = "x", guest_time: int = 0) -> str:
    fields = ["S", "1", *["0"] * 17, "77", *["0"] * 20, str(guest_time), "0"]
    return f"{PID} ({comm}) {' '.join(fields)}"


def threads(*told: tuple[str, str] | tuple[str, str, int]) -> MadeFs:
    """A process of these threads: name, CPUs and guest time of each."""
    files = {}
    for tid, (name, cpus, *ran) in enumerate(told, start=PID):
        base = f"/proc/{PID}/task/{tid}"
        files[f"{base}/comm"] = name
        files[f"{base}/status"] = f"Name:\t{name}\nCpus_allowed_list:\t{cpus}\n"
        files[f"{base}/stat"] = stat(name, *ran)
    return MadeHost(files=files).live()


def shown(places: Places) -> list[tuple[int, str, int | None]]:
    return [(vcpu.index, str(vcpu.cpus), vcpu.tid) for vcpu in places.vcpus]


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("CPU 0/KVM", "CPU 1/KVM"), [0, 1]),
        (("CPU 1/KVM", "CPU 0/KVM"), [1, 0]),
        (("CPU 0/TCG", "CPU 1/TCG"), [0, 1]),
        (("vcpu0", "vcpu1"), [0, 1]),
        (("crosvm_vcpu0", "crosvm_vcpu1"), [0, 1]),
        (("fc_vcpu 0", "fc_vcpu 1"), [0, 1]),
        (("fc_vcpu0", "fc_vcpu1"), [0, 1]),
        (("kvm-vcpu-0", "kvm-vcpu-1"), [0, 1]),
        (("CPU 0/Kvm", "CPU 1/Kvm"), [0, 1]),
        (("vp-0", "vp-1"), [0, 1]),
        (("vcpu_0", "vcpu_1"), [0, 1]),
    ],
)
def test_by_name(names: tuple[str, str], order: list[int]) -> None:
    fs = threads(("vmm", "0-7"), (names[0], "4"), (names[1], "5"), ("worker", "0"))
    places = machine(fs, PID, {}, 2)
    expected = sorted(zip(order, ("4", "5"), (PID + 1, PID + 2), strict=True))
    assert shown(places) == expected
    assert (str(places.emulator), places.why) == ("0-7", "")


@pytest.mark.parametrize(
    ("policy", "realtime"), [(0, False), (1, True), (2, True), (3, False), (6, True)]
)
def test_a_real_time_policy(policy: int, realtime: bool) -> None:
    """chrt(1), or whatever starts the program: libvirt's definition is not the only one to say."""
    fs = threads(("vmm", "0-7"), ("CPU 0/KVM", "4"), ("CPU 1/KVM", "5"))
    fields = ["S", "1", *["0"] * 36, str(policy), "0", "0", "0", "0"]
    fs.set(f"/proc/{PID}/task/{PID + 1}/stat", f"{PID + 1} (CPU 0/KVM) {' '.join(fields)}")
    assert [each.realtime for each in machine(fs, PID, {}, 2).vcpus] == [realtime, False]


@pytest.mark.parametrize(
    "name",
    ["CPU x/KVM", "CPU 0/", "vcpu", "vcpu0x", "xvcpu0", "vcpu٣", "CPU 123456/KVM", "a\nvcpu0"],
)
def test_what_is_no_name_of_a_vcpu(name: str) -> None:
    assert not named_threads(threads(("x", "0"), (name, "0")), PID).any_vcpus


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=15))
def test_any_name_can_be_read(name: str) -> None:
    named_threads(threads((name, "0")), PID)


def test_names_come_before_kvm_which_adds_the_apic_ids() -> None:
    fs = threads(("qemu", "0-7"), ("CPU 0/KVM", "4"), ("CPU 1/KVM", "5"))
    places = machine(fs, PID, {0: PID + 1, 4: PID + 2}, 2)
    assert places.vcpus == (
        Vcpu(0, CpuSet([4]), PID + 1, 0),
        Vcpu(1, CpuSet([5]), PID + 2, 4),
    )


def test_fewer_names_than_descriptors() -> None:
    """QEMU keeps the descriptor of a vCPU that was unplugged (accel/kvm/kvm-all.c)."""
    fs = threads(("qemu", "0-7"), ("CPU 0/KVM", "4"))
    assert shown(machine(fs, PID, {}, 3)) == [(0, "4", PID + 1)]


def test_one_thread_that_emulates_all_vcpus() -> None:
    fs = threads(("qemu", "0-7"), ("ALL CPUs/TCG", "2-3"))
    assert shown(machine(fs, PID, {}, None)) == [(0, "2-3", PID + 1)]


DAYS = 200 * 86400 * 100  # in ticks
UNNAMED = (("qemu", "0-7"), ("qemu", "4", DAYS), ("qemu", "0-7"), ("qemu", "5", 1))


def test_by_kvm() -> None:
    places = machine(threads(*UNNAMED), PID, {0: PID + 3, 2: PID + 1}, 2)
    assert places.vcpus == (
        Vcpu(0, CpuSet([5]), PID + 3, 0),
        Vcpu(1, CpuSet([4]), PID + 1, 2),
    )


def test_kvm_tells_of_threads_that_are_not_there() -> None:
    """A vCPU that was unplugged keeps the number of its thread."""
    fs = threads(*UNNAMED)
    assert shown(machine(fs, PID, {0: PID + 3, 1: 9999}, 2)) == [(0, "5", PID + 3)]
    assert shown(machine(fs, PID, {1: 9999}, 2)) == [(0, "4", PID + 1), (1, "5", PID + 3)]


def test_by_guest_time() -> None:
    assert shown(machine(threads(*UNNAMED), PID, {}, 2)) == [(0, "4", PID + 1), (1, "5", PID + 3)]


@pytest.mark.parametrize("count", [1, 3, None])
def test_guest_time_of_too_many_or_too_few(count: int | None) -> None:
    places = machine(threads(*UNNAMED), PID, {}, count)
    assert places.vcpus == ()
    assert "which threads run its" in places.why
    assert str(places.emulator) == "0-7"


def test_no_difference() -> None:
    fs = threads(("qemu", "4-5"), ("qemu", "4-5"), ("qemu", "4-5"))
    assert shown(machine(fs, PID, {}, 2)) == [(0, "4-5", None), (1, "4-5", None)]
    one_for_all = machine(fs, PID, {}, None)
    assert (shown(one_for_all), one_for_all.why) == ([(0, "4-5", None)], "")
    starting = threads(("qemu", "4-5"))
    assert machine(starting, PID, {}, None).vcpus == (), "it may not have its threads yet"
    for tid in range(PID, PID + 3):
        fs.set(f"/proc/{PID}/task/{tid}/status", "")
    assert machine(fs, PID, {}, 2).vcpus == ()


def test_nothing_is_left_of_it() -> None:
    places = machine(threads(), PID, {}, 2)
    assert (places.vcpus, places.emulator) == ((), None)


@pytest.mark.parametrize("status", ["", "Cpus_allowed_list:\t", "Cpus_allowed_list:\tnone"])
def test_a_thread_that_cannot_be_read_is_no_vcpu(status: str) -> None:
    fs = threads(("qemu", "0-7"), ("CPU 0/KVM", "4"), ("CPU 1/KVM", "5"))
    fs.set(f"/proc/{PID}/task/{PID + 1}/status", status)
    assert shown(machine(fs, PID, {}, 2)) == [(1, "5", PID + 2)]


def test_iothreads() -> None:
    fs = threads(("q", "0"), ("CPU 0/KVM", "1"), ("IO iothread2", "3"), ("IO mon_iothread", "0"))
    assert machine(fs, PID, {}, 1).iothreads == {2: CpuSet([3])}


def test_more_threads_than_anybody_has() -> None:
    files: Mapping[str, str] = {
        f"/proc/{PID}/task/{tid}/status": "Cpus_allowed_list:\t1"
        for tid in range(1, MOST_THREADS + 500)
    }
    fs = MadeHost(files=files).live()
    assert len(workers(fs, PID).vcpus) == 1
    assert sum(operation == "read" for operation, _ in fs.calls) == MOST_THREADS


class TestKvm:
    FILES = {  # noqa: RUF012
        f"/sys/kernel/debug/kvm/{PID}-11/vcpu0/pid": "501",
        f"/sys/kernel/debug/kvm/{PID}-11/vcpu10/pid": "503",
        f"/sys/kernel/debug/kvm/{PID}-11/vcpu2/pid": "502",
        f"/sys/kernel/debug/kvm/{PID}-11/vcpu3/pid": "0",
        f"/sys/kernel/debug/kvm/{PID}-11/vcpu4/pid": "none",
        f"/sys/kernel/debug/kvm/{PID}-11/vcpu5/x": "",
        f"/sys/kernel/debug/kvm/{PID}-11/vcpux/pid": "9",
        f"/sys/kernel/debug/kvm/{PID}-11/exits": "12",
        "/sys/kernel/debug/kvm/700-9/vcpu0/pid": "701",
        "/sys/kernel/debug/kvm/700-10/vcpu0/pid": "702",
        "/sys/kernel/debug/kvm/exits": "12",
    }

    def test_threads(self) -> None:
        fs = MadeHost(files=self.FILES).live()
        assert kvm_threads(fs, vms(fs)[PID]) == {0: 501, 2: 502, 10: 503}

    def test_two_machines_in_one_process(self) -> None:
        fs = MadeHost(files=self.FILES).live()
        assert sorted(vms(fs)[700]) == ["700-10", "700-9"]
        assert kvm_threads(fs, vms(fs)[700]) == {}

    def test_without_debugfs(self) -> None:
        fs = MadeHost().live()
        assert vms(fs) == {}
        assert kvm_threads(fs, ["1-2"]) == kvm_threads(fs, []) == {}


class TestWorkers:
    def test_bound_ones_count(self) -> None:
        """A data plane: a main thread and workers, and what keeps house on the CPUs left."""
        fs = threads(
            ("dpdk-testpmd", "2"),
            ("dpdk-intr", "0-1,5-7"),
            ("dpdk-worker3", "3"),
            ("dpdk-worker4", "4"),
        )
        places = workers(fs, PID)
        assert shown(places) == [(0, "2", PID), (1, "3", PID + 2), (2, "4", PID + 3)]
        assert str(places.emulator) == "0-7"

    def test_all_count_where_none_is_bound(self) -> None:
        fs = threads(("a", "0-7"), ("b", "2-3"), ("c", "0-7"))
        assert shown(workers(fs, PID)) == [(0, "0-7", PID), (1, "2-3", PID + 1)]

    def test_none_is_left(self) -> None:
        assert workers(threads(), PID) == Places()


@pytest.mark.parametrize("comm", ["a b", "a) S 1 2 3 (b", "(((", "", "a\nb"])
def test_a_name_does_not_confuse_the_fields(comm: str) -> None:
    assert stat_fields(stat(comm))[:2] == ["S", "1"]


def test_no_fields() -> None:
    assert stat_fields(None) == stat_fields("") == []
