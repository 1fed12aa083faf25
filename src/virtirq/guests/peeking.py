"""Learns where guests aim their vectors by libvirt's memory peek: nothing to install, no taint."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from virtirq.errors import UnavailableError
from virtirq.guests.hardware import Hardware, parse_hardware
from virtirq.guests.libvirt import Connection, VirDomain, opened
from virtirq.guests.vectors import apics_of, read_vectors
from virtirq.model import Guest, GuestVectors, PciAddress

Wanted = Mapping[PciAddress, Mapping[int, int]]
"""The vectors of interest of each device: host IRQ by vector."""
Learned = Mapping[PciAddress, GuestVectors]


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
    hardware: Hardware | UnavailableError
    run: tuple[int | None, int | None]
    devices: frozenset[PciAddress]


class PeekReader:
    """Reads guests of libvirt at `uri`; connects when it is first needed, and again when broken."""

    name: Final = "libvirt's memory peek"

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._known: dict[str, _Known] = {}

    def read(self, guest: Guest, wanted: Wanted) -> Learned:
        if guest.source != "libvirt" or guest.uuid is None:
            raise UnavailableError("it is not libvirt's")
        apics = apics_of(guest)
        with self._lock:
            connection = self._connected()
            known = self._look_up(connection, guest)
        if isinstance(known.hardware, UnavailableError):
            raise known.hardware
        peek = partial(connection.peek, known.domain)
        most = {address: max(vectors, default=-1) + 1 for address, vectors in wanted.items()}
        return read_vectors(peek, known.hardware, apics, most)

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._known.clear()
        if connection is not None:
            connection.close()

    def _connected(self) -> Connection:
        if self._connection is not None and not self._connection.alive():
            self._disconnect()
        if self._connection is None:
            # A read-only connection is refused (libvirt, src/libvirt-domain.c,
            # virDomainMemoryPeek()); nothing is written all the same.
            self._connection = opened(self._uri, write=True)
        return self._connection

    def _look_up(self, connection: Connection, guest: Guest) -> _Known:
        """The guest's hardware, read again when it is another run of it or has other devices."""
        run = (guest.domain_id, guest.pid)
        devices = frozenset(device.address for device in guest.devices)
        known = self._known.get(guest.key)
        if known is None or (known.run, known.devices) != (run, devices):
            domain = connection.find(guest.uuid or guest.name)
            hardware: Hardware | UnavailableError
            try:
                hardware = parse_hardware(connection.xml(domain))
            except UnavailableError as error:  # for as long as it runs
                hardware = error
            known = self._known[guest.key] = _Known(domain, hardware, run, devices)
        return known
