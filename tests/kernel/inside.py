"""What is tested on a running kernel: `test_lab.py` boots one and has pytest run this file in it.

The machine has 4 CPUs, VT-d with interrupt remapping, and a NIC that raises real interrupts.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.guest import E1000E, bind, find
from lab.vfio import _ACTION_TRIGGER, _DATA_EVENTFD, HeldDevice, _set_irqs
from tests.kernel import commands
from virtirq.control.executor import Executor
from virtirq.control.journal import locked_journal
from virtirq.cpuset import CpuSet
from virtirq.host.fs import LiveFs
from virtirq.model import InterruptKey, Outcome, PciAddress, Pin, Reason, Status

VIRTIRQ = os.path.join(sysconfig.get_path("scripts"), "virtirq")
STATE = Path("/run/virtirq")
SHOTS = 50
NOBODY = 65534

DOMAIN = """<domain><name>router</name><vcpu>{count}</vcpu><cputune>{pins}</cputune><devices>
<hostdev mode='subsystem' type='pci'><source>
<address domain='0x{0}' bus='0x{1}' slot='0x{2}' function='0x{3}'/>
</source></hostdev></devices></domain>"""


@pytest.fixture(scope="module")
def bdf() -> str:
    found = find(E1000E)[0]
    bind(found)
    return found


@pytest.fixture
def nic(bdf: str) -> Iterator[HeldDevice]:
    """The NIC, held as a guest's monitor holds it, with all its MSI-X vectors armed."""
    for file in STATE.glob("*"):
        file.unlink()
    with HeldDevice(bdf, "msix") as device:
        yield device


@pytest.fixture
def domain(bdf: str, tmp_path: Path) -> Path:
    """A guest whose three vCPUs are pinned to CPUs 1, 2 and 3."""
    return write_domain(tmp_path / "router.xml", bdf, "1", "2", "3")


def write_domain(file: Path, bdf: str, *pins: str) -> Path:
    pinned = (f"<vcpupin vcpu='{v}' cpuset='{cpus}'/>" for v, cpus in enumerate(pins))
    parts = bdf.replace(".", ":").split(":")
    file.write_text(DOMAIN.format(*parts, count=len(pins), pins="".join(pinned)))
    return file


def virtirq(*words: object, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """What it does; started by the words `before`, it is the installed command."""
    if not before:
        return commands.run(*map(str, words))
    return subprocess.run(
        [*before, VIRTIRQ, *map(str, words)], capture_output=True, text=True, check=False
    )


def planned(domain: Path) -> dict[int, str]:
    """IRQ to the CPUs that the plan names."""
    done = virtirq("plan", "--json", "--domain", domain)
    assert done.returncode == 0, done.stderr
    guests = json.loads(done.stdout)["guests"]
    return {i["irq"]: i["after"] for g in guests for d in g["devices"] for i in d["interrupts"]}


def counts(irq: int) -> list[int]:
    """The kernel's own counters of an interrupt, by CPU."""
    return [int(n) for n in Path(f"/sys/kernel/irq/{irq}/per_cpu_count").read_text().split(",")]


def fired(device: HeldDevice, vector: int, irq: int) -> list[int]:
    """Interrupts by CPU while the device raises `SHOTS` of them on one vector."""
    before = counts(irq)
    for _ in range(SHOTS):
        device.fire(vector)
        device.wait(vector)
    return [now - then for then, now in zip(before, counts(irq), strict=True)]


def affinity(irq: int) -> str:
    return Path(f"/proc/irq/{irq}/smp_affinity_list").read_text().strip()


def affinities(device: HeldDevice) -> dict[int, str]:
    return {irq: affinity(irq) for irq in device.irqs().values()}


def test_every_interrupt_after_apply_is_taken_on_the_planned_cpu(
    nic: HeldDevice, domain: Path
) -> None:
    plan = planned(domain)
    assert set(plan) == set(nic.irqs().values())
    assert set(plan.values()) == {"1", "2", "3"}
    assert virtirq("apply", "--domain", domain).returncode == 0
    for vector, irq in nic.irqs().items():
        taken = fired(nic, vector, irq)
        # By the kernel's counters: all of them, on the one CPU that the plan named.
        assert sum(taken) >= SHOTS
        assert taken[int(plan[irq])] == sum(taken), f"vector {vector}: {taken}, plan {plan[irq]}"


def test_apply_moves_interrupts_that_went_elsewhere(nic: HeldDevice, domain: Path) -> None:
    """The counterpart: before it, they really are taken on a CPU that is not the guest's."""
    irqs = nic.irqs()
    for irq in irqs.values():
        Path(f"/proc/irq/{irq}/smp_affinity_list").write_text("0")
    taken = fired(nic, 0, irqs[0])
    assert taken[0] == sum(taken) >= SHOTS
    assert virtirq("check", "--domain", domain).returncode == 3
    assert virtirq("apply", "--domain", domain).returncode == 0
    assert fired(nic, 0, irqs[0])[0] == 0
    assert virtirq("check", "--domain", domain).returncode == 0


def test_restore_gives_affinities_back_as_found(nic: HeldDevice, domain: Path) -> None:
    found = affinities(nic)
    assert virtirq("apply", "--domain", domain).returncode == 0
    assert affinities(nic) != found
    assert virtirq("restore").returncode == 0
    assert affinities(nic) == found


def test_apply_again_changes_nothing(nic: HeldDevice, domain: Path) -> None:
    assert virtirq("apply", "--domain", domain).returncode == 0
    journal = (STATE / "journal.jsonl").read_text()
    done = virtirq("apply", "--domain", domain)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "nothing to move"
    assert (STATE / "journal.jsonl").read_text() == journal


def test_a_driver_reload_in_the_guest_is_repaired_and_undone(nic: HeldDevice, domain: Path) -> None:
    """Vectors that come anew have the default mask; that is then what restore gives back."""
    assert virtirq("apply", "--domain", domain).returncode == 0
    nic.disable()
    nic.enable()
    fresh = affinities(nic)
    assert virtirq("apply", "--domain", domain).returncode == 0
    taken = fired(nic, 1, nic.irqs()[1])
    assert taken[2] == sum(taken) >= SHOTS
    assert virtirq("restore").returncode == 0
    assert affinities(nic) == fresh


def test_restore_gives_the_first_original_though_someone_moved_it(
    nic: HeldDevice, domain: Path
) -> None:
    """The same vector, by the kernel's own numbering: the value in between is not "as found"."""
    found = affinities(nic)
    assert virtirq("apply", "--domain", domain).returncode == 0
    for irq in found:
        Path(f"/proc/irq/{irq}/smp_affinity_list").write_text("0")
    done = virtirq("apply", "--json", "--domain", domain)
    (device,) = json.loads(done.stdout)["guests"][0]["devices"]
    assert all("; found at 0 instead of our" in each["reason"] for each in device["interrupts"])
    assert virtirq("restore").returncode == 0
    assert affinities(nic) == found


def test_the_kernel_numbers_incarnations_of_an_interrupt(nic: HeldDevice) -> None:
    def numbers() -> dict[int, int | None]:
        return {irq: fs.incarnation(f"/sys/kernel/irq/{irq}") for irq in nic.irqs().values()}

    fs = LiveFs()
    seen: set[int | None] = {None}
    for _ in range(5):
        now = numbers()
        for irq in now:
            Path(f"/proc/irq/{irq}/smp_affinity_list").write_text("0")
        assert numbers() == now
        assert seen.isdisjoint(now.values())
        seen |= set(now.values())
        nic.disable()
        nic.enable()


def test_a_vector_without_action_is_restored(nic: HeldDevice, domain: Path) -> None:
    """As in the middle of a guest's moving it: no eventfd, but still allocated."""
    irqs = nic.irqs()
    found = affinities(nic)
    assert virtirq("apply", "--domain", domain).returncode == 0
    _set_irqs(nic._device, "msix", _DATA_EVENTFD | _ACTION_TRIGGER, 1, 1, struct.pack("=i", -1))
    assert Path(f"/sys/kernel/irq/{irqs[1]}/actions").read_text().strip() == ""
    assert affinity(irqs[1]) != found[irqs[1]]
    assert virtirq("restore").returncode == 0
    assert affinity(irqs[1]) == found[irqs[1]]


def test_the_line_of_a_guest_that_has_stopped_is_restored(bdf: str, domain: Path) -> None:
    for file in STATE.glob("*"):
        file.unlink()
    with HeldDevice(bdf, "intx") as device:
        (irq,) = device.irqs().values()
        found = affinity(irq)
        assert virtirq("apply", "--domain", domain).returncode == 0
        assert affinity(irq) != found
        device.disable()
        # The descriptor is there and remembers; the action is gone.
        assert Path(f"/sys/kernel/irq/{irq}/actions").read_text().strip() == ""
        assert affinity(irq) != found
        assert virtirq("restore").returncode == 0
        assert affinity(irq) == found


def test_a_mask_is_written_whole(nic: HeldDevice, domain: Path, tmp_path: Path) -> None:
    config = tmp_path / "virtirq.toml"
    config.write_text('default = "2-3"\n')
    assert virtirq("apply", "--config", config, "--domain", domain).returncode == 0
    assert set(affinities(nic).values()) == {"2-3"}
    taken = fired(nic, 0, nic.irqs()[0])
    assert taken[2] + taken[3] == sum(taken)


@pytest.mark.parametrize("mode", ["msi", "intx"])
def test_msi_and_intx(bdf: str, domain: Path, mode: str) -> None:
    with HeldDevice(bdf, mode) as device:  # type: ignore[arg-type]
        (irq,) = device.irqs().values()
        done = virtirq("plan", "--json", "--domain", domain)
        (interrupt,) = json.loads(done.stdout)["guests"][0]["devices"][0]["interrupts"]
        assert (interrupt["irq"], interrupt["kind"]) == (irq, mode)
        assert virtirq("apply", "--domain", domain).returncode == 0
        device.fire()  # an INTx line may move at its next interrupt only
        device.wait()
        taken = fired(device, 0, irq)
        assert taken[1] == sum(taken) >= SHOTS


def test_native_is_left_alone(nic: HeldDevice, domain: Path, tmp_path: Path) -> None:
    config = tmp_path / "virtirq.toml"
    config.write_text('default = "native"\n')
    found = affinities(nic)
    assert virtirq("apply", "--config", config, "--domain", domain).returncode == 0
    assert affinities(nic) == found


def run_pin(pin: Pin) -> tuple[Outcome, bool]:
    with locked_journal(STATE, "lab") as journal:
        executor = Executor(LiveFs(), journal)
        (outcome,) = executor.run((pin,))
        return outcome, executor.deployment_fault


def pin_to(device: HeldDevice, cpus: str, irq: int | None = None, action: str = "") -> Pin:
    return Pin(
        device.irqs()[0] if irq is None else irq,
        InterruptKey(PciAddress.parse(device.bdf), action or f"vfio-msix[0]({device.bdf})"),
        "router",
        None,
        CpuSet.parse(cpus),
        Reason("test", "test"),
    )


@pytest.fixture
def cpu3_offline() -> Iterator[None]:
    switch = Path("/sys/devices/system/cpu/cpu3/online")
    switch.write_text("0")
    try:
        yield
    finally:
        switch.write_text("1")


@pytest.mark.usefixtures("cpu3_offline")
def test_an_offline_cpu_is_never_planned_and_its_refusal_is_told(
    nic: HeldDevice, domain: Path
) -> None:
    assert set(planned(domain).values()) == {"1", "2"}
    assert virtirq("apply", "--domain", domain).returncode == 0
    outcome, fault = run_pin(pin_to(nic, "3"))
    assert (outcome.status, outcome.reason) == (Status.FAILED, "none of CPUs 3 is online")
    assert not fault


@pytest.mark.usefixtures("cpu3_offline")
def test_a_target_that_is_offline_is_a_finding(nic: HeldDevice, bdf: str, tmp_path: Path) -> None:
    found = affinities(nic)
    domain = write_domain(tmp_path / "off.xml", bdf, "3")
    done = virtirq("check", "--json", "--domain", domain)
    assert done.returncode == 3
    assert "target-offline" in {each["code"] for each in json.loads(done.stdout)["findings"]}
    assert virtirq("apply", "--domain", domain).returncode == 0
    assert affinities(nic) == found


def test_a_cpu_past_the_last_is_told(nic: HeldDevice) -> None:
    outcome, _ = run_pin(pin_to(nic, "8191"))
    assert outcome.status is Status.FAILED
    assert outcome.reason == "CPUs 8191 go past the last CPU of this host"


def test_an_interrupt_that_is_gone_has_vanished(nic: HeldDevice) -> None:
    pin = pin_to(nic, "1")
    nic.disable()
    outcome, _ = run_pin(pin)
    assert outcome.status is Status.VANISHED


def test_another_interrupt_under_the_same_number_is_not_touched(nic: HeldDevice) -> None:
    found = affinities(nic)
    outcome, _ = run_pin(pin_to(nic, "1", action=f"vfio-msix[4]({nic.bdf})"))
    assert outcome.status is Status.VANISHED
    assert affinities(nic) == found


def test_a_line_that_nobody_may_move_is_refused(nic: HeldDevice) -> None:
    action = Path("/sys/kernel/irq/0/actions").read_text().strip()
    assert action == "timer"
    outcome, fault = run_pin(pin_to(nic, "1", irq=0, action=action))
    assert outcome.status is Status.REFUSED
    assert not fault


def test_a_read_only_proc_is_a_fault_of_the_deployment(nic: HeldDevice, domain: Path) -> None:
    found = affinities(nic)
    script = 'mount -o remount,bind,ro /proc && exec "$@"'
    done = virtirq(
        "apply", "--domain", domain, before=("unshare", "--mount", "sh", "-c", script, "sh")
    )
    assert done.returncode == 5
    assert "/proc/irq is read-only here" in done.stdout
    assert "ProtectKernelTunables" in done.stdout
    assert affinities(nic) == found
    assert virtirq("restore").returncode == 0
    assert affinities(nic) == found


def test_an_unprivileged_user_may_look_and_not_touch(nic: HeldDevice, domain: Path) -> None:
    def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
        return commands.run_as(NOBODY, *words, "--domain", str(domain))

    for directory in (domain.parent, domain.parent.parent):
        directory.chmod(0o755)  # pytest keeps its directories to itself
    found = affinities(nic)
    assert as_nobody("plan").returncode == 0
    assert as_nobody("status").stdout.count("msix") == nic.vectors
    done = as_nobody("apply")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.endswith("hint: run as root\n")
    assert affinities(nic) == found


@pytest.mark.parametrize(
    "death", ["mkdir:1", "write:1", "fsync:1", "write:2", "write:4", "write:6", "write:7"]
)
def test_killed_at_a_system_call_restore_leaves_all_as_found(
    nic: HeldDevice, domain: Path, tmp_path: Path, death: str
) -> None:
    """The NIC has five vectors: a write of the journal, five affinities, and the journal again."""
    found = affinities(nic)
    call, when = death.split(":")
    if call == "mkdir" and STATE.exists():
        for file in STATE.glob("*"):
            file.unlink()
        STATE.rmdir()
    strace = ("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}")
    words = ("-q", "apply", "--domain", str(domain))
    status = commands.run_traced(tmp_path / "log", strace, *words)
    assert status == -signal.SIGKILL, f"{death} was not reached"
    assert virtirq("restore").returncode == 0
    assert affinities(nic) == found


def test_a_recording_of_this_host_plans_the_same(
    nic: HeldDevice, domain: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "host.tar.gz"
    assert virtirq("record", "--keep-names", "--domain", domain, archive).returncode == 0
    live = json.loads(virtirq("plan", "--json", "--domain", domain).stdout)
    again = json.loads(virtirq("plan", "--json", "--sysroot", archive).stdout)
    for each in (*live["guests"], *again["guests"]):
        del each["uuid"]
    assert again["guests"] == live["guests"]
    assert (again["gaps"], live["gaps"]) == ([], [])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
