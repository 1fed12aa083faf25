"""The end of the kernel's events; `tests/kernel` has the rest, on a running kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtirq.daemon.kernel_events import KernelEvents
from virtirq.errors import UnavailableError
from virtirq.host.events import Pairing


def test_a_pipe_that_is_taken_away_is_one_error_that_says_so(tmp_path: Path) -> None:
    """Not one at each turn of the loop: a removed instance stays readable for epoll(7)."""
    events = KernelEvents.__new__(KernelEvents)
    events._instance = tmp_path
    events._pipe = os.open(tmp_path, os.O_RDONLY)  # EISDIR, as good as any
    try:
        with pytest.raises(UnavailableError, match="the kernel's events have ended: ") as caught:
            list(events.read())
        assert caught.value.hint is not None
    finally:
        os.close(events._pipe)


def test_a_piece_is_given_before_the_next_is_read() -> None:
    """What came first is acted on while the rest waits in the kernel."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    events = KernelEvents.__new__(KernelEvents)
    events._pipe, events._rest, events._pairing, events.lost = read, b"", Pairing(), False
    lines = [f"           <...>-1    [001]   1.000000: freed: irq={irq}\n" for irq in range(400)]
    try:
        os.write(write, "".join(lines).encode())
        pieces = events.read()
        first = next(pieces)
        left = len(os.read(read, 1 << 16))
        assert 0 < len(first) < 200
        assert left > 8000
        assert list(pieces) == []
    finally:
        os.close(read)
        os.close(write)
