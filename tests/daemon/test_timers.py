"""The queue for later: once for each key, one at work at a time, and what fails is told."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.daemon.timers import AGAIN, Timers


class Clock:
    """A loop's timers, and time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self._queue: list[tuple[float, int, Entry]] = []
        self._number = count()

    def later(self, delay: float, call: Callable[[], object]) -> Entry:
        entry = Entry(call)
        heapq.heappush(self._queue, (self.now + delay, next(self._number), entry))
        return entry

    def pass_(self, seconds: float) -> None:
        end = self.now + seconds
        while self._queue and self._queue[0][0] <= end:
            self.now, _, entry = heapq.heappop(self._queue)
            if entry.call is not None:
                entry.call()
        self.now = end

    @property
    def pending(self) -> int:
        return len(self.waits)

    @property
    def waits(self) -> list[float]:
        """Seconds until each of what is to be called."""
        due = (at for at, _, entry in self._queue if entry.call is not None)
        return sorted(round(at - self.now, 6) for at in due)


class Entry:
    def __init__(self, call: Callable[[], object]) -> None:
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        self.call = None


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.errors: list[BaseException] = []
        self.timers = Timers(self.clock.later, lambda: self.clock.now, self.errors.append)
        self.done: list[tuple[str, float]] = []

    def do(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append((name, self.clock.now - 100))


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_once_however_often_it_is_asked_for(scene: Scene) -> None:
    for _ in range(5):
        scene.timers.soon(("a",), 1, scene.do("a"))
    assert scene.clock.pending == 1
    scene.clock.pass_(10)
    assert scene.done == [("a", 1)]
    scene.timers.soon(("a",), 1, scene.do("a"))
    scene.clock.pass_(10)
    assert scene.done == [("a", 1), ("a", 11)]


def test_the_sooner_holds(scene: Scene) -> None:
    scene.timers.soon(("a",), 5, scene.do("late"))
    scene.timers.soon(("a",), 2, scene.do("soon"))
    scene.timers.soon(("a",), 9, scene.do("later"))
    scene.clock.pass_(20)
    assert scene.done == [("soon", 2)]


def test_put_off_is_put_off(scene: Scene) -> None:
    scene.timers.soon(("a",), 1, scene.do("before"))
    scene.timers.put_off(("a",), 5, scene.do("after"))
    scene.clock.pass_(20)
    assert scene.done == [("after", 5)]


def test_again_is_later_and_later(scene: Scene) -> None:
    delays = []
    for _ in range(10):
        delays.append(scene.timers.again(("a",), scene.do("a")))
        scene.clock.pass_(delays[-1])
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    assert len(scene.done) == 10
    scene.timers.done(("a",))
    assert scene.timers.again(("a",), scene.do("a"), (3, 5)) == 3
    assert scene.timers.again(("b",), scene.do("b")) == AGAIN[0], "each has its own"


def test_what_is_due_sooner_is_not_put_off_by_a_failure(scene: Scene) -> None:
    scene.timers.soon(("a",), 0.25, scene.do("soon"))
    scene.timers.again(("a",), scene.do("again"))
    scene.clock.pass_(5)
    assert scene.done == [("soon", 0.25)]


def test_cancelled_by_how_its_key_begins(scene: Scene) -> None:
    for key in (("guest", "a"), ("guest", "b"), ("device", "a")):
        scene.timers.soon(key, 1, scene.do("-".join(key)))
    scene.timers.cancel("guest", "a")
    assert not scene.timers.is_due(("guest", "a"))
    assert scene.timers.is_due(("guest", "b"))
    scene.clock.pass_(5)
    assert [name for name, _ in scene.done] == ["guest-b", "device-a"]
    scene.timers.soon(("guest", "a"), 1, scene.do("x"))
    scene.timers.cancel("guest")
    scene.timers.cancel("none")
    scene.clock.pass_(5)
    assert len(scene.done) == 2


def test_cancelled_begins_anew(scene: Scene) -> None:
    scene.timers.again(("a", 1), scene.do("a"))
    scene.timers.cancel("a")
    assert scene.timers.again(("a", 1), scene.do("a")) == AGAIN[0]


def test_closed_does_nothing_any_more(scene: Scene) -> None:
    scene.timers.soon(("a",), 1, scene.do("a"))
    scene.timers.close()
    scene.timers.soon(("b",), 1, scene.do("b"))
    scene.clock.pass_(5)
    assert scene.done == []
    assert scene.clock.pending == 0


def test_what_is_asked_for_within_is_done_as_well(scene: Scene) -> None:
    def once_more() -> None:
        scene.do("a")()
        scene.timers.soon(("a",), 1, scene.do("once more"))

    scene.timers.soon(("a",), 1, once_more)
    scene.clock.pass_(5)
    assert scene.done == [("a", 1), ("once more", 2)]


def test_an_error_is_told_and_the_rest_goes_on(scene: Scene) -> None:
    error = ValueError("a bug")

    def fail() -> None:
        raise error

    scene.timers.soon(("a",), 1, fail)
    scene.timers.soon(("b",), 2, scene.do("b"))
    scene.clock.pass_(5)
    assert scene.errors == [error]
    assert scene.done == [("b", 2)]


class TestWork:
    """Functions that are coroutines'."""

    def test_one_at_a_time_and_once_more(self) -> None:
        async def main() -> list[str]:
            loop = asyncio.get_running_loop()
            timers = Timers(loop.call_later, loop.time, errors.append)
            go, told = asyncio.Event(), []
            over = asyncio.Event()

            async def work() -> None:
                told.append("begins")
                await go.wait()
                told.append("ends")
                if told.count("ends") == 2:
                    over.set()

            timers.soon(("a",), 0, work)
            while not told:
                await asyncio.sleep(0)
            for _ in range(3):
                timers.soon(("a",), 0, work)
                await asyncio.sleep(0.01)
            assert told == ["begins"]
            go.set()
            await over.wait()
            await asyncio.sleep(0.01)
            return told

        errors: list[BaseException] = []
        assert asyncio.run(main()) == ["begins", "ends", "begins", "ends"]
        assert errors == []

    def test_an_error_of_it_is_told(self) -> None:
        async def main() -> None:
            loop = asyncio.get_running_loop()
            told: asyncio.Future[BaseException] = loop.create_future()
            timers = Timers(loop.call_later, loop.time, told.set_result)

            async def work() -> None:
                raise ValueError("a bug")

            timers.soon(("a",), 0, work)
            assert isinstance(await told, ValueError)

        asyncio.run(main())

    def test_cancelled_it_is_broken_off(self) -> None:
        async def main() -> list[str]:
            loop = asyncio.get_running_loop()
            timers = Timers(loop.call_later, loop.time, told.append)
            begun, over = asyncio.Event(), asyncio.Event()

            async def work() -> None:
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    over.set()

            timers.soon(("a",), 0, work)
            await begun.wait()
            timers.soon(("a",), 0, work)
            await asyncio.sleep(0.01)
            timers.close()
            await over.wait()
            await asyncio.sleep(0.01)
            return []

        told: list[BaseException] = []
        asyncio.run(main())
        assert told == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.booleans()), max_size=30))
def test_never_more_than_one_for_each_and_never_lost(
    asked: list[tuple[str, int, bool]],
) -> None:
    scene = Scene()
    due: dict[str, int] = {}
    for name, delay, put_off in asked:
        (scene.timers.put_off if put_off else scene.timers.soon)((name,), delay, scene.do(name))
        due[name] = delay if put_off else min(delay, due.get(name, 99))
    assert scene.clock.pending == len(due)
    scene.clock.pass_(100)
    assert sorted(scene.done) == sorted(due.items())
