"""``python -m tests.fuzz``: makes inputs for each target, and tells what they break."""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
CACHE: Final = ROOT / ".fuzz"
_HANGS: Final = 10.0
"""Seconds of CPU time after which an input has hung."""
_MEMORY: Final = 2 << 30
_MOST_FAULTS: Final = 20
"""Different faults of a target, after which it is not run any more."""


class _HangError(BaseException):
    """Not an Exception: nobody takes it for one of an input's."""


class Fault(NamedTuple):
    """What an input broke: the kind of error and where it came from."""

    kind: str
    text: str


class Campaign:
    """One target, run for a while, with its corpus."""

    def __init__(self, name: str, cache: Path, seed: str) -> None:
        from tests.fuzz.engine import Mutator
        from tests.fuzz.targets import TARGETS

        self.target = TARGETS[name]
        self.runs = 0
        self.faults: dict[str, Path] = {}
        self._cache = cache
        self._found = cache / "corpus" / name
        self._found.mkdir(parents=True, exist_ok=True)
        self._mutator = Mutator(random.Random(seed), self.target.words)
        self._reached: set[tuple[int, int]] = set()
        self._corpus: list[bytes] = []

    def run(self, seconds: float, most: int | None) -> None:
        """Until that time is over, or that many inputs were made."""
        from tests.fuzz.engine import broke

        until = time.monotonic() + seconds
        kept = [each.read_bytes() for each in sorted(self._found.iterdir())]
        for data in [*self.target.seeds(), *broke(self.target.name), *kept]:
            self._one(data, known=True)
        while time.monotonic() < until and (most is None or self.runs < most):
            if len(self.faults) >= _MOST_FAULTS:
                break
            self._one(self._mutator.changed(self._corpus or [b""]))

    @property
    def reached(self) -> int:
        return len({place for place, _ in self._reached})

    def _one(self, data: bytes, *, known: bool = False) -> None:
        from tests.fuzz.instrument import hits

        self.runs += 1
        fault = self._fault(data)
        now = {(place, count.bit_length()) for place, count in hits.items()}
        if fault is not None:
            if fault.kind not in self.faults:
                self._keep(data, fault)
        elif known or not now <= self._reached:
            self._corpus.append(data)
            if not known:
                (self._found / _name(data)).write_bytes(data)
        self._reached |= now

    def _fault(self, data: bytes) -> Fault | None:
        """What the input breaks."""
        from tests.fuzz.engine import ViolationError
        from tests.fuzz.instrument import hits, installed

        hits.clear()
        signal.setitimer(signal.ITIMER_VIRTUAL, _HANGS)
        try:
            self.target.check(data)
        except (Exception, _HangError) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [each for each in frames if "/virtirq/" in each.filename]
            last = (ours if not isinstance(error, AssertionError) and ours else frames)[-1]
            where = f"{Path(last.filename).name}:{last.lineno}"
            what = f"{type(error).__name__} at {where}"
            if isinstance(error, ViolationError):
                what = f"{type(error).__name__}: {error!s:.60}"
            return Fault(what, f"{what}: {str(error)[:300]}")
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        steps, most = sum(hits.values()), self.target.most + self.target.steps * len(data)
        if installed() and steps > most:
            return Fault("too much work", f"too much work: {steps} steps for {len(data)} bytes")
        return None

    def _keep(self, data: bytes, fault: Fault) -> None:
        from tests.fuzz.engine import shrunk

        def fails(less: bytes) -> bool:
            again = self._fault(less)
            return again is not None and again.kind == fault.kind

        less = shrunk(data, fails, 300 if fault.kind.startswith("_Hang") else 2000)
        where = self._cache / "broken" / self.target.name
        where.mkdir(parents=True, exist_ok=True)
        path = where / _name(less)
        path.write_bytes(less)
        self.faults[fault.kind] = path
        print(f"{self.target.name}: {fault.text}\n    {path}", file=sys.stderr, flush=True)


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _hung(_signal: int, _frame: FrameType | None) -> None:
    raise _HangError("it does not end")


def one(name: str, seconds: float, most: int | None, cache: Path, seed: str) -> int:
    """Runs a target here; prints how far it came. 1 where something broke."""
    from tests.fuzz import instrument

    instrument.install()
    signal.signal(signal.SIGVTALRM, _hung)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    campaign = Campaign(name, cache, seed)
    campaign.run(seconds, most)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{name:20} {campaign.runs:8} inputs  {campaign.reached:5} places  {peak:4} MiB"
        f"  {len(campaign.faults)} faults",
        flush=True,
    )
    return bool(campaign.faults)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help="as --list prints them; all without any")
    parser.add_argument("--list", action="store_true", help="print the targets")
    parser.add_argument(
        "--seconds", type=float, default=float(os.environ.get("FUZZ_SECONDS", "600")),
        help="for all targets together (600, or FUZZ_SECONDS)",
    )  # fmt: skip
    parser.add_argument("--inputs", type=int, help="so many of each target at most")
    parser.add_argument("--seed", help="for the same inputs on every run")
    parser.add_argument("--cache", type=Path, default=CACHE, help="what is found, and kept")
    parser.add_argument("--here", action="store_true", help="in this process: one target")
    given = parser.parse_args(arguments)
    if given.here:
        seed = given.seed or str(time.time_ns())
        return one(given.target[0], given.seconds, given.inputs, given.cache, seed)
    from tests.fuzz.targets import TARGETS

    if given.list:
        print("\n".join(TARGETS))
        return 0
    chosen = given.target or list(TARGETS)
    unknown = [each for each in chosen if each not in TARGETS]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}: --list prints them")
    share = given.seconds / len(chosen)
    command = [sys.executable, "-m", "tests.fuzz", "--here", f"--seconds={share}"]
    command += [f"--cache={given.cache}"]
    command += [f"--inputs={given.inputs}"] if given.inputs is not None else []
    command += [f"--seed={given.seed}"] if given.seed is not None else []
    broken = []
    for name in chosen:
        try:
            done = subprocess.run([*command, name], cwd=ROOT, timeout=share + 600).returncode
        except subprocess.TimeoutExpired:
            print(f"{name}: does not end", file=sys.stderr)
            done = 1
        if done:
            broken.append(name)
    if broken:
        print(f"broken: {', '.join(broken)}", file=sys.stderr)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
