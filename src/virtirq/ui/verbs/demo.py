"""``virtirq demo``: the main job, step by step, on a scratch copy of a recorded host.

The host ships with the package and was recorded by ``virtirq record`` on a running kernel. What
is written goes to the copy; where an interrupt then lands is modelled as x86 does it.
"""

from __future__ import annotations

import argparse
import shlex
import tarfile
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from virtirq.control import cycle, sources
from virtirq.control.cycle import Done
from virtirq.errors import EXIT_FAILED, EXIT_OK, UsageError, of_file
from virtirq.host.scratch import LOG
from virtirq.policy.config import Config
from virtirq.policy.findings import findings as find
from virtirq.policy.plan import plan as make_plan
from virtirq.ui import arguments, screens
from virtirq.ui.document import Cell, Document
from virtirq.ui.verbs import Verb

HOST: Final = "two-node.tar.xz"


def run(args: argparse.Namespace) -> int:
    if args.sysroot or args.domains or args.config or args.connect or args.json:
        raise UsageError(
            "demo shows the recorded host that ships with virtirq: it takes no options"
        )
    return copy_to(args.dir) if args.dir else tour()


def copy_to(directory: Path) -> int:
    """Makes a scratch copy of the recorded host in an absent or empty directory."""
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise UsageError(
                f"{directory}: not an empty directory", hint="name a new one for the copy"
            )
        directory.mkdir(parents=True, exist_ok=True)
        _unpack(directory)
    except OSError as error:
        raise of_file(directory, error, UsageError) from error
    document = Document()
    where = shlex.quote(str(directory))
    document.line(f"a scratch copy of the recorded host is in {directory}; try:")
    for verb in ("status", "plan", "apply", "restore", "check"):
        document.line(f"virtirq --sysroot {where} {verb}", indent=2)
    document.print()
    return EXIT_OK


def tour() -> int:
    """Status, plan, apply, verification, status, restore; the exit code tells if all held."""
    with tempfile.TemporaryDirectory(prefix="virtirq-demo-") as directory:
        root = Path(directory)
        _unpack(root)
        return _tour(root)


def _tour(root: Path) -> int:
    state = sources.state_dir(root)
    _say(
        "This host is a recording that ships with virtirq. Writes go to a scratch copy of it;",
        "where an interrupt then lands is modelled as x86 does it: one CPU of its affinity.",
    )
    _step("status", "where the guests' interrupts are, and where they should be")
    before = _status(root)
    _step("apply", "the plan, then what became of it")
    fs = sources.open_fs(root)
    applied = cycle.apply(fs, sources.load_guests(fs, ()), Config(), state, ())
    screens.plan_screen(applied.snapshot, applied.plan).print()
    screens.outcome_screen(applied).print()
    _step("verification", "read back, each interrupt against the plan")
    wrong = _verify(applied)
    _step("status", "after apply")
    _status(root)
    _step("restore", "everything as it was found")
    restored = cycle.restore(fs, sources.load_guests(fs, ()), state, ())
    screens.outcome_screen(restored).print()
    after = cycle.observe(sources.open_fs(root), sources.load_guests(fs, ()), counts=False)
    changed = [
        now.irq
        for was, now in zip(before, after.interrupts, strict=True)
        if was != (now.irq, now.affinity)
    ]
    _say(f"{len(before) - len(changed)} of {len(before)} affinities are as they were found")
    return EXIT_FAILED if wrong or changed else EXIT_OK


def _status(root: Path) -> list[tuple[int, object]]:
    fs = sources.open_fs(root)
    snapshot = cycle.observe(fs, sources.load_guests(fs, ()), counts=False)
    planned = make_plan(snapshot, Config())
    screens.status_screen(snapshot, planned, find(snapshot, planned), None, short=True).print()
    return [(each.irq, each.affinity) for each in snapshot.interrupts]


def _verify(done: Done) -> int:
    wrong = [
        outcome
        for outcome in done.outcomes
        if outcome.affinity != outcome.pin.after
        or not (outcome.effective and outcome.effective <= outcome.pin.after)
    ]
    right = len(done.outcomes) - len(wrong)
    _say(f"{right} of {len(done.outcomes)} moved interrupts have the planned affinity and CPU")
    return len(wrong)


def _unpack(directory: Path) -> None:
    with (
        resources.as_file(resources.files("virtirq.demo") / HOST) as archive,
        tarfile.open(archive) as tar,
    ):
        for member in tar:
            _extract(tar, member, directory / member.name)
    (directory / LOG).parent.mkdir(exist_ok=True)
    (directory / LOG).touch()


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """One member of our own archive: files, links and nothing else.

    TarFile.extractall() needs a filter from Python 3.14 on, and knows none in Debian 12's 3.11.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if member.issym():
        target.symlink_to(member.linkname)
    elif (file := tar.extractfile(member)) is not None:
        target.write_bytes(file.read())
        target.chmod(member.mode)


def _step(verb: str, what: str) -> None:
    document = Document()
    document.line()
    document.line(Cell(f"── {verb}: {what}", "bold"))
    document.print()


def _say(*lines: str) -> None:
    document = Document()
    for line in lines:
        document.line(line)
    document.print()


def _arguments(parser: argparse.ArgumentParser) -> None:
    arguments.completed_as_path(
        parser.add_argument(
            "dir",
            metavar="DIR",
            type=Path,
            nargs="?",
            help="instead, make a scratch copy there to try verbs on with --sysroot DIR",
        )
    )


VERB = Verb(
    run,
    "run the main job on a scratch copy of a recorded host",
    arguments=_arguments,
    refused=("--sysroot", "--domain", "--config", "--connect", "--json"),
)
