"""libvirtd that is stopped (SIGSTOP) and goes on (SIGCONT), under a daemon that runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lab.full import Host
from tests.full.test_daemon import (
    Bench,
    actions,  # noqa: F401 - fixtures
    bench,  # noqa: F401
    daemon,
    findings,
    found,
    guest,  # noqa: F401
    heard,
    host,  # noqa: F401
    until,
)
from tests.full.test_libvirt import told

pytestmark = pytest.mark.lab

NOTICED = 30.0
"""Seconds within which a libvirtd that does not answer is noticed: libvirt's keepalive."""


def test_libvirtd_is_stopped_and_goes_on(bench: Bench) -> None:  # noqa: F811 - the fixture
    host = bench.host  # noqa: F811
    thread = _thread(host, "CPU 1/KVM")
    with daemon(host) as job:
        bench.until_right(job.output)
        kept = {action: cpus for (_, action), cpus in found(host).items()}
        threads = _threads(host, job.pid)
        host.run("kill -STOP $(pidof libvirtd)")
        patience = host.patience(2 * NOTICED)
        try:
            heard(job, "it does not answer; its guests are kept as they were")
            assert not patience.ended()
            assert "libvirt-silent" in findings(host)
            assert "daemon runs since" in host.run("virtirq status", check=False).stdout
            assert "libvirt" in told(host, "status")["daemon"]["guests"]
            # The kernel and the guest are served as before.
            bench.guest.reload("e1000e")
            until(lambda: {a: c for (_, a), c in found(host).items()} == kept, job.output)
            # Attempts to connect do not pile up: it has made several by now.
            heard(job, "trying again until it can be reached")
            time.sleep(NOTICED)
            assert _threads(host, job.pid) <= threads + 4
            host.run(f"taskset -pc 6 {thread}")
        finally:
            host.run("kill -CONT $(pidof libvirtd)")
        try:
            heard(job, "connected to qemu:///system: 1 guest running", times=2)
            until(lambda: set(found(host).values()) == {"4", "6"}, job.output)
            bench.until_right(job.output)
            until(lambda: "libvirt-silent" not in findings(host), job.output)
            # What was opened late is closed: no more connections than before are left.
            until(lambda: _threads(host, job.pid) <= threads, job.output)
        finally:
            host.run(f"taskset -pc 5 {thread}")
        until(lambda: set(found(host).values()) == {"4", "5"}, job.output)


def test_a_daemon_that_starts_while_libvirtd_is_stopped(bench: Bench) -> None:  # noqa: F811
    """It finds the guest by its process, moves nothing of it, and takes it up when told."""
    host = bench.host  # noqa: F811
    host.run("kill -STOP $(pidof libvirtd)")
    try:
        with daemon(host) as job:
            heard(job, "no answer within")
            assert "libvirt-silent" in findings(host)
            host.run("kill -CONT $(pidof libvirtd)")
            heard(job, "connected to qemu:///system: 1 guest running")
            bench.until_right(job.output)
            until(lambda: "libvirt-silent" not in findings(host), job.output)
    finally:
        host.run("kill -CONT $(pidof libvirtd)")


def test_the_command_does_not_wait_for_ever(bench: Bench) -> None:  # noqa: F811
    host = bench.host  # noqa: F811
    host.run("kill -STOP $(pidof libvirtd)")
    try:
        asked = host.run("virtirq -c qemu:///system status", check=False)
        assert asked.returncode == 6
        assert "no answer within 10 seconds" in asked.stderr
        assert "guests-not-read" in findings(host)
    finally:
        host.run("kill -CONT $(pidof libvirtd)")
    bench.until_right(lambda: "")


def _thread(host: Host, name: str) -> str:  # noqa: F811
    files = host.run(f"grep -l '^{name}' /proc/$(pidof qemu-system-x86_64)/task/*/comm").stdout
    return Path(files.strip()).parts[-2]


def _threads(host: Host, pid: int) -> int:  # noqa: F811
    return int(host.run(f"ls /proc/{pid}/task | wc -l").stdout)
