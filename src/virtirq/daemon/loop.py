"""The daemon's event loop: asyncio's, but for files that are served before it knows of them.

To asyncio a file that is ready is a callback to be put in a queue, taken out again and called in a
context. Where the processor was asleep, and its caches are full of what others did, that takes a
sixth of the time in which an interrupt is moved.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

_Events = list[tuple[selectors.SelectorKey, int]]


class _Selector(selectors.EpollSelector):
    """Calls what stands beside a file as its data; the others it hands out, as asyncio wants it."""

    def select(self, timeout: float | None = None) -> _Events:
        ready = super().select(timeout)
        first = [key.data for key, _ in ready if callable(key.data)]
        for call in first:
            call()
        return [each for each in ready if not callable(each[0].data)] if first else ready


class Loop(asyncio.SelectorEventLoop):
    """As asyncio's own, for Linux."""

    def __init__(self) -> None:
        self._first = _Selector()
        super().__init__(self._first)

    def serve_first(self, descriptor: int, call: Callable[[], None]) -> None:
        """Call it whenever there is something to read, before anything else. It must not raise."""
        self._first.register(descriptor, selectors.EVENT_READ, call)

    def serve_no_more(self, descriptor: int) -> None:
        """Do so no more, if it is still done."""
        if descriptor in self._first.get_map():
            self._first.unregister(descriptor)


def run(work: Coroutine[Any, Any, None]) -> None:
    """As ``asyncio.run``, in such a loop. Raises what the work does."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(work)


def running() -> Loop:
    """The loop that this runs in."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, Loop):
        raise AssertionError("another loop than the daemon's own")
    return loop
