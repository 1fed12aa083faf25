"""Threads of a virtual machine monitor: which run vCPUs, and where each may run.

What a thread may do is its own mask in /proc: the scheduler goes by it, and it shows cpusets too
(Linux kernel, kernel/cgroup/cpuset.c, update_tasks_cpumask()).

A thread is known for a vCPU's by the first of these that tells:

1. its name. QEMU: ``CPU 3/KVM`` (accel/kvm/kvm-accel-ops.c), if it was started with
   ``debug-threads=on``, and always since 11.0. cloud-hypervisor: ``vcpu3`` (vmm/src/cpu.rs).
   crosvm: ``crosvm_vcpu3`` (src/crosvm/sys/linux/vcpu.rs). Firecracker: ``fc_vcpu 3``
   (src/vmm/src/vstate/vcpu.rs). kvmtool: ``kvm-vcpu-3`` (builtin-run.c). StratoVirt: ``CPU 3/Kvm``
   (cpu/src/lib.rs). OpenVMM: ``vp-3`` (openvmm_core/src/worker/dispatch.rs). alioth: ``vcpu_3``
   (alioth/src/vm/vm.rs).
2. KVM itself, in debugfs: the thread that last ran each vCPU (virt/kvm/kvm_main.c,
   vcpu_get_pid(); Linux kernel commit e36de87d34a7 ("KVM: debugfs: expose pid of vcpu threads")
   (in v6.0)). Root's alone. It numbers vCPUs by their APIC ids.
3. the time that it has spent in a guest: field 43 of its ``stat``, which grows for no other thread
   (kernel/sched/cputime.c, account_guest_time()). It counts ticks, so a vCPU that has hardly run
   may have none, and the threads that have some are believed only if they are as many as there are
   vCPUs. They are numbered as they were created.
4. that it makes no difference: every thread may run on the same CPUs.

Not its ``syscall``: a worker that KVM starts shows the registers of the thread that it was copied
from, in the middle of KVM_RUN (seen on 6.18), and a vCPU that runs shows none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from virtirq.cpuset import CpuSet, union
from virtirq.errors import CpuSetError
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import Vcpu, counted
from virtirq.values import dataclass, field, pattern

MOST_THREADS: Final = 16384
"""Threads of a process that are looked at; KVM has 4096 vCPUs at most on x86."""

MOST_PROCESSES: Final = 1 << 22
"""The kernel has no more (include/linux/threads.h, PID_MAX_LIMIT)."""

MOST_TEXT: Final = 65536
"""Bytes that are read of a file of another process: it may make some of them as long as it likes.

``/proc/PID/cmdline`` shows what prctl(PR_SET_MM) says, ``fdinfo`` all that an epoll(7) watches.
"""

_VCPU: Final = pattern(
    r"CPU ([0-9]{1,5})/[A-Za-z]+|(?:vcpu_?|crosvm_vcpu|fc_vcpu ?|kvm-vcpu-|vp-)([0-9]{1,5})",
    re.ASCII,
)
# One thread may run all vCPUs where QEMU emulates (accel/tcg/tcg-accel-ops-rr.c).
_ALL_VCPUS: Final = "ALL CPUs/TCG"
# libvirt calls QEMU's I/O thread 1 iothread1 (QEMU, iothread.c, iothread_init()).
_IOTHREAD: Final = pattern(r"IO iothread([0-9]{1,5})", re.ASCII)
_ALLOWED: Final = pattern(r"^Cpus_allowed_list:\s*(\S+)$", re.MULTILINE | re.ASCII)
_VM: Final = pattern(r"([0-9]{1,9})-[0-9]{1,9}", re.ASCII)
_KVM_VCPU: Final = pattern(r"vcpu([0-9]{1,9})", re.ASCII)
_SOME_TIME: Final = pattern("[1-9][0-9]*", re.ASCII)
_TICKS: Final = pattern("[0-9]{1,20}", re.ASCII)
_STARTED: Final = 22 - 3
_POLICY: Final = 41 - 3
_GUEST_TIME: Final = 43 - 3  # as counted from the field after the name (proc(5))


_REALTIME: Final = frozenset({"1", "2", "6"})
"""SCHED_FIFO, SCHED_RR and SCHED_DEADLINE (include/uapi/linux/sched.h)."""


@dataclass(slots=True)
class Threads:
    """A process: thread ids by vCPU and by I/O thread number."""

    pid: int
    vcpus: dict[int, int] = field(default_factory=dict)
    iothreads: dict[int, int] = field(default_factory=dict)
    all_vcpus: int | None = None

    @property
    def any_vcpus(self) -> bool:
        return bool(self.vcpus) or self.all_vcpus is not None


@dataclass(frozen=True, slots=True)
class Places:
    """Where a guest's threads may run. `why` says why there are no vCPUs, though it has some."""

    vcpus: tuple[Vcpu, ...] = ()
    emulator: CpuSet | None = None
    iothreads: Mapping[int, CpuSet] = field(default_factory=dict)
    why: str = ""


def numbers(fs: HostFs, directory: str, most: int = MOST_PROCESSES) -> list[int]:
    """The entries of a directory that are numbers, ascending; none when it cannot be read."""
    try:
        names = fs.first(directory, most)
    except OSError:
        return []  # a process may end at any time, and another user's may be hidden
    return sorted(filter(None, map(number, names)))


def number(text: str | None, digits: int = 9) -> int | None:
    """The number that the text is, of so many digits at most."""
    short = text and text.isascii() and text.isdecimal() and len(text) <= digits
    return int(text) if text and short else None


def text_of(fs: HostFs, path: str, most: int = MOST_TEXT) -> str | None:
    """The file's content, None when it cannot be read; of a longer one, its beginning."""
    try:
        return fs.head(path, most)
    except OSError:
        return None


def thread_ids(fs: HostFs, pid: int) -> list[int]:
    return numbers(fs, f"{paths.PROC_DIR}/{pid}/task", MOST_THREADS)


def allowed(fs: HostFs, pid: int, tid: int) -> CpuSet | None:
    """The CPUs that a thread may run on, None when that cannot be read."""
    match = _ALLOWED.search(text_of(fs, paths.THREAD_STATUS.at(pid, tid)) or "")
    try:
        return CpuSet.parse(match[1]) or None if match else None
    except CpuSetError:
        return None


def named_threads(fs: HostFs, pid: int) -> Threads:
    """The process's threads that have a name for what they are."""
    threads = Threads(pid)
    for tid in thread_ids(fs, pid):
        name = text_of(fs, paths.THREAD_NAME.at(pid, tid)) or ""
        if match := _VCPU.fullmatch(name):
            threads.vcpus[int(match[1] or match[2])] = tid
        elif match := _IOTHREAD.fullmatch(name):
            threads.iothreads[int(match[1])] = tid
        elif name == _ALL_VCPUS:
            threads.all_vcpus = tid
    return threads


def vms(fs: HostFs) -> dict[int, list[str]]:
    """KVM's own directory of each virtual machine, by the process that made it."""
    found: dict[int, list[str]] = {}
    try:
        names = fs.listdir(paths.KVM_DEBUG_DIR)
    except OSError:
        return found
    for name in names:
        if match := _VM.fullmatch(name):
            found.setdefault(int(match[1]), []).append(name)
    return found


def kvm_threads(fs: HostFs, directories: list[str]) -> dict[int, int]:
    """Thread ids by KVM's number of the vCPU; none for a process that has not just one machine."""
    if len(directories) != 1:
        return {}
    directory = directories[0]
    try:
        names = fs.listdir(f"{paths.KVM_DEBUG_DIR}/{directory}")
    except OSError:
        return {}
    found = {}
    for name in names:
        if match := _KVM_VCPU.fullmatch(name):
            tid = number(text_of(fs, paths.KVM_VCPU_THREAD.at(directory, name)))
            if tid:  # 0: it has never run
                found[int(match[1])] = tid
    return dict(sorted(found.items()))


def machine(fs: HostFs, pid: int, kvm: Mapping[int, int], count: int | None) -> Places:
    """Where the threads of a virtual machine may run.

    `kvm` is what `kvm_threads` tells; `count` is how many vCPUs it has, None when not known.
    """
    threads = named_threads(fs, pid)
    vcpus, why = _vcpus(fs, threads, kvm, count)
    return Places(vcpus, allowed(fs, pid, pid), iothread_cpus(fs, threads), why)


def iothread_cpus(fs: HostFs, threads: Threads) -> dict[int, CpuSet]:
    """Where each I/O thread may run, by its number; those that have ended are left out."""
    return {
        each: cpus
        for each, tid in sorted(threads.iothreads.items())
        if (cpus := allowed(fs, threads.pid, tid)) is not None
    }


def _vcpus(
    fs: HostFs, threads: Threads, kvm: Mapping[int, int], count: int | None
) -> tuple[tuple[Vcpu, ...], str]:
    pid = threads.pid
    tids = thread_ids(fs, pid)
    kvm = {each: tid for each, tid in kvm.items() if tid in tids}  # others were unplugged
    order: list[tuple[int, int]] = []
    if threads.vcpus:
        order = sorted(threads.vcpus.items())
    elif threads.all_vcpus is not None:
        order = [(0, threads.all_vcpus)]  # however many it runs: they are in the same place
    elif kvm:
        order = list(enumerate(kvm.values()))
    elif count and len(ran := [tid for tid in tids if _was_in_guest(fs, pid, tid)]) == count:
        order = list(enumerate(ran))
    elif count or len(tids) > 1:
        masks = {allowed(fs, pid, tid) for tid in tids}
        mask = masks.pop() if len(masks) == 1 else None
        if mask is not None:  # one stands for all where it is not known how many there are
            return tuple(Vcpu(index, mask) for index in range(count or 1)), ""
    apic = {tid: each for each, tid in kvm.items()}
    vcpus = tuple(
        Vcpu(index, cpus, tid, apic.get(tid), is_realtime(fs, pid, tid) or False)
        for index, tid in order
        if (cpus := allowed(fs, pid, tid)) is not None
    )
    if vcpus:
        return vcpus, ""
    many = "its vCPUs" if not count else f"its {counted(count, 'vCPU')}"
    return (), f"which threads run {many} cannot be told: none is named for that"


def _was_in_guest(fs: HostFs, pid: int, tid: int) -> bool:
    fields = stat_fields(text_of(fs, paths.THREAD_STAT.at(pid, tid)))
    return len(fields) > _GUEST_TIME and bool(_SOME_TIME.fullmatch(fields[_GUEST_TIME]))


def is_realtime(fs: HostFs, pid: int, tid: int) -> bool | None:
    """Whether the thread has a real-time policy; None when that cannot be read."""
    fields = stat_fields(text_of(fs, paths.THREAD_STAT.at(pid, tid)))
    return fields[_POLICY] in _REALTIME if len(fields) > _POLICY else None


def stat_fields(text: str | None) -> list[str]:
    """The fields of a ``stat`` file after the name, which may hold brackets and blanks."""
    return (text or "").rpartition(")")[2].split()


def started_in(fields: Sequence[str]) -> int | None:
    """When a process was started, in ticks since the boot, out of its `stat_fields`."""
    match = _TICKS.fullmatch(fields[_STARTED]) if len(fields) > _STARTED else None
    return None if match is None else int(match[0])


def started_at(fs: HostFs, pid: int) -> int | None:
    """When the process was started, in ticks since the boot; None when it has ended."""
    return started_in(stat_fields(text_of(fs, paths.PROCESS_STAT.at(pid))))


def workers(fs: HostFs, pid: int) -> Places:
    """Where the threads of a process without vCPUs may run: what its devices' interrupts are for.

    A data plane binds each thread that works to a CPU of its own, and leaves the others what is
    left (DPDK, lib/eal/common/eal_common_options.c, compute_ctrl_threads_cpuset(); SPDK's reactors
    are DPDK's lcores): the bound ones count then, else all. Threads that may run on the same CPUs
    count once. They stand in for vCPUs, in the order of their thread ids.
    """
    masks: dict[CpuSet, int] = {}
    for tid in thread_ids(fs, pid):
        cpus = allowed(fs, pid, tid)
        if cpus is not None:
            masks.setdefault(cpus, tid)
    bound = {cpus: tid for cpus, tid in masks.items() if len(cpus) == 1}
    return Places(
        tuple(Vcpu(index, *each) for index, each in enumerate((bound or masks).items())),
        union(masks) if masks else None,
    )
