"""Which directive applies to a device, and who gave it.

The first of these wins: the device's own setting, the guest's setting, the first rule of the
configuration that fits, the configuration's default; for a process without vCPUs that is `native`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from virtirq.model import (
    NATIVE,
    Directive,
    Guest,
    GuestDevice,
    PciAddress,
    PciDevice,
    Spread,
)
from virtirq.policy.config import Config, Rule


class Asked(NamedTuple):
    """A directive, where it came from, and how its vectors are spread."""

    directive: Directive
    origin: str
    spread: Spread


def asked_for(guest: Guest, device: GuestDevice, pci: PciDevice | None, config: Config) -> Asked:
    """The directive for a guest's device; `pci` is None when the host does not have it."""
    at = device.address
    rule = next((each for each in config.rules if fits(each, guest, pci, at)), None)
    if device.directive is not None:
        directive, origin = device.directive, device.directive_from or "device setting"
    elif guest.directive is not None:
        directive, origin = guest.directive, guest.directive_from or "domain setting"
    elif rule is not None:
        directive, origin = rule.directive, rule.origin
    elif guest.kind == "process":
        # Who runs a data plane without vCPUs has placed its interrupts, or polls.
        directive, origin = NATIVE, "default for a process without vCPUs"
    else:
        directive, origin = config.default, config.default_from
    spread = (rule and rule.spread) or config.spread
    if spread is None:
        # x86 delivers to one CPU, so words and vCPU numbers deal single CPUs; an explicit cpuset
        # is written as it was given, as the RFC has it.
        spread = Spread.MASK if directive.cpus else Spread.VECTOR
    return Asked(directive, origin, spread)


def fits(
    rule: Rule, guest: Guest, pci: PciDevice | None, address: PciAddress | None = None
) -> bool:
    """Whether every condition of the rule holds for a guest's device.

    Of one that is not there (`pci` None) there is only its address.
    """
    at = address or (pci and pci.address)
    if rule.guest is not None and not fnmatchcase(guest.name, rule.guest):
        return False
    if rule.owner is not None and guest.owner != rule.owner:
        return False
    if rule.source is not None and guest.told_by != rule.source:
        return False
    if rule.kind is not None and guest.kind != rule.kind:
        return False
    if rule.address is not None and not (at and _fits_address(rule.address, at)):
        return False
    if rule.device is not None and not (pci and _fits_device(rule.device, pci)):
        return False
    if rule.class_ is not None and not (pci and _fits_class(rule.class_, pci)):
        return False
    if rule.driver is not None and not (pci and fnmatchcase(pci.driver or "", rule.driver)):
        return False
    return rule.node is None or (pci is not None and pci.node == rule.node)


def unmatched(
    config: Config, guests: Iterable[Guest], pci: Mapping[PciAddress, PciDevice]
) -> list[Rule]:
    """The rules that fit no device of any of these guests; none where those have no device."""
    devices = [(guest, each.address) for guest in guests for each in guest.devices]
    if not devices:
        return []
    return [
        rule
        for rule in config.rules
        if not any(fits(rule, guest, pci.get(at), at) for guest, at in devices)
    ]


def _fits_address(pattern: str, address: PciAddress) -> bool:
    """Domain 0 may be left out, as lspci does."""
    text = str(address)
    names = [text, text.removeprefix("0000:")] if address.domain == 0 else [text]
    return any(fnmatchcase(name, pattern.lower()) for name in names)


def _fits_device(pattern: str, pci: PciDevice) -> bool:
    if "." in pattern or pattern.count(":") > 1:
        return _fits_address(pattern, pci.address)
    if pci.vendor is None or pci.device is None:
        return False
    return fnmatchcase(f"{pci.vendor:04x}:{pci.device:04x}", pattern.lower())


def _fits_class(pattern: str, pci: PciDevice) -> bool:
    if pci.class_code is None:
        return False
    return pattern in (pci.kind, "*") or f"{pci.class_code:06x}".startswith(pattern.lower())
