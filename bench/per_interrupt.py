"""Time per interrupt for read, plan and write, beside a floor in C: ``bench.per_interrupt``.

The floor of reading opens, reads and closes the four files of an interrupt that are necessary (who
handles it, where it may go, where it goes, how often it was taken), three where counts are not
shown; that of writing reads four times and writes once. It is compiled now, and takes its turn with
every measurement. Outcomes are asserted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench import measure, tree
from bench.measure import Row, Spread, cpu
from virtirq.control import sources
from virtirq.control.cycle import observe
from virtirq.control.executor import Executor
from virtirq.control.journal import locked_journal
from virtirq.host import paths
from virtirq.host.fs import LiveFs
from virtirq.model import Plan, Status
from virtirq.policy.config import Config
from virtirq.policy.findings import findings
from virtirq.policy.plan import plan

_FILES: Final = (*(paths.IRQ_ACTIONS, paths.IRQ_AFFINITY, paths.IRQ_EFFECTIVE, paths.IRQ_COUNTS),)


class _Bench:
    """One tree, and what is measured on it."""

    def __init__(self, guests: int, vectors: int, floors: str) -> None:
        self.tree = tree.Tree(guests, vectors)
        self.fs = LiveFs()
        self.guests = sources.load_guests(self.fs, [Path(each) for each in self.tree.domains[1::2]])
        self.figures: dict[str, list[float]] = {}
        self._floors = floors
        self._scratch = Path(tempfile.mkdtemp(prefix="virtirq-bench-"))

    def close(self) -> None:
        self.tree.close()
        shutil.rmtree(self._scratch)

    def note(self, name: str, seconds: float) -> None:
        self.figures.setdefault(name, []).append(seconds / self.tree.count * 1e6)

    def floor(self, kind: str, lines: list[str]) -> float:
        file = self._scratch / kind
        file.write_text("".join(f"{line}\n" for line in lines))
        return int(measure.child(self._floors, kind, str(file)).output) / 1e9

    def calls(self, what: str) -> float:
        """System calls an interrupt of one of `COUNTED`, in a program of its own."""
        self.tree.reset()
        words = ["-m", "bench.per_interrupt", "--calls", what, *self.tree.domains[1::2]]
        made = measure.calls_between(sys.executable, *words)
        self.tree.reset()
        return made / self.tree.count

    def turn(self) -> None:
        irqs = self.tree.irqs
        for files in (3, 4):
            listed = [path.at(irq) for irq in irqs for path in _FILES[:files]]
            self.note(f"read floor {files}", self.floor("read", listed))
            counts = files == 4
            self.note(
                f"read {files}",
                cpu(lambda: observe(self.fs, self.guests, counts=counts)),  # noqa: B023
            )
        snapshot = observe(self.fs, self.guests, counts=False)
        assert len(snapshot.interrupts) == self.tree.count
        assert snapshot.gaps == ()
        todo = plan(snapshot, Config())
        assert len(todo.pins) == self.tree.count
        self.note("plan", cpu(lambda: plan(snapshot, Config())))
        self.note("findings", cpu(lambda: findings(snapshot, todo)))
        writes = [
            line
            for pin in todo.pins
            for line in (*(path.at(pin.irq) for path in _FILES[:3]), str(pin.after))
        ]
        self.note("write floor", self.floor("write", writes))
        self.tree.reset()
        self.note("write", cpu(lambda: execute(self.fs, todo)))
        assert self.tree.moved() == self.tree.count
        self.tree.reset()


def execute(fs: LiveFs, todo: Plan) -> None:
    with locked_journal(Path("/run/virtirq"), "bench") as journal:
        outcomes = Executor(fs, journal).run(todo.pins)
    assert {each.status for each in outcomes} == {Status.APPLIED}, "it measures failures"


COUNTED: Final = ("read 3", "read 4", "write")


def _counted(what: str, domains: list[str]) -> None:
    """Does one of `COUNTED` between marks, once it has done it before."""
    fs = LiveFs()
    guests = sources.load_guests(fs, [Path(each) for each in domains])
    snapshot = observe(fs, guests, counts=True)
    todo = plan(snapshot, Config())
    os.access(measure.BEGIN, os.F_OK)
    if what == "write":
        execute(fs, todo)
    else:
        observe(fs, guests, counts=what == "read 4")
    os.access(measure.END, os.F_OK)


def measured(guests: int, vectors: int, rounds: int, floors: str) -> list[Row]:
    bench = _Bench(guests, vectors, floors)
    bench.turn()  # warms the caches
    bench.figures.clear()
    for _ in range(rounds):
        bench.turn()
    calls = {what: bench.calls(what) for what in COUNTED}
    bench.close()
    rows = [
        _row(bench, "read, without counts", "read 3", "read floor 3", "2"),
        _row(bench, "read, with counts", "read 4", "read floor 4", "2"),
        _row(bench, "plan", "plan"),
        _row(bench, "findings", "findings"),
        _row(bench, "write", "write", "write floor", "2"),
    ]
    keys = ("read 3", "read 4", "", "", "write")
    return [row._replace(calls=calls.get(key)) for row, key in zip(rows, keys, strict=True)]


def _row(bench: _Bench, name: str, key: str, floor: str = "", aim: str = "") -> Row:
    own = bench.figures[key]
    ratio = None
    if floor:
        pairs = zip(own, bench.figures[floor], strict=True)
        ratio = Spread.of([mine / least for mine, least in pairs])
    beside = f"of {Spread.of(bench.figures[floor]).median:.1f}" if floor else ""
    return Row(name, Spread.of(own), "µs", ratio, beside, aim=aim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", choices=COUNTED, help=argparse.SUPPRESS)
    parser.add_argument("domains", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.calls:
        _counted(options.calls, options.domains)
        return
    tree.go_inside()
    floors = measure.compiled("floors")
    print(measure.machine(), measure.load())
    for guests in (12, 50, 200):
        print(f"\n{tree.CPUS} CPUs, {guests} guests, {guests * 82} interrupts, each:\n")
        print(measure.table(measured(guests, 82, options.rounds, floors)))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
