"""Learns where guests aim their vectors by libvirt's memory peek: nothing to install, no taint."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial
from typing import Final, Protocol

from virtirq.errors import UnavailableError
from virtirq.guests.libvirt.connection import SOURCE, Connection, VirDomain, opened
from virtirq.guests.vectors.entries import ConfigSpace
from virtirq.guests.vectors.hardware import Hardware, parse_hardware
from virtirq.guests.vectors.reader import apics_of, read_vectors
from virtirq.model import Guest, GuestVectors, PciAddress
from virtirq.values import dataclass, replace

Wanted = Mapping[PciAddress, Mapping[int, int]]
"""The vectors of interest of each device: host IRQ by vector."""
Learned = Mapping[PciAddress, GuestVectors]

_MOST_GUESTS: Final = 1024
"""So many guests' hardware is remembered."""


class VectorReader(Protocol):
    """A way to learn which vCPU a guest aims each vector at.

    Calls may block, and come from several threads at a time.
    """

    @property
    def name(self) -> str:
        """What a person calls it."""

    def read(self, guest: Guest, wanted: Wanted) -> Learned:
        """What the guest has chosen for each device. Raises VirtirqError, which says why not."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Known:
    """A guest as it was when its hardware was last looked at."""

    domain: VirDomain
    hardware: Hardware | str
    """A text: why it cannot be read for as long as it runs."""
    run: tuple[int | None, int | None]
    devices: frozenset[PciAddress]

    def is_of(self, guest: Guest) -> bool:
        """Whether it is the same run of the guest, with the same devices."""
        return (self.run, self.devices) == (_run(guest), _devices(guest))


class PeekReader:
    """Reads guests of libvirt at `uri`; connects when it is first needed, and again when broken."""

    name: Final = "libvirt's memory peek"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._known: dict[str, _Known] = {}

    def read(self, guest: Guest, wanted: Wanted) -> Learned:
        if guest.source != SOURCE or guest.uuid is None:
            raise UnavailableError("it is not libvirt's")
        apics = apics_of(guest)
        connection = self._connected()
        known = self._known.get(guest.key)
        if known is None or not known.is_of(guest):
            known = _look_up(connection, guest)
        if isinstance(known.hardware, str):
            self._remember(guest.key, known)
            raise UnavailableError(known.hardware)
        peek = partial(connection.peek, known.domain)
        space = ConfigSpace(peek, known.hardware)
        most = {address: max(vectors, default=-1) + 1 for address, vectors in wanted.items()}
        learned = read_vectors(space, apics, most)
        if any(each.why for each in learned.values()):
            # It may have been plugged into another place since.
            self._known.pop(guest.key, None)
        else:
            # From now on it is looked for where it was found, and nowhere else.
            hardware = replace(known.hardware, ecam=(space.base,))
            self._remember(guest.key, replace(known, hardware=hardware))
        return learned

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._known.clear()
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection:
        with self._lock:
            if self._connection is not None and not self._connection.alive():
                self._disconnect()
            if self._connection is None:
                # A read-only connection is refused (libvirt, src/libvirt-domain.c,
                # virDomainMemoryPeek()); nothing is written all the same.
                self._connection = opened(self._uri, write=True)
                self._connection.keep_alive()
            return self._connection

    def _remember(self, key: str, known: _Known) -> None:
        with self._lock:
            self._known.pop(key, None)
            if len(self._known) >= _MOST_GUESTS:  # nobody tells when one has ended
                del self._known[next(iter(self._known))]
            self._known[key] = known


def _look_up(connection: Connection, guest: Guest) -> _Known:
    domain = connection.find(guest.uuid or guest.name)
    hardware: Hardware | str
    try:
        hardware = parse_hardware(connection.xml(domain))
    except UnavailableError as error:
        hardware = str(error)
    return _Known(domain, hardware, _run(guest), _devices(guest))


def _run(guest: Guest) -> tuple[int | None, int | None]:
    return guest.domain_id, guest.pid


def _devices(guest: Guest) -> frozenset[PciAddress]:
    return frozenset(device.address for device in guest.devices)
