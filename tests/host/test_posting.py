"""Whether interrupts are posted: what says so, and what cannot say."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from tests.hostmaker import MadeHost
from virtirq.host.fs import HostFs, Reader
from virtirq.host.posting import read_posting
from virtirq.model import Posting

CAN = 1 << 59
CANNOT = 0xD2008C40660462 & ~CAN


def read(fs: HostFs) -> Posting:
    return read_posting(Reader(fs))


# KVM's parameters, the IOMMUs' capabilities, the verdict and a word of its basis.
HOSTS = [
    ({}, {}, False, "KVM is not loaded"),
    ({"kvm_intel/enable_apicv": "Y"}, {"dmar0": CAN}, True, "dmar0 can post"),
    ({"kvm_intel/enable_apicv": "1"}, {"dmar0": CAN | CANNOT}, True, "dmar0"),
    ({"kvm_intel/enable_apicv": "Y"}, {"dmar0": CANNOT, "dmar1": CAN}, True, "dmar1"),
    ({"kvm_intel/enable_apicv": "Y"}, {"dmar1": CAN, "dmar0": CAN}, True, "dmar0, dmar1"),
    ({"kvm_intel/enable_apicv": "Y"}, {"dmar0": CANNOT}, False, "no IOMMU"),
    ({"kvm_intel/enable_apicv": "Y"}, {}, False, "no IOMMU"),
    ({"kvm_intel/enable_apicv": "N"}, {"dmar0": CAN}, False, "enable_apicv is off"),
    ({"kvm_intel/enable_apicv": "0"}, {"dmar0": CAN}, False, "enable_apicv is off"),
    ({"kvm_intel/enable_apicv": ""}, {"dmar0": CAN}, False, "enable_apicv is off"),
    ({"kvm_amd/avic": "Y"}, {}, True, "avic is on"),
    ({"kvm_amd/avic": "1"}, {}, True, "avic is on"),
    ({"kvm_amd/avic": "N"}, {}, False, "avic is off"),
    ({"kvm_amd/avic": "-1"}, {}, False, "avic is off"),
    *(
        (
            {f"{module}/enable_device_posted_irqs": "N", "kvm_intel/enable_apicv": "Y"},
            {"dmar0": CAN},
            False,
            f"{module}.enable_device_posted_irqs is off",
        )
        for module in ("kvm", "kvm_intel", "kvm_amd")
    ),
    (
        {"kvm/enable_device_posted_irqs": "Y", "kvm_intel/enable_apicv": "Y"},
        {"dmar0": CAN},
        True,
        "dmar0",
    ),
    (
        {"kvm/enable_device_posted_irqs": "Y", "kvm_intel/enable_apicv": "Y"},
        {"dmar0": CANNOT},
        False,
        "no IOMMU",
    ),
    ({"kvm/enable_device_posted_irqs": "Y", "kvm_amd/avic": "N"}, {}, False, "avic is off"),
]


@pytest.mark.parametrize("form", ["recorded", "live", "symlinked"])
@pytest.mark.parametrize(("kvm", "iommus", "active", "basis"), HOSTS)
def test_verdict(
    kvm: dict[str, str], iommus: dict[str, int], active: bool, basis: str, form: str
) -> None:
    host = MadeHost(kvm=kvm, iommus=iommus, symlinked=form == "symlinked")
    made = read(host.live() if form == "live" else host.fs())
    assert made.active is active
    assert basis in made.basis


class TestNotKnown:
    """What was not recorded or may not be read is not taken for a no."""

    INTEL = MadeHost(kvm={"kvm_intel/enable_apicv": "Y"}, iommus={"dmar0": CAN})

    def test_kvm_not_recorded(self) -> None:
        made = read(MadeHost(foreign=True).fs())
        assert made.active is None
        assert "KVM's parameters" in made.basis

    def test_iommus_not_recorded(self) -> None:
        made = read(replace(self.INTEL, foreign=True, removed=("/sys/class/iommu",)).fs())
        assert made.active is None
        assert "IOMMU" in made.basis

    def test_iommus_recorded(self) -> None:
        assert read(replace(self.INTEL, foreign=True).fs()).active is True

    @pytest.mark.parametrize("path", ["kvm_intel/parameters/enable_apicv"])
    def test_kvm_unreadable(self, path: str) -> None:
        fs = self.INTEL.live()
        fs.faults[f"/sys/module/{path}"] = errno.EACCES
        assert read(fs).active is None

    @pytest.mark.parametrize("path", ["", "/dmar0/intel-iommu/cap"])
    def test_iommus_unreadable(self, path: str) -> None:
        fs = self.INTEL.live()
        fs.faults[f"/sys/class/iommu{path}"] = errno.EACCES
        assert read(fs).active is None

    @pytest.mark.parametrize("text", ["", "x", "(null)"])
    def test_a_capability_that_is_none(self, text: str) -> None:
        path = "/sys/class/iommu/dmar0/intel-iommu/cap"
        reader = Reader(replace(self.INTEL, files={path: text}).fs())
        assert read_posting(reader).active is None
        assert [gap.path for gap in reader.gaps] == [path]

    def test_one_that_can_is_enough(self) -> None:
        fs = replace(self.INTEL, iommus={"dmar0": CAN, "dmar1": CAN}).live()
        fs.faults["/sys/class/iommu/dmar0/intel-iommu/cap"] = errno.EACCES
        assert read(fs).active is True


def test_an_amd_iommu_has_no_such_capability() -> None:
    files = {"/sys/class/iommu/ivhd0/amd-iommu/cap": "b0f"}
    made = read(MadeHost(kvm={"kvm_intel/enable_apicv": "Y"}, files=files).fs())
    assert made.active is False
