"""What could not be done is kept, and tried again later and later."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from virtirq.daemon.timers import Key, Timers
from virtirq.model import PciAddress

_KEY: Final[Key] = ("postponed",)


@dataclass(slots=True)
class Postponed:
    """Devices to look at, devices to let go of, and whether what no guest holds is let go of."""

    look: set[PciAddress] = field(default_factory=set)
    back: set[PciAddress] = field(default_factory=set)
    strangers: bool = False

    def __bool__(self) -> bool:
        return bool(self.look or self.back or self.strangers)

    def add(self, other: Postponed) -> None:
        self.look |= other.look
        self.back |= other.back
        self.strangers |= other.strangers


class Retries:
    """Collects what could not be done and gives all of it to `retry`, until it is done."""

    def __init__(self, timers: Timers, retry: Callable[[Postponed], None]) -> None:
        self._timers = timers
        self._retry = retry
        self._postponed = Postponed()
        self._blocked = False
        """Whether nothing could be done the last time: another virtirq held the lock, say."""

    @property
    def waiting(self) -> bool:
        """Whether there is no point in trying anything until the next try is due."""
        return self._blocked and self._timers.is_due(_KEY)

    def tried(self, *, blocked: bool) -> None:
        """Whether nothing at all could be done just now."""
        if blocked and not self._blocked:
            # A lock is held for moments: what failed before for other reasons does not count.
            self._timers.done(_KEY)
            if self._timers.is_due(_KEY):
                self._timers.again(_KEY, self._again)
        self._blocked = blocked

    def postpone(
        self,
        *,
        look: Collection[PciAddress] = (),
        back: Collection[PciAddress] = (),
        strangers: bool = False,
    ) -> None:
        self._postponed.add(Postponed(set(look), set(back), strangers))
        if not self._timers.is_due(_KEY):
            self._timers.again(_KEY, self._again)

    def _again(self) -> None:
        postponed, self._postponed = self._postponed, Postponed()
        try:
            self._retry(postponed)
        except BaseException:
            self._postponed.add(postponed)  # whatever went wrong, it is still to be done
            raise
        if not self._postponed:
            self._timers.done(_KEY)
