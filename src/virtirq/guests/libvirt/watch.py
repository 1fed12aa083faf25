"""What libvirt tells of its guests, as it happens.

libvirt's own event loop runs in a thread of its own. libvirt-python has an adapter to asyncio
too, but it is not made for threads: libvirt calls it from whichever thread asks libvirt for
something, and every call that may block has to be made off asyncio's thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from virtirq.guests.libvirt.connection import (
    Connection,
    LiveGuests,
    elsewhere,
    is_remote,
    libvirt_module,
    opened,
)
from virtirq.guests.processes.affinity import Processes
from virtirq.host.fs import HostFs

# libvirt's ABI, include/libvirt/libvirt-domain.h, virDomainEventID.
_LIFECYCLE: Final = 0
_DEVICE_REMOVED: Final = 15
_TUNABLE: Final = 17
_DEVICE_ADDED: Final = 19
_METADATA_CHANGE: Final = 23
# virDomainEventType: what makes a guest run, or no longer. The others change nothing here.
_STARTED, _RESUMED, _STOPPED, _CRASHED = 2, 4, 5, 8

_THERE: Final = "run the daemon there"
_PAUSE: Final = (0.01, 1.0)
"""Seconds until libvirt's event loop is run again after it has failed: at first, and at most."""

_TUNED: Final = 0.25
"""Seconds that a word of pinning may wait: who pins all vCPUs of a guest has one said for each, and
what the kernel tells of the same is acted on meanwhile, undisturbed by the reading of all XML.
"""

_loop_lock: Final = threading.Lock()
_loop: threading.Thread | None = None


class Watch:
    """An open connection that tells of changes. `open_watch` makes one."""

    def __init__(self, connection: Connection, changed: Callable[[str, float], None]) -> None:
        self._connection = connection
        self._changed = changed
        self._callbacks: list[int] = []

    @property
    def uri(self) -> str:
        return self._connection.uri

    def running(self) -> dict[str, str]:
        """The names of the running guests by UUID. Blocks; raises LibvirtError."""
        return self._connection.running()

    def guest(self, uuid: str, fs: HostFs, processes: Processes | None = None) -> LiveGuests:
        """One guest, none when it does not run. Blocks; raises LibvirtError.

        It may be called from several threads at a time (libvirt's documentation, "Threading").
        """
        return self._connection.guest(uuid, fs, processes)

    def close(self) -> None:
        """Blocks where libvirt does."""
        raw: Any = self._connection.raw
        with suppress(self._connection.module.libvirtError):
            raw.unregisterCloseCallback()
        for number in self._callbacks:
            with suppress(self._connection.module.libvirtError):
                raw.domainEventDeregisterAny(number)
        self._connection.close()

    def listen(self, lost: Callable[[str], None]) -> None:
        """Ask for the events. Raises LibvirtError."""
        raw: Any = self._connection.raw
        with self._connection.asking("ask for events"):
            # Not every driver has it (libvirt's test driver lacks it): nothing to lose there.
            with suppress(self._connection.module.libvirtError):
                raw.registerCloseCallback(lambda _, why, __: lost(_LOST.get(why, "lost")), None)
            for event, callback in (
                (_LIFECYCLE, self._lifecycle),
                (_DEVICE_REMOVED, self._told),
                (_TUNABLE, self._tuned),
                (_DEVICE_ADDED, self._told),
                (_METADATA_CHANGE, self._told),
            ):
                self._callbacks.append(raw.domainEventRegisterAny(None, event, callback, None))

    def _lifecycle(self, _connection: object, domain: Any, event: int, *_: object) -> None:
        if event in (_STARTED, _RESUMED, _STOPPED, _CRASHED):
            self._told(None, domain)

    def _told(self, _connection: object, domain: Any, *_: object) -> None:
        self._changed(domain.UUIDString(), 0.0)

    def _tuned(self, _connection: object, domain: Any, *_: object) -> None:
        self._changed(domain.UUIDString(), _TUNED)


# virConnectCloseReason
_LOST: Final = {0: "an error", 1: "its daemon has ended", 2: "it does not answer", 3: "closed"}


def open_watch(
    uri: str, changed: Callable[[str, float], None], lost: Callable[[str], None]
) -> Watch:
    """Connect and listen. Blocks; what is told comes on another thread.

    `changed` gets the UUID of a guest to be looked at (it has begun or ended, or its devices,
    pinning or metadata are others), and for how many seconds that may wait. `lost` gets why the
    connection broke, which it does, too, when libvirt does not answer for a while.

    Raises DependencyError, ConnectionFailedError, AccessError, LibvirtError, and UsageError for
    another machine's libvirt.
    """
    _run_loop()
    if is_remote(uri):
        raise elsewhere(uri, _THERE)
    connection = opened(uri)
    watch = Watch(connection, changed)
    try:
        if connection.remote:
            raise elsewhere(uri, _THERE)
        connection.keep_alive()
        watch.listen(lost)
    except BaseException:
        watch.close()
        raise
    return watch


def _run_loop() -> None:
    """Start libvirt's event loop, once in a process and before any connection is made."""
    global _loop
    with _loop_lock:
        if _loop is not None:
            return
        module = libvirt_module()
        module.virEventRegisterDefaultImpl()
        _loop = threading.Thread(target=_events, args=(module,), name="libvirt", daemon=True)
        _loop.start()


def _events(module: Any, wait: Callable[[float], None] = time.sleep) -> None:
    pause = 0.0
    while True:
        try:
            module.virEventRunDefaultImpl()
        except module.libvirtError:
            # What fails at once may fail for ever, and must not take a CPU.
            pause = min(max(2 * pause, _PAUSE[0]), _PAUSE[1])
            wait(pause)
        else:
            pause = 0.0
