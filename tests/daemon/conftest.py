"""What all tests of the daemon's parts want."""

from __future__ import annotations

import pytest

from virtirq.daemon import blocking


@pytest.fixture(autouse=True)
def threads_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they have no call to make: whoever counts threads is to find those that hang."""
    monkeypatch.setattr(blocking, "_IDLE", 0.0)
