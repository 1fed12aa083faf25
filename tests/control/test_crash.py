"""Killed at any instant, `restore` afterwards leaves every interrupt as it was found.

Two ways: in this process, a death is thrown at every step that changes something, a write torn
in the middle included; and a real process is killed by strace at every such system call.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.control.scenes import FIRST, HOST, IRQS, WEB, affinities
from tests.hostmaker import MadeFs
from tests.needs import need_program
from virtirq.control import cycle
from virtirq.control import journal as journal_module
from virtirq.control.executor import Executor
from virtirq.host import paths
from virtirq.policy.config import Config

DOMAIN = """<domain><name>web</name><vcpu>4</vcpu><cputune>
<vcpupin vcpu='0' cpuset='4'/><vcpupin vcpu='1' cpuset='5'/>
<vcpupin vcpu='2' cpuset='6'/><vcpupin vcpu='3' cpuset='7'/></cputune><devices>
<hostdev mode='subsystem' type='pci'><source>
<address domain='0' bus='0x41' slot='0' function='0'/></source></hostdev>
<hostdev mode='subsystem' type='pci'><source>
<address domain='0' bus='0x42' slot='0' function='0'/></source></hostdev></devices></domain>"""


@pytest.fixture(params=[1, 3], ids=["one by one", "in batches"], autouse=True)
def batch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here must hold for pins that are taken together, too: the daemon does that."""
    defaults = Executor.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "batch", request.param)


class Killed(BaseException):
    """The process is gone: nothing may catch this."""


class Clock:
    """Counts steps and kills at one of them."""

    def __init__(self, deadline: int) -> None:
        self.steps = 0
        self._deadline = deadline

    def tick(self) -> None:
        self.steps += 1
        if self.steps == self._deadline:
            raise Killed


def mortal(call: Callable[..., Any], clock: Clock) -> Callable[..., Any]:
    """Dies before the call, or after it."""

    def run(*args: Any, **named: Any) -> Any:
        clock.tick()
        done = call(*args, **named)
        clock.tick()
        return done

    return run


def tearing(clock: Clock) -> Callable[[int, bytes], int]:
    """write(2) that may also die in the middle."""

    def run(descriptor: int, data: bytes) -> int:
        clock.tick()
        half = os.write(descriptor, data[: len(data) // 2])
        clock.tick()
        done = half + os.write(descriptor, data[half:])
        clock.tick()
        return done

    return run


def deaths(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[MadeFs, Path], object], directory: Path
) -> Iterator[MadeFs]:
    """The host after each possible death of `act`, which ends when it survives."""
    for deadline in range(1, 1000):
        state = directory / str(deadline)
        fs, clock = HOST.fs(), Clock(deadline)
        mortal_os = SimpleNamespace(**vars(os))
        mortal_os.write = tearing(clock)
        for name in ("fsync", "truncate", "ftruncate", "replace"):
            setattr(mortal_os, name, mortal(getattr(os, name), clock))
        with monkeypatch.context() as patched:
            patched.setattr(journal_module, "os", mortal_os)
            patched.setattr(fs, "write", mortal(fs.write, clock))
            try:
                act(fs, state)
            except Killed:
                yield fs
            else:
                assert deadline > 20, "nothing was counted"
                return
    pytest.fail("it never ends")


def apply(fs: MadeFs, state: Path) -> None:
    cycle.apply(fs, [WEB], Config(), state, ())


def apply_and_restore(fs: MadeFs, state: Path) -> None:
    apply(fs, state)
    cycle.restore(fs, [WEB], state, ())


def apply_twice(fs: MadeFs, state: Path) -> None:
    """The second moves what the first pinned."""
    apply(fs, state)
    turned = WEB.vcpus[1:] + WEB.vcpus[:1]
    guest = type(WEB)(
        WEB.name,
        WEB.source,
        vcpus=tuple(type(v)(i, v.cpus) for i, v in enumerate(turned)),
        devices=WEB.devices,
    )
    cycle.apply(fs, [guest], Config(), state, ())


def apply_refused(fs: MadeFs, state: Path) -> None:
    """The kernel takes some and refuses others, once as a first move and once as a later one."""
    apply(fs, state)
    fs.faults[("write", paths.IRQ_AFFINITY.at(FIRST))] = errno.EIO
    try:
        apply_twice(fs, state)
    finally:
        fs.faults.clear()


def apply_and_stop_the_guest(fs: MadeFs, state: Path) -> None:
    """No action is left when everything is put back."""
    apply(fs, state)
    for irq in IRQS:
        fs.set(paths.IRQ_ACTIONS.at(irq), "")
    cycle.restore(fs, [], state, ())


@pytest.mark.parametrize(
    "act",
    [apply, apply_and_restore, apply_twice, apply_refused, apply_and_stop_the_guest],
)
def test_restore_after_any_death(
    act: Callable[[MadeFs, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = affinities(HOST.fs())
    for number, fs in enumerate(deaths(monkeypatch, act, tmp_path), start=1):
        cycle.restore(fs, [WEB], tmp_path / str(number), ())
        assert affinities(fs) == found, f"killed at step {number}"


def test_apply_after_any_death_ends_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = HOST.fs()
    apply(whole, tmp_path / "whole")
    for number, fs in enumerate(deaths(monkeypatch, apply, tmp_path), start=1):
        apply(fs, tmp_path / str(number))
        assert affinities(fs) == affinities(whole), f"killed at step {number}"


def test_a_journal_that_is_rewritten_dies_without_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_BYTES", 0)

    def many(fs: MadeFs, state: Path) -> None:
        for _ in range(2):
            apply_twice(fs, state)

    found = affinities(HOST.fs())
    for number, fs in enumerate(deaths(monkeypatch, many, tmp_path), start=1):
        cycle.restore(fs, [WEB], tmp_path / str(number), ())
        assert affinities(fs) == found, f"killed at step {number}"


CHANGING = "write,fsync,ftruncate,truncate,rename,unlink,mkdir"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "web.xml").write_text(DOMAIN)
    return HOST.write(tmp_path / "host", scratch=True)


def virtirq(
    root: Path, *words: str, strace: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *strace,
            *(sys.executable, "-m", "virtirq", "-q"),
            *("--sysroot", str(root), "--domain", str(root.parent / "web.xml"), *words),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def on_disk(root: Path) -> dict[int, str]:
    """IRQ to affinity as another process reads it."""
    done = subprocess.run(
        [sys.executable, "-m", "virtirq", "-s", str(root), "--domain",
         str(root.parent / "web.xml"), "status", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    guests = json.loads(done.stdout)["guests"]
    return {i["irq"]: i["before"] for g in guests for d in g["devices"] for i in d["interrupts"]}


def test_a_real_process_killed_at_every_system_call_that_changes_something(scratch: Path) -> None:
    need_program("strace")
    found = on_disk(scratch)
    tracing = ("strace", "-f", "-qq", "-e", f"trace={CHANGING}", "-o")
    log = scratch.parent / "log"
    assert virtirq(scratch, "apply", strace=(*tracing, str(log))).returncode == 0
    calls = re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE)
    assert on_disk(scratch) != found
    assert virtirq(scratch, "restore").returncode == 0
    assert on_disk(scratch) == found
    assert "fsync" in calls
    assert calls.count("write") >= len(found)
    shutil.rmtree(scratch / "run")
    for place, call in enumerate(calls):
        when = calls[: place + 1].count(call)  # strace counts each system call by itself
        inject = ("-e", f"inject={call}:signal=KILL:when={when}")
        killed = virtirq(scratch, "apply", strace=(*tracing, str(log), *inject))
        assert killed.returncode != 0, f"{call} {when} was not reached"
        assert virtirq(scratch, "restore").returncode == 0
        assert on_disk(scratch) == found, f"killed at {call} {when}"
        shutil.rmtree(scratch / "run")
