"""Interrupts of PCI functions: what raises them, where they may go and where they do go."""

from __future__ import annotations

import errno
import stat
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from types import MappingProxyType
from typing import Final

from virtirq.cpuset import CpuSet
from virtirq.errors import CpuSetError
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.host.pci import read_intx_line, read_vectors
from virtirq.model import Interrupt, InterruptKind, PciAddress, VfioAction

_ACTIONS, _AFFINITY, _EFFECTIVE, _COUNTS = (
    each.form
    for each in (paths.IRQ_ACTIONS, paths.IRQ_AFFINITY, paths.IRQ_EFFECTIVE, paths.IRQ_COUNTS)
)
_DIGIT, _COMMA, _OTHER = b"1,x"
_KINDS: Final = bytes(
    each if each in b"0," else _DIGIT if each in b"123456789" else _OTHER for each in range(256)
)
"""Makes 1 of every digit but zero, and x of what is no digit and no comma."""


def read_interrupts(
    reader: Reader,
    devices: Iterable[PciAddress],
    possible: CpuSet,
    lines: Container[PciAddress] = (),
) -> tuple[Interrupt, ...]:
    """The interrupts of `devices`, by device and IRQ number.

    Counts are read where the `possible` CPUs are given. An INTx line counts only while it is in
    use for the device: every function names a line, most never raise it. For the devices in
    `lines` it counts always.
    """
    cpus = _each(possible)
    found: list[Interrupt] = []
    for address in sorted(set(devices)):
        vectors = read_vectors(reader, address)
        found += _read_vectors(reader, address, vectors, cpus)
        line = read_intx_line(reader, address)
        if line is not None and line not in vectors:
            intx = _read_intx(reader, line, address, cpus, always=address in lines)
            if intx is not None:
                found.append(intx)
    return tuple(found)


@lru_cache(1)
def _each(possible: CpuSet) -> tuple[int, ...]:
    """The same for all devices of a host."""
    return tuple(possible)


def _read_vectors(
    reader: Reader, address: PciAddress, modes: Mapping[int, str | None], cpus: tuple[int, ...]
) -> Iterator[Interrupt]:
    """Those of a device's MSI or MSI-X interrupts that are still there."""
    settable = None
    for irq, mode in modes.items():
        kind = InterruptKind.MSI if mode == "msi" else InterruptKind.MSIX
        interrupt = read_interrupt(reader, irq, address, kind, cpus, settable)
        if interrupt is None:
            continue
        if interrupt.vector is not None:
            # VFIO asks for vectors that the kernel does not manage (drivers/vfio/pci/
            # vfio_pci_intrs.c, vfio_msi_enable()), so whether it lets them be moved hangs on
            # what the device's interrupts go through, and is the same for all of them.
            settable = interrupt.settable
        elif reader.fs.recording is None and not _is_vector(reader.fs, address, irq):
            continue  # freed, and the number is another's by now
        yield interrupt


def _is_vector(fs: HostFs, address: PciAddress, irq: int) -> bool:
    """Whether the device still has this MSI or MSI-X interrupt, as far as that can be told."""
    try:
        return has_interrupt(fs, address, irq, InterruptKind.MSIX)
    except OSError:
        return True


def read_vector_load(reader: Reader, known: Iterable[Interrupt] = ()) -> Counter[int]:
    """How many of the host's interrupts are delivered to each CPU.

    Each takes one of about 200 vectors of that CPU (kernel/irq/matrix.c). Interrupts without an
    effective affinity (not started, or not routed by the interrupt controller) take none. Those
    that are `known` are not read again.
    """
    effective = {each.irq: each.effective for each in known}
    counted = Counter(effective.values())
    load: Counter[int] = Counter()
    for name in reader.names(paths.IRQ_DIR, paths.IRQ_AFFINITY):
        if not name.isdecimal() or int(name) in effective:
            continue
        mark = reader.mark()
        counted[reader.cpus(paths.IRQ_EFFECTIVE, name)] += 1
        if reader.mark() != mark and _gone(reader, name):
            reader.back_to(mark)
    for cpus, count in counted.items():
        for cpu in cpus or ():
            load[cpu] += count
    return load


def handler_directory(irq: int, action: str) -> str:
    """procfs's directory of the handler, which is there while that is; empty for not known.

    A handler has one as long as no other of its name is there (kernel/irq/proc.c,
    register_handler_proc()), which one access(2) finds; of VFIO's names alone we know that they
    make no other path.
    """
    return f"{paths.IRQ_DIR}/{irq}/{action}" if VfioAction.parse(action) else ""


def handlers(fs: HostFs, irq: int) -> tuple[str, ...]:
    """The names of the handlers that are on an interrupt. Raises OSError."""
    return _split(fs.read(paths.IRQ_ACTIONS.at(irq)))


def has_interrupt(fs: HostFs, device: PciAddress, irq: int, kind: InterruptKind) -> bool:
    """Whether `irq` is the device's now, used or not. Raises OSError when that cannot be told."""
    if kind is InterruptKind.INTX:
        reader = Reader(fs)
        return read_intx_line(reader, device) == irq and irq not in read_vectors(reader, device)
    try:
        fs.mode(paths.PCI_MSI_IRQ.at(device, irq))
    except FileNotFoundError:
        return False
    return True


def _read_intx(
    reader: Reader, line: int, address: PciAddress, cpus: tuple[int, ...], *, always: bool
) -> Interrupt | None:
    where = paths.IRQ_ACTIONS.at(line)
    try:
        actions = _split(reader.fs.read(where))
    except OSError as error:
        # Without the names nobody can say that the line is in use. A line that no driver asked
        # for may have no descriptor.
        reader.failed(paths.IRQ_ACTIONS, where, error, optional=True)
        return None
    if not always and str(VfioAction(address, InterruptKind.INTX)) not in actions:
        return None
    return read_interrupt(reader, line, address, InterruptKind.INTX, cpus)


def read_interrupt(
    reader: Reader,
    irq: int,
    address: PciAddress,
    kind: InterruptKind,
    cpus: tuple[int, ...] = (),
    settable: bool | None = None,
) -> Interrupt | None:
    """One interrupt of a device; None when the kernel has freed it.

    `cpus` are the host's possible CPUs; without them no counts are read. `settable`, where it is
    known, is not asked for again. VFIO's own name of the action tells the kind, if it is there.
    """
    read, counts = reader.fs.read, None
    try:
        actions = _split(read(_ACTIONS % irq))
        affinity = CpuSet.parse(read(_AFFINITY % irq))
        effective = CpuSet.parse(read(_EFFECTIVE % irq))
        if cpus:
            counts = _counts(read(_COUNTS % irq), cpus)
    except (OSError, CpuSetError, ValueError):
        return _read_in_part(reader, irq, address, kind, cpus)
    if not affinity:
        return _read_in_part(reader, irq, address, kind, cpus)
    named = _own(actions, address)
    if settable is None or named is None:
        settable = _settable(reader, irq)
    vector = None
    if named is not None:
        kind, vector = named.kind, named.vector
    return Interrupt(
        irq, address, kind, vector, actions, affinity, effective or None, counts, settable
    )


def _read_in_part(
    reader: Reader, irq: int, address: PciAddress, kind: InterruptKind, cpus: tuple[int, ...]
) -> Interrupt | None:
    """As `read_interrupt`, of one that is not as it should be: what is missing is a gap."""
    mark = reader.mark()
    text = reader.text(paths.IRQ_ACTIONS, irq)
    if text is None and _gone(reader, irq):
        reader.back_to(mark)
        return None  # freed between the listing and here
    actions = None if text is None else _split(text)
    named = _own(actions, address)
    affinity = reader.cpus(paths.IRQ_AFFINITY, irq)
    if affinity is not None and not affinity:  # nobody could put that back
        reader.malformed(paths.IRQ_AFFINITY, paths.IRQ_AFFINITY.at(irq), "names no CPU")
        affinity = None
    effective = reader.cpus(paths.IRQ_EFFECTIVE, irq) or None
    counts = read_counts(reader, irq, cpus) if cpus else None
    settable = None if affinity is None else _settable(reader, irq)
    if reader.mark() != mark and _gone(reader, irq):
        reader.back_to(mark)
        return None  # freed while it was read
    vector = None
    if named is not None:
        kind, vector = named.kind, named.vector
    return Interrupt(irq, address, kind, vector, actions, affinity, effective, counts, settable)


def _gone(reader: Reader, irq: object) -> bool:
    """Whether the running kernel has freed the interrupt. A recording frees none."""
    if reader.fs.recording is not None:
        return False
    try:
        return not stat.S_ISDIR(reader.fs.mode(f"{paths.IRQ_DIR}/{irq}"))
    except OSError as error:  # what cannot be looked at for another reason may be there
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)


def _split(actions: str) -> tuple[str, ...]:
    if "," not in actions:
        return (actions,) if actions else ()
    return tuple(name for name in actions.split(",") if name)


def _own(actions: tuple[str, ...] | None, address: PciAddress) -> VfioAction | None:
    """What VFIO named for this device."""
    for action in actions or ():
        named = VfioAction.parse(action)
        if named is not None and named.device == address:
            return named
    return None


def read_counts(reader: Reader, irq: int, cpus: tuple[int, ...]) -> dict[int, int] | None:
    """Interrupts taken by CPU, those with none left out; `cpus` are the possible ones."""
    # One number for each *possible* CPU (kernel/irq/irqdesc.c, per_cpu_count_show()), where
    # /proc/interrupts has a column for each online one.
    text = reader.text(paths.IRQ_COUNTS, irq)
    if text is None:
        return None
    try:
        return _counts(text, cpus)
    except ValueError as error:
        reader.malformed(paths.IRQ_COUNTS, paths.IRQ_COUNTS.at(irq), error)
        return None


def count_all(
    fs: HostFs, possible: CpuSet, before: Mapping[int, Sequence[int]] = MappingProxyType({})
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """IRQ numbers, and what each interrupt of the host has counted.

    In the least memory, for a large host has as many as anything else: a mark of all that it has
    counted, then CPUs and counts in turn. Left out is what has the same mark as `before`, and what
    cannot be read: most often it was freed between the listing and here.
    """
    reader, cpus = Reader(fs), _each(possible)
    for name in reader.names(paths.IRQ_SYSFS_DIR, paths.IRQ_COUNTS):
        if not name.isdecimal():
            continue
        irq = int(name)
        text = reader.text(paths.IRQ_COUNTS, irq)
        if text is None:
            continue
        mark = hash(text)
        if irq in before and before[irq][0] == mark:
            continue
        with suppress(ValueError):
            yield irq, (mark, *chain.from_iterable(_counts(text, cpus).items()))


def _counts(text: str, cpus: tuple[int, ...]) -> dict[int, int]:
    """The numbers that are not zero: an interrupt is taken by few of a great many CPUs.

    They are found by their digits, and what is between them is compared with so many zeros: a look
    at each number by itself takes four times as long.
    """
    told, zeros = f"{text},", "0," * len(cpus)
    if told == zeros:
        return {}
    kinds = told.encode("ascii", "replace").translate(_KINDS)
    if _OTHER in kinds:
        bad = next(each for each in text.split(",") if not (each.isascii() and each.isdecimal()))
        raise ValueError(f"{bad[:40]!r} is not a number")
    found, place, at = {}, 0, 0
    while (digit := kinds.find(_DIGIT, at)) >= 0:
        place += (digit - at) // 2
        if (digit - at) % 2 or not zeros.startswith(told[at:digit]) or place >= len(cpus):
            break
        end = kinds.find(_COMMA, digit)
        found[cpus[place]] = int(told[digit:end])
        place, at = place + 1, end + 1
    if told[at:] != zeros[2 * place :]:
        raise ValueError("not one number for each CPU")
    return found


def _settable(reader: Reader, irq: int) -> bool | None:
    try:
        return bool(reader.fs.mode(paths.IRQ_AFFINITY.at(irq)) & 0o200)
    except OSError:
        return None
