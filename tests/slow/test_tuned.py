"""What docs/tuned.md says of TuneD, by Debian's TuneD in a host in a namespace.

Interrupts are files there: what is seen is what TuneD writes. That the daemon puts back what others
move is tests/full's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from lab import boxes
from lab.kernel import LabUnavailable
from tests.conftest import REPOSITORY
from tests.hostmaker import MadeHost, MadeInterrupt, passthrough
from tests.needs import need_program, not_run

NIC: Final = "0000:82:00.0"
DEFAULT: Final = "/proc/irq/default_smp_affinity"
PROFILES: Final = "/etc/tuned/profiles"
INTERRUPTS: Final = "".join(
    f"{each}\n"
    for each in (
        " " * 5 + "".join(f"CPU{cpu:<8}" for cpu in range(10)),
        f" 40: {'0 ' * 10} PCI-MSI 1 eth0",
        f"100: {'0 ' * 10} PCI-MSI 2 vfio-msix[0]({NIC})",
        f"101: {'0 ' * 10} PCI-MSI 3 vfio-msix[1]({NIC})",
    )
)
ISOLATED: Final = "2-9"


class Affinities(NamedTuple):
    """As masks: of new interrupts, of a device of the host's, and of a guest's two vectors."""

    new: int
    eth0: int
    guest: tuple[int, int]


FOUND: Final = Affinities(new=0x3FF, eth0=0x200, guest=(0x200, 0x200))
HOUSEKEEPING: Final = 0x3


class Host:
    def __init__(self, box: boxes.Box) -> None:
        self.box = box

    def activate(self, profile: str) -> Affinities:
        self.box.run(f"tuned-adm profile {profile}")
        return self.affinities()

    def off(self) -> Affinities:
        self.box.run("tuned-adm off")
        return self.affinities()

    def affinities(self) -> Affinities:
        files = [DEFAULT, *(f"/proc/irq/{irq}/smp_affinity" for irq in (40, 100, 101))]
        told = self.box.run(f"for each in {' '.join(files)}; do cat $each; echo; done")
        new, eth0, *guest = (int(each, 16) for each in told.split())
        return Affinities(new, eth0, (guest[0], guest[1]))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    need_program("nsenter")
    work = tmp_path_factory.mktemp("box")
    made = MadeHost(
        online="0-9",
        devices=[passthrough(NIC, vectors=2, affinity="9")],
        interrupts=[MadeInterrupt(40, ("eth0",), "9")],
        files={DEFAULT: f"{FOUND.new:x}", "/sys/devices/system/cpu/present": "0-9"},
        modes={DEFAULT: 0o644},
        masks=True,
        foreign=True,
    ).write(tmp_path_factory.mktemp("host"))
    try:
        with boxes.box("tuned", work, made, packages=["tuned"]) as box:
            box.run(
                "cat > /run/interrupts; mount --bind /run/interrupts /proc/interrupts",
                given=INTERRUPTS,
            )
            box.run(f"echo isolated_cores={ISOLATED} > /etc/tuned/cpu-partitioning-variables.conf")
            yield Host(box)
    except LabUnavailable as error:
        not_run(f"TuneD: {error}")


def test_partitioning_moves_guests_interrupts_and_puts_back_what_it_found(host: Host) -> None:
    assert host.affinities() == FOUND
    moved = host.activate("cpu-partitioning")
    assert moved == Affinities(HOUSEKEEPING, HOUSEKEEPING, (HOUSEKEEPING, HOUSEKEEPING))
    assert host.off() == FOUND


def test_with_the_pages_profile_it_leaves_them_alone(host: Host) -> None:
    page = (REPOSITORY / "docs/tuned.md").read_text()
    path, profile = re.findall(rf"```\n# ({PROFILES}/\S+)\n(.*?)```", page, re.DOTALL)[0]
    directory = Path(path).parent
    host.box.run(f"mkdir -p {directory}; cat > {path}", given=profile)
    assert host.activate(directory.name) == FOUND._replace(new=HOUSEKEEPING)
    assert host.off() == FOUND
