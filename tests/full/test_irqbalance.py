"""Real irqbalance and real VFIO interrupts of a nested guest: what is banned stays where it is.

Debian's irqbalance is 1.9.4 there; it is started by hand, and looks each second.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab import full
from lab.full import Host
from lab.full.host import Job
from tests.full.hosts import install_warm, need_full_lab, run_code

pytestmark = pytest.mark.lab

ADMINS = 9  # an IRQ that every PC has
STATE = "/run/virtirq-bans"

SCRIPT = f"""
import json, os, signal, socket, struct, sys
from pathlib import Path
from virtirq.control.irqbalance import IrqbalanceClient, parse_setup
from virtirq.host.fs import LiveFs
from virtirq.host.irqbalance import read_version

def ask(pid, send=True, listen=True):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(f"/run/irqbalance/irqbalance{{pid}}.sock")
        me = struct.pack("3i", os.getpid(), os.getuid(), os.getgid())
        if send: s.sendmsg([b"setup"], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, me)])
        answer = b""
        while listen and (piece := s.recv(65536)):
            answer += piece
    return answer

def said(told):
    return [told.state.value, told.pid, sorted(told.left_out), told.reason]

bans = IrqbalanceClient(Path({STATE!r}), LiveFs())
"""


def inside(host: Host, code: str) -> Any:
    """The value of `result` after the code was run in the machine, with `SCRIPT` before it."""
    script = f"{SCRIPT}\n{code}\nprint(json.dumps(result))"
    return json.loads(run_code(host, script))


@dataclass
class Irqbalance:
    """A running one."""

    host: Host
    job: Job

    @property
    def banned(self) -> set[int]:
        return set(inside(self.host, f"result = sorted(parse_setup(ask({self.job.pid})))"))

    def stop(self, name: str = "TERM") -> None:
        if self.job.returncode() is None:
            self.job.signal(name)
            self.job.wait()
        self.host.run("rm -f /run/irqbalance/*.sock")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_full_lab("the tests with irqbalance")
    with full.lab("guest") as host:
        install_warm(host)
        yield host


@pytest.fixture
def irqbalance(host: Host) -> Iterator[Irqbalance]:
    started = start(host, f"--banirq={ADMINS}")
    yield started
    started.stop()
    host.run(f"rm -rf {STATE}")


def start(host: Host, *options: str) -> Irqbalance:
    job = host.spawn(f"exec irqbalance --foreground --interval 1 {' '.join(options)}")
    host.run(f"until [ -S /run/irqbalance/irqbalance{job.pid}.sock ]; do sleep 0.1; done")
    return Irqbalance(host, job)


def keep(host: Host, irqs: set[int]) -> Any:
    return inside(host, f"result = said(bans.keep({irqs or ()}))")


def release(host: Host) -> Any:
    return inside(host, "result = said(bans.release())")


def pin(host: Host, irqs: set[int], cpu: int) -> None:
    for irq in irqs:
        host.run(f"echo {cpu} > /proc/irq/{irq}/smp_affinity_list")


def affinities(host: Host) -> dict[int, str]:
    return {vector.irq: vector.affinity for vector in host.vectors()}


def test_what_is_banned_is_not_moved(host: Host, irqbalance: Irqbalance) -> None:
    """One vector is left to irqbalance: when it has moved that one, it had its turn."""
    guest = host.live_guest()
    vectors = set(affinities(host))
    assert len(vectors) > 2
    bait = min(vectors)
    ours = vectors - {bait}
    assert keep(host, ours) == ["told", irqbalance.job.pid, [], ""]
    assert irqbalance.banned == {ADMINS} | ours
    guest.traffic("on")
    try:
        for cpu in (7, 6, 5, 7):
            pin(host, ours, cpu)
            wait_for_a_move(irqbalance, {bait})
            found = affinities(host)
            assert {irq: found[irq] for irq in ours} == dict.fromkeys(ours, str(cpu))
    finally:
        guest.traffic("off")
    assert release(host) == ["told", irqbalance.job.pid, [], ""]
    assert irqbalance.banned == {ADMINS}
    for irq in ours:
        wait_for_a_move(irqbalance, {irq})


def wait_for_a_move(irqbalance: Irqbalance, irqs: set[int]) -> None:
    """Until irqbalance has moved one of them from where it was put."""
    for attempt in range(60):
        cpu = 4 + attempt % 4  # it may want to have it there itself
        pin(irqbalance.host, irqs, cpu)
        irqbalance.job.signal("HUP")  # it looks at everything anew, and places it the turn after
        time.sleep(3)
        found = affinities(irqbalance.host)
        if any(found[irq] != str(cpu) for irq in irqs):
            return
    pytest.fail(f"irqbalance leaves {irqs} where they are")


def test_who_is_killed_leaves_it_to_the_next(host: Host, irqbalance: Irqbalance) -> None:
    ours = set(affinities(host))
    killed = f"bans.keep({ours}); os.kill(os.getpid(), signal.SIGKILL)"
    host.run(["python3", "-c", SCRIPT + killed], check=False)
    assert irqbalance.banned == {ADMINS} | ours
    fewer = ours - {min(ours)}
    assert keep(host, fewer)[0] == "told"
    assert irqbalance.banned == {ADMINS} | fewer
    assert release(host)[0] == "told"
    assert irqbalance.banned == {ADMINS}


def test_what_others_banned_stays_though_it_be_ours(host: Host, irqbalance: Irqbalance) -> None:
    assert keep(host, {ADMINS, 1000})[0] == "told"
    assert irqbalance.banned == {ADMINS, 1000}
    assert release(host)[0] == "told"
    assert irqbalance.banned == {ADMINS}


@pytest.mark.parametrize("end", ["TERM", "KILL"])
def test_irqbalance_starts_again(host: Host, irqbalance: Irqbalance, end: str) -> None:
    ours = set(affinities(host))
    keep(host, ours)
    irqbalance.stop(end)
    assert keep(host, ours) == ["not running", None, [], ""]
    again = start(host, f"--banirq={ADMINS}", f"--banirq={min(ours)}")
    try:
        assert keep(host, ours)[:2] == ["told", again.job.pid]
        assert again.banned == {ADMINS} | ours
        assert release(host)[0] == "told"
        assert again.banned == {ADMINS, min(ours)}
    finally:
        again.stop()


@pytest.mark.parametrize("options", ["--banmod=vfio-pci", "-m vfio-pci", "--banmod vfio"])
def test_one_that_spares_them_is_not_told(host: Host, options: str) -> None:
    """And it keeps to that: by the driver's name, and a part of it will do."""
    spares = start(host, options, f"--banirq={ADMINS}")
    try:
        vectors = set(affinities(host))
        assert keep(host, vectors) == ["spared", spares.job.pid, [], ""]
        assert spares.banned == {ADMINS}
        pin(host, vectors, 5)
        spares.job.signal("HUP")
        time.sleep(5)
        assert set(affinities(host).values()) == {"5"}
    finally:
        spares.stop()


def test_a_list_that_is_too_long(host: Host, irqbalance: Irqbalance) -> None:
    """1.9.4 reads 500 bytes of a command, and the rest is lost in silence."""
    ours = set(range(1000, 1200))
    state, _, left_out, reason = keep(host, ours)
    assert state == "told"
    assert "reads 500 bytes" in reason
    assert irqbalance.banned == {ADMINS} | (ours - set(left_out))
    assert len(left_out) == 200 - (500 - 18 - 2) // 5
    assert release(host)[0] == "told"
    assert irqbalance.banned == {ADMINS}


def test_one_that_is_busy_is_waited_for(host: Host, irqbalance: Irqbalance) -> None:
    pid = irqbalance.job.pid
    code = f"""
os.kill({pid}, signal.SIGSTOP)
result = [said(bans.keep([1000])), said(bans.keep([1000, 1001]))]
os.kill({pid}, signal.SIGCONT)
result.append(said(bans.keep([1001])))
"""
    first, second, third = inside(host, code)
    assert first == second == ["refused", pid, [], "it does not answer"]
    assert third == ["told", pid, [], ""]
    assert irqbalance.banned == {ADMINS, 1001}
    assert irqbalance.job.returncode() is None


@pytest.mark.parametrize("how", ["listen=False", "listen=False, send=False"])
def test_one_that_is_hung_up_on_dies(host: Host, irqbalance: Irqbalance, how: str) -> None:
    """Why an answer that is late is waited for, and nobody connects to say nothing."""
    pid = irqbalance.job.pid
    inside(
        host,
        f"ask({pid}); os.kill({pid}, signal.SIGSTOP); ask({pid}, {how})\n"
        f"os.kill({pid}, signal.SIGCONT); result = None",
    )
    assert irqbalance.job.wait() == 128 + signal.SIGPIPE


def test_its_version_is_read_from_its_program(host: Host, irqbalance: Irqbalance) -> None:
    told = inside(host, f"result = read_version(LiveFs(), {irqbalance.job.pid})")
    assert ".".join(map(str, told)) in host.run("irqbalance --version 2>&1 || true").stdout
