"""What a recording says of where a guest's threads ran."""

from __future__ import annotations

from dataclasses import replace

from virtirq.cpuset import CpuSet
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.guests.libvirt.redaction import redact
from virtirq.model import Vcpu

TEXT = """<domain type='kvm'><name>web</name><vcpu cpuset='0-3'>3</vcpu><iothreads>2</iothreads>
<cputune><vcpupin vcpu='0' cpuset='1'/><emulatorpin cpuset='1'/></cputune></domain>"""


def test_threads_are_written_where_they_may_run() -> None:
    guest = parse_domain(TEXT)
    seen = replace(
        guest,
        vcpus=(Vcpu(0, CpuSet([5]), 77), Vcpu(1, None), Vcpu(2, CpuSet([0, 1]))),
        emulator=CpuSet([6]),
        iothreads={2: CpuSet([7])},
    )
    recorded = parse_domain(redact(TEXT, seen=seen))
    assert recorded.vcpus == (
        Vcpu(0, CpuSet([5]), apic=0),
        Vcpu(1, apic=1),
        Vcpu(2, CpuSet([0, 1]), apic=2),
    )
    assert (recorded.emulator, recorded.iothreads) == (seen.emulator, seen.iothreads)


def test_without_a_look_at_the_guest_the_pins_stay() -> None:
    recorded = parse_domain(redact(TEXT))
    assert recorded.vcpus == parse_domain(TEXT).vcpus
