"""A QEMU guest's own monitor: where it listens, and what a real QEMU says there."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostmaker import MadeFs, MadeHost
from tests.needs import not_run
from virtirq.errors import UnavailableError
from virtirq.guests.processes.monitor import Monitor, connected, monitor_of
from virtirq.guests.processes.statistics import ask_vcpu_statistics
from virtirq.guests.vectors.by_qmp import (
    QmpReader,
    _apics,
    _command,
    _owners,
    parse_memory_map,
)
from virtirq.guests.vectors.entries import table
from virtirq.guests.vectors.hardware import Iommu
from virtirq.host.fs import LiveFs
from virtirq.model import Guest, GuestVectors, PciAddress, Vcpu

ENOUGH = 300.0
"""Seconds after which a test gives up."""


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("-qmp unix:/run/a.qmp,server=on,wait=off", "/run/a.qmp"),
        ("--qmp unix:/run/a,,b.qmp,server", "/run/a,b.qmp"),
        ("-qmp tcp:127.0.0.1:4444,server", None),
        ("-qmp stdio", None),
        (
            "-chardev socket,id=qmp,path=/var/run/qemu-server/101.qmp,server=on,wait=off"
            " -mon chardev=qmp,mode=control",
            "/var/run/qemu-server/101.qmp",
        ),
        ("-mon chardev=c,mode=control -chardev socket,id=c,path=/run/c", "/run/c"),
        ("-chardev socket,id=c,path=/run/c -mon chardev=c,mode=readline", None),
        ("-chardev socket,id=c,path=/run/c -mon chardev=d,mode=control", None),
        # libvirt's: it has the other end itself.
        ("-chardev socket,id=m,fd=25,server=on -mon chardev=m,id=m,mode=control", None),
        ("-monitor unix:/run/hmp,server", None),
        ("-m 1G", None),
        ("-qmp", None),
    ],
)
def test_where_a_monitor_listens(line: str, path: str | None) -> None:
    assert monitor_of(["qemu-system-x86_64", *line.split()]) == path


@given(st.lists(st.sampled_from(["-qmp", "-mon", "-chardev"]) | st.text(max_size=30), max_size=8))
def test_no_command_line_is_too_strange(words: list[str]) -> None:
    monitor_of(words)


MAP = """\
FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan owner:{obj path=/machine/x}
  0000000000001000-0000000000001fff (prio 0, ram): not.memory

FlatView #1
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  0000000000000000-00000000000bffff (prio 0, ram): pc.ram
  00000000000c0000-00000000000c0fff (prio 0, rom): pc.ram @00000000000c0000
  0000000000100000-000000000bffffff (prio 0, ram): pc.ram @0000000000100000
  00000000fe004000-00000000fe00404f (prio 0, i/o): msix-table owner:{dev id=hostdev0}
  00000000fe005000-00000000fe00500f (prio 0, i/o): msix-table owner:{dev path=/m/device[1]}
  00000000fed90000-00000000fed90fff (prio 1, i/o): intel_iommu
"""


def test_a_memory_map() -> None:
    found = parse_memory_map(MAP)
    assert found.ram == (range(0xC0000), range(0x100000, 0xC000000))
    assert found.tables == {
        "hostdev0": range(0xFE004000, 0xFE004050),
        "/m/device[1]": range(0xFE005000, 0xFE005010),
    }
    assert found.iommu is Iommu.INTEL
    assert parse_memory_map(MAP.replace("intel_iommu", "amdvi-mmio")).iommu is Iommu.AMD
    assert parse_memory_map("").ram == ()


@given(st.text())
def test_no_memory_map_is_too_strange(text: str) -> None:
    parse_memory_map(f'FlatView #0\n AS "memory", root: system\n{text}')


class Qemu:
    """A real QEMU, emulating, with a NIC that has MSI-X and nobody in it but its firmware."""

    def __init__(self, directory: Path, *more: str) -> None:
        program = shutil.which("qemu-system-x86_64")
        if program is None:
            not_run("the tests of QEMU's monitor: qemu-system-x86_64 is not installed")
        self.path = str(directory / "qmp")
        words = "-machine q35 -accel tcg -m 64 -smp 3,sockets=1,cores=3 -display none -nodefaults"
        self.process = subprocess.Popen(
            [
                str(program),
                *words.split(),
                *("-device", "e1000e,id=nic"),
                *("-qmp", f"unix:{self.path},server=on,wait=off"),
                *more,
            ]
        )
        self.pid = self.process.pid

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    started = Qemu(tmp_path_factory.mktemp("qemu"))
    try:
        deadline = time.monotonic() + ENOUGH
        while time.monotonic() < deadline and started.process.poll() is None:
            # Until its firmware has given the NIC's BAR a place.
            with suppress(UnavailableError), connected(started.path, started.pid) as monitor:
                if parse_memory_map(_command(monitor, "info mtree -f -o")).tables:
                    break
            time.sleep(0.2)
        yield started
    finally:
        started.end()


@pytest.fixture
def monitor(qemu: Qemu) -> Iterator[Monitor]:
    with connected(qemu.path, qemu.pid) as monitor:
        yield monitor


def guest(qemu: Qemu, count: int = 3) -> Guest:
    vcpus = tuple(Vcpu(index) for index in range(count))
    return Guest("made", "vfio-process", pid=qemu.pid, vcpus=vcpus)


def test_a_table_is_found_and_read(monitor: Monitor) -> None:
    found = parse_memory_map(_command(monitor, "info mtree -f -o"))
    place = found.tables["nic"]
    assert len(place) == 5 * 16
    entries = table(monitor.peek, place.start, 5)
    assert len(entries) == 5
    assert all(each.masked and each.empty for each in entries.values()), "as after a reset"
    assert any(0x100000 in each for each in found.ram)
    assert found.iommu is None


def test_memory_is_read_as_it_is(monitor: Monitor) -> None:
    """The firmware's entry jump stands at the end of the ROM, at the reset vector."""
    assert monitor.peek(0xFFFF0, 1) == b"\xea"
    assert len(monitor.peek(0x100000, 12345)) == 12345


def test_apic_ids_are_qemus_own(monitor: Monitor, qemu: Qemu) -> None:
    assert _apics(monitor, guest(qemu)).vcpus == {0: 0, 1: 1, 2: 2}
    assert _apics(monitor, guest(qemu, count=2)).vcpus == {0: 0, 1: 1}


def test_devices_that_are_not_passed_through_have_no_owner(monitor: Monitor) -> None:
    assert _owners(monitor) == {}


def test_a_reader_says_what_it_cannot_see(qemu: Qemu) -> None:
    reader, nic = QmpReader(LiveFs()), PciAddress.parse("0000:41:00.0")
    for _ in range(3):  # it is let go of each time
        learned = reader.read(guest(qemu), {nic: {0: 50}})
    assert learned[nic].why == "the guest has no MSI-X table of it in memory"
    assert learned[nic].aimed == {}


def test_an_emulated_vcpu_has_no_statistics_of_kvms(qemu: Qemu) -> None:
    assert ask_vcpu_statistics(LiveFs(), guest(qemu), ["irq_exits"]) == {}


def test_it_leaves_nothing_in_qemu(qemu: Qemu) -> None:
    with connected(qemu.path, qemu.pid) as monitor:
        monitor.peek(0x100000, 1)
        assert monitor.ask("query-fdsets") != []
    with connected(qemu.path, qemu.pid) as monitor:
        assert monitor.ask("query-fdsets") == []


def test_a_monitor_in_use_is_left_to_who_uses_it(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("virtirq.guests.processes.monitor._WAIT", 0.2)
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(qemu.path)
        assert other.recv(10)
        with pytest.raises(UnavailableError, match="does not answer, or serves someone else"):
            QmpReader(LiveFs()).read(guest(qemu), {})


@pytest.mark.parametrize("said", [b"", b"hello\n", b'{"QMP": 1}\n', b"\xff" * 100 + b"\n"])
def test_whatever_else_listens_is_not_spoken_to(
    tmp_path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command line can name any socket of the host."""
    monkeypatch.setattr("virtirq.guests.processes.monitor._WAIT", 0.5)
    path, heard = str(tmp_path / "other"), []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def serve() -> None:
            with listening.accept()[0] as asker:
                asker.settimeout(2)
                with suppress(OSError):
                    asker.sendall(said)
                    heard.append(asker.recv(1000))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UnavailableError), connected(path, 1):
            pass  # it is not the process of pid 1
        thread.join()
    assert heard in ([], [b""])


class Listener:
    """A server that counts who connects."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()
        self._socket.setblocking(False)

    def anybody_came(self) -> bool:
        with suppress(BlockingIOError):
            self._socket.accept()[0].close()
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path / "irqbalance4711.sock")
    yield made
    made.close()


def named(path: str, **more: int) -> tuple[MadeFs, Guest]:
    """A guest whose command line names this socket, and who has this user id and capabilities."""
    uid = more.get("uid", os.geteuid())
    status = f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapPrm:\t{more.get('able', 2**41 - 1):016x}\n"
    words = f"qemu-system-x86_64\0-qmp\0unix:{path},server=on\0-S"
    files = {"/proc/77/cmdline": words, "/proc/77/task/77/status": status}
    return MadeHost(files=files).live(), Guest("evil", "vfio-process", pid=77, vcpus=(Vcpu(0),))


@pytest.mark.parametrize("linked", [False, True])
def test_a_socket_of_another_user_is_not_even_connected_to(
    listener: Listener, tmp_path: Path, linked: bool
) -> None:
    """An old irqbalance ends when somebody connects and says nothing."""
    path = listener.path
    if linked:
        path = str(tmp_path / "link")
        os.symlink(listener.path, path)
    fs, guest = named(path, uid=os.geteuid() + 1000)
    with pytest.raises(UnavailableError, match=r"is of user \d+, and the guest of user \d+"):
        QmpReader(fs).read(guest, {})
    assert not listener.anybody_came()


def test_roots_socket_is_not_a_containers(listener: Listener) -> None:
    fs, guest = named(listener.path, able=0xA80425FB)
    if os.geteuid() == 0:
        with pytest.raises(UnavailableError, match="may be a container's root"):
            QmpReader(fs).read(guest, {})
        assert not listener.anybody_came()


def test_of_the_same_user_it_is_told_by_the_process(listener: Listener) -> None:
    fs, guest = named(listener.path)
    with pytest.raises(UnavailableError, match="is another process's"):
        QmpReader(fs).read(guest, {})
    assert listener.anybody_came()


@pytest.mark.parametrize("path", ["/dev/null", "/proc/self/fd/0", "/", "x\ufffd", "no/such"])
def test_what_is_no_socket_is_notconnected_to(path: str) -> None:
    fs, guest = named(path)
    with pytest.raises(UnavailableError, match="its monitor"):
        QmpReader(fs).read(guest, {})


def test_a_table_of_all_memory(qemu: Qemu, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a QEMU that was broken into may say."""
    section = "0000000000000000-ffffffffffffffff (prio 0, i/o): msix-table owner:{dev id=d0}"
    answers: dict[str, object] = {
        "human-monitor-command": f'FlatView #1\n AS "memory", root: system\n  {section}',
        "query-cpus-fast": [{"qom-path": "x", "cpu-index": 0}],
        "qom-list": [{"type": "child<vfio-pci>", "name": "d0"}],
    }

    def ask(_: Monitor, command: str, **arguments: object) -> object:
        if command == "qom-get":
            return "0000:41:00.0" if arguments["property"] == "host" else 0
        return [] if "anon" in str(arguments.get("path")) else answers[command]

    monkeypatch.setattr(Monitor, "ask", ask)
    nic = PciAddress.parse("0000:41:00.0")
    found = QmpReader(LiveFs()).read(guest(qemu), {nic: {0: 50}})[nic]
    assert found == GuestVectors({}, f"its monitor tells of an MSI-X table of {2**64} bytes")


@pytest.mark.parametrize("answer", [None, 7, "text", [], {}, [{}], [None], [{"qom-path": 1}]])
def test_a_monitor_that_answers_anything_is_no_danger(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    real = Monitor.ask

    def ask(self: Monitor, command: str, **arguments: object) -> object:
        if command in ("query-cpus-fast", "qom-list", "qom-get"):
            return answer
        return real(self, command, **arguments)

    monkeypatch.setattr(Monitor, "ask", ask)
    nic = PciAddress.parse("0000:41:00.0")
    with suppress(UnavailableError):
        assert QmpReader(LiveFs()).read(guest(qemu), {nic: {0: 50}})[nic].aimed == {}


def test_a_monitor_that_has_ever_more_to_say_is_not_listened_to_for_ever(
    qemu: Qemu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its answers comes in time."""
    monkeypatch.setattr("virtirq.guests.processes.monitor._PATIENCE", 0.5)
    real, asked = Monitor.ask, []

    def ask(self: Monitor, command: str, **arguments: object) -> object:
        asked.append(command)
        if command == "qom-list":
            return [{"type": "child<vfio-pci>", "name": str(each)} for each in range(1_000_000)]
        if arguments.get("property") == "host":
            real(self, "query-name")
            return "0000:41:00.0"
        return real(self, command, **arguments)

    monkeypatch.setattr(Monitor, "ask", ask)
    with pytest.raises(UnavailableError, match=r"takes more than 0.5 seconds"):
        QmpReader(LiveFs()).read(guest(qemu), {})
    assert len(asked) < 100_000


def test_one_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="No such file"), connected(f"{tmp_path}/no", 1):
        pass


def test_who_has_no_monitor() -> None:
    reader = QmpReader(LiveFs())
    with pytest.raises(UnavailableError, match="its process is not known"):
        reader.read(Guest("web", "libvirt"), {})
    with pytest.raises(UnavailableError, match="no monitor with a socket"):
        reader.read(Guest("web", "libvirt", pid=1), {})
