"""What may block: the one way to call it beside the event loop, and to close what may hang.

libvirt hangs when its daemon or a guest's QEMU does, and so may a monitor, irqbalance, bpftrace
and whoever reads a process. Nobody can end such a call. So each kind of them has a `Lane`: so many
at once, one at a time for each key, and a limit for who waits.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from virtirq.errors import NoAnswerError
from virtirq.policy.budget import NEVER, Budget

Result = TypeVar("Result")
Late = Callable[[Any], object]
_IDLE: Final = 5.0
"""Seconds that a thread waits for another call. Whoever starts one waits until it runs, which it
may not soon where all CPUs are busy: that is the loop.
"""
_HEEDED: Final = 1.0
"""Seconds within which the loop tells a thread that has nothing to do to end."""
BUDGET: Final = Budget(0.1, longest=10.0, ahead=5.0)
"""Of the calls of one key, for `Lane.wait`: who calls now and then never waits."""


@dataclass(eq=False, slots=True)
class _Turn:
    """A call that waits for its turn, or is made."""

    key: Hashable
    call: Callable[[], Any]
    done: asyncio.Future[Any]
    late: Late | None


_Calls = queue.SimpleQueue[_Turn | None]
"""What a thread is to do next; None: to end."""


class Lane:
    """Calls of one kind: `at_once` of them, of each key one, each waited for `limit` seconds.

    A call that is not waited for any more keeps its place and its key until it comes back: there
    are never more threads than places, and whoever asks for another key is served as long as one
    is left. They are no threads of asyncio's pool, which the interpreter waits for at its end: a
    call that hangs must not keep this process from stopping.
    """

    def __init__(
        self, name: str, *, at_once: int, limit: float, budget: Budget | None = None
    ) -> None:
        """`budget`: of each key, for `wait`; `BUDGET` if None."""
        self.name: Final = name
        self.limit = limit
        self._at_once = at_once
        self._budget = BUDGET if budget is None else budget
        self._at_work: dict[Hashable, _Turn] = {}
        self._waiting: dict[Hashable, deque[_Turn]] = {}
        self._ready: dict[Hashable, None] = {}
        """The keys that wait for a place alone, the first that did first."""
        self._idle: list[_Calls] = []
        """Threads that have nothing to do just now."""
        self._used: dict[Hashable, float] = {}
        """Until when each key's budget is used up."""

    @property
    def given_up(self) -> int:
        """How many places are held by calls that nobody waits for any more."""
        return sum(turn.done.cancelled() for turn in self._at_work.values())

    def wait(self, key: Hashable) -> float:
        """Seconds after which another call of this key takes no more than its budget.

        For who calls it because somebody else does something, who must not say how often: one
        Python thread that computes makes all others wait.
        """
        until = self._used.get(key, NEVER)
        return self._budget.wait(until, asyncio.get_running_loop().time())

    async def call(
        self,
        key: Hashable,
        call: Callable[[], Result],
        *,
        limit: float | None = None,
        late: Callable[[Result], object] | None = None,
        slow: Callable[[], object] | None = None,
    ) -> Result:
        """The result of the call, made in a thread; raises what it raises.

        Raises NoAnswerError after `limit` seconds, those of the lane if None; waiting for its turn
        counts. A result that comes when nobody waits for it any more is given to `late`, in a
        thread too: what was opened has to be closed. With `slow`, a call that was begun by then is
        waited for, however long it takes: `slow` is called once, and says so.
        """
        limit = self.limit if limit is None else limit
        turn = _Turn(key, call, asyncio.get_running_loop().create_future(), late)
        taken = False
        self._put(turn)
        try:
            await asyncio.wait([turn.done], timeout=limit)
            if not turn.done.done():
                if slow is None or self._at_work.get(key) is not turn:
                    raise NoAnswerError(f"no answer within {limit:g} seconds")
                slow()
            result: Result = await turn.done
            taken = True
            return result
        finally:
            if not taken:
                turn.done.cancel()
                self._leave(turn)
            del turn  # it holds the error, whose traceback holds this frame

    def _put(self, turn: _Turn) -> None:
        self._waiting.setdefault(turn.key, deque()).append(turn)
        if turn.key not in self._at_work:
            self._ready.setdefault(turn.key)
        self._begin()

    def _leave(self, turn: _Turn) -> None:
        """Nobody waits for it any more."""
        line = self._waiting.get(turn.key)
        if line is not None and turn in line:
            line.remove(turn)
            if not line:
                del self._waiting[turn.key]
                self._ready.pop(turn.key, None)
        elif not turn.done.cancelled() and turn.done.exception() is None:
            self._dispose(turn, turn.done.result())  # both came at the same moment

    def _begin(self) -> None:
        while self._ready and len(self._at_work) < self._at_once:
            key = next(iter(self._ready))
            del self._ready[key]
            turn = self._waiting[key].popleft()
            if not self._waiting[key]:
                del self._waiting[key]
            self._at_work[key] = turn
            if self._idle:
                self._idle.pop().put(turn)
            else:
                self._start(turn)

    def _start(self, turn: _Turn) -> None:
        loop, calls = asyncio.get_running_loop(), _Calls()
        calls.put(turn)
        thread = threading.Thread(
            target=self._thread, args=(loop, calls), name=self.name, daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # there may be no more threads
            loop.call_soon(self._ended, turn, None, error)

    def _thread(self, loop: asyncio.AbstractEventLoop, calls: _Calls) -> None:
        """One call after another, until none has come for a while."""
        with suppress(RuntimeError):  # the loop is closed
            wait = _IDLE
            while True:
                try:
                    turn = calls.get(timeout=wait)
                except queue.Empty:
                    # Again, where nobody heeds it: the loop may have ended meanwhile.
                    loop.call_soon_threadsafe(self._dismiss, calls)
                    wait = max(_IDLE, _HEEDED)
                    continue
                if turn is None:
                    break
                self._work(loop, turn, calls)
                wait = _IDLE
                del turn  # it may hold what was opened

    def _dismiss(self, calls: _Calls) -> None:
        """The thread has nothing to do, if it was not given a call just now."""
        if calls in self._idle:
            self._idle.remove(calls)
            calls.put(None)

    def _work(self, loop: asyncio.AbstractEventLoop, turn: _Turn, calls: _Calls) -> None:
        """Raises RuntimeError when the loop is closed."""
        result, error = None, None
        began = time.thread_time()
        try:
            result = turn.call()
        except BaseException as raised:
            error = raised
        took = time.thread_time() - began
        try:
            loop.call_soon_threadsafe(self._ended, turn, result, error, calls, took)
        except RuntimeError:  # nobody waits for it any more
            if error is None and turn.late is not None:
                turn.late(result)
            raise
        finally:
            del error, turn  # the traceback of the one, held by the other, holds this frame

    def _ended(
        self,
        turn: _Turn,
        result: Any,
        error: BaseException | None,
        calls: _Calls | None = None,
        took: float = 0.0,
    ) -> None:
        del self._at_work[turn.key]
        self._count(turn.key, took)
        if calls is not None:
            self._idle.append(calls)
        if turn.key in self._waiting:
            self._ready.setdefault(turn.key)
        if turn.done.cancelled():
            if error is None:
                self._dispose(turn, result)
        elif error is not None:
            turn.done.set_exception(error)
        else:
            turn.done.set_result(result)
        self._begin()

    def _count(self, key: Hashable, took: float) -> None:
        """A call of this key has taken so many seconds of a CPU's time."""
        now = asyncio.get_running_loop().time()
        self._used = {each: until for each, until in self._used.items() if until > now}
        self._used[key] = self._budget.used(now, took, self._used.get(key, NEVER))

    def _dispose(self, turn: _Turn, result: Any) -> None:
        late = turn.late
        if late is None:
            return
        nobody: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        nobody.cancel()
        # A key of its own: who asks for the same again need not wait for it.
        self._put(_Turn(object(), lambda: late(result), nobody, None))


@dataclass(frozen=True, slots=True)
class Part:
    """Something to be closed, what a person calls it, and how many seconds it may take."""

    name: str
    close: Callable[[], Awaitable[None]]
    limit: float


async def close_each(parts: Iterable[Part]) -> dict[str, BaseException]:
    """Close all of them at the same time, each within its own limit; what went wrong, by name.

    One that hangs or fails takes nothing from the others. Raises nothing of theirs.
    """

    async def close(part: Part) -> BaseException | None:
        closing = asyncio.ensure_future(part.close())
        try:
            # Not asyncio.timeout(): that waits for what does not heed that it is cancelled.
            done, _ = await asyncio.wait([closing], timeout=part.limit)
        finally:
            closing.add_done_callback(lambda end: end.cancelled() or end.exception())
            closing.cancel()
        if not done:
            return NoAnswerError(f"not closed within {part.limit:g} seconds")
        return asyncio.CancelledError() if closing.cancelled() else closing.exception()

    parts = tuple(parts)
    ends = await asyncio.gather(*map(close, parts))
    return {part.name: error for part, error in zip(parts, ends, strict=True) if error is not None}
