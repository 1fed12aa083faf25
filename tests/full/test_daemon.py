"""The daemon on a real host: guests that reboot, irqbalance, an adversary, kill -9, libvirtd.

A nested guest of the lab with a NIC, a VF and an NVMe disk; "right" is what `virtirq plan` says.
`VIRTIRQ_CHURN=full` is the long form, of half an hour; `VIRTIRQ_SEED` repeats what went wrong.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from lab import full
from lab.full import E1000E, IGB_VFS, Guest, Host, Job, hostdev_xml
from tests.full.hosts import ask, install_warm, need_full_lab
from tests.full.test_irqbalance import Irqbalance
from tests.full.test_irqbalance import start as start_irqbalance
from tests.full.test_libvirt import told, virtirq

pytestmark = pytest.mark.lab

FULL: Final = os.environ.get("VIRTIRQ_CHURN") == "full"
REBOOTS, RELOADS, PLUGS, KILLS = (20, 50, 10, 100) if FULL else (1, 3, 1, 4)
SEED: Final = int(os.environ.get("VIRTIRQ_SEED") or secrets.randbits(32))
IN_A_ROW: Final = 4
"""Kills between two looks at what `restore` gives back."""

NIC, VF = E1000E[1], IGB_VFS[1][0]
DRIVERS: Final = ("e1000e", "igbvf", "nvme")
FRESH: Final = "4-7"  # what the kernel gives a vector of these devices
CONFIG: Final = "/etc/virtirq/virtirq.toml"
TRACEFS: Final = "/sys/kernel/tracing"
WITNESS: Final = f"{TRACEFS}/instances/witness"
ADVERSARY: Final = "/opt/lab/adversary.py"
MOVE: Final = r"^[\d.]+ \d+ (vfio-\S+) (\d+)$"  # what the adversary prints of one
STOP: Final = "/run/lab/stop"
GROWTH_KB: Final = 4096
JOURNAL_BYTES: Final = 2 << 20
PATIENCE: Final = 180.0
ASKED: Final = 200
"""Seconds, and how many times it is asked, until what is waited for does not come."""

Vectors = dict[tuple[int, str], str]
"""Affinities by IRQ and action."""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_full_lab("the tests of the daemon")
    with full.lab("guest") as host:
        install_warm(host)
        host.put(Path(__file__).with_name(Path(ADVERSARY).name), ADVERSARY)
        print(f"VIRTIRQ_SEED={SEED}")
        yield host


@pytest.fixture(scope="module")
def guest(host: Host) -> Guest:
    """The guest that runs there already, with a disk plugged in; nothing was ever moved."""
    guest = host.live_guest()
    disk = host.plug_nvme(1)
    plug(guest, disk)
    guest.command("sh until [ -b /dev/nvme0n1 ]; do sleep 0.1; done")
    return guest


@pytest.fixture(scope="module")
def actions(host: Host, guest: Guest) -> set[str]:
    """The interrupts that the guest has whenever it is at rest."""
    names = {action for _, action in found(host)}
    assert {name[name.index("(") + 1 : -1] for name in names} == {NIC, VF, full.NVME[1]}
    assert set(found(host).values()) == {FRESH}
    return names


@dataclass(frozen=True)
class Bench:
    """The host, its guest, and what to compare with."""

    host: Host
    guest: Guest
    actions: set[str]

    def until_right(self, log: Callable[[], str]) -> None:
        """Waits until each vector is there, and where the plan says."""

        def right() -> bool:
            wanted, there = planned(self.host), found(self.host)
            return {action for _, action in there} == self.actions and there == wanted

        until(right, lambda: self.state(log()))

    def state(self, log: str) -> str:
        """All that helps to see what went wrong."""
        host, name = self.host, self.guest.name
        domain = host.run(f"virsh domstate {name} --reason", check=False).stdout
        journal = host.run("tail -20 /run/virtirq/journal.jsonl", check=False).stdout
        parts = (found(host), planned(host), lines(host), domain, self.guest.output()[-2000:])
        return "\n".join(map(str, (*parts, journal, log)))

    def original(self) -> bool:
        """Whether each vector is as the kernel has set it up."""
        return set(found(self.host).values()) == {FRESH}

    def fresh(self) -> None:
        """Without a daemon: everything set up anew by the guest."""
        virtirq(self.host, "restore")
        for driver in DRIVERS:
            self.guest.reload(driver, 0)
        until(lambda: {action for _, action in found(self.host)} == self.actions)
        assert self.original()


@pytest.fixture(scope="module")
def bench(host: Host, guest: Guest, actions: set[str]) -> Bench:
    return Bench(host, guest, actions)


def until(holds: Callable[[], object], why: Callable[[], object] = lambda: "") -> None:
    """Asks again and again: what is asked takes a slow machine longer, so it gets longer."""
    began, asked = time.monotonic(), 0
    while not holds():
        asked += 1
        if asked > ASKED and time.monotonic() - began > PATIENCE:
            pytest.fail(f"waited for in vain (VIRTIRQ_SEED={SEED})\n{why()}")
        time.sleep(0.2)


def found(host: Host) -> Vectors:
    vectors = [each for each in host.vectors() if each.actions.startswith("vfio-msi")]
    return {(each.irq, each.actions): each.affinity for each in vectors}


def planned(host: Host) -> Vectors:
    return {
        (each["irq"], f"vfio-{each['kind']}[{each['vector']}]({device['address']})"): each["after"]
        for guest in told(host, "plan")["guests"]
        for device in guest["devices"]
        for each in device["interrupts"]
        if each["vector"] is not None
    }


def lines(host: Host) -> dict[str, str]:
    """The affinities of the INTx lines of the guest's devices."""
    files = " ".join(f"/sys/bus/pci/devices/{each}/irq" for each in (NIC, VF, full.NVME[1]))
    irqs = set(host.run(f"cat {files}").stdout.split()) - {"0"}
    return {irq: host.read(f"/proc/irq/{irq}/smp_affinity_list").decode().strip() for irq in irqs}


def plug(guest: Guest, device: str) -> None:
    file = f"/run/lab/{device}.xml"
    guest.host.write(file, hostdev_xml(device))
    guest.virsh("attach-device", file, "--live")


def unplug(guest: Guest, device: str) -> None:
    """Until the guest has let go of it."""
    guest.virsh("detach-device", f"/run/lab/{device}.xml", "--live")
    until(lambda: f"bus='0x{device[5:7]}'" not in guest.virsh("dumpxml").stdout)


@contextmanager
def daemon(host: Host, command: str = "exec virtirq daemon") -> Iterator[Job]:
    job = start(host, command)
    try:
        heard(job, "at work")
        yield job
    except BaseException:  # pytest's own, too
        print(kernels_word(host))
        raise
    finally:
        stop(job)


def kernels_word(host: Host) -> str:
    """What hangs in the kernel, and what it has said."""
    return host.run("echo w > /proc/sysrq-trigger; dmesg | tail -400", check=False).stdout


def start(host: Host, command: str = "exec virtirq daemon") -> Job:
    return host.spawn(command)


def stop(job: Job, signal: str = "TERM") -> None:
    if job.returncode() is None:
        job.signal(signal)
        job.wait()


def heard(job: Job, text: str, times: int = 1) -> None:
    """Waits until the daemon has said so."""
    until(
        lambda: job.output().count(text) >= times or job.returncode() is not None,
        lambda: f"{text!r} in {job.output()}",
    )
    assert job.output().count(text) >= times, job.output()


@contextmanager
def adversary(host: Host, chance: random.Random, most: int) -> Iterator[Job]:
    job = host.spawn(f"exec python3 -u {ADVERSARY} {chance.randrange(1 << 32)} {most}")
    try:
        yield job
    finally:
        stop(job)


def left_behind(host: Host) -> str:
    """What a daemon that was stopped must not leave."""
    command = f"ls -A {TRACEFS}/instances; cat {TRACEFS}/kprobe_events; ls /run/virtirq/*.sock"
    return host.run(command, check=False).stdout


def findings(host: Host) -> dict[str, dict[str, Any]]:
    done = ask(host, "--json", "check")  # whose status says that there are any
    return {each["code"]: each for each in json.loads(done.stdout)["findings"]}


# Its life.


def test_one_daemon_pins_says_that_it_runs_and_leaves_pins_behind(bench: Bench) -> None:
    host = bench.host
    assert told(host, "status")["daemon"] is None
    with daemon(host) as job:
        bench.until_right(job.output)
        status = told(host, "status")["daemon"]
        assert (status["pid"], status["events"]) == (job.pid, "kernel probes")
        second = host.run("virtirq daemon", check=False)
        assert (second.returncode, second.stdout) == (1, "")
        assert [line[:22] for line in second.stderr.splitlines()[:1]] == ["virtirq: error: /run/v"]
        assert "another virtirq daemon runs" in second.stderr
        assert "Traceback" not in second.stderr
        pinned = found(host)
        refused = host.run("virtirq restore", check=False)
        assert refused.returncode == 1
        assert f"a daemon runs (pid {job.pid})" in refused.stderr
        assert found(host) == pinned
    assert job.returncode() == 0
    assert left_behind(host) == ""
    assert found(host) == pinned
    assert told(host, "status")["daemon"] is None
    with daemon(host) as following:
        assert found(host) == pinned
    assert " IRQ " not in following.output()  # taken over as they are
    virtirq(host, "restore")
    assert bench.original()


def test_it_takes_a_new_configuration_and_puts_back_at_the_end_if_told_to(bench: Bench) -> None:
    host = bench.host
    try:
        with daemon(host) as job:
            bench.until_right(job.output)
            host.write(CONFIG, 'default = "native"\n')
            job.signal("HUP")
            until(bench.original, job.output)
            host.write(CONFIG, 'default = "nativ"\n')
            job.signal("HUP")
            heard(job, "the old one holds")
            assert len(re.findall("virtirq: error: .*", job.output())) == 1
            assert bench.original()
            host.write(CONFIG, "restore_on_stop = true\n")
            job.signal("HUP")
            bench.until_right(job.output)
        assert job.returncode() == 0
        assert left_behind(host) == ""
        assert bench.original()
    finally:
        host.run(f"rm -f {CONFIG}")


def test_without_the_kernels_events_it_looks_now_and_then(bench: Bench) -> None:
    hide = f"mount -t tmpfs none {TRACEFS}; mount -t tmpfs none /sys/kernel/debug"
    command = f"exec unshare -m sh -c '{hide}; exec virtirq daemon'"
    with daemon(bench.host, command) as job:
        assert "events-polled" in findings(bench.host)
        bench.until_right(job.output)
        bench.guest.reload("e1000e")
        bench.until_right(job.output)
        assert job.output().count("no events of the kernel") == 1
    assert job.returncode() == 0


# What happens around it.


def test_whoever_fights_is_named_and_has_its_way_for_a_while_only(bench: Bench) -> None:
    host = bench.host
    with daemon(host) as job:
        bench.until_right(job.output)
        (irq, action), _ = min(found(host).items())
        rival = host.spawn(f"exec python3 -u {ADVERSARY} {SEED} '{action}'")
        try:
            heard(job, f"IRQ {irq} {action}: python3 (pid {rival.pid}) keeps moving it")
        finally:
            stop(rival)
        moves = re.findall(MOVE, rival.output(), re.MULTILINE)
        contested = findings(host)["affinity-contested"]
        assert action[action.index("(") + 1 : -1] in contested["subject"]
        assert f"{action} was moved {len(moves)} times" in contested["message"]
        assert "python3" in contested["message"]
        bench.until_right(job.output)


def test_libvirtd_is_killed_and_comes_again_while_the_guest_changes(bench: Bench) -> None:
    host = bench.host
    tid = host.run("grep -l '^CPU 1/KVM' /proc/$(pidof qemu-system-x86_64)/task/*/comm").stdout
    thread = tid.split("/")[-2]
    with daemon(host) as job:
        bench.until_right(job.output)
        host.run("kill -9 $(pidof libvirtd); while pidof libvirtd; do sleep 0.1; done")
        heard(job, "its guests are kept as they were")
        kept = {action: cpus for (_, action), cpus in found(host).items()}
        try:
            bench.guest.reload("e1000e")
            until(lambda: {a: c for (_, a), c in found(host).items()} == kept, job.output)
            host.run(f"taskset -pc 6 {thread}")
            host.run("rm -f /run/libvirt/libvirtd.pid; libvirtd -d")
            heard(job, "connected to qemu:///system: 1 guest running", times=2)
            bench.until_right(job.output)
            assert set(found(host).values()) == {"4", "6"}
        finally:
            host.run(f"taskset -pc 5 {thread}")
        until(lambda: set(found(host).values()) == {"4", "5"}, job.output)
        bench.until_right(job.output)


def test_a_cgroup_that_confines_the_guest_takes_its_interrupts_along(bench: Bench) -> None:
    host = bench.host
    pid = host.run("pidof qemu-system-x86_64").stdout.strip()
    place = host.run(f"sed -n 's/^0:://p' /proc/{pid}/cgroup").stdout.strip()
    root = "/sys/fs/cgroup"
    host.run(f"echo +cpuset > {root}/cgroup.subtree_control; mkdir {root}/confined")
    try:
        with daemon(host) as job:
            bench.until_right(job.output)
            host.run(f"echo 6 > {root}/confined/cpuset.cpus")
            host.run(f"echo {pid} > {root}/confined/cgroup.procs")
            until(lambda: set(found(host).values()) == {"6"}, job.output)
            host.run(f"echo 7 > {root}/confined/cpuset.cpus")
            until(lambda: set(found(host).values()) == {"7"}, job.output)
            # The kernel knows what the threads were pinned to, and goes back to it.
            host.run(f"echo 4-7 > {root}/confined/cpuset.cpus")
            until(lambda: set(found(host).values()) == {"4", "5"}, job.output)
            bench.until_right(job.output)
    finally:
        host.run(f"echo {pid} > {root}{place}/cgroup.procs; rmdir {root}/confined")


def test_cpus_that_are_isolated_meanwhile_are_left(bench: Bench) -> None:
    """By a cpuset partition, of which nothing tells but the write that makes it."""
    host, part = bench.host, "/sys/fs/cgroup/part"
    host.write(CONFIG, 'default = "local"\n')
    host.run(f"echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control; mkdir {part}")
    try:
        with daemon(host) as job:
            bench.until_right(job.output)
            assert set(found(host).values()) == {"6", "7"}
            host.run(f"echo 7 > {part}/cpuset.cpus; echo isolated > {part}/cpuset.cpus.partition")
            assert host.read(f"{part}/cpuset.cpus.partition").strip() == b"isolated"
            until(lambda: set(found(host).values()) == {"6"}, job.output)
            heard(job, "other CPUs are isolated now: all guests are planned for again")
            bench.until_right(job.output)
            host.run(f"echo member > {part}/cpuset.cpus.partition")
            until(lambda: set(found(host).values()) == {"6", "7"}, job.output)
            bench.until_right(job.output)
    finally:
        host.run(f"rmdir {part}; rm -f {CONFIG}")


def test_the_next_irqbalance_is_told_too_and_bans_go_with_the_pins(bench: Bench) -> None:
    host = bench.host
    irqbalance = start_irqbalance(host)
    try:
        with daemon(host) as job:
            until_banned(bench, job, irqbalance)
            irqbalance.stop("KILL")
            irqbalance = start_irqbalance(host)
            until_banned(bench, job, irqbalance)
            heard(job, f"irqbalance (pid {irqbalance.job.pid}): told to leave")
        assert irqbalance.banned == {irq for irq, _ in found(host)}
        host.write(CONFIG, "restore_on_stop = true\n")
        with daemon(host) as job:
            bench.until_right(job.output)
        assert irqbalance.banned == set()
    finally:
        host.run(f"rm -f {CONFIG}")
        irqbalance.stop()


def until_banned(bench: Bench, job: Job, irqbalance: Irqbalance) -> None:
    until(lambda: irqbalance.banned == {irq for irq, _ in found(bench.host)}, job.output)
    bench.until_right(job.output)


# Churn.


@dataclass(frozen=True)
class Use:
    """What a daemon takes up."""

    files: int
    threads: int
    resident_kb: int
    journal: int
    instances: int

    @classmethod
    def of(cls, job: Job) -> Use:
        status = f"/proc/{job.pid}/status"
        script = (
            f"ls /proc/{job.pid}/fd | wc -l; sed -n 's/^Threads:\\t//p' {status};"
            f" sed -n 's/^VmRSS:\\t *\\([0-9]*\\) kB/\\1/p' {status};"
            f" stat -c %s /run/virtirq/journal.jsonl; ls {TRACEFS}/instances | wc -l"
        )
        return cls(*map(int, job.host.run(script).stdout.split()))


@contextmanager
def witness(job: Job) -> Iterator[Callable[[], Counter[int]]]:
    """The kernel's own count of affinities that the daemon has set, by IRQ."""
    probe = "witness/set irq_set_affinity irq=$arg1:u32"
    hist = f"hist:keys=irq:size=4096 if common_pid == {job.pid}"
    event = f"{WITNESS}/events/witness/set"
    job.host.run(
        f"mkdir {WITNESS}; echo 'p:{probe}' >> {TRACEFS}/kprobe_events;"
        f" echo '{hist}' > {event}/trigger"
    )

    def count() -> Counter[int]:
        text = job.host.run(f"cat {event}/hist").stdout
        counts = re.findall(r"\{ irq: +(\d+) \} hitcount: +(\d+)", text)
        return Counter({int(irq): int(hits) for irq, hits in counts})

    try:
        yield count
    finally:
        job.host.run(
            f"echo '!{hist}' > {event}/trigger; rmdir {WITNESS};"
            f" echo '-:witness/set' >> {TRACEFS}/kprobe_events"
        )


def moves(host: Host) -> Counter[str]:
    """What the daemon has set out to do, by what came of it."""
    pattern = r'virtirq_moves_total\{outcome="(\w+)",trigger="\w+"\} ([\d.]+)'
    total: Counter[str] = Counter()
    for outcome, count in re.findall(pattern, virtirq(host, "metrics")):
        total[outcome] += int(float(count))
    return total


def explained(job: Job, but: str = "nothing") -> Counter[int]:
    """The log's lines about a move, each with its reason, by IRQ."""
    name = r"vfio-\w+(?:\[\d+\])?\([0-9a-f:.]+\)"
    pattern = rf"^virtirq: info: IRQ (\d+) {name}: (?!{but})\w.*$"
    return Counter(int(irq) for irq in re.findall(pattern, job.output(), re.MULTILINE))


def test_whatever_the_guest_does_its_interrupts_end_where_they_should(bench: Bench) -> None:
    host, guest = bench.host, bench.guest
    chance = random.Random(SEED)
    # A driver is loaded anew three times a minute at most: irqbalance moves what is new.
    drivers = itertools.cycle(DRIVERS)
    steps: list[Callable[[], None]] = [
        *[guest.reboot] * REBOOTS,
        *[lambda: guest.reload(next(drivers), 0)] * RELOADS,
        *[replugging(guest, full.NVME[1])] * PLUGS,
    ]
    chance.shuffle(steps)
    irqbalance = start_irqbalance(host)
    try:
        with daemon(host) as job, witness(job) as seen_by_kernel:
            unseen = explained(job)  # before there was a witness
            with adversary(host, chance, most=1) as rival:
                bench.until_right(job.output)
                for driver in DRIVERS:
                    guest.reload(driver, 0)
                bench.until_right(job.output)
                before = Use.of(job)
                for number, step in enumerate(steps):
                    step()
                    bench.until_right(job.output)
                    print(f"{number + 1}/{len(steps)}: {Use.of(job)}", flush=True)
            bench.until_right(job.output)
            assert irqbalance.job.returncode() is None
            until(lambda: irqbalance.banned == {irq for irq, _ in found(host)}, job.output)
            done, seen = moves(host), seen_by_kernel()
            told_of, written = explained(job), explained(job, but="there already") - unseen
            print(
                before,
                Use.of(job),
                len(re.findall(MOVE, rival.output(), re.MULTILINE)),
                done,
                sep="\n",
            )
            assert told_of.total() == done["applied"] + done["pending"]
            # It may have been moved, and have vanished before that was read back.
            assert (seen - written).total() <= done["vanished"] + done["failed"]
            assert written - seen == Counter()
            # Somebody may move it between our write and the look at what came of it.
            failed = re.findall(
                "^virtirq: warning: IRQ .*: (?:failed|refused): .*", job.output(), re.M
            )
            assert not [line for line in failed if "read back after writing" not in line]
            until(lambda: Use.of(job).files <= before.files, lambda: fds(job))
            # A thread that has made a call waits a while for another.
            until(lambda: Use.of(job).threads <= before.threads, lambda: str(Use.of(job)))
            after = Use.of(job)
            assert after.instances == before.instances
            assert after.journal < JOURNAL_BYTES
            assert after.resident_kb < before.resident_kb + GROWTH_KB, (before, after)
    finally:
        irqbalance.stop()
    assert left_behind(host) == ""


def fds(job: Job) -> str:
    return job.host.run(f"ls -l /proc/{job.pid}/fd").stdout


def replugging(guest: Guest, device: str) -> Callable[[], None]:
    def replug() -> None:
        unplug(guest, device)
        until(lambda: not guest.host.vectors(device))
        plug(guest, device)

    return replug


@contextmanager
def reloads(bench: Bench, chance: random.Random) -> Iterator[None]:
    """The guest loads its drivers again and again, and has all of them in the end."""
    tool = f"python3 -S /opt/lab/l1-serial.py {bench.guest.spec.serial} 60"
    order = chance.sample([*DRIVERS, *DRIVERS], 2 * len(DRIVERS))
    each = "; ".join(f"[ -e {STOP} ] || {tool} 'reload {driver} 0'" for driver in order)
    bench.host.run(f"rm -f {STOP}")
    job = bench.host.spawn(f"until [ -e {STOP} ]; do {each}; done")
    try:
        yield
    finally:
        bench.host.run(f"touch {STOP}")
        job.wait()


def test_a_daemon_that_is_killed_again_and_again_leaves_no_trace(bench: Bench) -> None:
    """Every other set of kills is with an adversary: what it wrote may then be the original."""
    host, chance = bench.host, random.Random(SEED)
    bench.fresh()
    at_first = lines(host)
    for turn in range(0, KILLS, IN_A_ROW):
        disturbed = turn // IN_A_ROW % 2 == 1
        wrote = Counter[tuple[str, str]]()
        job = start(host)
        for _ in range(IN_A_ROW):
            with reloads(bench, chance):
                if disturbed:
                    with adversary(host, chance, most=3) as rival:
                        job = killed(job, chance)
                    wrote.update(re.findall(MOVE, rival.output(), re.MULTILINE))
                else:
                    job = killed(job, chance)
            bench.until_right(job.output)
        stop(job, chance.choice(["KILL", "TERM"]))
        said = virtirq(host, "restore")
        for (irq, action), cpus in found(host).items():
            assert cpus == FRESH or wrote[action, cpus], f"{irq} {action} {cpus} seed {SEED}"
        for line, cpus in lines(host).items():
            # One that is not in use may keep a move that is pending; it is said.
            pending = f"pending: IRQ {line} vfio-intx"
            assert cpus == at_first[line] or pending in said, f"{line} {cpus} seed {SEED}"
        print(f"{turn + IN_A_ROW}/{KILLS}", flush=True)
        if disturbed:
            bench.fresh()
    with daemon(host):
        pass
    assert left_behind(host) == ""


def killed(job: Job, chance: random.Random) -> Job:
    """Killed at some moment, maybe before it is at work; the next one is started."""
    time.sleep(chance.uniform(0, 5))
    stop(job, "KILL")
    time.sleep(chance.choice([0, chance.uniform(0, 1)]))
    return start(job.host)


def test_a_guest_that_ends_while_libvirtd_is_away_is_let_go(bench: Bench) -> None:
    """The last one: the guest is gone after it."""
    host = bench.host
    virtirq(host, "restore")
    at_first = lines(host)
    with daemon(host) as job:
        bench.until_right(job.output)
        host.run("kill -9 $(pidof libvirtd); while pidof libvirtd; do sleep 0.1; done")
        host.run("kill -9 $(pidof qemu-system-x86_64); while pidof qemu-system-x86_64; do :; done")
        heard(job, "its guests are kept as they were")
        host.run("rm -f /run/libvirt/libvirtd.pid; libvirtd -d")
        heard(job, "connected to qemu:///system: 0 guests running")
        until(lambda: (found(host), told(host, "status")["guests"]) == ({}, []), job.output)
        assert told(host, "status")["daemon"]["pid"] == job.pid
    pending = "is still pending there"
    assert lines(host) == at_first or pending in virtirq(host, "restore")
