"""Shuts out for a while what others may cause as often as they like.

A guest moves its vectors, whoever runs a data plane its threads, anybody starts programs, and
threads end, at any rate. The kernel then keeps such events to itself, so that those of interrupts
are not lost among them, and afterwards all that they may have told of is looked at. Who keeps at it
is shut out for longer each time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from virtirq.daemon.timers import Timers
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

    `timers` go by `clock`.
    """

    def __init__(
        self,
        looks: Mapping[EventKind, Callable[[], object]],
        timers: Timers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._looks = looks
        self._timers = timers
        self._clock = clock
        self._pace: Pace[EventKind] = Pace(clock, LONGEST)
        self._since = float("-inf")
        self._counts: Counter[EventKind] = Counter()
        self._out: set[EventKind] = set()

    def admit(self, events: Sequence[KernelEvent], mute: Mute) -> Sequence[KernelEvent]:
        """Those of `events` to act on: of each kind watched over, `FLOOD` within a second at most.

        What the kernel had told before it was asked not to, or tells nonetheless, costs no more
        than to be read.
        """
        looks = self._looks
        for event in events:
            if event.kind in looks:
                return self._admit(events, mute)
        return events

    def _admit(self, events: Iterable[KernelEvent], mute: Mute) -> list[KernelEvent]:
        if self._clock() >= self._since + _WINDOW:
            self._since = self._clock()
            self._counts.clear()
        admitted = []
        for event in events:
            kind = event.kind
            if kind in self._looks:
                if kind in self._out:
                    continue
                self._counts[kind] += 1
                if self._counts[kind] > FLOOD:
                    self._shut_out(kind, mute)
                    continue
            admitted.append(event)
        return admitted

    def _shut_out(self, kind: EventKind, mute: Mute) -> None:
        self._out.add(kind)
        mute(kind, True)
        self._pace.changed(kind)
        self._timers.put_off(
            ("flood", kind), self._pace.wait(kind), partial(self._over, kind, mute)
        )

    def _over(self, kind: EventKind, mute: Mute) -> None:
        # First: what happens during the look is not missed.
        if mute(kind, False):
            self._out.discard(kind)
        else:
            self._timers.put_off(("flood", kind), LONGEST, partial(self._over, kind, mute))
        del self._counts[kind]
        self._looks[kind]()
