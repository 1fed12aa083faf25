"""Learns where guests aim their vectors from KVM's own routes, whatever the VMM.

What is read are the kernel's inner structures, so those come first that promise to stay: libvirt's
calls and QEMU's monitor. By the kernel's probes, and as the last resort by bpftrace, a large
program that few hosts have. Either is started when a guest needs it, and stays.
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
from virtirq.host.kvm_routes import Route, RouteSource, open_routes
from virtirq.host.probed_routes import clear_probed_routes, open_probed_routes
from virtirq.model import Guest, PciAddress, VfioAction

_AGAIN: Final = 300.0
"""Seconds until one that could not be started is tried once more."""


class RoutesReader:
    """Reads guests by one source of routes for all of them."""

    def __init__(
        self, how: str, start: Callable[[], RouteSource], clear: Callable[[], object] = lambda: None
    ) -> None:
        """`clear` takes away, at the end, what one that was killed may have left."""
        self.name = f"KVM's routes, by {how}"
        self._start = start
        self._clear = clear
        self._lock = threading.Lock()
        self._routes: RouteSource | None = None
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
                self._end()  # what does not answer is of no use any more
                raise
        return {
            address: aimed(
                {
                    vector: _destination(Message(found[irq].address, found[irq].data), apics)
                    for vector, irq in vectors.items()
                    if irq in found and _is_of(found[irq], guest, address, vector)
                },
                apics,
            )
            for address, vectors in wanted.items()
        }

    def close(self) -> None:
        with self._lock:
            self._end()
            self._clear()

    def _end(self) -> None:
        routes, self._routes = self._routes, None
        if routes is not None:
            routes.close()

    def _open(self) -> RouteSource:
        if self._routes is None:
            if time.monotonic() < self._tried + _AGAIN:
                raise UnavailableError(self._why)
            self._tried, self._why = time.monotonic(), f"{self.name}: it has ended"
            try:
                self._routes = self._start()
            except UnavailableError as error:
                self._why = str(error)
                raise
        return self._routes


def by_probes() -> RoutesReader:
    return RoutesReader("kernel probes", open_probed_routes, clear_probed_routes)


def by_bpftrace() -> RoutesReader:
    return RoutesReader("bpftrace", open_routes)


def _is_of(route: Route, guest: Guest, device: PciAddress, vector: int) -> bool:
    """Whether it is this vector's: an IRQ number may have been given anew."""
    if route.pid is not None:
        return route.pid == guest.pid
    action = VfioAction.parse(route.action)
    return action is not None and (action.device, action.vector) == (device, vector)


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
