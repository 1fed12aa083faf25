"""Moving and putting back as a daemon does it: under the lock, never waiting long, telling each
thing once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from virtirq.control.at_once import Begun, Prepared, begin
from virtirq.control.counters import Counters, Trigger
from virtirq.control.cycle import observe_devices, put_back
from virtirq.control.executor import NOT_TRIED, Executor
from virtirq.control.journal import Journal, SharedJournal
from virtirq.cpuset import CpuSet
from virtirq.daemon.log import Log
from virtirq.daemon.outcome_log import hinted, told
from virtirq.daemon.timers import Key, Timers
from virtirq.errors import VirtirqError
from virtirq.host.fs import HostFs, Reader
from virtirq.model import (
    Guest,
    InterruptKey,
    InterruptKind,
    Outcome,
    PciAddress,
    Pin,
    Remembered,
    Snapshot,
    Status,
    Topology,
)
from virtirq.policy.restoring import SOMEONE

_WAIT: Final = 0.05
"""Seconds to wait for the lock: everything else waits meanwhile, so rather try again later."""
_LAST_WAIT: Final = 5.0
"""The same when there is no later."""
_BATCH: Final = 128
"""Pins taken together, each with a descriptor: most of what is to be done about one comes after its
write, and waits for the last of them.
"""
_TELL: Final[Key] = ("tell",)
_CALM: Final = 0.02
"""Seconds without another attempt until it is told what came of them: a line takes as long as a
vector, and the kernel tells of a device's in pieces.
"""
_UNTOLD: Final = 1024
"""No more outcomes than these are waited for."""
_PIECE: Final = 16
"""Of what is untold so many are told at once, or else a 16th, so that it does not grow."""


class Attempts:
    """Carries out what is decided and tells what came of it.

    `urgent`: whether something waits for the loop that comes before telling.
    """

    def __init__(
        self,
        fs: HostFs,
        journal: SharedJournal,
        log: Log,
        counters: Counters,
        timers: Timers,
        urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fs = fs
        self._journal = journal
        self._log = log
        self._counters = counters
        self._timers = timers
        self._urgent = urgent
        self._untold: deque[tuple[Outcome, Trigger, str, str]] = deque()
        self._said: dict[InterruptKey, str] = {}
        self._complaint = ""

    def begin(self, prepared: Prepared, irq: int) -> Begun | None:
        """Write at once, where it goes without saying (see `virtirq.control.at_once`).

        What was begun is to be carried out next, and the journal is held until then.
        """
        try:
            journal = self._journal.take(0.0)
        except VirtirqError:
            return None
        begun = None
        try:
            begun = begin(self._fs, journal, prepared, irq)
        finally:
            if begun is None:
                self._journal.release()
        return begun

    def carry_out(
        self,
        pins: Sequence[Pin],
        trigger: Trigger,
        guests: Mapping[str, Guest],
        mover: str = SOMEONE,
        room: Callable[[Sequence[Pin]], Sequence[Pin]] = lambda _: (),
        begun: Begun | None = None,
    ) -> tuple[Outcome, ...] | None:
        """What became of each; None when nothing could be tried: then try again later.

        `guests` are those that are known, by key; `mover` is who has moved the interrupts; `room`
        and `begun` are the Executor's.
        """
        names = {pin.guest: guests[pin.guest].name for pin in pins if pin.guest in guests}
        try:
            # Not by contextlib: somebody waits for a vector
            journal = self._journal.take(_WAIT) if begun is None else self._journal.taken
            try:
                executor = Executor(
                    self._fs, journal, names=names, batch=_BATCH, mover=mover, room=room
                )
                outcomes = executor.run(tuple(pins), begun)
            finally:
                self._journal.release()
        except VirtirqError as error:
            self._complain(str(error), error.hint)
            return None
        fault = next((each for each in outcomes if each.status is Status.FAILED), None)
        if fault is not None and (executor.deployment_fault or executor.journal_fault):
            self._complain(fault.reason.removeprefix(NOT_TRIED), fault.hint)
            told = [each for each in outcomes if each.status is not Status.FAILED]
        else:
            self._complaint = ""
            told = list(outcomes)
        for each in outcomes:
            self._counters.moves[trigger.value, each.status.value] += 1
        self._tell(told, trigger, names, mover if trigger is Trigger.DRIFT else "")
        return None if executor.journal_fault else outcomes

    def put_back(
        self,
        devices: Collection[PciAddress] | None,
        ours: Callable[[Remembered], bool],
        topology: Topology,
        guests: Mapping[str, Guest],
        *,
        last: bool = False,
    ) -> frozenset[PciAddress] | None:
        """Put back what the journal knows of `devices`, all if None, and `ours` holds of.

        `guests`: by key.

        The devices of which something could not be put back; None when nothing could be tried.
        `last`: there will be no other time.
        """
        if last:
            self._complaint = ""  # whatever it is, it must be said
        failed: frozenset[PciAddress] = frozenset()
        try:
            with self._journal.held(_LAST_WAIT if last else _WAIT) as journal:
                known = journal.remembered() if devices is None else journal.remembered_of(devices)
                entries = [each for each in known if ours(each)]
                if entries:
                    failed = self._put_back(journal, entries, topology, guests)
        except VirtirqError as error:
            self._complain(str(error), error.hint)
            return None
        self._complaint = ""
        return failed

    def forget(self, address: PciAddress) -> None:
        """The device is nobody's any more."""
        for key in [each for each in self._said if each.device == address]:
            del self._said[key]

    def flush(self) -> None:
        """Tell what has not been told yet."""
        self._timers.cancel(*_TELL)
        while self._untold:
            self._tell_one(*self._untold.popleft())

    def _tell_some(self) -> None:
        """Tell a piece of it, so that whatever happens meanwhile need not wait for all."""
        for _ in range(min(len(self._untold), max(_PIECE, len(self._untold) // _PIECE))):
            self._tell_one(*self._untold.popleft())
            if len(self._untold) <= _UNTOLD and self._urgent():
                self._timers.soon(_TELL, _CALM, self._tell_some)
                return
        if self._untold:
            self._timers.soon(_TELL, 0.0, self._tell_some)

    def _put_back(
        self,
        journal: Journal,
        entries: Sequence[Remembered],
        topology: Topology,
        guests: Mapping[str, Guest],
    ) -> frozenset[PciAddress]:
        keys = {each.guest for each in entries}
        devices = observe_devices(
            Reader(self._fs),
            {each.key.device for each in entries},
            CpuSet(),
            {each.key.device for each in entries if each.kind is InterruptKind.INTX},
        )
        snapshot = Snapshot(
            topology,
            pci=devices.pci,
            interrupts=devices.interrupts,
            guests=tuple(guests[key] for key in sorted(keys) if key in guests),
            unread=devices.unread,
        )
        outcomes = put_back(self._fs, journal, snapshot, entries).outcomes
        for each in outcomes:
            self._counters.moves[Trigger.RESTORE.value, each.status.value] += 1
        self._tell(outcomes, Trigger.RESTORE, {each.guest: each.name for each in entries})
        return frozenset(each.pin.key.device for each in outcomes if each.status.bad)

    def _tell(
        self,
        outcomes: Iterable[Outcome],
        trigger: Trigger,
        names: Mapping[str, str],
        mover: str = "",
    ) -> None:
        """After whatever else happens meanwhile: it is waiting to be moved."""
        self._untold += (
            (each, trigger, names.get(each.pin.guest) or each.pin.guest, mover) for each in outcomes
        )
        if len(self._untold) <= _UNTOLD or not self._timers.is_due(_TELL):
            self._timers.put_off(_TELL, _CALM, self._tell_some)

    def _tell_one(self, outcome: Outcome, trigger: Trigger, guest: str, mover: str) -> None:
        action = "restore" if trigger is Trigger.RESTORE else "pin"
        entry = told(outcome, guest, action, trigger.value, mover)
        if entry is None:
            return
        key = outcome.pin.key
        if entry.bad and self._said.get(key) == outcome.reason:
            return  # said once: it fails at each look until somebody does something about it
        if entry.bad:
            self._said[key] = outcome.reason
        else:
            self._said.pop(key, None)
        entry.to(self._log)

    def _complain(self, text: str, hint: str | None) -> None:
        if text != self._complaint:
            self._complaint = text
            self._log.error(f"{text}{hinted(hint)}")
