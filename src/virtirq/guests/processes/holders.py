"""Who holds PCI functions by VFIO: what processes have open, or say, turned to functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import cached_property
from heapq import heappop, heappush
from typing import Final

from virtirq.guests.processes.arguments import Arguments
from virtirq.guests.processes.command_line import read_command_line
from virtirq.guests.processes.descriptors import (
    MOST_DESCRIPTORS,
    Held,
    descriptors,
    read_descriptors,
)
from virtirq.guests.processes.devices import VfioDevices, read_vfio
from virtirq.guests.processes.owners import Owner, owner_of, speaks_for_root
from virtirq.guests.processes.threads import number, started_in, stat_fields, text_of
from virtirq.guests.processes.values import CommandLine
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.model import PciAddress
from virtirq.values import dataclass, pattern

_SHARE: Final = 65536
"""Descriptors of one user that are looked at before anybody's further ones."""
_MOST_OF_USER: Final = 1_000_000
"""Descriptors of one user that are looked at: what four hundred large guests may have."""
_MOST_READ: Final = 4_000_000
"""Descriptors that are looked at in all."""
_MOST_FAMILY: Final = 256
# Words without which no command line gives a guest a PCI function: see `command_line`.
_MEANT: Final = pattern("vfio|nvme|^--device", re.ASCII)
_PARENT: Final = 4 - 3  # of /proc/PID/stat (proc(5)), as counted after the name


@dataclass(frozen=True, slots=True)
class Holder:
    """A process, or several that were forked, with the functions that it holds.

    `started` is in ticks since the boot. Unless it is `proven`, it only says that it holds them.
    """

    pid: int
    started: int
    owner: Owner
    told: CommandLine
    held: Held
    devices: frozenset[PciAddress]
    proven: bool = True

    @property
    def rank(self) -> tuple[bool, bool, bool, int, int]:
        """Who is believed first, where two hold one function."""
        return (
            not self.proven,
            not self.owner.root,
            not self.held.vcpus,
            self.started,
            self.pid,
        )

    @property
    def beyond_doubt(self) -> bool:
        """Whether nobody else needs to be asked: a virtual machine, which alone can hold them.

        A device can be opened by its own name by several, of whom one has it bound; a group cannot.
        """
        if not self.proven or (self.held.cdevs and not self.owner.root):
            return False
        return bool(self.held.vcpus) or self.held == Held()


class _PutOff(Exception):  # noqa: N818 - it is none, and never leaves this module
    """The process's user has had its share for now."""


class Holders:
    """The processes of a host that hold PCI functions by VFIO.

    `not_ours` are functions that are known to be somebody else's, `pids` and `uuids` are those of
    guests that are. `hidden` tells afterwards whether some process's descriptors were not to be
    seen, `skipped` of which users there were too many, `unclear` which processes have a device open
    that cannot be told, and `done` which processes were looked at.

    Any user can have many processes with many open files. With `fair`, a user's further ones are
    put off until all others were looked at (`rest`), so that they hide nobody else's.
    """

    def __init__(
        self,
        fs: HostFs,
        reader: Reader,
        not_ours: Collection[PciAddress] = (),
        pids: Collection[int | None] = (),
        uuids: Collection[str] = (),
        *,
        fair: bool = False,
    ) -> None:
        self._fs = fs
        self._reader = reader
        self._not_ours = frozenset(not_ours)
        self._others = pids
        self._uuids = uuids
        self._fair = fair
        self.arguments = Arguments(fs)
        self._read: Counter[int] = Counter()
        self._later: list[int] = []
        self.done: set[int] = set()
        self.unclear: list[int] = []
        self.hidden = False
        self._skipped: set[int] = set()

    @cached_property
    def _vfio(self) -> VfioDevices:
        return read_vfio(self._reader)

    @property
    def opened(self) -> frozenset[PciAddress]:
        """The functions that someone has open, and that are not known to be another's."""
        return self._vfio.opened - self._not_ours

    @property
    def skipped(self) -> set[int]:
        return self._skipped | self.arguments.skipped

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
        except _PutOff:
            self.done.discard(pid)
            self._later.append(pid)
            return None
        try:
            return self._claimant(pid)
        except ProcessLookupError:
            return None

    def beside(self, pid: int) -> frozenset[PciAddress]:
        """What the process of a known guest proves to hold beside all that is known of."""
        fair, self._fair = self._fair, False  # it is known whose these are
        try:
            held = self._held(pid)
        except PermissionError:
            return frozenset()
        finally:
            self._fair = fair
        if not held.any_device:
            return frozenset()
        return self._devices_of(held, self._told(pid, self.arguments.of(pid)))[0]

    def rest(self) -> Iterator[int]:
        """The processes that were put off, those of whoever has had least first."""
        self._fair = False
        queue = [(0, pid) for pid in self._later]
        while queue:
            had, pid = heappop(queue)
            now = self._read[self.arguments.user(pid)]
            if had < now:
                heappush(queue, (now, pid))
            elif pid not in self.done:
                yield pid

    def started(self, pid: int) -> int:
        """When the process was started; another one under its number was started later.

        Raises ProcessLookupError.
        """
        return self._stat(pid)[1]

    def _held(self, pid: int) -> Held:
        """What it has open; nothing when it has ended. Raises PermissionError."""
        try:
            names = descriptors(self._fs, pid)
        except PermissionError:
            raise
        except OSError:
            return Held()
        if not names:
            return Held()
        user, many = self.arguments.user(pid), len(names)
        if self._fair and self._read[user] and self._read[user] + many > _SHARE:
            raise _PutOff
        most = _MOST_OF_USER - self._read[user] if user else _MOST_READ
        if many > min(MOST_DESCRIPTORS, most, _MOST_READ - self._read.total()):
            self._skipped.add(user)
            return Held()
        self._read[user] += many
        return read_descriptors(self._fs, pid, names)

    def _family(self, pid: int, held: Held) -> Holder | None:
        """The process together with those that run the same command line, up and down from it."""
        words = self.arguments.of(pid)
        members = {pid: held}
        todo = [self._root(pid, words)] if any(words) else []
        seen: set[int] = set()
        while todo and len(seen) < _MOST_FAMILY:
            each = todo.pop()
            if each in seen:
                continue
            seen.add(each)
            if each not in members:
                if each in self._others or self.arguments.of(each) != words:
                    continue
                self.done.add(each)
                members[each] = self._held(each)
            todo += self._children(each)
        together = Held()
        for one in members.values():
            together |= one
        told = self._told(pid, words)
        if not together.any_device:
            return None
        # With vCPUs it is the one that runs them, else the first that has the devices.
        main = min(members, key=lambda m: (-members[m].vcpus, not members[m].any_device, m))
        owner = self._owner(main)
        devices, said = self._devices_of(together, told)
        proven = bool(devices)
        if said and speaks_for_root(self._fs, main, owner):
            devices, proven = devices | said, True
        elif not devices:
            devices = said
        if not devices:
            if together.untold and not together.groups:
                self.unclear.append(pid)
            return None
        holder = Holder(main, self.started(main), owner, told, together, devices, proven)
        return self._checked(holder, words)

    def _root(self, pid: int, words: list[str]) -> int:
        for _ in range(_MOST_FAMILY):
            parent = self._stat(pid)[0]
            if parent <= 1 or self.arguments.of(parent) != words:
                break
            pid = parent
        return pid

    def _children(self, pid: int) -> list[int]:
        text = text_of(self._fs, paths.THREAD_CHILDREN.at(pid, pid)) or ""
        return [each for part in text.split() if (each := number(part)) is not None]

    def _claimant(self, pid: int) -> Holder | None:
        """A process whose descriptors are not to be seen, by its command line."""
        words = self.arguments.of(pid)
        if not any(_MEANT.search(word) for word in words):
            return None
        told = self._told(pid, words)
        devices = frozenset(told.devices)
        if devices:
            devices &= self.opened
        if not devices:
            return None
        owner = self._owner(pid)
        proven = speaks_for_root(self._fs, pid, owner)
        holder = Holder(pid, self.started(pid), owner, told, Held(), devices, proven)
        return self._checked(holder, words)

    def _told(self, pid: int, words: list[str]) -> CommandLine:
        """What its command line says; whose program that is, its first word need not tell."""
        if not words:
            return CommandLine()
        executed = ""
        with suppress(OSError):  # hidden
            executed = self._fs.readlink(paths.PROCESS_PROGRAM.at(pid)).removesuffix(" (deleted)")
        comm = text_of(self._fs, paths.PROCESS_NAME.at(pid)) or ""
        return read_command_line(words, executed, comm)

    def _owner(self, pid: int) -> Owner:
        """Whose the process is. Raises ProcessLookupError."""
        owner = owner_of(self._fs, pid)
        if owner is None:
            raise ProcessLookupError(pid)
        return owner

    def _checked(self, holder: Holder, words: list[str]) -> Holder | None:
        """The holder, unless it is a known guest, or not what was read any more."""
        if holder.told.uuid in self._uuids or self.arguments.of(holder.pid) != words:
            return None
        return holder

    def _devices_of(
        self, held: Held, told: CommandLine
    ) -> tuple[frozenset[PciAddress], frozenset[PciAddress]]:
        """What these descriptors hold, and what they may hold if the command line is true.

        Which functions were opened through groups the descriptors do not say. Those of its groups
        that are open are the process's, for nobody else can open them. If more seem to be open than
        it has descriptors, and enough are named, it is those. Where its groups cannot be told (a
        group's descriptor may be closed, or have another path) there is only the command line.
        """
        vfio, named = self._vfio, frozenset(told.devices)
        ours = vfio.in_groups(held.groups) & vfio.opened if held.untold else frozenset()
        if len(ours) > held.untold <= len(ours & named):
            ours &= named
        said = named & vfio.opened if held.untold and not ours else frozenset()
        found = held.cdevs & vfio.opened | held.devices | ours
        return found - self._not_ours, said - self._not_ours

    def _stat(self, pid: int) -> tuple[int, int]:
        """The process's parent, and when it was started. Raises ProcessLookupError."""
        fields = stat_fields(text_of(self._fs, paths.PROCESS_STAT.at(pid)))
        started = started_in(fields)
        if started is None:
            raise ProcessLookupError(pid)
        return number(fields[_PARENT]) or 0, started
