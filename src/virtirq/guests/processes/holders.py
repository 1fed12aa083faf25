"""Who holds PCI functions by VFIO: what processes have open, or say, turned to functions."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from virtirq.guests.processes.command_line import read_command_line
from virtirq.guests.processes.descriptors import (
    MOST_DESCRIPTORS,
    Held,
    descriptors,
    read_descriptors,
)
from virtirq.guests.processes.devices import VfioDevices, read_vfio
from virtirq.guests.processes.threads import number, stat_fields, text_of
from virtirq.guests.processes.values import MOST_BYTES, CommandLine, split
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.model import PciAddress

_MOST_READ: Final = 2_000_000
"""Descriptors that are looked at in all: what a host with 40,000 processes may have."""
_MOST_FAMILY: Final = 256
_UID: Final = re.compile(r"^Uid:\s+(\d+)\s+(\d+)\s", re.MULTILINE | re.ASCII)
_TICKS: Final = re.compile("[0-9]{1,20}", re.ASCII)
_PARENT, _STARTED = 4 - 3, 22 - 3  # of /proc/PID/stat (proc(5)), as counted after the name


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, or several that were forked, with the functions that it holds.

    `started` is in ticks since the boot. Unless it is `proven`, it only says that it holds them.
    """

    pid: int
    started: int
    told: CommandLine
    held: Held
    devices: frozenset[PciAddress]
    proven: bool = True

    @property
    def rank(self) -> tuple[bool, bool, bool, int, int]:
        """Who is believed first, where two hold one function."""
        by_kernel = self.devices <= self.held.devices
        return (not self.proven, not by_kernel, not self.held.vcpus, self.started, self.pid)

    @property
    def beyond_doubt(self) -> bool:
        """Whether nobody else needs to be asked: a virtual machine, and not by a path alone."""
        held = self.held
        by_path = bool(held.cdevs) and not self.devices <= held.devices
        return self.proven and not by_path and (bool(held.vcpus) or held == Held())


class Holders:
    """The processes of a host that hold PCI functions by VFIO.

    `not_ours` are functions that are known to be somebody else's, `pids` and `uuids` are those of
    guests that are. `hidden` tells afterwards whether some process's descriptors were not to be
    seen, `skipped` whether there were too many, `unclear` which processes have a device open that
    cannot be told, and `done` which processes were looked at.
    """

    def __init__(
        self,
        fs: HostFs,
        reader: Reader,
        not_ours: Collection[PciAddress] = (),
        pids: Collection[int | None] = (),
        uuids: Collection[str] = (),
    ) -> None:
        self._fs = fs
        self._reader = reader
        self._not_ours = frozenset(not_ours)
        self._others = pids
        self._uuids = uuids
        self._read = 0
        self.done: set[int] = set()
        self.unclear: list[int] = []
        self.hidden = False
        self.skipped = False

    @cached_property
    def _vfio(self) -> VfioDevices:
        return read_vfio(self._reader)

    @property
    def opened(self) -> frozenset[PciAddress]:
        """The functions that someone has open, and that are not known to be another's."""
        return self._vfio.opened - self._not_ours

    def of(self, pid: int) -> Holder | None:
        """The holder that the process is, or serves; None when it holds nothing, or has ended."""
        self.done.add(pid)
        if pid in self._others:
            return None
        try:
            held = self._held(pid)
            return self._family(pid, held) if held.any_device or held.vcpus else None
        except PermissionError:
            self.hidden = True
        except ProcessLookupError:
            return None
        try:
            return self._claimant(pid)
        except ProcessLookupError:
            return None

    def started(self, pid: int) -> int:
        """When the process was started; another one under its number was started later.

        Raises ProcessLookupError.
        """
        return self._stat(pid)[1]

    def words(self, pid: int) -> list[str]:
        """Its command line; none of a process that has none, or is hidden."""
        return split(text_of(self._fs, paths.PROCESS_ARGUMENTS.at(pid), MOST_BYTES) or "")

    def _held(self, pid: int) -> Held:
        """What it has open; nothing when it has ended. Raises PermissionError."""
        try:
            names = descriptors(self._fs, pid)
        except PermissionError:
            raise
        except OSError:
            return Held()
        self._read += len(names)
        if len(names) > MOST_DESCRIPTORS or self._read > _MOST_READ:
            self.skipped = True
            return Held()
        return read_descriptors(self._fs, pid, names)

    def _family(self, pid: int, held: Held) -> Holder | None:
        """The process together with those that run the same command line, up and down from it."""
        words = self.words(pid)
        members = {pid: held}
        todo = [self._root(pid, words)] if any(words) else []
        seen: set[int] = set()
        while todo and len(seen) < _MOST_FAMILY:
            each = todo.pop()
            if each in seen:
                continue
            seen.add(each)
            if each not in members:
                if each in self._others or self.words(each) != words:
                    continue
                self.done.add(each)
                members[each] = self._held(each)
            todo += self._children(each)
        together = Held()
        for one in members.values():
            together |= one
        told = read_command_line(words)
        devices = self._devices_of(together, told) if together.any_device else frozenset()
        if not devices:
            if together.untold and not together.groups:
                self.unclear.append(pid)
            return None
        # With vCPUs it is the one that runs them, else the first that has the devices.
        main = min(members, key=lambda m: (-members[m].vcpus, not members[m].any_device, m))
        return self._checked(Holder(main, self.started(main), told, together, devices), words)

    def _root(self, pid: int, words: list[str]) -> int:
        for _ in range(_MOST_FAMILY):
            parent = self._stat(pid)[0]
            if parent <= 1 or self.words(parent) != words:
                break
            pid = parent
        return pid

    def _children(self, pid: int) -> list[int]:
        text = text_of(self._fs, paths.THREAD_CHILDREN.at(pid, pid)) or ""
        return [each for part in text.split() if (each := number(part)) is not None]

    def _claimant(self, pid: int) -> Holder | None:
        """A process whose descriptors are not to be seen, by its command line."""
        words = self.words(pid)
        told = read_command_line(words)
        devices = frozenset(told.devices)
        if devices:
            devices &= self.opened
        if not devices:
            return None
        match = _UID.search(text_of(self._fs, paths.THREAD_STATUS.at(pid, pid)) or "")
        by_root = match is not None and match[1] == match[2] == "0"
        return self._checked(
            Holder(pid, self.started(pid), told, Held(), devices, proven=by_root), words
        )

    def _checked(self, holder: Holder, words: list[str]) -> Holder | None:
        """The holder, unless it is a known guest, or not what was read any more."""
        if holder.told.uuid in self._uuids or self.words(holder.pid) != words:
            return None
        return holder

    def _devices_of(self, held: Held, told: CommandLine) -> frozenset[PciAddress]:
        """What these descriptors hold, without what is another's."""
        vfio = self._vfio
        found = {vfio.cdevs[name] for name in held.cdevs if name in vfio.cdevs}
        if held.untold:
            found |= self._of_groups(held, frozenset(told.devices))
        return frozenset((found & vfio.opened) | held.devices) - self._not_ours

    def _of_groups(self, held: Held, named: frozenset[PciAddress]) -> frozenset[PciAddress]:
        """The functions that were opened through groups; which they are the descriptors do not say.

        Those of its groups that are open are the process's, for nobody else can open them. If more
        seem to be open than it has descriptors, and enough are named, it is those. Where its groups
        cannot be told (a group's descriptor may be closed, or have another path) it is the named.
        """
        ours = self._vfio.in_groups(held.groups) & self._vfio.opened
        if not ours:
            return named
        if len(ours) > held.untold <= len(ours & named):
            return ours & named
        return ours

    def _stat(self, pid: int) -> tuple[int, int]:
        """The process's parent, and when it was started. Raises ProcessLookupError."""
        fields = stat_fields(text_of(self._fs, paths.PROCESS_STAT.at(pid)))
        started = _TICKS.fullmatch(fields[_STARTED]) if len(fields) > _STARTED else None
        if started is None:
            raise ProcessLookupError(pid)
        return number(fields[_PARENT]) or 0, int(started[0])
