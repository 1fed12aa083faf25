"""Recording a host, and reading the recording as if it were the host."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hostmaker import BOOT_ID, MadeDevice, MadeFs, MadeHost, MadeInterrupt, passthrough
from tests.needs import unprivileged
from virtirq import __version__
from virtirq.control.cycle import observe
from virtirq.errors import DeploymentError, RecordingError, UsageError
from virtirq.host import paths
from virtirq.host.fs import HostFs, LiveFs, Reader
from virtirq.host.pci import list_addresses
from virtirq.host.recording import record
from virtirq.host.scratch import open_host
from virtirq.model import Gap, Snapshot

NO_BOOT = "00000000-0000-0000-0000-000000000000"
HOST = MadeHost(
    online="0-6",
    possible="0-7",
    isolated="3",
    nodes={0: "0-3", 1: "4-6"},
    devices=(
        passthrough("0000:82:00.0", vectors=3, node=1, iommu_group=7, physfn="0000:82:00.1"),
        passthrough("0000:03:00.0", vectors=2, first_irq=120, kind="msi", counts={1: 9}),
        passthrough("10000:e1:00.0", kind="intx", first_irq=16, node=-1),
        MadeDevice("0000:00:1f.0", driver=None, line=9, node=None),
    ),
    interrupts=(
        MadeInterrupt(0, ("timer",), mode=0o444, effective=""),
        MadeInterrupt(9, ("acpi",)),
    ),
    irqbalance=812,
    kvm={"kvm_intel/enable_apicv": "Y"},
    iommus={"dmar0": 1 << 59},
)
HOSTS = {
    "plain": HOST,
    "links": replace(HOST, symlinked=True),
    "old kernel": replace(HOST, old_msi=True, nohz_full=None),
    "small": MadeHost(nodes={}, siblings=(), llcs=()),
    "foreign": replace(HOST, foreign=True, removed=("/proc/irq", "/sys/kernel", "/sys/module")),
}


def look(fs: HostFs) -> Snapshot:
    """All that is read of a host, without what a recording leaves out."""
    shot = observe(fs, (), also=list_addresses(Reader(fs)))
    assert shot.boot_id is not None
    return replace(shot, boot_id=None, recording=None)


def members(archive: Path) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(archive) as tar:
        return {f"/{member.name}": member for member in tar}


def description(archive: Path) -> Mapping[str, object]:
    with tarfile.open(archive) as tar:
        file = tar.extractfile("virtirq/recording.json")
        assert file is not None
        told = json.loads(file.read())
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize("name", HOSTS)
def test_a_recording_reads_as_the_host(name: str, tmp_path: Path) -> None:
    host = HOSTS[name]
    fs = host.fs() if name == "foreign" else host.live()
    archive = tmp_path / "host.tar"
    record(fs, archive, {})
    expected = look(host.fs())
    assert look(open_host(archive)) == expected
    # And a recording of the recording is the same again.
    record(open_host(archive), tmp_path / "again.tar", {})
    assert look(open_host(tmp_path / "again.tar")) == expected


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
def test_every_kind_of_archive(suffix: str, tmp_path: Path) -> None:
    archive = tmp_path / f"host{suffix}"
    count = record(HOST.live(), archive, {"/virtirq/domains/001.xml": "<domain/>"})
    assert look(open_host(archive)) == look(HOST.fs())
    assert open_host(archive).read("/virtirq/domains/001.xml") == "<domain/>"
    told = [each for each in members(archive).values() if not each.isdir()]
    assert count == len(told) - 2, "all but the description and what was given"
    assert stat.S_IMODE(archive.stat().st_mode) == 0o644
    magic = {".gz": b"\x1f\x8b", "bz2": b"BZ", ".xz": b"\xfd7zXZ"}
    assert archive.read_bytes().startswith(magic.get(suffix[-3:], b""))


def test_it_can_be_tried_on_a_scratch(tmp_path: Path) -> None:
    record(HOST.live(), tmp_path / "host.tar", {})
    root = tmp_path / "host"
    shutil.unpack_archive(tmp_path / "host.tar", root)
    (root / "virtirq" / "scratch.jsonl").touch()
    fs = open_host(root)
    assert fs.writable
    fs.write("/proc/irq/100/smp_affinity_list", "5")
    assert look(open_host(root)) != look(HOST.fs())
    with pytest.raises(OSError, match="not permitted") as raised:
        fs.write("/proc/irq/0/smp_affinity_list", "5")
    assert raised.value.errno == errno.EPERM, "the modes are recorded"


def test_this_machine(tmp_path: Path) -> None:
    archive = tmp_path / "host.tar"
    record(LiveFs(), archive, {})
    fs = open_host(archive)
    shot, live = look(fs), look(LiveFs())
    assert shot.topology == live.topology
    assert shot.pci == live.pci
    assert shot.kernel == live.kernel
    assert shot.posting == live.posting
    assert fs.read(paths.BOOT_ID.at()) == NO_BOOT
    assert not set(map(str, os.listdir("/sys/class/net"))) & {
        action for each in shot.interrupts for action in each.actions or ()
    }


class TestWhatIsTold:
    def test_description(self, tmp_path: Path) -> None:
        record(HOST.live(), tmp_path / "host.tar", {})
        told = description(tmp_path / "host.tar")
        assert set(told) == {"format", "virtirq", "taken_at", "patterns", "errors", "gaps"}
        assert (told["format"], told["virtirq"], told["errors"]) == (1, __version__, {})
        assert told["patterns"] == [path.pattern for path in paths.MANIFEST if path.recorded]

    def test_what_was_not_recorded_then_is_not_known_later(self, tmp_path: Path) -> None:
        record(HOSTS["foreign"].fs(), tmp_path / "host.tar", {})
        fs = open_host(tmp_path / "host.tar")
        assert not fs.covers(paths.IRQ_AFFINITY)
        assert fs.covers(paths.PCI_MSI_IRQ)
        assert "not in this recording" in {gap.error for gap in look(fs).gaps}

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EPERM])
    def test_errors_come_again(self, number: int, tmp_path: Path) -> None:
        fs = HOST.live()
        faults = ("/sys/kernel/irq/100/actions", "/proc/irq/101/smp_affinity_list")
        for path in faults:
            fs.faults["read", path] = number
        fs.faults["listdir", "/sys/class/iommu"] = number
        record(fs, tmp_path / "host.tar", {})
        told = description(tmp_path / "host.tar")["errors"]
        assert told == dict.fromkeys((*faults, "/sys/class/iommu"), number)
        gaps = look(open_host(tmp_path / "host.tar")).gaps
        assert gaps == look(fs).gaps
        assert Gap(faults[0], os.strerror(number)) in gaps

    def test_gaps_come_again(self, tmp_path: Path) -> None:
        first, second = tmp_path / "host.tar", tmp_path / "again.tar"
        record(HOST.live(), first, {}, {"guests": "libvirt was away"})
        record(open_host(first), second, {})
        for each in (first, second):
            assert open_host(each).gaps == (Gap("guests", "libvirt was away"),)

    @pytest.mark.parametrize("gaps", [[], {"guests": 7}, "guests"])
    def test_malformed_gaps(self, gaps: object, tmp_path: Path) -> None:
        told = json.dumps({"format": 1, "gaps": gaps})
        for name, text in {"proc/version": "", "virtirq/recording.json": told}.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        with pytest.raises(RecordingError, match="gaps does not give a text"):
            assert open_host(tmp_path).gaps

    def test_an_error_without_a_number(self, tmp_path: Path) -> None:
        fs = HOST.live()

        def before(operation: str, path: str) -> None:
            if (operation, path) == ("read", "/sys/kernel/irq/100/actions"):
                raise OSError("nobody knows")

        fs.before = before
        record(fs, tmp_path / "host.tar", {})
        errors = description(tmp_path / "host.tar")["errors"]
        assert errors == {"/sys/kernel/irq/100/actions": errno.EIO}

    def test_vectors_that_go_meanwhile(self, tmp_path: Path) -> None:
        fs = HOST.live()

        def before(operation: str, path: str) -> None:
            if (operation, path) == ("read", "/proc/irq/101/smp_affinity_list"):
                fs.free(101)

        fs.before = before
        record(fs, tmp_path / "host.tar", {})
        assert description(tmp_path / "host.tar")["errors"] == {}


class TestWhatIsLeftOut:
    INTERFACES = ("eth0", "eth1", "eth10", "ens1f0np0", "acme-lab", "lo", "vfio-msix")

    def actions(self, where: Path, *actions: str, interfaces: tuple[str, ...]) -> list[str]:
        host = MadeHost(
            interrupts=[MadeInterrupt(n, each.split(",")) for n, each in enumerate(actions)],
            files={f"/sys/class/net/{name}/mtu": "1500" for name in interfaces},
        )
        record(host.live(), where / "host.tar", {})
        fs = open_host(where / "host.tar")
        return [fs.read(paths.IRQ_ACTIONS.at(n)) for n in range(len(actions))]

    @pytest.mark.parametrize(
        ("action", "plain"),
        [
            ("eth0", "net"),
            ("eth0-TxRx-3", "net-TxRx-3"),
            ("eth10-rx-0", "net-rx-0"),
            ("i40e-ens1f0np0-TxRx-7", "i40e-net-TxRx-7"),
            ("acme-lab-tx-0", "net-tx-0"),
            ("ice-acme-lab-TxRx-0", "ice-net-TxRx-0"),
            ("eth1:mgmt", "net:mgmt"),
            ("eth1_rx", "net_rx"),
            ("eth0-0,eth1-0", "net-0,net-0"),
            # What only looks alike is left as it is.
            ("eth100", "eth100"),
            ("meth0-1", "meth0-1"),
            ("nvme0q1", "nvme0q1"),
            ("slow", "slow"),
            ("", ""),
            ("vfio-msix[3](0000:82:00.0)", "vfio-msix[3](0000:82:00.0)"),
            ("vfio-msi[0](10000:82:00.0)", "vfio-msi[0](10000:82:00.0)"),
            ("vfio-intx(0000:82:00.0)", "vfio-intx(0000:82:00.0)"),
            ("vfio-msix-rx-0", "net-rx-0"),
            ("mlx5_comp3@pci:0000:82:00.0", "mlx5_comp3@pci:0000:82:00.0"),
        ],
    )
    def test_interfaces(self, action: str, plain: str, tmp_path: Path) -> None:
        assert self.actions(tmp_path, action, interfaces=self.INTERFACES) == [plain]

    def test_odd_names_of_interfaces(self, tmp_path: Path) -> None:
        odd = (".*", "(", "a|b", "[x]")
        assert self.actions(tmp_path, ".*-rx", "abc", "(-0", "[x]-1", interfaces=odd) == [
            "net-rx",
            "abc",
            "net-0",
            "net-1",
        ]

    def test_without_interfaces(self, tmp_path: Path) -> None:
        assert self.actions(tmp_path, "eth0-rx-0", interfaces=()) == ["eth0-rx-0"]

    def test_boot_id_and_owners(self, tmp_path: Path) -> None:
        files = {
            "/proc/cmdline": "root=UUID=acme-secret",
            "/sys/class/dmi/id/product_serial": "acme-secret",
            "/sys/class/net/acme-secret/address": "02:00:00:00:00:01",
            "/proc/irq/100/node": "acme-secret",
        }
        host = replace(HOST, files=files, interrupts=(MadeInterrupt(5, ("acme-secret-rx-1",)),))
        record(host.live(), tmp_path / "host.tar", {})
        content = (tmp_path / "host.tar").read_bytes()
        assert b"acme-secret" not in content
        assert b"02:00:00:00:00:01" not in content
        assert BOOT_ID.encode() not in content
        assert open_host(tmp_path / "host.tar").read(paths.BOOT_ID.at()) == NO_BOOT
        for member in members(tmp_path / "host.tar").values():
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
            assert member.mtime == 0


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize("name", ["host", "host.zip", "host.tar.zst", ".tar"])
    def test_unknown_kind(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="cannot tell the kind") as raised:
            record(HOST.live(), tmp_path / name, {})
        assert "tar.xz" in (raised.value.hint or "")
        assert list(tmp_path.iterdir()) == []

    def test_nowhere_to_write(self, tmp_path: Path) -> None:
        with pytest.raises(RecordingError, match="No such file"):
            record(HOST.live(), tmp_path / "none" / "host.tar", {})

    def test_not_allowed_to_write(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        with unprivileged(), pytest.raises(DeploymentError, match="Permission denied"):
            record(HOST.live(), tmp_path / "host.tar", {})

    def test_a_directory_is_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "host.tar").mkdir()
        with pytest.raises(RecordingError, match="directory"):
            record(HOST.live(), tmp_path / "host.tar", {})
        assert [each.name for each in tmp_path.iterdir()] == ["host.tar"]

    def test_one_that_is_there_is_replaced(self, tmp_path: Path) -> None:
        archive = tmp_path / "host.tar"
        archive.write_text("old")
        record(HOST.live(), archive, {})
        assert open_host(archive).read(paths.OS_RELEASE.at()) == HOST.kernel
        assert [each.name for each in tmp_path.iterdir()] == ["host.tar"]

    @pytest.mark.parametrize("trouble", [KeyboardInterrupt, MemoryError, ValueError])
    @pytest.mark.parametrize("at", [0, 1, 50, 100])
    def test_interrupted(self, at: int, trouble: type[BaseException], tmp_path: Path) -> None:
        archive = tmp_path / "host.tar"
        archive.write_text("old")
        fs = HOST.live()

        def before(operation: str, path: str) -> None:
            if len(fs.calls) > at:
                raise trouble

        fs.before = before
        with pytest.raises(trouble):
            record(fs, archive, {})
        assert archive.read_text() == "old"
        assert [each.name for each in tmp_path.iterdir()] == ["host.tar"]

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(RecordingError, match="No space left"):
                record(HOST.live(), tmp_path / "host.tar", {})
        assert list(tmp_path.iterdir()) == []


def test_sockets_are_recorded_as_names(tmp_path: Path) -> None:
    class WithSockets(MadeFs):
        def mode(self, path: str) -> int:
            mode = super().mode(path)
            return stat.S_IFSOCK | 0o600 if path.endswith(".sock") else mode

        def read(self, path: str) -> str:
            assert not path.endswith(".sock"), "a socket cannot be opened for reading"
            return super().read(path)

    fs = WithSockets(HOST.fs().memory)
    record(fs, tmp_path / "host.tar", {})
    assert look(open_host(tmp_path / "host.tar")).irqbalance == look(HOST.fs()).irqbalance
