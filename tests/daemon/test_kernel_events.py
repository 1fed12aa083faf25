"""The end of the kernel's events; `tests/kernel` has the rest, on a running kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtirq.daemon.kernel_events import KernelEvents
from virtirq.errors import UnavailableError


def test_a_pipe_that_is_taken_away_is_one_error_that_says_so(tmp_path: Path) -> None:
    """Not one at each turn of the loop: a removed instance stays readable for epoll(7)."""
    events = KernelEvents.__new__(KernelEvents)
    events._instance = tmp_path
    events._pipe = os.open(tmp_path, os.O_RDONLY)  # EISDIR, as good as any
    try:
        with pytest.raises(UnavailableError, match="the kernel's events have ended: ") as caught:
            events.read()
        assert caught.value.hint is not None
    finally:
        os.close(events._pipe)
