"""The executor against a kernel that counts, refuses and changes under it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.control.scenes import FIRST, HOST, NIC, NIC_ONLY, VECTORS, affinities
from tests.hostmaker import MadeFs, MadeInterrupt
from virtirq.control import cycle
from virtirq.control.executor import Executor
from virtirq.control.journal import Journal
from virtirq.control.state import StateDirectory
from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.model import InterruptKey, Outcome, Pin, Reason, Status
from virtirq.policy.config import Config

REASON = Reason("wrong-cpu", "to where it belongs")


@pytest.fixture(params=[1, 3], ids=["one by one", "in batches"], autouse=True)
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here must hold for pins that are taken together, too: the daemon does that."""
    defaults = Executor.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "batch", request.param)


def pin(vector: int = 0, after: str = "5", alternatives: tuple[str, ...] = ()) -> Pin:
    return Pin(
        FIRST + vector,
        InterruptKey(NIC, f"vfio-msix[{vector}]({NIC})"),
        "web",
        before=CpuSet.parse("4-7"),
        after=CpuSet.parse(after),
        reason=REASON,
        alternatives=tuple(map(CpuSet.parse, alternatives)),
    )


def run(fs: MadeFs, directory: Path, *pins: Pin) -> tuple[tuple[Outcome, ...], Executor, Journal]:
    journal = Journal(StateDirectory(directory), "b")
    executor = Executor(fs, journal)
    return executor.run(pins), executor, journal


def written(fs: MadeFs) -> list[str]:
    return [path for operation, path in fs.calls if operation == "write"]


def test_applied_and_read_back(tmp_path: Path) -> None:
    fs = HOST.fs()
    (outcome,), executor, journal = run(fs, tmp_path, pin())
    assert (outcome.status, outcome.reason) == (Status.APPLIED, REASON.text)
    assert outcome.affinity == outcome.effective == CpuSet([5])
    assert not executor.deployment_fault
    assert journal.remembered()[0].original == CpuSet.parse("4-7")
    assert affinities(fs)[FIRST] == "5"


def test_what_is_there_already_is_not_written(tmp_path: Path) -> None:
    fs = HOST.fs()
    (outcome,), _, journal = run(fs, tmp_path, pin(after="4-7"))
    assert outcome.status is Status.UNCHANGED
    assert written(fs) == []
    assert journal.remembered() == ()


def test_the_journal_holds_what_really_was_there(tmp_path: Path) -> None:
    """The plan is old: somebody moved the interrupt since."""
    fs = HOST.fs()
    fs.set(paths.IRQ_AFFINITY.at(FIRST), "6")
    _, _, journal = run(fs, tmp_path, pin())
    assert journal.remembered()[0].original == CpuSet([6])


def test_a_reused_irq_number_is_not_touched(tmp_path: Path) -> None:
    fs = HOST.fs()
    fs.set(paths.IRQ_ACTIONS.at(FIRST), "nvme0q1")
    (outcome,), _, journal = run(fs, tmp_path, pin())
    assert outcome.status is Status.VANISHED
    assert written(fs) == []
    assert journal.remembered() == ()


def after_write(fs: MadeFs, call: Callable[[], None]) -> None:
    """Has something happen once the first affinity is written, before it is looked at again."""
    seen: list[str] = []

    def happen(operation: str, path: str) -> None:
        if operation == "write":
            seen.append(path)
        elif seen:
            fs.before = None
            call()

    fs.before = happen


def test_a_line_that_is_another_handlers_by_the_time_it_is_written_is_put_back(
    tmp_path: Path,
) -> None:
    fs = HOST.fs()
    after_write(fs, lambda: fs.set(paths.IRQ_ACTIONS.at(FIRST), "ahci,nvme0q1"))
    (outcome, other), _, journal = run(fs, tmp_path, pin(), pin(1))
    assert (outcome.status, outcome.reason, str(outcome.affinity)) == (
        Status.REVERTED,
        "ahci, nvme0q1 has it by now: put back to 4-7",
        "4-7",
    )
    assert other.status is Status.APPLIED
    assert affinities(fs)[FIRST] == "4-7"
    assert [each.key.action for each in journal.remembered()] == [f"vfio-msix[1]({NIC})"]


def test_a_line_that_its_new_owner_has_moved_is_left(tmp_path: Path) -> None:
    fs = HOST.fs()

    def take() -> None:
        fs.set(paths.IRQ_ACTIONS.at(FIRST), "ahci")
        fs._moved[FIRST] = (CpuSet([2]), CpuSet([2]))

    after_write(fs, take)
    (outcome,), _, journal = run(fs, tmp_path, pin())
    assert (outcome.status, outcome.reason) == (
        Status.REVERTED,
        "ahci has it by now, and has it on 2: left",
    )
    assert affinities(fs)[FIRST] == "2"
    assert journal.remembered() == ()


def test_a_line_that_cannot_be_put_back_is_a_failure_and_remembered(tmp_path: Path) -> None:
    fs = HOST.fs()

    def take() -> None:
        fs.set(paths.IRQ_ACTIONS.at(FIRST), "ahci")
        fs.faults["write", paths.IRQ_AFFINITY.at(FIRST)] = errno.EINVAL

    after_write(fs, take)
    (outcome,), _, journal = run(fs, tmp_path, pin())
    assert outcome.status is Status.FAILED
    assert outcome.reason.startswith("ahci has it by now, and it cannot be put back to 4-7: ")
    assert [str(each.original) for each in journal.remembered()] == ["4-7"]


def test_a_vector_that_is_without_a_handler_for_a_moment_is_still_its_own(tmp_path: Path) -> None:
    """VFIO frees and requests it anew when the guest changes where its eventfd goes."""
    fs = HOST.fs()
    after_write(fs, lambda: fs.set(paths.IRQ_ACTIONS.at(FIRST), ""))
    (outcome,), _, journal = run(fs, tmp_path, pin())
    assert outcome.status is Status.APPLIED
    assert len(journal.remembered()) == 1


@pytest.mark.parametrize("when", ["open", "read", "write"])
def test_a_number_that_another_got_is_never_written(tmp_path: Path, when: str) -> None:
    """Freed and given to another, which has the name that we look for, even: still not ours."""
    fs = HOST.fs()
    where = paths.IRQ_AFFINITY.at(FIRST)
    tree = {path: node for path, node in fs.memory._nodes.items() if f"/irq/{FIRST}/" in path}

    def reuse(operation: str, path: str) -> None:
        if (operation, path) == (when, where):
            fs.before = None
            fs.free(FIRST)
            for each, node in tree.items():
                fs.memory.put(each, node)
            fs.set(paths.IRQ_ACTIONS.at(FIRST), "eth0-rx-0")
            fs.set(where, "0-7")

    fs.before = reuse
    (outcome, other), _, _ = run(fs, tmp_path, pin(), pin(1))
    assert outcome.status is Status.VANISHED
    assert other.status is Status.APPLIED
    assert fs.read(where) == "0-7"


@pytest.mark.parametrize("operation", ["open", "read", "write"])
def test_an_interrupt_that_goes_at_any_time_has_vanished(tmp_path: Path, operation: str) -> None:
    fs = HOST.fs()

    def gone(now: str, path: str) -> None:
        if now == operation and path == paths.IRQ_AFFINITY.at(FIRST):
            fs.free(FIRST)

    fs.before = gone
    (outcome, after), _, _ = run(fs, tmp_path, pin(), pin(1))
    assert outcome.status is Status.VANISHED
    assert after.status is Status.APPLIED


@pytest.mark.parametrize(
    ("number", "status", "reason"),
    [
        (errno.EIO, Status.REFUSED, "the kernel manages its affinity"),
        (errno.EPERM, Status.REFUSED, "the kernel lets nobody set its affinity"),
        (errno.ENOSPC, Status.REFUSED, "no interrupt vector left on CPUs 5"),
        (errno.EINVAL, Status.FAILED, "none of CPUs 5 is online"),
        (errno.ERANGE, Status.FAILED, "CPUs 5 go past the last CPU of this host"),
        (errno.EOVERFLOW, Status.FAILED, "CPUs 5 go past the last CPU of this host"),
        (errno.ENOMEM, Status.FAILED, "Cannot allocate memory"),
    ],
)
def test_each_refusal_is_told_apart_and_the_rest_goes_on(
    tmp_path: Path, number: int, status: Status, reason: str
) -> None:
    fs = HOST.fs()
    fs.faults[("write", paths.IRQ_AFFINITY.at(FIRST))] = number
    (outcome, after), executor, _ = run(fs, tmp_path, pin(), pin(1))
    assert (outcome.status, outcome.reason) == (status, reason)
    assert outcome.affinity == CpuSet.parse("4-7")
    assert after.status is Status.APPLIED
    assert not executor.deployment_fault


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_deployment_fault_stops_everything(tmp_path: Path, number: int) -> None:
    fs = HOST.fs()
    fs.faults[("write", paths.IRQ_AFFINITY.at(FIRST))] = number
    outcomes, executor, _ = run(fs, tmp_path, pin(), pin(1), pin(2))
    assert [each.status for each in outcomes] == [Status.FAILED] * 3
    assert all(each.hint for each in outcomes)
    assert outcomes[1].reason.startswith("not tried: ")
    assert executor.deployment_fault
    assert len(written(fs)) == 1


def test_without_vectors_the_next_cpu_is_tried_and_full_ones_are_not_tried_again(
    tmp_path: Path,
) -> None:
    crowd = tuple(MadeInterrupt(300 + n, (f"eth{n}",), "5", "5") for n in range(200))
    fs = type(HOST)(
        online=HOST.online, nodes=HOST.nodes, devices=HOST.devices, interrupts=crowd
    ).fs()
    first, second = pin(alternatives=("5", "5-7")), pin(1, alternatives=("5", "5-7"))
    (one, two), _, journal = run(fs, tmp_path, first, second)
    assert (one.status, str(one.affinity)) == (Status.APPLIED, "6")
    assert one.reason == "on CPU 6: no interrupt vector left on CPU 5"
    assert (two.status, str(two.affinity)) == (Status.APPLIED, "6")
    # 5 and 6 for the first; the second asks for 5 once more, as its plan says, and then for 6.
    assert len(written(fs)) == 4
    assert {each.written for each in journal.remembered()} == {(CpuSet([6]),)}


def test_pending_until_the_next_interrupt(tmp_path: Path) -> None:
    fs = HOST.fs()

    def lag(operation: str, path: str) -> None:
        if operation == "read" and path == paths.IRQ_EFFECTIVE.at(FIRST):
            fs._moved[FIRST] = (CpuSet([5]), CpuSet([7]))

    fs.before = lag
    (outcome,), _, _ = run(fs, tmp_path, pin())
    assert outcome.status is Status.PENDING
    assert outcome.reason.endswith("the vector leaves CPU 7 at its next interrupt")


def test_another_value_read_back_is_a_failure(tmp_path: Path) -> None:
    fs = HOST.fs()

    def fight(operation: str, path: str) -> None:
        if operation == "read" and path == paths.IRQ_AFFINITY.at(FIRST) and written(fs):
            fs._moved[FIRST] = (CpuSet([7]), CpuSet([7]))

    fs.before = fight
    (outcome,), _, _ = run(fs, tmp_path, pin())
    assert (outcome.status, outcome.reason) == (
        Status.FAILED,
        "affinity 7 read back after writing 5",
    )


def test_a_kernel_without_effective_affinity_is_believed(tmp_path: Path) -> None:
    fs = HOST.fs()
    fs.faults[paths.IRQ_EFFECTIVE.at(FIRST)] = errno.ENOENT
    (outcome,), _, _ = run(fs, tmp_path, pin())
    assert (outcome.status, outcome.effective) == (Status.APPLIED, None)


def test_without_a_journal_nothing_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = HOST.fs()
    journal = Journal(StateDirectory(tmp_path), "b")
    journal.close()  # from now on an append is EBADF
    outcomes = Executor(fs, journal).run((pin(), pin(1)))
    assert [each.status for each in outcomes] == [Status.FAILED] * 2
    assert written(fs) == []


def test_every_status_comes_from_somewhere_here() -> None:
    source = Path(__file__).read_text()
    assert all(f"Status.{status.name}" in source for status in Status)


def test_a_host_costs_the_same_few_accesses_for_each_interrupt(tmp_path: Path) -> None:
    fs = HOST.fs()
    cycle.apply(fs, [NIC_ONLY], Config(), tmp_path, ())
    write = next(place for place, call in enumerate(fs.calls) if call[0] == "write")
    ours = [call for call in fs.calls[write:] if call[1] == paths.IRQ_AFFINITY.at(FIRST)]
    assert ours == [("write", paths.IRQ_AFFINITY.at(FIRST)), ("read", paths.IRQ_AFFINITY.at(FIRST))]
    opened = [path for operation, path in fs.calls if operation == "open"]
    assert opened == [paths.IRQ_AFFINITY.at(FIRST + vector) for vector in range(VECTORS)]
