"""Policies held in turns, on a host whose interrupts fire while somebody sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostmaker import MadeFs, MadeHost, passthrough
from virtirq.control.comparing import (
    AS_IS,
    COMMAND,
    Comparison,
    DisturbedError,
    Policy,
    check_policies,
)
from virtirq.control.guest_aims import Aims
from virtirq.control.journal import locked_journal
from virtirq.cpuset import CpuSet
from virtirq.errors import DirectiveError, InputError, UnavailableError, UsageError
from virtirq.host import paths
from virtirq.model import Aimed, Guest, GuestDevice, PciAddress, Vcpu, VcpuCounts
from virtirq.policy.comparison import EXACT, NEAR, OWN, PLANNED, Block, Part, turns
from virtirq.policy.config import Config

NIC = PciAddress.parse("0000:41:00.0")
FIRST, VECTORS = 100, 4
HOST = MadeHost(
    online="0-7",
    nodes={0: "0-3", 1: "4-7"},
    devices=(passthrough(str(NIC), vectors=VECTORS, first_irq=FIRST, node=1, affinity="0-7"),),
)
WEB = Guest(
    "web",
    "test",
    uuid="u-web",
    pid=900,
    vcpus=tuple(Vcpu(index, CpuSet([4 + index]), 1000 + index) for index in range(4)),
    devices=(GuestDevice(NIC, "hostdev"),),
)
DB = Guest("db", "test", uuid="u-db", vcpus=(Vcpu(0, CpuSet([1]), 2000),))
IRQS = range(FIRST, FIRST + VECTORS)
FOUND = dict.fromkeys(IRQS, "0-7")
AUTO = {irq: str(4 + number) for number, irq in enumerate(IRQS)}


class Scene:
    """The host, and a clock; each interrupt fires ten times a second where it goes."""

    def __init__(self, state: Path) -> None:
        self.fs: MadeFs = HOST.live()
        self.state = state
        self.now = 0.0
        self.aims: Aims = {}
        self.statistics: Callable[[], VcpuCounts] = dict
        self.during: Callable[[float], None] = lambda _: None
        self._counts = {irq: dict.fromkeys(range(8), 0) for irq in IRQS}

    def where(self, irq: int) -> str:
        return self.fs.read(paths.IRQ_AFFINITY.at(irq))

    def places(self) -> dict[int, str]:
        return {irq: self.where(irq) for irq in IRQS}

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during(self.now)
        for irq, counts in self._counts.items():
            if not self.fs.isdir(f"{paths.IRQ_DIR}/{irq}"):
                continue
            counts[int(self.fs.read(paths.IRQ_EFFECTIVE.at(irq)))] += round(10 * seconds)
            text = ",".join(map(str, counts.values()))
            self.fs.set(paths.IRQ_COUNTS.at(irq), f"{text}\n")

    def comparison(self, *policies: str, guest: Guest = WEB) -> Comparison:
        return Comparison(
            self.fs,
            [guest, DB],
            guest,
            Config(),
            self.state,
            [Policy.parse(each) for each in policies],
            lambda: self.aims,
            lambda: self.statistics(),
            sleep=self.sleep,
            clock=lambda: self.now,
        )

    def measure(
        self,
        *policies: str,
        rounds: int = 1,
        metric: str | None = None,
        told: Callable[..., None] = lambda *_: None,
    ) -> list[Block]:
        made = self.comparison(*policies)
        try:
            return list(made.blocks(in_turns(policies, rounds), 10.0, 1.0, metric, told))
        finally:
            made.put_back()

    def remembered(self) -> dict[str, str]:
        with locked_journal(self.state, HOST.boot_id) as journal:
            return {each.key.action: str(each.original) for each in journal.remembered()}


def in_turns(policies: Sequence[str], rounds: int) -> Iterator[tuple[int, Policy]]:
    return ((number, Policy.parse(name)) for number, name in turns(policies, rounds, 1))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_each_policy_is_held_and_counted(scene: Scene) -> None:
    found = {each.policy: each for each in scene.measure(AS_IS, "auto", "6")}
    assert {each.interrupts for each in found.values()} == {VECTORS * 100}
    assert {each.seconds for each in found.values()} == {10.0}
    assert found["auto"].parts[OWN] == Part(400, 400)
    assert found["auto"].parts[PLANNED] == Part(400, 400)
    assert found["auto"].parts[NEAR] == Part(400, 400)
    assert found["6"].parts[PLANNED] == Part(400, 400)
    assert found[AS_IS].parts[PLANNED] == Part(400, 400)
    assert EXACT not in found["auto"].parts
    assert scene.places() == FOUND
    assert scene.remembered() == {}


def test_where_each_is_while_it_is_held(scene: Scene) -> None:
    made = scene.comparison(AS_IS, "auto", "6")
    seen = {}
    for block in made.blocks(in_turns([AS_IS, "auto", "6"], 2), 1.0, 0.0):
        seen[block.policy] = scene.places()
    assert seen == {AS_IS: FOUND, "auto": AUTO, "6": dict.fromkeys(IRQS, "6")}
    made.put_back()
    assert scene.places() == FOUND


def test_as_is_may_be_what_virtirq_has_made(scene: Scene) -> None:
    """It stays virtirq's: restore still knows what was there before."""
    from virtirq.control.cycle import apply

    apply(scene.fs, [WEB, DB], Config(), scene.state, [])
    assert scene.places() == AUTO
    made = scene.comparison(AS_IS, "native")
    seen = {}
    for block in made.blocks(in_turns([AS_IS, "native"], 2), 1.0, 0.0):
        seen[block.policy] = scene.places()
    assert seen == {AS_IS: AUTO, "native": FOUND}
    made.put_back()
    assert scene.places() == AUTO
    assert set(scene.remembered().values()) == {"0-7"}


def test_the_guests_choice_is_followed(scene: Scene) -> None:
    scene.aims = {NIC: {vector: Aimed(3) for vector in range(VECTORS)}}
    found = {each.policy: each for each in scene.measure("exact", "auto")}
    assert found["exact"].parts[EXACT] == Part(400, 400)
    assert found["auto"].parts[EXACT] == Part(100, 400)  # of one vector it is so by chance


def test_the_guest_chooses_anew(scene: Scene) -> None:
    scene.aims = {NIC: {vector: Aimed(3) for vector in range(VECTORS)}}

    def during(now: float) -> None:
        if now >= 5:
            scene.aims = {NIC: {vector: Aimed(0) for vector in range(VECTORS)}}

    scene.during = during
    (block, _) = scene.measure("exact", AS_IS)
    assert block.policy in ("exact", AS_IS)
    exact = next(each for each in (block, _) if each.policy == "exact")
    assert exact.parts[EXACT].of == 400
    assert exact.parts[EXACT].some >= 360


def test_what_the_guest_aims_is_not_known(scene: Scene) -> None:
    with pytest.raises(UnavailableError, match="'exact' cannot be tried"):
        scene.measure("exact", "auto")
    assert scene.places() == FOUND


def test_somebody_moves_one_and_it_is_done_again(scene: Scene) -> None:
    told: list[str] = []

    def during(now: float) -> None:
        if 3 <= now < 4:
            scene.fs.write(paths.IRQ_AFFINITY.at(101), "1")

    scene.during = during
    found = scene.measure("auto", AS_IS, told=lambda number, policy, why: told.append(why))
    assert len(found) == 2
    assert [each for each in told if each] == [
        f"IRQ 101 vfio-msix[1]({NIC}) was moved to CPUs 1 by someone"
    ]
    assert all(each.parts[PLANNED] == Part(400, 400) for each in found)


def test_somebody_moves_one_all_the_time(scene: Scene) -> None:
    scene.during = lambda _: scene.fs.write(paths.IRQ_AFFINITY.at(101), "1")
    with pytest.raises(DisturbedError, match=r"IRQ 101 .* by someone"):
        scene.measure("auto", "6")
    assert {irq: at for irq, at in scene.places().items() if irq != 101} == {
        irq: "0-7" for irq in IRQS if irq != 101
    }


def test_an_interrupt_goes(scene: Scene) -> None:
    def during(now: float) -> None:
        if now >= 3:
            scene.fs.free(101)
            scene.during = lambda _: None

    scene.during = during
    made = scene.comparison("auto", AS_IS)
    with pytest.raises(DisturbedError, match=r"gone: .*msix\[1\]"):
        for _ in made.blocks(in_turns(["auto", AS_IS], 1), 10.0, 0.0):
            pass
    made.put_back()
    assert {scene.where(irq) for irq in IRQS if irq != 101} == {"0-7"}


def test_a_policy_that_cannot_be_had(scene: Scene) -> None:
    with pytest.raises(UnavailableError, match="9 means nothing for web"):
        scene.measure(AS_IS, "9")
    assert scene.places() == FOUND


@pytest.mark.parametrize(
    ("command", "figure"), [("echo a 1 b 2.5e1 ms", 25.0), ("echo -3; echo .5", 0.5)]
)
def test_the_last_number_of_a_command(scene: Scene, command: str, figure: float) -> None:
    for block in scene.measure(AS_IS, "auto", metric=command):
        assert block.figures == {COMMAND: figure}


@pytest.mark.parametrize(
    ("command", "why"), [("exit 3", "ended with 3"), ("echo none", "no number")]
)
def test_a_command_that_fails(scene: Scene, command: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        scene.measure("auto", AS_IS, metric=command)
    assert scene.places() == FOUND


def test_kvms_own_counts(scene: Scene) -> None:
    """A vCPU that came or went meanwhile is left out, and so is a count that is."""

    def statistics() -> VcpuCounts:
        counts = {each: {"irq_exits": round(scene.now * (each + 1))} for each in range(4)}
        more = {"halt_wakeup": 77} if scene.now < 5 else {}
        return {**counts, round(10 + scene.now): {"irq_exits": 1}, 3: more}

    scene.statistics = statistics
    for block in scene.measure(AS_IS, "auto"):
        name = "exits for host interrupts/s"
        assert block.figures == {name: 6.0}
        assert block.vcpus == {0: {name: 1.0}, 1: {name: 2.0}, 2: {name: 3.0}, 3: {}}


def test_nothing_to_compare(scene: Scene) -> None:
    for irq in IRQS:
        scene.fs.free(irq)
    with pytest.raises(UnavailableError, match="no passed-through device of web"):
        scene.comparison(AS_IS, "auto")


def test_its_own_settings_have_no_say(scene: Scene) -> None:
    device = replace(WEB.devices[0], directive=Policy.parse("1").directive)
    made = scene.comparison("auto", AS_IS, guest=replace(WEB, devices=(device,)))
    seen = {}
    for block in made.blocks(in_turns(["auto", AS_IS], 1), 1.0, 0.0):
        seen[block.policy] = scene.places()
    assert seen["auto"] == AUTO
    made.put_back()


@pytest.mark.parametrize(
    ("words", "error"),
    [(["auto"], UsageError), (["auto", " auto"], UsageError), (["auto", "fast"], DirectiveError)],
)
def test_what_cannot_be_compared(words: list[str], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_policies([Policy.parse(each) for each in words])
