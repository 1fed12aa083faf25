"""What may be used of a CPU's time for what others can ask for as often as they like."""

from __future__ import annotations

from typing import Final

from virtirq.values import dataclass

NEVER: Final = float("-inf")
"""When what nobody has used was used up."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A `part` of a CPU's time, of which `ahead` seconds may be used in advance.

    Whoever has used it up waits for `least` seconds at least, and for no more than `longest`:
    however long it took, somebody is to be served now and then.
    """

    part: float
    longest: float
    least: float = 0.0
    ahead: float = 0.0

    def used(self, now: float, took: float, until: float = NEVER) -> float:
        """Until when it is used up, that was until `until`: `took` seconds were used just now."""
        until = max(until, now - took) + took / self.part
        return min(max(until, now + self.least), now + self.ahead + self.longest)

    def wait(self, until: float, now: float) -> float:
        """Seconds until some more may be used, of one that is used up until then; 0: now."""
        return max(0.0, until - self.ahead - now)
