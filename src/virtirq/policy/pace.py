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
    """The last change, and the seconds from it to the next that is allowed."""

    at: float
    interval: float


class Pace(Generic[Key]):
    """When each may change again. `clock` gives seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._steps: dict[Key, _Step] = {}

    def wait(self, key: Key) -> float:
        """Seconds until it may change; 0: now."""
        step = self._steps.get(key)
        return 0.0 if step is None else max(0.0, step.at + step.interval - self._clock())

    def changed(self, key: Key) -> None:
        """It has changed just now."""
        now, step = self._clock(), self._steps.get(key)
        calm = step is None or now - step.at > _CALM * step.interval
        interval = SHORTEST if step is None or calm else min(2 * step.interval, LONGEST)
        self._steps[key] = _Step(now, interval)

    def keep(self, wanted: Callable[[Key], bool]) -> None:
        """Forget all but those."""
        self._steps = {key: step for key, step in self._steps.items() if wanted(key)}
