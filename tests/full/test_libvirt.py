"""Real libvirt, real nested guests, real VFIO interrupts: the cpuset setting of each hostdev.

virtirq is installed in the lab's host from its wheel, with its dependencies' wheels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from lab import full
from lab.full import E1000E, IGB_VFS, Guest, GuestSpec, Host
from lab.full.host import Vector
from tests.full.hosts import ask, install_warm, need_full_lab

pytestmark = pytest.mark.lab

VF, NIC = IGB_VFS[1][0], E1000E[1]
OTHER = E1000E[0]
DISK_CPUS = "6"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_full_lab("the tests with libvirt")
    with full.lab() as host:
        install_warm(host)
        yield host


@pytest.fixture(scope="module")
def disk(host: Host) -> str:
    return host.plug_nvme(1)


@pytest.fixture(scope="module")
def guest(host: Host, disk: str) -> Iterator[Guest]:
    """Two vCPUs on CPUs 4 and 5, a VF on auto, an NVMe on CPU 6, and a NIC on native.

    The settings are made before the guest is started, as its first start would find them.
    """
    guest = Guest(host, GuestSpec("router", pins=("4", "5"), hostdevs=(VF, disk, NIC)))
    guest.define()
    try:
        virtirq(host, "set", "router", VF, "auto")
        virtirq(host, "set", "router", disk, DISK_CPUS)
        virtirq(host, "set", "router", NIC, "native")
        guest.boot()
        yield guest
    finally:
        guest.remove()


def virtirq(host: Host, *words: str, status: int = 0) -> str:
    done = ask(host, *words)
    assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def told(host: Host, *words: str) -> Any:
    return json.loads(virtirq(host, *words, "--json"))


def planned(host: Host, device: str) -> dict[int, str]:
    """IRQ to CPUs of one device, by the plan."""
    devices = [d for g in told(host, "plan")["guests"] for d in g["devices"]]
    (found,) = (d for d in devices if d["address"] == device)
    return {i["irq"]: i["after"] for i in found["interrupts"]}


def affinities(host: Host, device: str) -> dict[int, str]:
    return {vector.irq: vector.affinity for vector in host.vectors(device)}


def taken(guest: Guest, rounds: int = 3) -> dict[int, list[int]]:
    """IRQ to interrupts by CPU while the guest makes traffic, by the kernel's counters."""
    guest.traffic(1)  # what was on its way lands, and a move that is pending is made
    before = {vector.irq: vector for vector in guest.host.vectors()}
    guest.traffic(rounds)
    after = guest.host.vectors()
    return {vector.irq: _gained(before[vector.irq], vector) for vector in after}


def _gained(before: Vector, after: Vector) -> list[int]:
    return [now - then for then, now in zip(before.counts, after.counts, strict=True)]


def cpus_of(counts: list[int]) -> set[str]:
    return {str(cpu) for cpu, count in enumerate(counts) if count}


def test_each_device_goes_where_its_setting_says(host: Host, guest: Guest, disk: str) -> None:
    native = affinities(host, NIC)
    assert native
    virtirq(host, "apply")
    vf = affinities(host, VF)
    assert vf == planned(host, VF)
    assert set(vf.values()) == {"4", "5"}
    assert set(affinities(host, disk).values()) == {DISK_CPUS}
    assert affinities(host, NIC) == native
    seen = taken(guest)
    for device, allowed in ((VF, None), (disk, {DISK_CPUS})):
        irqs = affinities(host, device)
        assert sum(sum(seen[irq]) for irq in irqs) > 0, f"{device} raised nothing"
        for irq, cpus in irqs.items():
            assert cpus_of(seen[irq]) <= (allowed or {cpus}), f"IRQ {irq}: {seen[irq]}"


def test_vectors_follow_a_live_vcpupin(host: Host, guest: Guest) -> None:
    virtirq(host, "apply")
    guest.virsh("vcpupin", "--live", "0", "7")
    try:
        assert set(planned(host, VF).values()) == {"7", "5"}
        virtirq(host, "apply")
        assert set(affinities(host, VF).values()) == {"7", "5"}
        seen = taken(guest)
        for irq, cpus in affinities(host, VF).items():
            assert cpus_of(seen[irq]) <= {cpus}
    finally:
        guest.virsh("vcpupin", "--live", "0", "4")
    virtirq(host, "apply")
    assert set(affinities(host, VF).values()) == {"4", "5"}


def test_the_vcpu_threads_own_mask_counts(host: Host, guest: Guest) -> None:
    """Somebody other than libvirt confined the thread: taskset, or a cgroup."""
    find = "grep -l '^CPU 1/KVM' /proc/$(pidof qemu-system-x86_64)/task/*/comm"
    tid = host.run(find).stdout.strip().split("/")[-2]
    host.run(f"taskset -pc 6 {tid}")
    try:
        assert set(planned(host, VF).values()) == {"4", "6"}
    finally:
        host.run(f"taskset -pc 5 {tid}")


def test_a_driver_reload_in_the_guest_is_repaired_by_apply(host: Host, guest: Guest) -> None:
    virtirq(host, "apply")
    guest.reload("igbvf")
    assert affinities(host, VF) != planned(host, VF)
    virtirq(host, "apply")
    assert affinities(host, VF) == planned(host, VF)


def test_restore_gives_everything_back(host: Host, guest: Guest) -> None:
    virtirq(host, "restore")
    found = {vector.irq: vector.affinity for vector in host.vectors()}
    virtirq(host, "apply")
    assert {vector.irq: vector.affinity for vector in host.vectors()} != found
    virtirq(host, "restore")
    assert {vector.irq: vector.affinity for vector in host.vectors()} == found


def test_settings_survive_libvirt_and_the_guest_restarting_and_virsh_edit(
    host: Host, guest: Guest, disk: str
) -> None:
    virtirq(host, "set", "router", VF, "local")
    virtirq(host, "unset", "router", NIC)
    expected = told(host, "get", "router")
    asked = {each["address"]: each["directive"] for each in expected["devices"]}
    assert asked == {VF: "local", disk: DISK_CPUS, NIC: None}
    host.run("kill $(pidof libvirtd); while pidof libvirtd; do sleep 0.1; done; libvirtd -d")
    host.run("until virsh -q list; do sleep 0.2; done")
    assert told(host, "get", "router") == expected
    host.run("EDITOR='sed -i s/192/200/' virsh edit router")
    guest.virsh("destroy")
    guest.boot()
    assert told(host, "get", "router") == expected
    for form in ("", "--inactive"):
        host.run(
            f"virsh dumpxml {form} router > /tmp/router.xml; virt-xml-validate /tmp/router.xml"
        )
    virtirq(host, "set", "router", VF, "auto")
    virtirq(host, "set", "router", NIC, "native")


def test_a_guest_is_placed_next_to_its_devices(host: Host, guest: Guest) -> None:
    for vcpu, cpus in (("0", "0-7"), ("1", "0-3")):
        guest.virsh("vcpupin", "--live", "--config", vcpu, cpus)
    try:
        proposed = told(host, "place", "router")
        after = [each["after"] for each in proposed["vcpus"]]
        assert (proposed["node"], proposed["applied"]) == (1, [])
        assert len(set(after)) == 2
        assert set(after) <= {"4", "5", "6", "7"}
        assert [each["before"] for each in proposed["vcpus"]] == ["0-7", "0-3"], "nothing is done"
        assert told(host, "place", "router", "--apply")["applied"] == ["live", "config"]
        for form in ("--live", "--config"):
            pins = host.run(f"virsh -q vcpupin router {form}").stdout.split()
            assert pins == ["0", after[0], "1", after[1]]
        kept = host.run("virsh dumpxml --inactive router").stdout
        assert re.search(r"<memory mode='preferred' nodeset='1'/>", kept)
        virtirq(host, "apply")
        assert set(affinities(host, VF).values()) == set(after)
        again = told(host, "place", "router")
        assert [each["before"] for each in again["vcpus"]] == after
        assert [each["after"] for each in again["vcpus"]] == after
    finally:
        for vcpu, cpus in (("0", "4"), ("1", "5")):
            guest.virsh("vcpupin", "--live", "--config", vcpu, cpus)


def test_a_place_is_not_one_that_another_guest_will_want(host: Host, guest: Guest) -> None:
    """One that does not run now, too; and such a one can be placed."""
    # With a device of its own: who has one of the same is an alternative, and never runs beside.
    host.write("/tmp/parked.xml", GuestSpec("parked", pins=("6", "7"), hostdevs=(OTHER,)).xml())
    host.run("virsh define /tmp/parked.xml")
    guest.virsh("vcpupin", "--live", "1", "6")
    try:
        shown = told(host, "place", "router")
        assert {each["after"] for each in shown["vcpus"]} == {"4", "5"}
        guest.virsh("vcpupin", "--live", "1", "5")
        assert told(host, "place", "parked", "--node", "0", "--apply")["applied"] == ["config"]
        pins = host.run("virsh -q vcpupin parked --config").stdout.split()[1::2]
        assert len(set(pins)) == 2
        assert set(pins) <= {"0", "1", "2", "3"}
        done = host.run(["virtirq", "place", "parked", "--apply", "--live"], check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "is not running" in done.stderr
    finally:
        guest.virsh("vcpupin", "--live", "1", "5")
        host.run("virsh undefine parked")


def test_define_and_dumpxml_speak_the_rfcs_syntax(host: Host, disk: str) -> None:
    spec = GuestSpec("written", pins=("4",), hostdevs=(VF, disk))
    text = spec.xml().replace("<hostdev mode", "<hostdev cpuset='2-3' mode", 1)
    host.write("/tmp/written.xml", text)
    virtirq(host, "define", "/tmp/written.xml")
    try:
        shown = virtirq(host, "dumpxml", "written")
        assert len(re.findall(r"<hostdev [^>]*cpuset=[\"']2-3[\"']", shown)) == 1
        assert "urn:virtirq" not in shown
        kept = host.run("virsh dumpxml written").stdout
        assert "urn:virtirq:1" in kept
    finally:
        host.run("virsh undefine written")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("set", "router", "0000:99:00.0", "auto"), "0000:99:00.0"),
        (("set", "router", "7-"), "7-"),
        (("set", "router", "64"), "64"),
        (("set", "nobody", "auto"), "nobody"),
        (("get", "nobody"), "nobody"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(
    host: Host, guest: Guest, words: tuple[str, ...], message: str
) -> None:
    before = told(host, "get", "router")
    done = ask(host, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("virtirq: error: ")
    assert message in done.stderr.splitlines()[0]
    assert told(host, "get", "router") == before
