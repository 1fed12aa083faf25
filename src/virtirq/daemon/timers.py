"""Later: the one queue for what is not done at once, one entry for each key.

Whatever happens mostly happens several times, and whatever fails is tried again: both put a key
here, and find it there already. A key is what is to be done and to whom, such as
``("guest", UUID)``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

Key = tuple[Hashable, ...]
Call = Callable[[], Coroutine[Any, Any, None] | None]
AGAIN: Final = (0.5, 30.0)
"""Seconds until what has failed is tried again: the first time, and at most."""


class Handle(Protocol):
    """What can be called off: an `asyncio.TimerHandle`."""

    def cancel(self) -> object: ...


Later = Callable[[float, Callable[[], object]], Handle]
"""Calls the function after so many seconds: asyncio's ``call_later``."""


@dataclass(frozen=True, slots=True)
class _Due:
    at: float
    call: Call
    handle: Handle


class Timers:
    """Calls each key's function once, when it is due.

    A function that is a coroutine's is at work until that ends; its key, asked for meanwhile, waits
    for the end, since what is at work may be past what has happened. Whatever a function raises is
    told to `failed`. `clock` gives the seconds that `later` waits by.
    """

    def __init__(
        self,
        later: Later,
        clock: Callable[[], float],
        failed: Callable[[BaseException], object],
    ) -> None:
        self._later = later
        self._clock = clock
        self._failed = failed
        self._due: dict[Hashable, dict[Key, _Due]] = {}
        """By the first part of the key."""
        self._at_work: dict[Key, asyncio.Task[None]] = {}
        self._waiting: dict[Key, Call] = {}
        """Came due while at work."""
        self._delays: dict[Key, float] = {}
        """How long `again` has put each off the last time."""
        self._closed = False

    def soon(self, key: Key, delay: float, call: Call) -> None:
        """Do it in so many seconds; where it is due sooner already, that is soon enough."""
        due = self._entry(key)
        if due is None or self._clock() + delay < due.at:
            self.put_off(key, delay, call)

    def put_off(self, key: Key, delay: float, call: Call) -> None:
        """Do it in so many seconds, and not when it was due before."""
        self._call_off(key)
        if not self._closed:
            handle = self._later(delay, partial(self._now, key))
            self._due.setdefault(key[0], {})[key] = _Due(self._clock() + delay, call, handle)

    def again(self, key: Key, call: Call, pace: tuple[float, float] = AGAIN) -> float:
        """It has failed: do it once more, each time twice as long after the last; in how long.

        `pace`: seconds at first and at most. It begins anew with `done`. What is due sooner
        already stays due then.
        """
        first, longest = pace
        delay = min(2 * self._delays.get(key, first / 2), longest)
        self._delays[key] = delay
        self.soon(key, delay, call)
        return delay

    def done(self, key: Key) -> None:
        """It has not failed: the next time that it does is the first again."""
        self._delays.pop(key, None)

    def is_due(self, key: Key) -> bool:
        """Whether it is to be done some time; what is at work just now is not."""
        return self._entry(key) is not None

    def cancel(self, *prefix: Hashable) -> None:
        """Do nothing more of what has a key that begins so; what is at work is broken off."""
        for books in (self._waiting, self._delays):
            for key in [each for each in books if each[: len(prefix)] == prefix]:
                del books[key]
        for key, task in self._at_work.items():
            if key[: len(prefix)] == prefix:
                task.cancel()
        groups = [self._due.get(prefix[0], {})] if prefix else list(self._due.values())
        for key in [key for group in groups for key in group if key[: len(prefix)] == prefix]:
            self._call_off(key)

    def close(self) -> None:
        """Do nothing any more."""
        self._closed = True
        self.cancel()

    def _entry(self, key: Key) -> _Due | None:
        return self._due.get(key[0], {}).get(key)

    def _call_off(self, key: Key) -> None:
        due = self._take(key)
        if due is not None:
            due.handle.cancel()

    def _take(self, key: Key) -> _Due | None:
        group = self._due.get(key[0])
        due = group.pop(key, None) if group is not None else None
        if group is not None and not group:
            del self._due[key[0]]
        return due

    def _now(self, key: Key) -> None:
        due = self._take(key)
        if due is None or self._closed:
            return
        if key in self._at_work:
            self._waiting[key] = due.call
            return
        try:
            work = due.call()
        except Exception as error:
            self._failed(error)
            return
        if work is not None:
            task = self._at_work[key] = asyncio.ensure_future(work)
            task.add_done_callback(partial(self._end, key))

    def _end(self, key: Key, task: asyncio.Task[None]) -> None:
        del self._at_work[key]
        waiting = self._waiting.pop(key, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed(error)
        elif waiting is not None:
            self.soon(key, 0.0, waiting)
