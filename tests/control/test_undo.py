"""Undo where things go wrong: actions away, disks full, refusals, other hands, Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.control.scenes import DISK, FIRST, HOST, IRQS, NIC, NIC_ONLY, WEB, affinities
from tests.hostmaker import MadeFs, MadeInterrupt, passthrough
from virtirq.control import cycle
from virtirq.control import journal as journal_module
from virtirq.control.journal import locked_journal
from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.model import Keep, Remembered, Status, Vcpu
from virtirq.policy.config import Config
from virtirq.policy.restoring import SOMEONE
from virtirq.ui.report import Rows

FOUND = affinities(HOST.fs())


def apply(fs: MadeFs, state: Path) -> cycle.Done:
    return cycle.apply(fs, [WEB], Config(), state, ())


def restore(fs: MadeFs, state: Path) -> cycle.Done:
    return cycle.restore(fs, [], state, ())


def remembered(state: Path) -> dict[str, Remembered]:
    with locked_journal(state, HOST.boot_id) as journal:
        return {each.key.action: each for each in journal.remembered()}


def lines_of(irq: int) -> str:
    return paths.IRQ_ACTIONS.at(irq)


def full(monkeypatch: pytest.MonkeyPatch, when: Callable[[bytes], bool]) -> None:
    """Has the journal's disk be full for the lines that `when` names."""
    mine = SimpleNamespace(**vars(os))

    def write(descriptor: int, data: bytes) -> int:
        if when(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.write(descriptor, data)

    mine.write = write
    monkeypatch.setattr(journal_module, "os", mine)


class TestWithoutAnAction:
    """The affinity stays in the descriptor while nobody has requested the interrupt."""

    def test_the_line_of_a_guest_that_has_stopped(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        fs.set(lines_of(20), "")
        done = restore(fs, tmp_path)
        assert affinities(fs) == FOUND
        assert remembered(tmp_path) == {}
        (action,) = (each for each in done.plan.actions if each.irq == 20)
        row = Rows(done.snapshot, done.outcomes).of(action)
        assert (row.kind, str(row.before), row.status) == ("intx", "4", "applied")

    def test_all_of_a_guest_at_once(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        for irq in IRQS:
            fs.set(lines_of(irq), "")
        restore(fs, tmp_path)
        assert affinities(fs) == FOUND

    def test_somebody_else_has_the_line_now(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        fs.set(lines_of(20), "ahci")
        for _ in range(2):  # said every time: it is still in force
            done = restore(fs, tmp_path)
            kept = [a for a in done.plan.actions if a.irq == 20]
            assert [(type(a), a.reason.code) for a in kept] == [(Keep, "in-use")]
            assert "ahci has the line now" in kept[0].reason.text
            assert affinities(fs)[20] == "4"
        fs.set(lines_of(20), "")
        restore(fs, tmp_path)
        assert affinities(fs) == FOUND

    def test_a_vector_is_somebody_elses_now(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        fs.set(lines_of(FIRST), "nvme0q0")
        done = restore(fs, tmp_path)
        assert FIRST not in {each.irq for each in done.plan.actions}
        assert affinities(fs) == FOUND | {FIRST: "4"}
        assert remembered(tmp_path) == {}

    def test_a_value_that_is_not_ours_is_left(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        fs.set(lines_of(FIRST), "")
        fs.write(paths.IRQ_AFFINITY.at(FIRST), "2")
        restore(fs, tmp_path)
        assert affinities(fs) == FOUND | {FIRST: "2"}
        assert remembered(tmp_path) == {}

    @pytest.mark.parametrize("taken", ["ahci", "ahci,nvme0q1"])
    def test_taken_between_plan_and_write(self, tmp_path: Path, taken: str) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        fs.set(lines_of(20), "")

        def take(operation: str, path: str) -> None:
            if operation == "write":  # of another one, before its turn comes
                fs.set(lines_of(20), taken)

        fs.before = take
        done = restore(fs, tmp_path)
        (outcome,) = (each for each in done.outcomes if each.pin.irq == 20)
        assert outcome.status is Status.REVERTED
        assert outcome.reason == f"{taken.replace(',', ', ')} has it by now: put back to 4"
        assert affinities(fs)[20] == "4"
        assert len(remembered(tmp_path)) == 1

    @pytest.mark.parametrize("kind", ["vector", "line"])
    def test_no_longer_the_devices_between_plan_and_write(self, tmp_path: Path, kind: str) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        irq = FIRST if kind == "vector" else 20
        fs.set(lines_of(irq), "")
        seen: list[str] = []

        def leave(operation: str, path: str) -> None:
            if path == lines_of(irq):
                seen.append(operation)
                if len(seen) == 2 and kind == "vector":
                    fs.memory.drop(paths.PCI_MSI_IRQ.at(NIC, irq))
                elif len(seen) == 2:
                    fs.set(paths.PCI_IRQ.at(DISK), "21")

        fs.before = leave
        done = restore(fs, tmp_path)
        (outcome,) = (each for each in done.outcomes if each.pin.irq == irq)
        assert outcome.status is Status.VANISHED
        assert affinities(fs)[irq] == "4"

    def test_moved_between_plan_and_write(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        seen: list[str] = []

        def move(operation: str, path: str) -> None:
            if path == lines_of(FIRST):
                seen.append(operation)
                if len(seen) == 2:
                    fs._moved[FIRST] = (CpuSet([2]), CpuSet([2]))

        fs.before = move
        done = restore(fs, tmp_path)
        (outcome,) = (each for each in done.outcomes if each.pin.irq == FIRST)
        assert (outcome.status, str(outcome.affinity)) == (Status.UNCHANGED, "2")
        assert outcome.reason == f"{SOMEONE}, moved it to 2 meanwhile: left"
        assert affinities(fs) == FOUND | {FIRST: "2"}


UNREAD = {
    "the vectors' listing": ("listdir", f"{paths.PCI_DIR}/{NIC}/msi_irqs"),
    "the device": ("mode", f"{paths.PCI_DIR}/{NIC}"),
    "a vector's mode": ("mode", paths.PCI_MSI_IRQ.at(NIC, FIRST)),
    "its actions": ("read", lines_of(FIRST)),
}


@pytest.mark.parametrize("fault", UNREAD.values(), ids=UNREAD)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_is_not_forgotten(
    tmp_path: Path, fault: tuple[str, str], number: int
) -> None:
    fs = HOST.fs()
    apply(fs, tmp_path)
    fs.faults[fault] = number
    restore(fs, tmp_path)
    fs.faults.clear()
    restore(fs, tmp_path)
    assert affinities(fs) == FOUND
    assert remembered(tmp_path) == {}


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    fs = HOST.fs()
    apply(fs, tmp_path)
    fs.faults[UNREAD["the vectors' listing"]] = errno.EMFILE
    done = restore(fs, tmp_path)
    unread = [a for a in done.plan.actions if a.reason.code == "unread"]
    assert [a.irq for a in unread] == [FIRST, FIRST + 1, FIRST + 2, FIRST + 3]


def test_what_is_gone_for_certain_is_forgotten(tmp_path: Path) -> None:
    fs = HOST.live()
    apply(fs, tmp_path)
    fs.memory.drop(f"{paths.PCI_DIR}/{NIC}")
    fs.set(paths.PCI_IRQ.at(DISK), "0")
    assert restore(fs, tmp_path).plan.actions == ()
    assert remembered(tmp_path) == {}


class TestFullDisk:
    def test_undo_needs_no_room(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        with monkeypatch.context() as patched:
            full(patched, lambda data: True)
            done = restore(fs, tmp_path)
        assert affinities(fs) == FOUND
        assert {each.status for each in done.outcomes} == {Status.APPLIED}
        assert {each.reason for each in done.outcomes} == {"as found: 4-7", "as found: 0-3"}
        assert remembered(tmp_path) == {}
        assert (tmp_path / "journal.jsonl").read_bytes() == b"", "nothing to say needs no room"

    def test_what_of_it_could_not_be_written_down_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        fs.faults["write", paths.IRQ_AFFINITY.at(FIRST)] = errno.EIO  # so not all is over
        with monkeypatch.context() as patched:
            full(patched, lambda data: True)
            _, *done = sorted(restore(fs, tmp_path).outcomes, key=lambda each: each.status.bad)[
                ::-1
            ]
        fs.faults.clear()
        assert {each.status for each in done} == {Status.APPLIED}
        for outcome in done:
            assert outcome.affinity == outcome.pin.after
            assert outcome.reason.startswith("as found: ")
            assert "; not written down: " in outcome.reason
            assert outcome.reason.endswith("No space left on device")
        again = restore(fs, tmp_path)
        codes = {each.irq: each.reason.code for each in again.plan.actions}
        assert codes.pop(FIRST) == "restore"
        assert set(codes.values()) == {"as-found"}
        assert remembered(tmp_path) == {}

    def test_what_is_only_to_be_forgotten_does_not_fail(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        for irq in IRQS:
            fs.write(paths.IRQ_AFFINITY.at(irq), FOUND[irq])
        with monkeypatch.context() as patched:
            full(patched, lambda data: True)
            assert restore(fs, tmp_path).outcomes == ()
        restore(fs, tmp_path)
        assert remembered(tmp_path) == {}

    def test_a_done_write_is_told_as_done(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fs = HOST.fs()
        with monkeypatch.context() as patched:
            full(patched, lambda data: b'"moved"' in data)
            done = apply(fs, tmp_path)
        assert {each.status for each in done.outcomes} == {Status.APPLIED}
        assert all(each.affinity == each.pin.after for each in done.outcomes)
        assert all("not written down" in each.reason for each in done.outcomes)
        restore(fs, tmp_path)
        assert affinities(fs) == FOUND

    def test_an_apply_after_an_undo_that_was_not_written_down(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        with monkeypatch.context() as patched:
            full(patched, lambda data: True)
            restore(fs, tmp_path)
        done = apply(fs, tmp_path)
        assert not any("found at" in each.reason for each in done.outcomes)
        restore(fs, tmp_path)
        assert affinities(fs) == FOUND


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.ENOSPC, errno.EROFS])
def test_a_refused_value_is_not_ours(tmp_path: Path, number: int) -> None:
    fs = HOST.fs()
    fs.faults[("write", paths.IRQ_AFFINITY.at(FIRST))] = number
    cycle.apply(fs, [NIC_ONLY], Config(), tmp_path, ())
    fs.faults.clear()
    assert f"vfio-msix[0]({NIC})" not in remembered(tmp_path)
    fs.write(paths.IRQ_AFFINITY.at(FIRST), "4")  # an admin likes the same CPU
    restore(fs, tmp_path)
    assert affinities(fs)[FIRST] == "4"


def test_a_refused_move_leaves_what_was_known(tmp_path: Path) -> None:
    fs = HOST.fs()
    apply(fs, tmp_path)
    before = remembered(tmp_path)
    fs.faults[("write", paths.IRQ_AFFINITY.at(FIRST))] = errno.EIO
    turned = replace(WEB, vcpus=(Vcpu(0, CpuSet([6])), *WEB.vcpus[1:]))
    cycle.apply(fs, [turned], Config(), tmp_path, ())
    name = f"vfio-msix[0]({NIC})"
    assert remembered(tmp_path)[name] == before[name]
    fs.faults.clear()
    restore(fs, tmp_path)
    assert affinities(fs) == FOUND


class TestMovedByOthers:
    """Found at a value that is not ours: moved since, or set up anew?"""

    def run(
        self, state: Path, monkeypatch: pytest.MonkeyPatch, first: int | None, second: int | None
    ) -> tuple[str, str]:
        """The reason that the second apply gives, and the affinity that the undo leaves."""
        fs = HOST.fs()
        monkeypatch.setattr(fs, "incarnation", lambda path: first)
        apply(fs, state)
        fs.write(paths.IRQ_AFFINITY.at(FIRST), "0-7")
        monkeypatch.setattr(fs, "incarnation", lambda path: second)
        (outcome,) = apply(fs, state).outcomes
        restore(fs, state)
        return outcome.reason, affinities(fs)[FIRST]

    def test_the_same_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reason, left = self.run(tmp_path, monkeypatch, 5, 5)
        assert left == "4-7"
        assert reason.endswith(f"; found at 0-7 instead of our 4: {SOMEONE}; undone to 4-7")

    def test_set_up_anew(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reason, left = self.run(tmp_path, monkeypatch, 5, 6)
        assert left == "0-7"
        assert "found at" not in reason

    @pytest.mark.parametrize(("first", "second"), [(None, None), (5, None), (None, 5)])
    def test_nobody_can_tell(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        first: int | None,
        second: int | None,
    ) -> None:
        reason, left = self.run(tmp_path, monkeypatch, first, second)
        assert left == "0-7"
        assert "found at 0-7 instead of our 4" in reason
        assert reason.endswith("or the guest by setting it up anew; undone to 0-7")

    def test_our_value_on_one_that_was_set_up_anew_is_not_ours(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fs = HOST.fs()
        monkeypatch.setattr(fs, "incarnation", lambda path: 5)
        apply(fs, tmp_path)
        monkeypatch.setattr(fs, "incarnation", lambda path: 6)
        done = restore(fs, tmp_path)
        assert {each.status for each in done.outcomes} == {Status.VANISHED}
        assert all("set it up anew" in each.reason for each in done.outcomes)
        assert affinities(fs) != FOUND
        assert remembered(tmp_path) == {}


class TestGoneWhileRead:
    @pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
    def test_the_kernels_words_for_it(self, tmp_path: Path, number: int) -> None:
        fs = HOST.fs()

        def go(operation: str, path: str) -> None:
            if operation == "write" and path == paths.IRQ_AFFINITY.at(FIRST):
                fs.faults[lines_of(FIRST + 1)] = number

        fs.before = go
        done = apply(fs, tmp_path)
        status = {each.pin.irq: each.status for each in done.outcomes}
        assert status.pop(FIRST + 1) is Status.VANISHED
        assert set(status.values()) == {Status.APPLIED}

    @pytest.mark.parametrize("operation", ["read", "write"])
    @pytest.mark.parametrize("gone", [True, False])
    def test_an_error_of_proc_may_mean_it(self, tmp_path: Path, operation: str, gone: bool) -> None:
        fs = HOST.live()
        where = paths.IRQ_AFFINITY.at(FIRST)
        armed: list[str] = []

        def go(now: str, path: str) -> None:
            if path == lines_of(FIRST):
                armed.append(path)
            if now == operation and path == where and len(armed) == 2:
                fs.faults[(operation, where)] = errno.EIO
                if gone:
                    fs.memory.drop(f"{paths.IRQ_DIR}/{FIRST}")

        fs.before = go
        done = apply(fs, tmp_path)
        (outcome,) = (each for each in done.outcomes if each.pin.irq == FIRST)
        if gone or operation == "read":  # an open file of /proc that cannot be read is gone
            assert outcome.status is Status.VANISHED
        else:
            assert outcome.status is Status.REFUSED


class TestWhatIsShown:
    def test_by_device_kind_and_vector(self, tmp_path: Path) -> None:
        host = replace(
            HOST,
            devices=(
                passthrough(str(NIC), vectors=12, first_irq=FIRST, node=1, affinity="4-7"),
                passthrough(str(DISK), kind="intx", first_irq=20, node=1, affinity="0-3"),
            ),
        )
        fs = host.fs()
        apply(fs, tmp_path)
        done = restore(fs, tmp_path)
        assert [pin.irq for pin in done.plan.pins] == [*range(FIRST, FIRST + 12), 20]

    def test_a_guest_that_is_gone_goes_by_its_name(self, tmp_path: Path) -> None:
        guest = replace(WEB, uuid="6e4a3c1e-9a53-4b4f-8d0b-4b1f0e0a4b55")
        for name in "web", guest.uuid:
            fs = HOST.fs()
            cycle.apply(fs, [guest], Config(), tmp_path, ())
            done = cycle.restore(fs, [], tmp_path, [str(name)])
            (told,) = (each.guest for each in done.plan.guests)
            assert (told.name, told.uuid, told.source) == ("web", guest.uuid, "journal")
            assert affinities(fs) == FOUND

    def test_a_guest_of_whom_nothing_is_left_is_still_known(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        for irq in IRQS:
            fs.free(irq)
        assert cycle.restore(fs, [], tmp_path, ["web"]).plan.actions == ()

    def test_an_original_that_is_offline(self, tmp_path: Path) -> None:
        host = replace(HOST, possible="0-7")
        fs = host.fs()
        apply(fs, tmp_path)
        fs.set(paths.CPU_ONLINE.at(), "4-7")
        done = restore(fs, tmp_path)
        (pin,) = (each for each in done.plan.pins if each.irq == 20)
        assert pin.reason.text == "as found: 0-3, of which no CPU is online now"
        (outcome,) = (each for each in done.outcomes if each.pin.irq == 20)
        assert (outcome.status, outcome.reason) == (
            Status.FAILED,
            "none of CPUs 0-3 is online",
        )
        assert outcome.hint == "bring one of CPUs 0-3 online (chcpu -e), then run 'virtirq restore'"
        assert set(remembered(tmp_path)) == {f"vfio-intx({DISK})"}
        fs.set(paths.CPU_ONLINE.at(), "0-7")
        restore(fs, tmp_path)
        assert affinities(fs) == FOUND


class TestInterrupted:
    @pytest.fixture(autouse=True)
    def as_a_terminal_has_it(self) -> Iterator[None]:
        """A shell has its background jobs ignore Ctrl-C, pytest among them."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    def interrupting(self, irq: int) -> MadeFs:
        """A host on which Ctrl-C is pressed while the affinity of `irq` is written."""
        fs = HOST.fs()

        def press(operation: str, path: str) -> None:
            if operation == "write" and path == paths.IRQ_AFFINITY.at(irq):
                fs.before = None
                signal.raise_signal(signal.SIGINT)

        fs.before = press
        return fs

    def test_it_stops_after_the_current_one(self, tmp_path: Path) -> None:
        before = signal.getsignal(signal.SIGINT)
        fs = self.interrupting(FIRST + 1)
        done = apply(fs, tmp_path)
        status = [each.status for each in done.outcomes]
        assert status == [Status.APPLIED] * 2 + [Status.FAILED] * 3
        assert {each.reason for each in done.outcomes[2:]} == {"not tried: interrupted"}
        assert {each.affinity for each in done.outcomes[2:]} == {None}
        assert len(remembered(tmp_path)) == 2
        assert signal.getsignal(signal.SIGINT) is before
        restore(fs, tmp_path)
        assert affinities(fs) == FOUND

    def test_a_restore_can_go_on_later(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        apply(fs, tmp_path)
        fs.before = self.interrupting(FIRST).before

        def press(operation: str, path: str) -> None:
            if operation == "write":
                fs.before = None
                signal.raise_signal(signal.SIGINT)

        fs.before = press
        done = restore(fs, tmp_path)
        assert [each.status.bad for each in done.outcomes] == [False] + [True] * 4
        assert len(remembered(tmp_path)) == 4
        restore(fs, tmp_path)
        assert affinities(fs) == FOUND

    def test_while_reading_it_ends_at_once(self, tmp_path: Path) -> None:
        fs = HOST.fs()
        fs.before = lambda *_: signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            apply(fs, tmp_path)

    def test_who_ignores_it_is_not_stopped(self, tmp_path: Path) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            done = apply(self.interrupting(FIRST), tmp_path)
        finally:
            signal.signal(signal.SIGINT, before)
        assert {each.status for each in done.outcomes} == {Status.APPLIED}


def test_crowded_vectors_are_written_down_as_they_end(tmp_path: Path) -> None:
    """Refused on one CPU, taken on another: the journal has just the one that was taken."""
    crowd = tuple(MadeInterrupt(300 + n, (f"eth{n}",), "5", "5") for n in range(200))
    fs = replace(HOST, interrupts=crowd).fs()
    apply(fs, tmp_path)
    entry = remembered(tmp_path)[f"vfio-msix[1]({NIC})"]
    assert [str(each) for each in entry.written] == [affinities(fs)[FIRST + 1]] == ["4"]
    restore(fs, tmp_path)
    assert affinities(fs) == FOUND


def test_a_line_that_is_shut_down_keeps_its_pending_move_and_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its action is gone, and what is written there is not what is shown."""
    fs = HOST.fs()
    apply(fs, tmp_path)
    line = IRQS[0]
    before, write = remembered(tmp_path), fs.write
    read = fs.read
    monkeypatch.setattr(
        fs, "write", lambda path, text: None if f"/{line}/" in path else write(path, text)
    )
    monkeypatch.setattr(
        fs, "read", lambda path: "" if path == paths.IRQ_ACTIONS.at(line) else read(path)
    )
    done = restore(fs, tmp_path)
    (outcome,) = (each for each in done.outcomes if each.pin.irq == line)
    assert outcome.status is Status.PENDING
    assert "its move to 4 is still pending there" in outcome.reason
    left = remembered(tmp_path)
    assert len(left) == 1 < len(before)
    monkeypatch.undo()
    assert {each.pin.irq for each in restore(fs, tmp_path).outcomes} == {line}
    assert affinities(fs) == FOUND
    assert remembered(tmp_path) == {}
