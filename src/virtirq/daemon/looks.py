"""Looks at processes that overlap: whose news is older, however late it comes.

What has happened to a process before a look at it is begun, that look sees. So what one says that
was begun earlier, and comes later, is not news any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Final, TypeVar

from virtirq.model import Guest, PciAddress

Result = TypeVar("Result")
_MOST: Final = 1000
"""Processes and devices of which a look remembers that there is newer news of them."""


@dataclass(eq=False, slots=True)
class Look:
    """A look that is under way.

    `pids` and `devices` were met by looks that were begun after this one, and were over before it.
    """

    begun: int = -1
    """Its place among all looks that were begun; -1 while it waits for its turn."""
    pids: set[int] = field(default_factory=set)
    devices: set[PciAddress] = field(default_factory=set)
    took_long: bool = False

    def doubtful(self, guest: Guest) -> bool:
        """Whether another process may have one of the guest's devices by now."""
        return self.crowded or any(each.address in self.devices for each in guest.devices)

    @property
    def crowded(self) -> bool:
        """Whether more was met meanwhile than is remembered."""
        return len(self.pids) + len(self.devices) > _MOST


class Looks:
    """Those that are under way."""

    def __init__(self) -> None:
        self._under_way: set[Look] = set()
        self._begins = count()

    @contextmanager
    def look(self) -> Iterator[Look]:
        """One that is under way until the end of this."""
        ours = Look()
        self._under_way.add(ours)
        try:
            yield ours
        finally:
            self._under_way.discard(ours)

    def begins(self, ours: Look, call: Callable[[], Result]) -> Callable[[], Result]:
        """`call`, which is the look; in any thread, and whenever its turn has come."""

        def noted() -> Result:
            ours.begun = next(self._begins)
            return call()

        return noted

    def over(self, ours: Look, guests: Iterable[Guest], *pids: int) -> None:
        """It has met these guests, and looked at these processes."""
        guests = tuple(guests)
        met = {*pids, *(guest.pid for guest in guests if guest.pid is not None)}
        devices = {device.address for guest in guests for device in guest.devices}
        for each in self._under_way:
            if -1 < each.begun < ours.begun and not each.crowded:
                each.pids |= met
                each.devices |= devices
