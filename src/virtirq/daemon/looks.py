"""Looks that are asked for again and again: one at a time, and one more if asked meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")


class Looks(Generic[Key]):
    """Has `look` look at each of many, at each one at a time.

    What happens once mostly happens several times: there are `soon` seconds to wait for the rest.
    An error of a look ends that look alone; asyncio logs it.
    """

    def __init__(self, look: Callable[[Key], Coroutine[Any, Any, None]], soon: float) -> None:
        self._look = look
        self._soon = soon
        self._due: dict[tuple[Key, float], asyncio.TimerHandle] = {}
        """By what is looked at, and how many seconds after it was asked for."""
        self._put_off: dict[Key, asyncio.TimerHandle] = {}
        self._under_way: dict[Key, asyncio.Task[None]] = {}
        self._again: set[Key] = set()
        """What is looked at just now, and once more: that look may be past what has happened."""

    @property
    def idle(self) -> bool:
        """Whether nothing is looked at, and nothing is to be."""
        return not (self._due or self._put_off or self._under_way)

    def ask(self, key: Key, delay: float | None = None) -> None:
        """Look at it in so many seconds; asked the same until then, it is the same look."""
        delay = self._soon if delay is None else delay
        if (key, delay) not in self._due:
            timer = asyncio.get_running_loop().call_later(delay, self._asked_for_now, key, delay)
            self._due[key, delay] = timer

    def put_off(self, key: Key, delay: float) -> None:
        """Look at it in so many seconds, and not when it was put off to before."""
        self._forget(key)
        timer = asyncio.get_running_loop().call_later(delay, self._put_off_to_now, key)
        self._put_off[key] = timer

    def keep(self, wanted: Callable[[Key], bool]) -> None:
        """Forget what was put off but is not wanted any more."""
        for key in [each for each in self._put_off if not wanted(each)]:
            self._forget(key)

    def stop(self) -> None:
        """Let go of all that was asked for."""
        self.keep(lambda _: False)
        for timer in self._due.values():
            timer.cancel()
        self._due.clear()
        self._again.clear()
        for task in self._under_way.values():
            task.cancel()

    def _forget(self, key: Key) -> None:
        timer = self._put_off.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _put_off_to_now(self, key: Key) -> None:
        del self._put_off[key]
        self._begin(key)

    def _asked_for_now(self, key: Key, delay: float) -> None:
        del self._due[key, delay]
        self._begin(key)

    def _begin(self, key: Key) -> None:
        if key in self._under_way:
            self._again.add(key)
            return
        task = self._under_way[key] = asyncio.create_task(self._look(key))
        task.add_done_callback(lambda _: self._end(key))

    def _end(self, key: Key) -> None:
        del self._under_way[key]
        if key in self._again:
            self._again.discard(key)
            self.ask(key)
