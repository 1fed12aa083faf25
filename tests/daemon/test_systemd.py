"""What systemd is told: datagrams on a real socket, as PID 1 would read them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.daemon.systemd import ServiceManager


class Listener:
    """systemd's end of the socket."""

    def __init__(self, address: str | bytes) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every datagram since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(1 << 16).decode())
            except BlockingIOError:
                return found


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(str(tmp_path / "notify"))
    yield made
    made.socket.close()


@pytest.fixture
def manager(tmp_path: Path, listener: Listener) -> Iterator[ServiceManager]:
    made = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    yield made
    made.close()


def test_each_call_is_one_datagram(manager: ServiceManager, listener: Listener) -> None:
    manager.ready("3 guests")
    manager.status("4 guests")
    manager.ping()
    manager.stopping()
    manager.stopping("restoring")
    assert listener.heard() == [
        "READY=1\nSTATUS=3 guests",
        "STATUS=4 guests",
        "WATCHDOG=1",
        "STOPPING=1",
        "STOPPING=1\nSTATUS=restoring",
    ]


def test_a_reload_has_the_time_of_the_monotonic_clock(
    manager: ServiceManager, listener: Listener
) -> None:
    manager.ready()
    listener.heard()
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    manager.reloading()
    (told,) = listener.heard()
    name, _, at = told.partition("\nMONOTONIC_USEC=")
    assert name == "RELOADING=1"
    assert before <= int(at) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def first_lines(told: list[str]) -> list[str]:
    return [each.split("\n")[0] for each in told]


def test_a_reload_ends_with_ready(manager: ServiceManager, listener: Listener) -> None:
    manager.ready()
    for _ in range(2):
        manager.reloading()
        manager.ready("4 guests")
    told = listener.heard()
    assert first_lines(told) == ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]
    assert told[-1] == "READY=1\nSTATUS=4 guests"


def test_a_socket_in_the_abstract_namespace(tmp_path: Path) -> None:
    name = f"virtirq-test-{os.getpid()}-{tmp_path.name}"
    listener = Listener(b"\0" + name.encode())
    ServiceManager({"NOTIFY_SOCKET": f"@{name}"}).ready()
    assert listener.heard() == ["READY=1"]
    listener.socket.close()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "@",
        "relative",
        "vsock:2:1234",
        "/none/there",
        "@none-there",
        "/\0",
        f"/{'x' * 200}",
    ],
)
def test_no_systemd_no_complaint(address: str) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": address} if address else {})
    manager.ready("x")
    manager.reloading()
    manager.status("x")
    manager.ping()
    manager.stopping()
    manager.close()
    manager.ping()
    manager.close()


def test_without_systemd_nothing_is_opened() -> None:
    before = os.listdir("/proc/self/fd")
    manager = ServiceManager({})
    manager.ready()
    assert os.listdir("/proc/self/fd") == before


def test_a_socket_that_goes_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    first = Listener(str(path))
    manager = ServiceManager({"NOTIFY_SOCKET": str(path)})
    first.socket.close()
    manager.ping()
    path.unlink()
    manager.ping()
    second = Listener(str(path))
    manager.ready()
    assert second.heard() == ["READY=1"]
    second.socket.close()
    manager.close()


def test_a_full_socket_does_not_hold_up_a_ping(manager: ServiceManager, listener: Listener) -> None:
    for _ in range(2000):  # net.unix.max_dgram_qlen is 512 under systemd
        manager.ping()
        manager.status("busy")
    told = listener.heard()
    assert 0 < len(told) < 4000
    manager.ready()
    assert listener.heard() == ["READY=1"]


HOSTILE = ["a\nMAINPID=1", "\nREADY=1", "a\0b", "\x1b[2J", "\udcff", "\u2028", "\u202e", "x" * 9999]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_status_is_one_line(manager: ServiceManager, listener: Listener, text: str) -> None:
    manager.status(text)
    (told,) = listener.heard()
    assert told.startswith("STATUS=")
    assert told.isprintable()
    assert len(told.encode()) < 4096


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_makes_lines_of_its_own(text: str) -> None:
    name = f"virtirq-hypothesis-{os.getpid()}"
    listener = Listener(b"\0" + name.encode())
    manager = ServiceManager({"NOTIFY_SOCKET": f"@{name}"})
    try:
        manager.ready(text)
        (told,) = listener.heard()
        assert told.split("\n")[0] == "READY=1"
        assert len(told.split("\n")) == 2
        assert len(told.encode()) < 4096
    finally:
        listener.socket.close()
        manager.close()


def test_no_child_inherits_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("NOTIFY_SOCKET", "/none/there"),
        ("WATCHDOG_USEC", "60000000"),
        ("WATCHDOG_PID", str(os.getpid())),
    ):
        monkeypatch.setenv(name, value)
    assert ServiceManager().watchdog == 60
    program = "import os; print(*os.environ)"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    inherited = set(child.stdout.split())
    assert "PATH" in inherited
    assert {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & inherited == set()


@pytest.mark.parametrize(
    ("interval", "pid", "seconds"),
    [
        ("60000000", "mine", 60.0),
        ("1500000", None, 1.5),
        ("1500000", "", 1.5),
        ("60000000", "1", None),
        ("60000000", "x", None),
        ("0", "mine", None),
        ("-1", "mine", None),
        ("", "mine", None),
        ("soon", "mine", None),
        ("1e6", "mine", None),
        ("\u0661", "mine", None),  # a digit, but not one of ours
        ("9" * 400, "mine", None),
        (str(2**64 - 1), "mine", None),
        (None, "mine", None),
    ],
)
def test_the_watchdog_as_systemd_sets_it(
    interval: str | None, pid: str | None, seconds: float | None
) -> None:
    given = {
        "WATCHDOG_USEC": interval,
        "WATCHDOG_PID": str(os.getpid()) if pid == "mine" else pid,
    }
    manager = ServiceManager({name: text for name, text in given.items() if text is not None})
    assert manager.watchdog == seconds
    assert manager.ping_every == (None if seconds is None else seconds / 2)


def test_no_call_opens_anything(manager: ServiceManager, listener: Listener) -> None:
    """The socket is opened once, so that an idle daemon makes few system calls."""
    before = os.listdir("/proc/self/fd")
    manager.ready("x")
    manager.ping()
    assert os.listdir("/proc/self/fd") == before
    assert len(listener.heard()) == 2
