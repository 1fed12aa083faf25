"""Follows the guests' own choices: which vCPU each of their vectors is for.

A guest is looked at when something says that it may have chosen anew: KVM was given new routes for
its interrupts, it has set vectors up, or where the kernel does not tell, some time has passed. What
is read is the guest's writing, and it may be in the midst of it: what is new counts once it was
read twice alike of a device, and each vector moves at the pace of `virtirq.policy.pace`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from virtirq.daemon.blocking import Lane
from virtirq.daemon.log import Log
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.timers import Timers
from virtirq.errors import NoAnswerError, VirtirqError
from virtirq.guests.vectors.by_peek import Learned, VectorReader, Wanted
from virtirq.model import Finding, Guest, GuestVectors, PciAddress
from virtirq.policy.budget import Budget
from virtirq.policy.findings import followed, not_followed
from virtirq.policy.pace import Pace

_BURST: Final = 0.05
"""Seconds to wait for more of the same: a driver sets its vectors up one after another."""
_APART: Final = 0.1
"""Seconds between two readings that have to agree."""
_READINGS: Final = 8
"""So many readings in a row without two that agree are given up for a while."""
_RETRY: Final = (5.0, 60.0)
"""Seconds until a guest that was read before, and cannot be now, is tried again: the first time,
and at most.
"""
_POLL: Final = 2.0
"""Seconds between looks at a guest where the kernel does not tell of its choices."""
_AT_ONCE: Final = 4
"""Guests that one reader reads at the same time."""
_PATIENCE: Final = 30.0
"""Seconds that a reading may take, the wait for its turn included."""
_FIRST: Final = 5.0
"""Seconds that the first readings may take until interrupts are placed without them."""
_FAREWELL: Final = 4.0
"""Seconds that a reader may take to close."""
BUDGET: Final = Budget(0.25, longest=10.0, ahead=5.0)
"""Of reading one guest, however often it chooses anew."""
_LOOK: Final = "vectors"
"""Key of the timers; the guest's follows."""


@dataclass(slots=True)
class _Book:
    """What is known of following one guest."""

    run: object = None
    """The run of it that was looked at, with the vCPUs and devices it had then."""
    devices: frozenset[PciAddress] = frozenset()
    why_not: tuple[str, ...] = ()
    """Why not by each of the readers that would come first."""
    hidden: dict[PciAddress, str] = field(default_factory=dict)
    """Why nothing can be learned of a device."""
    failed: bool = False
    """Whether the last look was not all that it should be, and is to be tried again."""


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
        timers: Timers,
        reread: Callable[[Guest], object] = lambda _: None,
    ) -> None:
        self._readers = [
            (reader, Lane("vectors", at_once=_AT_ONCE, limit=_PATIENCE, budget=BUDGET))
            for reader in readers
        ]
        self._closes = Lane("close", at_once=len(readers) or 1, limit=_FAREWELL)
        self._reconciler = reconciler
        self._log = log
        self._timers = timers
        self._reread = reread
        self._paces: dict[PciAddress, Pace[int]] = {}
        """By device: how often each of its vectors may move."""
        self._books: dict[str, _Book] = {}
        self._read_by: dict[str, str] = {}
        """By guest: the reader it is read by."""
        self._on = False
        self.told = False
        """Whether the kernel tells when a guest has chosen anew."""

    @property
    def readers(self) -> Mapping[str, str]:
        """What each guest is read by, by guest key."""
        return self._read_by

    def findings(self) -> tuple[Finding, ...]:
        """How each guest is followed, and why not in a better way; or why it is not."""
        found: list[Finding] = []
        for key, book in self._books.items():
            guest = self._reconciler.registry.get(key)
            if guest is None:
                continue
            reader = self._read_by.get(key)
            if reader is not None:
                found.append(followed(guest.name, reader, book.why_not))
            elif book.why_not:
                found.append(not_followed(guest.name, book.why_not))
            hidden = ((address, why) for address, why in sorted(book.hidden.items()) if why)
            found += (not_followed(f"{guest.name} {address}", (why,)) for address, why in hidden)
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
        self._read_by.clear()
        for book in self._books.values():
            book.why_not = ()
            book.hidden.clear()
        for address in tuple(self._reconciler.aimed):
            self._reconciler.aim(address, {})

    def look(self, key: str) -> None:
        """This guest may have chosen anew: KVM has new routes, or vectors were set up."""
        if self._on and self._reconciler.followable(key):
            waits = (lane.wait(key) for _, lane in self._readers)
            self._look_in(max(_BURST, *waits), key)

    def look_at_all(self) -> None:
        for guest in self._reconciler.guests:
            self.look(guest.key)

    def known(self, keys: Iterable[str]) -> None:
        """These guests may be others than before, or gone."""
        for key in keys:
            guest = self._reconciler.registry.get(key)
            if guest is None:
                self._forget(key)
                continue
            book = self._book(guest)
            if book.run != self._run(guest):
                self.look(key)

    def stop(self) -> None:
        """Look at nobody any more."""
        self._on = False
        self._timers.cancel(_LOOK)

    async def close(self) -> None:
        """Each reader by itself, whatever becomes of the others. Raises what one of them does."""
        self.stop()
        ends = await asyncio.gather(
            *(self._closes.call(reader.name, reader.close) for reader, _ in self._readers),
            return_exceptions=True,
        )
        for end in ends:
            if end is not None:
                raise end

    def _look_in(self, delay: float, key: str) -> None:
        self._timers.soon((_LOOK, key), delay, partial(self._look, key))

    def _book(self, guest: Guest) -> _Book:
        """The guest's, with what is of devices that it has no more taken out."""
        book = self._books.setdefault(guest.key, _Book())
        devices = frozenset(device.address for device in guest.devices)
        for address in book.devices - devices:
            book.hidden.pop(address, None)
            self._paces.pop(address, None)
        book.devices = devices
        return book

    def _forget(self, key: str) -> None:
        book = self._books.pop(key, None)
        self._read_by.pop(key, None)
        for address in book.devices if book is not None else ():
            self._paces.pop(address, None)
        self._timers.cancel(_LOOK, key)

    async def _look(self, key: str) -> None:
        guest = self._reconciler.registry.get(key)
        if guest is None or not self._on:
            return
        book = self._book(guest)
        run = book.run = self._run(guest)
        book.failed = False
        learned = await self._settled(guest, book, self._reconciler.followable(key))
        now = self._reconciler.registry.get(key)
        if not self._on or now is None or self._run(now) != run:
            return  # it is another by now, which `known` has looked at
        wait = None if learned is None else self._take(guest, book, learned)
        if book.failed:
            self._timers.again((_LOOK, key), partial(self._look, key), _RETRY)
        else:
            self._timers.done((_LOOK, key))
        if wait is not None:
            self._look_in(wait, key)
        elif not self.told and key in self._read_by:
            self._look_in(_POLL, key)

    def _run(self, guest: Guest) -> object:
        vcpus = frozenset(vcpu.index for vcpu in guest.vcpus)
        return guest.pid, vcpus, frozenset(self._reconciler.followable(guest.key))

    async def _settled(self, guest: Guest, book: _Book, wanted: Wanted) -> Learned | None:
        """What two readings agree on, device by device.

        One reading is enough that says what is followed already: nothing comes of it. Where the
        host is busy each takes a while, and whatever the guest has chosen waits for it.
        """
        if not wanted:
            return None
        settled: dict[PciAddress, GuestVectors] = {}
        before: Learned = {}
        for _ in range(_READINGS):
            now = await self._read(guest, book, wanted)
            if now is None:
                return None
            settled |= {
                address: each
                for address, each in now.items()
                if each == before.get(address) or self._is_followed(book, address, each)
            }
            wanted = {a: each for a, each in wanted.items() if a in now and a not in settled}
            if not wanted:
                return settled
            before = now
            await asyncio.sleep(_APART)
        book.failed = True
        return settled

    def _is_followed(self, book: _Book, address: PciAddress, learned: GuestVectors) -> bool:
        known = self._reconciler.aimed.get(address, {})
        return learned.why == book.hidden.get(address, "") and all(
            known.get(vector) == aimed for vector, aimed in learned.aimed.items()
        )

    async def _read(self, guest: Guest, book: _Book, wanted: Wanted) -> Learned | None:
        why_not: list[str] = []
        read_by, learned = "", None
        for reader, lane in self._readers:
            name = reader.name
            try:
                learned = await lane.call(guest.key, partial(reader.read, guest, wanted))
            except VirtirqError as error:
                why_not.append(f"{name}: {error}")
                book.failed |= isinstance(error, NoAnswerError)
            except Exception as error:
                # What one guest makes a reader stumble over must not end the daemon.
                why_not.append(f"{name}: {type(error).__name__}: {error}")
                if why_not[-1] not in book.why_not:
                    self._log.exception(f"{guest.name}: {name}: {error}")
            else:
                read_by = name
                break
            if self._read_by.get(guest.key) == name:
                break  # it worked before: the costlier ones are for when that is not over soon
        if not self._on or self._books.get(guest.key) is not book:
            return learned  # nobody asks for it any more
        book.why_not = tuple(why_not)
        if read_by:
            self._read_by[guest.key] = read_by
        elif self._read_by.pop(guest.key, None) is not None:
            self._log.debug(f"{guest.name}: its vectors cannot be read now: {'; '.join(why_not)}")
            book.failed = True
        return learned

    def _take(self, guest: Guest, book: _Book, learned: Learned) -> float | None:
        """Follow what was learned, as far as the pace allows; when to look again, if so."""
        waits = []
        unknown = False
        for address, each in learned.items():
            book.hidden[address] = each.why
            pace = self._paces.setdefault(address, Pace(time.monotonic))
            before = self._reconciler.aimed.get(address, {})
            after = dict(before)
            for vector, aimed in each.aimed.items():
                if before.get(vector) == aimed:
                    continue
                wait = pace.wait(vector)
                if wait and vector in before:
                    waits.append(wait)
                    continue
                after[vector] = aimed
                unknown |= aimed.vcpu is None
                pace.changed(vector)
            self._reconciler.aim(address, after)
        if unknown:
            self._reread(guest)
        return min(waits, default=None)
