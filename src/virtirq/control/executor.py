"""The one place that writes an affinity: journal, write, read back, say what happened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from virtirq.control.journal import Journal
from virtirq.cpuset import CpuSet
from virtirq.errors import JournalError, VirtirqError
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.host.interrupts import has_interrupt
from virtirq.model import InterruptKind, Outcome, Pin, Remembered, Status
from virtirq.policy.placement import SOMEONE

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


THERE: Final = "there already"
"""The reason of an outcome that needed no write: the plan's own line says the rest."""

_INTERRUPTED: Final = (
    "interrupted",
    "what was done is kept; run it again for the rest",
)


class Executor:
    """Carries out pins through `fs`, remembering each in `journal` first.

    `names` are what people call the guests, by their keys. With `restoring`, pins put back what
    the journal knows: they need no line in it beforehand, and what is put back is forgotten.
    `interrupted` is asked between pins.
    """

    def __init__(
        self,
        fs: HostFs,
        journal: Journal,
        *,
        names: Mapping[str, str] = MappingProxyType({}),
        restoring: bool = False,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fs = fs
        self._journal = journal
        self._names = names
        self._restoring = restoring
        self._interrupted = interrupted
        self._full: set[int] = set()
        self._stopped: tuple[str, str | None] | None = None
        self._unwritten: str | None = None
        self.deployment_fault = False
        """Whether a write failed for want of permission or a writable /proc."""

    def run(self, pins: tuple[Pin, ...]) -> tuple[Outcome, ...]:
        """Carry out the pins in order; one outcome each. Never raises for what the kernel says.

        When /proc/irq or the journal cannot be written at all, or on an interruption, the rest
        is not tried.
        """
        outcomes = []
        for pin in pins:
            if self._stopped is None and self._interrupted():
                self._stopped = _INTERRUPTED
            self._unwritten = None
            outcome = self._carry_out(pin)
            done = outcome.status in (Status.APPLIED, Status.UNCHANGED, Status.PENDING)
            if self._restoring and done:
                self._note(self._journal.forget, pin.key)
            if self._unwritten is not None:
                # What the kernel did is done; what is in the journal still allows to undo it.
                outcome = replace(outcome, reason=f"{outcome.reason}; {self._unwritten}")
            outcomes.append(outcome)
        return tuple(outcomes)

    def _note(self, call: Callable[..., None], *args: object) -> None:
        """Write down what has happened: a journal that takes no more must not hide it."""
        try:
            call(*args)
        except JournalError as error:
            self._unwritten = f"not written down: {error}"

    def _carry_out(self, pin: Pin) -> Outcome:
        if self._stopped is not None:
            text, hint = self._stopped
            return Outcome(pin, Status.FAILED, f"not tried: {text}", hint=hint)
        try:
            if self._is_anew(pin):
                self._note(self._journal.forget, pin.key)
                text = "the guest has set it up anew: what it has now is not from virtirq"
                return Outcome(pin, Status.VANISHED, text)
            if not self._is_there(pin):
                return Outcome(pin, Status.VANISHED, "the IRQ number is another interrupt's now")
            before = self._cpus(pin, effective=False)
            if before == pin.after:
                return self._outcome(pin, Status.UNCHANGED, THERE, pin.after)
            known = self._journal.known(pin.key)
            if self._restoring and known is not None and before not in known.written:
                text = f"{SOMEONE}, moved it to {before} meanwhile: left"
                return self._outcome(pin, Status.UNCHANGED, text, before)
            return self._move(pin, before, known)
        except JournalError as error:
            self._stopped = (str(error), error.hint)
            return Outcome(pin, Status.FAILED, str(error), hint=error.hint)
        except OSError as error:
            if self._gone(pin, error):
                return Outcome(pin, Status.VANISHED, "the guest gave the interrupt up meanwhile")
            return Outcome(pin, Status.FAILED, str(error))
        except VirtirqError as error:
            return Outcome(pin, Status.FAILED, str(error), hint=error.hint)

    def _is_there(self, pin: Pin) -> bool:
        """Whether the IRQ number still is the interrupt that the plan means.

        One that is put back may be without an action (see `restore_plan`): then the number must
        still be the device's.
        """
        actions = [name for name in self._fs.read(paths.IRQ_ACTIONS.at(pin.irq)).split(",") if name]
        if actions or not self._restoring:
            return pin.key.action in actions
        return has_interrupt(self._fs, pin.key.device, pin.irq, pin.kind)

    def _is_anew(self, pin: Pin) -> bool:
        """Whether what is to be put back was lost already, with the interrupt that had it."""
        known = self._journal.known(pin.key) if self._restoring else None
        return known is not None and self._found(pin, CpuSet(), CpuSet()).again(known) is False

    def _gone(self, pin: Pin, error: OSError) -> bool:
        """Whether the error says that the kernel freed the interrupt meanwhile.

        ENODEV is sysfs's word for it (fs/kernfs/file.c), EIO that of /proc for a file that went
        while it was open (fs/proc/inode.c), which can mean other things too.
        """
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return True
        return error.errno == errno.EIO and not self._fs.isdir(f"{paths.IRQ_DIR}/{pin.irq}")

    def _found(self, pin: Pin, before: CpuSet, after: CpuSet) -> Remembered:
        return Remembered(
            pin.key,
            pin.guest,
            before,
            (after,),
            name=self._names.get(pin.guest, ""),
            irq=pin.irq,
            kind=pin.kind,
            incarnation=self._fs.incarnation(f"{paths.IRQ_SYSFS_DIR}/{pin.irq}"),
        )

    def _move(self, pin: Pin, before: CpuSet, known: Remembered | None) -> Outcome:
        last: OSError | None = None
        for wanted in self._choices(pin):
            if not self._restoring:
                self._journal.move(self._found(pin, before, wanted))
            try:
                self._fs.write(paths.IRQ_AFFINITY.at(pin.irq), str(wanted))
            except (OSError, VirtirqError) as error:
                if not self._restoring:
                    self._note(self._journal.refused, pin.key)
                if not isinstance(error, OSError) or self._gone(pin, error):
                    raise
                last = error
                if error.errno == errno.ENOSPC:
                    if len(wanted) == 1:
                        self._full.add(wanted.first())
                    continue
                break
            if not self._restoring:
                self._note(self._journal.moved, pin.key, wanted)
            return self._read_back(pin, wanted, self._history(pin, before, known))
        return self._refused(pin, last)

    def _history(self, pin: Pin, before: CpuSet, known: Remembered | None) -> str:
        """What to add to the reason where the interrupt was not where we had left it."""
        if known is None or before in (known.original, *known.written):
            return ""
        now = self._journal.known(pin.key)
        again = now and now.again(known)
        if now is None or again is False:
            return ""  # set up anew, and found as the kernel sets it up
        wrote = " or ".join(map(str, known.written))
        who = SOMEONE if again else f"{SOMEONE}, or the guest by setting it up anew"
        return f"; found at {before} instead of our {wrote}: {who}; undone to {now.original}"

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
            self._stopped = _DEPLOYMENT[number]
            self.deployment_fault = True
            return Outcome(
                pin, Status.FAILED, self._stopped[0], affinity, effective, self._stopped[1]
            )
        if number in _REFUSALS:
            text = _REFUSALS[number].format(cpus=_all(pin))
            return Outcome(pin, Status.REFUSED, text, affinity, effective)
        text = _FAILURES.get(number, os.strerror(number)).format(cpus=pin.after)
        hint = None
        if number == errno.EINVAL and self._restoring:
            hint = f"bring one of CPUs {pin.after} online (chcpu -e), then run 'virtirq restore'"
        return Outcome(pin, Status.FAILED, text, affinity, effective, hint)

    def _read_back(self, pin: Pin, wanted: CpuSet, history: str) -> Outcome:
        affinity = self._cpus(pin, effective=False)
        if affinity != wanted:
            effective = self._cpus(pin, effective=True)
            text = f"affinity {affinity} read back after writing {wanted}"
            return Outcome(pin, Status.FAILED, text, affinity, effective)
        if wanted == pin.after:
            text = pin.reason.text
        else:
            text = f"on CPU {wanted}: no interrupt vector left on CPU {pin.after}"
        return self._outcome(pin, Status.APPLIED, text + history, wanted)

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
        except OSError:
            if effective:
                return CpuSet()  # not every kernel and interrupt chip has the file
            raise


def _all(pin: Pin) -> CpuSet:
    cpus = pin.after
    for each in pin.alternatives:
        cpus |= each
    return cpus
