"""Guest-exact vectors on a real host: a nested guest's own counts against the host's.

A guest with 4 vCPUs on 4 CPUs and irqbalance in it, once as it is and once behind an emulated VT-d
with interrupt remapping. An interrupt is right when the guest handled it on vCPU *k* and the host
took it on the CPU of vCPU *k*.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import pytest

from lab import full
from lab.full import E1000E, IGB, Guest, GuestSpec, Host
from tests.full.hosts import install_warm, need_full_lab, run_code
from tests.full.test_daemon import CONFIG, TRACEFS, daemon, findings, until
from tests.full.test_libvirt import told, virtirq
from virtirq.control.comparing import INJECTED, STATISTICS

pytestmark = pytest.mark.lab

CPUS: Final = ("4", "5", "6", "7")  # of vCPUs 0 to 3
SPARE: Final = "3"  # of vCPU 4, which is plugged in for a while
VECTORS: Final = 9  # of the disk
RUN: Final = 9.0
LEAST: Final = 450
RIGHT: Final = 0.99
KICKS: Final = "/sys/kernel/tracing/instances/kicks"
READINGS: Final = 60
BY_PROBES: Final = "/opt/lab/by-probes.py"
PROBES_ALONE: Final = """
import sys
from virtirq.errors import UnavailableError
from virtirq.guests.vectors.by_peek import PeekReader
from virtirq.ui.cli import main
def refuse(*_):
    raise UnavailableError("this guest is not peeked at here")
PeekReader.read = refuse
sys.exit(main())
"""

Place = tuple[str, int]
"""A vector: its device and its number."""
Counts = dict[Place, Counter[int]]
"""Interrupts by vector and vCPU."""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_full_lab("the tests of guest-exact vectors")
    with full.lab() as host:
        install_warm(host)
        yield host


@pytest.fixture(scope="module")
def disk(host: Host) -> str:
    return host.plug_nvme(1, VECTORS)


@pytest.fixture(scope="module", params=["plain", "vtd"])
def guest(host: Host, disk: str, request: pytest.FixtureRequest) -> Iterator[Guest]:
    spec = GuestSpec(
        request.param,
        pins=(*CPUS, SPARE),
        spare_vcpus=1,
        hostdevs=(E1000E[1], IGB[1], disk),
        memory_mib=256,
        vtd=request.param == "vtd",
        irqbalance=True,
    )
    with host.guest(spec) as guest:
        yield guest


def devices(guest: Guest) -> dict[str, str]:
    """The host's address of each device by the guest's own: its bus is that of a root port each."""
    return {f"0000:{n:02x}:00.0": host for n, host in enumerate(guest.spec.hostdevs, start=1)}


def irqs(guest: Guest) -> dict[Place, int]:
    """The guest's own IRQ numbers."""
    pattern = r"^ *(\d+):.*PCI-MSIX-([0-9a-f:.]+) +(\d+)-edge"
    found = re.findall(pattern, guest.interrupts(), re.MULTILINE)
    there = devices(guest)
    return {(there[device], int(vector)): int(irq) for irq, device, vector in found}


def guests_counts(guest: Guest) -> Counts:
    """What the guest has handled."""
    pattern = r"^ *\d+:((?: +\d+)+) .*PCI-MSIX-([0-9a-f:.]+) +(\d+)-edge"
    there = devices(guest)
    return {
        (there[device], int(vector)): Counter(dict(enumerate(map(int, counts.split()))))
        for counts, device, vector in re.findall(pattern, guest.interrupts(), re.MULTILINE)
    }


def hosts_counts(guest: Guest) -> Counts:
    """What the host has taken on the CPU of each vCPU; on others, as of vCPU -1 and so on."""
    found: Counts = {}
    for each in guest.host.vectors():
        name = re.fullmatch(r"vfio-msix\[(\d+)\]\((.*)\)", each.actions)
        if name is not None:
            counts = {cpu - int(CPUS[0]): count for cpu, count in enumerate(each.counts)}
            found[name[2], int(name[1])] = Counter(counts)
    return found


def chosen(guest: Guest) -> dict[Place, int]:
    """The vCPU that the guest's kernel has each vector on."""
    numbers = irqs(guest)
    files = " ".join(f"/proc/irq/{irq}/effective_affinity_list" for irq in numbers.values())
    answer = guest.command(f"sh cat {files}").split()
    return dict(zip(numbers, map(int, answer), strict=True))


def placed(guest: Guest) -> dict[Place, str]:
    """The host's affinity of each vector."""
    found = {}
    for each in guest.host.vectors():
        name = re.fullmatch(r"vfio-msix\[(\d+)\]\((.*)\)", each.actions)
        if name is not None:
            found[name[2], int(name[1])] = each.affinity
    return found


def agree(guest: Guest) -> bool:
    there = placed(guest)
    # The disk's queue of the vCPU that is not plugged in has a vector that is not set up.
    idle = (guest.spec.hostdevs[-1], len(CPUS) + 1)
    wanted = {
        place: CPUS[vcpu]
        for place, vcpu in chosen(guest).items()
        if place != idle or place in there
    }
    return bool(wanted) and {place: there.get(place) for place in wanted} == wanted


def moved(guest: Guest, place: Place, vcpu: int) -> None:
    """Have the guest aim a vector at another vCPU, as its administrator would."""
    guest.command(f"sh echo {vcpu} > /proc/irq/{irqs(guest)[place]}/smp_affinity_list")


def share(guest: Guest, seconds: float, least: int) -> tuple[float, int]:
    """Which part of the interrupts of a run is right, and how many there were.

    It takes so long, and so many interrupts, which may take a slow machine longer. The guest's
    irqbalance is at work, and by hand each of the NIC's vectors is moved once.
    """

    def so_far() -> int:
        return sum(counts.total() for counts in guests_counts(guest).values())

    before = guests_counts(guest), hosts_counts(guest)
    nic = [(E1000E[1], vector) for vector in range(3)]
    with guest.busy():
        for place in nic:
            moved(guest, place, (chosen(guest)[place] + 1) % len(CPUS))
            goal = so_far() + least // len(nic)
            time.sleep(seconds / len(nic))
            until(partial(_have_come, so_far, goal))
    time.sleep(1)  # what is on its way arrives
    after = guests_counts(guest), hosts_counts(guest)
    right = total = 0
    for place, counts in after[0].items():
        handled = counts - before[0].get(place, Counter())
        taken = after[1].get(place, Counter()) - before[1].get(place, Counter())
        right += (handled & taken).total()
        total += handled.total()
    return right / total, total


def _have_come(so_far: Callable[[], int], goal: int) -> bool:
    return so_far() >= goal


@contextmanager
def irqbalance(guest: Guest) -> Iterator[None]:
    """Debian's, inside the guest, as it comes."""
    guest.command("sh irqbalance --foreground > /dev/null 2>&1 & echo $! > /tmp/pid")
    try:
        yield
    finally:
        guest.command("sh kill $(cat /tmp/pid)", check=False)


def _is_on(guest: Guest, place: Place, vcpu: int) -> bool:
    """Whether the vector is on this vCPU, for the guest and for the host."""
    return chosen(guest)[place] == vcpu and placed(guest)[place] == CPUS[vcpu]


def log_of(guest: Guest) -> str:
    return guest.host.run(f"cat /var/log/libvirt/qemu/{guest.name}.log").stdout


def taints(guest: Guest) -> list[str]:
    return re.findall(r"is tainted: (.*)", log_of(guest))


def test_each_interrupt_is_taken_where_the_guest_handles_it(guest: Guest) -> None:
    host, tainted = guest.host, taints(guest)
    remapped = "IR-PCI-MSIX" in guest.interrupts()
    assert remapped is guest.spec.vtd
    with irqbalance(guest):
        host.write(CONFIG, "[guest_vectors]\nfollow = false\n")
        with daemon(host):
            off, _ = share(guest, RUN / 3, LEAST // 3)
        host.run(f"rm {CONFIG}")
        with daemon(host) as job:
            until(lambda: agree(guest), job.output)
            on, total = share(guest, RUN, LEAST)
            assert "where the guest aims it" in job.output()
    print(f"{guest.name}: {on:.2%} of {total} right, {off:.2%} without following", flush=True)
    assert total >= LEAST
    assert on >= RIGHT
    assert on > off
    assert taints(guest) == tainted


@pytest.mark.parametrize("guest", ["vtd"], indirect=True)
def test_kernel_probes_follow_as_well(guest: Guest) -> None:
    """Where AppArmor confines guests there is no peek. Nor is what was aimed before missed."""
    host = guest.host
    host.write(BY_PROBES, PROBES_ALONE)
    with daemon(host, f"exec python3 {BY_PROBES} daemon") as job:
        until(lambda: agree(guest), job.output)
        on, total = share(guest, RUN / 3, LEAST // 3)
        followed = findings(host)["vectors-followed"]["message"]
        print(f"{guest.name}: {on:.2%} of {total} right, {followed}", flush=True)
        assert followed.startswith("where it aims its vectors is read by KVM's routes, by kernel")
        assert "where the guest aims it" in job.output()
    assert on >= RIGHT
    assert host.run(f"ls {TRACEFS}/instances; cat {TRACEFS}/kprobe_events").stdout.strip() == ""


@pytest.mark.parametrize("guest", ["plain"], indirect=True)
def test_it_follows_a_hand_and_says_so(guest: Guest) -> None:
    host = guest.host
    place = (E1000E[1], 0)
    with daemon(host) as job, guest.busy():
        until(lambda: agree(guest), job.output)
        for vcpu in (3, 1):
            moved(guest, place, vcpu)
            until(partial(_is_on, guest, place, vcpu), job.output)
        rows = {
            (device["address"], each["vector"]): each
            for each_guest in told(host, "status")["guests"]
            for device in each_guest["devices"]
            for each in device["interrupts"]
        }
        assert (rows[place]["vcpu"], rows[place]["vcpu_from"]) == (1, "guest")
        assert "CPU 5 of vCPU 1, where the guest aims it" in rows[place]["reason"]
        found = findings(host)["vectors-followed"]
        assert (found["subject"], found["severity"]) == (guest.name, "note")
        assert "libvirt's memory peek" in virtirq(host, "explain", guest.name)


COMPARED: Final = ("exact", "auto", "as-is", "1")


@pytest.mark.parametrize("guest", ["plain"], indirect=True)
def test_policies_are_compared_while_the_daemon_leaves_it_alone(guest: Guest) -> None:
    host = guest.host
    words = ("compare", guest.name, *COMPARED, "--for", "3", "--settle", "0.5", "--rounds", "2")
    with daemon(host) as job, guest.busy():
        until(lambda: agree(guest), job.output)
        began, before = time.monotonic(), hosts_counts(guest)
        found = told(host, *words)
        after, took = hosts_counts(guest), time.monotonic() - began
        until(lambda: "looked after again" in job.output(), job.output)
        until(lambda: agree(guest), job.output)
        assert "moved by someone" not in job.output()
    came = sum((after[place] - before[place]).total() for place in before)
    blocks: dict[str, list[Any]] = {policy: [] for policy in COMPARED}
    for each in found["blocks"]:
        blocks[each["policy"]].append(each)
    assert {len(each) for each in blocks.values()} == {2}
    looked = sum(each["seconds"] for each in found["blocks"]) / took  # a slow host is busy between
    assert came * looked / 3 < sum(each["interrupts"] for each in found["blocks"]) <= came
    # What the daemon had was the guest's choice.
    for policy in ("exact", "as-is"):
        shares = [each["shares"]["on the very vCPU's CPU"] for each in blocks[policy]]
        right, total = (sum(each[name] for each in shares) for name in ("some", "of"))
        print(f"{policy}: {right} of {total} on the very vCPU's CPU", flush=True)
        assert total > 0
        assert right >= RIGHT * total
    for each in blocks["auto"]:
        assert each["shares"]["on the guest's CPUs"]["some"] == each["interrupts"]
    for each in blocks["1"]:
        assert each["shares"]["on the guest's CPUs"]["some"] == 0
    for each in found["blocks"]:
        assert {*STATISTICS.values(), INJECTED} <= each["figures"].keys()
        assert each["figures"][INJECTED] > 0
        assert each["vcpus"].keys() == {str(vcpu) for vcpu in range(len(CPUS))}
    assert "virtirq-compare" not in host.run(f"ls {TRACEFS}/instances").stdout


@pytest.mark.parametrize("number", ["INT", "KILL"])
@pytest.mark.parametrize("guest", ["plain"], indirect=True)
def test_a_comparison_that_is_ended_leaves_all_as_it_was(guest: Guest, number: str) -> None:
    host = guest.host
    virtirq(host, "restore")
    before = placed(guest)
    job = host.spawn(f"exec virtirq compare {guest.name} as-is {CPUS[0]} {SPARE} --for 1")
    until(lambda: placed(guest) != before, job.output)
    job.signal(number)
    job.wait()
    until(lambda: placed(guest) == before, job.output)
    assert virtirq(host, "restore").startswith("0 of 0 interrupts to move")


@pytest.mark.parametrize("guest", ["plain"], indirect=True)
def test_drivers_and_the_guest_itself_come_and_go(guest: Guest) -> None:
    host = guest.host
    with daemon(host) as job:
        until(lambda: agree(guest), job.output)
        guest.reload("e1000e", 0)
        until(lambda: agree(guest), job.output)
        guest.reboot()
        until(lambda: agree(guest), job.output)
        start = job.output().count("where the guest aims it")
        assert start
    with daemon(host) as job:  # the next one begins with what the guest has chosen
        until(lambda: agree(guest), job.output)
        assert not re.findall(r"to CPU \d of vCPU \d,(?! where the guest aims it)", job.output())


@pytest.mark.parametrize("guest", ["plain"], indirect=True)
def test_vcpus_come_and_go(guest: Guest) -> None:
    """libvirt tells of neither: the guest's aim does, and the end of the thread."""
    host, place = guest.host, (E1000E[1], 0)
    with daemon(host) as job:
        until(lambda: agree(guest), job.output)
        guest.virsh("setvcpus", "5", "--live")
        guest.command("sh until echo 1 > /sys/devices/system/cpu/cpu4/online; do sleep 0.2; done")
        moved(guest, place, 4)
        until(lambda: placed(guest)[place] == SPARE, job.output)
        moved(guest, place, 0)
        until(lambda: placed(guest)[place] == CPUS[0], job.output)
    # Unfollowed, its devices' own node serves them: by the new vCPU, for another has left it.
    host.write(CONFIG, "[guest_vectors]\nfollow = false\n")
    for vcpu, cpu in (("3", SPARE), ("4", CPUS[3])):
        guest.virsh("vcpupin", vcpu, cpu, "--live")
    with daemon(host) as job:
        until(lambda: CPUS[3] in placed(guest).values(), job.output)
        guest.virsh("setvcpus", "4", "--live")
        until(lambda: CPUS[3] not in placed(guest).values(), job.output)
    guest.virsh("vcpupin", "3", CPUS[3], "--live")
    host.run(f"rm {CONFIG}")


READ: Final = f"""
import os, sys
from virtirq.guests.vectors.by_peek import PeekReader
from virtirq.guests.libvirt.connection import connected
from virtirq.host.fs import LiveFs
from virtirq.host.interrupts import read_interrupts
from virtirq.host.fs import Reader
from virtirq.cpuset import CpuSet
with connected("qemu:///system") as connection:
    (guest,) = connection.guests(LiveFs()).guests
wanted = {{}}
for device in guest.devices:
    found = read_interrupts(Reader(LiveFs()), [device.address], CpuSet())
    wanted[device.address] = {{each.vector: each.irq for each in found if each.vector is not None}}
reader = PeekReader("qemu:///system")
for _ in range({READINGS}):
    learned = reader.read(guest, wanted)
assert sum(len(each.aimed) for each in learned.values()) >= 8, learned
reader.close()
"""


@pytest.mark.parametrize("guest", ["plain"], indirect=True)
def test_reading_disturbs_no_vcpu(guest: Guest) -> None:
    """QEMU interrupts a vCPU by a signal to its thread; a forced read (xp) shows that it counts."""
    host = guest.host
    # The guest is at rest: its vCPUs wait, and nothing but a kick signals them.
    host.run(
        f"mkdir {KICKS}; cd {KICKS}/events/signal/signal_generate;"
        " echo 'hist:keys=comm if sig == 10 && comm ~ \"CPU*\"' > trigger"
    )
    try:

        def kicks() -> int:
            text = host.run(f"cat {KICKS}/events/signal/signal_generate/hist").stdout
            return sum(map(int, re.findall(r"hitcount: +(\d+)", text)))

        before = kicks()
        run_code(host, READ)
        assert kicks() == before
        for _ in range(READINGS // 10):
            guest.virsh("qemu-monitor-command", "--hmp", "xp /1xw 0xb0000000")
        assert kicks() >= before + READINGS // 10, "otherwise the count shows nothing"
    finally:
        host.run(
            f"echo '!hist:keys=comm' > {KICKS}/events/signal/signal_generate/trigger;"
            f" rmdir {KICKS}",
            check=False,
        )
