"""Uevents: messages as the kernel sends them, and the socket on which it does."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.host.uevents import Uevent, Uevents, parse
from virtirq.model import PciAddress

NIC = PciAddress.parse("0000:82:00.0")
PORT = "/devices/pci0000:80/0000:80:01.0"


def message(action: str, path: str, *pairs: str) -> bytes:
    """As lib/kobject_uevent.c puts one together."""
    lines = [f"{action}@{path}", f"ACTION={action}", f"DEVPATH={path}", *pairs, "SEQNUM=4711"]
    return "".join(f"{line}\0" for line in lines).encode()


def of_pci(action: str, address: str = str(NIC)) -> bytes:
    return message(
        action,
        f"{PORT}/{address}",
        "SUBSYSTEM=pci",
        "DRIVER=vfio-pci",
        "PCI_CLASS=20000",
        f"PCI_SLOT_NAME={address}",
    )


def of_cpu(action: str, cpu: str = "cpu3") -> bytes:
    return message(
        action, f"/devices/system/cpu/{cpu}", "SUBSYSTEM=cpu", "DRIVER=processor", "MODALIAS=cpu:x"
    )


@pytest.mark.parametrize(
    ("data", "event"),
    [
        *((of_pci(each), Uevent(each, NIC)) for each in ("bind", "unbind", "add", "remove")),
        *((of_cpu(each), Uevent(each, cpu=3)) for each in ("online", "offline")),
        (of_cpu("online", "cpu8191"), Uevent("online", cpu=8191)),
        (
            of_pci("bind", "10000:01:00.0"),  # Intel VMD
            Uevent("bind", PciAddress.parse("10000:01:00.0")),
        ),
        # A function behind bridges: the last one is meant.
        (
            message("bind", f"{PORT}/0000:81:00.0/{NIC}", "SUBSYSTEM=pci"),
            Uevent("bind", NIC),
        ),
    ],
)
def test_what_concerns_us(data: bytes, event: Uevent) -> None:
    assert parse(data) == event


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"bind",
        b"@",
        b"bind@",
        of_pci("change"),
        of_pci("move"),
        of_cpu("add"),
        of_cpu("remove"),
        of_cpu("online", "cpu"),
        of_cpu("online", "cpu3/cache"),
        of_cpu("online", "cpu\u0663"),
        of_cpu("online", "cpu123456"),
        message("bind", f"{PORT}/{NIC}/net/eth0", "SUBSYSTEM=net"),
        message("bind", f"{PORT}/{NIC}/virtio0", "SUBSYSTEM=virtio"),
        message("bind", f"{PORT}/{NIC}/nvme0", "SUBSYSTEM=pci"),
        message("bind", f"{PORT}/{NIC}"),
        message("bind", f"{PORT}/{NIC}", "subsystem=pci"),
        message("online", f"{PORT}/{NIC}", "SUBSYSTEM=pci"),
        message("add", "/bus/pci/drivers/vfio-pci", "SUBSYSTEM=drivers"),
        message("online", "/devices/system/memory/memory3", "SUBSYSTEM=memory"),
        b"libudev\0\xfe\xed\xca\xfe" + of_pci("bind"),
    ],
)
def test_what_does_not(data: bytes) -> None:
    assert parse(data) is None


@given(st.binary(max_size=300))
def test_whatever_is_sent_is_no_error(data: bytes) -> None:
    parse(data)


@given(st.binary(max_size=40), st.sampled_from(["bind", "online"]))
def test_whatever_path_is_sent_is_no_error(path: bytes, action: str) -> None:
    for subsystem in (b"pci", b"cpu"):
        parse(b"%s@%s\0SUBSYSTEM=%s\0" % (action.encode(), path, subsystem))


class Netlink:
    """Where the kernel would be.

    Messages are (netlink id of the sender, data); an errno is what reading fails with.
    """

    def __init__(self, *messages: tuple[int, bytes] | int) -> None:
        self.messages = list(messages)
        self.reads = 0
        self.closed = False

    def setsockopt(self, *_: object) -> None: ...

    def bind(self, address: tuple[int, int]) -> None:
        assert address == (0, 1), "the kernel's own group, and not udevd's"

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        self.reads += 1
        if not self.messages:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        found = self.messages.pop(0)
        if isinstance(found, int):
            raise OSError(found, os.strerror(found))
        sender, data = found
        assert len(data) <= size
        return data, (sender, 1)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def netlink(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def listening(*messages: tuple[int, bytes] | int) -> tuple[Uevents, Netlink]:
        made = Netlink(*messages)
        monkeypatch.setattr(socket, "socket", lambda *_: made)
        uevents = Uevents()
        monkeypatch.undo()
        return uevents, made

    return iter([listening])


def test_what_has_come_is_read_in_order(netlink: Iterator[Any]) -> None:
    uevents, _ = next(netlink)((0, of_cpu("offline")), (0, of_pci("change")), (0, of_pci("bind")))
    assert uevents.read() == [Uevent("offline", cpu=3), Uevent("bind", NIC)]
    assert uevents.read() == []
    assert not uevents.lost


def test_only_the_kernel_is_believed(netlink: Iterator[Any]) -> None:
    uevents, _ = next(netlink)((4711, of_cpu("offline")), (0, of_cpu("online")))
    assert uevents.read() == [Uevent("online", cpu=3)]


def test_a_buffer_that_was_full_is_told(netlink: Iterator[Any]) -> None:
    uevents, _ = next(netlink)((0, of_pci("bind")), errno.ENOBUFS, (0, of_cpu("online")))
    assert uevents.read() == [Uevent("bind", NIC), Uevent("online", cpu=3)]
    assert uevents.lost


def test_other_errors_are_not_hidden(netlink: Iterator[Any]) -> None:
    uevents, _ = next(netlink)(errno.EBADF)
    with pytest.raises(OSError, match="Bad file descriptor"):
        uevents.read()


def test_a_flood_is_read_in_pieces(netlink: Iterator[Any]) -> None:
    uevents, made = next(netlink)(*[(0, of_pci("bind"))] * 1000)
    assert 0 < len(uevents.read()) < 1000
    found = made.reads
    while uevents.read():
        pass
    assert made.messages == []
    assert found < 1000


def test_a_socket_that_cannot_be_bound_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Netlink()

    def refuse(address: tuple[int, int]) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(made, "bind", refuse)
    monkeypatch.setattr(socket, "socket", lambda *_: made)
    with pytest.raises(PermissionError):
        Uevents()
    assert made.closed


def test_on_this_machine() -> None:
    """It opens and does not block, where a sandbox does not forbid it."""
    try:
        uevents = Uevents()
    except OSError as error:
        pytest.skip(f"no netlink here: {error.strerror}")
    try:
        assert not os.get_blocking(uevents.fileno())
        assert isinstance(uevents.read(), list)
    finally:
        uevents.close()
    assert uevents.fileno() == -1
