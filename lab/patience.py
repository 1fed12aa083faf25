"""How long to wait for a machine that is emulated: as long as it gets on, on any machine.

A limit by the clock fails on a slow or busy machine, where nothing is wrong. `Patience` ends when
nothing has happened for so long, and of that time it counts what the emulator could use: a minute
in which it had a CPU for every third moment that it wanted one is twenty seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_SAMPLE_SECONDS: Final = 0.5
_NANO: Final = 10**9
_LEAST_SHARE: Final = 0.2
"""Who is served less than that may wait for ever: a stuck machine must be found."""


class Patience:
    """Ends `seconds` after the last sign of life, as the process `pid` has seen them pass."""

    def __init__(
        self,
        seconds: float,
        pid: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        proc: Path = Path("/proc"),
    ) -> None:
        self.seconds = seconds
        self.pid = pid
        self._clock = clock
        self._proc = proc
        self._at = self._last_sign = clock()
        self._used = 0.0
        self._served = self._books()

    def sign(self) -> None:
        """Something has happened: the time begins anew."""
        self._sample()
        self._used = 0.0
        self._last_sign = self._clock()

    def ended(self) -> bool:
        """Whether it is over. To be asked again and again while waiting."""
        if self._clock() - self._at >= _SAMPLE_SECONDS:
            self._sample()
        return self._used >= self.seconds

    @property
    def since(self) -> float:
        """Seconds since the last sign, by the clock."""
        return self._clock() - self._last_sign

    def _sample(self) -> None:
        now, served = self._clock(), self._books()
        ran = waited = 0
        for thread, (running, waiting) in served.items():
            before = self._served.get(thread, (0, 0))
            ran += running - before[0]
            waited += waiting - before[1]
        wall = now - self._at
        if waited:
            # Little of both is a machine at rest, and much of it more threads than CPUs.
            lost = min(waited / _NANO / wall, waited / (ran + waited)) if wall else 0.0
            wall *= max(1 - lost, _LEAST_SHARE)
        self._used += wall
        self._at, self._served = now, served

    def _books(self) -> dict[str, tuple[int, int]]:
        """Nanoseconds that each thread has run, and has waited for a CPU.

        Documentation/scheduler/sched-stats.rst; nothing where the kernel keeps no such books.
        """
        found = {}
        for file in self._proc.glob(f"{self.pid}/task/*/schedstat"):
            try:
                ran, waited, _ = file.read_text().split()
            except (OSError, ValueError):  # it has ended
                continue
            found[file.parent.name] = int(ran), int(waited)
        return found
