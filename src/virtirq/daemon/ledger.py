"""Which IRQ number is which interrupt of which guest's device, as far as it was seen or told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

from virtirq.model import InterruptKey, InterruptKind, PciAddress, VfioAction

_NONE: Final[Mapping[InterruptKey, bool]] = MappingProxyType({})


def is_line(key: InterruptKey) -> bool:
    """Whether the interrupt is on an INTx line, which others may share."""
    action = VfioAction.parse(key.action)
    return action is not None and action.kind is InterruptKind.INTX


class Ledger:
    """The interrupts that are known, by IRQ number and by device.

    Of each it knows whether we say where it goes: those are `kept`. `changed` is called whenever
    they are others, by one number.
    """

    def __init__(self, changed: Callable[[], object] = lambda: None) -> None:
        self._changed = changed
        self._at: dict[int, dict[InterruptKey, bool]] = {}
        """Several interrupts have one number on an INTx line that devices share."""
        self._of_device: dict[PciAddress, dict[int, None]] = {}
        self._vectors: dict[PciAddress, dict[int, int]] = {}
        self._kept: dict[int, None] = {}

    def at(self, irq: int) -> Mapping[InterruptKey, bool]:
        """The interrupts of this number, and whether we say where each goes."""
        return self._at.get(irq, _NONE)

    def numbers(self, address: PciAddress) -> tuple[int, ...]:
        """The IRQ numbers of the device's interrupts."""
        return tuple(self._of_device.get(address, ()))

    def vectors(self, address: PciAddress) -> Mapping[int, int]:
        """The IRQ number of each of the device's MSI or MSI-X vectors."""
        return self._vectors.get(address, {})

    def keeps(self, irq: int) -> bool:
        """Whether we say where the interrupt of this number goes."""
        return irq in self._kept

    @property
    def kept(self) -> frozenset[int]:
        """The numbers of which we say where they go: a copy, for what needs them all."""
        return frozenset(self._kept)

    @property
    def count(self) -> int:
        """How many numbers are kept."""
        return len(self._kept)

    def everything(self) -> dict[int, tuple[InterruptKey, ...]]:
        """All that is known: for what has to look at all."""
        return {irq: tuple(keys) for irq, keys in self._at.items()}

    def on_lines_with(self, addresses: Iterable[PciAddress]) -> set[PciAddress]:
        """These devices, and those that share an INTx line with one of them."""
        found = set(addresses)
        for address in tuple(found):
            for irq in self._of_device.get(address, ()):
                found.update(key.device for key in self._at[irq])
        return found

    def appeared(self, irq: int, key: InterruptKey, *, kept: bool) -> None:
        """The device has this vector now, and it alone has the number."""
        if any(each.device != key.device for each in self.at(irq)):
            self.forget(irq)
        self._write(irq, key.device, {key: kept})

    def remember(
        self, address: PciAddress, interrupts: Mapping[int, Mapping[InterruptKey, bool]]
    ) -> None:
        """The device has these interrupts, by number, and no others."""
        for irq in {**self._of_device.get(address, {}), **dict.fromkeys(interrupts)}:
            self._write(irq, address, interrupts.get(irq, _NONE))

    def forget(self, irq: int) -> None:
        """Nobody has the number any more."""
        for key in self._at.pop(irq, ()):
            self._unlist(irq, key)
        self._recount(irq)

    def _write(
        self, irq: int, address: PciAddress, interrupts: Mapping[InterruptKey, bool]
    ) -> None:
        """Of this device's, these and no others have the number."""
        before = self._at.get(irq, _NONE)
        for key in before:
            if key.device == address and key not in interrupts:
                self._unlist(irq, key)
        now = {key: kept for key, kept in before.items() if key.device != address} | dict(
            interrupts
        )
        if now:
            self._at[irq] = now
        else:
            self._at.pop(irq, None)
        for key in interrupts:
            self._of_device.setdefault(address, {})[irq] = None
            action = VfioAction.parse(key.action)
            if action is not None and action.vector is not None:
                self._vectors.setdefault(address, {})[action.vector] = irq
        self._recount(irq)

    def _unlist(self, irq: int, key: InterruptKey) -> None:
        numbers = self._of_device.get(key.device, {})
        numbers.pop(irq, None)
        if not numbers:
            self._of_device.pop(key.device, None)
        action = VfioAction.parse(key.action)
        vectors = self._vectors.get(key.device, {})
        if action is not None and action.vector is not None:
            if vectors.get(action.vector) == irq:
                del vectors[action.vector]
            if not vectors:
                self._vectors.pop(key.device, None)

    def _recount(self, irq: int) -> None:
        kept = any(self._at.get(irq, _NONE).values())
        if kept != (irq in self._kept):
            if kept:
                self._kept[irq] = None
            else:
                del self._kept[irq]
            self._changed()
