"""How often a vector may follow its guest, and how often a guest may set its vectors up.

What the guest does moves an interrupt of the host, so the guest must not say how often: who keeps
on is slowed down further and further.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from virtirq.values import dataclass

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
    """When each may change again: once a second at first, `longest` seconds later at most.

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


AT_ONCE: Final = 16
"""How often a vector may be set up within `WINDOW` before its device has to wait.

A guest that boots sets its vectors up, lets them go and sets them up again some three or four
times, and again for a driver that is loaded anew; and each mask that it sets and takes back frees
and requests the vector once more (Linux kernel, drivers/vfio/pci/vfio_pci_intrs.c,
vfio_msi_set_vector_signal()).
"""
WINDOW: Final = 30.0
"""Seconds."""
_GROWING: Final = 256
"""Vectors of a device for which all the others may be set up once more.

Before Linux 6.5 VFIO cannot add one: the VMM frees them all and requests one more than before,
for each that the guest takes into use.
"""


@dataclass(slots=True)
class _Device:
    """What was set up of one device since `since`, and how it has to wait for that.

    `counts` has for each vector how often it was set up, plus how many vectors there were the first
    time: less the number of vectors now, that is how often with no other vector added.
    """

    since: float
    last: float
    counts: dict[Hashable, int]
    wait: float = 0.0
    until: float = 0.0

    def once_more(self, vector: Hashable) -> tuple[int, int]:
        """What `counts` has once this vector is set up again, and how often that is by then."""
        vectors = min(len(self.counts) + (vector not in self.counts), _GROWING)
        count = self.counts.get(vector, vectors) + 1
        return count, count - vectors

    def over(self, now: float) -> bool:
        if self.wait:
            return now - self.last > max(WINDOW, 2 * self.wait)
        return now - self.since > WINDOW


class SetUps(Generic[Key]):
    """How long a device has to wait whose guest sets its vectors up again and again.

    Whatever is set up is moved, and noted before, by the host: so the guest must not say how often.
    As often as a guest that boots needs is at once; then later and later, `longest` seconds at
    most; and after a quiet time it is the first again. `clock` gives seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float], longest: float = LONGEST) -> None:
        self._clock = clock
        self._longest = longest
        self._devices: dict[Key, _Device] = {}

    def appeared(self, device: Key, vector: Hashable) -> float:
        """This vector was set up just now. Seconds until it may be looked at; 0: it may be now."""
        now = self._clock()
        known = self._devices.get(device)
        if known is None or known.over(now):
            known = self._devices[device] = _Device(now, now, {})
        known.last = now
        known.counts[vector], often = known.once_more(vector)
        if now < known.until:
            return known.until - now
        if known.wait or often > AT_ONCE:
            known.wait = min(2 * known.wait or SHORTEST, self._longest)
            known.until = now + known.wait
            return known.wait
        return 0.0

    def is_free(self, device: Key, vector: Hashable) -> bool:
        """Whether `appeared` would say 0: for certain, if it is."""
        known = self._devices.get(device)
        return known is None or (not known.wait and known.once_more(vector)[1] <= AT_ONCE)

    def wait(self, device: Key) -> float:
        """Seconds until anything of it may be looked at that its guest has set up; 0: now."""
        known = self._devices.get(device)
        return 0.0 if known is None else max(0.0, known.until - self._clock())

    def forget(self, device: Key) -> None:
        """It is another guest's now, or nobody's."""
        self._devices.pop(device, None)
