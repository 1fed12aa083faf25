"""Reads the counts of the interrupts that are shown, and of no others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.host.interrupts import read_counts
from virtirq.model import PciAddress
from virtirq.policy.counts import Counts
from virtirq.policy.target import wide
from virtirq.ui.inputs import View
from virtirq.ui.top.rates import Sample, Watched, watched


class Sampler:
    """`look` has the guests and their devices planned anew: that is done only when `is_stale`."""

    def __init__(
        self, fs: HostFs, look: Callable[[], View], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises what `look` does."""
        self._fs = fs
        self._look = look
        self._clock = clock
        self._vectors: dict[PciAddress, frozenset[str]] = {}
        self.is_stale = False
        """Whether a device has other interrupts now than when it was looked at."""
        self.look()

    def look(self) -> None:
        self._fs.refresh()
        self.view = self._look()
        self.watched = watched(self.view.snapshot, self.view.plan)
        self.vcpus = vcpus(self.view)
        self._cpus = tuple(self.view.snapshot.topology.possible)
        self._vectors.clear()
        self.is_stale = False

    def now(self) -> float:
        """Seconds of the clock that samples go by."""
        return self._clock()

    def sample(self, shown: Callable[[Watched], bool] = lambda _: True) -> Sample:
        """The counts of those that are shown, now."""
        self._fs.refresh()
        at, reader, found, unread = self._clock(), Reader(self._fs), {}, 0
        for each in self.watched:
            if not shown(each):
                continue
            counts = self._counts(reader, each)
            if counts is None:
                unread += 1
            else:
                found[each] = counts
        for device in {each.device for each in found}:
            self._compare(device)
        return Sample(at, found, unread)

    def _counts(self, reader: Reader, each: Watched) -> Counts | None:
        counts = read_counts(reader, each.irq, self._cpus)
        if counts is None and not self._fs.isdir(f"{paths.IRQ_SYSFS_DIR}/{each.irq}"):
            self.is_stale = True
        return counts

    def _compare(self, device: PciAddress) -> None:
        try:
            now = frozenset(self._fs.listdir(f"{paths.PCI_DIR}/{device}/msi_irqs"))
        except OSError:  # it has none, or is gone
            now = frozenset()
        if self._vectors.setdefault(device, now) != now:
            self.is_stale = True


def vcpus(view: View) -> Mapping[int, Sequence[str]]:
    """The pinned vCPUs that may run on each CPU, as ``web/3``."""
    found: dict[int, list[str]] = {}
    for planned in view.plan.guests:
        for vcpu in planned.guest.vcpus:
            if vcpu.cpus is not None and not wide(vcpu.cpus, view.snapshot.topology):
                for cpu in vcpu.cpus:
                    found.setdefault(cpu, []).append(f"{planned.guest.name}/{vcpu.index}")
    return found
