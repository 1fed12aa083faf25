"""The one manifest of files that virtirq reads: readers, ``record`` and tests share it.

Each entry cites where the kernel defines the file. ``{name}`` stands for one path component.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

from virtirq.values import dataclass, pattern

_FIELD = pattern(r"\{(\w+)\}")


@dataclass(frozen=True)
class KernelPath:
    """A file, link or directory of a host, by pattern.

    `optional`: the kernel leaves it out where it does not apply (a device without a driver has
    no ``driver`` link), so that its absence is a fact. Absence of any other is a gap.
    `recorded`: whether ``record`` takes it; what tells of the host's users it leaves out.
    """

    pattern: str
    optional: bool = False
    recorded: bool = True

    def at(self, *names: object) -> str:
        """The path with its fields filled in, in order."""
        return self.form % names

    @cached_property
    def form(self) -> str:
        """The pattern with ``%s`` for each field, for who fills in thousands."""
        return _FIELD.sub("%s", self.pattern)

    @cached_property
    def glob(self) -> str:
        """The pattern with ``*`` for each field."""
        return _FIELD.sub("*", self.pattern)


# Documentation/ABI/testing/sysfs-devices-system-cpu
CPU_ONLINE: Final = KernelPath("/sys/devices/system/cpu/online")
CPU_POSSIBLE: Final = KernelPath("/sys/devices/system/cpu/possible")
CPU_ISOLATED: Final = KernelPath("/sys/devices/system/cpu/isolated")
CPU_NOHZ_FULL: Final = KernelPath("/sys/devices/system/cpu/nohz_full", optional=True)
# Documentation/admin-guide/cgroup-v2.rst, "Cpuset Interface Files": of the root cgroup, since 6.7
CGROUP_ISOLATED: Final = KernelPath("/sys/fs/cgroup/cpuset.cpus.isolated", optional=True)
# Of every other one; before 6.7 these alone tell. Their names are those of units, and of guests.
CGROUP_DIR: Final = "/sys/fs/cgroup"
CGROUP_PARTITION: Final = KernelPath(
    "/sys/fs/cgroup/{group}/cpuset.cpus.partition", optional=True, recorded=False
)
CGROUP_CPUS: Final = KernelPath(
    "/sys/fs/cgroup/{group}/cpuset.cpus.effective", optional=True, recorded=False
)
# Hybrid CPUs: arch/x86/events/intel/core.c, intel_hybrid_get_attr_cpus()
CPU_PERFORMANCE: Final = KernelPath("/sys/devices/cpu_core/cpus", optional=True)
CPU_EFFICIENCY: Final = KernelPath("/sys/devices/cpu_atom/cpus", optional=True)
# The smallest of three sorts (Arrow Lake H), since 6.13
CPU_LOW_POWER: Final = KernelPath("/sys/devices/cpu_lowpower/cpus", optional=True)
CPU_SIBLINGS: Final = KernelPath(
    "/sys/devices/system/cpu/{cpu}/topology/thread_siblings_list", optional=True
)
# The older of two names for the CPUs of a package, which every kernel has.
CPU_PACKAGE: Final = KernelPath(
    "/sys/devices/system/cpu/{cpu}/topology/core_siblings_list", optional=True
)
CACHE_LEVEL: Final = KernelPath("/sys/devices/system/cpu/{cpu}/cache/{index}/level", optional=True)
CACHE_CPUS: Final = KernelPath(
    "/sys/devices/system/cpu/{cpu}/cache/{index}/shared_cpu_list", optional=True
)
CACHE_SIZE: Final = KernelPath("/sys/devices/system/cpu/{cpu}/cache/{index}/size", optional=True)
# Documentation/ABI/stable/sysfs-devices-node; absent in a kernel without CONFIG_NUMA
NODES_ONLINE: Final = KernelPath("/sys/devices/system/node/online", optional=True)
NODE_CPUS: Final = KernelPath("/sys/devices/system/node/{node}/cpulist")
NODE_DISTANCE: Final = KernelPath("/sys/devices/system/node/{node}/distance")
# Documentation/ABI/testing/sysfs-bus-pci
PCI_VENDOR: Final = KernelPath("/sys/bus/pci/devices/{bdf}/vendor")
PCI_DEVICE: Final = KernelPath("/sys/bus/pci/devices/{bdf}/device")
PCI_CLASS: Final = KernelPath("/sys/bus/pci/devices/{bdf}/class")
PCI_NODE: Final = KernelPath("/sys/bus/pci/devices/{bdf}/numa_node", optional=True)
PCI_LOCAL_CPUS: Final = KernelPath("/sys/bus/pci/devices/{bdf}/local_cpulist")
PCI_IRQ: Final = KernelPath("/sys/bus/pci/devices/{bdf}/irq")
PCI_DRIVER: Final = KernelPath("/sys/bus/pci/devices/{bdf}/driver", optional=True)
PCI_IOMMU_GROUP: Final = KernelPath("/sys/bus/pci/devices/{bdf}/iommu_group", optional=True)
PCI_PHYSFN: Final = KernelPath("/sys/bus/pci/devices/{bdf}/physfn", optional=True)
# drivers/vfio/vfio_main.c, vfio_init_device(): what a VFIO driver has of a function, since 6.1
PCI_VFIO_DEV: Final = KernelPath("/sys/bus/pci/devices/{bdf}/vfio-dev/{device}/dev", optional=True)
# One file for each vector, "msi" or "msix"; a directory with `mode` in it before v3.14.
PCI_MSI_IRQ: Final = KernelPath("/sys/bus/pci/devices/{bdf}/msi_irqs/{irq}", optional=True)
PCI_MSI_MODE: Final = KernelPath("/sys/bus/pci/devices/{bdf}/msi_irqs/{irq}/mode", optional=True)
# Documentation/core-api/irq/irq-affinity.rst; kernel/irq/proc.c
IRQ_AFFINITY: Final = KernelPath("/proc/irq/{irq}/smp_affinity_list")
IRQ_EFFECTIVE: Final = KernelPath("/proc/irq/{irq}/effective_affinity_list", optional=True)
# Documentation/ABI/testing/sysfs-kernel-irq
IRQ_ACTIONS: Final = KernelPath("/sys/kernel/irq/{irq}/actions")
IRQ_COUNTS: Final = KernelPath("/sys/kernel/irq/{irq}/per_cpu_count")
# Posted interrupts: arch/x86/kvm/{vmx,svm}, drivers/iommu/intel/iommu.c
KVM_DEVICE_POSTED: Final = KernelPath(
    "/sys/module/{kvm}/parameters/enable_device_posted_irqs", optional=True
)
KVM_APICV: Final = KernelPath("/sys/module/kvm_intel/parameters/enable_apicv", optional=True)
KVM_AVIC: Final = KernelPath("/sys/module/kvm_amd/parameters/avic", optional=True)
VTD_CAP: Final = KernelPath("/sys/class/iommu/{iommu}/intel-iommu/cap", optional=True)
# irqbalance: its own socket, and its unit's cgroup
IRQBALANCE_SOCKET: Final = KernelPath("/run/irqbalance/{socket}", optional=True)
IRQBALANCE_CGROUP: Final = KernelPath(
    "/sys/fs/cgroup/system.slice/irqbalance.service/cgroup.procs", optional=True
)
# Documentation/filesystems/proc.rst: which process is which guest's, and where its threads run
PROCESS_ARGUMENTS: Final = KernelPath("/proc/{pid}/cmdline", optional=True, recorded=False)
PROCESS_STAT: Final = KernelPath("/proc/{pid}/stat", optional=True, recorded=False)
PROCESS_PROGRAM: Final = KernelPath("/proc/{pid}/exe", optional=True, recorded=False)
THREAD_NAME: Final = KernelPath("/proc/{pid}/task/{tid}/comm", optional=True, recorded=False)
THREAD_STATUS: Final = KernelPath("/proc/{pid}/task/{tid}/status", optional=True, recorded=False)
# libvirt, src/qemu/qemu_process.c, qemuProcessLaunch(): for virtqemud and libvirtd alike
LIBVIRT_PID: Final = KernelPath("/run/libvirt/qemu/{guest}.pid", optional=True, recorded=False)
# drivers/vfio/vfio_main.c: functions that a VFIO driver has (since 6.1), and whether any is open.
# Without processes that tells nothing, and a recording has none.
VFIO_DEVICE: Final = KernelPath("/sys/class/vfio-dev/{device}", optional=True, recorded=False)
PCI_ENABLE: Final = KernelPath("/sys/bus/pci/devices/{bdf}/enable", optional=True, recorded=False)
# What hands out devices of other buses. A recording has all actions, which tell of them as well.
VFIO_DRIVER: Final = KernelPath("/sys/bus/{bus}/drivers/{driver}", optional=True, recorded=False)
# Documentation/admin-guide/sysfs-rules.rst: the device of a number, "major:minor"
CHAR_DEVICE: Final = KernelPath("/sys/dev/char/{number}", optional=True, recorded=False)
# Documentation/filesystems/proc.rst: what a process has open, and who its children are
PROCESS_NAME: Final = KernelPath("/proc/{pid}/comm", optional=True, recorded=False)
PROCESS_DESCRIPTOR: Final = KernelPath("/proc/{pid}/fd/{fd}", optional=True, recorded=False)
DESCRIPTOR_INFO: Final = KernelPath("/proc/{pid}/fdinfo/{fd}", optional=True, recorded=False)
# Documentation/ABI/stable/procfs-audit_loginuid: who logged in, whatever became of it by sudo
LOGIN_USER: Final = KernelPath("/proc/{pid}/loginuid", optional=True, recorded=False)
THREAD_STAT: Final = KernelPath("/proc/{pid}/task/{tid}/stat", optional=True, recorded=False)
THREAD_CHILDREN: Final = KernelPath(
    "/proc/{pid}/task/{tid}/children", optional=True, recorded=False
)
PID_NAMESPACE: Final = KernelPath("/proc/self/ns/pid", optional=True, recorded=False)
# virt/kvm/kvm_main.c, kvm_create_vcpu_debugfs(): since 6.0, on x86 and powerpc
KVM_VCPU_THREAD: Final = KernelPath(
    "/sys/kernel/debug/kvm/{vm}/{vcpu}/pid", optional=True, recorded=False
)
# virt/kvm/kvm_main.c, kvm_vcpu_stats_desc[] of the architecture
KVM_VCPU_STATISTIC: Final = KernelPath(
    "/sys/kernel/debug/kvm/{vm}/{vcpu}/{statistic}", optional=True, recorded=False
)
BOOT_ID: Final = KernelPath("/proc/sys/kernel/random/boot_id")
OS_RELEASE: Final = KernelPath("/proc/sys/kernel/osrelease")

MANIFEST: Final = tuple(each for each in globals().values() if isinstance(each, KernelPath))

CPU_DIR: Final = "/sys/devices/system/cpu"
NODE_DIR: Final = "/sys/devices/system/node"
PCI_DIR: Final = "/sys/bus/pci/devices"
PROC_DIR: Final = "/proc"
VFIO_DEVICE_DIR: Final = "/sys/class/vfio-dev"
KVM_DEBUG_DIR: Final = "/sys/kernel/debug/kvm"
IRQ_DIR: Final = "/proc/irq"
IRQ_SYSFS_DIR: Final = "/sys/kernel/irq"
IOMMU_DIR: Final = "/sys/class/iommu"
IRQBALANCE_DIR: Final = "/run/irqbalance"
# Documentation/trace/ftrace.rst: its own mount point since 4.1, and the older one
TRACEFS: Final = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
