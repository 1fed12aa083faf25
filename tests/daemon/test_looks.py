"""One look at a time, and one more if asked meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from virtirq.daemon.looks import Looks

SOON = 0.001
ENOUGH = 300.0


class Scene:
    """Looks that begin when they are asked for and end when they are told to."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.at_once = self.most = 0
        self.go = asyncio.Event()
        self.looks = Looks(self._look, SOON)

    async def _look(self, key: str) -> None:
        self.seen.append(key)
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.go.wait()
        finally:
            self.at_once -= 1
        if key == "bad":
            raise RuntimeError("a bug")

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(ENOUGH):
            while not condition():
                await asyncio.sleep(SOON)


def play(act: Callable[[Scene], Awaitable[None]]) -> None:
    async def main() -> None:
        await act(Scene())

    asyncio.run(main())


def test_asked_many_times_until_it_is_due_is_one_look() -> None:
    async def act(scene: Scene) -> None:
        assert scene.looks.idle
        for _ in range(5):
            scene.looks.ask("a")
        assert not scene.looks.idle
        scene.go.set()
        await scene.until(lambda: scene.looks.idle)
        assert scene.seen == ["a"]

    play(act)


@pytest.mark.parametrize("times", [1, 5])
def test_asked_meanwhile_is_one_more_look_after_it(times: int) -> None:
    async def act(scene: Scene) -> None:
        scene.looks.ask("a")
        await scene.until(lambda: scene.seen)
        for _ in range(times):
            scene.looks.ask("a", 0)
            await asyncio.sleep(2 * SOON)
        assert scene.seen == ["a"]
        scene.go.set()
        await scene.until(lambda: scene.looks.idle)
        assert (scene.seen, scene.most) == (["a", "a"], 1)

    play(act)


def test_others_do_not_wait() -> None:
    async def act(scene: Scene) -> None:
        for key in "abc":
            scene.looks.ask(key)
        await scene.until(lambda: scene.most == 3)

    play(act)


def test_one_that_is_due_soon_is_not_one_that_is_due_later() -> None:
    async def act(scene: Scene) -> None:
        scene.go.set()
        scene.looks.ask("a", 20 * SOON)
        scene.looks.ask("a")
        await scene.until(lambda: scene.looks.idle)
        assert scene.seen == ["a", "a"]

    play(act)


def test_one_that_is_put_off_is_not_looked_at_before() -> None:
    async def act(scene: Scene) -> None:
        scene.go.set()
        scene.looks.put_off("a", SOON)
        for _ in range(5):
            scene.looks.put_off("a", 20 * SOON)
        scene.looks.ask("a")
        await scene.until(lambda: scene.looks.idle)
        assert scene.seen == ["a", "a"]

    play(act)


def test_what_is_not_wanted_any_more_is_not_looked_at() -> None:
    async def act(scene: Scene) -> None:
        for key in "ab":
            scene.looks.put_off(key, SOON)
        scene.looks.keep(lambda key: key == "b")
        await scene.until(lambda: scene.seen)
        assert scene.seen == ["b"]

    play(act)


def test_a_look_that_fails_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def act(scene: Scene) -> None:
        scene.looks.ask("bad")
        scene.looks.ask("a")
        await scene.until(lambda: len(scene.seen) == 2)
        scene.looks.ask("bad", 0)
        await asyncio.sleep(2 * SOON)
        scene.go.set()
        await scene.until(lambda: scene.looks.idle)
        assert sorted(scene.seen) == ["a", "bad", "bad"]

    play(act)
    assert [each.name for each in caplog.records] == ["asyncio"] * 2
    assert "a bug" in caplog.text


def test_stopped_nothing_is_looked_at_any_more() -> None:
    async def act(scene: Scene) -> None:
        scene.looks.ask("a")
        await scene.until(lambda: scene.seen)
        scene.looks.ask("a", 0)
        await asyncio.sleep(2 * SOON)
        scene.looks.ask("b", ENOUGH)
        scene.looks.put_off("b", ENOUGH)
        scene.looks.stop()
        await scene.until(lambda: scene.looks.idle)
        assert (scene.seen, scene.at_once) == (["a"], 0)
        scene.looks.ask("c")
        await scene.until(lambda: "c" in scene.seen)

    play(act)
