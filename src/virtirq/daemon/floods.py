"""Shuts out for a while what others may cause as often as they like.

A guest moves its vectors, and whoever runs a data plane its threads, at any rate. The kernel then
keeps such events to itself, so that those of interrupts are not lost among them, and afterwards all
that they may have told of is looked at. Who keeps at it is shut out for longer each time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from virtirq.daemon.timers import Later
from virtirq.host.events import EventKind, KernelEvent
from virtirq.policy.pace import Pace

Mute = Callable[[EventKind, bool], bool]
"""Has the kernel keep a kind of event to itself, or tell it again; whether that was done."""
FLOOD: Final = 300
"""Events of a kind within `_WINDOW`. A device with a hundred vectors makes some hundred."""
_WINDOW: Final = 1.0
"""Seconds."""
LONGEST: Final = 10.0
"""Seconds that a kind is shut out at most: others than who causes it are not heard, either."""


class Floods:
    """Watches over the kinds of events of `looks`, which say what to do after each was shut out.

    `later` calls something after so many seconds of `clock`.
    """

    def __init__(
        self,
        looks: Mapping[EventKind, Callable[[], object]],
        later: Later,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._looks = looks
        self._later = later
        self._clock = clock
        self._pace: Pace[EventKind] = Pace(clock, LONGEST)
        self._since = float("-inf")
        self._counts: Counter[EventKind] = Counter()
        self._muted: set[EventKind] = set()

    def seen(self, events: Sequence[KernelEvent], mute: Mute) -> None:
        """These came."""
        if self._clock() >= self._since + _WINDOW:
            self._since = self._clock()
            self._counts.clear()
        for event in events:
            if event.kind in self._looks:
                self._counts[event.kind] += 1
        for kind, count in self._counts.items():
            if count >= FLOOD and kind not in self._muted and mute(kind, True):
                self._muted.add(kind)
                self._pace.changed(kind)
                self._later(self._pace.wait(kind), partial(self._over, kind, mute))

    def _over(self, kind: EventKind, mute: Mute) -> None:
        # First: what happens during the look is not missed.
        if mute(kind, False):
            self._muted.discard(kind)
        else:
            self._later(LONGEST, partial(self._over, kind, mute))
        del self._counts[kind]
        self._looks[kind]()
