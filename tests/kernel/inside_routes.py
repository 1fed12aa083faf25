"""KVM's own messages, read on a running kernel; booted and reported by `test_lab.py`.

The emulated CPU has SVM, so there is a KVM here. Its VMs have an interrupt controller and no
vCPU: that is enough for interrupts of a real device to be routed, and every message is known.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from lab.guest import E1000E, bind, find
from lab.vfio import HeldDevice
from tests.kernel.commands import Forked, until
from virtirq.errors import UnavailableError
from virtirq.guests.vectors.msi import Message
from virtirq.host import kvm_routes as routes_module
from virtirq.host.fs import LiveFs
from virtirq.host.kernel_memory import MOST_WORDS, KernelMemory
from virtirq.host.kvm_routes import Route, Routes, RouteSource, open_routes
from virtirq.host.probed_routes import open_probed_routes

# include/uapi/linux/kvm.h
CREATE_VM, CREATE_IRQCHIP = 0xAE01, 0xAE60
SET_GSI_ROUTING, IRQFD = 0x4008_AE6A, 0x4020_AE76
ROUTING_IRQCHIP, ROUTING_MSI = 1, 2
DEASSIGN = 1
KVM = "/sys/module/kvm"
TRACEFS = Path("/sys/kernel/tracing")
PATIENT = 240.0

Entry = Message | int
"""What a VM's line is routed to: a message, or a pin of its first interrupt controller."""


class Vm:
    """A VM without a processor, made as monitors do: not always by their first thread."""

    def __init__(self) -> None:
        made: list[int] = []
        thread = threading.Thread(target=lambda: made.append(self._make()))
        thread.start()
        thread.join()
        (self._file,) = made
        fcntl.ioctl(self._file, CREATE_IRQCHIP, 0)

    def close(self) -> None:
        os.close(self._file)

    def route(self, entries: Mapping[int, Entry]) -> None:
        """By line. What is not named is routed nowhere."""
        packed = struct.pack("=II", len(entries), 0)
        for line, entry in entries.items():
            if isinstance(entry, Message):
                high = entry.address >> 32
                packed += struct.pack("=IIII", line, ROUTING_MSI, 0, 0)
                packed += struct.pack("=III20x", entry.low, high, entry.data)
            else:
                packed += struct.pack("=IIIIII24x", line, ROUTING_IRQCHIP, 0, 0, 0, entry)
        fcntl.ioctl(self._file, SET_GSI_ROUTING, bytearray(packed))

    def attach(self, eventfd: int, line: int, flags: int = 0) -> None:
        fcntl.ioctl(self._file, IRQFD, struct.pack("=IIII16x", eventfd, line, flags, 0))

    @staticmethod
    def _make() -> int:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            return fcntl.ioctl(kvm, CREATE_VM, 0)
        finally:
            os.close(kvm)


def routes_of(source: RouteSource, irqs: list[int]) -> dict[int, Route]:
    return source.read(irqs)


class Reader:
    """Routes in a process of its own, as a daemon has them: one that can be killed."""

    def __init__(self, start: Callable[[], RouteSource]) -> None:
        self._start = start
        self.named = start is open_probed_routes
        """Whether a route is told with the name of the interrupt, and not with the VM's process."""
        self._ours, self._theirs = Pipe()
        # Its standard output is its line to the tests.
        self.process = Forked(self._serve, self._theirs.fileno(), 2)
        self._theirs.close()

    def ask(self, what: Callable[..., Any], *given: Any) -> Any:
        """What `what` returns there, called with the routes; it may raise."""
        self._ours.send((what, given))
        answer = self._ours.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def routes(self, irqs: Iterable[int]) -> dict[int, Route]:
        found: dict[int, Route] = self.ask(routes_of, list(irqs))
        return found

    def read(self, irqs: Iterable[int]) -> dict[int, Message]:
        """The messages alone."""
        return {irq: Message(each.address, each.data) for irq, each in self.routes(irqs).items()}

    def _serve(self) -> int:
        line = Connection(os.dup(1))
        for limit in ("ATTACH_SECONDS", "ANSWER_SECONDS"):
            setattr(routes_module, limit, PATIENT)
        opened: list[RouteSource] = []
        # In a thread that ends: what is opened must not end with that.
        thread = threading.Thread(target=lambda: opened.append(self._start()))
        thread.start()
        thread.join()
        while True:
            what, given = line.recv()
            try:
                line.send(what(opened[0], *given))
            except Exception as error:
                line.send(error)


@pytest.fixture(scope="module")
def kvm() -> None:
    subprocess.run(["modprobe", "kvm_amd"], check=True)


@pytest.fixture(scope="module", params=["probes", "bpftrace"])
def reader(kvm: None, request: pytest.FixtureRequest) -> Iterator[Reader]:
    """Started once: under emulation bpftrace compiles for half a minute and more."""
    if shutil.which("bpftrace") is None:
        pytest.fail("bpftrace is not installed: see lab/packages.txt")
    reader = Reader(open_probed_routes if request.param == "probes" else open_routes)
    yield reader
    reader.process.kill()
    reader.process.wait()


@pytest.fixture(scope="module")
def nic(kvm: None) -> Iterator[HeldDevice]:
    """The NIC with all its vectors armed. No interrupt ever comes."""
    bdf = find(E1000E)[0]
    bind(bdf)
    with HeldDevice(bdf, "msix") as device:
        yield device


@pytest.fixture
def vm() -> Iterator[Vm]:
    with closing(Vm()) as made:
        yield made


def message(vector: int, high: int = 0) -> Message:
    return Message(high << 32 | 0xFEE0_0000 | vector << 12, 0x4041 + vector)


def attach_all(vm: Vm, nic: HeldDevice) -> dict[int, int]:
    """The IRQ number by vector, when each vector is the VM's line of the same number."""
    for vector, eventfd in enumerate(nic._eventfds):
        vm.attach(eventfd, vector)
    return nic.irqs()


def probes_are_there() -> tuple[bool, bool]:
    """Whether their instance is, and whether they are."""
    instance = (TRACEFS / "instances/virtirq_routes").exists()
    return instance, "virtirq_routes" in (TRACEFS / "kprobe_events").read_text()


def test_probes_are_taken_away_also_those_of_one_that_was_killed(
    kvm: None, nic: HeldDevice
) -> None:
    """The first of all: who else has probes has them alone."""
    irqs = list(nic.irqs().values())
    mask = Path("/proc/irq/default_smp_affinity").read_text()
    with closing(open_probed_routes()) as routes:
        at = routes._at
        for irq in irqs:
            Path(f"/sys/kernel/irq/{irq}/hwirq").read_text()
        assert routes.read(irqs) == {}
        with pytest.raises(OSError, match="Device or resource busy"):
            KernelMemory(TRACEFS, at, MOST_WORDS)
        assert routes.read(irqs) == {}
    assert probes_are_there() == (False, False)
    ready = os.eventfd(0)
    killed = os.fork()
    if not killed:
        with suppress(BaseException):
            memory = KernelMemory(TRACEFS, at, MOST_WORDS)
            os.eventfd_write(ready, 1 if memory.requested(irqs[0]) else 2)
            signal.pause()
        os._exit(0)
    assert os.eventfd_read(ready) == 1
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    assert probes_are_there() == (True, True)
    with closing(KernelMemory(TRACEFS, at, MOST_WORDS)) as memory:
        found = memory.requested(irqs[1])
        assert found is not None
        assert found.name == f"vfio-msix[1]({nic.bdf})"
        piece = memory.read(found.eventfd)
        assert piece is not None
        assert len(piece.data) == 8 * MOST_WORDS
    assert probes_are_there() == (False, False)
    assert Path("/proc/irq/default_smp_affinity").read_text() == mask
    os.close(ready)


def test_the_route_is_what_kvm_was_told(reader: Reader, nic: HeldDevice, vm: Vm) -> None:
    irqs = attach_all(vm, nic)
    assert len(irqs) == 5
    assert reader.read(irqs.values()) == {}  # no line is routed anywhere yet
    told = {vector: message(vector, high=0x12300) for vector in irqs}
    vm.route(told)
    assert reader.read(irqs.values()) == {irqs[vector]: told[vector] for vector in irqs}
    told[3] = message(77)
    vm.route(told)
    assert reader.read([irqs[3]]) == {irqs[3]: message(77)}
    vm.attach(nic._eventfds[3], 3, DEASSIGN)
    vm.route({0: told[0], 1: 5})  # 1: a pin and no message; 2, 4: nothing
    assert reader.read(irqs.values()) == {irqs[0]: told[0]}


def test_when_the_vm_is_gone_there_is_none(reader: Reader, nic: HeldDevice) -> None:
    with closing(Vm()) as vm:
        irqs = attach_all(vm, nic)
        vm.route({0: message(0)})
        assert set(reader.read(irqs.values())) == {irqs[0]}
    assert reader.read(irqs.values()) == {}


def test_whose_vm_it_is(reader: Reader, nic: HeldDevice, vm: Vm) -> None:
    """Two processes, and each has a vector of the same device."""
    irqs = nic.irqs()
    vm.attach(nic._eventfds[0], 0)
    vm.route({0: message(0)})
    ready, done = os.eventfd(0), os.eventfd(0)
    other = os.fork()
    if not other:
        with suppress(BaseException):
            theirs = Vm()
            theirs.attach(nic._eventfds[1], 1)
            theirs.route({1: message(1)})
            os.eventfd_write(ready, 1)
            os.eventfd_read(done)
        os._exit(0)
    os.eventfd_read(ready)
    found = reader.routes(irqs.values())
    assert {irqs[n]: Message(*message(n)[:2]) for n in (0, 1)} == {
        irq: Message(each.address, each.data) for irq, each in found.items()
    }
    if reader.named:
        assert {irq: each.action for irq, each in found.items()} == {
            irqs[n]: f"vfio-msix[{n}]({nic.bdf})" for n in (0, 1)
        }
    else:
        assert {irq: each.pid for irq, each in found.items()} == {
            irqs[0]: os.getpid(),
            irqs[1]: other,
        }
    os.eventfd_write(done, 1)
    os.waitpid(other, 0)
    assert reader.read(irqs.values()) == {irqs[0]: message(0)}
    for each in (ready, done):
        os.close(each)


def test_a_monitor_that_polls_beside_kvm(reader: Reader, nic: HeldDevice, vm: Vm) -> None:
    irqs = attach_all(vm, nic)
    vm.route({0: message(0)})
    waiting = [select.epoll() for _ in range(8)]
    for count, each in enumerate(waiting, start=1):
        each.register(nic._eventfds[0], select.EPOLLIN)
        # KVM and seven more: longer queues are not understood, and then it is not known.
        expected = {irqs[0]: message(0)} if count < 8 else {}
        assert reader.read(irqs.values()) == expected
    for each in waiting:
        each.close()
    assert reader.read(irqs.values()) == {irqs[0]: message(0)}


def test_of_two_vms_nobody_knows_which(reader: Reader, nic: HeldDevice, vm: Vm) -> None:
    irqs = attach_all(vm, nic)
    vm.route({0: message(0), 1: message(1)})
    with closing(Vm()) as other:
        other.route({0: message(5)})
        try:
            other.attach(nic._eventfds[0], 0)
        except OSError:
            known = {irqs[0], irqs[1]}  # since 6.17 the kernel does not let that be
        else:
            known = {irqs[1]}
        assert set(reader.read(irqs.values())) == known


def test_what_has_no_route(reader: Reader, nic: HeldDevice) -> None:
    """All the others that the kernel has, and numbers that it has not."""
    numbers = {int(each) for each in os.listdir("/sys/kernel/irq")}
    assert reader.read(numbers | {max(numbers) + 1, 10**9}) == {}


def test_more_than_go_at_once(reader: Reader, nic: HeldDevice, vm: Vm) -> None:
    irqs = attach_all(vm, nic)
    told = {vector: message(vector) for vector in irqs}
    vm.route(told)
    expected = {irqs[vector]: told[vector] for vector in irqs}
    for _ in range(2 if reader.named else 20):  # by probes each by itself
        assert reader.read(range(300)) == expected


def test_a_message_that_is_changed_all_the_time(reader: Reader, nic: HeldDevice, vm: Vm) -> None:
    """It is one of those that it was, and never a mixture."""
    irqs = attach_all(vm, nic)
    told = [{0: Message(0xFEE0_1000 << 32 | number, number)} for number in (0x1111, 0x2222)]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for each in told:
                vm.route(each)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        seen = {reader.read([irqs[0]]).get(irqs[0]) for _ in range(20)}
    finally:
        stop.set()
        thread.join()
    assert seen <= {None, *(each[0] for each in told)}


def answered(routes: Routes, irqs: list[int], files: tuple[str, ...], seconds: float) -> list[int]:
    """Which interrupts it tells of when these files of theirs are read."""
    for irq in irqs:
        for name in files:
            Path(f"/sys/kernel/irq/{irq}/{name}").read_text()
    return [each.irq for each in routes._answers(seconds)]


@pytest.mark.parametrize("reader", ["bpftrace"], indirect=True)
def test_it_prints_when_it_is_asked_and_at_no_other_time(reader: Reader, nic: HeldDevice) -> None:
    irqs = list(nic.irqs().values())
    for irq in irqs:
        Path(f"/sys/kernel/irq/{irq}/hwirq").read_text()  # by another process
    assert reader.ask(answered, irqs, ("actions", "per_cpu_count"), 0.5) == []
    assert reader.ask(answered, irqs[:1], ("hwirq",), PATIENT) == irqs[:1]


def ended(pid: int) -> bool:
    """Whether it is no more; nobody here waits for those whose parent has died."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def pid_of(routes: Routes) -> int:
    return routes._process.pid


@pytest.mark.parametrize("reader", ["bpftrace"], indirect=True)
def test_when_virtirq_is_killed_bpftrace_ends(reader: Reader) -> None:
    """The last of those that ask."""
    pid = reader.ask(pid_of)
    assert not ended(pid)
    reader.process.kill()
    reader.process.wait()
    until(lambda: ended(pid))


def test_kvm_that_was_loaded_anew_is_another() -> None:
    """By which `Routes.read` knows that it would be told of one that is no more."""
    before = LiveFs().incarnation(KVM)
    assert before is not None
    subprocess.run(["modprobe", "--remove", "kvm_amd", "kvm"], check=True)
    for start in (open_routes, open_probed_routes):
        with pytest.raises(UnavailableError, match="the module kvm is not loaded"):
            start()
    subprocess.run(["modprobe", "kvm_amd"], check=True)
    assert LiveFs().incarnation(KVM) not in (None, before)
