"""A guest behind an emulated AMD-Vi, its vectors followed through what its kernel has set up.

libvirt 11.3 knows no AMD-Vi, so QEMU is told of it behind libvirt's back. What the guest's kernel
aims at stands in the IOMMU's tables; the entries of its devices hold an index alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab import full
from lab.full import E1000E, IGB, Guest, GuestSpec, Host
from tests.full.hosts import install_warm, need_full_lab
from tests.full.test_daemon import daemon, until
from tests.full.test_libvirt import told
from tests.full.test_vectors import CPUS, agree, chosen, moved, placed

pytestmark = pytest.mark.lab

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
DEVICES = (E1000E[1], IGB[1])


@dataclass(frozen=True)
class BehindAmdVi(GuestSpec):
    """A guest with an AMD-Vi that remaps its interrupts."""

    def xml(self) -> str:
        """KVM's own IO-APIC knows no remapped interrupts.

        As JSON it comes after the devices that libvirt gives addresses, and takes what they leave.
        """
        words = ("-device", '{"driver":"amd-iommu","intremap":"on"}')
        given = "".join(f"<q:arg value='{each}'/>" for each in words)
        more = f"<q:commandline>{given}</q:commandline>\n</domain>"
        text = super().xml().replace("<domain ", f"<domain xmlns:q='{QEMU}' ", 1)
        text = text.replace("</features>", "<ioapic driver='qemu'/></features>")
        return text.replace("</domain>", more)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_full_lab("the tests of a guest behind AMD-Vi")
    with full.lab() as host:
        install_warm(host)
        yield host


@pytest.fixture(scope="module")
def guest(host: Host) -> Iterator[Guest]:
    spec = BehindAmdVi("amd", pins=CPUS, hostdevs=DEVICES, memory_mib=256, kernel_args="iommu=pt")
    with host.guest(spec) as guest:
        yield guest


def test_vectors_follow_the_guest_through_its_tables(guest: Guest) -> None:
    assert "IR-PCI-MSIX" in guest.interrupts()
    assert "AMD-Vi: Interrupt remapping enabled" in guest.command("sh dmesg | grep AMD-Vi")
    with daemon(guest.host) as job:

        def state() -> object:
            return chosen(guest), placed(guest), job.output()

        until(lambda: agree(guest), state)
        assert len(set(placed(guest).values())) > 1
        for place in chosen(guest):
            moved(guest, place, 2)
        until(lambda: agree(guest), state)
        assert set(placed(guest).values()) == {CPUS[2]}
        (found,) = told(guest.host)["findings"]
        assert (found["code"], found["subject"]) == ("vectors-followed", "amd")
