"""What pinning does to a guest's interrupts, by policy: ``python -m bench.effect``.

On the full lab's host a guest of two vCPUs under traffic, with two NICs and a disk passed through,
and a neighbour on the next CPU. By turns nothing is done for its interrupts, or they have
irqbalance, a hook script, a daemon that does not follow the guest, or one that does; each of them
in a steady state, after the guest's drivers were reloaded, after it was rebooted, and after one of
its vCPUs was moved by ``virsh vcpupin``. docs/effect.md tells what comes of it, and where it ends.

What came is kept policy by policy, so that a run which has ended early is gone on with, and one
policy may be run alone: ``--policy auto``, ``--go-on``, ``--report``.

Besides, in the same machine: what ``virtirq check`` says of rates, beside the kernel's own counts;
and alone, by ``--itself 2``, comparisons of a policy with itself, which must find no more than
chance does.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import partial
from math import comb
from pathlib import Path
from typing import Any, Final, NamedTuple

from bench import effect_report, taken
from bench.effect_report import EXACT, PHASES, ROOT, Found
from bench.taken import Place, Taken, Where
from lab import full
from lab.full import E1000E, IGB, Guest, GuestSpec, Host, LabError, Vector
from tests.full.hosts import ask, install_warm
from tests.full.test_daemon import CONFIG, TRACEFS, daemon, until
from tests.full.test_irqbalance import start as start_irqbalance
from tests.full.test_libvirt import told, virtirq
from tests.full.test_vectors import Counts, devices

PINS: Final = ("4", "5")
MOVED, TO = 1, "7"
"""The vCPU that the administrator moves, and where."""
NEIGHBOUR, NEIGHBOURS = "db", "6"
NODE: Final = frozenset(range(4, 8))
VECTORS: Final = 9
"""Of the disk, at most: the guest uses one for each vCPU, and one more."""
DRIVERS: Final = "nvme e1000e igb"
ROUNDS: Final = 2
REBOOTS: Final = 1
"""Rounds that have one: it takes as long as all the other phases."""
KEPT_IN: Final = ROOT / ".effect"
SETTLED: Final = 2.0
SECONDS: Final = 3.0
LEAST: Final = 600
"""A phase takes so many seconds, and so many interrupts."""
UNDER_TRAFFIC: Final = 2000
"""So many where what happens does so under traffic, of which some are taken before anybody can do
anything: for that this machine takes a hundred times as long as a real one.
"""
RIGHT: Final = 0.99
KEPT: Final = 0.95
"""So much of what the guest has handled it has handled where it is said to have aimed it."""
_FAILURES: Final = 3
"""So many turns of a run fail, then it does."""
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
_AT_WORK: Final = {
    "sched/sched_waking": 'comm == "virtirq"',
    "sched/sched_switch": 'prev_comm == "virtirq" || next_comm == "virtirq"',
}
"""For whoever looks for why something was late: when the daemon was woken, and when it ran."""
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
    filters = dict.fromkeys(_OURS, 'name ~ "vfio-msix*"') | _AT_WORK
    only = "".join(f"echo '{text}' > events/{each}/filter;" for each, text in filters.items())
    on = "".join(f"echo 1 > events/{each}/enable;" for each in (*_EVENTS, *_AT_WORK))
    host.run(
        f"mkdir {_SELF}; {made} cd {_SELF}; echo mono > trace_clock;"
        f" echo 4096 > buffer_size_kb; {only} {on}"
    )
    try:
        yield
    finally:
        off = "".join(f"echo 0 > {_SELF}/events/{each}/enable;" for each in (*_EVENTS, *_AT_WORK))
        gone = "".join(f"echo '-:effect/{name}' >> {TRACEFS}/kprobe_events;" for name in _PROBES)
        host.run(f"{off} rmdir {_SELF}; {gone}", check=False)


def _mark(host: Host, text: str) -> None:
    host.run(f"echo {text} > {_SELF}/trace_marker")


def _so_many(host: Host, least: int) -> bool:
    """Whether so many interrupts have come since the phase has begun."""
    since = f"sed '1,/: {taken.BEGIN}$/d' {_SELF}/trace | grep -c handler_entry"
    return int(host.run(since, check=False).stdout) >= least  # grep(1) exits with 1 for none


def _places(vectors: Iterable[Vector]) -> dict[int, tuple[Place, int]]:
    """By IRQ number: each vector, and the CPU that it is on."""
    found = {}
    for each in vectors:
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
    again = f"for each in {DRIVERS}; do modprobe -r $each && modprobe $each || exit; done"
    guest.command(f"sh ({again}) && sleep 1 && bring_up")


def _move(guest: Guest) -> None:
    guest.virsh("vcpupin", str(MOVED), TO, "--live")


def _counted(host: Host) -> int:
    return sum(each.total for each in host.vectors())


class Event(NamedTuple):
    """What begins a phase: with the guest at rest, or under traffic already."""

    do: Callable[[Guest], None] = lambda _: None
    at_rest: bool = False
    moves: bool = False
    least: int = LEAST


STEADY, RELOADED, REBOOTED, REPINNED = PHASES
EVENTS: Final = {
    STEADY: Event(),
    RELOADED: Event(_reload, at_rest=True),
    REBOOTED: Event(Guest.reboot, at_rest=True),
    REPINNED: Event(_move, moves=True, least=UNDER_TRAFFIC),
}


def phase(guest: Guest, name: str, kept_in: Path) -> Taken:
    """One phase from its beginning until enough interrupts have come; its trace goes to a file."""
    host, event = guest.host, EVENTS[name]
    cpus = {vcpu: int(cpu) for vcpu, cpu in enumerate(PINS)}
    threads: list[int] = []
    if event.moves:
        threads, cpus[MOVED] = _threads(guest, MOVED), int(TO)
    begun = _counted(host)
    host.run(f"echo > {_SELF}/trace")
    vectors = host.vectors()
    counted, first = sum(each.total for each in vectors), _places(vectors)
    before: Counts = {}
    if event.at_rest:
        _mark(host, taken.BEGIN)
        event.do(guest)
    else:
        before = _guests_word(guest)[0]
    with guest.busy():
        if not event.at_rest:
            time.sleep(SETTLED)
            _mark(host, taken.BEGIN)
            event.do(guest)
        time.sleep(SECONDS)
        until(partial(_so_many, host, event.least))
        _mark(host, taken.END)
    counted = _counted(host) - counted
    trace = host.run(f"cat {_SELF}/trace").stdout
    kept_in.mkdir(parents=True, exist_ok=True)
    (kept_in / f"{name}.trace").write_text(trace)
    if not event.at_rest:
        # Each one that the kernel has counted is in the trace.
        seen = sum(each.what == "irq_handler_entry" for each in taken.events(trace))
        assert counted <= seen <= _counted(host) - begun, (counted, seen)
    after, chosen = _guests_word(guest)
    where = Where(chosen, cpus, NODE)
    found = taken.count(trace, first, where, threads)
    kept = _kept(before, after, chosen)
    assert kept >= KEPT, f"{name}: only {kept:.1%} handled where the guest was said to aim it"
    return found


def _guests_word(guest: Guest) -> tuple[Counts, dict[Place, int]]:
    """By vector: what the guest has handled on each vCPU, and the vCPU that it has it on.

    Asked for at once: each word with an emulated guest takes a second or two.
    """
    said = guest.command("sh cat /proc/interrupts; grep . /proc/irq/*/effective_affinity_list")
    on = dict(re.findall(r"^/proc/irq/(\d+)/effective_affinity_list:(\d+)$", said, re.MULTILINE))
    line = r"^ *(\d+):((?: +\d+)+) .*PCI-MSIX-([0-9a-f:.]+) +(\d+)-edge"
    there, counts, chosen = devices(guest), {}, {}
    for irq, numbers, device, vector in re.findall(line, said, re.MULTILINE):
        if device not in there:
            continue  # a root port
        place = there[device], int(vector)
        counts[place] = Counter(dict(enumerate(map(int, numbers.split()))))
        chosen[place] = int(on[irq])
    return counts, chosen


def _kept(before: Counts, after: Counts, where: Mapping[Place, int]) -> float:
    """How much of what the guest has handled it has handled on these vCPUs."""
    right = total = 0
    for place, counts in after.items():
        handled = counts - before.get(place, Counter())
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


def of_policy(guest: Guest, policy: str, kept_in: Path, *, reboot: bool) -> dict[str, Taken]:
    """All phases of one policy; the guest is pinned as before afterwards.

    The steady one comes after that with reloaded drivers, whose vectors it has: fresh ones. What a
    hook script has done before that is gone with the vectors, so that it runs in between.
    """
    host, found = guest.host, {}
    with POLICIES[policy](host):
        for name in (RELOADED, STEADY, REPINNED, *([REBOOTED] if reboot else ())):
            if (policy, name) == (effect_report.HOOK, STEADY):
                host.run(_HOOK)
            try:
                found[name] = phase(guest, name, kept_in)
            finally:
                if EVENTS[name].moves:
                    guest.virsh("vcpupin", str(MOVED), PINS[MOVED], "--live")
            print(f"{policy}, {name}: {found[name]}", file=sys.stderr, flush=True)
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


def itself_is_no_better(guest: Guest, times: int) -> None:
    """A policy beside itself: nothing was ever moved, so that it is ``native`` as it is."""
    with guest.busy():
        time.sleep(SETTLED)
        words = ("compare", guest.name, "as-is", "native", "--for", "1", "--settle", "0")
        made = [told(guest.host, *words, "--rounds", "6") for _ in range(times)]
    verdicts: list[Any] = [
        each for one in made for each in one["verdicts"] if each["p"] is not None
    ]
    differ = [each for each in verdicts if each["says"] in ("more", "less")]
    figures = {name for each in made[0]["blocks"] for name in each["figures"]}
    print(f"as-is beside itself: {len(differ)} of {len(verdicts)} differ: {differ}; {figures}")
    assert len(verdicts) >= 4 * times
    assert len(differ) <= by_chance(len(verdicts), 0.05)


def by_chance(many: int, each: float) -> int:
    """So many of `many` is the most that comes about once in a thousand times."""
    left, so_far = 1.0, 0
    while True:
        left -= comb(many, so_far) * each**so_far * (1 - each) ** (many - so_far)
        if left < 0.001:
            return so_far
        so_far += 1


# What came.


class Kept:
    """What came so far, in a file: a line for each policy's turn, written when that is over."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def turns(self) -> Iterator[tuple[int, str, dict[str, Taken]]]:
        """The round, the policy, and what came in each phase."""
        lines = self._path.read_text().splitlines() if self._path.exists() else ()
        for one in map(json.loads, lines):
            yield one["round"], one["policy"], {n: Taken.again(t) for n, t in one["phases"].items()}

    def add(self, number: int, policy: str, phases: Mapping[str, Taken]) -> None:
        kept = {name: each.kept() for name, each in phases.items()}
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("a") as file:
            print(json.dumps({"round": number, "policy": policy, "phases": kept}), file=file)

    def forget(self, policies: Container[str]) -> None:
        """Take out what is kept of these; all that there was is the file beside it."""
        if not self._path.exists():
            return
        turns = list(self.turns())
        self._path.rename(self._path.with_suffix(".before"))
        for number, policy, phases in turns:
            if policy not in policies:
                self.add(number, policy, phases)

    def found(self) -> Found:
        """By policy and phase what came in each round."""
        found: dict[str, dict[str, list[Taken]]] = {
            policy: {name: [] for name in PHASES} for policy in POLICIES
        }
        for _, policy, phases in self.turns():
            for name, each in phases.items():
                found[policy][name].append(each)
        return {policy: phases for policy, phases in found.items() if all(phases.values())}

    def lacks(self, rounds: int, policies: Iterable[str]) -> list[tuple[int, str]]:
        """The turns that are still to come, in their order."""
        there = {(number, policy) for number, policy, _ in self.turns()}
        every = [(number, policy) for number in range(1, rounds + 1) for policy in policies]
        return [turn for turn in every if turn not in there]


@contextmanager
def guests() -> Iterator[Guest]:
    """The guest, and its neighbour, on a host of their own."""
    with full.lab() as host:
        install_warm(host)
        host.write(_HOOK, _SCRIPT, mode=0o755)
        disk = host.plug_nvme(1, VECTORS)
        spec = GuestSpec("web", pins=PINS, hostdevs=(E1000E[1], IGB[1], disk), memory_mib=256)
        neighbour = Guest(host, GuestSpec(NEIGHBOUR, pins=(NEIGHBOURS,)))
        neighbour.define()
        neighbour.virsh("start", "--paused")
        with host.guest(spec) as guest, traced(host):
            yield guest


def measure(kept: Kept, turns: Iterable[tuple[int, str]]) -> None:
    """These turns, in one boot of the host. One that fails comes once more when all others have.

    An emulated guest hangs now and then, whoever looks after it: it is started anew.
    """
    failed = 0
    with guests() as guest:
        check_tells_the_truth(guest)
        left = deque(turns)
        while left:
            number, policy = left.popleft()
            try:
                kept_in = KEPT_IN / f"{policy} {number}"
                phases = of_policy(guest, policy, kept_in, reboot=number <= REBOOTS)
            except (AssertionError, LabError) as error:
                print(f"{policy} ({number}): {error}", file=sys.stderr, flush=True)
                failed += 1
                if failed == _FAILURES:
                    raise
                left.append((number, policy))
                guest.virsh("destroy", check=False)
                guest.boot()
            else:
                kept.add(number, policy, phases)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of all policies")
    parser.add_argument(
        "--policy", action="append", choices=POLICIES, help="measure these alone anew"
    )
    parser.add_argument("--go-on", action="store_true", help="only what the last run has left")
    parser.add_argument("--report", action="store_true", help="only tell of what is kept")
    parser.add_argument("--itself", type=int, help="only compare a policy with itself, so often")
    parser.add_argument("--write", action="store_true", help="the README's table and its picture")
    options = parser.parse_args()
    began = time.monotonic()
    if options.itself:
        with guests() as guest:
            itself_is_no_better(guest, options.itself)
        return
    kept = Kept(KEPT_IN / "found.jsonl")
    policies = options.policy or tuple(POLICIES)
    if not (options.go_on or options.report):
        kept.forget(policies)
    turns = kept.lacks(options.rounds, policies)
    if turns and not options.report:
        measure(kept, turns)
    rows = effect_report.rows(kept.found())
    print(effect_report.table(rows))
    for each in effect_report.unlike_last_time(rows):
        print(f"not as in the README: {each}")
    print(f"{(time.monotonic() - began) / 60:.0f} minutes")
    left = kept.lacks(options.rounds, POLICIES)
    if left:
        print(f"left for --go-on: {', '.join(f'{policy} ({number})' for number, policy in left)}")
        return
    if options.write:
        effect_report.write(rows, options.rounds, datetime.now(UTC).strftime("%Y-%m-%d"))
    exact = next(row for row in rows if row.policy == EXACT)
    for name, cell in exact.cells.items():
        assert cell.after_grace >= RIGHT, f"{EXACT}, {name}: {cell.after_grace:.1%} after 10 ms"
    assert all(row.very < exact.very for row in rows if row is not exact)


if __name__ == "__main__":
    main()
