"""The daemon on a running kernel, with guests from domain XML; booted by `test_lab.py`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.guest import E1000E, bind, find
from lab.vfio import HeldDevice
from tests.kernel import commands
from tests.kernel.commands import until
from tests.kernel.inside import (
    SHOTS,
    STATE,
    VIRTIRQ,
    affinities,
    affinity,
    fired,
    planned,
    virtirq,
    write_domain,
)
from tests.kernel.inside_events import TRACEFS, leftovers


class Daemon:
    """A daemon that this test started."""

    def __init__(self, process: subprocess.Popen[bytes] | commands.Forked, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def said(self) -> str:
        """Its log, for who asks later."""
        return self.log

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait()


@contextmanager
def running(
    log: Path, domain: Path, *words: object, before: tuple[str, ...] = ()
) -> Iterator[Daemon]:
    line = [*map(str, words), "--domain", str(domain), "daemon"]
    process: subprocess.Popen[bytes] | commands.Forked
    with log.open("wb") as out:
        if before:
            process = subprocess.Popen([*before, VIRTIRQ, *line], stderr=out)
        else:
            process = commands.start(line, out.fileno(), out.fileno())
    daemon = Daemon(process, log)
    try:
        until(lambda: "at work" in daemon.log or process.poll() is not None, daemon.said)
        yield daemon
    finally:
        if process.poll() is None:
            daemon.stop()


@pytest.fixture(scope="module")
def bdf() -> str:
    if not (TRACEFS / "instances").is_dir():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACEFS)], check=True)
    found = find(E1000E)[0]
    bind(found)
    return found


@pytest.fixture(scope="module")
def domain(bdf: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for file in STATE.glob("*"):
        file.unlink()
    return write_domain(tmp_path_factory.mktemp("domain") / "router.xml", bdf, "1", "2", "3")


@pytest.fixture(scope="class")
def daemon(domain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for all of a class's tests: to start it takes this emulated machine a while."""
    with running(tmp_path_factory.mktemp("daemon") / "log", domain) as started:
        yield started
        assert started.stop() == 0, started.log
    assert leftovers() == []
    assert not (STATE / "daemon.sock").exists()


def pinned(device: HeldDevice, *, to: Sequence[str] = "123") -> bool:
    """Whether vector i is on CPU i modulo their number."""
    return all(affinity(irq) == to[vector % len(to)] for vector, irq in device.irqs().items())


class TestOneDaemon:
    def test_vectors_are_pinned_each_time_the_guest_sets_them_up(
        self, daemon: Daemon, domain: Path, bdf: str
    ) -> None:
        with HeldDevice(bdf, "msix") as device:
            for count in (5, 3, 5, 1, 5):
                device.disable()
                device.enable(count)
                until(lambda: pinned(device), daemon.said)
                assert {irq: affinity(irq) for irq in device.irqs().values()} == planned(domain)
                for vector, irq in device.irqs().items():
                    taken = fired(device, vector, irq)
                    assert taken[vector % 3 + 1] == sum(taken) >= SHOTS
            for irq in device.irqs().values():
                assert f"IRQ {irq} vfio-msix" in daemon.log

    def test_a_line_is_pinned_too(self, daemon: Daemon, bdf: str) -> None:
        with HeldDevice(bdf, "intx") as device:
            until(lambda: pinned(device), daemon.said)
            device.fire()  # it moves at its next interrupt
            device.wait()
            taken = fired(device, 0, device.irqs()[0])
            assert taken[1] == sum(taken) >= SHOTS

    def test_what_others_move_is_put_back_and_they_are_named(
        self, daemon: Daemon, bdf: str
    ) -> None:
        with HeldDevice(bdf, "msix") as device:
            until(lambda: pinned(device), daemon.said)
            irq = device.irqs()[2]
            script = (
                f"printf meddler > /proc/$$/comm; echo 0 > /proc/irq/{irq}/smp_affinity_list; true"
            )
            subprocess.run(["sh", "-c", script], check=True)
            until(lambda: "meddler" in daemon.log, daemon.said)
            assert affinity(irq) == "3"
            assert "found at 0 instead of our 3: meddler (pid " in daemon.log

    def test_a_cpu_may_go_and_come_back(self, daemon: Daemon, domain: Path, bdf: str) -> None:
        switch = Path("/sys/devices/system/cpu/cpu3/online")
        with HeldDevice(bdf, "msix") as device:
            until(lambda: pinned(device), daemon.said)
            switch.write_text("0")
            try:
                until(lambda: pinned(device, to="12"), daemon.said)
                assert affinities(device) == planned(domain)
            finally:
                switch.write_text("1")
            until(lambda: pinned(device), daemon.said)

    def test_while_nothing_happens_it_makes_no_system_call(
        self, daemon: Daemon, bdf: str, tmp_path: Path
    ) -> None:
        with HeldDevice(bdf, "msix") as device:
            until(lambda: pinned(device), daemon.said)
            time.sleep(12)  # what it had still to do is done: its look for devices that nobody has
            trace = tmp_path / "strace"
            words = ["strace", "-f", "-qq", "-o", str(trace), "-p", str(daemon.process.pid)]
            with subprocess.Popen(words) as strace:
                until(
                    lambda: trace.exists() and trace.read_text() != "",
                    lambda: "no strace",
                )
                time.sleep(5)
                strace.send_signal(signal.SIGINT)
            lines = trace.read_text().splitlines()
            assert len(lines) == 1, lines  # the one that it was in
            assert "epoll_wait" in lines[0]


def test_a_changed_configuration_is_taken_and_a_wrong_one_is_not(
    domain: Path, bdf: str, tmp_path: Path
) -> None:
    config = tmp_path / "virtirq.toml"
    config.write_text("")
    with (
        HeldDevice(bdf, "msix") as device,
        running(tmp_path / "log", domain, "--config", config) as daemon,
    ):
        until(lambda: pinned(device), daemon.said)
        for text, there in (
            ('default = "native"', lambda: pinned(device, to=("0-3",))),
            ('default = "nativ"', lambda: "nativ' is not a directive" in daemon.log),
            ('default = "0"', lambda: pinned(device, to="0")),
        ):
            config.write_text(text)
            daemon.process.send_signal(signal.SIGHUP)
            until(there, daemon.said)
        assert daemon.log.count("the old one holds") == 1
        assert daemon.stop() == 0
        assert pinned(device, to="0")
        assert virtirq("restore").returncode == 0
        assert pinned(device, to=("0-3",))


def test_what_was_moved_is_put_back_at_the_end_if_so_configured(
    domain: Path, bdf: str, tmp_path: Path
) -> None:
    config = tmp_path / "virtirq.toml"
    config.write_text("restore_on_stop = true")
    with HeldDevice(bdf, "msix") as device:
        found = affinities(device)
        with running(tmp_path / "log", domain, "--config", config) as daemon:
            until(lambda: pinned(device), daemon.said)
            assert daemon.stop(signal.SIGINT) == 0
        assert affinities(device) == found
    assert leftovers() == []


def test_killed_and_started_again_it_is_as_if_that_had_not_happened(
    domain: Path, bdf: str, tmp_path: Path
) -> None:
    with HeldDevice(bdf, "msix") as device:
        found = affinities(device)
        for death in range(3):
            with running(tmp_path / f"log{death}", domain) as daemon:
                until(lambda: pinned(device), daemon.said)
                daemon.process.kill()
                daemon.process.wait()
            Path(f"/proc/irq/{device.irqs()[0]}/smp_affinity_list").write_text("0")
        with running(tmp_path / "log", domain) as daemon:
            until(lambda: pinned(device), daemon.said)
            status = json.loads(virtirq("status", "--json", "--domain", domain).stdout)
            assert status["daemon"]["pid"] == daemon.process.pid
            refused = virtirq("restore")
            assert refused.returncode == 1
            assert "a daemon runs" in refused.stderr
            second = virtirq("--domain", domain, "daemon")
            assert (second.returncode, second.stdout) == (1, "")
            assert "another virtirq daemon runs" in second.stderr
            assert daemon.stop() == 0
        assert virtirq("restore").returncode == 0
        assert affinities(device) == found
    assert leftovers() == []


def test_metrics_are_served(domain: Path, bdf: str, tmp_path: Path) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = tmp_path / "virtirq.toml"
    config.write_text(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    with (
        HeldDevice(bdf, "msix") as device,
        running(tmp_path / "log", domain, "--config", config) as daemon,
    ):
        until(lambda: pinned(device), daemon.said)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            page = answer.read().decode()
        assert 'virtirq_interrupts{guest="router",verdict="in-place"} 5.0' in page
        assert 'virtirq_moves_total{outcome="applied",trigger="plan"} 5.0' in page
        device.disable()
        device.enable()
        until(lambda: pinned(device), daemon.said)
        once = virtirq("metrics", "--domain", domain).stdout
        assert 'virtirq_moves_total{outcome="applied",trigger="new"} 5.0' in once
        assert "virtirq_reaction_seconds_count 5.0" in once


def test_without_the_kernels_events_it_looks_now_and_then(
    domain: Path, bdf: str, tmp_path: Path
) -> None:
    hide = "mount -t tmpfs none /sys/kernel/"
    script = f'{hide}tracing && {hide}debug && exec "$@"'
    hidden = ("unshare", "--mount", "sh", "-c", script, "sh")
    with (
        running(tmp_path / "log", domain, before=hidden) as daemon,
        HeldDevice(bdf, "msix") as device,
    ):
        until(lambda: pinned(device), daemon.said)
        assert daemon.log.count("no events of the kernel") == 1
        findings = json.loads(virtirq("check", "--json", "--domain", domain).stdout)["findings"]
        assert "events-polled" in {each["code"] for each in findings}
        Path(f"/proc/irq/{device.irqs()[0]}/smp_affinity_list").write_text("0")
        until(lambda: pinned(device), daemon.said)
    assert os.listdir(TRACEFS / "instances") == []
