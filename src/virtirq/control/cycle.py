"""One way through the house: observe, plan, carry out, observe again.

What only moves interrupts is imported where that is done: most commands only look.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.errors import JournalError, UnknownGuestError, UsageError
from virtirq.guests.libvirt.values import uuid_of_text
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.host.interrupts import read_counts, read_interrupts, read_vector_load
from virtirq.host.irqbalance import read_irqbalance
from virtirq.host.pci import read_devices, vfio_functions
from virtirq.host.posting import read_posting
from virtirq.host.topology import read_topology
from virtirq.host.vfio import other_interrupts
from virtirq.model import (
    Gap,
    Guest,
    Interrupt,
    InterruptKind,
    Outcome,
    PciAddress,
    PciDevice,
    Plan,
    Remembered,
    Snapshot,
    VfioAction,
)
from virtirq.policy.config import Config
from virtirq.policy.plan import plan
from virtirq.policy.room import crowding, with_counts
from virtirq.values import dataclass, replace

if TYPE_CHECKING:
    from virtirq.control.journal import Journal

STATE_DIR: Final = Path("/run/virtirq")
_NAMED: Final = 20
"""So many guests are named where one is not there."""


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
    lines: Collection[PciAddress] = (),
    *,
    counts: bool = True,
) -> Snapshot:
    """The host now, with these guests; `also` names more devices to read interrupts of.

    `gaps` are what could not be read of the guests. Of the devices in `lines`, the INTx line is
    read even while it is not in use. `counts`: how often each interrupt was taken, which is a
    quarter of the reading.
    """
    reader = Reader(fs)
    topology = read_topology(reader)
    possible = topology.possible if counts else CpuSet()
    held = {device.address for guest in guests for device in guest.devices}
    pci, interrupts, unread = observe_devices(reader, held | set(also), possible, lines)
    return Snapshot(
        topology=topology,
        boot_id=reader.text(paths.BOOT_ID),
        kernel=reader.text(paths.OS_RELEASE),
        recording=fs.recording,
        pci=pci,
        interrupts=interrupts,
        guests=tuple(guests),
        vectors_on=read_vector_load(reader, interrupts),
        posting=read_posting(reader),
        irqbalance=read_irqbalance(reader),
        gaps=(*gaps, *reader.gaps),
        unread=unread,
        unclaimed=_unclaimed(fs, held),
        not_pci=other_interrupts(fs),
    )


def planned(fs: HostFs, snapshot: Snapshot, config: Config) -> tuple[Snapshot, Plan]:
    """What is to happen, and the snapshot with all that was looked at for it.

    Where CPUs become short of vectors, those that have fired come first: then counts that were left
    out are read, of the guests that need them.
    """
    made = plan(snapshot, config)
    devices = crowding(made, snapshot.vectors_on)

    def lacks(each: Interrupt) -> bool:
        return each.device in devices and each.counts is None

    if not any(map(lacks, snapshot.interrupts)):
        return snapshot, made
    reader, cpus = Reader(fs), tuple(snapshot.topology.possible)
    interrupts = tuple(
        replace(each, counts=read_counts(reader, each.irq, cpus)) if lacks(each) else each
        for each in snapshot.interrupts
    )
    snapshot = replace(snapshot, interrupts=interrupts, gaps=(*snapshot.gaps, *reader.gaps))
    return snapshot, with_counts(made, interrupts)


def _unclaimed(fs: HostFs, known: Collection[PciAddress]) -> dict[PciAddress, int]:
    """How many interrupts VFIO has of each device that no guest has."""
    found = vfio_interrupts(fs, vfio_functions(fs) - set(known))
    return {device: len(irqs) for device, irqs in sorted(found.items())}


def vfio_interrupts(fs: HostFs, devices: Iterable[PciAddress]) -> dict[PciAddress, list[int]]:
    """The IRQ numbers that VFIO has set up of each of these devices, of those that have any."""
    found: dict[PciAddress, list[int]] = {}
    for each in read_interrupts(Reader(fs), devices, CpuSet()):
        if any(map(VfioAction.parse, each.actions or ())):
            found.setdefault(each.device, []).append(each.irq)
    return found


class Devices(NamedTuple):
    """Devices that the host has, their interrupts, and of which something could not be read."""

    pci: dict[PciAddress, PciDevice]
    interrupts: tuple[Interrupt, ...]
    unread: frozenset[PciAddress]


def observe_devices(
    reader: Reader,
    addresses: Iterable[PciAddress],
    possible: CpuSet,
    lines: Collection[PciAddress] = (),
) -> Devices:
    """These devices and their interrupts; counts are read where the `possible` CPUs are given."""
    pci: dict[PciAddress, PciDevice] = {}
    interrupts: list[Interrupt] = []
    unread = set()
    for address in sorted(addresses):
        mark = reader.mark()
        device = read_devices(reader, [address])
        pci |= device
        interrupts += read_interrupts(reader, device, possible, lines)
        if reader.mark() != mark:
            unread.add(address)
    return Devices(pci, tuple(interrupts), frozenset(unread))


def chosen(whole: Plan, names: Sequence[str], known: Iterable[Guest] = ()) -> Plan:
    """The part of a plan that concerns these guests (name, glob, UUID or id); all for no names.

    The whole is planned first, so that a part of it comes out the same. Raises
    UnknownGuestError for a name that neither the plan nor `known` has.
    """
    if not names:
        return whole
    guests = [*(each.guest for each in whole.guests), *known]
    keys = {guest.key for name in names for guest in called(name, guests, globs=True)}
    return Plan(tuple(each for each in whole.guests if each.guest.key in keys))


def named(name: str, guests: Sequence[Guest]) -> Guest:
    """The first guest of this name, UUID or id. Raises UnknownGuestError."""
    return called(name, guests)[0]


def called(name: str, guests: Sequence[Guest], *, globs: bool = False) -> list[Guest]:
    """The guests that virsh would take `name` for: by id, else by UUID, else by name.

    With `globs`, else those whose name it fits as a shell's pattern. libvirt:
    tools/virsh-util.c, virshLookupDomainInternal(). Raises UnknownGuestError.
    """
    uuids = {name, uuid_of_text(name)} - {None}
    found = (
        [guest for guest in guests if guest.domain_id is not None and name == str(guest.domain_id)]
        or [guest for guest in guests if guest.uuid in uuids]
        or [guest for guest in guests if name == guest.name]
        or [guest for guest in guests if globs and fnmatchcase(guest.name, name)]
    )
    if found:
        return found
    raise UnknownGuestError(
        f"no guest is called {name!r}", hint=_guests_here(name, guests), name=name
    )


def _guests_here(name: str, guests: Iterable[Guest]) -> str:
    from difflib import get_close_matches

    names = list(dict.fromkeys(guest.name for guest in guests))
    alike = get_close_matches(name, names, n=1)
    if alike:
        return f"did you mean {alike[0]}?"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"guests here: {', '.join(names[:_NAMED]) or 'none'}{more}"


def apply(
    fs: HostFs,
    guests: Sequence[Guest],
    config: Config,
    state: Path,
    names: Sequence[str],
    *,
    counts: bool = False,
) -> Done:
    """One cycle: observe, plan and carry the plan out, under the lock."""
    with _journal(fs, state) as journal:
        snapshot = observe(fs, guests, counts=counts)
        snapshot, whole = planned(fs, snapshot, config)
        chosen_plan = chosen(whole, names)
        with _interruption() as interrupted:
            return _carry_out(fs, journal, snapshot, chosen_plan, interrupted, restoring=False)


def restore(
    fs: HostFs,
    guests: Sequence[Guest],
    state: Path,
    names: Sequence[str],
    *,
    dry_run: bool = False,
    counts: bool = False,
) -> Done:
    """Put back what virtirq moved: another plan through the same executor."""
    from virtirq.policy.restoring import remembered_guest, restore_plan

    with _journal(fs, state, undoing=True) as journal:
        remembered = journal.remembered()
        snapshot = observe(
            fs,
            guests,
            also=[each.key.device for each in remembered],
            lines={each.key.device for each in remembered if each.kind is InterruptKind.INTX},
            counts=counts,
        )
        them = [*guests, *(remembered_guest(each.guest, each.name) for each in remembered)]
        if dry_run:
            return Done(snapshot, chosen(restore_plan(snapshot, remembered), names, them))
        with _interruption() as interrupted:
            return put_back(
                fs,
                journal,
                snapshot,
                remembered,
                choose=lambda whole: chosen(whole, names, them),
                interrupted=interrupted,
            )


def put_back(
    fs: HostFs,
    journal: Journal,
    snapshot: Snapshot,
    remembered: Sequence[Remembered],
    *,
    choose: Callable[[Plan], Plan] = lambda whole: whole,
    interrupted: Callable[[], bool] = lambda: False,
) -> Done:
    """Give interrupts back what they had, and forget what is settled or gone for certain.

    `snapshot` has the interrupts of all the devices concerned, their INTx lines included.
    """
    from virtirq.policy.restoring import restore_plan, settled

    whole = restore_plan(snapshot, remembered)
    part = choose(whole)
    done = _carry_out(fs, journal, snapshot, part, interrupted, restoring=True)
    there = {action.key for action in whole.actions}
    over = {action.key for action in part.actions if settled(action)}
    # A journal that takes no more says so again at the next restore, and nothing is lost.
    with suppress(JournalError):
        for entry in remembered:
            if entry.key in over or entry.key not in there:
                journal.forget(entry.key)
    return done


def check_writable(fs: HostFs) -> None:
    """Raises UsageError for a host where nothing can be moved."""
    if not fs.writable:
        raise UsageError(
            f"{fs.recording} is a recording: nothing can be moved there",
            hint="'virtirq plan' says what would be; 'virtirq demo DIR' makes a host to try it on",
        )


@contextmanager
def _journal(fs: HostFs, state: Path, *, undoing: bool = False) -> Iterator[Journal]:
    from virtirq.control.journal import boot_id, locked_journal

    check_writable(fs)
    with locked_journal(state, boot_id(fs), undoing=undoing) as journal:
        fs.refresh()  # until now another virtirq may have been at work
        yield journal


def _carry_out(
    fs: HostFs,
    journal: Journal,
    snapshot: Snapshot,
    todo: Plan,
    interrupted: Callable[[], bool],
    *,
    restoring: bool,
) -> Done:
    from virtirq.control.executor import Executor
    from virtirq.policy.room import making_room

    names = {each.guest.key: each.guest.name for each in todo.guests}
    executor = Executor(
        fs,
        journal,
        names=names,
        restoring=restoring,
        interrupted=interrupted,
        room=partial(
            making_room,
            actions=() if restoring else todo.actions,
            interrupts=snapshot.interrupts,
            topology=snapshot.topology,
        ),
    )
    outcomes = executor.run(todo.pins)
    return Done(snapshot, todo, outcomes, executor.deployment_fault)


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Ctrl-C stops between two pins, and what was done until then is told."""
    import signal
    import threading

    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
    if ignored or threading.current_thread() is not threading.main_thread():
        yield lambda: False  # signals are the main thread's, and its parent's to switch off
        return
    caught = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: caught.set())
    try:
        yield caught.is_set
    finally:
        signal.signal(signal.SIGINT, before)
