"""One way through the house: observe, plan, carry out, observe again."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from virtirq.control.executor import Executor
from virtirq.control.journal import Journal, locked_journal
from virtirq.errors import UsageError
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.host.interrupts import read_interrupts, read_vector_load
from virtirq.host.irqbalance import read_irqbalance
from virtirq.host.pci import read_devices
from virtirq.host.posting import read_posting
from virtirq.host.topology import read_topology
from virtirq.model import Gap, Guest, Keep, Outcome, PciAddress, Plan, Snapshot
from virtirq.policy.config import Config
from virtirq.policy.placement import plan, restore_plan

STATE_DIR: Final = Path("/run/virtirq")


@dataclass(frozen=True, slots=True)
class Done:
    """A plan and what became of it. `fault`: /proc/irq could not be written at all."""

    snapshot: Snapshot
    plan: Plan
    outcomes: tuple[Outcome, ...] = ()
    fault: bool = False


def observe(
    fs: HostFs,
    guests: Sequence[Guest],
    also: Iterable[PciAddress] = (),
    gaps: Sequence[Gap] = (),
) -> Snapshot:
    """The host now, with these guests; `also` names more devices to read interrupts of.

    `gaps` are what could not be read of the guests.
    """
    reader = Reader(fs)
    topology = read_topology(reader)
    addresses = {device.address for guest in guests for device in guest.devices} | set(also)
    pci = read_devices(reader, sorted(addresses))
    return Snapshot(
        taken_at=time.time(),
        topology=topology,
        boot_id=reader.text(paths.BOOT_ID),
        kernel=reader.text(paths.OS_RELEASE),
        recording=fs.recording,
        pci=pci,
        interrupts=read_interrupts(reader, pci, topology.possible),
        guests=tuple(guests),
        vectors_on=read_vector_load(reader),
        posting=read_posting(reader),
        irqbalance=read_irqbalance(reader),
        gaps=(*gaps, *reader.gaps),
    )


def chosen(whole: Plan, names: Sequence[str], known: Iterable[Guest] = ()) -> Plan:
    """The part of a plan that concerns the named guests (name, UUID or id); all for no names.

    The whole is planned first, so that a part of it comes out the same. Raises UsageError for a
    name that neither the plan nor `known` has.
    """
    if not names:
        return whole
    guests = [*(each.guest for each in whole.guests), *known]
    for name in names:
        if not any(name in guest.names for guest in guests):
            there = ", ".join(dict.fromkeys(guest.name for guest in guests)) or "none"
            raise UsageError(f"no guest is called {name!r}", hint=f"guests here: {there}")
    wanted = set(names)
    return Plan(tuple(each for each in whole.guests if wanted & each.guest.names))


def apply(
    fs: HostFs, guests: Sequence[Guest], config: Config, state: Path, names: Sequence[str]
) -> Done:
    """One cycle: observe, plan and carry the plan out, under the lock."""
    with _journal(fs, state) as journal:
        snapshot = observe(fs, guests)
        chosen_plan = chosen(plan(snapshot, config), names)
        return _carry_out(fs, journal, snapshot, chosen_plan, restoring=False)


def restore(fs: HostFs, guests: Sequence[Guest], state: Path, names: Sequence[str]) -> Done:
    """Put back what virtirq moved: another plan through the same executor."""
    with _journal(fs, state) as journal:
        remembered = journal.remembered()
        snapshot = observe(fs, guests, also=(each.key.device for each in remembered))
        chosen_plan = chosen(restore_plan(snapshot, remembered), names, guests)
        done = _carry_out(fs, journal, snapshot, chosen_plan, restoring=True)
        for action in chosen_plan.actions:
            if isinstance(action, Keep) and action.reason.code != "unknown-place":
                journal.forget(action.key)
        # A vector may be absent for a moment while the guest moves it, keeping its affinity; a
        # device without any interrupt has given them all up, and their affinity with them.
        holding = {each.device for each in snapshot.interrupts}
        for entry in remembered:
            if entry.key.device not in holding:
                journal.forget(entry.key)
        return done


@contextmanager
def _journal(fs: HostFs, state: Path) -> Iterator[Journal]:
    if not fs.writable:
        raise UsageError(
            f"{fs.recording} is a recording: nothing can be moved there",
            hint="use --dry-run, or make a scratch copy with 'virtirq demo DIR'",
        )
    with locked_journal(state, Reader(fs).text(paths.BOOT_ID)) as journal:
        yield journal


def _carry_out(
    fs: HostFs, journal: Journal, snapshot: Snapshot, todo: Plan, *, restoring: bool
) -> Done:
    executor = Executor(fs, journal)
    outcomes = executor.run(todo.pins, restoring=restoring)
    return Done(snapshot, todo, outcomes, executor.deployment_fault)
