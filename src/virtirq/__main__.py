"""``python -m virtirq``."""

import sys

from virtirq.ui.cli import main

if __name__ == "__main__":
    sys.exit(main())
