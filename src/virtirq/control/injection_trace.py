"""Has the kernel trace how long a guest's interrupts take to it, in a tracefs instance of its own.

The instance has its own buffer and switches, so that who else traces this host is not disturbed.
Tracing takes time of each interrupt: it is on for a short look only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from virtirq.host import paths
from virtirq.host.injections import EVENTS, delays

_BUFFER_KB: Final = 1024
"""Of each CPU: some 10,000 events."""
_MOST_NUMBERS: Final = 64
"""A filter that names more than so many threads or interrupts is left out."""


class InjectionTrace:
    """`close` takes everything away again, also from another process; nothing is made before."""

    def __init__(self, root: Path, name: str) -> None:
        self._instance = root / "instances" / name

    def look(
        self,
        irqs: Collection[int],
        threads: Collection[int],
        aimed: Mapping[str, int],
        seconds: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> list[float]:
        """Seconds from each of these interrupts to its injection; none where it cannot be traced.

        See `injections.delays`.
        """
        filters = {EVENTS[0]: _any("irq", irqs), EVENTS[2]: _any("common_pid", threads)}
        try:
            self._make(filters)
            self._set("tracing_on", "1")
            sleep(seconds)
            self._set("tracing_on", "0")
            text = (self._instance / "trace").read_text(errors="replace")
        except OSError:
            return []
        finally:
            self.close()
        return delays(text, threads, aimed)

    def close(self) -> None:
        with suppress(OSError):
            self._instance.rmdir()

    def _make(self, filters: Mapping[str, str]) -> None:
        self.close()  # what one that was killed has left
        self._instance.mkdir(mode=0o700)
        for name, value in (
            ("tracing_on", "0"),
            ("buffer_size_kb", str(_BUFFER_KB)),
            ("options/irq-info", "0"),
        ):
            self._set(name, value)
        for event in EVENTS:
            if filters.get(event):
                self._set(f"events/{event}/filter", filters[event])
            self._set(f"events/{event}/enable", "1")

    def _set(self, name: str, value: str) -> None:
        descriptor = os.open(self._instance / name, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{value}\n".encode())
        finally:
            os.close(descriptor)


def _any(field: str, numbers: Collection[int]) -> str:
    if len(numbers) > _MOST_NUMBERS:
        return ""
    return " || ".join(f"{field} == {number}" for number in sorted(numbers))


@contextmanager
def injection_trace(
    pid: int | None, roots: Sequence[str] = paths.TRACEFS
) -> Iterator[InjectionTrace | None]:
    """For the guest of this process; None where there is no tracefs, or none of these events."""
    mounted = [root for root in map(Path, roots) if (root / "instances").is_dir()]
    there = mounted and all((mounted[0] / "events" / event).is_dir() for event in EVENTS)
    if pid is None or not there:
        yield None
        return
    trace = InjectionTrace(mounted[0], f"virtirq-compare-{pid}")
    try:
        yield trace
    finally:
        trace.close()
