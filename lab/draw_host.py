"""Draws the lab's host for the documentation: `python -m lab.draw_host`.

The guests are those of the recorded host (record_demo.py); this is how it is there, live, with all
that a recording may lack.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from . import full
from .record_demo import guests, wheels

_PICTURE = Path(__file__).resolve().parents[1] / "docs/lab-host.svg"


def main() -> int:
    full.build()
    with tempfile.TemporaryDirectory() as directory, full.lab() as host, ExitStack() as running:
        wheels(Path(directory), host.python_version())
        host.install_wheels(Path(directory))
        for spec in guests(host):
            guest = running.enter_context(host.guest(spec))
            guest.traffic(2)
        print(host.run(["virtirq", "draw", "--plan", "-o", f"/tmp/{_PICTURE.name}"]).stdout)
        host.get(f"/tmp/{_PICTURE.name}", _PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
