"""Who holds guests: a real socket, a real loop, and a Reconciler's two calls noted down."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.daemon.running import timers
from tests.needs import NOBODY
from virtirq.control.holding import SOCKET, held
from virtirq.daemon.holds import _MOST, Holds
from virtirq.errors import BusyError, DeploymentError, VirtirqError

WEB, NAME = "6a1f0c2e-8a3f-4a8e-9d1c-0c5f5b1f2a11", "db with a name"


class Told:
    """What becomes of guests."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def hold(self, key: str) -> bool:
        self.done.append(f"hold {key}")
        return key in (WEB, NAME)

    def release(self, key: str) -> None:
        self.done.append(f"release {key}")


@asynccontextmanager
async def holds(directory: Path, told: Told) -> AsyncIterator[Holds]:
    made = Holds(directory, told.hold, told.release, timers())
    made.start()
    try:
        yield made
    finally:
        made.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def in_daemon(directory: Path, told: Told, work: Callable[[Holds], None]) -> None:
    """Call `work` in a thread while the daemon's loop runs."""

    async def main() -> None:
        async with holds(directory, told) as made:
            await asyncio.to_thread(work, made)
            await until(lambda: not made.held)

    asyncio.run(main())


@pytest.mark.parametrize("key", [WEB, NAME])
def test_held_for_as_long_as_it_is_open(tmp_path: Path, key: str) -> None:
    told = Told()

    def work(made: Holds) -> None:
        with held(tmp_path, key) as asked:
            assert asked
            assert made.held == {key}
            assert told.done == [f"hold {key}"]

    in_daemon(tmp_path, told, work)
    assert told.done == [f"hold {key}", f"release {key}"]


def test_two_hold_one_and_the_last_one_lets_go(tmp_path: Path) -> None:
    told = Told()

    def work(made: Holds) -> None:
        with held(tmp_path, WEB):
            with held(tmp_path, WEB), held(tmp_path, NAME):
                assert made.held == {WEB, NAME}
            while NAME in made.held:
                time.sleep(0.001)
            assert made.held == {WEB}
        assert f"release {WEB}" not in told.done[:-1]

    in_daemon(tmp_path, told, work)
    assert told.done.count(f"hold {WEB}") == told.done.count(f"release {WEB}") == 1


def test_killed_it_is_released(tmp_path: Path) -> None:
    told = Told()

    def work(made: Holds) -> None:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException), held(tmp_path, WEB):
                os.kill(os.getpid(), 9)
            os._exit(1)
        os.waitpid(child, 0)

    in_daemon(tmp_path, told, work)
    assert told.done == [f"hold {WEB}", f"release {WEB}"]


def test_no_such_guest(tmp_path: Path) -> None:
    def work(made: Holds) -> None:
        with pytest.raises(BusyError, match="no such guest"), held(tmp_path, "nobody"):
            pass
        assert not made.held

    in_daemon(tmp_path, Told(), work)


def test_no_daemon(tmp_path: Path) -> None:
    with held(tmp_path, WEB) as asked:
        assert not asked


def test_of_a_daemon_that_was_killed_nothing_is_left(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / SOCKET))
    with held(tmp_path, WEB) as asked:
        assert not asked
    in_daemon(tmp_path, Told(), lambda made: None)
    assert not (tmp_path / SOCKET).exists()


def test_it_is_roots_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o111)

    def work(made: Holds) -> None:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                else:
                    (tmp_path / SOCKET).chmod(0)
                with held(tmp_path, WEB):
                    pass
            except DeploymentError:
                status = 0
            except VirtirqError:
                pass
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0

    in_daemon(tmp_path, Told(), work)


def test_so_many_only_and_who_says_too_much_is_hung_up_on(tmp_path: Path) -> None:
    told = Told()

    def work(made: Holds) -> None:
        silent = [socket.socket(socket.AF_UNIX) for _ in range(_MOST)]
        for each in silent:
            each.connect(str(tmp_path / SOCKET))
        with pytest.raises(BusyError, match=r"hung up|reset|pipe"), held(tmp_path, WEB):
            pass
        with contextlib.suppress(OSError):
            silent[0].sendall(b"x" * 5000)
            while silent[0].recv(100):
                pass
        for each in silent:
            each.close()
        while True:  # there is room again as soon as that was noticed
            with contextlib.suppress(BusyError), held(tmp_path, WEB):
                break

    in_daemon(tmp_path, told, work)
    assert told.done[-2:] == [f"hold {WEB}", f"release {WEB}"]


def test_no_room_for_a_connection_does_not_keep_the_loop_busy(tmp_path: Path) -> None:
    class Full(socket.socket):
        """As of a process that has as many files open as it may."""

        tries, room = 0, False

        def accept(self) -> tuple[socket.socket, object]:
            Full.tries += 1
            if not Full.room:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().accept()

    told = Told()

    async def main() -> None:
        async with holds(tmp_path, told) as made:
            assert made._listening is not None
            full = Full(fileno=made._listening.detach())
            made._loop.remove_reader(full)
            made._listening = full
            made._listen()
            with socket.socket(socket.AF_UNIX) as asks:
                asks.connect(str(tmp_path / SOCKET))
                asks.send(f"{WEB}\n".encode())
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert 0 < Full.tries < 100, "not at each turn of the loop"
                Full.room = True
                await until(lambda: made.held == {WEB})

    asyncio.run(main())
