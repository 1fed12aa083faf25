"""What could not be done is tried again, later and later."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from virtirq.daemon.attempts import Later
from virtirq.model import PciAddress

_AGAIN: Final = (0.5, 30.0)
"""Seconds until the next try: the first time, and at most."""


@dataclass(slots=True)
class Postponed:
    """Devices to look at, devices to let go of, and whether what no guest holds is let go of."""

    look: set[PciAddress] = field(default_factory=set)
    back: set[PciAddress] = field(default_factory=set)
    strangers: bool = False

    def __bool__(self) -> bool:
        return bool(self.look or self.back or self.strangers)


class Retries:
    """Collects what could not be done and gives all of it to `retry`, again and again."""

    def __init__(self, later: Later, retry: Callable[[Postponed], None]) -> None:
        self._later = later
        self._retry = retry
        self._postponed = Postponed()
        self._delay = 0.0
        """Seconds that the next try was put off; 0: none is due. Below: it is under way."""
        self._due = object()
        """The timer that counts: one that was set before has nothing to do any more."""
        self._blocked = False
        """Whether nothing could be done the last time: another virtirq held the lock, say."""

    @property
    def waiting(self) -> bool:
        """Whether there is no point in trying anything until the next try is due."""
        return self._blocked and self._delay > 0

    def tried(self, *, blocked: bool) -> None:
        """Whether nothing at all could be done just now."""
        if blocked and not self._blocked and self._delay > _AGAIN[0]:
            self._put_off(_AGAIN[0])  # what fails for other reasons waits longer than a lock needs
        self._blocked = blocked

    def postpone(
        self,
        *,
        look: Collection[PciAddress] = (),
        back: Collection[PciAddress] = (),
        strangers: bool = False,
    ) -> None:
        self._postponed.look.update(look)
        self._postponed.back.update(back)
        self._postponed.strangers |= strangers
        if not self._delay:
            self._put_off(_AGAIN[0])

    def _put_off(self, delay: float) -> None:
        self._delay = delay
        self._due = due = object()
        self._later(delay, lambda: self._again() if self._due is due else None)

    def _again(self) -> None:
        postponed, self._postponed = self._postponed, Postponed()
        delay, self._delay = self._delay, -1.0  # no timer is made meanwhile
        was_blocked = self._blocked
        try:
            self._retry(postponed)
        finally:
            self._delay = 0.0
        if self._postponed:
            soon = self._blocked and not was_blocked
            self._put_off(_AGAIN[0] if soon else min(2 * delay, _AGAIN[1]))
