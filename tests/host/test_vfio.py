"""VFIO's devices on other buses than PCI: what the kernel names their interrupts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.hostmaker import MadeHost, MadeInterrupt, passthrough
from virtirq.control import cycle
from virtirq.host.vfio import other_interrupts
from virtirq.policy.config import Config
from virtirq.policy.findings import findings
from virtirq.policy.plan import plan

PLATFORM = "/sys/bus/platform/drivers/vfio-platform/bind"
ETHERNET = "fff51000.ethernet"
HOST = MadeHost(
    online="0-3",
    devices=[passthrough("0000:01:00.0", vectors=2)],
    interrupts=[
        MadeInterrupt(40, (f"vfio-irq[40]({ETHERNET})",)),
        MadeInterrupt(41, (f"vfio-irq[41]({ETHERNET})",)),
        MadeInterrupt(42, ("vfio-irq[42](dpni.3)",)),
        MadeInterrupt(43, ("vfio-msi[0](cdx-00:00)",)),
        MadeInterrupt(44, ("eth0", f"vfio-irq[44]({ETHERNET})")),
        MadeInterrupt(45, ("vfio-irq[45](a) b", "vfio-irq[x](c)", "vfio-irq[45]()", "my-vfio")),
        MadeInterrupt(46),
    ],
)
FOUND = {"cdx-00:00": [43], "dpni.3": [42], ETHERNET: [40, 41, 44]}


@pytest.mark.parametrize("driver", ["platform/drivers/vfio-platform", "cdx/drivers/vfio-cdx"])
def test_are_found_by_their_actions(driver: str) -> None:
    host = replace(HOST, files={f"/sys/bus/{driver}/bind": ""})
    assert other_interrupts(host.live()) == FOUND
    assert other_interrupts(HOST.fs()) == FOUND, "a recording has no drivers of other buses"


def test_without_a_driver_no_interrupt_is_read() -> None:
    host = HOST.live()
    assert other_interrupts(host) == {}
    assert not [path for operation, path in host.calls if operation == "read"]


def test_are_told_and_are_no_fault() -> None:
    snapshot = cycle.observe(replace(HOST, files={PLATFORM: ""}).live(), ())
    told = [each for each in findings(snapshot, plan(snapshot, Config())) if each.subject in FOUND]
    assert [(each.code, each.severity.value) for each in told] == [("device-not-pci", "note")] * 3
    assert told[2].message == "3 interrupts of VFIO's (40, 41, 44), and it is no PCI function"
