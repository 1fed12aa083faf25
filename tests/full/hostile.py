"""What a user without rights can do to the daemon of a host: runs in the lab, as such a user.

usage: hostile.py DIRECTORY UUID KIND[=PROCESSES]…   until it is ended; UUID is a guest's

Each kind of mischief goes on in processes of its own; "ready" is printed once all are at it. At the
end (SIGTERM) it prints one line of JSON: how often each kind has done what it does.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

STATE: Final = "/run/virtirq"
STATUS: Final = f"{STATE}/daemon.sock"
NAMES: Final = (
    *("journal.jsonl", "lock", "daemon.lock", "bans.json"),
    *("daemon.sock", "own.sock", "hold.sock"),
)
"""What it has there."""
METRICS: Final = ("127.0.0.1", 9736)
MONITOR: Final = "/run/lab/somebodys.sock"
"""A socket of root's that no guest listens at."""
DEVICE: Final = "0000:41:00.0"
NASTY: Final = "x\n\x1b[2J\x1b[31m\x07\u202e"
QEMU: Final = b"qemu-system-x86_64"
STRETCHED: Final = 64 << 20
OPTIONS: Final = 16383
DESCRIPTORS: Final = 200
"""Of each process; 31 of them have many times what all others on the host have together, and not
more than an emulated host can look through in seconds."""
PAUSE: Final = 0.02
"""Seconds between what costs the host more than the daemon: a new program, a write that fails."""

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_NAME: Final = 15
_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_ME: Final = "/proc/self"


class Work(NamedTuple):
    """What a process of a kind is given: its number, a directory to play in, and a guest's UUID.

    `ready` is to be called once it is at it, `done` each time.
    """

    number: int
    directory: Path
    uuid: str
    ready: Callable[[], None]
    done: Callable[[], None]


# How a process looks.


class _Map(ctypes.Structure):
    """struct prctl_mm_map (include/uapi/linux/prctl.h)."""

    _fields_ = [
        *(
            (name, ctypes.c_uint64)
            for name in (
                *("start_code", "end_code", "start_data", "end_data", "start_brk", "brk"),
                *("start_stack", "arg_start", "arg_end", "env_start", "env_end", "auxv"),
            )
        ),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    ]


_shown: list[mmap.mmap] = []
"""What is to stay as long as the process."""


def show(arguments: bytes, size: int = 0) -> None:
    """Have /proc show this as our command line, and NULs up to `size`.

    Anybody may, of itself: prctl(PR_SET_MM_MAP) asks for no capability (kernel/sys.c,
    prctl_set_mm_map()).
    """
    # Of no file, a shared memory's neither: FOLL_ANON (fs/proc/base.c, get_mm_cmdline()).
    memory = mmap.mmap(-1, max(size, len(arguments) + 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(arguments)
    _shown.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fields = Path(_ME, "stat").read_text().rpartition(")")[2].split()
    numbers = {number: int(fields[number - 3]) for number in (26, 27, 28, *range(45, 52))}
    code_start, code_end, stack = (numbers[each] for each in (26, 27, 28))
    data_start, data_end, heap, _, _, environ_start, environ_end = (
        numbers[each] for each in range(45, 52)
    )
    _libc.sbrk.restype = ctypes.c_void_p
    told = _Map(
        *(code_start, code_end, data_start, data_end, heap, _libc.sbrk(0) or heap, stack),
        *(start, start + len(memory) - 1, environ_start, environ_end, 0, 0, 0xFFFFFFFF),
    )
    _prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.addressof(told), ctypes.sizeof(told), 0)


def call(name: bytes) -> None:
    """Give this thread a name."""
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(name[:15]), 0, 0, 0)


def _prctl(option: int, *arguments: object) -> None:
    rest = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if _libc.prctl(option, *rest) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"prctl({option})")


def words(*each: str | bytes) -> bytes:
    return b"\0".join(one.encode() if isinstance(one, str) else one for one in each)


def wait_for_ever() -> None:
    while True:
        signal.pause()


# Clients of its sockets.


def hang_up(work: Work) -> None:
    """Connects to the status socket and hangs up, as fast as it can."""
    for connection in connections(work):
        connection.close()


def never_read(work: Work) -> None:
    """Connects to the status socket and does not read, as fast as it can."""
    kept: list[socket.socket] = []
    for connection in connections(work):
        kept = [*kept[-200:], connection]


def connections(work: Work) -> Iterator[socket.socket]:
    work.ready()
    while True:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(1)
        try:
            connection.connect(STATUS)
        except OSError:  # there is none just now, or its queue is full
            connection.close()
            time.sleep(0.001)
            continue
        work.done()
        yield connection


def scrape(work: Work) -> None:
    """Connects to the metrics port: says nothing, or anything, or hangs up."""
    says = (b"", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x1b[31m\r\n\r\n", b"GET /" * 9999)
    kept: list[socket.socket] = []
    work.ready()
    for number in range(1 << 62):
        with suppress(OSError):
            connection = socket.create_connection(METRICS, timeout=1)
            connection.send(says[number % len(says)])
            kept = [*kept[-8:], connection]
            work.done()
        time.sleep(PAUSE)


# Threads and programs.

# while (count--) if (!clone(THREAD_OF_ITS_PARENT, 0)) exit(0), which needs no stack of the thread's
_END_THREADS: Final = bytes.fromhex(
    "53 89fb"  # push rbx; mov ebx, edi
    "b838000000 bf004f0100 31f6 31d2 4d31d2 4d31c0 0f05"  # again: clone(0x14f00, 0, 0, 0, 0)
    "85c0 7507 b83c000000 0f05"  # in the thread: exit
    "ffcb 75db 5b c3"  # dec ebx; jnz again; pop rbx; ret
)
"""0x14f00 is CLONE_VM, FS, FILES, SIGHAND, THREAD, and VFORK: its parent waits for its end."""


def end_threads(work: Work) -> None:
    """Threads that end at once, as many as it can, up to 5,000 a second."""
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(_END_THREADS)
    run = ctypes.CFUNCTYPE(None, ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    work.ready()
    at = time.monotonic()
    while True:
        run(50)
        for _ in range(50):
            work.done()
        at = max(at + 0.01, time.monotonic() - 0.1)
        time.sleep(max(0.0, at - time.monotonic()))


def start_irqbalance(work: Work) -> None:
    """Starts programs that are called irqbalance, one of them by a path that has line feeds."""
    programs = []
    for name in ("bin", "a\n\n virtirq: error: b"):
        directory = work.directory / f"{work.number}{name}"
        directory.mkdir()
        program = directory / "irqbalance"
        program.write_bytes(Path("/bin/true").read_bytes())
        program.chmod(0o755)
        programs.append(str(program))
    work.ready()
    while True:
        for each in programs:
            pid = os.posix_spawn(each, [NASTY, "-f"], {})
            os.waitpid(pid, 0)
            work.done()
        time.sleep(PAUSE)


def move_others(work: Work) -> None:
    """Asks for other CPUs for every thread of others' virtual machines."""
    threads = [
        int(each.name)
        for pid in Path("/proc").glob("[0-9]*")
        if (pid / "comm").exists() and "qemu" in (pid / "comm").read_text()
        for each in (pid / "task").iterdir()
    ]
    work.ready()
    while True:
        for thread in threads:
            with suppress(OSError):
                os.sched_setaffinity(thread, {0})
            work.done()
        time.sleep(PAUSE)


def move_own(work: Work) -> None:
    """Sends its own thread to and fro between its CPUs, as fast as it can."""
    cpus = sorted(os.sched_getaffinity(0))
    call(b"CPU 0/KVM")
    work.ready()
    while True:
        for each in cpus:
            os.sched_setaffinity(0, {each})
            work.done()


# Processes that pose as guests.


def pose(work: Work) -> None:
    """As the guest itself, twice: its UUID and name, its device, threads called like vCPUs."""
    os.sched_setaffinity(0, {0})
    show(
        words(
            *(QEMU, "-name", "guest=live,debug-threads=on", "-uuid", work.uuid),
            *("-device", f"vfio-pci,host={DEVICE}", "-qmp", f"unix:{MONITOR}"),
            *("-chardev", f"socket,id=m,path={MONITOR}", "-mon", "chardev=m,mode=control", b""),
        )
    )
    call(b"CPU %d/KVM" % work.number)
    _hold(work, "vfio/devices/vfio0", "vfio/9", "dev/vfio/noiommu-0")
    work.ready()
    wait_for_ever()


def _hold(work: Work, *names: str) -> list[int]:
    """Files by names that devices have."""
    held = []
    for name in names:
        path = work.directory / str(work.number) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        held.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
        held.append(os.open(path, os.O_PATH))
    held.append(os.memfd_create("/dev/vfio/devices/vfio0"))
    for name in ("/dev/vfio/vfio", "/dev/kvm", "/dev/vfio/1"):
        with suppress(OSError):
            held.append(os.open(name, os.O_RDWR if name == "/dev/kvm" else os.O_PATH))
    return held


def pose_in_namespaces(work: Work) -> None:
    """As who holds /dev/vfio/devices/vfio0, in a mount namespace in which that is its own file."""
    user, group, namespaces = os.getuid(), os.getgid(), _CLONE_NEWUSER | _CLONE_NEWNS
    if _libc.unshare(namespaces) == 0 == _libc.mount(b"none", b"/dev", b"tmpfs", 0, None):
        Path(_ME, "setgroups").write_text("deny")
        Path(_ME, "uid_map").write_text(f"0 {user} 1")
        Path(_ME, "gid_map").write_text(f"0 {group} 1")
        Path("/dev/vfio/devices").mkdir(parents=True)
        for name in ("vfio/devices/vfio0", "vfio/0", "vfio/vfio"):
            os.set_inheritable(os.open(f"/dev/{name}", os.O_RDWR | os.O_CREAT, 0o666), True)
        work.done()
    show(words(QEMU, "-name", "in-a-namespace", "-device", f"vfio-pci,host={DEVICE}", b""))
    call(b"CPU 0/KVM")
    work.ready()
    wait_for_ever()


def answer(work: Work) -> None:
    """A monitor of a guest that is none, which has ever more to say to whoever connects."""
    path = str(work.directory / "monitor")
    show(words(QEMU, "-name", "answers", "-uuid", work.uuid, "-qmp", f"unix:{path}", b""))
    call(b"CPU 1/KVM")
    held = _hold(work, "vfio/devices/vfio4")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    os.chmod(path, 0o666)
    listening.listen()
    work.ready()
    while held:
        connection, _ = listening.accept()
        work.done()
        with suppress(OSError):
            connection.sendall(b'{"QMP": {"version": ')
            while True:
                connection.sendall(b"[" * 65536)


def stretch(work: Work) -> None:
    """A command line of megabytes, much of it QEMU's, in a process that may hold a device."""
    held = words(QEMU, "-name", NASTY) + b"\0-device\0vfio-pci,id=a" * (1 << 15)
    show(held, STRETCHED)
    call(b"qemu")
    _hold(work, "vfio/devices/vfio1")
    work.ready()
    wait_for_ever()


def square(work: Work) -> None:
    """As many -set as -device, each of which may concern each."""
    many = b"\0-device\0id=a" * OPTIONS + b"\0-set\0device.a.k=v" * OPTIONS
    show(words(QEMU, "-name", "square") + many)
    call(b"qemu")
    _hold(work, "vfio/devices/vfio2")
    work.ready()
    wait_for_ever()


def open_files(work: Work) -> None:
    """Many descriptors, of the kind whose links have to be looked at."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    call(b"qemu-kvm")
    path = work.directory / "vfio-of-none"
    path.touch()
    file = os.open(path, os.O_RDONLY)
    for _ in range(min(DESCRIPTORS, hard - 16)):
        os.dup(file)
        work.done()
    work.ready()
    wait_for_ever()


def name_nastily(work: Work) -> None:
    """Processes whose names are made to be read on a terminal, and that may hold a device."""
    show(words(QEMU, "-name", NASTY, "-device", f"vfio-pci,host={DEVICE}", b""))
    call(NASTY.encode())
    _hold(work, f"{NASTY}/vfio/devices/vfio3")
    work.ready()
    wait_for_ever()


# What is the daemon's.


def break_in(work: Work) -> None:
    """Opens, locks, replaces and links what is in the daemon's directory, or tries to."""
    tries: list[Callable[[Path], object]] = [
        lambda file: fcntl.flock(os.open(file, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB),
        lambda file: os.open(file, os.O_WRONLY | os.O_APPEND),
        lambda file: file.unlink(),
        lambda file: file.rename(work.directory / "mine"),
        lambda file: (file.parent / "mine").symlink_to(work.directory),
    ]
    work.ready()
    while True:
        for name in NAMES:
            for each in tries:
                try:
                    each(Path(STATE, name))
                except OSError:
                    continue
                work.done()
        time.sleep(10 * PAUSE)


KINDS: Final[dict[str, Callable[[Work], None]]] = {
    each.__name__: each
    for each in (
        *(hang_up, never_read, scrape, end_threads, start_irqbalance, move_others, move_own),
        *(pose, pose_in_namespaces, answer, stretch, square, open_files, name_nastily, break_in),
    )
}


# All of them.


class Shared:
    """Numbers that processes share with who has forked them."""

    def __init__(self, count: int) -> None:
        self._memory = mmap.mmap(-1, 8 * count)

    def add(self, place: int) -> None:
        struct.pack_into("q", self._memory, 8 * place, self[place] + 1)

    def __getitem__(self, place: int) -> int:
        return int(struct.unpack_from("q", self._memory, 8 * place)[0])


@contextmanager
def ended_by_signal() -> Iterator[None]:
    def end(*_: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, end)
    with suppress(SystemExit):
        yield


def main(directory: str, uuid: str, *asked: str) -> None:
    os.umask(0o022)
    kinds = [(name, int(count or 1)) for name, _, count in (each.partition("=") for each in asked)]
    todo = [(name, number) for name, count in kinds for number in range(count)]
    ready, done = Shared(len(todo)), Shared(len(todo))
    children = []
    try:
        with ended_by_signal():
            for place, (name, number) in enumerate(todo):
                pid = os.fork()
                if not pid:
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
                    try:
                        KINDS[name](
                            Work(
                                number,
                                Path(directory, name),
                                uuid,
                                lambda place=place: ready.add(place),  # type: ignore[misc]
                                lambda place=place: done.add(place),  # type: ignore[misc]
                            )
                        )
                    finally:
                        print(f"{name} has ended", file=sys.stderr, flush=True)
                        traceback.print_exc()
                        os._exit(1)
                children.append(pid)
            while not all(ready[place] for place in range(len(todo))):
                if os.waitpid(-1, os.WNOHANG) != (0, 0):
                    raise SystemExit  # it has said why
                time.sleep(0.05)
            print("ready", flush=True)
            wait_for_ever()
    finally:
        for pid in children:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    counts: dict[str, int] = {}
    for place, (name, _) in enumerate(todo):
        counts[name] = counts.get(name, 0) + done[place]
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
