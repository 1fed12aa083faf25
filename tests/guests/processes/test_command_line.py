"""Command lines of virtual machine monitors: one file each, and what may be done to them.

A file in ``commandlines/`` has what is expected, a blank line, and the words, one a line.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.steps import steps
from virtirq.guests.processes.command_line import read_command_line
from virtirq.guests.processes.qemu import pairs
from virtirq.guests.processes.values import (
    MOST_CHARACTERS,
    MOST_NAME,
    MOST_WORDS,
    CommandLine,
    host_address,
    name_of,
    split,
    sysfs_address,
    uuid_of,
)
from virtirq.model import PciAddress

FILES = sorted(Path(__file__).with_name("commandlines").glob("*.txt"))
NIC = PciAddress(0, 0x41, 0, 0)


def recorded(path: Path) -> tuple[CommandLine, list[str]]:
    head, _, words = path.read_text().partition("\n\n")
    told = dict(line.split(":", 1) for line in head.splitlines())
    return CommandLine(
        told["vmm"].strip(),
        told["name"].strip() or None,
        told["uuid"].strip() or None,
        tuple(PciAddress.parse(each) for each in told["devices"].split()),
    ), words.splitlines()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_recorded(path: Path) -> None:
    expected, words = recorded(path)
    assert read_command_line(words) == expected


def test_every_program_is_recorded() -> None:
    vmms = {recorded(path)[0].vmm for path in FILES}
    assert vmms == {
        *("qemu", "cloud-hypervisor", "crosvm", "firecracker", "kvmtool"),
        *("stratovirt", "openvmm", "alioth", ""),
    }


QEMU = [
    ("-device vfio-pci,host=0000:41:00.0", NIC),
    ("--device vfio-pci,host=41:00.0", NIC),
    ("-device vfio-pci,host=41:0.0", NIC),
    ("-device vfio-pci,host=0x0:0x41:0x0.0", NIC),
    ("-device driver=vfio-pci,host=41:00.0", NIC),
    ("-device host=41:00.0,driver=vfio-pci", NIC),
    ("-device vfio-pci,id=a,,b,host=41:00.0", NIC),
    ("-device vfio-pci,host=42:00.0,host=41:00.0", NIC),
    ("-device vfio-pci,host=ffff:ff:1f.7", PciAddress(0xFFFF, 0xFF, 0x1F, 7)),
    ("-device vfio-pci,host=10000:01:00.0", PciAddress(0x10000, 1, 0, 0)),
    ("-device vfio-pci,host=42:00.0,sysfsdev=/sys/bus/pci/devices/0000:41:00.0", NIC),
    ("-device vfio-pci,sysfsdev=/sys/devices/pci0000:40/0000:40:01.0/0000:41:00.0/", NIC),
    ('-device {"driver":"vfio-pci","host":"0000:41:00.0"}', NIC),
    ('-device {"driver":"vfio-pci-nohotplug","sysfsdev":"/x/0000:41:00.0"}', NIC),
    ("-device {'driver':'vfio-pci','host':'0000:41:00.0'}", NIC),
    ("""-device {'driver':'vfio-pci',"id":"it's",'host':"41:00.0"}""", NIC),
    (r"""-device {'driver':'vfio-pci','id':'a\'"\\"b','host':'41:00.0'}""", NIC),
    ("-blockdev {'driver':'raw','file':{'driver':'nvme','device':'0000:41:00.0'}}", NIC),
    ("-device vfio-pci,id=a -set device.a.host=41:00.0", NIC),
    ("-drive file=nvme://0000:41:00.0/1", NIC),
    # What QEMU does not take, or what gives the guest no PCI function:
    ("-device=vfio-pci,host=41:00.0", None),
    ("-device vfio-pci", None),
    ("-device", None),
    ("-device vfio-pci,host=", None),
    ("-device vfio-pci,host=100:00.0", None),
    ("-device vfio-pci,host=41:20.0", None),
    ("-device vfio-pci,host=41:00.8", None),
    ("-device vfio-pci,host=41:00.0;x", None),
    ("-device vfio-pci-igd-lpc-bridge,host=41:00.0", None),
    ("-device vfio-ccw,sysfsdev=/x/0000:41:00.0", None),
    ("-device vfio-pci,sysfsdev=/sys/bus/mdev/devices/6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11", None),
    ("-device vfio-pci,sysfsdev=", None),
    ('-device {"driver":"vfio-pci","host":41}', None),
    ('-device {"driver":"vfio-pci","host":"0000:41:00.0"', None),
    ("-device {'driver':'vfio-pci','host':'0000:41:00.0}", None),
    ("-device {'driver':vfio-pci,'host':'0000:41:00.0'}", None),
    ('-device {"driver":["vfio-pci"],"host":"0000:41:00.0"}', None),
    ("-device e1000 -set device.e.host=41:00.0 -set x", None),
    ("-append vfio-pci,host=41:00.0", None),
]


@pytest.mark.parametrize(("text", "expected"), QEMU)
def test_qemu_devices(text: str, expected: PciAddress | None) -> None:
    told = read_command_line(["/usr/bin/qemu-system-x86_64", *text.split(" ")])
    assert told.devices == (() if expected is None else (expected,))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("-name web", "web"),
        ("-name guest=web", "web"),
        ("-name web,debug-threads=on", "web"),
        ("-name debug-threads=on,guest=web", "web"),
        ("-name process=x,guest=web", "web"),
        ("-name guest=a,,b", "a,b"),
        ("-name a -name guest=web", "web"),
        ("-name web -name debug-threads=on", "web"),
        ("-name tenant_web", "tenant_web"),
        ("-name tenant_web -chardev socket,path=/run/kubevirt-private/x", "tenant/web"),
        ("-name a_b_c -chardev socket,path=/run/kubevirt-private/x", "a_b_c"),
        ("-id 101", "101"),
        ("-id 101 -name web", "101"),
        ("-id x -name web", "web"),
        ("-name", None),
        ("-name ,", None),
        ("-name process=x", None),
    ],
)
def test_qemu_names(text: str, name: str | None) -> None:
    assert read_command_line(["kvm", *text.split(" ")]).name == name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-uuid 6F0B9BE0-6f0c-4c6b-9e0a-8f2f3a6f2d11", "6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11"),
        ("-uuid 00000000-0000-0000-0000-000000000000", None),
        ("-uuid 6f0b9be0", None),
        ("-smbios type=1,uuid=6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11 -smbios type=3,asset=x",
         "6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11"),
    ],
)  # fmt: skip
def test_qemu_uuids(text: str, expected: str | None) -> None:
    assert read_command_line(["qemu-kvm", *text.split(" ")]).uuid == expected


@pytest.mark.parametrize(
    "words",
    [
        [],
        [""],
        ["/"],
        ["cloud-hypervisor", "--device"],
        ["cloud-hypervisor", "--device", "path=,]]][["],
        ["cloud-hypervisor", "--device", 'path="/sys/bus/pci/devices/0000:41:00.0'],
        ["crosvm", "run", "--vfio"],
        ["crosvm", "run", "--vfio", ","],
        ["crosvm", "run", "--vfio=", "--vfio", "=,="],
        ["vm", "0000:41:00.0"],
        ["lkvm", "run", "--vfio-pci", "x"],
        ["qemu-img", "info", "nvme://0000:41:00.0/1"],
    ],
)
def test_what_makes_no_sense_names_no_device(words: list[str]) -> None:
    assert read_command_line(words).devices == ()


HOSTILE = st.text(st.characters(), max_size=40)
PIECES = st.sampled_from(
    [
        "-device",
        "--device",
        "-name",
        "--vfio",
        "run",
        "vfio-pci,host=",
        "{",
        '"',
        "[",
        "]",
        ",",
        "=",
    ]
)


@given(
    st.sampled_from(
        [
            *("qemu-system-x86_64", "cloud-hypervisor", "crosvm", "lkvm", "firecracker", "x"),
            *("stratovirt", "openvmm"),
        ]
    ),
    st.lists(HOSTILE | PIECES | st.tuples(PIECES, HOSTILE).map("".join), max_size=12),
)
def test_any_words_can_be_read(program: str, words: list[str]) -> None:
    told = read_command_line([program, *words])
    assert told.name is None or (told.name.isprintable() and 0 < len(told.name) <= MOST_NAME + 1)
    assert len(set(told.devices)) == len(told.devices)


@pytest.mark.parametrize(
    ("executed", "words", "vmm"),
    [
        # The program under a name of the wrapper's choosing, what runs and what it is called:
        (".qemu-system-x86_64-wrapped", "-device vfio-pci,host=41:00.0", "qemu"),
        ("qemu-system-x86_64 (deleted)", "-device vfio-pci,host=41:00.0", "qemu"),
        ("qemu-kvm", "-device vfio-pci,host=41:00.0", "qemu"),
        (".cloud-hypervisor-wrapped", "--device path=/sys/x/0000:41:00.0", "cloud-hypervisor"),
        (".crosvm-wrapped", "run --vfio /sys/x/0000:41:00.0", "crosvm"),
        ("lkvm-static", "run --vfio-pci 0000:41:00.0", "kvmtool"),
        ("stratovirt-1.0", "-device vfio-pci,host=41:00.0", "stratovirt"),
    ],
)
def test_wrapped(executed: str, words: str, vmm: str) -> None:
    told = read_command_line(["microvm@web", *words.split()], executed)
    assert (told.vmm, told.devices) == (vmm, (NIC,))


JSON_KEYS = st.sampled_from(["driver", "device", "filename", "x"])
JSON = st.recursive(
    st.none() | st.text(max_size=5) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_KEYS, inner, max_size=4),
)


@settings(max_examples=30)
@given(JSON)
def test_any_json_can_be_read(value: object) -> None:
    for option in ("-device", "-blockdev", "-drive"):
        read_command_line(["qemu-system-x86_64", option, json.dumps({"driver": value, "x": value})])


@pytest.mark.parametrize("text", ['{"a":' * 100_000, "[" * 100_000, '{"a":' + "9" * 5000 + "}"])
def test_json_beyond_measure(text: str) -> None:
    words = [
        "qemu-system-x86_64",
        "-device",
        text,
        "-blockdev",
        text,
        "-drive",
        f"file=json:{text}",
    ]
    assert read_command_line(words).devices == ()


KEYS = st.text("abcxyz-_.", min_size=1, max_size=8)


@given(st.dictionaries(KEYS, st.text(st.characters(exclude_characters="\0"), max_size=12)))
def test_a_list_of_values_comes_back(told: dict[str, str]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in told.items())
    assert pairs(text) == told


@given(HOSTILE)
def test_any_value_can_be_read(text: str) -> None:
    for read in (pairs, host_address, sysfs_address, uuid_of, name_of):
        read(text)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFF), st.integers(0, 0x1F), st.integers(0, 7))
def test_an_address_comes_back(domain: int, bus: int, slot: int, function: int) -> None:
    address = PciAddress(domain, bus, slot, function)
    assert host_address(str(address)) == sysfs_address(f"/sys/x/{address}/") == address
    assert host_address(f"{domain:x}:{bus:x}:{slot:x}.{function}") == address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web", "web"),
        ("a\nb\x1b[31m", "a?b?[31m"),
        ("a\u202eb", "a?b"),
        ("caf\u00e9 \u4e2d", "caf\u00e9 \u4e2d"),
        ("x" * 300, "x" * MOST_NAME + "…"),
        ("\ufffd", "\ufffd"),
        ("\x7f", "?"),
        ("", None),
        ("   ", None),
    ],
)
def test_a_name_can_be_shown(text: str, shown: str | None) -> None:
    assert name_of(text) == shown


class TestSplit:
    def test_words(self) -> None:
        assert split("a\0b c\0\0d") == ["a", "b c", "", "d"]
        assert split("") == []

    def test_two_million_words(self) -> None:
        words = split("qemu" + "\0" * 2_000_000 + "x")
        assert len(words) == MOST_WORDS
        assert words[0] == "qemu"

    def test_a_word_of_two_megabytes(self) -> None:
        words = split("qemu\0-device\0" + "vfio-pci,host=41:00.0," * 100_000 + "\0-name\0web")
        assert words == ["qemu", "-device", "", "-name", "web"]
        assert len(split("x" * MOST_CHARACTERS)[0]) == MOST_CHARACTERS


def test_what_is_set_of_many_devices_is_looked_up() -> None:
    """A command line of 16 thousand devices and as many changes of the last: 39 s, once."""
    many = 16_000
    words = ["qemu-system-x86_64"]
    for number in range(many):
        words += ["-device", f"vfio-pci,id=d{number}"]
    last = f"device.d{many - 1}.host"
    told = read_command_line(words + ["-set", f"{last}=41:00.0"] * many + ["-S"])
    assert told.devices == (PciAddress(0, 0x41, 0, 0),)


def test_what_is_set_of_many_devices_costs_what_it_is_long() -> None:
    """Of twice as many devices and changes, twice as much is done."""

    def done(many: int) -> int:
        words = ["qemu"]
        for number in range(many):
            words += ["-device", f"vfio-pci,id=d{number}"]
        words += [f"-set device.d{many - 1}.host=41:00.0"] * many
        words = " ".join(words).split()
        return steps(lambda: read_command_line(words))

    assert done(400) < 2.2 * done(200)


def test_of_two_devices_with_one_id_the_first_is_changed() -> None:
    one = ["-device", "vfio-pci,id=a,host=41:00.0"]
    words = ["qemu", *one, *one, "-set", "device.a.host=42:00.0", "-S"]
    assert read_command_line(words).devices == (
        PciAddress(0, 0x42, 0, 0),
        PciAddress(0, 0x41, 0, 0),
    )


class TestExecuted:
    """Whoever starts a program chooses what it is called."""

    MICROVM = (
        "-M microvm,accel=kvm:tcg,pcie=on -name my-vm -m 512 -smp 2"
        " -smbios type=1,uuid=33333333-2222-4333-8444-555555555555"
        " -device vfio-pci,host=0000:41:00.0,multifunction=on"
    )

    @pytest.mark.parametrize(
        "executed",
        [
            ["/nix/store/abc-qemu-9.2.3/bin/qemu-system-x86_64"],
            ["/nix/store/abc/bin/.qemu-system-x86_64-wrapped"],
            ["", "qemu-system-x86"],  # the program is hidden, and comm cuts
            ["/usr/bin/qemu-kvm"],
            ["/opt/wrapper", "kvm"],
        ],
    )
    def test_qemu_by_another_name(self, executed: list[str]) -> None:
        words = ["microvm@my-vm", *self.MICROVM.split(), "-S"]
        assert read_command_line(words) == CommandLine()
        assert read_command_line(words, *executed) == CommandLine(
            "qemu",
            "my-vm",
            "33333333-2222-4333-8444-555555555555",
            (PciAddress(0, 0x41, 0, 0),),
        )

    def test_others_by_another_name(self) -> None:
        words = ["vmm", "run", "--name", "x", "--vfio", "/sys/bus/pci/devices/0000:41:00.0"]
        assert read_command_line(words, "/usr/bin/crosvm").vmm == "crosvm"
        words = ["vmm", "--device", "path=/sys/bus/pci/devices/0000:41:00.0"]
        assert read_command_line(words, "", "cloud-hyperviso").vmm == "cloud-hypervisor"
        assert read_command_line(["vmm", "--id", "x"], "/usr/bin/firecracker").name == "x"

    @pytest.mark.parametrize("name", ["qemu", "cloud-hypervisor", "firecracker", "openvmm", "vm"])
    def test_what_runs_comes_before_what_it_is_called(self, name: str) -> None:
        """A guest may be named like another program."""
        words = [f"microvm@{name}", *self.MICROVM.split(), "-S"]
        told = read_command_line(words, "/nix/store/abc-qemu-9.2.3/bin/qemu-system-x86_64")
        assert (told.vmm, told.name, len(told.devices)) == ("qemu", "my-vm", 1)
        words = [f"microvm@{name}", "--device", "path=/sys/bus/pci/devices/0000:41:00.0"]
        told = read_command_line(words, "/nix/store/abc/bin/cloud-hypervisor")
        assert (told.vmm, told.devices) == ("cloud-hypervisor", (NIC,))

    @pytest.mark.parametrize("executed", ["/usr/lib64/ld-linux-x86-64.so.2", "/usr/bin/python3"])
    def test_what_it_calls_itself_comes_next(self, executed: str) -> None:
        words = ["qemu-system-x86_64", "-name", "x", "-S"]
        assert read_command_line(words, executed, "crosvm") == CommandLine("qemu", "x")

    def test_other_programs(self) -> None:
        words = ["sh", *self.MICROVM.split(), "-S"]
        assert read_command_line(words, "/bin/dash", "sh") == CommandLine()
        assert read_command_line([], "/usr/bin/qemu-system-x86_64") == CommandLine("qemu")
