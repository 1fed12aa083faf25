"""Follows the guests' own choices: which vCPU each of their vectors is for.

A guest is looked at when something says that it may have chosen anew: KVM was given new routes for
its interrupts, it has set vectors up, or where the kernel does not tell, some time has passed. What
is read is the guest's writing, and it may be in the midst of it: it counts once it was read twice
alike, and each vector moves at the pace of `virtirq.policy.pace`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

from virtirq.daemon.blocking import beside
from virtirq.daemon.log import Log
from virtirq.daemon.looks import Looks
from virtirq.daemon.reconciler import Reconciler
from virtirq.errors import VirtirqError
from virtirq.guests.vectors.by_peek import Learned, VectorReader, Wanted
from virtirq.model import Finding, Guest, PciAddress
from virtirq.policy.findings import followed, not_followed
from virtirq.policy.pace import Pace

_BURST: Final = 0.05
"""Seconds to wait for more of the same: a driver sets its vectors up one after another."""
_APART: Final = 0.1
"""Seconds between two readings that have to agree."""
_READINGS: Final = 8
"""So many readings in a row without two that agree are given up for a while."""
_RETRY: Final = 5.0
"""Seconds until a guest that was read before, and cannot be now, is tried again."""
_POLL: Final = 2.0
"""Seconds between looks at a guest where the kernel does not tell of its choices."""
_AT_ONCE: Final = 4
"""Guests that one reader reads at the same time."""
_PATIENCE: Final = 30.0
"""Seconds that a reading may take, the wait for its turn included."""
_FIRST: Final = 5.0
"""Seconds that the first readings may take until interrupts are placed without them."""


class _Turns:
    """A reader, and so many readings by it at a time, of each guest one.

    One that hangs (libvirt does when QEMU does) keeps its place: there are never more than those.
    """

    def __init__(self, reader: VectorReader) -> None:
        self.reader = reader
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._under_way: dict[str, asyncio.Future[Learned]] = {}
        """By guest."""

    async def read(self, guest: Guest, wanted: Wanted) -> Learned:
        """Raises TimeoutError, and what the reader raises."""
        async with asyncio.timeout(_PATIENCE):
            earlier = self._under_way.get(guest.key)
            if earlier is not None:
                await asyncio.wait([earlier])  # given up, and what it tells is old
            await self._free.acquire()
            reading = asyncio.ensure_future(
                beside(partial(self.reader.read, guest, wanted), "vectors")
            )
            self._under_way[guest.key] = reading
            reading.add_done_callback(partial(self._done, guest.key))
            return await asyncio.shield(reading)

    def _done(self, key: str, reading: asyncio.Future[Learned]) -> None:
        del self._under_way[key]
        self._free.release()
        if not reading.cancelled():
            reading.exception()  # nobody may be waiting for it any more


class VectorFollower:
    """Has the Reconciler follow its guests, by the first of `readers` that can read each.

    `reread` is called for a guest that may have other vCPUs than are known: libvirt tells nobody of
    one that is plugged in.
    """

    def __init__(
        self,
        readers: Sequence[VectorReader],
        reconciler: Reconciler,
        log: Log,
        reread: Callable[[Guest], object] = lambda _: None,
    ) -> None:
        self._turns = [_Turns(reader) for reader in readers]
        self._reconciler = reconciler
        self._log = log
        self._reread = reread
        self._pace: Pace[tuple[PciAddress, int]] = Pace(time.monotonic)
        self._looks = Looks(self._look, _BURST)
        """By guest."""
        self._reader: dict[str, str] = {}
        """By guest: what it is read by."""
        self._why_not: dict[str, tuple[str, ...]] = {}
        """By guest: why not by each of the readers that would come first."""
        self._hidden: dict[tuple[str, PciAddress], str] = {}
        """By guest and device: why nothing can be learned of that one."""
        self._met: dict[str, object] = {}
        """By guest: the run of it that was looked at, with the vCPUs and devices it had then."""
        self._on = False
        self.told = False
        """Whether the kernel tells when a guest has chosen anew."""

    @property
    def readers(self) -> Mapping[str, str]:
        """What each guest is read by, by guest key."""
        return self._reader

    def findings(self) -> tuple[Finding, ...]:
        """How each guest is followed, and why not in a better way; or why it is not."""
        found = []
        for guest in self._reconciler.guests:
            why_not = self._why_not.get(guest.key)
            reader = self._reader.get(guest.key)
            if reader is not None:
                found.append(followed(guest.name, reader, why_not or ()))
            elif why_not:
                found.append(not_followed(guest.name, why_not))
            for device in guest.devices:
                why = self._hidden.get((guest.key, device.address))
                if why:
                    found.append(not_followed(f"{guest.name} {device.address}", (why,)))
        return tuple(found)

    async def prepare(self) -> None:
        """Learn what running guests have chosen before anything of theirs is moved.

        So that a daemon which is started anew does not send interrupts elsewhere for a moment.
        """
        try:
            async with asyncio.timeout(_FIRST):
                await asyncio.gather(*(self._look(g.key) for g in self._reconciler.guests))
        except TimeoutError:
            self.look_at_all()

    def follow(self, *, on: bool) -> None:
        """Whether guests are followed at all."""
        if on == self._on:
            return
        self._on = on
        if on:
            self.look_at_all()
            return
        self._reader.clear()
        self._why_not.clear()
        self._hidden.clear()
        for address in tuple(self._reconciler.aimed):
            self._reconciler.aim(address, {})

    def look(self, key: str) -> None:
        """This guest may have chosen anew."""
        if self._on and self._reconciler.followable(key):
            self._looks.ask(key)

    def look_at_all(self) -> None:
        for guest in self._reconciler.guests:
            self.look(guest.key)

    def look_at_devices(self, addresses: Collection[PciAddress]) -> None:
        """Vectors of these devices were set up."""
        for guest in self._reconciler.guests:
            if any(device.address in addresses for device in guest.devices):
                self.look(guest.key)

    def known(self) -> None:
        """Guests may be others than before."""
        guests = {guest.key for guest in self._reconciler.guests}
        for books in (self._reader, self._why_not):
            for key in books.keys() - guests:
                del books[key]
        self._looks.keep(guests.__contains__)
        devices = {(g.key, device.address) for g in self._reconciler.guests for device in g.devices}
        for each in self._hidden.keys() - devices:
            del self._hidden[each]
        self._met = {key: run for key, run in self._met.items() if key in guests}
        for guest in self._reconciler.guests:
            if self._met.get(guest.key) != self._run(guest):
                self.look(guest.key)
        there = self._reconciler.aimed.keys()
        self._pace.keep(lambda key: key[0] in there)

    def stop(self) -> None:
        """Look at nobody any more."""
        self._on = False
        self._looks.stop()

    async def close(self) -> None:
        self.stop()
        for turns in self._turns:
            await beside(turns.reader.close, "vectors")

    async def _look(self, key: str) -> None:
        guest = self._reconciler.registry.get(key)
        if guest is None or not self._on:
            return
        run = self._met[key] = self._run(guest)
        learned = await self._settled(guest, self._reconciler.followable(key))
        now = self._reconciler.registry.get(key)
        if not self._on or now is None or self._run(now) != run:
            return  # it is another by now, which `known` has looked at
        wait = None if learned is None else self._take(guest, learned)
        if wait is not None:
            self._looks.put_off(key, wait)
        elif not self.told and key in self._reader:
            self._looks.put_off(key, _POLL)

    def _run(self, guest: Guest) -> object:
        vcpus = frozenset(vcpu.index for vcpu in guest.vcpus)
        return guest.pid, vcpus, frozenset(self._reconciler.followable(guest.key))

    async def _settled(self, guest: Guest, wanted: Wanted) -> Learned | None:
        """What two readings agree on."""
        if not wanted:
            return None
        before = None
        for _ in range(_READINGS):
            now = await self._read(guest, wanted)
            if now is None or now == before:
                return now
            before = now
            await asyncio.sleep(_APART)
        self._looks.put_off(guest.key, _RETRY)
        return None

    async def _read(self, guest: Guest, wanted: Wanted) -> Learned | None:
        why_not: list[str] = []
        for turns in self._turns:
            name = turns.reader.name
            try:
                learned = await turns.read(guest, wanted)
            except VirtirqError as error:
                why_not.append(f"{name}: {error}")
                continue
            except TimeoutError:
                why_not.append(f"{name}: no answer within {_PATIENCE:g} seconds")
                self._looks.put_off(guest.key, _RETRY)
                continue
            except Exception as error:
                # What one guest makes a reader stumble over must not end the daemon.
                why_not.append(f"{name}: {type(error).__name__}: {error}")
                if why_not[-1] not in self._why_not.get(guest.key, ()):
                    self._log.exception(f"{guest.name}: {name}: {error}")
                continue
            if self._on:
                self._reader[guest.key] = name
                self._why_not[guest.key] = tuple(why_not)
            return learned
        if not self._on:
            return None
        self._why_not[guest.key] = tuple(why_not)
        if self._reader.pop(guest.key, None) is not None:
            self._log.debug(f"{guest.name}: its vectors cannot be read now: {'; '.join(why_not)}")
            self._looks.put_off(guest.key, _RETRY)
        return None

    def _take(self, guest: Guest, learned: Learned) -> float | None:
        """Follow what was learned, as far as the pace allows; when to look again, if so."""
        waits = []
        unknown = False
        for address, each in learned.items():
            self._hidden[guest.key, address] = each.why
            before = self._reconciler.aimed.get(address, {})
            after = dict(before)
            for vector, aimed in each.aimed.items():
                if before.get(vector) == aimed:
                    continue
                wait = self._pace.wait((address, vector))
                if wait and vector in before:
                    waits.append(wait)
                    continue
                after[vector] = aimed
                unknown |= aimed.vcpu is None
                self._pace.changed((address, vector))
            self._reconciler.aim(address, after)
        if unknown:
            self._reread(guest)
        return min(waits, default=None)
