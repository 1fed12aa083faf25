"""Debian's package and virtirq.pyz on a fresh host, under systemd, with a guest that runs.

apt installs, upgrades, removes and purges; what is watched is what an operator would: where the
interrupts are, what irqbalance leaves alone, and that nothing stays behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from lab import full
from lab.full import GuestSpec, Host
from release import deb, pyz
from tests.full.hosts import need_full_lab
from tests.slow.test_first_steps import NIC, PINS, pinned

pytestmark = pytest.mark.lab

APT: Final = "DEBIAN_FRONTEND=noninteractive apt-get -qy"
PACKAGE: Final = "/root/virtirq.deb"
NEXT: Final = "/root/next.deb"
FILE: Final = "/root/virtirq.pyz"
# The same package as its next version.
REPACK: Final = f"""\
cd /root; dpkg-deb -R {PACKAGE} next
sed -i 's/^Version: .*/&+next/' next/DEBIAN/control
dpkg-deb --root-owner-group -Znone -b next {NEXT}; rm -r next
"""
# All that a package may leave behind, but for what apt and dpkg note of it.
FILES: Final = """\
find /etc /usr /run/virtirq /run/systemd/system /sys/kernel/tracing/instances \
    /var/lib/systemd/deb-systemd-helper-enabled -path /etc/libvirt -prune -o -print \
    2> /dev/null | sort
cat /sys/kernel/tracing/kprobe_events
"""
AFFINITIES: Final = "cd /proc/irq; grep . */smp_affinity_list || true"
START_IRQBALANCE: Final = (
    "systemctl start irqbalance; until [ -S /run/irqbalance/*.sock ]; do sleep 0.1; done"
)
# What irqbalance leaves alone: virtirq is not there to be asked.
BANNED: Final = """\
import array, glob, os, socket, struct
path, = glob.glob("/run/irqbalance/irqbalance*.sock")
asked = socket.socket(socket.AF_UNIX)
asked.connect(path)
credentials = array.array("B", struct.pack("3i", os.getpid(), 0, 0))
asked.sendmsg([b"setup"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)])
words = asked.recv(1 << 16).decode().split()
print(*sorted(words[at + 1] for at, word in enumerate(words) if word == "IRQ"))
"""


class Seen(NamedTuple):
    """A host before anything was installed."""

    files: str
    affinities: str


class Fresh:
    """A host with the package at hand, and how it was before."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.before = self.seen()

    def seen(self) -> Seen:
        run = self.host.run
        return Seen(run(FILES).stdout, run(AFFINITIES).stdout)

    def banned(self) -> str:
        return self.host.run(["python3", "-S", "-c", BANNED]).stdout

    def show(self, name: str) -> str:
        words = ["systemctl", "show", "--value", "-p", name, "virtirq"]
        return self.host.run(words).stdout.strip()

    def pinned(self) -> bool:
        return pinned(self.host)

    def until_pinned(self) -> None:
        patience = self.host.patience()
        while not self.pinned():
            assert not patience.ended(), self.host.run("journalctl -u virtirq -n 50").stdout
            time.sleep(0.2)

    def until_banned(self) -> None:
        """Until irqbalance leaves alone what the guest has."""
        patience = self.host.patience()
        while not {str(each.irq) for each in self.host.vectors(NIC)} <= set(self.banned().split()):
            assert not patience.ended(), self.banned()
            time.sleep(0.2)

    def found(self) -> dict[int, str]:
        """What `virtirq restore` would put back, by IRQ."""
        plan = json.loads(self.host.run("virtirq --json restore --dry-run").stdout)
        devices = [device for guest in plan["guests"] for device in guest["devices"]]
        return {
            each["irq"]: each["after"]
            for device in devices
            for each in device["interrupts"]
            if each["action"] == "pin"
        }

    def moves(self) -> int:
        """How many times the daemon has moved an interrupt."""
        self.host.run("journalctl --sync")
        command = "journalctl -q -o cat VIRTIRQ_ACTION=pin + VIRTIRQ_ACTION=restore | wc -l"
        return int(self.host.run(command).stdout)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fresh]:
    need_full_lab("the tests of Debian's package")
    (package,) = deb.packages().glob("*.deb")
    file = pyz.pyz(tmp_path_factory.mktemp("packed"))
    with full.lab(machine=full.Machine(systemd=True)) as host:
        host.put(package, PACKAGE)
        host.put(file, FILE)
        yield Fresh(host)


@pytest.fixture(scope="module")
def guest(fresh: Fresh) -> Iterator[full.Guest]:
    """And irqbalance, which would have moved others' interrupts before."""
    fresh.host.run(START_IRQBALANCE)
    assert fresh.banned().split() == []
    with fresh.host.guest(GuestSpec(pins=PINS, hostdevs=(NIC,))) as guest:
        yield guest


def test_installed_it_runs_and_moves_nothing_where_nothing_is_passed_through(fresh: Fresh) -> None:
    fresh.host.run(f"{APT} install {PACKAGE}")
    assert fresh.show("ActiveState") == "active"
    assert fresh.show("UnitFileState") == "enabled"
    assert fresh.seen().affinities == fresh.before.affinities
    assert fresh.host.run("virtirq config check").stdout == "the configuration is valid\n"
    assert "-virtirq-" not in fresh.host.run("dpkg --verify virtirq").stdout


def test_a_guest_is_pinned_with_nothing_else_done(fresh: Fresh, guest: full.Guest) -> None:
    fresh.until_pinned()
    fresh.until_banned()


def test_an_upgrade_moves_nothing(fresh: Fresh, guest: full.Guest) -> None:
    host = fresh.host
    vectors = [(each.irq, each.affinity) for each in host.vectors(NIC)]
    moves, pid = fresh.moves(), fresh.show("MainPID")
    host.write("/etc/virtirq/conf.d/mine.toml", "restore_on_stop = false\n")
    host.run(["sh", "-ec", REPACK])
    host.run(f"{APT} install {NEXT}")
    assert host.run("dpkg-query -W -f '${Version}' virtirq").stdout.endswith("+next")
    assert fresh.show("ActiveState") == "active"
    assert fresh.show("MainPID") != pid
    assert [(each.irq, each.affinity) for each in host.vectors(NIC)] == vectors
    assert fresh.moves() == moves
    # More were banned before: the line that the NIC had while the guest's firmware used it.
    assert {str(irq) for irq, _ in vectors} <= set(fresh.banned().split())
    assert fresh.found()  # it knows what it has from before


def test_removed_it_has_put_everything_back(fresh: Fresh, guest: full.Guest) -> None:
    host = fresh.host
    host.run("systemctl stop irqbalance")  # it would have them at once
    found = fresh.found()
    host.run(f"{APT} remove virtirq")
    assert not fresh.pinned()
    there = {each.irq: each.affinity for each in host.vectors(NIC)}
    # There is more to put back: the line that the guest's firmware used.
    assert there == {irq: cpus for irq, cpus in found.items() if irq in there}
    assert host.run("ls /etc/virtirq /etc/virtirq/conf.d").stdout.split()[-1] == "mine.toml"
    assert host.run("command -v virtirq", check=False).returncode != 0
    assert host.run("find /usr -name '*virtirq*' -not -path '*/doc/*'").stdout == ""


def test_purged_nothing_is_left(fresh: Fresh, guest: full.Guest) -> None:
    """Also when it runs until then, and irqbalance with it."""
    host = fresh.host
    host.run(START_IRQBALANCE)
    host.run(f"{APT} install {NEXT}")
    fresh.until_banned()
    host.run(f"{APT} purge virtirq")
    seen = fresh.seen()
    assert seen.files == fresh.before.files
    assert fresh.banned().split() == []


def test_the_one_file_does_the_same(fresh: Fresh, guest: full.Guest) -> None:
    host = fresh.host
    said = host.run(f"{FILE} install").stdout
    assert "installed /usr/local/bin/virtirq\n" in said
    assert said.endswith("next: systemctl enable --now virtirq\n")
    host.run("systemctl enable --now virtirq")
    fresh.until_pinned()
    # By the distribution's bindings.
    assert json.loads(host.run("virtirq --json status").stdout)["gaps"] == []
    moves, pid = fresh.moves(), fresh.show("MainPID")
    host.run("rm /usr/local/lib/systemd/system/virtirq.service")
    host.run(f"{FILE} install")
    assert fresh.show("MainPID") != pid
    assert fresh.moves() == moves
    host.run("systemctl stop irqbalance")
    found = fresh.found()
    host.run("virtirq uninstall")
    there = {each.irq: each.affinity for each in host.vectors(NIC)}
    assert there == {irq: cpus for irq, cpus in found.items() if irq in there}
    more = set(host.run(FILES).stdout.splitlines()) - set(fresh.before.files.splitlines())
    assert not [name for name in more if "virtirq" in name]
