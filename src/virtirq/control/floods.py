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

from virtirq.control.attempts import Later
from virtirq.host.events import EventKind, KernelEvent
from virtirq.policy.pace import Pace

Mute = Callable[[EventKind, bool], object]
FLOOD: Final = 100
"""Events of a kind in one go: a device with as many vectors makes some dozens."""


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
        self._pace: Pace[EventKind] = Pace(clock)
        self._muted: set[EventKind] = set()

    def seen(self, events: Sequence[KernelEvent], mute: Mute) -> None:
        """These came in one go; `mute` has the kernel keep a kind to itself, or tell it again."""
        if len(events) < FLOOD:
            return
        for kind, count in Counter(event.kind for event in events).items():
            if kind in self._looks and count >= FLOOD and kind not in self._muted:
                self._muted.add(kind)
                mute(kind, True)
                self._pace.changed(kind)
                self._later(self._pace.wait(kind), partial(self._over, kind, mute))

    def _over(self, kind: EventKind, mute: Mute) -> None:
        self._muted.discard(kind)
        mute(kind, False)  # first: what happens during the look is not missed
        self._looks[kind]()
