"""How soon the daemon writes after the kernel has told of vectors: ``python -m bench.reacting``.

The daemon is the one that is installed, but for the kernel's events: those come through a pipe, in
the words of a trace_pipe, onto a made host (`bench.tree`). Each round sets vectors up anew, so that
the daemon sees what a guest's driver does: other interrupts under the same numbers. Beside it, in
turns, a loop in C that reads the same pipe and does nothing but write (`floors react`). Then the
same while somebody scrapes its metrics, and while somebody asks for its status, without a pause.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import mmap
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import measure, tree
from bench.measure import Row, Spread

VECTORS: Final = 257
LISTEN: Final = "127.0.0.1:9719"
_PAUSE: Final = 0.03
_SHARED: Final = struct.Struct("4q")  # told at, first write, last write, how many: nanoseconds
_HEAD: Final = "           <...>-4001    [001]   {at:.6f}: "
_AIMS: Final = {
    ("a vector", "first"): "3.5",
    (f"{VECTORS} vectors", "first"): "300 µs",
    (f"{VECTORS} vectors", "last"): "8",
}
_WROTE: Final = re.compile(r'write\(\d+, "\d+", \d\)')
_INTERFERES: Final = ("", "scraped", "asked")


class Reaction(NamedTuple):
    """Seconds from what was told to the first and to the last write, of each round."""

    first: list[float]
    last: list[float]


class Shared:
    """What the teller and who reacts share."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR)
        self._memory = mmap.mmap(descriptor, 4096)
        os.close(descriptor)

    def begin(self) -> None:
        _SHARED.pack_into(self._memory, 0, time.monotonic_ns(), 0, 0, 0)

    def wrote(self) -> None:
        at, (told, first, _, count) = time.monotonic_ns(), _SHARED.unpack_from(self._memory)
        _SHARED.pack_into(self._memory, 0, told, first or at, at, count + 1)

    @property
    def now(self) -> tuple[int, int, int, int]:
        return _SHARED.unpack_from(self._memory)


class Reactor:
    """A process that reads what is told from its standard input."""

    def __init__(self, shared: Path, command: Sequence[str]) -> None:
        self._shared = Shared(str(shared))
        theirs, self._pipe = os.pipe()
        self._process = subprocess.Popen(command, stdin=theirs)
        os.close(theirs)

    @property
    def pid(self) -> int:
        return self._process.pid

    def round(self, irqs: Sequence[int]) -> tuple[float, float]:
        """Seconds to the first and to the last write of a burst."""
        _set_up_anew(irqs)
        time.sleep(_PAUSE)
        lines = "".join(_lines(number, irq) for number, irq in enumerate(irqs)).encode()
        self._shared.begin()
        os.write(self._pipe, lines)
        until = time.monotonic() + 20
        while self._shared.now[3] < len(irqs):
            time.sleep(_PAUSE)
            assert time.monotonic() < until, f"{self._shared.now[3]} of {len(irqs)} moved"
        told, first, last, _ = self._shared.now
        return (first - told) / 1e9, (last - told) / 1e9

    def close(self) -> None:
        os.close(self._pipe)
        self._process.terminate()
        self._process.wait()


def _lines(number: int, irq: int) -> str:
    head = _HEAD.format(at=time.monotonic())
    name = f"vfio-msix[{number}]({tree.address_of(0)})"
    return (
        f'{head}requested: (request_threaded_irq+0x0/0x1a0) irq={irq} name="{name}"\n'
        f"{head}in_place: (vfio_msi_set_vector_signal+0x1b3/0x2e0 [vfio_pci_core] <-"
        " request_threaded_irq)\n"
    )


def _set_up_anew(irqs: Sequence[int]) -> None:
    """The interrupts are where the kernel puts them, and others than before."""
    for irq in irqs:
        Path(f"/proc/irq/{irq}/smp_affinity_list").write_text(f"{tree.ELSEWHERE}")
        here, fresh = f"/sys/kernel/irq/{irq}", f"/sys/kernel/irq/{irq}.new"
        os.mkdir(fresh)
        for name in os.listdir(here):
            os.rename(f"{here}/{name}", f"{fresh}/{name}")
        os.rmdir(here)
        os.rename(fresh, here)


def react(shared: str, domains: Sequence[str]) -> None:
    """Be the daemon, hearing of vectors from standard input."""
    from virtirq.control import sources
    from virtirq.daemon import kernel_events, service
    from virtirq.daemon.log import set_up
    from virtirq.host import fs
    from virtirq.policy import pace
    from virtirq.policy.config import parse_config
    from virtirq.ui.verbs import daemon

    told = Shared(shared)

    class Piped(kernel_events.KernelEvents):
        def _make(self, _: int) -> None:
            os.set_blocking(0, False)
            self._pipe, self.described = 0, "a pipe"

        def _remove(self) -> None:
            pass

        def _set(self, name: str, value: str) -> None:
            pass

    def wrote(write: Callable[..., Any]) -> Callable[..., Any]:
        def written(*arguments: Any) -> Any:
            done = write(*arguments)
            told.wrote()
            return done

        return written

    fs._LiveFile.write = wrote(fs._LiveFile.write)  # type: ignore[method-assign]
    here: Any = (service, pace)
    here[0].open_kernel_events = lambda: Piped(Path("/"), 0)
    here[1].AT_ONCE = 1 << 30  # a guest is not slowed down here
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    config = parse_config([("bench", f'[metrics]\nlisten = "{LISTEN}"\n')])
    with suppress(SystemExit):
        service.run(
            service.Setup(
                state=Path("/run/virtirq"),
                load=lambda: config,
                uri=None,
                guests=sources.load_guests(fs.LiveFs(), [Path(each) for each in domains]),
                serve=daemon._serve,
            ),
            set_up(),
        )


def bare(shared: str, state: str) -> None:
    """The daemon's system calls until its write, in asyncio, and next to nothing beside them.

    What a reaction takes because it is Python's, whatever it decides.
    """
    told = Shared(shared)
    os.set_blocking(0, False)
    directory = os.open(state, os.O_RDONLY)
    journal = os.open(f"{state}/journal", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    lock = os.open(f"{state}/lock", os.O_RDWR | os.O_CREAT)
    line = re.compile(rb' irq=(\d+) name="([^"]*)"')

    rest = b""

    def act() -> None:
        nonlocal rest
        text, _, rest = (rest + os.read(0, 1 << 16)).rpartition(b"\n")
        for irq, name in line.findall(text):
            at = f"/proc/irq/{int(irq)}"
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat("journal", dir_fd=directory)
            file = os.open(f"{at}/smp_affinity_list", os.O_RDWR | os.O_CLOEXEC)
            which = os.stat(f"/sys/kernel/irq/{int(irq)}").st_ino
            os.access(f"{at}/{name.decode()}/", os.F_OK)
            before = os.pread(file, 4096, 0)
            os.write(journal, b'{"irq": %b, "before": "%b", "of": %d}\n' % (irq, before, which))
            os.fsync(journal)
            os.write(file, b"%d" % (tree.ELSEWHERE - 1))
            told.wrote()
            os.close(file)
            fcntl.flock(lock, fcntl.LOCK_UN)

    async def main() -> None:
        asyncio.get_running_loop().add_reader(0, act)
        await asyncio.Event().wait()

    gc.freeze()
    asyncio.run(main())


@contextmanager
def _interference(how: str) -> Iterator[None]:
    """Somebody scrapes, or asks, without a pause, in a process of its own."""
    if not how:
        yield
        return
    child = os.fork()
    if child == 0:
        os.nice(5)  # on two CPUs, who asks takes one, and not the daemon's
        while True:
            try:
                (_scrape if how == "scraped" else _ask)()
            except OSError:
                time.sleep(0.01)
    try:
        time.sleep(0.5)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _scrape() -> None:
    with urllib.request.urlopen(f"http://{LISTEN}/metrics", timeout=60) as answer:
        answer.read()


def _ask() -> None:
    from virtirq.control.daemon_status import ask

    ask(Path("/run/virtirq"))


def measured(rounds: int, floors: str, guests: int = 50) -> list[Row]:
    """One vector, and all of a device at once; on a host with so many guests."""
    found = tree.Tree(guests, VECTORS)
    rows = []
    try:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
            shared = Path(directory, "shared")
            shared.write_bytes(bytes(4096))
            files = [each for each in found.domains if each != "--domain"]
            us = [sys.executable, "-m", "bench.reacting", "--react", str(shared), *files]
            less = [sys.executable, "-m", "bench.reacting", "--bare", str(shared), directory]
            reactors = [
                Reactor(shared, [floors, "react", str(shared), str(tree.ELSEWHERE - 1)]),
                Reactor(shared, us),
                Reactor(shared, less),
            ]
            _wait_for_daemon()
            for count in (1, VECTORS):
                rows += _compared(reactors, found.irqs[:count], rounds)
            for each in reactors:
                each.close()
            calls = _counted(shared, us, found.irqs)
            rows = [row._replace(calls=calls.get(row.name)) for row in rows]
    finally:
        found.close()
    return rows


def _counted(shared: Path, us: Sequence[str], irqs: Sequence[int]) -> dict[str, float]:
    """System calls of the daemon from what it is told to its writes; for each of many to the last.

    Those of its loop: other threads wait meanwhile.
    """
    found: dict[str, float] = {}
    daemon = Reactor(shared, us)
    _wait_for_daemon()
    for count in (1, VECTORS):
        daemon.round(irqs[:count])
        with tempfile.NamedTemporaryFile("r") as log:
            words = ["strace", "-qq", "-o", log.name, "-p", str(daemon.pid)]
            with subprocess.Popen(words) as tracer:
                time.sleep(1)
                daemon.round(irqs[:count])
                tracer.terminate()
            lines = log.read().splitlines()
        told = next(n for n, line in enumerate(lines) if line.startswith('read(0, "'))
        wrote = [n for n, line in enumerate(lines) if _WROTE.match(line)]
        what = "a vector" if count == 1 else f"{count} vectors"
        found[f"{what}, first write"] = wrote[0] - told + 1
        found[f"{what}, last write"] = (wrote[-1] - told + 1) / count
    daemon.close()
    return found


def _wait_for_daemon() -> None:
    for _ in range(600):
        with suppress(OSError):
            _scrape()
            return
        time.sleep(0.1)
    raise AssertionError("the daemon does not start")


def _compared(reactors: Sequence[Reactor], irqs: Sequence[int], rounds: int) -> list[Row]:
    daemon = reactors[1]
    for each in reactors:
        each.round(irqs)
    turns = [[each.round(irqs) for each in reactors] for _ in range(rounds)]
    rows = []
    what = "a vector" if len(irqs) == 1 else f"{len(irqs)} vectors"
    idle = {}
    for at, name in enumerate(("first", "last")[: 1 if len(irqs) == 1 else 2]):
        least = [turn[0][at] for turn in turns]
        for number, how in enumerate((", in C", "", ", the same calls in bare Python")):
            took = [turn[number][at] for turn in turns]
            ratio = Spread.of([b / a for a, b in zip(least, took, strict=True)]) if number else None
            aim = "" if how else _AIMS[what, name]
            spread = Spread.of([each * 1e6 for each in took])
            rows.append(Row(f"{what}, {name} write{how}", spread, "µs", ratio, aim=aim))
            if number == 1:
                idle[at] = spread.median / 1e6
    for how in _INTERFERES[1:]:
        with _interference(how):
            busy = [daemon.round(irqs) for _ in range(rounds)]
        for at, before in idle.items():
            ours = [each[at] for each in busy]
            name = f"{what}, {('first', 'last')[at]} write, while it is {how}"
            spread = Spread.of([each * 1e6 for each in ours])
            rows.append(
                Row(name, spread, "µs", Spread.of([each / before for each in ours]), "idle")
            )
    return rows


def main() -> None:
    if sys.argv[1:2] == ["--react"]:
        react(sys.argv[2], sys.argv[3:])
        return
    if sys.argv[1:2] == ["--bare"]:
        bare(*sys.argv[2:])
        return
    tree.go_inside()
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    guests = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    print(measure.table(measured(rounds, measure.compiled("floors"), guests)))


if __name__ == "__main__":
    main()
