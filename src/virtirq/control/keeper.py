"""Keeps interrupts where they belong: knows what is wanted, is told what happens, and acts.

No event loop and no thread in here: the daemon says what happened, and each time the one way
through the house is walked for just the devices concerned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from virtirq.control.cycle import observe_devices, put_back
from virtirq.control.executor import Executor
from virtirq.control.journal import Journal, SharedJournal
from virtirq.control.log import Fields, Log
from virtirq.control.tally import Tally, Trigger
from virtirq.cpuset import CpuSet
from virtirq.errors import VirtirqError
from virtirq.host.events import KernelEvent
from virtirq.host.fs import HostFs, Reader
from virtirq.host.interrupts import read_interrupt, read_interrupts, vfio_action
from virtirq.host.pci import read_devices
from virtirq.host.topology import read_topology
from virtirq.model import (
    Action,
    Finding,
    Gap,
    Guest,
    Interrupt,
    InterruptKey,
    InterruptKind,
    Outcome,
    PciAddress,
    PciDevice,
    Pin,
    Remembered,
    Snapshot,
    Status,
    by_device,
)
from virtirq.policy.config import Config
from virtirq.policy.drift import Fights
from virtirq.policy.findings import contested
from virtirq.policy.placement import SOMEONE, Aim, Aims
from virtirq.policy.target import Target

SOMEBODY: Final = "someone unknown"
_AGAIN: Final = 0.5
"""Seconds until what could not be done (another virtirq held the lock) is tried again."""
_SOON: Final = 0.01
"""Seconds until a look at an interrupt that was announced and is not there yet."""

_NO_COUNTS: Final = CpuSet()
_INTX: Final = "vfio-intx("
_BATCH: Final = 64
"""Pins taken together: a device's vectors come at once, and each waits for those before it."""

Later = Callable[[float, Callable[[], object]], object]
"""Calls the function after so many seconds."""


class Keeper:
    """The guests, what is wanted for their devices, and which interrupts those have.

    `later` is how it asks to be called again; `clock` gives the seconds of CLOCK_MONOTONIC, as
    kernel events do.
    """

    def __init__(
        self,
        fs: HostFs,
        journal: SharedJournal,
        config: Config,
        log: Log,
        tally: Tally,
        later: Later,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fs = fs
        self._journal = journal
        self._config = config
        self._log = log
        self._tally = tally
        self._later = later
        self._clock = clock
        self._guests: dict[str, Guest] = {}
        self._topology = read_topology(Reader(fs))
        self._pci: dict[PciAddress, PciDevice] = {}
        self._aims = Aims(Snapshot(0.0, self._topology), config)
        self._irqs: dict[int, InterruptKey] = {}
        self._appearing: dict[str, Action] = {}
        """What to do when an interrupt of this name appears, once that was asked."""
        self._fights: Fights[InterruptKey] = Fights(clock)
        self._waiting: set[InterruptKey] = set()
        self._let_go: frozenset[PciAddress] = frozenset()
        self._said: dict[InterruptKey, str] = {}

    @property
    def guests(self) -> tuple[Guest, ...]:
        return tuple(self._guests.values())

    @property
    def config(self) -> Config:
        return self._config

    @property
    def threads(self) -> frozenset[int]:
        """The thread ids on whose affinity what is wanted depends."""
        found = {vcpu.tid for guest in self.guests for vcpu in guest.vcpus if vcpu.tid is not None}
        return frozenset(found | {guest.pid for guest in self.guests if guest.pid is not None})

    def guest_of_thread(self, tid: int) -> Guest | None:
        """The guest that one of `threads` belongs to."""
        for guest in self.guests:
            if tid == guest.pid or any(vcpu.tid == tid for vcpu in guest.vcpus):
                return guest
        return None

    @property
    def kept(self) -> frozenset[int]:
        """The IRQ numbers of which we say where they go."""
        return frozenset(
            irq
            for irq, key in self._irqs.items()
            if (aim := self._aims.of(key.device)) is not None and aim.target.cpus is not None
        )

    def findings(self) -> tuple[Finding, ...]:
        """Interrupts that someone else moves again and again."""
        return tuple(
            contested(self._name_of(key.device), key, fight)
            for key, fight in self._fights.ongoing()
        )

    # What is wanted has changed.

    def know(self, guests: Iterable[Guest], gaps: Sequence[Gap] = ()) -> None:
        """These guests run, and no others, unless there are `gaps` in what could be read.

        Then whoever is missing is believed to run on as before.
        """
        told = {guest.key: guest for guest in guests}
        for gap in gaps:
            self._log.warning(f"not read: {gap.path}: {gap.error}")
        self._change(self._guests | told if gaps else told, remembered=not gaps)

    def update(self, guest: Guest) -> None:
        """This guest runs so now."""
        self._change({**self._guests, guest.key: guest}, look=_addresses([guest]))

    def gone(self, key: str) -> None:
        """The guest has stopped. What is left of it is put back."""
        if key in self._guests:
            self._change({each: g for each, g in self._guests.items() if each != key})

    def reconfigure(self, config: Config) -> None:
        self._config = config
        self._change(self._guests)

    def cpus_changed(self) -> None:
        """A CPU came or went: targets may be others, and the kernel may have moved interrupts."""
        self._topology = read_topology(Reader(self._fs))
        self._change(self._guests, look=_addresses(self.guests))

    def device_changed(self, address: PciAddress) -> None:
        """A device was given to a driver, or taken from one."""
        if address in self._pci or self._aims.of(address) is not None:
            self._pci.pop(address, None)
            self._change(self._guests, look={address})

    def _change(
        self,
        guests: dict[str, Guest],
        look: Collection[PciAddress] = (),
        *,
        remembered: bool = False,
    ) -> None:
        """Plan anew, look at the devices for which that makes a difference, and let go of others.

        `remembered`: what the journal has of devices that no guest holds is put back as well.
        """
        before, targets = _addresses(self.guests), self._targets()
        self._guests = guests
        owned = _addresses(self.guests)
        self._pci = {address: pci for address, pci in self._pci.items() if address in owned}
        missing = owned - self._pci.keys()
        self._pci |= read_devices(Reader(self._fs), sorted(missing))
        self._aims = Aims(
            Snapshot(0.0, self._topology, pci=self._pci, guests=self.guests), self._config
        )
        self._appearing.clear()
        departed = before - owned
        self._forget(departed)
        if remembered:
            departed |= self._strangers(owned)
        native = frozenset(address for address in owned if self._is_native(address))
        self._restore(departed | (native - self._let_go))
        self._let_go = native
        now = self._targets()
        changed = {address for address, target in now.items() if targets.get(address) != target}
        self.look(changed | (set(look) & owned), Trigger.PLAN)

    def _targets(self) -> dict[PciAddress, Target]:
        aims = {address: self._aims.of(address) for address in _addresses(self.guests)}
        return {address: aim.target for address, aim in aims.items() if aim is not None}

    def _is_native(self, address: PciAddress) -> bool:
        aim = self._aims.of(address)
        return aim is not None and aim.target.code == "native"

    def _strangers(self, owned: Collection[PciAddress]) -> set[PciAddress]:
        """Devices that were moved for guests which are gone since."""
        try:
            with self._journal.held() as journal:
                return {each.key.device for each in journal.remembered()} - set(owned)
        except VirtirqError as error:
            self._failed(error)
            return set()

    def _forget(self, addresses: Collection[PciAddress]) -> None:
        for irq, key in list(self._irqs.items()):
            if key.device in addresses:
                del self._irqs[irq]
                self._fights.forget(key)
                self._said.pop(key, None)

    # Something happened to interrupts.

    def requested(self, events: Iterable[KernelEvent]) -> None:
        """Guests have set interrupts up; each event has IRQ, action and time."""
        pins, at, lines = [], {}, set()
        for event in events:
            todo = self._expected(event.name)
            if todo is None:
                continue
            if todo.key.action.startswith(_INTX):
                lines.add(todo.key.device)  # others may be on the line
                continue
            self._irqs[event.irq] = todo.key
            if isinstance(todo, Pin) and not self._fights.wait(todo.key):
                pins.append(_at(event.irq, todo))
                at[todo.key] = event.at
        if pins:
            outcomes = self._carry_out(pins, Trigger.NEW)
            for outcome in outcomes:
                self._tally.reactions.observe(max(0.0, self._clock() - at[outcome.pin.key]))
            early = {o.pin.key.device for o in outcomes if o.status is Status.VANISHED}
            if early:  # asked for, and not in place yet; or gone again
                self._later(_SOON, lambda: self.look(early, Trigger.NEW))
        if lines:
            self.look(lines, Trigger.NEW)

    def _expected(self, name: str) -> Action | None:
        """What to do when an interrupt with this action appears; IRQ 0 stands for its number."""
        known = self._appearing.get(name)
        if known is not None:
            return known
        action = vfio_action(name)
        aim = None if action is None else self._aims.of(action.device)
        if action is None or aim is None:
            return None
        todo = aim.appeared(Interrupt(0, action.device, action.kind, action.vector, (name,)))
        self._appearing[name] = todo
        return todo

    def freed(self, irq: int) -> None:
        """A driver gives the interrupt up."""
        key = self._irqs.pop(irq, None)
        if key is not None and key.action.startswith(_INTX):
            # Others may be on the line, and it may be one of them that lets go.
            self._later(_SOON, lambda: self.look([key.device], Trigger.NEW))

    def moved(self, irq: int, who: str = "", pid: int | None = None) -> None:
        """The task `who` has set the affinity of an interrupt, maybe one of ours."""
        key = self._irqs.get(irq)
        if key is None:
            return
        pin = self._misplaced(irq, key)
        if pin is None:
            return
        mover = who or SOMEBODY
        self._tally.drifted(mover)
        delay = self._fights.moved(key, mover)
        teller = SOMEONE if pid is None else f"{mover} (pid {pid})"
        if not delay:
            self._carry_out([pin], Trigger.DRIFT, teller)
        elif key not in self._waiting:
            self._log.warning(
                f"IRQ {irq} {key}: {teller} keeps moving it: put back in {delay:.0f} seconds",
                guest=self._name_of(key.device),
                device=key.device,
                irq=irq,
                finding="affinity-contested",
            )
            self._wait(key, delay)

    def allocated(self, irq: int, who: str, pid: int) -> None:
        """An interrupt got a vector, be it new or moved: what x86 tells without kernel probes."""
        if irq in self._irqs:
            self.moved(irq, who, pid)
        else:
            # Told in the midst of it, and of every interrupt of the host.
            for delay in (_SOON, 20 * _SOON):
                self._later(delay, lambda: self._identify(irq))

    def _identify(self, irq: int) -> None:
        for address in _addresses(self.guests):
            reader = Reader(self._fs)
            for kind in (InterruptKind.MSIX, InterruptKind.INTX):
                interrupt = read_interrupt(reader, irq, address, kind)
                if interrupt is not None and interrupt.own_action:
                    self.look([address], Trigger.NEW)
                    return

    def look(self, addresses: Iterable[PciAddress], trigger: Trigger) -> int:
        """Read the interrupts of these devices and put right what is not; how many were."""
        aims = [(each, aim) for each in sorted(addresses) if (aim := self._aims.of(each))]
        if not aims:
            return 0
        began = self._clock()
        found = by_device(
            read_interrupts(Reader(self._fs), [address for address, _ in aims], _NO_COUNTS)
        )
        pins: list[Pin] = []
        for address, aim in aims:
            interrupts = found.get(address, ())
            self._remember(address, interrupts)
            pins += (todo for todo in aim.plan(interrupts).actions if isinstance(todo, Pin))
        pins = [pin for pin in pins if not self._fights.wait(pin.key)]
        if pins:
            self._carry_out(pins, trigger)
        self._tally.cycles.observe(self._clock() - began)
        return len(pins)

    def poll(self) -> bool:
        """Look at everything, for want of events; whether anything was not as it was left."""
        before = dict(self._irqs)
        addresses = _addresses(self.guests)
        drifted = 0
        for irq, key in before.items():
            if self._misplaced(irq, key) is not None:
                self.moved(irq)
                drifted += 1
        return bool(self.look(addresses, Trigger.NEW) + drifted) or self._irqs != before

    def look_at_all(self, trigger: Trigger = Trigger.PLAN) -> None:
        """Events were missed: look at everything."""
        self.look(_addresses(self.guests), trigger)

    def restore_all(self) -> None:
        """Put back everything that is not as virtirq found it."""
        self._restore(None)

    def _remember(self, address: PciAddress, interrupts: Iterable[Interrupt]) -> None:
        now = {each.irq: each.key for each in interrupts if each.own_action}
        for irq, key in list(self._irqs.items()):
            if key.device == address and irq not in now:
                del self._irqs[irq]
        self._irqs |= now

    def _misplaced(self, irq: int, key: InterruptKey) -> Pin | None:
        """How to put an interrupt right that we keep; None when it is where it should be."""
        aim, action = self._aims.of(key.device), vfio_action(key.action)
        if aim is None or action is None:
            return None
        interrupt = read_interrupt(Reader(self._fs), irq, key.device, action.kind)
        if interrupt is None or interrupt.key != key:
            return None
        todo: Action = aim.decide(interrupt)
        return todo if isinstance(todo, Pin) else None

    def _wait(self, key: InterruptKey, delay: float) -> None:
        self._waiting.add(key)

        def over() -> None:
            self._waiting.discard(key)
            remaining = self._fights.wait(key)
            if remaining:
                self._wait(key, remaining)
            else:
                self.look([key.device], Trigger.DRIFT)

        self._later(delay, over)

    # Acting.

    def _carry_out(
        self, pins: Sequence[Pin], trigger: Trigger, mover: str = SOMEONE
    ) -> tuple[Outcome, ...]:
        names = {guest.key: guest.name for guest in self.guests}
        try:
            with self._journal.held() as journal:
                executor = Executor(self._fs, journal, names=names, batch=_BATCH, mover=mover)
                outcomes = executor.run(tuple(pins))
        except VirtirqError as error:
            self._failed(error)
            devices = {pin.key.device for pin in pins}
            self._later(_AGAIN, lambda: self.look(devices, trigger))
            return ()
        # After whatever else has happened meanwhile: it is waiting to be moved.
        self._later(0, lambda: self._tell_all(outcomes, trigger))
        return outcomes

    def _tell_all(self, outcomes: Iterable[Outcome], trigger: Trigger) -> None:
        for outcome in outcomes:
            self._tell(outcome, trigger)

    def _restore(self, addresses: Collection[PciAddress] | None) -> None:
        """Put back what the journal knows of these devices; of all for None."""
        if addresses is not None and not addresses:
            return
        try:
            with self._journal.held() as journal:
                entries = [
                    each
                    for each in journal.remembered()
                    if addresses is None or each.key.device in addresses
                ]
                if entries:
                    self._put_back(journal, entries)
        except VirtirqError as error:
            self._failed(error)

    def _put_back(self, journal: Journal, entries: Sequence[Remembered]) -> None:
        devices = observe_devices(
            Reader(self._fs),
            {each.key.device for each in entries},
            _NO_COUNTS,
            {each.key.device for each in entries if each.kind is InterruptKind.INTX},
        )
        snapshot = Snapshot(
            0.0,
            self._topology,
            pci=devices.pci,
            interrupts=devices.interrupts,
            guests=self.guests,
            unread=devices.unread,
        )
        for outcome in put_back(self._fs, journal, snapshot, entries).outcomes:
            self._tell(outcome, Trigger.RESTORE)

    def _tell(self, outcome: Outcome, trigger: Trigger) -> None:
        pin = outcome.pin
        self._tally.moves[trigger.value, outcome.status.value] += 1
        if outcome.status in (Status.UNCHANGED, Status.VANISHED):
            return
        where = f"IRQ {pin.irq} {pin.key}"
        why = outcome.reason
        told = Fields(
            guest=self._name_of(pin.key.device) or pin.guest,
            device=pin.key.device,
            irq=pin.irq,
            action="restore" if trigger is Trigger.RESTORE else "pin",
            status=outcome.status.value,
            before=pin.before,
            after=outcome.affinity,
            reason=f"{trigger.value}: {pin.reason.code}",
        )
        if not outcome.status.bad:
            self._said.pop(pin.key, None)
            self._log.info(f"{where}: {why}", **told)
        elif self._said.get(pin.key) != outcome.reason:
            # Said once: it fails at each look until somebody does something about it.
            self._said[pin.key] = outcome.reason
            hint = f" (hint: {outcome.hint})" if outcome.hint else ""
            self._log.warning(f"{where}: {outcome.status.value}: {why}{hint}", **told)

    def _failed(self, error: VirtirqError) -> None:
        hint = f" (hint: {error.hint})" if error.hint else ""
        self._log.error(f"{error}{hint}")

    def _name_of(self, address: PciAddress) -> str:
        aim: Aim | None = self._aims.of(address)
        return aim.guest.name if aim is not None else ""


def _at(irq: int, pin: Pin) -> Pin:
    """The same for the interrupt of this number; dataclasses.replace() takes four times as long."""
    return Pin(
        irq,
        pin.key,
        pin.guest,
        pin.before,
        pin.after,
        pin.reason,
        pin.kind,
        pin.alternatives,
    )


def _addresses(guests: Iterable[Guest]) -> set[PciAddress]:
    return {device.address for guest in guests for device in guest.devices}
