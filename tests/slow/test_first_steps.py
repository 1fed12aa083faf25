"""The documentation's first session, as it stands there, on a host without virtirq; and back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from lab import full
from lab.full import E1000E, GuestSpec, Host
from release import pyz
from tests.full.hosts import need_full_lab

pytestmark = pytest.mark.lab

NIC: Final = E1000E[1]
PINS: Final = ("4", "5")
DROP_IN: Final = "/run/systemd/system/virtirq.service.d"


def test_from_nothing_to_the_first_pinned_guest(repository: Path, tmp_path: Path) -> None:
    steps = first_steps((repository / "docs/libvirt.md").read_text())
    assert 0 < len(steps) <= 5
    need_full_lab("the documentation's first session")
    file = pyz.pyz(tmp_path)
    with (
        full.lab(machine=full.Machine(systemd=True)) as host,
        host.guest(GuestSpec(pins=PINS, hostdevs=(NIC,))),
    ):
        host.put(file, "/root/virtirq.pyz")
        host.run("systemctl start irqbalance")
        host.run("until [ -S /run/irqbalance/*.sock ]; do sleep 0.1; done")
        # It compiles itself at each start: half a second, and most of a minute on this machine.
        host.write(f"{DROP_IN}/slow.conf", "[Service]\nTimeoutStartSec=600")
        for vector in host.vectors(NIC):
            host.run(f"echo 7 > /proc/irq/{vector.irq}/smp_affinity_list")
        assert not pinned(host)
        for command, screen in steps:  # the lab has no sudo, and is root
            patience = host.patience()
            while missing := not_said(host, command.removeprefix("sudo "), screen):
                # What the guest itself has chosen is read once the daemon runs: that takes longer.
                assert command in ("virtirq status", "virtirq events"), f"{command}: {missing}"
                assert not patience.ended(), f"{command}: {missing}"
        assert pinned(host)
        host.run("virtirq uninstall")
        assert not pinned(host)


def pinned(host: Host) -> bool:
    """Whether each of the NIC's vectors has one of the guest's CPUs for itself."""
    there = {each.affinity for each in host.vectors(NIC)}
    return bool(there) and there <= set(PINS)


def not_said(host: Host, command: str, screen: list[str]) -> str:
    """What of the documentation's screen a command does not print, and what it prints."""
    done = host.run(f"cd /root; {command}")
    said = [plain(line) for line in done.stdout.splitlines()]
    missing = [line for line in screen if line != "…" and plain(line) not in said]
    return f"{missing}\n{done.stdout}" if missing else ""


def first_steps(page: str) -> list[tuple[str, list[str]]]:
    """The commands of the documentation's first session, each with what it prints."""
    (block,) = re.findall(r"^```\n\$ (sudo ./virtirq.pyz install\n.*?)^```$", page, re.M | re.S)
    return [
        (command, screen)
        for command, *screen in (each.splitlines() for each in re.split(r"^\$ ", block, flags=re.M))
    ]


def plain(line: str) -> str:
    """Without what differs from host to host: numbers, their widths, and where a vector was."""
    line = re.sub(r"(of vCPU \d+),.*", r"\1", line.replace("web", "guest"))
    line = re.sub(r"(guest|plan) +IRQ", "IRQ", line)  # by what it was seen first is chance
    return " ".join(re.sub(r"\d+(-\d+)?", "N", line).split())
