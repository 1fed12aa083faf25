"""The one place that writes an affinity: journal, write, read back, say what happened."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from virtirq.control.journal import Journal
from virtirq.cpuset import CpuSet
from virtirq.errors import CpuSetError, JournalError
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import InterruptKind, Outcome, Pin, Status

_MOST_ALTERNATIVES: Final = 32

# What the kernel's answers mean (kernel/irq/proc.c, write_irq_affinity(); kernel/irq/manage.c).
_REFUSALS: Final = {
    errno.EIO: "the kernel manages its affinity",
    errno.EPERM: "the kernel lets nobody set its affinity",
    errno.ENOSPC: "no interrupt vector left on CPUs {cpus}",
}
_FAILURES: Final = {
    errno.EINVAL: "none of CPUs {cpus} is online",
    errno.ERANGE: "CPUs {cpus} go past the last CPU of this host",
    errno.EOVERFLOW: "CPUs {cpus} go past the last CPU of this host",
}
_DEPLOYMENT: Final = {
    errno.EROFS: (
        "/proc/irq is read-only here",
        "take ProtectKernelTunables= out of the unit, or mount /proc writable in the container",
    ),
    errno.EACCES: ("not permitted to write /proc/irq", "run as root"),
}


class Executor:
    """Carries out pins through `fs`, remembering each in `journal` first."""

    def __init__(self, fs: HostFs, journal: Journal) -> None:
        self._fs = fs
        self._journal = journal
        self._full: set[int] = set()
        self._stopped: tuple[str, str | None] | None = None
        self.deployment_fault = False
        """Whether a write failed for want of permission or a writable /proc."""

    def run(self, pins: tuple[Pin, ...], *, restoring: bool = False) -> tuple[Outcome, ...]:
        """Carry out the pins in order; one outcome each. Never raises for what the kernel says.

        When /proc/irq or the journal cannot be written at all, the rest is not tried. With
        `restoring`, what is put back is forgotten.
        """
        outcomes = []
        for pin in pins:
            outcome = self._carry_out(pin)
            if restoring and outcome.status in (Status.APPLIED, Status.UNCHANGED, Status.PENDING):
                self._journal.forget(pin.key)
            outcomes.append(outcome)
        return tuple(outcomes)

    def _carry_out(self, pin: Pin) -> Outcome:
        if self._stopped is not None:
            text, hint = self._stopped
            return Outcome(pin, Status.FAILED, f"not tried: {text}", hint=hint)
        try:
            if pin.key.action not in self._fs.read(paths.IRQ_ACTIONS.at(pin.irq)).split(","):
                return Outcome(pin, Status.VANISHED, "the IRQ number is another interrupt's now")
            before = self._cpus(pin, effective=False)
            if before == pin.after:
                return self._outcome(pin, Status.UNCHANGED, "there already", pin.after)
            return self._move(pin, before)
        except FileNotFoundError:
            return Outcome(pin, Status.VANISHED, "the guest gave the interrupt up meanwhile")
        except JournalError as error:
            self._stopped = (str(error), error.hint)
            return Outcome(pin, Status.FAILED, str(error), hint=error.hint)
        except (OSError, CpuSetError) as error:
            return Outcome(pin, Status.FAILED, str(error))

    def _move(self, pin: Pin, before: CpuSet) -> Outcome:
        last: OSError | None = None
        for wanted in self._choices(pin):
            self._journal.move(pin.key, pin.guest, pin.irq, before, wanted)
            try:
                self._fs.write(paths.IRQ_AFFINITY.at(pin.irq), str(wanted))
            except OSError as error:
                if error.errno == errno.ENOENT:
                    raise
                last = error
                if error.errno == errno.ENOSPC:
                    if len(wanted) == 1:
                        self._full.add(wanted.first())
                    continue
                break
            self._journal.moved(pin.key, wanted)
            return self._read_back(pin, wanted)
        return self._refused(pin, last)

    def _choices(self, pin: Pin) -> Iterator[CpuSet]:
        """What to write: the plan's choice, then for want of vectors other single CPUs."""
        yield pin.after
        tried = set(self._full) | set(pin.after)
        budget = _MOST_ALTERNATIVES
        for cpus in pin.alternatives:
            for cpu in cpus:
                if cpu not in tried and budget:
                    tried.add(cpu)
                    budget -= 1
                    yield CpuSet([cpu])

    def _refused(self, pin: Pin, error: OSError | None) -> Outcome:
        number = (error and error.errno) or errno.EIO
        affinity = self._cpus(pin, effective=False)
        effective = self._cpus(pin, effective=True)
        if number in _DEPLOYMENT:
            text, hint = self._stopped = _DEPLOYMENT[number]
            self.deployment_fault = True
            return Outcome(pin, Status.FAILED, text, affinity, effective, hint)
        if number in _REFUSALS:
            text = _REFUSALS[number].format(cpus=_all(pin))
            return Outcome(pin, Status.REFUSED, text, affinity, effective)
        text = _FAILURES.get(number, os.strerror(number)).format(cpus=pin.after)
        return Outcome(pin, Status.FAILED, text, affinity, effective)

    def _read_back(self, pin: Pin, wanted: CpuSet) -> Outcome:
        affinity = self._cpus(pin, effective=False)
        if affinity != wanted:
            effective = self._cpus(pin, effective=True)
            text = f"affinity {affinity} read back after writing {wanted}"
            return Outcome(pin, Status.FAILED, text, affinity, effective)
        if wanted == pin.after:
            text = pin.reason.text
        else:
            text = f"on CPU {wanted}: no interrupt vector left on CPU {pin.after}"
        return self._outcome(pin, Status.APPLIED, text, wanted)

    def _outcome(self, pin: Pin, status: Status, text: str, affinity: CpuSet) -> Outcome:
        effective = self._cpus(pin, effective=True)
        if effective and not effective <= affinity:
            # The interrupt controller is told at the next interrupt (kernel/irq/migration.c).
            line = "INTx line" if pin.kind is InterruptKind.INTX else "vector"
            text = f"{text}; the {line} leaves CPU {effective} at its next interrupt"
            return Outcome(pin, Status.PENDING, text, affinity, effective)
        return Outcome(pin, status, text, affinity, effective or None)

    def _cpus(self, pin: Pin, *, effective: bool) -> CpuSet:
        path = paths.IRQ_EFFECTIVE if effective else paths.IRQ_AFFINITY
        try:
            return CpuSet.parse(self._fs.read(path.at(pin.irq)))
        except FileNotFoundError:
            if effective:
                return CpuSet()  # not every kernel and interrupt chip has the file
            raise


def _all(pin: Pin) -> CpuSet:
    cpus = pin.after
    for each in pin.alternatives:
        cpus |= each
    return cpus
