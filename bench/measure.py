"""What is measured, and how it is told: CPU time, in turns, medians with their spread."""

from __future__ import annotations

import gc
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
_WIDTH = 40
_DRIFT = 0.05
"""Of a time: two runs of a quarter of an hour differ by so much though each is steady in itself,
for a program finds other memory each time, and the machine others beside it. Ratios do not.
"""


class Spread(NamedTuple):
    """A median, and between what nine tenths of all lay."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        ordered = sorted(figures)
        cut = len(ordered) // 10
        return cls(statistics.median(ordered), ordered[cut], ordered[-1 - cut])

    def at_least(self, part: float) -> Spread:
        """No narrower than that part of the median to either side."""
        wide = part * self.median
        low, high = min(self.low, self.median - wide), max(self.high, self.median + wide)
        return Spread(self.median, low, high)

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        median, low, high = (f"{each:,.{digits}f}" for each in self)
        return f"{median} ({low} to {high})"


class Row(NamedTuple):
    """One line of the report. `ratio` is to the floor or peer measured in the same turn."""

    name: str
    figure: Spread
    unit: str
    ratio: Spread | None = None
    beside: str = ""
    calls: float | None = None
    aim: str = ""


def cpu(work: Callable[[], object]) -> float:
    """Seconds of this process's CPU time, without the collector: a command has it switched off."""
    gc.collect()
    gc.disable()
    begin = time.process_time()
    work()
    used = time.process_time() - begin
    gc.enable()
    return used


class Child(NamedTuple):
    """`cpu` in seconds, `memory` at its most in KiB."""

    cpu: float
    memory: int
    output: str


def child(*command: str, codes: Sequence[int] = (0,)) -> Child:
    """A program to its end: what it took, and what it wrote. Its exit code is one of `codes`."""
    with tempfile.NamedTemporaryFile("r") as told, tempfile.TemporaryFile() as out:
        words = [compiled("floors"), "run", told.name, *command]
        code = subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
        out.seek(0)
        text = out.read().decode(errors="replace")
        assert code in codes, f"{command}: {code}: {text[-2000:]}"
        microseconds, memory = map(int, told.read().split())
    return Child(microseconds / 1e6, memory, text)


@cache
def compiled(name: str) -> str:
    """A C program of this directory, compiled now."""
    made = Path(tempfile.gettempdir(), f"virtirq-{name}-{os.getpid()}")
    subprocess.run(["cc", "-O2", "-o", str(made), str(HERE / f"{name}.c")], check=True)
    return str(made)


def system_calls(*command: str, codes: Sequence[int] = (0,)) -> int:
    """How many a program makes, with its children."""
    with tempfile.NamedTemporaryFile("r") as told:
        child("strace", "-f", "-c", "-qq", "-o", told.name, *command, codes=codes)
        return int(re.findall(r"(\d+)(?: +\d+)? total$", told.read())[-1])


BEGIN, END = "/begin", "/end"
"""Asked for by access(2), they are marks between which system calls are counted."""
_OWN = ("brk", "mmap", "munmap", "madvise", "futex")
"""What an interpreter does for itself."""


def calls_between(*command: str) -> int:
    """How many system calls a program makes between its marks."""
    with tempfile.NamedTemporaryFile("r") as told:
        child("strace", "-qq", "-o", told.name, *command)
        text = told.read()
    between = re.split(f'access\\("(?:{BEGIN}|{END})"', text)[1]
    return sum(name not in _OWN for name in re.findall(r"^(\w+)\(", between, re.MULTILINE))


def machine() -> str:
    """What it was measured on."""
    model = "an unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{os.cpu_count()} CPUs ({model}), Linux {platform.release()}; {sys.implementation.name}"
        f" {platform.python_version()} ({platform.python_compiler()})"
    )


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f}"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| what | time | times the floor or peer | system calls | aim |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio} {row.beside}".strip()
        calls = "" if row.calls is None else f"{row.calls:,.1f}"
        figure = row.figure.at_least(_DRIFT)
        lines.append(f"| {row.name} | {figure} {row.unit} | {ratio} | {calls} | {row.aim} |")
    return "\n".join(lines)


def picture(rows: Sequence[Row]) -> str:
    """Each row's ratio as a bar beside its floor's, which is 1."""
    told = [row for row in rows if row.ratio is not None]
    if not told:
        return ""
    most = max(1.0, *(row.ratio.median for row in told if row.ratio))
    width = max(len(row.name) for row in told)
    lines = []
    for row in told:
        assert row.ratio is not None
        ratio = row.ratio.median
        floor = max(1, round(_WIDTH / most))
        bar = "#" * max(1, round(_WIDTH * ratio / most))
        shown = "".join("|" if i == floor - 1 else each for i, each in enumerate(bar.ljust(_WIDTH)))
        lines.append(f"{row.name:{width}}  {shown} {ratio:.2f}")
    return "```text\n" + "\n".join(lines) + f"\n{'':{width}}  | is the floor or peer\n```"
