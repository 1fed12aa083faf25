"""How often a vector may follow its guest.

What the guest writes moves an interrupt of the host, so the guest must not say how often: once a
second at most, and one that keeps on at that is slowed down further.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

SHORTEST: Final = 1.0
LONGEST: Final = 60.0
_CALM: Final = 4
"""A change that comes later than so many times its interval after the last is the first again."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Step:
    """The last change, the seconds from it to the next that is allowed, and whether one waits."""

    at: float
    interval: float
    pressed: bool = False


class Pace(Generic[Key]):
    """When each may change again, `longest` seconds later at most.

    `clock` gives seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float], longest: float = LONGEST) -> None:
        self._clock = clock
        self._longest = longest
        self._steps: dict[Key, _Step] = {}

    def wait(self, key: Key) -> float:
        """Seconds until it may change, which it wants to now; 0: it may."""
        step = self._steps.get(key)
        if step is None:
            return 0.0
        remaining = max(0.0, step.at + step.interval - self._clock())
        step.pressed |= remaining > 0
        return remaining

    def changed(self, key: Key) -> None:
        """It has changed just now. Where that had to wait, the next has to wait twice as long."""
        now, step = self._clock(), self._steps.get(key)
        if step is None or now - step.at > _CALM * step.interval:
            interval = SHORTEST
        else:
            interval = step.interval * 2 if step.pressed else step.interval / 2
        self._steps[key] = _Step(now, min(max(interval, SHORTEST), self._longest))

    def keep(self, wanted: Callable[[Key], bool]) -> None:
        """Forget all but those."""
        self._steps = {key: step for key, step in self._steps.items() if wanted(key)}
