"""Has irqbalance spare our interrupts, and again whenever either of the two changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from virtirq.control.irqbalance import IrqbalanceClient, State, Told
from virtirq.daemon.blocking import beside
from virtirq.daemon.log import Log
from virtirq.model import Finding
from virtirq.policy.findings import irqbalance_untold

_BURST: Final = 0.2
"""Seconds to wait for more: a device's vectors come and go in numbers."""
_STARTS: Final = (0.5, 1.0, 2.0, 5.0)
"""An irqbalance that was started makes its socket some time later: when to look, in seconds."""
LINGER: Final = 20.0
"""Seconds that a number which was freed is spared: a guest that boots or loads its driver anew gets
the same ones again, and irqbalance would move them before it is told.
"""
_AGAIN: Final = 30.0
"""Seconds until an irqbalance that did not listen is asked once more."""


class IrqbalanceGuard:
    """What irqbalance is to leave alone, and whether it was told."""

    def __init__(
        self, bans: IrqbalanceClient, log: Log, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = bans
        self._clock = clock
        self._log = log
        self._asked = False
        self._wanted: frozenset[int] | None = frozenset()
        self._freed: dict[int, float] = {}
        """Numbers that are not ours any more, and until when they are spared all the same."""
        self._spared: frozenset[int] = frozenset()
        """What irqbalance was told last."""
        self._due = asyncio.Event()
        self._verify = False
        self._told: Told | None = None
        self._starts: list[float] = []
        self._said: tuple[object, ...] = ()
        self._call: asyncio.Future[Told] | None = None

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

    def want(self, irqs: frozenset[int] | None) -> None:
        """These are ours now; None: leave irqbalance to itself.

        Until the first call irqbalance is told nothing: a daemon before this one may have told it
        what still holds.
        """
        if irqs != self._wanted or not self._asked:
            self._asked = True
            self._wanted = irqs
            self._due.set()

    def restarted(self) -> None:
        """An irqbalance was started, or some program of its name."""
        self._starts = list(_STARTS)
        self._due.set()

    def check(self) -> None:
        """It may have been started, for all that is known."""
        self._verify = True
        self._due.set()

    async def run(self) -> None:
        """Tell it whenever there is something new."""
        while True:
            await self._next()
            await asyncio.sleep(self._starts.pop(0) if self._starts else _BURST)
            self._due.clear()
            verify, self._verify = self._verify, False
            if self._asked:
                await self._tell(verify=verify)

    async def close(self, *, release: bool) -> None:
        """With `release`, take out again what is ours; else it stays, for who comes after us."""
        if self._call is not None and not self._call.done():
            await self._call  # its thread goes on, whoever was waiting for it
        if release:
            self._wanted = None
            await self._tell(verify=True)
        self._client.close()

    async def _next(self) -> None:
        again = self._told is not None and self._told.state is State.REFUSED
        if self._starts:
            return
        times = [_AGAIN] if again else []
        if self._freed:
            times.append(max(0.0, min(self._freed.values()) - self._clock()))
        try:
            await asyncio.wait_for(self._due.wait(), min(times, default=None))
        except TimeoutError:
            return

    def _with_freed(self, wanted: frozenset[int] | None) -> frozenset[int]:
        """These, and what was told before and has been freed a short while ago."""
        if wanted is None or self._told is None or self._told.state is not State.TOLD:
            self._freed = {}  # nobody there who would move them
            return wanted or frozenset()
        now = self._clock()
        freed = dict.fromkeys(self._spared - wanted, now + LINGER) | self._freed
        self._freed = {irq: at for irq, at in freed.items() if at > now and irq not in wanted}
        return wanted.union(self._freed)

    async def _tell(self, *, verify: bool) -> None:
        wanted = self._wanted
        self._spared = self._with_freed(wanted)
        call = (
            self._client.release
            if wanted is None
            else partial(self._client.keep, self._spared, verify=verify)
        )
        self._call = asyncio.ensure_future(beside(call, "irqbalance"))
        told = await asyncio.shield(self._call)
        listens = told.state in (State.TOLD, State.SPARED)
        if listens and self._told is not None and told.pid != self._told.pid:
            self._starts = []  # it was found, and listens
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
                self._log.info(f"{who}: told to leave {len(wanted)} interrupts alone")
            case State.SPARED:
                self._log.info(f"{who}: leaves interrupts of vfio-pci alone by its options")
        if told.reason and wanted:
            self._log.warning(f"{who}: {told.reason}", finding="irqbalance-untold")
