"""The same on this machine's own /proc: real processes, under a made /sys that has VFIO devices.

A file named ``…/vfio/devices/vfio0`` stands for the device, which is a lie of `OverlaidFs`: that it
were a character device.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guests.processes.test_find import GROUPS, A, Scene
from virtirq.guests.processes.find import Found, find_processes, read_process
from virtirq.host.fs import LiveFs
from virtirq.host.statx import FileId
from virtirq.model import Guest, PciAddress

NOBODY = 65534
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root: to become somebody else")


class OverlaidFs(LiveFs):
    """This machine's /proc, and a made /sys."""

    stands_for_the_device: int | None = None
    """The inode of the file that does."""

    def __init__(self, opened: Sequence[PciAddress]) -> None:
        self._made = Scene(opened=opened).fs()

    def file_id(self, path: str) -> FileId:
        file = super().file_id(path)
        if file.ino == self.stands_for_the_device:
            return file._replace(device=f"511:{list(GROUPS).index(A)}")
        return file

    def _is_real(self, path: str) -> bool:
        return path.startswith("/proc")

    def read(self, path: str) -> str:
        return super().read(path) if self._is_real(path) else self._made.read(path)

    def beginning(self, path: str, most: int) -> bytes:
        if self._is_real(path):
            return super().beginning(path, most)
        return self._made.beginning(path, most)

    def listdir(self, path: str) -> list[str]:
        return super().listdir(path) if self._is_real(path) else self._made.listdir(path)

    def first(self, path: str, most: int) -> list[str]:
        return super().first(path, most) if self._is_real(path) else self._made.first(path, most)

    def readlink(self, path: str) -> str:
        return super().readlink(path) if self._is_real(path) else self._made.readlink(path)

    def mode(self, path: str) -> int:
        return super().mode(path) if self._is_real(path) else self._made.mode(path)


def look(pid: int | None = None) -> Found:
    fs = OverlaidFs([A])
    return find_processes(fs) if pid is None else read_process(fs, pid)


@pytest.fixture
def forgery(tmp_path: Path) -> Path:
    """A file that is called like the device A."""
    path = tmp_path / "vfio" / "devices" / f"vfio{list(GROUPS).index(A)}"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


@pytest.fixture
def device(forgery: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a process opens that has A."""
    monkeypatch.setattr(OverlaidFs, "stands_for_the_device", forgery.stat().st_ino)
    return forgery


READY = "print('ready', flush=True); sys.stdin.read()"


@contextmanager
def python(code: str, *words: str | bytes | Path) -> Iterator[int]:
    """A Python process that runs `code`, says that it is ready, and waits; its pid."""
    script = f"import ctypes, fcntl, os, sys, threading\n{code}\n{READY}"
    with subprocess.Popen(
        [sys.executable, "-c", script, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.kill()


@contextmanager
def pretender(*words: str, user: int | None = None) -> Iterator[int]:
    """A shell that waits, under a command line of somebody else's."""
    with subprocess.Popen(
        [words[0], "-c", "read x", *words[1:]],
        executable="/bin/sh",
        stdin=subprocess.PIPE,
        user=user,
        group=user,
    ) as process:
        try:
            until(lambda: b"read x" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
            yield process.pid
        finally:
            process.kill()


def until(done: Callable[[], bool]) -> None:
    for _ in range(1000):
        if done():
            return
        time.sleep(0.005)
    raise TimeoutError


def become(change: Callable[[], None], then: Callable[[], Found]) -> Found:
    """What `then` gives in a process of its own, after `change` there."""
    back, to = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(back)
            change()
            os.write(to, pickle.dumps(then()))
        finally:
            os._exit(0)
    os.close(to)
    with os.fdopen(back, "rb") as answer:
        told = answer.read()
    os.waitpid(child, 0)
    found = pickle.loads(told)
    assert isinstance(found, Found)
    return found


def guest_of(found: Found, pid: int) -> Guest:
    (guest,) = (each for each in found.guests if each.pid == pid)
    return guest


def test_a_process_that_has_a_device(device: Path) -> None:
    code = """
held = open(sys.argv[1])
os.sched_setaffinity(0, {0})
"""
    with python(code, device) as pid:
        guest = guest_of(look(), pid)
        assert look(pid).guests == (guest,)
        assert guest.name.endswith(f"-{pid}")
        assert guest.kind == "process"
        assert [each.address for each in guest.devices] == [A]
        assert [str(vcpu.cpus) for vcpu in guest.vcpus] == ["0"]


def test_a_file_that_is_called_like_a_device(forgery: Path) -> None:
    with python("held = open(sys.argv[1])", forgery) as pid:
        assert look(pid) == Found()
        assert all(guest.pid != pid for guest in look().guests)


def test_a_device_that_nobody_opened(device: Path) -> None:
    """By O_PATH anybody can have a descriptor of what they may not open."""
    with python("held = os.open(sys.argv[1], os.O_PATH)", device) as pid:
        assert look(pid) == Found()


def test_by_one_of_its_threads(device: Path) -> None:
    code = """
held = open(sys.argv[1])
threading.Thread(target=sys.stdin.read, daemon=True).start()
"""
    with python(code, device) as pid:
        for tid in os.listdir(f"/proc/{pid}/task"):
            assert guest_of(look(int(tid)), pid)


NAMES = [b"a\n) S 1 2 3 (", b"\xff\xfe\x80", b"CPU 0/KVM", b"CPU 99999/KVM", b"\x1b[2J", b""]


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_of_threads(device: Path, name: bytes) -> None:
    code = f"""
held = open(sys.argv[1])
ctypes.CDLL(None).prctl(15, {name!r})  # PR_SET_NAME
"""
    with python(code, device) as pid:
        guest = guest_of(look(), pid)
        assert guest.name.isprintable()
        assert guest.vcpus


ARGUMENTS: dict[str, Sequence[bytes]] = {
    "line feeds": [b"a\nb", b"\n" * 100],
    "no text": [b"\xff\xfe", b"\x80" * 1000],
    "two megabytes": [b"x" * 100_000] * 15,
    "a hundred thousand": [b"", *[b"-device"] * 100_000],
    "a lie": [b"-device", f"vfio-pci,host={A}".encode(), b"-name", b"\x1b]0;x\x07"],
}


@pytest.mark.parametrize("words", ARGUMENTS.values(), ids=ARGUMENTS)
def test_hostile_arguments(device: Path, words: Sequence[bytes]) -> None:
    with python("held = open(sys.argv[1])", device, *words) as pid:
        guest = guest_of(look(), pid)
        assert guest.name.isprintable()
        assert [each.address for each in guest.devices] == [A]


def test_arguments_that_are_written_over(device: Path) -> None:
    """A process may change its own: here to one word of 128 KiB and more."""
    code = """
held = open(sys.argv[1])
with open("/proc/self/stat") as stat:
    start, end = (int(each) for each in stat.read().rpartition(")")[2].split()[45:47])
ctypes.memset(start, ord("q"), end - start - 1)
"""
    with python(code, device, *["y" * 100_000] * 4) as pid:
        assert guest_of(look(), pid).name.isprintable()


STRETCH = """
class Map(ctypes.Structure):  # struct prctl_mm_map
    _fields_ = [(f"f{n}", ctypes.c_uint64) for n in range(12)]
    _fields_ += [("size", ctypes.c_uint32), ("exe", ctypes.c_uint32)]
held = open(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.syscall.restype = ctypes.c_long
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
size = 16 << 20
at = libc.mmap(None, size, 3, 0x22, -1, 0)
ctypes.memset(at, ord("a"), size - 2)
with open("/proc/self/stat") as stat:
    told = [0, *stat.read().rpartition(")")[2].split()]
code, data, env = told[24:26], told[43:45], told[48:50]
code, data, env = ([int(each) for each in pair] for pair in (code, data, env))
brk, stack = int(told[45]), int(told[26])
made = Map(*code, *data, brk, libc.syscall(12, 0), stack, at, at + size - 1, *env, 0, 0, 2**32 - 1)
if libc.prctl(35, 14, ctypes.byref(made), ctypes.sizeof(made), 0):  # PR_SET_MM, PR_SET_MM_MAP
    sys.exit(os.strerror(ctypes.get_errno()))
"""


def test_arguments_of_sixteen_megabytes(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user can have them: prctl(PR_SET_MM_MAP) moves the borders of one's own."""
    real, taken = os.read, []

    def read(descriptor: int, most: int) -> bytes:
        taken.append(len(content := real(descriptor, most)))
        return content

    with python(STRETCH, device) as pid:
        with open(f"/proc/{pid}/cmdline", "rb") as arguments:
            assert len(arguments.read()) > 15 << 20, "the process has them"
        monkeypatch.setattr(os, "read", read)
        guest = guest_of(look(pid), pid)
    assert guest.name.isprintable()
    assert sum(taken) < 8 << 20, "a bounded part, a few times"


def test_processes_that_end_while_they_are_read(device: Path) -> None:
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            with subprocess.Popen(["/bin/sh", "-c", f"exec 9<'{device}'; :"]):
                pass

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(25):
            found = look()
            assert {guest.kind for guest in found.guests} <= {"process"}
    finally:
        over.set()
        worker.join()


def can_kvm() -> bool:
    try:
        with open("/dev/kvm", "rb+", buffering=0) as kvm:
            os.close(fcntl.ioctl(kvm, 0xAE01, 0))  # KVM_CREATE_VM
    except OSError:
        return False
    return True


needs_kvm = pytest.mark.skipif(not can_kvm(), reason="needs KVM")


@needs_kvm
def test_a_forked_process_serves_its_parent(device: Path) -> None:
    code = """
there, at_work = os.pipe()
child = os.fork()
if not child:
    held = open(sys.argv[1])
    os.write(at_work, b"x")
    os.read(os.pipe()[0], 1)
os.read(there, 1)
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)  # KVM_CREATE_VM
vcpu = fcntl.ioctl(vm, 0xAE41, 0)  # KVM_CREATE_VCPU
"""
    with python(code, device) as pid:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        try:
            guest = guest_of(look(), pid)
            assert guest.kind == "machine"
            assert look(pid).guests == look(int(children[0])).guests == (guest,)
        finally:
            os.kill(int(children[0]), signal.SIGKILL)


@needs_kvm
def test_vcpus_of_kvm(device: Path) -> None:
    code = """
held = open(sys.argv[1])
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)  # KVM_CREATE_VM
vcpus = [fcntl.ioctl(vm, 0xAE41, number) for number in (0, 5)]  # KVM_CREATE_VCPU
"""
    with python(code, device) as pid:
        guest = guest_of(look(), pid)
        assert guest.kind == "machine"
        assert [vcpu.index for vcpu in guest.vcpus] == [0, 1]
        assert {vcpu.cpus for vcpu in guest.vcpus} == {guest.emulator}


QEMU = ("qemu-system-x86_64", "-name", "web", "-device", f"vfio-pci,host={A}")


@needs_root
class TestWithoutRights:
    def to_nobody(self) -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)

    def without_capabilities(self) -> None:
        """As a unit with CapabilityBoundingSet= has it: root, and nothing more."""
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        nothing = (ctypes.c_uint32 * 6)()
        assert libc.capset(header, nothing) == 0

    def test_root_sees_all(self) -> None:
        with pretender(*QEMU):
            found = look()  # it has nothing open
            assert (found.guests, found.claimed) == ((), ())

    @pytest.mark.parametrize("who", ["to_nobody", "without_capabilities"])
    def test_roots_word_is_believed(self, who: str) -> None:
        with pretender(*QEMU) as pid:
            found = become(getattr(self, who), look)
            guest = guest_of(found, pid)
            assert (guest.name, guest.kind, guest.vcpus) == ("web", "machine", ())
            assert [gap.path for gap in found.gaps] == [f"/proc/{pid}/task"]

    def test_anothers_is_a_claim(self) -> None:
        with pretender(*QEMU, user=1234) as pid:
            found = become(self.to_nobody, look)
            assert found.guests == ()
            assert [guest.pid for guest in found.claimed] == [pid]
            assert {gap.path for gap in found.gaps} == {"/proc/*/fd/*", f"/proc/{pid}/task"}

    def test_ones_own_is_seen(self) -> None:
        with pretender(*QEMU, user=NOBODY):
            found = become(self.to_nobody, look)
            assert (found.guests, found.claimed) == ((), ())

    def test_of_one_process(self, device: Path) -> None:
        with python("held = open(sys.argv[1])", device) as pid:
            found = become(self.to_nobody, lambda: look(pid))
            assert found.guests == ()
            assert [gap.path for gap in found.gaps] == [f"/proc/{pid}/fd/*"]
