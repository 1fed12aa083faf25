"""Which directive applies to a device, and who gave it.

The first of these wins: the device's own setting, the guest's setting, the first rule of the
configuration that fits, the configuration's default; for a process without vCPUs that is `native`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import NamedTuple

from virtirq.model import NATIVE, Directive, Guest, GuestDevice, PciDevice, Spread
from virtirq.policy.config import Config, Rule


class Asked(NamedTuple):
    """A directive, where it came from, and how its vectors are spread."""

    directive: Directive
    origin: str
    spread: Spread


def asked_for(guest: Guest, device: GuestDevice, pci: PciDevice | None, config: Config) -> Asked:
    """The directive for a guest's device; `pci` is None when the host does not have it."""
    rule = next((each for each in config.rules if fits(each, guest, pci)), None)
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


def fits(rule: Rule, guest: Guest, pci: PciDevice | None) -> bool:
    """Whether every condition of the rule holds; a device that is not there fits none on it."""
    if rule.guest is not None and not fnmatchcase(guest.name, rule.guest):
        return False
    if rule.owner is not None and guest.owner != rule.owner:
        return False
    if rule.source is not None and guest.told_by != rule.source:
        return False
    if rule.kind is not None and guest.kind != rule.kind:
        return False
    if rule.device is not None and not (pci and _fits_device(rule.device, pci)):
        return False
    if rule.class_ is not None and not (pci and _fits_class(rule.class_, pci)):
        return False
    if rule.driver is not None and not (pci and fnmatchcase(pci.driver or "", rule.driver)):
        return False
    return rule.node is None or (pci is not None and pci.node == rule.node)


def _fits_device(pattern: str, pci: PciDevice) -> bool:
    if pci.vendor is None or pci.device is None:
        return False
    return fnmatchcase(f"{pci.vendor:04x}:{pci.device:04x}", pattern.lower())


def _fits_class(pattern: str, pci: PciDevice) -> bool:
    if pci.class_code is None:
        return False
    return pattern in (pci.kind, "*") or f"{pci.class_code:06x}".startswith(pattern.lower())
