"""What pinning does to a guest's interrupts, by policy: ``python -m bench.effect``.

On the full lab's host a guest of two vCPUs under traffic, with two NICs and a disk passed through,
and a neighbour on the next CPU. By turns nothing is done for its interrupts, or they have
irqbalance, a hook script, a daemon that does not follow the guest, or one that does; each of them
in a steady state, after the guest's drivers were reloaded, after it was rebooted, and after one of
its vCPUs was moved by ``virsh vcpupin``. docs/effect.md tells what comes of it, and where it ends.

Besides, in the same machine: what ``virtirq check`` says of rates, beside the kernel's own counts,
and comparisons of a policy with itself, which must find no more than chance does.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from math import comb
from typing import Any, Final, NamedTuple

from bench import effect_report, taken
from bench.effect_report import EXACT, PHASES, Found
from bench.taken import Place, Taken, Where
from lab import full
from lab.full import E1000E, IGB, Guest, GuestSpec, Host
from tests.full.hosts import ask, install_warm
from tests.full.test_daemon import CONFIG, TRACEFS, daemon, until
from tests.full.test_irqbalance import start as start_irqbalance
from tests.full.test_libvirt import told, virtirq
from tests.full.test_vectors import Counts, chosen, guests_counts

PINS: Final = ("4", "5")
MOVED, TO = 1, "7"
"""The vCPU that the administrator moves, and where."""
NEIGHBOUR, NEIGHBOURS = "db", "6"
NODE: Final = frozenset(range(4, 8))
VECTORS: Final = 9
"""Of the disk, at most: the guest uses one for each vCPU, and one more."""
DRIVERS: Final = ("nvme", "e1000e", "igb")
SETTLED: Final = 4.0
SECONDS: Final = 6.0
LEAST: Final = 250
"""A phase takes so many seconds, and so many interrupts."""
RIGHT: Final = 0.99
KEPT: Final = 0.95
"""So much of what the guest has handled it has handled where it is said to have aimed it."""
ITSELF: Final = 2
"""So many comparisons of a policy with itself."""
_SELF: Final = f"{TRACEFS}/instances/effect"
_PROBES: Final = {
    "requested": "request_threaded_irq irq=$arg1:u32 name=+0($arg5):string",
    "pinned": "sched_setaffinity pid=$arg1:s32",
}
_EVENTS: Final = (
    "irq/irq_handler_entry",
    "irq_vectors/vector_config",
    *(f"effect/{name}" for name in _PROBES),
)
_OURS: Final = ("irq/irq_handler_entry", "effect/requested")
_HOOK: Final = "/root/hook"
_SCRIPT: Final = f"""#!/bin/sh
# As many hosts have it for when a guest has started.
sleep 5
for irq in $(grep vfio /proc/interrupts | cut -d: -f1); do
    echo {",".join(PINS)} > /proc/irq/$irq/smp_affinity_list
done
"""


# The kernel's word.


@contextmanager
def traced(host: Host) -> Iterator[None]:
    """Each interrupt of the guest's, each vector set up or put on a CPU, each thread moved."""
    made = "".join(
        f"echo 'p:effect/{name} {probe}' >> {TRACEFS}/kprobe_events;"
        for name, probe in _PROBES.items()
    )
    only = "".join(f"echo 'name ~ \"vfio-msix*\"' > events/{each}/filter;" for each in _OURS)
    on = "".join(f"echo 1 > events/{each}/enable;" for each in _EVENTS)
    host.run(
        f"mkdir {_SELF}; {made} cd {_SELF}; echo mono > trace_clock;"
        f" echo 4096 > buffer_size_kb; {only} {on}"
    )
    try:
        yield
    finally:
        off = "".join(f"echo 0 > {_SELF}/events/{each}/enable;" for each in _EVENTS)
        gone = "".join(f"echo '-:effect/{name}' >> {TRACEFS}/kprobe_events;" for name in _PROBES)
        host.run(f"{off} rmdir {_SELF}; {gone}", check=False)


def _mark(host: Host, text: str) -> None:
    host.run(f"echo {text} > {_SELF}/trace_marker")


def _so_many(host: Host, least: int) -> bool:
    # grep(1) exits with 1 for none
    return int(host.run(f"grep -c handler_entry {_SELF}/trace", check=False).stdout) >= least


def _places(host: Host) -> dict[int, tuple[Place, int]]:
    """By IRQ number: each vector, and the CPU that it is on."""
    found = {}
    for each in host.vectors():
        number, between, device = each.actions.removeprefix("vfio-msix[").partition("](")
        if between:
            found[each.irq] = (device.removesuffix(")"), int(number)), int(each.effective)
    return found


def _threads(guest: Guest, vcpu: int) -> list[int]:
    """The vCPU's thread."""
    files = f"/proc/$(cat /run/libvirt/qemu/{guest.name}.pid)/task/*/comm"
    return [
        int(path.split("/")[-2])
        for path in guest.host.run(f"grep -lx 'CPU {vcpu}/KVM' {files}").stdout.split()
    ]


# What is done.


def _reload(guest: Guest) -> None:
    for driver in DRIVERS:
        guest.reload(driver, 0)


def _move(guest: Guest) -> None:
    guest.virsh("vcpupin", str(MOVED), TO, "--live")


def _counted(host: Host) -> int:
    return sum(each.total for each in host.vectors())


class Event(NamedTuple):
    """What begins a phase: with the guest at rest, or under traffic already."""

    do: Callable[[Guest], None] = lambda _: None
    at_rest: bool = False
    moves: bool = False


EVENTS: Final = dict(
    zip(
        PHASES,
        (
            Event(),
            Event(_reload, at_rest=True),
            Event(Guest.reboot, at_rest=True),
            Event(_move, moves=True),
        ),
        strict=True,
    )
)


def phase(guest: Guest, name: str) -> Taken:
    """One phase from its beginning until enough interrupts have come."""
    host, event = guest.host, EVENTS[name]
    cpus = {vcpu: int(cpu) for vcpu, cpu in enumerate(PINS)}
    threads: list[int] = []
    if event.moves:
        threads, cpus[MOVED] = _threads(guest, MOVED), int(TO)
    begun = _counted(host)
    host.run(f"echo > {_SELF}/trace")
    counted, first, before = _counted(host), _places(host), guests_counts(guest)
    if event.at_rest:
        _mark(host, taken.BEGIN)
        event.do(guest)
        before = {}
    with guest.busy():
        if not event.at_rest:
            time.sleep(SETTLED)
            _mark(host, taken.BEGIN)
            event.do(guest)
        time.sleep(SECONDS)
        until(partial(_so_many, host, LEAST))
        _mark(host, taken.END)
    counted = _counted(host) - counted
    trace = host.run(f"cat {_SELF}/trace").stdout
    if not event.at_rest:
        # Each one that the kernel has counted is in the trace.
        seen = sum(each.what == "irq_handler_entry" for each in taken.events(trace))
        assert counted <= seen <= _counted(host) - begun, (counted, seen)
    where = Where(chosen(guest), cpus, NODE)
    found = taken.count(trace, first, where, threads)
    kept = _kept(before, guests_counts(guest), where.chosen)
    assert kept >= KEPT, f"{name}: only {kept:.1%} handled where the guest was said to aim it"
    return found


def _kept(before: Counts, after: Counts, where: Mapping[Place, int]) -> float:
    """How much of what the guest has handled it has handled on these vCPUs."""
    right = total = 0
    for place, counts in after.items():
        handled = counts - before.get(place, type(counts)())
        right += handled[where[place]]
        total += handled.total()
    return right / total


# Policies.


@contextmanager
def _nothing(_: Host) -> Iterator[None]:
    yield


@contextmanager
def _irqbalance(host: Host) -> Iterator[None]:
    running = start_irqbalance(host)
    try:
        yield
    finally:
        running.stop()


@contextmanager
def _daemon(host: Host, config: str = "") -> Iterator[None]:
    host.write(CONFIG, config)
    try:
        with daemon(host):
            yield
    finally:
        host.run(f"rm {CONFIG}")
        virtirq(host, "restore")


POLICIES: Final[Mapping[str, Callable[[Host], AbstractContextManager[None]]]] = {
    "nothing": _nothing,
    "irqbalance": _irqbalance,
    effect_report.HOOK: _nothing,
    "auto": partial(_daemon, config="[guest_vectors]\nfollow = false\n"),
    EXACT: _daemon,
}


def of_policy(guest: Guest, policy: str) -> dict[str, Taken]:
    """All phases of one policy, from fresh vectors on; the guest is pinned as before afterwards."""
    host, found = guest.host, {}
    with POLICIES[policy](host):
        try:
            _reload(guest)
            if policy == effect_report.HOOK:
                host.run(_HOOK)
            for name in PHASES:
                found[name] = phase(guest, name)
                print(f"{policy}, {name}: {found[name]}", file=sys.stderr, flush=True)
        finally:
            guest.virsh("vcpupin", str(MOVED), PINS[MOVED], "--live")
    return found


# Besides.


def check_tells_the_truth(guest: Guest) -> None:
    """What ``check`` says of rates is what the kernel has counted meanwhile, at least in parts."""
    host = guest.host
    with guest.busy():
        time.sleep(SETTLED)
        before, began = {each.irq: each for each in host.vectors()}, time.monotonic()
        done = ask(host, "--json", "check", "--rates", "5")
        after, passed = {each.irq: each for each in host.vectors()}, time.monotonic() - began
    found = json.loads(done.stdout)
    (said,) = (each for each in found["rates"]["guests"] if each["guest"] == guest.name)
    theirs = sum(
        after[irq].counts[int(NEIGHBOURS)] - each.counts[int(NEIGHBOURS)]
        for irq, each in before.items()
    )
    total = sum(after[irq].total - each.total for irq, each in before.items())
    others = said["others"].get(NEIGHBOUR, 0.0)
    rate = said["own"] + said["elsewhere"] + sum(said["others"].values())
    told_of = [each["message"] for each in found["findings"] if each["code"] == "taken-elsewhere"]
    print(f"check says {said}, {told_of}; counted {theirs} of {total} in {passed:.1f} s")
    assert abs(others / rate - theirs / total) < 0.1
    assert 0.5 < rate / (total / passed) < 2
    assert bool(told_of) is (others >= 1)
    if told_of:
        numbers = re.match(r"(\d+)% of its ([\d.]+) interrupts a second", told_of[0])
        assert numbers, told_of
        assert abs(float(numbers[1]) - 100 * others / rate) < 1.5
        assert abs(float(numbers[2]) - rate) < 1


def itself_is_no_better(guest: Guest) -> None:
    """A policy beside itself: nothing was ever moved, so that it is ``native`` as it is."""
    with guest.busy():
        time.sleep(SETTLED)
        words = ("compare", guest.name, "as-is", "native", "--for", "1", "--settle", "0")
        made = [told(guest.host, *words, "--rounds", "6") for _ in range(ITSELF)]
    verdicts: list[Any] = [
        each for one in made for each in one["verdicts"] if each["p"] is not None
    ]
    differ = [each for each in verdicts if each["says"] in ("more", "less")]
    figures = {name for each in made[0]["blocks"] for name in each["figures"]}
    print(f"as-is beside itself: {len(differ)} of {len(verdicts)} differ: {differ}; {figures}")
    assert len(verdicts) >= 4 * ITSELF
    assert len(differ) <= by_chance(len(verdicts), 0.05)


def by_chance(many: int, each: float) -> int:
    """So many of `many` is the most that comes about once in a thousand times."""
    left, so_far = 1.0, 0
    while True:
        left -= comb(many, so_far) * each**so_far * (1 - each) ** (many - so_far)
        if left < 0.001:
            return so_far
        so_far += 1


def measured(rounds: int) -> Found:
    """By policy and phase what came in each round."""
    found: dict[str, dict[str, list[Taken]]] = {
        policy: {name: [] for name in PHASES} for policy in POLICIES
    }
    with full.lab() as host:
        install_warm(host)
        host.write(_HOOK, _SCRIPT, mode=0o755)
        disk = host.plug_nvme(1, VECTORS)
        spec = GuestSpec("web", pins=PINS, hostdevs=(E1000E[1], IGB[1], disk), memory_mib=256)
        neighbour = Guest(host, GuestSpec(NEIGHBOUR, pins=(NEIGHBOURS,)))
        neighbour.define()
        neighbour.virsh("start", "--paused")
        with host.guest(spec) as guest, traced(host):
            check_tells_the_truth(guest)
            itself_is_no_better(guest)
            for _ in range(rounds):
                for policy in POLICIES:
                    for name, each in of_policy(guest, policy).items():
                        found[policy][name].append(each)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="of all policies")
    parser.add_argument("--write", action="store_true", help="the README's table and its picture")
    options = parser.parse_args()
    began = time.monotonic()
    rows = effect_report.rows(measured(options.rounds))
    print(effect_report.table(rows))
    for each in effect_report.unlike_last_time(rows):
        print(f"not as in the README: {each}")
    if options.write:
        effect_report.write(rows, options.rounds, datetime.now(UTC).strftime("%Y-%m-%d"))
    print(f"{(time.monotonic() - began) / 60:.0f} minutes")
    exact = next(row for row in rows if row.policy == EXACT)
    for name, cell in exact.cells.items():
        assert cell.after_grace >= RIGHT, f"{EXACT}, {name}: {cell.after_grace:.1%} after 10 ms"
    assert all(row.very < exact.very for row in rows if row is not exact)


if __name__ == "__main__":
    main()
