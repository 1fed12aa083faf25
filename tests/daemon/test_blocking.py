"""Calls that may block: their turns, their limits, and those that never come back."""

from __future__ import annotations

import asyncio
import gc
import logging
import queue
import subprocess
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtirq.daemon import blocking as module
from virtirq.daemon.blocking import Lane, Part, close_each
from virtirq.errors import NoAnswerError
from virtirq.policy.budget import Budget

ENOUGH = 300.0
IDLE = module._IDLE
SHORT = 0.01


class BrokenError(Exception):
    pass


def raise_broken() -> None:
    raise BrokenError


def lane(at_once: int = 4, limit: float = ENOUGH) -> Lane:
    return Lane("test", at_once=at_once, limit=limit)


def play(act: Callable[[], Awaitable[Any]]) -> Any:
    """In a loop that must have nothing to complain of."""
    complaints: list[object] = []

    async def main() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        return await act()

    result = asyncio.run(main())
    assert complaints == []
    return result


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(ENOUGH):
        while not condition():
            await asyncio.sleep(0.001)


class Hanging:
    """Calls that are begun and go on until they are let go, by name."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.let_go: dict[str, threading.Event] = {}
        self.at_once = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, name: str) -> Callable[[], str]:
        go = self.let_go.setdefault(name, threading.Event())

        def call() -> str:
            with self._lock:
                self.begun.append(name)
                self.at_once += 1
                self.most = max(self.most, self.at_once)
            assert go.wait(ENOUGH)
            with self._lock:
                self.at_once -= 1
            return name

        return call

    def end(self, *names: str) -> None:
        for name in names or tuple(self.let_go):
            self.let_go[name].set()


class Spending:
    """A thread's clock, by which each call takes the seconds that it is given."""

    def __init__(self) -> None:
        self.now = 0.0

    def thread_time(self) -> float:
        return self.now

    def call(self, seconds: float) -> Callable[[], None]:
        def spend() -> None:
            self.now += seconds

        return spend


class TestShare:
    """What calls of one key may cost, for who makes them because others do something."""

    @pytest.fixture
    def spending(self, monkeypatch: pytest.MonkeyPatch) -> Spending:
        spending = Spending()
        monkeypatch.setattr(module, "time", spending)
        return spending

    def test_is_a_tenth_of_the_time_of_each_key(
        self, spending: Spending, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def act() -> None:
            ours, loop = lane(), asyncio.get_running_loop()
            began = loop.time()
            monkeypatch.setattr(loop, "time", lambda: began)
            monkeypatch.setattr(ours, "_budget", Budget(0.1, longest=10.0))
            assert ours.wait("a") == 0
            await ours.call("a", spending.call(0.5))
            assert ours.wait("a") == pytest.approx(4.5)
            assert ours.wait("b") == 0
            await ours.call("b", spending.call(0.01))
            assert ours.wait("b") == pytest.approx(0.09)
            monkeypatch.setattr(loop, "time", lambda: began + 4)
            assert ours.wait("a") == pytest.approx(0.5)
            assert ours.wait("b") == 0
            await ours.call("a", spending.call(0.5))
            assert ours.wait("a") == pytest.approx(5.5), "it was called before its time"
            await ours.call("c", spending.call(1))
            assert ours._used.keys() == {"a", "c"}, "what is over is forgotten"

        play(act)

    def test_who_calls_now_and_then_never_waits(self, spending: Spending) -> None:
        async def act() -> None:
            ours = lane()
            for _ in range(5):
                await ours.call("a", spending.call(0.1))
                assert ours.wait("a") == 0
            await ours.call("a", spending.call(1000))
            assert 0 < ours.wait("a") <= module.BUDGET.longest

        play(act)

    def test_who_only_waits_costs_nothing(self, spending: Spending) -> None:
        async def act() -> None:
            ours, hang = lane(), Hanging()
            with pytest.raises(NoAnswerError):
                await ours.call("a", hang("a"), limit=SHORT)
            hang.end()
            await until(lambda: not ours._at_work)
            assert ours.wait("a") == 0

        play(act)


class TestOne:
    def test_the_result_comes_back(self) -> None:
        async def act() -> None:
            assert await lane().call("key", lambda: 42) == 42
            assert await lane().call("key", lambda: [None]) == [None]

        play(act)

    def test_it_runs_in_a_thread_of_its_own_that_has_a_name(self) -> None:
        async def act() -> tuple[str, bool, int]:
            ours = lane()
            name = await ours.call("key", lambda: threading.current_thread().name)
            alone = await ours.call("key", lambda: threading.current_thread().daemon)
            return name, alone, await ours.call("key", threading.get_ident)

        name, alone, thread = play(act)
        assert (name, alone) == ("test", True)
        assert thread != threading.get_ident()

    @pytest.mark.parametrize(
        "error", [BrokenError("x"), OSError(5, "y"), TimeoutError("its own"), SystemExit(3)]
    )
    def test_what_it_raises_is_raised(self, error: BaseException) -> None:
        def fail() -> None:
            raise error

        async def act() -> BaseException:
            try:
                await lane().call("key", fail)
            except BaseException as raised:
                return raised
            raise AssertionError("nothing was raised")

        assert play(act) is error

    def test_an_error_that_was_dealt_with_is_freed(self) -> None:
        """Without the collector of cycles: tasks that nobody waits for are told of when freed."""

        class Witness:
            pass

        def fail() -> None:
            witness = Witness()
            seen.append(weakref.ref(witness))
            raise BrokenError

        async def act() -> None:
            ours = lane()
            for _ in range(3):
                with suppress(BrokenError):
                    await ours.call("key", fail)
            await until(lambda: not any(each() for each in seen))

        seen: list[weakref.ref[Witness]] = []
        gc.disable()
        try:
            play(act)
        finally:
            gc.enable()

    def test_the_loop_goes_on_meanwhile(self) -> None:
        async def act() -> bool:
            go = threading.Event()
            asyncio.get_running_loop().call_soon(go.set)
            return await lane().call("key", lambda: go.wait(ENOUGH))

        assert play(act)

    def test_a_thread_that_cannot_be_made(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        async def act() -> None:
            ours = lane(at_once=1)
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", refuse)
                for _ in range(3):
                    with pytest.raises(RuntimeError, match="can't start"):
                        await ours.call("key", lambda: 1)
            assert await ours.call("key", lambda: 2) == 2

        play(act)


class TestThreads:
    """Starting one takes as long as it takes to run, on a host whose CPUs are all busy."""

    @pytest.fixture(autouse=True)
    def as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_IDLE", IDLE)

    @staticmethod
    def alive(name: str) -> int:
        return sum(each.name == name for each in threading.enumerate())

    def test_one_makes_many_calls(self) -> None:
        async def act() -> None:
            ours = lane()
            threads = {await ours.call(key, threading.get_ident) for key in range(20)}
            with suppress(BrokenError):
                await ours.call("key", raise_broken)
            threads.add(await ours.call("key", threading.get_ident))
            assert len(threads) == 1

        play(act)

    def test_as_many_as_are_needed_at_once(self) -> None:
        async def act() -> None:
            ours = Lane("three", at_once=3, limit=ENOUGH)
            for _ in range(5):
                barrier = threading.Barrier(3)
                await asyncio.gather(*(ours.call(key, barrier.wait) for key in range(3)))
            assert self.alive("three") == 3

        play(act)

    def test_one_that_waits_to_be_told_to_end_outlives_no_loop(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The loop may have ended with that still to be done."""
        monkeypatch.setattr(module, "_HEEDED", SHORT)
        asked = 0

        class Ending:
            def call_soon_threadsafe(self, *_: object) -> None:
                nonlocal asked
                asked += 1
                if asked > 2:
                    raise RuntimeError("Event loop is closed")

        ours, loop = lane(), cast(asyncio.AbstractEventLoop, Ending())
        thread = threading.Thread(target=ours._thread, args=(loop, queue.SimpleQueue()))
        thread.daemon = True
        thread.start()
        thread.join(ENOUGH)
        assert not thread.is_alive()

    @pytest.mark.parametrize("idle", [0.0, 0.0005])
    def test_one_without_work_ends_and_no_call_is_lost_to_it(
        self, idle: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_IDLE", idle)

        async def act() -> None:
            ours = Lane("idle", at_once=2, limit=ENOUGH)
            for number in range(300):
                calls = (ours.call(key, partial(int, number)) for key in range(number % 4))
                assert set(await asyncio.gather(*calls)) <= {number}
                await asyncio.sleep(number % 3 * 0.0004)
            await until(lambda: self.alive("idle") == 0)
            assert ours._idle == []

        play(act)

    def test_what_was_opened_is_not_kept_by_who_waits_for_more(self) -> None:
        class Opened:
            pass

        async def act() -> None:
            ours = lane()
            opened = await ours.call("key", Opened)
            seen = weakref.ref(opened)
            del opened
            await until(lambda: seen() is None)

        gc.disable()
        try:
            play(act)
        finally:
            gc.enable()


class TestTurns:
    def test_so_many_at_once_and_the_first_that_asked_first(self) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane(at_once=2)
            names = [f"g{number}" for number in range(5)]
            tasks = [asyncio.create_task(ours.call(name, hanging(name))) for name in names]
            await until(lambda: len(hanging.begun) == 2)
            for number, name in enumerate(names):
                hanging.end(name)
                await until(lambda n=number: len(hanging.begun) >= min(n + 3, 5))  # type: ignore[misc]
            assert await asyncio.gather(*tasks) == names
            assert hanging.begun == names
            assert hanging.most == 2

        play(act)

    def test_one_at_a_time_for_each_key(self) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane()
            first = asyncio.create_task(ours.call("web", hanging("first")))
            second = asyncio.create_task(ours.call("web", hanging("second")))
            other = asyncio.create_task(ours.call("db", hanging("other")))
            await until(lambda: sorted(hanging.begun) == ["first", "other"])
            hanging.end("other")
            assert await other == "other"
            assert "second" not in hanging.begun
            hanging.end()
            assert (await first, await second) == ("first", "second")

        play(act)

    def test_many_that_wait_for_the_same_hung_call_lose_no_place(self) -> None:
        """Round for round as many places are there as before."""

        async def act() -> None:
            ours = lane(at_once=2)
            for _ in range(4):
                hanging = Hanging()
                hung = asyncio.create_task(ours.call("web", hanging("hung")))
                rest = [asyncio.create_task(ours.call("web", lambda: "read")) for _ in range(3)]
                await until(lambda h=hanging: h.begun)  # type: ignore[misc]
                hanging.end()
                assert await asyncio.gather(hung, *rest) == ["hung", "read", "read", "read"]
            assert (ours._at_work, ours._waiting, ours._ready) == ({}, {}, {})
            barrier = threading.Barrier(2)
            both = (ours.call(key, lambda: barrier.wait(ENOUGH)) for key in ("a", "b"))
            await asyncio.gather(*both)

        play(act)


class TestGivenUp:
    def test_a_call_that_hangs_is_given_up(self) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane(limit=SHORT)
            with pytest.raises(NoAnswerError, match=r"^no answer within 0\.01 seconds$"):
                await ours.call("web", hanging("web"))
            assert ours.given_up == 1
            hanging.end()
            await until(lambda: ours.given_up == 0)
            assert await ours.call("web", lambda: 1, limit=ENOUGH) == 1

        play(act)

    def test_it_keeps_its_key_and_its_place_and_everybody_else_is_served(self) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane(at_once=2)
            for _ in range(5):
                with pytest.raises(NoAnswerError):
                    await ours.call("web", hanging("web"), limit=SHORT)
            await until(lambda: hanging.begun)
            assert hanging.begun == ["web"], "there is one thread, and not five"
            for number in range(20):
                assert await ours.call(f"g{number}", lambda: "read") == "read"
            hanging.end()
            assert await ours.call("web", lambda: "read") == "read"

        play(act)

    def test_there_are_never_more_threads_than_places(self) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane(at_once=3, limit=SHORT)
            names = [f"g{number}" for number in range(20)]
            calls = (ours.call(name, hanging(name)) for name in names)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(end) for end in ends} == {NoAnswerError}
            assert ours.given_up == 3
            await until(lambda: sorted(hanging.begun) == names[:3])
            hanging.end()
            await until(lambda: ours.given_up == 0)
            assert len(hanging.begun) == 3, "whoever was given up before its turn is not called"
            assert await ours.call("g0", lambda: 1, limit=ENOUGH) == 1
            assert (ours._at_work, ours._waiting, ours._ready) == ({}, {}, {})

        play(act)

    @pytest.mark.parametrize("fails", [False, True])
    def test_who_has_stopped_waiting_hears_no_more_of_it(
        self, fails: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def act() -> None:
            go = threading.Event()

            def call() -> None:
                go.wait(ENOUGH)
                if fails:
                    raise BrokenError

            ours = lane(limit=SHORT)
            with pytest.raises(NoAnswerError):
                await ours.call("key", call)
            go.set()
            await until(lambda: ours.given_up == 0)

        play(act)
        assert caplog.records == []

    def test_what_is_slow_is_waited_for_where_that_is_said(self) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane(limit=SHORT)
            said: list[str] = []
            call = ours.call("web", hanging("web"), slow=lambda: said.append("web"))
            task = asyncio.create_task(call)
            await until(lambda: said)
            with pytest.raises(NoAnswerError):  # it has not begun: it may never
                await ours.call("web", hanging("next"), slow=lambda: said.append("next"))
            assert (said, hanging.begun, ours.given_up) == (["web"], ["web"], 0)
            hanging.end()
            assert await task == "web"
            quick = ours.call("web", lambda: "read", limit=ENOUGH, slow=lambda: said.append("no"))
            assert await quick == "read"
            assert said == ["web"]

        play(act)

    @pytest.mark.parametrize("fails", [False, True])
    def test_what_is_slow_and_not_waited_for_any_more(self, fails: bool) -> None:
        async def act() -> None:
            go, closed, said = threading.Event(), list[object](), list[object]()

            def call() -> str:
                go.wait(ENOUGH)
                if fails:
                    raise BrokenError
                return "late"

            ours = lane(limit=SHORT)
            waits = ours.call("web", call, late=closed.append, slow=lambda: said.append(1))
            task = asyncio.create_task(waits)
            await until(lambda: said)
            task.cancel()
            await asyncio.wait([task])
            assert ours.given_up == 1
            go.set()
            await until(lambda: ours.given_up == 0)
            await ours.call("other", lambda: 1, limit=ENOUGH)
            await until(lambda: closed == ([] if fails else ["late"]))

        play(act)

    def test_what_it_would_open_is_closed_when_it_comes_late(self) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane(limit=SHORT)
            closed: list[tuple[str, str]] = []

            def close(what: str) -> None:
                closed.append((what, threading.current_thread().name))

            with pytest.raises(NoAnswerError):
                await ours.call("open", hanging("late"), late=close)
            assert await ours.call("other", lambda: "in time", limit=ENOUGH, late=close)
            hanging.end()
            await until(lambda: closed)
            assert closed == [("late", "test")]

        play(act)

    def test_what_fails_late_leaves_nothing_to_be_closed(self) -> None:
        async def act() -> None:
            go = threading.Event()

            def fail() -> None:
                go.wait(ENOUGH)
                raise BrokenError

            ours, closed = lane(limit=SHORT), list[object]()
            with pytest.raises(NoAnswerError):
                await ours.call("open", fail, late=closed.append)
            go.set()
            await until(lambda: ours.given_up == 0)
            await ours.call("open", lambda: 1, limit=ENOUGH)
            assert closed == []

        play(act)

    def test_what_comes_at_the_moment_of_giving_up_is_closed_too(self) -> None:
        class Racing(Lane):
            def _ended(self, *end: Any) -> None:
                super()._ended(*end)
                for task in tasks:
                    task.cancel()  # before it goes on

        async def act() -> None:
            ours = Racing("test", at_once=1, limit=ENOUGH)
            opening = ours.call("open", lambda: "open", late=closed.append)
            tasks.append(asyncio.create_task(opening))
            await asyncio.wait(tasks)
            assert tasks[0].cancelled()
            await until(lambda: closed == ["open"])

        closed: list[object] = []
        tasks: list[asyncio.Task[str]] = []
        play(act)

    def test_one_that_is_closed_for_ever_takes_a_place_and_no_more(self) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane(at_once=2, limit=SHORT)
            stuck = hanging("stuck")
            with pytest.raises(NoAnswerError):
                await ours.call("open", hanging("open"), late=lambda _: stuck())
            hanging.end("open")
            await until(lambda: hanging.begun == ["open", "stuck"])
            assert await ours.call("open", lambda: "again", limit=ENOUGH) == "again"
            hanging.end()

        play(act)


class TestTheEnd:
    def test_one_that_ends_after_the_loop_does_no_harm_and_is_closed(self) -> None:
        hanging, closed = Hanging(), list[object]()
        failures: list[object] = []
        threads: list[threading.Thread] = []
        hangs = hanging("open")

        def call() -> str:
            threads.append(threading.current_thread())
            return hangs()

        async def act() -> None:
            task = asyncio.create_task(lane().call("open", call, late=closed.append))
            await until(lambda: hanging.begun)
            task.cancel()

        hook, threading.excepthook = threading.excepthook, failures.append
        try:
            play(act)
            hanging.end()
            threads[0].join(ENOUGH)
        finally:
            threading.excepthook = hook
        assert (closed, failures) == (["open"], [])

    def test_one_that_hangs_does_not_keep_the_process(self) -> None:
        script = (
            "import asyncio, threading\n"
            "from virtirq.daemon.blocking import Lane\n"
            "from virtirq.errors import NoAnswerError\n"
            "async def main():\n"
            "    try:\n"
            "        lane = Lane('hangs', at_once=1, limit=0.01)\n"
            "        await lane.call('key', threading.Event().wait)\n"
            "    except NoAnswerError:\n"
            "        print('over')\n"
            "asyncio.run(main())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=ENOUGH,
            check=True,
        )
        assert (done.stdout, done.stderr) == ("over\n", "")


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "end", "give up"]), st.integers(0, 3)), max_size=25
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, at_once=st.integers(1, 3))
def test_whatever_happens_places_and_keys_are_kept(
    steps: list[tuple[str, int]], at_once: int
) -> None:
    """No more at once than places, none twice at a time, and all are free in the end."""

    async def act() -> None:
        ours = lane(at_once=at_once)
        lock = threading.Lock()
        at_work: list[int] = []
        faults: list[str] = []
        asked: list[tuple[asyncio.Task[None], threading.Event]] = []

        def call(key: int, go: threading.Event) -> None:
            with lock:
                if key in at_work or len(at_work) >= at_once:
                    faults.append(f"{key} beside {at_work}")
                at_work.append(key)
            assert go.wait(ENOUGH)
            with lock:
                at_work.remove(key)

        for step, number in steps:
            if step == "ask":
                go = threading.Event()
                task = asyncio.create_task(ours.call(number, lambda k=number, g=go: call(k, g)))  # type: ignore[misc]
                asked.append((task, go))
            elif asked and step == "end":
                asked[number % len(asked)][1].set()
            elif asked:
                asked[number % len(asked)][0].cancel()
            await asyncio.sleep(0)
        for _, go in asked:
            go.set()
        await asyncio.gather(*(task for task, _ in asked), return_exceptions=True)
        await until(lambda: not ours._at_work)
        assert (ours._waiting, ours._ready, faults) == ({}, {}, [])

    play(act)


class TestClosing:
    def test_all_at_the_same_time(self) -> None:
        async def act() -> None:
            barrier = asyncio.Barrier(3)

            async def close() -> None:
                await barrier.wait()

            parts = [Part(name, close, ENOUGH) for name in "abc"]
            assert await close_each(parts) == {}

        play(act)

    def test_one_that_hangs_or_fails_takes_nothing_from_the_others(self) -> None:
        async def act() -> None:
            go, closed = asyncio.Event(), list[str]()

            async def hang() -> None:
                await asyncio.Event().wait()

            async def hang_on() -> None:
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                await go.wait()
                raise BrokenError

            async def fail() -> None:
                raise BrokenError("why")

            async def give_up() -> None:
                raise asyncio.CancelledError

            async def close() -> None:
                for _ in range(3):
                    await asyncio.sleep(SHORT)
                closed.append("well")

            wrong = await close_each(
                (
                    Part("hangs", hang, SHORT),
                    Part("heeds nothing", hang_on, SHORT),
                    Part("fails", fail, ENOUGH),
                    Part("gives up", give_up, ENOUGH),
                    Part("well", close, ENOUGH),
                )
            )
            assert closed == ["well"]
            assert {name: str(error) for name, error in wrong.items()} == {
                "hangs": "not closed within 0.01 seconds",
                "heeds nothing": "not closed within 0.01 seconds",
                "fails": "why",
                "gives up": "",
            }
            go.set()
            await asyncio.sleep(0)

        play(act)

    def test_calls_that_hang(self, caplog: pytest.LogCaptureFixture) -> None:
        async def act() -> None:
            hanging, ours = Hanging(), lane(at_once=1)

            async def close() -> None:
                await ours.call("close", hanging("close"))

            (name,) = await close_each([Part("libvirt", close, SHORT)])
            assert name == "libvirt"
            hanging.end()
            await until(lambda: ours.given_up == 0)

        caplog.set_level(logging.ERROR)
        play(act)
        assert caplog.records == []
