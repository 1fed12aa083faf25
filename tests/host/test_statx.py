"""Files behind links, as statx(2) has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtirq.host.statx import file_id


def test_a_character_device() -> None:
    told = os.stat("/dev/null")
    file = file_id("/dev/null")
    assert (file.ino, file.device) == (told.st_ino, "1:3")


def test_it_is_what_fdinfo_tells(tmp_path: Path) -> None:
    for path in (tmp_path / "x", Path("/dev/zero")):
        with path.open("ab") as opened:
            number = opened.fileno()
            info = Path(f"/proc/self/fdinfo/{number}").read_text()
            told = dict(line.split(":\t") for line in info.splitlines())
            file = file_id(f"/proc/self/fd/{number}")
            assert str(file.mount) == told["mnt_id"]
            assert str(file.ino) == told.get("ino", str(file.ino))
            assert file.device == ("1:5" if path.name == "zero" else None)


def test_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_id(str(tmp_path / "no"))
