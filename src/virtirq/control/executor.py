"""The one place that writes an affinity: journal, write, read back, say what happened.

Of what is usual alone, `virtirq.control.at_once` does the beginning.

Each interrupt is read, written and read back through one descriptor, opened before anybody looks
whose interrupt it is. It dies with the kernel's own descriptor of the interrupt (`OpenFile`): that
it could be read after the look says that the look was at this very interrupt, and nothing that is
written through it can reach one that got the number later. What can change under a descriptor
that lives on is who handles it (an INTx line, most of all), so that is looked at once more after
the write.

Of a batch, all are looked at first; then one piece of journal and one fsync announce all moves;
then come the writes, with nothing between them; then everything that can wait.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from virtirq.control.at_once import Begun
from virtirq.control.journal import Journal
from virtirq.cpuset import CpuSet
from virtirq.errors import CpuSetError, JournalError, VirtirqError
from virtirq.host import paths
from virtirq.host.fs import HostFs, OpenFile
from virtirq.host.interrupts import handler_directory, handlers, has_interrupt
from virtirq.model import InterruptKind, Outcome, Pin, Remembered, Status
from virtirq.policy.restoring import SOMEONE
from virtirq.values import dataclass

_MOST_ALTERNATIVES: Final = 32
_BATCH: Final = 64
"""As many descriptors are open at a time."""

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


NOT_TRIED: Final = "not tried: "
"""So a reason begins where nothing was written."""
THERE: Final = "there already"
"""The reason of an outcome that needed no write: the plan's own line says the rest."""

_INTERRUPTED: Final = (
    "interrupted",
    "what was done is kept; run it again for the rest",
)


class _NoFile(OpenFile):
    """Stands where nothing could be opened."""

    def read(self) -> str:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def write(self, text: str) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def close(self) -> None:
        pass


_NO_FILE: Final = _NoFile()


@dataclass(slots=True)
class _Step:
    """One pin on its way, which has come to its end once it has a `status`.

    `file` is its affinity, `handler` the directory of its handler (see `handler_directory`).
    `incarnation` and `before` are what was found, `known` is what the journal knew of it, `written`
    what the kernel has taken. `announced`: the journal says that it is about to be moved. `stays`:
    it is not over, and the journal must not forget it.
    """

    pin: Pin
    file: OpenFile = _NO_FILE
    handler: str = ""
    incarnation: int | None = None
    before: CpuSet = CpuSet()
    known: Remembered | None = None
    announced: bool = False
    written: CpuSet | None = None
    stays: bool = False
    unwritten: str | None = None
    status: Status | None = None
    text: str = ""
    affinity: CpuSet | None = None
    hint: str | None = None
    crowded: bool = False

    def end(
        self, status: Status, text: str, affinity: CpuSet | None = None, hint: str | None = None
    ) -> None:
        self.status, self.text, self.affinity, self.hint = status, text, affinity, hint

    @property
    def done(self) -> bool:
        return self.status in (Status.APPLIED, Status.UNCHANGED, Status.PENDING)

    def resume(self, begun: Begun, known: Remembered | None) -> None:
        """It was begun already, as if by `_look`, `_announce` and `_write`."""
        if (begun.irq, begun.prepared.pin.key) != (self.pin.irq, self.pin.key):
            raise AssertionError("another pin was begun")
        self.file, self.handler = begun.file, begun.handler
        self.incarnation, self.before, self.known = begun.incarnation, begun.before, known
        self.announced = True
        self.written = self.pin.after if begun.written else None
        self.stays = not begun.written  # until the next write tells what came of this one

    def read(self) -> CpuSet:
        """Raises OSError, and CpuSetError for what no affinity can be."""
        return _affinity(self.file.read())


class Executor:
    """Carries out pins through `fs`, remembering each in `journal` first.

    `names` are what people call the guests, by their keys. With `restoring`, pins put back what
    the journal knows: they need no line in it beforehand, and what is put back is forgotten.
    `batch` is how many pins are taken together; `interrupted` is asked before each write.
    `mover` is who has moved an interrupt that is not where it was left. `room` says what to move
    out of the way of pins that the kernel has no vector for.
    """

    def __init__(
        self,
        fs: HostFs,
        journal: Journal,
        *,
        names: Mapping[str, str] = MappingProxyType({}),
        restoring: bool = False,
        batch: int = _BATCH,
        mover: str = SOMEONE,
        interrupted: Callable[[], bool] | None = None,
        room: Callable[[Sequence[Pin]], Sequence[Pin]] = lambda _: (),
    ) -> None:
        self._fs = fs
        self._journal = journal
        self._names = names
        self._restoring = restoring
        self._batch = batch
        self._mover = mover
        self._interrupted = interrupted
        self._room = room
        self._full: set[int] = set()
        self._stopped: tuple[str, str | None] | None = None
        self.deployment_fault = False
        """Whether a write failed for want of permission or a writable /proc."""
        self.journal_fault = False
        """Whether the journal took no more, so that nothing could be moved."""

    def run(self, pins: tuple[Pin, ...], begun: Begun | None = None) -> tuple[Outcome, ...]:
        """Carry out the pins in order; one outcome each. Never raises for what the kernel says.

        `begun` is how the first was begun, where it was (see `virtirq.control.at_once`). When
        /proc/irq or the journal cannot be written at all, or on an interruption, the rest is not
        tried. What is moved to make room for pins comes after all of them.
        """
        outcomes = self._run_all(pins, begun)
        lacking = [each.pin for each in outcomes if each.crowded and not each.pin.idle]
        moved = tuple(self._room(lacking)) if lacking and self._stopped is None else ()
        if not moved:
            return tuple(outcomes)
        made = self._run_all(moved)
        self._full.clear()
        again = {each.pin.key: each for each in self._run_all(tuple(lacking))}
        return (*(again.get(each.pin.key, each) for each in outcomes), *made)

    def _run_all(self, pins: tuple[Pin, ...], begun: Begun | None = None) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for first in range(0, len(pins), self._batch):
            steps = list(map(_Step, pins[first : first + self._batch]))
            outcomes += self._run(steps, None if first else begun)
        return outcomes

    def _run(self, steps: Sequence[_Step], begun: Begun | None = None) -> list[Outcome]:
        self._heed_interruption()
        try:
            if begun is not None:
                first = steps[0]
                first.resume(begun, self._journal.known(first.pin.key))
                self._journal.announced(self._found(first, first.pin.after))
            for step in steps:
                if not step.announced:
                    self._attempt(step, self._look)
            wanting = [step for step in steps if step.status is None]
            if wanting and not self._restoring:
                self._announce([step for step in wanting if not step.announced])
            for step in wanting:
                if step.written is None:
                    self._heed_interruption()
                    self._attempt(step, self._write)
            for step in wanting:
                self._attempt(step, self._verify)
            self._settle(steps)
            return [self._outcome(step) for step in steps]
        finally:
            for step in steps:
                step.file.close()

    def _heed_interruption(self) -> None:
        if self._interrupted is not None and self._stopped is None and self._interrupted():
            self._stopped = _INTERRUPTED

    def _attempt(self, step: _Step, phase: Callable[[_Step], None]) -> None:
        """One phase of a pin that has not come to its end; what goes wrong is its end."""
        if step.status is not None:
            return
        if self._stopped is not None and step.written is None:
            text, hint = self._stopped
            step.end(Status.FAILED, f"{NOT_TRIED}{text}", hint=hint)
            return
        try:
            phase(step)
        except JournalError as error:
            self._stop_for(step, error)
        except OSError as error:
            if _gone(step, error):
                step.end(Status.VANISHED, "the guest gave the interrupt up meanwhile")
            else:
                step.end(Status.FAILED, str(error))
        except VirtirqError as error:
            step.end(Status.FAILED, str(error), hint=error.hint)

    def _stop_for(self, step: _Step, error: JournalError) -> None:
        self._stopped = (str(error), error.hint)
        self.journal_fault = True
        step.end(Status.FAILED, str(error), hint=error.hint)

    def _note(self, steps: Sequence[_Step], call: Callable[..., None], *args: object) -> None:
        """Write down what has happened: a journal that takes no more must not hide it."""
        if not args:
            return
        try:
            call(*args)
        except JournalError as error:
            for step in steps:
                step.unwritten = f"not written down: {error}"

    def _look(self, step: _Step) -> None:
        """Look at the interrupt once more, for the plan may be old by now."""
        pin = step.pin
        irq, key = pin.irq, pin.key
        step.handler = handler = handler_directory(irq, key.action)
        affinity, sysfs = paths.IRQ_AFFINITY.at(irq), f"{paths.IRQ_SYSFS_DIR}/{irq}"
        step.file, step.incarnation, there, text = self._fs.look(affinity, sysfs, handler)
        if text is None or not there:
            there = there or self._is_there(pin)
            text = step.file.read()  # last: see HostFs.look
        step.before = before = _affinity(text)
        step.known = known = self._journal.known(key)
        if self._restoring and known and self._found(step, pin.after).again(known) is False:
            self._note([step], self._journal.forget, key)
            text = "the guest has set it up anew: what it has now is not from virtirq"
            step.end(Status.VANISHED, text)
        elif not there:
            step.end(Status.VANISHED, "the IRQ number is another interrupt's now")
        elif before == pin.after:
            step.end(Status.UNCHANGED, THERE, before)
        elif self._restoring and known and before not in known.written:
            text = f"{SOMEONE}, moved it to {before} meanwhile: left"
            step.end(Status.UNCHANGED, text, before)

    def _found(self, step: _Step, after: CpuSet) -> Remembered:
        """What the journal is told of a move to come."""
        pin = step.pin
        return Remembered(
            pin.key,
            pin.guest,
            step.before,
            (after,),
            name=self._names.get(pin.guest, ""),
            irq=pin.irq,
            kind=pin.kind,
            incarnation=step.incarnation,
        )

    def _is_there(self, pin: Pin) -> bool:
        """Whether the IRQ number still is the interrupt that the plan means.

        Where its handler has no directory, sysfs's list of names has the last word. One that is
        put back may be without an action (see `restore_plan`): then the number must still be the
        device's.
        """
        others = handlers(self._fs, pin.irq)
        if pin.key.action in others:
            return True
        if not self._restoring or others:
            return False
        return has_interrupt(self._fs, pin.key.device, pin.irq, pin.kind)

    def _is_unused(self, pin: Pin) -> bool:
        """Whether it is an INTx line that no handler is on."""
        return pin.kind is InterruptKind.INTX and not handlers(self._fs, pin.irq)

    def _announce(self, steps: Sequence[_Step]) -> None:
        """Have the journal remember, on stable storage, what is about to be moved."""
        if not steps:
            return
        try:
            self._journal.move(*[self._found(step, step.pin.after) for step in steps])
        except JournalError as error:
            self._stop_for(steps[0], error)
        else:
            for step in steps:
                step.announced = True

    def _write(self, step: _Step) -> None:
        """Write what the plan says, or for want of vectors something else."""
        wanted = step.pin.after
        try:
            step.file.write(str(wanted))
        except OSError as error:
            if self._is_full(step, wanted, error):
                self._write_another(step, error)
        else:
            step.written, step.stays = wanted, False

    def _write_another(self, step: _Step, error: OSError) -> None:
        """Write what the kernel may have a vector for, after it had none: `error`."""
        pin = step.pin
        for wanted in self._others(pin):
            if wanted == step.before:
                text = f"on CPU {wanted}: no interrupt vector left on CPU {pin.after}"
                step.end(Status.UNCHANGED, text, wanted)
                return
            if not self._restoring:
                self._note([step], self._journal.refused, pin.key)
                step.announced = False
                self._journal.move(self._found(step, wanted))
                step.announced = True
            try:
                step.file.write(str(wanted))
            except OSError as again:
                if not self._is_full(step, wanted, again):
                    return
                error = again
            else:
                step.written = wanted
                return
        self._refused(step, error)

    def _is_full(self, step: _Step, wanted: CpuSet, error: OSError) -> bool:
        """Whether a write has failed for want of a vector; whatever else it was is seen to.

        Raises the error where the interrupt is gone.
        """
        if self._took(step, wanted):
            step.written = wanted
            return False
        if _gone(step, error):
            raise error
        if error.errno != errno.ENOSPC:
            self._refused(step, error)
            return False
        if len(wanted) == 1:
            self._full.add(wanted.first())
        return True

    def _took(self, step: _Step, wanted: CpuSet) -> bool:
        """Whether a write that has failed was done all the same.

        Where that cannot be read, the journal goes on to count both values as ours.
        """
        step.stays = True
        affinity = step.read()
        step.stays = False
        return affinity == wanted

    def _others(self, pin: Pin) -> Iterator[CpuSet]:
        """What to write instead for want of vectors: other single CPUs."""
        tried = set(self._full) | set(pin.after)
        budget = _MOST_ALTERNATIVES
        for cpus in pin.alternatives:
            for cpu in cpus:
                if cpu not in tried and budget:
                    tried.add(cpu)
                    budget -= 1
                    yield CpuSet([cpu])

    def _refused(self, step: _Step, error: OSError) -> None:
        pin, number = step.pin, error.errno or errno.EIO
        affinity = step.read()
        if number in _DEPLOYMENT:
            self._stopped = _DEPLOYMENT[number]
            self.deployment_fault = True
            step.end(Status.FAILED, self._stopped[0], affinity, self._stopped[1])
            return
        step.crowded = number == errno.ENOSPC
        if number in _REFUSALS:
            text = _REFUSALS[number].format(cpus=_all(pin))
            step.end(Status.REFUSED, text, affinity)
            return
        text = _FAILURES.get(number, os.strerror(number)).format(cpus=pin.after)
        hint = None
        if number == errno.EINVAL and self._restoring:
            hint = f"bring one of CPUs {pin.after} online (chcpu -e), then run 'virtirq restore'"
        step.end(Status.FAILED, text, affinity, hint)

    def _verify(self, step: _Step) -> None:
        """Read back, and see that the interrupt has not become another's meanwhile."""
        pin, wanted = step.pin, step.written
        affinity = step.read()
        if not step.handler or not self._fs.isdir(step.handler):
            others = handlers(self._fs, pin.irq)
            if others and pin.key.action not in others:
                self._give_back(step, affinity, ", ".join(others))
                return
        if affinity == step.before != wanted and self._is_unused(pin):
            # A line that is shut down with a move pending shows that move, whatever is written
            # (kernel/irq/manage.c, irq_set_affinity_deactivated(); kernel/irq/proc.c,
            # show_irq_affinity()), and makes it at its next interrupt.
            step.stays = True
            text = f"the line is not in use, and its move to {affinity} is still pending there"
            step.end(Status.PENDING, text, affinity)
        elif affinity != wanted:
            text = f"affinity {affinity} read back after writing {wanted}"
            step.end(Status.FAILED, text, affinity)
        else:
            text = pin.reason.text
            if wanted != pin.after:
                text = f"on CPU {wanted}: no interrupt vector left on CPU {pin.after}"
            step.end(Status.APPLIED, text + self._history(step), affinity)

    def _give_back(self, step: _Step, affinity: CpuSet, others: str) -> None:
        """Undo a write to a line that somebody else was given between the look and the write."""
        wanted = step.written
        if affinity != wanted:
            step.end(Status.REVERTED, f"{others} has it by now, and has it on {affinity}: left")
            step.written = None
            return
        try:
            step.file.write(str(step.before))
            affinity = step.read()
        except OSError as error:
            if _gone(step, error):
                raise
            text = f"{others} has it by now, and it cannot be put back to {step.before}: {error}"
            step.end(Status.FAILED, text, wanted)
            return
        if affinity == step.before:
            step.written = None
            step.end(Status.REVERTED, f"{others} has it by now: put back to {affinity}", affinity)
        else:
            text = f"{others} has it by now, and is on {affinity} after writing {step.before}"
            step.end(Status.FAILED, text, affinity)

    def _history(self, step: _Step) -> str:
        """What to add to the reason where the interrupt was not where we had left it."""
        known, before = step.known, step.before
        if known is None or before in (known.original, *known.written):
            return ""
        now = self._journal.known(step.pin.key)
        again = now and now.again(known)
        if now is None or again is False:
            return ""  # set up anew, and found as the kernel sets it up
        wrote = " or ".join(map(str, known.written))
        who = self._mover if again else f"{self._mover}, or the guest by setting it up anew"
        return f"; found at {before} instead of our {wrote}: {who}; undone to {now.original}"

    def _settle(self, steps: Sequence[_Step]) -> None:
        """Have the journal know what came of what it was told, in one piece each."""
        if self._restoring:
            over = [step for step in steps if step.done and not step.stays]
            self._note(over, self._journal.forget, *(step.pin.key for step in over))
            return
        # Of what is unclear both values stay ours, as after a crash.
        back = [s for s in steps if s.announced and s.written is None and not s.stays]
        self._note(back, self._journal.refused, *(step.pin.key for step in back))
        taken = [step for step in steps if step.written is not None]
        self._note(taken, self._journal.moved, *((s.pin.key, s.written) for s in taken))

    def _outcome(self, step: _Step) -> Outcome:
        status, text, affinity = step.status, step.text, step.affinity
        if status is None:
            raise AssertionError("a phase has left it out")
        effective = None
        if affinity is not None:
            try:
                effective = self._effective(step.pin)
            except VirtirqError as error:
                status, text = Status.FAILED, str(error)
        done = status in (Status.APPLIED, Status.UNCHANGED)
        if done and affinity is not None and effective and not effective <= affinity:
            # The interrupt controller is told at the next interrupt (kernel/irq/migration.c).
            line = "INTx line" if step.pin.kind is InterruptKind.INTX else "vector"
            text = f"{text}; the {line} leaves CPU {effective} at its next interrupt"
            status = Status.PENDING
        if step.unwritten is not None:
            # What the kernel did is done; what is in the journal still allows to undo it.
            text = f"{text}; {step.unwritten}"
        return Outcome(step.pin, status, text, affinity, effective or None, step.hint, step.crowded)

    def _effective(self, pin: Pin) -> CpuSet:
        try:
            return CpuSet.parse(self._fs.read(paths.IRQ_EFFECTIVE.at(pin.irq)))
        except OSError:
            return CpuSet()  # not every kernel and interrupt chip has the file


def _affinity(text: str) -> CpuSet:
    """Of the file. Raises CpuSetError for what no affinity can be."""
    found = CpuSet.parse(text)
    if not found:
        raise CpuSetError("its affinity names no CPU, so nobody could put it back")
    return found


def _gone(step: _Step, error: OSError) -> bool:
    """Whether the error says that the kernel freed the interrupt meanwhile.

    ENODEV is sysfs's word for it (fs/kernfs/file.c), EIO that of an open file of /proc, which
    then can be read no more either; a write alone has other reasons for it.
    """
    if error.errno in (errno.ENOENT, errno.ENODEV):
        return True
    if error.errno != errno.EIO:
        return False
    try:
        step.file.read()
    except OSError as again:
        return again.errno == errno.EIO
    return False


def _all(pin: Pin) -> CpuSet:
    cpus = pin.after
    for each in pin.alternatives:
        cpus |= each
    return cpus
