"""Whether irqbalance runs."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace

import pytest

from tests.hostmaker import MadeHost, passthrough
from virtirq.host.fs import HostFs, LiveFs, Reader
from virtirq.host.irqbalance import read_irqbalance, read_start, read_version
from virtirq.model import Irqbalance

CGROUP = "/sys/fs/cgroup/system.slice/irqbalance.service/cgroup.procs"
RUNNING = MadeHost(irqbalance=812)


def read(fs: HostFs) -> Irqbalance:
    return read_irqbalance(Reader(fs))


def test_its_socket_names_it() -> None:
    assert read(RUNNING.fs()) == read(RUNNING.live()) == Irqbalance(True, 812)


def test_its_cgroup_names_it() -> None:
    host = MadeHost(files={CGROUP: "812\n813", "/proc/812/stat": "", "/proc/813/stat": ""})
    assert read(host.fs()) == read(host.live()) == Irqbalance(True, 812)


def test_it_does_not_run() -> None:
    assert read(MadeHost().fs()) == read(MadeHost().live()) == Irqbalance(False)


def test_a_socket_outlives_its_process() -> None:
    stale = replace(RUNNING, removed=("/proc/812",))
    assert read(stale.live()) == Irqbalance(False)
    assert read(stale.fs()) == Irqbalance(True, 812), "a recording has no processes"


def test_one_process_of_two_sockets_is_alive() -> None:
    stale = {"/run/irqbalance/irqbalance7.sock": ""}
    assert read(replace(RUNNING, files=stale).live()) == Irqbalance(True, 812)


@pytest.mark.parametrize(
    "name",
    [
        "irqbalance.sock",
        "irqbalancex.sock",
        "irqbalance²3.sock",
        "x",
        f"irqbalance{'9' * 200}.sock",
    ],
)
def test_other_names(name: str) -> None:
    host = MadeHost(files={f"/run/irqbalance/{name}": ""})
    assert read(host.fs()) == Irqbalance(False)


@pytest.mark.parametrize("text", ["", "\n", "x", "-1", "²", "9" * 5000, "1.5"])
def test_a_cgroup_of_nothing(text: str) -> None:
    assert read(MadeHost(files={CGROUP: text}).fs()) == Irqbalance(False)


def test_not_recorded() -> None:
    reader = Reader(MadeHost(foreign=True).fs())
    assert read_irqbalance(reader) == Irqbalance(None)
    assert {gap.error for gap in reader.gaps} == {"not in this recording"}
    assert read(replace(RUNNING, foreign=True).fs()) == Irqbalance(True, 812)


@pytest.mark.parametrize("path", ["/run/irqbalance", CGROUP])
def test_what_may_not_be_read_is_not_known(path: str) -> None:
    fs = MadeHost().live()
    fs.faults[path] = errno.EACCES
    reader = Reader(fs)
    assert read_irqbalance(reader) == Irqbalance(None)
    assert [gap.path for gap in reader.gaps] == [path]
    # The other of the two ways may still tell.
    fs = replace(RUNNING, files={CGROUP: "812"}).live()
    fs.faults[path] = errno.EACCES
    assert read(fs) == Irqbalance(True, 812)


@pytest.mark.parametrize(
    ("arguments", "spares"),
    [
        ("/usr/sbin/irqbalance\0--foreground\0--banmod=vfio-pci\0", True),
        ("/usr/sbin/irqbalance\0--foreground\0", False),
        ("/usr/sbin/irqbalance\0--banmod=vfio_pci\0", False),
    ],
)
def test_one_that_leaves_vfio_alone(arguments: str, spares: bool) -> None:
    fs = RUNNING.live()
    fs.set("/proc/812/cmdline", arguments)
    found = read_irqbalance(Reader(fs))
    assert (found.running, found.pid, found.spares_vfio) == (True, 812, spares)


@pytest.mark.parametrize(
    ("banned", "drivers", "spares"),
    [
        (("vfio",), ("vfio-pci", "mlx5_vfio_pci"), True),
        (("vfio-pci",), ("vfio-pci",), True),
        (("vfio-pci",), ("mlx5_vfio_pci",), False),
        (("vfio-pci",), ("vfio-pci", "mlx5_vfio_pci"), False),
        (("vfio-pci", "mlx5"), ("vfio-pci", "mlx5_vfio_pci"), True),
        (("mlx5_vfio_pci",), ("mlx5_vfio_pci", "ixgbe"), True),
        (("vfio_pci",), ("vfio-pci",), False),
        (("ixgbe",), ("ixgbe", "vfio-pci"), False),
        (("vfio",), ("nvidia (vfio)",), False),
        (("nvidia",), ("nvidia (vfio)", "vfio-pci"), False),
        (("nvidia", "vfio"), ("nvidia (vfio)", "vfio-pci"), True),
    ],
)
def test_what_it_leaves_alone_is_said_of_each_driver(
    banned: tuple[str, ...], drivers: tuple[str, ...], spares: bool
) -> None:
    """It looks for what it was given in the driver's name; some VFIO drivers are not called so."""
    made = [
        replace(
            passthrough(f"0000:08:00.{number}", first_irq=50 + number),
            driver=driver.partition(" ")[0],
            vfio_device=number if driver.endswith(" (vfio)") else None,
        )
        for number, driver in enumerate(drivers)
    ]
    arguments = "".join(f"--banmod={name}\0" for name in banned)
    files = {"/proc/812/cmdline": f"/usr/sbin/irqbalance\0{arguments}"}
    fs = MadeHost(online="0-7", irqbalance=812, devices=tuple(made), files=files).live()
    found = read_irqbalance(Reader(fs))
    assert (found.spares_vfio, found.banned) == (spares, banned)


@pytest.mark.parametrize(
    ("arguments", "running"),
    [
        ("/usr/sbin/irqbalance\0", True),
        ("/usr/bin/valgrind\0/usr/sbin/irqbalance\0-f\0", True),
        ("/usr/bin/sleep\0100000\0", False),
        ("", False),
    ],
)
def test_its_process_id_was_reused(arguments: str, running: bool) -> None:
    """A kernel's thread, and a process that has ended, have no arguments."""
    fs = RUNNING.live()
    fs.set("/proc/812/cmdline", arguments)
    assert read(fs) == (Irqbalance(True, 812) if running else Irqbalance(False))
    other = "/run/irqbalance/irqbalance901.sock"
    fs = replace(RUNNING, files={other: "", "/proc/901/cmdline": "irqbalance"}).live()
    fs.set("/proc/812/cmdline", arguments)
    assert read(fs).pid == (812 if running else 901)


BANS = "/usr/sbin/irqbalance\0--banmod=vfio-pci\0"


@pytest.mark.parametrize(("uid", "running"), [(0, True), (1000, False)])
def test_a_process_of_anybodys_under_its_number(uid: int, running: bool) -> None:
    """A socket that was left behind bears its number, and it says that it spares all of VFIO's."""
    files = {
        "/proc/812/cmdline": BANS,
        "/proc/812/task/812/status": f"Name:\tx\nUid:\t{uid}\t0\t0\t0\n",
    }
    fs = replace(RUNNING, files=files).live()
    assert read(fs).running is running
    other = {"/run/irqbalance/irqbalance901.sock": "", "/proc/901/cmdline": "irqbalance"}
    found = read(replace(RUNNING, files=files | other).live())
    assert (found.pid, found.spares_vfio) == ((812, True) if running else (901, False))


def test_no_more_is_read_of_arguments_than_irqbalance_can_have() -> None:
    fs = RUNNING.live()
    fs.set("/proc/812/cmdline", "x\0" * (1 << 17) + "irqbalance\0")
    assert read(fs) == Irqbalance(False)


STAT = "812 ({name}) S 1 812 812 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 2 0 1234 82718720 889"


@pytest.mark.parametrize(
    ("stat", "started"),
    [
        (STAT.format(name="irqbalance"), 1234),
        (STAT.format(name="a) S 1 (b"), 1234),
        (STAT.format(name="x").rpartition(" 1234")[0], None),
        ("812 (irqbalance) S " + "x " * 40, None),
        ("", None),
        (None, None),
    ],
)
def test_when_it_was_started(stat: str | None, started: int | None) -> None:
    fs = RUNNING.live()
    if stat is not None:
        fs.set("/proc/812/stat", stat)
    assert read_start(fs, 812) == started


def test_the_start_of_this_process() -> None:
    started = read_start(LiveFs(), os.getpid())
    assert started is not None
    assert 0 < started / os.sysconf("SC_CLK_TCK") <= time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize(
    ("program", "version"),
    [
        ("\x7fELF\0\ufffdirqbalance version 1.9.4\n\0x", (1, 9, 4)),
        ("irqbalance version 1.10\n", (1, 10, 0)),
        ("irqbalance version x", None),
        ("", None),
        (None, None),
    ],
)
def test_its_version(program: str | None, version: tuple[int, int, int] | None) -> None:
    fs = RUNNING.live()
    if program is not None:
        fs.set("/proc/812/exe", program)
    assert read_version(fs, 812) == version
