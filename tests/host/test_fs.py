"""LiveFs on this machine, and the Reader's account of what could not be read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.hostmaker import MadeFs, MadeHost
from virtirq.host import paths
from virtirq.host.fs import HostFs, LiveFs, Reader, decode
from virtirq.host.interrupts import read_interrupts, read_vector_load
from virtirq.host.irqbalance import read_irqbalance
from virtirq.host.paths import KernelPath
from virtirq.host.pci import list_addresses, read_devices
from virtirq.host.posting import read_posting
from virtirq.host.topology import read_topology
from virtirq.model import Gap

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EINVAL)


class TestThisMachine:
    """Whatever this machine is, these hold on it."""

    def test_topology(self) -> None:
        reader = Reader(LiveFs())
        made = read_topology(reader)
        assert reader.gaps == ()
        assert made.online
        assert made.online <= made.possible
        assert made.general <= made.online
        assert made.general
        assert os.sched_getaffinity(0) <= set(made.online)
        for node in made.nodes.values():
            assert node.cpus <= made.online
            assert set(node.distances) == set(made.nodes)
        for groups in (made.siblings, made.llcs):
            counted = [cpu for group in groups for cpu in group]
            assert len(counted) == len(set(counted)), "groups overlap"

    def test_devices_and_interrupts(self) -> None:
        reader = Reader(LiveFs())
        addresses = list_addresses(reader)
        devices = read_devices(reader, addresses)
        assert list(devices) == addresses == sorted(addresses)
        topology = read_topology(reader)
        for each in read_interrupts(reader, addresses, topology.possible):
            assert each.device in devices
            assert each.irq >= 0
            assert each.affinity is None or each.affinity <= topology.possible
            assert each.effective is None or each.effective
            assert all(count > 0 for count in (each.counts or {}).values())
        assert set(read_vector_load(reader)) <= set(topology.possible)

    def test_posting_and_irqbalance(self) -> None:
        reader = Reader(LiveFs())
        assert read_posting(reader).basis
        irqbalance = read_irqbalance(reader)
        assert (irqbalance.pid is not None) == (irqbalance.running is True)

    def test_kernel(self) -> None:
        fs = LiveFs()
        assert fs.read(paths.OS_RELEASE.at()) == os.uname().release
        assert len(fs.read(paths.BOOT_ID.at())) == 36
        assert fs.recording is None
        assert all(fs.covers(path) for path in paths.MANIFEST)

    def test_a_part_of_a_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = tmp_path / "long"
        made.write_text("ab" * 50_000)
        fs = LiveFs()
        for most in (1, 4095, 4096, 16384, 16385, 99_999, 100_000, 200_000):
            assert fs.head(str(made), most) == ("ab" * 50_000)[:most]
        assert len(fs.read(str(made))) == 100_000
        monkeypatch.setattr("virtirq.host.fs._MOST", 99_999)
        with pytest.raises(OSError, match="File too large"):
            fs.read(str(made))

    def test_a_part_of_a_directory(self) -> None:
        assert len(LiveFs().first("/proc", 5)) == 5
        assert set(LiveFs().first("/proc/self", 10_000)) >= {"fd", "cmdline"}

    @pytest.mark.parametrize("path", ["/proc/irq/4294967295/smp_affinity_list", "/proc/self/no"])
    def test_what_is_not_there(self, path: str) -> None:
        fs = LiveFs()
        for call in (fs.read, fs.listdir, fs.readlink, fs.mode):
            with pytest.raises(FileNotFoundError):
                call(path)
        with pytest.raises(FileNotFoundError):
            fs.write(path, "0")
        assert not fs.isdir(path)

    def test_kinds(self) -> None:
        fs = LiveFs()
        assert fs.isdir("/proc/self")
        assert stat.S_ISREG(fs.mode("/proc/self/status"))
        assert fs.readlink("/proc/self") == str(os.getpid())
        assert "status" in fs.listdir("/proc/self")
        with pytest.raises(IsADirectoryError):
            fs.read("/proc")
        with pytest.raises(NotADirectoryError):
            fs.listdir("/proc/self/status")


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65536, (1 << 20) + 5])
def test_a_file_is_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_text("x" * size + "\n")
    assert LiveFs().read(str(tmp_path / "file")) == "x" * size


def test_a_value_is_written_in_one_piece(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("abcdef")
    LiveFs().write(str(file), "12")
    assert file.read_text() == "12cdef", "neither truncated nor replaced: it is a kernel file"


def test_reading_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fs = LiveFs()
    (tmp_path / "file").write_text("1")
    for _ in range(5):
        fs.read(str(tmp_path / "file"))
        with pytest.raises(IsADirectoryError):
            fs.read(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),
        (b"0-3\n", "0-3"),
        (b" 1 2 \n\n", "1 2"),
        (b"0-7\n\0", "0-7"),
        (b"0-7\0\0", "0-7"),
        (b"\xff\n", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_decode(content: bytes, text: str) -> None:
    assert decode(content) == text


def test_a_host_is_not_written_unless_it_says_how() -> None:
    class Silent(HostFs):
        def read(self, path: str) -> str:
            raise NotImplementedError

        def listdir(self, path: str) -> list[str]:
            raise NotImplementedError

        def readlink(self, path: str) -> str:
            raise NotImplementedError

        def mode(self, path: str) -> int:
            raise OSError(errno.EACCES, "no", path)

    with pytest.raises(OSError, match="Read-only") as raised:
        Silent().write("/proc/irq/1/smp_affinity_list", "0")
    assert raised.value.errno == errno.EROFS
    assert raised.value.filename == "/proc/irq/1/smp_affinity_list"
    assert not Silent().writable
    assert not Silent().isdir("/proc")


def failing(number: int, path: str, *, foreign: bool = False) -> MadeFs:
    fs = MadeHost(foreign=foreign).fs()
    fs.faults[path] = number
    return fs


SOME = KernelPath("/sys/some/{one}")
LONG = "9" * 5000


class TestValues:
    """One place reads a number, and one a CPU list: what is none of them is a gap."""

    @staticmethod
    def reader(text: str | None) -> Reader:
        return Reader(MadeHost(files={} if text is None else {SOME.at("a"): text}).live())

    @pytest.mark.parametrize(
        ("text", "ten", "sixteen"),
        [
            ("0", 0, 0),
            ("-1", -1, None),
            ("10", 10, 16),
            ("0x10", 16, 16),
            ("007", 7, 7),
            ("999999999", 999999999, 0x999999999),
            ("9999999999", None, 0x9999999999),
            ("d2008c40660462", None, 0xD2008C40660462),
            ("0x" + "f" * 16, 2**64 - 1, 2**64 - 1),
            ("0x" + "f" * 17, None, None),
            *((text, None, None) for text in ("", "x", "0x", "-0x1", "1_0", "+1", "1 0", "1.0")),
            *((text, None, None) for text in ("\u00b2", "\u0662", "0X1", LONG)),
        ],
    )
    def test_numbers(self, text: str, ten: int | None, sixteen: int | None) -> None:
        for base, value in ((10, ten), (16, sixteen)):
            reader = self.reader(text)
            assert reader.number(SOME, "a", base=base) == value  # type: ignore[arg-type]
            why = f"{text[:40]!r} is not a number"
            assert reader.gaps == (() if value is not None else (Gap(SOME.at("a"), why),))

    @pytest.mark.parametrize(("text", "cpus"), [("0-3,8\n", "0-3,8"), ("", ""), ("3,2", "2-3")])
    def test_lists(self, text: str, cpus: str) -> None:
        reader = self.reader(text)
        assert str(reader.cpus(SOME, "a")) == cpus
        assert reader.gaps == ()

    @pytest.mark.parametrize("text", ["x", "3-2", "99999", "0-99999999999", LONG])
    def test_what_is_no_list(self, text: str) -> None:
        reader = self.reader(text)
        assert reader.cpus(SOME, "a") is None
        assert [gap.path for gap in reader.gaps] == [SOME.at("a")]

    def test_what_is_not_there(self) -> None:
        reader = self.reader(None)
        assert (reader.cpus(SOME, "a"), reader.number(SOME, "a")) == (None, None)
        assert reader.gaps == (Gap(SOME.at("a"), os.strerror(errno.ENOENT)),)


class TestGaps:
    @pytest.mark.parametrize("number", ABSENT)
    @pytest.mark.parametrize("path", paths.MANIFEST, ids=lambda path: str(path.pattern))
    def test_absence(self, number: int, path: paths.KernelPath) -> None:
        """Absence is a fact for what is optional, a gap for what is not."""
        names = ["x"] * path.pattern.count("{")
        where = path.at(*names)
        reader = Reader(failing(number, where))
        assert reader.text(path, *names) is None
        expected = () if path.optional else (Gap(where, os.strerror(number)),)
        assert reader.gaps == expected

    @pytest.mark.parametrize("number", ABSENT)
    @pytest.mark.parametrize("path", [paths.PCI_VENDOR, paths.PCI_DRIVER, paths.KVM_AVIC])
    def test_absence_from_a_tree_of_someone_else(self, number: int, path: paths.KernelPath) -> None:
        names = ["x"] * path.pattern.count("{")
        reader = Reader(failing(number, path.at(*names), foreign=True))
        assert reader.text(path, *names) is None
        assert reader.gaps == (Gap(path.at(*names), "not in this recording"),)

    @pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ENODEV])
    @pytest.mark.parametrize("path", [paths.CPU_ONLINE, paths.CPU_NOHZ_FULL])
    @pytest.mark.parametrize("foreign", [False, True])
    def test_a_failure_is_always_a_gap(
        self, number: int, path: paths.KernelPath, foreign: bool
    ) -> None:
        reader = Reader(failing(number, path.pattern, foreign=foreign))
        assert reader.text(path) is None
        assert reader.gaps == (Gap(path.pattern, os.strerror(number)),)

    def test_links_and_directories(self) -> None:
        fs = MadeHost(links={"/sys/bus/pci/devices/x/driver": "../../drivers/vfio-pci/"}).fs()
        reader = Reader(fs)
        assert reader.link(paths.PCI_DRIVER, "x") == "vfio-pci"
        assert reader.link(paths.PCI_PHYSFN, "x") is None
        assert reader.names("/nowhere", paths.IRQ_AFFINITY) == []
        fs.faults["/run/irqbalance"] = errno.EACCES
        assert reader.names("/run/irqbalance", paths.IRQBALANCE_SOCKET) == []
        assert reader.gaps == (
            Gap("/nowhere", os.strerror(errno.ENOENT)),
            Gap("/run/irqbalance", os.strerror(errno.EACCES)),
        )

    def test_many_alike_are_one(self) -> None:
        fs = MadeHost().fs()
        reader = Reader(fs)
        for irq in range(1000):
            reader.text(paths.IRQ_AFFINITY, irq)
        assert reader.gaps == (Gap("/proc/irq/*/smp_affinity_list", os.strerror(errno.ENOENT)),)

    def test_one_alone_is_named(self) -> None:
        reader = Reader(MadeHost().fs())
        for _ in range(3):
            reader.text(paths.IRQ_AFFINITY, 7)
        assert reader.gaps == (Gap("/proc/irq/7/smp_affinity_list", os.strerror(errno.ENOENT)),)

    def test_what_differs_is_kept_apart_and_in_order(self) -> None:
        fs = MadeHost().fs()
        fs.faults["/proc/irq/1/smp_affinity_list"] = errno.EIO
        reader = Reader(fs)
        for irq in (3, 1, 2):
            reader.text(paths.IRQ_AFFINITY, irq)
        reader.malformed(paths.CPU_ONLINE, paths.CPU_ONLINE.at(), ValueError("what"))
        reader.failed(paths.IRQ_COUNTS, "/x", OSError("no number"))
        assert reader.gaps == (
            Gap("/proc/irq/1/smp_affinity_list", os.strerror(errno.EIO)),
            Gap("/proc/irq/*/smp_affinity_list", os.strerror(errno.ENOENT)),
            Gap("/sys/devices/system/cpu/online", "what"),
            Gap("/x", "no number"),
        )
        assert reader.missed(paths.CPU_POSSIBLE, paths.CPU_ONLINE)
        assert not reader.missed(paths.CPU_POSSIBLE)

    def test_failures_can_be_taken_back(self) -> None:
        reader = Reader(MadeHost().fs())
        reader.text(paths.IRQ_AFFINITY, 1)
        mark = reader.mark()
        reader.text(paths.IRQ_AFFINITY, 2)
        reader.text(paths.IRQ_ACTIONS, 2)
        reader.back_to(mark)
        assert [gap.path for gap in reader.gaps] == ["/proc/irq/1/smp_affinity_list"]

    def test_optional_by_the_occasion(self) -> None:
        reader = Reader(MadeHost().fs())
        missing = FileNotFoundError(errno.ENOENT, "x")
        reader.failed(paths.IRQ_ACTIONS, "/x", missing, optional=True)
        assert reader.gaps == ()
        reader.failed(paths.IRQ_ACTIONS, "/x", OSError(errno.EIO, "x"), optional=True)
        assert len(reader.gaps) == 1
