"""When irqbalance is told what: bursts, restarts, refusals and the end."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from typing import cast

import pytest

from tests.daemon.test_timers import Clock
from virtirq.control.irqbalance import IrqbalanceClient, State, Told
from virtirq.daemon.irqbalance_guard import LINGER, IrqbalanceGuard
from virtirq.daemon.log import Log
from virtirq.daemon.timers import Timers

ENOUGH = 300.0
"""Seconds after which a test gives up."""
_ROUNDED = 1e-9
PID, NEXT = 12, 13
TOLD = Told(State.TOLD, PID)
REFUSED = Told(State.REFUSED, PID, reason="it does not answer")
LEFT_OUT = Told(State.TOLD, PID, frozenset([3]), "it reads 500 bytes of a list")


class FakeBans:
    """Notes what it is asked for, and answers what it is told to; the last answer holds."""

    def __init__(self, *answers: Told) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.answers = list(answers or [TOLD])
        self.go = threading.Event()
        self.go.set()
        self.begun = 0

    def _answer(self, *call: object) -> Told:
        self.begun += 1
        assert self.go.wait(ENOUGH)
        self.calls.append(call)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def keep(self, irqs: Collection[int], *, verify: bool = False) -> Told:
        return self._answer("keep", frozenset(irqs), verify)

    def release(self) -> Told:
        return self._answer("release")

    def close(self) -> None:
        self.calls.append(("close",))


class Stage:
    """A IrqbalanceGuard with an IrqbalanceClient and a clock that the test makes."""

    def __init__(self, bans: FakeBans) -> None:
        self.bans = bans
        self.clock = Clock()
        self.errors: list[BaseException] = []
        self.timers = Timers(self.clock.later, lambda: self.clock.now, self.errors.append)
        client = cast(IrqbalanceClient, bans)
        self.sparing = IrqbalanceGuard(client, Log(), self.timers, lambda: self.clock.now)
        self.ours: frozenset[int] = frozenset()
        self.asked = 0
        """How often it was asked for what is ours."""

    def kept(self) -> frozenset[int]:
        self.asked += 1
        return self.ours

    def want(self, ours: Collection[int] | None) -> None:
        """These are ours now; None: irqbalance is left to itself."""
        self.ours = frozenset(ours or ())
        self.sparing.want(None if ours is None else self.kept)
        self.sparing.changed()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(ENOUGH):
            while not condition():
                assert self.errors == []
                await asyncio.sleep(0.001)

    async def told(self) -> tuple[object, ...]:
        """The next that irqbalance is told, once the pause before that is over."""
        count = len(self.bans.calls)
        await self.next()
        assert len(self.bans.calls) == count + 1
        return self.bans.calls[-1]

    async def next(self) -> None:
        """What is to be done next is done."""
        self.pass_()
        await self.until(lambda: not self.timers._at_work)

    def pass_(self) -> None:
        """Time passes until something is done."""
        self.clock.pass_(self.clock.waits[0] + _ROUNDED)
        while self.clock.waits[:1] == [0]:
            self.clock.pass_(_ROUNDED)

    async def rests(self) -> None:
        """Nothing is about to happen."""
        for _ in range(20):
            await asyncio.sleep(0)
        assert self.clock.waits == []


Act = Callable[[Stage], Awaitable[None]]


@pytest.fixture
def play() -> Callable[..., None]:
    def run(act: Act, *answers: Told) -> None:
        async def main() -> None:
            stage = Stage(FakeBans(*answers))
            try:
                await act(stage)
                assert stage.errors == []
            finally:
                stage.bans.go.set()
                stage.timers.close()

        asyncio.run(main())

    return run


Play = Callable[..., None]


def test_nothing_is_told_before_it_is_known_what_is_ours(play: Play) -> None:
    """An earlier daemon may have told irqbalance what still holds, or no longer does."""

    async def act(stage: Stage) -> None:
        await stage.rests()
        assert stage.bans.calls == []
        stage.want(frozenset())
        assert await stage.told() == ("keep", frozenset(), False)
        await stage.rests()
        assert stage.sparing.findings() == ()

    play(act)


def test_what_comes_in_a_burst_is_told_in_one_go(play: Play) -> None:
    async def act(stage: Stage) -> None:
        for count in range(1, 10):
            stage.want(frozenset(range(count)))
        stage.clock.pass_(0.1)
        stage.want(frozenset({1, 2, 3}))
        assert await stage.told() == ("keep", frozenset({1, 2, 3}), False)
        await stage.rests()
        assert len(stage.bans.calls) == 1

    play(act)


def test_what_is_ours_is_asked_for_when_it_is_told_and_not_at_each_event(play: Play) -> None:
    async def act(stage: Stage) -> None:
        for count in range(100):
            stage.want(range(count))
        await stage.told()
        assert stage.asked == 1
        for _ in range(100):
            stage.sparing.changed()
        await stage.next()
        assert stage.asked == 2
        await stage.rests()
        assert len(stage.bans.calls) == 1, "it is the same as before"

    play(act)


def test_what_comes_while_it_is_told_is_told_next(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.bans.go.clear()
        stage.want(frozenset({1}))
        stage.pass_()
        await stage.until(lambda: stage.bans.begun == 1)
        stage.want(frozenset({1, 2}))
        stage.bans.go.set()
        await stage.until(lambda: not stage.timers._at_work)
        assert await stage.told() == ("keep", frozenset({1, 2}), False)
        assert [each[1] for each in stage.bans.calls] == [frozenset({1}), frozenset({1, 2})]
        await stage.rests()

    play(act)


def test_looking_whether_it_was_started_asks_it(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        stage.sparing.check()
        assert await stage.told() == ("keep", frozenset({1}), True)
        stage.want(frozenset({1, 2}))
        assert await stage.told() == ("keep", frozenset({1, 2}), False)

    play(act)


def test_what_was_freed_is_spared_a_while_longer(play: Play) -> None:
    """A guest that loads its driver anew gets the same numbers again within moments."""

    async def act(stage: Stage) -> None:
        stage.want(frozenset({1, 2}))
        await stage.told()
        stage.want(frozenset({1}))
        assert await stage.told() == ("keep", frozenset({1, 2}), False)
        assert stage.clock.waits == [LINGER]
        stage.clock.pass_(5)
        stage.want(frozenset({1, 2, 3}))
        assert await stage.told() == ("keep", frozenset({1, 2, 3}), False)
        assert stage.clock.waits == []
        stage.want(frozenset({3}))
        await stage.told()
        assert stage.clock.waits == [LINGER]
        assert await stage.told() == ("keep", frozenset({3}), False)
        assert stage.clock.waits == [], "there is no timer while all is well"
        stage.want(None)
        assert await stage.told() == ("release",)
        assert stage.clock.waits == []

    play(act)


@pytest.mark.parametrize("told", [Told(State.NOT_RUNNING), Told(State.SPARED, PID)])
def test_what_was_freed_needs_no_timer_where_nobody_would_move_it(play: Play, told: Told) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1, 2}))
        await stage.told()
        stage.want(frozenset({1}))
        assert await stage.told() == ("keep", frozenset({1}), False)
        assert stage.clock.waits == []

    play(act, told)


def test_one_that_was_started_is_waited_for(play: Play) -> None:
    """Its socket comes some time after; whoever else bears its name is waited for in vain."""

    async def act(stage: Stage) -> None:
        stage.want(frozenset())
        await stage.told()
        stage.sparing.restarted()
        for seconds in (0.5, 1.0, 2.0, 5.0):
            assert stage.clock.waits == [seconds]
            await stage.told()
        await stage.rests()

    play(act)


def test_whoever_starts_programs_of_its_name_puts_nothing_off(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        for _ in range(7):
            stage.sparing.restarted()
            stage.clock.pass_(0.1)
        await stage.until(lambda: len(stage.bans.calls) == 2)

    play(act)


@pytest.mark.parametrize("before", [TOLD, Told(State.NOT_RUNNING)])
def test_one_that_was_found_is_waited_for_no_more(play: Play, before: Told) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        stage.sparing.restarted()
        await stage.told()
        assert stage.sparing.spared is None
        await stage.told()
        assert stage.sparing.spared == NEXT
        await stage.rests()

    play(act, before, Told(State.NOT_RUNNING), Told(State.TOLD, NEXT))


def test_one_that_does_not_listen_yet_is_not_found(play: Play) -> None:
    """Its unit's cgroup names it from its start on (host/irqbalance.py)."""

    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        stage.sparing.restarted()
        await stage.told()
        assert 30.0 not in stage.clock.waits
        await stage.told()
        assert stage.sparing.spared == NEXT

    play(act, TOLD, Told(State.REFUSED, NEXT, reason="no socket"), Told(State.TOLD, NEXT))


def test_one_that_does_not_answer_is_asked_again(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        assert stage.clock.waits == [30.0]
        assert await stage.told() == ("keep", frozenset({1}), False)
        assert stage.clock.waits == [], "there is no timer while all is well"
        await stage.rests()

    play(act, REFUSED, TOLD)


@pytest.mark.parametrize("told", [TOLD, Told(State.NOT_RUNNING), Told(State.SPARED, PID)])
def test_there_is_no_timer_while_there_is_nothing_to_do(play: Play, told: Told) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        assert stage.clock.waits == []

    play(act, told)


@pytest.mark.parametrize(
    ("told", "spared", "finding"),
    [
        (TOLD, PID, ""),
        (Told(State.SPARED, PID), PID, ""),
        (Told(State.NOT_RUNNING), None, ""),
        (REFUSED, None, "irqbalance (pid 12) was not told: it does not answer"),
        (LEFT_OUT, None, "irqbalance (pid 12) was not told: it reads 500 bytes of a list"),
        (Told(State.REFUSED, None, reason="cannot be told"), None, ""),
    ],
)
def test_what_a_person_should_know(
    play: Play, told: Told, spared: int | None, finding: str
) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1, 3}))
        await stage.told()
        assert stage.sparing.spared == spared
        found = [(each.code, each.message) for each in stage.sparing.findings()]
        assert found == ([("irqbalance-untold", finding)] if finding else [])

    play(act, told)


def test_who_wants_nothing_misses_nothing(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset())
        await stage.told()
        assert stage.sparing.findings() == ()

    play(act, REFUSED)


def test_without_cooperation_ours_are_taken_out(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        stage.want(None)
        assert stage.sparing.spared is None
        assert await stage.told() == ("release",)
        assert (stage.sparing.spared, stage.sparing.findings()) == (None, ())
        await stage.rests()
        stage.want(frozenset({1}))
        assert await stage.told() == ("keep", frozenset({1}), False)
        assert stage.sparing.spared == PID

    play(act)


def test_a_call_that_hangs_is_one_that_was_refused(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(stage: Stage) -> None:
        stage.want({1})
        await stage.told()
        monkeypatch.setattr(stage.sparing._calls, "limit", 0.01)
        stage.bans.go.clear()
        stage.want({1, 2})
        await stage.next()
        assert stage.clock.waits == [30.0]
        (finding,) = stage.sparing.findings()
        said = "irqbalance (pid 12) was not told: no answer within 0.01 seconds"
        assert finding.message == said
        stage.bans.go.set()
        monkeypatch.setattr(stage.sparing._calls, "limit", ENOUGH)
        await stage.until(lambda: len(stage.bans.calls) == 2)
        assert await stage.told() == ("keep", frozenset({1, 2}), False)
        assert stage.sparing.findings() == ()

    play(act)


def test_ours_are_taken_out_in_the_end(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        stage.timers.close()
        await stage.sparing.close(release=True)
        assert stage.bans.calls[1:] == [("release",), ("close",)]
        assert stage.sparing.spared is None

    play(act)


def test_or_they_stay_for_who_comes_after_us(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.want(frozenset({1}))
        await stage.told()
        stage.timers.close()
        await stage.sparing.close(release=False)
        assert stage.bans.calls[1:] == [("close",)]

    play(act)


def test_the_end_comes_after_what_is_going_on(play: Play) -> None:
    """IrqbalanceClient are for one thread at a time, and what is told last holds."""

    async def act(stage: Stage) -> None:
        stage.bans.go.clear()
        stage.want(frozenset({1}))
        stage.pass_()
        await stage.until(lambda: stage.bans.begun == 1)
        stage.timers.close()
        closing = asyncio.create_task(stage.sparing.close(release=True))
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert stage.bans.begun == 1
        stage.bans.go.set()
        await closing
        assert [each[0] for each in stage.bans.calls] == ["keep", "release", "close"]

    play(act)


def test_what_is_said(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def act(stage: Stage) -> None:
        said = []
        for wanted in (set(), {1}, {1, 2}, {1, 2}, {1, 3}, {1, 3}):
            stage.want(frozenset(wanted))
            stage.sparing.check()
            await stage.told()
            said.append([each.getMessage() for each in caplog.records])
            caplog.clear()
        stage.want(None)
        await stage.told()
        assert said == [
            [],
            ["irqbalance (pid 13): told to leave 1 interrupt alone"],
            ["irqbalance (pid 13): it does not answer"],
            [],
            ["irqbalance (pid 13): leaves interrupts of vfio-pci alone by its options"],
            [],
        ]
        (last,) = caplog.records
        assert last.getMessage() == "irqbalance (pid 12): told that interrupts are its own again"

    refused = Told(State.REFUSED, NEXT, reason="it does not answer")
    spared = Told(State.SPARED, NEXT)
    play(act, TOLD, Told(State.TOLD, NEXT), refused, refused, spared, spared, TOLD)
