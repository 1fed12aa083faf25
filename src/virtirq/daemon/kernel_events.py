"""The kernel's own events, from a tracefs instance that is ours alone.

Nothing else tells of vectors: inotify is silent on ``/proc/irq`` and ``msi_irqs``, udev tells of
devices only. An instance has its own buffer and its own switches, so that whoever else traces
this host is not disturbed; the probes are in a group of their own. Both are gone after `close`.

The probes sit on functions that drivers and ``/proc`` call across files, which the compiler
therefore keeps: request_threaded_irq() and free_irq() (the kernel's API for drivers) and
irq_set_affinity() (what a write to ``/proc/irq/N/smp_affinity`` ends in, kernel/irq/proc.c).
Cpusets are changed, and tasks moved between them, by functions that cgroups call through tables
(kernel/cgroup/cpuset.c). Only at its entry are a function's arguments to be had, and only after
its return is it done: a request and a move are given when both were seen.

Threads that somebody pins are told of by security_task_setscheduler(), which sched_setaffinity()
asks once the caller is known to be permitted (kernel/sched/syscalls.c): the thread is a pointer
there, whose number is the host's, whatever namespace the caller is in. Kernels before 6.6 cannot
follow it by the names of BTF (Documentation/trace/kprobetrace.rst): theirs are told of by
sched_setaffinity() itself, by the number that the caller has used, permitted or not.

Where a guest aims its vectors reaches KVM by kvm_set_irq_routing() (virt/kvm/irqchip.c), whatever
the VMM and behind whatever IOMMU of the guest's: told at the entry, when the guest has written it.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from virtirq.daemon.thread_filter import NO_THREAD, NOBODY, Run, about
from virtirq.errors import UnavailableError
from virtirq.host import paths
from virtirq.host.events import EventKind, KernelEvent, Pairing, parse, vectors

_NAME: Final = "virtirq"
_BUFFER_KB: Final = 64
"""Of each CPU: some 500 events, which is a device's whole set of vectors twice over."""
_PIECE: Final = 1 << 13
"""As much as the kernel prints at a time, where a page has 4 KiB (kernel/trace/trace_seq.c)."""
_FIRST: Final = 512
"""Two vectors: they are moved before the others of their device are looked at."""
_TOGETHER: Final = 128
"""Events that are acted on together, after the first; more may be told meanwhile than fit."""
_MOST_READ: Final = 64
"""Pieces that one `read` takes; the rest comes with the next, and the loop gets its turn."""


class _Event(NamedTuple):
    """An event: `probe` defines it where the kernel has it not; `filter` decides in the kernel."""

    path: str
    filter: str = ""
    probe: str = ""


_GROUPS: Final = {
    EventKind.ENDED: "sched",
    EventKind.STARTED: "sched",
    EventKind.ALLOCATED: "irq_vectors",
    EventKind.TORN_DOWN: "irq_vectors",
}
"""Of the kernel's own events; our probes are in ours."""


def _path(kind: EventKind) -> str:
    return f"{_GROUPS.get(kind, _NAME)}/{kind.value}"


def _probe(
    kind: EventKind, function: str, arguments: str = "", filter_: str = "", at: str = "p"
) -> _Event:
    path = _path(kind)
    return _Event(path, filter_, f"{at}:{path} {function} {arguments}".rstrip())


def _probes(pid: int) -> tuple[_Event, ...]:
    others = f"common_pid != {pid}"
    return (
        # The ends first: an announcement whose end is missed would be held back for a while.
        _probe(EventKind.IN_PLACE, "request_threaded_irq", at="r"),
        _probe(EventKind.SETTLED, "irq_set_affinity", filter_=others, at="r"),
        _probe(
            EventKind.REQUESTED,
            "request_threaded_irq",
            "irq=$arg1:u32 name=+0($arg5):string",
            'name ~ "vfio-*"',
        ),
        _probe(EventKind.FREED, "free_irq", "irq=$arg1:u32"),
        _probe(EventKind.MOVED, "irq_set_affinity", "irq=$arg1:u32 by=$comm", others),
    )


_REPINNED: Final = tuple(
    _probe(EventKind.REPINNED, function, f"tid={tid}:s32 by=$comm", NO_THREAD)
    for function, tid in (("security_task_setscheduler", "p->pid"), ("sched_setaffinity", "$arg1"))
)
_CPUSETS: Final = tuple(
    _probe(EventKind.CONFINED, function, at="r")
    for function in (
        "cpuset_write_resmask",
        "cpuset_attach",
        "cpuset_partition_write",
        "sched_partition_write",  # its name until 2025
    )
)
_ROUTED: Final = (
    # Where KVM is built in, its functions are in no module.
    _probe(EventKind.ROUTED, "kvm_set_irq_routing"),
    _probe(EventKind.ROUTED, "kvm:kvm_set_irq_routing"),
)
_EVERYBODY: Final = "0"  # takes a filter away (Documentation/trace/events.rst)
# Not a path with a line feed: it would be printed as it is, and what follows could be any line.
_STARTED: Final = 'filename ~ "*/irqbalance" && !(filename ~ "*\n*")'
_UNASKED: Final[dict[EventKind, str]] = {
    EventKind.ROUTED: _EVERYBODY,
    EventKind.CONFINED: _EVERYBODY,
    EventKind.REPINNED: NO_THREAD,
    EventKind.ENDED: NOBODY,
    EventKind.STARTED: _STARTED,
}
"""The filters of what can be muted, as long as no thread is watched."""
MUTABLE: Final = frozenset(_UNASKED)


def _vectors(pid: int) -> tuple[_Event, ...]:
    """x86's own events (arch/x86/include/asm/trace/irq_vectors.h), where there are no kprobes."""
    return (
        _Event(_path(EventKind.ALLOCATED), f"common_pid != {pid}"),
        _Event(_path(EventKind.TORN_DOWN)),
    )


class KernelEvents:
    """An open stream of events. Get one from `open_kernel_events`."""

    def __init__(self, root: Path, pid: int) -> None:
        """Raises OSError."""
        self._root = root
        self._instance = root / "instances" / _NAME
        self._pipe = -1
        self._poll = select.poll()
        self._rest = b""
        self._pairing = Pairing()
        self._told = dict(_UNASKED)
        """By kind that can be muted: the filter while it is told."""
        self._filters: dict[str, str] = {}
        """By event: what was last written."""
        self._muted: set[EventKind] = set()
        self._by_number = False
        """Whether threads are told of by the number that the caller has used."""
        self.lost = False
        self.described = ""
        self.tells_routes = False
        vectors(b"")  # has its pattern compiled now, and not while the first vector waits
        try:
            self._make(pid)
        except BaseException:
            self.close()
            raise

    def _make(self, pid: int) -> None:
        self._remove()  # what a daemon that was killed has left
        (self._instance).mkdir(mode=0o700)
        for name, value in (
            ("buffer_size_kb", str(_BUFFER_KB)),
            ("trace_clock", "mono"),  # CLOCK_MONOTONIC, as time.monotonic()
            ("options/irq-info", "0"),
        ):
            self._set(name, value)
        with suppress(FileNotFoundError):  # since 5.0 readers may be left to wait for a share
            self._set("buffer_percent", "0")
        try:
            self._start(_probes(pid))
            self.described = "kernel probes"
        except OSError as error:
            self._start(_vectors(pid))
            self.described = f"vector events of x86 (no kernel probes: {error.strerror})"
        for kind in (EventKind.STARTED, EventKind.ENDED):  # of use, but not needed
            with suppress(OSError):
                self._start([_Event(_path(kind), self._told[kind])])
        self._by_number = self._start_one_of(_REPINNED) is _REPINNED[1]
        for event in _CPUSETS:  # one event, of all the functions that this kernel has
            with suppress(OSError):
                self._define(event.probe)
        with suppress(OSError):
            self._set(f"events/{_CPUSETS[0].path}/enable", "1")
        self.tells_routes = self._start_one_of(_ROUTED) is not None
        self._pipe = os.open(
            self._instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        )
        self._poll.register(self._pipe, select.POLLIN)

    def fileno(self) -> int:
        """Readable when there are events (epoll(7) works on trace_pipe)."""
        return self._pipe

    @property
    def waiting(self) -> bool:
        """Whether there are events to be read: for who may do something else for a moment."""
        return bool(self._poll.poll(0))

    def read(self) -> Iterator[list[KernelEvent]]:
        """The events since the last call, oldest first, in pieces; does not block.

        In pieces, so that the first is acted on before the next is read; then some hundred
        together, for what has to be done after a write waits for the last of a piece. All of them
        have to be taken: of what the kernel has printed and not handed out yet, epoll(7) does not
        tell (kernel/trace/trace.c, tracing_read_pipe()).

        Sets `lost` when some were missed: the buffer was full, or a line made no sense. Raises
        UnavailableError when there are no more to come, ever.
        """
        found: list[KernelEvent] = []
        ended: OSError | None = None
        for number in range(_MOST_READ):
            try:
                data = os.read(self._pipe, _PIECE if number else _FIRST)
            except BlockingIOError:
                break
            except OSError as error:
                ended = error
                break
            if not data:
                break
            found += self._understood(self._rest + data)
            short = not number and len(data) < _FIRST  # all that was printed
            if found and (not number or len(found) >= _TOGETHER):
                yield found
                found = []
            if short:
                return  # of what comes epoll(7) tells
        if found:
            yield found
        if ended is not None:  # the instance was taken from us: nothing more will come
            raise UnavailableError(
                f"{self._instance}: the kernel's events have ended: {ended.strerror}",
                hint="somebody has removed the instance; start virtirq again",
            ) from ended

    def _understood(self, data: bytes) -> list[KernelEvent]:
        """What is done by what these lines tell; the last may be a piece of one.

        Vectors in one go, where nothing is held back; whatever is not one line by line.
        """
        found: list[KernelEvent] = []
        at = 0
        while True:
            if not self._pairing:
                told, at = vectors(data, at)
                found += told
            end = data.find(b"\n", at)
            if end < 0:
                self._rest = data[at:]
                return found
            event = parse(data[at:end])
            if event is None:
                self.lost = True
            else:
                found += self._pairing.done(event)
            at = end + 1

    @property
    def unsettled(self) -> bool:
        """Whether something was announced of which the end was not told: see `overdue`."""
        return bool(self._pairing)

    def overdue(self, age: float) -> tuple[KernelEvent, ...]:
        """What was announced more than `age` seconds ago and never said to be done."""
        return self._pairing.flush(time.monotonic() - age)

    def watch_threads(self, runs: Iterable[Run]) -> None:
        """Tell of these threads alone when somebody sets their affinity, and when they end.

        Of others among them, too, where they are too many for one filter.
        """
        done_to, done_by = about(runs, own=self._by_number)
        for kind, text in ((EventKind.REPINNED, done_to), (EventKind.ENDED, done_by)):
            self._told[kind] = text
            if kind not in self._muted:
                self._filter(_path(kind), text)

    def mute(self, kind: EventKind, mute: bool) -> bool:
        """Have the kernel keep events of a kind of `MUTABLE` to itself, or tell them again.

        By a filter, not by taking the probe away: that would interrupt every CPU. Returns whether
        it was done.
        """
        done = self._filter(_path(kind), NOBODY if mute else self._told[kind])
        if done:
            (self._muted.add if mute else self._muted.discard)(kind)
        return done

    def _filter(self, event: str, text: str) -> bool:
        if self._filters.get(event) != text:  # the kernel waits for all CPUs to replace one
            try:
                self._set(f"events/{event}/filter", text)
            except OSError:
                return False
            self._filters[event] = text
        return True

    def close(self) -> None:
        """Take everything away again that was made."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
        with suppress(OSError):
            self._remove()

    def _start(self, events: Sequence[_Event]) -> None:
        for event in events:
            if event.probe:
                self._define(event.probe)
        for event in events:
            if event.filter:
                self._set(f"events/{event.path}/filter", event.filter)
                self._filters[event.path] = event.filter
        for event in events:
            self._set(f"events/{event.path}/enable", "1")

    def _start_one_of(self, events: Iterable[_Event]) -> _Event | None:
        """Start the first that this kernel has; None where it has none."""
        for event in events:
            with suppress(OSError):
                self._start([event])
                return event
        return None

    def _remove(self) -> None:
        with suppress(FileNotFoundError):
            self._instance.rmdir()
        for name in self._defined():
            self._define(f"-:{_NAME}/{name}")

    def _defined(self) -> Iterable[str]:
        """Our probes, whoever of us made them."""
        try:
            names = os.listdir(self._root / "events" / _NAME)
        except OSError:
            return ()
        return [name for name in names if (self._root / "events" / _NAME / name).is_dir()]

    def _define(self, text: str) -> None:
        # Appended, for truncating it takes away everybody's probes (Documentation/trace/
        # kprobetrace.rst).
        self._write(self._root / "kprobe_events", text, os.O_APPEND)

    def _set(self, name: str, value: str) -> None:
        self._write(self._instance / name, value)

    def _write(self, path: Path, text: str, flags: int = 0) -> None:
        # os.open: open(…, "a") seeks to the end, which tracefs does not like.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
        try:
            os.write(descriptor, f"{text}\n".encode())
        finally:
            os.close(descriptor)


_HINTS: Final = {
    errno.EPERM: "the kernel may be locked down (kernel_lockdown(7))",
    errno.EACCES: "run as root",
    errno.EROFS: "tracefs is read-only here: see the unit's or the container's settings",
    errno.EBUSY: "another virtirq daemon uses it",
}


def open_kernel_events(
    roots: Sequence[str] = paths.TRACEFS, pid: int | None = None
) -> KernelEvents:
    """The kernel's events about interrupts, but for moves made by the thread `pid` (our own).

    Raises UnavailableError, which says why they cannot be had.
    """
    mounted = [root for root in map(Path, roots) if (root / "instances").is_dir()]
    if not mounted:
        why = "not permitted" if _hidden(roots) else "tracefs is not mounted"
        raise UnavailableError(
            f"{roots[0]}: {why}", hint=f"as root: mount -t tracefs tracefs {roots[0]}"
        )
    deadline = time.monotonic() + 1.0
    while True:
        try:
            return KernelEvents(mounted[0], os.getpid() if pid is None else pid)
        except OSError as error:
            # The instance of a reader that is being killed is busy for a moment.
            if error.errno == errno.EBUSY and time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            raise UnavailableError(
                f"{error.filename or mounted[0]}: {error.strerror}",
                hint=_HINTS.get(error.errno or 0),
            ) from error


def _hidden(roots: Iterable[str]) -> bool:
    for root in roots:
        try:
            os.listdir(root)
        except PermissionError:
            return True
        except OSError:
            continue
    return False
