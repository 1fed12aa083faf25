"""Interrupts of PCI functions: what raises them, where they may go and where they do go."""

from __future__ import annotations

import errno
import stat
from collections import Counter
from collections.abc import Container, Iterable

from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.host.pci import read_intx_line, read_vectors
from virtirq.model import Interrupt, InterruptKind, PciAddress, VfioAction


def read_interrupts(
    reader: Reader,
    devices: Iterable[PciAddress],
    possible: CpuSet,
    lines: Container[PciAddress] = (),
) -> tuple[Interrupt, ...]:
    """The interrupts of `devices`, by device and IRQ number.

    An INTx line counts only while it is in use for the device: every function names a line,
    most never raise it. For the devices in `lines` it counts always.
    """
    cpus = tuple(possible)
    found = []
    for address in sorted(set(devices)):
        vectors = read_vectors(reader, address)
        for irq, mode in sorted(vectors.items()):
            kind = InterruptKind.MSI if mode == "msi" else InterruptKind.MSIX
            interrupt = read_interrupt(reader, irq, address, kind, cpus)
            if interrupt is not None:
                found.append(interrupt)
        line = read_intx_line(reader, address)
        if line is not None and line not in vectors:
            intx = _read_intx(reader, line, address, cpus, always=address in lines)
            if intx is not None:
                found.append(intx)
    return tuple(found)


def read_vector_load(reader: Reader) -> Counter[int]:
    """How many of the host's interrupts are delivered to each CPU.

    Each takes one of about 200 vectors of that CPU (kernel/irq/matrix.c). Interrupts without an
    effective affinity (not started, or not routed by the interrupt controller) take none.
    """
    load: Counter[int] = Counter()
    for name in reader.names(paths.IRQ_DIR, paths.IRQ_AFFINITY):
        if not name.isdecimal():
            continue
        mark = reader.mark()
        load.update(reader.cpus(paths.IRQ_EFFECTIVE, name) or ())
        if reader.mark() != mark and _gone(reader, name):
            reader.back_to(mark)
    return load


def has_handler(fs: HostFs, irq: int, action: str) -> bool:
    """Whether a handler of this name is on the interrupt. Raises OSError when nobody can tell.

    procfs has a directory for each (kernel/irq/proc.c, register_handler_proc()), which one
    stat(2) finds; of VFIO's names we know that they make no other path. Where there is none,
    sysfs's list of names has the last word.
    """
    if VfioAction.parse(action) is not None and fs.isdir(f"{paths.IRQ_DIR}/{irq}/{action}"):
        return True
    return action in handlers(fs, irq)


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
    reader: Reader, irq: int, address: PciAddress, kind: InterruptKind, cpus: tuple[int, ...] = ()
) -> Interrupt | None:
    """One interrupt of a device; None when the kernel has freed it.

    `cpus` are the host's possible CPUs; without them no counts are read.
    """
    if _gone(reader, irq):
        return None  # freed between the listing and here
    mark = reader.mark()
    text = reader.text(paths.IRQ_ACTIONS, irq)
    actions = None if text is None else _split(text)
    vector = _vector_of(actions, address)
    affinity = reader.cpus(paths.IRQ_AFFINITY, irq)
    if affinity is not None and not affinity:  # nobody could put that back
        reader.malformed(paths.IRQ_AFFINITY, paths.IRQ_AFFINITY.at(irq), "names no CPU")
        affinity = None
    interrupt = Interrupt(
        irq=irq,
        device=address,
        kind=kind,
        vector=vector,
        actions=actions,
        affinity=affinity,
        effective=reader.cpus(paths.IRQ_EFFECTIVE, irq) or None,
        counts=read_counts(reader, irq, cpus) if cpus else None,
        settable=_settable(reader, irq) if affinity is not None else None,
    )
    if reader.mark() != mark and _gone(reader, irq):
        reader.back_to(mark)
        return None  # freed while it was read
    return interrupt


def _gone(reader: Reader, irq: object) -> bool:
    """Whether the running kernel has freed the interrupt. A recording frees none."""
    if reader.fs.recording is not None:
        return False
    try:
        return not stat.S_ISDIR(reader.fs.mode(f"{paths.IRQ_DIR}/{irq}"))
    except OSError as error:  # what cannot be looked at for another reason may be there
        return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)


def _split(actions: str) -> tuple[str, ...]:
    return tuple(name for name in actions.split(",") if name)


def _vector_of(actions: tuple[str, ...] | None, address: PciAddress) -> int | None:
    for action in actions or ():
        named = VfioAction.parse(action)
        if named is not None and named.device == address:
            return named.vector
    return None


def read_counts(reader: Reader, irq: int, cpus: tuple[int, ...]) -> dict[int, int] | None:
    """Interrupts taken by CPU, those with none left out; `cpus` are the possible ones."""
    # One number for each *possible* CPU (kernel/irq/irqdesc.c, per_cpu_count_show()), where
    # /proc/interrupts has a column for each online one.
    text = reader.text(paths.IRQ_COUNTS, irq)
    if text is None:
        return None
    numbers = text.split(",")
    if len(numbers) != len(cpus):
        reader.malformed(paths.IRQ_COUNTS, paths.IRQ_COUNTS.at(irq), "not one number for each CPU")
        return None
    try:
        return {cpu: int(count) for cpu, count in zip(cpus, numbers, strict=True) if count != "0"}
    except ValueError as error:
        reader.malformed(paths.IRQ_COUNTS, paths.IRQ_COUNTS.at(irq), error)
        return None


def count_all(fs: HostFs, possible: CpuSet) -> dict[int, dict[int, int]]:
    """What each interrupt of the host has counted, by IRQ number and CPU.

    Left out is what cannot be read: most often it was freed between the listing and here.
    """
    reader, cpus, found = Reader(fs), tuple(possible), {}
    for name in reader.names(paths.IRQ_SYSFS_DIR, paths.IRQ_COUNTS):
        if name.isdecimal():
            counts = read_counts(reader, int(name), cpus)
            if counts is not None:
                found[int(name)] = counts
    return found


def names_of(fs: HostFs, irqs: Iterable[int]) -> dict[int, str]:
    """What the handlers of these interrupts are called, as the kernel joins them."""
    reader = Reader(fs)
    found = {irq: reader.text(paths.IRQ_ACTIONS, irq) for irq in irqs}
    return {irq: text for irq, text in found.items() if text}


def _settable(reader: Reader, irq: int) -> bool | None:
    try:
        return bool(reader.fs.mode(paths.IRQ_AFFINITY.at(irq)) & 0o200)
    except OSError:
        return None
