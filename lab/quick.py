"""Boot this machine's own files under another kernel, with VT-d and passthrough devices.

    done = quick.run(quick.one_nic(), ["cat", "/proc/interrupts"])

virtme-ng does the booting. The guest sees every file of this machine but can change none:
what it writes goes to memory, except in the directories named in `writable`. Emulation
only: /dev/kvm is never opened, so this works where there is none.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from . import kernel
from .kernel import LabUnavailable
from .patience import Patience

# These belong to the guest's own kernel; everything else is this machine's.
_NOT_SHARED = {"boot", "dev", "lost+found", "proc", "run", "sys"}
_BOOT_ATTEMPTS = 3
_BOOT_SILENCE = 60.0
"""Seconds without a new message: less than from one report of a stall to the next."""
_BOOT_SECONDS = 600.0
"""In all, for one that goes on to complain. Both as `Patience` counts them."""
_POLL = 0.05
_KILL_SECONDS = 2
_KERNEL_OPTIONS = (
    "intel_iommu=on",
    "mitigations=off",
    "nokaslr",
    # The other CPUs are brought up by the run script: booting them all at once under
    # emulation sometimes hangs with "Possible timer handling issue".
    "maxcpus=1",
    # Measuring delay loops takes a second and a half for each CPU here; any value will do.
    "lpj=10000000",
    "no_timer_check",
)


class GuestError(Exception):
    """The guest did not boot, or died before the command had ended."""


class GuestTimeoutError(Exception):
    """The guest got no further; `output` is what the command had printed until then."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


@dataclass(frozen=True)
class Device:
    """A PCI function of the guest."""

    model: str  # QEMU's name for it
    node: int | None = None  # the NUMA node it is near; None: below the built-in bus
    options: str = ""
    legacy: bool = False  # conventional PCI: on the built-in bus, which takes both kinds
    disk_mib: int = 0  # an empty disk that the device needs


@dataclass(frozen=True)
class Machine:
    """What to boot."""

    cpus: int = 4
    memory_mib: int = 1024
    nodes: int = 1
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a command in the guest did."""

    returncode: int
    stdout: str
    stderr: str
    boot_seconds: float
    seconds: float  # of the command alone

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def one_nic() -> Machine:
    """The smallest: 4 CPUs and one NIC with five MSI-X vectors."""
    return Machine(devices=(Device("e1000e"),))


def two_nodes() -> Machine:
    """A small two-socket host: NIC and NVMe on each node, VFs, and an INTx-only device."""
    return Machine(
        cpus=8,
        memory_mib=2048,
        nodes=2,
        devices=(
            Device("e1000e", node=0),
            _nvme(node=0, serial="lab0"),
            Device("e1000", legacy=True),
            Device("e1000e", node=1),
            _nvme(node=1, serial="lab1"),
            _sriov(node=1),
        ),
    )


def _nvme(node: int, serial: str) -> Device:
    return Device("nvme", node, f"serial={serial},max_ioqpairs=16,msix_qsize=17", disk_mib=64)


def _sriov(node: int) -> Device:
    """A device that can make VFs: igb where QEMU has it (8 and later), else an NVMe."""
    if "igb" in _qemu_models():
        return Device("igb", node)
    vfs, queues, vectors = 4, 2, 2
    flexible = f"sriov_vq_flexible={vfs * queues},sriov_vi_flexible={vfs * vectors}"
    own = f"max_ioqpairs={vfs * queues + 2},msix_qsize={vfs * vectors + 3}"
    options = f"serial=labvf,subsys=subsys0,sriov_max_vfs={vfs},{flexible},{own}"
    return Device("nvme", node, options)


MACHINES: Mapping[str, Callable[[], Machine]] = {"one_nic": one_nic, "two_nodes": two_nodes}


@dataclass(frozen=True)
class _Job:
    """One boot's directory, shared read-write with the guest: its orders and its answers."""

    path: Path

    @property
    def script(self) -> Path:
        return self.path / "run"

    @property
    def console(self) -> Path:
        return self.path / "console"

    @property
    def stdout(self) -> Path:
        return self.path / "stdout"

    @property
    def stderr(self) -> Path:
        return self.path / "stderr"

    @property
    def qemu_pid(self) -> Path:
        return self.path / "qemu.pid"

    @property
    def booted(self) -> Path:
        return self.path / "booted"

    @property
    def status(self) -> Path:
        return self.path / "status"

    def console_tail(self) -> str:
        lines = _text(self.console).splitlines()
        return "\n".join(line for line in lines[-15:] if line.strip())


def run(
    machine: Machine,
    command: Sequence[str],
    *,
    silence: float = 300,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    writable: Sequence[Path] = (),
    image: Path | None = None,
    stream: bool = False,
) -> Result:
    """Boot `machine`, run `command` in it as root, and say what became of it.

    It may take as long as it likes, but must not be silent for more than so many seconds (of
    `Patience`): print nothing, and write nothing to a file directly in a directory of `writable`.
    `cwd` is where the command starts (default: here); `env` is added to a small default
    environment; the guest may write to this machine in the directories of `writable`;
    `image` replaces the distribution's kernel; `stream` also passes output on as it comes.
    """
    image = image or kernel.vmlinuz()
    for attempt in range(1, _BOOT_ATTEMPTS + 1):
        with _job() as job:
            job.script.write_text(_batch_script(job, command, cwd or Path.cwd(), env or {}))
            arguments = _virtme(machine, image, job, writable)
            arguments += ["--show-boot-console", "--script-sh", f"sh {job.script}"]
            arguments += ["--qemu-opts", *qemu_arguments(machine, job.path)]
            arguments += ["-pidfile", str(job.qemu_pid)]
            with _started(arguments, job) as process:
                begin = time.monotonic()
                if not _booted(process, job):
                    if attempt < _BOOT_ATTEMPTS:
                        continue  # emulated boots do stall now and then
                    raise GuestError(f"the guest does not boot:\n{job.console_tail()}")
                boot = time.monotonic() - begin
                signs = [job.stdout, job.stderr, *writable]
                return _finish(process, job, signs, silence, boot, _Tee(job) if stream else None)
    raise AssertionError("unreachable")


def shell(
    machine: Machine,
    *,
    cwd: Path | None = None,
    writable: Sequence[Path] = (),
    image: Path | None = None,
) -> int:
    """Boot `machine` and give this terminal a root shell in it."""
    image = image or kernel.vmlinuz()
    with _job() as job:
        prelude = _prelude({"TERM": os.environ.get("TERM", "linux")})
        start = shlex.quote(str(cwd or Path.cwd()))
        job.script.write_text(f"#!/bin/sh\n{prelude}cd {start}\nexec bash\n")
        job.script.chmod(0o755)
        arguments = _virtme(machine, image, job, writable)
        arguments += ["--shell", str(job.script)]
        arguments += ["--qemu-opts", *qemu_arguments(machine, job.path)]
        return subprocess.call(arguments, env=_host_env(job))


def qemu_arguments(machine: Machine, scratch: Path) -> list[str]:
    """The part of QEMU's command line that makes the machine; disks are made in `scratch`."""
    arguments = ["-machine", "q35,kernel-irqchip=off", "-accel", "tcg,thread=single,tb-size=256"]
    arguments += ["-device", "intel-iommu,intremap=on"]
    if machine.nodes > 1:
        for node in range(machine.nodes):
            arguments += _node(machine, node)
    if any("subsys=" in device.options for device in machine.devices):
        arguments += ["-device", "nvme-subsys,id=subsys0"]
    for number, device in enumerate(machine.devices):
        arguments += _device(device, number, scratch)
    return arguments


def _node(machine: Machine, node: int) -> list[str]:
    """A NUMA node: its share of CPUs and memory, and a PCI host bridge of its own."""
    cpus = machine.cpus // machine.nodes
    memory = machine.memory_mib // machine.nodes
    span = f"{node * cpus}-{(node + 1) * cpus - 1}"
    return [
        *("-object", f"memory-backend-ram,id=memory{node},size={memory}M"),
        *("-numa", f"node,nodeid={node},cpus={span},memdev=memory{node}"),
        *(
            "-device",
            f"pxb-pcie,id=host{node},bus=pcie.0,bus_nr={64 * (node + 1)},numa_node={node}",
        ),
    ]


def _device(device: Device, number: int, scratch: Path) -> list[str]:
    bus = "pcie.0" if device.node is None else f"host{device.node}"
    arguments = []
    if not device.legacy:
        port = f"port{number}"
        arguments += ["-device", f"pcie-root-port,id={port},bus={bus},chassis={number + 1}"]
        bus = port
    # Without its boot ROM, which nothing here boots from, the firmware is quicker.
    options = [device.model, *filter(None, [device.options]), f"bus={bus}", "romfile="]
    if device.disk_mib:
        disk = scratch / f"disk{number}"
        with disk.open("wb") as file:
            file.truncate(device.disk_mib << 20)
        arguments += ["-drive", f"id=disk{number},if=none,format=raw,file={disk},snapshot=on"]
        options.append(f"drive=disk{number}")
    return [*arguments, "-device", ",".join(options)]


def _qemu() -> str:
    return kernel.tool("qemu-system-x86_64")


def _qemu_models() -> set[str]:
    listing = kernel.call([_qemu(), "-device", "help"])
    return {line.split('"')[1] for line in listing.splitlines() if line.startswith('name "')}


def _virtme(machine: Machine, image: Path, job: _Job, writable: Sequence[Path]) -> list[str]:
    """virtme-ng's lower half: `vng` itself would only add a shell and a second parser."""
    overlays = [str(path) for path in sorted(Path("/").iterdir()) if _shared(path)]
    smp = f"{machine.cpus},sockets={machine.nodes},cores={machine.cpus // machine.nodes}"
    return [
        _virtme_run(),
        *("--kimg", str(image), "--mods", "use", "--name", "virtirq-lab", "--user", "root"),
        *("--cpus", smp, "--memory", f"{machine.memory_mib}M"),
        *("--disable-kvm", "--disable-microvm", "--force-9p"),
        *("--qemu-bin", str(_qemu_wrapper(job))),
        # Besides keeping this machine's files as they are, an overlay caches: Python
        # starts three times faster than straight from 9p.
        *(f"--overlay-rwdir={directory}" for directory in overlays),
        *(f"--rwdir={path.resolve()}" for path in (job.path, *writable)),
        *(f"--kopt={option}" for option in _KERNEL_OPTIONS),
    ]


def _shared(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and path.name not in _NOT_SHARED


def _virtme_run() -> str:
    """The one installed beside this Python first: a venv's is not in PATH unless activated."""
    places = f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', '')}"
    found = shutil.which("virtme-run", path=places)
    if found is None:
        raise LabUnavailable("virtme-ng is missing: pip install virtme-ng")
    return found


def _qemu_wrapper(job: _Job) -> Path:
    """QEMU that dies with the virtme-run that started it, whatever that died of."""
    wrapper = job.path / "qemu"
    wrapper.write_text(f'#!/bin/sh\nexec setpriv --pdeathsig KILL {_qemu()} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def _host_env(job: _Job) -> dict[str, str]:
    # virtme-run's own temporary files go where they are deleted even when it is killed.
    sbin = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return {**os.environ, "TMPDIR": str(job.path), "PATH": sbin}


def _prelude(env: Mapping[str, str]) -> str:
    """Shell lines that make the guest ready for a command."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    # LANGUAGE keeps gettext from looking for translations, some 200 files at each start.
    exports = {"PATH": path, "LANG": "C.UTF-8", "LANGUAGE": "C", "HOME": "/root", **env}
    return (
        "for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do echo 1 > $cpu; done\n"
        + "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exports.items())
    )


def _batch_script(job: _Job, command: Sequence[str], cwd: Path, env: Mapping[str, str]) -> str:
    """Output goes to files of the shared directory: the console has the kernel's noise."""
    return (
        f"{_prelude(env)}"
        f": > {job.booted}\n"
        f"( cd {shlex.quote(str(cwd))} && exec {shlex.join(command)} )"
        f" >> {job.stdout} 2>> {job.stderr} < /dev/null\n"
        # The rename makes the number appear whole.
        f"echo $? > {job.status}.new; mv {job.status}.new {job.status}\n"
    )


@contextmanager
def _job() -> Iterator[_Job]:
    with tempfile.TemporaryDirectory(prefix="virtirq-lab-") as path:
        yield _Job(Path(path).resolve())


@contextmanager
def _started(arguments: Sequence[str], job: _Job) -> Iterator[subprocess.Popen[bytes]]:
    """virtme-run in a process group of its own, which never outlives the block."""
    # QEMU opens the file again for the guest's console; appending keeps its own last words
    # behind all that.
    with job.console.open("ab") as console:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *arguments],
            env=_host_env(job),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end(process, job)


def _end(process: subprocess.Popen[bytes], job: _Job) -> None:
    """Kill QEMU first: virtme-run then reaps it and ends, and no zombie is left to init."""
    with contextlib.suppress(OSError):  # no more
        qemu = _qemu_of(job)
        if qemu is not None and os.getpgid(qemu) == process.pid:
            os.kill(qemu, signal.SIGKILL)
    try:
        process.wait(_KILL_SECONDS)
    except subprocess.TimeoutExpired:
        # It was not waited for yet, so its number cannot be a stranger's.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _booted(process: subprocess.Popen[bytes], job: _Job) -> bool:
    """Wait until the guest runs its script; false when it came to a halt, or died."""
    with contextlib.suppress(_StuckError):
        # The kernel's own watchdogs make a guest that hangs go on printing.
        limits = [_Limit(_BOOT_SILENCE, [job.console]), _Limit(_BOOT_SECONDS, [])]
        return _wait(process, job, job.booted, limits)
    return False


class _StuckError(Exception):
    """Nothing new came for too long; the message says how long."""


class _Limit:
    """Patience with a guest, whose signs of life are that these files grow."""

    def __init__(self, seconds: float, signs: Sequence[Path]) -> None:
        self._seconds = seconds
        self._signs = signs
        self._patience: Patience | None = None
        self._size = -1

    def check(self, pid: int | None) -> None:
        if self._patience is None or self._patience.pid is None:
            self._patience = Patience(self._seconds, pid)
        size = sum(map(_size, self._signs))
        if size != self._size:
            self._size = size
            self._patience.sign()
        if self._patience.ended():
            raise _StuckError(f"nothing new came from it for {self._patience.since:.0f} s")


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a directory."""
    try:
        return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().st_size
    except FileNotFoundError:
        return 0


def _wait(
    process: subprocess.Popen[bytes],
    job: _Job,
    sign: Path,
    limits: Sequence[_Limit],
    every_poll: Callable[[], None] = lambda: None,
) -> bool:
    """Wait for a file that the guest makes; false when it died. Raises `_StuckError`."""
    while True:
        alive = process.poll() is None
        every_poll()
        if sign.exists():
            return True
        if not alive:
            return False
        for limit in limits:
            limit.check(_qemu_of(job))
        time.sleep(_POLL)


def _qemu_of(job: _Job) -> int | None:
    """The number of the job's QEMU, once that has told it."""
    text = _text(job.qemu_pid).strip()
    return int(text) if text else None


def _finish(
    process: subprocess.Popen[bytes],
    job: _Job,
    signs: Sequence[Path],
    silence: float,
    boot: float,
    tee: _Tee | None,
) -> Result:
    begin = time.monotonic()
    try:
        limits = [_Limit(silence, signs)]
        ended = _wait(process, job, job.status, limits, tee.copy if tee else lambda: None)
    except _StuckError as stuck:
        after = time.monotonic() - begin
        raise GuestTimeoutError(
            f"the guest is stuck: {stuck}, {after:.0f} s after the command was started; its"
            f" console ends with:\n{job.console_tail()}",
            _text(job.stdout) + _text(job.stderr),
        ) from None
    finally:
        if tee:
            tee.copy()
    stdout, stderr = _text(job.stdout), _text(job.stderr)
    if not ended:
        raise GuestError(f"the guest died:\n{stdout}{stderr}{job.console_tail()}")
    # Nothing of the guest is worth keeping, so it is not shut down: killing saves seconds.
    return Result(int(_text(job.status)), stdout, stderr, boot, time.monotonic() - begin)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


@dataclass
class _Tee:
    """Passes the guest's output on to this process's own, as far as it has grown."""

    job: _Job
    done: dict[Path, int] = field(default_factory=dict)

    def copy(self) -> None:
        self._copy(self.job.stdout, sys.stdout.buffer)
        self._copy(self.job.stderr, sys.stderr.buffer)

    def _copy(self, source: Path, target: BinaryIO) -> None:
        if not source.exists():
            return
        with source.open("rb") as file:
            file.seek(self.done.get(source, 0))
            target.write(file.read())
            target.flush()
            self.done[source] = file.tell()
