"""The shortest way to move one interrupt that has just appeared: what is usual, and no more.

Somebody waits for a first vector, and who is woken by it finds nothing in the processor's caches:
each function on the way takes microseconds. So this makes the `Executor`'s calls, in its order, up
to the write, and the Executor takes over from there. It decides nothing: wherever there is anything
to decide, nothing is done, and the Executor begins at the beginning.
"""

from __future__ import annotations

from typing import Final

from virtirq.control.journal import Journal, MoveForm
from virtirq.cpuset import CpuSet
from virtirq.errors import VirtirqError
from virtirq.host import paths
from virtirq.host.fs import HostFs, OpenFile
from virtirq.model import Pin
from virtirq.values import dataclass

_AFFINITY: Final = paths.IRQ_AFFINITY.form


@dataclass(frozen=True, slots=True)
class Prepared:
    """A pin of an interrupt that is to come, with all that can be said of it beforehand.

    `pin` has IRQ 0 for its number; `value` is what to write, `form` the journal's line.
    """

    pin: Pin
    value: str
    form: MoveForm


def prepare(pin: Pin, name: str) -> Prepared:
    """For a pin of a vector of the guest of this name; the action has to be one of VFIO's."""
    form = MoveForm.of(pin.key, pin.after, pin.guest, name, pin.kind)
    return Prepared(pin, str(pin.after), form)


@dataclass(frozen=True, slots=True)
class Begun:
    """A pin that the journal knows of, with what was found; `file` is open.

    `written`: whether the kernel has taken it.
    """

    prepared: Prepared
    irq: int
    file: OpenFile
    handler: str
    incarnation: int | None
    before: CpuSet
    written: bool


def begin(fs: HostFs, journal: Journal, prepared: Prepared, irq: int) -> Begun | None:
    """Look at the interrupt, announce its move and write; None: nothing was moved.

    The journal has to be told of it (`Executor.run`) before anything else is.
    """
    # As `handler_directory` has it, without its questions: the action is one of VFIO's.
    handler = f"{paths.IRQ_DIR}/{irq}/{prepared.pin.key.action}"
    try:
        found = fs.look(_AFFINITY % irq, f"{paths.IRQ_SYSFS_DIR}/{irq}", handler)
    except OSError:
        return None
    file, incarnation, there, text = found
    announced = False
    try:
        before = CpuSet.parse(text) if there and text else None
        if not before or before == prepared.pin.after:
            return None
        journal.announce(prepared.form, before, irq, incarnation)
        announced = True
    except VirtirqError:  # no affinity, or a journal that takes no more
        return None
    finally:
        if not announced:
            file.close()
    try:
        file.write(prepared.value)
    except OSError:  # the Executor tries it once more, and finds out
        written = False
    else:
        written = True
    return Begun(prepared, irq, file, handler, incarnation, before, written)
