"""Follows libvirt's guests: connects, hears of changes, reads just the guest concerned."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from virtirq.daemon.blocking import beside
from virtirq.daemon.log import Log
from virtirq.daemon.reconciler import Reconciler
from virtirq.errors import AccessError, DependencyError, UsageError, VirtirqError
from virtirq.guests.libvirt.connection import SOURCE
from virtirq.guests.libvirt.watch import Watch, open_watch
from virtirq.guests.processes import find
from virtirq.host.fs import HostFs
from virtirq.model import Guest

_RETRY: Final = (1.0, 30.0)
"""Seconds between attempts to connect: at first, and at last."""
_HOPELESS: Final = (DependencyError, AccessError, UsageError)
"""What no waiting mends."""
_FAREWELL: Final = 2.0
_REREAD: Final = 5.0
"""Seconds until a guest that could not be read is tried again."""


class LibvirtSource:
    """The guests of libvirt at `uri`, told to `reconciler`.

    `known` is called after each time that what is known of guests may have changed, and `prepare`
    when all guests are known and nothing of theirs was moved yet. While libvirt is away, its
    guests are believed to run on as they did: they do.
    """

    def __init__(
        self,
        uri: str,
        fs: HostFs,
        reconciler: Reconciler,
        log: Log,
        known: Callable[[], None],
        prepare: Callable[[], Awaitable[None]],
        *,
        must: bool = True,
    ) -> None:
        self._uri = uri
        self._fs = fs
        self._reconciler = reconciler
        self._log = log
        self._known = known
        self._prepare = prepare
        self._must = must
        self.prepared = False
        """Whether `prepare` was called."""
        self.given_up = False
        """Whether libvirt can never be asked here."""
        self._watch: Watch | None = None
        self._dirty: dict[str, None] = {}
        self._work = asyncio.Event()
        self._tried = asyncio.Event()
        self._rereads: set[str] = set()
        self._unread: dict[str, str] = {}
        """Guests that could not be read, and why: it is said once."""
        self.state = f"not connected to {uri} yet"

    async def tried(self) -> None:
        """Waits for the end of the first attempt."""
        await self._tried.wait()

    def look(self, uuid: str) -> None:
        """A guest, by UUID, may have changed: it is read again soon."""
        self._dirty[uuid] = None
        self._work.set()

    def look_at_all(self) -> None:
        """Every guest may have changed: what the kernel does to threads is told nobody."""
        for guest in self._reconciler.guests:
            self.look_if_ours(guest)

    def look_if_ours(self, guest: Guest) -> None:
        """As `look`, for one that libvirt has told of."""
        if guest.source == SOURCE:
            self.look(guest.key)

    async def follow(self) -> None:
        """Connect, follow, connect again; ends only by an error that waiting does not mend.

        Raises DependencyError, AccessError, UsageError, if it `must` be there.
        """
        delay, complained = _RETRY[0], False
        while True:
            try:
                lost = await self._connect()
            except VirtirqError as error:
                self.state = str(error)
                if isinstance(error, _HOPELESS) and not self._tried.is_set():
                    if self._must:
                        raise
                    self.given_up = True
                    self._log.info(f"libvirt is not asked: {error}")
                    self._tried.set()
                    return
                if not complained:
                    self._log.warning(f"{error}; trying again until it can be reached")
                    complained = True
            else:
                delay, complained = _RETRY[0], False
                self._tried.set()
                await self._until_lost(lost)
                continue
            self._tried.set()
            await asyncio.sleep(delay)
            delay = min(2 * delay, _RETRY[1])

    async def close(self) -> None:
        await self._disconnect()

    async def _connect(self) -> asyncio.Future[str]:
        """Connect and read all guests; gives what will tell why the connection broke."""
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str] = loop.create_future()
        self._dirty.clear()

        def break_off(why: str) -> None:
            if not lost.done():
                lost.set_result(why)

        watch = await beside(
            partial(open_watch, self._uri, _told_in(loop, self.look), _told_in(loop, break_off)),
            "connect",
        )
        self._watch = watch
        try:
            live = await beside(partial(watch.guests, self._fs), "guests")
        except VirtirqError:
            await self._disconnect()
            raise
        self.state = f"connected to {watch.uri}"
        self._log.info(f"{self.state}: {len(live.guests)} guests run")
        self._reconciler.know(
            live.guests,
            live.gaps,
            complete=live.complete,
            only_note=True,
            apart_from=find.SOURCE,
        )
        await self._prepare()
        self.prepared = True
        self._reconciler.look_at_all()
        there = {guest.key for guest in live.guests}
        for guest in self._reconciler.guests:
            if guest.key not in there:
                self.look_if_ours(guest)  # it may have stopped while libvirt was away
        self._known()
        return lost

    async def _until_lost(self, lost: asyncio.Future[str]) -> None:
        reading = asyncio.create_task(self._read_dirty())
        try:
            both: list[asyncio.Future[Any]] = [lost, reading]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not lost.done():
                reading.result()  # raises what has ended it: a task that fails must not be silent
        finally:
            reading.cancel()
        why = lost.result()
        self.state = f"connection to {self._uri} lost: {why}"
        self._log.warning(f"{self.state}; its guests are kept as they were")
        await self._disconnect()

    async def _disconnect(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            try:
                await asyncio.wait_for(beside(watch.close, "close"), _FAREWELL)
            except TimeoutError:
                self._log.warning(f"{self._uri}: does not let go of the connection")

    def _reread(self, uuid: str) -> None:
        """Read a guest again a while later, however often that is asked for until then."""

        def now() -> None:
            self._rereads.discard(uuid)
            self.look(uuid)

        if uuid not in self._rereads:
            self._rereads.add(uuid)
            asyncio.get_running_loop().call_later(_REREAD, now)

    async def _read_dirty(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._dirty and self._watch is not None:
                uuid = next(iter(self._dirty))
                del self._dirty[uuid]
                try:
                    found = await beside(partial(self._watch.guest, uuid, self._fs), "guest")
                except VirtirqError as error:
                    if self._unread.get(uuid) != str(error):
                        self._unread[uuid] = str(error)
                        self._log.warning(f"{error}; trying again")
                    self._reread(uuid)
                    continue
                self._unread.pop(uuid, None)
                for gap in found.gaps:
                    self._log.warning(f"not read: {gap.path}: {gap.error}")
                for guest in found.guests:
                    self._reconciler.update(guest)
                if not found.guests and not found.gaps:
                    self._reconciler.gone(uuid)
                self._known()


def _told_in(loop: asyncio.AbstractEventLoop, call: Callable[[str], None]) -> Callable[[str], None]:
    """`call` for libvirt's own thread: it happens in the loop's, or not at all after its end."""

    def tell(text: str) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(call, text)

    return tell
