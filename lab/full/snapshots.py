"""Machines that were booted once and are resumed ever after.

A snapshot is two files that never change: a disk, layered over the image, and the machine's
memory. Each run lays a disk of its own over them, so runs neither disturb nor wait for
each other.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.patience import Patience

from . import cache, image, initramfs, process
from . import guest as guest_module
from .client import Agent
from .errors import BootError
from .guest import LIVE_GUEST, Guest
from .host import Host
from .image import Image
from .initramfs import Initramfs
from .machine import Machine
from .qemu import Qemu

logger = logging.getLogger(__name__)

_AGENT = "agent.json"
_ATTEMPTS = 4
# As `Patience` counts them: many times what it takes.
_BOOT_SECONDS = 120.0
_BOOT_SECONDS_SYSTEMD = 400.0


@dataclass(frozen=True)
class Parts:
    """All that a machine is started from."""

    image: Image
    initramfs: Initramfs

    @classmethod
    def ensure(cls) -> Parts:
        built = image.ensure()
        return cls(built, initramfs.ensure(built))


@dataclass(frozen=True)
class Snapshot:
    """A machine's disk and memory at one moment."""

    directory: Path

    @property
    def disk(self) -> Path:
        return self.directory / "disk.qcow2"

    @property
    def memory(self) -> Path:
        return self.directory / "memory"

    @property
    def token(self) -> str:
        """The word that the agent in this memory wants to hear."""
        return _noted(self.directory).token


def booted(parts: Parts, form: Machine) -> Snapshot:
    """Booted, with virtual functions and libvirt up."""

    def build(work: Path) -> None:
        with boot(parts, form, work) as host:
            _save(host, work)

    return Snapshot(cache.artefact("snapshot", _key(parts, form, "booted"), build))


def with_guest(parts: Parts, form: Machine) -> Snapshot:
    """The same with `LIVE_GUEST` on its devices, booted and suspended."""
    base = booted(parts, form)

    def build(work: Path) -> None:
        with resume(parts, form, base, work) as host:
            guest = Guest(host, LIVE_GUEST)
            guest.define()
            guest.boot()
            # QEMU does not load a processor that was saved within a nested guest
            # (target/i386/machine.c, cpu_post_load()).
            guest.virsh("suspend")
            _save(host, work)

    guest_key = _key(parts, form, "guest", inspect.getsource(guest_module))
    return Snapshot(cache.artefact("guest-snapshot", guest_key, build))


@contextmanager
def boot(parts: Parts, form: Machine, scratch: Path) -> Iterator[Host]:
    """A machine booted the long way, libvirt up."""
    host = _boot_host(parts, form, scratch)
    with closing(host.qemu):
        host.run("/opt/lab/l1-libvirt")
        yield host


@contextmanager
def resume(parts: Parts, form: Machine, snapshot: Snapshot, scratch: Path) -> Iterator[Host]:
    """A machine as it was when the snapshot was taken."""
    disk = scratch / "disk.qcow2"
    _layer(parts, disk, snapshot.disk, "qcow2")
    token = snapshot.token
    with closing(_launch(parts, form, scratch, disk, token, "-incoming", "defer")) as qemu:
        qemu.load(snapshot.memory)
        agent = Agent(qemu.forwarded_port(), token)
        host = Host(agent, qemu)
        if not agent.wait(host.patience()):
            raise BootError("the resumed machine does not answer")
        # Its clock stood still since the snapshot was taken
        host.run(f"date --set=@{time.time():.3f}")
        yield host


@contextmanager
def keep(host: Host) -> Iterator[None]:
    """Let other processes use this machine, by `attach`."""
    with cache.scratch() as directory:
        _note(directory, host.agent)
        yield


def attach() -> Host | None:
    """A machine that another process keeps for all."""
    for run in cache.running():
        if (run / _AGENT).exists():
            return Host(_noted(run))
    return None


def _note(directory: Path, agent: Agent) -> None:
    (directory / _AGENT).write_text(json.dumps(asdict(agent)))


def _noted(directory: Path) -> Agent:
    return Agent(**json.loads((directory / _AGENT).read_text()))


def _boot_host(parts: Parts, form: Machine, scratch: Path) -> Host:
    """Boot, and boot again if it stalls: emulated boots do, now and then."""
    disk, token = scratch / "disk.qcow2", secrets.token_hex(16)
    limit = _BOOT_SECONDS_SYSTEMD if form.systemd else _BOOT_SECONDS
    for attempt in range(1, _ATTEMPTS + 1):
        _layer(parts, disk, parts.image.disk, "raw")  # new each time: a killed one is not clean
        qemu = _launch(parts, form, scratch, disk, token)
        try:
            agent = Agent(qemu.forwarded_port(), token)
            up = agent.wait(Patience(limit, qemu.pid))
        except BaseException:
            qemu.close()
            raise
        if up:
            return Host(agent, qemu)
        logger.warning("boot %d stalled: %s", attempt, qemu.last_words())
        qemu.close()
    raise BootError(f"the machine did not boot in {_ATTEMPTS} attempts")


def _launch(parts: Parts, form: Machine, scratch: Path, disk: Path, token: str, *more: str) -> Qemu:
    command = [
        *parts.image.program("qemu-system-x86_64"),
        *form.arguments(parts.image.kernel, parts.initramfs.host, token),
        *("-drive", f"if=none,id=root,file={disk},format=qcow2,cache=unsafe"),
        *("-chardev", f"file,id=console,path={scratch / 'console.log'}"),
        *("-serial", "chardev:console"),
        "-no-reboot",  # a kernel that panics is not booted anew behind a test's back
        *more,
    ]
    return Qemu(command, scratch / "qemu.log")


def _layer(parts: Parts, disk: Path, base: Path, kind: str) -> None:
    create = [*parts.image.program("qemu-img"), "create", "-q", "-f", "qcow2"]
    # A relative path: the cache may be moved
    backing = os.path.relpath(base, disk.parent)
    process.call([*create, "-F", kind, "-b", backing, str(disk)])


def _save(host: Host, work: Path) -> None:
    # The caches stay: programs that were used once start much faster after resuming
    host.run("sync; cat /opt/lab/* > /dev/null")
    host.qemu.save(work / "memory")
    _note(work, host.agent)


def _key(parts: Parts, form: Machine, *more: str) -> str:
    """Made of all that shaped it: every argument of the machine and all that it boots."""
    shape = form.arguments(Path("kernel"), Path("initramfs"), "token")
    return cache.digest(parts.initramfs.key, Path(__file__).read_bytes(), *shape, *more)
