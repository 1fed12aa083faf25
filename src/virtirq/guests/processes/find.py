"""Guests that no libvirt tells of: processes that hold PCI functions by VFIO.

What counts is what a process has open (`descriptors`). A command line (`command_line`)
gives the guest its name, and tells what it holds where its descriptors are not to be seen: by
another user, and by a root without CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH. Anybody can start a
program with any command line, so that is believed of root's processes alone; of another's it is a
claim.

One function is held by one guest. Where several processes have it open (a data plane's secondaries,
a descriptor that is passed on, a device that several may open by its own name), it is root's, then
one with vCPUs, then the one that was started first. Where they are of several users, and none is
root's, it is nobody's, and that is said.

Processes that were forked without another program (crosvm's sandboxed devices: jail/src/fork.rs)
have one command line, and are one guest. A process that has VFIO and no vCPUs is a guest of its own
kind.

Cost: a link of every descriptor of every process is read, unless there is no more to find. Which
functions are open is known from sysfs, and most are held by processes that KVM names in debugfs, or
that are called like a virtual machine monitor; these come first.
Descriptors cannot be skipped by what is cheaper to read: locked memory (VmLck, VmPin) is there only
once DMA is mapped, never without an IOMMU, and a parent may have mapped it.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from itertools import chain
from typing import Final, NamedTuple

from virtirq.guests.processes import threads
from virtirq.guests.processes.holders import Holder, Holders
from virtirq.guests.processes.naming import distinct
from virtirq.guests.processes.threads import numbers, started_at, text_of
from virtirq.guests.processes.values import name_of, program_of
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.model import Gap, Guest, GuestDevice, PciAddress
from virtirq.values import pattern, replace

SOURCE: Final = "vfio-process"
HELD: Final = "vfio"
"""Where a device is known from that a process was found to hold."""

_MOST_SHOWN: Final = 3
_VMM: Final = pattern(
    r"qemu|kvm|cloud-hyp|crosvm|firecracker|lkvm|stratovirt|openvmm|alioth", re.ASCII
)
_LEADER: Final = pattern(r"^Tgid:\s+(\d{1,9})$", re.MULTILINE | re.ASCII)
# include/linux/proc_ns.h, PROC_PID_INIT_INO
_INITIAL_NAMESPACE: Final = "pid:[4026531836]"


class Found(NamedTuple):
    """`guests` hold their devices for certain; `claimed` are there to be shown, not to act on.

    `gaps` say what could not be seen, and which devices that concerns. `completed` are guests of
    other sources whose processes hold more than those know of, with all of it: libvirt knows
    nothing of what is plugged in behind its back.
    """

    guests: tuple[Guest, ...] = ()
    gaps: tuple[Gap, ...] = ()
    claimed: tuple[Guest, ...] = ()
    completed: tuple[Guest, ...] = ()


def find_processes(fs: HostFs, known: Iterable[Guest] = ()) -> Found:
    """The guests of this machine, by name, without those that are `known` from another source.

    Those of `known` that were found here before keep their names.
    """
    return _Look(fs, known, everyone=True).everywhere()


def read_process(fs: HostFs, pid: int, known: Iterable[Guest] = ()) -> Found:
    """The one guest that a process belongs to, as `find_processes` has it; none if there is none.

    `pid` may be that of any of its threads, and of a process that only serves it (see above).
    """
    return _Look(fs, known).at(pid)


def still_there(fs: HostFs, guest: Guest) -> bool:
    """Whether the guest's process is the one that was read, and not a later one of its number.

    For who opens a pidfd of it afterwards: it is of that process if this holds then.
    """
    if guest.pid is None or guest.started is None:
        return False
    return started_at(fs, guest.pid) == guest.started


def as_told(guest: Guest) -> Guest:
    """The guest as its source has told of it, without what its process was found to hold beside."""
    told = tuple(device for device in guest.devices if device.source != HELD)
    if guest.source == SOURCE or len(told) == len(guest.devices):
        return guest
    return replace(guest, devices=told)


def holding_still(guest: Guest, before: Guest | None) -> Guest:
    """A guest as another source tells of it now, with what its process was found to hold before."""
    if before is None or before.pid != guest.pid or SOURCE in (guest.source, before.source):
        return guest
    told = {device.address for device in guest.devices}
    held = (each for each in before.devices if each.source == HELD and each.address not in told)
    return replace(guest, devices=(*guest.devices, *held))


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


class _Look:
    """One look at the processes of a host."""

    def __init__(self, fs: HostFs, known: Iterable[Guest], *, everyone: bool = False) -> None:
        self._fs = fs
        self._reader = Reader(fs)
        known = tuple(known)
        self._others = others = tuple(guest for guest in known if guest.source != SOURCE)
        self._before = {guest.pid: guest for guest in known if guest.source == SOURCE}
        self._taken = {name for guest in others for name in (guest.name, guest.uuid) if name}
        self._holders = Holders(
            fs,
            self._reader,
            not_ours={device.address for guest in others for device in guest.devices},
            pids={guest.pid for guest in others},
            # A guest whose process its own source did not find may be met here.
            uuids={guest.uuid for guest in others if guest.uuid and guest.pid is None},
            fair=everyone,
        )
        self._gaps: list[Gap] = []
        self._completed: list[Guest] = []

    @cached_property
    def _machines(self) -> dict[int, list[str]]:
        return threads.vms(self._fs)

    def everywhere(self) -> Found:
        if self._fs.recording is not None:
            return Found()  # processes are not recorded
        missing = self._holders.opened
        if missing:
            missing -= self._complete(self._others)
        holders: list[Holder] = []
        pids = numbers(self._fs, paths.PROC_DIR) if missing else []
        doubtful = missing
        for pid in chain(self._in_order(pids), self._holders.rest()):
            if pid in self._holders.done or (holder := self._holders.of(pid)) is None:
                continue
            holders.append(holder)
            if holder.proven:
                missing -= holder.devices
            if holder.beyond_doubt:
                doubtful -= holder.devices
            if not doubtful:
                break
        if missing:
            self._tell(missing, pids)
        return self._found(holders)

    def at(self, pid: int) -> Found:
        if self._fs.recording is not None:
            return Found()
        match = _LEADER.search(text_of(self._fs, paths.THREAD_STATUS.at(pid, pid)) or "")
        leader = int(match[1]) if match else pid
        self._complete(guest for guest in self._others if guest.pid == leader)
        holder = self._holders.of(leader)
        if holder is None:
            where = paths.PROCESS_DESCRIPTOR.at(pid, "*")
            if self._holders.hidden:
                self._gaps.append(Gap(where, os.strerror(errno.EACCES)))
            if self._holders.skipped:
                self._gaps.append(Gap(where, self._too_many()))
            if self._holders.unclear:
                self._gaps.append(Gap(where, "which device it has open cannot be told"))
            return self._found([])
        holders = [holder]
        # Whoever is known to hold the same has to be asked again: one of the two is wrong.
        for guest in self._before.values():
            if guest.pid is None or guest.pid == holder.pid:
                continue
            self._taken |= {guest.name, guest.uuid or guest.name}
            theirs = {device.address for device in guest.devices}
            if theirs & holder.devices and (rival := self._holders.of(guest.pid)) is not None:
                holders.append(rival)
        return self._found(holders, holder.pid)

    def _complete(self, guests: Iterable[Guest]) -> set[PciAddress]:
        """What the processes of these known guests hold and nobody knew of is theirs."""
        found: set[PciAddress] = set()
        for guest in guests:
            more = self._holders.beside(guest.pid) - found if guest.pid is not None else None
            if more:
                devices = (GuestDevice(each, source=HELD) for each in sorted(more))
                self._completed.append(replace(guest, devices=(*guest.devices, *devices)))
                found |= more
        return found

    def _in_order(self, pids: list[int]) -> Iterator[int]:
        """The likely ones first: it may be that no others need to be looked at."""
        if pids:
            yield from (pid for pid in pids if pid in self._machines)
            rest = [pid for pid in pids if pid not in self._machines]
            yield from sorted(rest, key=lambda pid: not self._is_called_so(pid))

    def _is_called_so(self, pid: int) -> bool:
        return bool(_VMM.search(text_of(self._fs, paths.PROCESS_NAME.at(pid)) or ""))

    def _tell(self, missing: Collection[PciAddress], pids: Collection[int]) -> None:
        """Some functions are open, and by whom cannot be told."""
        shown = [str(each) for each in sorted(missing)[:_MOST_SHOWN]]
        which = ", ".join(shown) + _and_more(len(missing) - _MOST_SHOWN)
        if self._holders.hidden:
            why = f"{os.strerror(errno.EACCES)}: whose {which} is cannot be told"
            self._gaps.append(Gap(paths.PROCESS_DESCRIPTOR.glob, why))
        if self._holders.skipped:
            why = f"{self._too_many()}: whose {which} is cannot be told"
            self._gaps.append(Gap(paths.PROCESS_DESCRIPTOR.glob, why))
        for pid in self._holders.unclear:
            why = f"which device it has open cannot be told: {which}, maybe"
            self._gaps.append(Gap(paths.PROCESS_DESCRIPTOR.at(pid, "*"), why))
        if not self._sees_all(pids):
            why = f"not all processes can be seen from here, and none that can holds {which}"
            self._gaps.append(Gap(paths.PROC_DIR, why))

    def _too_many(self) -> str:
        users = sorted(self._holders.skipped)
        shown = ", ".join(str(each) for each in users[:_MOST_SHOWN])
        more = _and_more(len(users) - _MOST_SHOWN)
        return f"too many to look at of user{'s' if users[1:] else ''} {shown}{more}"

    def _sees_all(self, pids: Collection[int]) -> bool:
        """Whether it is neither in a container nor given a /proc without others' processes."""
        try:
            namespace = self._fs.readlink(paths.PID_NAMESPACE.at())
        except OSError:
            namespace = _INITIAL_NAMESPACE
        return namespace == _INITIAL_NAMESPACE and 1 in pids

    def _found(self, holders: list[Holder], only: int | None = None) -> Found:
        """What comes of these holders; with `only`, of the one with this process id."""
        owned = self._disputed(holders)
        built: list[tuple[Holder, Guest]] = []
        for holder in sorted(holders, key=lambda each: each.rank):
            devices = holder.devices - owned
            owned |= devices
            guest = self._guest(holder, devices) if devices and only in (None, holder.pid) else None
            if guest is not None:
                built.append((holder, guest))
        built.sort(key=lambda each: (each[0].started, each[0].pid))
        proven = {holder.pid for holder, _ in built if holder.proven}
        named = distinct((guest for _, guest in built), self._taken, self._before)
        named.sort(key=lambda guest: guest.name)
        return Found(
            tuple(guest for guest in named if guest.pid in proven),
            (*self._reader.gaps, *self._gaps),
            tuple(guest for guest in named if guest.pid not in proven),
            tuple(self._completed),
        )

    def _disputed(self, holders: Iterable[Holder]) -> set[PciAddress]:
        """What processes of several users hold, none of which is root's: who lies is not known."""
        by_device: dict[PciAddress, list[Holder]] = {}
        for holder in holders:
            for each in holder.devices if holder.proven else ():
                by_device.setdefault(each, []).append(holder)
        disputed = set()
        for address, rivals in sorted(by_device.items()):
            users = sorted({each.owner.uid for each in rivals})
            if len(users) == 1:
                continue
            shown = [f"{each.pid} of user {each.owner.uid}" for each in rivals[:_MOST_SHOWN]]
            who = ", ".join(shown) + _and_more(len(rivals) - _MOST_SHOWN)
            said = f"{address} is open in processes {who}"
            ours = any(each.owner.root for each in rivals)
            why = "root's has it" if ours else "whose it is cannot be told"
            self._gaps.append(Gap(f"{paths.PCI_DIR}/{address}", f"{said}: {why}"))
            if not ours:
                disputed.add(address)
        return disputed

    def _guest(self, holder: Holder, devices: Collection[PciAddress]) -> Guest | None:
        """The guest with its threads; None when it has ended meanwhile."""
        pid, told, held = holder.pid, holder.told, holder.held
        kvm = threads.kvm_threads(self._fs, self._machines.get(pid, []))
        is_machine = bool(told.vmm or held.vcpus or kvm)
        if is_machine:
            places = threads.machine(self._fs, pid, kvm, held.vcpus or None)
        else:
            places = threads.workers(self._fs, pid)
        name = told.name or self._command(pid)
        try:
            if self._holders.started(pid) != holder.started:
                return None
        except ProcessLookupError:
            return None
        if places.why:
            self._gaps.append(Gap(f"/proc/{pid}/task", f"{name}: {places.why}"))
        return Guest(
            name,
            SOURCE,
            uuid=told.uuid,
            pid=pid,
            vcpus=places.vcpus,
            emulator=places.emulator,
            iothreads=places.iothreads,
            devices=tuple(GuestDevice(each, source=HELD) for each in sorted(devices)),
            kind="machine" if is_machine else "process",
            owner=holder.owner.uid,
            started=holder.started,
        )

    def _command(self, pid: int) -> str:
        """A name for what has none: its command and its process id."""
        command = name_of(program_of(self._holders.arguments.of(pid)))
        command = command or name_of(text_of(self._fs, paths.PROCESS_NAME.at(pid)) or "")
        return f"{command or 'process'}-{pid}"
