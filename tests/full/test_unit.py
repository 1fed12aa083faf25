"""The unit under real systemd: what its sandbox lets through, and what it keeps in.

Debian's own boot, libvirt as Debian has set it, irqbalance, a nested guest with a VFIO device, and
virtirq installed from its wheel. A probe takes the daemon's place in the unit: it does each thing
that the daemon needs, and tries what nothing in there should be able to.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab import full, record_demo
from lab.full import E1000E, GuestSpec, Host, Job
from lab.full.errors import CommandError
from tests.full.hosts import install, need_full_lab
from tests.needs import need_program

pytestmark = pytest.mark.lab

UNIT = "/usr/lib/systemd/system/virtirq.service"
PROBE = "/opt/lab/probe.py"
HOLD = "/opt/lab/vfio.py"
RESULTS = "/run/virtirq/probe.json"
HOSTILE = "web\nVIRTIRQ_IRQ=666\n\x1b[31m"
EXPOSURE = 22
"""Tenths of what `systemd-analyze security` finds. It counts root (0.4), a network for metrics
(0.5 + 0.3 + 0.2), /proc as it is (0.3) and kernel tunables (0.2): the daemon's work. And it counts
ProtectControlGroups= (0.2), though the probe shows that they cannot be written."""


# What the probe does. Each is sent to the machine by its source, so it imports what it needs.
# `may_…` must succeed, `may_not_…` must raise OSError.


def may_not_use_any_capability() -> None:
    from pathlib import Path

    status = Path("/proc/self/status").read_text()
    lines = dict(line.split(":\t", 1) for line in status.splitlines())
    held = {name: int(lines[name], 16) for name in ("CapBnd", "CapEff", "CapPrm", "CapInh")}
    assert set(held.values()) == {0}, held
    assert (int(lines["NoNewPrivs"]), int(lines["Seccomp"])) == (1, 2)
    raise OSError("as it should be")


def may_move_interrupts() -> None:
    from pathlib import Path

    moved = []
    for actions in sorted(Path("/sys/kernel/irq").glob("*/actions")):
        if not actions.read_text().startswith("vfio-msi"):
            continue
        file = Path("/proc/irq", actions.parent.name, "smp_affinity_list")
        before = file.read_text()
        file.write_text("6\n")
        moved.append(file.read_text())
        file.write_text(before)
        assert file.read_text() == before
    assert set(moved) == {"6\n"}, moved


def may_hear_of_vectors_from_the_kernel() -> None:
    import os
    import select
    from pathlib import Path

    from virtirq.daemon.kernel_events import open_kernel_events
    from virtirq.host.events import EventKind

    stream = open_kernel_events(pid=1)  # not our own: our moves are told then
    try:
        assert stream.described == "kernel probes"
        actions = next(
            each
            for each in Path("/sys/kernel/irq").glob("*/actions")
            if each.read_text().startswith("vfio-msi")
        )
        file = Path("/proc/irq", actions.parent.name, "smp_affinity_list")
        file.write_text(file.read_text())
        assert select.select([stream], [], [], 20)[0]
        assert EventKind.MOVED in {each.kind for piece in stream.read() for each in piece}
    finally:
        stream.close()
    assert not os.path.exists("/sys/kernel/tracing/instances/virtirq")
    assert "virtirq" not in Path("/sys/kernel/tracing/kprobe_events").read_text()


def may_hear_uevents() -> None:
    """They are made outside, again and again: see `busy`."""
    import select

    from virtirq.host.uevents import Uevent, Uevents

    uevents = Uevents()
    try:
        assert select.select([uevents], [], [], 60)[0]
        assert Uevent("online", cpu=1) in uevents.read()
    finally:
        uevents.close()


def may_look_at_libvirt() -> None:
    import libvirt

    connection = libvirt.openReadOnly("qemu:///system")
    assert [each.name() for each in connection.listAllDomains(0)] == ["guest"]
    connection.close()


def may_manage_libvirt() -> None:
    import libvirt

    connection = libvirt.open("qemu:///system")
    (domain,) = connection.listAllDomains(0)
    assert "<hostdev" in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
    connection.close()


def may_talk_to_irqbalance() -> None:
    import array
    import os
    import socket
    import struct
    from pathlib import Path

    (path,) = Path("/run/irqbalance").glob("irqbalance*.sock")
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(20)
        asked.connect(str(path))
        credentials = struct.pack("3i", os.getpid(), os.getuid(), os.getgid())
        kind = socket.SCM_CREDENTIALS  # type: ignore[attr-defined,unused-ignore]
        asked.sendmsg([b"setup"], [(socket.SOL_SOCKET, kind, array.array("B", credentials))])
        assert asked.recv(1 << 16).startswith(b"SLEEP")


def may_see_where_threads_of_other_users_run() -> None:
    import sys
    from pathlib import Path

    seen = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if process.name == sys.argv[1] or "qemu-system" in arguments:
            for task in (process / "task").iterdir():
                status = (task / "status").read_text()
                seen[task.name] = status.partition("Cpus_allowed_list:")[2].split()[0]
                assert (task / "comm").read_text()
    assert seen[sys.argv[1]] == "5"
    assert len(seen) > 3, seen


def may_see_all_that_a_plan_needs() -> None:
    import contextlib
    import io
    import json

    from virtirq.ui.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["--json", "plan"]) == 0
    plan = json.loads(shown.getvalue())
    assert plan["gaps"] == []
    (guest,) = plan["guests"]
    assert guest["devices"][0]["interrupts"]


def may_keep_its_state() -> None:
    import socket
    from pathlib import Path

    from virtirq.control.journal import locked_journal

    state = Path("/run/virtirq")
    with locked_journal(state, "probe") as journal:
        assert journal.remembered() == ()
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as asking:
        listening.bind(str(state / "probe.sock"))
        (state / "probe.sock").chmod(0o666)
        listening.listen()
        asking.connect(str(state / "probe.sock"))
    (state / "probe.sock").unlink()


def may_serve_metrics() -> None:
    import socket

    for host in ("127.0.0.1", "::1"):
        with socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ) as server:
            socket.create_connection(server.getsockname()[:2]).close()


def may_use_threads_and_asyncio() -> None:
    import asyncio

    async def work() -> int:
        return await asyncio.to_thread(lambda: 1)

    assert asyncio.run(work()) == 1


def may_not_write_to_the_system() -> None:
    from pathlib import Path

    Path("/etc/virtirq-probe").write_text("")


def may_not_write_beside_its_own_state() -> None:
    from pathlib import Path

    Path("/run/virtirq-probe").write_text("")


def may_not_turn_the_kernels_knobs() -> None:
    """root may, without any capability, if it is not for where they are mounted."""
    import errno
    import os

    places = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/sys/bus/pci/rescan",
        "/sys/bus/pci/drivers_probe",
        "/sys/power/state",
        "/sys/devices/system/cpu/cpu1/online",
        "/sys/devices/system/cpu/cpu1/uevent",
        "/sys/kernel/debug/clear_warn_once",
        "/sys/fs/cgroup/cgroup.subtree_control",
    ]
    found = {}
    for place in places:
        try:
            os.close(os.open(place, os.O_WRONLY))
            found[place] = 0
        except OSError as error:
            found[place] = error.errno or 0
    there = {place: number for place, number in found.items() if number != errno.ENOENT}
    assert set(there.values()) == {errno.EROFS}, there  # not every kernel has every one
    assert {"/proc/sys/kernel/core_pattern", "/sys/bus/pci/rescan"} <= set(there)
    raise OSError("as it should be")


def may_not_look_into_homes() -> None:
    import os

    os.listdir("/root")


def may_not_have_disks() -> None:
    import os

    os.close(os.open("/dev/vda", os.O_RDONLY))


def may_not_sniff_the_network() -> None:
    import socket

    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()


def may_not_become_another_user() -> None:
    import os

    os.setresuid(1, 1, 1)


def may_not_give_files_away() -> None:
    import os

    os.chown("/run/virtirq", 1, 1)


def may_not_signal_processes_of_other_users() -> None:
    import os
    import sys

    os.kill(int(sys.argv[1]), 0)


def may_not_read_the_memory_of_guests() -> None:
    import os
    import sys

    os.close(os.open(f"/proc/{sys.argv[1]}/mem", os.O_RDONLY))


def may_not_move_threads() -> None:
    import os

    os.sched_setaffinity(0, {0})


def serve(attempts: list[Callable[[], None]], hostile: str, results: str) -> None:
    """The probe's life as a service: tries all, tells, and waits for signals as a daemon does."""
    import json
    import os
    import signal
    import traceback
    from pathlib import Path

    from virtirq.daemon.log import set_up
    from virtirq.daemon.systemd import ServiceManager

    manager, log = ServiceManager(), set_up()
    signals = {signal.SIGHUP, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    told = {}
    for attempt in attempts:
        try:
            attempt()
            told[attempt.__name__] = "done"
        except OSError as error:
            told[attempt.__name__] = "refused"
            if not attempt.__name__.startswith("may_not_"):
                told[attempt.__name__] = "".join(traceback.format_exception(error))
        except BaseException as error:
            told[attempt.__name__] = "".join(traceback.format_exception(error))
    told["environment"] = ",".join(
        name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID") if name in os.environ
    )
    told["watchdog"] = str(manager.watchdog)
    Path(results).write_text(json.dumps(told))
    log.info(f"{hostile}: probed", guest=hostile, irq=65, device="0000:41:00.0")
    manager.ready(f"{hostile}: probed")
    while True:
        got = signal.sigtimedwait(signals, manager.ping_every or 1)
        if got is None:
            manager.ping()
        elif got.si_signo == signal.SIGHUP:
            manager.reloading()
            log.warning("reloading")
            manager.ready("reloaded")
        else:
            manager.stopping("stopping")
            break


HEAR = "may_hear_of_vectors_from_the_kernel"
EXIT_NAMESPACE = "226"
"""systemd.exec(5): a path that the unit names could not be set up for it."""
SOCKETS = ("may_manage_libvirt", "may_talk_to_irqbalance")
OUTCOMES = ("done", "refused")
ATTEMPTS = {name: each for name, each in globals().items() if name.startswith("may_")}


def probe() -> str:
    """The probe, as a program for the machine."""
    sources = [inspect.getsource(each) for each in (*ATTEMPTS.values(), serve)]
    head = "from __future__ import annotations\n"
    call = f"serve([{', '.join(ATTEMPTS)}], {HOSTILE!r}, {RESULTS!r})\n"
    return "\n\n".join([head, *sources, call])


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Host]:
    need_program("make")
    made = tmp_path_factory.mktemp("made")
    need_full_lab("the tests with systemd")
    places = [f"DESTDIR={made}", "PREFIX=/usr", "BINDIR=/usr/local/bin", "VIRTIRQ="]
    subprocess.run(["make", "-s", "-C", str(repository), "install", *places], check=True)
    with full.lab(machine=full.Machine(systemd=True)) as host:
        install(host)
        host.write(UNIT, (made / UNIT[1:]).read_text())
        host.run("systemctl daemon-reload")
        yield host


@pytest.fixture(scope="module")
def busy(host: Host) -> Iterator[Job]:
    """irqbalance, a guest, and a process of QEMU's usual user, which is what is yielded."""
    host.run("systemctl start irqbalance")
    user = "setpriv --reuid libvirt-qemu --regid kvm --clear-groups"
    stand_in = host.spawn(f"exec {user} taskset -c 5 sleep infinity")
    told = "echo online > /sys/devices/system/cpu/cpu1/uevent"
    uevents = host.spawn(f"while sleep 2; do {told}; done")
    try:
        with host.guest(GuestSpec(hostdevs=(E1000E[1],))):
            yield stand_in
    finally:
        stand_in.signal()
        uevents.signal()
        host.run("systemctl stop virtirq irqbalance; rm -rf /run/systemd/system/virtirq.service.d")
        host.run("systemctl daemon-reload; rm -rf /run/virtirq")


def probed_with(host: Host, stand_in: Job, *settings: str) -> dict[str, str]:
    """What came of each attempt; the probe then still runs in the unit."""
    host.write(PROBE, probe())
    command = f"/usr/bin/python3 {PROBE} {stand_in.pid}"
    lines = ["[Service]", "ExecStart=", f"ExecStart={command}", *settings]
    host.write("/run/systemd/system/virtirq.service.d/probe.conf", "\n".join(lines))
    host.run(f"rm -f {RESULTS}; systemctl daemon-reload; systemctl restart virtirq")
    found: dict[str, str] = json.loads(host.read(RESULTS))
    return found


@pytest.fixture(scope="module")
def probed(host: Host, busy: Job) -> dict[str, str]:
    return probed_with(host, busy)


def show(host: Host, name: str) -> str:
    return host.run(["systemctl", "show", "--value", "-p", name, "virtirq"]).stdout.strip()


def test_the_guest_is_confined_as_debian_has_it(host: Host, busy: Job) -> None:
    process = "/proc/$(cat /run/libvirt/qemu/guest.pid)"
    told = host.run(
        f"cd {process}; cat attr/apparmor/current cgroup; stat -c %U .;"
        " [ $(readlink ns/mnt) != $(readlink /proc/1/ns/mnt) ]"
    ).stdout
    profile, group, user = told.splitlines()
    assert re.fullmatch(r"libvirt-\S+ \(enforce\)", profile)
    assert group.startswith(r"0::/machine.slice/machine-qemu\x2d1\x2dguest.scope/")
    assert user == "libvirt-qemu"


def test_systemd_has_no_complaint_about_the_unit(host: Host) -> None:
    # The lab has no man(1), by which it would look for the manual's page.
    done = host.run(["systemd-analyze", "verify", "--man=no", UNIT], check=False)
    assert done.returncode == 0
    assert "virtirq" not in done.stdout + done.stderr


def test_the_unit_is_as_closed_as_the_work_allows(host: Host) -> None:
    done = host.run(
        ["systemd-analyze", "security", f"--threshold={EXPOSURE}", "virtirq.service"], check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_sandbox(probed: dict[str, str], name: str) -> None:
    assert probed[name] == ("refused" if name.startswith("may_not_") else "done")


def test_no_child_speaks_for_the_daemon(probed: dict[str, str]) -> None:
    assert probed["environment"] == ""
    assert probed["watchdog"] == "60.0"


def test_systemd_hears_what_the_service_says(host: Host, probed: dict[str, str]) -> None:
    assert show(host, "ActiveState") == "active"
    assert show(host, "StatusText").startswith("web\N{REPLACEMENT CHARACTER}VIRTIRQ_IRQ=666")
    host.run("systemctl reload virtirq")
    host.run('until [ "$(systemctl show --value -p StatusText virtirq)" = reloaded ]; do :; done')
    assert show(host, "ActiveState") == "active"
    assert show(host, "NRestarts") == "0"


def test_the_journal_has_the_fields(host: Host, probed: dict[str, str]) -> None:
    host.run("journalctl --sync")
    found = host.run("journalctl -n 1 -o json VIRTIRQ_DEVICE=0000:41:00.0").stdout.splitlines()
    (record,) = map(json.loads, found)
    wanted = {
        "MESSAGE": "web\ufffdVIRTIRQ_IRQ=666\ufffd\ufffd[31m: probed",
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "virtirq",
        "VIRTIRQ_IRQ": "65",
        "_SYSTEMD_UNIT": "virtirq.service",
    }
    assert {name: record[name] for name in wanted} == wanted
    guest = record["VIRTIRQ_GUEST"]  # a list of bytes where it is not all printable
    assert bytes(guest).decode() == HOSTILE


@pytest.mark.parametrize(
    ("setting", "broken"),
    [
        ("ProtectKernelTunables=yes", {"may_move_interrupts", HEAR}),
        ("User=nobody", {"may_move_interrupts", HEAR, *SOCKETS}),
    ],
)
def test_what_the_unit_leaves_out_would_break_it(
    host: Host, probed: dict[str, str], busy: Job, setting: str, broken: set[str]
) -> None:
    """The unit's own reasons hold, and the probe can tell."""
    found = probed_with(host, busy, setting)
    assert broken <= {name for name in ATTEMPTS if found[name] not in OUTCOMES}


def test_without_interrupts_to_write_the_unit_does_not_start(host: Host, busy: Job) -> None:
    """`ProcSubset=pid` takes away what is named in ReadWritePaths=, and systemd says so."""
    with pytest.raises(CommandError):
        probed_with(host, busy, "ProcSubset=pid")
    started = show(host, "ExecMainStatus")
    host.run("systemctl stop virtirq")
    assert started == EXIT_NAMESPACE, host.run("journalctl -n 50 -u virtirq").stdout


# The daemon itself.

CONFIG = "/etc/virtirq/virtirq.toml"
DROP_IN = "/run/systemd/system/virtirq.service.d"
PINS = ("4", "5")


@pytest.fixture(scope="module")
def service(host: Host, busy: Job) -> Host:
    """The host, with the daemon as its service."""
    host.run(f"systemctl stop virtirq; rm -rf {DROP_IN} /run/virtirq; systemctl daemon-reload")
    host.run("systemctl start virtirq")
    return host


def until(host: Host, condition: str) -> None:
    host.run(f"until {condition}; do sleep 0.2; done")


def pinned(host: Host) -> bool:
    """Whether its NIC's vectors are on the guest's CPUs in order, wherever that begins."""
    there = {
        int(each.actions[len("vfio-msix[")]): each.affinity for each in host.vectors(E1000E[1])
    }
    return bool(there) and any(
        all(where == PINS[(start + vector) % 2] for vector, where in there.items())
        for start in range(2)
    )


def until_pinned(host: Host, *, pinned_: bool = True) -> None:
    patience = host.patience()
    while pinned(host) is not pinned_:
        assert not patience.ended(), host.run("journalctl -u virtirq -n 50").stdout
        time.sleep(0.2)


def test_the_service_is_ready_when_the_guest_is_pinned(service: Host) -> None:
    assert show(service, "ActiveState") == "active"
    assert pinned(service)
    until(service, "systemctl show -p StatusText virtirq | grep -q '3 interrupts of 1 guest;'")
    assert show(service, "StatusText").endswith("kernel probes")
    status = json.loads(service.run("virtirq status --json").stdout)
    assert status["daemon"]["pid"] == int(show(service, "MainPID"))
    # irqbalance runs, and was told; and the unit may have the kernel tell of the guest.
    (found,) = status["findings"]
    assert (found["code"], found["severity"]) == ("vectors-followed", "note")
    assert "by KVM's routes, by kernel probes; libvirt's memory peek: each" in found["message"]


def test_the_journal_tells_of_each_move_with_its_fields(service: Host) -> None:
    irqs = {each.irq for each in service.vectors(E1000E[1])}
    for irq in irqs:
        service.run(f"echo 7 > /proc/irq/{irq}/smp_affinity_list")
    until_pinned(service)
    service.run("journalctl --sync")
    for irq in irqs:
        words = f"journalctl -o json VIRTIRQ_GUEST=guest VIRTIRQ_IRQ={irq} VIRTIRQ_ACTION=pin"
        lines = service.run(words).stdout.splitlines()
        assert lines, f"IRQ {irq}"
        assert json.loads(lines[-1])["VIRTIRQ_DEVICE"] == E1000E[1]


def test_a_reload_takes_the_configuration(service: Host) -> None:
    service.write(CONFIG, 'default = "native"')
    service.run("systemctl reload virtirq")
    until_pinned(service, pinned_=False)
    service.write(CONFIG, 'default = "auot"')
    service.run("systemctl reload virtirq")
    until(service, "journalctl -u virtirq | grep -q \"'auot' is not a directive\"")
    assert show(service, "ActiveState") == "active"
    service.run(f"rm {CONFIG}; systemctl reload virtirq")
    until_pinned(service)


PEEK = """
import libvirt
connection = libvirt.open("qemu:///system")
connection.lookupByName("guest").memoryPeek(0x100000, 4096, libvirt.VIR_MEMORY_PHYSICAL)
"""


def test_the_guests_profile_is_as_it_was(service: Host) -> None:
    """And why no memory is read: each time libvirt makes it longer, and never shorter."""
    lines = "cat /etc/apparmor.d/libvirt/libvirt-*.files"
    before = service.run(lines).stdout
    assert "qemu.mem." not in before
    service.run(["python3", "-c", PEEK])
    assert "qemu.mem." in service.run(lines).stdout.removeprefix(before)


def test_who_may_only_look_looks_and_is_told_what_is_missing(service: Host) -> None:
    nobody = "setpriv --reuid nobody --regid nogroup --clear-groups virtirq"
    assert service.run(f"{nobody} get guest").stdout.startswith("guest (live)")
    done = service.run(f"{nobody} set guest local", check=False)
    assert (done.returncode, done.stdout) == (5, "")
    said, hint = done.stderr.splitlines()
    assert "polkit" in said
    assert hint == "hint: run as root, or become a member of the group libvirt"


def test_killed_it_is_started_again_and_forgets_nothing(service: Host) -> None:
    before = int(show(service, "MainPID"))
    service.run("kill -9 $(systemctl show --value -p MainPID virtirq)")
    irq = service.vectors(E1000E[1])[0].irq
    service.run(f"echo 0 > /proc/irq/{irq}/smp_affinity_list")
    until(service, f'[ "$(systemctl show --value -p MainPID virtirq)" -gt {before} ]')
    until_pinned(service)
    assert show(service, "NRestarts") == "1"


def test_the_watchdog_ends_a_daemon_that_hangs(service: Host) -> None:
    service.write(f"{DROP_IN}/watchdog.conf", "[Service]\nWatchdogSec=20")
    service.run("systemctl daemon-reload; systemctl restart virtirq")
    for _ in range(3):  # it is heard
        heard = show(service, "WatchdogTimestampMonotonic")
        now = "$(systemctl show --value -p WatchdogTimestampMonotonic virtirq)"
        until(service, f'[ "{now}" != {heard} ]')
    before = int(show(service, "MainPID"))
    assert show(service, "NRestarts") == "0"
    service.run(f"kill -STOP {before}")
    until(service, f'[ "$(systemctl show --value -p MainPID virtirq)" -gt {before} ]')
    assert show(service, "NRestarts") == "1"
    service.run(f"rm -r {DROP_IN}; systemctl daemon-reload; systemctl restart virtirq")
    assert show(service, "ActiveState") == "active"


def test_an_invalid_configuration_is_no_reason_to_try_for_ever(service: Host) -> None:
    service.write(CONFIG, "defualt = 1")
    done = service.run("systemctl restart virtirq", check=False)
    assert done.returncode == 1
    assert show(service, "ActiveState") == "failed"
    assert show(service, "ExecMainStatus") == "2"
    said = service.run("journalctl -u virtirq -n 20").stdout
    assert "virtirq: error: /etc/virtirq/virtirq.toml: defualt: unknown key" in said
    service.run(f"rm {CONFIG}; systemctl reset-failed virtirq; systemctl start virtirq")


def test_a_data_plane_of_another_user_takes_what_the_documentation_says(
    service: Host, repository: Path
) -> None:
    """Without it, the log says what cannot be seen, and nothing of it is touched."""
    page = (repository / "docs/daemon.md").read_text()
    (drop_in,) = re.findall(r"```\n(\[Service\]\nCapabilityBoundingSet=.*\n)```", page)
    plane = E1000E[0]
    service.put(Path(record_demo.__file__).with_name("vfio.py"), HOLD)
    service.run("systemctl stop irqbalance")  # which moves what nobody has banned
    service.write(CONFIG, '[[rule]]\nkind = "process"\ndirective = "auto"\n')
    service.run(
        f"cd /sys/bus/pci/devices/{plane}; echo vfio-pci > driver_override;"
        f" echo {plane} > driver/unbind; echo {plane} > /sys/bus/pci/drivers_probe;"
        " chown libvirt-qemu /dev/vfio/$(basename $(readlink iommu_group)); mkfifo /run/plane"
    )
    user = "setpriv --reuid libvirt-qemu --regid kvm --clear-groups"
    service.run("chmod 666 /run/plane; systemctl reload virtirq")
    hold = service.spawn(
        f"exec {user} taskset -c 2 python3 {HOLD} {plane} --vectors 3 <> /run/plane"
    )
    try:
        until(service, "journalctl -u virtirq | grep -q 'not read: /proc/.*Permission denied'")
        until(service, f"[ $(ls /sys/bus/pci/devices/{plane}/msi_irqs | wc -l) = 3 ]")
        said = service.run("journalctl -u virtirq -o short-monotonic -n 60").stdout
        assert {each.affinity for each in service.vectors(plane)} == {"0-3"}, said
        service.write(f"{DROP_IN}/processes.conf", drop_in)
        service.run("systemctl daemon-reload; systemctl restart virtirq")
        assert {each.affinity for each in service.vectors(plane)} == {"2"}
        service.run(f"rm -r {DROP_IN}; systemctl daemon-reload; systemctl restart virtirq")
        assert {each.affinity for each in service.vectors(plane)} == {"2"}, "it is hidden, not gone"
    finally:
        hold.signal("KILL")
        service.run(
            f"rm -rf {CONFIG} {DROP_IN} /run/plane; systemctl daemon-reload;"
            " systemctl start irqbalance"
        )
    until(service, "test -s /run/virtirq/bans.json")
    assert pinned(service)


def test_stopped_it_leaves_the_pins_and_what_undoes_them(service: Host) -> None:
    service.run("systemctl stop virtirq")
    assert show(service, "Result") == "success"
    assert pinned(service)
    assert service.run("ls /sys/kernel/tracing/instances").stdout == ""
    assert service.run("cat /sys/kernel/tracing/kprobe_events").stdout == ""
    left = service.run("ls /run/virtirq").stdout.split()
    assert left == ["bans.json", "daemon.lock", "journal.jsonl", "lock"]
    service.run("virtirq restore")
    assert not pinned(service)
    assert json.loads(service.run("virtirq restore --json").stdout)["guests"] == []
    assert service.run("ls /run/virtirq").stdout.split() == left[1:]  # nothing is banned any more


def test_events_are_the_daemons_and_the_commands(service: Host) -> None:
    service.run("virtirq apply; virtirq restore; journalctl --sync")
    told = json.loads(service.run("virtirq events --json guest").stdout)
    assert told["gaps"] == []
    moves = [each for each in told["events"] if each["irq"] is not None]
    whys = {(each["action"], str(each["reason"]).partition(":")[0]) for each in moves}
    assert {("pin", "drift"), ("pin", "apply"), ("restore", "restore")} <= whys
    ours = {each["device"] for each in moves if str(each["reason"]).startswith("apply")}
    assert ours == {E1000E[1]}
    nobody = "setpriv --reuid nobody --regid nogroup --clear-groups"
    hidden = service.run(f"{nobody} virtirq events guest").stdout
    assert "not read: journald: not all of it is shown to this user" in hidden
    assert "no daemon runs" in hidden
