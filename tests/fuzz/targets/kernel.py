"""What the kernel tells: traces, uevents, its own types, sysfs. Names in it are anybody's."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from tests.fuzz.engine import Feed, lines, need, pieces, target, text_of
from tests.hostmaker import MadeHost, passthrough
from virtirq.cpuset import MAX_CPUS
from virtirq.host import btf, events, irqfd, uevents
from virtirq.host.events import EventKind, Pairing
from virtirq.host.fs import Reader
from virtirq.host.interrupts import read_interrupts
from virtirq.host.pci import read_devices
from virtirq.host.topology import read_topology
from virtirq.model import PciAddress

NIC = PciAddress.parse("0000:82:00.0")
_TRACE = """\
          <idle>-0       [001]  12345.678901: requested: (request_threaded_irq+0x0/0x1) irq=65 \
name="vfio-msix[0](0000:82:00.0)"
           <...>-123     [000]    99.000001: moved: (irq_set_affinity+0x0) irq=65 by="irqbalance"
           <...>-123     [000]    99.000002: settled: (x <- y)
           <...>-9 [000] 1.1: sched_process_exec: filename=/usr/sbin/irqbalance pid=9 old_pid=9"""


@target(
    "trace",
    lines(_TRACE, _TRACE.replace("moved", "repinned").replace("irq=65", "tid=0")),
    'irq= tid= name=" by=" requested: moved: settled: vector_alloc: [001] <...>-1 filename= pid=',
)
def trace(data: bytes) -> None:
    """Lines of ``trace_pipe``, whole or not: numbers with a bound, each announced event once."""
    pairing, told, done = Pairing(), 0, 0
    for line in data.split(b"\n"):
        event = events.parse(line)
        if event is None:
            continue
        need(-1 <= event.irq < 1 << 31 and -1 <= event.tid < 1 << 31, "numbers of the kernel's")
        need(len(event.name) <= 300 and len(event.comm) <= 300, "short texts")
        told += 1
        done += len(pairing.done(event))
    done += len(pairing.flush())
    need(done <= told and not pairing, "each once, and nothing is left")


@target(
    "trace-names", lines('web\x1ex"', 'a irq=7 name="b\x1e irq=9', "x\n-1 [0] 1.0: freed: irq=3")
)
def trace_names(data: bytes) -> None:
    """Names that programs and actions give themselves change no number."""
    comm, name = [each.replace(b"\n", b" ") for each in pieces(data, 2)]
    head = b"           <...>-123     [000]    99.000001: "
    moved = events.parse(head + b'moved: (irq_set_affinity+0x0) irq=65 by="%s"' % comm)
    need(moved is not None and moved.irq == 65 and moved.pid == 123, "who moved which")
    asked = events.parse(head + b'requested: (f+0x0/0x1) irq=66 name="%s"' % name)
    need(asked is not None and asked.irq == 66 and asked.kind is EventKind.REQUESTED, "which")
    assert asked is not None
    need(asked.name == name[:300].decode("utf-8", "replace"), "its name, to the end")
    started = events.parse(head + b"sched_process_exec: filename=%s pid=9 old_pid=9" % name)
    need(started is not None and started.name == asked.name, "the program that was started")
    pinned = events.parse(head + b'repinned: (f+0x0) tid=77 by="%s"' % comm)
    need(pinned is not None and pinned.tid == 77, "whose affinity")


@target(
    "uevent",
    lines(
        "bind@/devices/pci0000:40/0000:41:00.0\0ACTION=bind\0SUBSYSTEM=pci\0",
        "offline@/devices/system/cpu/cpu3\0SUBSYSTEM=cpu\0",
    ),
    "SUBSYSTEM=pci SUBSYSTEM=cpu bind@ unbind@ online@ add@ / cpu99999",
)
def uevent(data: bytes) -> None:
    found = uevents.parse(data)
    if found is None:
        return
    head = data.split(b"\0")[0].decode("utf-8", "replace")
    need(head.startswith(f"{found.action}@"), "its action")
    need((found.cpu is None) != (found.function is None), "a CPU or a function")
    need(found.cpu is None or head.endswith(f"cpu{found.cpu}") or found.cpu < 100_000, "which")
    need(f"SUBSYSTEM={'pci' if found.cpu is None else 'cpu'}".encode() in data, "of that kind")


def _types() -> list[bytes]:
    """A small kernel's types: struct kvm {…; mm}, behind a typedef, and an anonymous union."""
    strings = b"\0kvm\0mm\0list_head\0next\0long\0t\0"

    def at(name: bytes) -> int:
        return strings.index(b"\0" + name + b"\0") + 1

    types = struct.pack("<IIII", at(b"long"), 1 << 24, 8, 64)  # 1
    types += struct.pack("<III", 0, 2 << 24, 4)  # 2: pointer to 4
    types += struct.pack("<III", at(b"t"), 8 << 24, 2)  # 3: typedef of 2
    types += struct.pack("<III", at(b"list_head"), 4 << 24 | 1, 8)  # 4
    types += struct.pack("<III", at(b"next"), 3, 0)
    types += struct.pack("<III", 0, 5 << 24 | 1, 8) + struct.pack("<III", at(b"mm"), 3, 0)  # 5
    types += struct.pack("<III", at(b"kvm"), 4 << 24 | 2, 24)  # 6
    types += struct.pack("<III", at(b"t"), 1, 0) + struct.pack("<III", 0, 5, 128)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return [header + types + strings, (header + types + strings) * 2]


@target("kernel-types", _types, steps=60, most=60_000)
def kernel_types(data: bytes) -> None:
    for base, split in ((data, b""), (data[: len(data) // 2], data[len(data) // 2 :])):
        try:
            known = btf.Btf(base, split)
        except btf.BtfError:
            continue
        for structure, path in (("kvm", "mm"), ("list_head", "next"), ("kvm", "t")):
            try:
                field = known.field(structure, path)
            except btf.BtfError:
                continue
            need(0 <= field.offset < 1 << 34 and 0 <= field.size < 1 << 32, "an offset and a size")


@target(
    "kernel-answers",
    lines(
        "irqfd 12345 65 2 2 2 4276092928 0 33 77\nirqfd 9 66\n",
        "ffffffff81000000 t irqfd_wakeup\t[kvm]\nffffffff81000010 t hwirq_show\n",
    ),
    "irqfd irqfd_wakeup hwirq_show [kvm] 4294967296 18446744073709551615",
)
def kernel_answers(data: bytes) -> None:
    """What bpftrace prints, and the kernel's symbols."""
    for line in data.split(b"\n"):
        answer = irqfd.parse(line)
        if answer is not None:
            need(
                f"irqfd {answer.at:d}" in line.decode().replace(" 0", " ") or b" 0" in line, "when"
            )
            need(0 <= answer.irq < 1 << 32 and 0 <= answer.address < 1 << 64, "numbers")
            need(not answer.routed or (answer.pid > 0 and answer.data < 1 << 32), "of a process")
    try:
        address = irqfd.find_woken(data.splitlines(True))
    except irqfd.SymbolError:
        return
    need(0 < address < 1 << 64 and b"%x" % address in data.lower(), "an address that is told")


_FILES = (
    "/sys/devices/system/cpu/online",
    "/sys/devices/system/node/node0/cpulist",
    "/sys/devices/system/node/online",
    "/sys/devices/system/node/node0/distance",
    "/sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
    "/proc/irq/100/smp_affinity_list",
    "/proc/irq/100/effective_affinity_list",
    "/sys/kernel/irq/100/actions",
    "/sys/kernel/irq/100/per_cpu_count",
    f"/sys/bus/pci/devices/{NIC}/numa_node",
    f"/sys/bus/pci/devices/{NIC}/class",
    f"/sys/bus/pci/devices/{NIC}/irq",
    f"/sys/bus/pci/devices/{NIC}/msi_irqs/100",
    f"/sys/bus/pci/devices/{NIC}/local_cpulist",
)


@target(
    "sysfs",
    lines("\0" + "0-3", "\7vfio-msix[0](0000:82:00.0)", "\x081,2,3,4,5,6,7,8", "\x0bmsix"),
    "(null) vfio-msix[1](0000:82:00.0) vfio-intx(0000:82:00.0) -1 0x 0-99 , msi",
    most=3_000_000,
    inputs=40,
)
def sysfs(data: bytes) -> None:
    """Halves of values, and what no kernel writes: not known, and said; never made up."""
    feed = Feed(data)
    host = MadeHost(devices=(passthrough(str(NIC), vectors=2),))
    there: Sequence[str] = [each for each in _FILES if each in host._tree()]
    spoilt = {feed.pick(there): text_of(each) for each in feed.parts()[:4]}
    fs = MadeHost(devices=host.devices, files=spoilt).live()
    reader = Reader(fs)
    topology = read_topology(reader)
    need(not topology.online or topology.online.last() < MAX_CPUS, "CPUs that there can be")
    device = read_devices(reader, [NIC])[NIC]
    need(device.node is None or -(10**9) < device.node < 10**9, "a node")
    for each in read_interrupts(reader, [NIC], topology.possible):
        need(each.vector is None or 0 <= each.vector < 100_000, "a vector")
        need(each.counts is None or all(cpu in topology.possible for cpu in each.counts), "counts")
        need(each.own_action is None or each.own_action in (each.actions or ()), "its action")
    need(all("\n" not in f"{each.path}{each.error}" for each in reader.gaps), "gaps of one line")
