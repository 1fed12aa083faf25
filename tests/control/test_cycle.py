"""The whole way on a made host: apply, apply again, drift, restore."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.control.scenes import DISK, FIRST, HOST, IRQS, NIC, NIC_ONLY, WEB, affinities
from tests.hostmaker import MadeFs, passthrough
from virtirq.control import cycle
from virtirq.control.journal import locked_journal
from virtirq.cpuset import CpuSet
from virtirq.errors import DeploymentError, JournalError, UnknownGuestError, UsageError
from virtirq.host import paths
from virtirq.host.scratch import open_host
from virtirq.model import Guest, GuestDevice, PciAddress, Status, Vcpu
from virtirq.policy.config import Config, parse_config
from virtirq.policy.restoring import SOMEONE
from virtirq.policy.room import VECTORS_LOW


def apply(fs: MadeFs, state: Path) -> cycle.Done:
    return cycle.apply(fs, [WEB], Config(), state, ())


def restore(fs: MadeFs, state: Path) -> cycle.Done:
    return cycle.restore(fs, [WEB], state, ())


PLANNED = {20: "4", **{FIRST + vector: str(4 + vector) for vector in range(4)}}


def test_each_vector_goes_to_the_cpu_of_its_vcpu_and_back(tmp_path: Path) -> None:
    fs = HOST.fs()
    found = affinities(fs)
    done = cycle.apply(fs, [WEB], Config(), tmp_path, ())
    assert {each.status for each in done.outcomes} == {Status.APPLIED}
    assert affinities(fs) == PLANNED
    assert cycle.apply(fs, [WEB], Config(), tmp_path, ()).outcomes == ()
    restored = cycle.restore(fs, [WEB], tmp_path, ())
    assert {each.status for each in restored.outcomes} == {Status.APPLIED}
    assert affinities(fs) == found
    assert cycle.restore(fs, [WEB], tmp_path, ()).plan.actions == ()


def test_following_vcpus_to_other_cpus_keeps_the_first_original(tmp_path: Path) -> None:
    fs = HOST.fs()
    found = affinities(fs)
    for shift in (0, 1, 2):
        moved = replace(WEB, vcpus=tuple(Vcpu(i, CpuSet([4 + (i + shift) % 4])) for i in range(4)))
        cycle.apply(fs, [moved], Config(), tmp_path, ())
    cycle.restore(fs, [WEB], tmp_path, ())
    assert affinities(fs) == found


def test_restore_leaves_what_someone_else_changed_and_says_so(tmp_path: Path) -> None:
    fs = HOST.fs()
    cycle.apply(fs, [WEB], Config(), tmp_path, ())
    fs.write(paths.IRQ_AFFINITY.at(FIRST + 1), "2")
    done = cycle.restore(fs, [WEB], tmp_path, ())
    assert affinities(fs) == {20: "0-3", 100: "4-7", 101: "2", 102: "4-7", 103: "4-7"}
    kept = [each for each in done.plan.actions if each.reason.code == "changed-since"]
    assert [each.irq for each in kept] == [FIRST + 1]
    assert kept[0].reason.text == f"{SOMEONE}, moved it to 2 since virtirq wrote 5: left"
    assert cycle.restore(fs, [WEB], tmp_path, ()).plan.actions == ()


def test_vectors_set_up_anew_are_restored_to_their_new_default(tmp_path: Path) -> None:
    fs = HOST.fs()
    cycle.apply(fs, [WEB], Config(), tmp_path, ())
    fs.write(paths.IRQ_AFFINITY.at(FIRST), "0-7")  # the guest reloaded its driver
    cycle.apply(fs, [WEB], Config(), tmp_path, ())
    cycle.restore(fs, [WEB], tmp_path, ())
    assert affinities(fs)[FIRST] == "0-7"


def test_restore_needs_no_guest(tmp_path: Path) -> None:
    fs = HOST.fs()
    found = affinities(fs)
    cycle.apply(fs, [WEB], Config(), tmp_path, ())
    cycle.restore(fs, [], tmp_path, ())
    assert affinities(fs) == found


def test_a_momentary_absence_hinders_nothing(tmp_path: Path) -> None:
    """While a guest moves a vector its action is away for a moment; the affinity stays."""
    fs = HOST.fs()
    cycle.apply(fs, [WEB], Config(), tmp_path, ())
    name = fs.read(paths.IRQ_ACTIONS.at(FIRST))
    fs.set(paths.IRQ_ACTIONS.at(FIRST), "")
    done = cycle.restore(fs, [WEB], tmp_path, ())
    assert affinities(fs)[FIRST] == "4-7"
    assert {each.status for each in done.outcomes} == {Status.APPLIED}
    fs.set(paths.IRQ_ACTIONS.at(FIRST), name)
    assert cycle.restore(fs, [WEB], tmp_path, ()).plan.actions == ()


def test_an_affinity_that_cannot_be_read_now_is_restored_later(tmp_path: Path) -> None:
    fs = HOST.fs()
    cycle.apply(fs, [WEB], Config(), tmp_path, ())
    fs.faults[paths.IRQ_AFFINITY.at(FIRST)] = errno.EIO
    cycle.restore(fs, [WEB], tmp_path, ())
    fs.faults.clear()
    assert affinities(fs)[FIRST] == "4"
    cycle.restore(fs, [WEB], tmp_path, ())
    assert affinities(fs)[FIRST] == "4-7"


def test_interrupts_of_a_guest_that_is_gone_are_forgotten(tmp_path: Path) -> None:
    fs = HOST.fs()
    cycle.apply(fs, [WEB], Config(), tmp_path, ())
    for irq in IRQS:
        fs.free(irq)
    assert cycle.restore(fs, [], tmp_path, ()).plan.actions == ()
    with locked_journal(tmp_path, HOST.boot_id) as journal:
        assert journal.remembered() == ()


def test_only_the_guests_that_are_named(tmp_path: Path) -> None:
    other = Guest("db", "test", uuid="u-db", vcpus=(Vcpu(0, CpuSet([7])),), devices=WEB.devices[1:])
    fs = HOST.fs()
    cycle.apply(fs, [NIC_ONLY, other], Config(), tmp_path, ["u-db"])
    assert affinities(fs) == {20: "7", **{FIRST + n: "4-7" for n in range(4)}}
    cycle.apply(fs, [NIC_ONLY, other], Config(), tmp_path, ["web"])
    cycle.restore(fs, [NIC_ONLY, other], tmp_path, ["web"])
    assert affinities(fs) == {20: "7", **{FIRST + n: "4-7" for n in range(4)}}
    with pytest.raises(UnknownGuestError, match="no guest is called 'mail'"):
        cycle.apply(fs, [NIC_ONLY, other], Config(), tmp_path, ["mail"])


def test_native_writes_nothing(tmp_path: Path) -> None:
    fs = HOST.fs()
    config = parse_config([("test", 'default = "native"')])
    assert cycle.apply(fs, [WEB], config, tmp_path, ()).outcomes == ()
    assert not [call for call in fs.calls if call[0] == "write"]


def test_a_recording_is_not_written(tmp_path: Path) -> None:
    archive = HOST.pack(tmp_path / "host.tar")
    fs = open_host(archive)
    with pytest.raises(UsageError, match="is a recording"):
        cycle.apply(fs, [WEB], Config(), tmp_path / "state", ())
    assert not (tmp_path / "state").exists()


def test_a_snapshot_holds_what_the_guests_need(tmp_path: Path) -> None:
    absent = PciAddress.parse("0000:99:00.0")
    guest = replace(WEB, devices=(*WEB.devices, GuestDevice(absent, "hostdev")))
    snapshot = cycle.observe(HOST.fs(), [guest])
    assert set(snapshot.pci) == {NIC, DISK}
    assert {each.irq for each in snapshot.interrupts} == set(IRQS)
    assert snapshot.vectors_on == {0: 2, 4: 4}
    assert (snapshot.boot_id, snapshot.kernel) == (HOST.boot_id, HOST.kernel)
    assert snapshot.gaps == ()


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    """Counts are shown by few; where an interrupt is delivered to is read once."""
    fs = HOST.fs()
    with_counts = cycle.observe(fs, [WEB])
    assert all(("read", paths.IRQ_COUNTS.at(irq)) in fs.calls for irq in IRQS)
    fs.calls.clear()
    without = cycle.observe(fs, [WEB], counts=False)
    assert not [path for _, path in fs.calls if path.endswith("/per_cpu_count")]
    assert {each.counts for each in without.interrupts} == {None}
    assert without.vectors_on == with_counts.vectors_on
    for irq in IRQS:
        assert fs.calls.count(("read", paths.IRQ_EFFECTIVE.at(irq))) == 1


def test_counts_are_read_where_cpus_get_short_of_vectors() -> None:
    """Those that never fired then have no claim on room: see `virtirq.policy.room`."""
    for vectors, counted in ((VECTORS_LOW, True), (8, False)):
        crowd = passthrough(str(NIC), vectors=vectors, affinity="7", effective="7")
        fs = replace(HOST, devices=(crowd,)).fs()
        seen = cycle.observe(fs, [WEB], counts=False)
        config = parse_config([("test", 'default = "2"')])
        snapshot, planned = cycle.planned(fs, seen, config)
        assert {each.idle for each in snapshot.interrupts} == {counted}
        assert {each.idle for each in planned.pins} == {counted}
        assert len(planned.pins) == vectors


def test_two_that_opened_a_scratch_host_at_once(tmp_path: Path) -> None:
    """Each reads the host again once it holds the lock."""
    root = HOST.write(tmp_path / "host", scratch=True)
    first, second = open_host(root), open_host(root)
    state = root / "run/virtirq"
    cycle.apply(first, [WEB], Config(), state, ())
    assert cycle.apply(second, [WEB], Config(), state, ()).outcomes == ()
    cycle.restore(first, [WEB], state, ())
    cycle.apply(second, [WEB], Config(), state, ())
    cycle.restore(first, [WEB], state, ())
    left = open_host(root)
    assert {irq: left.read(paths.IRQ_AFFINITY.at(irq)) for irq in IRQS} == affinities(HOST.fs())


def test_a_scratch_host_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = HOST.write(tmp_path / "host", scratch=True)
    state = root / "run/virtirq"
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if data.startswith(b'{"irq"'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        done = cycle.apply(open_host(root), [WEB], Config(), state, ())
    assert {each.status for each in done.outcomes} == {Status.FAILED}
    assert all(each.reason.endswith("No space left on device") for each in done.outcomes)
    with locked_journal(state, HOST.boot_id) as journal:
        assert journal.remembered() == ()


class TestBootId:
    """Under another id, or none, nobody would find again what was there before."""

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOENT])
    def test_unreadable_for_a_moment(self, tmp_path: Path, number: int) -> None:
        fs = HOST.live()
        found = affinities(fs)
        fs.faults["read", paths.BOOT_ID.at()] = number
        for act in (apply, restore):
            with pytest.raises(JournalError, match="without the boot's id nothing is moved"):
                act(fs, tmp_path)
        assert affinities(fs) == found
        assert not (tmp_path / "journal.jsonl").exists()
        fs.faults.clear()
        apply(fs, tmp_path)
        assert affinities(fs) != found
        restore(fs, tmp_path)
        assert affinities(fs) == found

    def test_empty(self, tmp_path: Path) -> None:
        fs = HOST.live()
        fs.set(paths.BOOT_ID.at(), "")
        with pytest.raises(JournalError, match="is empty"):
            apply(fs, tmp_path)

    @pytest.mark.parametrize("text", [str(HOST.boot_id)[:20], f"{HOST.boot_id}x", "garbage"])
    def test_not_an_id(self, tmp_path: Path, text: str) -> None:
        fs = HOST.live()
        fs.set(paths.BOOT_ID.at(), text)
        with pytest.raises(JournalError, match="is not an id"):
            apply(fs, tmp_path)

    def test_a_recorded_host_may_have_none(self, tmp_path: Path) -> None:
        fs = replace(HOST, boot_id=None).fs()
        found = affinities(fs)
        apply(fs, tmp_path)
        assert affinities(fs) != found
        restore(fs, tmp_path)
        assert affinities(fs) == found


def test_restore_where_the_state_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = HOST.fs()
    found = affinities(fs)
    apply(fs, tmp_path)
    opened = os.open

    def refuse(path: Any, flags: int, *words: Any, **more: Any) -> int:
        if more.get("dir_fd") is not None and flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return opened(path, flags, *words, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(DeploymentError, match="Read-only file system"):
            apply(fs, tmp_path)
        done = restore(fs, tmp_path)
    assert affinities(fs) == found
    assert {each.status for each in done.outcomes} == {Status.APPLIED}
    assert all("read-only file system" in each.reason for each in done.outcomes)


class TestUnclaimed:
    """Whatever has interrupts by VFIO and is no guest's is told."""

    @pytest.mark.parametrize("live", [False, True])
    def test_a_device_that_no_guest_has(self, live: bool) -> None:
        fs = HOST.live() if live else HOST.fs()
        assert cycle.observe(fs, [WEB]).unclaimed == {}
        without = replace(WEB, devices=())
        gaps = cycle.observe(fs, [WEB]).gaps
        seen = cycle.observe(fs, [without])
        assert seen.unclaimed == {NIC: 4, DISK: 1}
        assert seen.gaps == gaps
        assert cycle.observe(fs, [without], also=[NIC]).unclaimed == seen.unclaimed

    def test_by_what_vfio_has_and_not_by_the_drivers_name(self) -> None:
        devices = [replace(each, driver="nvidia") for each in HOST.devices]
        link = f"../../devices/pci0000:40/{NIC}/vfio-dev/vfio0"
        host = replace(HOST, devices=devices)
        without = replace(WEB, devices=())
        assert cycle.observe(host.live(), [without]).unclaimed == {}
        known = replace(host, links={"/sys/class/vfio-dev/vfio0": link})
        assert cycle.observe(known.live(), [without]).unclaimed == {NIC: 4}
        recorded = replace(host, files={f"{paths.PCI_DIR}/{NIC}/vfio-dev/vfio0/dev": "511:0"})
        assert cycle.observe(recorded.fs(), [without]).unclaimed == {NIC: 4}
