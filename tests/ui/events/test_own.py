"""What ``apply`` and ``restore`` leave in the journal, by journald's protocol on a real socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.test_log import parse
from tests.hostmaker import MadeFs
from tests.ui.top.hosts import host
from virtirq.control import cycle, sources
from virtirq.control.cycle import Done
from virtirq.control.executor import NOT_TRIED
from virtirq.model import Status
from virtirq.policy.config import Config
from virtirq.ui.cli import main
from virtirq.ui.events import own


class Journal:
    """A journald that remembers; `lines` is what it was told."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listening.bind(self.path)
        self.listening.setblocking(False)

    @property
    def lines(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        while True:
            try:
                told = parse(self.listening.recv(1 << 20))
            except BlockingIOError:
                return found
            found.append({name: value.decode() for name, value in told.items()})


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    made = Journal(tmp_path / "journal")
    yield made
    made.listening.close()


def applied(fs: MadeFs, state: Path) -> Done:
    return cycle.apply(fs, sources.load_guests(fs, ()), Config(), state, [])


@pytest.fixture
def done(tmp_path: Path) -> Done:
    fs = host(guests=2).fs()
    for name in ("smp_affinity_list", "effective_affinity_list"):
        fs.set(f"/proc/irq/101/{name}", "5")
    return applied(fs, tmp_path / "state")


def test_what_was_moved_is_told_as_the_daemon_tells_it(journal: Journal, done: Done) -> None:
    own.tell(done, "pin", "apply", journal.path)
    assert journal.lines == [
        {
            "MESSAGE": "IRQ 101 vfio-msix[1](0000:40:00.0): " + done.outcomes[0].reason,
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "virtirq",
            "VIRTIRQ_GUEST": "web0",
            "VIRTIRQ_DEVICE": "0000:40:00.0",
            "VIRTIRQ_IRQ": "101",
            "VIRTIRQ_ACTION": "pin",
            "VIRTIRQ_STATUS": "applied",
            "VIRTIRQ_BEFORE": "5",
            "VIRTIRQ_AFTER": "0",
            "VIRTIRQ_REASON": "apply: wrong-node",
        }
    ]


def test_what_failed_is_a_warning_and_what_was_not_tried_is_nothing(
    journal: Journal, done: Done
) -> None:
    (one,) = done.outcomes
    bad = replace(one, status=Status.REFUSED, reason="no room", hint="make some")
    never = replace(one, status=Status.FAILED, reason=f"{NOT_TRIED}interrupted")
    same = replace(one, status=Status.UNCHANGED)
    own.tell(replace(done, outcomes=(never, bad, same)), "restore", "restore", journal.path)
    (line,) = journal.lines
    assert line["PRIORITY"] == "4"
    assert line["MESSAGE"].endswith(": refused: no room (hint: make some)")
    assert line["VIRTIRQ_ACTION"] == "restore"


def test_without_journald_and_without_root_nothing_is_told(
    journal: Journal, done: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.tell(done, "pin", "apply", str(tmp_path / "none"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    own.tell(done, "pin", "apply", journal.path)
    assert journal.lines == []


def test_a_journald_that_hangs_is_left_alone(journal: Journal, done: Done) -> None:
    """Its queue is full, and stays so: the first that it does not take is the last."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.setblocking(False)
        queued = 0
        with suppress(BlockingIOError):
            while True:
                filler.sendto(b"MESSAGE=x\n", journal.path)
                queued += 1
    own.tell(replace(done, outcomes=done.outcomes * 10_000), "pin", "apply", journal.path)
    assert queued <= len(journal.lines) < 10_000


def test_a_host_that_is_tried_on_is_nobodys_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "tell", None)
    for verb in ("apply", "restore"):
        host(guests=2).write(tmp_path / verb, scratch=True)
        assert main(["-q", "-s", str(tmp_path / verb), verb]) == 0
