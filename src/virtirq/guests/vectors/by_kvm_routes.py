"""Learns where guests aim their vectors from KVM's own routes, whatever the VMM.

The last resort of the readers: bpftrace is a large program that few hosts have, and what it reads
are the kernel's inner structures. It is started when a guest needs it, and stays.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from virtirq.errors import UnavailableError
from virtirq.guests.vectors.by_peek import Learned, Wanted
from virtirq.guests.vectors.msi import Apics, Destination, Message, UndecodableError, destination
from virtirq.guests.vectors.reader import aimed, apics_of
from virtirq.host.kvm_routes import Routes, open_routes
from virtirq.model import Guest

_AGAIN: Final = 300.0
"""Seconds until a bpftrace that could not be started is tried once more."""


class RoutesReader:
    """Reads guests by one bpftrace for all of them."""

    name: Final = "KVM's routes, by bpftrace"

    def __init__(self, start: Callable[[], Routes] = open_routes) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._routes: Routes | None = None
        self._why = ""
        self._tried = float("-inf")

    def read(self, guest: Guest, wanted: Wanted) -> Learned:
        if guest.pid is None:
            raise UnavailableError("its process is not known")
        apics = apics_of(guest)
        numbers = {irq for vectors in wanted.values() for irq in vectors.values()}
        with self._lock:
            try:
                found = self._open().read(numbers)
            except UnavailableError:
                self._end()  # one that does not answer is of no use any more
                raise
        # The pid of KVM's VM says whose route it is: an IRQ number may have been given anew.
        messages = {
            irq: Message(each.address, each.data)
            for irq, each in found.items()
            if each.pid == guest.pid
        }
        return {
            address: aimed(
                {
                    vector: _destination(messages[irq], apics)
                    for vector, irq in vectors.items()
                    if irq in messages
                },
                apics,
            )
            for address, vectors in wanted.items()
        }

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        routes, self._routes = self._routes, None
        if routes is not None:
            routes.close()

    def _open(self) -> Routes:
        if self._routes is None:
            if time.monotonic() < self._tried + _AGAIN:
                raise UnavailableError(self._why)
            self._tried, self._why = time.monotonic(), "bpftrace has ended"
            try:
                self._routes = self._start()
            except UnavailableError as error:
                self._why = str(error)
                raise
        return self._routes


def _destination(message: Message, apics: Apics) -> Destination | UndecodableError:
    try:
        found = destination(message)
    except UndecodableError as error:
        return error
    # Behind an IOMMU of the guest's, KVM has x2APIC's logical ids here, of which those of the
    # first cluster look like xAPIC's. The two agree where APIC ids have no holes.
    if found.logical and not found.wide and sorted(apics.vcpus) != list(range(len(apics.vcpus))):
        return UndecodableError("its logical destination can mean two things")
    return found
