"""virtirq.pyz install, uninstall: itself and what goes with it, below /usr/local.

What goes with it is what `make install` would put there; it is packed under `share/`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

PACKED: Final = "share/"
PROGRAM: Final = "usr/local/bin/virtirq"
UNIT: Final = "virtirq.service"
PACKAGED: Final = "usr/lib/systemd/system/virtirq.service"
STATE: Final = "run/virtirq"
CONFIG: Final = "etc/virtirq"
EXTRA: Final = "/usr/local/share/"
MANY: Final = 5
"""More files than this are counted, unless their names are asked for."""


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="virtirq",
        description="Put this program below /usr/local, with its systemd unit, completions and"
        " documentation; or take all of that away. /etc/virtirq is yours: it is left alone.",
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=("install", "uninstall"))
    parser.add_argument(
        "--destdir", metavar="DIR", type=Path, help="below DIR instead; no service is touched"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="the name of every file")
    args = parser.parse_args(words)
    root = args.destdir or Path("/")
    live = args.destdir is None and os.path.isdir("/run/systemd/system")
    archive = Path(sys.path[0])
    try:
        with zipfile.ZipFile(archive) as packed:
            if args.what == "uninstall":
                return _uninstall(packed, root, live, args.verbose)
            return _install(archive, packed, root, live, args.verbose)
    except OSError as error:
        print(f"virtirq: error: {error.filename}: {error.strerror}", file=sys.stderr)
        denied = isinstance(error, PermissionError)
        if denied:
            print("hint: run it as root", file=sys.stderr)
        return 5 if denied else 1


def _install(archive: Path, packed: zipfile.ZipFile, root: Path, live: bool, verbose: bool) -> int:
    if (root / PACKAGED).exists():
        return _refused(
            f"the distribution's package is installed: /{PACKAGED}",
            "keep that one, or remove it first: this one would come before it",
        )
    changed = [
        f"/{name}"
        for name, data, mode in [
            (PROGRAM, archive.read_bytes(), 0o755),
            *((name, packed.read(PACKED + name), 0o644) for name in _names(packed)),
        ]
        if _put(root / name, data, mode)
    ]
    _tell("installed", changed, verbose)
    if not changed:
        print("all is there already")
    elif live:
        _systemctl("daemon-reload")
        if _systemctl("--quiet", "is-active", UNIT):
            _systemctl("restart", UNIT)
        else:
            print(f"next: systemctl enable --now {UNIT.removesuffix('.service')}")
    return 0


def _uninstall(packed: zipfile.ZipFile, root: Path, live: bool, verbose: bool) -> int:
    places = [root / name for name in (PROGRAM, *_names(packed))]
    if live and not (root / PACKAGED).exists():
        _systemctl("--quiet", "disable", "--now", UNIT)
        if not _restored():
            return 1
    removed = []
    for place in places:
        if place.is_file():
            place.unlink()
            removed.append(f"/{place.relative_to(root)}")
        _remove_empty(place.parent)
    _tell("removed", removed, verbose)
    if not removed:
        print("nothing was there")
    if live:
        _systemctl("daemon-reload")
    if (root / CONFIG).is_dir():
        print(f"left: /{CONFIG}")
    return 0


def _tell(done: str, names: Sequence[str], verbose: bool) -> None:
    """Each by its name; of many that only go with the program, how many."""
    extra = [each for each in names if each.startswith(EXTRA)]
    counted = len(extra) if len(names) > MANY and not verbose else 0
    for each in names:
        if not (counted and each in extra):
            print(f"{done} {each}")
    if counted:
        print(f"{done} {counted} files below {EXTRA}: documentation, completions, examples")


def _restored() -> bool:
    """Whether nothing is left to put back, with the daemon stopped."""
    if not Path("/", STATE, "journal.jsonl").exists():
        return True
    from virtirq.ui.cli import main as run

    if run(["--quiet", "restore"]) != 0:
        return not _refused(
            "not everything could be put back, so all stays installed",
            "'virtirq restore' says what; 'rm -r /run/virtirq' forgets it",
        )
    for file in Path("/", STATE).iterdir():
        file.unlink()
    Path("/", STATE).rmdir()
    return True


def _refused(what: str, hint: str) -> int:
    print(f"virtirq: error: {what}\nhint: {hint}", file=sys.stderr)
    return 1


def _names(packed: zipfile.ZipFile) -> Iterator[str]:
    yield from (each[len(PACKED) :] for each in packed.namelist() if each.startswith(PACKED))


def _put(place: Path, data: bytes, mode: int) -> bool:
    """Whether it had to be written. Who runs the old one keeps it: the name gets a new file."""
    if place.is_file() and place.read_bytes() == data and place.stat().st_mode & 0o777 == mode:
        return False
    _make(place.parent)
    new = place.with_name(f".{place.name}.new")
    new.write_bytes(data)
    new.chmod(mode)
    new.rename(place)
    return True


def _make(directory: Path) -> None:
    """With those above it, for all to read."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir()
        directory.chmod(0o755)


def _remove_empty(directory: Path) -> None:
    """It and those above it that are virtirq's own."""
    while "virtirq" in directory.parts and directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
        directory = directory.parent


def _systemctl(*words: str) -> bool:
    return subprocess.run(["systemctl", *words], check=False).returncode == 0
