"""The lab's host, as a test sees it."""

from __future__ import annotations

import io
import shlex
import tarfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.patience import Patience

from .client import Agent, Reply
from .errors import AgentError, CommandError, LabError
from .guest import LIVE_GUEST, Guest, GuestSpec
from .machine import NVME
from .qemu import Qemu

_VECTORS = """
cd /sys/kernel/irq
for file in $(grep -l '^vfio-' */actions); do
    irq=${file%/actions}
    read -r actions < "$file" || continue
    read -r wanted < "/proc/irq/$irq/smp_affinity_list" || continue
    read -r effective < "/proc/irq/$irq/effective_affinity_list" || continue
    read -r counts < "$irq/per_cpu_count" || continue
    echo "$irq|$actions|$wanted|$effective|$counts"
done 2> /dev/null
true
"""

# Leaves the pid of the command itself, then its status, in a directory of the job's own.
_SPAWN = """
mkdir -p /run/lab/jobs
job=$(mktemp -d /run/lab/jobs/XXXXXX)
export job
setsid sh -c '
    sh -c "echo \\$\\$ > $job/pid; exec $0"
    echo $? > $job/new; mv $job/new $job/status
' "$1" < /dev/null > "$job/out" 2>&1 &
until [ -s "$job/pid" ]; do sleep 0.02; done
echo "$job" "$(cat "$job/pid")"
"""
_WHEELS = "/opt/lab/wheels"
PATIENCE: Final = 180.0
"""Seconds, as `Patience` counts them, for what takes no more than ten when nothing else runs."""


@dataclass(frozen=True)
class Result:
    """A finished command."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Vector:
    """An interrupt that a nested guest holds through VFIO, as the host's kernel shows it."""

    irq: int
    actions: str  # "vfio-msix[0](0000:41:00.0)"
    affinity: str
    effective: str
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Job:
    """A command that goes on by itself in the machine."""

    host: Host
    directory: str
    pid: int

    def output(self) -> str:
        """What it has printed so far, errors included."""
        return self.host.read(f"{self.directory}/out").decode(errors="replace")

    def returncode(self) -> int | None:
        """Its status, once it has ended."""
        status = self.host.run(f"cat {self.directory}/status 2>/dev/null || true").stdout
        return int(status) if status.strip() else None

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its status, waited for."""
        patience = self.host.patience(timeout)
        while (status := self.returncode()) is None:
            if patience.ended():
                raise AgentError(f"runs still, after {patience.since:.0f} s: {self.output()}")
            time.sleep(0.1)
        return status

    def signal(self, name: str = "TERM") -> None:
        """Signal the command (not the shell around it)."""
        self.host.run(f"kill -{name} {self.pid}", check=False)


# Tasks that wait, and where each processor is (Documentation/admin-guide/sysrq.rst).
_STUCK: Final = (
    "dmesg -C; for key in w l; do echo $key > /proc/sysrq-trigger; done; sleep 1;"
    " dmesg | tail -n 200"
)


class Host:
    """A running machine. Its disk and memory are this run's own: do what you like with it."""

    def __init__(self, agent: Agent, qemu: Qemu | None = None) -> None:
        self.agent = agent
        self._qemu = qemu

    def patience(self, seconds: float = PATIENCE) -> Patience:
        """With this machine, from now on."""
        return Patience(seconds, self._qemu.pid if self._qemu else None)

    @property
    def qemu(self) -> Qemu:
        """The machine itself, its monitor included."""
        if self._qemu is None:
            raise AgentError("another process runs this machine")
        return self._qemu

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float = PATIENCE,
        check: bool = True,
        stdin: str | bytes = b"",
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command as root: a string goes through the shell, a sequence is taken as it is.

        `timeout`: seconds of the machine's own (see `Patience`) from which on it hangs.
        """
        line = command if isinstance(command, str) else shlex.join(command)
        if env:
            settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in env.items())
            line = f"export {settings}; {line}"
        data = stdin.encode() if isinstance(stdin, str) else stdin
        patience = self.patience(timeout)
        reply = self._ask(line, patience, data)
        stdout, stderr = (text.decode(errors="replace") for text in (reply.stdout, reply.stderr))
        if reply.timed_out:
            told = _quoted(stdout + stderr) + _quoted(self._stuck())
            raise AgentError(f"not done after {patience.since:.0f} s: {line}{told}")
        if check and reply.returncode != 0:
            raise CommandError(
                f"status {reply.returncode}: {line}{_quoted(stderr)}{_quoted(stdout)}"
            )
        return Result(reply.returncode, stdout, stderr)

    def _ask(self, line: str, patience: Patience, stdin: bytes = b"") -> Reply:
        try:
            return self.agent.run(line, patience=patience, stdin=stdin)
        except AgentError as error:
            if self._qemu is None:
                raise
            raise AgentError(f"{error}: {line}{_quoted(self._qemu.last_words())}") from error

    def _stuck(self) -> str:
        """What the kernel waits for, and where its processors are, as far as it can still tell."""
        try:
            reply = self.agent.run(_STUCK, patience=self.patience(20))
        except LabError as error:
            return f"and the kernel does not tell why: {error}"
        return reply.stdout.decode(errors="replace")

    def put(self, local: Path, remote: str) -> None:
        """Copy a file, or a directory with all below it, into the machine."""
        if local.is_dir():
            self._put_tree(local, remote)
        else:
            self.write(remote, local.read_bytes(), mode=local.stat().st_mode & 0o777)

    def write(self, remote: str, data: str | bytes, *, mode: int = 0o644) -> None:
        """Make a file in the machine."""
        path = shlex.quote(remote)
        self.run(
            f'mkdir -p "$(dirname {path})" && cat > {path} && chmod {mode:o} {path}', stdin=data
        )

    def get(self, remote: str, local: Path) -> None:
        """Copy a file out of the machine."""
        local.write_bytes(self.read(remote))

    def read(self, remote: str) -> bytes:
        """What a file of the machine holds."""
        reply = self._ask(f"cat {shlex.quote(remote)}", self.patience())
        if reply.returncode != 0:
            raise CommandError(f"cannot read {remote}: {reply.stderr.decode(errors='replace')}")
        return reply.stdout

    def vectors(self, device: str = "") -> list[Vector]:
        """The VFIO interrupts of all devices, or of the one at this PCI address."""
        lines = self.run(_VECTORS).stdout.splitlines()
        found = [_vector(line) for line in lines]
        return [vector for vector in found if f"({device})" in vector.actions or not device]

    def spawn(self, command: str, *, env: Mapping[str, str] | None = None) -> Job:
        """Start a command that goes on by itself, such as a daemon."""
        script = f"sh -c {shlex.quote(command)}"
        started = self.run(["sh", "-c", _SPAWN, "spawn", script], env=env).stdout
        directory, pid = started.split()
        return Job(self, directory, int(pid))

    def install_wheels(self, directory: Path) -> Result:
        """Install every wheel of a local directory with pip, offline.

        Nothing is resolved: the directory holds the wheels of all that is needed, made for
        the machine's own Python (see `python_version`).
        """
        self.put(directory, _WHEELS)
        # Beside what Debian has of them, which it alone can take away.
        pip = "python3 -m pip install --no-index --no-deps --no-compile --break-system-packages"
        pip += " --ignore-installed"
        quiet = "--root-user-action=ignore --no-cache-dir --disable-pip-version-check"
        return self.run(f"{pip} {quiet} {_WHEELS}/*.whl", timeout=2 * PATIENCE)

    def python_version(self) -> str:
        """The machine's Python as `pip download --python-version` takes it, such as "3.13"."""
        return self.run(
            ["python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        ).stdout.strip()

    @contextmanager
    def guest(self, spec: GuestSpec) -> Iterator[Guest]:
        """A nested guest, defined, started and ready; gone at the end."""
        guest = Guest(self, spec)
        guest.define()
        try:
            guest.boot()
            yield guest
        finally:
            guest.remove()

    def live_guest(self) -> Guest:
        """The guest that runs in a host resumed with `start="guest"`."""
        guest = Guest(self, LIVE_GUEST)
        guest.wait_ready()
        return guest

    def plug_nvme(self, node: int, vectors: int = 65) -> str:
        """Plug an NVMe disk with so many MSI-X vectors into a node's empty slot; its PCI address.

        NVMe disks cannot be in a snapshot, so they come after it.
        """
        name = f"nvme{node}"
        queues = {"msix_qsize": vectors, "max_ioqpairs": vectors - 1}
        self.qemu.execute(
            "blockdev-add",
            **{"driver": "null-co", "node-name": name, "size": 64 << 20, "read-zeroes": True},
        )
        place = {"id": name, "bus": f"n{node}p1"}
        self.qemu.execute("device_add", driver="nvme", drive=name, serial=name, **place, **queues)
        address = NVME[node]
        self.run(f"until [ -e /sys/bus/pci/devices/{address}/driver ]; do sleep 0.1; done")
        return address

    def _put_tree(self, local: Path, remote: str) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(local, arcname=".", filter=_owned_by_root)
        path = shlex.quote(remote)
        self.run(f"mkdir -p {path} && tar -x -C {path}", stdin=packed.getvalue())


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _vector(line: str) -> Vector:
    irq, actions, affinity, effective, counts = line.split("|")
    numbers = tuple(int(count) for count in counts.split(","))
    return Vector(int(irq), actions, affinity, effective, numbers)


def _quoted(text: str) -> str:
    return f"\n{textwrap.indent(text.strip(), '  ')}" if text.strip() else ""
