"""The daemon's end of its socket, over a real one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.control.test_daemon_status import ME, answered
from tests.daemon.test_timers import Clock
from virtirq.control import daemon_status
from virtirq.control.daemon_status import OWN_SOCKET, SOCKET, WAIT, DaemonStatus, ask
from virtirq.daemon import status_server
from virtirq.daemon.status_server import DOCUMENTS, TURNS, StatusServer
from virtirq.daemon.timers import Timers
from virtirq.errors import DeploymentError
from virtirq.policy.budget import Budget


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is."""
    monkeypatch.setattr(daemon_status, "WAIT", 30.0)


class TestAnswering:
    def test_everybody_is_answered_with_what_is_so_then(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pids = count(1)

        def several() -> list[int]:
            return [found.pid for _ in range(5) if (found := ask(tmp_path)) is not None]

        monkeypatch.setattr(status_server, "DOCUMENTS", Budget(1.0, longest=0.0))
        told = answered(tmp_path, lambda: replace(ME, pid=next(pids)), several)
        assert told == [1, 2, 3, 4, 5]

    def test_a_large_answer(self, tmp_path: Path) -> None:
        many = replace(ME, guests="x" * 2_000_000)
        found = answered(tmp_path, lambda: many, lambda: ask(tmp_path))
        assert len(found.guests) == 2_000_000

    def test_who_does_not_listen_keeps_nobody_else_from_an_answer(self, tmp_path: Path) -> None:
        many = replace(ME, guests="x" * 2_000_000)

        def deaf() -> DaemonStatus | None:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(str(tmp_path / SOCKET))
                return ask(tmp_path)

        assert answered(tmp_path, lambda: many, deaf) is not None

    def test_who_does_not_listen_is_hung_up_on(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or anyone on the host could have the daemon run out of file descriptors."""
        monkeypatch.setattr(status_server, "WAIT", 0.2)
        many = replace(ME, guests="x" * 2_000_000)

        def connections() -> int:
            there = [os.path.join("/proc/self/fd", each) for each in os.listdir("/proc/self/fd")]
            return sum(
                os.path.exists(each) and stat.S_ISSOCK(os.stat(each).st_mode) for each in there
            )

        def deaf() -> bool:
            before = connections()
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(str(tmp_path / SOCKET))
                asked.recv(1)
                waited = threading.Event()
                for _ in range(6000):  # ours, and until it gives up the daemon's
                    if connections() == before + 1:
                        return True
                    waited.wait(0.05)
            return False

        assert answered(tmp_path, lambda: many, deaf)

    def test_who_hangs_up_at_once_is_no_error(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def rude() -> DaemonStatus | None:
            for _ in range(20):
                with socket.socket(socket.AF_UNIX) as asked:
                    asked.connect(str(tmp_path / SOCKET))
            return ask(tmp_path)

        assert answered(tmp_path, lambda: ME, rude) == ME
        assert caplog.records == []

    def test_anybody_may_ask(self, tmp_path: Path) -> None:
        def mode() -> int:
            return stat.S_IMODE((tmp_path / SOCKET).stat().st_mode)

        assert answered(tmp_path, lambda: ME, mode) == 0o666

    def test_root_has_a_socket_of_its_own(self, tmp_path: Path) -> None:
        def use() -> tuple[int, DaemonStatus | None]:
            mode = stat.S_IMODE((tmp_path / OWN_SOCKET).stat().st_mode)
            (tmp_path / SOCKET).chmod(0)
            (tmp_path / SOCKET).rename(tmp_path / "away")
            (tmp_path / SOCKET).touch()
            return mode, ask(tmp_path)

        assert answered(tmp_path, lambda: ME, use) == (0o600, ME)

    def test_of_another_user_it_is_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def use() -> DaemonStatus | None:
            (tmp_path / OWN_SOCKET).unlink()
            (tmp_path / OWN_SOCKET).touch()
            return ask(tmp_path)

        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert answered(tmp_path, lambda: ME, use) == ME

    def test_what_a_killed_daemon_left_is_replaced(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / SOCKET))
        assert answered(tmp_path, lambda: ME, lambda: ask(tmp_path)) == ME

    def test_nothing_is_left_in_the_end(self, tmp_path: Path) -> None:
        answered(tmp_path, lambda: ME, lambda: None)
        assert list(tmp_path.iterdir()) == []
        assert ask(tmp_path) is None

    def test_closing_what_was_never_started(self, tmp_path: Path) -> None:
        timers = Timers(Clock().later, lambda: 0.0, print)
        StatusServer(tmp_path, lambda: ME, timers).close()

    def test_where_it_cannot_be(self, tmp_path: Path) -> None:
        with pytest.raises(DeploymentError, match=r"daemon\.sock: No such file or directory"):
            answered(tmp_path / "nowhere", lambda: ME, lambda: None)

    def test_where_something_else_is(self, tmp_path: Path) -> None:
        (tmp_path / SOCKET).mkdir()
        with pytest.raises(DeploymentError, match=r"daemon\.sock: "):
            answered(tmp_path, lambda: ME, lambda: None)


class Scene:
    """A server whose time passes when it is told to, in one thread with who asks."""

    def __init__(self, state: Path) -> None:
        self.path = str(state / SOCKET)
        self.clock = Clock()
        self.told = 0
        self.taken = 0
        self.status = ME
        self.errors: list[BaseException] = []
        self.timers = Timers(self.clock.later, lambda: self.clock.now, self.errors.append)
        self.server = StatusServer(state, self.tell, self.timers, lambda: self.clock.now)

    def count(self, monkeypatch: pytest.MonkeyPatch, takes: float = 0.0) -> None:
        """Have `taken` count who is let in, which takes so many seconds each."""
        take = self.server._take

        def counted(connection: socket.socket) -> bool:
            self.taken += 1
            self.clock.now += takes
            return take(connection)

        monkeypatch.setattr(self.server, "_take", counted)

    def tell(self) -> DaemonStatus:
        self.told += 1
        return replace(self.status, pid=self.told)

    def connect(self) -> socket.socket:
        """Raises BlockingIOError where too many wait."""
        asker = socket.socket(socket.AF_UNIX)
        asker.setblocking(False)
        try:
            asker.connect(self.path)
        except BlockingIOError:
            asker.close()
            raise
        return asker

    async def pass_(self, seconds: float) -> None:
        """So long, and as much as the loop has to do."""
        for _ in range(round(seconds / TURNS.least)):
            for _ in range(4):
                await asyncio.sleep(0)
                self.clock.pass_(0)
            self.clock.pass_(TURNS.least)

    async def answer(self, asker: socket.socket) -> bytes:
        """All that it is told, within a second; what came until then is cut short."""
        data = b""
        for _ in range(20):
            await self.pass_(TURNS.least)
            try:
                while piece := asker.recv(1 << 20):
                    data += piece
            except BlockingIOError:
                continue
            asker.close()
            return data
        raise TimeoutError

    def run(self, work: Callable[[], Coroutine[None, None, None]]) -> None:
        async def main() -> None:
            self.server.start()
            try:
                async with asyncio.timeout(30):
                    await work()
            finally:
                self.server.close()
            assert self.clock.pending == 0

        asyncio.run(main())
        assert self.errors == []

    async def crowd(self, turns: int) -> int:
        """As many connect as can, for so many turns, again and again; how many were answered."""
        answers, waiting = 0, list[socket.socket]()
        for _ in range(turns):
            with suppress(BlockingIOError):
                while True:
                    waiting.append(self.connect())
            await self.pass_(TURNS.least)
            for each in waiting[:]:
                with suppress(BlockingIOError):
                    answers += bool(each.recv(1 << 20))
                    each.close()
                    waiting.remove(each)
        for each in waiting:
            each.close()
        return answers


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


class TestBounds:
    def test_who_connects_in_a_loop_has_few_documents_made(self, scene: Scene) -> None:
        taken = 0

        async def flood() -> None:
            nonlocal taken
            for _ in range(100):
                with suppress(BlockingIOError):
                    while True:
                        scene.connect().close()
                        taken += 1
                await scene.pass_(TURNS.least)

        began = scene.clock.now
        scene.run(flood)
        assert scene.told <= (scene.clock.now - began) / DOCUMENTS.least + 1
        assert taken <= 101 * 65, "as many in a turn as may wait"

    def test_who_waits_for_an_answer_in_a_loop_has_few_documents_made(self, scene: Scene) -> None:
        answered_ = 0

        async def flood() -> None:
            nonlocal answered_
            answered_ = await scene.crowd(100)

        began = scene.clock.now
        scene.run(flood)
        turns = (scene.clock.now - began) / TURNS.least
        assert 1 <= scene.told <= (scene.clock.now - began) / DOCUMENTS.least + 1
        assert turns < answered_ <= 8 * (turns + 1)

    def test_one_who_asks_among_them_is_answered(self, scene: Scene) -> None:
        async def flood() -> None:
            hostile = [scene.connect() for _ in range(40)]
            honest = scene.connect()
            for each in hostile:
                each.close()
            assert json.loads(await scene.answer(honest))["schema"] == 1

        scene.run(flood)

    def test_asked_twice_within_a_moment_it_says_the_same(self, scene: Scene) -> None:
        async def ask_() -> None:
            first = await scene.answer(scene.connect())
            assert await scene.answer(scene.connect()) == first
            assert scene.told == 1
            await scene.pass_(DOCUMENTS.least)
            assert await scene.answer(scene.connect()) != first
            assert scene.told == 2

        scene.run(ask_)

    def test_without_who_asks_there_is_nothing_to_do(self, scene: Scene) -> None:
        async def rest() -> None:
            await scene.answer(scene.connect())
            await scene.pass_(TURNS.least)
            assert scene.clock.pending == 0

        scene.run(rest)

    def test_who_does_not_read_is_hung_up_on_in_time(self, scene: Scene) -> None:
        async def deaf() -> None:
            scene.status = replace(ME, guests="x" * 2_000_000)
            asker = scene.connect()
            await scene.pass_(2 * TURNS.least)
            assert len(scene.server._askers) == 1
            await scene.pass_(WAIT)
            assert len(scene.server._askers) == 0
            asker.close()

        scene.run(deaf)

    def test_one_user_does_not_keep_another_out(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        user = 1000

        async def deaf() -> None:
            nonlocal user
            scene.status = replace(ME, guests="x" * 2_000_000)
            askers = [scene.connect() for _ in range(4)]
            await scene.pass_(TURNS.least)
            assert await scene.answer(scene.connect()) == b"", "turned away"
            user = 0
            assert json.loads(await scene.answer(scene.connect()))["schema"] == 1
            for each in askers:
                each.close()

        monkeypatch.setattr(status_server, "WAIT", 5.0)
        monkeypatch.setattr(status_server, "_user", lambda _: user)
        scene.run(deaf)

    def test_on_a_slow_host_a_turn_is_over_after_a_moment(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is to be pinned waits for its end, however many hang up at once."""
        scene.count(monkeypatch, takes=0.004)

        async def crowd() -> None:
            for _ in range(30):
                scene.connect().close()
            before = scene.clock.now
            scene.server._let_in(SOCKET)
            assert scene.taken == 3
            assert scene.clock.now < before + TURNS.least
            await scene.pass_(40 * TURNS.least)
            assert scene.taken == 30

        scene.run(crowd)

    def test_on_a_slow_host_who_asks_has_a_tenth_of_the_time(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Interrupts have the rest, as fast as others connect and whatever an answer takes."""
        answers, tell = 0, scene.server._tell
        scene.count(monkeypatch, takes=0.002)

        def slowly_told() -> DaemonStatus:
            scene.clock.now += 0.01
            return tell()

        async def crowd() -> None:
            nonlocal answers
            answers = await scene.crowd(200)

        monkeypatch.setattr(scene.server, "_tell", slowly_told)
        began = scene.clock.now
        scene.run(crowd)
        passed = scene.clock.now - began
        spent = 0.002 * scene.taken + 0.01 * scene.told
        assert 0.05 * passed < spent < 0.15 * passed
        assert answers > 2 * passed

    @pytest.mark.parametrize("takes", [0.001, 0.02, 0.5])
    def test_where_a_document_takes_long_it_is_told_for_longer(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, takes: float
    ) -> None:
        """Though not for ever: who asks is to know what was so a second ago."""
        tell = scene.server._tell

        def slowly_told() -> DaemonStatus:
            scene.clock.now += takes
            return tell()

        async def crowd() -> None:
            await scene.crowd(200)

        monkeypatch.setattr(scene.server, "_tell", slowly_told)
        began = scene.clock.now
        scene.run(crowd)
        passed = scene.clock.now - began
        assert scene.told <= passed / max(DOCUMENTS.least, min(20 * takes, 1)) + 1
        assert scene.told >= passed / 2

    def test_what_is_urgent_waits_for_one_who_asks_at_most(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Interrupts come first; who asks is answered all the same, however many come."""
        scene.count(monkeypatch)

        async def crowd() -> None:
            monkeypatch.setattr(scene.server, "_urgent", lambda: True)
            asker = scene.connect()
            for _ in range(20):
                scene.connect().close()
            await scene.pass_(TURNS.least)
            assert scene.taken == 1
            assert scene.told == 1
            assert json.loads(await scene.answer(asker))["schema"] == 1
            assert scene.taken < 21
            monkeypatch.setattr(scene.server, "_urgent", lambda: False)
            await scene.pass_(4 * TURNS.least)
            assert scene.taken == 21

        scene.run(crowd)

    def test_a_document_lets_what_is_urgent_pass_once(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def ask_meanwhile() -> None:
            monkeypatch.setattr(scene.server, "_urgent", lambda: True)
            scene.server._write()
            assert scene.told == 0
            scene.server._write()
            assert scene.told == 1
            scene.timers.cancel("status")

        scene.run(ask_meanwhile)

    def test_nobody_keeps_root_waiting(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """Others may wait in any number, and all be served as slowly as it goes."""
        monkeypatch.setattr(status_server, "_TAKES", 0.0)

        async def crowd() -> None:
            waiting = []
            with suppress(BlockingIOError):
                while True:
                    waiting.append(scene.connect())
            scene.path = scene.path.replace(SOCKET, OWN_SOCKET)
            began = scene.clock.now
            assert json.loads(await scene.answer(scene.connect()))["schema"] == 1
            assert scene.clock.now <= began + 2 * TURNS.least
            for each in waiting:
                each.close()

        scene.run(crowd)

    def test_connections_at_once_are_bounded(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def deaf() -> None:
            scene.status = replace(ME, guests="x" * 2_000_000)
            askers = []
            for _ in range(20):
                askers += [scene.connect() for _ in range(5)]
                await scene.pass_(TURNS.least)
            assert len(scene.server._askers) == 64
            for each in askers:
                each.close()

        users = count()
        monkeypatch.setattr(status_server, "WAIT", 60.0)
        monkeypatch.setattr(status_server, "_user", lambda _: next(users))
        scene.run(deaf)

    def test_no_descriptors_left_is_no_error_and_no_loop(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tries = 0

        class Listening:
            def __init__(self, listening: socket.socket) -> None:
                self.fileno, self.close = listening.fileno, listening.close

            def accept(self) -> None:
                nonlocal tries
                tries += 1
                raise OSError(24, "Too many open files")

        async def full() -> None:
            listening: Any = Listening(scene.server._listening[SOCKET])
            scene.server._listening[SOCKET] = listening
            with scene.connect():
                await scene.pass_(WAIT + 3 * TURNS.least)
            assert tries == 2

        scene.run(full)
