"""A guest's threads, found by UUID and by the names that QEMU gives them."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.hostmaker import MadeFs, MadeHost
from virtirq.cpuset import CpuSet
from virtirq.guests.processes.affinity import Processes, as_allowed, is_libvirts, runs_elsewhere
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
    *,
    uid: int = 107,
    kvm: bool = True,
) -> dict[str, str]:
    """A process; what it has open is a link, as `fs` makes of ``/proc/PID/fd/*``."""
    files = {f"/proc/{pid}/cmdline": arguments, f"/proc/{pid}/stat": stat(pid)}
    permitted = "0" * 16 if uid else "000001ffffffffff"
    owner = f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapPrm:\t{permitted}\n"
    files[f"/proc/{pid}/fd/7"] = "anon_inode:kvm-vcpu:0" if kvm else "/dev/null"
    for tid, (name, cpus) in threads.items():
        files[f"/proc/{pid}/task/{tid}/comm"] = name
        files[f"/proc/{pid}/task/{tid}/status"] = (
            f"Name:\tx\n{owner}Cpus_allowed_list:\t{cpus}\nx:\t1"
        )
    return files


def stat(pid: int) -> str:
    """It was started at ten times its pid."""
    return f"{pid} (x) S 1{' 0' * 17} {pid}0 0"


def fs(*files: Mapping[str, str]) -> MadeFs:
    merged = {path: text for each in files for path, text in each.items()}
    links = {path: merged.pop(path) for path in list(merged) if "/fd/" in path}
    return MadeHost(files=merged, links=links).live()


SEEN = replace(
    WEB,
    pid=4242,
    owner=107,
    started=42420,
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


@pytest.mark.parametrize(
    ("policy", "defined", "realtime"), [("1", False, True), ("0", True, False)]
)
def test_the_policy_that_a_thread_has_now(policy: str, defined: bool, realtime: bool) -> None:
    """Whatever libvirt was told: chrt(1) may have been at work since."""
    text = f"4243 (x) S 1{' 0' * 36} {policy} 0 0 0 0"
    guest = replace(WEB, vcpus=tuple(replace(each, realtime=defined) for each in WEB.vcpus))
    seen = Processes(fs(process(), {"/proc/4242/task/4243/stat": text})).seen(guest)
    assert seen is not None
    assert [each.realtime for each in seen.vcpus] == [realtime, defined, defined]


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


LABELLED = replace(WEB, owner=107)
"""As libvirt's label tells the user that QEMU runs as."""
POSING = {100: ("CPU 0/KVM", "0"), 101: ("CPU 1/KVM", "0")}


class TestWithoutItsPidFile:
    """Anybody can start a program with the guest's UUID, and call its threads what they like."""

    @pytest.mark.parametrize("kvm", [False, True])
    def test_of_another_user_than_libvirts(self, kvm: bool) -> None:
        posing = process(100, POSING, uid=1000, kvm=kvm)
        assert Processes(fs(posing, process())).seen(LABELLED) == SEEN
        assert Processes(fs(posing)).seen(LABELLED) is None

    def test_without_vcpus_of_kvm(self) -> None:
        posing = process(100, POSING, uid=1000, kvm=False)
        assert Processes(fs(posing, process())).seen(WEB) == SEEN
        assert Processes(fs(posing)).seen(WEB) is None

    def test_roots_comes_first(self) -> None:
        posing = process(100, POSING, uid=1000)
        found = Processes(fs(posing, process(uid=0, kvm=False))).seen(WEB)
        assert found == replace(SEEN, owner=0)

    def test_of_several_none(self) -> None:
        posing = process(100, POSING, uid=1000)
        assert Processes(fs(posing, process())).seen(WEB) is None
        assert Processes(fs(process(100, POSING), process())).seen(LABELLED) is None

    def test_an_emulated_one_of_libvirts_user(self) -> None:
        assert Processes(fs(process(kvm=False))).seen(LABELLED) == SEEN

    @pytest.mark.parametrize(("vm", "expected"), [("4242-9", SEEN), ("77-9", None)])
    def test_where_descriptors_are_hidden_kvm_tells(self, vm: str, expected: Guest | None) -> None:
        made = fs(process(), {f"/sys/kernel/debug/kvm/{vm}/vcpu0/pid": "4243"})
        made.faults["listdir", "/proc/4242/fd"] = errno.EACCES
        assert Processes(made).seen(WEB) == expected

    def test_where_nothing_is_to_be_seen_there_may_be_one(self) -> None:
        made = fs(process())
        made.faults["listdir", "/proc/4242/fd"] = errno.EACCES
        assert Processes(made).seen(WEB) == SEEN

    def test_a_crowd_costs_no_look_at_its_threads(self) -> None:
        crowd = [process(pid, {pid: ("CPU 0/KVM", "0")}, uid=1000) for pid in range(200, 300)]
        made = fs(*crowd, process())
        assert Processes(made).seen(LABELLED) == SEEN
        assert not any(path.endswith("/task") for _, path in made.calls if "/4242/" not in path)


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


def test_threads_that_are_known_are_read_again_alone() -> None:
    moved = {4242: ("qemu", "0-1"), 4244: ("CPU 1/KVM", "6"), 4243: ("CPU 0/KVM", "?")}
    now = as_allowed(fs(process(threads=QEMU | moved)), SEEN)
    before = SEEN.vcpus
    assert now.vcpus == (before[0], replace(before[1], cpus=CpuSet([6])), before[2])
    assert now.emulator == CpuSet([0, 1])
    assert as_allowed(fs(process()), SEEN) == SEEN
    assert as_allowed(fs(), SEEN) == SEEN
    assert as_allowed(fs(process()), WEB) == WEB


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
