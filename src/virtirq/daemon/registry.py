"""The guests that are known, by everything that an event may name them by.

An event has a thread, a process, a device or a key; whose that is must not cost more on a host with
400 guests than on one with ten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import NamedTuple, TypeVar

from virtirq.daemon.thread_filter import Run, runs_of
from virtirq.model import Guest, PciAddress

Name = TypeVar("Name")


class Change(NamedTuple):
    """A guest before and after; None where it was not known, or is not any more."""

    before: Guest | None
    after: Guest | None

    @property
    def devices(self) -> frozenset[PciAddress]:
        """The devices that it had, and those that it has."""
        guests = filter(None, (self.before, self.after))
        return frozenset(device.address for guest in guests for device in guest.devices)

    @property
    def new_run(self) -> bool:
        """Whether it runs, and did not run in this process before."""
        return self.after is not None and (self.before is None or self.before.pid != self.after.pid)

    @property
    def new_threads(self) -> bool:
        """Whether it has threads that it had not."""
        return self.after is not None and not threads_of(self.after) <= threads_of(self.before)

    @property
    def other_threads(self) -> bool:
        """Whether its threads are not those that they were."""
        return threads_of(self.after) != threads_of(self.before)


def threads_of(guest: Guest | None) -> frozenset[int]:
    """The ids of the threads on whose affinity it depends what is wanted of the guest."""
    if guest is None:
        return frozenset()
    tids = {vcpu.tid for vcpu in guest.vcpus} | {guest.pid}
    return frozenset(tid for tid in tids if tid is not None)


class Registry:
    """The guests, each by its key; the latest that was put is the one that counts."""

    def __init__(self) -> None:
        self._guests: dict[str, Guest] = {}
        self._by_thread: dict[int, str] = {}
        self._by_process: dict[int, dict[str, None]] = {}
        self._by_source: dict[str, dict[str, None]] = {}
        self._by_device: dict[PciAddress, dict[str, None]] = {}
        self._runs: dict[str, tuple[Run, ...]] = {}
        """By key: the guest's thread ids, those in a row together."""
        self._all: tuple[Guest, ...] | None = ()

    def __len__(self) -> int:
        return len(self._guests)

    def __iter__(self) -> Iterator[Guest]:
        return iter(self.all)

    def __contains__(self, key: str) -> bool:
        return key in self._guests

    @property
    def all(self) -> tuple[Guest, ...]:
        """All of them: for what has to look at all."""
        if self._all is None:
            self._all = tuple(self._guests.values())
        return self._all

    @property
    def by_key(self) -> Mapping[str, Guest]:
        """All of them by key."""
        return self._guests

    def get(self, key: str) -> Guest | None:
        """The guest of this key."""
        return self._guests.get(key)

    def of_thread(self, tid: int) -> Guest | None:
        """The guest that has this thread for a vCPU, or as its process."""
        key = self._by_thread.get(tid)
        return None if key is None else self._guests[key]

    def of_process(self, pid: int) -> tuple[Guest, ...]:
        """The guests of the process of this id: one, but for a moment while it is renamed."""
        return self._named(self._by_process.get(pid))

    def from_source(self, source: str) -> tuple[Guest, ...]:
        """The guests that this source has told of."""
        return self._named(self._by_source.get(source))

    def having(self, address: PciAddress) -> tuple[Guest, ...]:
        """The guests that have this device: one, as a rule."""
        return self._named(self._by_device.get(address))

    @property
    def devices(self) -> Set[PciAddress]:
        """All devices of all guests."""
        return self._by_device.keys()

    @property
    def runs(self) -> list[Run]:
        """The thread ids of all guests, those in a row together, in order."""
        return sorted(run for runs in self._runs.values() for run in runs)

    def put(self, guest: Guest) -> Change:
        """The guest is so now."""
        before = self._take(guest.key)
        key = guest.key
        self._guests[key] = guest
        self._all = None
        tids = threads_of(guest)
        for tid in tids:
            self._by_thread[tid] = key
        self._runs[key] = tuple(runs_of(tids))
        self._by_source.setdefault(guest.source, {})[key] = None
        if guest.pid is not None:
            self._by_process.setdefault(guest.pid, {})[key] = None
        for device in guest.devices:
            self._by_device.setdefault(device.address, {})[key] = None
        return Change(before, guest)

    def remove(self, key: str) -> Change:
        """The guest is no more."""
        before = self._take(key)
        return Change(before, None)

    def _take(self, key: str) -> Guest | None:
        guest = self._guests.pop(key, None)
        if guest is None:
            return None
        self._all = None
        for tid in threads_of(guest):
            if self._by_thread.get(tid) == key:
                del self._by_thread[tid]
        del self._runs[key]
        _drop(self._by_source, guest.source, key)
        if guest.pid is not None:
            _drop(self._by_process, guest.pid, key)
        for address in {device.address for device in guest.devices}:
            _drop(self._by_device, address, key)
        return guest

    def _named(self, keys: Iterable[str] | None) -> tuple[Guest, ...]:
        return tuple(self._guests[key] for key in keys or ())


def _drop(index: dict[Name, dict[str, None]], name: Name, key: str) -> None:
    keys = index[name]
    del keys[key]
    if not keys:
        del index[name]
