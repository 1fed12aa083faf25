"""The daemon: hears what happens, has the Reconciler act on it, and sleeps.

Everything that touches interrupts runs on the loop's own thread, one thing after another; what may
block (libvirt, irqbalance) runs beside it. An event only ever says *look*. While nothing happens
there is no timer but the watchdog's.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from virtirq import __version__
from virtirq.control.at_once import Begun
from virtirq.control.counters import Counters
from virtirq.control.daemon_status import DaemonStatus, Lock
from virtirq.control.irqbalance import IrqbalanceClient
from virtirq.control.journal import SharedJournal, boot_id
from virtirq.daemon.blocking import Lane, Part, close_each
from virtirq.daemon.floods import Floods
from virtirq.daemon.holds import Holds
from virtirq.daemon.irqbalance_guard import IrqbalanceGuard
from virtirq.daemon.kernel_events import KernelEvents, open_kernel_events
from virtirq.daemon.libvirt_source import LibvirtSource
from virtirq.daemon.log import Log
from virtirq.daemon.loop import run as run_in_loop
from virtirq.daemon.loop import running
from virtirq.daemon.process_source import ProcessSource
from virtirq.daemon.recent import Recent
from virtirq.daemon.reconciler import Reconciler
from virtirq.daemon.registry import Change
from virtirq.daemon.source_state import Sources, SourceState, all_told
from virtirq.daemon.status_server import StatusServer
from virtirq.daemon.systemd import ServiceManager
from virtirq.daemon.timers import Key, Timers
from virtirq.daemon.unclaimed import Unclaimed
from virtirq.daemon.vector_follower import VectorFollower
from virtirq.errors import DeploymentError, NoAnswerError, UnavailableError, VirtirqError
from virtirq.guests.processes.affinity import as_allowed, is_libvirts, runs_elsewhere
from virtirq.guests.processes.find import SOURCE as PROCESS
from virtirq.guests.vectors.by_kvm_routes import by_bpftrace, by_probes
from virtirq.guests.vectors.by_peek import PeekReader, VectorReader
from virtirq.guests.vectors.by_qmp import QmpReader
from virtirq.host.events import EventKind, KernelEvent, lasting
from virtirq.host.fs import HostFs, LiveFs
from virtirq.host.uevents import Uevents
from virtirq.model import Guest, VfioAction, counted
from virtirq.policy.config import Config
from virtirq.policy.findings import events_polled, left_alone
from virtirq.policy.pace import Pace

_AT_ONCE: Final = 0.0
"""Seconds until what has changed of guests is acted on: once for all that comes in one go."""
_SETTLES: Final = 0.1
"""Seconds after which what the kernel announced counts as done, its end told of or not."""
_ENTRY: Final = 0.002
"""Seconds from the entry of a system call to when it is done: it only has a mask to set."""
_BURST: Final = 0.05
"""Seconds to wait for more of the same where one look does for all."""
_CONFINED: Final = 0.5
"""The same for cpusets: a look is at all guests' threads, and containers come and go."""
_ENDED: Final = 1.0
"""Seconds until a guest is read again of which a thread has ended: its VMM is to know of it."""
_FEW: Final = 2
"""Of so many events the first is acted on before all else: it pays where the daemon was asleep."""
_POLL: Final = (1.0, 30.0)
"""Seconds between looks without events: after a change, and when nothing changes."""
_POLLING: Final[Key] = ("poll",)
_THREADS: Final = "threads"
_IRQBALANCE: Final = "irqbalance"
_START: Final = 10.0
"""Seconds that libvirt may take until we count as started without it: systemd waits for 90."""
_PATIENCE: Final = 10.0
"""Seconds that reading where guests' threads may run may take."""
_FIRST: Final = asyncio.FIRST_COMPLETED
_SWITCH: Final = 0.0005
"""Seconds that another thread may go on computing while the loop waits for its turn (Python's own
are ten times that). One looks through processes just when a guest sets its interrupts up.
"""
_FAREWELL: Final = 5.0
"""Seconds that each part may take to close at the end; they do so at the same time."""


class Server(Protocol):
    """What serves metrics."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Inside:
    """What the daemon knows, for who serves metrics."""

    guests: tuple[Guest, ...]
    config: Config


Serve = Callable[[str, Callable[[], Inside]], Server]


@dataclass(frozen=True, slots=True)
class Setup:
    """How the daemon is started.

    `load` reads the configuration, now and at each SIGHUP. `uri` is libvirt's, None to ask none:
    then these are the `guests`. `serve` serves metrics at an address; what it is given to
    call may be called from any thread. Unless it `must` be, libvirt need not be installed.
    """

    state: Path
    load: Callable[[], Config]
    uri: str | None
    guests: tuple[Guest, ...] = ()
    serve: Serve | None = None
    must: bool = True


def run(setup: Setup, log: Log) -> int:
    """Run until SIGTERM or SIGINT; the exit code.

    Raises ConfigError, BusyError for a second daemon, DeploymentError, and DependencyError,
    AccessError or UsageError where libvirt can never be asked.
    """
    config = setup.load()
    if os.geteuid() != 0:
        raise DeploymentError("the daemon writes to /proc/irq", hint="run it as root")

    async def main() -> None:
        daemon = Daemon(setup, config, log)
        try:
            await daemon.work()
        finally:
            await daemon.close()

    run_in_loop(main())
    return 0


class Daemon:
    """One run of the daemon; made inside of the loop it runs on."""

    def __init__(self, setup: Setup, config: Config, log: Log) -> None:
        """Raises BusyError, DeploymentError."""
        self._setup = setup
        self._log = log
        self._recent = Recent()
        log.tell(self._recent)
        self._fs = LiveFs()
        self._loop = running()
        self._since = time.time()
        self._manager = ServiceManager()
        self._stop: asyncio.Future[None] = self._loop.create_future()
        self._lock = Lock(setup.state)
        self._journal = SharedJournal(setup.state, boot_id(self._fs))
        self._counters = Counters()
        self._timers = Timers(self._loop.call_later, self._loop.time, self._fail)
        self._reconciler = Reconciler(
            self._fs,
            self._journal,
            config,
            log,
            self._counters,
            self._timers,
            changed=self._guests_changed,
            sources=self._sources,
            set_up=lambda event: self._set_up([event]),
            kept=self._kept_others,
            urgent=self._events_wait,
        )
        self._guard = IrqbalanceGuard(IrqbalanceClient(setup.state, self._fs), log, self._timers)
        peek = [] if setup.uri is None else [PeekReader(setup.uri)]
        readers: list[VectorReader] = [*peek, QmpReader(self._fs), by_probes(), by_bpftrace()]
        self._follower = VectorFollower(
            readers, self._reconciler, log, self._timers, self._look_again
        )
        self._follower.follow(on=config.guest_vectors.follow)
        self._libvirt = (
            None
            if setup.uri is None
            else LibvirtSource(
                setup.uri,
                self._fs,
                self._reconciler,
                log,
                self._timers,
                self._follower.prepare,
                must=setup.must,
            )
        )
        self._processes = ProcessSource(
            self._fs, self._reconciler, log, self._timers, self._is_libvirts
        )
        # With timers of its own: it answers until the very end.
        answers = Timers(self._loop.call_later, self._loop.time, self._fail)
        self._status_server = StatusServer(
            setup.state, self._daemon_status, answers, urgent=self._events_wait
        )
        reconciler = self._reconciler
        self._holds = Holds(setup.state, reconciler.hold, reconciler.release, self._timers)
        self._unclaimed = Unclaimed(
            self._fs,
            self._reconciler.registry,
            log,
            self._timers,
            lambda: all_told(self._sources()),
        )
        self._events: KernelEvents | None = None
        self._floods = Floods(
            {
                EventKind.ROUTED: self._follower.look_at_all,
                EventKind.REPINNED: self._confined,
                EventKind.CONFINED: self._confined,
                EventKind.ENDED: self._confined,
                EventKind.STARTED: self._guard.restarted,
            },
            self._timers,
        )
        self._losses: Pace[str] = Pace(time.monotonic)
        """How soon after the last loss of events everything is looked at again."""
        self._no_events = ""
        self._uevents: Uevents | None = None
        self._metrics: Server | None = None
        self._reads = Lane("beside", at_once=2, limit=_PATIENCE)
        self._begun = False
        """Whether the start is over."""
        self._reload_asked = False
        """Whether the configuration is to be read again as soon as it is."""
        self._others_kept = False
        """Whether what is ours is other than irqbalance was last to be told."""
        self._changes: list[Change] = []
        """What has become of guests and was not acted on yet."""
        self._rules_told = False
        """Whether it was said which rules come to nothing; once for each configuration."""
        self._unwatched: set[str] = set()
        """Guests with threads that were not watched when they were read."""

    # Its life.

    async def work(self) -> None:
        """Until it is told to stop. Raises what `run` does."""
        sys.setswitchinterval(_SWITCH)
        gc.disable()  # all that is made now stays: looking through it again and again finds nothing
        self._loop.set_exception_handler(self._on_failure)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._end)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._status_server.start()
        self._serve_metrics("", self._reconciler.config.metrics.listen)
        # Before guests are read: what happens meanwhile is not missed.
        self._hear_kernel()
        self._hear_uevents()
        if self._finds(self._reconciler.config):
            # First, so that nothing of theirs is taken for left over; what libvirt tells is the
            # better word, and replaces it.
            await self._or_stop(self._processes.begin())
        else:
            self._processes.leave_out()
        if self._libvirt is None:
            self._reconciler.know(self._setup.guests, apart_from=PROCESS, only_note=True)
        else:  # until libvirt has told its guests, whoever is in the journal may still run
            self._libvirt.begin()
            await self._or_stop(self._libvirt.tried(), _START)
            if self._libvirt.state is SourceState.NEVER:
                self._processes.look_at_all()  # libvirt will not tell of those that are its
                self._reconciler.put_back_left_over()
        if self._libvirt is None or self._libvirt.state not in (SourceState.ALL, SourceState.PART):
            await self._or_stop(self._follower.prepare())  # guests that libvirt has not told of
        if self._stop.done():  # nothing is to be moved any more
            await self._stop
            return
        self._reconciler.act_on_noted()
        self._holds.start()
        self._begun = True
        self._known()
        if self._events is None:
            self._timers.soon(_POLLING, _POLL[0], self._poll)
        gc.collect()
        gc.freeze()  # what is there now stays: no later collection need look at it
        gc.enable()
        self._processes.look_at_all()  # what processes of libvirt's guests hold beside
        self._unclaimed.look_at_all()
        self._log.info(f"virtirq {__version__} at work: {self._status()}")
        self._manager.ready(self._status())
        self._ping()
        if self._reload_asked:
            self._reload()
        await self._stop

    async def _or_stop(
        self, work: Coroutine[Any, Any, None], patience: float | None = None
    ) -> None:
        """Until this part of the start is over, or waited for so many seconds, or all is to stop.

        Raises what it raises.
        """
        task = asyncio.ensure_future(work)
        await asyncio.wait([self._stop, task], timeout=patience, return_when=_FIRST)
        if not task.done():
            task.cancel()
        else:
            task.result()

    async def close(self) -> None:
        """Leave nothing behind but what the configuration says."""
        self._manager.stopping()
        # Not to its default, which would kill us in the midst of it.
        self._loop.add_signal_handler(signal.SIGHUP, lambda: None)
        # First: nothing is to be pinned anew while it is put back.
        self._holds.close()
        self._timers.close()
        self._processes.close()
        self._follower.stop()
        if self._events is not None:
            self._loop.serve_no_more(self._events.fileno())
            self._events.close()
        if self._uevents is not None:
            self._loop.remove_reader(self._uevents.fileno())
            self._uevents.close()
        undo = self._reconciler.config.restore_on_stop
        if undo:
            self._reconciler.restore_all()
        self._reconciler.flush()
        # Where pins stay, so do the bans that guard them: irqbalance would move all of them while
        # the daemon is being replaced. 'virtirq restore' undoes both.
        parts = [
            Part("irqbalance", partial(self._guard.close, release=undo), _FAREWELL),
            Part("who reads vectors", self._follower.close, _FAREWELL),
        ]
        if self._libvirt is not None:
            parts.append(Part("libvirt", self._libvirt.close, _FAREWELL))
        if self._metrics is not None:
            ends = partial(self._reads.call, "metrics", self._metrics.close)
            parts.append(Part("metrics", ends, _FAREWELL))
        for name, error in (await close_each(parts)).items():
            self._log.warning(f"{name}: {str(error) or type(error).__name__}")
        self._status_server.close()
        self._journal.close()
        self._lock.close()
        self._log.info("stopped")
        self._log.leave_out(self._recent)

    def _finds(self, config: Config) -> bool:
        """Whether guests are found by their processes: whoever names files has named them all."""
        return config.processes.find and self._setup.uri is not None

    def _sources(self) -> Sources:
        """How much of the guests each source has told; whoever names files has named them all."""
        return Sources(
            libvirt=SourceState.NEVER if self._libvirt is None else self._libvirt.state,
            processes=self._processes.state,
            held_back=self._processes.holds_back,
        )

    def _is_libvirts(self, guest: Guest) -> bool:
        """Whether libvirt is to tell of this guest, of whom it knows what is asked for it."""
        libvirt = self._libvirt
        if libvirt is None or libvirt.state is SourceState.NEVER:
            return False
        return is_libvirts(self._fs, guest)

    def _end(self) -> None:
        if not self._stop.done():
            self._stop.set_result(None)

    def _ping(self) -> None:
        if self._manager.ping_every is not None:
            self._manager.ping()
            self._loop.call_later(self._manager.ping_every, self._ping)

    def _fail(self, error: BaseException) -> None:
        """Something is wrong with the daemon itself: better none than half of one."""
        if not self._stop.done():
            self._stop.set_exception(error)

    def _on_failure(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio tells of: a callback that raised would be called again and again."""
        error = context.get("exception")
        if error is not None and "handle" in context:
            self._fail(error)
        else:
            self._loop.default_exception_handler(context)

    def _hear(self, descriptor: int, call: Callable[[], object]) -> None:
        """Call it whenever there is something to read."""

        def heard() -> None:
            try:
                call()
            except Exception as error:
                self._loop.remove_reader(descriptor)
                self._fail(error)

        self._loop.add_reader(descriptor, heard)

    # The configuration.

    def _reload(self) -> None:
        if not self._begun:  # nothing is to be moved before, and READY=1 is said when it is over
            self._reload_asked = True
            return
        self._manager.reloading()
        try:
            self._take(self._setup.load())
        except VirtirqError as error:
            for each in getattr(error, "problems", (str(error),)):
                self._log.error(f"the configuration is not taken, the old one holds: {each}")
        finally:
            self._manager.ready(self._status())

    def _take(self, config: Config) -> None:
        old = self._reconciler.config
        self._reconciler.reconfigure(config)
        self._serve_metrics(old.metrics.listen, config.metrics.listen)
        self._follower.follow(on=config.guest_vectors.follow)
        self._processes.follow(on=self._finds(config))
        self._spare()
        self._processes.look_at_all()
        if self._libvirt is not None:
            self._libvirt.look_at_all()
        self._log.info("the configuration was read again")
        self._rules_told = False
        self._timers.soon(("known",), _AT_ONCE, self._known)
        if config.libvirt != old.libvirt:
            self._log.warning("[libvirt] uri holds from the next start on")

    def _serve_metrics(self, before: str, now: str) -> None:
        if now == before or self._setup.serve is None:
            return
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if now:
            try:
                self._metrics = self._setup.serve(now, self._inside)
            except VirtirqError as error:
                self._log.error(f"metrics are not served: {error}")

    # What others see.

    def _status(self) -> str:
        kept, guests = self._reconciler.ledger.count, len(self._reconciler.registry)
        return f"{counted(kept, 'interrupt')} of {counted(guests, 'guest')}; {self._heard()}"

    def _heard(self) -> str:
        """How we learn of interrupts."""
        return self._events.described if self._events is not None else "polling"

    def _daemon_status(self) -> DaemonStatus:
        findings = self._reconciler.findings() + self._guard.findings() + self._follower.findings()
        findings += self._unclaimed.findings()
        if self._events is None:
            findings += (events_polled(self._no_events),)
        if self._libvirt is not None:
            findings += self._libvirt.findings()
        held = (self._reconciler.registry.get(key) for key in sorted(self._holds.held))
        findings += tuple(left_alone(guest.name) for guest in held if guest is not None)
        return DaemonStatus(
            pid=os.getpid(),
            since=self._since,
            version=__version__,
            events=self._heard(),
            guests=self._libvirt.described if self._libvirt is not None else "domain XML files",
            spared=self._guard.spared,
            findings=findings,
            counters=self._counters,
            aimed=self._reconciler.aimed,
            readers=self._follower.readers,
            recent=self._recent.entries,
        )

    def _inside(self) -> Inside:
        """From another thread: the loop's own thread may be counting."""

        async def tell() -> Inside:
            return Inside(self._reconciler.guests, self._reconciler.config)

        return asyncio.run_coroutine_threadsafe(tell(), self._loop).result(_FAREWELL)

    def _guests_changed(self, changes: Sequence[Change]) -> None:
        """Guests came, went, or are others."""
        self._changes += changes
        for change in changes:
            if change.after is not None:
                self._processes.give_way(change.after)
                if self._begun and change.new_run:
                    self._processes.look_beside(change.after)
        if self._begun:
            self._timers.soon(("known",), _AT_ONCE, self._known)

    def _known(self) -> None:
        """Act on what has become of guests."""
        changes, self._changes = self._changes, []
        if self._events is not None and any(each.other_threads for each in changes):
            self._events.watch_threads(self._reconciler.registry.runs)  # all guests', in one filter
        # Somebody may have confined a thread after it was read and before it was watched.
        self._unwatched.update(c.after.key for c in changes if c.after and c.new_threads)
        if self._unwatched:
            self._timers.soon(("unwatched",), _AT_ONCE, self._look_at_unwatched)
        both = (guest for each in changes for guest in (each.before, each.after) if guest)
        self._follower.known({guest.key for guest in both})
        self._unclaimed.known({device for each in changes for device in each.devices})
        self._spare()
        if not self._rules_told and all_told(self._sources()):
            self._rules_told = True
            self._reconciler.tell_unmatched_rules()

    def _look_again(self, guest: Guest) -> None:
        """Its threads may run elsewhere now."""
        if guest.source == PROCESS and guest.pid is not None:
            self._processes.look(guest.pid)
        elif self._libvirt is not None:
            self._libvirt.look_if_ours(guest)

    def _spare(self) -> None:
        """Interrupts may be others than irqbalance was told of."""
        self._timers.soon(("spare",), _BURST, self._spare_now)

    def _spare_now(self) -> None:
        if not self._reconciler.config.irqbalance.cooperate:
            self._guard.want(None)
        elif all_told(self._sources()):
            # Until all guests are known, a list would let go of what the daemon before has kept.
            self._guard.want(self._kept)
            if self._others_kept:
                self._others_kept = False
                self._guard.changed()
        self._manager.status(self._status())

    def _kept_others(self) -> None:
        self._others_kept = True
        self._spare()

    def _kept(self) -> frozenset[int]:
        return self._reconciler.ledger.kept

    # What is heard.

    def _hear_kernel(self) -> None:
        try:
            self._events = open_kernel_events()
        except UnavailableError as error:
            self._no_events = str(error)
            hint = f" (hint: {error.hint})" if error.hint else ""
            self._log.warning(f"no events of the kernel, looking now and then: {error}{hint}")
        else:
            self._follower.told = self._events.tells_routes
            heard = partial(self._hear_events, self._events)
            self._loop.serve_first(self._events.fileno(), heard)

    def _hear_uevents(self) -> None:
        try:
            self._uevents = Uevents()
        except OSError as error:
            self._log.warning(f"no uevents of the kernel: {error.strerror}")
        else:
            self._hear(self._uevents.fileno(), partial(self._hear_devices, self._uevents))

    def _events_wait(self) -> bool:
        return self._events is not None and self._events.waiting

    def _hear_events(self, events: KernelEvents) -> None:
        try:
            for heard in events.read():
                begun = self._reconciler.begin(heard) if len(heard) <= _FEW else None
                self._act_on(self._floods.admit(heard, events.mute), begun)
                self._count(heard)
            if events.unsettled:
                self._timers.soon(("overdue",), _SETTLES, partial(self._overdue, events))
            if events.lost:
                events.lost = False
                self._counters.lost += 1
                delay = max(_BURST, self._losses.wait("lost"))
                self._timers.soon(("lost",), delay, self._after_loss)
        except Exception as error:  # better no daemon than one that hears nothing
            self._loop.serve_no_more(events.fileno())
            self._fail(error)

    def _count(self, events: Iterable[KernelEvent]) -> None:
        for event in events:
            self._counters.events[event.kind.value] += 1

    def _overdue(self, events: KernelEvents) -> None:
        overdue = events.overdue(_SETTLES / 2)
        self._act_on(overdue)
        self._count(overdue)
        if events.unsettled:
            self._timers.soon(("overdue",), _SETTLES, partial(self._overdue, events))

    def _after_loss(self) -> None:
        self._losses.changed("lost")
        self._log.info("events of the kernel were lost: looking at everything")
        self._reconciler.look_at_all()
        self._follower.look_at_all()
        self._processes.look_at_all()
        self._unclaimed.look_at_all()
        if self._libvirt is not None:
            self._libvirt.look_at_all()

    def _act_on(self, events: Sequence[KernelEvent], begun: Begun | None = None) -> None:
        """First what was given up, so that the rest is of what is there; then what was set up.

        Of that, the first may have `begun` already. In whatever order the kernel told it: each
        looks at what is there by now.
        """
        requested: list[KernelEvent] = []
        others: list[KernelEvent] = []
        for event in lasting(events):
            if event.kind is EventKind.REQUESTED:
                requested.append(event)  # a device's vectors come in one go
            elif event.kind is EventKind.FREED:
                self._freed(event.irq)
            else:
                others.append(event)
        if requested:
            self._set_up(self._reconciler.requested(requested, begun))
        for event in others:
            self._act_on_one(event)
        threads = {event.pid for event in others if event.kind is EventKind.ROUTED}
        for guest in filter(None, map(self._reconciler.registry.of_thread, threads)):
            self._follower.look(guest.key)

    def _freed(self, irq: int) -> None:
        self._reconciler.freed(irq)
        self._unclaimed.freed(irq)

    def _set_up(self, events: Sequence[KernelEvent]) -> None:
        """Guests have set vectors up: see where they aim them, and who has the device."""
        actions = filter(None, (VfioAction.parse(event.name) for event in events))
        for device in {action.device for action in actions}:
            self._unclaimed.set_up(device)
            for guest in self._reconciler.registry.having(device):
                self._follower.look(guest.key)
        self._processes.requested(events)

    def _act_on_one(self, event: KernelEvent) -> None:
        match event.kind:
            case EventKind.TORN_DOWN:
                self._freed(event.irq)
            case EventKind.MOVED:
                self._reconciler.moved(event.irq, event.comm, event.pid)
                if event.comm == _IRQBALANCE and self._reconciler.ledger.keeps(event.irq):
                    self._guard.check()  # somebody has taken our bans out
            case EventKind.ALLOCATED:
                self._reconciler.allocated(event.irq, event.comm, event.pid)
            case EventKind.REPINNED:
                guest = self._reconciler.registry.of_thread(event.tid)
                if guest is not None:
                    # Told of at the entry: it is done by then. Its source takes longer to tell, a
                    # libvirt that is at it just now all the more, and then has the last word.
                    key = ("repinned", guest.key)
                    delay = max(_ENTRY, self._reads.wait(key))
                    self._timers.soon(key, delay, partial(self._repinned, guest.key))
            case EventKind.ENDED:
                guest = self._reconciler.registry.of_thread(event.pid)
                if guest is not None:  # of a vCPU that was taken out libvirt tells nobody
                    self._timers.soon(
                        ("ended", guest.key), _ENDED, partial(self._look_again, guest)
                    )
            case EventKind.CONFINED:
                self._confined()
            case EventKind.STARTED:
                self._guard.restarted()

    async def _repinned(self, key: str) -> None:
        """Its threads' owner may move them as often as it likes: they are read now and then."""
        guest = self._reconciler.registry.get(key)
        if guest is None:
            return
        try:
            now = await self._reads.call(("repinned", key), partial(as_allowed, self._fs, guest))
        except NoAnswerError as error:
            self._log.debug(f"where {guest.name}'s threads may run: {error}")
        else:
            if self._reconciler.registry.get(key) is guest:  # else its source has told meanwhile
                self._reconciler.update(now)
        # Not before: its source takes longer to read, and reads of the same all the while.
        self._timers.soon(("guest", key), _BURST, partial(self._look_again, guest))

    def _confined(self) -> None:
        """Threads may run elsewhere now, by a cpuset say: whose those are, the threads tell."""
        guests = self._reconciler.guests
        delay = max(_CONFINED, self._reads.wait(_THREADS))
        self._timers.soon(("threads",), delay, partial(self._look_at_threads, guests))
        self._timers.soon(("isolation",), _CONFINED, self._isolation)

    def _isolation(self) -> None:
        """A cpuset partition may have been made or dissolved."""
        if self._reconciler.cpusets_changed():
            self._log.info("other CPUs are isolated now: all guests are planned for again")

    async def _look_at_unwatched(self) -> None:
        keys, self._unwatched = self._unwatched, set()
        await self._look_at_threads(filter(None, map(self._reconciler.registry.get, keys)))

    async def _look_at_threads(self, guests: Iterable[Guest]) -> None:
        """Look again at those of these guests whose threads may run elsewhere now."""
        guests = tuple(guests)
        try:
            guests = await self._reads.call(_THREADS, partial(_moved, self._fs, guests))
        except NoAnswerError as error:  # then each may have moved, for all that is known
            self._log.debug(f"where guests' threads may run: {error}")
        for guest in guests:
            self._look_again(guest)

    def _hear_devices(self, uevents: Uevents) -> None:
        for event in uevents.read():
            if event.cpu is not None:
                self._timers.soon(("cpus",), _BURST, self._cpus)
            elif event.function is not None:
                self._reconciler.device_changed(event.function)
                self._processes.device_changed(event.function)
        if uevents.lost:  # anybody who mounts by FUSE has the kernel tell of that, too
            uevents.lost = False
            delay = max(_BURST, self._losses.wait("uevents"))
            self._timers.soon(("uevents lost",), delay, self._after_loss_of_uevents)

    def _after_loss_of_uevents(self) -> None:
        self._losses.changed("uevents")
        self._cpus()

    def _cpus(self) -> None:
        self._reconciler.cpus_changed()
        self._processes.look_at_all()
        if self._libvirt is not None:
            # A thread whose last CPU went may run elsewhere now (kernel/sched/core.c,
            # select_fallback_rq()), and stays there when the CPU comes back.
            self._libvirt.look_at_all()

    async def _poll(self) -> None:
        """Look now and then: sooner again where something has changed."""
        self._isolation()
        changed = self._reconciler.poll()
        self._processes.look_at_all()
        # All processes are looked at anyway.
        await self._look_at_threads(g for g in self._reconciler.guests if g.source != PROCESS)
        if changed:
            self._follower.look_at_all()
            self._timers.done(_POLLING)
        self._unclaimed.look_at_all()
        self._guard.check()
        self._timers.again(_POLLING, self._poll, _POLL)


def _moved(fs: HostFs, guests: Iterable[Guest]) -> tuple[Guest, ...]:
    """The guests whose threads may run elsewhere than is known."""
    return tuple(guest for guest in guests if _in_part(guest) or runs_elsewhere(fs, guest))


def _in_part(guest: Guest) -> bool:
    """Whether not all threads of it that count are known one by one."""
    by_process = guest.source == PROCESS
    return by_process and (guest.kind == "process" or any(v.tid is None for v in guest.vcpus))
