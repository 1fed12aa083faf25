"""Holds policies on a guest's interrupts in turns, and counts what comes of each.

Whatever happens, the interrupts are afterwards where they were before: see `guardian`. A daemon is
asked to leave the guest alone meanwhile (see `holding`), and anybody else who moves one of its
interrupts is noticed, as a block in which that happens says nothing about a policy.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from virtirq.control import cycle
from virtirq.control.executor import Executor
from virtirq.control.guest_aims import Aims
from virtirq.control.injection_trace import InjectionTrace
from virtirq.control.journal import boot_id, locked_journal
from virtirq.cpuset import CpuSet, union
from virtirq.errors import DirectiveError, InputError, UnavailableError, UsageError, VirtirqError
from virtirq.host.fs import HostFs, Reader
from virtirq.model import (
    AUTO,
    NATIVE,
    Directive,
    Guest,
    Interrupt,
    InterruptKey,
    Pin,
    Reason,
    VcpuCounts,
    by_device,
)
from virtirq.policy.comparison import EXACT, NEAR, OWN, PLANNED, Block, Part
from virtirq.policy.config import Config
from virtirq.policy.plan import Desired
from virtirq.values import pattern, replace

AS_IS: Final = "as-is"
GUESTS_CHOICE: Final = "exact"
INJECTED: Final = "microseconds to the vCPU"
COMMAND: Final = "metric"
"""What the figure of the user's own command is called."""
STATISTICS: Final = {
    "irq_exits": "exits for host interrupts/s",
    "irq_injections": "injections/s",
    "halt_wakeup": "halt wake-ups/s",
}
"""KVM's names (arch/x86/kvm/x86.c, kvm_vcpu_stats_desc[]) and ours."""
_TRACED: Final = 1.0
"""Seconds that a policy is traced for after each block, or as long as that if it is shorter."""
_LOOK: Final = 1.0
"""Seconds between looks at where the guest aims its vectors, while those are followed."""
_AGAIN: Final = 3
"""So many blocks in a row in which interrupts came, went or were moved end a comparison."""
_NUMBER: Final = pattern(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")

Places = Mapping[InterruptKey, CpuSet]


class DisturbedError(VirtirqError):
    """Interrupts do not stay as a policy has them."""


class Policy(NamedTuple):
    """What is compared: a directive, the guest's own choice, or what was there before."""

    name: str
    directive: Directive | None
    exact: bool = False

    @classmethod
    def parse(cls, text: str) -> Policy:
        """A directive, ``exact`` or ``as-is``. Raises DirectiveError."""
        if text == AS_IS:
            return cls(text, None)
        if text == GUESTS_CHOICE:
            return cls(text, AUTO, exact=True)
        try:
            directive = Directive.parse(text)
        except DirectiveError as error:
            hint = f"a policy is {AS_IS}, {GUESTS_CHOICE} or a directive; {error.hint}"
            raise DirectiveError(str(error), hint=hint) from error
        return cls(str(directive), directive)


class Comparison:
    """One guest's interrupts, and where they were at first.

    `aims` says where the guest aims its vectors now, as far as that can be learned; `statistics`
    what KVM has counted for its vCPUs, of `STATISTICS`; with `trace` each policy is traced for a
    moment, after it was measured. Raises UnavailableError where the guest has no interrupts, or
    where `exact` is asked for and not known, and UsageError for a recording.
    """

    def __init__(
        self,
        fs: HostFs,
        guests: Sequence[Guest],
        guest: Guest,
        config: Config,
        state: Path,
        policies: Sequence[Policy],
        aims: Callable[[], Aims],
        statistics: Callable[[], VcpuCounts] = dict,
        trace: InjectionTrace | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fs, self._guest, self._state = fs, guest, state
        self._sleep, self._clock = sleep, clock
        self._ask_aims, self._statistics, self._trace = aims, statistics, trace
        cycle.check_writable(fs)
        self._boot_id = boot_id(fs)
        self._devices = frozenset(device.address for device in guest.devices)
        self._own = union(each.cpus for each in guest.vcpus if each.cpus is not None)
        self._vcpus = {each.index: each.cpus for each in guest.vcpus}
        self._snapshot = cycle.observe(fs, guests)
        there = self._interrupts()
        self._as_is = _places(there)
        if not self._as_is:
            raise UnavailableError(
                f"no passed-through device of {guest.name} has an interrupt in use",
                hint="load its drivers in the guest first",
            )
        with locked_journal(state, self._boot_id) as journal:
            known = journal.remembered_of(sorted(self._devices))
        self._known = frozenset(each.key for each in known)
        self._originals = {each.key: each.original for each in known}
        self._aims: Aims = {}
        if any(policy.exact for policy in policies):
            self._aims = aims()
            if not any(self._aims.get(address) for address in self._devices):
                raise UnavailableError(
                    f"where {guest.name} aims its vectors is not known, so 'exact' cannot be tried",
                    hint=f"'virtirq explain {guest.name}' says why",
                )
        self._desired = {
            policy: self._desired_by(policy, guests, config)
            for policy in policies
            if policy.directive not in (None, NATIVE)
        }
        for policy in policies:
            self._wanted(policy, there)  # before anything is moved

    def blocks(
        self,
        turns: Iterator[tuple[int, Policy]],
        seconds: float,
        settle: float,
        metric: str | None = None,
        told: Callable[[int, Policy, str], None] = lambda *_: None,
    ) -> Iterator[Block]:
        """One block after the other; `told` hears which is next, and why one is done again.

        Raises DisturbedError, UnavailableError for a policy that cannot be had, and InputError for
        a `metric` command that fails.
        """
        for number, policy in turns:
            told(number, policy, "")
            for attempt in range(1, _AGAIN + 1):
                try:
                    yield self._block(policy, number, seconds, settle, metric)
                    break
                except DisturbedError as error:
                    if attempt == _AGAIN:
                        raise
                    told(number, policy, str(error))

    def put_back(self) -> None:
        """Everything as it was before the comparison, and as little in the journal."""
        if self._trace is not None:
            self._trace.close()
        mine: list[Pin] = []
        restored: list[Pin] = []
        for each in self._interrupts():
            before = self._as_is.get(each.key)
            if before is None or each.affinity in (None, before):
                continue
            pin = self._pin(each, before, "as it was before the comparison")
            (mine if each.key in self._known else restored).append(pin)
        with locked_journal(self._state, self._boot_id) as journal:
            Executor(self._fs, journal).run(tuple(mine))
            Executor(self._fs, journal, restoring=True).run(tuple(restored))
            # What was never left, or is back already, was not virtirq's before.
            over = [each.key for each in journal.remembered_of(sorted(self._devices))]
            there = _places(self._interrupts())
            journal.forget(
                *(
                    key
                    for key in over
                    if key not in self._known and there.get(key) == self._as_is.get(key)
                )
            )

    # One policy.

    def _desired_by(self, policy: Policy, guests: Sequence[Guest], config: Config) -> Desired:
        """As if this were asked for the guest and for none of its devices otherwise."""
        devices = tuple(replace(each, directive=None) for each in self._guest.devices)
        asked = replace(
            self._guest,
            directive=policy.directive,
            directive_from="the comparison",
            devices=devices,
        )
        changed = tuple(asked if each.key == asked.key else each for each in guests)
        aimed = self._aims if policy.exact else {}
        return Desired.of_snapshot(replace(self._snapshot, guests=changed, aimed=aimed), config)

    def _wanted(self, policy: Policy, interrupts: Sequence[Interrupt]) -> Places:
        """Where the policy has each interrupt."""
        if policy.directive is None:
            return self._as_is
        if policy.directive == NATIVE:
            return {**self._as_is, **self._originals}
        desired = self._desired[policy]
        if policy.exact:
            for address in self._devices:
                desired.follow(address, self._aims.get(address, {}))
        plan = desired.plan(by_device(interrupts))
        own = [each for each in plan.actions if each.guest == self._guest.key]
        found = {each.key: each.after if isinstance(each, Pin) else each.wanted for each in own}
        if not any(found.values()):
            why = own[0].reason.text if own else "it has no interrupts"
            raise UnavailableError(f"{policy.name} means nothing for {self._guest.name}: {why}")
        return {**self._as_is, **{key: cpus for key, cpus in found.items() if cpus}}

    def _hold(self, policy: Policy) -> Places:
        """Have every interrupt where the policy wants it."""
        interrupts = self._interrupts()
        self._check_same(interrupts)
        wanted = self._wanted(policy, interrupts)
        pins = tuple(
            self._pin(each, wanted[each.key], f"{policy.name} is tried")
            for each in interrupts
            if each.affinity != wanted[each.key]
        )
        if pins:
            with locked_journal(self._state, self._boot_id) as journal:
                outcomes = Executor(self._fs, journal).run(pins)
            for each in outcomes:
                if each.status.bad:
                    raise UnavailableError(
                        f"{policy.name} cannot be had: IRQ {each.pin.irq} {each.pin.key}:"
                        f" {each.reason}",
                        hint=each.hint,
                    )
        return wanted

    def _pin(self, interrupt: Interrupt, after: CpuSet, why: str) -> Pin:
        return Pin(
            interrupt.irq,
            interrupt.key,
            self._guest.key,
            before=interrupt.affinity,
            after=after,
            reason=Reason("comparison", why),
            kind=interrupt.kind,
        )

    # One block.

    def _block(
        self, policy: Policy, number: int, seconds: float, settle: float, metric: str | None
    ) -> Block:
        wanted = self._hold(policy)
        self._sleep(settle)
        self._aims = self._ask_aims()
        began, statistics = self._clock(), self._statistics()
        command = None if metric is None else _Command(metric)
        taken = Counter[str]()
        of = Counter[str]()
        at_first: Sequence[Interrupt] = self._interrupts(counted=True)
        try:
            while True:
                left = began + seconds - self._clock()
                if command is not None:
                    command.check()
                if left <= 0 and (command is None or command.ended):
                    break
                self._sleep(min(_LOOK, left) if left > 0 else 0.05)
                aims = self._ask_aims() if policy.exact else self._aims
                if aims != self._aims:
                    at_first = self._count(at_first, wanted, self._aims, taken, of)
                    self._aims = aims
                    wanted = self._hold(policy)
            figures = {} if command is None else {COMMAND: command.figure()}
        finally:
            if command is not None:
                command.end()
        aims = self._aims if policy.exact else _alike(self._aims, self._ask_aims())
        self._count(at_first, wanted, aims, taken, of)
        passed = self._clock() - began
        vcpus = _rates(statistics, self._statistics(), passed)
        took = self._traced(min(seconds, _TRACED))
        if took:
            figures[INJECTED] = 1e6 * median(took)
        for each in vcpus.values():
            for name, rate in each.items():
                figures[name] = figures.get(name, 0.0) + rate
        parts = {name: Part(taken[name], count) for name, count in of.items() if name}
        return Block(policy.name, number, passed, of[""], parts, figures, vcpus)

    def _traced(self, seconds: float) -> list[float]:
        """Seconds from interrupts to their injection."""
        threads = {each.index: each.tid for each in self._guest.vcpus if each.tid is not None}
        if self._trace is None or not threads:
            return []
        there = self._interrupts()
        aimed = {}
        for each in there:
            found = self._aims.get(each.device, {}).get(each.vector or 0)
            if found is not None and found.vcpu in threads:
                aimed[str(each.key.action)] = threads[found.vcpu]
        irqs = [each.irq for each in there]
        return self._trace.look(irqs, threads.values(), aimed, seconds, self._sleep)

    def _count(
        self,
        before: Sequence[Interrupt],
        wanted: Places,
        aims: Aims,
        taken: Counter[str],
        of: Counter[str],
    ) -> Sequence[Interrupt]:
        """Add what came since `before`; "" is everything. What there is now."""
        now = self._interrupts(counted=True)
        self._check_same(now)
        was = {each.key: each for each in before}
        for each in now:
            if each.irq != was[each.key].irq:
                raise DisturbedError(f"{each.key} was set up anew")
            if each.affinity != wanted[each.key]:
                raise DisturbedError(
                    f"IRQ {each.irq} {each.key} was moved to CPUs {each.affinity} by someone",
                    hint="if it is irqbalance: see 'virtirq explain irqbalance-running'",
                )
            came = Counter(each.counts or {})
            came.subtract(was[each.key].counts or {})
            total = sum(came.values())
            of[""] += total
            for name, cpus in self._places_of(each, wanted[each.key], aims).items():
                of[name] += total
                taken[name] += sum(came[cpu] for cpu in cpus)
        return now

    def _places_of(self, interrupt: Interrupt, wanted: CpuSet, aims: Aims) -> dict[str, CpuSet]:
        """By each share that can be told: the CPUs where the interrupt is right."""
        found = {PLANNED: wanted}
        if self._own:
            found[OWN] = self._own
        device = self._snapshot.pci.get(interrupt.device)
        number = device.node if device is not None else None
        node = None if number is None else self._snapshot.topology.nodes.get(number)
        if node is not None:
            found[NEAR] = node.cpus
        aimed = aims.get(interrupt.device, {}).get(interrupt.vector or 0)
        cpus = None if aimed is None or aimed.vcpu is None else self._vcpus.get(aimed.vcpu)
        if cpus and interrupt.vector is not None:
            found[EXACT] = cpus
        return found

    def _check_same(self, interrupts: Sequence[Interrupt]) -> None:
        there = {each.key for each in interrupts}
        if there != self._as_is.keys():
            gone, new = self._as_is.keys() - there, there - self._as_is.keys()
            what = "gone" if gone else "new"
            raise DisturbedError(f"an interrupt is {what}: {min(gone or new)}")

    def _interrupts(self, *, counted: bool = False) -> list[Interrupt]:
        """Those that VFIO has set up for the guest, in order."""
        self._fs.refresh()
        possible = self._snapshot.topology.possible if counted else CpuSet()
        found = cycle.observe_devices(Reader(self._fs), self._devices, possible)
        return [each for each in found.interrupts if each.own_action and each.affinity is not None]


class _Command:
    """A command of the user's, whose last number is the figure."""

    def __init__(self, line: str) -> None:
        self._line = line
        self._process = subprocess.Popen(  # noqa: S602
            line,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def check(self) -> None:
        """Raises InputError where it has failed."""
        if self._process.poll():
            raise InputError(f"--metric {self._line!r} ended with {self._process.returncode}")

    def figure(self) -> float:
        """Raises InputError."""
        said, _ = self._process.communicate()
        self.check()
        numbers = _NUMBER.findall(said)
        if not numbers:
            raise InputError(
                f"--metric {self._line!r} printed no number", hint="the last one it prints counts"
            )
        return float(numbers[-1])

    def end(self) -> None:
        if not self.ended:
            self._process.kill()
            self._process.wait()


def check_policies(policies: Sequence[Policy]) -> None:
    """Raises UsageError where they cannot be compared."""
    names = [policy.name for policy in policies]
    if len(names) < 2:
        raise UsageError("a comparison takes two policies at least", hint="such as: as-is auto")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice")


def _places(interrupts: Sequence[Interrupt]) -> dict[InterruptKey, CpuSet]:
    return {each.key: each.affinity for each in interrupts if each.affinity is not None}


def _rates(before: VcpuCounts, after: VcpuCounts, seconds: float) -> dict[int, dict[str, float]]:
    """A second, by vCPU and our name, of those that were there all the time."""
    return {
        vcpu: {
            STATISTICS[name]: (counts[name] - before[vcpu][name]) / seconds
            for name in STATISTICS
            if name in counts and name in before[vcpu]
        }
        for vcpu, counts in sorted(after.items())
        if vcpu in before
    }


def _alike(before: Aims, after: Aims) -> Aims:
    """What the guest has aimed at the same vCPU all the time."""
    return {
        address: {
            vector: aimed
            for vector, aimed in vectors.items()
            if after.get(address, {}).get(vector) == aimed
        }
        for address, vectors in before.items()
    }
