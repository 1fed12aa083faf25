"""Are device interrupts posted straight to vCPUs? Then the host affinity is moot.

The IOMMU delivers a posted interrupt to the vCPU wherever it runs; the kernel accepts an
affinity for it and the hardware ignores it (Intel VT-d specification, "Interrupt Posting";
AMD AVIC).
"""

from __future__ import annotations

from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.model import Posting

_VTD_CAP_PI = 1 << 59  # drivers/iommu/intel/iommu.h, cap_pi_support()
_YES = ("Y", "1")


def read_posting(reader: Reader) -> Posting:
    """Whether the host posts device interrupts, and what says so.

    Asks KVM's own switch first (enable_device_posted_irqs), else APICv with an IOMMU that can
    post (Intel), else AVIC (AMD). This tells of the host, not of each vector.
    """
    for module in ("kvm", "kvm_intel", "kvm_amd"):
        switch = reader.text(paths.KVM_DEVICE_POSTED, module)
        if switch is not None and switch not in _YES:
            return Posting(False, f"{module}.enable_device_posted_irqs is off")
    apicv = reader.text(paths.KVM_APICV)
    if apicv is not None:
        if apicv not in _YES:
            return Posting(False, "kvm_intel.enable_apicv is off")
        iommus = _iommus_that_post(reader)
        if not iommus and reader.missed(paths.VTD_CAP):
            return Posting(None, "the capabilities of the IOMMUs could not be read")
        if not iommus:
            return Posting(False, "no IOMMU has the posted-interrupt capability")
        return Posting(True, f"kvm_intel.enable_apicv is on and {', '.join(iommus)} can post")
    avic = reader.text(paths.KVM_AVIC)
    if avic is not None:
        on = avic in _YES
        return Posting(on, f"kvm_amd.avic is {'on' if on else 'off'}")
    if reader.missed(paths.KVM_APICV, paths.KVM_AVIC):
        return Posting(None, "KVM's parameters could not be read")
    return Posting(False, "KVM is not loaded")


def _iommus_that_post(reader: Reader) -> list[str]:
    return [
        name
        for name in sorted(reader.names(paths.IOMMU_DIR, paths.VTD_CAP))
        if (reader.number(paths.VTD_CAP, name, base=16) or 0) & _VTD_CAP_PI
    ]
