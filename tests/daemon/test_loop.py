"""The daemon's loop: some files come before all else, and asyncio is none the wiser."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from functools import partial

import pytest

from virtirq.daemon.loop import Loop, run, running


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    made = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    yield made
    for each in made:
        os.close(each)


def test_what_comes_first_is_served_before_what_was_ready_earlier(eventfds: list[int]) -> None:
    told: list[str] = []
    usual, first, other = eventfds

    async def live() -> None:
        loop = running()

        def heard(name: str, descriptor: int) -> None:
            os.eventfd_read(descriptor)
            told.append(name)

        loop.add_reader(usual, heard, "usual", usual)
        loop.add_reader(other, heard, "other", other)
        loop.serve_first(first, partial(heard, "first", first))
        for fd in (usual, other, first):
            os.eventfd_write(fd, 1)
        while len(told) < 3:
            await asyncio.sleep(0)

    run(live())
    assert told[0] == "first"
    assert sorted(told[1:]) == ["other", "usual"]


def test_what_it_puts_off_is_done(eventfds: list[int]) -> None:
    done: list[str] = []

    async def live() -> None:
        loop, over = running(), asyncio.Event()

        def heard() -> None:
            os.eventfd_read(eventfds[0])
            loop.call_later(0.0, done.append, "timer")
            loop.call_soon(done.append, "soon")
            loop.call_later(0.01, over.set)

        loop.serve_first(eventfds[0], heard)
        os.eventfd_write(eventfds[0], 1)
        await over.wait()

    run(live())
    assert sorted(done) == ["soon", "timer"]


def test_served_no_more(eventfds: list[int]) -> None:
    told: list[str] = []

    async def live() -> None:
        loop = running()
        loop.serve_first(eventfds[0], lambda: told.append("heard"))
        loop.serve_no_more(eventfds[0])
        loop.serve_no_more(eventfds[0])
        os.eventfd_write(eventfds[0], 1)
        await asyncio.sleep(0.01)

    run(live())
    assert told == []


def test_it_may_let_go_of_itself(eventfds: list[int]) -> None:
    told: list[str] = []

    async def live() -> None:
        loop = running()

        def heard() -> None:
            told.append("heard")
            loop.serve_no_more(eventfds[0])

        loop.serve_first(eventfds[0], heard)
        os.eventfd_write(eventfds[0], 1)
        await asyncio.sleep(0.01)

    run(live())
    assert told == ["heard"]


def test_what_the_work_raises_is_raised() -> None:
    async def live() -> None:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        run(live())


def test_another_loop_is_told_apart() -> None:
    async def live() -> None:
        running()

    with pytest.raises(AssertionError, match="another loop"):
        asyncio.run(live())
    assert issubclass(Loop, asyncio.SelectorEventLoop)
