"""The Reconciler on a kernel that frees, reuses and breaks, with a clock that the tests turn."""

from __future__ import annotations

import errno
import fcntl
import heapq
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.hostmaker import (
    MadeDevice,
    MadeFs,
    MadeHost,
    MadeInterrupt,
    MemoryFs,
    _Node,
    passthrough,
)
from virtirq.control import cycle
from virtirq.control import journal as journal_module
from virtirq.control.counters import Counters, Trigger
from virtirq.control.journal import Journal, SharedJournal, locked_journal
from virtirq.cpuset import CpuSet
from virtirq.daemon.attempts import _CALM, _UNTOLD
from virtirq.daemon.log import Log
from virtirq.daemon.reconciler import SOMEBODY, Reconciler
from virtirq.daemon.source_state import Sources, SourceState
from virtirq.daemon.timers import Handle, Timers
from virtirq.errors import BusyError, JournalError
from virtirq.host import paths
from virtirq.host.events import EventKind, KernelEvent
from virtirq.model import (
    AUTO,
    NATIVE,
    Aimed,
    Directive,
    Gap,
    Guest,
    GuestDevice,
    PciAddress,
    Remembered,
    Spread,
    Vcpu,
    Word,
)
from virtirq.policy.config import Config, Rule, parse_config
from virtirq.policy.contention import FEW, FIRST_WAIT, LONGEST_WAIT, WINDOW
from virtirq.policy.pace import AT_ONCE, SHORTEST
from virtirq.policy.plan import plan

NIC = PciAddress.parse("0000:41:00.0")
DISK = PciAddress.parse("0000:42:00.0")
OTHER = PciAddress.parse("0000:43:00.0")
STRANGE = PciAddress.parse("0000:44:00.0")
FIRST, LINE = 100, 20

HOST = MadeHost(
    online="0-7",
    nodes={0: "0-3", 1: "4-7"},
    devices=(
        passthrough(str(NIC), vectors=4, first_irq=FIRST, node=1, affinity="4-7"),
        passthrough(str(DISK), kind="intx", first_irq=LINE, node=1, affinity="0-3"),
        passthrough(str(OTHER), vectors=2, first_irq=120, node=0, affinity="0-7"),
        passthrough(str(STRANGE), vectors=2, first_irq=140, node=0, affinity="0-7"),
    ),
    interrupts=(MadeInterrupt(9, ("acpi",)), MadeInterrupt(200, ("eth0-rx-0",), "0-7")),
)
ELSEWHERE = (9, 140, 141, 200)
"""IRQs that no guest here has."""


def pinned(*cpus: int) -> tuple[Vcpu, ...]:
    return tuple(Vcpu(index, CpuSet([cpu]), 1000 + index) for index, cpu in enumerate(cpus))


WEB = Guest(
    "web",
    "test",
    uuid="u-web",
    pid=900,
    vcpus=pinned(4, 5, 6, 7),
    devices=(GuestDevice(NIC, "hostdev"), GuestDevice(DISK, "hostdev")),
)
DB = Guest("db", "test", uuid="u-db", vcpus=pinned(0, 1), devices=(GuestDevice(OTHER, "hostdev"),))
PLANNED = {LINE: "4", 100: "4", 101: "5", 102: "6", 103: "7", 120: "0", 121: "1"}
FOUND = {LINE: "0-3", **dict.fromkeys(range(100, 104), "4-7"), 120: "0-7", 121: "0-7"}


_HANDLER = re.compile(r"/proc/irq/(\d+)/(vfio-.*)")


def action_of(vector: int, device: PciAddress = NIC) -> str:
    return f"vfio-msix[{vector}]({device})"


class Kernel(MadeFs):
    """A running kernel: interrupts come, go and are moved by others; CPUs go offline."""

    def __init__(self, host: MadeHost) -> None:
        super().__init__(MemoryFs(host._tree()))
        self.recording = None
        self._births = itertools.count(1)
        self._born: dict[str, int] = {}

    def incarnation(self, path: str) -> int | None:
        if not self.memory.isdir(path):
            return None
        if path not in self._born:
            self._born[path] = next(self._births)
        return self._born[path]

    def isdir(self, path: str) -> bool:
        """Each handler has a directory in procfs."""
        handler = _HANDLER.fullmatch(path)
        if handler is None:
            return super().isdir(path)
        self._access("isdir", path)
        try:
            return handler[2] in self.actions(int(handler[1])).split(",")
        except OSError:
            return False

    def allocate(
        self, irq: int, vector: int, device: PciAddress = NIC, affinity: str = "0-7"
    ) -> KernelEvent:
        """A guest sets a vector up; gives what the kernel tells of that."""
        name = action_of(vector, device)
        first = str((CpuSet.parse(affinity) & self._cpus(paths.CPU_ONLINE)).first())
        self._put(paths.IRQ_AFFINITY.at(irq), affinity, 0o644)
        self._put(paths.IRQ_EFFECTIVE.at(irq), first)
        self._put(paths.PCI_MSI_IRQ.at(device, irq), "msix")
        self._put(paths.IRQ_ACTIONS.at(irq), name)
        return requested(irq, name)

    def free(self, irq: int) -> None:
        super().free(irq)
        self._born.pop(f"{paths.IRQ_SYSFS_DIR}/{irq}", None)

    def other_moves(self, irq: int, cpus: str) -> None:
        """Someone else writes an affinity: not among `calls`."""
        super(MadeFs, self).write(paths.IRQ_AFFINITY.at(irq), cpus)

    def where(self, irq: int) -> str:
        return super(MadeFs, self).read(paths.IRQ_AFFINITY.at(irq))

    def actions(self, irq: int) -> str:
        return super(MadeFs, self).read(paths.IRQ_ACTIONS.at(irq))

    def irqs(self) -> list[int]:
        return sorted(int(each) for each in super(MadeFs, self).listdir(paths.IRQ_DIR))

    def online(self, cpus: str) -> None:
        """CPUs come and go; see kernel/irq/cpuhotplug.c for what happens to interrupts."""
        now = CpuSet.parse(cpus)
        self.set(paths.CPU_ONLINE.at(), cpus)
        for node, all_of_it in enumerate(("0-3", "4-7")):
            there = CpuSet.parse(all_of_it) & now
            self.set(paths.NODE_CPUS.at(f"node{node}"), str(there))
        for irq in self.irqs():
            affinity = CpuSet.parse(self.where(irq))
            if not affinity & now:
                self._keep(irq, now, CpuSet([now.first()]))
            elif not self._effective(irq) & now:
                self._keep(irq, affinity, CpuSet([(affinity & now).first()]))
        self.__dict__.pop("_used", None)

    def _put(self, path: str, text: str, mode: int = 0o444) -> None:
        self.__dict__.pop("_used", None)
        self.memory.put(path, _Node(text, mode=mode))

    def written(self) -> list[tuple[int, ...]]:
        """The IRQ numbers of all writes so far, in order."""
        return [(int(path.split("/")[3]),) for what, path in self.calls if what == "write"]

    def touched(self) -> set[int]:
        """The IRQ numbers of all files so far that were looked at."""
        pieces = [path.split("/") for _, path in self.calls]
        found = {each[3] for each in pieces if each[1:3] == ["proc", "irq"]}
        found |= {each[4] for each in pieces if each[1:4] == ["sys", "kernel", "irq"]}
        return {int(each) for each in found}


def requested(irq: int, name: str, at: float = 0.0) -> KernelEvent:
    return KernelEvent(EventKind.REQUESTED, at, irq, name)


class Time:
    """A clock, and what is to be called by it, in order of time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()

    def __call__(self) -> float:
        return self.now

    def later(self, delay: float, call: Callable[[], object]) -> Handle:
        assert delay >= 0
        entry = (self.now + delay, next(self._number), call)
        heapq.heappush(self._queue, entry)
        return SimpleNamespace(cancel=lambda: self._cancel(entry))

    def _cancel(self, entry: tuple[float, int, Callable[[], object]]) -> None:
        if entry in self._queue:
            self._queue.remove(entry)
            heapq.heapify(self._queue)

    @property
    def waiting(self) -> list[float]:
        """Seconds until each of what is to be called, but for what is due."""
        self.pass_(0)
        return sorted(due - self.now for due, _, _ in self._queue)

    def pass_(self, seconds: float) -> None:
        until = self.now + seconds
        while self._queue and self._queue[0][0] <= until:
            due, _, call = heapq.heappop(self._queue)
            self.now = max(self.now, due)
            call()
        self.now = until

    def step(self) -> None:
        """Call what is next, when it is due."""
        due, _, call = heapq.heappop(self._queue)
        self.now = max(self.now, due)
        call()

    def advance(self, seconds: float) -> None:
        """Call what is next so many seconds from now, though it be due later."""
        self.pass_(0)
        _, _, call = heapq.heappop(self._queue)
        self.now += seconds
        call()

    def settle(self) -> None:
        """Until nothing is to be called any more."""
        for _ in range(10_000):
            if not self._queue:
                return
            self.pass_(self._queue[0][0] - self.now)
        raise AssertionError("it never comes to rest")

    def forget(self) -> None:
        """Nothing is called any more: the process that asked for it has ended."""
        self._queue.clear()


class Lines(logging.Handler):
    """A log that is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Impatient(SharedJournal):
    """Does not wait for the lock, so that tests need not either."""

    def take(self, wait: float = 0.0) -> Journal:
        return super().take(0.0)


class Scene:
    """A host, and a daemon's Reconciler on it. `restart` is the next daemon."""

    def __init__(
        self, state: Path, host: MadeHost = HOST, config: Config | None = None, time: Any = None
    ) -> None:
        self.fs = Kernel(host)
        self.state = state
        self.lines = Lines()
        logger = logging.Logger("keeper")
        logger.addHandler(self.lines)
        self.log = Log(logger)
        self.time: Time = time or Time()
        self.config = config or Config()
        self.journal: SharedJournal | None = None
        self.sources = Sources()
        self.set_up: list[KernelEvent] = []
        """What it was told of when a device's wait was over."""
        self.urgent = False
        self.start()

    def start(self) -> None:
        self.counters = Counters()
        self.journal = Impatient(self.state, HOST.boot_id)
        self.reconciler = Reconciler(
            self.fs,
            self.journal,
            self.config,
            self.log,
            self.counters,
            self.timers(),
            self.time,
            sources=lambda: self.sources,
            set_up=self.set_up.append,
            urgent=lambda: self.urgent,
        )

    def timers(self) -> Timers:
        def failed(error: BaseException) -> None:
            raise error

        return Timers(self.time.later, self.time, failed)

    def die(self) -> None:
        """The process ends in the midst of whatever it did."""
        self.time.forget()
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    def quiet(self) -> None:
        """What was read, written, said and counted so far is not of interest."""
        self.tell()
        self.fs.calls.clear()
        self.lines.records.clear()
        self.counters.moves.clear()

    def tell(self) -> None:
        """What is due is done, and what was done is told: which waits for a calm moment."""
        self.time.pass_(0)
        self.reconciler.flush()

    def places(self, *irqs: int) -> dict[int, str]:
        return {irq: self.fs.where(irq) for irq in irqs or self.fs.irqs() if irq in PLANNED}

    def remembered(self) -> dict[str, Remembered]:
        with locked_journal(self.state, HOST.boot_id) as journal:
            return {each.key.action: each for each in journal.remembered()}

    @property
    def records(self) -> list[logging.LogRecord]:
        """What is in the log, once what is due was done: outcomes are told of after the moves."""
        self.tell()
        return self.lines.records

    @property
    def warnings(self) -> list[str]:
        return [each.getMessage() for each in self.records if each.levelno >= logging.WARNING]

    def moves(self) -> dict[tuple[str, str], int]:
        self.tell()
        return dict(self.counters.moves)

    def move(self, irq: int, cpus: str, who: str = "tuner", pid: int | None = 77) -> None:
        """Someone moves an interrupt, and the kernel tells of it."""
        self.fs.other_moves(irq, cpus)
        self.reconciler.moved(irq, who, pid)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Scene]:
    """Nobody is known yet."""
    made = Scene(tmp_path)
    yield made
    made.die()


@contextmanager
def lock_held(state: Path) -> Iterator[None]:
    """Another process has the journal."""
    descriptor = os.open(state / "lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The journal's disk is full, until what this gives is called."""
    mine = SimpleNamespace(**vars(os))
    state = {"full": True}

    def write(descriptor: int, data: bytes) -> int:
        if state["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)

    mine.write = write
    monkeypatch.setattr(journal_module, "os", mine)

    def room() -> None:
        state["full"] = False

    return room


class TestKnowing:
    def test_guests_that_are_told_of_are_pinned(self, bare: Scene) -> None:
        bare.reconciler.know([WEB, DB])
        assert bare.places() == PLANNED
        assert bare.moves() == {("plan", "applied"): 7}
        assert {each.name for each in bare.reconciler.guests} == {"web", "db"}
        assert bare.reconciler.ledger.kept == frozenset(PLANNED)
        assert bare.warnings == []
        assert len(bare.records) == 7

    def test_rules_that_come_to_nothing(self, scene: Scene) -> None:
        rules = (
            Rule(AUTO, address="0000:41:*", origin="rule 1 of x.toml"),
            Rule(AUTO, guest="wbe", origin="rule 2 of x.toml"),
            Rule(AUTO, driver="vfio-pci", node=1, origin="rule 3 of x.toml"),
        )
        scene.reconciler.reconfigure(Config(rules=rules))
        scene.reconciler.tell_unmatched_rules()
        assert [(each.levelname, each.getMessage()) for each in scene.records] == [
            ("INFO", "rule 2 of x.toml fits no device of a guest that runs now")
        ]

    def test_nothing_is_written_twice(self, scene: Scene) -> None:
        scene.reconciler.know([WEB, DB])
        scene.reconciler.look_at_all()
        scene.reconciler.cpus_changed()
        scene.reconciler.reconfigure(Config())
        assert scene.fs.written() == []
        assert scene.records == []

    def test_who_is_not_told_of_has_gone(self, scene: Scene) -> None:
        scene.reconciler.know([DB])
        assert [each.name for each in scene.reconciler.guests] == ["db"]
        assert scene.places() == FOUND | {120: "0", 121: "1"}
        assert scene.reconciler.ledger.kept == {120, 121}
        assert set(scene.remembered()) == {action_of(0, OTHER), action_of(1, OTHER)}

    def test_with_gaps_who_is_missing_is_believed_to_run_on(self, scene: Scene) -> None:
        scene.reconciler.know(
            [replace(DB, vcpus=pinned(2, 3))], [Gap("test: web", "cannot be read")]
        )
        assert scene.places() == PLANNED | {120: "2", 121: "3"}
        assert {each.name for each in scene.reconciler.guests} == {"web", "db"}
        assert scene.warnings == ["not read: test: web: cannot be read"]

    @pytest.mark.parametrize("gaps", [(), (Gap("web", "?"),)])
    def test_what_an_earlier_daemon_left_of_guests_that_are_gone(
        self, scene: Scene, gaps: tuple[Gap, ...]
    ) -> None:
        """It is put back, unless they may still be there."""
        scene.die()
        scene.start()
        scene.reconciler.know([DB], gaps)
        kept = PLANNED if gaps else FOUND | {120: "0", 121: "1"}
        assert scene.places() == kept
        assert (len(scene.remembered()) == 7) is bool(gaps)

    def test_what_a_hidden_guest_may_have_stays(self, scene: Scene) -> None:
        """All guests are told of but those that cannot be seen; who has let go has hidden none."""
        scene.die()
        scene.start()
        scene.sources = Sources(processes=SourceState.PART)
        scene.fs._put(paths.IRQ_ACTIONS.at(LINE), "")
        scene.reconciler.know([DB])
        assert scene.places() == PLANNED | {LINE: FOUND[LINE]}
        assert len(scene.remembered()) == 6
        scene.sources = Sources(processes=SourceState.ALL)
        scene.reconciler.know([DB])
        assert scene.places() == FOUND | {120: "0", 121: "1"}

    def test_what_is_known_to_be_gone_is_put_back_all_the_same(self, scene: Scene) -> None:
        scene.sources = Sources(processes=SourceState.PART)
        scene.reconciler.gone(WEB.key)
        assert scene.places() == FOUND | {120: "0", 121: "1"}

    def test_a_daemon_that_takes_over_moves_nothing(self, scene: Scene) -> None:
        scene.die()
        scene.start()
        scene.reconciler.know([WEB, DB])
        assert scene.fs.written() == []
        assert scene.reconciler.ledger.kept == frozenset(PLANNED)
        scene.reconciler.restore_all()
        assert scene.places() == FOUND

    def test_threads_and_whose_they_are(self, scene: Scene) -> None:
        assert scene.reconciler.registry.runs == [(900, 900), (1000, 1001), (1000, 1003)]
        for tid, guest in ((900, WEB), (1003, WEB), (999, None)):
            assert scene.reconciler.registry.of_thread(tid) == guest

    def test_guests_without_threads_have_none(self, bare: Scene) -> None:
        bare.reconciler.know([replace(DB, vcpus=(Vcpu(0, CpuSet([1])),))])
        assert bare.reconciler.registry.runs == []


class TestOtherSources:
    """Guests of processes, whom the source that tells of all others knows nothing of."""

    DPDK = replace(DB, name="dpdk", source="process", uuid=None)

    @pytest.mark.parametrize(
        "same", [replace(DPDK, name="a", pid=77), replace(DPDK, name="a", devices=WEB.devices)]
    )
    def test_the_same_guest_under_another_name_gives_way(self, bare: Scene, same: Guest) -> None:
        """Else the first by name would decide where its interrupts go."""
        bare.reconciler.note([same])
        told = replace(DB, pid=77, devices=(*DB.devices, *WEB.devices[:1]))
        bare.reconciler.know([told], complete=False, apart_from="process")
        assert [each.name for each in bare.reconciler.guests] == ["db"]

    def test_noted_and_not_moved(self, bare: Scene) -> None:
        bare.reconciler.note([DB])
        assert [each.name for each in bare.reconciler.guests] == ["db"]
        assert bare.fs.written() == []
        bare.reconciler.act_on_noted()
        assert bare.places() == FOUND | {120: "0", 121: "1"}

    def test_noted_and_not_read_again(self, bare: Scene) -> None:
        bare.reconciler.note([DB])
        bare.fs.calls.clear()
        bare.reconciler.act_on_noted()
        assert bare.fs.written() == [(120,), (121,)]
        names = [path for what, path in bare.fs.calls if path.endswith("/msi_irqs")]
        assert names == [], "as it was read"
        bare.fs.calls.clear()
        bare.reconciler.act_on_noted()
        assert bare.fs.calls == [], "once"

    def test_where_it_is_aimed_meanwhile_it_goes_at_once(self, bare: Scene) -> None:
        bare.reconciler.note([WEB])
        bare.fs.calls.clear()
        bare.reconciler.aim(NIC, aimed(3, 3, 2, 0))
        assert LINE not in bare.fs.touched()
        assert bare.places(100, 101, 102, 103) == {100: "7", 101: "7", 102: "6", 103: "4"}
        assert not [path for what, path in bare.fs.calls if path.endswith("/msi_irqs")]
        bare.reconciler.act_on_noted()
        assert bare.fs.written().count((100,)) == 1
        assert bare.places(LINE) == {LINE: "4"}

    @pytest.mark.parametrize("told", [True, False])
    def test_set_up_anew_meanwhile(self, bare: Scene, told: bool) -> None:
        """What has happened since is in the ledger, and what was read before must not undo it."""
        bare.reconciler.note([DB])
        bare.fs.free(121)
        bare.reconciler.freed(121)
        event = bare.fs.allocate(130, 1, OTHER)
        if told:
            bare.reconciler.requested([event])
        bare.reconciler.act_on_noted()
        assert bare.fs.where(130) == "1"
        assert bare.reconciler.ledger.kept == {120, 130}
        by_event = {("new", "applied"): 1} if told else {}
        assert bare.moves() == by_event | {("plan", "applied"): 2 - told}

    def test_other_cpus_meanwhile(self, bare: Scene) -> None:
        bare.reconciler.note([DB])
        bare.fs.online("1-7")
        bare.reconciler.cpus_changed()
        assert bare.places(120, 121) == {120: "1", 121: "1"}
        bare.reconciler.act_on_noted()
        assert bare.places(120, 121) == {120: "1", 121: "1"}

    def test_gone_meanwhile(self, bare: Scene) -> None:
        bare.reconciler.note([DB])
        bare.reconciler.gone(DB.key)
        bare.reconciler.act_on_noted()
        assert bare.fs.written() == []

    def test_another_has_the_device_meanwhile(self, bare: Scene) -> None:
        bare.reconciler.note([self.DPDK])
        bare.reconciler.know([replace(DB, vcpus=pinned(2, 3))], only_note=True)
        bare.reconciler.act_on_noted()
        assert bare.places(120, 121) == {120: "2", 121: "3"}
        bare.reconciler.flush()
        assert [each.__dict__["virtirq_fields"]["guest"] for each in bare.records] == ["db", "db"]

    def test_noted_ones_are_kept_track_of(self, bare: Scene) -> None:
        bare.reconciler.note([DB])
        assert bare.reconciler.ledger.kept == {120, 121}
        bare.reconciler.moved(120, "somebody")
        assert bare.fs.where(120) == "0"

    def test_noted_beside_others(self, scene: Scene) -> None:
        scene.reconciler.know([WEB])
        scene.fs.calls.clear()
        scene.reconciler.note([self.DPDK])
        assert {each.name for each in scene.reconciler.guests} == {"web", "dpdk"}
        assert scene.fs.written() == []

    def test_noted_anew(self, bare: Scene) -> None:
        bare.reconciler.note([self.DPDK])
        bare.reconciler.note([replace(self.DPDK, vcpus=pinned(2, 3))])
        bare.reconciler.act_on_noted()
        assert bare.places() == FOUND | {120: "2", 121: "3"}

    def test_what_a_noted_one_has_is_not_left_over(self, scene: Scene) -> None:
        scene.die()
        scene.start()
        scene.fs.calls.clear()
        scene.reconciler.note([self.DPDK])
        scene.reconciler.know([], apart_from="process")
        assert [each.name for each in scene.reconciler.guests] == ["dpdk"]
        assert scene.places() == FOUND | {120: "0", 121: "1"}
        assert not {(120,), (121,)} & set(scene.fs.written())

    def test_all_are_told_of_but_those(self, scene: Scene) -> None:
        scene.reconciler.know([WEB, self.DPDK])
        scene.reconciler.know([], apart_from="process")
        assert [each.name for each in scene.reconciler.guests] == ["dpdk"]
        assert scene.places() == FOUND | {120: "0", 121: "1"}

    @pytest.mark.parametrize("source", ["", "another"])
    def test_those_of_no_other_source(self, scene: Scene, source: str) -> None:
        scene.reconciler.know([WEB, self.DPDK])
        scene.reconciler.know([WEB], apart_from=source)
        assert [each.name for each in scene.reconciler.guests] == ["web"]

    def test_the_same_guest_told_of_by_both(self, scene: Scene) -> None:
        scene.reconciler.know([WEB, replace(self.DPDK, uuid=DB.uuid)])
        scene.fs.calls.clear()
        scene.reconciler.know([WEB, DB], apart_from="process")
        assert {each.name: each.source for each in scene.reconciler.guests} == {
            "web": "test",
            "db": "test",
        }
        assert scene.fs.written() == []

    def test_incomplete_all_are_believed_to_run_on(self, scene: Scene) -> None:
        scene.reconciler.know([WEB, self.DPDK])
        scene.reconciler.know([], complete=False, apart_from="process")
        assert {each.name for each in scene.reconciler.guests} == {"web", "dpdk"}
        assert scene.places() == PLANNED

    def test_it_ends(self, scene: Scene) -> None:
        scene.reconciler.know([WEB, self.DPDK])
        scene.reconciler.gone("dpdk")
        assert scene.places() == PLANNED | {120: "0-7", 121: "0-7"}


class TestRequested:
    def test_a_new_vector_is_moved_and_nothing_else_is_looked_at(self, scene: Scene) -> None:
        event = scene.fs.allocate(130, 4)
        scene.reconciler.requested([event._replace(at=scene.time.now - 0.0002)])
        assert scene.fs.where(130) == "4"
        assert scene.fs.written() == [(130,)]
        assert scene.fs.touched() == {130}
        assert scene.moves() == {("new", "applied"): 1}
        assert sum(scene.counters.reactions.counts) == 1
        assert scene.counters.reactions.total == pytest.approx(0.0002)
        assert 130 in scene.reconciler.ledger.kept
        assert scene.time.waiting == []

    def test_what_is_told_of_it(self, scene: Scene) -> None:
        scene.reconciler.requested([scene.fs.allocate(130, 4)])
        (record,) = scene.records
        assert record.getMessage() == f"IRQ 130 {action_of(4)}: to CPU 4 of vCPU 0"
        told = next(
            each for each in vars(record).values() if isinstance(each, dict) and "irq" in each
        )
        assert told == {
            "guest": "web",
            "device": NIC,
            "irq": 130,
            "action": "pin",
            "status": "applied",
            "mover": None,
            "before": None,
            "after": CpuSet([4]),
            "reason": "new: new",
        }

    def test_an_event_from_the_future_counts_as_no_time(self, scene: Scene) -> None:
        event = scene.fs.allocate(130, 4)
        scene.reconciler.requested([event._replace(at=scene.time.now + 5)])
        assert scene.counters.reactions.total == 0

    @pytest.mark.parametrize(
        "name",
        [
            action_of(0, STRANGE),
            f"vfio-intx({STRANGE})",
            "vfio-msix[0](0000:ff:1f.7)",
            "vfio-msix[0]",
            "vfio-pci-err",
            f"evil vfio-msix[0]({NIC})",
            f"vfio-msix[0]({NIC}) ",
            f"vfio-msix[]({NIC})",
            "",
            "\ufffd" * 300,
        ],
    )
    def test_of_others_it_is_ignored(self, scene: Scene, name: str) -> None:
        scene.reconciler.requested([requested(140, name)])
        assert scene.fs.calls == []
        assert 140 not in scene.reconciler.ledger.kept
        assert scene.time.waiting == []

    def test_a_batch(self, scene: Scene) -> None:
        events = [scene.fs.allocate(300 + n, 10 + n) for n in range(70)]
        scene.reconciler.requested(
            [*events[:35], requested(140, action_of(0, STRANGE)), *events[35:]]
        )
        assert [irq for (irq,) in scene.fs.written()] == list(range(300, 370))
        assert all(scene.fs.where(300 + n) == str(4 + (10 + n) % 4) for n in range(70))
        assert scene.moves() == {("new", "applied"): 70}
        assert sum(scene.counters.reactions.counts) == 70

    def test_a_number_that_is_used_again(self, scene: Scene) -> None:
        scene.fs.free(101)
        scene.reconciler.freed(101)
        assert 101 not in scene.reconciler.ledger.kept
        scene.reconciler.requested([scene.fs.allocate(101, 3, OTHER)])
        assert scene.fs.where(101) == "1"
        scene.reconciler.know([WEB])
        assert scene.fs.where(101) == "0-7", "put back with its guest, under its own name"

    def test_one_that_was_never_told_to_be_freed(self, scene: Scene) -> None:
        scene.fs.free(101)
        scene.reconciler.requested([scene.fs.allocate(101, 3, OTHER)])
        scene.reconciler.look_at_all()
        scene.reconciler.gone("u-web")
        assert scene.fs.where(101) == "1"
        assert 101 in scene.reconciler.ledger.kept

    def test_not_there_yet(self, scene: Scene) -> None:
        """It is looked at again in a moment."""
        scene.reconciler.requested([requested(130, action_of(4))])
        assert scene.fs.written() == []
        scene.fs.allocate(130, 4)
        scene.tell()
        assert len(scene.time.waiting) == 1
        scene.time.settle()
        assert scene.fs.where(130) == "4"
        assert 130 in scene.reconciler.ledger.kept

    def test_a_line_that_is_let_go_of_at_once_is_looked_at_once_more(self, scene: Scene) -> None:
        """The kernel tells of that before it is done (free_irq())."""
        scene.fs.set(paths.IRQ_ACTIONS.at(LINE), f"vfio-intx({DISK})")
        line = requested(LINE, f"vfio-intx({DISK})")
        scene.reconciler.requested([line])
        scene.time.settle()
        scene.reconciler.freed(LINE)
        scene.reconciler.requested([line])
        scene.time.step()
        assert scene.reconciler.ledger.at(LINE)
        scene.fs.set(paths.IRQ_ACTIONS.at(LINE), "")
        scene.time.settle()
        assert not scene.reconciler.ledger.at(LINE)

    def test_what_came_of_a_burst_is_told_when_it_is_over_and_in_pieces(self, scene: Scene) -> None:
        """The kernel tells of a device's vectors in pieces; a line takes as long as a vector."""
        scene.quiet()
        events = [scene.fs.allocate(130 + vector, 4 + vector) for vector in range(60)]
        for first in range(0, 60, 20):
            scene.reconciler.requested(events[first : first + 20])
            scene.time.pass_(_CALM / 2)
            assert scene.lines.records == []
        seen = [0]
        while seen[-1] < 60:
            scene.time.step()
            seen.append(len(scene.lines.records))
        assert seen == [0, 16, 32, 48, 60]
        assert scene.time.waiting == []

    def test_what_the_kernel_tells_meanwhile_comes_before_the_rest_of_it(
        self, scene: Scene
    ) -> None:
        scene.quiet()
        scene.reconciler.requested(
            [scene.fs.allocate(130 + vector, 4 + vector) for vector in range(20)]
        )
        scene.urgent = True
        for number in range(1, 4):
            scene.time.pass_(_CALM)
            assert len(scene.lines.records) == number
        scene.urgent = False
        scene.time.settle()
        assert len(scene.lines.records) == 20

    def test_without_a_calm_moment_it_is_told_all_the_same(self, scene: Scene) -> None:
        scene.quiet()
        scene.reconciler.requested(
            [scene.fs.allocate(130 + vector, 4 + vector) for vector in range(27)]
        )
        rounds = 2 * _UNTOLD // 27
        for _ in range(rounds):
            for irq in range(130, 157):
                scene.fs.other_moves(irq, "0-3")
            scene.reconciler.look([NIC], Trigger.PLAN)
            scene.time.pass_(_CALM / 2)
        assert 27 * (rounds + 1) - len(scene.lines.records) <= _UNTOLD + 27

    def test_gone_again(self, scene: Scene) -> None:
        event = scene.fs.allocate(130, 4)
        scene.fs.free(130)
        scene.reconciler.requested([event])
        scene.time.settle()
        assert scene.reconciler.ledger.kept == frozenset(PLANNED)
        assert scene.records == []
        assert scene.places() == PLANNED

    def test_somebody_elses_by_now(self, scene: Scene) -> None:
        scene.reconciler.requested([requested(200, action_of(4))])
        scene.time.settle()
        assert scene.fs.where(200) == "0-7"
        assert scene.fs.written() == []
        assert 200 not in scene.reconciler.ledger.kept

    def test_a_line(self, scene: Scene) -> None:
        scene.fs.set(paths.IRQ_ACTIONS.at(LINE), "")
        scene.fs.other_moves(LINE, "0-3")
        scene.reconciler.freed(LINE)
        scene.time.settle()
        assert LINE not in scene.reconciler.ledger.kept
        scene.fs.set(paths.IRQ_ACTIONS.at(LINE), f"vfio-intx({DISK})")
        scene.reconciler.requested([requested(LINE, f"vfio-intx({DISK})")])
        scene.time.settle()
        assert scene.fs.where(LINE) == "4"
        assert LINE in scene.reconciler.ledger.kept

    def test_a_line_that_a_host_driver_is_on(self, scene: Scene) -> None:
        scene.fs.other_moves(LINE, "0-3")
        scene.fs.set(paths.IRQ_ACTIONS.at(LINE), f"ahci,vfio-intx({DISK})")
        scene.reconciler.requested([requested(LINE, f"vfio-intx({DISK})")])
        assert scene.fs.where(LINE) == "0-3"

    def test_of_a_native_device(self, scene: Scene) -> None:
        scene.reconciler.update(replace(DB, directive=NATIVE))
        scene.quiet()
        scene.reconciler.requested([scene.fs.allocate(130, 2, OTHER)])
        assert scene.fs.calls == []
        assert 130 not in scene.reconciler.ledger.kept

    def test_what_is_planned_for_a_name_is_not_kept_when_that_changes(self, scene: Scene) -> None:
        scene.reconciler.requested([scene.fs.allocate(130, 4)])
        scene.fs.free(130)
        scene.reconciler.freed(130)
        scene.reconciler.update(replace(WEB, vcpus=pinned(7, 6, 5, 4)))
        scene.reconciler.requested([scene.fs.allocate(131, 4)])
        assert scene.fs.where(131) == "7"

    def test_no_vector_left_on_the_cpu(self, scene: Scene) -> None:
        for n in range(200):
            scene.fs.allocate(500 + n, n, STRANGE, "4")
        scene.reconciler.requested([scene.fs.allocate(130, 4)])
        assert scene.fs.where(130) in ("5", "6", "7")
        assert scene.warnings == []

    def toggle(self, scene: Scene, times: int) -> int:
        """A guest switches MSI-X off and on; how often its vector was moved at once."""
        moved = 0
        for _ in range(times):
            event = scene.fs.allocate(130, 4)
            scene.reconciler.requested([event])
            moved += scene.fs.where(130) == "4"
            scene.fs.free(130)
            scene.reconciler.freed(130)
        return moved

    def test_who_sets_it_up_again_and_again_is_slowed_down(self, scene: Scene) -> None:
        assert self.toggle(scene, 400) == AT_ONCE
        scene.reconciler.requested([scene.fs.allocate(130, 4), scene.fs.allocate(131, 5)])
        assert [scene.fs.where(irq) for irq in (130, 131)] == ["0-7", "0-7"]
        assert len(scene.fs.written()) == AT_ONCE
        told = [each.getMessage() for each in scene.records]
        assert sum("again and again: looked at in 1 seconds" in each for each in told) == 1
        scene.time.pass_(1.0)
        assert [scene.fs.where(irq) for irq in (130, 131)] == ["4", "5"]

    def test_no_other_waits_for_that(self, scene: Scene) -> None:
        self.toggle(scene, 400)
        scene.reconciler.requested([scene.fs.allocate(150, 2, OTHER)])
        assert scene.fs.where(150) == "0"

    def test_in_the_end_nothing_is_left_of_that(self, scene: Scene) -> None:
        self.toggle(scene, 400)
        scene.reconciler.gone(WEB.key)
        assert not scene.reconciler._timers.is_due(("set up", NIC))


def aimed(*vcpus: int | None) -> dict[int, Aimed]:
    return {vector: Aimed(vcpu) for vector, vcpu in enumerate(vcpus)}


class TestAimed:
    """The guest's own choice of vCPUs."""

    def test_vectors_follow_it_and_it_is_said_why(self, scene: Scene) -> None:
        scene.reconciler.aim(NIC, aimed(3, 3, 2, 0))
        assert scene.places(100, 101, 102, 103) == {100: "7", 101: "7", 102: "6", 103: "4"}
        assert scene.moves() == {("guest", "applied"): 3}, "one was there already"
        assert scene.records[0].getMessage() == (
            "IRQ 100 vfio-msix[0](0000:41:00.0): to CPU 7 of vCPU 3, where the guest aims it,"
            " from CPU 4"
        )

    def test_the_same_again_touches_nothing(self, scene: Scene) -> None:
        scene.reconciler.aim(NIC, aimed(3, 3, 2, 0))
        scene.quiet()
        scene.reconciler.aim(NIC, aimed(3, 3, 2, 0))
        assert scene.fs.calls == []

    def test_other_devices_are_left_alone(self, scene: Scene) -> None:
        scene.reconciler.aim(NIC, aimed(3, 3, 2, 0))
        assert scene.fs.touched() <= {100, 101, 102, 103}

    def test_one_that_is_set_up_anew_goes_there_at_once(self, scene: Scene) -> None:
        scene.reconciler.requested([requested(101, action_of(1))])  # so that it is remembered
        scene.reconciler.aim(NIC, aimed(3, 3, 2, 0))
        scene.fs.free(101)
        scene.reconciler.freed(101)
        scene.reconciler.requested([scene.fs.allocate(150, 1)])
        assert scene.fs.where(150) == "7"

    def test_a_vcpu_that_is_not_there_is_nobodys(self, scene: Scene) -> None:
        scene.reconciler.aim(NIC, aimed(99, 3, None, 0))
        assert scene.places(100, 101, 102, 103) == {100: "4", 101: "7", 102: "6", 103: "4"}

    def test_it_outlives_all_but_its_device(self, scene: Scene) -> None:
        there = {100: "7", 101: "7", 102: "6", 103: "4"}
        scene.reconciler.aim(NIC, aimed(3, 3, 2, 0))
        scene.reconciler.reconfigure(Config())
        scene.reconciler.cpus_changed()
        scene.reconciler.update(WEB)
        scene.reconciler.know([WEB, DB])
        assert scene.places(100, 101, 102, 103) == there
        scene.reconciler.gone("u-web")
        scene.reconciler.update(WEB)
        assert scene.places() == PLANNED

    def test_who_can_be_followed(self, scene: Scene) -> None:
        vectors = {0: 100, 1: 101, 2: 102, 3: 103}
        assert scene.reconciler.followable("u-web") == {NIC: vectors}, (
            "an INTx line is not a vector"
        )
        assert scene.reconciler.followable("u-none") == {}
        scene.reconciler.freed(102)
        del vectors[2]
        assert scene.reconciler.followable("u-web") == {NIC: vectors}
        scene.reconciler.reconfigure(Config(default=NATIVE))
        assert scene.reconciler.followable("u-web") == {}
        scene.reconciler.reconfigure(Config(default=Directive.parse("4-7")))
        assert scene.reconciler.followable("u-web") == {}, "the whole mask for each"
        scene.reconciler.reconfigure(Config(default=Directive.parse("4-7"), spread=Spread.VECTOR))
        assert scene.reconciler.followable("u-web") == {NIC: vectors | {2: 102}}, "it was looked at"

    def test_guests_may_be_noted_before_they_are_acted_on(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path)
        scene.reconciler.know([WEB, DB], only_note=True)
        assert scene.places() == FOUND
        assert scene.reconciler.ledger.kept == frozenset(PLANNED)
        scene.reconciler.aim(NIC, aimed(3, 3, 2, 0))
        scene.reconciler.act_on_noted()
        assert scene.places() == PLANNED | {100: "7", 101: "7", 102: "6", 103: "4"}
        assert scene.fs.written().count((100,)) == 1
        scene.die()


class TestMoved:
    def test_it_is_put_back_and_counted(self, scene: Scene) -> None:
        scene.move(101, "0-3", "tuner", 77)
        assert scene.places() == PLANNED
        assert scene.counters.drift == {"tuner": 1}
        assert scene.moves() == {("drift", "applied"): 1}
        (line,) = (each.getMessage() for each in scene.records)
        assert "found at 0-3 instead of our 5: tuner (pid 77); undone to 4-7" in line
        assert scene.time.waiting == []

    def test_the_first_original_stays(self, scene: Scene) -> None:
        scene.move(101, "0-3")
        scene.reconciler.gone("u-web")
        assert scene.fs.where(101) == "4-7"

    def test_only_that_one_is_looked_at(self, scene: Scene) -> None:
        scene.move(101, "0-3")
        assert scene.fs.touched() == {101}

    def test_to_where_it_is_wanted(self, scene: Scene) -> None:
        scene.move(101, "5")
        assert scene.fs.written() == []
        assert scene.counters.drift == {}

    def test_by_someone_unknown(self, scene: Scene) -> None:
        scene.move(101, "0-3", "", None)
        assert scene.counters.drift == {SOMEBODY: 1}
        assert scene.places() == PLANNED

    @pytest.mark.parametrize("irq", [*ELSEWHERE, 9999])
    def test_of_others_it_is_ignored(self, scene: Scene, irq: int) -> None:
        scene.reconciler.moved(irq, "tuner", 77)
        assert scene.fs.calls == []
        assert scene.counters.drift == {}

    def test_of_a_guest_that_is_gone(self, scene: Scene) -> None:
        scene.reconciler.gone("u-db")
        scene.quiet()
        scene.move(120, "5")
        assert scene.fs.calls == []

    def test_of_a_native_device(self, scene: Scene) -> None:
        scene.reconciler.update(replace(DB, directive=NATIVE))
        scene.quiet()
        scene.move(120, "5")
        assert scene.fs.where(120) == "5"
        assert scene.counters.drift == {}

    def test_freed_meanwhile(self, scene: Scene) -> None:
        scene.fs.free(101)
        scene.reconciler.moved(101, "tuner", 77)
        assert scene.fs.written() == []
        assert scene.counters.drift == {}

    def test_a_name_that_is_anothers_now(self, scene: Scene) -> None:
        scene.fs.free(101)
        scene.fs.allocate(101, 1, STRANGE)
        scene.reconciler.moved(101, "tuner", 77)
        assert scene.fs.written() == []

    def test_a_number_that_is_another_vectors_now(self, scene: Scene) -> None:
        """What we know under this number is over: nobody has moved it."""
        scene.fs.free(101)
        scene.fs.allocate(101, 7)
        scene.reconciler.moved(101, "tuner", 77)
        assert scene.counters.drift == {}
        scene.reconciler.look_at_all()
        assert scene.fs.where(101) == "7"

    def test_a_line_that_two_devices_of_a_guest_are_on(self, tmp_path: Path) -> None:
        scene = Scene(tmp_path, shared_line())
        scene.reconciler.know([TWINS])
        assert scene.fs.where(LINE) == "4"
        scene.move(LINE, "0-3")
        assert scene.fs.where(LINE) == "4"


TWIN = PciAddress.parse("0000:42:00.1")
TWINS = replace(WEB, devices=(GuestDevice(DISK, "hostdev"), GuestDevice(TWIN, "hostdev")))


def shared_line() -> MadeHost:
    """Two functions of one guest on one INTx line."""
    line = MadeInterrupt(LINE, (f"vfio-intx({DISK})", f"vfio-intx({TWIN})"), "0-3")
    return replace(
        HOST,
        devices=tuple(
            MadeDevice(str(each), node=1, intx=line, kind="intx") for each in (DISK, TWIN)
        ),
    )


def test_one_of_two_devices_lets_a_line_go(tmp_path: Path) -> None:
    scene = Scene(tmp_path, shared_line())
    scene.reconciler.know([TWINS])
    scene.fs.set(paths.IRQ_ACTIONS.at(LINE), f"vfio-intx({DISK})")
    scene.reconciler.freed(LINE)
    scene.time.settle()
    assert scene.reconciler.ledger.kept == {LINE}


class TestFights:
    def test_the_first_few_are_undone_at_once(self, scene: Scene) -> None:
        for n in range(FEW):
            scene.move(101, "0-3")
            assert scene.fs.where(101) == "5", n
            scene.time.pass_(1)
        assert scene.reconciler.findings() == ()
        assert scene.warnings == []

    def fight(self, scene: Scene) -> None:
        for _ in range(FEW + 1):
            scene.move(101, "0-3")
        scene.tell()

    def test_then_it_waits_and_says_who(self, scene: Scene) -> None:
        self.fight(scene)
        assert scene.fs.where(101) == "0-3"
        assert scene.time.waiting == [FIRST_WAIT]
        (line,) = scene.warnings
        assert line.startswith(f"IRQ 101 {action_of(1)}: tuner (pid 77) keeps moving it: put back")
        assert "in 10 seconds" in line
        (finding,) = scene.reconciler.findings()
        assert (finding.code, finding.subject) == ("affinity-contested", f"web {NIC}")
        assert "was moved 5 times by others, most often by tuner" in finding.message
        scene.time.pass_(FIRST_WAIT - 0.01)
        assert scene.fs.where(101) == "0-3"
        scene.time.pass_(0.02)
        assert scene.fs.where(101) == "5"
        assert scene.moves()["drift", "applied"] == FEW + 1
        assert scene.time.waiting == []

    def test_each_time_longer_up_to_a_limit(self, scene: Scene) -> None:
        self.fight(scene)
        waits = []
        for _ in range(8):
            (wait,) = scene.time.waiting
            waits.append(wait)
            scene.time.settle()
            assert scene.fs.where(101) == "5"
            scene.move(101, "0-3")
            assert scene.fs.where(101) == "0-3"
        assert waits == [10, 20, 40, 80, 160, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT]

    def test_moves_while_it_waits_make_it_wait_no_longer(self, scene: Scene) -> None:
        self.fight(scene)
        scene.time.pass_(4)
        scene.move(101, "1")
        scene.time.pass_(4)
        scene.move(101, "2", "another")
        assert scene.time.waiting == [pytest.approx(2)]
        scene.time.pass_(2)
        assert scene.fs.where(101) == "5"
        assert scene.counters.drift == {"tuner": FEW + 2, "another": 1}
        assert len(scene.warnings) == 1

    def test_nothing_else_puts_it_back_meanwhile(self, scene: Scene) -> None:
        self.fight(scene)
        scene.reconciler.look_at_all()
        scene.reconciler.know([WEB, DB])
        scene.reconciler.cpus_changed()
        scene.reconciler.device_changed(NIC)
        scene.reconciler.reconfigure(Config())
        scene.reconciler.update(WEB)
        scene.reconciler.requested([requested(101, action_of(1))])
        scene.reconciler.allocated(101, "tuner", 77)
        assert scene.fs.where(101) == "0-3"
        assert scene.places(100, 102, 103) == {100: "4", 102: "6", 103: "7"}
        scene.time.settle()
        assert scene.fs.where(101) == "5"

    def test_a_timer_that_is_early_waits_for_the_rest(self, scene: Scene) -> None:
        self.fight(scene)
        scene.time.advance(FIRST_WAIT - 1)
        assert scene.fs.where(101) == "0-3"
        assert scene.time.waiting == [1]
        scene.time.settle()
        assert scene.fs.where(101) == "5"

    def test_the_others_are_put_back_at_once_all_the_same(self, scene: Scene) -> None:
        self.fight(scene)
        scene.move(102, "0-3")
        assert scene.fs.where(102) == "6"

    def test_slow_moves_are_no_fight(self, scene: Scene) -> None:
        for _ in range(3 * FEW):
            scene.move(101, "0-3")
            assert scene.fs.where(101) == "5"
            scene.time.pass_(60 / FEW + 0.1)
        assert scene.reconciler.findings() == ()

    def test_after_peace_it_is_forgotten(self, scene: Scene) -> None:
        self.fight(scene)
        scene.time.settle()
        assert scene.reconciler.findings() != ()
        scene.time.pass_(WINDOW - 20)
        assert scene.reconciler.findings() != ()
        scene.time.pass_(21)
        assert scene.reconciler.findings() == ()
        scene.move(101, "0-3")
        assert scene.fs.where(101) == "5"

    def test_a_guest_that_stops_ends_it(self, scene: Scene) -> None:
        self.fight(scene)
        scene.reconciler.gone("u-web")
        assert scene.reconciler.findings() == ()
        scene.time.settle()
        assert scene.fs.where(101) == "0-3", "somebody else's value: theirs to keep"
        scene.reconciler.update(WEB)
        assert scene.fs.where(101) == "5"

    def test_a_new_fight_after_an_old_one_waits_no_longer_than_it_says(self, scene: Scene) -> None:
        self.fight(scene)
        for _ in range(4):
            scene.time.settle()
            scene.move(101, "0-3")
        assert scene.time.waiting == [160]
        scene.reconciler.gone("u-web")
        scene.reconciler.update(WEB)
        scene.records.clear()
        self.fight(scene)
        assert len(scene.warnings) == 1
        scene.time.pass_(FIRST_WAIT)
        assert scene.fs.where(101) == "5"

    def test_a_device_that_is_left_alone_has_none(self, scene: Scene) -> None:
        self.fight(scene)
        scene.reconciler.update(replace(WEB, directive=NATIVE))
        assert scene.reconciler.findings() == ()

    def test_a_fight_survives_the_vector(self, scene: Scene) -> None:
        """A guest that resets its driver does not make us fight on at once."""
        self.fight(scene)
        scene.fs.free(101)
        scene.reconciler.freed(101)
        scene.reconciler.requested([scene.fs.allocate(131, 1)])
        assert scene.fs.where(131) == "0-7"
        scene.time.settle()
        assert scene.fs.where(131) == "5"


class TestChanges:
    def test_only_what_changes_is_written_and_others_are_not_even_read(self, scene: Scene) -> None:
        scene.reconciler.update(replace(WEB, vcpus=pinned(4, 5, 7, 6)))
        assert scene.places() == PLANNED | {102: "7", 103: "6"}
        assert sorted(scene.fs.written()) == [(102,), (103,)]
        assert scene.fs.touched() == {LINE, 100, 101, 102, 103}

    def test_an_update_that_changes_nothing_writes_nothing(self, scene: Scene) -> None:
        scene.reconciler.update(replace(WEB, emulator=CpuSet([0])))
        assert scene.fs.written() == []
        assert not scene.fs.touched() & {120, 121, *ELSEWHERE}

    def test_a_guest_that_begins(self, scene: Scene) -> None:
        scene.reconciler.update(Guest("new", "test", vcpus=pinned(3), devices=(strange(),)))
        assert (scene.fs.where(140), scene.fs.where(141)) == ("3", "3")
        assert not scene.fs.touched() & {LINE, *range(100, 104), 120, 121}

    def test_a_local_device_makes_way_for_another_guests_vcpus(self, scene: Scene) -> None:
        local = replace(strange(), directive=Directive(Word.LOCAL))
        scene.reconciler.update(Guest("new", "test", vcpus=pinned(7), devices=(local,)))
        assert {scene.fs.where(140), scene.fs.where(141)} == {"2", "3"}
        scene.quiet()
        scene.reconciler.update(replace(DB, vcpus=pinned(2)))
        assert {scene.fs.where(140), scene.fs.where(141)} <= {"0", "1", "3"}
        assert not scene.fs.touched() & {LINE, *range(100, 104)}

    def test_a_device_that_is_unplugged_is_put_back(self, scene: Scene) -> None:
        scene.reconciler.update(replace(WEB, devices=WEB.devices[:1]))
        assert scene.fs.where(LINE) == "0-3"
        assert scene.places(100, 101, 102, 103) == {n: PLANNED[n] for n in range(100, 104)}
        assert f"vfio-intx({DISK})" not in scene.remembered()
        assert LINE not in scene.reconciler.ledger.kept

    def test_a_guest_that_stops(self, scene: Scene) -> None:
        """Its line is put back; its vectors are gone already, and are forgotten."""
        for irq in range(100, 104):
            scene.fs.free(irq)
            scene.reconciler.freed(irq)
        scene.fs.set(paths.IRQ_ACTIONS.at(LINE), "")
        scene.reconciler.gone("u-web")
        assert scene.places() == {LINE: "0-3", 120: "0", 121: "1"}
        assert set(scene.remembered()) == {action_of(0, OTHER), action_of(1, OTHER)}
        assert scene.reconciler.ledger.kept == {120, 121}
        assert scene.moves() == {("restore", "applied"): 1}
        scene.time.settle()
        assert scene.fs.written() == [(LINE,)]

    def test_a_guest_that_was_not_there_can_stop_too(self, scene: Scene) -> None:
        scene.reconciler.gone("u-nobody")
        assert scene.fs.calls == []

    def test_a_guest_that_stops_and_begins_again(self, scene: Scene) -> None:
        for irq in range(100, 104):
            scene.fs.free(irq)
            scene.reconciler.freed(irq)
        scene.reconciler.gone("u-web")
        scene.reconciler.update(WEB)
        events = [scene.fs.allocate(103 - n, n, affinity="4-7") for n in range(4)]
        scene.reconciler.requested(events)
        # The disk's line is on CPU 4: the first vector takes the next.
        assert scene.places(100, 101, 102, 103) == {103: "5", 102: "6", 101: "7", 100: "4"}
        scene.reconciler.restore_all()
        assert scene.places() == FOUND

    def test_set_up_anew_where_we_had_put_the_one_before(self, scene: Scene) -> None:
        """Our value, by chance: it is the guest's own default all the same."""
        scene.reconciler.reconfigure(parse_config([("test", 'default = "2-3"')]))
        scene.fs.free(100)
        scene.reconciler.freed(100)
        scene.reconciler.requested([scene.fs.allocate(100, 0, affinity="2-3")])
        scene.reconciler.reconfigure(Config())
        assert scene.places() == PLANNED
        scene.reconciler.restore_all()
        assert scene.places() == FOUND | {100: "2-3"}

    @pytest.mark.parametrize("how", ["setting", "config"])
    def test_native_later_and_no_more(self, scene: Scene, how: str) -> None:
        def native(on: bool) -> None:
            if how == "setting":
                scene.reconciler.update(replace(WEB, directive=NATIVE if on else None))
            else:
                rule = '[[rule]]\nguest = "web"\ndirective = "native"'
                scene.reconciler.reconfigure(parse_config([("t", rule if on else "")]))

        native(True)
        assert scene.places() == FOUND | {120: "0", 121: "1"}
        assert scene.reconciler.ledger.kept == {120, 121}
        assert scene.moves() == {("restore", "applied"): 5}
        scene.fs.other_moves(100, "1")
        scene.reconciler.look_at_all()
        scene.reconciler.know([*scene.reconciler.guests])
        assert scene.fs.where(100) == "1", "left alone"
        scene.quiet()
        native(False)
        assert scene.places() == PLANNED
        assert scene.moves() == {("plan", "applied"): 5}
        scene.reconciler.gone("u-web")
        assert scene.places() == FOUND | {100: "1", 120: "0", 121: "1"}

    def test_native_from_the_start_is_put_back_by_the_next_daemon(self, scene: Scene) -> None:
        scene.die()
        scene.start()
        scene.reconciler.know([replace(WEB, directive=NATIVE), DB])
        assert scene.places() == FOUND | {120: "0", 121: "1"}

    def test_another_default(self, scene: Scene) -> None:
        scene.reconciler.reconfigure(parse_config([("test", 'default = "2"')]))
        assert scene.places() == dict.fromkeys(PLANNED, "2")
        assert scene.reconciler.config.default.cpus == CpuSet([2])

    def test_another_spread(self, scene: Scene) -> None:
        scene.reconciler.reconfigure(parse_config([("test", 'spread = "mask"')]))
        assert scene.fs.where(101) == "4-7"
        assert scene.fs.where(120) == "0-1"

    def test_a_line_whose_other_device_is_native_no_more(self, tmp_path: Path) -> None:
        rule = '[[rule]]\ndevice = "8086:1533"\ndirective = "native"'
        host = shared_line()
        odd = replace(host.devices[1], device=0x1533)
        host = replace(host, devices=(host.devices[0], odd))
        scene = Scene(tmp_path, host, parse_config([("t", rule)]))
        scene.reconciler.know([TWINS])
        assert scene.fs.where(LINE) == "0-3"
        scene.reconciler.reconfigure(Config())
        assert scene.fs.where(LINE) == "4"

    def test_a_driver_that_comes_and_goes(self, scene: Scene) -> None:
        rule = parse_config([("t", '[[rule]]\ndriver = "vfio-pci"\ndirective = "3"')])
        scene.reconciler.reconfigure(rule)
        assert scene.fs.where(100) == "3"
        driver = f"{paths.PCI_DIR}/{NIC}/driver"
        scene.fs.memory.drop(driver)
        scene.quiet()
        scene.reconciler.device_changed(NIC)
        assert scene.places(100, 101, 102, 103) == {n: PLANNED[n] for n in range(100, 104)}
        assert not scene.fs.touched() & {120, 121, LINE}

    def test_a_device_that_nobody_has(self, scene: Scene) -> None:
        scene.reconciler.device_changed(STRANGE)
        assert scene.fs.calls == []

    def test_a_device_that_appears_after_its_guest(self, scene: Scene) -> None:
        late = PciAddress.parse("0000:45:00.0")
        scene.reconciler.update(
            Guest("new", "test", vcpus=pinned(3), devices=(GuestDevice(late, "hostdev"),))
        )
        scene.fs.set(f"{paths.PCI_DIR}/{late}/vendor", "0x8086")
        scene.fs.set(f"{paths.PCI_DIR}/{late}/numa_node", "0")
        scene.fs.set(f"{paths.PCI_DIR}/{late}/irq", "0")
        scene.fs.allocate(150, 0, late)
        scene.reconciler.device_changed(late)
        assert scene.fs.where(150) == "3"

    def test_two_that_have_one_device(self, scene: Scene) -> None:
        """The first by name decides; when it goes, the other does."""
        rival = replace(WEB, name="zoo", uuid="u-zoo", vcpus=pinned(0, 1, 2, 3))
        scene.reconciler.update(rival)
        assert scene.places() == PLANNED
        scene.reconciler.gone("u-web")
        assert scene.places(100, 101, 102, 103) == {100: "0", 101: "1", 102: "2", 103: "3"}


def strange() -> GuestDevice:
    return GuestDevice(STRANGE, "hostdev")


class TestAgainAndAgain:
    """A guest that sets its vectors up and lets them go as fast as it can."""

    TIMES = 400
    IRQS = range(100, 104)

    def toggle(self, scene: Scene) -> None:
        for _ in range(self.TIMES):
            self.switch(scene)
            scene.time.pass_(0.01)

    def switch(self, scene: Scene, vectors: int = 4, at: float = 0.0) -> list[KernelEvent]:
        """Its first vectors off and on; those that are acted on further."""
        for irq in self.IRQS[:vectors]:
            scene.fs.free(irq)
            scene.reconciler.freed(irq)
        events = [scene.fs.allocate(100 + n, n, affinity="4-7") for n in range(vectors)]
        return scene.reconciler.requested([each._replace(at=at) for each in events])

    def slowed_down(self, scene: Scene) -> None:
        """Until it has to wait."""
        heeded = [len(self.switch(scene, 1)) for _ in range(AT_ONCE + 2)]
        assert (heeded[0], heeded[-1]) == (1, 0)

    def test_it_is_slowed_down_and_in_place_in_the_end(self, scene: Scene) -> None:
        self.toggle(scene)
        moves = sum(scene.moves().values())
        assert 4 <= moves <= 4 * 40, "of 1600 vectors that were set up"
        assert len(scene.lines.records) <= moves + 10, "and that it waits"
        scene.time.settle()
        assert scene.places() == PLANNED
        assert scene.reconciler.ledger.kept == frozenset(PLANNED)

    def test_meanwhile_nothing_is_done_for_it_and_then_everything_once(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.slowed_down(scene)
        self.switch(scene)
        noted: list[int] = []
        for name in ("appeared", "remember", "forget"):
            monkeypatch.setattr(scene.reconciler.ledger, name, lambda *a, **k: noted.append(1))
        scene.quiet()
        scene.set_up.clear()
        for number in range(self.TIMES):
            assert self.switch(scene, at=number) == []
        assert (scene.fs.touched(), noted, scene.set_up) == (set(), [], [])
        assert len(scene.time.waiting) == 1, "until its wait is over"
        monkeypatch.undo()
        scene.time.pass_(SHORTEST)
        assert [each.at for each in scene.set_up] == [self.TIMES - 1], "the last"
        assert scene.reconciler.ledger.vectors(NIC) == {n: 100 + n for n in range(4)}
        assert scene.places() == PLANNED
        scene.set_up.clear()
        scene.time.settle()
        assert scene.set_up == [], "once"

    def test_what_comes_as_the_wait_ends_is_not_lost(self, scene: Scene) -> None:
        """The loop hears of it first, and calls what is due by then afterwards."""
        self.slowed_down(scene)
        scene.time.now += SHORTEST
        assert self.switch(scene, at=1.0) == [], "it goes on, and waits again"
        scene.time.pass_(0)
        assert [each.at for each in scene.set_up] == [1.0]
        scene.time.pass_(0.5)
        assert self.switch(scene, at=2.0) == []
        scene.time.settle()
        assert [each.at for each in scene.set_up] == [1.0, 2.0]
        assert scene.places() == PLANNED
        assert scene.reconciler.ledger.kept == frozenset(PLANNED)

    def test_whoever_has_it_when_its_guest_is_gone_is_told_of(self, scene: Scene) -> None:
        self.slowed_down(scene)
        self.switch(scene, at=1.0)
        scene.reconciler.gone("u-web")
        assert [each.at for each in scene.set_up] == [1.0]
        scene.time.settle()
        assert len(scene.set_up) == 1

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 3), st.booleans(), st.sampled_from([0.0, 0.01, 1.0, 1.01, 70.0])
            ),
            max_size=12,
        )
    )
    @settings(max_examples=30, deadline=None)
    def test_whatever_comes_it_ends_right(self, steps: list[tuple[int, bool, float]]) -> None:
        """The ledger has what the kernel has, all is in place, and the last was acted on."""
        with tempfile.TemporaryDirectory(dir=SHM) as directory:
            scene = Scene(Path(directory))
            scene.reconciler.know([WEB, DB])
            self.slowed_down(scene)
            last = 0.0
            acted_on = {0.0}
            for vector, set_up, seconds in steps:
                irq = 100 + vector
                if irq in scene.fs.irqs():
                    scene.fs.free(irq)
                    scene.reconciler.freed(irq)
                if set_up:
                    last += 1
                    event = scene.fs.allocate(irq, vector, affinity="4-7")._replace(at=last)
                    acted_on |= {each.at for each in scene.reconciler.requested([event])}
                scene.time.pass_(seconds)
            scene.time.settle()
            acted_on |= {each.at for each in scene.set_up}
            assert last in acted_on
            there = {irq - 100: irq for irq in self.IRQS if irq in scene.fs.irqs()}
            assert scene.reconciler.ledger.vectors(NIC) == there
            assert all(scene.fs.where(irq) == PLANNED[irq] for irq in there.values())
            scene.die()

    def test_others_are_served_as_before(self, scene: Scene) -> None:
        self.toggle(scene)
        scene.fs.free(120)
        scene.reconciler.freed(120)
        scene.reconciler.requested([scene.fs.allocate(120, 0, OTHER)])
        assert scene.fs.where(120) == "0"

    def test_the_next_guest_of_the_device_begins_anew(self, scene: Scene) -> None:
        self.toggle(scene)
        scene.reconciler.gone("u-web")
        scene.reconciler.update(replace(WEB, name="next", uuid="u-next"))
        scene.fs.free(100)
        scene.reconciler.freed(100)
        scene.reconciler.requested([scene.fs.allocate(100, 0, affinity="4-7")])
        assert scene.places() == PLANNED


class TestCpus:
    def test_one_goes_and_comes_back(self, scene: Scene) -> None:
        scene.fs.online("0-4,6-7")
        assert scene.fs.where(101) == "0-4,6-7", "the kernel has moved it"
        scene.reconciler.cpus_changed()
        # vCPU 1 runs nowhere: its vectors are dealt to the others.
        assert scene.places(100, 101, 102, 103) == {100: "4", 101: "6", 102: "7", 103: "4"}
        scene.fs.online("0-7")
        scene.reconciler.cpus_changed()
        assert scene.places() == PLANNED
        scene.reconciler.restore_all()
        assert scene.places() == FOUND

    def test_all_that_are_wanted_go(self, scene: Scene) -> None:
        scene.fs.online("0-3")
        scene.reconciler.cpus_changed()
        assert scene.fs.where(101) == "0-3"
        assert scene.reconciler.ledger.kept == {120, 121}
        scene.fs.online("0-7")
        scene.reconciler.cpus_changed()
        assert scene.places() == PLANNED

    def test_those_of_others_are_not_touched(self, scene: Scene) -> None:
        scene.fs.online("0-6")
        scene.reconciler.cpus_changed()
        assert not scene.fs.touched() & set(ELSEWHERE)


class TestWhatGoesWrong:
    def test_another_virtirq_is_at_work(self, scene: Scene) -> None:
        with lock_held(scene.state):
            scene.reconciler.requested([scene.fs.allocate(130, 4)])
            assert scene.fs.written() == []
            scene.time.pass_(3)
            assert (
                "another virtirq is at work (hint: try again when it is done)"
                in (scene.warnings[0])
            )
            assert scene.fs.where(130) == "0-7"
        scene.time.settle()
        assert scene.fs.where(130) == "4"
        assert scene.moves() == {("plan", "applied"): 1}

    def test_it_has_done_what_we_meant_to(self, scene: Scene) -> None:
        with lock_held(scene.state):
            scene.move(101, "0-3")
        scene.fs.other_moves(101, "5")
        scene.time.settle()
        assert scene.fs.written() == []

    def test_it_is_tried_again_once_and_not_for_each_event(self, scene: Scene) -> None:
        with lock_held(scene.state):
            for n in range(20):
                scene.reconciler.requested([scene.fs.allocate(130 + n, 4 + n)])
            assert len(scene.time.waiting) == 1

    @pytest.mark.parametrize("how", ["gone", "native"])
    def test_what_is_to_be_put_back_is_tried_again_too(self, scene: Scene, how: str) -> None:
        with lock_held(scene.state):
            if how == "gone":
                scene.reconciler.gone("u-web")
            else:
                scene.reconciler.update(replace(WEB, directive=NATIVE))
        scene.time.settle()
        assert scene.fs.where(LINE) == "0-3"

    def test_a_journal_that_cannot_be_written(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        room = full(monkeypatch)
        scene.move(101, "0-3")
        assert scene.fs.where(101) == "0-3", "not without a line in the journal"
        assert scene.moves() == {("drift", "failed"): 1}
        (line,) = scene.warnings
        assert "No space left on device" in line
        for _ in range(3):
            scene.reconciler.look_at_all()
        assert len(scene.warnings) == 1, "said once"
        room()
        scene.time.settle()
        assert scene.places() == PLANNED

    def test_a_disk_that_was_full_for_a_moment(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        room = full(monkeypatch)
        scene.reconciler.requested([scene.fs.allocate(130, 4)])
        room()
        scene.time.pass_(3600)
        assert scene.fs.where(130) == "4"

    def test_a_full_disk_hinders_no_undo(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full(monkeypatch)
        scene.reconciler.restore_all()
        assert scene.places() == FOUND

    def test_a_journal_that_makes_no_sense(self, scene: Scene) -> None:
        (scene.state / "journal.jsonl").write_text("nonsense\n")
        scene.move(101, "0-3")
        scene.reconciler.know([DB])
        scene.reconciler.restore_all()
        assert scene.fs.written() == []
        assert all("line 1 is malformed" in each for each in scene.warnings)

    def test_a_journal_that_makes_no_sense_is_said_once(self, scene: Scene) -> None:
        (scene.state / "journal.jsonl").write_text("nonsense\n")
        scene.move(101, "0-3")
        scene.time.pass_(60)
        assert len(scene.warnings) == 1

    def test_proc_that_is_read_only(self, bare: Scene) -> None:
        for irq in PLANNED:
            bare.fs.faults["write", paths.IRQ_AFFINITY.at(irq)] = errno.EROFS
        bare.reconciler.know([WEB])
        assert bare.places() == FOUND
        assert bare.moves() == {("plan", "failed"): 5}
        told = len(bare.warnings)
        assert sum("ProtectKernelTunables" in each for each in bare.warnings) == 1
        bare.reconciler.look_at_all()
        bare.reconciler.know([WEB])
        assert len(bare.warnings) == told, "said once"
        assert bare.remembered() == {}

    def test_proc_that_is_read_only_is_said_once_however_it_is_looked_at(self, bare: Scene) -> None:
        for irq in PLANNED:
            bare.fs.faults["write", paths.IRQ_AFFINITY.at(irq)] = errno.EROFS
        bare.reconciler.know([WEB])
        told = len(bare.warnings)
        for _ in range(3):
            bare.reconciler.moved(103, "tuner", 77)
            bare.reconciler.look_at_all()
        assert len(bare.warnings) == told

    def test_one_that_the_kernel_keeps(self, scene: Scene) -> None:
        scene.fs.allocate(130, 4)
        scene.fs.faults["write", paths.IRQ_AFFINITY.at(130)] = errno.EIO
        for _ in range(3):
            scene.reconciler.look_at_all()
        assert scene.moves() == {("plan", "refused"): 3}
        assert len(scene.warnings) == 1
        scene.fs.faults.clear()
        scene.reconciler.look_at_all()
        assert scene.fs.where(130) == "4"
        scene.fs.other_moves(130, "1")
        scene.fs.faults["write", paths.IRQ_AFFINITY.at(130)] = errno.EIO
        scene.reconciler.look_at_all()
        assert len(scene.warnings) == 2, "it was well in between"

    def test_one_that_cannot_be_read(self, scene: Scene) -> None:
        scene.fs.other_moves(101, "1")
        scene.fs.faults[paths.IRQ_AFFINITY.at(101)] = errno.EIO
        scene.reconciler.moved(101, "tuner", 77)
        scene.reconciler.look_at_all()
        scene.reconciler.restore_all()
        scene.fs.faults.clear()
        assert action_of(1) in scene.remembered()
        assert scene.places(100, 102) == {100: "4-7", 102: "4-7"}

    def test_freed_while_it_is_looked_at(self, scene: Scene) -> None:
        def free(operation: str, path: str) -> None:
            if path == paths.IRQ_AFFINITY.at(102) and operation == "read":
                scene.fs.before = None
                scene.fs.free(102)

        scene.fs.before = free
        scene.reconciler.update(replace(WEB, vcpus=pinned(7, 6, 5, 4)))
        assert scene.places() == {LINE: "7", 100: "7", 101: "6", 103: "4", 120: "0", 121: "1"}
        assert scene.warnings == []


class TestRestoreAll:
    def test_all_is_as_it_was_found(self, scene: Scene) -> None:
        scene.reconciler.restore_all()
        assert scene.places() == FOUND
        assert scene.remembered() == {}
        assert scene.moves() == {("restore", "applied"): 7}
        scene.reconciler.restore_all()
        assert len(scene.fs.written()) == 7

    def test_what_others_moved_is_theirs(self, scene: Scene) -> None:
        scene.fs.other_moves(101, "2")
        scene.reconciler.restore_all()
        assert scene.places() == FOUND | {101: "2"}

    def test_guests_of_an_earlier_daemon_too(self, scene: Scene) -> None:
        scene.die()
        scene.start()
        scene.reconciler.restore_all()
        assert scene.places() == FOUND

    def test_nothing_to_do(self, bare: Scene) -> None:
        bare.reconciler.restore_all()
        assert bare.fs.written() == []


class TestWithoutEvents:
    def test_nothing_has_happened(self, scene: Scene) -> None:
        assert scene.reconciler.poll() is False
        assert scene.fs.written() == []

    def test_a_vector_has_come(self, scene: Scene) -> None:
        scene.fs.allocate(130, 4)
        assert scene.reconciler.poll() is True
        assert scene.fs.where(130) == "4"
        assert scene.moves() == {("new", "applied"): 1}
        assert scene.counters.drift == {}
        assert scene.reconciler.poll() is False

    def test_a_vector_has_gone(self, scene: Scene) -> None:
        scene.fs.free(101)
        assert scene.reconciler.poll() is True
        assert 101 not in scene.reconciler.ledger.kept
        assert scene.reconciler.poll() is False

    def test_one_was_moved(self, scene: Scene) -> None:
        scene.reconciler.poll()
        scene.fs.other_moves(101, "1")
        assert scene.reconciler.poll() is True
        assert scene.places() == PLANNED
        assert scene.counters.drift == {SOMEBODY: 1}
        assert scene.moves() == {("drift", "applied"): 1}
        assert scene.reconciler.poll() is False

    def test_those_of_others_are_not_looked_at(self, scene: Scene) -> None:
        scene.reconciler.poll()
        assert not scene.fs.touched() & set(ELSEWHERE)

    def test_a_fight_is_not_counted_up_by_looking(self, scene: Scene) -> None:
        scene.reconciler.poll()
        for _ in range(FEW + 1):
            scene.fs.other_moves(101, "1")
            scene.reconciler.poll()
        for _ in range(5):
            scene.time.pass_(1)
            scene.reconciler.poll()
        assert scene.counters.drift == {SOMEBODY: FEW + 1}

    def test_a_refusal_is_no_move_by_someone(self, scene: Scene) -> None:
        scene.fs.allocate(130, 4)
        scene.fs.faults["write", paths.IRQ_AFFINITY.at(130)] = errno.EIO
        for _ in range(2 * FEW):
            scene.reconciler.poll()
            scene.time.pass_(1)
        assert scene.counters.drift == {}
        assert scene.reconciler.findings() == ()

    def test_x86_tells_of_a_vector_in_the_midst_of_it(self, scene: Scene) -> None:
        scene.reconciler.allocated(130, "qemu", 5)
        assert scene.fs.calls == []
        scene.fs.allocate(130, 4)
        scene.time.settle()
        assert scene.fs.where(130) == "4"
        assert scene.places() == PLANNED

    def test_x86_tells_of_a_vector_of_the_hosts(self, scene: Scene) -> None:
        scene.reconciler.allocated(200, "modprobe", 5)
        scene.time.settle()
        assert scene.fs.written() == []
        assert scene.fs.touched() == {200}

    def test_x86_tells_of_a_move(self, scene: Scene) -> None:
        scene.fs.other_moves(101, "1")
        for _ in range(3):
            scene.reconciler.allocated(101, "tuner", 77)
        scene.time.settle()
        assert scene.places() == PLANNED
        assert scene.counters.drift == {"tuner": 1}, "once for one move, however often it is told"

    def test_x86_tells_of_a_move_before_it_is_done(self, scene: Scene) -> None:
        scene.reconciler.allocated(101, "tuner", 77)
        scene.fs.other_moves(101, "1")
        scene.time.settle()
        assert scene.places() == PLANNED


class TestFreed:
    def test_a_vector(self, scene: Scene) -> None:
        scene.reconciler.freed(101)
        assert scene.reconciler.ledger.kept == frozenset(PLANNED) - {101}
        assert scene.fs.calls == []

    @pytest.mark.parametrize("irq", [*ELSEWHERE, 9999])
    def test_of_others_it_is_ignored(self, scene: Scene, irq: int) -> None:
        scene.reconciler.freed(irq)
        assert scene.fs.calls == []
        assert scene.time.waiting == []
        assert scene.reconciler.ledger.kept == frozenset(PLANNED)

    def test_a_line_that_is_still_held(self, scene: Scene) -> None:
        """It was another's action that went, or it was taken again."""
        scene.reconciler.freed(LINE)
        scene.time.settle()
        assert LINE in scene.reconciler.ledger.kept

    def test_a_line_that_is_not_ours_to_move_is_not_kept(self, scene: Scene) -> None:
        scene.fs.set(paths.IRQ_ACTIONS.at(LINE), f"ahci,vfio-intx({DISK})")
        scene.reconciler.look_at_all()
        assert LINE not in scene.reconciler.ledger.kept


def test_events_that_were_missed(scene: Scene) -> None:
    scene.fs.free(100)
    scene.fs.allocate(131, 0)
    scene.fs.other_moves(102, "1")
    scene.reconciler.look_at_all()
    assert scene.places() == {n: PLANNED[n] for n in PLANNED if n != 100}
    assert scene.fs.where(131) == "4"
    assert scene.reconciler.ledger.kept == (frozenset(PLANNED) - {100}) | {131}


def test_two_of_the_errors_are_what_the_journal_raises(tmp_path: Path) -> None:
    """The scenes above rest on it."""
    shared = Impatient(tmp_path, "boot")
    with lock_held(tmp_path), pytest.raises(BusyError), shared.held():
        pass
    (tmp_path / "journal.jsonl").write_text("nonsense\n")
    with pytest.raises(JournalError), shared.held():
        pass
    shared.close()


# Whatever happens, and in whatever order ---------------------------------------------------------

ZOO = Guest("zoo", "test", uuid="u-zoo", vcpus=pinned(0, 1), devices=(GuestDevice(NIC, "hostdev"),))
LIVES = {
    "web": WEB,
    "web, repinned": replace(WEB, vcpus=pinned(7, 6, 5)),
    "web, native": replace(WEB, directive=NATIVE),
    "web, local": replace(WEB, directive=Directive(Word.LOCAL)),
    "web, without a disk": replace(WEB, devices=WEB.devices[:1]),
    "web, adrift": replace(WEB, vcpus=tuple(Vcpu(n) for n in range(2))),
    "db": DB,
    "db, beside web": replace(DB, vcpus=pinned(4, 1)),
    "db, listed": replace(DB, directive=Directive.parse("2-3")),
    "db, with everything": replace(DB, devices=(*DB.devices, *WEB.devices)),
    "zoo": ZOO,
}
CONFIGS = {
    "": Config(),
    "native": parse_config([("t", 'default = "native"')]),
    "emulator": parse_config([("t", 'default = "emulator"')]),
    "a rule": parse_config([("t", '[[rule]]\nguest = "web"\ndirective = "3,6"')]),
}
GUESTS_IRQS = st.sampled_from([LINE, *range(100, 104), 120, 121, *range(300, 306)])
ONLINE = ["0-7", "0-4,6-7", "0-6", "1-7"]


class TestHeld:
    """Somebody tries out where a guest's interrupts should be."""

    def test_moved_by_others_it_is_left(self, scene: Scene) -> None:
        assert scene.reconciler.hold("u-web")
        scene.move(101, "0-3")
        assert scene.fs.where(101) == "0-3"
        assert (scene.counters.drift, scene.fs.written()) == ({}, [])

    def test_of_another_guest_nothing_changes(self, scene: Scene) -> None:
        scene.reconciler.hold("u-web")
        scene.move(120, "5")
        assert scene.fs.where(120) == "0"

    def test_what_appears_is_left(self, scene: Scene) -> None:
        scene.reconciler.hold("u-web")
        scene.fs.free(102)
        scene.reconciler.freed(102)
        scene.reconciler.requested([scene.fs.allocate(130, 2)])
        scene.reconciler.look_at_all()
        scene.time.settle()
        assert scene.fs.where(130) == "0-7"

    def test_aimed_anew_it_is_left_and_known(self, scene: Scene) -> None:
        scene.reconciler.hold("u-web")
        scene.reconciler.aim(NIC, {1: Aimed(3)})
        assert scene.fs.written() == []
        assert scene.reconciler.aimed[NIC] == {1: Aimed(3)}
        scene.reconciler.release("u-web")
        assert scene.fs.where(101) == "7"

    def test_released_all_is_put_right(self, scene: Scene) -> None:
        scene.reconciler.hold("u-web")
        for irq in (100, 101, LINE):
            scene.move(irq, "0-3")
        scene.reconciler.release("u-web")
        assert scene.places() == PLANNED

    def test_without_events_it_is_left_too(self, scene: Scene) -> None:
        scene.reconciler.poll()
        scene.reconciler.hold("u-web")
        scene.fs.other_moves(101, "0-3")
        assert not scene.reconciler.poll()
        assert scene.fs.where(101) == "0-3"

    def test_gone_meanwhile_it_is_put_back(self, scene: Scene) -> None:
        scene.reconciler.hold("u-web")
        scene.reconciler.gone("u-web")
        assert scene.fs.where(101) == FOUND[101]
        scene.reconciler.release("u-web")
        assert scene.places() == FOUND | {120: "0", 121: "1"}

    def test_no_such_guest(self, scene: Scene) -> None:
        assert not scene.reconciler.hold("u-none")
        scene.reconciler.release("u-none")

    def test_said(self, scene: Scene) -> None:
        scene.reconciler.hold("u-web")
        scene.reconciler.release("u-web")
        said = [each.getMessage() for each in scene.records]
        assert said == [
            "web: left alone, as somebody tries something",
            "web: looked after again",
        ]


class Death(BaseException):
    """The daemon is killed."""


class Whatever(RuleBasedStateMachine):
    """A host where things happen to guests, vectors and CPUs, and daemons die."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=SHM)
        self.scene = Scene(Path(self.directory.name))
        self.fs, self.reconciler = self.scene.fs, self.scene.reconciler
        self.guests: dict[str, Guest] = {}
        self.missed = False
        self.born = {irq: self.fs.where(irq) for irq in PLANNED}
        """What each interrupt had when it was set up, if nobody but us has moved it since."""

    def teardown(self) -> None:
        try:
            self.settles()
        finally:
            self.scene.die()
            self.directory.cleanup()

    def next_daemon(self) -> None:
        self.scene.die()
        self.scene.start()
        self.reconciler, self.missed = self.scene.reconciler, False

    @initialize(guests=st.lists(st.sampled_from(["web", "db"]), unique=True))
    def begins(self, guests: list[str]) -> None:
        self.guests = {LIVES[each].key: LIVES[each] for each in guests}
        self.reconciler.know(self.guests.values())

    @rule(
        irq=GUESTS_IRQS,
        vector=st.integers(0, 6),
        device=st.sampled_from([NIC, OTHER, STRANGE]),
        affinity=st.sampled_from(["0-7", "2-3", "3,6"]),
        told=st.sampled_from(["requested", "allocated", "early", "missed"]),
    )
    def sets_up(self, irq: int, vector: int, device: PciAddress, affinity: str, told: str) -> None:
        name = action_of(vector, device)
        if irq in self.fs.irqs() or any(self.fs.actions(each) == name for each in self.fs.irqs()):
            return
        event = requested(irq, name, self.scene.time.now)
        if told == "early":
            self.reconciler.requested([event])
        self.fs.allocate(irq, vector, device, affinity)
        self.born[irq] = affinity
        if told == "requested":
            self.reconciler.requested([event])
        elif told == "allocated":
            self.reconciler.allocated(irq, "qemu", 5)
        elif told == "missed":
            self.missed = True

    @rule(irq=GUESTS_IRQS, told=st.sampled_from(["before", "after", "missed"]))
    def gives_up(self, irq: int, told: str) -> None:
        if irq not in self.fs.irqs() or irq == LINE:
            return
        if told == "before":
            self.reconciler.freed(irq)
        self.fs.free(irq)
        self.born.pop(irq, None)
        if told == "after":
            self.reconciler.freed(irq)
        self.missed |= told == "missed"

    @rule(held=st.booleans())
    def disk_takes_its_line_or_lets_it_go(self, held: bool) -> None:
        name = f"vfio-intx({DISK})"
        if held and not self.fs.actions(LINE):
            self.fs.set(paths.IRQ_ACTIONS.at(LINE), name)
            self.reconciler.requested([requested(LINE, name)])
        elif not held and self.fs.actions(LINE):
            self.reconciler.freed(LINE)
            self.fs.set(paths.IRQ_ACTIONS.at(LINE), "")

    @rule(
        irq=GUESTS_IRQS,
        cpus=st.sampled_from(["0-7", "1", "3-4", "6"]),
        told=st.booleans(),
        times=st.sampled_from([1, 1, FEW + 1]),
    )
    def someone_moves(self, irq: int, cpus: str, told: bool, times: int) -> None:
        if irq not in self.fs.irqs():
            return
        for _ in range(times):
            self.fs.other_moves(irq, cpus)
            self.born.pop(irq, None)
            if told:
                self.reconciler.moved(irq, "tuner", 77)
            else:
                self.missed = True

    @rule(cpus=st.sampled_from(ONLINE))
    def cpus_come_and_go(self, cpus: str) -> None:
        before = {irq: self.fs.where(irq) for irq in self.fs.irqs()}
        self.fs.online(cpus)
        for irq, was in before.items():
            if self.fs.where(irq) != was:
                self.born.pop(irq, None)
        self.reconciler.cpus_changed()

    @rule(life=st.sampled_from(sorted(LIVES)))
    def guest_changes(self, life: str) -> None:
        guest = LIVES[life]
        self.guests[guest.key] = guest
        self.reconciler.update(guest)

    @rule(key=st.sampled_from(["u-web", "u-db", "u-zoo"]))
    def guest_stops(self, key: str) -> None:
        self.guests.pop(key, None)
        self.reconciler.gone(key)

    @rule(lives=st.lists(st.sampled_from(sorted(LIVES)), max_size=3), whole=st.booleans())
    def libvirt_is_back(self, lives: list[str], whole: bool) -> None:
        told = {LIVES[each].key: LIVES[each] for each in lives}
        self.guests = told if whole else self.guests | told
        self.reconciler.know(told.values(), () if whole else [Gap("a guest", "?")])

    @rule(config=st.sampled_from(sorted(CONFIGS)))
    def config_changes(self, config: str) -> None:
        self.scene.config = CONFIGS[config]
        self.reconciler.reconfigure(CONFIGS[config])

    @rule(
        device=st.sampled_from([NIC, DISK, OTHER, STRANGE]),
        vcpus=st.dictionaries(st.integers(0, 6), st.sampled_from([None, 0, 1, 2, 3, 99])),
    )
    def guest_aims(self, device: PciAddress, vcpus: dict[int, int | None]) -> None:
        self.reconciler.aim(device, {vector: Aimed(vcpu) for vector, vcpu in vcpus.items()})

    @rule(device=st.sampled_from([NIC, DISK, OTHER, STRANGE]))
    def driver_changes(self, device: PciAddress) -> None:
        self.reconciler.device_changed(device)

    @rule(seconds=st.sampled_from([0.005, 1.0, 15.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.scene.time.pass_(seconds)

    @rule()
    def looks_for_want_of_events(self) -> None:
        self.reconciler.poll()

    @rule(life=st.sampled_from(sorted(LIVES)), after=st.integers(1, 90))
    def daemon_dies_at_work(self, life: str, after: int) -> None:
        left = itertools.count(after, -1)

        def strike(operation: str, path: str) -> None:
            if next(left) == 0:
                raise Death

        guest = LIVES[life]
        self.guests[guest.key] = guest
        self.fs.before = strike
        try:
            self.reconciler.update(guest)
        except Death:
            pass
        finally:
            self.fs.before = None
        self.next_daemon()
        self.reconciler.know(self.guests.values())

    @rule(whole=st.booleans())
    def daemon_stops(self, whole: bool) -> None:
        if whole:
            self.settles()
            self.reconciler.restore_all()
            there = {irq: self.fs.where(irq) for irq in self.born}
            assert there == self.born
        self.next_daemon()
        self.reconciler.know(self.guests.values())

    @precondition(lambda self: self.scene.fs.calls)
    @invariant()
    def those_of_others_are_left_alone(self) -> None:
        assert not {irq for (irq,) in self.fs.written()} & set(ELSEWHERE)
        self.fs.calls.clear()

    @rule()
    def settles(self) -> None:
        if self.missed:
            self.missed = False
            self.reconciler.look_at_all()
        self.scene.time.settle()
        assert {each.key: each for each in self.reconciler.guests} == self.guests
        snapshot = cycle.observe(self.fs, tuple(self.guests.values()))
        planned = plan(replace(snapshot, aimed=self.reconciler.aimed), self.scene.config)
        assert planned.pins == ()
        ours = [
            action
            for guest in planned.guests
            for device in guest.devices
            for action in device.actions
            if device.target is not None
        ]
        assert self.reconciler.ledger.kept == {each.irq for each in ours if each.key.action}
        owned = {device for guest in self.guests.values() for device in _devices_of(guest)}
        assert self.reconciler.aimed.keys() <= owned
        assert {each.key.device for each in self.scene.remembered().values()} <= owned


def _devices_of(guest: Guest) -> set[PciAddress]:
    return {device.address for device in guest.devices}


SHM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where fsync(2) costs nothing."""


def test_whatever_happens_all_is_in_place_in_the_end_and_can_be_put_back() -> None:
    run_state_machine_as_test(
        Whatever,
        settings=settings(
            max_examples=80, stateful_step_count=30, suppress_health_check=list(HealthCheck)
        ),
    )


class TestIsolation:
    """CPUs are isolated at run time, by a cpuset partition."""

    def test_local_keeps_off(self, bare: Scene) -> None:
        where = paths.CGROUP_ISOLATED.at()
        config = parse_config([("x.toml", 'default = "local"')])
        bare.fs.set(where, "")
        bare.reconciler.reconfigure(config)
        bare.reconciler.know([replace(DB, vcpus=pinned(0))])
        before = bare.places(120, 121)
        assert before == {120: "2", 121: "3"}
        bare.fs.set(where, "2-3")
        assert bare.reconciler.cpusets_changed()
        assert bare.places(120, 121) == {120: "1", 121: "1"}
        bare.fs.set(where, "")
        assert bare.reconciler.cpusets_changed()
        assert bare.places(120, 121) == before

    def test_other_writes_cost_a_read_or_two(self, scene: Scene) -> None:
        assert not scene.reconciler.cpusets_changed()
        assert [path for what, path in scene.fs.calls if what == "read"] == [
            *(paths.CPU_ISOLATED.at(), paths.CGROUP_ISOLATED.at())
        ]
        assert scene.fs.written() == []


class TestRoom:
    """More vectors than the guest's CPUs have room for."""

    FIVE = Guest(
        "five",
        "test",
        uuid="u-five",
        pid=905,
        vcpus=pinned(4),
        devices=(GuestDevice(NIC, "hostdev"), GuestDevice(OTHER, "hostdev")),
    )

    @pytest.fixture
    def crowded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
        """CPU 4 has room for four, and NIC's came first."""
        monkeypatch.setattr("virtirq.host.scratch.VECTORS_PER_CPU", 4)
        made = Scene(tmp_path, replace(HOST, interrupts=()))
        made.reconciler.know([self.FIVE])
        assert made.places(100, 101, 102, 103, 120, 121) == {
            **dict.fromkeys(range(100, 104), "4"),
            **dict.fromkeys((120, 121), "0-7"),
        }
        yield made
        made.die()

    def fires(self, scene: Scene, irq: int) -> None:
        scene.fs.set(paths.IRQ_COUNTS.at(irq), "5,0,0,0,0,0,0,0")

    def test_what_fires_gets_the_place_of_what_never_did(self, crowded: Scene) -> None:
        self.fires(crowded, 100)
        self.fires(crowded, 121)
        crowded.time.pass_(1)
        assert crowded.places(100, 121) == {100: "4", 121: "4"}
        moved = [irq for irq in (101, 102, 103) if crowded.fs.where(irq) != "4"]
        assert len(moved) == 1
        assert crowded.fs.where(moved[0]) == "0-3,5-7"
        assert crowded.places(120) == {120: "0-7"}

    def test_it_stays_so(self, crowded: Scene) -> None:
        self.fires(crowded, 121)
        crowded.time.pass_(1)
        before = crowded.places()
        crowded.reconciler.look_at_all()
        crowded.time.pass_(1000)
        crowded.reconciler.look_at_all()
        assert crowded.places() == before

    def test_while_nothing_fires_it_is_looked_at_less_and_less(self, crowded: Scene) -> None:
        crowded.time.pass_(10_000)
        crowded.fs.calls.clear()
        crowded.time.pass_(3000)
        looks = [path for what, path in crowded.fs.calls if path == paths.IRQ_COUNTS.at(100)]
        assert len(looks) == 10
        assert crowded.fs.written() == []

    def test_with_room_nothing_is_looked_at(self, scene: Scene) -> None:
        scene.time.pass_(10_000)
        assert scene.fs.calls == []

    def test_when_the_guest_has_gone(self, crowded: Scene) -> None:
        crowded.reconciler.gone(self.FIVE.key)
        crowded.time.pass_(1000)
        crowded.quiet()
        crowded.time.pass_(10_000)
        assert crowded.fs.calls == []
