"""Calls beside the event loop: their results, their errors, and those that never come back."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from virtirq.daemon.blocking import beside

ENOUGH = 30.0


class BrokenError(Exception):
    pass


def test_the_result_comes_back() -> None:
    async def main() -> None:
        assert await beside(lambda: 42, "test") == 42
        assert await beside(lambda: [None], "test") == [None]

    asyncio.run(main())


def test_it_runs_in_a_thread_of_its_own_that_has_a_name() -> None:
    async def main() -> tuple[str, bool, int]:
        name = await beside(lambda: threading.current_thread().name, "libvirt")
        alone = await beside(lambda: threading.current_thread().daemon, "x")
        return name, alone, await beside(threading.get_ident, "x")

    name, alone, thread = asyncio.run(main())
    assert (name, alone) == ("libvirt", True)
    assert thread != threading.get_ident()


@pytest.mark.parametrize("error", [BrokenError("x"), OSError(5, "y"), SystemExit(3)])
def test_what_it_raises_is_raised(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def main() -> BaseException:
        try:
            await beside(fail, "test")
        except BaseException as raised:
            return raised
        raise AssertionError("nothing was raised")

    assert asyncio.run(main()) is error


def test_the_loop_goes_on_meanwhile() -> None:
    async def main() -> str:
        go = threading.Event()
        asyncio.get_running_loop().call_soon(go.set)
        return "went on" if await beside(lambda: go.wait(ENOUGH), "test") else "stood still"

    assert asyncio.run(main()) == "went on"


def test_several_at_once() -> None:
    async def main() -> list[int]:
        barrier = threading.Barrier(5)

        def meet(number: int) -> int:
            barrier.wait(ENOUGH)
            return number

        return list(await asyncio.gather(*(beside(lambda n=n: meet(n), "x") for n in range(5))))  # type: ignore[misc]

    assert asyncio.run(main()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fails", [False, True])
def test_who_has_stopped_waiting_hears_no_more_of_it(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    complaints: list[object] = []

    async def main() -> None:
        go, gone = threading.Event(), threading.Event()

        def call() -> None:
            go.wait(ENOUGH)
            gone.set()
            if fails:
                raise BrokenError

        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(beside(call, "test"), 0.01)
        go.set()
        await asyncio.to_thread(gone.wait, ENOUGH)
        for _ in range(5):
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert complaints == []
    assert caplog.records == []


def test_one_that_ends_after_the_loop_does_no_harm() -> None:
    go = threading.Event()
    threads: list[threading.Thread] = []

    def call() -> None:
        threads.append(threading.current_thread())
        go.wait(ENOUGH)

    async def main() -> None:
        task = asyncio.create_task(beside(call, "test"))
        while not threads:
            await asyncio.sleep(0.001)
        task.cancel()

    failures: list[object] = []
    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        asyncio.run(main())
        go.set()
        threads[0].join(ENOUGH)
    finally:
        threading.excepthook = hook
    assert failures == []


def test_one_that_hangs_does_not_keep_the_process() -> None:
    script = (
        "import asyncio, threading\n"
        "from virtirq.daemon.blocking import beside\n"
        "async def main():\n"
        "    try:\n"
        "        await asyncio.wait_for(beside(threading.Event().wait, 'hangs'), 0.01)\n"
        "    except TimeoutError:\n"
        "        print('over')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=ENOUGH, check=True
    )
    assert (done.stdout, done.stderr) == ("over\n", "")
