"""The lab's host as a QEMU command line.

    node 0: CPUs 0-3                       node 1: CPUs 4-7
    21:00.0 e1000e                         41:00.0 e1000e
    22:00.0 empty, for an NVMe             42:00.0 empty, for an NVMe
    23:00.0 igb, VFs 23:10.0 and .2        43:00.0 igb, VFs 43:10.0 and .2
    24:00.0 virtio-net                     44:00.0 virtio-net

All of them stand behind a root port each, on an expander bridge of their node, so the host's
kernel gives each an IOMMU group of its own and the right NUMA node.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# By node.
E1000E = ("0000:21:00.0", "0000:41:00.0")
NVME = ("0000:22:00.0", "0000:42:00.0")
IGB = ("0000:23:00.0", "0000:43:00.0")
IGB_VFS = (("0000:23:10.0", "0000:23:10.2"), ("0000:43:10.0", "0000:43:10.2"))
VIRTIO = ("0000:24:00.0", "0000:44:00.0")

AGENT_PORT = 7000
_AGENT_MAC = "52:54:00:12:34:56"  # l1-init finds its own NIC by it


@dataclass(frozen=True)
class Machine:
    """One form of the host."""

    systemd: bool = False  # full Debian boot instead of the lab's own, several times slower

    def arguments(self, kernel: Path, initramfs: Path, token: str) -> list[str]:
        """Everything but the disk, which differs from run to run."""
        options = [
            "-name virtirq-lab -nodefaults -no-user-config -display none",
            # Emulation always: real KVM would make the lab depend on the machine it runs on.
            "-machine q35 -accel tcg,thread=multi,tb-size=512 -cpu max",
            "-m 4096 -smp 8,sockets=2,cores=4,threads=1",
            "-object memory-backend-ram,id=m0,size=2G -numa node,nodeid=0,cpus=0-3,memdev=m0",
            "-object memory-backend-ram,id=m1,size=2G -numa node,nodeid=1,cpus=4-7,memdev=m1",
            "-numa dist,src=0,dst=1,val=20 -numa dist,src=1,dst=0,val=20",
            "-device intel-iommu,intremap=on",
            *_node(node=0, bus="0x20", chassis=10),
            *_node(node=1, bus="0x40", chassis=20),
            f"-netdev user,id=agent,restrict=on,hostfwd=tcp:127.0.0.1:0-10.0.2.15:{AGENT_PORT}",
            f"-device virtio-net-pci,bus=pcie.0,netdev=agent,romfile=,mac={_AGENT_MAC}",
            "-device virtio-rng-pci,bus=pcie.0 -device virtio-blk-pci,bus=pcie.0,drive=root",
        ]
        words = " ".join(options).split()
        files = ["-kernel", str(kernel), "-initrd", str(initramfs)]
        return [*words, *files, "-append", f"{self._kernel_line()} lab.token={token}"]

    def _kernel_line(self) -> str:
        line = (
            "console=ttyS0 quiet panic=-1 audit=0 intel_iommu=on iommu=pt mitigations=off nokaslr"
            # Many emulated boots hang while they start more processors: l1-init does it later.
            " net.ifnames=0 maxcpus=1"
            # All processors have one TSC here, though on a busy machine the kernel comes to doubt
            # it. It would take the HPET then, each reading of which takes QEMU's one lock.
            " tsc=reliable"
        )
        init = " lab.init=/sbin/init" if self.systemd else ""
        return f"{line}{init}"


def _node(node: int, bus: str, chassis: int) -> list[str]:
    """An expander bridge of a NUMA node with four root ports and the node's devices."""
    bridge = f"-device pxb-pcie,id=pxb{node},bus=pcie.0,bus_nr={bus},numa_node={node}"
    ports = [
        f"-device pcie-root-port,id=n{node}p{port},bus=pxb{node}"
        f",chassis={chassis + port},slot={chassis + port}"
        for port in range(4)
    ]
    cards = {
        0: "e1000e",
        2: "igb",
        3: "virtio-net-pci,mq=on,vectors=10,iommu_platform=on,disable-legacy=on",
    }
    nics = [
        f"-netdev user,id=net{node}{port},restrict=on"
        f" -device {card},netdev=net{node}{port},bus=n{node}p{port},romfile="
        f",mac=52:54:00:00:0{node}:0{port}"
        for port, card in cards.items()
    ]
    return [bridge, *ports, *nics]
