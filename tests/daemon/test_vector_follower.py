"""Following guests' choices: when they are read, when they count, and how fast they may change."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.daemon.running import timers
from tests.hostmaker import MadeFs, MadeHost, passthrough
from virtirq.control.counters import Counters
from virtirq.control.journal import SharedJournal
from virtirq.cpuset import CpuSet
from virtirq.daemon import vector_follower as module
from virtirq.daemon.log import Log
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.timers import Timers
from virtirq.daemon.vector_follower import VectorFollower
from virtirq.errors import LibvirtError, NoAnswerError, UnavailableError, VirtirqError
from virtirq.guests.vectors.by_peek import Learned, Wanted
from virtirq.host import paths
from virtirq.model import NATIVE, Aimed, Guest, GuestDevice, GuestVectors, PciAddress, Vcpu
from virtirq.policy import pace
from virtirq.policy.budget import Budget
from virtirq.policy.config import Config

ENOUGH = 300.0
"""Seconds after which a test gives up."""
NIC = PciAddress.parse("0000:82:00.0")
DISK = PciAddress.parse("0000:83:00.0")
HOST = MadeHost(
    online="0-7",
    devices=(
        passthrough(str(NIC), vectors=3, first_irq=100, affinity="0-7"),
        passthrough(str(DISK), vectors=1, first_irq=110, affinity="0-7"),
    ),
)
WEB = Guest(
    "web",
    "libvirt",
    uuid="u-web",
    vcpus=tuple(Vcpu(index, CpuSet([4 + index]), apic=index) for index in range(3)),
    devices=(GuestDevice(NIC, "hostdev"), GuestDevice(DISK, "hostdev")),
)


class FakeReader:
    """Gives the next of its answers at each reading; the last one for ever."""

    def __init__(self, name: str, *answers: Learned | VirtirqError) -> None:
        self.name = name
        self.answers = list(answers)
        self.asked: list[tuple[str, Wanted]] = []
        self.closed = False
        self.go = threading.Event()
        self.go.set()
        self.begun = 0

    def read(self, guest: Guest, wanted: Wanted) -> Learned:
        self.begun += 1
        assert self.go.wait(ENOUGH)
        self.asked.append((guest.key, wanted))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, VirtirqError):
            raise answer
        return answer

    def close(self) -> None:
        self.closed = True


def nic(*vcpus: int | None, why: str = "") -> Learned:
    """The NIC's vectors are for these vCPUs."""
    aimed = {
        vector: Aimed(vcpu, "" if vcpu is not None else "any of 3")
        for vector, vcpu in enumerate(vcpus)
    }
    return {NIC: GuestVectors(aimed, why)}


class Stage:
    """A guest, its interrupts, and an VectorFollower; to be made inside of a loop."""

    def __init__(self, state: Path, *readers: FakeReader, on: bool = True) -> None:
        self.fs: MadeFs = HOST.live()
        self.journal = SharedJournal(state, HOST.boot_id)
        loop = asyncio.get_running_loop()
        self.reconciler = Reconciler(
            self.fs, self.journal, Config(), Log(), Counters(), timers(), loop.time
        )
        self.reread: list[Guest] = []
        self.failed: list[BaseException] = []
        self.timers = Timers(loop.call_later, loop.time, self.failed.append)
        self.follower = VectorFollower(
            readers, self.reconciler, Log(), self.timers, self.reread.append
        )
        self.follower.told = True
        self.follower.follow(on=on)
        self.reconciler.know([WEB])

    def places(self) -> list[str]:
        return [self.fs.read(paths.IRQ_AFFINITY.at(irq)) for irq in (100, 101, 102)]

    def moves(self, irq: int) -> int:
        """How often the interrupt was moved so far."""
        path = paths.IRQ_AFFINITY.at(irq)
        return self.fs.calls.count(("write", path))

    @property
    def findings(self) -> list[tuple[str, str, str]]:
        return [(each.code, each.subject, each.message) for each in self.follower.findings()]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(ENOUGH):
            while not condition():
                await asyncio.sleep(0.001)

    async def looked(self) -> None:
        """Whatever was to be looked at has been."""

        def soon() -> bool:
            due = self.timers._due.get(module._LOOK, {}).get((module._LOOK, "u-web"))
            return due is not None and due.at - asyncio.get_running_loop().time() <= module._BURST

        await self.until(lambda: not self.timers._at_work and not soon())
        assert self.failed == []


Act = Callable[[Stage], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for name, seconds in {"_BURST": 1, "_APART": 2, "_POLL": 4}.items():
        monkeypatch.setattr(module, name, seconds / 1000)
    monkeypatch.setattr(module, "_RETRY", (0.003, 0.003))

    def run(act: Act, *readers: FakeReader, **more: Any) -> None:
        async def main() -> None:
            stage = Stage(tmp_path, *readers, **more)
            try:
                await act(stage)
            finally:
                await stage.follower.close()
                stage.timers.close()
                stage.journal.close()

        asyncio.run(main())

    return run


Play = Callable[..., None]
SPREAD = ["4", "5", "6"]


def test_each_vector_goes_where_the_guest_aims_it(play: Play) -> None:
    reader = FakeReader("peek", nic(2, 2, 0))

    async def act(stage: Stage) -> None:
        assert stage.places() == SPREAD
        stage.follower.look("u-web")
        await stage.until(lambda: stage.places() == ["6", "6", "4"])
        await stage.looked()
        both = {NIC: {0: 100, 1: 101, 2: 102}, DISK: {0: 110}}
        assert reader.asked == [("u-web", both), ("u-web", {NIC: both[NIC]})]
        assert stage.findings == [
            ("vectors-followed", "web", "where it aims its vectors is read by peek")
        ]
        assert stage.reconciler.aimed == {NIC: nic(2, 2, 0)[NIC].aimed}

    play(act, reader)
    assert reader.closed


def test_a_choice_counts_when_it_was_read_twice_alike(play: Play) -> None:
    reader = FakeReader("peek", nic(0, 0, 0), nic(1, 0, 0), nic(2, 2, 2), nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        assert stage.places() == ["6", "6", "6"]
        assert len(reader.asked) == 4
        assert stage.moves(100) == 2, "dealt to CPU 4, then moved to 6, and never to 5"

    play(act, reader)


def test_a_guest_that_never_agrees_with_itself_is_given_up(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY", (2 * ENOUGH, 2 * ENOUGH))
    different = [nic(n % 3, 0, 0) for n in range(40)]
    reader = FakeReader("peek", *different)

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        assert len(reader.asked) == 8
        assert stage.places() == SPREAD

    play(act, reader)


def test_what_is_no_single_vcpu_is_left_to_the_spread(play: Play) -> None:
    reader = FakeReader("peek", nic(2, None, 0))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        assert stage.places() == ["6", "5", "4"]

    play(act, reader)


def test_a_vector_that_is_away_for_a_moment_keeps_its_place(play: Play) -> None:
    reader = FakeReader("peek", nic(2, 2, 2), nic(2, 2, 2), {NIC: GuestVectors({0: Aimed(2)})})

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        stage.follower.look("u-web")
        await stage.looked()
        assert len(reader.asked) == 3
        assert stage.places() == ["6", "6", "6"]

    play(act, reader)


def test_what_is_followed_already_needs_no_second_reading(play: Play) -> None:
    """Nor does it have others wait for one: each device counts when it was read twice alike."""
    disk = {DISK: GuestVectors({0: Aimed(1)})}
    some, all_of_them = {**nic(2, 2), **disk}, {**nic(2, 2, 0), **disk}
    reader = FakeReader("peek", some, some, all_of_them)

    async def act(stage: Stage) -> None:
        for _ in range(2):
            stage.follower.look("u-web")
            await stage.looked()
        assert [sorted(wanted) for _, wanted in reader.asked] == [[NIC, DISK]] * 3 + [[NIC]]
        assert stage.places() == ["6", "6", "4"]

    play(act, reader)


def test_one_device_that_never_agrees_with_itself_has_no_other_wait(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY", (2 * ENOUGH, 2 * ENOUGH))
    disk = {DISK: GuestVectors({0: Aimed(1)})}
    reader = FakeReader("peek", *({**nic(n % 3, 0, 0), **disk} for n in range(40)))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        assert len(reader.asked) == 8
        assert stage.places() == SPREAD
        assert stage.fs.read(paths.IRQ_AFFINITY.at(110)) == "5"

    play(act, reader)


def test_why_nothing_is_learned_of_a_device_is_read_twice(play: Play) -> None:
    """A guest that boots has not numbered its buses for a moment."""
    reader = FakeReader("peek", nic(why="not numbered"), nic(2, 2, 0))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        assert stage.places() == ["6", "6", "4"]

    play(act, reader)


def test_a_vector_moves_once_in_a_while_only(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first choice is taken at once; the next has to wait, and is taken then."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(pace, "SHORTEST", 0.02)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    reader = FakeReader("peek", *[nic(2, 2, 2)] * 2, nic(0, 2, 2))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        stage.follower.look("u-web")
        await stage.until(lambda: len(reader.asked) >= 6)
        assert stage.places() == ["6", "6", "6"]
        clock.now = 1.0
        await stage.until(lambda: stage.places() == ["4", "6", "6"])

    play(act, reader)


def test_a_guest_that_keeps_choosing_is_read_in_a_part_of_the_time(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of each new route that the guest has KVM take."""
    monkeypatch.setattr(module, "BUDGET", Budget(1e-6, longest=10.0))
    reader = FakeReader("peek", nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        for _ in range(2):
            stage.follower.look("u-web")
            await stage.until(lambda: len(reader.asked) == 2)
            await stage.until(lambda: not stage.timers._at_work)
        for _ in range(100):
            stage.follower.look("u-web")
            await asyncio.sleep(0.003)
        assert len(reader.asked) == 2

    play(act, reader)


def test_a_process_that_is_no_machine_aims_at_nobody(play: Play) -> None:
    """Nobody is asked, however often it sets vectors up."""
    reader = FakeReader("peek", nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        stage.reconciler.know([replace(WEB, kind="process")])
        stage.follower.look("u-web")
        stage.follower.known({"u-web"})
        await stage.follower.prepare()
        await stage.looked()
        assert reader.asked == []
        assert stage.findings == []

    play(act, reader)


def test_what_is_asked_for_during_a_look_is_looked_at_after_it(play: Play) -> None:
    reader = FakeReader("peek", nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        reader.go.clear()
        stage.follower.look("u-web")
        await stage.until(lambda: reader.begun)
        for _ in range(5):
            stage.follower.look("u-web")
        reader.go.set()
        await stage.looked()
        assert len(reader.asked) == 3

    play(act, reader)


def test_the_first_reader_that_can_is_used_and_why_not_a_better_one_is_said(play: Play) -> None:
    first = FakeReader("bpf", UnavailableError("bpftrace is not installed"))
    second = FakeReader("peek", nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        assert stage.places() == ["6", "6", "6"]
        said = "where it aims its vectors is read by peek; bpf: bpftrace is not installed"
        assert stage.findings == [("vectors-followed", "web", said)]

    play(act, first, second)


@pytest.mark.parametrize("lasts", [False, True])
def test_what_has_worked_is_tried_again_before_what_costs_more_is_begun(
    play: Play, lasts: bool
) -> None:
    gone = UnavailableError("the domain is not running")
    after = () if lasts else (nic(1, 1, 1),)
    first = FakeReader("peek", nic(2, 2, 2), nic(2, 2, 2), gone, *after)
    second = FakeReader("probes", nic(0, 0, 0))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.until(lambda: len(first.asked) == 2)
        await stage.looked()
        stage.follower.look("u-web")
        wanted = ["4", "4", "4"] if lasts else ["5", "5", "5"]
        await stage.until(lambda: stage.places() == wanted)
        assert bool(second.asked) is lasts

    play(act, first, second)


def test_a_guest_that_cannot_be_read_says_why_and_is_not_tried_for_ever(play: Play) -> None:
    reader = FakeReader("peek", UnavailableError("its machine 'pc' has no such space"))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        await asyncio.sleep(0.02)
        assert len(reader.asked) == 1
        said = "where it aims its vectors cannot be read: peek: its machine 'pc' has no such space"
        assert stage.findings == [("vectors-not-followed", "web", said)]
        assert stage.places() == SPREAD

    play(act, reader)


def test_one_that_could_be_read_before_is_tried_again(play: Play) -> None:
    lost = LibvirtError("lost")
    reader = FakeReader("peek", nic(2, 2, 2), nic(2, 2, 2), lost, lost, nic(1, 1, 1))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        stage.reconciler.aim(NIC, {})  # so that there is something to see
        stage.follower.look("u-web")
        await stage.looked()
        assert stage.places() == SPREAD
        reader.answers = [nic(1, 1, 1)]
        stage.follower.look("u-web")
        await stage.until(lambda: stage.places() == ["5", "5", "5"])

    play(act, reader)


def test_a_device_that_hides_is_told_of(play: Play) -> None:
    reader = FakeReader("peek", {NIC: GuestVectors({}, "the guest does not see it")})

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        assert [each[:2] for each in stage.findings] == [
            ("vectors-followed", "web"),
            ("vectors-not-followed", f"web {NIC}"),
        ]
        assert stage.findings[1][2].endswith("cannot be read: the guest does not see it")

    play(act, reader)


def test_without_the_kernels_word_it_reads_now_and_then(play: Play) -> None:
    reader = FakeReader("peek", *[nic(2, 2, 2)] * 2, nic(1, 1, 1))

    async def act(stage: Stage) -> None:
        stage.follower.told = False
        stage.follower.look("u-web")
        await stage.until(lambda: stage.places() == ["6", "6", "6"])
        await stage.until(lambda: stage.places() == ["5", "5", "5"])

    play(act, reader)


def test_running_guests_are_read_before_anything_of_theirs_is_moved(play: Play) -> None:
    reader = FakeReader("peek", nic(2, 2, 0))

    async def act(stage: Stage) -> None:
        fresh = HOST.live()
        loop = asyncio.get_running_loop()
        stage.fs = fresh
        stage.reconciler = Reconciler(
            fresh, stage.journal, Config(), Log(), Counters(), timers(), loop.time
        )
        aiming = VectorFollower([reader], stage.reconciler, Log(), stage.timers)
        aiming.follow(on=True)
        stage.reconciler.know([WEB], only_note=True)
        assert stage.places() == ["0-7"] * 3
        await aiming.prepare()
        stage.reconciler.act_on_noted()
        assert stage.places() == ["6", "6", "4"]
        assert [stage.moves(irq) for irq in (100, 101, 102)] == [1, 1, 1]

    play(act, reader)


def test_one_that_hangs_does_not_keep_the_daemon_from_starting(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST", 0.01)
    reader = FakeReader("peek", nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        reader.go.clear()
        await stage.follower.prepare()
        assert stage.places() == SPREAD
        reader.go.set()

    play(act, reader)


def test_switched_off_nothing_is_read_and_the_spread_decides_again(play: Play) -> None:
    reader = FakeReader("peek", nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        stage.follower.follow(on=False)
        assert stage.places() == SPREAD
        assert stage.findings == []
        reader.asked.clear()
        stage.follower.look("u-web")
        stage.follower.look_at_all()
        await stage.follower.prepare()
        await stage.looked()
        assert reader.asked == []
        stage.follower.follow(on=True)
        await stage.until(lambda: stage.places() == ["6", "6", "6"])

    play(act, reader)


def test_whoever_does_not_follow_is_not_read(play: Play) -> None:
    reader = FakeReader("peek", nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        stage.reconciler.reconfigure(Config(default=NATIVE))
        stage.follower.look("u-web")
        stage.follower.look("nobody")
        await stage.looked()
        assert reader.asked == []

    play(act, reader)


def test_a_guest_that_is_gone_is_forgotten(play: Play) -> None:
    reader = FakeReader("peek", nic(2, 2, 2))

    async def act(stage: Stage) -> None:
        stage.follower.look("u-web")
        await stage.looked()
        stage.reconciler.gone("u-web")
        assert stage.follower.readers == {"u-web": "peek"}
        stage.follower.known(["u-web"])
        assert (stage.findings, stage.reconciler.aimed) == ([], {})
        books: list[Mapping[Any, Any]] = [
            stage.follower.readers,
            stage.follower._books,
            stage.follower._paces,
            stage.timers._due,
        ]
        assert not any(books)

    play(act, reader)


def test_a_guest_that_is_met_later_is_read_without_being_told_of(play: Play) -> None:
    """It may never choose anew; and once is enough for each run of it."""

    async def act(stage: Stage) -> None:
        stage.follower.known(["u-web"])
        await stage.until(lambda: stage.places() == ["6", "5", "4"])
        await stage.looked()
        count = len(reader.asked)
        stage.follower.known(["u-web"])
        await stage.looked()
        assert len(reader.asked) == count
        stage.reconciler.update(replace(WEB, pid=77))
        stage.follower.known(["u-web"])
        await stage.looked()
        assert len(reader.asked) > count

    reader = FakeReader("one", nic(2, 1, 0))
    play(act, reader)


def test_what_is_read_when_it_was_switched_off_counts_no_more(play: Play) -> None:
    async def act(stage: Stage) -> None:
        reader.go.clear()
        stage.follower.look(WEB.key)
        await stage.until(lambda: reader.begun)
        stage.follower.follow(on=False)
        reader.go.set()
        await stage.looked()
        assert (stage.reconciler.aimed, stage.places()) == ({}, SPREAD)
        assert (stage.follower.readers, stage.findings) == ({}, [])

    reader = FakeReader("one", nic(2, 1, 0))
    play(act, reader)


def test_a_reader_that_stumbles_does_not_end_the_daemon(play: Play) -> None:
    class Stumbling(FakeReader):
        def read(self, guest: Guest, wanted: Wanted) -> Learned:
            raise RuntimeError("what nobody thought of")

    async def act(stage: Stage) -> None:
        await stage.follower.prepare()
        stage.reconciler.look_at_all()
        assert stage.places() == ["6", "5", "4"]

    play(act, Stumbling("one", nic(0)), FakeReader("two", nic(2, 1, 0)))


def test_the_next_holder_of_a_device_has_not_chosen_what_the_one_before_has(play: Play) -> None:
    async def act(stage: Stage) -> None:
        await stage.follower.prepare()
        stage.reconciler.look_at_all()
        assert stage.places() == ["6", "5", "4"]
        stage.reconciler.know([replace(WEB, name="next", uuid="u-next")])
        assert stage.reconciler.aimed == {}
        assert stage.places() in (["4", "5", "6"], ["5", "6", "4"], ["6", "4", "5"]), "in order"

    play(act, FakeReader("one", nic(2, 1, 0)))


def test_a_reader_that_hangs_holds_up_nobody_else(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest is read another way, and by the first once that answers again."""
    monkeypatch.setattr(module, "_PATIENCE", 1.0)  # the other one gets no longer, either

    async def act(stage: Stage) -> None:
        hung.go.clear()
        stage.follower.look(WEB.key)
        await stage.until(lambda: stage.places() == ["6", "5", "4"])
        said = ("where it aims its vectors is read by other; hung: no answer within 1 seconds",)
        assert tuple(message for _, _, message in stage.findings) == said
        await asyncio.sleep(0.5)
        assert len(hung.asked) == 0
        hung.go.set()
        await stage.until(lambda: stage.follower.readers == {WEB.key: "hung"})

    hung = FakeReader("hung", nic(2, 1, 0))
    play(act, hung, FakeReader("other", nic(2, 1, 0)))
    assert len(hung.asked) > 1, "the one that hung, and those that did not"


def test_readings_that_hang_do_not_grow_in_number(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.005)

    def count() -> int:
        return sum(each.name == "vectors" for each in threading.enumerate())

    async def act(stage: Stage) -> None:
        before = count()
        hung.go.clear()
        stage.follower.look(WEB.key)
        await stage.until(lambda: count() == before + 1)
        await asyncio.sleep(0.2)
        assert count() == before + 1
        hung.go.set()

    hung = FakeReader("hung", nic(2, 1, 0))
    play(act, hung)


def test_one_guest_that_hangs_takes_no_other_guests_turns(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.005)

    class HangsForWeb(FakeReader):
        def read(self, guest: Guest, wanted: Wanted) -> Learned:
            if guest.key == WEB.key:
                return super().read(guest, wanted)
            self.asked.append((guest.key, wanted))
            return {DISK: GuestVectors({0: Aimed(2)})}

    async def act(stage: Stage) -> None:
        reader.go.clear()
        stage.reconciler.know([replace(WEB, devices=WEB.devices[:1]), OTHER])
        stage.follower.look(WEB.key)
        await stage.until(lambda: reader.begun)
        stage.follower.look(OTHER.key)
        await stage.until(lambda: stage.follower.readers == {OTHER.key: "one"})
        reader.go.set()

    reader = HangsForWeb("one", nic(2, 1, 0))
    play(act, reader)


OTHER = replace(WEB, name="other", uuid="u-other", devices=WEB.devices[1:])


def test_what_was_read_of_one_guest_is_not_the_next_ones(play: Play) -> None:
    async def act(stage: Stage) -> None:
        reader.go.clear()
        stage.follower.look(WEB.key)
        await stage.until(lambda: reader.begun)
        stage.reconciler.know([replace(WEB, name="next", uuid="u-next")])
        reader.go.set()
        await stage.looked()
        assert (stage.reconciler.aimed, stage.places()) == ({}, SPREAD)

    reader = FakeReader("one", nic(2, 1, 0))
    play(act, reader)


def test_who_aims_at_a_vcpu_that_nobody_knows_may_have_been_given_one(play: Play) -> None:
    async def act(stage: Stage) -> None:
        stage.follower.look(WEB.key)
        await stage.until(lambda: stage.reread == [WEB])
        await stage.looked()
        grown = replace(WEB, vcpus=(*WEB.vcpus, Vcpu(3, CpuSet([7]), apic=3)))
        stage.reconciler.update(grown)
        stage.follower.known(["u-web"])
        await stage.until(lambda: stage.places() == ["6", "5", "7"])
        await stage.looked()
        assert stage.reread == [WEB], "once is enough"

    play(act, FakeReader("one", nic(2, 1, None), nic(2, 1, None), nic(2, 1, 3)))


def test_looks_that_wait_for_the_same_hung_reading_lose_no_turn(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hangs and is given up; the next look waits for it, and so does the one that libvirt's
    new connection asks for.
    """
    monkeypatch.setattr(module, "_PATIENCE", 0.05)

    async def act(stage: Stage) -> None:
        ((_, lane),) = stage.follower._readers
        for _ in range(3):
            reader.go.clear()
            stage.follower.look(WEB.key)
            await stage.until(lambda: lane.given_up == 1)
            prepared = asyncio.create_task(stage.follower.prepare())
            await asyncio.sleep(0.01)
            reader.go.set()
            await prepared
            await stage.looked()
            await stage.until(lambda: not lane._at_work)
        assert (lane._waiting, lane._ready) == ({}, {})
        await stage.until(lambda: stage.follower.readers == {WEB.key: "one"})

    reader = FakeReader("one", nic(2, 1, 0))
    play(act, reader)


def test_a_change_of_one_guest_is_a_look_at_that_one(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = Reconciler.followable

    def followable(self: Reconciler, key: str) -> dict[PciAddress, dict[int, int]]:
        asked.append(key)
        return real(self, key)

    async def act(stage: Stage) -> None:
        many = [Guest(f"g{n}", "libvirt", uuid=f"u-{n}") for n in range(50)]
        stage.reconciler.know([WEB, *many])
        stage.follower.known(each.key for each in stage.reconciler.guests)
        await stage.looked()
        monkeypatch.setattr(Reconciler, "followable", followable)
        stage.follower.known(["u-7"])
        assert set(asked) == {"u-7"}

    play(act, FakeReader("one", nic(2, 1, 0)))


def test_a_reader_that_does_not_close_keeps_no_other_from_it(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hanging(FakeReader):
        def close(self) -> None:
            assert self.go.wait(ENOUGH)
            super().close()

    async def act(stage: Stage) -> None:
        monkeypatch.setattr(stage.follower._closes, "limit", 0.05)
        hung.go.clear()
        with pytest.raises(NoAnswerError):
            await stage.follower.close()
        assert (hung.closed, well.closed) == (False, True)
        hung.go.set()
        monkeypatch.setattr(stage.follower._closes, "limit", ENOUGH)

    hung, well = Hanging("hung", nic(0)), FakeReader("well", nic(0))
    play(act, hung, well)
