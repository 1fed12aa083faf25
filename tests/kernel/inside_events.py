"""The kernel's events, on a running kernel; booted and reported by `test_lab.py`."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from lab.guest import E1000E, bind, find
from lab.vfio import HeldDevice
from tests.kernel.commands import Forked
from virtirq.daemon.kernel_events import MUTABLE, KernelEvents, open_kernel_events
from virtirq.daemon.thread_filter import runs_of
from virtirq.errors import UnavailableError
from virtirq.host.events import EventKind, KernelEvent
from virtirq.host.uevents import Uevents

TRACEFS = Path("/sys/kernel/tracing")
PYTHON = (sys.executable, "-I", "-S")


@pytest.fixture(scope="module")
def bdf() -> str:
    if not (TRACEFS / "instances").is_dir():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACEFS)], check=True)
    found = find(E1000E)[0]
    bind(found)
    return found


@pytest.fixture
def events(bdf: str) -> Iterator[KernelEvents]:
    stream = open_kernel_events()
    yield stream
    stream.close()
    assert leftovers() == []


def leftovers() -> list[str]:
    names = [each.name for each in (TRACEFS / "instances").iterdir()]
    names += [each.name for each in (TRACEFS / "events").iterdir() if each.name == "virtirq"]
    return names + (TRACEFS / "kprobe_events").read_text().splitlines()


def gather(stream: KernelEvents, seconds: float = 0.5) -> list[KernelEvent]:
    """What the stream gives until nothing has come for so long; waits with epoll, as asyncio."""
    poll = select.epoll()
    poll.register(stream.fileno(), select.EPOLLIN)
    found: list[KernelEvent] = []
    while poll.poll(seconds):
        found += chain.from_iterable(stream.read())
    poll.close()
    assert not stream.lost
    return found


def seen(found: list[KernelEvent], kind: EventKind) -> dict[int, KernelEvent]:
    return {each.irq: each for each in found if each.kind is kind}


def test_a_vector_is_told_of_when_it_comes_and_when_it_goes(events: KernelEvents, bdf: str) -> None:
    before = time.monotonic()
    with HeldDevice(bdf, "msix"):
        requested = seen(gather(events), EventKind.REQUESTED)
        names = {
            irq: Path(f"/sys/kernel/irq/{irq}/actions").read_text().strip() for irq in requested
        }
        assert names
        assert names == {irq: each.name for irq, each in requested.items()}
        held = os.listdir(f"/sys/bus/pci/devices/{bdf}/msi_irqs")
        assert {int(irq) for irq in held} == set(requested)
        assert all(before < each.at < time.monotonic() for each in requested.values())
        assert {each.pid for each in requested.values()} == {os.getpid()}
    assert set(seen(gather(events), EventKind.FREED)) >= set(requested)


def test_a_move_names_who_made_it_unless_it_was_us(events: KernelEvents, bdf: str) -> None:
    with HeldDevice(bdf, "msix"):
        irq = min(seen(gather(events), EventKind.REQUESTED))
        file = f"/proc/irq/{irq}/smp_affinity_list"
        Path(file).write_text("2")
        assert seen(gather(events), EventKind.MOVED) == {}
        script = f"printf mover > /proc/$$/comm; echo 3 > {file}; echo 3 > {file}; true"
        shell = subprocess.Popen(["sh", "-c", script])
        assert shell.wait() == 0
        moved = [each for each in gather(events) if each.kind is EventKind.MOVED]
        assert [(each.irq, each.comm, each.pid) for each in moved] == [
            (irq, "mover", shell.pid)
        ] * 2


def test_threads_are_told_of_when_they_are_watched(events: KernelEvents) -> None:
    one, other = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        events.watch_threads(runs_of([one.pid]))
        for each in (one, other):
            subprocess.run(["taskset", "-pc", "1", str(each.pid)], check=True, capture_output=True)
        (found,) = (each for each in gather(events) if each.kind is EventKind.REPINNED)
        assert (found.tid, found.comm) == (one.pid, "taskset")
        events.watch_threads(runs_of(range(100_000, 104_000, 2)))  # too many for one filter
        events.watch_threads(())
        subprocess.run(["taskset", "-pc", "2", str(one.pid)], check=True, capture_output=True)
        assert gather(events) == []
    finally:
        for each in (one, other):
            each.kill()
            each.wait()


def test_the_end_of_a_watched_thread_is_told(events: KernelEvents) -> None:
    script = "import threading; threading.Thread(target=input).start(); input()"
    child, other = (
        subprocess.Popen([*PYTHON, "-c", script], stdin=subprocess.PIPE) for _ in range(2)
    )
    tasks = f"/proc/{child.pid}/task"
    while len(os.listdir(tasks)) < 2:
        time.sleep(0.01)
    (thread,) = {int(name) for name in os.listdir(tasks)} - {child.pid}
    events.watch_threads(runs_of([thread]))
    for each in (child, other):
        each.communicate(b"\n\n")
    found = [each.pid for each in gather(events) if each.kind is EventKind.ENDED]
    assert found == [thread]


def test_a_thread_that_pins_itself_is_told_of(events: KernelEvents) -> None:
    script = "import os; input(); os.sched_setaffinity(0, {1})"
    child = subprocess.Popen([*PYTHON, "-c", script], stdin=subprocess.PIPE)
    events.watch_threads(runs_of([child.pid]))
    child.communicate(b"\n")
    (found,) = (each for each in gather(events) if each.kind is EventKind.REPINNED)
    assert found.tid == child.pid


def test_a_kind_of_event_can_be_muted(events: KernelEvents) -> None:
    def pin() -> list[EventKind]:
        os.sched_setaffinity(os.getpid(), mine)
        return [each.kind for each in gather(events)]

    mine = os.sched_getaffinity(0)
    events.watch_threads(runs_of([os.getpid()]))
    assert pin() == [EventKind.REPINNED]
    events.mute(EventKind.REPINNED, True)
    events.watch_threads(runs_of([os.getpid(), os.getppid()]))
    assert pin() == []
    events.mute(EventKind.REPINNED, False)
    assert pin() == [EventKind.REPINNED]


@pytest.mark.parametrize("kind", [kind for kind in EventKind if kind in MUTABLE])
def test_each_that_can_be_muted_can(events: KernelEvents, kind: EventKind) -> None:
    assert events.mute(kind, True)
    assert events.mute(kind, False)


def test_ends_and_starts_can_be_muted(events: KernelEvents, tmp_path: Path) -> None:
    program = tmp_path / "irqbalance"
    program.symlink_to("/bin/sleep")

    def run() -> list[EventKind]:
        with subprocess.Popen([program, "60"]) as child:
            events.watch_threads(runs_of([child.pid]))
            child.kill()
        return [each.kind for each in gather(events)]

    assert run() == [EventKind.STARTED, EventKind.ENDED]
    for kind in (EventKind.STARTED, EventKind.ENDED):
        events.mute(kind, True)
    assert run() == []
    for kind in (EventKind.STARTED, EventKind.ENDED):
        events.mute(kind, False)
    assert run() == [EventKind.STARTED, EventKind.ENDED]


def test_cpusets_are_told_of(events: KernelEvents, tmp_path: Path) -> None:
    """When tasks go into one, and when it is changed, and once that is done."""
    cgroups = tmp_path / "cgroup"
    cgroups.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "cgroup", cgroups], check=True)
    confined = cgroups / "confined"
    confined.mkdir()
    child = subprocess.Popen(["sleep", "60"])
    try:
        (cgroups / "cgroup.subtree_control").write_text("+cpuset")
        gather(events)
        (confined / "cpuset.cpus").write_text("2-3")
        (confined / "cgroup.procs").write_text(str(child.pid))
        told = gather(events)
        assert [each.kind for each in told] == [EventKind.CONFINED] * 2
        (confined / "cpuset.cpus").write_text("3")
        told = gather(events)
        assert [(each.kind, each.pid) for each in told] == [(EventKind.CONFINED, os.getpid())]
        assert os.sched_getaffinity(child.pid) == {3}
        (confined / "cpuset.cpus.partition").write_text("root")
        assert [each.kind for each in gather(events)] == [EventKind.CONFINED]
    finally:
        child.kill()
        child.wait()
        confined.rmdir()
        subprocess.run(["umount", cgroups], check=True)


def test_a_start_of_irqbalance_is_told_of(events: KernelEvents, tmp_path: Path) -> None:
    for name in ("irqbalance", "rirqbalance", "irqbalance-ui"):
        program = tmp_path / name
        program.symlink_to("/bin/true")
        subprocess.run([program], check=True)
    (started,) = gather(events)
    assert (started.kind, started.name) == (EventKind.STARTED, str(tmp_path / "irqbalance"))


def test_a_path_cannot_make_up_events(events: KernelEvents, tmp_path: Path) -> None:
    """The kernel prints the path of a program that is started as it is, line feeds and all."""
    for first in ("a", "a pid=1 old_pid=1"):
        place = tmp_path / f"{first}\n{' ' * 16}-1 [000] 1.0: freed: irq=45 "
        place.mkdir()
        (place / "irqbalance").symlink_to("/bin/true")
        subprocess.run([place / "irqbalance"], check=True)
    assert gather(events) == []


def test_nothing_is_told_when_nothing_happens(events: KernelEvents) -> None:
    assert gather(events, 2.0) == []


def test_lost_events_are_told(events: KernelEvents, bdf: str) -> None:
    with HeldDevice(bdf, "msix"):
        irq = min(seen(gather(events), EventKind.REQUESTED))
        script = f"for n in $(seq 3000); do echo 3 > /proc/irq/{irq}/smp_affinity_list; done"
        subprocess.run(["sh", "-c", script], check=True)
        assert not events.lost
        while list(events.read()):
            pass
        assert events.lost


def test_the_next_daemon_clears_up_after_one_that_was_killed(bdf: str) -> None:
    reading, writing = os.pipe()

    def call() -> int:
        open_kernel_events()
        print("open", flush=True)
        signal.pause()
        return 0

    killed = Forked(call, writing, writing)
    os.close(writing)
    with open(reading) as said:
        assert said.readline() == "open\n"
    with pytest.raises(UnavailableError, match="busy"):
        open_kernel_events()
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert leftovers()
    stream = open_kernel_events()
    assert stream.described == "kernel probes"
    stream.close()
    assert leftovers() == []


def test_probes_of_others_stay(bdf: str) -> None:
    with (TRACEFS / "kprobe_events").open("w") as file:
        file.write("p:someones/probe free_irq\n")
    open_kernel_events().close()
    assert (TRACEFS / "kprobe_events").read_text().split() == ["p:someones/probe", "free_irq"]
    (TRACEFS / "kprobe_events").write_text("\n")


def test_without_probes_the_vector_events_tell(bdf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: KernelEvents, text: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(KernelEvents, "_define", refuse)
    stream = open_kernel_events(pid=1)  # this process plays the guest, too
    assert stream.described.startswith("vector events of x86")
    with HeldDevice(bdf, "msix"):
        held = {int(irq) for irq in os.listdir(f"/sys/bus/pci/devices/{bdf}/msi_irqs")}
        assert set(seen(gather(stream), EventKind.ALLOCATED)) >= held
        irq = min(held)
        subprocess.run(["sh", "-c", f"echo 3 > /proc/irq/{irq}/smp_affinity_list"], check=True)
        assert set(seen(gather(stream), EventKind.ALLOCATED)) == {irq}
    assert set(seen(gather(stream), EventKind.TORN_DOWN)) >= held
    stream.close()


def test_cpus_and_drivers_are_told_of(bdf: str) -> None:
    uevents = Uevents()
    online = Path("/sys/devices/system/cpu/cpu3/online")
    online.write_text("0")
    online.write_text("1")
    driver = Path("/sys/bus/pci/drivers/vfio-pci")
    (driver / "unbind").write_text(bdf)
    (driver / "bind").write_text(bdf)
    time.sleep(0.2)
    found = uevents.read()
    assert not uevents.lost
    told = [(each.action, each.cpu) for each in found if each.cpu is not None]
    assert told == [("offline", 3), ("online", 3)]
    told_of = [(each.action, str(each.function)) for each in found if each.function is not None]
    assert ("unbind", bdf) in told_of
    assert ("bind", bdf) in told_of
    uevents.close()
