"""Where a QEMU guest's threads really run: the affinity of each, from /proc.

What libvirt was told and what a thread may do can differ: by cgroup cpusets, by taskset, by a
vCPU that was plugged in later. The thread's own mask is what the scheduler goes by, and it shows
cpusets too (Linux kernel, kernel/cgroup/cpuset.c, update_tasks_cpumask()).

Threads are told by their names. libvirt starts every QEMU with ``-name …,debug-threads=on``
(src/qemu/qemu_command.c, qemuBuildNameCommandLine()), and QEMU then calls the thread of vCPU 3
``CPU 3/KVM`` (accel/kvm/kvm-accel-ops.c) and that of I/O thread 1 ``IO iothread1``
(iothread.c). That needs no monitor command, no root, and no file of libvirt's.

Which process is the guest's is told by libvirt's pid file. Where that is not to be had, it was
started with the guest's UUID, and runs as the user that libvirt names in the guest's label, or is
root's; else it has vCPUs of KVM. Anybody can start a program with any UUID and call a thread
``CPU 0/KVM``: where several processes fit, none is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final

from virtirq.guests.processes.arguments import Arguments
from virtirq.guests.processes.descriptors import has_vcpus
from virtirq.guests.processes.owners import Owner, owner_of
from virtirq.guests.processes.threads import (
    MOST_TEXT,
    Threads,
    allowed,
    iothread_cpus,
    is_realtime,
    named_threads,
    number,
    numbers,
    started_at,
    text_of,
    thread_ids,
    vms,
)
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import Guest, Vcpu
from virtirq.values import replace

_MOST_ALIKE: Final = 16
"""Processes of one UUID that are looked at."""


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


def as_allowed(fs: HostFs, guest: Guest) -> Guest:
    """The guest with the threads that are known of it where they may run now, and all else alike.

    Not all that may have changed: who has found its threads looks again.
    """
    if guest.pid is None:
        return guest
    pid, emulator = guest.pid, guest.emulator
    if emulator is not None:
        emulator = allowed(fs, pid, pid) or emulator
    vcpus = (
        each if each.tid is None else replace(each, cpus=allowed(fs, pid, each.tid) or each.cpus)
        for each in guest.vcpus
    )
    return replace(guest, vcpus=tuple(vcpus), emulator=emulator)


class Processes:
    """The guests' processes on this machine, by the guest's UUID."""

    def __init__(self, fs: HostFs) -> None:
        self._fs = fs
        self._arguments = Arguments(fs)
        self._scanned: Mapping[str, list[int]] | None = None

    def seen(self, guest: Guest) -> Guest | None:
        """The guest with pid, thread ids and where its threads may run; None when not found."""
        found = self._threads(guest)
        if found is None:
            return None
        threads, user = found
        emulator = allowed(self._fs, threads.pid, threads.pid)
        return replace(
            guest,
            pid=threads.pid,
            owner=user,
            started=started_at(self._fs, threads.pid),
            vcpus=tuple(self._vcpu(vcpu, threads) for vcpu in guest.vcpus),
            emulator=guest.emulator if emulator is None else emulator,
            iothreads={**guest.iothreads, **iothread_cpus(self._fs, threads)},
        )

    def _vcpu(self, vcpu: Vcpu, threads: Threads) -> Vcpu:
        tid = threads.vcpus.get(vcpu.index, threads.all_vcpus)
        cpus = None if tid is None else allowed(self._fs, threads.pid, tid)
        if tid is None or cpus is None:
            return vcpu
        realtime = is_realtime(self._fs, threads.pid, tid)
        return replace(
            vcpu, cpus=cpus, tid=tid, realtime=vcpu.realtime if realtime is None else realtime
        )

    def _threads(self, guest: Guest) -> tuple[Threads, int] | None:
        """The threads of the one process that can be the guest's, and its user."""
        if guest.uuid is None:
            return None
        found = []
        for pid, owner in self._candidates(guest, guest.uuid):
            threads = named_threads(self._fs, pid)
            if threads.any_vcpus:
                found.append((threads, owner.uid))
        return found[0] if len(found) == 1 else None

    def _candidates(self, guest: Guest, uuid: str) -> list[tuple[int, Owner]]:
        """libvirt's own file first: nobody but root can write it, so nobody can pose as a guest."""
        name = guest.name
        pid = number(text_of(self._fs, paths.LIBVIRT_PID.at(name)) if "/" not in name else None)
        if pid is not None and self._uuid(pid) == uuid:
            owner = owner_of(self._fs, pid)
            return [] if owner is None else [(pid, owner)]
        # libvirt runs for a user, or in a container where pids are others: then whoever was
        # started with the guest's UUID. That can be anybody.
        if self._scanned is None:
            self._scanned = self._scan()
        told = ((pid, owner_of(self._fs, pid)) for pid in self._scanned.get(uuid, []))
        owned = [(pid, owner) for pid, owner in told if owner is not None]
        if guest.owner is not None:
            owned = [(pid, owner) for pid, owner in owned if owner.uid == guest.owner]
        elif any(owner.root for _, owner in owned):
            owned = [(pid, owner) for pid, owner in owned if owner.root]
        return [each for each in owned[:_MOST_ALIKE] if self._can_be(each, guest)]

    def _can_be(self, candidate: tuple[int, Owner], guest: Guest) -> bool:
        """Whether nothing speaks against it: emulation alone has no vCPUs of KVM.

        That is believed of the user that libvirt names, and of root.
        """
        pid, owner = candidate
        try:
            runs = has_vcpus(self._fs, pid)
        except PermissionError:
            runs = not self._machines or pid in self._machines
        except OSError:
            runs = False  # it has ended
        return runs or owner.root or guest.owner is not None

    @cached_property
    def _machines(self) -> Mapping[int, list[str]]:
        return vms(self._fs)

    def _scan(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = {}
        for pid in numbers(self._fs, paths.PROC_DIR):
            uuid = self._uuid(pid)
            if uuid is not None:
                found.setdefault(uuid, []).append(pid)
        return found

    def _uuid(self, pid: int) -> str | None:
        """The argument of ``-uuid`` (src/qemu/qemu_command.c, qemuBuildCommandLine())."""
        words = self._arguments.of(pid)
        return words[words.index("-uuid") + 1].lower() if "-uuid" in words[:-1] else None
