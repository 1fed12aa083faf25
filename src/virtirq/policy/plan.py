"""From a Snapshot to a Plan: what is wanted of every guest's devices, computed guest by guest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from virtirq.cpuset import CpuSet, union
from virtirq.model import (
    Aimed,
    Guest,
    GuestPlan,
    Interrupt,
    PciAddress,
    PciDevice,
    Plan,
    Snapshot,
    Topology,
    Word,
    by_device,
)
from virtirq.policy.config import Config
from virtirq.policy.deal import Dealt
from virtirq.policy.device import DesiredDevice
from virtirq.policy.directives import Asked, asked_for
from virtirq.policy.target import Claims, Taken, Target, claims_of, target_of
from virtirq.values import dataclass

_OTHERS_MATTER = frozenset({Word.LOCAL, Word.EMULATOR})
"""What means something else according to the CPUs that are dedicated to other guests' vCPUs."""


def plan(snapshot: Snapshot, config: Config) -> Plan:
    """What to do with every interrupt of every guest's devices.

    Pure and deterministic; a plan made on the result of a plan has no pins.
    """
    return Desired.of_snapshot(snapshot, config).plan(by_device(snapshot.interrupts))


class _Rank(NamedTuple):
    """Which of several guests that have one device decides: the first. `number` tells twins."""

    name: str
    key: str
    pid: int
    number: int


@dataclass(slots=True)
class _Entry:
    """One guest, and what was computed of it."""

    guest: Guest
    rank: _Rank
    pci: Mapping[PciAddress, PciDevice]
    asks: dict[PciAddress, Asked]
    claims: Claims
    devices: tuple[DesiredDevice, ...] = ()


class Desired:
    """What is wanted of every guest's devices, whatever interrupts they have.

    It depends on guests, devices and topology, not on the interrupts: as long as those hold, so
    does it, and an interrupt that appears can be planned for alone. A guest that changes costs that
    guest: others are computed again only where they share a device with it, or where what they are
    asked for depends on where vCPUs are pinned and that is another now.
    """

    def __init__(
        self,
        topology: Topology,
        config: Config,
        dealt: Mapping[PciAddress, Dealt] = MappingProxyType({}),
    ) -> None:
        """`dealt` is where the deals of devices have begun: see `Desired.dealt`."""
        self._topology, self._config = topology, config
        self._entries: dict[str, _Entry] = {}
        self._having: dict[PciAddress, dict[str, _Rank]] = {}
        """Who has each device, by key."""
        self._owned: dict[PciAddress, DesiredDevice] = {}
        self._aimed: dict[PciAddress, Mapping[int, Aimed]] = {}
        self._dealt: dict[PciAddress, Dealt] = dict(dealt)
        """Where the deal of each device begins, for as long as a guest's run has it."""
        self._sole: Counter[int] = Counter()
        """How many guests have each CPU for one of their vCPUs alone."""
        self._users: Counter[int] = Counter()
        """How many guests are pinned to each CPU, be it theirs alone or a pool."""
        self._groups: dict[str, tuple[CpuSet, ...]] = {}
        """The sets of CPUs that would be a guest's own if no other is pinned there; by key."""
        self._taken = Taken()
        self._dependent: set[str] = set()
        """Guests with a device for which it matters which CPUs are others' own."""

    @classmethod
    def of_snapshot(cls, snapshot: Snapshot, config: Config) -> Desired:
        """What is wanted on a host that was read as a whole."""
        made = cls(snapshot.topology, config)
        made._aimed = dict(snapshot.aimed)
        for number, guest in enumerate(snapshot.guests):
            made._enter(f"{guest.key} {number}", guest, snapshot.pci, number)
        made._retake()
        made._compute(made._entries)
        return made

    def change(
        self,
        put: Iterable[Guest] = (),
        remove: Iterable[str] = (),
        pci: Mapping[PciAddress, PciDevice] = MappingProxyType({}),
    ) -> frozenset[PciAddress]:
        """These guests run so now, and those of these keys no more.

        The devices for which that makes a difference. `pci` has what is known of devices. What a
        guest was known to aim at is forgotten with the run that has chosen it.
        """
        put, remove = tuple(put), tuple(remove)
        keys = [*(guest.key for guest in put), *remove]
        was = self._wanted_of(keys)
        for key in keys:
            self._leave(key)
        for guest in put:
            self._enter(guest.key, guest, pci, 0)
        near = {*was, *(device.address for guest in put for device in guest.devices)}
        return self._settle({guest.key for guest in put} | self._sharing(near), was)

    def follow(self, address: PciAddress, aimed: Mapping[int, Aimed]) -> None:
        """From now on the guest's own choice for the device's vectors is this."""
        device = self._owned.get(address)
        if device is None:
            return
        device.aimed = aimed
        if aimed:
            self._aimed[address] = aimed
        else:
            self._aimed.pop(address, None)

    @property
    def aimed(self) -> Mapping[PciAddress, Mapping[int, Aimed]]:
        """The guests' own choices, as far as they are known."""
        return self._aimed

    @property
    def dealt(self) -> Mapping[PciAddress, Dealt]:
        """Where the deal of each device begins, as far as that is decided."""
        return self._dealt

    def of(self, address: PciAddress) -> DesiredDevice | None:
        """What is wanted of a device, by the guest that decides; None when no guest has it."""
        return self._owned.get(address)

    @property
    def devices(self) -> Iterable[DesiredDevice]:
        """What is wanted of each device, by the guest that decides."""
        return self._owned.values()

    def plan(self, interrupts: Mapping[PciAddress, tuple[Interrupt, ...]]) -> Plan:
        """The plan for these interrupts, given by device; a device that is left out has none."""
        self.deal({address: interrupts.get(address, ()) for address in self._owned})
        return Plan(
            tuple(
                GuestPlan(
                    entry.guest,
                    tuple(
                        each.plan(interrupts.get(each.device.address, ())) for each in entry.devices
                    ),
                )
                for entry in sorted(self._entries.values(), key=lambda entry: entry.rank)
            )
        )

    def deal(self, interrupts: Mapping[PciAddress, tuple[Interrupt, ...]]) -> None:
        """Decide where the deal of each of these devices begins, in view of all of them.

        What is in place says where; the others then take what is left, and among them those
        first that have fewest CPUs to choose from.
        """
        fresh = []
        for address, them in interrupts.items():
            device = self._owned.get(address)
            if device is not None:
                device.find(them)
                if device.dealt.orders and device.dealt.start is None:
                    fresh.append(device)
        for device in sorted(fresh, key=lambda each: (len(each.seated), each.device.address)):
            device.begin()

    # The books.

    def _enter(
        self, key: str, guest: Guest, pci: Mapping[PciAddress, PciDevice], number: int
    ) -> None:
        rank = _Rank(guest.name, guest.key, guest.pid or 0, number)
        asks = {
            device.address: asked_for(guest, device, pci.get(device.address), self._config)
            for device in guest.devices
        }
        claims = claims_of(guest, self._topology)
        self._entries[key] = _Entry(guest, rank, pci, asks, claims)
        self._sole.update(claims.sole)
        self._users.update(claims.used)
        if claims.groups:
            self._groups[key] = claims.groups
        for address in asks:
            self._having.setdefault(address, {})[key] = rank
        if any(each.directive.word in _OTHERS_MATTER for each in asks.values()):
            self._dependent.add(key)

    def _leave(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._sole -= Counter(entry.claims.sole)
        self._users -= Counter(entry.claims.used)
        self._groups.pop(key, None)
        self._dependent.discard(key)
        for address in entry.asks:
            having = self._having[address]
            del having[key]
            if not having:
                del self._having[address]
                self._owned.pop(address, None)

    def _retake(self) -> bool:
        """Whether the CPUs that are dedicated to vCPUs are others now."""
        groups = (
            group
            for them in self._groups.values()
            for group in them
            if all(self._users[cpu] == 1 for cpu in group)
        )
        before, self._taken = self._taken, Taken(CpuSet(self._sole), union(groups))
        return before != self._taken

    def _sharing(self, addresses: Iterable[PciAddress]) -> set[str]:
        """The guests that have any of these devices."""
        return {key for address in addresses for key in self._having.get(address, ())}

    def _owner(self, address: PciAddress) -> str:
        having = self._having[address]
        return next(iter(having)) if len(having) == 1 else min(having, key=having.__getitem__)

    def _compute(self, keys: Iterable[str]) -> None:
        for key in keys:
            entry = self._entries[key]
            guest = entry.guest
            owners = {address: self._owner(address) for address in entry.asks}
            own = {address: entry.asks[address] for address, who in owners.items() if who == key}
            made: list[DesiredDevice] = []
            for device in sorted(guest.devices, key=lambda device: device.address):
                address = device.address
                pci, asked = entry.pci.get(address), entry.asks[address]
                if address in own:
                    target = target_of(asked.directive, guest, pci, self._topology, self._taken)
                else:
                    owner = self._entries[owners[address]].guest.name
                    target = Target(None, f"{owner} has this device too and decides", "claimed")
                dealt = self._dealt.setdefault(address, Dealt()) if address in own else Dealt()
                desired = DesiredDevice(
                    guest, device, pci, asked, own, target, self._topology, dealt, made
                )
                made.append(desired)
                if address in own:
                    self._owned[address] = desired
                    desired.aimed = self._aimed.get(address, {})
            entry.devices = tuple(made)

    def _wanted_of(self, keys: Iterable[str]) -> dict[PciAddress, _Was]:
        """What is wanted now of the devices of these guests, and by which run of which guest."""
        entries = filter(None, map(self._entries.get, keys))
        wanted = ((address, self._owned.get(address)) for each in entries for address in each.asks)
        return {address: _was(desired) for address, desired in wanted}

    def _settle(self, touched: set[str], was: dict[PciAddress, _Was]) -> frozenset[PciAddress]:
        """Compute who is `touched` by a change; `was` is what the change has done away with."""
        if self._dependent and self._retake():
            touched |= self._dependent
        was = self._wanted_of(touched) | was
        for address in was:
            if address not in self._aimed and address not in self._dealt:
                continue
            owner = self._entries[self._owner(address)].guest if address in self._having else None
            run = was[address].run  # None: what is known of the device was given at the beginning
            if owner is None or run not in (None, (owner.key, owner.pid)):
                self._aimed.pop(address, None)
                self._dealt.pop(address, None)
        self._compute(touched)
        now = ((address, self._owned.get(address)) for address in was)
        return frozenset(address for address, each in now if each and _was(each) != was[address])


class _Was(NamedTuple):
    """What was wanted of a device: the target, and the run of the guest that had decided."""

    target: Target | None
    run: tuple[str, int | None] | None


def _was(desired: DesiredDevice | None) -> _Was:
    if desired is None:
        return _Was(None, None)
    return _Was(desired.target, (desired.guest.key, desired.guest.pid))
