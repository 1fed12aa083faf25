"""Attacks on the daemon of a real host, and what they do to how soon others are served.

The machine is emulated on fewer processors than it shows: who is busy on all of them starves
everybody, whatever a daemon does. So attackers share virtual CPUs of their own (`THEIRS`), on which
they do what they do as fast as they can; what is measured is what they cost the daemon. They are
there all the time, and frozen (cgroups) where they are not to disturb. What it costs that those
CPUs are busy at all is measured beside it, with loops there that do nothing to anybody.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lab import full
from lab.full import E1000E, IGB_VFS, Guest, Host, Job
from tests.full import hostile
from tests.full.test_daemon import CONFIG, TRACEFS, Use, daemon, found, heard, until
from tests.full.test_libvirt import told

THEIRS: Final = "6,7"
"""Virtual CPUs of the attackers: no guest has them."""
PLANE, PLANE_CPU = E1000E[0], "1"
"""What a guest holds whose new vectors are measured, and where they belong."""
TOGGLED, TOGGLED_CPU = IGB_VFS[0][0], "2"
LIVE: Final = full.LIVE_GUEST.hostdevs
NOBODY: Final = "setpriv --reuid 65534 --regid 65534 --clear-groups"
FLOODS: Final = ("hang_up", "never_read", "end_threads=2")
RULES: Final = f"""[[rule]]
kind = "process"
directive = "auto"
[metrics]
listen = "{hostile.METRICS[0]}:{hostile.METRICS[1]}"
"""
_HOLD: Final = "/opt/lab/vfio.py"
_HOSTILE: Final = "/opt/lab/hostile.py"
_PLAYGROUND: Final = "/run/lab/hostile"
_ORDERS: Final = "/run/lab/plane"
_FREEZER: Final = "/sys/fs/cgroup/attackers"
_BYSTANDERS: Final = "/sys/fs/cgroup/bystanders"
_LOOP: Final = "sh -c 'while :; do :; done'"
_NEWBORN: Final = f"{TRACEFS}/instances/newborn"
_PROBES: Final = {
    "requested": "request_threaded_irq irq=$arg1:u32 name=+0($arg5):string",
    "moved": "irq_set_affinity irq=$arg1:u32",
}
_LINE: Final = re.compile(r" (\d+\.\d+): (\w+): .*\birq=(\d+)")
VECTORS: Final = 5  # of an e1000e
ROUNDS: Final = 4
"""How often all vectors of the plane are set up in a block."""
APART: Final = 2.2
"""Seconds between two rounds: who sets vectors up more often is slowed down."""


def prepare(host: Host) -> None:
    """For a host on which virtirq is installed."""
    host.put(Path(full.__file__).parents[1] / "vfio.py", _HOLD)
    host.put(Path(hostile.__file__), _HOSTILE)
    for device in (PLANE, TOGGLED):
        sysfs = f"/sys/bus/pci/devices/{device}"
        host.run(
            f"echo vfio-pci > {sysfs}/driver_override;"
            f" [ ! -e {sysfs}/driver ] || echo {device} > {sysfs}/driver/unbind;"
            f" echo {device} > /sys/bus/pci/drivers_probe"
        )
    host.write(CONFIG, RULES)
    host.run(f"mkdir {_FREEZER} {_BYSTANDERS}; mkfifo {_ORDERS}")


# Who attacks.


def attack(host: Host, *, on: bool, who: str = _FREEZER) -> None:
    """Have the attackers go on, or stop."""
    host.run(
        f"echo {int(not on)} > {who}/cgroup.freeze;"
        f" until grep -q 'frozen {int(not on)}' {who}/cgroup.events; do sleep 0.05; done"
    )


@contextmanager
def _attackers(host: Host, name: str, command: str, who: str = _FREEZER) -> Iterator[Job]:
    group = f"{who}/{name}"
    job = host.spawn(
        f"mkdir -p {group}; echo $$ > {group}/cgroup.procs; exec taskset -c {THEIRS} {command}"
    )
    try:
        yield job
    finally:
        attack(host, on=True, who=who)
        job.signal("TERM")
        job.wait()
        host.run(f"echo 1 > {group}/cgroup.kill")


@contextmanager
def users(host: Host, guest: Guest, *kinds: str) -> Iterator[Job]:
    """A user without rights, at all of this at once; see hostile.py."""
    names = " ".join(kind.partition("=")[0] for kind in kinds)
    host.run(f"rm -rf {_PLAYGROUND}; mkdir {_PLAYGROUND}")
    host.run(f"cd {_PLAYGROUND} && mkdir {names} && chown 65534 {names}")
    uuid = guest.virsh("domuuid").stdout.strip()
    line = f"{NOBODY} python3 -I -S {_HOSTILE} {_PLAYGROUND} {uuid} {' '.join(kinds)}"
    with _attackers(host, "users", line) as job:
        heard(job, "ready")
        yield job


@contextmanager
def toggling(host: Host) -> Iterator[Job]:
    """A guest that switches its MSI-X off and on, as fast as it can."""
    line = (
        "sh -c 'while echo disable && echo enable 3; do :; done"
        f" | taskset -c {TOGGLED_CPU},{THEIRS} python3 {_HOLD} {TOGGLED} --vectors 3'"
    )
    with _attackers(host, "toggler", line) as job:
        heard(job, "ok irqs 0=", times=3)
        yield job


@contextmanager
def bystanders(host: Host) -> Iterator[None]:
    """Who keeps the attackers' CPUs as busy as they do, and does nothing else."""
    with ExitStack() as stack:
        for number in range(2):
            stack.enter_context(_attackers(host, f"loop{number}", _LOOP, _BYSTANDERS))
        attack(host, on=False, who=_BYSTANDERS)
        yield


@contextmanager
def hung(host: Host) -> Iterator[None]:
    """The live guest's QEMU hangs, and what libvirt is asked of its memory; its thread is moved."""
    pid = host.run("pidof qemu-system-x86_64").stdout.strip()
    thread = host.run(f"grep -lx 'CPU 1/KVM' /proc/{pid}/task/*/comm").stdout.split("/")[-2]
    host.run(f"kill -STOP {pid}; taskset -pc 6 {thread}")
    try:
        yield
    finally:
        host.run(f"kill -CONT {pid}; taskset -pc 5 {thread}")


# Who is to be served all the same.


@contextmanager
def plane(host: Host) -> Iterator[Job]:
    """A data plane that holds a NIC and sets its vectors up when told to."""
    job = host.spawn(f"exec taskset -c {PLANE_CPU} python3 {_HOLD} {PLANE} <> {_ORDERS}")
    until(lambda: len(host.vectors(PLANE)) == VECTORS, job.output)
    try:
        yield job
    finally:
        job.signal("KILL")
        job.wait()


def plane_is_served(host: Host) -> bool:
    there = host.vectors(PLANE)
    return len(there) == VECTORS and {each.affinity for each in there} == {PLANE_CPU}


def actions_of(host: Host) -> set[str]:
    """The interrupts of the live guest, by action: at rest it has the same ones always."""
    return {each.actions for device in LIVE for each in host.vectors(device)}


def guest_is_served(host: Host, actions: set[str]) -> bool:
    """Whether each vector of the live guest is there, and where the plan says."""
    planned = {
        (each["irq"], f"vfio-{each['kind']}[{each['vector']}]({device['address']})"): each["after"]
        for one in told(host, "plan")["guests"]
        for device in one["devices"]
        if device["address"] in LIVE
        for each in device["interrupts"]
        if each["vector"] is not None
    }
    there = {key: cpus for key, cpus in found(host).items() if key[1] in actions}
    return {action for _, action in there} == actions and there == planned


# How soon.


@contextmanager
def newborn(host: Host, pid: int) -> Iterator[None]:
    """The kernel's own word on when the plane's vectors are set up, and moved by process `pid`."""
    filters = {"requested": f'name ~ "vfio-*({PLANE})"', "moved": f"common_pid == {pid}"}
    made = "; ".join(
        f"echo 'p:newborn/{name} {probe}' >> {TRACEFS}/kprobe_events;"
        f" echo '{filters[name]}' > {_NEWBORN}/events/newborn/{name}/filter"
        for name, probe in _PROBES.items()
    )
    host.run(
        f"mkdir {_NEWBORN}; {made}; cd {_NEWBORN}; echo mono > trace_clock;"
        " echo 0 > options/irq-info; echo 1 > events/newborn/enable"
    )
    try:
        yield
    finally:
        host.run(
            f"echo 0 > {_NEWBORN}/events/newborn/enable; rmdir {_NEWBORN};"
            + "".join(f" echo '-:newborn/{name}' >> {TRACEFS}/kprobe_events;" for name in _PROBES)
        )


def sampled(host: Host) -> list[float]:
    """Seconds from each new vector of the plane to its move, of a block; all of them are moved."""
    turns = f"echo disable; sleep 0.2; echo enable; sleep {APART - 0.2}; "
    host.run(f"echo > {_NEWBORN}/trace; ({turns * ROUNDS}) > {_ORDERS}")
    until(lambda: plane_is_served(host))
    waiting: dict[str, float] = {}
    took = []
    for at, what, irq in _LINE.findall(host.run(f"cat {_NEWBORN}/trace").stdout):
        if what == "requested":
            waiting[irq] = float(at)
        elif irq in waiting:
            took.append(float(at) - waiting.pop(irq))
    assert len(took) == ROUNDS * VECTORS
    assert not waiting
    return took


def cpu_seconds(job: Job) -> float:
    """What the process has used, as far as this emulated host can tell."""
    fields = job.host.read(f"/proc/{job.pid}/stat").decode().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@dataclass
class Measured:
    """What came of `measure`: seconds by vector, CPU seconds of the daemon by block, and so on."""

    before: Use
    calm: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    """While the attackers' CPUs are busy with nothing."""
    attacked: list[float] = field(default_factory=list)
    used_calm: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    during: list[Use] = field(default_factory=list)
    after: Use | None = None
    log: str = ""
    lines: int = 0
    """Of the log, while it was measured."""
    toggles: int = 0

    @property
    def ratio(self) -> float:
        """Of under attack to where the same CPUs are as busy with nothing."""
        return statistics.median(self.attacked) / statistics.median(self.busy)

    def __str__(self) -> str:
        calm, busy, attacked = (statistics.median(e) for e in (self.calm, self.busy, self.attacked))
        return "\n".join(
            (
                f"from a new vector to its move, median of {len(self.calm)}: {busy * 1e3:.1f} ms"
                f" where the attackers' CPUs are busy with nothing, {attacked * 1e3:.1f} under"
                f" attack: {self.ratio:.2f} times; slowest {max(self.busy) * 1e3:.0f} and"
                f" {max(self.attacked) * 1e3:.0f}",
                f"where they are idle: {calm * 1e3:.1f} ms, of which these are {busy / calm:.2f}"
                f" and {attacked / calm:.2f} times",
                f"the daemon's CPU seconds by block: {self.used_calm}, under attack {self.used}",
                f"{self.before}\n{self.during[-1]}\n{self.after}",
                f"{self.toggles} times MSI-X off and on; {self.lines} lines of log",
            )
        )


def measure(host: Host, guest: Guest, blocks: int) -> Measured:
    """So many blocks without and with attackers, in turns; prints what those have done.

    Hostile clients, threads that end, MSI-X switched off and on, and a hung call to libvirt.
    """
    actions = actions_of(host)
    with ExitStack() as stack:
        stack.enter_context(bystanders(host))
        toggler = stack.enter_context(toggling(host))
        flood = stack.enter_context(users(host, guest, *FLOODS))
        attack(host, on=False)
        stack.enter_context(plane(host))
        job = stack.enter_context(daemon(host))
        until(lambda: plane_is_served(host) and guest_is_served(host, actions), job.output)
        with newborn(host, job.pid):
            sampled(host)
            result = Measured(Use.of(job))
            lines, toggles = job.output().count("\n"), _toggles(toggler)
            for _ in range(blocks):
                used = cpu_seconds(job)
                result.calm += sampled(host)
                result.used_calm.append(round(cpu_seconds(job) - used, 2))
                attack(host, on=True, who=_BYSTANDERS)
                result.busy += sampled(host)
                attack(host, on=False, who=_BYSTANDERS)
                with hung(host):
                    attack(host, on=True)
                    used = cpu_seconds(job)
                    result.attacked += sampled(host)
                    result.used.append(round(cpu_seconds(job) - used, 2))
                    result.during.append(Use.of(job))
                    attack(host, on=False)
        until(lambda: guest_is_served(host, actions), job.output)
        until(lambda: Use.of(job).files <= result.before.files, job.output)
        until(lambda: Use.of(job).threads <= result.before.threads, job.output)
        result.after, result.log = Use.of(job), job.output()
        result.lines = result.log.count("\n") - lines
        result.toggles = _toggles(toggler) - toggles
    print(flood.output(), flush=True)
    return result


def _toggles(job: Job) -> int:
    return job.output().count("ok irqs 0=")
