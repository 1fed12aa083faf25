"""What KVM has counted for the vCPUs of a guest."""

from __future__ import annotations

from collections.abc import Collection

from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.model import VcpuCounts


def read_vcpu_statistics(reader: Reader, pid: int, names: Collection[str]) -> VcpuCounts:
    """Counts of the vCPUs that the process has, by KVM's number: on x86 that is the APIC's.

    Those of `names` that this kernel keeps; none where debugfs is not there, or closed to this
    user. virt/kvm/kvm_main.c, kvm_create_vm_debugfs() and kvm_create_vcpu_debugfs().
    """
    found: dict[int, dict[str, int]] = {}
    machines = [
        each
        for each in reader.names(paths.KVM_DEBUG_DIR, paths.KVM_VCPU_STATISTIC)
        if each.partition("-")[0] == str(pid)
    ]
    for machine in machines:
        directory = f"{paths.KVM_DEBUG_DIR}/{machine}"
        for vcpu in reader.names(directory, paths.KVM_VCPU_STATISTIC):
            number = vcpu.removeprefix("vcpu")
            if not (vcpu.startswith("vcpu") and number.isdecimal()):
                continue
            for name in names:
                text = reader.text(paths.KVM_VCPU_STATISTIC, machine, vcpu, name)
                if text is not None and text.strip().isdecimal():
                    found.setdefault(int(number), {})[name] = int(text)
    return found
