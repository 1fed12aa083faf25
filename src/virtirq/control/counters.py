"""What a daemon counts of its own doings: plain numbers that leave it as JSON, for metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from enum import Enum
from typing import Any, Final

from virtirq.values import dataclass, field

REACTION_SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
"""Upper bounds; from the kernel's word of an interrupt to the end of our write."""
CYCLE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_MOST_MOVERS: Final = 16
OTHERS: Final = "others"
MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
"""What is raised for a document that is not one of ours."""


class Trigger(Enum):
    """Why the daemon moved an interrupt.

    NEW: the guest set it up. DRIFT: someone else had moved it. PLAN: what is wanted has changed
    (the guest, its settings, the host's CPUs), or the daemon began. GUEST: the guest aims it at
    another of its vCPUs. RESTORE: it was put back.
    """

    NEW = "new"
    DRIFT = "drift"
    PLAN = "plan"
    GUEST = "guest"
    RESTORE = "restore"


@dataclass(slots=True)
class Histogram:
    """`counts` has a number for each of `bounds` (upper, inclusive) and one for what is above."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Counters:
    """Counts since the daemon began. `moves` is by trigger and outcome; `drift` by who moved."""

    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    drift: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    reactions: Histogram = field(default_factory=lambda: Histogram(REACTION_SECONDS))
    cycles: Histogram = field(default_factory=lambda: Histogram(CYCLE_SECONDS))

    def drifted(self, who: str) -> None:
        """Count a move by `who`: a task may call itself anything, so only the first few names."""
        known = who in self.drift or len(self.drift) < _MOST_MOVERS
        self.drift[who if known else OTHERS] += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "moves": [[*key, count] for key, count in sorted(self.moves.items())],
            "drift": dict(sorted(self.drift.items())),
            "events": dict(sorted(self.events.items())),
            "lost": self.lost,
            "reactions": {"counts": self.reactions.counts, "total": self.reactions.total},
            "cycles": {"counts": self.cycles.counts, "total": self.cycles.total},
        }

    @classmethod
    def from_json(cls, data: Any) -> Counters:
        """The inverse of `as_json`. Raises what is in `MALFORMED` for anything else."""
        return cls(
            moves=Counter({(str(why), str(end)): int(n) for why, end, n in data["moves"]}),
            drift=Counter({str(who): int(n) for who, n in data["drift"].items()}),
            events=Counter({str(kind): int(n) for kind, n in data["events"].items()}),
            lost=int(data["lost"]),
            reactions=_histogram(REACTION_SECONDS, data["reactions"]),
            cycles=_histogram(CYCLE_SECONDS, data["cycles"]),
        )


def _histogram(bounds: tuple[float, ...], data: Any) -> Histogram:
    counts = [int(each) for each in data["counts"]]
    if len(counts) != len(bounds) + 1:
        raise ValueError("not one number for each bound")
    return Histogram(bounds, counts, float(data["total"]))
