"""What earlier versions have pinned is put back by this one.

`journals/` has what they wrote when they applied the plan for the recorded host that virtirq ships.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import pytest

from virtirq.control import sources
from virtirq.ui.cli import main

JOURNALS: Final = sorted(Path(__file__).with_name("journals").iterdir())


class Pinned:
    """A scratch host as an earlier version has left it."""

    def __init__(self, root: Path, journal: Path) -> None:
        self.root = root
        assert main(["-q", "demo", str(root)]) == 0
        lines = [json.loads(line) for line in journal.read_text().splitlines()]
        self.irqs = {each["irq"] for each in lines if each["op"] == "move"}
        self.found = self.affinities()
        fs = sources.open_fs(root)
        for each in lines:
            if each["op"] == "move":
                fs.write(self._path(each["irq"]), each["after"])
        self.pinned = self.affinities()
        state = root / "run/virtirq"
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(journal, state)
        (state / journal.name).rename(state / "journal.jsonl")

    def affinities(self) -> dict[int, str]:
        fs = sources.open_fs(self.root)
        return {irq: fs.read(self._path(irq)).strip() for irq in self.irqs}

    @staticmethod
    def _path(irq: int) -> str:
        return f"/proc/irq/{irq}/smp_affinity_list"


@pytest.mark.parametrize("journal", JOURNALS, ids=[each.stem for each in JOURNALS])
def test_what_was_pinned_before_an_upgrade_is_put_back_after_it(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Pinned(tmp_path / "host", journal)
    assert host.pinned != host.found
    host_words = ["-s", str(host.root)]
    # The new version goes on from there: nothing moves, and nothing is forgotten.
    assert main(["-q", *host_words, "apply"]) == 0
    assert host.affinities() == host.pinned
    assert main(["-q", *host_words, "restore"]) == 0
    assert host.affinities() == host.found
    capsys.readouterr()
    assert main([*host_words, "restore"]) == 0
    assert capsys.readouterr().out.endswith("nothing to move\n")
