"""The APIC ids that QEMU gives to a guest's vCPUs on x86."""

from __future__ import annotations


def apic_ids(vcpus: int, dies: int = 1, cores: int = 1, threads: int = 1) -> dict[int, int]:
    """APIC ids by vCPU number; `dies` in a socket, `cores` in a die, `threads` in a core.

    Each level has as many bits as its count needs (QEMU, include/hw/i386/topology.h,
    x86_topo_ids_from_idx() and apicid_from_topo_ids(); hw/i386/x86.c, x86_possible_cpu_arch_ids()).
    """
    levels = [(count, (count - 1).bit_length()) for count in (threads, cores, dies)]
    ids = {}
    for number in range(vcpus):
        rest, shift, apic = number, 0, 0
        for count, width in levels:
            rest, part = divmod(rest, count)
            apic |= part << shift
            shift += width
        ids[number] = apic | rest << shift
    return ids
