"""A kernel that fails at any moment, and answers with halves of values: what holds all the same.

Whatever is written is the guest's own CPUs or what was found; what was asked to be left alone is;
and once the kernel is well again, everything is put back.
"""

from __future__ import annotations

import errno
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.control.scenes import DISK, HOST, IRQS, VECTORS, WEB, affinities
from tests.hostmaker import MadeFs
from virtirq.control.cycle import apply, restore
from virtirq.cpuset import CpuSet
from virtirq.errors import VirtirqError
from virtirq.host import paths
from virtirq.model import NATIVE, GuestDevice
from virtirq.policy.config import Config

ERRORS = (
    *(errno.EIO, errno.ENOSPC, errno.EPERM, errno.EINVAL, errno.EACCES, errno.EROFS),
    *(errno.EINTR, errno.EMFILE, errno.ENOMEM, errno.EBUSY, errno.EOVERFLOW),
)
"""But for those by which the kernel says that the interrupt is gone."""
ALONE = GuestDevice(DISK, "hostdev", directive=NATIVE)
GUEST = replace(WEB, devices=(WEB.devices[0], ALONE))
WORDS = {paths.BOOT_ID.at()}
"""Beside actions: other words mean another boot, or another's interrupt."""
RUNS = 60


class Faulty:
    """A host on which a part of all calls fails, with or without having done what was asked."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rate = self.random.choice((0.02, 0.1, 0.3))
        self.well = False
        self.written: list[tuple[str, str]] = []
        self.fs = HOST.live()
        self._spoil(self.fs)

    def _spoil(self, fs: MadeFs) -> None:
        really_read, really_write = fs.read, fs.write

        def read(path: str) -> str:
            if self.well or self.random.random() >= self.rate:
                return really_read(path)
            if self.random.random() < 0.4 or path in WORDS or path.endswith("/actions"):
                self._fail(path)
            text = really_read(path)
            half = text[: self.random.randrange(len(text) + 1)]
            if "affinity" in path and half:
                half = f"{half[0]}-"  # half of a list may be another list: a lie is not found out
            return self.random.choice((half, "", "garbage", "99999", "0-", "\0", f"{text},{text}"))

        def write(path: str, text: str) -> None:
            fails = not self.well and self.random.random() < self.rate
            if not fails or self.random.random() < 0.5:
                really_write(path, text)
                self.written.append((path, text))
            if fails:
                self._fail(path)

        fs.read, fs.write = read, write  # type: ignore[method-assign]

    def _fail(self, path: str) -> None:
        number = self.random.choice(ERRORS)
        raise OSError(number, os.strerror(number), path)

    def change(self, directory: Path) -> None:
        """Apply, a few times, and perhaps restore; errors are our own alone."""
        steps = [apply] * self.random.randint(1, 3) + [restore] * self.random.randint(0, 1)
        for step in steps:
            try:
                if step is apply:
                    apply(self.fs, [GUEST], Config(), directory, ())
                else:
                    restore(self.fs, [GUEST], directory, ())
            except VirtirqError:
                continue  # whatever else is raised, ends the test


@pytest.mark.parametrize("seed", range(RUNS))
def test_nothing_is_lost_and_nothing_is_made_up(seed: int, tmp_path: Path) -> None:
    host = Faulty(seed)
    host.well = True
    found = affinities(host.fs)
    host.well = False
    host.change(tmp_path)
    ours = {CpuSet([4 + index]) for index in range(VECTORS)} | {CpuSet.parse("4-7")}
    for path, text in host.written:
        assert f"/{IRQS[0]}/" not in path, "of the device that was to be left alone"
        assert CpuSet.parse(text) <= CpuSet.parse("4-7"), (path, text)
    assert {CpuSet.parse(text) for _, text in host.written} <= ours
    host.well = True
    restore(host.fs, [GUEST], tmp_path, ())
    assert affinities(host.fs) == found


def test_some_of_all_that_is_moved(tmp_path: Path) -> None:
    """The seeds are of use: most move something, and some fail at it."""
    moved = 0
    for seed in range(RUNS):
        host = Faulty(seed)
        host.change(tmp_path / str(seed))
        moved += bool(host.written)
    assert RUNS // 2 < moved < RUNS
