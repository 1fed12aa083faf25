"""The daemon's end of its socket, over a real one."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.control.test_daemon_status import ME, answered
from virtirq.control import daemon_status
from virtirq.control.daemon_status import SOCKET, DaemonStatus, ask
from virtirq.daemon import status_server
from virtirq.daemon.status_server import StatusServer
from virtirq.errors import DeploymentError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_status, "WAIT", 0.2)
    monkeypatch.setattr(status_server, "WAIT", 0.2)


class TestAnswering:
    def test_everybody_is_answered_with_what_is_so_then(self, tmp_path: Path) -> None:
        pids = iter(range(1, 100))

        def tell() -> dict[str, Any]:
            return {**ME.as_json(), "pid": next(pids)}

        def several() -> list[int]:
            return [found.pid for _ in range(5) if (found := ask(tmp_path)) is not None]

        assert answered(tmp_path, tell, several) == [1, 2, 3, 4, 5]

    def test_a_large_answer(self, tmp_path: Path) -> None:
        many = {**ME.as_json(), "guests": "x" * 2_000_000}
        found = answered(tmp_path, lambda: many, lambda: ask(tmp_path))
        assert len(found.guests) == 2_000_000

    def test_who_does_not_listen_keeps_nobody_else_from_an_answer(self, tmp_path: Path) -> None:
        many = {**ME.as_json(), "guests": "x" * 2_000_000}

        def deaf() -> DaemonStatus | None:
            with socket.socket(socket.AF_UNIX) as asked:
                asked.connect(str(tmp_path / SOCKET))
                return ask(tmp_path)

        assert answered(tmp_path, lambda: many, deaf) is not None

    def test_who_does_not_listen_is_hung_up_on(self, tmp_path: Path) -> None:
        """Or anyone on the host could have the daemon run out of file descriptors."""
        many = {**ME.as_json(), "guests": "x" * 2_000_000}

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
                for _ in range(20):  # ours, and until it gives up the daemon's
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

        assert answered(tmp_path, ME.as_json, rude) == ME
        assert caplog.records == []

    def test_anybody_may_ask(self, tmp_path: Path) -> None:
        def mode() -> int:
            return stat.S_IMODE((tmp_path / SOCKET).stat().st_mode)

        assert answered(tmp_path, ME.as_json, mode) == 0o666

    def test_what_a_killed_daemon_left_is_replaced(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / SOCKET))
        assert answered(tmp_path, ME.as_json, lambda: ask(tmp_path)) == ME

    def test_nothing_is_left_in_the_end(self, tmp_path: Path) -> None:
        answered(tmp_path, ME.as_json, lambda: None)
        assert list(tmp_path.iterdir()) == []
        assert ask(tmp_path) is None

    def test_closing_what_was_never_started(self, tmp_path: Path) -> None:
        StatusServer(tmp_path, ME.as_json).close()

    def test_where_it_cannot_be(self, tmp_path: Path) -> None:
        with pytest.raises(DeploymentError, match=r"daemon\.sock: No such file or directory"):
            answered(tmp_path / "nowhere", ME.as_json, lambda: None)

    def test_where_something_else_is(self, tmp_path: Path) -> None:
        (tmp_path / SOCKET).mkdir()
        with pytest.raises(DeploymentError, match=r"daemon\.sock: "):
            answered(tmp_path, ME.as_json, lambda: None)
