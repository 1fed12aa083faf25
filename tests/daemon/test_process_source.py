"""Guests by their processes: who is noticed, whose word counts, and what an end means."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.daemon.test_reconciler import Lines
from tests.guests.processes.test_find import (
    DEVICE,
    DPDK,
    KVM,
    QEMU,
    UUID,
    A,
    B,
    C,
    D,
    Made,
    Scene,
)
from tests.hostmaker import MadeFs, MadeHost, _Node, passthrough
from virtirq.control.counters import Counters
from virtirq.control.journal import SharedJournal
from virtirq.cpuset import CpuSet
from virtirq.daemon import process_source as module
from virtirq.daemon.log import Log, entry
from virtirq.daemon.process_source import ProcessSource
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.registry import Change
from virtirq.daemon.source_state import Sources, SourceState
from virtirq.daemon.timers import Timers
from virtirq.guests.processes.find import SOURCE, Found
from virtirq.host import paths
from virtirq.host.events import EventKind, KernelEvent
from virtirq.model import AUTO, Guest, GuestDevice, PciAddress, Vcpu
from virtirq.policy.budget import Budget
from virtirq.policy.config import Config, Rule

ENOUGH: Final = 300.0
"""Seconds after which a test gives up."""
GROUPS: Final = {A: 7, B: 7, C: 9, D: 12}
FIRST: Final = {A: 100, B: 110, C: 120, D: 130}
FOUND: Final = ["0-7", "0-7"]
PINNED: Final = ["4", "5"]
AFTER_ALL: Final = Config(rules=(Rule(AUTO, kind="process"),))


@pytest.fixture
def child() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts processes that live until they are killed.

    Their ids are apart from each other, for a made process has threads with the next ones.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        before = [each.pid for each in started]
        while True:
            started.append(subprocess.Popen(["sleep", "600"]))
            if all(abs(started[-1].pid - pid) > 8 for pid in before):
                return started[-1]

    yield start
    for each in started:
        end(each)


Child = Callable[[], "subprocess.Popen[bytes]"]


def pidfds() -> int:
    """How many are open here."""
    found = []
    for each in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{each}"))
    return found.count("anon_inode:[pidfd]") + sum(each.startswith("pidfd:") for each in found)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def qemu(pid: int, **more: Any) -> Made:
    return replace(QEMU, pid=pid, **more)


def other_qemu(pid: int, held: PciAddress = A) -> Made:
    """One that the kernel tells the device of; its vCPUs may run on CPUs 6 and 7."""
    threads = (("qemu-system-x86", "0-7"), ("CPU 0/KVM", "6"), ("CPU 1/KVM", "7"))
    words = ["qemu-system-x86_64", "-name", "next"]
    return Made(pid, words, [*KVM, held], threads)


def of_libvirt(
    name: str = "web",
    uuid: str = UUID,
    *,
    held: Sequence[PciAddress] = (A,),
    cpus: Sequence[int] = (2, 3),
    pid: int | None = None,
) -> Guest:
    return Guest(
        name,
        "libvirt",
        uuid=uuid,
        pid=pid,
        vcpus=tuple(Vcpu(index, CpuSet([cpu])) for index, cpu in enumerate(cpus)),
        devices=tuple(GuestDevice(each, "hostdev") for each in held),
    )


def requested(pid: int, device: PciAddress = A, name: str = "") -> KernelEvent:
    name = name or f"vfio-msix[0]({device})"
    return KernelEvent(EventKind.REQUESTED, 0.0, FIRST[device], name, pid=pid)


class Stage:
    """A host, its Reconciler and ProcessSource; made inside of a loop. `restart`: the next daemon.

    What is known is told as by the daemon.
    """

    def __init__(
        self,
        state: Path,
        *processes: Made,
        opened: Sequence[PciAddress] = (A,),
        config: Config | None = None,
        hidden: Sequence[int] = (),
    ) -> None:
        made: MadeHost = Scene(processes, opened=opened).host()
        devices = [
            passthrough(
                str(each), vectors=2, first_irq=FIRST[each], affinity="0-7", iommu_group=group
            )
            for each, group in GROUPS.items()
        ]
        self.fs: MadeFs = replace(made, devices=devices).live()
        self.fs.faults |= {("listdir", f"/proc/{pid}/fd"): errno.EACCES for pid in hidden}
        self.state = state
        self.config = config or Config()
        self.lines = Lines()
        self.known = 0
        self.start()

    def start(self) -> None:
        logger = logging.Logger("processes")
        logger.addHandler(self.lines)
        log = Log(logger)
        loop = asyncio.get_running_loop()
        self.journal = SharedJournal(self.state, "boot")
        self.errors: list[BaseException] = []
        self.timers = Timers(loop.call_later, loop.time, self.errors.append)
        self.reconciler = Reconciler(
            self.fs,
            self.journal,
            self.config,
            log,
            Counters(),
            self.timers,
            loop.time,
            self._known,
            lambda: Sources(SourceState.ALL, self.processes.state, self.processes.holds_back),
        )
        self.theirs: set[str] = set()
        self.processes = ProcessSource(
            self.fs, self.reconciler, log, self.timers, lambda guest: guest.name in self.theirs
        )

    def restart(self) -> None:
        self.close()
        self.start()

    def close(self) -> None:
        self.processes.close()
        self.journal.close()

    def _known(self, changes: Sequence[Change]) -> None:
        self.known += len(changes)
        for guest in filter(None, (change.after for change in changes)):
            self.processes.give_way(guest)

    def tell(self, *guests: Guest, complete: bool = True) -> None:
        """Libvirt tells of these, and all is looked at."""
        self.reconciler.know(guests, complete=complete, only_note=True, apart_from=SOURCE)
        self.reconciler.act_on_noted()

    async def begin(self) -> None:
        """As far as when libvirt, which has no guests, was asked."""
        await self.processes.begin()
        self.tell()

    def add(self, made: Made) -> None:
        for path, text in made.files().items():
            self.fs.set(path, text)
        for path, link in made.links().items():
            self.fs.memory.put(path, _Node(link=link))
        self.fs.opened |= made.opened()

    def change(self, made: Made) -> None:
        self.fs.memory.drop(f"/proc/{made.pid}")
        self.add(made)

    def open(self, address: PciAddress) -> None:
        self.fs.set(paths.PCI_ENABLE.at(address), "1")

    def places(self, device: PciAddress = A) -> list[str]:
        return [self.fs.read(paths.IRQ_AFFINITY.at(FIRST[device] + each)) for each in (0, 1)]

    def written(self) -> list[str]:
        return [path for operation, path in self.fs.calls if operation == "write"]

    @property
    def names(self) -> set[str]:
        return {guest.name for guest in self.reconciler.guests}

    @property
    def sources(self) -> dict[str, str]:
        return {guest.name: guest.source for guest in self.reconciler.guests}

    def said(self, level: int = logging.INFO) -> list[str]:
        """What was logged of what was not read, and all that is worse."""
        messages = [each for each in self.lines.records if each.levelno >= level]
        return [m for each in messages if (m := each.getMessage()).startswith(("not ", "look"))]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(ENOUGH):
            while not condition():
                await asyncio.sleep(0.001)

    @property
    def at_rest(self) -> bool:
        kinds = {"process", "process later", "processes", "holder"}
        return not (kinds & self.timers._due.keys() or self.timers._at_work)

    def forget(self, pid: int, delay: float) -> None:
        """What was asked for after so many seconds is not waited for."""
        assert delay in (module._GROWN, 60.0)
        self.timers.cancel("process later", pid)

    async def rest(self) -> None:
        """Whatever was to be looked at has been."""
        await self.until(lambda: self.at_rest)


class Held:
    """Holds up whoever reads what is in a directory; with `once`, the first who does."""

    def __init__(self, fs: MadeFs, directory: str, *, once: bool = False) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._directory, self._once = directory, once
        fs.before = self._before

    def _before(self, _: str, path: str) -> None:
        if self._once and self.reached.is_set():
            return
        if path.startswith(self._directory) and threading.current_thread().daemon:
            self.reached.set()
            assert self.go.wait(ENOUGH)

    async def wait(self) -> None:
        async with asyncio.timeout(ENOUGH):
            while not self.reached.is_set():
                await asyncio.sleep(0.001)


Act = Callable[[Stage], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(module, "_GROWN", 0.002)

    def run(act: Act, *processes: Made, **more: Any) -> None:
        async def main() -> None:
            stage = Stage(tmp_path, *processes, **more)
            try:
                await act(stage)
                await stage.rest()
            finally:
                stage.close()

        asyncio.run(main())

    return run


class TestWhatOthersWereNotTold:
    """libvirt knows nothing of what is plugged in behind its back, and the daemon sees it."""

    BOTH: Final = (*QEMU.fds, "/dev/vfio/9", DEVICE)
    """A, and C beside it."""

    @staticmethod
    def held(stage: Stage) -> list[PciAddress]:
        (guest,) = stage.reconciler.registry.from_source("libvirt")
        return [each.address for each in guest.devices]

    @pytest.mark.parametrize("everybody", [True, False])
    def test_it_is_its_guests(self, play: Play, child: Child, everybody: bool) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.processes.begin()
            stage.tell(of_libvirt(pid=pid))
            if everybody:
                stage.processes.look_at_all()
            else:
                stage.processes.requested([requested(pid, C)])
            await stage.until(lambda: stage.places(C) == ["2", "3"])
            assert stage.sources == {"web": "libvirt"}
            assert self.held(stage) == [A, C]
            said = [each.getMessage() for each in stage.lines.records]
            assert said.count(f"web: its process holds {C} beside what was told") == 1
            stage.processes.look_at_all()
            await stage.rest()
            assert self.held(stage) == [A, C], "nothing has changed"
            assert not [each for each in stage.lines.records[len(said) :] if "beside" in str(each)]

        play(act, qemu(pid, fds=self.BOTH), opened=[A, C])

    @pytest.mark.parametrize("everybody", [True, False])
    def test_until_it_lets_go(self, play: Play, child: Child, everybody: bool) -> None:
        """And then whoever has it next is looked for."""
        pid, other = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.processes.begin()
            stage.tell(of_libvirt(pid=pid))
            stage.processes.look_at_all()
            await stage.until(lambda: stage.places(C) == ["2", "3"])
            stage.change(qemu(pid))
            stage.add(other_qemu(other, C))
            if everybody:
                stage.processes.look_at_all()
            else:
                stage.processes.requested([requested(other, C)])
            await stage.until(lambda: stage.places(C) == ["6", "7"])
            assert stage.sources == {"web": "libvirt", "next": SOURCE}

        play(act, qemu(pid, fds=self.BOTH), opened=[A, C])

    def test_one_that_has_begun_is_looked_at(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(qemu(pid, fds=self.BOTH))
            guest = of_libvirt(pid=pid)
            stage.reconciler.update(guest)
            stage.processes.look_beside(guest)
            await stage.until(lambda: stage.places(C) == ["2", "3"])

        play(act, opened=[A, C])

    def test_older_news_takes_nothing_away(self, play: Play, child: Child) -> None:
        pid, second = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.processes.begin()
            stage.tell(of_libvirt(pid=pid))
            held = Held(stage.fs, f"/proc/{second}/fd")
            stage.processes.look_at_all()
            await held.wait()  # what the guest's process holds was looked at by then
            stage.change(qemu(pid, fds=self.BOTH))
            stage.processes.look(pid)
            await stage.until(lambda: stage.places(C) == ["2", "3"])
            stage.fs.calls.clear()
            held.go.set()
            await stage.rest()
            assert self.held(stage) == [A, C]
            assert stage.written() == []

        play(act, qemu(pid), replace(DPDK, pid=second, fds=[D]), opened=[A, C, D])


def test_who_sets_up_what_nobody_has_is_looked_at_so_often(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From however many threads: each look costs, and no guest slows it down."""
    looked: list[int] = []

    def read(_: object, pid: int, known: object) -> Found:
        looked.append(pid)
        return Found()

    monkeypatch.setattr(module, "read_process", read)

    async def act(stage: Stage) -> None:
        await stage.begin()
        for first in (1000, 2000):
            stage.processes.requested([requested(first + each) for each in range(500)])
            await stage.until(lambda: looked)
        await stage.rest()
        assert len(looked) == 2
        assert looked[1] >= 2000, "the last, for the others may have let go"

    play(act, opened=[A])


class TestTheFirstLook:
    def test_noted_and_not_moved(self, play: Play, child: Child) -> None:
        async def act(stage: Stage) -> None:
            await stage.processes.begin()
            assert stage.sources == {"web": SOURCE}
            assert stage.processes.state is SourceState.ALL
            assert stage.places() == FOUND
            stage.reconciler.look_at_all()
            assert stage.places() == PINNED

        play(act, qemu(child().pid))

    def test_what_it_has_is_not_taken_for_left_over(self, play: Play, child: Child) -> None:
        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.places() == PINNED
            stage.restart()
            stage.fs.calls.clear()
            await stage.begin()
            assert (stage.names, stage.places()) == ({"web"}, PINNED)
            assert stage.written() == []

        play(act, qemu(child().pid))

    def test_what_nobody_has_is_left_over(self, play: Play, child: Child) -> None:
        """The other way round: else the test before would prove nothing."""

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.restart()
            stage.processes.leave_out()
            stage.tell()
            assert stage.places() == FOUND

        play(act, qemu(child().pid))

    def test_of_whom_libvirt_is_to_tell_is_waited_for(self, play: Play, child: Child) -> None:
        """It knows what was asked for the guest: that it is native, say."""
        pid = child().pid

        async def act(stage: Stage) -> None:
            stage.theirs = {"web"}
            await stage.processes.begin()
            stage.processes.look(pid)
            stage.processes.look_at_all()
            await asyncio.sleep(0.2)
            assert (stage.names, stage.places()) == (set(), FOUND)
            assert stage.processes.holds_back
            stage.theirs = set()  # libvirt cannot be asked
            stage.processes.look_at_all()
            await stage.until(lambda: stage.places() == PINNED)

        play(act, qemu(pid))

    def test_without_vcpus_it_is_left_alone(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.names == {f"dpdk-testpmd-{pid}"}
            assert stage.places(C) == FOUND
            stage.reconciler.reconfigure(AFTER_ALL)
            assert stage.places(C) == ["2", "3"]

        play(act, replace(DPDK, pid=pid), opened=[C])

    def test_one_that_has_ended_is_not_noted(self, play: Play, child: Child) -> None:
        process = child()
        end(process)

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.names == set()
            assert stage.processes._ends == {}
            assert stage.said() == [], "that is no fault"

        play(act, qemu(process.pid))

    def test_what_cannot_be_seen(self, play: Play, child: Child) -> None:
        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.processes.state is SourceState.PART
            for _ in range(3):
                stage.processes.look_at_all()
                await stage.rest()
            assert stage.names == {"web"}, "it may still be there for all that is known"
            (said,) = stage.said()
            assert said.startswith("not read: /proc/*/fd/*: Permission denied")
            assert stage.said(logging.WARNING) == []

        play(act, qemu(child().pid), opened=[A, C], hidden=[30])

    def test_one_that_cannot_be_seen_any_more_has_not_gone(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.fs.faults["listdir", f"/proc/{pid}/fd"] = errno.EACCES
            stage.processes.look_at_all()
            await stage.rest()
            assert stage.processes.state is SourceState.PART
            assert (stage.names, stage.places()) == ({"web"}, PINNED)

        play(act, qemu(pid, uid=107))

    def test_threads_that_cannot_be_told_apart_hide_nobody(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.names == {"web"}
            assert stage.said() != []
            assert stage.processes.state is SourceState.ALL

        play(act, qemu(pid, threads=[("q", "0"), ("q", "1")]))

    def test_one_that_hangs_does_not_hold_up_the_start(
        self, play: Play, child: Child, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_START", 0.02)
        pid = child().pid

        async def act(stage: Stage) -> None:
            held = Held(stage.fs, f"/proc/{pid}/fd")
            await stage.begin()
            assert (stage.names, stage.processes.state) == (set(), SourceState.READING)
            (said,) = stage.said(logging.WARNING)
            assert said == "looking through all processes takes long: it is not waited for"
            held.go.set()
            await stage.until(lambda: stage.places() == PINNED)

        play(act, qemu(pid))


class TestSlow:
    """A look that takes longer than anybody would wait: on a host that is slow, or made to be."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_START", 0.02)
        monkeypatch.setattr(module, "_PATIENCE", 0.02)

    @staticmethod
    def looks(stage: Stage, path: str) -> int:
        return stage.fs.calls.count(("listdir", path))

    def test_the_first_of_all_is_used_when_it_comes(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            held = Held(stage.fs, f"/proc/{pid}/fd")
            await stage.begin()
            await stage.until(lambda: len(stage.said()) == 2)
            assert stage.said()[1].startswith("not read: /proc: no answer within")
            held.go.set()
            await stage.until(lambda: stage.places() == PINNED)
            assert self.looks(stage, "/proc") == 1, "one that is begun anew may never end either"
            assert stage.processes.state is SourceState.ALL

        play(act, qemu(pid))

    def test_a_later_one_of_all(self, play: Play, child: Child) -> None:
        first, second = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            stage.fs.calls.clear()
            stage.add(other_qemu(second, C))
            stage.open(C)
            held = Held(stage.fs, f"/proc/{second}/fd")
            stage.processes.look_at_all()
            await stage.until(stage.said)
            held.go.set()
            await stage.until(lambda: stage.places(C) == ["6", "7"])
            assert self.looks(stage, "/proc") == 1
            for _ in range(3):  # as slow as ever, and nothing new
                held = Held(stage.fs, f"/proc/{second}/fd")
                stage.processes.look_at_all()
                await stage.until(
                    lambda: any(e.took_long for e in stage.processes._looks._under_way)
                )
                held.go.set()
                await stage.rest()
            # On a busy host the first look of all may have been too long for the start.
            said = stage.said()
            assert sum(each.startswith("not read: /proc: ") for each in said) == 1, said

        play(act, qemu(first))

    def test_one_of_a_process(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(qemu(pid))
            held = Held(stage.fs, f"/proc/{pid}/fd")
            stage.processes.requested([requested(pid)])
            await stage.until(stage.said)
            held.go.set()
            await stage.until(lambda: stage.places() == PINNED)
            assert self.looks(stage, f"/proc/{pid}/fd") == 1

        play(act)

    def test_one_that_has_ended_when_it_comes(self, play: Play, child: Child) -> None:
        process = child()

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(qemu(process.pid))
            held = Held(stage.fs, f"/proc/{process.pid}/fd")
            stage.processes.requested([requested(process.pid)])
            await stage.until(stage.said)
            end(process)
            held.go.set()
            await stage.rest()
            assert (stage.names, stage.places()) == (set(), FOUND)

        play(act)

    @pytest.mark.parametrize("everybody", [True, False])
    def test_older_news_gives_no_device_back(
        self, play: Play, child: Child, everybody: bool
    ) -> None:
        """It changed hands while the look was under way that had seen the first have it."""
        first, second, third = child().pid, child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            assert stage.places() == PINNED
            if everybody:  # the third is looked at after the first: it is not called like a machine
                held = Held(stage.fs, f"/proc/{third}/fd", once=True)
                stage.processes.look_at_all()
            else:  # its descriptors were read by then
                held = Held(stage.fs, f"/proc/{first}/task/{first + 1}/", once=True)
                stage.processes.look(first)
            await held.wait()
            stage.change(qemu(first, fds=KVM))
            stage.add(other_qemu(second))
            stage.processes.requested([requested(second)])
            await stage.until(lambda: stage.places() == ["6", "7"])
            stage.fs.calls.clear()
            held.go.set()
            await stage.rest()
            assert [each.name for each in stage.reconciler.registry.having(A)] == ["next"]
            assert stage.written() == []

        play(act, qemu(first), replace(DPDK, pid=third, fds=[D]), opened=[A, D])

    def test_who_finds_no_turn_is_tried_again_later_and_later(
        self, play: Play, child: Child, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of so many that hang, each keeps its place; there are no more looks than places."""
        monkeypatch.setattr(module, "_AGAIN", (0.01, 0.02))
        pid, hung = child().pid, [child().pid for _ in range(module._AT_ONCE)]

        async def act(stage: Stage) -> None:
            await stage.begin()
            held = Held(stage.fs, "/proc/")
            for each in (*hung, pid):
                stage.processes.look(each)
            stage.add(qemu(pid))
            await stage.until(lambda: stage.timers._delays.get(("process", pid)) == 0.02)
            assert len(stage.processes._looks._under_way) <= module._AT_ONCE + 1
            held.go.set()
            await stage.until(lambda: stage.places() == PINNED)
            await stage.rest()
            assert not stage.timers._delays

        play(act)


class TestLibvirt:
    """Its word is the better one, whenever it comes."""

    @pytest.mark.parametrize(
        "guest",
        [
            of_libvirt(),
            of_libvirt("zebra", "u-zebra"),
            of_libvirt("a", "u-a"),
            of_libvirt(UUID, "u-web"),
        ],
        ids=["same UUID", "same device", "same device, first by name", "named like its UUID"],
    )
    def test_it_replaces_ours(self, play: Play, child: Child, guest: Guest) -> None:
        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.places() == PINNED
            stage.fs.calls.clear()
            stage.tell(guest)
            assert stage.sources == {guest.name: "libvirt"}
            assert stage.places() == ["2", "3"]
            await stage.rest()
            assert len(stage.written()) == 2, "each is moved once, and not put back in between"

        play(act, qemu(child().pid))

    def test_the_same_process_without_the_device(self, play: Play, child: Child) -> None:
        """Plugged behind its back: it is its guest all the same, not two."""
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            guest = of_libvirt("other", "u-other", held=(), pid=pid)
            stage.tell(guest)
            assert stage.sources == {"other": "libvirt"}
            stage.processes.look(pid)
            await stage.rest()
            assert stage.sources == {"other": "libvirt"}

        play(act, qemu(pid))

    @pytest.mark.parametrize("everywhere", [False, True])
    @pytest.mark.parametrize("guest", [of_libvirt(), of_libvirt("zebra", "u-zebra")])
    def test_it_comes_before_the_answer(
        self, play: Play, child: Child, guest: Guest, *, everywhere: bool
    ) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            stage.processes.on = True
            held = Held(stage.fs, f"/proc/{pid}/fd")
            if everywhere:
                stage.processes.look_at_all()
            else:
                stage.processes.look(pid)
            await held.wait()
            stage.tell(guest)
            held.go.set()
            await stage.rest()
            assert stage.sources == {guest.name: "libvirt"}
            assert stage.places() == ["2", "3"]
            assert len(stage.written()) == 2

        play(act, qemu(pid))

    def test_it_comes_before_the_answer_and_knows_no_device(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            stage.processes.on = True
            held = Held(stage.fs, f"/proc/{pid}/fd")
            stage.processes.look(pid)
            await held.wait()
            stage.tell(of_libvirt(held=()))
            held.go.set()
            await stage.rest()
            assert stage.sources == {"web": "libvirt"}
            assert stage.places() == FOUND

        play(act, qemu(pid))

    def test_another_guest_leaves_ours_alone(self, play: Play, child: Child) -> None:
        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.tell(of_libvirt("db", "u-db", held=[C]))
            assert stage.sources == {"web": SOURCE, "db": "libvirt"}
            assert (stage.places(), stage.places(C)) == (PINNED, ["2", "3"])
            stage.tell()
            assert stage.sources == {"web": SOURCE}

        play(act, qemu(child().pid))

    def test_its_process_ends_and_its_guest_does_not(self, play: Play, child: Child) -> None:
        process = child()

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.tell(of_libvirt())
            end(process)
            await stage.until(lambda: not stage.processes._ends)
            assert stage.sources == {"web": "libvirt"}
            assert stage.places() == ["2", "3"]

        play(act, qemu(process.pid))

    def test_events_of_its_guests_make_nobody_look(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.tell(of_libvirt(pid=pid))
            await stage.rest()
            stage.fs.calls.clear()
            stage.processes.requested([requested(pid), requested(77)])
            stage.processes.device_changed(A)
            assert stage.at_rest
            assert stage.fs.calls == []

        play(act, qemu(pid))


class TestEnds:
    def test_what_is_left_is_put_back(self, play: Play, child: Child) -> None:
        process = child()

        async def act(stage: Stage) -> None:
            await stage.begin()
            known = stage.known
            assert stage.places() == PINNED
            process.kill()  # a zombie has ended, too
            await stage.until(lambda: stage.names == set())
            assert stage.places() == FOUND
            assert stage.known > known
            assert stage.processes._ends == {}

        play(act, qemu(process.pid))

    def test_just_that_one(self, play: Play, child: Child) -> None:
        process, other = child(), child()

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.places(C) == ["6", "7"]
            end(process)
            await stage.until(lambda: stage.names == {"next"})
            assert (stage.places(), stage.places(C)) == (FOUND, ["6", "7"])

        play(act, qemu(process.pid), other_qemu(other.pid, C), opened=[A, C])

    def test_it_ends_before_it_can_be_watched(self, play: Play, child: Child) -> None:
        process = child()

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(qemu(process.pid))
            held = Held(stage.fs, f"/proc/{process.pid}/fd")
            stage.processes.requested([requested(process.pid)])
            await held.wait()
            end(process)
            held.go.set()
            await stage.rest()
            assert stage.names == set()
            assert stage.places() == FOUND

        play(act)

    def test_another_process_has_its_number(self, play: Play, child: Child) -> None:
        """It was taken for the guest that ended just before it could be watched."""
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.places() == PINNED
            stage.change(Made(pid, ["sleep", "600"], ["/dev/null"]))
            stage.fs.set(paths.PCI_ENABLE.at(A), "0")
            stage.processes.look(pid)
            await stage.until(lambda: stage.names == set())
            assert stage.places() == FOUND

        play(act, qemu(pid))

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSYS])
    def test_no_descriptor_for_it(
        self, play: Play, child: Child, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        pid = child().pid

        def fail(_: int) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "pidfd_open", fail)

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.processes.look_at_all()
            await stage.rest()
            assert stage.names == set()
            why = os.strerror(number)
            assert stage.said() == [f"not read: /proc/{pid}: its end cannot be heard of: {why}"]

        play(act, qemu(pid))

    def test_nothing_is_left_open(self, play: Play, child: Child) -> None:
        process, other = child(), child()

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert pidfds() == 2
            end(process)
            await stage.until(lambda: pidfds() == 1)
            stage.processes.close()
            assert pidfds() == 0

        play(act, qemu(process.pid), other_qemu(other.pid, C), opened=[A, C])


class TestRequested:
    def test_by_an_unknown_task_for_a_device_that_nobody_has(
        self, play: Play, child: Child
    ) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(qemu(pid))
            stage.processes.requested([requested(pid)])
            await stage.until(lambda: stage.places() == PINNED)
            assert stage.sources == {"web": SOURCE}
            assert pid in stage.processes._ends

        play(act)

    def test_by_one_of_its_threads(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(qemu(pid))
            tid = pid + 2
            stage.fs.set(f"/proc/{tid}/task/{tid}/status", f"Tgid:\t{pid}\n")
            stage.processes.requested([requested(tid)])
            await stage.until(lambda: stage.places() == PINNED)
            assert set(stage.processes._ends) == {pid}

        play(act)

    def test_many_at_once_make_one_look(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(qemu(pid))
            stage.processes.requested([requested(pid)] * 50)
            stage.processes.requested([requested(pid)])
            await stage.rest()
            assert stage.fs.calls.count(("listdir", f"/proc/{pid}/fd")) == 1

        play(act)

    def test_while_it_is_looked_at_makes_one_more_look(self, play: Play, child: Child) -> None:
        """That one may be past what has happened; and one that hangs is not joined by others."""
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(qemu(pid))
            held = Held(stage.fs, f"/proc/{pid}/fd")
            stage.processes.look(pid)
            await held.wait()
            for _ in range(5):
                stage.processes.look(pid)
                await stage.until(lambda: "process" not in stage.timers._due)
            held.go.set()
            await stage.rest()
            assert stage.fs.calls.count(("listdir", f"/proc/{pid}/fd")) == 2

        play(act)

    @pytest.mark.parametrize("name", ["eth0-rx-0", "vfio-msix[0](elsewhere)", "", "\x1b[2J"])
    def test_for_another_purpose(self, play: Play, child: Child, name: str) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            stage.add(qemu(pid))
            event = requested(pid)._replace(name=name)
            stage.processes.requested([event])
            assert stage.at_rest

        play(act)

    @pytest.mark.parametrize("pid", [30, 2, 999_999, 0])
    def test_by_one_that_holds_nothing(self, play: Play, pid: int) -> None:
        async def act(stage: Stage) -> None:
            await stage.begin()
            known = stage.known
            stage.processes.requested([requested(pid)])
            await stage.rest()
            assert (stage.names, stage.known) == (set(), known)
            assert stage.said() == []

        play(act, opened=[])

    def test_by_a_known_one_it_is_looked_at_once_more(self, play: Play, child: Child) -> None:
        """It may have started further threads since."""
        pid = child().pid
        grown = (*DPDK.threads, ("dpdk-worker5", "5"))

        async def act(stage: Stage) -> None:
            await stage.begin()
            (guest,) = stage.reconciler.guests
            assert len(guest.vcpus) == 3
            stage.change(replace(DPDK, pid=pid, threads=grown))
            stage.processes.requested([requested(pid, C)])
            await stage.rest()
            (guest,) = stage.reconciler.guests
            assert [vcpu.cpus for vcpu in guest.vcpus] == [CpuSet([c]) for c in (2, 3, 4, 5)]

        play(act, replace(DPDK, pid=pid), opened=[C], config=AFTER_ALL)

    def test_by_one_that_keeps_at_it_later_and_later(self, play: Play, child: Child) -> None:
        process = child()
        path = f"/proc/{process.pid}/fd"

        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            stage.fs.calls.clear()
            for _ in range(100):
                stage.processes.requested([requested(process.pid)])
                await asyncio.sleep(0.003)
            assert 1 <= stage.fs.calls.count(("listdir", path)) <= 3
            end(process)
            await stage.until(lambda: not stage.names)
            assert not stage.processes._more._steps

        play(act, qemu(process.pid))

    def test_by_one_that_moves_its_threads_in_a_tenth_of_the_time(
        self, play: Play, child: Child, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process of many threads takes long to be looked at: its user may not say how often."""
        pid = child().pid
        path = f"/proc/{pid}/fd"

        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            monkeypatch.setattr(stage.processes._reads, "_budget", Budget(1e-6, longest=10.0))
            stage.fs.calls.clear()
            for _ in range(100):
                stage.processes.look(pid)
                await asyncio.sleep(0.003)
            assert stage.fs.calls.count(("listdir", path)) <= 2
            await stage.until(lambda: ("listdir", path) in stage.fs.calls)
            await stage.until(lambda: not stage.timers._at_work)
            stage.processes.look(pid)
            assert stage.timers._due["process"]["process", pid].at > stage.timers._clock() + 1
            stage.timers.cancel("process")

        play(act, qemu(pid))

    def test_a_look_that_is_due_does_not_stand_in_for_a_later_one(
        self, play: Play, child: Child, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            monkeypatch.setattr(module, "_GROWN", 60.0)
            stage.processes.look(pid)
            stage.processes.requested([requested(pid)])
            assert stage.timers._due.keys() >= {"process", "process later"}
            stage.forget(pid, 60.0)

        play(act, qemu(pid))

    def test_by_another_that_has_it_now(self, play: Play, child: Child) -> None:
        """Unplugged here, plugged there: nothing tells of the first."""
        first, second = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.places() == PINNED
            stage.change(qemu(first, fds=KVM))
            stage.add(other_qemu(second))
            stage.processes.requested([requested(second)])
            await stage.until(lambda: stage.names == {"next"})
            await stage.rest()
            assert stage.places() == ["6", "7"]

        play(act, qemu(first))

    def test_by_another_that_has_one_of_two_now(
        self, play: Play, child: Child, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            monkeypatch.setattr(module, "_GROWN", 60.0)
            assert (stage.places(), stage.places(D)) == (PINNED, PINNED)
            stage.change(qemu(first, fds=[*KVM, "/dev/vfio/12", DEVICE]))
            stage.add(other_qemu(second))
            stage.processes.requested([requested(second)])
            await stage.until(lambda: stage.names == {"web", "next"})
            stage.forget(first, 60.0)
            await stage.rest()
            held = {g.name: [d.address for d in g.devices] for g in stage.reconciler.guests}
            assert held == {"web": [D], "next": [A]}
            assert (stage.places(), stage.places(D)) == (["6", "7"], PINNED)

        both = [*KVM, "/dev/vfio/7", DEVICE, "/dev/vfio/12", DEVICE]
        play(act, qemu(first, fds=both), opened=[A, D])

    def test_it_cannot_take_what_another_holds(self, play: Play, child: Child) -> None:
        first, second = child().pid, child().pid
        forged = Made(second, ["x"], [*KVM, "/dev/vfio/devices/vfio0"], started=10**9)

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.add(forged)
            stage.fs.calls.clear()
            stage.processes.requested([requested(second)])
            await stage.rest()
            assert stage.names == {"web"}
            assert stage.written() == []

        play(act, qemu(first, fds=[*KVM, A]))

    def test_one_that_has_another_name_now(self, play: Play, child: Child) -> None:
        """Another program in the same process: what it has is not put back in between."""
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.fs.calls.clear()
            stage.change(other_qemu(pid))
            stage.processes.look(pid)
            await stage.until(lambda: stage.names == {"next"})
            assert stage.places() == ["6", "7"]
            assert len(stage.written()) == 2

        play(act, qemu(pid))

    def test_one_that_has_another_name_and_another_device_now(
        self, play: Play, child: Child
    ) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.open(D)
            stage.change(other_qemu(pid, D))
            stage.processes.look(pid)
            await stage.until(lambda: stage.names == {"next"})
            assert (stage.places(), stage.places(D)) == (FOUND, ["6", "7"])

        play(act, qemu(pid))


class TestDeviceChanged:
    def test_unplugged(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.change(qemu(pid, fds=KVM))
            stage.fs.set(paths.PCI_ENABLE.at(A), "0")
            stage.processes.device_changed(A)
            await stage.until(lambda: stage.names == set())
            assert stage.places() == FOUND

        play(act, qemu(pid))

    def test_one_of_two_unplugged(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert (stage.places(), stage.places(D)) == (PINNED, PINNED)
            stage.change(qemu(pid))
            stage.processes.device_changed(D)
            await stage.until(lambda: stage.places(D) == FOUND)
            assert (stage.names, stage.places()) == ({"web"}, PINNED)

        both = [*KVM, "/dev/vfio/7", DEVICE, "/dev/vfio/12", DEVICE]
        play(act, qemu(pid, fds=both), opened=[A, D])

    def test_nobodys(self, play: Play) -> None:
        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            stage.processes.device_changed(A)
            assert stage.at_rest

        play(act)


class TestLookAtAll:
    def test_who_came_and_who_went(self, play: Play, child: Child) -> None:
        first, second = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.change(qemu(first, fds=KVM))
            stage.add(other_qemu(second, C))
            stage.fs.set(paths.PCI_ENABLE.at(A), "0")
            stage.open(C)
            stage.processes.look_at_all()
            await stage.rest()
            assert stage.names == {"next"}
            assert (stage.places(), stage.places(C)) == (FOUND, ["6", "7"])

        play(act, qemu(first))

    def test_asked_for_while_one_is_under_way(self, play: Play, child: Child) -> None:
        """That one may be past what has happened: there is another, and one is enough."""
        first, second = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            stage.fs.calls.clear()
            held = Held(stage.fs, f"/proc/{first}/fd")
            stage.processes.look_at_all()
            await held.wait()
            stage.open(C)
            stage.add(other_qemu(second, C))
            for _ in range(5):
                stage.processes.look_at_all()
            held.go.set()
            await stage.until(lambda: stage.names == {"web", "next"})
            await stage.rest()
            assert stage.fs.calls.count(("listdir", "/proc")) == 2

        play(act, qemu(first))

    def test_one_that_is_met_meanwhile_has_not_gone(self, play: Play, child: Child) -> None:
        first, second = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            held = Held(stage.fs, f"/proc/{first}/fd")
            stage.processes.look_at_all()
            await held.wait()
            stage.open(C)
            stage.add(other_qemu(second, C))
            stage.processes.requested([requested(second, C)])
            await stage.until(lambda: stage.names == {"web", "next"})
            stage.fs.calls.clear()
            held.go.set()
            await stage.rest()
            assert stage.names == {"web", "next"}
            assert stage.written() == []

        play(act, qemu(first))

    def test_it_has_no_newer_word_of_one_that_was_looked_at_meanwhile(
        self, play: Play, child: Child
    ) -> None:
        first, second = child().pid, child().pid
        both = replace(other_qemu(first, C), fds=[*KVM, C, B])

        async def act(stage: Stage) -> None:
            await stage.begin()
            assert stage.places(B) == ["6", "7"]
            # The second is looked at after the first, for it is not called like a machine.
            held = Held(stage.fs, f"/proc/{second}/fd")
            stage.processes.look_at_all()
            await held.wait()
            stage.change(other_qemu(first, C))
            stage.processes.look(first)
            await stage.until(lambda: stage.places(B) == FOUND)
            stage.fs.calls.clear()
            held.go.set()
            await stage.rest()
            assert stage.places(B) == FOUND
            assert stage.written() == []

        play(act, both, replace(DPDK, pid=second, fds=[D]), opened=[B, C, D])

    def test_one_that_let_go_and_took_it_again_meanwhile(self, play: Play, child: Child) -> None:
        first, second = child().pid, child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.fs.calls.clear()
            stage.change(replace(other_qemu(first, C), fds=KVM))
            held = Held(stage.fs, f"/proc/{second}/fd")
            stage.processes.look_at_all()
            await held.wait()
            stage.change(other_qemu(first, C))
            stage.processes.look(first)
            looks = stage.processes._looks._under_way
            await stage.until(lambda: any(first in each.pids for each in looks))
            held.go.set()
            await stage.rest()
            assert "next" in stage.names
            assert stage.written() == []

        play(act, other_qemu(first, C), replace(DPDK, pid=second, fds=[D]), opened=[C, D])

    def test_what_is_told_later_holds_back_no_more(self, play: Play, child: Child) -> None:
        """Whose guests come and go by libvirt must not leave anything for each."""
        pid = child().pid

        async def act(stage: Stage) -> None:
            stage.theirs = {"web"}
            await stage.begin()
            assert stage.processes.holds_back
            stage.tell(of_libvirt(pid=pid))
            assert not stage.processes.holds_back

        play(act, qemu(pid))

    @pytest.mark.parametrize("everybody", [True, False])
    def test_one_that_has_ended_holds_back_no_more(
        self, play: Play, child: Child, everybody: bool
    ) -> None:
        process = child()

        async def act(stage: Stage) -> None:
            stage.theirs = {"web"}
            await stage.begin()
            assert stage.processes.holds_back
            end(process)
            stage.fs.memory.drop(f"/proc/{process.pid}")
            if everybody:
                stage.processes.look_at_all()
            else:
                stage.processes.look(process.pid)
            await stage.rest()
            assert not stage.processes.holds_back

        play(act, qemu(process.pid))

    def test_nothing_is_kept_of_looks_that_are_over(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            for _ in range(2):
                stage.processes.look(pid)
                await stage.rest()
                assert not stage.processes._looks._under_way
                stage.processes.look_at_all()
                await stage.rest()
            assert not stage.processes._looks._under_way

        play(act, qemu(pid))

    def test_an_error_that_nobody_expects_is_not_silent(self, play: Play, child: Child) -> None:
        pid = child().pid

        def fail(_: str, path: str) -> None:
            if path == f"/proc/{pid}/cmdline":
                raise RuntimeError("a bug")

        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            stage.fs.before = fail
            stage.processes.look_at_all()
            stage.processes.look(pid)
            await stage.rest()
            stage.fs.before = None
            assert [str(each) for each in stage.errors] == ["a bug"] * 2, "they end the daemon"
            stage.change(other_qemu(pid))
            stage.processes.look_at_all()
            await stage.until(lambda: stage.names == {"next"})

        play(act, qemu(pid))


class TestOff:
    def test_nobody_is_looked_for(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            stage.processes.requested([requested(pid)])
            stage.processes.device_changed(A)
            stage.processes.look(pid)
            stage.processes.look_at_all()
            stage.processes.follow(on=False)
            assert stage.at_rest
            assert not any(path.startswith(f"/proc/{pid}/") for _, path in stage.fs.calls)

        play(act, qemu(pid))

    def test_off_and_on_again(self, play: Play, child: Child) -> None:
        async def act(stage: Stage) -> None:
            await stage.begin()
            await stage.rest()
            stage.processes.follow(on=True)
            assert stage.at_rest, "it was on already"
            stage.processes.follow(on=False)
            assert (stage.names, stage.places()) == (set(), FOUND)
            stage.processes.follow(on=True)
            await stage.until(lambda: stage.places() == PINNED)

        play(act, qemu(child().pid))

    def test_off_leaves_libvirts_alone(self, play: Play, child: Child) -> None:
        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.tell(of_libvirt("db", "u-db", held=[C]))
            stage.processes.follow(on=False)
            assert stage.sources == {"db": "libvirt"}

        play(act, qemu(child().pid))

    @pytest.mark.parametrize("everywhere", [False, True])
    def test_an_answer_that_comes_later_is_nobodys(
        self, play: Play, child: Child, *, everywhere: bool
    ) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            stage.processes.on = True
            held = Held(stage.fs, f"/proc/{pid}/fd")
            if everywhere:
                stage.processes.look_at_all()
            else:
                stage.processes.look(pid)
            await held.wait()
            stage.processes.follow(on=False)
            held.go.set()
            await stage.rest()
            assert (stage.names, stage.processes._ends) == (set(), {})

        play(act, qemu(pid))

    def test_after_the_end(self, play: Play, child: Child) -> None:
        pid = child().pid

        async def act(stage: Stage) -> None:
            await stage.begin()
            stage.processes.look(pid)
            stage.processes.look_at_all()
            stage.processes.close()
            stage.processes.look_at_all()
            stage.processes.requested([requested(pid), requested(77)])
            await stage.rest()
            assert stage.processes._ends == {}
            stage.processes.close()

        play(act, qemu(pid))


NASTY: Final = "e\x1b[2Jvil\n<0>virtirq: error: forged\u202e\x00"


def test_names_steer_no_terminal(play: Play, child: Child) -> None:
    pid = child().pid
    words = ["qemu-system-x86_64", "-name", NASTY.replace("\0", "")]
    made = qemu(pid, words=words, threads=[(NASTY.replace("\n", " "), "0"), (NASTY[:9], "1")])

    async def act(stage: Stage) -> None:
        await stage.begin()
        assert stage.names
        assert all(each.name.isprintable() for each in stage.reconciler.guests)
        assert any("cannot be told" in each.getMessage() for each in stage.lines.records)
        for record in stage.lines.records:
            lines = [each for each in entry(record).splitlines() if each.startswith(b"MESSAGE")]
            assert len(lines) == 1
            assert all(line.decode().isprintable() for line in entry(record).splitlines())

    play(act, made)


def test_gaps_of_one_that_has_ended_are_said_of_the_next(play: Play, child: Child) -> None:
    process = child()
    made = qemu(process.pid, threads=[("q", "0"), ("q", "1")])

    async def act(stage: Stage) -> None:
        await stage.begin()
        stage.processes.look_at_all()
        stage.processes.look(process.pid)
        await stage.rest()
        assert len(stage.said()) == 1
        end(process)
        await stage.until(lambda: not stage.names)
        assert stage.processes._said == set()

    play(act, made)
