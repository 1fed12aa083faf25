"""Pins a guest's vCPUs and emulator through libvirt, and has its memory come from their node.

The only writes are virDomainPinVcpuFlags(), virDomainPinEmulator() and, for a definition,
virDomainSetNumaParameters(). What fails half-way is taken back.

Memory of a running guest is not moved: a guest with passed-through devices has all of it locked in
place for them (Linux kernel, drivers/vfio/vfio_iommu_type1.c, vfio_pin_pages_remote()).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.errors import LibvirtError, VirtirqError
from virtirq.guests.libvirt.connection import Affect, Connection, VirDomain
from virtirq.guests.libvirt.reading import read_domain
from virtirq.policy.place import Placement

_NODESET: Final = "numa_nodeset"  # VIR_DOMAIN_NUMA_NODESET
_MODE: Final = "numa_mode"  # VIR_DOMAIN_NUMA_MODE
_PREFERRED: Final = 1  # VIR_DOMAIN_NUMATUNE_MEM_PREFERRED


def place(
    connection: Connection, domain: VirDomain, placement: Placement, affect: Affect
) -> list[str]:
    """Do what is proposed; what is to be known of it, a line each.

    All of it is done, or none. Raises LibvirtError, AccessError.
    """
    count = _count(connection)
    notes: list[str] = []
    undo = None
    if affect & Affect.LIVE:
        undo = _pins(connection, domain)
        try:
            _pin(connection, domain, placement, count, Affect.LIVE)
        except VirtirqError as error:
            raise _taken_back(connection, domain, undo, error) from error
    if affect & Affect.CONFIG:
        before = connection.xml(domain, inactive=True, secure=True)
        try:
            _pin(connection, domain, placement, count, Affect.CONFIG)
            if placement.memory is not None:
                notes += _remember(connection, domain, placement.memory)
        except VirtirqError as error:
            with connection.asking("take its definition back"):
                connection.raw.defineXMLFlags(before, 0)
            if undo is not None:
                raise _taken_back(connection, domain, undo, error) from error
            raise
    return notes


class _Pins(NamedTuple):
    """Where a running guest's threads may run, by libvirt."""

    vcpus: Sequence[Sequence[bool]]
    emulator: Sequence[bool]


def _count(connection: Connection) -> int:
    cpus = connection.cpus()
    if cpus is None:
        raise LibvirtError(f"{connection.uri} does not tell how many CPUs its host has")
    return len(cpus)


def _pins(connection: Connection, domain: VirDomain) -> _Pins:
    with connection.asking(f"read where {domain.name()} is pinned"):
        return _Pins(domain.vcpuPinInfo(Affect.LIVE), domain.emulatorPinInfo(Affect.LIVE))


def _pin(
    connection: Connection, domain: VirDomain, placement: Placement, count: int, where: Affect
) -> None:
    if placement.emulator is not None:
        with connection.asking(f"pin the emulator of {domain.name()} to {placement.emulator}"):
            domain.pinEmulator(_bits(placement.emulator, count), where)
    for vcpu, cpu in placement.vcpus.items():
        with connection.asking(f"pin vCPU {vcpu} of {domain.name()} to CPU {cpu}"):
            domain.pinVcpuFlags(vcpu, _bits(CpuSet([cpu]), count), where)


def _bits(cpus: CpuSet, count: int) -> tuple[bool, ...]:
    return tuple(cpu in cpus for cpu in range(count))


def _taken_back(
    connection: Connection, domain: VirDomain, before: _Pins, error: VirtirqError
) -> VirtirqError:
    """The running guest as it was; what went wrong."""
    try:
        with connection.asking("take it back"):
            for vcpu, bits in enumerate(before.vcpus):
                with suppress(connection.module.libvirtError):  # a vCPU that is offline
                    domain.pinVcpuFlags(vcpu, tuple(bits), Affect.LIVE)
            domain.pinEmulator(tuple(before.emulator), Affect.LIVE)
    except VirtirqError as second:
        return LibvirtError(f"{error}; {second}", hint="see 'virsh vcpupin' for where it is now")
    return error


def _remember(connection: Connection, domain: VirDomain, node: int) -> list[str]:
    """The memory's node, from the guest's next start on."""
    element = read_domain(connection.xml(domain, inactive=True))
    if element.find("numatune/memnode") is not None or element.find("cpu/numa/cell") is not None:
        return ["its memory is left as it is: it has NUMA cells of its own"]
    memory = element.find("numatune/memory")
    if memory is not None and memory.get("placement") == "auto":
        return ["its memory is left as it is: numad places it"]
    parameters: dict[str, object] = {_NODESET: str(node)}
    if memory is None:
        # Where the node has not enough, the guest starts all the same; `strict`, libvirt's default,
        # would keep it from starting.
        parameters[_MODE] = _PREFERRED
    with connection.asking(f"have the memory of {domain.name()} come from node {node}"):
        domain.setNumaParameters(parameters, Affect.CONFIG)
    return []
