"""libvirt's guests: the real one's test driver, and connections that break."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.hostmaker import MadeFs, MadeHost, passthrough
from tests.libvirtmaker import NIC, URI, domain_xml, held
from tests.needs import need_libvirt
from virtirq.control.counters import Counters
from virtirq.control.journal import SharedJournal
from virtirq.cpuset import CpuSet
from virtirq.daemon import blocking
from virtirq.daemon import libvirt_source as module
from virtirq.daemon.libvirt_source import LibvirtSource
from virtirq.daemon.log import Log
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.source_state import SourceState
from virtirq.daemon.timers import Timers
from virtirq.errors import (
    AccessError,
    ConnectionFailedError,
    DependencyError,
    JournalError,
    LibvirtError,
    UsageError,
    VirtirqError,
)
from virtirq.guests.libvirt import watch as watch_module
from virtirq.guests.libvirt.connection import LiveGuests
from virtirq.guests.processes.find import HELD, SOURCE
from virtirq.host import paths
from virtirq.model import Gap, Guest, GuestDevice, PciAddress, Vcpu
from virtirq.policy.budget import Budget
from virtirq.policy.config import Config

ENOUGH = 300.0
"""Seconds after which a test gives up."""
HOST = MadeHost(
    online="0-7", devices=(passthrough("0000:82:00.0", vectors=2, first_irq=100, affinity="0-7"),)
)
ADDRESS = PciAddress.parse("0000:82:00.0")


def guest(name: str, cpu: int = 2) -> Guest:
    return Guest(
        name,
        "libvirt",
        uuid=f"u-{name}",
        vcpus=(Vcpu(0, CpuSet([cpu])),),
        devices=(GuestDevice(ADDRESS, "hostdev"),) if name == "web" else (),
    )


class Told(Reconciler):
    """Counts how often it is told of guests."""

    told = 0

    def know(self, *args: Any, **kwargs: Any) -> None:
        self.told += 1
        super().know(*args, **kwargs)

    def update(self, guest: Guest) -> None:
        self.told += 1
        super().update(guest)

    def gone(self, key: str) -> None:
        self.told += 1
        super().gone(key)


class Room:
    """A LibvirtSource, its Reconciler and its host; to be made inside of a loop."""

    def __init__(self, state: Any, uri: str = "fake:///", *, must: bool = True) -> None:
        self.fs: MadeFs = HOST.live()
        self.journal = SharedJournal(state, HOST.boot_id)
        loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[None] = loop.create_future()
        self.slept: list[float] = []
        self.timers = Timers(self._later, loop.time, self.failed.set_exception)
        self.reconciler = Told(
            self.fs,
            self.journal,
            Config(),
            Log(),
            Counters(),
            self.timers,
        )
        self.prepared: list[list[str]] = []
        self.source = LibvirtSource(
            uri, self.fs, self.reconciler, Log(), self.timers, self._prepare, must=must
        )
        self.source.begin()

    def _later(self, delay: float, call: Callable[[], object]) -> asyncio.TimerHandle:
        """What is put off for long is noted, and happens a thousand times sooner."""
        if delay >= 1 and delay != module._HELD:
            self.slept.append(delay)
            delay /= 1000
        return asyncio.get_running_loop().call_later(delay, call)

    async def _prepare(self) -> None:
        """What is known by then, and where the interrupts are."""
        self.prepared.append([*sorted(self.names), *self.places()])

    @property
    def names(self) -> set[str]:
        return {each.name for each in self.reconciler.guests}

    def places(self) -> list[str]:
        return [self.fs.read(paths.IRQ_AFFINITY.at(irq)) for irq in (100, 101)]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(ENOUGH):
            while not condition():
                if self.failed.done():
                    self.failed.result()
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        await self.source.close()
        self.timers.close()
        if not self.failed.done():
            self.failed.set_result(None)
        self.journal.close()


Act = Callable[[Room], Awaitable[None]]


def play(state: Any, act: Act, uri: str = "fake:///", *, must: bool = True) -> None:
    async def main() -> None:
        room = Room(state, uri, must=must)
        try:
            await act(room)
        finally:
            await room.close()

    asyncio.run(main())


class TestRealLibvirt:
    @pytest.fixture
    def host(self) -> Iterator[Any]:
        need_libvirt()
        watch_module._run_loop()
        with held() as connection:
            yield connection

    def test_guests_that_run_already(self, host: Any, tmp_path: Any) -> None:
        host.createXML(domain_xml(devices=NIC), 0)
        host.defineXML(domain_xml("off", devices=""))

        async def act(room: Room) -> None:
            await room.source.tried()
            assert room.source.described == f"connected to {URI}"
            assert room.names == {"web"}
            assert room.places() == ["2", "4"]
            assert room.reconciler.told == 1
            assert room.prepared == [["web", "0-7", "0-7"]], "known, and nothing moved yet"

        play(tmp_path, act, URI)

    def test_a_guest_from_its_beginning_to_its_end(self, host: Any, tmp_path: Any) -> None:
        async def act(room: Room) -> None:
            await room.source.tried()
            assert room.names == set()
            host.createXML(domain_xml(devices=NIC), 0)
            await room.until(lambda: room.places() == ["2", "4"])
            (domain,) = host.listAllDomains()
            domain.suspend()
            domain.resume()
            domain.destroy()
            await room.until(lambda: room.names == set())
            assert room.places() == ["0-7", "0-7"]
            assert room.reconciler.told >= 3

        play(tmp_path, act, URI)

    def test_a_setting_counts_at_once(self, host: Any, tmp_path: Any) -> None:
        domain = host.createXML(domain_xml(devices=NIC), 0)

        async def act(room: Room) -> None:
            await room.until(lambda: room.places() == ["2", "4"])
            domain.setMetadata(2, '<irqs cpuset="6"/>', "virtirq", "urn:virtirq:1", 1)
            await room.until(lambda: room.places() == ["6", "6"])

        play(tmp_path, act, URI)

    def test_pins_that_libvirt_does_not_tell_of_are_asked_for(
        self, host: Any, tmp_path: Any
    ) -> None:
        """Its test driver tells of no pinning; the kernel does, and then it is looked at."""
        domain = host.createXML(domain_xml(devices=NIC), 0)

        async def act(room: Room) -> None:
            await room.until(lambda: room.places() == ["2", "4"])
            domain.pinVcpu(0, (False,) * 7 + (True,))
            room.source.look(domain.UUIDString())
            await room.until(lambda: room.places() == ["7", "4"])

        play(tmp_path, act, URI)

    def test_many_that_begin_and_end(self, host: Any, tmp_path: Any) -> None:
        async def act(room: Room) -> None:
            await room.source.tried()
            domains = [host.createXML(domain_xml(f"g{n}", devices=""), 0) for n in range(30)]
            for domain in domains[::2]:
                domain.destroy()
            await room.until(lambda: room.names == {f"g{n}" for n in range(1, 30, 2)})

        play(tmp_path, act, URI)

    def test_libvirt_that_is_not_there(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        need_libvirt()
        uri = "qemu+unix:///system?socket=/nonexistent"

        async def act(room: Room) -> None:
            await room.source.tried()
            assert "cannot connect to libvirt" in room.source.described
            assert not room.failed.done()

        play(tmp_path, act, uri)

    def test_another_hosts(self, tmp_path: Any) -> None:
        need_libvirt()

        async def act(room: Room) -> None:
            with pytest.raises(UsageError, match="run on another host"):
                await room.failed

        play(tmp_path, act, "qemu+ssh://root@elsewhere/system")


# What the test driver cannot do -----------------------------------------------------------------


class FakeWatch:
    """A connection of the script's."""

    uri = "fake:///"

    def __init__(self, script: Script) -> None:
        self.script = script
        self.closed = 0
        self.changed: Callable[[str, float], None] = lambda *_: None
        self.lost: Callable[[str], None] = lambda _: None

    def running(self) -> dict[str, str]:
        if self.script.listing:
            raise self.script.listing.pop(0)
        self.script.meanwhile(self)
        there = {each: each.removeprefix("u-") for each in sorted(self.script.gapped)}
        return there | {uuid: each.name for uuid, each in self.script.running.items()}

    def guest(self, uuid: str, fs: object, processes: object = None) -> LiveGuests:
        (self.script.read if processes is None else self.script.read_first).append(uuid)
        go = self.script.hung.get(uuid)
        if go is not None:
            assert go.wait(ENOUGH)
        error = self.script.broken.pop(uuid, None)
        if error is not None:
            raise error
        if uuid in self.script.gapped:
            return LiveGuests((), (Gap(uuid, "makes no sense"),))
        found = self.script.running.get(uuid)
        return LiveGuests((found,) if found else ())

    def close(self) -> None:
        self.closed += 1
        assert self.script.lets_go.wait(ENOUGH)


class Script:
    """What becomes of each attempt to connect (an error, or None), and who runs."""

    def __init__(self) -> None:
        self.attempts: list[Exception | None] = []
        self.listing: list[Exception] = []
        self.running: dict[str, Guest] = {}
        self.hung: dict[str, threading.Event] = {}
        """Guests for which libvirt does not answer, until it does."""
        self.broken: dict[str, Exception] = {}
        self.gapped: set[str] = set()
        self.read_first: list[str] = []
        """Guests that were read when libvirt was connected to."""
        self.read: list[str] = []
        """Those that were read at other times."""
        self.watches: list[FakeWatch] = []
        self.lets_go = threading.Event()
        self.lets_go.set()
        self.opens = threading.Event()
        self.opens.set()
        self.meanwhile: Callable[[FakeWatch], None] = lambda _: None

    def open(
        self, uri: str, changed: Callable[[str, float], None], lost: Callable[[str], None]
    ) -> FakeWatch:
        assert self.opens.wait(ENOUGH)
        error = self.attempts.pop(0) if self.attempts else None
        if error is not None:
            raise error
        watch = FakeWatch(self)
        watch.changed, watch.lost = changed, lost
        self.watches.append(watch)
        return watch

    @property
    def watch(self) -> FakeWatch:
        return self.watches[-1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setattr(module, "open_watch", made.open)
    return made


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


FAILED = ConnectionFailedError("cannot connect to libvirt at fake:///: no")


class TestConnecting:
    @pytest.mark.parametrize("error", [DependencyError("x"), AccessError("x"), UsageError("x")])
    def test_what_no_waiting_mends_ends_it(
        self, script: Script, tmp_path: Any, error: VirtirqError
    ) -> None:
        script.attempts = [error]

        async def act(room: Room) -> None:
            with pytest.raises(type(error)):
                await room.failed
            assert room.slept == []

        play(tmp_path, act)

    @pytest.mark.parametrize("error", [FAILED, LibvirtError("x"), JournalError("x")])
    def test_what_waiting_may_mend_is_tried_again_later_and_later(
        self, script: Script, tmp_path: Any, error: VirtirqError, caplog: pytest.LogCaptureFixture
    ) -> None:
        script.attempts = [error] * 8
        script.running = {"u-web": guest("web")}

        async def act(room: Room) -> None:
            await room.source.tried()
            assert room.source.described == str(error)
            await room.until(lambda: bool(script.watches))
            await room.until(lambda: room.names == {"web"})
            assert room.slept == [1, 2, 4, 8, 16, 30, 30, 30]
            assert warnings(caplog) == [f"{error}; trying again until it can be reached"]

        play(tmp_path, act)

    @pytest.mark.parametrize("error", [LibvirtError("x"), ConnectionFailedError("x")])
    def test_one_whose_guests_cannot_be_listed_is_closed(
        self, script: Script, tmp_path: Any, error: VirtirqError
    ) -> None:
        script.listing = [error]

        async def act(room: Room) -> None:
            await room.until(lambda: len(script.watches) == 2)
            assert script.watches[0].closed == 1
            assert room.slept == [1]
            await room.until(lambda: room.source.described == "connected to fake:///")

        play(tmp_path, act)

    def test_gaps_are_not_taken_for_guests_that_are_gone(
        self, script: Script, tmp_path: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        script.running = {"u-web": guest("web"), "u-db": guest("db")}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web", "db"})
            del script.running["u-web"]
            script.gapped.add("u-web")
            script.watch.lost("its daemon has ended")
            await room.until(lambda: len(script.watches) == 2)
            await room.until(lambda: room.source.described.startswith("connected"))
            assert room.names == {"web", "db"}
            assert "not read: u-web: makes no sense" in warnings(caplog)
            assert room.source.state is SourceState.ALL, "it runs, and is kept as it was"

        play(tmp_path, act)


HOPELESS = [DependencyError("x"), AccessError("x"), UsageError("x")]


class TestNeedNotBeThere:
    """Guests are found by their processes, too: libvirt may be missing for good."""

    @pytest.mark.parametrize("error", HOPELESS)
    def test_what_no_waiting_mends_gives_it_up(
        self, script: Script, tmp_path: Any, error: VirtirqError, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        script.attempts = [error]

        async def act(room: Room) -> None:
            await room.source.tried()
            assert room.source.state is SourceState.NEVER
            assert room.source.described == str(error)
            assert (room.slept, script.watches) == ([], [])
            said = [(each.levelname, each.getMessage()) for each in caplog.records]
            assert ("INFO", "libvirt is not asked: x") in said
            assert warnings(caplog) == []
            room.source.look("u-web")
            room.source.look_at_all()

        play(tmp_path, act, must=False)

    @pytest.mark.parametrize("error", [FAILED, LibvirtError("x"), JournalError("x")])
    def test_what_waiting_may_mend_is_waited_for(
        self, script: Script, tmp_path: Any, error: VirtirqError, caplog: pytest.LogCaptureFixture
    ) -> None:
        script.attempts = [error] * 2
        script.running = {"u-web": guest("web")}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web"})
            assert room.source.state is not SourceState.NEVER
            assert room.slept == [1, 2]
            assert warnings(caplog) == [f"{error}; trying again until it can be reached"]

        play(tmp_path, act, must=False)

    @pytest.mark.parametrize("error", HOPELESS)
    def test_nor_is_it_given_up_once_it_was_there(
        self, script: Script, tmp_path: Any, error: VirtirqError
    ) -> None:
        async def act(room: Room) -> None:
            await room.until(lambda: room.source.described.startswith("connected"))
            script.attempts = [error]
            script.watch.lost("closed")
            await room.until(lambda: len(script.watches) == 2)
            assert room.source.state is not SourceState.NEVER

        play(tmp_path, act, must=False)

    @pytest.mark.parametrize("error", HOPELESS)
    def test_that_it_must_be_is_the_rule(
        self, script: Script, tmp_path: Any, error: VirtirqError
    ) -> None:
        script.attempts = [error]

        async def act(room: Room) -> None:
            with pytest.raises(type(error)):
                await room.failed
            assert room.source.state is not SourceState.NEVER

        play(tmp_path, act)


OF_PROCESS = Guest(
    "qemu",
    SOURCE,
    pid=7,
    vcpus=(Vcpu(0, CpuSet([6])),),
    devices=(GuestDevice(ADDRESS, "vfio"),),
)


class TestOthersGuests:
    """Those of processes are not libvirt's to tell of."""

    def test_they_stay_when_it_tells_of_its_own(self, script: Script, tmp_path: Any) -> None:
        script.running = {"u-db": guest("db")}

        async def act(room: Room) -> None:
            room.reconciler.note([OF_PROCESS])
            await room.until(lambda: room.names == {"qemu", "db"})
            await room.until(lambda: room.reconciler.told == 1)
            assert room.prepared == [["db", "qemu", "0-7", "0-7"]], "known, nothing moved yet"
            assert room.places() == ["6", "6"]

        play(tmp_path, act)

    def test_it_is_not_asked_for_them(self, script: Script, tmp_path: Any) -> None:
        script.running = {"u-db": guest("db")}

        async def act(room: Room) -> None:
            room.reconciler.note([OF_PROCESS])
            await room.until(lambda: room.reconciler.told == 1)
            room.source.look_at_all()
            for each in room.reconciler.guests:
                room.source.look_if_ours(each)
            await room.until(lambda: script.read == ["u-db"])
            script.watch.lost("closed")
            await room.until(lambda: len(script.watches) == 2)
            await room.until(lambda: room.reconciler.told == 3)
            room.source.look("u-db")
            await room.until(lambda: room.reconciler.told == 4)
            assert script.read == ["u-db", "u-db"]
            assert room.names == {"qemu", "db"}

        play(tmp_path, act)

    def test_it_tells_of_one_of_them(self, script: Script, tmp_path: Any) -> None:
        script.running = {"u-web": guest("web")}

        async def act(room: Room) -> None:
            room.reconciler.note([replace(OF_PROCESS, uuid="u-web")])
            await room.until(lambda: room.reconciler.told == 1)
            (told,) = room.reconciler.guests
            assert (told.name, told.source) == ("web", "libvirt")
            assert room.places() == ["2", "2"]

        play(tmp_path, act)


class TestWhatItIsNotTold:
    """What its guest's process was found to hold is not forgotten when the guest is read again."""

    @pytest.mark.parametrize("again", [True, False])
    def test_it_stays(self, script: Script, tmp_path: Any, again: bool) -> None:
        db = replace(guest("db"), pid=7)
        script.running = {"u-db": db}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"db"})
            room.reconciler.update(replace(db, devices=(GuestDevice(ADDRESS, HELD),)))
            assert room.places() == ["2", "2"]
            script.running = {"u-db": replace(db, vcpus=(Vcpu(0, CpuSet([5])),))}
            if again:
                script.watch.lost("closed")
            else:
                room.source.look("u-db")
            await room.until(lambda: room.places() == ["5", "5"])
            script.running = {"u-db": replace(db, pid=8)}
            room.source.look("u-db")
            await room.until(lambda: room.places() == ["0-7", "0-7"])

        play(tmp_path, act)

    def test_what_it_is_told_of_then_it_has_once(self, script: Script, tmp_path: Any) -> None:
        web = replace(guest("web"), pid=7)
        script.running = {"u-web": web}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web"})
            room.reconciler.update(replace(web, devices=(GuestDevice(ADDRESS, HELD),)))
            room.source.look("u-web")
            await room.until(lambda: room.reconciler.guests == (web,))

        play(tmp_path, act)


class TestLosing:
    def test_guests_are_kept_and_found_again(
        self, script: Script, tmp_path: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        script.running = {"u-web": guest("web")}
        fails: list[Exception | None] = [FAILED, FAILED]

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web"})
            seen: list[str] = []
            script.attempts = fails
            script.running = {"u-web": guest("web", 5), "u-db": guest("db")}
            script.meanwhile = lambda _: seen.append(str(room.names))
            threading.Thread(target=script.watch.lost, args=("its daemon has ended",)).start()
            await room.until(lambda: room.names == {"web", "db"})
            assert seen == ["{'web'}"], "until it was asked again"
            assert room.places() == ["5", "5"]
            assert script.watches[0].closed == 1
            assert room.slept == [1, 2, 4]
            assert warnings(caplog) == [
                "connection to fake:/// lost: its daemon has ended;"
                " its guests are kept as they were",
                f"{FAILED}; trying again until it can be reached",
            ]

        play(tmp_path, act)

    def test_one_that_breaks_again_and_again_is_made_later_and_later(
        self, script: Script, tmp_path: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def act(room: Room) -> None:
            for number in range(1, 4):
                await room.until(lambda n=number: len(script.watches) == n)  # type: ignore[misc]
                await room.until(lambda: room.source.described == "connected to fake:///")
                script.watch.lost("closed")
                script.watch.lost("and once more")
                await room.until(lambda: "lost" in room.source.described)
            await room.until(lambda: len(script.watches) == 4)
            assert room.slept == [1, 2, 4]
            assert [each.name for each in caplog.records if each.name == "asyncio"] == []

        play(tmp_path, act)

    def test_one_that_has_held_is_made_again_soon(
        self, script: Script, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_HELD", 0.0)

        async def act(room: Room) -> None:
            for number in range(1, 4):
                await room.until(lambda n=number: len(script.watches) == n)  # type: ignore[misc]
                await room.until(lambda: room.source.described == "connected to fake:///")
                await room.until(lambda: not room.timers.is_due(module._CALM))
                script.watch.lost("closed")
                await room.until(lambda: "lost" in room.source.described)
            await room.until(lambda: len(script.watches) == 4)
            assert room.slept == [1, 1, 1]

        play(tmp_path, act)

    @pytest.mark.parametrize("error", [DependencyError("x"), AccessError("x"), UsageError("x")])
    def test_what_no_waiting_mends_ends_nothing_that_worked(
        self, script: Script, tmp_path: Any, error: VirtirqError
    ) -> None:
        async def act(room: Room) -> None:
            await room.until(lambda: room.source.described.startswith("connected"))
            script.attempts = [error]
            script.watch.lost("closed")
            await room.until(lambda: len(script.watches) == 2)
            assert room.slept == [1, 2]

        play(tmp_path, act)

    def test_one_that_does_not_let_go(
        self,
        script: Script,
        tmp_path: Any,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(module, "_FAREWELL", 0.01)
        script.lets_go.clear()

        async def act(room: Room) -> None:
            await room.until(lambda: room.source.described.startswith("connected"))
            script.watch.lost("it does not answer")
            await room.until(lambda: len(script.watches) == 2)
            assert "fake:///: does not let go of the connection" in warnings(caplog)
            script.lets_go.set()

        play(tmp_path, act)


class TestLooking:
    def test_just_the_guest_concerned_is_read(self, script: Script, tmp_path: Any) -> None:
        script.running = {"u-web": guest("web"), "u-db": guest("db")}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web", "db"})
            script.running["u-web"] = guest("web", 6)
            count = room.reconciler.told
            threading.Thread(target=script.watch.changed, args=("u-web",)).start()
            await room.until(lambda: room.reconciler.told > count)
            assert room.places() == ["6", "6"]
            assert script.read == ["u-web"]

        play(tmp_path, act)

    def test_what_comes_many_times_at_once_is_read_once(
        self, script: Script, tmp_path: Any
    ) -> None:
        async def act(room: Room) -> None:
            await room.until(lambda: room.source.described.startswith("connected"))
            for _ in range(20):
                room.source.look("u-web")
                room.source.look("u-db")
            await room.until(lambda: room.reconciler.told == 3)
            assert script.read == ["u-web", "u-db"]

        play(tmp_path, act)

    def test_one_whose_threads_say_so_again_and_again_has_a_tenth_of_the_time(
        self, script: Script, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """libvirt's own word counts at once."""
        monkeypatch.setattr(blocking, "BUDGET", Budget(1e-6, longest=10.0))
        web = script.running["u-web"] = guest("web")

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web"})
            monkeypatch.setattr(room.timers, "_later", asyncio.get_running_loop().call_later)
            for _ in range(20):
                room.source.look_if_ours(web)
                await asyncio.sleep(0.001)
            assert script.read == []
            script.watch.changed("u-web", 0.0)
            await room.until(lambda: script.read == ["u-web"])

        play(tmp_path, act)

    def test_all_that_are_known_are_read(self, script: Script, tmp_path: Any) -> None:
        script.running = {"u-web": guest("web"), "u-db": guest("db")}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web", "db"})
            script.running["u-web"] = guest("web", 6)
            room.source.look_at_all()
            await room.until(lambda: room.reconciler.told == 3)
            assert sorted(script.read) == ["u-db", "u-web"]
            assert room.places() == ["6", "6"]

        play(tmp_path, act)

    def test_one_that_does_not_run_is_gone(self, script: Script, tmp_path: Any) -> None:
        script.running = {"u-web": guest("web")}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web"})
            assert room.places() == ["2", "2"]
            script.running.clear()
            script.watch.changed("u-web", 0.0)
            await room.until(lambda: room.names == set())
            assert room.places() == ["0-7", "0-7"]

        play(tmp_path, act)

    def test_one_that_makes_no_sense_is_kept(
        self, script: Script, tmp_path: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        script.running = {"u-web": guest("web")}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web"})
            script.gapped = {"u-web"}
            script.watch.changed("u-web", 0.0)
            await room.until(lambda: warnings(caplog))
            assert room.names == {"web"}
            assert room.places() == ["2", "2"]
            assert warnings(caplog) == ["not read: u-web: makes no sense"]

        play(tmp_path, act)

    def test_an_error_of_one_hinders_no_other(
        self, script: Script, tmp_path: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        script.running = {"u-web": guest("web")}

        async def act(room: Room) -> None:
            await room.until(lambda: room.names == {"web"})
            script.broken = {"u-web": LibvirtError("cannot look for u-web: busy")}
            script.running["u-db"] = guest("db")
            script.watch.changed("u-web", 0.0)
            script.watch.changed("u-db", 0.0)
            await room.until(lambda: room.names == {"web", "db"})
            assert warnings(caplog) == ["cannot look for u-web: busy; trying again"]

        play(tmp_path, act)

    def test_what_changes_while_all_are_read_is_read_again(
        self, script: Script, tmp_path: Any
    ) -> None:
        def change(watch: FakeWatch) -> None:
            watch.changed("u-late", 0.0)

        script.meanwhile = change

        async def act(room: Room) -> None:
            await room.until(lambda: script.read == ["u-late"])
            script.running = {"u-late": guest("late")}
            script.watch.changed("u-late", 0.0)
            await room.until(lambda: room.names == {"late"})

        play(tmp_path, act)

    @pytest.mark.parametrize("when", ["at first", "later"])
    def test_an_error_that_nobody_expects_is_not_silent(
        self, script: Script, tmp_path: Any, when: str
    ) -> None:
        script.running = {"u-web": guest("web")}

        async def act(room: Room) -> None:
            if when == "later":
                await room.until(lambda: room.names == {"web"})
            script.broken = {"u-web": RuntimeError("a bug")}
            if when == "later":
                script.watch.changed("u-web", 0.0)
            with pytest.raises(RuntimeError, match="a bug"):
                await room.failed

        play(tmp_path, act)


class TestHanging:
    """libvirt answers, but not for one guest: it waits for that guest's QEMU."""

    def test_the_others_are_read(
        self, script: Script, tmp_path: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        script.running = {f"u-{name}": guest(name) for name in ("web", "db", "mail")}

        async def act(room: Room) -> None:
            await room.until(lambda: room.reconciler.told == 1)
            script.hung["u-web"] = threading.Event()
            for uuid in script.running:
                room.source.look(uuid)
            await room.until(lambda: room.reconciler.told == 3)
            assert script.read == ["u-web", "u-db", "u-mail"]
            script.hung["u-web"].set()
            await room.until(lambda: room.reconciler.told == 4)
            assert warnings(caplog) == []

        play(tmp_path, act)

    def test_it_is_said_once_and_tried_again_later_and_later(
        self,
        script: Script,
        tmp_path: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        script.running = {"u-web": guest("web")}

        async def act(room: Room) -> None:
            await room.source.tried()
            room.source._calls.limit = 0.5
            script.hung["u-web"] = threading.Event()
            script.watch.changed("u-web", 0.0)
            await room.until(lambda: len(room.slept) == 3)
            assert room.slept == [1, 2, 4]
            assert script.read == ["u-web"], "there is one call, that goes on"
            said = "libvirt on guest web: no answer within 0.5 seconds; trying again"
            assert warnings(caplog) == [said]
            assert room.source.described == "connected to fake:///; 1 guest not read"
            assert (room.source.state, room.names) == (SourceState.ALL, {"web"})
            assert room.source.findings() == (), "it is known, if not as it is just now"
            room.source._calls.limit = ENOUGH
            script.running["u-web"] = guest("web", 6)
            script.hung["u-web"].set()
            await room.until(lambda: room.places() == ["6", "6"])
            assert room.source.described == "connected to fake:///"
            script.broken["u-web"] = LibvirtError("busy")
            room.slept.clear()
            script.watch.changed("u-web", 0.0)
            await room.until(lambda: room.slept)
            assert room.slept == [1], "it begins anew"

        play(tmp_path, act)

    def test_from_the_beginning(
        self,
        script: Script,
        tmp_path: Any,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The others are served; nobody is taken for gone until it was read."""
        monkeypatch.setattr(module, "_FIRST", 0.2)
        script.running = {"u-web": guest("web"), "u-db": guest("db")}
        script.hung["u-web"] = threading.Event()

        async def act(room: Room) -> None:
            left_over(room)
            await room.source.tried()
            await room.until(lambda: room.names == {"db"})
            assert room.source.state is SourceState.PART
            (finding,) = room.source.findings()
            said = "libvirt on guest web: no answer within "
            assert finding.code == "guests-not-read"
            assert finding.message.startswith(said)
            assert room.places() == ["7", "7"], "it may be of the guest that is not known yet"
            script.running["u-web"] = replace(guest("web"), devices=())
            script.hung["u-web"].set()
            await room.until(lambda: room.source.state is SourceState.ALL)
            assert room.names == {"web", "db"}
            assert room.places() == ["0-7", "0-7"], "nobody has it"
            assert room.source.findings() == ()

        play(tmp_path, act)

    def test_one_that_starts(self, script: Script, tmp_path: Any) -> None:
        """It runs, and nothing is known of it: no stranger is taken for gone meanwhile."""

        async def act(room: Room) -> None:
            await room.source.tried()
            assert room.source.state is SourceState.ALL
            room.source._calls.limit = 0.2
            script.hung["u-web"] = threading.Event()
            script.running["u-web"] = guest("web")
            script.watch.changed("u-web", 0.0)
            await room.until(lambda: room.source.state is SourceState.PART)
            script.hung["u-web"].set()
            await room.until(lambda: room.source.state is SourceState.ALL)
            assert room.places() == ["2", "2"]

        play(tmp_path, act)

    def test_more_than_there_are_places_for(self, script: Script, tmp_path: Any) -> None:
        """Threads do not grow in number, and all is right when they come back."""
        names = [f"g{number}" for number in range(8)]
        script.running = {f"u-{name}": guest(name) for name in names}

        def threads() -> int:
            return sum(each.name == "libvirt-call" for each in threading.enumerate())

        async def act(room: Room) -> None:
            await room.source.tried()
            room.source._calls.limit = 0.1
            go = threading.Event()
            script.hung = dict.fromkeys(script.running, go)
            room.source.look_at_all()
            await room.until(lambda: len(room.slept) > 20)
            await room.until(lambda: threads() == module._AT_ONCE)
            room.source._calls.limit = ENOUGH
            go.set()
            await room.until(lambda: room.source.described == "connected to fake:///")

        play(tmp_path, act)


def left_over(room: Room) -> None:
    """A daemon before this one has moved interrupts for a guest."""
    before = Reconciler(room.fs, room.journal, Config(), Log(), Counters(), room.timers)
    before.update(guest("web", 7))
    assert room.places() == ["7", "7"]


class TestSilent:
    """libvirt's daemon was stopped, or hangs: connecting has no end by itself."""

    def test_attempts_have_a_limit_and_do_not_pile_up(
        self,
        script: Script,
        tmp_path: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        script.running = {"u-web": guest("web")}

        def threads() -> int:
            return sum(each.name == "libvirt-connect" for each in threading.enumerate())

        async def act(room: Room) -> None:
            await room.source.tried()
            room.source._connects.limit = 0.05
            script.opens.clear()
            threading.Thread(target=script.watch.lost, args=("it does not answer",)).start()
            await room.until(lambda: len(room.slept) == 6)
            await room.until(lambda: threads() == module._CONNECTS)
            assert (room.names, room.places()) == ({"web"}, ["2", "2"])
            assert room.source.state is SourceState.PART
            silent = "libvirt at fake:///: no answer within 0.05 seconds"
            assert room.source.described == silent
            (finding,) = room.source.findings()
            said = f"{silent}; its guests are kept as they were"
            assert (finding.code, finding.message) == ("libvirt-silent", said)
            assert warnings(caplog) == [
                "connection to fake:/// lost: it does not answer; its guests are kept as they were",
                f"{silent}; trying again until it can be reached",
            ]
            room.source._connects.limit = ENOUGH
            script.running["u-web"] = guest("web", 5)
            script.opens.set()
            await room.until(lambda: room.places() == ["5", "5"])
            assert (room.source.state, room.source.findings()) == (SourceState.ALL, ())
            # Whatever was opened late is closed, and what is in use is not.
            await room.until(lambda: sum(not each.closed for each in script.watches) == 1)
            used = room.source._watch
            assert [id(each) for each in script.watches if not each.closed] == [id(used)]

        play(tmp_path, act)

    def test_at_the_start(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The real libvirt, and a socket that the kernel accepts for, and nobody answers."""
        need_libvirt()

        def threads() -> int:
            return sum(each.name == "libvirt-connect" for each in threading.enumerate())

        monkeypatch.setattr(module, "_PATIENCE", 0.2)
        path = tmp_path / "socket"
        uri = f"qemu+unix:///system?socket={path}"

        async def act(room: Room) -> None:
            await room.source.tried()
            said = f"libvirt at {uri}: no answer within 0.2 seconds"
            assert room.source.described == said
            assert [each.code for each in room.source.findings()] == ["libvirt-silent"]
            assert room.source.state is SourceState.READING
            await room.until(lambda: len(room.slept) > 4)
            await room.until(lambda: threads() == module._CONNECTS)

        with socket.socket(socket.AF_UNIX) as hung:
            hung.bind(str(path))
            hung.listen()
            play(tmp_path / "state", act, uri)


def test_what_libvirt_tells_after_the_end_is_nobodys(script: Script, tmp_path: Any) -> None:
    async def act(room: Room) -> None:
        await room.until(lambda: room.source.described.startswith("connected"))

    play(tmp_path, act)
    script.watch.changed("u-web", 0.0)
    script.watch.lost("closed")
    assert script.watch.closed == 1
