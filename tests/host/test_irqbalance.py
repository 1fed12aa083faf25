"""Whether irqbalance runs."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.hostmaker import MadeHost
from virtirq.host.fs import HostFs, Reader
from virtirq.host.irqbalance import read_irqbalance
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
    assert read_irqbalance(Reader(fs)) == Irqbalance(True, 812, spares_vfio=spares)
