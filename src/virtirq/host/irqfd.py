"""Which MSI message KVM gives a guest for an interrupt of the host's: asked of the kernel by BPF.

The way there, through the kernel's own structures::

    irq_desc: action       what VFIO has asked for: its name begins "vfio-msi", its dev_id is an
                           eventfd (drivers/vfio/pci/vfio_pci_intrs.c,
                           vfio_msi_set_vector_signal())
    eventfd_ctx: wqh       who is woken by it, irqfd_wakeup() among others (fs/eventfd.c)
    kvm_kernel_irqfd: irq_entry  the one message that the VM is sent, or none, after the guest's
                           IOMMU (virt/kvm/eventfd.c, kvm_irqfd_assign() and irqfd_update())
    kvm: mm                the memory, and so the process, of the VM

Where in them the fields are is read from BTF: nothing here is tied to a version. Which process
it is, is not asked of ``kvm->userspace_pid``: that is the thread that has made the VM
(virt/kvm/kvm_main.c, kvm_uevent_notify_change()), and not every monitor does so in its first.

The program is run by reading ``/sys/kernel/irq/N/hwirq``, which hands over the irq_desc of an
interrupt that never fires, too. Not by ``actions`` or ``per_cpu_count``, beside it: everybody
reads those, virtirq most of all, and would run into the probe each time.

All of this is pure: the fields, the program and its lines. `virtirq.host.kvm_routes` runs it;
`virtirq.host.probed_routes` goes the same way without a program.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from virtirq.host.btf import Btf, BtfError
from virtirq.host.paths import KernelPath
from virtirq.values import dataclass, pattern

# Documentation/ABI/testing/sysfs-kernel-irq; kernel/irq/irqdesc.c
IRQ_HARDWARE: Final = KernelPath("/sys/kernel/irq/{irq}/hwirq", recorded=False)
PROBED: Final = "hwirq_show"
"""The kernel's function behind that file: (kobject of the irq_desc, attribute, buffer)."""
WOKEN: Final = "irqfd_wakeup"
MODULE: Final = "kvm"

MSI: Final = 2  # include/uapi/linux/kvm.h, KVM_IRQ_ROUTING_MSI
_VFIO: Final = int.from_bytes(b"vfio-msi", sys.byteorder)
"""The beginning of such an action's name, as the eight bytes that they are.

Nothing is followed from the actions of other drivers: their pointers lead anywhere, to registers
of devices, too.
"""

_IRQFD: Final = "kvm_kernel_irqfd"


class _Wanted(NamedTuple):
    """A field that the program needs. `size` of what it reads there; 0: it only goes there."""

    struct: str
    path: str
    size: int = 0


_FIELDS: Final[Mapping[str, _Wanted]] = {
    "kobject": _Wanted("irq_desc", "kobj"),
    "number": _Wanted("irq_desc", "irq_data.irq", 4),
    "action": _Wanted("irq_desc", "action", 8),
    "name": _Wanted("irqaction", "name", 8),
    "device": _Wanted("irqaction", "dev_id", 8),
    "queue": _Wanted("eventfd_ctx", "wqh.head"),
    "next": _Wanted("list_head", "next", 8),
    "entry": _Wanted("wait_queue_entry", "entry"),
    "woken": _Wanted("wait_queue_entry", "func", 8),
    "wait": _Wanted(_IRQFD, "wait"),
    "eventfd": _Wanted(_IRQFD, "eventfd", 8),
    "changes": _Wanted(_IRQFD, "irq_entry_sc.seqcount.sequence", 4),
    "type": _Wanted(_IRQFD, "irq_entry.type", 4),
    "low": _Wanted(_IRQFD, "irq_entry.msi.address_lo", 4),
    "high": _Wanted(_IRQFD, "irq_entry.msi.address_hi", 4),
    "data": _Wanted(_IRQFD, "irq_entry.msi.data", 4),
    "vm": _Wanted(_IRQFD, "kvm", 8),
    "memory": _Wanted("kvm", "mm", 8),
    "owner": _Wanted("mm_struct", "owner", 8),
    "process": _Wanted("task_struct", "tgid", 4),
}


IRQFD_FIELDS: Final[Mapping[str, int]] = {
    name: _FIELDS[name].size for name in ("changes", "type", "low", "high", "data", "eventfd")
}
"""What an irqfd says of itself: sizes by the names of `offsets`."""


def offsets(btf: Btf) -> dict[str, int]:
    """Where the fields are in this kernel. Raises BtfError, which names the one that is not."""
    found = {}
    for name, (struct, path, size) in _FIELDS.items():
        field = btf.field(struct, path)
        if size and field.size != size:
            raise BtfError(f"struct {struct}: {path} has {field.size} bytes and not {size}")
        found[name] = field.offset
    return found


class SymbolError(Exception):
    """A function of the kernel's is not to be had; the text says why."""


def find_woken(symbols: Iterable[bytes]) -> int:
    """The address of `WOKEN`, from the lines of ``/proc/kallsyms``. Raises SymbolError.

    Also where `PROBED` is not there, or another function is called so, too.
    """
    woken: dict[bytes, list[int]] = {}
    probed = 0
    for line in symbols:
        if WOKEN.encode() not in line and PROBED.encode() not in line:
            continue
        match = _SYMBOL.fullmatch(line)
        if match is None:
            continue
        address, name, module = match.groups()
        if name == PROBED.encode():
            probed += 1
        elif name == WOKEN.encode():
            woken.setdefault(module or b"", []).append(int(address, 16))
    if probed != 1:
        raise SymbolError(f"{PROBED}() is there {probed} times")
    # Others have functions of that name (drivers/xen/privcmd.c). KVM's is in its module, if it is
    # one, and else in the kernel itself.
    found = woken.get(MODULE.encode()) or woken.get(b"", [])
    if len(found) != 1:
        raise SymbolError(f"{WOKEN}() is there {len(found)} times")
    if not found[0]:
        raise SymbolError("the kernel does not tell its addresses")
    return found[0]


_SYMBOL: Final = pattern(rb"([0-9a-f]{1,16}) \w ([\w.$]+)(?:\t\[(\w+)\])?\n?", re.ASCII)


def program(at: Mapping[str, int], woken: int, pid: int) -> str:
    """bpftrace's text for the offsets `at` and the address of `WOKEN`.

    It prints a line when the process `pid` reads `IRQ_HARDWARE`, and does nothing for all others.
    What cannot be read is zero to it (kernel/trace/bpf_trace.c, bpf_probe_read_kernel()).
    """
    return _PROGRAM % {**at, "probed": PROBED, "vfio": _VFIO, "address": woken, "pid": pid}


MOST_WAITING: Final = 8
"""Of an eventfd: KVM, and perhaps a monitor that polls it. Longer queues are not understood."""
# The message is changed under a seqcount, which is odd meanwhile (irqfd_update()).
_PROGRAM: Final = f"""\
kprobe:%(probed)s
/pid == %(pid)d/
{{
  $desc = (uint64)arg0 - %(kobject)d;
  $number = *(uint32 *)kptr($desc + %(number)d);
  $action = *(uint64 *)kptr($desc + %(action)d);
  $name = *(uint64 *)kptr($action + %(name)d);
  $found = 0;
  $irqfd = (uint64)0;
  if (*(uint64 *)kptr($name) == (uint64)%(vfio)d) {{
    $eventfd = *(uint64 *)kptr($action + %(device)d);
    $queue = $eventfd + %(queue)d;
    $entry = *(uint64 *)kptr($queue + %(next)d);
    unroll ({MOST_WAITING}) {{
      if ($entry != $queue) {{
        $waiting = $entry - %(entry)d;
        if (*(uint64 *)kptr($waiting + %(woken)d) == (uint64)%(address)d) {{
          $found = $found + 1;
          $irqfd = $waiting - %(wait)d;
        }}
        $entry = *(uint64 *)kptr($entry + %(next)d);
      }}
    }}
    if ($entry != $queue || *(uint64 *)kptr($irqfd + %(eventfd)d) != $eventfd) {{
      $found = 0;
    }}
  }}
  if ($found == 1) {{
    $before = *(uint32 *)kptr($irqfd + %(changes)d);
    $type = *(uint32 *)kptr($irqfd + %(type)d);
    $low = *(uint32 *)kptr($irqfd + %(low)d);
    $high = *(uint32 *)kptr($irqfd + %(high)d);
    $data = *(uint32 *)kptr($irqfd + %(data)d);
    $after = *(uint32 *)kptr($irqfd + %(changes)d);
    $vm = *(uint64 *)kptr($irqfd + %(vm)d);
    $memory = *(uint64 *)kptr($vm + %(memory)d);
    $owner = *(uint64 *)kptr($memory + %(owner)d);
    printf("irqfd %%lu %%u %%u %%u %%u %%u %%u %%u %%u\\n", nsecs, $number, $before, $after,
           $type, $low, $high, $data, *(uint32 *)kptr($owner + %(process)d));
  }} else {{
    printf("irqfd %%lu %%u\\n", nsecs, $number);
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the program says of an interrupt, at so many nanoseconds of CLOCK_BOOTTIME.

    `routed`: there is one VM that it is for, and one message that this VM is sent: then `address`
    and `data` are that message's and `pid` is the process's. `changing`: KVM was just about to
    change it, so it is not known.
    """

    at: int
    irq: int
    routed: bool = False
    changing: bool = False
    address: int = 0
    data: int = 0
    pid: int = 0


_LINE: Final = pattern(rb"irqfd (\d{1,20}) (\d{1,10})((?: \d{1,10}){7})?", re.ASCII)
_MOST: Final = 0xFFFF_FFFF


def parse(line: bytes) -> Answer | None:
    """The answer that a line holds; None for one that the program has not printed."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    at, irq, rest = int(match[1]), int(match[2]), [int(each) for each in (match[3] or b"").split()]
    if max(irq, *rest, 0) > _MOST:
        return None
    if not rest:
        return Answer(at, irq)
    before, after, kind, low, high, data, pid = rest
    if before != after or before % 2:
        return Answer(at, irq, changing=True)
    if kind != MSI or not pid:
        return Answer(at, irq)
    return Answer(at, irq, routed=True, address=high << 32 | low, data=data, pid=pid)
