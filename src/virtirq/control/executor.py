"""The one place that writes an affinity: journal, write, read back, say what happened."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from virtirq.control.journal import Journal
from virtirq.cpuset import CpuSet
from virtirq.errors import JournalError, VirtirqError
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.host.interrupts import has_interrupt
from virtirq.model import InterruptKind, Outcome, Pin, Remembered, Status
from virtirq.policy.restoring import SOMEONE

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


@dataclass(slots=True)
class _Step:
    """One pin on its way; `outcome` is there once it has come to its end.

    `before` and `known` are what was found, `written` is what the kernel has taken. `stays`: it
    is not over, and the journal must not forget it.
    """

    pin: Pin
    outcome: Outcome | None = None
    before: CpuSet = CpuSet()
    known: Remembered | None = None
    written: CpuSet | None = None
    unwritten: str | None = None
    stays: bool = False


class Executor:
    """Carries out pins through `fs`, remembering each in `journal` first.

    `names` are what people call the guests, by their keys. With `restoring`, pins put back what
    the journal knows: they need no line in it beforehand, and what is put back is forgotten.
    `batch` is how many pins are taken together: all of them are written before the first is read
    back; `interrupted` is asked between batches. `mover` is who has moved an
    interrupt that is not where it was left.
    """

    def __init__(
        self,
        fs: HostFs,
        journal: Journal,
        *,
        names: Mapping[str, str] = MappingProxyType({}),
        restoring: bool = False,
        batch: int = 1,
        mover: str = SOMEONE,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fs = fs
        self._journal = journal
        self._names = names
        self._restoring = restoring
        self._batch = batch
        self._mover = mover
        self._interrupted = interrupted
        self._full: set[int] = set()
        self._stopped: tuple[str, str | None] | None = None
        self.deployment_fault = False
        """Whether a write failed for want of permission or a writable /proc."""
        self.journal_fault = False
        """Whether the journal took no more, so that nothing could be moved."""

    def run(self, pins: tuple[Pin, ...]) -> tuple[Outcome, ...]:
        """Carry out the pins in order; one outcome each. Never raises for what the kernel says.

        When /proc/irq or the journal cannot be written at all, or on an interruption, the rest
        is not tried.
        """
        outcomes: list[Outcome] = []
        for first in range(0, len(pins), self._batch):
            outcomes += self._run([_Step(pin) for pin in pins[first : first + self._batch]])
        return tuple(outcomes)

    def _run(self, steps: Sequence[_Step]) -> list[Outcome]:
        if self._stopped is None and self._interrupted():
            self._stopped = _INTERRUPTED
        for step in steps:
            self._attempt(step, self._move)
        written = [step for step in steps if step.outcome is None and step.written is not None]
        if written and not self._restoring:
            self._note(written, self._journal.moved, *((s.pin.key, s.written) for s in written))
        for step in steps:
            self._attempt(step, self._read_back)
        return [self._ended(step) for step in steps]

    def _attempt(self, step: _Step, phase: Callable[[_Step], Outcome | None]) -> None:
        """One phase of a pin that has not come to its end; what goes wrong is its end."""
        pin = step.pin
        if step.outcome is not None:
            return
        if self._stopped is not None and step.written is None:
            text, hint = self._stopped
            step.outcome = Outcome(pin, Status.FAILED, f"not tried: {text}", hint=hint)
            return
        try:
            step.outcome = phase(step)
        except JournalError as error:
            self._stopped = (str(error), error.hint)
            self.journal_fault = True
            step.outcome = Outcome(pin, Status.FAILED, str(error), hint=error.hint)
        except OSError as error:
            if self._gone(pin, error):
                text = "the guest gave the interrupt up meanwhile"
                step.outcome = Outcome(pin, Status.VANISHED, text)
            else:
                step.outcome = Outcome(pin, Status.FAILED, str(error))
        except VirtirqError as error:
            step.outcome = Outcome(pin, Status.FAILED, str(error), hint=error.hint)

    def _ended(self, step: _Step) -> Outcome:
        outcome = step.outcome
        if outcome is None:
            raise AssertionError("a phase has left it out")
        done = outcome.status in (Status.APPLIED, Status.UNCHANGED, Status.PENDING)
        if self._restoring and done and not step.stays:
            self._note([step], self._journal.forget, step.pin.key)
        if step.unwritten is not None:
            # What the kernel did is done; what is in the journal still allows to undo it.
            outcome = replace(outcome, reason=f"{outcome.reason}; {step.unwritten}")
        return outcome

    def _note(self, steps: Sequence[_Step], call: Callable[..., None], *args: object) -> None:
        """Write down what has happened: a journal that takes no more must not hide it."""
        try:
            call(*args)
        except JournalError as error:
            for step in steps:
                step.unwritten = f"not written down: {error}"

    def _move(self, step: _Step) -> Outcome | None:
        """Look at the interrupt once more, for the plan may be old by now, and write."""
        pin = step.pin
        if self._is_anew(pin):
            self._note([step], self._journal.forget, pin.key)
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
        step.before, step.known = before, known
        return self._write(step)

    def _is_there(self, pin: Pin) -> bool:
        """Whether the IRQ number still is the interrupt that the plan means.

        One that is put back may be without an action (see `restore_plan`): then the number must
        still be the device's.
        """
        actions = [name for name in self._fs.read(paths.IRQ_ACTIONS.at(pin.irq)).split(",") if name]
        if actions or not self._restoring:
            return pin.key.action in actions
        return has_interrupt(self._fs, pin.key.device, pin.irq, pin.kind)

    def _is_unused(self, pin: Pin) -> bool:
        """Whether it is an INTx line that no handler is on."""
        if pin.kind is not InterruptKind.INTX:
            return False
        return not self._fs.read(paths.IRQ_ACTIONS.at(pin.irq))

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

    def _write(self, step: _Step) -> Outcome | None:
        """Write what the plan says, or for want of vectors something else."""
        pin, last = step.pin, None
        for wanted in self._choices(pin):
            if wanted == step.before:
                text = f"on CPU {wanted}: no interrupt vector left on CPU {pin.after}"
                return self._outcome(pin, Status.UNCHANGED, text, wanted)
            if not self._restoring:
                self._journal.move(self._found(pin, step.before, wanted))
            try:
                self._fs.write(paths.IRQ_AFFINITY.at(pin.irq), str(wanted))
            except (OSError, VirtirqError) as error:
                if not self._restoring:
                    self._note([step], self._journal.refused, pin.key)
                if not isinstance(error, OSError) or self._gone(pin, error):
                    raise
                last = error
                if error.errno == errno.ENOSPC:
                    if len(wanted) == 1:
                        self._full.add(wanted.first())
                    continue
                break
            step.written = wanted
            return None
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
        who = self._mover if again else f"{self._mover}, or the guest by setting it up anew"
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

    def _read_back(self, step: _Step) -> Outcome:
        pin, wanted = step.pin, step.written
        affinity = self._cpus(pin, effective=False)
        if wanted is not None and affinity == step.before != wanted and self._is_unused(pin):
            # A line that is shut down with a move pending shows that move, whatever is written
            # (kernel/irq/manage.c, irq_set_affinity_deactivated(); kernel/irq/proc.c,
            # show_irq_affinity()), and makes it at its next interrupt.
            step.stays = True
            text = f"the line is not in use, and its move to {affinity} is still pending there"
            return Outcome(pin, Status.PENDING, text, affinity)
        if wanted is None or affinity != wanted:
            effective = self._cpus(pin, effective=True)
            text = f"affinity {affinity} read back after writing {wanted}"
            return Outcome(pin, Status.FAILED, text, affinity, effective)
        if wanted == pin.after:
            text = pin.reason.text
        else:
            text = f"on CPU {wanted}: no interrupt vector left on CPU {pin.after}"
        text += self._history(pin, step.before, step.known)
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
        except OSError:
            if effective:
                return CpuSet()  # not every kernel and interrupt chip has the file
            raise


def _all(pin: Pin) -> CpuSet:
    cpus = pin.after
    for each in pin.alternatives:
        cpus |= each
    return cpus
