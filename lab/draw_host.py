"""Draws the lab's host for the documentation: `python -m lab.draw_host`.

The guests are those of the recorded host (record_demo.py); this is how it is there, live, with all
that a recording may lack.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .record_demo import demo_host

_PICTURE = Path(__file__).resolve().parents[1] / "docs/lab-host.svg"


def main() -> int:
    with demo_host() as host:
        print(host.run(["virtirq", "draw", "--plan", "-o", f"/tmp/{_PICTURE.name}"]).stdout)
        host.get(f"/tmp/{_PICTURE.name}", _PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
