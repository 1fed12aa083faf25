"""Guests without libvirt on a real host: QEMU by hand, one in namespaces of its own, a data plane.

A libvirt guest runs beside them: each is served, and none twice.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from lab import full
from lab.full import E1000E, IGB_VFS, Host, Job
from tests.full.hosts import install_warm, need_full_lab
from tests.full.test_daemon import CONFIG, daemon, heard, until
from tests.full.test_libvirt import told, virtirq

pytestmark = pytest.mark.lab

NIC: Final = E1000E[0]
VF: Final = IGB_VFS[0][0]
PLANE: Final = IGB_VFS[0][1]
HOLD: Final = "/opt/lab/vfio.py"
BOOTS: Final = 3
FRESH: Final = "0-3"  # what the kernel gives a vector of these devices
QEMU: Final = (
    "qemu-system-x86_64 -name guest={name},debug-threads=on -machine q35 -accel kvm"
    " -cpu host,kvm-pv-eoi=off"  # lab/full/guest.py says why
    " -m 192 -smp 2 -nodefaults -display none -serial file:/run/lab/{name}.log"
    " -kernel /opt/lab/l2-kernel -initrd /opt/lab/l2-initramfs"
    " -append 'console=ttyS0 quiet panic=-1 audit=0 mitigations=off nokaslr net.ifnames=0'"
    " -qmp unix:/run/lab/{name}.qmp,server=on,wait=off"
    " -device pcie-root-port,id=rp0,chassis=1 -device vfio-pci,host={device},bus=rp0"
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_full_lab("the tests of guests without libvirt")
    with full.lab("guest") as host:
        install_warm(host)
        host.put(Path(full.__file__).parents[1] / "vfio.py", HOLD)
        for device in (NIC, VF, PLANE):
            sysfs = f"/sys/bus/pci/devices/{device}"
            host.run(
                f"echo vfio-pci > {sysfs}/driver_override;"
                f" [ ! -e {sysfs}/driver ] || echo {device} > {sysfs}/driver/unbind;"
                f" echo {device} > /sys/bus/pci/drivers_probe"
            )
        yield host


@pytest.fixture(scope="module")
def early(host: Host) -> Iterator[Job]:
    """A guest that ran before any daemon of these tests, and goes on."""
    with qemu(host, "early", NIC, "0,3") as job:
        yield job


@contextmanager
def qemu(host: Host, name: str, device: str, cpus: str, around: str = "exec") -> Iterator[Job]:
    """A guest by hand, its vCPUs on these CPUs, one each; started anew where it hangs, as others.

    Ready: its driver has set its vectors up.
    """
    command = f"rm -f /run/lab/{name}.log; {around} {QEMU.format(name=name, device=device)}"
    for left in reversed(range(BOOTS)):
        job = host.spawn(command)
        try:
            pin_vcpus(host, name, cpus)
            if said := not_ready(host, name):
                assert left, f"{name} did not boot, {BOOTS} times:\n{said}"
                continue
            yield job
            return
        finally:
            end(host, job, f"guest={name},")


def pin_vcpus(host: Host, name: str, cpus: str) -> None:
    for vcpu, cpu in enumerate(cpus.split(",")):
        find = f"grep -lx 'CPU {vcpu}/KVM' /proc/$pid/task/*/comm"
        host.run(
            f"for try in $(seq 300); do for pid in $(pidof qemu-system-x86_64); do"
            f" tr '\\0' ' ' < /proc/$pid/cmdline | grep -q 'guest={name},' || continue;"
            f" thread=$({find} 2> /dev/null) || continue;"
            f" thread=${{thread%/comm}}; taskset -p -c {cpu} ${{thread##*/}}; exit; done;"
            " sleep 0.1; done; exit 1",
        )


def not_ready(host: Host, name: str) -> str:
    """What a guest had said when it fell silent; nothing if it is ready."""
    patience, said = host.patience(120), ""
    while not patience.ended():
        before, said = said, host.run(f"cat /run/lab/{name}.log", check=False).stdout
        if "L2: ready" in said:
            return ""
        if said != before:
            patience.sign()
        time.sleep(0.5)
    return said or "nothing"


def pid_of(host: Host, name: str) -> str:
    return host.run(
        "for pid in $(pidof qemu-system-x86_64); do"
        f" if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q 'guest={name},'; then echo $pid; fi; done"
    ).stdout.strip()


def end(host: Host, job: Job, words: str) -> None:
    """The process of the job that has these words in its command line, and with it the job."""
    host.run(
        "for pid in $(pidof qemu-system-x86_64); do"
        f" if tr '\\0' ' ' < /proc/$pid/cmdline | grep -q '{words}'; then kill -9 $pid; fi; done"
    )
    job.wait()


def places(host: Host, device: str) -> dict[str, str]:
    """The affinity of each interrupt of a device, by action."""
    return {each.actions: each.affinity for each in host.vectors(device)}


def on(host: Host, device: str, *cpus: str) -> bool:
    """Whether the guest's driver has its MSI-X vectors, and they are on these CPUs."""
    there = places(host, device)
    return len(there) == 3 and set(there.values()) == set(cpus)


def read_by(host: Host) -> dict[str, str]:
    """By what it is known where each guest aims its vectors."""
    return {name: each["vectors_read_by"] for name, each in guests(host).items()}


def guests(host: Host) -> dict[str, Any]:
    return {each["name"]: each for each in told(host, "status")["guests"]}


def test_a_guest_by_hand_is_served_beside_libvirts(host: Host) -> None:
    with daemon(host) as job:
        with qemu(host, "byhand", NIC, "1,2") as process:
            until(lambda: on(host, NIC, "1", "2"), job.output)
            found = guests(host)
            assert set(found) == {"live", "byhand"}
            assert (found["live"]["source"], found["byhand"]["source"]) == (
                "libvirt",
                "vfio-process",
            )
            assert [each["address"] for each in found["byhand"]["devices"]] == [NIC]
            assert process.returncode() is None
            until(lambda: read_by(host).get("byhand") == "its QEMU monitor", job.output)
            rows = guests(host)["byhand"]["devices"][0]["interrupts"]
            assert {each["vcpu_from"] for each in rows} == {"guest"}
            # Who moves one of its threads takes its interrupts along.
            host.run(
                "for each in $(grep -lx 'CPU 1/KVM' /proc/[0-9]*/task/*/comm); do"
                " case $(tr '\\0' ' ' < ${each%/task/*}/cmdline) in *guest=byhand,*)"
                " each=${each%/comm}; taskset -p -c 3 ${each##*/};; esac; done"
            )
            until(lambda: on(host, NIC, "1", "3"), job.output)
            assert set(places(host, full.LIVE_GUEST.hostdevs[0]).values()) <= {"4", "5"}
        until(lambda: set(guests(host)) == {"live"}, job.output)


@pytest.mark.usefixtures("early")
def test_the_next_daemon_and_the_command_find_what_runs(host: Host) -> None:
    assert set(guests(host)) == {"live", "early"}
    virtirq(host, "apply", "early")
    assert on(host, NIC, "0", "3")
    with daemon(host) as job:
        assert on(host, NIC, "0", "3")
        assert "early" not in job.output().partition("at work")[0], "nothing was moved"
    virtirq(host, "restore")
    assert on(host, NIC, FRESH)
    with daemon(host):
        until(lambda: on(host, NIC, "0", "3"))
    virtirq(host, "restore")


def test_one_in_namespaces_of_its_own(host: Host) -> None:
    """As a pod has it: other pids, other mounts. The daemon is outside."""
    around = "exec unshare --pid --mount --fork --mount-proc"
    with daemon(host) as job, qemu(host, "pod", VF, "2,3", around):
        until(lambda: on(host, VF, "2", "3"), job.output)
        assert guests(host)["pod"]["source"] == "vfio-process"
        # Who moves a thread in there calls it by another number than the kernel does out here.
        host.run(
            f"nsenter -p -m -t {pid_of(host, 'pod')} sh -c '"
            'each=$(grep -lx "CPU 1/KVM" /proc/[0-9]*/task/*/comm); each=${each%/comm};'
            " exec taskset -p -c 1 ${each##*/}'"
        )
        until(lambda: on(host, VF, "1", "2"), job.output)


@pytest.mark.usefixtures("early")
def test_who_may_not_move_a_thread_is_not_listened_to(host: Host) -> None:
    """Anybody can ask the kernel to, as often as they like."""
    with daemon(host) as job:
        until(lambda: on(host, NIC, "0", "3"), job.output)
        threads = f"/proc/{pid_of(host, 'early')}/task/*/comm"
        tid = host.run(f"grep -lx 'CPU 1/KVM' {threads}").stdout.split("/")[-2]
        before = heard_of(host)
        refused = f"setpriv --reuid 65534 --clear-groups taskset -p -c 1 {tid} && exit 1"
        host.run(f"for try in $(seq 20); do {refused}; done; true")
        host.run(f"taskset -p -c 2 {tid}")
        until(lambda: heard_of(host) > before, job.output)
        assert heard_of(host) == before + 1
        until(lambda: on(host, NIC, "0", "2"), job.output)


def heard_of(host: Host) -> int:
    """Threads that the daemon was told of, so far."""
    (found,) = (
        line.split()[-1]
        for line in virtirq(host, "metrics").splitlines()
        if line.startswith('virtirq_kernel_events_total{kind="repinned"}')
    )
    return int(float(found))


def test_a_data_plane_is_left_alone_until_a_rule_says_otherwise(host: Host) -> None:
    host.run("mkfifo /run/lab/plane")  # it lives as long as its standard input
    hold = host.spawn(
        f"exec taskset -c 2 python3 {HOLD} {PLANE} --mode msix --vectors 3 <> /run/lab/plane"
    )
    try:
        until(lambda: len(places(host, PLANE)) == 3, hold.output)
        (plane,) = (each for each in guests(host).values() if each["kind"] == "process")
        (device,) = plane["devices"]
        assert (device["address"], device["directive"]) == (PLANE, "native")
        assert device["directive_from"] == "default for a process without vCPUs"
        with daemon(host) as job:
            assert set(places(host, PLANE).values()) == {FRESH}
            host.write(CONFIG, '[[rule]]\nkind = "process"\ndirective = "auto"\n')
            job.signal("HUP")
            until(lambda: set(places(host, PLANE).values()) == {"2"}, job.output)
            assert re.search(r"to CPU 2 of thread \d", job.output())
            host.run(f"rm {CONFIG}")
            job.signal("HUP")
            until(lambda: set(places(host, PLANE).values()) == {FRESH}, job.output)
            hold.signal("KILL")
            until(lambda: "process" not in kinds(host), job.output)
    finally:
        hold.signal("KILL")
        host.run(f"rm -f {CONFIG}")


def kinds(host: Host) -> set[str]:
    return {each["kind"] for each in guests(host).values()}


@pytest.mark.usefixtures("early")
def test_without_libvirt_at_all(host: Host) -> None:
    """As Proxmox has it: no module, no daemon of libvirt's. The last one: nothing comes back."""
    virtirq(host, "restore")
    pin_vcpus(host, "early", "1,2")
    assert on(host, NIC, FRESH)
    module = host.run("python3 -c 'import libvirt; print(libvirt.__file__)'").stdout.strip()
    host.run(f"mv {module} {module}.away")
    try:
        with daemon(host) as job:
            heard(job, "libvirt is not asked")
            until(lambda: on(host, NIC, "1", "2"), job.output)
            assert {each["name"] for each in told_cold(host)} >= {"early", "live"}
    finally:
        host.run(f"mv {module}.away {module}")


def told_cold(host: Host) -> list[dict[str, Any]]:
    """The guests, by a command that starts afresh."""
    found: list[dict[str, Any]] = json.loads(host.run("virtirq --json status").stdout)["guests"]
    return found
