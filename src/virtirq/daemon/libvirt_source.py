"""libvirt's guests: connects, hears of changes, reads just the guest concerned.

Each guest is read by a call of its own, several at a time: one that libvirt does not answer for
(it waits for the guest's QEMU) holds up no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Final, ParamSpec

from virtirq.daemon.blocking import Lane
from virtirq.daemon.log import Log
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.source_state import SourceState, guest_is_gone
from virtirq.daemon.timers import Timers
from virtirq.errors import (
    ConnectionFailedError,
    NoAnswerError,
    VirtirqError,
)
from virtirq.guests.libvirt.connection import SOURCE
from virtirq.guests.libvirt.watch import Watch, open_watch
from virtirq.guests.processes import find
from virtirq.guests.processes.affinity import Processes
from virtirq.guests.processes.find import holding_still
from virtirq.host.fs import HostFs
from virtirq.model import Finding, Gap, Guest, counted
from virtirq.policy.findings import guests_not_read, libvirt_silent

P = ParamSpec("P")

_CONNECT: Final = ("libvirt",)
_CALM: Final = ("libvirt-calm",)
_GUEST: Final = "libvirt-guest"
"""Keys of the timers; of a guest, its UUID follows."""
_RETRY: Final = (1.0, 30.0)
"""Seconds between attempts to connect: at first, and at last."""
_HELD: Final = 60.0
"""Seconds after which a connection counts as one that lasts: the next is tried soon again."""
_REREAD: Final = (1.0, 60.0)
"""Seconds until a guest that could not be read is tried again: at first, and at last."""
_PATIENCE: Final = 10.0
"""Seconds that a call may take, its wait for the calls before it included."""
_FIRST: Final = 3.0
"""The same for the first reading of all guests, which every one of them waits for."""
_FAREWELL: Final = 2.0
_AT_ONCE: Final = 4
"""Calls at the same time. libvirtd reads no more than 5 of a client (``max_client_requests``), and
then not what keeps the connection alive, either.
"""
_CONNECTS: Final = 2
"""Connections that are made at the same time: one that hangs leaves room for another."""


class LibvirtSource:
    """The guests of libvirt at `uri`, told to `reconciler`.

    `prepare` is called when all guests are known and nothing of theirs was moved yet. While libvirt
    is away, its guests are believed to run on as they did: they do. An error that waiting does not
    mend is raised in a timer, if libvirt `must` be there: DependencyError, AccessError, UsageError.
    """

    def __init__(
        self,
        uri: str,
        fs: HostFs,
        reconciler: Reconciler,
        log: Log,
        timers: Timers,
        prepare: Callable[[], Awaitable[None]],
        *,
        must: bool = True,
    ) -> None:
        self._uri = uri
        self._fs = fs
        self._reconciler = reconciler
        self._log = log
        self._timers = timers
        self._prepare = prepare
        self._must = must
        self._connects = Lane("libvirt-connect", at_once=_CONNECTS, limit=_PATIENCE)
        self._calls = Lane("libvirt-call", at_once=_AT_ONCE, limit=_PATIENCE)
        """By UUID."""
        self._closes = Lane("libvirt-close", at_once=_CONNECTS, limit=_FAREWELL)
        self._state = SourceState.NOT_ASKED
        self._tried = asyncio.Event()
        self._watch: Watch | None = None
        self._meanwhile: dict[str, None] | None = None
        """Guests that have changed while all are read for the first time in a connection."""
        self._unread: dict[str, str] = {}
        """Guests that could not be read, and why: it is said once."""
        self._missing: set[str] = set()
        """Guests that run, and of which nothing is known."""
        self._connection = f"not connected to {uri} yet"
        self._why_silent = ""
        self._complained = False
        """Whether it was said that libvirt cannot be reached."""
        self._broken: Watch | None = None
        """A connection that is still to be closed."""

    @property
    def state(self) -> SourceState:
        """How much of its guests it has told."""
        return self._state

    @property
    def described(self) -> str:
        """How guests are learned of, for a person."""
        unread = f"; {counted(len(self._unread), 'guest')} not read" if self._unread else ""
        return self._connection + unread

    def findings(self) -> tuple[Finding, ...]:
        """That libvirt does not answer, or not for some guests."""
        found = [libvirt_silent(self._why_silent)] if self._why_silent else []
        missing = sorted(self._unread[each] for each in self._missing & self._unread.keys())
        if missing:
            found.append(guests_not_read("; ".join(missing)))
        return tuple(found)

    def begin(self) -> None:
        """Connect, follow, connect again."""
        self._step(SourceState.READING)
        self._timers.soon(_CONNECT, 0.0, self._connect)

    async def tried(self) -> None:
        """Waits for the end of the first attempt."""
        await self._tried.wait()

    def look(self, uuid: str, delay: float = 0.0) -> None:
        """A guest, by UUID, may have changed: it is read again soon."""
        if self._meanwhile is not None:
            self._meanwhile[uuid] = None
        elif self._watch is not None:  # else all are read when it is connected to
            self._timers.soon((_GUEST, uuid), delay, partial(self._read, uuid))

    def look_at_all(self) -> None:
        """Every guest may have changed: what the kernel does to threads is told nobody."""
        for guest in self._reconciler.registry.from_source(SOURCE):
            self.look(guest.key)

    def look_if_ours(self, guest: Guest) -> None:
        """As `look`, for one that libvirt has told of; its own threads may say so without end."""
        if guest.source == SOURCE:
            self.look(guest.key, self._calls.wait(guest.key))

    async def close(self) -> None:
        for key in (_CONNECT[0], _CALM[0], _GUEST):
            self._timers.cancel(key)
        await self._disconnect()

    # The connection.

    async def _connect(self) -> None:
        try:
            await self._connect_and_read()
        except VirtirqError as error:
            self._meanwhile = None
            self._not_connected(error)
        else:
            self._tried.set()

    async def _connect_and_read(self) -> None:
        """Raises VirtirqError."""
        await self._disconnect()
        loop = asyncio.get_running_loop()
        lost: asyncio.Future[str] = loop.create_future()
        self._meanwhile = {}

        def break_off(why: str) -> None:
            if not lost.done():
                lost.set_result(why)

        tell, tell_lost = _told_in(loop, self.look), _told_in(loop, break_off)
        watch = await self._connects.call(
            object(),
            partial(open_watch, self._uri, tell, tell_lost),
            late=lambda watch: watch.close(),
        )
        try:
            there = await self._calls.call(object(), watch.running)
            await self._read_all(watch, there, lost)
        except BaseException:
            self._watch = None
            await self._close(watch)
            raise
        lost.add_done_callback(partial(self._lost, watch))
        # It is one that lasts when that is over; until then the next one is no first attempt.
        self._timers.put_off(_CALM, _HELD, partial(self._timers.done, _CONNECT))

    async def _read_all(
        self, watch: Watch, there: Mapping[str, str], lost: asyncio.Future[str]
    ) -> None:
        """Read those that run, name by UUID, and tell them; nothing of theirs is moved before."""
        processes = Processes(self._fs)  # looked through once for all of them
        calls = (
            self._calls.call(uuid, partial(watch.guest, uuid, self._fs, processes), limit=_FIRST)
            for uuid in there
        )
        ends = await asyncio.gather(*calls, return_exceptions=True)
        if lost.done():
            raise ConnectionFailedError(f"connection to {self._uri} lost: {lost.result()}")
        self._connection = f"connected to {watch.uri}"
        self._why_silent = ""
        self._complained = False
        self._watch = watch
        self._unread = {uuid: why for uuid, why in self._unread.items() if uuid in there}
        self._missing.clear()
        guests: list[Guest] = []
        gaps: list[Gap] = []
        for (uuid, name), end in zip(there.items(), ends, strict=True):
            if isinstance(end, VirtirqError):
                self._not_read(uuid, end, name)
            elif isinstance(end, BaseException):
                raise end
            else:
                self._unread.pop(uuid, None)
                gaps += end.gaps
                guests += (holding_still(each, self._ours(uuid)) for each in end.guests)
            known = self._ours(uuid)
            if isinstance(end, VirtirqError) or (end.gaps and not end.guests):
                if known is None:
                    self._missing.add(uuid)
                else:
                    guests.append(known)  # it runs, if not as it did
        self._step(SourceState.PART if self._missing else SourceState.ALL)
        self._log.info(f"{self._connection}: {counted(len(there), 'guest')} running")
        self._reconciler.know(
            guests,
            gaps,
            complete=guest_is_gone(self._state),
            only_note=True,
            apart_from=find.SOURCE,
        )
        await self._prepare()
        self._reconciler.act_on_noted()
        meanwhile, self._meanwhile = self._meanwhile or {}, None
        for uuid in meanwhile:
            self.look(uuid)
        for guest in self._reconciler.registry.from_source(SOURCE):
            if guest.key not in there:
                self.look(guest.key)  # it may have stopped while libvirt was away

    def _not_connected(self, error: VirtirqError) -> None:
        text = str(error)
        if isinstance(error, NoAnswerError):
            text = f"libvirt at {self._uri}: {error}"
        self._connection = text
        if isinstance(error, NoAnswerError) or self._why_silent:
            self._why_silent = f"{text}; its guests are kept as they were"
        first = not self._tried.is_set()
        if not error.retryable and first:
            if self._must:
                raise error
            self._step(SourceState.NEVER)
            self._log.info(f"libvirt is not asked: {error}")
            self._tried.set()
            return
        if not self._complained:
            self._log.warning(f"{text}; trying again until it can be reached")
            self._complained = True
        self._tried.set()
        self._timers.again(_CONNECT, self._connect, _RETRY)

    def _lost(self, watch: Watch, lost: asyncio.Future[str]) -> None:
        """The connection broke."""
        if watch is not self._watch:
            return  # it was closed by us
        self._watch, self._broken = None, watch
        self._connection = f"connection to {self._uri} lost: {lost.result()}"
        self._why_silent = f"{self._connection}; its guests are kept as they were"
        self._log.warning(self._why_silent, finding="libvirt-silent")
        self._step(SourceState.PART)
        self._timers.cancel(_GUEST)  # all are read in the next connection
        self._timers.cancel(*_CALM)
        self._timers.again(_CONNECT, self._connect, _RETRY)

    async def _disconnect(self) -> None:
        watches = (self._watch, self._broken)
        self._watch = self._broken = None
        for watch in watches:
            if watch is not None:
                await self._close(watch)

    async def _close(self, watch: Watch) -> None:
        try:
            await self._closes.call(watch, watch.close)
        except NoAnswerError:
            self._log.warning(f"{self._uri}: does not let go of the connection")

    # One guest.

    async def _read(self, uuid: str) -> None:
        watch = self._watch
        if watch is None:
            return
        try:
            found = await self._calls.call(uuid, partial(watch.guest, uuid, self._fs))
        except VirtirqError as error:
            self._not_read(uuid, error)
            if self._ours(uuid) is None:
                self._missing.add(uuid)
                self._step(SourceState.PART)
            return
        if watch is not self._watch:
            return
        self._timers.done((_GUEST, uuid))
        self._unread.pop(uuid, None)
        for gap in found.gaps:
            self._log.warning(f"not read: {gap.path}: {gap.error}")
        for guest in found.guests:
            self._reconciler.update(holding_still(guest, self._ours(uuid)))
        if not found.guests and not found.gaps:
            self._reconciler.gone(uuid)
        if found.guests or not found.gaps:
            self._found(uuid)
        elif self._ours(uuid) is None:
            self._missing.add(uuid)
            self._step(SourceState.PART)

    def _not_read(self, uuid: str, error: VirtirqError, name: str = "") -> None:
        """It is told once, and tried again later and later."""
        text = str(error)
        if isinstance(error, NoAnswerError):
            known = self._ours(uuid)
            name = name or (known.name if known is not None else uuid)
            text = f"libvirt on guest {name}: {error}"
        if self._unread.get(uuid) != text:
            self._unread[uuid] = text
            self._log.warning(f"{text}; trying again")
        self._timers.again((_GUEST, uuid), partial(self._read, uuid), _REREAD)

    def _found(self, uuid: str) -> None:
        """It was read, or runs no more: maybe the last of whom nothing was known."""
        if uuid not in self._missing:
            return
        self._missing.discard(uuid)
        if not self._missing:
            self._step(SourceState.ALL)
            # Whoever is in the journal and not among these has stopped.
            ours = self._reconciler.registry.from_source(SOURCE)
            self._reconciler.know(ours, complete=True, apart_from=find.SOURCE)

    def _ours(self, uuid: str) -> Guest | None:
        """The guest as we have told it before."""
        guest = self._reconciler.registry.get(uuid)
        return guest if guest is not None and guest.source == SOURCE else None

    def _step(self, to: SourceState) -> None:
        self._state = self._state.step(to)


def _told_in(loop: asyncio.AbstractEventLoop, call: Callable[P, None]) -> Callable[P, None]:
    """`call` for libvirt's own thread: it happens in the loop's, or not at all after its end."""

    def tell(*told: P.args, **named: P.kwargs) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(partial(call, *told, **named))

    return tell
