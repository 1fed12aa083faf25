"""What the kernel tells of interrupts, as values: the lines of a tracefs ``trace_pipe``.

The events and their arguments are those that `virtirq.daemon.kernel_events` asks for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from virtirq.model import VfioAction
from virtirq.values import pattern


class EventKind(Enum):
    """What happened, or is about to: most events are told at the entry of a kernel function.

    REQUESTED: a driver asks for interrupt `irq` under the action `name`; IN_PLACE: the same task
    has come back from that, and the action is there. FREED: it gives it up. MOVED: `comm` sets the
    affinity of `irq`; SETTLED: it is set. ALLOCATED: `irq` gets a vector on some CPU, be it new or
    moved. REPINNED: `comm` sets the affinity, or the policy, of the thread `tid`. CONFINED: the
    task `pid` has changed a cpuset, or what is in one. ENDED: the thread `pid` has ended. STARTED:
    the program `name` was started.
    ROUTED: the task `pid`, a thread of a VM's process, gives KVM new routes for its interrupts.
    """

    REQUESTED = "requested"
    IN_PLACE = "in_place"
    FREED = "freed"
    MOVED = "moved"
    SETTLED = "settled"
    ALLOCATED = "vector_alloc"
    TORN_DOWN = "vector_teardown"
    REPINNED = "repinned"
    CONFINED = "confined"
    ENDED = "sched_process_exit"
    STARTED = "sched_process_exec"
    ROUTED = "routed"

    __hash__ = object.__hash__  # Enum's own is of the name, and made in Python each time


_REQUESTED: Final = EventKind.REQUESTED
_FREED: Final = EventKind.FREED
ENDS: Final = {EventKind.IN_PLACE: EventKind.REQUESTED, EventKind.SETTLED: EventKind.MOVED}
"""Events that say that what an earlier one of the same task announced is done."""


class KernelEvent(NamedTuple):
    """One event: `at` in seconds of CLOCK_MONOTONIC, `pid` of the task that caused it.

    `comm` is what the task calls itself and may hold anything; empty where it is not told.
    """

    kind: EventKind
    at: float
    irq: int = -1
    name: str = ""
    tid: int = -1
    comm: str = ""
    pid: int = 0


_BY_TASK: Final = (EventKind.ROUTED, EventKind.CONFINED, EventKind.ENDED)
_KINDS: Final = {kind.value.encode(): kind for kind in EventKind}
# Linux kernel, kernel/trace/trace_output.c, trace_print_context(), with the option irq-info off:
# 16 columns for a name that is not recorded, then this.
_COMM: Final = 16
_HEAD: Final = pattern(rb"-(\d{1,9}) +\[\d{1,5}\] +(\d{1,12}\.\d{1,9}): (\w{1,32}): ", re.ASCII)
# A probe tells where it is, in brackets, and then its arguments.
_NUMBER: Final = pattern(rb"(?:\([^)]*\) )?(?:irq|tid)=(\d{1,9})(?= |$)", re.ASCII)
_NAME: Final = pattern(rb' name="(.*)"$', re.ASCII | re.DOTALL)
_BY: Final = pattern(rb' by="(.*)"$', re.ASCII | re.DOTALL)
_PROGRAM: Final = pattern(rb"filename=(.*) pid=\d+ old_pid=\d+$", re.ASCII | re.DOTALL)
_MOST_NAME: Final = 300
# A vector that is given up, or set up, from its request to its end: most of what is told, and what
# somebody waits for.
_VECTOR: Final = pattern(
    rb"[^\n]{16}-(\d{1,9}) +\[\d{1,5}\] +(\d{1,12}\.\d{1,9}): "
    rb'(?:requested: (?:\([^)\n]*\) )?irq=(\d{1,9}) name="([^"\n]{1,300})"\n'
    rb"[^\n]{16}-\1 +\[\d{1,5}\] +\d{1,12}\.\d{1,9}: in_place: [^\n]*\n"
    rb"|freed: (?:\([^)\n]*\) )?irq=(\d{1,9})\n)",
    re.ASCII,
)


def vectors(text: bytes, at: int = 0) -> tuple[list[KernelEvent], int]:
    """The vectors that `text` has from `at` on, told of whole, one after another; where they end.

    Line by line it comes out the same, for who holds nothing back (`parse`, `Pairing`).
    """
    found = []
    while told := _VECTOR.match(text, at):
        pid, when, irq, name, freed = told.groups()
        if freed is not None:
            found.append(KernelEvent(_FREED, float(when), int(freed), "", -1, "", int(pid)))
        else:
            action = name.decode("utf-8", "replace")
            found.append(KernelEvent(_REQUESTED, float(when), int(irq), action, -1, "", int(pid)))
        at = told.end()
    return found, at


def lasting(events: Sequence[KernelEvent]) -> list[KernelEvent]:
    """`events` without the requests of vectors that are given up again among them.

    A driver that finds its way sets its vectors up several times in a row, and who hears of that
    late has only the last of them to act on. A line may be shared: who lets go of it is not told.
    """
    freed: set[int] = set()
    found = []
    for event in reversed(events):
        if event.kind is _FREED:
            freed.add(event.irq)
        elif event.kind is _REQUESTED and event.irq in freed and _is_vector(event.name):
            continue
        found.append(event)
    found.reverse()
    return found


def _is_vector(name: str) -> bool:
    action = VfioAction.parse(name)
    return action is not None and action.vector is not None


def parse(line: bytes) -> KernelEvent | None:
    """The event that a line tells of; None when it tells of none that can be understood.

    That may be a note of lost events, or a line that a task with a line feed in its name has
    broken: then something was missed, and all must be looked at.
    """
    head = _HEAD.match(line, _COMM)
    kind = _KINDS.get(head[3]) if head is not None else None
    if head is None or kind is None:
        return None
    at, pid = float(head[2]), int(head[1])
    if kind in ENDS or kind in _BY_TASK:
        return KernelEvent(kind, at, pid=pid)  # the task tells all
    if kind is EventKind.STARTED:
        program = _PROGRAM.match(line, head.end())
        return KernelEvent(kind, at, name=_text(program), pid=pid) if program else None
    # The number stands before whatever text there is, so that no text can pose as one.
    number = _NUMBER.match(line, head.end())
    if number is None:
        return None
    if kind is EventKind.REPINNED:
        by = _BY.search(line, number.end())
        # 0 is the caller itself (sched_setaffinity(2)).
        return KernelEvent(kind, at, tid=int(number[1]) or pid, comm=_text(by), pid=pid)
    if kind is EventKind.MOVED:
        by = _BY.search(line, number.end())
        return KernelEvent(kind, at, int(number[1]), comm=_text(by), pid=pid)
    name = _NAME.search(line, number.end())
    return KernelEvent(kind, at, int(number[1]), _text(name), pid=pid)


def _text(found: re.Match[bytes] | None) -> str:
    return found[1][:_MOST_NAME].decode("utf-8", "replace") if found else ""


class Pairing:
    """Holds back what is only announced until the same task has done it.

    The affinity that is read at the entry of a function that sets it is still the old one.
    """

    def __init__(self) -> None:
        self._announced: dict[tuple[EventKind, int], KernelEvent] = {}

    def __bool__(self) -> bool:
        """Whether anything is held back."""
        return bool(self._announced)

    def done(self, event: KernelEvent) -> tuple[KernelEvent, ...]:
        """What is done now that `event` was told of."""
        if event.kind in ENDS:
            before = self._announced.pop((ENDS[event.kind], event.pid), None)
            return () if before is None else (before,)
        if event.kind in ENDS.values():
            # The end of an earlier one was missed: the kernel follows so many returns at a time.
            before = self._announced.pop((event.kind, event.pid), None)
            self._announced[event.kind, event.pid] = event
            return () if before is None else (before,)
        return (event,)

    def flush(self, before: float = float("inf")) -> tuple[KernelEvent, ...]:
        """Whatever was announced earlier than `before`, done or not."""
        late = [key for key, event in self._announced.items() if event.at < before]
        return tuple(self._announced.pop(key) for key in late)
