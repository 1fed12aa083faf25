"""ScratchFs: writes answered as an x86 kernel answers them, and kept over a restart."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostmaker import MadeFs, MadeHost, MadeInterrupt, passthrough
from virtirq.cpuset import CpuSet
from virtirq.errors import RecordingError
from virtirq.host.fs import HostFs
from virtirq.host.scratch import LOG, VECTORS_PER_CPU, ScratchFs, open_host
from virtirq.host.tree import TreeFs

HOST = MadeHost(
    online="0-5",
    possible="0-7",
    interrupts=(
        MadeInterrupt(0, ("timer",), mode=0o444),
        MadeInterrupt(1, ("a",), affinity="0-5", effective="2"),
        MadeInterrupt(2, ("b",), affinity="0", effective="0"),
        MadeInterrupt(3, ("c",), affinity="0", effective=""),
    ),
    masks=True,
)


def affinity(irq: int) -> str:
    return f"/proc/irq/{irq}/smp_affinity_list"


def state(fs: HostFs, irq: int) -> tuple[str, str]:
    return fs.read(affinity(irq)), fs.read(f"/proc/irq/{irq}/effective_affinity_list")


REFUSALS = {
    "user space cannot move it": (affinity(0), "1", errno.EPERM),
    "no such interrupt": (affinity(99), "1", errno.ENOENT),
    "read only": ("/proc/irq/1/effective_affinity_list", "1", errno.EACCES),
    "another file": ("/sys/devices/system/cpu/online", "1", errno.EACCES),
    "not quite it": ("/proc/irq/1/../2/smp_affinity_list", "1", errno.EACCES),
    "empty": (affinity(1), "", errno.EINVAL),
    "malformed": (affinity(1), "x", errno.EINVAL),
    "backwards": (affinity(1), "3-1", errno.EINVAL),
    "malformed mask": ("/proc/irq/1/smp_affinity", "1-3", errno.EINVAL),
    "empty mask": ("/proc/irq/1/smp_affinity", "0", errno.EINVAL),
    "offline": (affinity(1), "6-7", errno.EINVAL),
    "offline mask": ("/proc/irq/1/smp_affinity", "c0", errno.EINVAL),
    "past the last": (affinity(1), "8", errno.ERANGE),
    "partly past the last": (affinity(1), "1,8", errno.ERANGE),
    "mask past the last": ("/proc/irq/1/smp_affinity", "1ff", errno.EOVERFLOW),
}


@pytest.mark.parametrize(("path", "text", "number"), REFUSALS.values(), ids=REFUSALS)
def test_refused(path: str, text: str, number: int, tmp_path: Path) -> None:
    fs = HOST.fs(tmp_path / "log")
    before = {irq: state(fs, irq) for irq in range(4)}
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        fs.write(path, text)
    assert (raised.value.errno, raised.value.filename) == (number, path)
    assert {irq: state(fs, irq) for irq in range(4)} == before
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("irq", "wanted", "after"),
    [
        (1, "4", ("4", "4")),
        (1, "0-5", ("0-5", "2")),  # it stays where it is
        (1, "1-3", ("1-3", "2")),
        (1, "3-7", ("3-7", "3")),  # in part offline: taken
        (1, "0-1", ("0-1", "1")),  # CPU 0 has one already
        (2, "0,5", ("0,5", "0")),
        (3, "2-3", ("2-3", "3")),  # not started before
        (1, "5\n", ("5", "5")),
    ],
)
def test_taken(irq: int, wanted: str, after: tuple[str, str]) -> None:
    fs = HOST.fs()
    others = {each: state(fs, each) for each in range(4) if each != irq}
    fs.write(affinity(irq), wanted)
    assert state(fs, irq) == after
    assert {each: state(fs, each) for each in others} == others
    # The masks are two more windows on the same.
    assert CpuSet.parse_mask(fs.read(f"/proc/irq/{irq}/smp_affinity")) == CpuSet.parse(after[0])
    effective = fs.read(f"/proc/irq/{irq}/effective_affinity")
    assert CpuSet.parse_mask(effective) == CpuSet.parse(after[1])


def test_a_mask_is_taken_too() -> None:
    fs = HOST.fs()
    fs.write("/proc/irq/1/smp_affinity", "00000038")
    assert state(fs, 1) == ("3-5", "3")


def crowd(cpu: int, count: int, first: int) -> tuple[MadeInterrupt, ...]:
    return tuple(MadeInterrupt(first + n, affinity=str(cpu)) for n in range(count))


class TestVectors:
    """About 200 for each CPU; the CPU with the fewest is taken."""

    def fs(self, *used: int) -> MadeFs:
        many = [each for cpu, n in enumerate(used) for each in crowd(cpu, n, 1000 * (cpu + 1))]
        last = str(len(used))
        mover = MadeInterrupt(1, ("a",), affinity=last, effective=last)
        return MadeHost(online=f"0-{last}", interrupts=(mover, *many)).fs()

    @pytest.mark.parametrize(
        ("used", "wanted", "goes"),
        [
            ((3, 2, 2), "0-2", "1"),
            ((3, 2, 2), "0", "0"),
            ((0, 0, 0), "0-2", "0"),
            ((VECTORS_PER_CPU, 5, 6), "0-2", "1"),
            ((VECTORS_PER_CPU, VECTORS_PER_CPU - 1, VECTORS_PER_CPU), "0-2", "1"),
        ],
    )
    def test_least_loaded(self, used: tuple[int, ...], wanted: str, goes: str) -> None:
        fs = self.fs(*used)
        fs.write(affinity(1), wanted)
        assert state(fs, 1) == (wanted, goes)

    @pytest.mark.parametrize("wanted", ["0", "0-1"])
    def test_none_left(self, wanted: str) -> None:
        fs = self.fs(VECTORS_PER_CPU, VECTORS_PER_CPU, 0)
        before = state(fs, 1)
        with pytest.raises(OSError, match="No space left") as raised:
            fs.write(affinity(1), wanted)
        assert raised.value.errno == errno.ENOSPC
        assert state(fs, 1) == before
        fs.write(affinity(1), "0-2")
        assert state(fs, 1) == ("0-2", "2")

    def test_who_is_there_may_stay_where_it_is_full(self) -> None:
        fs = self.fs(VECTORS_PER_CPU, 0)
        fs.write(affinity(1000), "0")
        assert state(fs, 1000) == ("0", "0")

    def test_one_that_leaves_makes_room(self) -> None:
        fs = self.fs(VECTORS_PER_CPU, 0)
        with pytest.raises(OSError, match="No space left"):
            fs.write(affinity(1), "0")
        fs.write(affinity(1000), "1")
        fs.write(affinity(1), "0")
        assert state(fs, 1) == ("0", "0")
        with pytest.raises(OSError, match="No space left"):
            fs.write(affinity(1000), "0")


@given(st.lists(st.tuples(st.integers(1, 6), st.frozensets(st.integers(0, 5), min_size=1))))
def test_any_order_of_writes(writes: list[tuple[int, frozenset[int]]]) -> None:
    """The count of vectors that is kept along is the one that counting gives."""
    fs = MadeHost(online="0-5", interrupts=[MadeInterrupt(n) for n in range(1, 7)]).fs()
    for irq, cpus in writes:
        before = state(fs, irq)[1]
        fs.write(affinity(irq), str(CpuSet(cpus)))
        told, effective = state(fs, irq)
        assert CpuSet.parse(told) == CpuSet(cpus)
        assert int(effective) in cpus
        if int(before) in cpus:
            assert effective == before
    counted = Counter(int(state(fs, irq)[1]) for irq in range(1, 7))
    assert +fs._used == counted


class TestLog:
    def scratch(self, where: Path) -> Path:
        return HOST.write(where / "host", scratch=True)

    def open(self, root: Path) -> ScratchFs:
        fs = open_host(root)
        assert isinstance(fs, ScratchFs)
        return fs

    def test_a_scratch_is_known_by_its_log(self, tmp_path: Path) -> None:
        plain = open_host(HOST.write(tmp_path / "plain"))
        assert isinstance(plain, TreeFs)
        assert not plain.writable
        scratch = self.open(self.scratch(tmp_path))
        assert scratch.writable
        assert scratch.recording == str(tmp_path / "host")

    def test_writes_outlive_the_process(self, tmp_path: Path) -> None:
        root = self.scratch(tmp_path)
        fs = self.open(root)
        for irq, wanted in ((1, "4"), (2, "3-5"), (1, "0-1"), (3, "7,2")):
            fs.write(affinity(irq), wanted)
        again = self.open(root)
        for irq in range(4):
            assert state(again, irq) == state(fs, irq)
        again.write(affinity(1), "5")
        assert state(self.open(root), 1) == ("5", "5")
        assert len((root / LOG).read_text().splitlines()) == 5

    def test_the_recording_itself_is_left_alone(self, tmp_path: Path) -> None:
        root = self.scratch(tmp_path)
        self.open(root).write(affinity(1), "4")
        assert (root / affinity(1)[1:]).read_text() == "0-5\n"

    def test_refusals_are_not_logged(self, tmp_path: Path) -> None:
        root = self.scratch(tmp_path)
        with pytest.raises(OSError, match="Invalid"):
            self.open(root).write(affinity(1), "6")
        assert (root / LOG).read_text() == ""

    @pytest.mark.parametrize(
        "text",
        [
            '{"irq": 1, "affin\n',
            '{"irq": 1}\n',
            '{"irq": Infinity, "affinity": "1", "effective": "1"}\n',
            '{"irq": 1, "affinity": 1, "effective": "1"}\n',
            "[" * 100_000 + "\n",
            "{" + " " * 200_000,
            '{"irq": "x", "affinity": "1", "effective": "1"}\n',
            '{"irq": 1, "affinity": "x", "effective": "1"}\n',
            "[1]\n",
            "\0\0\0",
            "\N{SNOWMAN}",
        ],
    )
    def test_a_malformed_log_is_told(self, text: str, tmp_path: Path) -> None:
        root = self.scratch(tmp_path)
        self.open(root).write(affinity(1), "4")
        with (root / LOG).open("a") as log:
            log.write(text)
        with pytest.raises(RecordingError, match="malformed log of writes") as raised:
            open_host(root)
        assert len(str(raised.value).splitlines()) == 1

    @pytest.mark.parametrize("cut", [1, 10, 40])
    def test_a_torn_last_line_is_survived(self, cut: int, tmp_path: Path) -> None:
        """What it told has not happened; the next write takes its place."""
        root = self.scratch(tmp_path)
        fs = self.open(root)
        fs.write(affinity(1), "4")
        fs.write(affinity(2), "3")
        log = root / LOG
        log.write_bytes(log.read_bytes()[:-cut])
        again = self.open(root)
        assert (state(again, 1), state(again, 2)) == (("4", "4"), ("0", "0"))
        again.write(affinity(3), "5")
        last = self.open(root)
        assert [state(last, irq) for irq in (1, 2, 3)] == [("4", "4"), ("0", "0"), ("5", "5")]

    def test_what_others_wrote_meanwhile(self, tmp_path: Path) -> None:
        root = self.scratch(tmp_path)
        one, two = self.open(root), self.open(root)
        one.write(affinity(1), "4")
        assert state(two, 1) == ("0-5", "2")
        two.refresh()
        assert state(two, 1) == ("4", "4")
        assert two._used == one._used

    @pytest.mark.parametrize("room", [0, 1, 30])
    def test_a_full_disk_is_not_the_kernels_answer(
        self, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root = self.scratch(tmp_path)
        fs = self.open(root)
        fs.write(affinity(2), "3")
        before, log = state(fs, 1), (root / LOG).read_bytes()
        write = os.write

        def short(descriptor: int, data: bytes) -> int:
            if not room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(descriptor, data[:room])

        with monkeypatch.context() as full:
            full.setattr(os, "write", short)
            with pytest.raises(RecordingError, match="No space left on device"):
                fs.write(affinity(1), "4")
        assert state(fs, 1) == before
        assert (root / LOG).read_bytes() == log
        fs.write(affinity(1), "4")
        assert state(self.open(root), 1) == ("4", "4")

    def test_a_log_is_no_way_out(self, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "scratch.jsonl").touch()
        for name, link in (("one", LOG), ("two", "virtirq")):
            root = replace(HOST, foreign=True).write(tmp_path / name)
            (root / link).parent.mkdir(exist_ok=True)
            target = outside if link == "virtirq" else outside / "scratch.jsonl"
            (root / link).symlink_to(target)
            assert not open_host(root).writable


def test_a_log_that_is_larger_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sparse, say, and no memory would hold it."""
    root = MadeHost().write(tmp_path / "host", scratch=True)
    os.truncate(root / LOG, 1 << 40)
    with pytest.raises(RecordingError, match="more than 64 MiB"):
        open_host(root)


class TestTreesThatLackSomething:
    def test_cpus(self) -> None:
        gone = ("/sys/devices/system/cpu/online", "/sys/devices/system/cpu/possible")
        without = replace(HOST, removed=gone).fs()
        with pytest.raises(OSError, match="Invalid"):
            without.write(affinity(1), "1")
        without = replace(HOST, removed=gone[1:]).fs()
        without.write(affinity(1), "1")
        assert state(without, 1) == ("1", "1")
        with pytest.raises(OSError, match="Invalid"):
            replace(HOST, possible=" ", online=" ").fs().write(affinity(1), "1")

    def test_effective_affinity(self) -> None:
        fs = replace(HOST, removed=("/proc/irq/*/effective_affinity*",)).fs()
        fs.write(affinity(1), "3")
        assert fs.read(affinity(1)) == "3"

    def test_names_that_are_no_interrupts(self) -> None:
        odd = {f"/proc/irq/{name}/smp_affinity_list": "x" for name in ("²", "x", "-1", "1.5")}
        odd["/proc/irq/default_smp_affinity"] = "ff"
        fs = replace(HOST, files=odd).fs()
        fs.write(affinity(1), "3-4")
        assert state(fs, 1) == ("3-4", "3")


def test_everything_else_is_the_recordings() -> None:
    fs = replace(HOST, devices=(passthrough("0000:82:00.0", first_irq=50),)).fs()
    fs.write(affinity(50), "1")
    base = fs.memory
    for path in ("/sys/devices/system/cpu/online", affinity(2), "/proc/irq/1/smp_affinity"):
        assert fs.read(path) == base.read(path)
        assert fs.mode(path) == base.mode(path)
    assert fs.listdir("/proc/irq") == base.listdir("/proc/irq")
    link = "/sys/bus/pci/devices/0000:82:00.0/driver"
    assert fs.readlink(link) == base.readlink(link)
