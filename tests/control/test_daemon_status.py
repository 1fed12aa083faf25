"""The daemon's socket, both ends, over a real one; and the lock that keeps a second one out."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.control.test_counters import JSON, TALLIES, TEXT
from virtirq.control import daemon_status
from virtirq.control.daemon_status import SOCKET, DaemonStatus, Lock, Writer, ask
from virtirq.daemon.status_server import StatusServer
from virtirq.daemon.timers import Timers
from virtirq.errors import BusyError, DeploymentError
from virtirq.model import Aimed, Finding, PciAddress, Severity

ME = DaemonStatus(
    pid=4711,
    since=1700000000.25,
    version="1.0",
    events="kernel probes",
    guests="connected to qemu:///system",
    spared=12,
    findings=(Finding("affinity-contested", Severity.WARNING, "web", "moved", "stop it"),),
)
PRESENCES = st.builds(
    DaemonStatus,
    pid=st.integers(0, 2**31),
    since=st.floats(0, 1e12),
    version=TEXT,
    events=TEXT,
    guests=TEXT,
    spared=st.none() | st.integers(1, 2**31),
    findings=st.lists(
        st.builds(Finding, TEXT, st.sampled_from(Severity), TEXT, TEXT, TEXT), max_size=3
    ).map(tuple),
    counters=st.none() | TALLIES,
    aimed=st.dictionaries(
        st.builds(PciAddress, st.integers(0, 2**16), st.integers(0, 255), st.just(0), st.just(1)),
        st.dictionaries(
            st.integers(0, 2047), st.builds(Aimed, st.none() | st.integers(0, 8191), TEXT)
        ),
        max_size=3,
    ),
    readers=st.dictionaries(TEXT, TEXT, max_size=3),
)
ENOUGH = 300.0
"""Seconds after which a test gives up."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is."""
    monkeypatch.setattr(daemon_status, "WAIT", ENOUGH)


@pytest.fixture
def impatient(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_status, "WAIT", 0.2)


@contextmanager
def served(state: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something listens where the daemon would, and does this with whoever asks."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(state / SOCKET))
        listening.listen()
        listening.settimeout(ENOUGH)

        def accept() -> None:
            with listening.accept()[0] as asker:
                serve(asker)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield
        finally:
            thread.join(ENOUGH)
            assert not thread.is_alive()


def answered(state: Path, tell: Callable[[], DaemonStatus], use: Callable[[], Any]) -> Any:
    """What `use` gives in another thread while a daemon's end is there."""
    errors: list[BaseException] = []

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        timers = Timers(loop.call_later, loop.time, errors.append)
        server = StatusServer(state, tell, timers, loop.time)
        server.start()
        try:
            async with asyncio.timeout(ENOUGH):
                return await asyncio.to_thread(use)
        finally:
            server.close()

    found = asyncio.run(main())
    assert errors == []
    return found


@given(PRESENCES)
def test_there_and_back(here: DaemonStatus) -> None:
    assert DaemonStatus.from_json(json.loads(json.dumps(here.as_json()))) == here


def finished(writing: Generator[None, None, bytes]) -> tuple[bytes, int]:
    """The document, and in how many steps more."""
    for steps in count(1):
        try:
            next(writing)
        except StopIteration as done:
            return done.value, steps
    raise AssertionError


def written(writer: Writer, status: DaemonStatus) -> tuple[bytes, int]:
    return finished(writer.write(status))


@given(st.lists(PRESENCES, max_size=2))
def test_what_is_written_is_the_document(several: list[DaemonStatus]) -> None:
    writer = Writer()
    for each in several:
        assert json.loads(written(writer, each)[0]) == each.as_json()


class Counted(dict[int, Aimed]):
    """Counts how often it is read."""

    read = 0

    def items(self) -> Any:
        self.read += 1
        return super().items()


def chosen(devices: int, vectors: int) -> dict[PciAddress, Counted]:
    return {
        PciAddress(0, n >> 8, n & 31, n >> 5 & 7): Counted(
            {vector: Aimed(vector % 8) for vector in range(vectors)}
        )
        for n in range(devices)
    }


class TestWriter:
    def test_what_has_not_changed_is_not_written_again(self) -> None:
        writer, aimed = Writer(), chosen(100, 16)
        before = written(writer, replace(ME, aimed=aimed))[0]
        assert written(writer, replace(ME, aimed=dict(aimed)))[0] == before
        assert {each.read for each in aimed.values()} == {1}
        changed = next(iter(aimed))
        aimed[changed] = Counted({0: Aimed(None, "masked")})
        after, steps = written(writer, replace(ME, aimed=aimed))
        assert DaemonStatus.from_json(json.loads(after)).aimed == aimed
        assert sum(each.read for each in aimed.values()) == 100
        assert steps == 1

    def test_it_is_written_in_pieces(self) -> None:
        _, steps = written(Writer(), replace(ME, aimed=chosen(800, 16)))
        assert steps > 800 * 16 / 600

    def test_what_comes_and_goes_meanwhile_is_no_error(self) -> None:
        writer, aimed = Writer(), chosen(200, 16)
        there = dict(aimed)
        writing = writer.write(replace(ME, aimed=aimed))
        next(writing)
        aimed.clear()
        aimed[PciAddress(9, 0, 0, 0)] = Counted()
        document, _ = finished(writing)
        assert DaemonStatus.from_json(json.loads(document)).aimed == there

    def test_what_is_gone_is_forgotten(self) -> None:
        writer = Writer()
        written(writer, replace(ME, aimed=chosen(100, 1)))
        written(writer, ME)
        assert writer._aimed == {}


def test_what_it_looks_like() -> None:
    told = ME.as_json()
    assert told["schema"] == 1
    assert told["findings"][0]["severity"] == "warning"
    assert told["tally"] is None


class TestAsking:
    def test_there_is_none(self, tmp_path: Path) -> None:
        assert ask(tmp_path) is None
        assert ask(tmp_path / "nowhere") is None
        (tmp_path / "file").touch()
        assert ask(tmp_path / "file") is None

    def test_a_socket_that_a_killed_daemon_has_left(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / SOCKET))
            left.listen()
        assert ask(tmp_path) is None

    def test_one_that_answers(self, tmp_path: Path) -> None:
        assert answered(tmp_path, lambda: ME, lambda: ask(tmp_path)) == ME

    def test_who_is_turned_away_asks_again(self, tmp_path: Path) -> None:
        """As many ask, or one that asks often."""
        document = json.dumps(ME.as_json()).encode()
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / SOCKET))
            listening.listen()
            listening.settimeout(ENOUGH)

            def answer() -> None:
                for told in (b"", b"", document):
                    with listening.accept()[0] as asker:
                        asker.sendall(told)

            thread = threading.Thread(target=answer)
            thread.start()
            found = ask(tmp_path)
            thread.join(ENOUGH)
        assert found == ME

    def test_an_answer_in_small_pieces(self, tmp_path: Path) -> None:
        def dribble(asker: socket.socket) -> None:
            for byte in json.dumps(ME.as_json()).encode():
                asker.send(bytes([byte]))

        with served(tmp_path, dribble):
            assert ask(tmp_path) == ME

    @pytest.mark.usefixtures("impatient")
    def test_one_that_hangs(self, tmp_path: Path) -> None:
        asked = threading.Event()

        def hang(_: socket.socket) -> None:
            asked.wait(ENOUGH)

        with served(tmp_path, hang):
            with pytest.raises(BusyError, match="does not answer: timed out") as caught:
                ask(tmp_path)
            asked.set()
        assert caught.value.hint == "see 'systemctl status virtirq' and its log"

    @pytest.mark.usefixtures("impatient")
    def test_one_that_says_nothing(self, tmp_path: Path) -> None:
        with (
            served(tmp_path, lambda asker: None),
            pytest.raises(BusyError, match="does not answer: timed out"),
        ):
            ask(tmp_path)

    @pytest.mark.usefixtures("impatient")
    def test_one_that_does_not_even_accept(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(tmp_path / SOCKET))
            listening.listen(0)
            with socket.socket(socket.AF_UNIX) as queued:
                queued.connect(str(tmp_path / SOCKET))
                with pytest.raises(BusyError, match="does not answer"):
                    ask(tmp_path)

    @pytest.mark.parametrize(
        "answer",
        [
            b"hello",
            b"\xff\xfe",
            b"{}",
            b"[]",
            b"null",
            b"7",
            b'"text"',
            b'{"schema": 2}',
            json.dumps({**ME.as_json(), "schema": 2}).encode(),
            json.dumps({**ME.as_json(), "pid": None}).encode(),
            json.dumps({**ME.as_json(), "findings": [1]}).encode(),
            json.dumps({**ME.as_json(), "findings": [{"code": "x"}]}).encode(),
            json.dumps({**ME.as_json(), "tally": []}).encode(),
            json.dumps(ME.as_json()).encode()[:-1],
            json.dumps(ME.as_json()).encode() + b"x",
        ],
    )
    def test_one_that_talks_nonsense(self, tmp_path: Path, answer: bytes) -> None:
        with served(tmp_path, lambda asker: asker.sendall(answer)):
            with pytest.raises(BusyError, match=r"the daemon does not answer: .") as caught:
                ask(tmp_path)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "answer",
        [b"[" * 100_000, json.dumps({**ME.as_json(), "pid": float("inf")}).encode()],
        ids=["deep", "infinite"],
    )
    def test_one_that_talks_worse_nonsense(self, tmp_path: Path, answer: bytes) -> None:
        with served(tmp_path, lambda asker: asker.sendall(answer)), pytest.raises(BusyError):
            ask(tmp_path)

    def test_one_that_never_ends(self, tmp_path: Path) -> None:
        def talk(asker: socket.socket) -> None:
            try:
                while True:
                    asker.sendall(b" " * 65536)
            except OSError:
                pass

        with served(tmp_path, talk), pytest.raises(BusyError, match="too much"):
            ask(tmp_path)

    def test_one_that_hangs_up_in_the_middle(self, tmp_path: Path) -> None:
        half = b'{"schema": 1, '
        with (
            served(tmp_path, lambda asker: asker.sendall(half)),
            pytest.raises(BusyError, match="does not answer"),
        ):
            ask(tmp_path)

    @given(JSON)
    def test_whatever_it_says_is_refused_with_a_known_error(self, data: Any) -> None:
        with pytest.raises((ValueError, KeyError, TypeError)):
            DaemonStatus.from_json(data)


HOLD = """
import sys
from pathlib import Path
from virtirq.control.daemon_status import Lock
lock = Lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


class TestLock:
    def test_a_second_daemon_is_refused(self, tmp_path: Path) -> None:
        first = Lock(tmp_path)
        with pytest.raises(BusyError, match="another virtirq daemon runs") as caught:
            Lock(tmp_path)
        assert caught.value.hint == "see 'virtirq status'"
        first.close()
        Lock(tmp_path).close()

    def test_who_is_refused_holds_no_file(self, tmp_path: Path) -> None:
        first = Lock(tmp_path)
        before = os.listdir("/proc/self/fd")
        with pytest.raises(BusyError):
            Lock(tmp_path)
        assert os.listdir("/proc/self/fd") == before
        first.close()

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
    def test_a_process_that_ends_lets_go(self, tmp_path: Path, how: signal.Signals) -> None:
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, tmp_path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(BusyError):
                Lock(tmp_path)
            other.send_signal(how)
            other.wait(ENOUGH)
            Lock(tmp_path).close()

    def test_it_is_not_the_journals(self, tmp_path: Path) -> None:
        """A daemon runs for days; `virtirq apply` must not wait for so long."""
        from virtirq.control.journal import locked_journal

        lock = Lock(tmp_path)
        with locked_journal(tmp_path, "boot", wait=0.0):
            pass
        lock.close()

    def test_a_directory_of_anyones(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        with pytest.raises(DeploymentError, match="others than its owner can write there"):
            Lock(tmp_path)
