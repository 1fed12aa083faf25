"""A guest's threads, found by UUID and by the names that QEMU gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.hostmaker import MadeFs, MadeHost
from virtirq.cpuset import CpuSet
from virtirq.guests.processes.affinity import Processes, is_libvirts, runs_elsewhere
from virtirq.model import Guest, Vcpu

UUID = "6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11"
WEB = Guest(
    "web",
    "libvirt",
    uuid=UUID,
    vcpus=(Vcpu(0, CpuSet([1])), Vcpu(1), Vcpu(2, CpuSet([3]))),
    iothreads={1: CpuSet([1]), 2: CpuSet([1])},
)
QEMU = {
    4242: ("qemu-system-x86", "0-7"),
    4243: ("CPU 0/KVM", "4"),
    4244: ("CPU 1/KVM", "4-5,7"),
    4245: ("IO iothread1", "6"),
    4246: ("IO mon_iothread", "0"),
    4247: ("CPU x/KVM", "0"),
}


def process(
    pid: int = 4242,
    threads: Mapping[int, tuple[str, str]] = QEMU,
    arguments: str = f"/usr/bin/qemu\0-name\0guest=web\0-uuid\0{UUID}\0-S",
) -> dict[str, str]:
    files = {f"/proc/{pid}/cmdline": arguments}
    for tid, (name, cpus) in threads.items():
        files[f"/proc/{pid}/task/{tid}/comm"] = name
        files[f"/proc/{pid}/task/{tid}/status"] = f"Name:\tx\nCpus_allowed_list:\t{cpus}\nx:\t1"
    return files


def fs(*files: Mapping[str, str]) -> MadeFs:
    merged = {path: text for each in files for path, text in each.items()}
    return MadeHost(files=merged).live()


SEEN = replace(
    WEB,
    pid=4242,
    vcpus=(
        Vcpu(0, CpuSet([4]), 4243),
        Vcpu(1, CpuSet.parse("4-5,7"), 4244),
        Vcpu(2, CpuSet([3])),
    ),
    emulator=CpuSet.parse("0-7"),
    iothreads={1: CpuSet([6]), 2: CpuSet([1])},
)


def test_threads_are_found_by_the_uuid() -> None:
    noise = {"/proc/1/cmdline": "init", "/proc/77/cmdline": "qemu\0-uuid", "/proc/9/cmdline": ""}
    assert Processes(fs(noise, process())).seen(WEB) == SEEN


def test_the_pid_file_saves_the_search() -> None:
    made = fs(process(), {"/run/libvirt/qemu/web.pid": "4242"})
    assert Processes(made).seen(WEB) == SEEN
    assert ("listdir", "/proc") not in made.calls


@pytest.mark.parametrize("pid", ["77", "0", "no", "99999999999999999999", ""])
def test_a_stale_pid_file_is_not_believed(pid: str) -> None:
    other = {"/proc/77/cmdline": "bash", "/run/libvirt/qemu/web.pid": pid}
    assert Processes(fs(other, process())).seen(WEB) == SEEN


def test_with_a_pid_file_nobody_else_can_pose_as_the_guest() -> None:
    forged = process(100, {100: ("CPU 0/KVM", "0"), 101: ("CPU 1/KVM", "0")})
    made = fs(forged, process(), {"/run/libvirt/qemu/web.pid": "4242"})
    assert Processes(made).seen(WEB) == SEEN


def test_whom_libvirt_has_started() -> None:
    host = fs(process(), {"/run/libvirt/qemu/web.pid": "4242"})
    assert is_libvirts(host, replace(WEB, pid=4242))
    for other in (
        replace(WEB, pid=4243),
        replace(WEB, pid=4242, name="other"),
        replace(WEB, pid=None),
        replace(WEB, pid=4242, name="../qemu/web"),
    ):
        assert not is_libvirts(host, other)


def test_a_process_without_vcpu_threads_is_not_the_guest() -> None:
    starter = process(100, {100: ("qemu-system-x86", "0")})
    assert Processes(fs(starter, process())).seen(WEB) == SEEN
    assert Processes(fs(starter)).seen(WEB) is None


@pytest.mark.parametrize("guest", [replace(WEB, uuid=None), replace(WEB, uuid=UUID[::-1])])
def test_another_guest(guest: Guest) -> None:
    assert Processes(fs(process())).seen(guest) is None


def test_a_name_is_no_path() -> None:
    made = fs(process(), {"/run/libvirt/qemu/web.pid": "4242"})
    assert Processes(made).seen(replace(WEB, name="../qemu/web", uuid="0")) is None
    assert not any("../" in path for _, path in made.calls)


def test_one_thread_that_emulates_all_vcpus() -> None:
    found = Processes(fs(process(threads={4242: ("ALL CPUs/TCG", "2-3")}))).seen(WEB)
    assert found is not None
    assert {(str(each.cpus), each.tid) for each in found.vcpus} == {("2-3", 4242)}


@pytest.mark.parametrize("status", ["", "Cpus_allowed_list:\t", "Cpus_allowed_list:\tnone"])
def test_what_cannot_be_read_of_a_thread_leaves_the_pin(status: str) -> None:
    files = process() | {"/proc/4242/task/4243/status": status}
    found = Processes(fs(files)).seen(WEB)
    assert found is not None
    assert found.vcpus[0] == WEB.vcpus[0]


class TestRunsElsewhere:
    @pytest.mark.parametrize(
        ("tid", "cpus", "elsewhere"),
        [
            (4242, "0-7", False),
            (4242, "0-3", True),
            (4243, "4-5", True),
            (4244, "4,5,7", False),
            (4244, "5", True),
            (4245, "7", False),  # an I/O thread: nothing depends on it
        ],
    )
    def test_one_thread(self, tid: int, cpus: str, elsewhere: bool) -> None:
        now = fs(process(threads=QEMU | {tid: (QEMU[tid][0], cpus)}))
        assert runs_elsewhere(now, SEEN) is elsewhere

    def test_one_that_is_gone_runs_nowhere(self) -> None:
        assert not runs_elsewhere(fs(), SEEN)

    @pytest.mark.parametrize(("tid", "ended"), [(4244, True), (4245, False)])
    def test_a_vcpu_that_was_taken_out(self, tid: int, ended: bool) -> None:
        threads = {each: QEMU[each] for each in QEMU if each != tid}
        assert runs_elsewhere(fs(process(threads=threads)), SEEN) is ended

    def test_what_cannot_be_read_has_not_ended(self) -> None:
        now = fs(process(threads=QEMU | {4244: ("CPU 1/KVM", "?")}))
        assert not runs_elsewhere(now, SEEN)

    def test_what_was_not_known_cannot_have_changed(self) -> None:
        assert not runs_elsewhere(fs(process()), WEB)
        assert not runs_elsewhere(fs(process()), replace(SEEN, emulator=None))
