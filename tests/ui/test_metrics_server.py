"""The process that serves metrics, beside a daemon that is made up."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ui.test_prometheus import eventually, get, guest
from virtirq.control.counters import Counters
from virtirq.control.daemon_status import SOCKET, DaemonStatus
from virtirq.daemon.listening import listen, listen_on
from virtirq.daemon.service import Inside
from virtirq.model import Guest
from virtirq.policy.config import Config
from virtirq.ui import metrics_server
from virtirq.ui.metrics_server import MetricsServer

WEB = guest("web", "4")


class Daemon:
    """Answers on its status socket, in a thread."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.guests: tuple[Guest, ...] = (WEB,)
        self.answers = True
        status = DaemonStatus(1, 0.0, "x", "e", "g", counters=Counters())
        self._document = json.dumps(status.as_json()).encode()
        self._socket = listen(state / SOCKET, 0o600, 8)
        self._socket.setblocking(True)
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.sendall(self._document)

    def inside(self) -> Inside:
        if not self.answers:
            raise TimeoutError
        return Inside(self.guests, Config())

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with closing(Daemon(tmp_path)) as made:
        yield made


def server_of(daemon: Daemon, port: int = 0) -> tuple[MetricsServer, int]:
    listening = listen_on("127.0.0.1", port, 8)
    port = listening.getsockname()[1]
    return MetricsServer(listening, daemon.inside, daemon.state), port


def children() -> list[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    threads = Path("/proc/self/task").glob("*/children")
    return [int(each) for each in " ".join([text, *(f.read_text() for f in threads)]).split()]


def test_a_page_is_of_what_is_known_now(daemon: Daemon) -> None:
    server, port = server_of(daemon)
    with closing(server):
        first = get(port)
        assert first.status == 200
        assert 'guest="web"' in first.text
        assert "virtirq_cycle_seconds_count 0.0" in first.text  # the daemon's own
        daemon.guests = (WEB, replace(WEB, name="db", uuid=None))
        assert eventually(lambda: 'guest="db"' in get(port).text)  # a page is given for a while
        assert get(port, "/").status == 200


def test_a_daemon_that_does_not_answer_is_a_503(daemon: Daemon) -> None:
    server, port = server_of(daemon)
    with closing(server):
        daemon.answers = False
        assert get(port).status == 503
        daemon.answers = True
        assert get(port).status == 200
        daemon.close()
        assert eventually(lambda: get(port).text == "virtirq is stopping\n")


def test_a_server_that_is_killed_is_started_again(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "_PAUSE", 0.0)
    before = set(children())
    server, port = server_of(daemon)
    with closing(server):
        assert get(port).status == 200
        (child,) = set(children()) - before
        for number in (signal.SIGTERM, signal.SIGINT):  # which are for the daemon
            os.kill(child, number)
        assert get(port).status == 200
        os.kill(child, signal.SIGKILL)
        while child in children():
            time.sleep(0.01)
        assert get(port).status == 200


def test_close_ends_the_process_and_frees_the_address(daemon: Daemon) -> None:
    before = set(children())
    server, port = server_of(daemon)
    assert get(port).status == 200
    server.close()
    assert set(children()) == before
    again, same = server_of(daemon, port)
    again.close()
    assert same == port


def test_one_that_is_closed_at_once(daemon: Daemon) -> None:
    before = set(children())
    server, _ = server_of(daemon)
    server.close()
    assert set(children()) == before


def test_the_server_ends_with_the_daemon(daemon: Daemon) -> None:
    """However that ends: it may be killed."""
    text = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from virtirq.daemon.listening import listen_on\n"
        "from virtirq.ui.metrics_server import MetricsServer\n"
        "here = listen_on('127.0.0.1', 0, 8)\n"
        "MetricsServer(here, lambda: 1 / 0, Path('/nowhere'))\n"
        "print(here.getsockname()[1], flush=True)\n"
        "input()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert killed.stdin is not None
        assert killed.stdout is not None
        port = int(killed.stdout.readline())
        assert get(port).status == 503
        killed.stdin.write("\n")
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            return
        time.sleep(0.01)


def test_what_the_daemon_has_in_memory(daemon: Daemon) -> None:
    """Nothing that makes or serves a page."""
    text = "import sys, virtirq.ui.metrics_server; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "virtirq.control.daemon_status" in loaded
    assert not loaded & {"virtirq.ui.prometheus", "prometheus_client", "http.server", "ssl"}
