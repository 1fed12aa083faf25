"""Devices that somebody uses by VFIO and no guest is known to have: left alone, and told of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Final

from virtirq.control.cycle import vfio_interrupts
from virtirq.daemon.log import Log
from virtirq.daemon.registry import Registry
from virtirq.daemon.timers import Key, Timers
from virtirq.host.fs import HostFs
from virtirq.host.pci import vfio_functions
from virtirq.host.vfio import other_interrupts
from virtirq.model import Finding, PciAddress
from virtirq.policy.findings import device_not_pci, device_unclaimed

_GRACE: Final = 10.0
"""Seconds for whoever tells of guests to tell of this one."""
_WAIT: Final = (_GRACE, 60.0)
"""Seconds until it is looked whether all have told: the first time, and at most. That may never be:
libvirt may be stopped, a process may hang.
"""
_KEY: Final = "unclaimed"
_ALL: Final[Key] = (_KEY,)


class Unclaimed:
    """Devices of which VFIO has interrupts, and that nobody in `registry` has.

    Each is logged once, and again only if a guest has had it meanwhile. `all_told`: whether all
    guests are known that can be; until then nobody is said to have none.
    """

    def __init__(
        self,
        fs: HostFs,
        registry: Registry,
        log: Log,
        timers: Timers,
        all_told: Callable[[], bool],
    ) -> None:
        self._fs = fs
        self._registry = registry
        self._log = log
        self._timers = timers
        self._all_told = all_told
        self._devices: dict[PciAddress, frozenset[int]] = {}
        """The IRQ numbers of each."""
        self._by_irq: dict[int, PciAddress] = {}
        self._said: set[PciAddress] = set()
        self._not_pci: dict[str, list[int]] = {}

    def findings(self) -> tuple[Finding, ...]:
        devices = sorted(self._devices.items())
        return (
            *(device_unclaimed(device, len(irqs)) for device, irqs in devices),
            *(device_not_pci(device, irqs) for device, irqs in self._not_pci.items()),
        )

    def set_up(self, device: PciAddress) -> None:
        """Interrupts of the device were set up, or who had it has it no more."""
        if device not in self._registry.devices:
            self._timers.soon((_KEY, device), _GRACE, partial(self._look, device))

    def freed(self, irq: int) -> None:
        """This interrupt is no more."""
        device = self._by_irq.get(irq)
        if device is not None:
            self.set_up(device)

    def known(self, devices: Iterable[PciAddress]) -> None:
        """These devices have come to guests, or have left them."""
        for device in devices:
            if device in self._registry.devices:
                self._note(device, ())
                self._said.discard(device)
            else:
                self.set_up(device)

    def look_at_all(self) -> None:
        """Any device may be somebody's, or nobody's."""
        self._timers.soon(_ALL, _GRACE, self._look_at_all)

    def _look_at_all(self) -> None:
        if not self._all_told():
            self._wait()
            return
        self._timers.done(_ALL)
        self._not_pci = other_interrupts(self._fs)
        for device in sorted(vfio_functions(self._fs) | self._devices.keys()):
            if device not in self._registry.devices:
                self._look(device)

    def _look(self, device: PciAddress) -> None:
        if device in self._registry.devices:
            return
        if not self._all_told():
            self._wait()
            return
        irqs = vfio_interrupts(self._fs, [device]).get(device, ())
        self._note(device, irqs)
        if irqs and device not in self._said:
            self._said.add(device)
            finding = device_unclaimed(device, len(irqs))
            self._log.warning(
                f"{device}: {finding.message} (hint: {finding.hint})",
                device=device,
                finding=finding.code,
            )

    def _wait(self) -> None:
        """Until all have told, when all devices are looked at."""
        if not self._timers.is_due(_ALL):
            self._timers.again(_ALL, self._look_at_all, _WAIT)

    def _note(self, device: PciAddress, irqs: Collection[int]) -> None:
        for irq in self._devices.pop(device, ()):
            self._by_irq.pop(irq, None)
        if irqs:
            self._devices[device] = frozenset(irqs)
            self._by_irq.update(dict.fromkeys(irqs, device))
