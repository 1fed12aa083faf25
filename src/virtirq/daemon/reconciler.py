"""Keeps interrupts where they belong: knows what is wanted, is told what happens, and acts.

No event loop and no thread in here: the daemon says what happened, and each time the one way
through the house is walked for just the devices concerned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Final

from virtirq.control.counters import Counters, Trigger
from virtirq.control.journal import SharedJournal
from virtirq.cpuset import CpuSet
from virtirq.daemon.attempts import Attempts, Later
from virtirq.daemon.log import Log
from virtirq.daemon.retries import Postponed, Retries
from virtirq.host import paths
from virtirq.host.events import KernelEvent
from virtirq.host.fs import HostFs, Reader
from virtirq.host.interrupts import read_interrupt, read_interrupts
from virtirq.host.pci import read_devices
from virtirq.host.topology import read_topology
from virtirq.model import (
    Action,
    Aimed,
    Finding,
    Gap,
    Guest,
    Interrupt,
    InterruptKey,
    Outcome,
    PciAddress,
    PciDevice,
    Pin,
    Remembered,
    Snapshot,
    Status,
    VfioAction,
    by_device,
)
from virtirq.policy.config import Config
from virtirq.policy.contention import Contentions
from virtirq.policy.findings import contested
from virtirq.policy.plan import Desired
from virtirq.policy.restoring import SOMEONE
from virtirq.policy.target import Target

SOMEBODY: Final = "someone unknown"
_SOON: Final = (0.01, 0.2)
"""Seconds until a look at what was announced and is not there yet."""
_INTX: Final = "vfio-intx("


class Reconciler:
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
        counters: Counters,
        later: Later,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fs = fs
        self._config = config
        self._log = log
        self._counters = counters
        self._later = later
        self._clock = clock
        self._attempts = Attempts(fs, journal, log, counters, later)
        self._guests: dict[str, Guest] = {}
        self._topology = read_topology(Reader(fs))
        self._pci: dict[PciAddress, PciDevice] = {}
        self._desired = Desired(self._topology, config)
        self._irqs: dict[int, dict[InterruptKey, bool]] = {}
        """The guests' interrupts by IRQ, several on a shared line: whether we say where they go."""
        self._kept: frozenset[int] | None = None
        self._of_device: dict[PciAddress, set[int]] = {}
        """The same numbers by device."""
        self._aimed: dict[PciAddress, Mapping[int, Aimed]] = {}
        """Which vCPU the guest itself aims each vector at, as far as it was learned."""
        self._appearing: dict[str, Action] = {}
        """What to do when an interrupt of this name appears, once that was asked."""
        self._contentions: Contentions[InterruptKey] = Contentions(clock)
        self._waiting: dict[InterruptKey, object] = {}
        self._let_go: frozenset[PciAddress] = frozenset()
        self._retries = Retries(later, self._again)
        self._places: dict[InterruptKey, tuple[int | None, str] | None] = {}
        """Incarnation and affinity of each interrupt after the last `poll`."""
        self.knows = False
        """Whether it was ever told which guests there are."""
        self.hidden = False
        """Whether there may be guests of which nothing can be seen."""

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

    def guest(self, key: str) -> Guest | None:
        """The guest of this key, if it is known."""
        return self._guests.get(key)

    def guest_of_thread(self, tid: int) -> Guest | None:
        """The guest that one of `threads` belongs to."""
        for guest in self.guests:
            if tid == guest.pid or any(vcpu.tid == tid for vcpu in guest.vcpus):
                return guest
        return None

    @property
    def aimed(self) -> Mapping[PciAddress, Mapping[int, Aimed]]:
        """The guests' own choices, as far as they were learned: see `aim`."""
        return self._aimed

    def followable(self, key: str) -> dict[PciAddress, dict[int, int]]:
        """The vectors of a guest that go where it aims them, by device: IRQ by vector."""
        found = {}
        guest = self._guests.get(key)
        for device in guest.devices if guest is not None else ():
            aim = self._desired.of(device.address)
            if aim is not None and aim.guest.key == key and aim.follows:
                vectors = self._vectors(device.address)
                if vectors:
                    found[device.address] = vectors
        return found

    def _vectors(self, address: PciAddress) -> dict[int, int]:
        """The known IRQs of the device by vector."""
        named = (
            (irq, VfioAction.parse(key.action))
            for irq in self._numbers(address)
            for key in self._irqs[irq]
            if key.device == address
        )
        return {
            action.vector: irq
            for irq, action in named
            if action is not None and action.vector is not None
        }

    @property
    def kept(self) -> frozenset[int]:
        """The IRQ numbers of which we say where they go; the same object until that changes."""
        if self._kept is None:
            self._kept = frozenset(irq for irq in self._irqs if self.keeps(irq))
        return self._kept

    def keeps(self, irq: int) -> bool:
        """Whether we say where the interrupt of this number goes."""
        return any(self._irqs.get(irq, {}).values())

    def findings(self) -> tuple[Finding, ...]:
        """Interrupts that someone else moves again and again."""
        return tuple(
            contested(self._name_of(key.device), key, contention)
            for key, contention in self._contentions.ongoing()
        )

    # What is wanted has changed.

    def know(
        self,
        guests: Iterable[Guest],
        gaps: Sequence[Gap] = (),
        *,
        complete: bool | None = None,
        only_note: bool = False,
        apart_from: str = "",
    ) -> None:
        """These guests run, and if that is `complete`, no others do but those of `apart_from`.

        Otherwise whoever is missing is believed to run on as before. `gaps` are what could not be
        read; where nothing else is said, any of them may be of a guest that is missing. With
        `only_note` their interrupts are noted and not moved: `look_at_all` does that.
        """
        complete = not gaps if complete is None else complete
        self.knows = True
        told = {guest.key: guest for guest in guests}
        for gap in gaps:
            self._log.warning(f"not read: {gap.path}: {gap.error}")
        # What was found another way may be the same guest under another name.
        pids = {guest.pid for guest in told.values() if guest.pid is not None}
        devices = _addresses(told.values())
        others = {
            key: guest
            for key, guest in self._guests.items()
            if guest.source == apart_from
            and guest.pid not in pids
            and devices.isdisjoint(_addresses([guest]))
        }
        rest = {key: g for key, g in self._guests.items() if g.source != apart_from}
        them = others | ({} if complete else rest) | told
        self._change(them, strangers=complete, only_note=only_note)

    def note(self, guests: Iterable[Guest]) -> None:
        """These run for certain, but nothing of theirs is moved yet: `look_at_all` does that."""
        self._change(self._guests | {guest.key: guest for guest in guests}, only_note=True)

    def update(self, guest: Guest) -> None:
        """This guest runs so now."""
        self._change({**self._guests, guest.key: guest}, look=_addresses([guest]))

    def gone(self, key: str) -> None:
        """The guest has stopped. What is left of it is put back."""
        if key in self._guests:
            self._change({each: g for each, g in self._guests.items() if each != key})

    def reconfigure(self, config: Config) -> None:
        self._config = config
        # More than targets depends on it: spreads, and what others on a line are asked for.
        self._change(self._guests, look=_addresses(self.guests))

    def cpus_changed(self) -> None:
        """A CPU came or went: targets may be others, and the kernel may have moved interrupts.

        Or such news was lost: drivers are read again, too.
        """
        self._pci.clear()
        self._topology = read_topology(Reader(self._fs))
        self._change(self._guests, look=_addresses(self.guests))

    def device_changed(self, address: PciAddress) -> None:
        """A device was given to a driver, or taken from one."""
        if address in self._pci or self._desired.of(address) is not None:
            self._pci.pop(address, None)
            self._change(self._guests, look={address})

    def _change(
        self,
        guests: dict[str, Guest],
        look: Collection[PciAddress] = (),
        *,
        strangers: bool = False,
        only_note: bool = False,
    ) -> None:
        """Plan anew, look at the devices for which that makes a difference, and let go of others.

        `strangers`: what the journal has of devices that no guest holds is put back as well.
        """
        before, targets = _addresses(self.guests), self._targets()
        holders = _holders(self.guests)
        self._guests = guests
        owned = _addresses(self.guests)
        self._pci = {address: pci for address, pci in self._pci.items() if address in owned}
        missing = owned - self._pci.keys()
        self._pci |= read_devices(Reader(self._fs), sorted(missing))
        now_held = _holders(self.guests)
        # The next to hold a device has not chosen what the one before it has.
        others = {each for each in self._aimed if holders.get(each) != now_held.get(each)}
        self._aimed = {each: aimed for each, aimed in self._aimed.items() if each not in others}
        self._desired = Desired.of_snapshot(
            Snapshot(0.0, self._topology, pci=self._pci, guests=self.guests, aimed=self._aimed),
            self._config,
        )
        self._appearing.clear()
        native = frozenset(address for address in owned if self._is_native(address))
        departed = before - owned
        for address in departed:
            self._forget(address)
        for address in native - self._let_go:
            self._make_peace(address)
        let_go = departed | self._on_lines_with(native - self._let_go)
        look = {*look, *let_go, *others}
        self._let_go = native
        self._put_back(let_go, strangers=strangers)
        now = self._targets()
        changed = {address for address, target in now.items() if targets.get(address) != target}
        self.look(changed | (set(look) & owned), Trigger.PLAN, only_note=only_note)

    def _targets(self) -> dict[PciAddress, Target]:
        aims = {address: self._desired.of(address) for address in _addresses(self.guests)}
        return {address: aim.target for address, aim in aims.items() if aim is not None}

    def _is_native(self, address: PciAddress) -> bool:
        aim = self._desired.of(address)
        return aim is not None and aim.target.code == "native"

    def _on_lines_with(self, addresses: Collection[PciAddress]) -> set[PciAddress]:
        """These devices, and those that share an INTx line with one of them."""
        shared = (keys for keys in self._irqs.values() if any(k.device in addresses for k in keys))
        return {*addresses, *(key.device for keys in shared for key in keys)}

    def _put_back(self, addresses: Collection[PciAddress], *, strangers: bool = False) -> None:
        """Put back what is known of these devices, and of those that no guest holds."""
        if not addresses and not strangers:
            return
        if self._retries.waiting:
            self._retries.postpone(back=addresses, strangers=strangers)
            return
        owned = _addresses(self.guests)
        is_in_use = cache(self._is_in_use)  # a device has many vectors

        def ours(entry: Remembered) -> bool:
            device = entry.key.device
            if device in addresses:
                return True
            return strangers and device not in owned and not (self.hidden and is_in_use(device))

        failed = self._attempts.put_back(ours, self._topology, self.guests)
        self._retries.tried(blocked=failed is None)
        if failed is None:
            self._retries.postpone(back=addresses, strangers=strangers)
        elif failed:
            self._retries.postpone(back=failed)

    def _is_in_use(self, address: PciAddress) -> bool:
        """Whether whoever it may be has interrupts of the device set up through VFIO."""
        found = read_interrupts(Reader(self._fs), [address], CpuSet())
        return any(each.own_action for each in found)

    def _forget(self, address: PciAddress) -> None:
        """No guest holds the device any more."""
        self._make_peace(address)
        self._attempts.forget(address)
        for irq in self._numbers(address):
            self._know_of(irq, address, {})

    def _make_peace(self, address: PciAddress) -> None:
        """Where an interrupt of the device is, is nobody's concern any more."""
        for key in self._contentions.known():
            if key.device == address:
                self._contentions.forget(key)
                self._waiting.pop(key, None)

    def _know_of(
        self, irq: int, address: PciAddress, interrupts: Mapping[InterruptKey, bool]
    ) -> None:
        """Of this device's, these and no others have the IRQ."""
        keys = {key: kept for key, kept in self._irqs.get(irq, {}).items() if key.device != address}
        keys |= interrupts
        if keys:
            self._irqs[irq] = keys
        else:
            self._irqs.pop(irq, None)
        self._kept = None
        if interrupts:
            self._of_device.setdefault(address, set()).add(irq)
        elif address in self._of_device:
            self._of_device[address].discard(irq)

    def _again(self, postponed: Postponed) -> None:
        owned = _addresses(self.guests)
        back = postponed.back - owned | (postponed.back & self._let_go)
        self._put_back(back, strangers=postponed.strangers)
        self.look(postponed.look, Trigger.PLAN)

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
            self._know_of(event.irq, todo.key.device, {todo.key: _is_kept(todo)})
            if isinstance(todo, Pin) and not self._contentions.wait(todo.key):
                pins.append(_at(event.irq, todo))
                at[todo.key] = event.at
        if pins:
            self._set_up(pins, at)
        if lines:
            self.look(lines, Trigger.NEW)

    def _set_up(self, pins: Sequence[Pin], at: Mapping[InterruptKey, float]) -> None:
        """Guests have set these up, at these times."""
        outcomes = self._carry_out(pins, Trigger.NEW)
        now = self._clock()
        for outcome in outcomes:
            self._counters.reactions.observe(max(0.0, now - at[outcome.pin.key]))
        early = {each.pin.key.device for each in outcomes if each.status is Status.VANISHED}
        if early:  # asked for, and not in place yet; or gone again
            self._later(_SOON[0], lambda: self.look(early, Trigger.NEW))

    def _expected(self, name: str) -> Action | None:
        """What to do when an interrupt with this action appears; IRQ 0 stands for its number."""
        known = self._appearing.get(name)
        if known is not None:
            return known
        action = VfioAction.parse(name)
        aim = None if action is None else self._desired.of(action.device)
        if action is None or aim is None:
            return None
        todo = aim.appeared(Interrupt(0, action.device, action.kind, action.vector, (name,)))
        self._appearing[name] = todo
        return todo

    def freed(self, irq: int) -> None:
        """A driver gives the interrupt up."""
        keys = self._irqs.get(irq, {})
        lines = {key.device for key in keys if key.action.startswith(_INTX)}
        if lines:
            # Others may be on the line, and it may be one of them that lets go.
            self._later(_SOON[0], lambda: self.look(lines, Trigger.NEW))
        else:
            for key in keys:
                self._of_device[key.device].discard(irq)
            self._irqs.pop(irq, None)
            self._kept = None

    def aim(self, address: PciAddress, aimed: Mapping[int, Aimed]) -> None:
        """This is where the guest aims the vectors of the device now."""
        if self._desired.of(address) is None or self._aimed.get(address, {}) == aimed:
            return
        self._aimed[address] = aimed
        self._desired.follow(address, aimed)
        self._appearing = {
            name: todo for name, todo in self._appearing.items() if todo.key.device != address
        }
        self.look([address], Trigger.GUEST)

    def moved(self, irq: int, who: str = "", pid: int | None = None) -> None:
        """The task `who` has set the affinity of an interrupt, maybe one of ours."""
        for key in self._irqs.get(irq, ()):
            pin = self._misplaced(irq, key)
            if pin is not None:
                self._undo(pin, who or SOMEBODY, pid)
                return

    def _undo(self, pin: Pin, who: str, pid: int | None) -> None:
        """Put the interrupt where it belongs, after `who` has moved it."""
        irq, key = pin.irq, pin.key
        self._counters.drifted(who)
        delay = self._contentions.moved(key, who)
        teller = SOMEONE if pid is None else f"{who} (pid {pid})"
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
            self._wait(key, delay, teller)

    def allocated(self, irq: int, who: str, pid: int) -> None:
        """An interrupt got a vector, be it new or moved: what x86 tells without kernel probes.

        It tells in the midst of it, and of every interrupt of the host.
        """
        if irq in self._irqs:
            self.moved(irq, who, pid)
            self._later(_SOON[0], lambda: self.moved(irq, who, pid))
        else:
            for delay in _SOON:
                self._later(delay, lambda: self._identify(irq))

    def _identify(self, irq: int) -> None:
        names = Reader(self._fs).text(paths.IRQ_ACTIONS, irq) or ""
        actions = (VfioAction.parse(name) for name in names.split(","))
        devices = {each.device for each in actions if each is not None}
        self.look(devices, Trigger.NEW)

    def look(
        self, addresses: Iterable[PciAddress], trigger: Trigger, *, only_note: bool = False
    ) -> int:
        """Read the interrupts of these devices and put right what is not; how many were.

        With `only_note` nothing is put right.
        """
        aims = [(each, aim) for each in sorted(addresses) if (aim := self._desired.of(each))]
        if not aims:
            return 0
        began = self._clock()
        addresses = [address for address, _ in aims]
        found = by_device(read_interrupts(Reader(self._fs), addresses, CpuSet()))
        pins: list[Pin] = []
        for address, aim in aims:
            actions = aim.plan(found.get(address, ())).actions
            self._remember(address, actions)
            pins += (
                each
                for each in actions
                if isinstance(each, Pin) and not self._contentions.wait(each.key)
            )
        if pins and not only_note:
            self._carry_out(pins, trigger)
        self._counters.cycles.observe(self._clock() - began)
        return len(pins)

    def poll(self) -> bool:
        """Look at everything, for want of events; whether anything was not as it was left."""
        before = {irq: tuple(keys) for irq, keys in self._irqs.items()}
        drifted = False
        for irq, keys in before.items():
            for key in keys:
                there = self._places.get(key)
                now = self._place(irq)
                # What was set up anew, or could not be put right, nobody has moved.
                if there is None or now is None or there == now or there[0] != now[0]:
                    continue
                if self._contentions.wait(key):
                    continue
                pin = self._misplaced(irq, key)
                if pin is not None:
                    self._undo(pin, SOMEBODY, None)
                    drifted = True
        self.look(_addresses(self.guests), Trigger.NEW)
        self._places = {key: self._place(irq) for irq, keys in self._irqs.items() for key in keys}
        return drifted or before != {irq: tuple(keys) for irq, keys in self._irqs.items()}

    def _place(self, irq: int) -> tuple[int | None, str] | None:
        """Which incarnation of the interrupt has which affinity; None when it is gone."""
        try:
            affinity = self._fs.read(paths.IRQ_AFFINITY.at(irq))
        except OSError:
            return None
        return self._fs.incarnation(f"{paths.IRQ_SYSFS_DIR}/{irq}"), affinity

    def look_at_all(self, trigger: Trigger = Trigger.PLAN) -> None:
        """Events were missed: look at everything."""
        self.look(_addresses(self.guests), trigger)

    def restore_all(self) -> None:
        """Put back everything that is not as virtirq found it: the last that is done."""
        self._attempts.put_back(lambda _: True, self._topology, self.guests, last=True)

    def flush(self) -> None:
        """Tell what was done and not told yet."""
        self._attempts.flush()

    def _numbers(self, address: PciAddress) -> tuple[int, ...]:
        """The IRQs that are known of the device."""
        return tuple(self._of_device.get(address, ()))

    def _remember(self, address: PciAddress, actions: Iterable[Action]) -> None:
        """The device has these interrupts, and no others."""
        now: dict[int, dict[InterruptKey, bool]] = {}
        for each in actions:
            if each.key.action:
                now.setdefault(each.irq, {})[each.key] = _is_kept(each)
        for irq in {*self._numbers(address), *now}:
            self._know_of(irq, address, now.get(irq, {}))

    def _misplaced(self, irq: int, key: InterruptKey) -> Pin | None:
        """How to put an interrupt right that we keep; None when it is where it should be."""
        aim, action = self._desired.of(key.device), VfioAction.parse(key.action)
        if aim is None or action is None:
            return None
        interrupt = read_interrupt(Reader(self._fs), irq, key.device, action.kind)
        if interrupt is None or interrupt.key != key:
            return None
        todo: Action = aim.decide(interrupt)
        return todo if isinstance(todo, Pin) else None

    def _wait(self, key: InterruptKey, delay: float, teller: str) -> None:
        token = self._waiting[key] = object()

        def over() -> None:
            if self._waiting.get(key) is not token:
                return  # that contention is over, and maybe there is another
            del self._waiting[key]
            remaining = self._contentions.wait(key)
            if remaining:
                self._wait(key, remaining, teller)
                return
            for irq in self._numbers(key.device):
                pin = self._misplaced(irq, key)
                if pin is not None:
                    self._carry_out([pin], Trigger.DRIFT, teller)

        self._later(delay, over)

    def _carry_out(
        self, pins: Sequence[Pin], trigger: Trigger, mover: str = SOMEONE
    ) -> tuple[Outcome, ...]:
        devices = {pin.key.device for pin in pins}
        if self._retries.waiting:
            self._retries.postpone(look=devices)
            return ()
        outcomes = self._attempts.carry_out(pins, trigger, self.guests, mover)
        self._retries.tried(blocked=outcomes is None)
        if outcomes is None:
            self._retries.postpone(look=devices)
        return outcomes or ()

    def _name_of(self, address: PciAddress) -> str:
        aim = self._desired.of(address)
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
        pin.follows,
    )


def _is_kept(action: Action) -> bool:
    """Whether we say where the interrupt goes."""
    return isinstance(action, Pin) or (
        action.wanted is not None and action.reason.code != "managed"
    )


def _addresses(guests: Iterable[Guest]) -> set[PciAddress]:
    return {device.address for guest in guests for device in guest.devices}


def _holders(guests: Iterable[Guest]) -> dict[PciAddress, tuple[str, int | None]]:
    """Which run of which guest has each device."""
    return {each.address: (g.key, g.pid) for g in guests for each in g.devices}
