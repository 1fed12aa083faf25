"""The manifest: what the readers touch is in it, and what is in it is read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.guests.processes.test_find import SCENES
from tests.hostmaker import MadeDevice, MadeFs, MadeHost, MadeInterrupt, passthrough
from virtirq.control.cycle import observe
from virtirq.guests.processes.affinity import Processes
from virtirq.guests.processes.find import find_processes
from virtirq.host import paths
from virtirq.host.fs import Reader
from virtirq.host.irqbalance import read_start, read_version
from virtirq.host.paths import MANIFEST, KernelPath
from virtirq.host.pci import list_addresses
from virtirq.host.recording import record
from virtirq.host.tree import RECORDING
from virtirq.model import Guest, PciAddress

NIC, GPU = "0000:82:00.0", "0000:01:00.0"
WEB = Guest("web", "test", uuid="6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11")
# Everything that a reader may look for is there, on an Intel host and on an AMD one.
INTEL = MadeHost(
    online="0-3",
    isolated="2",
    nohz_full="3",
    nodes={0: "0-1", 1: "2-3"},
    partitions="1",
    performance="0-1",
    efficiency="2-3",
    llcs=("0-3",),
    llc_sizes={"0-3": 32768},
    packages=("0-1", "2-3"),
    devices=(
        replace(passthrough(NIC, vectors=2, iommu_group=3, physfn="0000:82:00.1"), vfio_device=0),
        passthrough(GPU, kind="intx", first_irq=16),
        MadeDevice("0000:00:1f.0", driver=None, line=9),
    ),
    interrupts=(MadeInterrupt(9, ("acpi",)),),
    irqbalance=77,
    kvm={"kvm/enable_device_posted_irqs": "Y", "kvm_intel/enable_apicv": "Y"},
    iommus={"dmar0": 1 << 59},
    files={
        "/proc/irq/default_smp_affinity": "f",
        "/sys/devices/cpu_lowpower/cpus": "3",
        "/sys/fs/cgroup/system.slice/irqbalance.service/cgroup.procs": "77",
        "/proc/77/stat": f"77 (irqbalance) S{' 1' * 18} 1234",
        "/proc/77/exe": "irqbalance version 1.9.4",
        "/run/libvirt/qemu/web.pid": "4242",
        "/proc/4242/cmdline": f"qemu\0-uuid\0{WEB.uuid}",
        "/proc/4242/task/4242/comm": "CPU 0/KVM",
        "/proc/4242/task/4242/status": "Cpus_allowed_list:\t0-3",
    },
)
PLATFORM = paths.VFIO_DRIVER.at("platform", "vfio-platform")
HOSTS = {
    "intel": INTEL,
    "of a SoC": replace(INTEL, files={**INTEL.files, f"{PLATFORM}/bind": ""}),
    "amd": replace(INTEL, kvm={"kvm_amd/avic": "Y"}, iommus={}, symlinked=True),
    "old kernel": replace(INTEL, old_msi=True, nohz_full=None, nodes={}, kvm={}),
    "linux 6.1": replace(
        INTEL,
        partitions=None,
        files={
            "/sys/fs/cgroup/m/cpuset.cpus.partition": "isolated",
            "/sys/fs/cgroup/m/cpuset.cpus.effective": "1",
        },
    ),
    "bare": MadeHost(devices=(MadeDevice(NIC),)),
    "foreign": replace(INTEL, foreign=True, removed=("/proc/irq", "/sys/kernel", "/run")),
    **SCENES,
}
# What is looked at as a directory, and has no file of the manifest in it by name.
ALSO = (r"/proc/\d+",)


def one_component(path: KernelPath) -> re.Pattern[str]:
    return re.compile("[^/]+".join(map(re.escape, path.glob.split("*"))))


FILES = {path: one_component(path) for path in MANIFEST}
DIRECTORIES = [
    re.compile("[^/]+".join(map(re.escape, "/".join(parts[:count]).split("*"))))
    for path in MANIFEST
    for parts in [path.glob.split("/")]
    for count in range(2, len(parts))
]


def seen(fs: MadeFs) -> list[tuple[str, str]]:
    """Every access of everything that reads a host."""
    devices = [PciAddress.parse(each) for each in (NIC, GPU, "0000:00:1f.0")]
    observe(fs, (), also=devices)
    list_addresses(Reader(fs))
    Processes(fs).seen(WEB)
    find_processes(fs)
    read_start(fs, 77)
    read_version(fs, 77)
    return fs.calls


def strays(calls: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Accesses that the manifest knows nothing of."""
    return [
        (operation, path)
        for operation, path in calls
        if not any(pattern.fullmatch(path) for pattern in FILES.values())
        and not (
            operation in ("listdir", "mode")
            and (
                any(pattern.fullmatch(path) for pattern in DIRECTORIES)
                or any(re.fullmatch(pattern, path) for pattern in ALSO)
            )
        )
    ]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", HOSTS)
def test_readers_touch_what_the_manifest_names(name: str, live: bool) -> None:
    fs = HOSTS[name].live() if live else HOSTS[name].fs()
    assert strays(seen(fs)) == []


@pytest.mark.parametrize(
    "call",
    [
        ("read", "/proc/cmdline"),
        ("read", "/proc/irq"),
        ("read", "/proc/irq/1/smp_affinity"),
        ("listdir", "/proc/net/dev_snmp6"),
        ("read", "/proc/77/status"),
        ("readlink", "/sys/bus/pci/devices/0000:82:00.0/subsystem"),
        ("mode", "/sys/bus/pci/devices/0000:82:00.0/config"),
    ],
)
def test_a_stray_would_be_seen(call: tuple[str, str]) -> None:
    assert strays([call]) == [call]


def exercised() -> set[KernelPath]:
    """The entries whose content some reader asked for and got."""
    found = set()
    for host in HOSTS.values():
        fs = host.live()
        for operation, path in list(seen(fs)):
            if operation in ("read", "readlink", "listdir"):
                there: Callable[[str], object] = getattr(fs.memory, operation)
                try:
                    there(path)
                except OSError:
                    continue
                found |= {kind for kind, pattern in FILES.items() if pattern.fullmatch(path)}
        if any(call == ("listdir", paths.IRQBALANCE_DIR) for call in fs.calls):
            found.add(paths.IRQBALANCE_SOCKET)  # a socket is known by its name alone
        if any(call == ("listdir", f"{paths.PCI_DIR}/{NIC}/vfio-dev") for call in fs.calls):
            found.add(paths.PCI_VFIO_DEV)  # so is this
        if any(call == ("mode", PLATFORM) for call in fs.calls) and fs.memory.isdir(PLATFORM):
            found.add(paths.VFIO_DRIVER)  # and this
    return found


def test_no_entry_is_never_exercised() -> None:
    assert set(MANIFEST) - exercised() == set()


def test_the_recorder_touches_what_the_manifest_names(tmp_path: Path) -> None:
    fs = INTEL.live()
    record(fs, tmp_path / "host.tar", {})
    assert strays(fs.calls) == [("listdir", "/sys/class/net")]


def test_nothing_is_written_by_reading() -> None:
    for host in HOSTS.values():
        fs = host.live()
        assert "write" not in {operation for operation, _ in seen(fs)}


class TestKernelPath:
    def test_at(self) -> None:
        path = KernelPath("/a/{one}/b/{two}")
        assert path.at("x", 5) == "/a/x/b/5"
        assert path.glob == "/a/*/b/*"
        assert KernelPath("/a").at() == "/a"

    @pytest.mark.parametrize("names", [(), ("x",), ("x", "y", "z")])
    def test_every_field_must_be_filled(self, names: tuple[str, ...]) -> None:
        with pytest.raises(TypeError, match="argument"):
            KernelPath("/a/{one}/b/{two}").at(*names)

    def test_the_manifest_is_whole(self) -> None:
        declared = [each for each in vars(paths).values() if isinstance(each, KernelPath)]
        assert list(MANIFEST) == declared
        assert len({path.pattern for path in MANIFEST}) == len(MANIFEST)
        for path in MANIFEST:
            assert path.pattern.startswith(("/proc/", "/sys/", "/run/"))
            assert not path.pattern.endswith("/")
            assert RECORDING not in path.pattern

    def test_directories_hold_what_they_are_for(self) -> None:
        for directory, path in (
            (paths.CPU_DIR, paths.CPU_ONLINE),
            (paths.PCI_DIR, paths.PCI_VENDOR),
            (paths.IRQ_DIR, paths.IRQ_AFFINITY),
            (paths.IOMMU_DIR, paths.VTD_CAP),
            (paths.IRQBALANCE_DIR, paths.IRQBALANCE_SOCKET),
        ):
            assert path.pattern.startswith(f"{directory}/")
