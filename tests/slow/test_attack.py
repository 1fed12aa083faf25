"""The daemon under attack on a real host: by a guest, and by users of the host without rights.

How soon others are served meanwhile is measured by bench/attack.py. Here they are served, and
nothing of the daemon grows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from lab import full
from lab.full import Guest, Host, Job
from tests.full import hostile
from tests.full.attackers import (
    LIVE,
    PLANE,
    TOGGLED,
    actions_of,
    cpu_seconds,
    guest_is_served,
    measure,
    plane,
    plane_is_served,
    prepare,
    users,
)
from tests.full.hosts import install_warm, need_full_lab
from tests.full.test_daemon import FRESH, Use, daemon, heard, until
from tests.full.test_libvirt import virtirq

pytestmark = pytest.mark.lab

BLOCKS: Final = 2
MISCHIEF: Final = (
    *("hang_up", "never_read", "scrape", "end_threads", "start_irqbalance", "move_others"),
    *("move_own", "pose=3", "pose_in_namespaces", "answer", "stretch=4", "square=2"),
    *("open_files=31", "name_nastily=3", "break_in"),
)
GROWTH_KB: Final = 6144
PEAK_KB: Final = 98304
"""At most at any time: twice what it is, for one line of arguments is read at a time."""
LOG_LINES: Final = 400
JOURNAL_BYTES: Final = 1 << 20
LISTEN: Final = f"""
import os, socket
listening = socket.socket(socket.AF_UNIX)
listening.bind({hostile.MONITOR!r})
os.chmod({hostile.MONITOR!r}, 0o666)
listening.listen()
print("listens", flush=True)
while True:
    print(listening.accept(), flush=True)
"""


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_full_lab("the attacks")
    with full.lab("guest") as host:
        install_warm(host)
        prepare(host)
        yield host


@pytest.fixture(scope="module")
def guest(host: Host) -> Guest:
    return host.live_guest()


def readable(log: str) -> None:
    """As a terminal shows it."""
    assert [line for line in log.split("\n") if not line.isprintable()] == []
    assert [line for line in log.splitlines() if not line.startswith("virtirq: ")] == []


def test_others_are_served_and_nothing_grows(host: Host, guest: Guest) -> None:
    """A guest toggles MSI-X, users flood it, and a call of libvirt's hangs: all at once."""
    found = measure(host, guest, BLOCKS)
    print(found, flush=True)
    assert found.after is not None
    readable(found.log)
    assert "sets its interrupts up again and again" in found.log
    assert len(re.findall(rf"\({TOGGLED}\): to CPU", found.log)) < 3 * found.toggles
    assert found.lines < LOG_LINES
    assert max(each.threads for each in found.during) <= found.before.threads + 8
    assert max(each.files for each in found.during) < found.before.files + 100
    assert found.after.resident_kb < found.before.resident_kb + GROWTH_KB
    assert max(each.journal for each in found.during) < JOURNAL_BYTES


def test_whatever_users_do_a_guest_is_served(host: Host, guest: Guest) -> None:
    """All that a user without rights can do, at once, from before the daemon's start to its end."""
    actions = actions_of(host)
    with listening(host) as listener, users(host, guest, *MISCHIEF) as mischief, plane(host):
        with daemon(host) as job:

            def served() -> bool:
                return guest_is_served(host, actions) and plane_is_served(host)

            until(served, job.output)
            at_first, used = Use.of(job), cpu_seconds(job)
            guest.reload("e1000e", 0)
            until(served, job.output)
            follows(host, guest)
            until(served, job.output)
            (irq,) = (each.irq for each in host.vectors(LIVE[0]) if "[0]" in each.actions)
            host.write(f"/proc/irq/{irq}/smp_affinity_list", "7")
            until(served, job.output)
            job.signal("HUP")  # everything is looked at anew, each process too
            heard(job, "the configuration was read again")
            until(served, job.output)
            after, log = Use.of(job), job.output()
            (peak,) = re.findall(
                r"VmHWM:\s+(\d+) kB", host.read(f"/proc/{job.pid}/status").decode()
            )
            print(
                f"CPU seconds: {used} at the start, {cpu_seconds(job)} at the end; peak {peak} kB"
            )
            print(at_first, after, sep="\n", flush=True)
        virtirq(host, "restore")
        restored = {each.affinity for device in LIVE for each in host.vectors(device)}
        connected = listener.output()
    print(mischief.output(), f"{len(log.splitlines())} lines of log", log, sep="\n", flush=True)
    readable(log)
    assert len(log.splitlines()) < LOG_LINES
    assert set(re.findall(r"vfio-\w+(?:\[\d+\])?\(([^)]*)\)", log)) <= {*LIVE, PLANE}
    assert "is open in processes" not in log, "somebody was taken for a holder"
    assert restored == {FRESH}
    assert after.resident_kb < at_first.resident_kb + GROWTH_KB
    assert int(peak) < PEAK_KB
    assert after.files < at_first.files + 100
    assert after.threads <= at_first.threads + 8
    assert after.journal < JOURNAL_BYTES
    assert connected == "listens\n", "somebody's socket was connected to"
    done = json.loads(mischief.output().splitlines()[-1])
    assert done["break_in"] == 0
    assert done["answer"] == 0, "the monitor of a guest that is none was connected to"
    busy = ("hang_up", "never_read", "scrape", "end_threads", "start_irqbalance")
    assert all(done[kind] for kind in (*busy, "move_others", "move_own", "open_files"))


@contextmanager
def listening(host: Host) -> Iterator[Job]:
    """Somebody's service, which does not expect to be connected to."""
    job = host.spawn(f"exec python3 -I -S -c '{LISTEN.replace(chr(39), chr(34))}'")
    try:
        heard(job, "listens")
        yield job
    finally:
        job.signal("KILL")
        job.wait()
        host.run(f"rm -f {hostile.MONITOR}")


def follows(host: Host, guest: Guest) -> None:
    """The guest aims a vector at its other vCPU."""
    (number, vector), *_ = re.findall(
        r"^ *(\d+):.*PCI-MSIX-0000:01:00.0 +(\d)-edge", guest.interrupts(), re.MULTILINE
    )
    file = f"/proc/irq/{number}"

    def place() -> str:
        action = f"vfio-msix[{vector}]({LIVE[0]})"
        (found,) = (each.affinity for each in host.vectors(LIVE[0]) if each.actions == action)
        return found

    before = guest.command(f"sh cat {file}/effective_affinity_list").strip()
    aimed = 1 - int(before)
    guest.command(f"sh echo {aimed} > {file}/smp_affinity_list")

    def followed() -> bool:
        guest.command("fire")  # it moves at its next interrupt
        return place() == full.LIVE_GUEST.pins[aimed]

    until(followed)
