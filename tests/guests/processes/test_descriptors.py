"""Links of descriptors: what each shows, and what somebody made to look like it."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostmaker import MadeFs, MadeHost
from virtirq.guests.processes.descriptors import (
    Descriptor,
    Held,
    Kind,
    classify,
    descriptors,
    read_descriptors,
)
from virtirq.host.statx import FileId
from virtirq.model import PciAddress

DEVICE = "anon_inode:[vfio-device]"
NIC = PciAddress(0, 0x41, 0, 0)
INFO = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1039\n"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("/dev/vfio/42", Descriptor(Kind.GROUP, "42")),
        ("/dev/vfio/noiommu-3", Descriptor(Kind.GROUP, "3")),
        ("/dev/vfio/42 (deleted)", Descriptor(Kind.GROUP, "42")),
        ("/srv/jail/1/root/dev/vfio/42", Descriptor(Kind.GROUP, "42")),
        ("/vfio/42", Descriptor(Kind.GROUP, "42")),
        ("/dev/vfio/devices/vfio7", Descriptor(Kind.CDEV, "vfio7")),
        ("/vfio/devices/vfio7 (deleted)", Descriptor(Kind.CDEV, "vfio7")),
        (DEVICE, Descriptor(Kind.DEVICE)),
        ("anon_inode:kvm-vcpu:3", Descriptor(Kind.VCPU)),
        ("anon_inode:kvm-vcpu", Descriptor(Kind.VCPU)),
        ("/dev/vfio/vfio", None),
        ("/dev/iommu", None),
        ("/dev/kvm", None),
        ("anon_inode:kvm-vm", None),
        ("anon_inode:kvm-vcpu-stats:3", None),
        ("anon_inode:[eventfd]", None),
        ("socket:[4242]", None),
        ("/dev/vfio/", None),
        ("/dev/vfio/42x", None),
        ("/dev/vfio/42/x", None),
        ("/dev/vfio/٤٢", None),
        ("/dev/vfio/12345678901", None),
        ("/dev/vfio/devices/", None),
        ("/dev/vfio/devices/42", None),
        ("/dev/vfio/42\n", None),
        ("dev/vfio/42", None),
        ("/memfd:/dev/vfio/42 (deleted)", None),
        ("/memfd:x/vfio/devices/vfio7", None),
        ("/dmabuf:/vfio/42", None),
        ("", None),
    ],
)
def test_links(link: str, expected: Descriptor | None) -> None:
    assert classify(link) == expected


@given(st.text() | st.text().map("/{}/vfio/42".format) | st.text().map("anon_inode:{}".format))
def test_any_link_can_be_read(link: str) -> None:
    classify(link)


def process(*links: str, **info: str) -> MadeFs:
    """A process with these descriptors from 0 on; ``fd3="…"`` adds to the fdinfo of one."""
    made = MadeHost(
        links={f"/proc/5/fd/{number}": link for number, link in enumerate(links)} | DEVICES,
        files={
            f"/proc/5/fdinfo/{number}": INFO + info.get(f"fd{number}", "")
            for number, _ in enumerate(links)
        },
    ).live()
    for number, link in enumerate(links):
        if link.startswith("/dev/vfio/"):
            name = link.rpartition("/")[2]
            made.opened[f"/proc/5/fd/{number}"] = FileId(1039, 17, f"1:{name.strip('vfio')}")
    return made


DEVICES = {
    "/sys/dev/char/1:7": f"../../devices/pci0000:40/{NIC}/vfio-dev/vfio7",
    "/sys/dev/char/1:42": "../../devices/virtual/vfio/42",
    "/sys/dev/char/1:43": "../../devices/virtual/vfio/noiommu-43",
}


def read(fs: MadeFs) -> Held:
    return read_descriptors(fs, 5, descriptors(fs, 5))


def test_qemu_by_groups() -> None:
    kvm = ("/dev/kvm", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "anon_inode:kvm-vcpu:1")
    fs = process(
        "/dev/null", *kvm, "/dev/vfio/vfio", "/dev/vfio/42", DEVICE, "/dev/vfio/43", DEVICE
    )
    held = read(fs)
    assert held == Held(groups=frozenset({42, 43}), untold=2, vcpus=2)
    assert held.any_device


def test_nothing_is_asked_of_the_files_themselves() -> None:
    """stat(2) of a file in somebody's FUSE waits for that somebody."""
    fs = process("/home/mallory/vfio/42", "/dev/vfio/devices/vfio7", DEVICE)
    read(fs)
    assert {operation for operation, _ in fs.calls} == {"listdir", "readlink", "read", "file_id"}
    assert all("/fdinfo/" in path for operation, path in fs.calls if operation == "read")


def test_the_kernel_tells_the_device() -> None:
    told = "vfio-device-syspath: /sys/devices/pci0000:40/0000:40:01.0/0000:41:00.0"
    fs = process(DEVICE, DEVICE, fd0=told, fd1=told.replace("41:00", "42:00"))
    assert read(fs) == Held(devices=frozenset({NIC, PciAddress(0, 0x42, 0, 0)}))


def test_what_the_kernel_tells_may_be_no_pci_function() -> None:
    mediated = "/sys/devices/pci0000:00/0000:00:02.0/6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11"
    told = f"vfio-device-syspath: {mediated}"
    held = read(process(DEVICE, fd0=told))
    assert held == Held()
    assert not held.any_device


@pytest.mark.parametrize(
    "text",
    [
        "",
        "drm-client-name:\tvfio-device-syspath: /sys/x/0000:41:00.0",
        "vfio-device-syspath:",
        "x: y",
    ],
)
def test_the_kernel_does_not_tell(text: str) -> None:
    held = read(process(DEVICE, "/dev/vfio/devices/vfio7", fd0=text, fd1=text))
    assert held == Held(cdevs=frozenset({NIC}), untold=1)


@pytest.mark.parametrize(
    ("flags", "file"),
    [
        ("012000000", FileId(1039, 17, "1:7")),  # O_PATH
        ("02000002", FileId(1040, 17, "1:7")),
        ("02000002", FileId(1039, 18, "1:7")),
        ("02000002", FileId(1039, 17, None)),
        ("02000002", FileId(1039, 17, "1:8")),
        ("", FileId(1039, 17, "1:7")),
    ],
)
def test_what_is_not_opened_is_not_held(flags: str, file: FileId) -> None:
    fs = process("/dev/vfio/devices/vfio7")
    assert read(fs).cdevs == {NIC}
    fs.set("/proc/5/fdinfo/0", INFO.replace("02000002", flags))
    fs.opened["/proc/5/fd/0"] = file
    assert not read(fs).any_device


@pytest.mark.parametrize("flags", ["0100002", "012000000"])
def test_a_name_that_looks_like_what_the_kernel_says(flags: str) -> None:
    """The last of three questions is answered by a file that was put there meanwhile.

    A dma-buf is named by its user, in 31 characters, of which some may be line feeds.
    """
    fs = process("/home/mallory/vfio/devices/vfio7")
    told = f"pos:\t0\nflags:\t{flags}\nmnt_id:\t15\nino:\t8\nsize:\t4096\ncount:\t1\nname:\t"
    name = "\nflags:\t02\nmnt_id:\t17\nino:\t1039"
    fs.set("/proc/5/fdinfo/0", told + name)
    fs.opened["/proc/5/fd/0"] = FileId(1039, 17, "1:7")
    assert not read(fs).any_device
    fs.set("/proc/5/fdinfo/0", told.replace("15", "17").replace("\t8", "\t1039") + name)
    assert bool(read(fs).any_device) is (flags == "0100002")


@pytest.mark.parametrize(
    "name", ["\nvfio-device-syspath: /41:00.0", "\nvfio-device-syspath:/41:00.0"]
)
def test_a_name_that_looks_like_a_device(name: str) -> None:
    """The device was [vfio-device] when its link was read, and is a dma-buf of that name now."""
    assert len(name) < 32  # DMA_BUF_NAME_LEN, include/uapi/linux/dma-buf.h
    assert read(process(DEVICE, fd0=f"name:\t{name}\n")) == Held(untold=1)


@pytest.mark.parametrize("flags", ["", "08", "9", "02x"])
def test_flags_that_no_kernel_writes(flags: str) -> None:
    fs = process("/dev/vfio/devices/vfio7")
    fs.set("/proc/5/fdinfo/0", INFO.replace("02000002", flags))
    assert not read(fs).any_device


def test_a_group_alone_is_no_device() -> None:
    assert not read(process("/dev/vfio/42", "/dev/vfio/vfio")).any_device


def test_closed_meanwhile() -> None:
    fs = process("/dev/vfio/42", DEVICE)
    fs.faults["/proc/5/fd/0"] = errno.ENOENT
    assert read(fs) == Held(untold=1)


def test_hidden() -> None:
    fs = process("/dev/vfio/42", DEVICE)
    fs.faults["/proc/5/fd/0"] = errno.EACCES
    with pytest.raises(PermissionError):
        read(fs)


def test_together() -> None:
    one = Held(frozenset({1}), frozenset({NIC}), frozenset({NIC}), 1, 2)
    other = Held(frozenset({2}), untold=3)
    assert one | other == Held(frozenset({1, 2}), frozenset({NIC}), frozenset({NIC}), 4, 2)
