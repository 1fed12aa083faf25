"""`python -m release WHAT DIRECTORY`: makes one of what is given out, or all of it (`dist`)."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Final

from lab.full import LabError
from virtirq import __version__

from . import ROOT, changes, deb, python, pyz

MAKERS: Final = {
    "wheel": python.wheel,
    "sdist": python.sdist,
    "pyz": pyz.pyz,
    "deb": deb.package,
}
SUMS: Final = "SHA256SUMS"
NOTES: Final = "CHANGES.md"
NAMED: Final = 3
"""Of what is not committed, that many names are told."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    parser.add_argument("what", choices=(*MAKERS, "dist"))
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    if args.what == "dist" and (changed := uncommitted(ROOT)):
        more = len(changed) - NAMED
        told = ", ".join(changed[:NAMED]) + (f" and {more} more" if more > 0 else "")
        print(f"release: warning: this is not what is committed: {told}", file=sys.stderr)
    try:
        made = dist(args.directory) if args.what == "dist" else [MAKERS[args.what](args.directory)]
    except (LabError, RuntimeError, ValueError, OSError) as error:
        print(f"release: error: {error}", file=sys.stderr)
        return 1
    for path in made:
        print(path)
    return 0


def dist(directory: Path) -> list[Path]:
    """All of it, what changed in this version, and check sums as sha256sum(1) takes them."""
    made = [make(directory) for make in MAKERS.values()]
    notes = directory / NOTES
    section = changes.section((ROOT / "CHANGELOG.md").read_text(), __version__)
    notes.write_text(f"# virtirq {__version__}\n\n{section.text}\n")
    made.append(notes)
    sums = directory / SUMS
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made]
    sums.write_text("".join(lines))
    return [*made, sums]


def uncommitted(root: Path) -> list[str]:
    """Files that differ from git's, and new ones; none where there is no git to ask."""
    asked = ["git", "-C", str(root), "status", "--porcelain", "--no-renames", "-z"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return [each[3:] for each in done.stdout.split("\0") if each]


if __name__ == "__main__":
    sys.exit(main())
