"""``python -m virtirq``."""

import sys

from virtirq.ui.cli import command

if __name__ == "__main__":
    sys.exit(command())
