"""libvirt's memory peek: when it connects, what it remembers, and how it fails.

Mostly of a connection that stands in for libvirt's: no guest of its test driver has anything in
its memory. Real ones are in the lab.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import pytest

from tests.guests.vectors.guestmemory import NIC, GuestMemory
from tests.guests.vectors.test_hardware import Q35, at, domain, hostdev
from tests.libvirtmaker import URI, domain_xml, held
from virtirq.errors import (
    AccessError,
    ConnectionFailedError,
    DomainXmlError,
    LibvirtError,
    UnavailableError,
    UsageError,
    VirtirqError,
)
from virtirq.guests.libvirt.connection import connected, opened
from virtirq.guests.vectors import by_peek
from virtirq.guests.vectors.by_peek import PeekReader
from virtirq.model import Aimed, Guest, GuestDevice, GuestVectors, PciAddress, Vcpu

BAR: Final = 0x38_0000_0000
UUID: Final = "6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11"
WEB: Final = Guest(
    "web",
    "libvirt",
    uuid=UUID,
    pid=42,
    domain_id=7,
    vcpus=tuple(Vcpu(number, apic=number) for number in range(4)),
    devices=(GuestDevice(NIC, "hostdev"),),
)
WANTED: Final = {NIC: {0: 100, 1: 101}}
LEARNED: Final = {NIC: GuestVectors({0: Aimed(2), 1: Aimed(1)})}


class Host:
    """What stands in for libvirt: its guests' memory and XML, and a note of each call."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        nic = self.memory.function(0, 3)
        nic.bar(0, BAR)
        nic.msix(8)
        self.memory.table(BAR, (0xFEE0_2000, 0x41), (0xFEE0_1000, 0x42), (0xFEE0_0000, 0x43))
        self.text = domain(hostdev(NIC, at(0, 3)))
        self.opened: list[tuple[str, bool]] = []
        self.connections: list[FakeConnection] = []
        self.kept_alive: list[FakeConnection] = []
        self.calls: list[str] = []
        self.down: VirtirqError | None = None

    def open(self, uri: str, *, write: bool = False) -> FakeConnection:
        if self.down is not None:
            raise self.down
        self.opened.append((uri, write))
        self.connections.append(FakeConnection(self))
        return self.connections[-1]


class FakeConnection:
    def __init__(self, host: Host) -> None:
        self.host, self.broken, self.closed = host, False, False

    def keep_alive(self) -> None:
        self.host.kept_alive.append(self)

    def alive(self) -> bool:
        return not self.broken

    def close(self) -> None:
        self.closed = True

    def find(self, name: str) -> str:
        self.host.calls.append("find")
        if name != UUID:
            raise UsageError(f"no guest is called {name!r}")
        return name

    def xml(self, domain: str) -> str:
        self.host.calls.append("xml")
        return self.host.text

    def peek(self, domain: str, start: int, size: int) -> bytes:
        assert domain == UUID
        if self.broken or self.closed:
            raise LibvirtError("cannot read memory of web: it is broken")
        return self.host.memory.peek(start, size)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr(by_peek, "opened", made.open)
    return made


@pytest.fixture
def reader() -> Iterator[PeekReader]:
    made = PeekReader("qemu:///system")
    yield made
    made.close()


def test_it_connects_once_when_it_is_needed_and_may_write(host: Host, reader: PeekReader) -> None:
    assert reader.name == "libvirt's memory peek"
    assert host.opened == []
    assert [reader.read(WEB, WANTED) for _ in range(3)] == [LEARNED] * 3
    assert host.opened == [("qemu:///system", True)]
    assert host.calls == ["find", "xml"]


def test_as_many_vectors_as_are_of_interest(host: Host, reader: PeekReader) -> None:
    assert reader.read(WEB, {NIC: {1: 101}}) == LEARNED
    assert reader.read(WEB, {NIC: {2: 102}})[NIC].aimed[2] == Aimed(0)
    assert reader.read(WEB, {NIC: {}}) == {NIC: GuestVectors()}
    assert reader.read(WEB, {}) == {}


def test_the_guest_is_asked_each_time(host: Host, reader: PeekReader) -> None:
    assert reader.read(WEB, WANTED) == LEARNED
    host.memory.table(BAR, (0xFEE0_3000, 0x41), (0xFEE0_0000, 0x42))
    assert reader.read(WEB, WANTED) == {NIC: GuestVectors({0: Aimed(3), 1: Aimed(0)})}


GPU: Final = PciAddress.parse("0000:83:00.0")


@pytest.mark.parametrize(
    "other",
    [
        replace(WEB, pid=43),
        replace(WEB, domain_id=8),
        replace(WEB, devices=(*WEB.devices, GuestDevice(GPU, "hostdev"))),
        replace(WEB, devices=()),
    ],
)
def test_another_run_or_other_devices_are_looked_at_anew(
    host: Host, reader: PeekReader, other: Guest
) -> None:
    assert reader.read(WEB, WANTED) == LEARNED
    host.text = domain(hostdev(NIC, at(0, 4)))
    assert reader.read(WEB, WANTED) == LEARNED
    assert reader.read(other, WANTED)[NIC].why == "the guest does not see it"
    assert host.calls == ["find", "xml"] * 2


def test_pins_are_no_reason_to_look_anew(host: Host, reader: PeekReader) -> None:
    reader.read(WEB, WANTED)
    reader.read(replace(WEB, name="renamed", vcpus=WEB.vcpus[:3]), WANTED)
    assert host.calls == ["find", "xml"]


def test_a_connection_that_broke_is_made_anew(host: Host, reader: PeekReader) -> None:
    reader.read(WEB, WANTED)
    host.connections[0].broken = True
    assert reader.read(WEB, WANTED) == LEARNED
    assert [each.closed for each in host.connections] == [True, False]
    assert host.calls == ["find", "xml"] * 2  # domains are the connection's


def test_libvirt_that_is_down_is_tried_again(host: Host, reader: PeekReader) -> None:
    host.down = ConnectionFailedError("cannot connect to libvirt")
    for _ in range(2):
        with pytest.raises(ConnectionFailedError):
            reader.read(WEB, WANTED)
    host.down = None
    assert reader.read(WEB, WANTED) == LEARNED


def test_after_closing_it_connects_again(host: Host, reader: PeekReader) -> None:
    reader.close()
    assert reader.read(WEB, WANTED) == LEARNED
    reader.close()
    reader.close()
    assert host.connections[0].closed
    assert reader.read(WEB, WANTED) == LEARNED
    assert len(host.opened) == 2


@pytest.mark.parametrize("guest", [replace(WEB, source="process"), replace(WEB, uuid=None)])
def test_guests_that_are_not_libvirts(host: Host, reader: PeekReader, guest: Guest) -> None:
    with pytest.raises(UnavailableError, match="it is not libvirt's"):
        reader.read(guest, WANTED)
    assert host.opened == []


def test_guests_whose_apic_ids_are_not_known(host: Host, reader: PeekReader) -> None:
    with pytest.raises(UnavailableError, match="the APIC ids of its vCPUs are not known"):
        reader.read(replace(WEB, vcpus=(Vcpu(0),)), WANTED)
    assert host.opened == []


def test_a_guest_that_libvirt_does_not_know(host: Host, reader: PeekReader) -> None:
    with pytest.raises(UsageError):
        reader.read(replace(WEB, uuid="gone"), WANTED)


def links(error: BaseException) -> int:
    """How much of a stack an error holds on to."""
    trace, count = error.__traceback__, 0
    while trace is not None:
        trace, count = trace.tb_next, count + 1
    return count


def test_hardware_that_cannot_be_read_is_asked_for_once_in_a_run(
    host: Host, reader: PeekReader
) -> None:
    host.text = domain(system=Q35.replace("q35", "i440fx"))
    held_on_to = set()
    for _ in range(4):
        with pytest.raises(UnavailableError, match="its machine 'pc-i440fx-") as caught:
            reader.read(WEB, WANTED)
        held_on_to.add(links(caught.value))
    assert len(held_on_to) == 1  # an error that is raised again and again would grow
    assert host.calls == ["find", "xml"]
    host.text = domain(hostdev(NIC, at(0, 3)))
    assert reader.read(replace(WEB, domain_id=8), WANTED) == LEARNED


def test_xml_that_is_not_understood_is_asked_for_again(host: Host, reader: PeekReader) -> None:
    host.text = "<domain"
    for _ in range(2):
        with pytest.raises(DomainXmlError):
            reader.read(WEB, WANTED)
    assert host.calls == ["find", "xml"] * 2


def test_a_guest_that_starts_is_not_given_up(host: Host, reader: PeekReader) -> None:
    memory, host.memory = host.memory, GuestMemory(None)
    with pytest.raises(UnavailableError, match="its configuration space is not set up"):
        reader.read(WEB, WANTED)
    host.memory = memory
    assert reader.read(WEB, WANTED) == LEARNED


def test_guests_that_have_ended_do_not_pile_up(
    host: Host, reader: PeekReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_peek, "_MOST_GUESTS", 3)
    monkeypatch.setattr(FakeConnection, "find", lambda self, name: UUID)
    for number in range(9):
        reader.read(replace(WEB, uuid=f"{number:032x}"), WANTED)
    assert len(reader._known) == 3
    host.calls.clear()
    for number in (8, 7, 6):
        reader.read(replace(WEB, uuid=f"{number:032x}"), WANTED)
    assert host.calls == []


def test_another_run_takes_nobodys_place(
    host: Host, reader: PeekReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_peek, "_MOST_GUESTS", 2)
    monkeypatch.setattr(FakeConnection, "find", lambda self, name: UUID)
    other = replace(WEB, uuid="other")
    for guest in (WEB, other, replace(other, pid=99), WEB):
        reader.read(guest, WANTED)
    assert host.calls == ["xml"] * 3


def test_several_threads_share_one_connection(
    host: Host, reader: PeekReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, never = threading.Barrier(8), threading.Event()

    def slowly(uri: str, *, write: bool = False) -> FakeConnection:
        never.wait(0.05)  # so that others come to the same point, if they may
        return host.open(uri, write=write)

    monkeypatch.setattr(by_peek, "opened", slowly)

    def read(_: int) -> Any:
        gate.wait()
        return reader.read(WEB, WANTED)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(8))) == [LEARNED] * 8
    assert len(host.opened) == 1


# The real libvirt -------------------------------------------------------------------------------


def test_memory_of_libvirts_test_driver() -> None:
    """In which each byte is the lowest of its address (src/test/test_driver.c)."""
    with held() as real, connected(URI, write=True) as connection:
        made = real.createXML(domain_xml(), 0)
        assert connection.peek(made, 0x12FE, 4) == b"\xfe\xff\x00\x01"
        made.destroy()
        with pytest.raises(LibvirtError, match="cannot read memory of web: "):
            connection.peek(made, 0, 4)


def test_a_connection_that_only_reads_may_not_peek() -> None:
    with held() as real, connected(URI) as connection:
        real.createXML(domain_xml(), 0)
        with pytest.raises(AccessError, match="cannot read memory of web: "):
            connection.peek(connection.find("web"), 0, 4)


def test_a_connection_is_alive_until_it_is_closed() -> None:
    with held():
        connection = opened(URI)
        assert connection.alive()
        connection.close()
        assert not connection.alive()


def test_guests_of_libvirts_test_driver() -> None:
    """The whole way, to what is not there."""
    q35 = domain_xml("q35").replace("<type>", "<type arch='i686' machine='pc-q35-7.2'>")
    with held() as real, connected(URI) as connection:
        for text in (domain_xml(), q35):
            real.createXML(text, 0)
        reader = PeekReader(URI)
        told = {}
        for guest in connection.guests(None).guests:
            with pytest.raises(UnavailableError) as caught:
                reader.read(guest, WANTED)
            told[guest.name] = str(caught.value)
        reader.close()
    assert told == {
        "web": "its machine '' has no configuration space in memory",
        "q35": "its configuration space is not set up",
    }


def test_memory_that_comes_in_part_is_an_error() -> None:
    class Domain:
        def name(self) -> str:
            return "web"

        def memoryPeek(self, start: int, size: int, flags: int) -> bytes:  # noqa: N802
            assert (start, flags) == (0x1000, 2)
            return bytes(min(size, 8))

    with held(), connected(URI) as connection:
        some: Any = Domain()
        assert connection.peek(some, 0x1000, 8) == bytes(8)
        with pytest.raises(LibvirtError, match="cannot read memory of web: 8 of 9 bytes"):
            connection.peek(some, 0x1000, 9)
