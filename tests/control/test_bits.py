"""A journal in which one bit has flipped: refused, or as good as before; never acted on wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from virtirq.control.journal import Journal, locked_journal
from virtirq.control.state import StateDirectory
from virtirq.cpuset import CpuSet
from virtirq.errors import JournalError
from virtirq.model import InterruptKey, InterruptKind, PciAddress, Remembered

DEVICE = PciAddress(0, 0x41, 0, 0)
BOOT = "5f1c2a04-2f6e-4a52-9d6f-0c8f6f6f7a11"


def entry(vector: int, before: str, after: str) -> Remembered:
    key = InterruptKey(DEVICE, f"vfio-msix[{vector}]({DEVICE})")
    return Remembered(
        key, "u1", CpuSet.parse(before), (CpuSet.parse(after),), "wéb", 65 + vector,
        InterruptKind.MSIX, 4711 + vector,
    )  # fmt: skip


def moves(directory: Path) -> None:
    with locked_journal(directory, BOOT) as journal:
        journal.move(entry(0, "0-3", "5"), entry(1, "0-3", "6"), entry(2, "0-3", "7"))
        journal.moved((entry(0, "0-3", "5").key, CpuSet([5])))
        journal.refused(entry(1, "0-3", "6").key)


def unconfirmed(directory: Path) -> None:
    """Killed between the write and the line that confirms it: the last line says all."""
    with locked_journal(directory, BOOT) as journal:
        journal.move(entry(0, "0-3", "5"))


def undone(directory: Path) -> None:
    moves(directory)
    with locked_journal(directory, BOOT) as journal:
        journal.forget(entry(2, "0-3", "7").key)


def known(directory: StateDirectory) -> frozenset[Remembered]:
    journal = Journal(directory, BOOT, reading=True)
    journal.close()
    return frozenset(journal.remembered())


def flips(content: bytes) -> Iterator[tuple[str, bytes]]:
    for place in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            yield f"bit {bit} of byte {place}: {content[place : place + 1]!r}", bytes(flipped)


@pytest.mark.parametrize("write", [moves, unconfirmed, undone])
def test_no_flipped_bit_changes_what_is_remembered(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    write(tmp_path)
    file = tmp_path / "journal.jsonl"
    directory = StateDirectory(tmp_path)
    content, expected = file.read_bytes(), known(directory)
    refused = 0
    for where, flipped in flips(content):
        file.write_bytes(flipped)
        try:
            found = known(directory)
        except JournalError:
            refused += 1
            unchanged = file.read_bytes() == flipped
            assert unchanged, f"{where}: what was refused has been changed"
        else:
            assert found == expected, where
    directory.close()
    # What is left is the name of the check sum's own field.
    assert refused > 8 * len(content) * 0.98
