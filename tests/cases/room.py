"""A case: a made host with guests in it, and what comes out of it.

It goes the way of the command, from texts to what is said: the files of a host, domain XML and a
configuration in; where each vector is to be, what `check` finds and what `place` proposes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tests.hostmaker import MadeHost
from virtirq.control.cycle import observe
from virtirq.cpuset import CpuSet
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.host.fs import HostFs
from virtirq.host.scratch import open_host
from virtirq.model import Finding, Guest, Plan, Snapshot
from virtirq.policy.config import parse_config
from virtirq.policy.findings import findings
from virtirq.policy.plan import plan
from virtirq.ui.verbs.place import propose

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
NOVA = "http://openstack.org/xmlns/libvirt/nova/1.1"
CXL = {0: (10, 21, 14, 24), 1: (21, 10, 24, 14), 2: (14, 24, 10, 26), 3: (24, 14, 26, 10)}
"""Distances of two sockets, each with a CXL device's memory behind it, nodes 2 and 3."""


def function(address: str, cpuset: str = "") -> str:
    """<hostdev> of a PCI function, with the RFC's attribute where there is one."""
    domain, bus, rest = address.split(":")
    slot, number = rest.split(".")
    asked = f" cpuset='{cpuset}'" if cpuset else ""
    return (
        f"<hostdev mode='subsystem' type='pci'{asked}><source><address domain='0x{domain}'"
        f" bus='0x{bus}' slot='0x{slot}' function='0x{number}'/></source></hostdev>"
    )


def guest(
    devices: Sequence[str],
    pins: Sequence[str | None] = (),
    *,
    name: str = "vm",
    vcpus: int = 0,
    shared: str = "",
    emulator: str = "",
    tune: str = "",
    cpuset: str = "",
    more: str = "",
) -> str:
    """Domain XML: `pins` by vCPU (None: not pinned), or `vcpus` without; `shared` is <vcpu cpuset>.

    `tune` goes into <cputune>, `more` into <domain>; `cpuset` is asked for each device.
    """
    pinned = "".join(
        f"<vcpupin vcpu='{number}' cpuset='{cpus}'/>"
        for number, cpus in enumerate(pins)
        if cpus is not None
    )
    if emulator:
        pinned += f"<emulatorpin cpuset='{emulator}'/>"
    given = "".join(function(each, cpuset) for each in devices)
    among = f" cpuset='{shared}'" if shared else ""
    return (
        f"<domain type='kvm'><name>{name}</name><vcpu{among}>{len(pins) or vcpus}</vcpu>"
        f"<cputune>{pinned}{tune}</cputune><devices>{given}</devices>{more}</domain>"
    )


def arguments(*words: str) -> str:
    """<qemu:commandline>."""
    inner = "".join(f"<q:arg value='{each}'/>" for each in words)
    return f"<q:commandline xmlns:q='{QEMU}'>{inner}</q:commandline>"


def mask(text: str) -> str:
    """Nova's metadata with StarlingX's mask."""
    spec = f"<n:extraSpec name='hw:pci_irq_affinity_mask'>{text}</n:extraSpec>"
    flavor = f"<n:flavor name='f'><n:extraSpecs>{spec}</n:extraSpecs></n:flavor>"
    return f"<metadata><n:instance xmlns:n='{NOVA}'>{flavor}</n:instance></metadata>"


@dataclass(frozen=True)
class Room:
    """`guests` are domain XML; `config` is TOML. A host is a made or a recorded one."""

    host: MadeHost | Path | HostFs
    guests: Sequence[str] = ()
    config: str = ""

    @cached_property
    def known(self) -> tuple[Guest, ...]:
        return tuple(parse_domain(each) for each in self.guests)

    @cached_property
    def snapshot(self) -> Snapshot:
        match self.host:
            case MadeHost():
                fs: HostFs = self.host.fs()
            case Path():
                fs = open_host(self.host)
            case _:
                fs = self.host
        return observe(fs, self.known)

    @cached_property
    def plan(self) -> Plan:
        return plan(self.snapshot, parse_config([("x.toml", self.config)] if self.config else []))

    @property
    def on(self) -> dict[str, list[str]]:
        """Where each device's interrupts are to be, in order; None for one that is left alone."""
        found: dict[str, list[str]] = {}
        for each in self.plan.actions:
            wanted = getattr(each, "after", None) or getattr(each, "wanted", None)
            found.setdefault(str(each.key.device), []).append(
                "-" if wanted is None else str(wanted)
            )
        return found

    @property
    def load(self) -> Counter[int]:
        """Vectors by CPU, once the plan is carried out."""
        return Counter(cpu for those in self.on.values() for each in those for cpu in _one(each))

    @property
    def cpus(self) -> str:
        """All CPUs that any of them are to be on."""
        return str(CpuSet(self.load))

    def target(self, device: str) -> str:
        """The CPUs that its directive means; what is said instead where it is left alone."""
        (found,) = (
            each
            for guest in self.plan.guests
            for each in guest.devices
            if str(each.device.address) == device and each.code != "claimed"
        )
        return found.note if found.target is None else str(found.target)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return findings(self.snapshot, self.plan)

    @property
    def codes(self) -> set[str]:
        """What `check` finds, but for what every made host has.

        That are interrupts that were not moved yet, and devices that no guest was made for.
        """
        moves = {"wrong-cpu", "wrong-node", "affinity-loose", "device-unclaimed"}
        return {each.code for each in self.findings} - moves

    def place(
        self, name: str = "vm", node: int | None = None, cpus: str | None = None
    ) -> tuple[str, str | None, str]:
        """CPUs of the vCPUs, the emulator's where it is moved, and notes."""
        made = propose(self.snapshot, name, node, None if cpus is None else CpuSet.parse(cpus))
        emulator = None if made.emulator is None else str(made.emulator)
        return str(CpuSet(made.vcpus.values())), emulator, "; ".join(made.notes)

    def but(self, **more: object) -> Room:
        """Another host, made as this one but for these."""
        assert isinstance(self.host, MadeHost)
        return replace(self, host=replace(self.host, **more))  # type: ignore[arg-type]


def _one(text: str) -> CpuSet:
    return CpuSet() if text == "-" else CpuSet.parse(text)
