"""Whose a device is, and what drives it: QEMU's own arguments, rules, VFIO under other names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.cases.room import Room, arguments, guest
from tests.hostmaker import MadeDevice, MadeHost, MadeInterrupt, passthrough
from virtirq.host.fs import HostFs, Reader
from virtirq.host.irqbalance import read_irqbalance
from virtirq.model import Irqbalance

A, B = "0000:43:10.0", "0000:43:10.1"
HOST = MadeHost(
    online="0-7",
    nodes={0: "0-3", 1: "4-7"},
    devices=[
        passthrough(A, vectors=3, first_irq=65, node=1),
        passthrough(B, vectors=1, first_irq=75, node=1),
    ],
)
PINS = ("4", "5", "6", "7")


class TestQemusArguments:
    @pytest.mark.parametrize(
        "words",
        [
            ("-device", "vfio-pci,host=0000:43:10.0"),
            ("-device", "vfio-pci,host=43:10.0,id=hostdev9,bus=pci.0,addr=0x9"),
            ("--device", "driver=vfio-pci,id=a,host=43:10.0"),
            ("-device", "vfio-pci-nohotplug,host=43:10.0"),
            ("-device", "vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:43:10.0"),
            (
                "-device",
                "{&quot;driver&quot;:&quot;vfio-pci&quot;,&quot;host&quot;:&quot;43:10.0&quot;}",
            ),
            (
                "-device",
                "{&apos;driver&apos;:&apos;vfio-pci&apos;,&apos;host&apos;:&apos;43:10.0&apos;}",
            ),
            ("-device", "vfio-pci,id=x", "-set", "device.x.host=43:10.0"),
            ("-object", "iommufd,id=i0", "-device", "vfio-pci,iommufd=i0,host=43:10.0"),
        ],
    )
    def test_as_hostdev_would_have_it(self, words: tuple[str, ...]) -> None:
        told = Room(HOST, [guest([], PINS, more=arguments(*words))])
        assert told.on == Room(HOST, [guest([A], PINS)]).on == {A: ["4", "5", "6"]}
        assert told.codes == set()

    def test_beside_a_hostdev(self) -> None:
        words = ("-device", "vfio-pci,host=43:10.0")
        room = Room(HOST, [guest([B], PINS, more=arguments(*words))])
        assert room.on == {A: ["4", "5", "6"], B: ["7"]}

    def test_whom_nobody_has_is_told(self) -> None:
        room = Room(HOST, [guest([A], PINS)])
        found = {each.subject: each.message for each in room.findings}
        assert found[B] == "1 interrupt of VFIO's, and no guest that has it"


class TestRulesByAddress:
    """Two equal devices of one guest differ in nothing else."""

    @pytest.mark.parametrize(
        "condition",
        [
            'address = "0000:43:10.1"',
            'address = "43:10.1"',
            'address = "0000:43:10.[1-7]"',
            'address = "*:43:10.1"',
            'address = "pci_0000_43_10_1"',
            'device = "0000:43:10.1"',
            'guest = "vm"\naddress = "0000:43:*.1"',
        ],
    )
    def test_one_of_two(self, condition: str) -> None:
        config = f'[[rule]]\n{condition}\ndirective = "1-2"\n'
        room = Room(HOST, [guest([A, B], PINS)], config)
        assert room.on == {A: ["4", "5", "6"], B: ["1-2"]}


class TestVfioUnderOtherNames:
    """A function is VFIO's where it has vfio-dev/, whatever its driver is called."""

    @pytest.mark.parametrize("driver", ["nvidia", "mlx5_vfio_pci", "ice-vfio-pci", "xe-vfio-pci"])
    @pytest.mark.parametrize("vectors", [0, 2])
    def test_is_planned_for(self, driver: str, vectors: int) -> None:
        made = replace(passthrough(A, vectors=vectors), driver=driver, vfio_device=5, node=1)
        room = Room(replace(HOST, devices=[made]), [guest([A], PINS)])
        (device,) = room.plan.guests[0].devices
        assert device.target is not None
        assert "not a VFIO driver" not in device.note
        assert room.codes == set()

    def test_a_driver_of_the_host_is_told(self) -> None:
        made = MadeDevice(A, driver="ice", vectors=[MadeInterrupt(65, ("ice-0",))], node=1)
        room = Room(replace(HOST, devices=[made]), [guest([A], PINS)])
        assert "its driver is ice, not a VFIO driver" in room.plan.guests[0].devices[0].note
        assert room.on[A] == ["-"]

    def test_nobodys_is_told_as_well(self) -> None:
        made = replace(passthrough(A, vectors=2), driver="nvidia", vfio_device=5)
        found = Room(replace(HOST, devices=[made])).findings
        assert [(each.code, each.subject) for each in found] == [("device-unclaimed", A)]


class TestBannedModules:
    """irqbalance looks for what was banned in the name of each device's own driver."""

    @staticmethod
    def running(driver: str, *words: str) -> HostFs:
        made = replace(passthrough(A, vectors=2), driver=driver, vfio_device=5, node=1)
        command = "\0".join(("/usr/sbin/irqbalance", "--foreground", *words))
        return replace(
            HOST, devices=[made], irqbalance=77, files={"/proc/77/cmdline": command}
        ).live()

    @pytest.mark.parametrize(
        ("driver", "words", "spared"),
        [
            ("vfio-pci", ("--banmod=vfio-pci",), True),
            ("vfio-pci", ("--banmod=vfio",), True),
            ("vfio-pci", ("-m", "vfio"), True),
            ("vfio-pci", ("--banmod", "vfio-pci"), True),
            ("vfio-pci", ("--banmod=vfio_pci",), False),
            ("vfio-pci", ("--banmod=vfio*",), False),  # no glob
            ("vfio-pci", ("--banmod=VFIO",), False),
            ("vfio-pci", (), False),
            ("mlx5_vfio_pci", ("--banmod=vfio-pci",), False),
            ("mlx5_vfio_pci", ("--banmod=vfio",), True),
            ("mlx5_vfio_pci", ("--banmod=mlx5",), True),
            ("mlx5_vfio_pci", ("--banmod=vfio-pci", "--banmod=vfio_pci"), True),
            ("mlx5_vfio_pci", ("--banmod=_vfio_",), True),
            ("vfio-pci", ("--banmod=_vfio_",), False),
            ("xe-vfio-pci", ("-mvfio",), True),
            ("vfio-pci", ("--banm=fio",), True),  # getopt(3) takes the beginning of a long option
            ("nvidia", ("--banmod=",), True),  # an empty name is a part of each
            ("mlx5_vfio_pci", ("--banmod=vfio,mlx5",), False),  # no list
            ("nvidia", ("--banmod=vfio",), False),
            ("nvidia", ("--banmod=vfio", "--banmod=nvidia"), True),
        ],
    )
    def test_by_each_driver(self, driver: str, words: tuple[str, ...], spared: bool) -> None:
        told = read_irqbalance(Reader(self.running(driver, *words)))
        assert (told.running, told.pid) == (True, 77)
        assert told.spares_vfio is told.spares(driver) is spared

    def test_of_several_drivers_each_counts(self) -> None:
        told = Irqbalance(True, 77, banned=("vfio-pci",))
        assert [told.spares(each) for each in ("vfio-pci", "mlx5_vfio_pci", None)] == [
            *(True, False, False)
        ]
