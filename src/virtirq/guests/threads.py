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

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from virtirq.cpuset import CpuSet
from virtirq.errors import CpuSetError
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import Guest, Vcpu

# One thread may run all vCPUs where QEMU emulates (accel/tcg/tcg-accel-ops-rr.c).
_VCPU: Final = re.compile(r"CPU ([0-9]{1,5})/[A-Za-z]+", re.ASCII)
_ALL_VCPUS: Final = "ALL CPUs/TCG"
_IOTHREAD: Final = re.compile(r"IO iothread([0-9]{1,5})", re.ASCII)
_ALLOWED: Final = re.compile(r"^Cpus_allowed_list:\s*(\S+)$", re.MULTILINE | re.ASCII)


@dataclass(slots=True)
class Threads:
    """A QEMU process: thread ids by vCPU and by I/O thread number."""

    pid: int
    vcpus: dict[int, int] = field(default_factory=dict)
    iothreads: dict[int, int] = field(default_factory=dict)
    all_vcpus: int | None = None


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
        emulator = self._allowed(threads.pid, threads.pid)
        iothreads = {
            number: cpus
            for number, tid in sorted(threads.iothreads.items())
            if (cpus := self._allowed(threads.pid, tid)) is not None
        }
        return replace(
            guest,
            pid=threads.pid,
            vcpus=tuple(self._vcpu(vcpu, threads) for vcpu in guest.vcpus),
            emulator=guest.emulator if emulator is None else emulator,
            iothreads={**guest.iothreads, **iothreads},
        )

    def _vcpu(self, vcpu: Vcpu, threads: Threads) -> Vcpu:
        tid = threads.vcpus.get(vcpu.index, threads.all_vcpus)
        cpus = None if tid is None else self._allowed(threads.pid, tid)
        return vcpu if cpus is None else Vcpu(vcpu.index, cpus, tid)

    def _threads(self, guest: Guest) -> Threads | None:
        if guest.uuid is None:
            return None
        for pid in self._candidates(guest.name, guest.uuid):
            threads = self._named(pid)
            if threads is not None:
                return threads
        return None

    def _candidates(self, name: str, uuid: str) -> list[int]:
        """libvirt's own file first: nobody but root can write it, so nobody can pose as a guest."""
        pid = _number(self._read(paths.LIBVIRT_PID.at(name)) if "/" not in name else None)
        if pid is not None and _uuid(self._read(paths.PROCESS_ARGUMENTS.at(pid))) == uuid:
            return [pid]
        # libvirt runs for a user, or in a container where pids are others: then whoever was
        # started with the guest's UUID.
        if self._scanned is None:
            self._scanned = self._scan()
        return self._scanned.get(uuid, [])

    def _scan(self) -> Mapping[str, list[int]]:
        found: dict[str, list[int]] = {}
        for pid in sorted(filter(None, map(_number, self._names(paths.PROC_DIR)))):
            uuid = _uuid(self._read(paths.PROCESS_ARGUMENTS.at(pid)))
            if uuid is not None:
                found.setdefault(uuid, []).append(pid)
        return found

    def _named(self, pid: int) -> Threads | None:
        """The process's threads; None when none of them is a vCPU's."""
        threads = Threads(pid)
        for tid in sorted(filter(None, map(_number, self._names(f"/proc/{pid}/task")))):
            name = self._read(paths.THREAD_NAME.at(pid, tid)) or ""
            if match := _VCPU.fullmatch(name):
                threads.vcpus[int(match[1])] = tid
            elif match := _IOTHREAD.fullmatch(name):
                threads.iothreads[int(match[1])] = tid
            elif name == _ALL_VCPUS:
                threads.all_vcpus = tid
        return threads if threads.vcpus or threads.all_vcpus else None

    def _allowed(self, pid: int, tid: int) -> CpuSet | None:
        match = _ALLOWED.search(self._read(paths.THREAD_STATUS.at(pid, tid)) or "")
        try:
            return CpuSet.parse(match[1]) or None if match else None
        except CpuSetError:
            return None

    def _read(self, path: str) -> str | None:
        try:
            return self._fs.read(path)
        except OSError:
            return None  # a process may end at any time, and another user's may be hidden

    def _names(self, path: str) -> list[str]:
        try:
            return self._fs.listdir(path)
        except OSError:
            return []


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and text.isascii() and len(text) < 10 else None


def _uuid(arguments: str | None) -> str | None:
    """The argument of ``-uuid`` (src/qemu/qemu_command.c, qemuBuildCommandLine())."""
    words = (arguments or "").split("\0")
    return words[words.index("-uuid") + 1].lower() if "-uuid" in words[:-1] else None
