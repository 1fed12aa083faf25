"""How often to put an interrupt back that someone else keeps moving.

The first few times at once. Whoever moves it again and again does so on purpose, or runs on a
timer: then each time later, so that two daemons do not fill a CPU with moving one interrupt, and
a person is told who it is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Final, Generic, TypeVar

from virtirq.values import dataclass, field

FEW: Final = 4
"""Moves by others within `WINDOW` that are undone at once."""
WINDOW: Final = 60.0
FIRST_WAIT: Final = 10.0
LONGEST_WAIT: Final = 320.0
_MOST_NAMES: Final = 8

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class Contention:
    """What others did to one interrupt. All times are seconds of one monotonic clock."""

    moves: deque[float] = field(default_factory=lambda: deque(maxlen=FEW + 1))
    by: Counter[str] = field(default_factory=Counter)
    wait: float = 0.0
    until: float = 0.0

    @property
    def on(self) -> bool:
        """Whether it is one, and not a stray move."""
        return self.wait > 0

    def over(self, now: float) -> bool:
        """Whether it has been quiet for so long that the next move is the first again."""
        return now - self.moves[-1] > max(WINDOW, 2 * self.wait)

    @property
    def suspect(self) -> str:
        """Who moved it most often."""
        return self.by.most_common(1)[0][0] if self.by else "someone unknown"

    @property
    def total(self) -> int:
        return self.by.total()


class Contentions(Generic[Key]):
    """Who moved which interrupt how often, and when it may be put back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._contentions: dict[Key, Contention] = {}

    def moved(self, key: Key, who: str) -> float:
        """`who` moved the interrupt. How many seconds from now to put it back; 0: at once."""
        now = self._clock()
        contention = self._contentions.get(key)
        if contention is None or contention.over(now):
            contention = self._contentions[key] = Contention()
        contention.moves.append(now)
        known = who in contention.by or len(contention.by) < _MOST_NAMES
        contention.by[who if known else "others"] += 1
        if now < contention.until:
            return contention.until - now  # it is being waited for already
        many = len(contention.moves) > FEW and now - contention.moves[0] <= WINDOW
        if many or contention.on:
            contention.wait = (
                min(contention.wait * 2, LONGEST_WAIT) if contention.on else FIRST_WAIT
            )
            contention.until = now + contention.wait
            return contention.wait
        return 0.0

    def wait(self, key: Key) -> float:
        """Seconds until the interrupt may be put back; 0: now."""
        contention = self._contentions.get(key)
        return max(0.0, contention.until - self._clock()) if contention is not None else 0.0

    def known(self) -> tuple[Key, ...]:
        """Whatever was moved by others, a contention or not."""
        return tuple(self._contentions)

    def forget(self, key: Key) -> None:
        """The interrupt is gone, or is nobody's any more."""
        self._contentions.pop(key, None)

    def ongoing(self) -> Iterator[tuple[Key, Contention]]:
        """The contentions that are on; what is over is forgotten."""
        now = self._clock()
        over = [key for key, contention in self._contentions.items() if contention.over(now)]
        for key in over:
            del self._contentions[key]
        return iter(
            [(key, contention) for key, contention in self._contentions.items() if contention.on]
        )
