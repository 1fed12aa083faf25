"""What is given out: wheel and source, Debian's package, one file for everything else.

`python -m release dist DIRECTORY` makes all of it; the same source gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
EPOCH: Final = 1_577_836_800
"""Seconds, the start of 2020: when all that is given out was changed last, as its files have it."""
