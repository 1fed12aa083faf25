"""What a guest has in its memory, and what its QEMU, which may be broken into, answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from struct import pack
from typing import Any

from tests.fuzz.engine import Feed, lines, need, pieces, target, text_of
from tests.guests.vectors.guestmemory import ECAM, NIC, RAM, GuestMemory, hardware
from virtirq.errors import UnavailableError
from virtirq.guests.processes.monitor import MALFORMED
from virtirq.guests.vectors.by_qmp import _read, parse_memory_map
from virtirq.guests.vectors.entries import ConfigSpace
from virtirq.guests.vectors.hardware import Iommu, Slot
from virtirq.guests.vectors.msi import Apics
from virtirq.guests.vectors.reader import read_vectors
from virtirq.model import Guest, GuestDevice, GuestVectors, Vcpu

_TABLE, _REMAPPING, _DEVICES = 0xFEA0_0000, 0x40_0000, 0x80_0000
_MOST_BYTES = 2 << 20
"""Of a guest's memory, for one device: a table and the entries of its IOMMU."""


def _one(dest: int, logical: bool, wide: bool, apics: Mapping[int, int]) -> int | None:
    """The vCPU whose APIC takes such an interrupt, asked of each APIC by itself."""
    takes = []
    for order, apic in enumerate(sorted(apics)):
        if dest == (0xFFFF_FFFF if wide else 0xFF):
            takes.append(apic)
        elif not logical:
            takes += [apic] * (dest == apic)
        elif wide:
            takes += [apic] * (apic >> 4 == dest >> 16 and bool(dest >> (apic & 15) & 1))
        elif len(apics) <= 8 and dest >> len(apics) == 0:
            takes += [apic] * bool(dest >> order & 1)
    return apics[takes[0]] if len(takes) == 1 else None


def _by_message(address: int, data: int, apics: Mapping[int, int]) -> int | None:
    """What an interrupt message of compatibility format says, by its bits as the SDM draws them."""
    bits = f"{address:064b}"
    upper, base, low, ext = bits[:24], bits[32:44], bits[44:52], bits[52:59]
    if base != "111111101110" or bits[59] == "1" or f"{data:032b}"[21:24] not in ("000", "001"):
        return None
    high = int(bits[:32], 2)
    dest = int((upper if high else f"{int(ext, 2):024b}") + low, 2)
    return _one(dest, bits[61] == "1", dest > 0xFF, apics)


def _by_intel(
    address: int, data: int, table: bytes, *, eime: bool, apics: dict[int, int]
) -> int | None:
    """The same by way of VT-d's table: the specification's figure of an entry, in bytes."""
    index = (address >> 5 & 0x7FFF) + ((address >> 2 & 1) << 15)
    if address & 8:
        index += data & 0xFFFF
    entry = table[16 * index : 16 * index + 16]
    if len(entry) < 16 or not entry[0] & 1 or entry[1] & 0x80 or entry[0] >> 5 > 1:
        return None
    dest = int.from_bytes(entry[4:8], "little") if eime else entry[5]
    return _one(dest, bool(entry[0] & 4), eime, apics)


@target(
    "guest-memory",
    lambda: [
        bytes(40) + pack("<QII", 0xFEE0_1000, 0x4021, 0) * 4,
        bytes([1, 1, 1, 1]) * 30,
        bytes([3, 0, 1, 2, 1]) + pack("<QII", 0xFEE0_0018, 0, 0) * 3 + bytes(range(200)),
        bytes([7, 0, 2, 2, 0]) + pack("<QII", 0xFEE0_0018, 7, 0) * 3 + b"\1\2\3" * 90,
    ],
    steps=400,
    most=400_000,
)
def guest_memory(data: bytes) -> None:
    """A guest that is set up as Linux does it, and one that then writes anywhere."""
    feed = Feed(data)
    vcpus, spread = feed.number(12) + 1, feed.pick((1, 2, 3))
    iommu = feed.pick((None, Iommu.INTEL, Iommu.AMD))
    eime, behind, count = bool(feed.number(2)), bool(feed.number(2)), feed.number(6) + 1
    spoilt = feed.number(3)
    apics = {number * spread: number for number in range(vcpus)}
    memory = GuestMemory(ECAM)
    bus = 0
    if behind:
        memory.function(0, 2).bridge(0, 5)
        bus = 5
    nic = memory.function(bus, 3 if not behind else 0)
    nic.bar(0, _TABLE)
    nic.msix(count)
    entries = [(feed.pick((0xFEE, 0xFEE, 0xFEE, feed.number(4096))) << 20 | feed.number(1 << 20)
                | (feed.number(1 << 16) << 40) * feed.number(2),
                feed.number(1 << 32) & feed.pick((0xFF, 0x1FF, 0xFFFF_FFFF)), feed.number(2))
               for _ in range(count)]  # fmt: skip
    memory.table(_TABLE, *entries)
    order = feed.number(8)
    table = (feed.take(64) * 64)[: 16 << (order + 1)] if iommu is Iommu.INTEL else b""
    if iommu is Iommu.INTEL:
        memory.write(_REMAPPING, table)
        memory.vtd(_REMAPPING, eime=eime, size=order)
    elif iommu is Iommu.AMD:
        memory.amd(_DEVICES, ga=eime, xt=bool(feed.number(2)))
        memory.write(_DEVICES, feed.take(64) * 8)
    for _ in range(spoilt * 8):
        place = feed.pick((nic.place, nic.place, ECAM, _TABLE, _REMAPPING, _DEVICES, 0xFED9_0000))
        memory.write(place + feed.number(256), feed.take(1 + feed.number(4)))
    slot = Slot(1, 0, 0) if behind else Slot(0, 3, 0)
    seen = hardware(slot, bridges={1: Slot(0, 2, 0)} if behind else None, iommu=iommu)
    try:
        found = read_vectors(ConfigSpace(memory.peek, seen), Apics(apics), {NIC: count})[NIC]
    except UnavailableError:
        need(spoilt, "a guest that has set all up can be read")
        return
    need(
        all(each.vcpu is None or 0 <= each.vcpu < vcpus for each in found.aimed.values()), "its own"
    )
    need(len(memory.peeks) <= 40 and sum(size for _, size in memory.peeks) <= _MOST_BYTES, "bounds")
    fixed = (0xFED9_0000, 0xFED9_1000), (0xFED8_0000, 0xFED8_1000), (ECAM, ECAM + (256 << 20))
    tables = [start for start, size in memory.peeks
              if not any(low <= start < high for low, high in fixed) and size != 16 * count
              and not any(start in each and start + size - 1 in each for each in RAM)]  # fmt: skip
    need(spoilt or not tables, "tables are read from memory alone")
    if spoilt:
        return
    for vector, (address, word, masked) in enumerate(entries):
        if masked or not (address or word):
            need(vector not in found.aimed, "a vector that is not in use")
        elif iommu is Iommu.INTEL and address >> 20 & 0xFFF == 0xFEE and address & 0x10:
            expected = _by_intel(address, word, table, eime=eime, apics=apics)
            need(found.aimed[vector].vcpu == expected, "the vCPU of VT-d's entry")
        elif iommu is not Iommu.AMD:
            expected = _by_message(address, word, apics)
            need(found.aimed[vector].vcpu == expected, "the vCPU of the message")


_MTREE = """FlatView #1
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000007fffffff (prio 0, ram): pc.ram
  00000000fe000000-00000000fe0001ff (prio 0, i/o): msix-table owner:{dev id=d0}
  00000000fed90000-00000000fed90fff (prio 1, i/o): intel_iommu
"""


class _Monitor:
    """A QEMU that was broken into: it answers the questions, in order, with what it likes."""

    def __init__(self, tree: str, answers: list[str], memory: bytes) -> None:
        self._tree, self._answers, self._memory = tree, answers, memory
        self.asked, self.peeked = 0, 0

    def ask(self, command: str, **arguments: Any) -> Any:
        self.asked += 1
        if command == "human-monitor-command":
            return self._tree
        usual: dict[str, Any] = {"query-cpus-fast": [{"qom-path": "x", "cpu-index": 0}]}
        if command == "qom-list":
            usual[command] = [{"type": "child<vfio-pci>", "name": "d0"}]
        text = self._answers[self.asked % len(self._answers)] if self._answers else ""
        try:
            return json.loads(text)
        except ValueError:
            text = str(NIC) if arguments.get("property") == "host" else "0"
            return usual.get(command, text)

    def peek(self, start: int, size: int) -> bytes:
        self.peeked += size
        return (self._memory * (size // max(1, len(self._memory)) + 1))[:size]


@target(
    "monitor",
    lines(
        f"{_MTREE}\x1e\x1e" + "\x01" * 40,
        f"{_MTREE}\x1e[]\n0\x1e",
        _MTREE.replace("fe0001ff", "ffffffff") + '\x1e"0000:82:00.0"\n[{"type":1}]\x1e\x10',
    ),
    'FlatView AS "memory" msix-table ffffffffffffffff (prio i/o): ram owner:{dev id=d0} intel_iommu'
    " amdvi- [ ] { } null 1e999 -1 cpu-index qom-path type name child<vfio-pci>",
)
def monitor(data: bytes) -> None:
    tree, answers, memory = pieces(data, 3)
    text = text_of(tree)
    found = parse_memory_map(text)
    for each in (*found.ram, *found.tables.values()):
        need(f"{each.start:016x}-{each.stop - 1:016x}" in text, "places that it tells")
    fake = _Monitor(text, text_of(answers).split("\n"), memory)
    guest = Guest("g", "x", pid=1, vcpus=(Vcpu(0), Vcpu(1)), devices=(GuestDevice(NIC, "v"),))
    wanted = {NIC: {0: 5, 3: 6}}
    try:
        learned: Mapping[Any, GuestVectors] = _read(fake, guest, wanted)  # type: ignore[arg-type]
    except (UnavailableError, *MALFORMED):
        learned = {}
    need(fake.asked <= 8 + len(data), "questions that the answers bound")
    need(fake.peeked <= _MOST_BYTES, "memory that is read")
    vcpus = {aimed.vcpu for each in learned.values() for aimed in each.aimed.values()}
    need(vcpus <= {None, 0, 1}, "the guest's own vCPUs")
