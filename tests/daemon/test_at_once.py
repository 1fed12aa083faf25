"""The shortest way to a first write does what the general one does, whatever has happened before.

Two hosts live through the same; on one nothing is ever begun at once.
"""

from __future__ import annotations

import errno
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tests.daemon.test_reconciler import (
    CONFIGS,
    DB,
    GUESTS_IRQS,
    HOST,
    LINE,
    LIVES,
    NIC,
    ONLINE,
    OTHER,
    SHM,
    STRANGE,
    WEB,
    Scene,
    action_of,
    full,
    lock_held,
    requested,
)
from virtirq.control.at_once import Begun
from virtirq.control.journal import MoveForm, locked_journal
from virtirq.cpuset import CpuSet
from virtirq.daemon.attempts import Attempts
from virtirq.host import paths
from virtirq.host.events import EventKind, KernelEvent
from virtirq.model import Aimed, InterruptKey, InterruptKind, PciAddress, Remembered
from virtirq.policy.contention import FEW
from virtirq.policy.pace import AT_ONCE

IRQ, VECTOR = 100, action_of(0)
VECTORS = GUESTS_IRQS.filter(lambda irq: irq != LINE)
_WHEN = re.compile(r'"at": [0-9.]+|, "crc": "\w+"')


def hear(scene: Scene, events: Sequence[KernelEvent], *, at_once: bool = True) -> Begun | None:
    """As the daemon does; how the first of them was begun, where it was."""
    begun = scene.reconciler.begin(events) if at_once else None
    scene.reconciler.requested(events, begun)
    return begun


def set_up(scene: Scene, *vectors: int, affinity: str = "0-7") -> list[KernelEvent]:
    """The guest has set vectors of its NIC up anew."""
    events = []
    for vector in vectors:
        scene.fs.free(IRQ + vector)
        scene.reconciler.freed(IRQ + vector)
        events.append(scene.fs.allocate(IRQ + vector, vector, affinity=affinity))
    return events


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the general way, in order."""
    found: list[str] = []
    carry_out = Attempts.carry_out

    def call(self: Attempts, *args: object, **more: object) -> object:
        found.append("carried out")
        return carry_out(self, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Attempts, "carry_out", call)
    return found


class TestWhatIsUsual:
    def test_is_written_before_anything_else_is_done(
        self, scene: Scene, counted: list[str]
    ) -> None:
        (event,) = set_up(scene, 1)
        begun = scene.reconciler.begin([event])
        assert (scene.fs.where(101), counted) == ("5", [])
        scene.reconciler.requested([event], begun)
        assert counted == ["carried out"]
        assert scene.moves() == {("new", "applied"): 1}
        assert [each.getMessage() for each in scene.records][-1].startswith("IRQ 101")
        assert scene.fs.written() == [(101,)]

    def test_the_first_of_two(self, scene: Scene) -> None:
        events = set_up(scene, 0, 1)
        begun = scene.reconciler.begin(events)
        assert scene.places(100, 101) == {100: "4", 101: "0-7"}
        scene.reconciler.requested(events, begun)
        assert scene.places(100, 101) == {100: "4", 101: "5"}
        assert scene.moves() == {("new", "applied"): 2}

    def test_the_journal_knows_of_it_before(self, scene: Scene, tmp_path: Path) -> None:
        (event,) = set_up(scene, 1, affinity="2-3")
        told: list[str] = []

        def look(operation: str, path: str) -> None:
            if operation == "write":
                told.extend((tmp_path / "journal.jsonl").read_text().splitlines()[-1:])

        scene.fs.before = look
        assert scene.reconciler.begin([event]) is not None
        assert '"op": "move"' in told[0]
        assert '"before": "2-3", "after": "5"' in told[0]

    def test_who_fails_in_between_puts_it_back_at_the_end(self, scene: Scene) -> None:
        (event,) = set_up(scene, 1, affinity="2-3")
        assert scene.reconciler.begin([event]) is not None
        scene.reconciler.restore_all()
        assert scene.fs.where(101) == "2-3"

    def test_what_the_guest_aims_at_since(self, scene: Scene) -> None:
        scene.reconciler.aim(NIC, {1: Aimed(3)})
        assert hear(scene, set_up(scene, 1)) is not None
        assert scene.fs.where(101) == "7"

    def test_who_is_killed_in_between_has_left_what_puts_it_back(self, scene: Scene) -> None:
        (event,) = set_up(scene, 1, affinity="2-3")
        assert scene.reconciler.begin([event]) is not None
        scene.die()
        scene.start()
        scene.reconciler.know([WEB, DB])
        scene.reconciler.restore_all()
        assert scene.fs.where(101) == "2-3"

    def test_a_refusal_is_seen_to_as_ever(self, scene: Scene) -> None:
        before = scene.remembered()
        (event,) = set_up(scene, 1)
        scene.fs.faults["write", paths.IRQ_AFFINITY.at(101)] = errno.EIO
        begun = hear(scene, [event])
        assert begun is not None
        assert not begun.written
        assert scene.moves() == {("new", "refused"): 1}
        assert scene.remembered() == before


def _is_gone(scene: Scene) -> None:
    scene.fs.free(101)


def _is_anothers(scene: Scene) -> None:
    scene.fs.set(paths.IRQ_ACTIONS.at(101), "eth0-rx-0")


def _dies_at_the_read(scene: Scene) -> None:
    scene.fs.faults["read", paths.IRQ_AFFINITY.at(101)] = errno.EIO


def _is_there(scene: Scene) -> None:
    scene.fs.other_moves(101, "5")


def _is_held(scene: Scene) -> None:
    scene.reconciler.hold("u-web")


def _is_contested(scene: Scene) -> None:
    for _ in range(FEW + 1):
        scene.move(102, "1")  # of the same device


def _comes_too_often(scene: Scene) -> None:
    for _ in range(AT_ONCE + 1):
        scene.reconciler.requested([requested(101, action_of(1))])
    scene.fs.other_moves(101, "0-7")


def _has_no_cpus(scene: Scene) -> None:
    scene.fs.set(paths.IRQ_AFFINITY.at(101), "")


UNUSUAL = [
    _is_gone,
    _is_anothers,
    _dies_at_the_read,
    _is_there,
    _is_held,
    _is_contested,
    _comes_too_often,
    _has_no_cpus,
]


@pytest.mark.parametrize("unusual", UNUSUAL, ids=lambda each: each.__name__.strip("_"))
def test_what_is_not_usual_is_left_to_the_general_way(
    scene: Scene, unusual: Callable[[Scene], None]
) -> None:
    (event,) = set_up(scene, 1)
    unusual(scene)
    before = scene.fs.written(), (scene.state / "journal.jsonl").read_text()
    assert scene.reconciler.begin([event]) is None
    assert before == (scene.fs.written(), (scene.state / "journal.jsonl").read_text())
    with lock_held(scene.state):
        pass  # nobody has it


@pytest.mark.parametrize("when", ["open", "read", "write"])
def test_a_number_that_another_got_is_never_written(scene: Scene, when: str) -> None:
    """Freed and given to another, which has the name that we look for, even: still not ours."""
    (event,) = set_up(scene, 1)
    where = paths.IRQ_AFFINITY.at(101)

    def reuse(operation: str, path: str) -> None:
        if (operation, path) == (when, where):
            scene.fs.before = None
            scene.fs.free(101)
            scene.fs.allocate(101, 1)
            if when == "open":
                scene.fs.set(paths.IRQ_ACTIONS.at(101), "eth0-rx-0")

    scene.fs.before = reuse
    begun = scene.reconciler.begin([event])
    assert begun is None or not begun.written
    assert scene.fs.where(101) == "0-7"


def test_a_lock_that_another_has_is_not_waited_for(scene: Scene) -> None:
    (event,) = set_up(scene, 1)
    with lock_held(scene.state):
        assert scene.reconciler.begin([event]) is None
    assert hear(scene, [event]) is not None


def test_a_full_disk(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    (event,) = set_up(scene, 1)
    room = full(monkeypatch)
    assert hear(scene, [event]) is None
    assert scene.fs.where(101) == "0-7", "nothing is moved that nobody could put back"
    room()
    scene.time.settle()
    assert scene.fs.where(101) == "5"


def test_other_events_go_the_general_way(scene: Scene) -> None:
    (event,) = set_up(scene, 1)
    freed = KernelEvent(EventKind.FREED, 0.0, 100)
    assert scene.reconciler.begin([event, freed]) is None
    assert scene.reconciler.begin([freed]) is None


class Twins(RuleBasedStateMachine):
    """Two hosts to which the same happens: one moves at once what is usual."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(dir=SHM)
        self.scenes = [Scene(Path(self.directory.name, each)) for each in ("a", "b")]
        self.began = 0

    def teardown(self) -> None:
        for scene in self.scenes:
            scene.die()
        self.directory.cleanup()

    def both(self, call: Callable[[Scene], object]) -> None:
        for scene in self.scenes:
            call(scene)

    @initialize()
    def begins(self) -> None:
        self.both(lambda scene: scene.reconciler.know([WEB, DB]))

    def tell(self, vectors: Sequence[tuple[int, int, PciAddress, str]]) -> None:
        for at_once, scene in zip((True, False), self.scenes, strict=True):
            now = scene.time.now
            for irq, *_ in vectors:
                if irq in scene.fs.irqs():
                    scene.fs.free(irq)
                    scene.reconciler.freed(irq)
            events = [
                scene.fs.allocate(irq, vector, device, affinity)._replace(at=now)
                for irq, vector, device, affinity in vectors
            ]
            self.began += hear(scene, events, at_once=at_once) is not None

    @rule(
        irqs=st.lists(VECTORS, min_size=1, max_size=2, unique=True),
        vector=st.integers(0, 4),
        device=st.sampled_from([NIC, NIC, OTHER, STRANGE]),
        affinity=st.sampled_from(["0-7", "2-3", "3,6", "4"]),
        fault=st.sampled_from([None] * 6 + ["write", "read", "open", "lock", "gone"]),
        number=st.sampled_from([errno.EIO, errno.ENOSPC, errno.EINVAL, errno.EPERM, errno.EROFS]),
        times=st.sampled_from([0, *[1] * 8, AT_ONCE]),
    )
    def sets_up(
        self,
        irqs: list[int],
        vector: int,
        device: PciAddress,
        affinity: str,
        fault: str | None,
        number: int,
        times: int,
    ) -> None:
        """As often as that, then once more with a fault."""
        vectors = [(irq, vector + n, device, affinity) for n, irq in enumerate(irqs)]
        for _ in range(times):
            self.tell(vectors)
        with ExitStack() as stack:
            if fault == "lock":
                for scene in self.scenes:
                    stack.enter_context(lock_held(scene.state))
            elif fault == "gone":
                self.both(lambda scene: _strike(scene, irqs[0]))
            elif fault is not None:
                for scene in self.scenes:
                    scene.fs.faults[fault, paths.IRQ_AFFINITY.at(irqs[0])] = number
            self.tell(vectors)
        for scene in self.scenes:
            scene.fs.faults.clear()
            scene.fs.before = None

    @rule(vectors=st.lists(st.integers(0, 3), min_size=1, max_size=8))
    def is_usual(self, vectors: list[int]) -> None:
        for vector in vectors:
            self.tell([(IRQ + vector, vector, NIC, "0-7")])

    @rule(irq=VECTORS, affinity=st.sampled_from(["0-7", "2-3"]))
    def is_usual_of_another(self, irq: int, affinity: str) -> None:
        for _ in range(2):
            self.tell([(irq, 1, OTHER, affinity)])

    @rule(
        irq=GUESTS_IRQS,
        cpus=st.sampled_from(["0-7", "1", "6"]),
        times=st.sampled_from([1, FEW + 1]),
    )
    def someone_moves(self, irq: int, cpus: str, times: int) -> None:
        for scene in self.scenes:
            if irq in scene.fs.irqs():
                for _ in range(times):
                    scene.move(irq, cpus)

    @rule(irq=VECTORS)
    def gives_up(self, irq: int) -> None:
        for scene in self.scenes:
            if irq in scene.fs.irqs():
                scene.fs.free(irq)
                scene.reconciler.freed(irq)

    @rule(key=st.sampled_from(["u-web", "u-db"]), held=st.booleans())
    def is_left_alone(self, key: str, held: bool) -> None:
        for scene in self.scenes:
            (scene.reconciler.hold if held else scene.reconciler.release)(key)

    @rule(life=st.sampled_from(sorted(LIVES)))
    def guest_changes(self, life: str) -> None:
        self.both(lambda scene: scene.reconciler.update(LIVES[life]))

    @rule(key=st.sampled_from(["u-web", "u-db", "u-zoo"]))
    def guest_stops(self, key: str) -> None:
        self.both(lambda scene: scene.reconciler.gone(key))

    @rule(life=st.sampled_from(sorted(LIVES)))
    def only_noted(self, life: str) -> None:
        self.both(lambda scene: scene.reconciler.note([LIVES[life]]))

    @rule()
    def noted_is_done(self) -> None:
        self.both(lambda scene: scene.reconciler.act_on_noted())

    @rule(config=st.sampled_from(sorted(CONFIGS)))
    def config_changes(self, config: str) -> None:
        self.both(lambda scene: scene.reconciler.reconfigure(CONFIGS[config]))

    @rule(vcpus=st.dictionaries(st.integers(0, 4), st.sampled_from([None, 0, 1, 2, 3, 99])))
    def guest_aims(self, vcpus: dict[int, int | None]) -> None:
        aimed = {vector: Aimed(vcpu) for vector, vcpu in vcpus.items()}
        self.both(lambda scene: scene.reconciler.aim(NIC, aimed))

    @rule(cpus=st.sampled_from(ONLINE))
    def cpus_come_and_go(self, cpus: str) -> None:
        for scene in self.scenes:
            scene.fs.online(cpus)
            scene.reconciler.cpus_changed()

    @rule(seconds=st.sampled_from([0.005, 1.0, 15.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.both(lambda scene: scene.time.pass_(seconds))

    @rule()
    def daemon_dies(self) -> None:
        for scene in self.scenes:
            scene.die()
            scene.start()
            scene.reconciler.know([WEB, DB])

    @invariant()
    def are_alike(self) -> None:
        one, other = map(_seen, self.scenes)
        assert one == other


def _strike(scene: Scene, irq: int) -> None:
    """The interrupt is freed between the look and the write."""

    def free(operation: str, path: str) -> None:
        if (operation, path) == ("write", paths.IRQ_AFFINITY.at(irq)):
            scene.fs.before = None
            scene.fs.free(irq)

    scene.fs.before = free


def _seen(scene: Scene) -> dict[str, object]:
    """All that anybody can see of it."""
    lines = (scene.state / "journal.jsonl").read_text().splitlines()
    return {
        "places": {irq: scene.fs.where(irq) for irq in scene.fs.irqs()},
        "journal": [_WHEN.sub("", line) for line in lines],
        "log": [each.getMessage().replace(str(scene.state), "") for each in scene.lines.records],
        "moves": dict(scene.counters.moves),
        "kept": scene.reconciler.ledger.everything(),
        "waiting": sorted(due for due, _, _ in scene.time._queue),
        "passed over": scene.set_up,
        "known": {key: str(each) for key, each in scene.remembered().items()},
    }


def test_both_ways_decide_alike() -> None:
    began = []

    class Counted(Twins):
        def teardown(self) -> None:
            began.append(self.began)
            super().teardown()

    run_state_machine_as_test(
        Counted,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert sum(began) > 300, "else little was compared"


TEXTS = st.text(max_size=12)
CPUS = st.sets(st.integers(0, 300), min_size=1, max_size=4).map(CpuSet)


@given(
    guest=TEXTS,
    name=TEXTS,
    cpus=st.tuples(CPUS, CPUS),
    irq=st.integers(0, 1 << 24),
    incarnation=st.none() | st.integers(0, 1 << 40),
    kind=st.sampled_from(InterruptKind),
)
def test_a_prepared_line_is_the_general_one(
    guest: str,
    name: str,
    cpus: tuple[CpuSet, CpuSet],
    irq: int,
    incarnation: int | None,
    kind: InterruptKind,
) -> None:
    before, after = cpus
    key = InterruptKey(NIC, VECTOR)
    found = Remembered(key, guest, before, (after,), name, irq, kind, incarnation)
    told = []
    with tempfile.TemporaryDirectory(dir=SHM) as directory:
        for way in ("general", "prepared"):
            with locked_journal(Path(directory, way), HOST.boot_id) as journal:
                if way == "general":
                    journal.move(found)
                else:
                    form = MoveForm.of(key, after, guest, name, kind)
                    journal.announce(form, before, irq, incarnation)
                    journal.announced(found)
                known = journal.remembered()
            line = Path(directory, way, "journal.jsonl").read_text()
            with locked_journal(Path(directory, way), HOST.boot_id) as journal:
                assert journal.remembered() == known == (found,)
            told.append(_WHEN.sub("", line))
    assert told[0] == told[1]
