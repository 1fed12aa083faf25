"""What could not be done is tried again: when, and with what."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from virtirq.daemon.retries import Postponed, Retries
from virtirq.daemon.timers import Handle, Timers
from virtirq.model import PciAddress

NIC = PciAddress.parse("0000:82:00.0")


class Clock:
    """Timers that the test lets run out, the earliest first."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.now = 0.0
        self.timers = Timers(self.later, lambda: self.now, self.failed)

    def later(self, delay: float, call: Callable[[], object]) -> Handle:
        self.entries.append(Entry(self.now + delay, call, self.entries))
        return self.entries[-1]

    def failed(self, error: BaseException) -> None:
        raise error

    def step(self) -> float:
        """The next timer; after how long."""
        entry = min(self.entries, key=lambda each: each.at)
        self.entries.remove(entry)
        waited, self.now = entry.at - self.now, entry.at
        entry.call()
        return waited


class Entry:
    def __init__(self, at: float, call: Callable[[], object], entries: list[Entry]) -> None:
        self.at, self.call, self._entries = at, call, entries

    def cancel(self) -> None:
        if self in self._entries:
            self._entries.remove(self)


def test_later_and_later_and_all_of_it_each_time() -> None:
    clock, seen = Clock(), []

    def retry(postponed: Postponed) -> None:
        seen.append(postponed.look)
        retries.postpone(look=postponed.look)

    retries = Retries(clock.timers, retry)
    retries.postpone(look={NIC})
    assert [clock.step() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert seen == [{NIC}] * 9
    assert not retries.waiting


def failing(clock: Clock) -> tuple[Retries, list[float]]:
    """What has failed for so long that it is tried every 30 seconds; the times of each try."""
    tries: list[float] = []

    def retry(postponed: Postponed) -> None:
        tries.append(clock.now)
        retries.postpone(back=postponed.back)

    retries = Retries(clock.timers, retry)
    retries.postpone(back={NIC})
    for _ in range(7):
        clock.step()
    return retries, tries


def test_a_lock_is_tried_again_soon_whatever_else_fails_for_long() -> None:
    clock = Clock()
    retries, _ = failing(clock)
    retries.tried(blocked=True)
    assert retries.waiting
    assert clock.step() == 0.5


def test_a_lock_that_the_retry_itself_meets_is_tried_again_soon() -> None:
    clock, held = Clock(), [False] * 7 + [True, True, False, False]

    def retry(postponed: Postponed) -> None:
        retries.tried(blocked=held.pop(0))
        retries.postpone(back=postponed.back)

    retries = Retries(clock.timers, retry)
    retries.postpone(back={NIC})
    assert [clock.step() for _ in range(11)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 0.5, 1, 2]
    assert not retries.waiting


def test_there_is_one_next_try_however_often_a_lock_is_met() -> None:
    clock = Clock()
    retries, tries = failing(clock)
    for _ in range(6):
        retries.tried(blocked=True)
        clock.step()
        retries.tried(blocked=False)
    del tries[:]
    end = clock.now + 300
    while min(each.at for each in clock.entries) < end:
        clock.step()
    assert len(tries) <= 15


def test_what_was_postponed_survives_a_bug() -> None:
    clock, seen = Clock(), []

    def retry(postponed: Postponed) -> None:
        seen.append(set(postponed.look))
        if len(seen) == 1:
            raise ValueError("a bug")

    retries = Retries(clock.timers, retry)
    retries.postpone(look={NIC})
    with pytest.raises(ValueError, match="a bug"):
        clock.step()
    retries.postpone()
    clock.step()
    assert seen == [{NIC}, {NIC}]
