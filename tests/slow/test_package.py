"""Debian's package in a host in a namespace: its own tests, and upgrades with own settings.

What happens to a kernel's interrupts is test_deb.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from lab import boxes
from lab.full import BuildError
from lab.kernel import LabUnavailable
from release import deb
from tests.conftest import REPOSITORY
from tests.needs import need_program, not_run
from tests.slow import standin

# Nobody is there to answer.
APT: Final = "DEBIAN_FRONTEND=noninteractive apt-get -qqy"
CONFIG: Final = "/etc/virtirq/virtirq.toml"
PACKAGE: Final = "/root/virtirq.deb"
NEXT: Final = "/root/next.deb"
# The next version has another configuration as an example.
REPACK: Final = f"""\
dpkg-deb -R {PACKAGE} /tmp/next
sed -i 's/^Version: .*/&+next/' /tmp/next/DEBIAN/control
echo '# More is to be said.' >> /tmp/next{CONFIG}
dpkg-deb --root-owner-group -Znone -b /tmp/next {NEXT}
"""
ACTIVE: Final = "systemctl is-active virtirq"


@pytest.fixture(scope="module")
def package() -> Path:
    need_program("nsenter")
    try:
        (made,) = deb.packages().glob("*.deb")
    except BuildError as error:
        not_run(f"Debian's package: {error}")
    return made


@pytest.fixture
def box(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[boxes.Box]:
    """With the package installed, and the guest pinned."""
    try:
        host = standin.made_host(tmp_path_factory.mktemp("host"))
        with boxes.box("one", tmp_path_factory.mktemp("box"), host) as box:
            standin.start_guest(box)
            box.put(package, PACKAGE)
            box.run(REPACK)
            box.run(f"{APT} install {PACKAGE}")
            assert box.run(standin.AFFINITIES) == standin.pinned()
            yield box
    except LabUnavailable as error:
        not_run(f"an upgrade by apt: {error}")


def moves(box: boxes.Box) -> str:
    """How many times the daemon has moved an interrupt."""
    box.run("journalctl --sync")
    return box.run("journalctl -q -o cat VIRTIRQ_ACTION=pin + VIRTIRQ_ACTION=restore | wc -l")


def test_its_own_tests_pass_where_nothing_is_passed_through(package: Path, tmp_path: Path) -> None:
    """debian/tests, which autopkgtest runs; without libvirt here."""
    try:
        with boxes.box("bare", tmp_path) as bare:
            bare.put(package, PACKAGE)
            bare.run(f"{APT} install {PACKAGE}")
            for each in ("demo", "service"):
                bare.put(REPOSITORY / "debian/tests" / each, f"/root/{each}")
                bare.run(f"AUTOPKGTEST_TMP=$(mktemp -d) sh /root/{each}")
    except LabUnavailable as error:
        not_run(f"the package's own tests: {error}")


def test_settings_in_files_of_ones_own_are_asked_nothing_about(box: boxes.Box) -> None:
    moved, pid = moves(box), box.run("systemctl show -P MainPID virtirq")
    box.run("echo 'restore_on_stop = false' > /etc/virtirq/conf.d/mine.toml")
    box.run(f"{APT} install {NEXT}")
    assert box.run(ACTIVE) == "active\n"
    assert box.run("systemctl show -P MainPID virtirq") != pid
    assert box.run("cat /etc/virtirq/conf.d/mine.toml") == "restore_on_stop = false\n"
    assert (box.run(standin.AFFINITIES), moves(box)) == (standin.pinned(), moved)
    box.run(f"{APT} install --allow-downgrades {PACKAGE}")
    assert (box.run(standin.AFFINITIES), moves(box)) == (standin.pinned(), moved)
    box.run(f"{APT} purge virtirq")
    assert box.run(standin.AFFINITIES) == standin.FOUND
    assert box.run("ls -d /etc/virtirq /run/virtirq", check=False).count("No such file") == 2


def test_an_upgrade_that_stops_half_way_forgets_nothing(box: boxes.Box) -> None:
    box.run(f"echo 'restore_on_stop = false' >> {CONFIG}")
    assert "end of file on stdin at conffile prompt" in box.run(
        f"{APT} install {NEXT}", check=False
    )
    # The daemon of before goes on.
    assert box.run(ACTIVE) == "active\n"
    assert box.run(standin.AFFINITIES) == standin.pinned()
    said = box.run(f"{APT} purge virtirq")
    assert "virtirq: it was not set up, so interrupts were left where they are" in said
    assert box.run(ACTIVE, check=False) == "inactive\n"
    assert box.run(standin.AFFINITIES) == standin.pinned()
    # As it says.
    box.run(f"{APT} install {NEXT}")
    assert box.run(standin.AFFINITIES) == standin.pinned()
    assert "not set up" not in box.run(f"{APT} purge virtirq")
    assert box.run(standin.AFFINITIES) == standin.FOUND
    assert "No such file" in box.run("ls -d /run/virtirq", check=False)
