"""A nested guest: a libvirt domain of the lab's host, with real VFIO devices.

Its processor is emulated twice over, yet "kvm" is the right kind: the emulated host has AMD's
virtualisation, and plain emulation inside it would take minutes to boot.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from xml.sax.saxutils import escape, quoteattr

from .errors import GuestError
from .machine import E1000E, IGB_VFS

if TYPE_CHECKING:
    from .host import Host, Result

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_BOOT_SECONDS = 120.0
"""As `Patience` counts them; it takes some 20, or 40 beside another lab."""
_SILENCE = 180.0
"""For an answer over the serial line."""
_FILES = "/run/lab/guests"
_VTD = "<iommu model='intel'><driver intremap='on' caching_mode='on'/></iommu>"
# An emulated vCPU that QEMU asks for something else while it handles an interrupt that KVM has
# injected takes that interrupt once more (helper_vmrun() leaves exception_index set), within a lock
# that the handler holds, and hangs. It does so no more after the first exit. A paravirtual end of
# interrupt would put that off; an APIC's is an exit, and comes first of all.
_APIC = "<apic eoi='off'/>"
_IOAPIC = "<ioapic driver='qemu'/>"  # KVM's own knows no remapped interrupts
_VIRSH = ("virsh", "--connect", "qemu:///system", "--quiet")


@dataclass(frozen=True)
class GuestSpec:
    """What a guest is made of."""

    name: str = "guest"
    # One cpuset of the host for each vCPU, as <vcpupin> takes it; "" leaves the vCPU unpinned.
    pins: tuple[str, ...] = ("4", "5")
    spare_vcpus: int = 0  # so many, the last, are not plugged in
    hostdevs: tuple[str, ...] = ()  # PCI addresses
    memory_mib: int = 192
    kind: Literal["kvm", "qemu"] = "kvm"
    kernel_args: str = ""
    vtd: bool = False  # an emulated VT-d, with interrupt remapping
    irqbalance: bool = False  # its initramfs has irqbalance, not started
    domain_xml: str = ""  # more children of <domain>
    device_xml: str = ""  # more children of <devices>

    def xml(self) -> str:
        """The whole domain."""
        pins = "".join(
            f"<vcpupin vcpu='{vcpu}' cpuset={quoteattr(cpus)}/>"
            for vcpu, cpus in enumerate(self.pins)
            if cpus
        )
        vcpus = len(self.pins)
        tune = f"<cputune>{pins}</cputune>" if pins else ""
        # What libvirt would pick by itself for "kvm", QEMU refuses on an emulated host
        cpu = "<cpu mode='host-passthrough' check='none'/>" if self.kind == "kvm" else ""
        return f"""\
<domain type='{self.kind}'>
  <name>{escape(self.name)}</name>
  <memory unit='MiB'>{self.memory_mib}</memory>
  <vcpu placement='static' current='{vcpus - self.spare_vcpus}'>{vcpus}</vcpu>
  {tune}
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/opt/lab/l2-kernel</kernel>
    <initrd>{self.initramfs}</initrd>
    <cmdline>{escape(self._kernel_line())}</cmdline>
  </os>
  <features><acpi/>{_APIC}{_IOAPIC if self.vtd else ""}</features>
  {cpu}
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  {self.domain_xml}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    <serial type='unix'>
      <source mode='bind' path={quoteattr(self.serial)}/>
      <log file={quoteattr(self.log)} append='off'/>
      <target port='0'/>
    </serial>
    {_VTD if self.vtd else ""}
    {"".join(map(hostdev_xml, self.hostdevs))}
    {self.device_xml}
  </devices>
</domain>
"""

    def _kernel_line(self) -> str:
        line = "console=ttyS0 quiet panic=-1 audit=0 mitigations=off nokaslr"
        line += " net.ifnames=0 tsc=reliable"  # see machine.py
        vtd = " intel_iommu=on iommu=pt" if self.vtd else ""
        return f"{line}{vtd} {self.kernel_args}".rstrip()

    @property
    def initramfs(self) -> str:
        return f"/opt/lab/l2-initramfs{'-irqbalance' if self.irqbalance else ''}"

    @property
    def serial(self) -> str:
        return f"{_FILES}/{self.name}.serial"

    @property
    def log(self) -> str:
        return f"{_FILES}/{self.name}.log"


# The guest that already runs in a host started as "guest".
LIVE_GUEST = GuestSpec(name="live", hostdevs=(E1000E[1], IGB_VFS[1][0]))


def hostdev_xml(address: str) -> str:
    """A <hostdev> of the PCI device at this address, for a domain or to plug in."""
    match = re.fullmatch(r"([0-9a-f]{4}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", address)
    if match is None:
        raise GuestError(f"not a PCI address: {address!r}")
    names = ("domain", "bus", "slot", "function")
    source = " ".join(
        f"{name}='0x{value}'" for name, value in zip(names, match.groups(), strict=True)
    )
    return (
        "<hostdev mode='subsystem' type='pci' managed='yes'>"
        f"<driver name='vfio'/><source><address {source}/></source></hostdev>"
    )


class Guest:
    """A domain made from a spec. Its own commands go over its serial line."""

    def __init__(self, host: Host, spec: GuestSpec) -> None:
        self.host = host
        self.spec = spec
        self._boot = ""

    @property
    def name(self) -> str:
        return self.spec.name

    def virsh(self, verb: str, *arguments: str, check: bool = True) -> Result:
        """A virsh command on this domain."""
        return self.host.run([*_VIRSH, verb, self.name, *arguments], check=check)

    def define(self) -> None:
        if self.spec.irqbalance:
            self.host.run(["/opt/lab/l1-irqbalance"])
        path = f"{_FILES}/{self.name}.xml"
        self.host.write(path, self.spec.xml())
        self.host.run([*_VIRSH, "define", path])

    def start(self) -> None:
        """Start it; the vectors of its devices appear seconds later."""
        self._boot = ""
        self.virsh("start")

    def boot(self) -> None:
        """Start it and wait until it is ready; end it and start it anew where it hangs."""
        for attempt in range(1, _ATTEMPTS + 1):
            self.start()
            try:
                self.wait_ready(_BOOT_SECONDS)
            except GuestError:
                if attempt == _ATTEMPTS:
                    raise
                logger.warning("%s: boot %d stalled", self.name, attempt)
                self.virsh("destroy")
            else:
                return

    def wait_ready(self, timeout: float = 2 * _BOOT_SECONDS) -> None:
        """Wait until it has loaded its drivers, in a boot not yet waited for."""
        patience, said = self.host.patience(timeout), ""
        while True:
            before, said = said, self.output()
            boots = re.findall(r"^L2: ready (\S+)\s*$", said, re.MULTILINE)
            if boots and boots[-1] != self._boot:
                self._boot = boots[-1]
                return
            if said != before:
                patience.sign()
            elif patience.ended():
                break
            time.sleep(0.5)
        raise GuestError(
            f"{self.name}: not ready, and silent for {patience.since:.0f} s:\n{said[-2000:]}"
        )

    def output(self) -> str:
        """All that its serial line said."""
        path = self.spec.log
        return self.host.run(f"cat {path} 2>/dev/null || true").stdout.replace("\r", "")

    def command(self, line: str, *, timeout: float = _SILENCE, check: bool = True) -> str:
        """Have the guest do something (files/l2-init says what it knows) and return its answer.

        `sh COMMAND` runs any shell command of the guest's busybox.
        """
        tool = ["python3", "-S", "/opt/lab/l1-serial.py", self.spec.serial, f"{timeout:g}", line]
        done = self.host.run(tool, timeout=2 * timeout, check=False)
        if check and done.returncode != 0:
            said = f"{done.stderr}{done.stdout}".strip()
            raise GuestError(f"{self.name}: {line!r} gave status {done.returncode}: {said}")
        return done.stdout

    def reload(self, module: str, pause: int = 1) -> None:
        """Unload a driver and load it again: the host's vectors go, and come back."""
        self.command(f"reload {module} {pause}")

    def traffic(self, rounds: int | Literal["on", "off"] = 1) -> None:
        """Use every device, so many times or until told otherwise: its interrupts fire."""
        self.command(f"traffic {rounds}")

    @contextmanager
    def busy(self, pause: float = 0.1) -> Iterator[None]:
        """Fire each vector of its e1000e, igb and NVMe devices, again and again with a pause.

        A disk's queues belong to processors: those beyond the guest's own stay silent.
        """
        self.command(f"busy on {pause}")
        try:
            yield
        finally:
            self.command("busy off", check=False)

    def interrupts(self) -> str:
        """The guest's own /proc/interrupts, its devices only."""
        return self.command("ints")

    def reboot(self) -> None:
        """Reboot from inside, and wait until it is ready again."""
        tool = ["python3", "-S", "/opt/lab/l1-serial.py", self.spec.serial, "5", "reboot"]
        self.host.run([*tool, "--no-reply"])
        self.wait_ready()

    def remove(self) -> None:
        """Stop it if it runs, and forget it. The host's drivers get the devices back."""
        self.virsh("destroy", check=False)
        self.virsh("undefine", check=False)
