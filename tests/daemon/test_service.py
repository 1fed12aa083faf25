"""The daemon's life: a start that may fail, be told to stop or to reload, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.daemon.test_reconciler import (
    FOUND,
    HOST,
    NIC,
    OTHER,
    PLANNED,
    STRANGE,
    WEB,
    Kernel,
    Lines,
)
from virtirq.daemon import blocking, service, unclaimed
from virtirq.daemon.irqbalance_guard import IrqbalanceGuard
from virtirq.daemon.kernel_events import KernelEvents
from virtirq.daemon.log import Log
from virtirq.daemon.loop import run
from virtirq.daemon.process_source import ProcessSource
from virtirq.daemon.service import Daemon, Setup
from virtirq.daemon.vector_follower import VectorFollower
from virtirq.errors import ConfigError, UnavailableError
from virtirq.host import paths
from virtirq.host.events import EventKind, KernelEvent
from virtirq.host.fs import HostFs
from virtirq.host.uevents import Uevent, Uevents
from virtirq.model import NATIVE, Guest
from virtirq.policy import pace
from virtirq.policy.budget import Budget
from virtirq.policy.config import Config, GuestVectorsConfig
from virtirq.ui import inputs

UNFOLLOWED = Config(guest_vectors=GuestVectorsConfig(follow=False))
IRQS = (100, 101, 102, 103)


class Stage:
    """A host whose kernel tells nothing, and what the daemon's start needs of it."""

    def __init__(self, state: Path, notified: socket.socket) -> None:
        self.fs = Kernel(HOST)
        self.lines = Lines()
        self.loads = 0
        self.config: Config | Exception = UNFOLLOWED
        self.uri: str | None = None
        self._state = state
        self._notified = notified

    def _load(self) -> Config:
        self.loads += 1
        if isinstance(self.config, Exception):
            raise self.config
        return self.config

    @asynccontextmanager
    async def daemon(self) -> AsyncIterator[Daemon]:
        logger = logging.Logger("daemon")
        logger.addHandler(self.lines)
        guests = () if self.uri is not None else (WEB,)
        setup = Setup(self._state, self._load, self.uri, guests, must=False)
        made = Daemon(setup, UNFOLLOWED, Log(logger))
        try:
            yield made
        finally:
            await made.close()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Daemon]:
        """One that is ready, and is told to stop at the end."""
        async with self.daemon() as daemon:
            work = asyncio.ensure_future(daemon.work())
            await self.until_ready(work)
            yield daemon
            os.kill(os.getpid(), signal.SIGTERM)
            await work

    async def until_ready(self, work: asyncio.Task[None]) -> list[str]:
        told: list[str] = []
        while "READY=1" not in told:
            assert not work.done(), "it has ended"
            await asyncio.sleep(0.01)
            told += self.told()
        return told

    def told(self) -> list[str]:
        """The first line of each that systemd was told since; not of what is for people."""
        found: list[str] = []
        while True:
            try:
                line = self._notified.recv(4096).decode().partition("\n")[0]
            except BlockingIOError:
                return found
            found += [] if line.startswith("STATUS=") else [line]

    def places(self) -> list[str]:
        return [self.fs.where(irq) for irq in IRQS]

    @property
    def said(self) -> list[str]:
        return [each.getMessage() for each in self.lines.records]


NOWHERE, IN_PLACE = [FOUND[irq] for irq in IRQS], [PLANNED[irq] for irq in IRQS]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        made = Stage(tmp_path / "state", notified)
        monkeypatch.setattr(service, "LiveFs", lambda: made.fs)
        monkeypatch.setattr(service, "open_kernel_events", _unavailable)
        monkeypatch.setattr(service, "Uevents", _refused)
        monkeypatch.setattr(service, "_POLL", (3600.0, 3600.0))
        yield made


def _unavailable() -> None:
    raise UnavailableError("tracefs: not mounted here")


def _refused() -> None:
    raise PermissionError(1, os.strerror(1))


def during_the_start(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """`act` happens when guests are known and nothing of theirs was moved yet."""

    async def prepare(_: VectorFollower) -> None:
        await act()

    monkeypatch.setattr(VectorFollower, "prepare", prepare)


def kill(number: int) -> Callable[[], Coroutine[Any, Any, None]]:
    async def act() -> None:
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.1)  # the loop hears of it meanwhile

    return act


def test_a_life(stage: Stage) -> None:
    async def live() -> None:
        async with stage.daemon() as daemon:
            work = asyncio.ensure_future(daemon.work())
            assert await stage.until_ready(work) == ["READY=1"]
            assert stage.places() == IN_PLACE
            assert sys.getswitchinterval() < 0.001, "the loop waits for other threads' turns"
            os.kill(os.getpid(), signal.SIGTERM)
            await work
        assert stage.told() == ["STOPPING=1"]
        assert stage.said[-1] == "stopped"
        assert stage.places() == IN_PLACE

    run(live())
    assert not any(each for each in stage.lines.records if each.levelno >= logging.ERROR)


def test_what_it_finds_agrees_with_check(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unclaimed, "_GRACE", 0.0)

    async def live() -> None:
        async with stage.at_work() as daemon:
            while not (told := daemon._daemon_status()).findings[1:]:
                await asyncio.sleep(0.01)
            alone = inputs.seen(stage.fs, (WEB,), UNFOLLOWED, (), None).findings
            both = inputs.seen(stage.fs, (WEB,), UNFOLLOWED, (), told).findings
            strangers = [each for each in alone if each.code == "device-unclaimed"]
            assert [each.subject for each in strangers] == [str(OTHER), str(STRANGE)]
            assert set(strangers) < set(told.findings)
            assert sorted(map(str, both)) == sorted(map(str, {*alone, *told.findings}))

    run(live())


def test_a_reload_during_the_start_waits_for_its_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def live() -> None:
        async def hang_up() -> None:
            for _ in range(3):
                await kill(signal.SIGHUP)()
            assert (stage.loads, stage.told(), stage.places()) == (0, [], NOWHERE)

        during_the_start(monkeypatch, hang_up)
        async with stage.daemon() as daemon:
            work = asyncio.ensure_future(daemon.work())
            told = await stage.until_ready(work) + stage.told()
            assert told == ["READY=1", "RELOADING=1", "READY=1"]
            assert stage.loads == 1, "once for all"
            os.kill(os.getpid(), signal.SIGTERM)
            await work

    run(live())


def test_a_configuration_that_is_wrong_is_not_taken(stage: Stage) -> None:
    async def live() -> None:
        async with stage.daemon() as daemon:
            work = asyncio.ensure_future(daemon.work())
            await stage.until_ready(work)
            stage.config = ConfigError("no such key")
            os.kill(os.getpid(), signal.SIGHUP)
            assert await stage.until_ready(work) == ["RELOADING=1", "READY=1"]
            assert ["not taken" in each for each in stage.said].count(True) == 1
            stage.config = Config(default=NATIVE, guest_vectors=UNFOLLOWED.guest_vectors)
            os.kill(os.getpid(), signal.SIGHUP)
            assert await stage.until_ready(work) == ["RELOADING=1", "READY=1"]
            assert stage.places() == NOWHERE, "as they were found"
            os.kill(os.getpid(), signal.SIGTERM)
            await work

    run(live())


def test_who_is_told_to_stop_during_the_start_moves_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def live() -> None:
        during_the_start(monkeypatch, kill(signal.SIGTERM))
        async with stage.daemon() as daemon:
            await daemon.work()
        assert stage.told() == ["STOPPING=1"]
        assert stage.places() == NOWHERE

    run(live())


@pytest.mark.parametrize("part", ["prepare", "begin"])
def test_a_start_that_fails_ends_the_daemon(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Half a daemon would be believed to be whole."""

    async def fail(_: object) -> None:
        raise RuntimeError("a fault of ours")

    async def live() -> None:
        if part == "begin":
            stage.uri = "test:///default"
            monkeypatch.setattr(ProcessSource, "begin", fail)
        else:
            monkeypatch.setattr(VectorFollower, "prepare", fail)
        async with stage.daemon() as daemon:
            await asyncio.wait_for(daemon.work(), 30)

    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(live())
    assert stage.places() == NOWHERE
    assert "READY=1" not in stage.told()


def fail() -> None:
    raise RuntimeError("a fault of ours")


def when_read(daemon: Daemon) -> None:
    """It stays readable: the loop would call it again at once."""
    daemon._hear(os.eventfd(1), fail)


def when_told(daemon: Daemon) -> None:
    """What the kernel tells is served before the loop itself knows of it."""
    descriptor = os.eventfd(1)
    events = SimpleNamespace(read=fail, fileno=lambda: descriptor, close=lambda: None)
    daemon._events = cast(KernelEvents, events)
    daemon._loop.serve_first(descriptor, partial(daemon._hear_events, daemon._events))


async def failing() -> None:
    fail()


@pytest.mark.parametrize(
    "begin",
    [
        when_read,
        when_told,
        lambda daemon: daemon._loop.call_soon(fail),
        lambda daemon: daemon._loop.add_reader(os.eventfd(1), fail),
        lambda daemon: daemon._timers.soon(("test",), 0.0, fail),
        lambda daemon: daemon._timers.soon(("test",), 0.0, failing),
    ],
    ids=["heard", "told", "callback", "reader", "timer", "timer's task"],
)
def test_whatever_fails_in_the_loop_ends_the_daemon_once(
    stage: Stage, begin: Callable[[Daemon], object], caplog: pytest.LogCaptureFixture
) -> None:
    async def live() -> None:
        async with stage.daemon() as daemon:
            work = asyncio.ensure_future(daemon.work())
            await stage.until_ready(work)
            begin(daemon)
            await asyncio.wait_for(work, 30)

    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(live())
    assert stage.said[-1] == "stopped", "in order"
    assert caplog.records == [], "asyncio itself tells nothing"


def test_a_hangup_on_the_way_out_kills_nobody(stage: Stage) -> None:
    async def live() -> None:
        async with stage.daemon() as daemon:
            daemon._loop.add_signal_handler(signal.SIGHUP, daemon._reload)
        assert signal.getsignal(signal.SIGHUP) not in (signal.SIG_DFL, None)
        await kill(signal.SIGHUP)()
        assert stage.loads == 0

    run(live())


def test_nothing_is_asked_for_the_devices_of_a_guest_twice(stage: Stage) -> None:
    """Each interrupt is read once before it is moved, however long the start takes."""

    async def live() -> None:
        async with stage.daemon() as daemon:
            work = asyncio.ensure_future(daemon.work())
            stage.fs.calls.clear()
            await stage.until_ready(work)
            listed = [path for _, path in stage.fs.calls if path.endswith(f"{NIC}/msi_irqs")]
            assert len(listed) == 1
            os.kill(os.getpid(), signal.SIGTERM)
            await work

    run(live())


def test_who_moves_cpusets_again_and_again_has_threads_looked_at_in_a_tenth_of_the_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was given a cgroup of his own may; all guests' threads are looked at for it."""
    monkeypatch.setattr(service, "_CONFINED", 0.001)
    monkeypatch.setattr(blocking, "BUDGET", Budget(1e-6, longest=10.0))
    looked: list[int] = []

    def moved(_: HostFs, guests: Iterable[Guest]) -> tuple[Guest, ...]:
        looked.append(len(tuple(guests)))
        return ()

    async def live() -> None:
        async with stage.at_work() as daemon:
            monkeypatch.setattr(service, "_moved", moved)
            for _ in range(100):
                daemon._act_on([KernelEvent(EventKind.CONFINED, 0.0)])
                await asyncio.sleep(0.003)
            assert len(looked) <= 2, "and one that was asked for during the other"

    run(live())


def test_where_uevents_are_lost_again_and_again_everything_is_looked_at_now_and_then(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flooded:
        lost = True

        def read(self) -> list[Uevent]:
            return []

    monkeypatch.setattr(service, "_BURST", 0.001)
    looked = 0

    def look(_: Daemon) -> None:
        nonlocal looked
        looked += 1

    async def live() -> None:
        async with stage.at_work() as daemon:
            monkeypatch.setattr(Daemon, "_cpus", look)
            for _ in range(100):
                daemon._hear_devices(cast(Uevents, Flooded()))
                await asyncio.sleep(0.003)
            assert 1 <= looked < 20, "a second later, then two, then four"

    run(live())


def test_of_a_device_that_has_to_wait_nobody_is_asked_anything_until_then(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest switches MSI-X off and on: where it aims vectors, and whose it is, is read once."""
    monkeypatch.setattr(pace, "SHORTEST", 0.2)
    looks: list[str] = []
    holders: list[int] = []
    monkeypatch.setattr(VectorFollower, "look", lambda _, key: looks.append(key))
    monkeypatch.setattr(
        ProcessSource, "requested", lambda _, each: holders.extend(e.irq for e in each)
    )

    def switch(daemon: Daemon) -> None:
        stage.fs.free(100)
        events = [KernelEvent(EventKind.FREED, 0.0, 100), stage.fs.allocate(100, 0, affinity="4-7")]
        daemon._act_on(events)

    async def live() -> None:
        async with stage.at_work() as daemon:
            for _ in range(pace.AT_ONCE + 2):
                switch(daemon)
            looks.clear()
            holders.clear()
            for _ in range(100):
                switch(daemon)
            assert (looks, holders) == ([], [])
            while stage.places() != IN_PLACE:
                await asyncio.sleep(0.001)
            assert (looks, holders) == ([WEB.key], [100])

    run(live())


def test_of_set_ups_that_come_in_one_piece_the_last_is_acted_on(stage: Stage) -> None:
    """A driver of a disk sets its vectors up three times while the daemon does something else."""

    def calls_for(daemon: Daemon, times: int) -> list[tuple[str, str]]:
        events = []
        for _ in range(times):
            stage.fs.free(100)
            events += [KernelEvent(EventKind.FREED, 0.0, 100), stage.fs.allocate(100, 0)]
        stage.fs.calls.clear()
        daemon._act_on(events)
        return [call for call in stage.fs.calls if "/100" in call[1]]  # others look meanwhile

    async def live() -> None:
        async with stage.at_work() as daemon:
            once = calls_for(daemon, 1)
            assert once
            assert stage.places() == IN_PLACE
            assert calls_for(daemon, 3) == once
            assert stage.places() == IN_PLACE

    run(live())


def test_vectors_come_before_whatever_else_was_told(stage: Stage) -> None:
    """Their guest waits for them, and for nothing of the rest."""

    async def live() -> None:
        async with stage.at_work() as daemon:
            stage.fs.other_moves(101, "0")
            line = stage.fs.allocate(302, 6)._replace(name=f"vfio-intx({NIC})")
            events = [
                line,
                KernelEvent(EventKind.MOVED, 0.0, 101, comm="tuner", pid=4711),
                stage.fs.allocate(300, 4),
                KernelEvent(EventKind.ROUTED, 0.0, pid=WEB.pid or 0),
                stage.fs.allocate(301, 5),
            ]
            stage.fs.calls.clear()
            daemon._act_on(events)
            written = [path for operation, path in stage.fs.calls if operation == "write"]
            assert written == [paths.IRQ_AFFINITY.at(irq) for irq in (300, 301, 101)]
            assert daemon._timers.is_due(("line", NIC)), "it is looked at after them"

    run(live())


@pytest.mark.parametrize("kind", [EventKind.REQUESTED, EventKind.ALLOCATED])
def test_irqbalance_is_told_of_what_is_ours_however_that_was_learned(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, kind: EventKind
) -> None:
    """Where the kernel has no probes, what an interrupt is shows a moment after it was told of."""
    monkeypatch.setattr(service, "_BURST", 0.001)
    kept: list[frozenset[int]] = []

    def changed(guard: IrqbalanceGuard) -> None:
        if guard._kept is not None:
            kept.append(guard._kept())

    async def live() -> None:
        async with stage.at_work() as daemon:
            while daemon._timers.is_due(("spare",)):
                await asyncio.sleep(0.001)
            monkeypatch.setattr(IrqbalanceGuard, "changed", changed)
            daemon._act_on([stage.fs.allocate(300, 4)._replace(kind=kind)])
            while not kept or 300 not in kept[-1]:
                await asyncio.sleep(0.001)

    run(live())


def test_a_thread_that_was_moved_is_followed_whoever_is_asked_of_its_guest(stage: Stage) -> None:
    """Nobody tells of this guest but the command line: it is the thread that is looked at."""
    assert WEB.pid is not None
    status = paths.THREAD_STATUS.at(WEB.pid, 1001)

    async def live() -> None:
        async with stage.daemon() as daemon:
            work = asyncio.ensure_future(daemon.work())
            await stage.until_ready(work)
            assert stage.places() == IN_PLACE
            stage.fs.set(status, "Cpus_allowed_list:\t3\n")
            daemon._act_on_one(KernelEvent(EventKind.REPINNED, 0.0, tid=4711))
            daemon._act_on_one(KernelEvent(EventKind.REPINNED, 0.0, tid=1001))
            while stage.places() == IN_PLACE:
                assert not work.done()
                await asyncio.sleep(0.001)
            os.kill(os.getpid(), signal.SIGTERM)
            await work
        assert stage.places() == ["4", "6", "7", "4"]  # CPU 3 is far from the device

    run(live())


def test_who_moves_threads_again_and_again_has_them_read_in_a_tenth_of_the_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "BUDGET", Budget(1e-6, longest=10.0))
    read: list[str] = []

    def counting(_: HostFs, guest: Guest) -> Guest:
        read.append(guest.name)
        return guest

    async def live() -> None:
        async with stage.at_work() as daemon:
            monkeypatch.setattr(service, "as_allowed", counting)
            while not read:
                daemon._act_on_one(KernelEvent(EventKind.REPINNED, 0.0, tid=1001))
                await asyncio.sleep(0.001)
            for _ in range(100):
                daemon._act_on_one(KernelEvent(EventKind.REPINNED, 0.0, tid=1001))
                await asyncio.sleep(0.003)
            assert len(read) <= 2, "and one that was asked for during the other"

    run(live())
