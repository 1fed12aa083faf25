"""Keeps interrupts where they belong: knows what is wanted, is told what happens, and acts.

No event loop and no thread in here: the daemon says what happened, and each time the one way
through the house is walked for just the devices concerned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from functools import cache, partial
from typing import Final, NamedTuple

from virtirq.control.at_once import Begun, Prepared, prepare
from virtirq.control.counters import Counters, Trigger
from virtirq.control.journal import SharedJournal
from virtirq.cpuset import CpuSet
from virtirq.daemon.attempts import Attempts
from virtirq.daemon.ledger import Ledger, is_line
from virtirq.daemon.log import Log
from virtirq.daemon.registry import Change, Registry
from virtirq.daemon.retries import Postponed, Retries
from virtirq.daemon.source_state import Sources, holder_is_gone
from virtirq.daemon.timers import Key, Timers
from virtirq.host import paths
from virtirq.host.events import EventKind, KernelEvent
from virtirq.host.fs import HostFs, Reader
from virtirq.host.interrupts import read_interrupt, read_interrupts
from virtirq.host.pci import read_devices
from virtirq.host.topology import read_isolated, read_topology
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
    Status,
    VfioAction,
    by_device,
)
from virtirq.policy.config import Config
from virtirq.policy.contention import Contentions
from virtirq.policy.directives import unmatched
from virtirq.policy.findings import contested
from virtirq.policy.pace import SetUps
from virtirq.policy.plan import Desired
from virtirq.policy.restoring import SOMEONE
from virtirq.policy.room import making_room

_REQUESTED: Final = EventKind.REQUESTED
SOMEBODY: Final = "someone unknown"
_SOON: Final = (0.01, 0.2)
"""Seconds until a look at what was announced and is not there yet."""
_ROOM: Final[Key] = ("room",)
_LACKING: Final = (1.0, 300.0)
"""Seconds between looks at which vectors that found no room have fired, at first and at most."""


class _Noted(NamedTuple):
    """A device as it was read, and what to put right once that may be done."""

    interrupts: tuple[Interrupt, ...]
    pins: tuple[Pin, ...]


class _Appearing(NamedTuple):
    """What to do when an interrupt appears; IRQ 0 stands for its number."""

    todo: Action
    kept: bool
    is_line: bool
    prepared: Prepared | None
    """What of a pin can be said beforehand."""


class Reconciler:
    """The guests, what is wanted for their devices, and which interrupts those have.

    `timers` are how it asks to be called again; `clock` gives the seconds of CLOCK_MONOTONIC, as
    kernel events do. `changed` is told of each guest that came, went or is another; `sources` says
    how much of the guests was told. `set_up` is told of the last vector of a device that was set up
    while that had to wait, when the wait is over; `kept` is called when the interrupts are others
    of which we say where they go. `urgent`: whether something waits that comes before telling.
    """

    def __init__(
        self,
        fs: HostFs,
        journal: SharedJournal,
        config: Config,
        log: Log,
        counters: Counters,
        timers: Timers,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[Sequence[Change]], object] = lambda _: None,
        sources: Callable[[], Sources] = Sources,
        set_up: Callable[[KernelEvent], object] = lambda _: None,
        kept: Callable[[], object] = lambda: None,
        urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fs = fs
        self._tell_changed = changed
        self._tell_set_up = set_up
        self._sources = sources
        self._config = config
        self._log = log
        self._counters = counters
        self._timers = timers
        self._clock = clock
        self._attempts = Attempts(fs, journal, log, counters, timers, urgent)
        self.registry = Registry()
        self.ledger = Ledger(kept)
        self._topology = read_topology(Reader(fs))
        self._pci: dict[PciAddress, PciDevice] = {}
        self._desired = Desired(self._topology, config)
        self._noted: dict[PciAddress, _Noted | None] = {}
        """Devices that are not acted on yet; None where what was read may be so no more."""
        self._appearing: dict[str, _Appearing] = {}
        """What to do when an interrupt of this name appears, once that was asked."""
        self._names: dict[PciAddress, list[str]] = {}
        """By device, whose vectors they are: the names in `_appearing`."""
        self._contentions: Contentions[InterruptKey] = Contentions(clock)
        self._set_ups: SetUps[PciAddress] = SetUps(clock)
        """How often guests set their vectors up."""
        self._passed_over: dict[PciAddress, KernelEvent] = {}
        """Of each device that has to wait for that: the last that was told of it meanwhile."""
        self._contested: dict[PciAddress, set[InterruptKey]] = {}
        """By device: the interrupts of which others have moved any."""
        self._native: set[PciAddress] = set()
        """Devices that are left alone because somebody said so."""
        self._retries = Retries(timers, self._again)
        self._held: set[str] = set()
        """Guests that are left alone for a while: see `hold`."""
        self._lacking: set[PciAddress] = set()
        """Devices with vectors that the kernel had no room for."""
        self._places: dict[InterruptKey, tuple[int | None, str] | None] = {}
        """Incarnation and affinity of each interrupt after the last `poll`."""

    @property
    def guests(self) -> tuple[Guest, ...]:
        return self.registry.all

    @property
    def config(self) -> Config:
        return self._config

    @property
    def aimed(self) -> Mapping[PciAddress, Mapping[int, Aimed]]:
        """The guests' own choices, as far as they were learned: see `aim`."""
        return self._desired.aimed

    def followable(self, key: str) -> dict[PciAddress, dict[int, int]]:
        """The vectors of a guest that go where it aims them, by device: IRQ by vector.

        None of a process that is no virtual machine: it has nobody who would aim them at its
        threads.
        """
        found: dict[PciAddress, dict[int, int]] = {}
        guest = self.registry.get(key)
        if guest is None or guest.kind == "process":
            return found
        for device in guest.devices:
            desired = self._desired.of(device.address)
            if desired is not None and desired.guest.key == key and desired.follows:
                vectors = self.ledger.vectors(device.address)
                if vectors:
                    found[device.address] = dict(vectors)
        return found

    def findings(self) -> tuple[Finding, ...]:
        """Interrupts that someone else moves again and again."""
        return tuple(
            contested(self._name_of(key.device), key, contention)
            for key, contention in self._contentions.ongoing()
        )

    def hold(self, key: str) -> bool:
        """Leave the interrupts of this guest alone until `release`; False where there is none."""
        guest = self.registry.get(key)
        if guest is None:
            return False
        self._held.add(key)
        self._log.info(f"{guest.name}: left alone, as somebody tries something", guest=guest.name)
        return True

    def release(self, key: str) -> None:
        """Look after this guest again, if it is still there."""
        self._held.discard(key)
        guest = self.registry.get(key)
        if guest is not None:
            self._log.info(f"{guest.name}: looked after again", guest=guest.name)
            self.look(_addresses([guest]), Trigger.PLAN)

    def tell_unmatched_rules(self) -> None:
        """Say in the log which rules of the configuration come to nothing with these guests."""
        for rule in unmatched(self._config, self.guests, self._pci):
            text = f"{rule.origin} fits no device of a guest that runs now"
            self._log.info(text, finding="rule-unmatched")

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
        `only_note` their interrupts are noted and not moved: `act_on_noted` does that.
        """
        complete = not gaps if complete is None else complete
        told = {guest.key: guest for guest in guests}
        for gap in gaps:
            self._log.warning(f"not read: {gap.path}: {gap.error}")
        # What was found another way may be the same guest under another name.
        pids = {guest.pid for guest in told.values() if guest.pid is not None}
        devices = _addresses(told.values())
        gone = []
        for guest in self.guests:
            if guest.key in told:
                continue
            if guest.source != apart_from:
                same = complete
            else:
                same = guest.pid in pids or not devices.isdisjoint(_addresses([guest]))
            if same:
                gone.append(guest.key)
        self._change(told.values(), gone, strangers=complete, only_note=only_note)

    def note(self, guests: Iterable[Guest]) -> None:
        """These run for certain, but nothing of theirs is moved yet: `act_on_noted` does that."""
        self._change(guests, only_note=True)

    def update(self, guest: Guest) -> None:
        """This guest runs so now."""
        if guest != self.registry.get(guest.key):
            self._change([guest], look=_addresses([guest]))

    def gone(self, key: str) -> None:
        """The guest has stopped. What is left of it is put back."""
        if key in self.registry:
            self._change(gone=[key])

    def reconfigure(self, config: Config) -> None:
        self._config = config
        self._compute_all()

    def cpus_changed(self) -> None:
        """A CPU came or went: targets may be others, and the kernel may have moved interrupts.

        Or such news was lost: drivers are read again, too.
        """
        self._pci.clear()
        self._topology = read_topology(Reader(self._fs))
        self._compute_all()

    def cpusets_changed(self) -> bool:
        """Somebody has written to a cpuset: whether that has isolated CPUs, or let go of some."""
        if read_isolated(Reader(self._fs)) == self._topology.isolated:
            return False
        self.cpus_changed()
        return True

    def device_changed(self, address: PciAddress) -> None:
        """A device was given to a driver, or taken from one."""
        having = self.registry.having(address)
        if having:
            self._pci.pop(address, None)
            self._change(having, look={address})

    def _compute_all(self) -> None:
        """What is wanted may be another of every device, and more than targets depends on it."""
        aimed = self._desired.aimed
        self._desired = Desired(self._topology, self._config, self._desired.dealt)
        self._read_drivers(self.registry.devices)
        self._desired.change(self.guests, pci=self._pci)
        for address, choice in aimed.items():
            self._desired.follow(address, choice)
        self._changed(self.registry.devices, self.registry.devices)

    def _change(
        self,
        guests: Iterable[Guest] = (),
        gone: Collection[str] = (),
        look: Collection[PciAddress] = (),
        *,
        strangers: bool = False,
        only_note: bool = False,
    ) -> None:
        """These guests run so now, and those of the keys `gone` no more."""
        guests = tuple(guests)
        changes = [self.registry.remove(key) for key in gone]
        changes += [self.registry.put(guest) for guest in guests]
        concerned = {address for each in changes for address in each.devices}
        self._read_drivers(concerned & self.registry.devices)
        changed = self._desired.change(guests, gone, self._pci)
        self._changed(
            concerned | changed, changed.union(look), strangers=strangers, only_note=only_note
        )
        self._tell_changed(changes)

    def _read_drivers(self, addresses: Collection[PciAddress]) -> None:
        missing = [each for each in addresses if each not in self._pci]
        self._pci.update(read_devices(Reader(self._fs), sorted(missing)))

    def _changed(
        self,
        concerned: Set[PciAddress],
        look: Set[PciAddress],
        *,
        strangers: bool = False,
        only_note: bool = False,
    ) -> None:
        """Anything may be another of these devices now; `look` at those for which it matters.

        `strangers`: what the journal has of devices that no guest holds is put back as well.
        """
        owned = self.registry.devices
        departed = {address for address in concerned if address not in owned}
        native = {address for address in concerned if self._is_native(address)}
        let_go = native - self._native
        for address in concerned:
            self._expect_anew(address)
            self._read_anew(address)
        shared = self.ledger.on_lines_with(let_go)
        for address in departed:
            self._forget(address)
        for address in let_go:
            self._make_peace(address)
        self._native -= concerned
        self._native |= native
        self._put_back(departed | shared, strangers=strangers)
        if only_note:
            self._note((look | shared) & owned)
        else:
            self.look((look | shared) & owned, Trigger.PLAN)

    def _is_native(self, address: PciAddress) -> bool:
        desired = self._desired.of(address)
        return desired is not None and desired.target.code == "native"

    def _put_back(self, addresses: Collection[PciAddress], *, strangers: bool = False) -> None:
        """Put back what is known of these devices, and of those that no guest holds."""
        if not addresses and not strangers:
            return
        if self._retries.waiting:
            self._retries.postpone(back=addresses, strangers=strangers)
            return
        owned, sources = self.registry.devices, self._sources()
        is_in_use = cache(self._is_in_use)  # a device has many vectors

        def ours(entry: Remembered) -> bool:
            device = entry.key.device
            if device in addresses:
                return True
            if not strangers or device in owned:
                return False
            return holder_is_gone(sources, partial(is_in_use, device))

        devices = None if strangers else addresses
        failed = self._attempts.put_back(devices, ours, self._topology, self.registry.by_key)
        self._retries.tried(blocked=failed is None)
        if failed is None:
            self._retries.postpone(back=addresses, strangers=strangers)
        elif failed:
            self._retries.postpone(back=failed)

    def put_back_left_over(self) -> None:
        """More is known of who runs: put back what the journal has of guests that are gone."""
        self._put_back((), strangers=True)

    def _is_in_use(self, address: PciAddress) -> bool:
        """Whether whoever it may be has interrupts of the device set up through VFIO."""
        found = read_interrupts(Reader(self._fs), [address], CpuSet())
        return any(each.own_action for each in found)

    def _forget(self, address: PciAddress) -> None:
        """No guest holds the device any more."""
        self._pci.pop(address, None)
        self._make_peace(address)
        self._attempts.forget(address)
        self._lacking.discard(address)
        self._set_ups.forget(address)
        self._noted.pop(address, None)
        self._timers.cancel("look", address)
        self._timers.cancel("line", address)
        self._timers.cancel("set up", address)
        self.ledger.remember(address, {})
        self._tell_passed_over(address)  # somebody may have it by now of whom nobody knows

    def _make_peace(self, address: PciAddress) -> None:
        """Where an interrupt of the device is, is nobody's concern any more."""
        for key in self._contested.pop(address, ()):
            self._contentions.forget(key)
            self._timers.cancel("contested", key)

    def _again(self, postponed: Postponed) -> None:
        owned = self.registry.devices
        back = {each for each in postponed.back if each not in owned or each in self._native}
        self._put_back(back, strangers=postponed.strangers)
        self.look(postponed.look, Trigger.PLAN)

    # Something happened to interrupts.

    def begin(self, events: Sequence[KernelEvent]) -> Begun | None:
        """Move the first of these vectors at once, if there is nothing to be considered.

        Next `requested` has to be told of the same events, and of how the first was begun.
        """
        for event in events:
            if event.kind is not _REQUESTED:
                return None
        event = events[0]
        expected = self._appearing.get(event.name) or self._expect(event.name)
        if expected is None or expected.prepared is None:
            return None
        device = expected.todo.key.device
        if self._held or self._retries.waiting or device in self._contested:
            return None
        if not self._set_ups.is_free(device, event.name):
            return None
        return self._attempts.begin(expected.prepared, event.irq)

    def requested(
        self, events: Iterable[KernelEvent], begun: Begun | None = None
    ) -> list[KernelEvent]:
        """Guests have set interrupts up; each event has IRQ, action and time.

        `begun`: how the first of them was begun, where it was (`begin`). Gives those to act on
        further. Not among them are those of a device whose guest sets it up again and again: they
        are passed over, which is what takes least of the loop's time, and when its wait is over the
        device is looked at and `set_up` told of the last of them.

        First the writes: what is only noted can wait until then.
        """
        pins, at = [], {}
        lines: dict[PciAddress, None] = {}
        vectors: list[tuple[int, _Appearing]] = []
        heeded: list[KernelEvent] = []
        for event in events:
            expected = self._appearing.get(event.name) or self._expect(event.name)
            if expected is not None:
                todo, key = expected.todo, expected.todo.key
                device = key.device
                if self._noted:
                    self._read_anew(device)
                if self._has_to_wait(device, event.name):
                    self._passed_over[device] = event
                    continue
                if expected.is_line:
                    lines[device] = None  # others may be on the line
                else:
                    vectors.append((event.irq, expected))
                    if isinstance(todo, Pin) and not self._contentions.wait(key):
                        pins.append(_at(event.irq, todo))
                        at[key] = event.at
            heeded.append(event)
        if pins:
            self._set_up(pins, at, begun)
        for irq, expected in vectors:
            self.ledger.appeared(irq, expected.todo.key, kept=expected.kept)
        for device in lines:  # after the vectors that the kernel has told of meanwhile
            self._timers.soon(("line", device), 0.0, partial(self._look_now, device))
        return heeded

    def _has_to_wait(self, address: PciAddress, name: str) -> bool:
        """Whether what was set up may not be looked at now: the device is, as soon as it may."""
        delay = self._set_ups.appeared(address, name)
        if delay and self._look_later(address, delay):
            self._log.info(
                f"{address}: its guest sets its interrupts up again and again: looked at in"
                f" {delay:.0f} seconds",
                guest=self._name_of(address),
                device=address,
            )
        return bool(delay)

    def _look_later(self, address: PciAddress, delay: float) -> bool:
        """Look at the device when its guest may set it up again; whether that was not due yet."""
        key = ("set up", address)
        new = not self._timers.is_due(key)
        if new:  # else of a wait that is over just now: that look finds that there is another
            self._timers.soon(key, delay, partial(self._wait_is_over, address))
        return new

    def _wait_is_over(self, address: PciAddress) -> None:
        self._look_now(address)
        self._tell_passed_over(address)

    def _tell_passed_over(self, address: PciAddress) -> None:
        event = self._passed_over.pop(address, None)
        if event is not None:
            self._tell_set_up(event)

    def _set_up(
        self, pins: Sequence[Pin], at: Mapping[InterruptKey, float], begun: Begun | None
    ) -> None:
        """Guests have set these up, at these times."""
        outcomes = self._carry_out(pins, Trigger.NEW, begun=begun)
        now = self._clock()
        for outcome in outcomes:
            self._counters.reactions.observe(max(0.0, now - at[outcome.pin.key]))
        gone = (Status.VANISHED, Status.REVERTED)
        early = {each.pin.key.device for each in outcomes if each.status in gone}
        self._look_soon(early)  # asked for, and not in place yet; or gone again

    def _look_soon(self, addresses: Iterable[PciAddress]) -> None:
        for address in addresses:
            self._timers.soon(("look", address), _SOON[0], partial(self._look_now, address))

    def _look_now(self, address: PciAddress) -> None:
        self.look([address], Trigger.NEW)

    def _expect(self, name: str) -> _Appearing | None:
        """What to do when an interrupt with this action appears, from now on; None: not ours."""
        action = VfioAction.parse(name)
        desired = None if action is None else self._desired.of(action.device)
        if action is None or desired is None:
            return None
        interrupt = Interrupt(0, action.device, action.kind, action.vector, (name,))
        todo = desired.appeared(interrupt)
        line, prepared = is_line(todo.key), None
        if isinstance(todo, Pin) and not line:
            prepared = prepare(todo, desired.guest.name)
        found = _Appearing(todo, _is_kept(todo), line, prepared)
        self._appearing[name] = found
        self._names.setdefault(action.device, []).append(name)
        return found

    def _expect_anew(self, address: PciAddress) -> None:
        """What appears of the device may have to go elsewhere from now on."""
        for name in self._names.pop(address, ()):
            del self._appearing[name]

    def freed(self, irq: int) -> None:
        """A driver gives the interrupt up."""
        keys = self.ledger.at(irq)
        if not keys:  # nobody's here, or of a device that has to wait
            return
        for key in keys:
            self._read_anew(key.device)
        lines = {key.device for key in keys if is_line(key)}
        if lines:
            # Others may be on the line, and it may be one of them that lets go.
            self._look_soon(lines)
        else:
            self.ledger.forget(irq)

    def aim(self, address: PciAddress, aimed: Mapping[int, Aimed]) -> None:
        """This is where the guest aims the vectors of the device now."""
        if self._desired.of(address) is None or self.aimed.get(address, {}) == aimed:
            return
        self._desired.follow(address, aimed)
        self._expect_anew(address)
        noted = self._noted.pop(address, None)
        if noted is None:
            self.look([address], Trigger.GUEST)
        else:
            self._act(self._plan({address: noted.interrupts}), Trigger.GUEST)

    def moved(self, irq: int, who: str = "", pid: int | None = None) -> None:
        """The task `who` has set the affinity of an interrupt, maybe one of ours."""
        for key in tuple(self.ledger.at(irq)):
            pin = self._misplaced(irq, key)
            if pin is not None:
                self._undo(pin, who or SOMEBODY, pid)
                return

    def _undo(self, pin: Pin, who: str, pid: int | None) -> None:
        """Put the interrupt where it belongs, after `who` has moved it."""
        if pin.guest in self._held:
            return
        irq, key = pin.irq, pin.key
        self._counters.drifted(who)
        delay = self._contentions.moved(key, who)
        self._contested.setdefault(key.device, set()).add(key)
        teller = SOMEONE if pid is None else f"{who} (pid {pid})"
        if not delay:
            self._carry_out([pin], Trigger.DRIFT, teller)
        elif not self._timers.is_due(("contested", key)):
            self._log.warning(
                f"IRQ {irq} {key}: {teller} keeps moving it: put back in {delay:.0f} seconds",
                guest=self._name_of(key.device),
                device=key.device,
                irq=irq,
                mover=teller,
                finding="affinity-contested",
            )
            self._wait(key, delay, teller)

    def allocated(self, irq: int, who: str, pid: int) -> None:
        """An interrupt got a vector, be it new or moved: what x86 tells without kernel probes.

        It tells in the midst of it, and of every interrupt of the host.
        """
        if self.ledger.at(irq):
            # Once it is done, and once for all that is told of one move.
            self._timers.soon(("moved", irq), _SOON[0], partial(self.moved, irq, who, pid))
        else:
            for delay in _SOON:
                self._timers.soon(("identify", irq, delay), delay, partial(self._identify, irq))

    def _identify(self, irq: int) -> None:
        names = Reader(self._fs).text(paths.IRQ_ACTIONS, irq) or ""
        actions = (VfioAction.parse(name) for name in names.split(","))
        found = {each.device for each in actions if each is not None}
        ours = {each for each in found if self._desired.of(each) is not None}
        self.look([each for each in ours if not self._has_to_wait(each, names)], Trigger.NEW)

    def look(self, addresses: Iterable[PciAddress], trigger: Trigger) -> int:
        """Read the interrupts of these devices and put right what is not; how many were."""
        began = self._clock()
        found = self._read(addresses)
        if not found:
            return 0
        for address in found:
            self._noted.pop(address, None)
        acted = self._act(self._plan(found), trigger)
        self._counters.cycles.observe(self._clock() - began)
        return acted

    def act_on_noted(self) -> None:
        """Put right what is not of what was only noted.

        It is not read again, but where something was told of it since.
        """
        noted, self._noted = self._noted, {}
        self._act({each: them.pins for each, them in noted.items() if them}, Trigger.PLAN)
        self.look([each for each, them in noted.items() if not them], Trigger.PLAN)

    def _note(self, addresses: Iterable[PciAddress]) -> None:
        """Read the interrupts of these devices, and put right later what is not."""
        found = self._read(addresses)
        planned = self._plan(found)
        self._noted |= {each: _Noted(them, planned[each]) for each, them in found.items()}

    def _read_anew(self, address: PciAddress) -> None:
        """Something has happened to the device: what was noted of it may be so no more."""
        if address in self._noted:
            self._noted[address] = None

    def _read(self, addresses: Iterable[PciAddress]) -> dict[PciAddress, tuple[Interrupt, ...]]:
        """The interrupts of those of these devices of which something is wanted."""
        wanted = [each for each in sorted(addresses) if self._desired.of(each) is not None]
        found = by_device(read_interrupts(Reader(self._fs), wanted, CpuSet()))
        return {each: found.get(each, ()) for each in wanted}

    def _plan(
        self, found: Mapping[PciAddress, tuple[Interrupt, ...]]
    ) -> dict[PciAddress, tuple[Pin, ...]]:
        """What to put right of these devices, whose interrupts these are."""
        self._desired.deal(found)
        planned = {}
        for address, interrupts in found.items():
            desired = self._desired.of(address)
            if desired is not None:
                actions = desired.plan(interrupts).actions
                self._remember(address, actions)
                planned[address] = tuple(each for each in actions if isinstance(each, Pin))
        return planned

    def _act(self, planned: Mapping[PciAddress, Sequence[Pin]], trigger: Trigger) -> int:
        """Put this right, but for what has to wait; how much it was."""
        pins: list[Pin] = []
        for address, them in planned.items():
            wait = self._set_ups.wait(address)
            if wait and trigger is not Trigger.PLAN:
                self._look_later(address, wait)
            else:
                pins += (each for each in them if not self._contentions.wait(each.key))
        if pins:
            self._carry_out(pins, trigger)
        return len(pins)

    def _make_room(self) -> None:
        """Vectors that found no room may have fired since: those that never did then make it.

        When a guest sets its vectors up, nobody knows which it will use, and the first come are the
        first served.
        """
        guests = {d.guest.key for each in self._lacking if (d := self._desired.of(each))}
        devices = {d.device.address: d for d in self._desired.devices if d.guest.key in guests}
        read = read_interrupts(Reader(self._fs), sorted(devices), self._topology.possible)
        found = by_device(read)
        them = {address: found.get(address, ()) for address in devices}
        self._desired.deal(them)
        actions = [
            action
            for address, device in devices.items()
            for action in device.plan(them[address]).actions
        ]
        pins = [each for each in actions if isinstance(each, Pin)]
        self._lacking = {pin.key.device for pin in pins}
        busy = [pin for pin in pins if not pin.idle and not self._contentions.wait(pin.key)]
        room = partial(making_room, actions=actions, interrupts=read, topology=self._topology)
        if busy and any(not o.crowded for o in self._carry_out(busy, Trigger.PLAN, room=room)):
            self._timers.done(_ROOM)
        if self._lacking and not self._timers.is_due(_ROOM):
            self._timers.again(_ROOM, self._make_room, _LACKING)

    def poll(self) -> bool:
        """Look at everything, for want of events; whether anything was not as it was left."""
        before = self.ledger.everything()
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
                if pin is not None and pin.guest not in self._held:
                    self._undo(pin, SOMEBODY, None)
                    drifted = True
        self.look(self.registry.devices, Trigger.NEW)
        now_there = self.ledger.everything()
        self._places = {key: self._place(irq) for irq, keys in now_there.items() for key in keys}
        return drifted or before != now_there

    def _place(self, irq: int) -> tuple[int | None, str] | None:
        """Which incarnation of the interrupt has which affinity; None when it is gone."""
        try:
            affinity = self._fs.read(paths.IRQ_AFFINITY.at(irq))
        except OSError:
            return None
        return self._fs.incarnation(f"{paths.IRQ_SYSFS_DIR}/{irq}"), affinity

    def look_at_all(self, trigger: Trigger = Trigger.PLAN) -> None:
        """Events were missed: look at everything."""
        self.look(self.registry.devices, trigger)

    def restore_all(self) -> None:
        """Put back everything that is not as virtirq found it: the last that is done."""
        guests = self.registry.by_key
        self._attempts.put_back(None, lambda _: True, self._topology, guests, last=True)

    def flush(self) -> None:
        """Tell what was done and not told yet."""
        self._attempts.flush()

    def _remember(self, address: PciAddress, actions: Iterable[Action]) -> None:
        """The device has these interrupts, and no others."""
        now: dict[int, dict[InterruptKey, bool]] = {}
        for each in actions:
            if each.key.action:
                now.setdefault(each.irq, {})[each.key] = _is_kept(each)
        self.ledger.remember(address, now)

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
        """Put the interrupt back, where it is not in place, in so many seconds."""

        def over() -> None:
            remaining = self._contentions.wait(key)
            if remaining:
                self._wait(key, remaining, teller)
                return
            for irq in self.ledger.numbers(key.device):
                pin = self._misplaced(irq, key)
                if pin is not None:
                    self._carry_out([pin], Trigger.DRIFT, teller)

        self._timers.put_off(("contested", key), delay, over)

    def _carry_out(
        self,
        pins: Sequence[Pin],
        trigger: Trigger,
        mover: str = SOMEONE,
        room: Callable[[Sequence[Pin]], Sequence[Pin]] = lambda _: (),
        begun: Begun | None = None,
    ) -> tuple[Outcome, ...]:
        if self._held:
            pins = [pin for pin in pins if pin.guest not in self._held]
            if not pins:
                return ()
        if self._retries.waiting:
            self._retries.postpone(look={pin.key.device for pin in pins})
            return ()
        known = self.registry.by_key
        outcomes = self._attempts.carry_out(pins, trigger, known, mover, room, begun)
        self._retries.tried(blocked=outcomes is None)
        if outcomes is None:
            self._retries.postpone(look={pin.key.device for pin in pins})
        crowded = {each.pin.key.device for each in outcomes or () if each.crowded}
        if crowded - self._lacking:
            self._timers.done(_ROOM)
            self._lacking |= crowded
            self._timers.again(_ROOM, self._make_room, _LACKING)
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
