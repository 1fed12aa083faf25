"""How long interrupts take from a host's CPU to the vCPU, from the text of a trace.

Three of the kernel's own events, in this order: ``irq_handler_entry`` when a CPU of the host takes
the interrupt; in its handler, on that CPU, VFIO signals KVM's irqfd, and ``kvm_msi_set_irq`` has
the guest's vector; then ``kvm_inj_virq``, when the thread of the vCPU gives it to the guest
(arch/x86/kvm/trace.h). That is seen only where KVM injects: a processor that posts interrupts
(VT-x's APICv, AMD's AVIC) has no such moment.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from virtirq.values import pattern

EVENTS: Final = ("irq/irq_handler_entry", "kvm/kvm_msi_set_irq", "kvm/kvm_inj_virq")

# kernel/trace/trace_output.c, with the option irq-info off: "NAME-PID [CPU] TIME: EVENT: …"
_LINE: Final = pattern(r"-(\d{1,9}) +\[(\d{1,5})\] +(\d{1,12}\.\d{1,9}): (\w{1,32}): (.*)$")
_TAKEN: Final = pattern(r"irq=\d+ name=(\S+)$")
_ROUTED: Final = pattern(r"dst [0-9a-f]+ vec (\d+) ")
# "irq 37" until Linux 6.0, "IRQ 0x25" since; one that was not taken up before is no new one.
_GIVEN: Final = pattern(r"(?:irq (\d+)|IRQ 0x([0-9a-f]+))$")


def delays(trace: str, threads: Collection[int], aimed: Mapping[str, int]) -> list[float]:
    """Seconds of each interrupt that was seen all the way.

    `threads` are those of the guest's vCPUs, `aimed` by the interrupt's action that of the vCPU
    that it is for, as far as that is known.
    """
    taken: dict[int, tuple[float, str]] = {}
    """What each CPU of the host is handling."""
    waiting: dict[int, dict[int | None, float]] = {}
    """Since when the guest's vector waits, for a vCPU's thread or for whichever takes it."""
    found = []
    for line in trace.splitlines():
        event = _LINE.search(line)
        if event is None:
            continue
        pid, cpu, at, kind = int(event[1]), int(event[2]), float(event[3]), event[4]
        if kind == "irq_handler_entry":
            name = _TAKEN.match(event[5])
            taken[cpu] = at, name[1] if name else ""
        elif kind == "kvm_msi_set_irq" and cpu in taken:
            since, action = taken.pop(cpu)
            vector = _ROUTED.match(event[5])
            if vector is not None:
                # What comes while one waits is one with it.
                those = waiting.setdefault(int(vector[1]), {})
                those.setdefault(aimed.get(action), since)
        elif kind == "kvm_inj_virq" and pid in threads:
            given = _GIVEN.match(event[5])
            number = -1 if given is None else int(given[1] or given[2], 10 if given[1] else 16)
            those = waiting.get(number, {})
            thread = pid if pid in those else None
            if thread in those:
                found.append(at - those.pop(thread))
    return found
