"""The values that every room speaks: frozen, without I/O.

``None`` in a value means *not known*, never a default: what could not be read is in
`Snapshot.gaps` with its error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.errors import DirectiveError, InputError
from virtirq.values import dataclass, field, pattern

_ADDRESS = pattern(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})\.([0-7])", re.ASCII)
# libvirt's name of a node device (src/node_device/node_device_udev.c, udevGenerateDeviceName()).
_NODE_DEVICE = pattern(
    r"pci_([0-9a-fA-F]{4,8})_([0-9a-fA-F]{2})_([0-9a-fA-F]{2})_([0-7])", re.ASCII
)


class PciAddress(NamedTuple):
    """Domain, bus, slot and function of a PCI function; ordered, printed as sysfs does."""

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def parse(cls, text: str) -> PciAddress:
        """``0000:82:00.0``, ``82:00.0`` for domain 0, or ``pci_0000_82_00_0``. Raises InputError.

        Domains may be wider than 16 bits: Intel VMD numbers its own from 0x10000
        (Linux kernel, drivers/pci/controller/vmd.c, vmd_find_free_domain()).
        """
        stripped = text.strip()
        match = _ADDRESS.fullmatch(stripped) or _NODE_DEVICE.fullmatch(stripped)
        if match is None or int(match[3], 16) > 0x1F:
            raise InputError(f"{text[:60]!r} is not a PCI address", hint="write it as 0000:82:00.0")
        return cls(int(match[1] or "0", 16), int(match[2], 16), int(match[3], 16), int(match[4]))

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function:x}"


class InterruptKind(Enum):
    """How a function raises the interrupt."""

    MSI = "msi"
    MSIX = "msix"
    INTX = "intx"


# drivers/vfio/pci/vfio_pci_intrs.c names its actions so; INTx gets no index.
_VFIO_KIND: Final = pattern(r"vfio-(msix?|intx)(?:\[(\d{1,5})\])?", re.ASCII)


class VfioAction(NamedTuple):
    """The name of an action that VFIO registers: ``vfio-msix[3](0000:82:00.0)``.

    `vector` is None for an INTx line.
    """

    device: PciAddress
    kind: InterruptKind
    vector: int | None = None

    @staticmethod
    def parse(name: str) -> VfioAction | None:
        """The parts of a name; None for what VFIO did not name."""
        kind, _, device = name.partition("(")
        found, at = _vfio_kind(kind), _vfio_device(device)
        return None if found is None or at is None else VfioAction(at, found[0], found[1])

    def __str__(self) -> str:
        index = "" if self.vector is None else f"[{self.vector}]"
        return f"vfio-{self.kind.value}{index}({self.device})"


# Names are asked for again and again, of a hundred thousand on a large host: there are few vectors
# and few devices in them.


@lru_cache(8192)
def _vfio_kind(text: str) -> tuple[InterruptKind, int | None] | None:
    match = _VFIO_KIND.fullmatch(text)
    if match is None:
        return None
    return InterruptKind(match[1]), int(match[2]) if match[2] else None


@lru_cache(4096)
def _vfio_device(text: str) -> PciAddress | None:
    """By what follows the parenthesis, with the one that closes it."""
    try:
        return PciAddress.parse(text[:-1]) if text[-1:] == ")" else None
    except InputError:
        return None


class InterruptKey(NamedTuple):
    """What an interrupt is remembered by within one boot: IRQ numbers are reused.

    `action` is the name of the action that the guest's device registered, such as
    ``vfio-msix[3](0000:82:00.0)``.
    """

    device: PciAddress
    action: str

    def __str__(self) -> str:
        return self.action or f"an unnamed interrupt of {self.device}"


@dataclass(frozen=True, slots=True)
class Interrupt:
    """One interrupt line or vector of a PCI function.

    `actions`: names of all handlers on the line, None when not readable. `affinity`: CPUs that
    the kernel may deliver to. `effective`: CPUs that it does deliver to (on x86, one). `counts`:
    interrupts taken so far, by CPU; CPUs that took none are left out. `settable`: whether the
    file's mode lets root write it; since v6.12 the kernel clears that for interrupts which user
    space cannot move (kernel/irq/proc.c, register_irq_proc()), before it tells by EIO only.
    """

    irq: int
    device: PciAddress
    kind: InterruptKind
    vector: int | None
    actions: tuple[str, ...] | None = None
    affinity: CpuSet | None = None
    effective: CpuSet | None = None
    counts: Mapping[int, int] | None = None
    settable: bool | None = None

    @property
    def idle(self) -> bool:
        """Whether it is known to have never fired."""
        return self.counts is not None and not self.counts

    @property
    def numbered(self) -> bool:
        """Whether it is known which of the device's it is; an INTx line is the only one."""
        return self.vector is not None or self.kind is InterruptKind.INTX

    @property
    def own_action(self) -> str | None:
        """The action that VFIO registered for this interrupt's device, None if there is none."""
        for name in self.actions or ():
            action = VfioAction.parse(name)
            if action is not None and action.device == self.device:
                return name
        return None

    @property
    def key(self) -> InterruptKey:
        return InterruptKey(self.device, self.own_action or "")


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One PCI function. `node` is None when not known and -1 when the firmware gave none."""

    address: PciAddress
    vendor: int | None = None
    device: int | None = None
    class_code: int | None = None
    driver: str | None = None
    node: int | None = None
    local_cpus: CpuSet | None = None
    physfn: PciAddress | None = None
    vfio_device: bool = False
    """Whether it has a VFIO device (``vfio-dev/``), whatever its driver is called."""

    @property
    def is_vfio(self) -> bool:
        """Whether its driver hands it out through VFIO.

        Before v6.1 only the name tells: Linux kernel commit 3c28a76124b2 ("vfio: Add struct
        device to vfio_device") (in v6.1) made ``vfio-dev/``.
        """
        return self.vfio_device or "vfio" in (self.driver or "")

    @property
    def kind(self) -> str:
        """A word for the device's class, as ``lspci`` would lead you to expect."""
        if self.class_code is None:
            return OTHER_CLASS
        return CLASS_WORDS.get(
            self.class_code >> 8, CLASS_WORDS.get(self.class_code >> 16 << 8, OTHER_CLASS)
        )


OTHER_CLASS: Final = "device"
# PCI Code and ID Assignment Specification, base classes and the subclasses people pass through.
CLASS_WORDS: Final[Mapping[int, str]] = MappingProxyType(
    {
        0x0100: "storage",
        0x0108: "nvme",
        0x0200: "network",
        0x0207: "infiniband",
        0x0300: "display",
        0x0400: "multimedia",
        0x0403: "audio",
        0x0600: "bridge",
        0x0B00: "processor",
        0x0C00: "serial-bus",
        0x0C03: "usb",
        0x1000: "crypto",
        0x1200: "accelerator",
    }
)


@dataclass(frozen=True, slots=True)
class Node:
    """A NUMA node: its CPUs and its distances (ACPI SLIT, 10 is local) by node number."""

    number: int
    cpus: CpuSet
    distances: Mapping[int, int] = field(default_factory=dict)


_LOCAL_DISTANCE: Final = 10
_REMOTE_DISTANCE: Final = 20
"""include/linux/topology.h: to the node itself, and to another of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The host's CPUs. `nohz_full` is ``nohz_full=``.

    `isolated` is ``isolcpus=`` and the isolated cpuset partitions made since. Of hybrid CPUs,
    `performance` and `efficiency` are the two sorts. `llc_sizes` are in KiB; `llc_levels` say of
    which level each of the last-level caches is. `packages` are sockets; empty where not recorded.
    """

    online: CpuSet
    possible: CpuSet
    isolated: CpuSet = CpuSet()
    nohz_full: CpuSet = CpuSet()
    nodes: Mapping[int, Node] = field(default_factory=dict)
    siblings: tuple[CpuSet, ...] = ()
    llcs: tuple[CpuSet, ...] = ()
    llc_sizes: Mapping[CpuSet, int] = field(default_factory=dict)
    llc_levels: Mapping[CpuSet, int] = field(default_factory=dict)
    packages: tuple[CpuSet, ...] = ()
    performance: CpuSet = CpuSet()
    efficiency: CpuSet = CpuSet()

    @property
    def general(self) -> CpuSet:
        """Online CPUs that the scheduler uses for whoever asks for none in particular."""
        return (self.online - self.isolated) or self.online

    def node_of(self, cpu: int) -> int | None:
        for node in self.nodes.values():
            if cpu in node.cpus:
                return node.number
        return None

    def distance(self, one: int, other: int) -> int:
        """How far node `other` is from node `one`, as ACPI's SLIT counts: 10 is the same."""
        if one == other:
            return _LOCAL_DISTANCE
        node = self.nodes.get(one)
        return _REMOTE_DISTANCE if node is None else node.distances.get(other, _REMOTE_DISTANCE)

    def is_near(self, one: int, other: int) -> bool:
        """Whether two nodes are parts of one socket (L3 as NUMA, sub-NUMA clusters)."""
        return self.distance(one, other) < _REMOTE_DISTANCE

    def nearest(self, node: int, cpus: CpuSet) -> CpuSet:
        """Those of `cpus` on the node; else on the nearest nodes that have any; else all."""
        reached: dict[int, CpuSet] = {}
        for each in self.nodes.values():
            if there := each.cpus & cpus:
                distance = self.distance(node, each.number)
                reached[distance] = reached.get(distance, there) | there
        return reached[min(reached)] if reached else cpus


class Word(Enum):
    """The directives that are not a CPU list."""

    AUTO = "auto"
    NATIVE = "native"
    EMULATOR = "emulator"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Directive:
    """What someone asked for a device: a word, or CPUs (then `word` is None).

    `vcpus`, where there are any, are numbers of the guest's vCPUs: the CPUs of those are meant.
    """

    word: Word | None
    cpus: CpuSet = CpuSet()
    vcpus: CpuSet = CpuSet()

    @classmethod
    def parse(cls, text: str) -> Directive:
        """``auto``, ``native``, ``emulator``, ``local`` or a CPU list. Raises DirectiveError."""
        stripped = text.strip()
        for word in Word:
            if stripped == word.value:
                return cls(word)
        try:
            cpus = CpuSet.parse(stripped)
        except InputError as error:
            if any(character.isdigit() for character in stripped):
                raise DirectiveError(str(error), hint=_ALLOWED) from error
            raise DirectiveError(f"{text[:60]!r} is not a directive", hint=_ALLOWED) from error
        if not cpus:
            raise DirectiveError(f"{text[:60]!r} leaves no CPU", hint=_ALLOWED)
        return cls(None, cpus)

    def __str__(self) -> str:
        if self.vcpus:
            return f"vcpus {self.vcpus}"
        return self.word.value if self.word else str(self.cpus)


_ALLOWED = "a directive is auto, native, emulator, local or a CPU list such as 2-5,^3"
AUTO = Directive(Word.AUTO)
NATIVE = Directive(Word.NATIVE)


class Spread(Enum):
    """How the vectors of a device share its target."""

    VECTOR = "vector"
    MASK = "mask"


@dataclass(frozen=True, slots=True)
class Vcpu:
    """A guest CPU: `cpus` are the host CPUs its thread may run on, None when not restricted.

    `apic` is the id by which the guest aims interrupts at it on x86, None where it is not known.
    `realtime`: its thread has a real-time policy (SCHED_FIFO, SCHED_RR).
    """

    index: int
    cpus: CpuSet | None = None
    tid: int | None = None
    apic: int | None = None
    realtime: bool = False


@dataclass(frozen=True, slots=True)
class GuestDevice:
    """A PCI function that a guest holds, under the names that a setting may use for it."""

    address: PciAddress
    source: str
    alias: str | None = None
    mac: str | None = None
    directive: Directive | None = None
    directive_from: str | None = None


VcpuCounts = Mapping[int, Mapping[str, int]]
"""What KVM has counted, by vCPU and by KVM's own name, since the vCPU was made."""


@dataclass(frozen=True, slots=True)
class Aimed:
    """The vCPU that a guest aims a vector at; None where it is no single one, and `why`."""

    vcpu: int | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class GuestVectors:
    """What a guest has written for the vectors of one of its devices, by vector.

    A vector that it does not use is not there. `why` says why nothing could be learned.
    """

    aimed: Mapping[int, Aimed] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True, slots=True)
class Guest:
    """A virtual machine. `emulator` and `iothreads` are None when not restricted.

    `directive` is the guest's own setting for all of its devices. `problems` are settings in the
    guest's definition that could not be understood, one line each. A `kind` of ``process`` uses
    VFIO without a virtual machine (DPDK, SPDK): its threads stand in for vCPUs.
    """

    name: str
    source: str
    uuid: str | None = None
    pid: int | None = None
    vcpus: tuple[Vcpu, ...] = ()
    emulator: CpuSet | None = None
    iothreads: Mapping[int, CpuSet] = field(default_factory=dict)
    memory_nodes: frozenset[int] | None = None
    devices: tuple[GuestDevice, ...] = ()
    directive: Directive | None = None
    directive_from: str | None = None
    problems: tuple[str, ...] = ()
    domain_id: int | None = None
    threads: int = 1
    """vCPUs in a row that the guest takes for threads of one core."""
    kind: Literal["machine", "process"] = "machine"
    owner: int | None = None
    """The user id that its process runs as, which nobody but root can choose."""
    started: int | None = None
    """When its process was started, in ticks since the boot: no later one of its pid has that."""

    @property
    def unit(self) -> str:
        """What its `vcpus` are: of a process without vCPUs, threads stand in for them."""
        return "vCPU" if self.kind == "machine" else "thread"

    @property
    def told_by(self) -> Literal["libvirt", "process"]:
        """Who says that there is this guest: libvirt, or just the process that it is.

        Domain XML in a file or a recording is libvirt's word, as the person has it who gave it.
        """
        return "process" if self.source == "vfio-process" else "libvirt"

    @property
    def key(self) -> str:
        """What tells this guest from every other: UUID where there is one, else the name."""
        return self.uuid or self.name


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that could not be read: which file or directory, and why."""

    path: str
    error: str


@dataclass(frozen=True, slots=True)
class Posting:
    """Whether interrupts are posted to vCPUs by the IOMMU; None when that cannot be told."""

    active: bool | None
    basis: str


@dataclass(frozen=True, slots=True)
class Irqbalance:
    """Whether irqbalance runs; `pid` of the running one; None in `running` when not known.

    `spares_vfio`: it leaves the interrupts of all VFIO devices of the host alone, because it was
    told to or was started so. `banned` are the names of modules that it was started to leave alone.
    """

    running: bool | None
    pid: int | None = None
    spares_vfio: bool = False
    banned: tuple[str, ...] = ()

    def spares(self, driver: str | None) -> bool:
        """Whether it leaves the interrupts of devices of this driver alone.

        It looks for a banned name *in* the driver's (irqbalance: classify.c, substr_find()).
        """
        return self.spares_vfio or any(name in (driver or "") for name in self.banned)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that was read of a host at one time.

    `interrupts` are those of the guests' devices (and of devices that the caller asked for);
    `vectors_on` counts all of the host's interrupts by the CPU they are delivered to. `unread`
    are the devices of which something could not be read: what is not here may still be there.
    `unclaimed` counts the interrupts that VFIO has of devices that no guest here has; `not_pci`
    names those that it has of devices on other buses.
    `aimed` is the guests' own choice of a vCPU for each vector, as far as it is known, and
    `readers` by what it was read, by guest key.
    """

    topology: Topology
    boot_id: str | None = None
    kernel: str | None = None
    recording: str | None = None
    pci: Mapping[PciAddress, PciDevice] = field(default_factory=dict)
    interrupts: tuple[Interrupt, ...] = ()
    guests: tuple[Guest, ...] = ()
    vectors_on: Mapping[int, int] = field(default_factory=dict)
    posting: Posting = Posting(None, "not looked at")
    irqbalance: Irqbalance = Irqbalance(None)
    gaps: tuple[Gap, ...] = ()
    unread: frozenset[PciAddress] = frozenset()
    unclaimed: Mapping[PciAddress, int] = field(default_factory=dict)
    not_pci: Mapping[str, Sequence[int]] = field(default_factory=dict)
    aimed: Mapping[PciAddress, Mapping[int, Aimed]] = field(default_factory=dict)
    readers: Mapping[str, str] = field(default_factory=dict)


class Reason(NamedTuple):
    """Why an interrupt is moved or left: a code for machines, a sentence for people."""

    code: str
    text: str


class Follows(NamedTuple):
    """The vCPU whose CPUs an interrupt is on; `chosen` by the guest itself, or else dealt to it."""

    vcpu: int
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """Give interrupt `irq` the affinity `after`. `before` is None when it could not be read.

    Where the kernel has no vector left on `after`, single CPUs of `alternatives` are tried, the
    first set first. `idle`: it is known to have never fired.
    """

    irq: int
    key: InterruptKey
    guest: str
    before: CpuSet | None
    after: CpuSet
    reason: Reason
    kind: InterruptKind = InterruptKind.MSIX
    alternatives: tuple[CpuSet, ...] = ()
    follows: Follows | None = None
    idle: bool = False


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave interrupt `irq` as it is. `wanted` is where it should be, None for no opinion."""

    irq: int
    key: InterruptKey
    guest: str
    reason: Reason
    wanted: CpuSet | None = None
    follows: Follows | None = None


Action = Pin | Keep


@dataclass(frozen=True, slots=True)
class Remembered:
    """An interrupt that virtirq moved: the affinity it had, and the values virtirq wrote since.

    `written` holds more than one value only where a crash hides whether the last was written.
    `guest` is the guest's key and `name` what people call it. `irq` and `kind` find the interrupt
    while it has no action. `incarnation` tells it from one that was set up anew under the same
    number (see `HostFs.incarnation`); None where that cannot be told.
    """

    key: InterruptKey
    guest: str
    original: CpuSet
    written: tuple[CpuSet, ...]
    name: str = ""
    irq: int = 0
    kind: InterruptKind = InterruptKind.MSIX
    incarnation: int | None = None

    def again(self, other: Remembered) -> bool | None:
        """Whether both are of the same incarnation of the interrupt, None if nobody can tell."""
        if self.incarnation is None or other.incarnation is None:
            return None
        return (self.irq, self.incarnation) == (other.irq, other.incarnation)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What a device is asked for, what that means now, and what follows for each interrupt.

    `target` is None when the device is left alone; `note` then says why, and `code` as one word.
    `directive` is None in a plan that restores.
    """

    device: GuestDevice
    directive: Directive | None
    directive_from: str
    target: CpuSet | None
    note: str
    code: str = "target"
    node: int | None = None
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True, slots=True)
class GuestPlan:
    guest: Guest
    devices: tuple[DevicePlan, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is to happen, and every interrupt that is left alone, with reasons."""

    guests: tuple[GuestPlan, ...] = ()

    @property
    def actions(self) -> tuple[Action, ...]:
        return tuple(a for g in self.guests for d in g.devices for a in d.actions)

    @property
    def pins(self) -> tuple[Pin, ...]:
        """In the order in which they are carried out: what never fired comes last."""
        pins = [action for action in self.actions if isinstance(action, Pin)]
        return tuple(sorted(pins, key=lambda pin: pin.idle))


class Status(Enum):
    """What became of a Pin.

    REVERTED: somebody else had the interrupt by the time it was written, and it was put back.
    """

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    PENDING = "pending"
    REFUSED = "refused"
    VANISHED = "vanished"
    REVERTED = "reverted"
    FAILED = "failed"

    @property
    def bad(self) -> bool:
        return self in (Status.REFUSED, Status.FAILED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a Pin, with the affinity and effective affinity read back afterwards.

    `crowded`: the kernel has no vector left on any of its CPUs.
    """

    pin: Pin
    status: Status
    reason: str
    affinity: CpuSet | None = None
    effective: CpuSet | None = None
    hint: str | None = None
    crowded: bool = False


class Severity(Enum):
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0 for a note; ``virtirq check`` exits 3 for what ranks higher."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the host that a person should know. `subject`: guest, device or CPU."""

    code: str
    severity: Severity
    subject: str
    message: str
    hint: str

    def as_json(self) -> dict[str, str]:
        return {
            "code": self.code,
            "severity": self.severity.value,
            "subject": self.subject,
            "message": self.message,
            "hint": self.hint,
        }


def counted(count: int, what: str) -> str:
    """``1 vCPU`` or ``4 vCPUs``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def by_device(interrupts: Iterable[Interrupt]) -> dict[PciAddress, tuple[Interrupt, ...]]:
    """The interrupts of each device, in one pass."""
    found: dict[PciAddress, list[Interrupt]] = {}
    for each in interrupts:
        found.setdefault(each.device, []).append(each)
    return {device: tuple(them) for device, them in found.items()}
