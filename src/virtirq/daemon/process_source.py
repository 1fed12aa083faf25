"""Follows guests that no libvirt tells of, by the processes that hold their devices.

All processes are looked through once, at the start. From then on the kernel says when to look, and
at which process: at the one that has an interrupt set up for a device that no guest has, and at the
end of one that is known, by its pidfd (pidfd_open(2)).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial
from typing import Final

from virtirq.daemon.blocking import Lane
from virtirq.daemon.log import Log
from virtirq.daemon.looks import Look, Looks
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.source_state import SourceState, guest_is_gone
from virtirq.daemon.timers import Key, Timers
from virtirq.errors import NoAnswerError
from virtirq.guests.processes.find import (
    HELD,
    SOURCE,
    Found,
    as_told,
    find_processes,
    holding_still,
    read_process,
    still_there,
)
from virtirq.host import paths
from virtirq.host.events import KernelEvent
from virtirq.host.fs import HostFs
from virtirq.model import Gap, Guest, PciAddress, VfioAction
from virtirq.policy.pace import Pace

_BURST: Final = 0.05
"""Seconds to wait for more of the same process."""
_GROWN: Final = 2.0
"""Seconds after which a process that has set interrupts up is looked at once more: it may have
started further threads, and pinned them, in between.
"""
_START: Final = 10.0
"""Seconds that the first look may take: a process that hangs can hold up who reads its command line
(Linux kernel, fs/proc/base.c, get_mm_cmdline() takes its mmap_lock).
"""
_PATIENCE: Final = 30.0
"""Seconds after which it is said of any look that it takes long; it is waited for all the same.

Also those that one may wait for its turn: then it is tried again.
"""
_AT_ONCE: Final = 4
"""Processes that are looked at at the same time."""
_ALL: Final = "all"
_EVERYBODY: Final[Key] = ("processes",)
_AGAIN: Final = (_PATIENCE, 10 * _PATIENCE)
_TAKES_LONG: Final = f"no answer within {_PATIENCE:g} seconds, which is waited for"
_MOST_SAID: Final = 1000
"""Gaps that are remembered, so that each is said once: anybody can make more of them."""


class ProcessSource:
    """Guests by their processes, told to `reconciler`.

    Of guests of which `theirs` holds, another source is to tell, which knows more of them.
    """

    def __init__(
        self,
        fs: HostFs,
        reconciler: Reconciler,
        log: Log,
        timers: Timers,
        theirs: Callable[[Guest], bool] = lambda _: False,
    ) -> None:
        self._fs = fs
        self._theirs = theirs
        self._reconciler = reconciler
        self._log = log
        self._timers = timers
        self._loop = asyncio.get_running_loop()
        self._ends: dict[int, int] = {}
        """The pidfd of each guest's process, by pid."""
        self._reads = Lane("process", at_once=_AT_ONCE, limit=_PATIENCE)
        """By pid, and all of them at once."""
        self._setters: dict[PciAddress, int] = {}
        """Who has set up a device that no guest has, the last of them: a thread of its process."""
        self._paces: dict[PciAddress, Pace[None]] = {}
        """How often they are looked at, for each such device."""
        self._said: set[Gap] = set()
        self._more: Pace[int] = Pace(self._loop.time)
        """How often processes are looked at once more."""
        self._looks = Looks()
        self.on = False
        self._state = SourceState.NOT_ASKED
        self._held_back: set[int] = set()
        """Processes of guests of which another source is to tell."""

    @property
    def state(self) -> SourceState:
        """How much it has told: all, where every holder of a device was seen."""
        return self._state

    @property
    def holds_back(self) -> bool:
        """Whether there are guests that it has met, and of which another source is to tell."""
        return bool(self._held_back)

    def follow(self, *, on: bool) -> None:
        """Whether guests are looked for at all."""
        if on == self.on:
            return
        self.on = on
        if on:
            self._step(SourceState.READING)
            self.look_at_all()
        else:
            self._step(SourceState.NEVER)
            for guest in self._guests():
                self._gone(guest)

    def leave_out(self) -> None:
        """Nobody is looked for, from the beginning."""
        self._step(SourceState.NEVER)

    async def begin(self) -> None:
        """Look through all processes for the first time; nothing is moved yet."""
        self.on = True
        self._step(SourceState.READING)
        first: asyncio.Future[Found] = self._loop.create_future()
        self._timers.soon(_EVERYBODY, 0.0, partial(self._look_at_all, first))
        try:
            async with asyncio.timeout(_START):
                found = await first
        except TimeoutError:
            self._log.warning("looking through all processes takes long: it is not waited for")
            return
        self._tell(found)
        self._reconciler.note(
            guest
            for guest in found.guests
            if guest.pid is not None and not self._holds_back(guest) and self._watch(guest)
        )

    def look_at_all(self) -> None:
        """Anything may have happened to processes."""
        if self.on:
            self._timers.soon(_EVERYBODY, 0.0, self._look_at_all)

    def _look_for_others(self) -> None:
        """As `look_at_all`, because of what somebody does who can do so again and again."""
        if self.on:
            self._timers.soon(_EVERYBODY, self._reads.wait(_ALL), self._look_at_all)

    def requested(self, events: Iterable[KernelEvent]) -> None:
        """These tasks have had interrupts set up."""
        if not self.on:
            return
        asked = dict.fromkeys(
            (action.device, event.pid)
            for event in events
            if (action := VfioAction.parse(event.name)) is not None
        )
        for device, pid in asked:
            owner = self._owner(device)
            if owner is None:
                self._look_for_holder(device, pid)
            elif owner.pid is not None and (owner.source == SOURCE or _is_held(owner, device)):
                self._look_once_more(owner.pid)
                if pid != owner.pid and all(vcpu.tid != pid for vcpu in owner.vcpus):
                    self.look(pid)  # one of its other threads, or somebody who has it now

    def _look_for_holder(self, device: PciAddress, pid: int) -> None:
        """Look at who has set the device up, which nobody slows down: whose it is is not known."""
        pace = self._paces.setdefault(device, Pace(self._loop.time))
        self._setters[device] = pid
        delay = max(_BURST, pace.wait(None))
        self._timers.soon(("holder", device), delay, partial(self._look_at_setter, device))

    async def _look_at_setter(self, device: PciAddress) -> None:
        pid = self._setters.pop(device, None)
        if pid is not None:
            self._paces[device].changed(None)
            await self._look(pid)

    def device_changed(self, address: PciAddress) -> None:
        """A device was given to a driver, or taken from one."""
        owner = self._owner(address)
        if owner is not None and owner.source == SOURCE and owner.pid is not None:
            self.look(owner.pid)

    def give_way(self, told: Guest) -> None:
        """What another source has told of is not ours any more."""
        if told.source == SOURCE:
            return
        if told.pid is not None:
            self._held_back.discard(told.pid)
        same = {guest.key for guest in self._alike(told) if guest.source == SOURCE}
        for key in sorted(same):
            self._reconciler.gone(key)

    def look_beside(self, told: Guest) -> None:
        """Look at what the process of a guest of another source holds beside what was told."""
        if told.source != SOURCE and told.pid is not None:
            self.look(told.pid)

    def look(self, pid: int) -> None:
        """Look at the process that this is a thread of."""
        if self.on:
            delay = max(_BURST, self._reads.wait(pid))
            self._timers.soon(("process", pid), delay, partial(self._look, pid))

    def _look_once_more(self, pid: int) -> None:
        """When it has done what it is at; one that keeps at it later and later."""
        delay = max(_GROWN, self._more.wait(pid))
        self._timers.soon(("process later", pid), delay, partial(self._look_later, pid))

    async def _look_later(self, pid: int) -> None:
        self._more.changed(pid)
        await self._look(pid)

    def close(self) -> None:
        self.on = False
        for key in (_EVERYBODY, ("process",), ("process later",), ("holder",)):
            self._timers.cancel(*key)
        for descriptor in self._ends.values():
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
        self._ends.clear()

    async def _ask(
        self, key: Hashable, look: Callable[[], Found], where: str
    ) -> tuple[Found, Look]:
        """What is found, however long it takes. Raises NoAnswerError where it cannot even begin.

        `where` is what to name where it takes long.
        """
        with self._looks.look() as ours:

            def slow() -> None:
                ours.took_long = True
                self._say(Gap(where, _TAKES_LONG))

            found = await self._reads.call(key, self._looks.begins(ours, look), slow=slow)
        return found, ours

    def _still_so(self, found: Found, ours: Look) -> tuple[Found, set[int]]:
        """What is so still, and the processes that are looked at once more, for it may not be."""
        again = {
            guest.pid
            for guest in (*found.guests, *found.completed)
            if guest.pid is not None and guest.pid not in ours.pids and ours.doubtful(guest)
        }
        for pid in again:
            self.look(pid)
        no_more = again | ours.pids
        guests, completed = (
            tuple(each for each in guests if each.pid not in no_more)
            for guests in (found.guests, found.completed)
        )
        return found._replace(guests=guests, completed=completed), no_more

    def _step(self, to: SourceState) -> None:
        self._state = self._state.step(to)

    async def _look_at_all(self, first: asyncio.Future[Found] | None = None) -> None:
        """Look through all processes; `first`, unless nobody waits for it any more, takes it."""
        if not self.on:
            return
        before, told = self._guests(), self._state.complete
        find = partial(_find, self._fs, self._reconciler.guests)
        try:
            found, ours = await self._ask(_ALL, find, paths.PROC_DIR)
        except NoAnswerError as error:
            self._say(Gap(paths.PROC_DIR, str(error)))
            self._timers.again(_EVERYBODY, self._look_at_all, _AGAIN)
            return
        self._timers.done(_EVERYBODY)
        if not self.on:
            return
        self._step(SourceState.PART if any(map(_hides, found.gaps)) else SourceState.ALL)
        self._looks.over(ours, (*found.guests, *found.completed))
        if first is not None and not first.done():
            first.set_result(self._still_so(found, ours)[0])
            return
        # Of who has ended since, nothing need be remembered.
        here = {f"/proc/{guest.pid}" for guest in found.guests}
        here |= {paths.PROC_DIR} if ours.took_long else set()
        self._said = {gap for gap in self._said if gap in found.gaps or gap.path in here}
        self._take_all(before, found, ours)
        if self._state.complete and not told:
            self._reconciler.put_back_left_over()

    def _take_all(self, before: Iterable[Guest], found: Found, ours: Look) -> None:
        """`before` were known when these were looked for."""
        there = {guest.pid for guest in found.guests if guest.pid is not None} | ours.pids
        self._held_back &= there
        found, no_more = self._still_so(found, ours)
        holding = (guest for guest in self._reconciler.guests if as_told(guest) is not guest)
        self._complete(found.completed, [each for each in holding if each.pid not in no_more])
        known = {guest.key for guest in self._guests()}
        for guest in before:
            if guest_is_gone(self._state) and guest.pid not in there and guest.key in known:
                self._gone(guest)
        self._take(found)

    async def _look(self, pid: int) -> None:
        if not self.on:
            return
        read, where = partial(_read, self._fs, pid, self._reconciler.guests), f"/proc/{pid}"
        try:
            found, ours = await self._ask(pid, read, where)
        except NoAnswerError as error:
            self._say(Gap(where, str(error)))
            self._timers.again(("process", pid), partial(self._look, pid), _AGAIN)
            return
        self._timers.done(("process", pid))
        self._looks.over(ours, (*found.guests, *found.completed), pid)
        if pid in ours.pids:
            return
        if not found.guests:
            self._held_back.discard(pid)
        let_go = not found.guests and self._of_process(pid)
        found, no_more = self._still_so(found, ours)
        looked_at = self._reconciler.registry.of_process(pid)
        self._complete(found.completed, [each for each in looked_at if each.pid not in no_more])
        if let_go:
            self._look_for_others()  # another may hold what it had
        self._take(found)

    def _take(self, found: Found) -> None:
        if not self.on:
            return
        self._tell(found)
        for guest in found.guests:
            self._update(guest)

    def _complete(self, completed: Iterable[Guest], looked_at: Iterable[Guest]) -> None:
        """Guests of others whose processes hold more than was told; `looked_at` and not among them
        holds nothing more.
        """
        whole = {guest.key: guest for guest in completed}
        for guest in (*looked_at, *whole.values()):
            known = self._reconciler.registry.get(guest.key)
            if not self.on or known is None or known.pid != guest.pid or known.source == SOURCE:
                continue
            now = holding_still(as_told(known), whole.get(guest.key))
            if now != known:
                held = ", ".join(str(each.address) for each in now.devices if each.source == HELD)
                self._log.info(
                    f"{now.name}: its process holds {held or 'nothing'} beside what was told",
                    guest=now.name,
                )
                self._reconciler.update(now)
                if len(now.devices) < len(known.devices):
                    self._look_for_others()  # another may hold what it has let go

    def _tell(self, found: Found) -> None:
        for gap in found.gaps:
            self._say(gap)

    def _say(self, gap: Gap) -> None:
        if gap not in self._said:  # said once: it is like that until the process ends
            if len(self._said) >= _MOST_SAID:
                self._said.clear()
            self._said.add(gap)
            self._log.info(f"not read: {gap.path}: {gap.error}")

    def _update(self, guest: Guest) -> None:
        """What another source has told since is the better word."""
        if guest.pid is None or self._is_others(guest) or self._holds_back(guest):
            return
        if not self._watch(guest):
            return
        # First: what it has is nobody's in between, and is not put back.
        self._reconciler.update(guest)
        devices = {device.address for device in guest.devices}
        for before in self._alike(guest):
            if before.key == guest.key or before.source != SOURCE:
                continue
            left = tuple(each for each in before.devices if each.address not in devices)
            if not left or before.pid == guest.pid:
                self._reconciler.gone(before.key)
            elif left != before.devices:
                self._reconciler.update(replace(before, devices=left))

    def _holds_back(self, guest: Guest) -> bool:
        held_back = self._theirs(guest)
        if guest.pid is not None:
            (self._held_back.add if held_back else self._held_back.discard)(guest.pid)
        return held_back

    def _watch(self, guest: Guest) -> bool:
        """Hear of the end of its process; whether that lives, and is the one that was read."""
        pid = guest.pid
        if pid is None:
            return False
        if pid in self._ends:
            return True
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        except OSError as error:
            self._say(Gap(f"/proc/{pid}", f"its end cannot be heard of: {error.strerror}"))
            return False
        if not still_there(self._fs, guest):  # another has the number by now
            os.close(descriptor)
            return False
        self._ends[pid] = descriptor
        self._loop.add_reader(descriptor, self._ended, pid)
        return True

    def _ended(self, pid: int) -> None:
        descriptor = self._ends.pop(pid)
        self._more.keep(lambda each: each in self._ends)
        self._loop.remove_reader(descriptor)
        os.close(descriptor)
        self._said = {gap for gap in self._said if not gap.path.startswith(f"/proc/{pid}/")}
        for guest in self._of_process(pid):
            self._gone(guest)

    def _gone(self, guest: Guest) -> None:
        self._reconciler.gone(guest.key)

    def _guests(self) -> tuple[Guest, ...]:
        return self._reconciler.registry.from_source(SOURCE)

    def _of_process(self, pid: int) -> tuple[Guest, ...]:
        guests = self._reconciler.registry.of_process(pid)
        return tuple(guest for guest in guests if guest.source == SOURCE)

    def _alike(self, guest: Guest) -> list[Guest]:
        """Who is known by this one's name, as its process, or by what it holds."""
        registry = self._reconciler.registry
        named = registry.get(guest.key)
        found = [] if named is None else [named]
        found += () if guest.pid is None else registry.of_process(guest.pid)
        for device in guest.devices:
            found += registry.having(device.address)
        return found

    def _is_others(self, guest: Guest) -> bool:
        """Whether another source has told of it."""
        return any(each.source != SOURCE for each in self._alike(guest))

    def _owner(self, address: PciAddress) -> Guest | None:
        return next(iter(self._reconciler.registry.having(address)), None)


def _find(fs: HostFs, known: Iterable[Guest]) -> Found:
    """In a thread, as all that has to do with all guests."""
    return find_processes(fs, map(as_told, known))


def _read(fs: HostFs, pid: int, known: Iterable[Guest]) -> Found:
    return read_process(fs, pid, map(as_told, known))


def _is_held(owner: Guest, address: PciAddress) -> bool:
    """Whether the guest is known to have the device by what its process holds alone."""
    return any(each.address == address and each.source == HELD for each in owner.devices)


def _hides(gap: Gap) -> bool:
    """Whether it may hide a holder.

    Where threads cannot be told apart, or two claim one device, the holders are there.
    """
    return not gap.path.endswith("/task") and not gap.path.startswith(paths.PCI_DIR)
