"""What all tests of the daemon's parts want."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.test_reconciler import DB, WEB, Scene
from virtirq.daemon import blocking


@pytest.fixture(autouse=True)
def threads_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they have no call to make: whoever counts threads is to find those that hang."""
    monkeypatch.setattr(blocking, "_IDLE", 0.0)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Both guests are known, and all of theirs is in place."""
    made = Scene(tmp_path)
    made.reconciler.know([WEB, DB])
    made.quiet()
    yield made
    made.die()
