"""Where a QEMU guest's threads really run: the affinity of each, from /proc.

What libvirt was told and what a thread may do can differ: by cgroup cpusets, by taskset, by a
vCPU that was plugged in later. The thread's own mask is what the scheduler goes by, and it shows
cpusets too (Linux kernel, kernel/cgroup/cpuset.c, update_tasks_cpumask()).

Threads are told by their names. libvirt starts every QEMU with ``-name …,debug-threads=on``
(src/qemu/qemu_command.c, qemuBuildNameCommandLine()), and QEMU then calls the thread of vCPU 3
``CPU 3/KVM`` (accel/kvm/kvm-accel-ops.c) and that of I/O thread 1 ``IO iothread1``
(iothread.c). That needs no monitor command, no root, and no file of libvirt's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from virtirq.guests.processes.threads import (
    MOST_TEXT,
    Threads,
    allowed,
    iothread_cpus,
    named_threads,
    number,
    numbers,
    text_of,
    thread_ids,
)
from virtirq.guests.processes.values import MOST_BYTES, split
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import Guest, Vcpu


def is_libvirts(fs: HostFs, guest: Guest) -> bool:
    """Whether the guest's process is one that libvirt has started on this host."""
    if guest.pid is None or "/" in guest.name:
        return False
    try:
        return fs.head(paths.LIBVIRT_PID.at(guest.name), MOST_TEXT) == str(guest.pid)
    except OSError:
        return False


def runs_elsewhere(fs: HostFs, guest: Guest) -> bool:
    """Whether the guest's process or a thread of a vCPU may run elsewhere than when it was read.

    A thread that has ended runs elsewhere, too, while its process lives on.
    """
    if guest.pid is None:
        return False
    known = {vcpu.tid: vcpu.cpus for vcpu in guest.vcpus if vcpu.tid is not None}
    if guest.emulator is not None:
        known[guest.pid] = guest.emulator
    now = {tid: allowed(fs, guest.pid, tid) for tid in known}
    if any(now[tid] not in (None, cpus) for tid, cpus in known.items()):
        return True
    unseen = {tid for tid, cpus in now.items() if cpus is None}
    there = set(thread_ids(fs, guest.pid)) if unseen else set()
    return bool(there) and not unseen <= there  # of a process that has ended nothing runs


class Processes:
    """The guests' processes on this machine, by the guest's UUID."""

    def __init__(self, fs: HostFs) -> None:
        self._fs = fs
        self._scanned: Mapping[str, list[int]] | None = None

    def seen(self, guest: Guest) -> Guest | None:
        """The guest with pid, thread ids and where its threads may run; None when not found."""
        threads = self._threads(guest)
        if threads is None:
            return None
        emulator = allowed(self._fs, threads.pid, threads.pid)
        return replace(
            guest,
            pid=threads.pid,
            vcpus=tuple(self._vcpu(vcpu, threads) for vcpu in guest.vcpus),
            emulator=guest.emulator if emulator is None else emulator,
            iothreads={**guest.iothreads, **iothread_cpus(self._fs, threads)},
        )

    def _vcpu(self, vcpu: Vcpu, threads: Threads) -> Vcpu:
        tid = threads.vcpus.get(vcpu.index, threads.all_vcpus)
        cpus = None if tid is None else allowed(self._fs, threads.pid, tid)
        return vcpu if cpus is None else replace(vcpu, cpus=cpus, tid=tid)

    def _threads(self, guest: Guest) -> Threads | None:
        if guest.uuid is None:
            return None
        for pid in self._candidates(guest.name, guest.uuid):
            threads = named_threads(self._fs, pid)
            if threads.any_vcpus:
                return threads
        return None

    def _candidates(self, name: str, uuid: str) -> list[int]:
        """libvirt's own file first: nobody but root can write it, so nobody can pose as a guest."""
        pid = number(text_of(self._fs, paths.LIBVIRT_PID.at(name)) if "/" not in name else None)
        if pid is not None and self._uuid(pid) == uuid:
            return [pid]
        # libvirt runs for a user, or in a container where pids are others: then whoever was
        # started with the guest's UUID.
        if self._scanned is None:
            self._scanned = self._scan()
        return self._scanned.get(uuid, [])

    def _scan(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = {}
        for pid in numbers(self._fs, paths.PROC_DIR):
            uuid = self._uuid(pid)
            if uuid is not None:
                found.setdefault(uuid, []).append(pid)
        return found

    def _uuid(self, pid: int) -> str | None:
        """The argument of ``-uuid`` (src/qemu/qemu_command.c, qemuBuildCommandLine())."""
        words = split(text_of(self._fs, paths.PROCESS_ARGUMENTS.at(pid), MOST_BYTES) or "")
        return words[words.index("-uuid") + 1].lower() if "-uuid" in words[:-1] else None
