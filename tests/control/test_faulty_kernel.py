"""Moves and undoes on a kernel that fails at any access: what holds whatever it answers.

Reads fail, come back in halves or as nonsense; writes are refused, or done and told as refused;
interrupts go away, and their numbers become others', between any two accesses. Then it is well
again, and one `restore` has to give everything back.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.control.scenes import FIRST, HOST, IRQS, VECTORS, WEB, affinities
from tests.hostmaker import MadeFs, MemoryFs
from virtirq.control import cycle
from virtirq.control.journal import locked_journal
from virtirq.cpuset import CpuSet
from virtirq.errors import VirtirqError
from virtirq.host import paths
from virtirq.policy.config import Config

FOUND: Final = affinities(HOST.fs())
VCPUS: Final = {str(cpu) for vcpu in WEB.vcpus for cpu in vcpu.cpus or ()}
STRANGER: Final = "nvme9q0"
ERRORS: Final = (
    *(errno.EIO, errno.ENOSPC, errno.EPERM, errno.ENODEV, errno.ENOENT, errno.EINVAL),
    *(errno.EACCES, errno.EINTR, errno.EMFILE, errno.ENOMEM, errno.EBUSY, errno.EROFS),
)
AT_RISK: Final = ("/proc/irq/", "/sys/kernel/irq/", paths.BOOT_ID.at())
NONSENSE: Final = ("", "garbage\n", "9999", "0-", "\x00", "4-7,4-7,")


class Kind(Enum):
    """What goes wrong."""

    REFUSE = "an access is refused"
    DECEIVE = "a write is done, and told as refused"
    MANGLE = "a read comes back as something that it cannot be"
    FREE = "a vector goes away"
    REUSE = "a vector goes away, and its number is another device's at once"


@dataclass(frozen=True)
class Fault:
    """`after` so many accesses to interrupts that go well; `number` is errno's, or any."""

    kind: Kind
    after: int
    number: int

    def error(self, path: str) -> OSError:
        return OSError(self.number, os.strerror(self.number), path)


FAULTS: Final = st.lists(
    st.builds(Fault, st.sampled_from(Kind), st.integers(0, 80), st.sampled_from(ERRORS)),
    max_size=12,
)


class FaultyFs(MadeFs):
    """Goes wrong as told, until `well`."""

    def __init__(self, base: MemoryFs, faults: Sequence[Fault]) -> None:
        super().__init__(base)
        self.recording = None
        self._faults = list(faults)
        self._left = faults[0].after if faults else 0
        self.wrote: list[tuple[int, str]] = []
        """IRQs and values; of another device's, none."""
        self.strangers: set[int] = set()
        """IRQs that are another device's by now."""

    def well(self) -> None:
        self._faults.clear()

    def _access(self, operation: str, path: str) -> None:
        super()._access(operation, path)
        self._left -= path.startswith(AT_RISK)
        if self._due(Kind.FREE, Kind.REUSE):
            self._strike(self._pop(), path)
        elif self._due(Kind.REFUSE):
            raise self._pop().error(path)

    def read(self, path: str) -> str:
        text = super().read(path)
        if not self._due(Kind.MANGLE):
            return text
        number = self._pop().number
        half = text[: number % (len(text) + 1)]
        wrong = (half, *NONSENSE)[number % (1 + len(NONSENSE))]
        # A lie that could be true is one that nobody can tell: any name may be an action's.
        return text if path.endswith("/actions") or _is_a_set(wrong) else wrong

    def write(self, path: str, text: str) -> None:
        super().write(path, text)
        irq = int(path.split("/")[3])
        assert irq not in self.strangers, f"written to another device's IRQ {irq}"
        self.wrote.append((irq, text))
        if self._due(Kind.DECEIVE):
            raise self._pop().error(path)

    def _due(self, *kinds: Kind) -> bool:
        """Whether a fault of one of these kinds is due; what does not fit waits."""
        return self._left < 0 and bool(self._faults) and self._faults[0].kind in kinds

    def _pop(self) -> Fault:
        fault = self._faults.pop(0)
        self._left = self._faults[0].after if self._faults else 0
        return fault

    def _strike(self, fault: Fault, path: str) -> None:
        irq = FIRST + fault.number % VECTORS
        if irq in self.strangers or not self._there(irq):
            return
        self.free(irq)
        if fault.kind is Kind.REUSE:
            self.strangers.add(irq)
            for each, text in (
                (paths.IRQ_AFFINITY.at(irq), "0-7"),
                (paths.IRQ_EFFECTIVE.at(irq), "0"),
                (paths.IRQ_ACTIONS.at(irq), STRANGER),
            ):
                self.set(each, text)

    def _there(self, irq: int) -> bool:
        return paths.IRQ_ACTIONS.at(irq) in self.memory._nodes


def _is_a_set(text: str) -> bool:
    try:
        return bool(CpuSet.parse(text))
    except VirtirqError:
        return False


@settings(max_examples=150)
@given(FAULTS, st.lists(st.sampled_from([cycle.apply, cycle.restore]), min_size=1, max_size=4))
def test_nothing_is_lost_and_nobody_elses_is_touched(
    faults: list[Fault], steps: list[object]
) -> None:
    fs = FaultyFs(HOST.fs().memory, faults)
    with tempfile.TemporaryDirectory() as made:
        state = Path(made)
        for step in steps:
            with suppress(VirtirqError):
                if step is cycle.apply:
                    cycle.apply(fs, [WEB], Config(), state, ())
                else:
                    cycle.restore(fs, [WEB], state, ())
        fs.well()
        cycle.restore(fs, [WEB], state, ())
        left = affinities(fs)
        for irq in IRQS:
            if irq in left and irq not in fs.strangers:
                assert left[irq] == FOUND[irq], f"IRQ {irq} is on {left[irq]}"
        for irq, text in fs.wrote:
            assert text in VCPUS or text == FOUND[irq], f"IRQ {irq}: {text}"
        with locked_journal(state, HOST.boot_id) as journal:
            assert journal.remembered() == ()
