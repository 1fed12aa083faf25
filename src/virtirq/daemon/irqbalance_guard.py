"""Has irqbalance spare our interrupts, and again whenever either of the two changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from virtirq.control.irqbalance import IrqbalanceClient, State, Told
from virtirq.daemon.blocking import Lane
from virtirq.daemon.log import Log
from virtirq.daemon.timers import Key, Timers
from virtirq.errors import NoAnswerError
from virtirq.model import Finding, counted
from virtirq.policy.findings import irqbalance_untold

_BURST: Final = 0.2
"""Seconds to wait for more: a device's vectors come and go in numbers."""
_STARTS: Final = (0.5, 1.0, 2.0, 5.0)
"""An irqbalance that was started makes its socket some time later: when to look, in seconds."""
LINGER: Final = 20.0
"""Seconds that a number which was freed is spared: a guest that boots or loads its driver anew gets
the same ones again, and irqbalance would move them before it is told.
"""
_REFUSED: Final = 30.0
"""Seconds until an irqbalance that did not listen is asked once more."""
_PATIENCE: Final = 30.0
"""Seconds that telling it may take; its client gives up sooner by itself."""

_KEY: Final = "irqbalance"
_TELL: Final[Key] = (_KEY, "tell")
_AGAIN: Final[Key] = (_KEY, "again")
_STARTED: Final[Key] = (_KEY, "started")

Kept = Callable[[], frozenset[int]]
"""Gives the IRQ numbers that are ours."""


class IrqbalanceGuard:
    """What irqbalance is to leave alone, and whether it was told."""

    def __init__(
        self,
        bans: IrqbalanceClient,
        log: Log,
        timers: Timers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = bans
        self._clock = clock
        self._log = log
        self._timers = timers
        self._asked = False
        self._kept: Kept | None = None
        self._wanted: frozenset[int] | None = frozenset()
        """What was ours when irqbalance was told last."""
        self._freed: dict[int, float] = {}
        """Numbers that are not ours any more, and until when they are spared all the same."""
        self._spared: frozenset[int] = frozenset()
        """What irqbalance was told last."""
        self._tell_anyway = False
        """Whether it is told even if what is ours is the same as before."""
        self._verify = False
        self._told: Told | None = None
        self._starts: list[float] = []
        """When to look for one that was started, after the look that is due."""
        self._said: tuple[object, ...] = ()
        self._calls = Lane("irqbalance", at_once=1, limit=_PATIENCE)

    @property
    def spared(self) -> int | None:
        """The pid of the irqbalance that leaves all of ours alone."""
        told = self._told
        whole = told and told.state in (State.TOLD, State.SPARED) and not told.left_out
        return told.pid if told and whole and self._wanted is not None else None

    def findings(self) -> tuple[Finding, ...]:
        told = self._told
        if told is None or told.pid is None or not told.reason or not self._wanted:
            return ()
        return (irqbalance_untold(told.pid, told.reason),)

    def want(self, kept: Kept | None) -> None:
        """What `kept` gives is ours from now on; None: leave irqbalance to itself.

        Until the first call irqbalance is told nothing: a daemon before this one may have told it
        what still holds.
        """
        if self._asked and kept == self._kept:
            return
        self._asked = True
        self._kept = kept
        if kept is None:
            self._wanted = None
        self._tell_anyway = True
        self._soon()

    def changed(self) -> None:
        """What is ours may be other than before; it is asked for when irqbalance is told next."""
        if self._kept is not None:
            self._soon()

    def restarted(self) -> None:
        """An irqbalance was started, or some program of its name."""
        first, *self._starts = _STARTS
        self._timers.soon(_STARTED, first, self._started)

    def check(self) -> None:
        """It may have been started, for all that is known."""
        self._verify = True
        self._soon()

    async def close(self, *, release: bool) -> None:
        """With `release`, take out again what is ours; else it stays, for who comes after us.

        What is going on ends first: the client is for one thread at a time. Raises NoAnswerError.
        """
        if release:
            self._kept = None
            await self._tell(None, verify=True)
        await self._calls.call(_KEY, self._client.close)

    def _ours(self) -> frozenset[int] | None:
        return None if self._kept is None else self._kept()

    def _soon(self) -> None:
        self._timers.soon(_TELL, _BURST, self._tell_news)

    def _again(self) -> None:
        """Though nothing has changed."""
        self._tell_anyway = True
        self._timers.soon(_TELL, 0.0, self._tell_news)

    def _started(self) -> None:
        self._again()
        if self._starts:
            self._timers.soon(_STARTED, self._starts.pop(0), self._started)

    async def _tell_news(self) -> None:
        """Tell it, if there is something new."""
        verify, self._verify = self._verify, False
        anyway, self._tell_anyway = self._tell_anyway or verify, False
        kept = self._ours()
        same = kept is self._wanted or kept == self._wanted
        if not self._asked or (same and not anyway):
            return
        await self._tell(kept, verify=verify)
        times = [max(0.0, min(self._freed.values()) - self._clock())] if self._freed else []
        refused = self._told is not None and self._told.state is State.REFUSED
        if refused and not self._timers.is_due(_STARTED):
            times.append(_REFUSED)
        self._timers.cancel(*_AGAIN)
        if times:
            self._timers.soon(_AGAIN, min(times), self._again)

    def _with_freed(self, wanted: frozenset[int] | None) -> frozenset[int]:
        """These, and what was told before and has been freed a short while ago."""
        if wanted is None or self._told is None or self._told.state is not State.TOLD:
            self._freed = {}  # nobody there who would move them
            return wanted or frozenset()
        now = self._clock()
        freed = dict.fromkeys(self._spared - wanted, now + LINGER) | self._freed
        self._freed = {irq: at for irq, at in freed.items() if at > now and irq not in wanted}
        return wanted.union(self._freed)

    async def _tell(self, wanted: frozenset[int] | None, *, verify: bool) -> None:
        self._wanted = wanted
        self._spared = self._with_freed(wanted)
        call = (
            self._client.release
            if wanted is None
            else partial(self._client.keep, self._spared, verify=verify)
        )
        try:
            told = await self._calls.call(_KEY, call)
        except NoAnswerError as error:
            told = Told(State.REFUSED, self._told.pid if self._told else None, reason=str(error))
        listens = told.state in (State.TOLD, State.SPARED)
        if listens and self._told is not None and told.pid != self._told.pid:
            self._timers.cancel(*_STARTED)  # it was found, and listens
        self._told = told
        news = (told.state, told.pid, told.reason, bool(wanted))
        if news == self._said:
            return
        self._said = news
        who = f"irqbalance (pid {told.pid})"
        match told.state:
            case State.TOLD if wanted is None:
                self._log.info(f"{who}: told that interrupts are its own again")
            case State.TOLD if wanted:
                self._log.info(f"{who}: told to leave {counted(len(wanted), 'interrupt')} alone")
            case State.SPARED:
                self._log.info(f"{who}: leaves interrupts of vfio-pci alone by its options")
        if told.reason and wanted:
            self._log.warning(f"{who}: {told.reason}", finding="irqbalance-untold")
