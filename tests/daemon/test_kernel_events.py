"""The end of the kernel's events; `tests/kernel` has the rest, on a running kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.daemon import kernel_events
from virtirq.daemon.kernel_events import KernelEvents
from virtirq.errors import UnavailableError
from virtirq.host.events import KernelEvent, Pairing, parse


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


@contextmanager
def told(lines: int) -> Iterator[KernelEvents]:
    """So many lines are there to be read."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    events = KernelEvents.__new__(KernelEvents)
    events._pipe, events._rest, events._pairing, events.lost = read, b"", Pairing(), False
    line = "           <...>-1    [001]   1.000000: freed: irq={}\n"
    try:
        os.write(write, "".join(line.format(irq) for irq in range(lines)).encode())
        yield events
    finally:
        os.close(read)
        os.close(write)


def test_a_piece_is_given_before_the_next_is_read() -> None:
    """What came first is acted on while the rest waits in the kernel."""
    with told(400) as events:
        pieces = events.read()
        first = next(pieces)
        left = len(os.read(events.fileno(), 1 << 16))
        assert 0 < len(first) < 200
        assert left > 8000
        assert list(pieces) == []


def test_what_waits_is_given_some_hundred_at_a_time() -> None:
    """Not as little as the kernel prints at once: what comes after a write waits for all of it."""
    together = kernel_events._TOGETHER
    lines = 3 * together
    with told(lines) as events:
        first, *rest = (len(piece) for piece in events.read())
        assert first < 20
        assert all(together <= size < 2 * together for size in rest[:-1])
        assert first + sum(rest) == lines


def test_what_was_told_before_the_end_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, calls = SimpleNamespace(**vars(os)), iter(range(3))

    def read(descriptor: int, size: int) -> bytes:
        if next(calls) == 2:
            raise OSError(errno.ENODEV, "gone")
        return os.read(descriptor, size)

    mine.read = read
    monkeypatch.setattr(kernel_events, "os", mine)
    with told(100) as events:
        events._instance = Path("/here")
        pieces = events.read()
        assert len(next(pieces)) > 1
        assert len(next(pieces)) > 50
        with pytest.raises(UnavailableError):
            next(pieces)


@pytest.mark.parametrize(("lines", "reads"), [(1, 1), (5, 1), (15, 3)])
def test_what_comes_alone_takes_one_read(
    lines: int, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left by a piece that is full has to be asked for: epoll(7) does not tell of it."""
    asked: list[int] = []
    mine = SimpleNamespace(**vars(os))

    def read(descriptor: int, size: int) -> bytes:
        asked.append(size)
        return os.read(descriptor, size)

    mine.read = read
    monkeypatch.setattr(kernel_events, "os", mine)
    with told(lines) as events:
        assert [each.irq for piece in events.read() for each in piece] == list(range(lines))
    assert len(asked) == reads


_HEADS = {pid: f"           <...>-{pid:<7} [001]   1.000000: " for pid in (1, 2)}
_LINES = [
    line
    for irq in range(40, 46)
    for line in (
        f'{_HEADS[1]}requested: (f+0x0/0x1) irq={irq} name="vfio-msix[{irq}](0000:01:00.0)"',
        f"{_HEADS[1]}in_place: (g+0x1/0x2 <- f)",
    )
]
_LINES[3:3] = [f"{_HEADS[2]}freed: (free_irq+0x0/0x3b0) irq=7", "", "CPU:2 [LOST 7 EVENTS]"]
_LINES[9:9] = [f'{_HEADS[2]}moved: (m+0x0/0x1) irq=8 by="sh"', f"{_HEADS[2]}settled: (m <- n)"]


@given(st.lists(st.integers(1, 400), max_size=12))
def test_pieces_tell_what_the_whole_does(sizes: list[int]) -> None:
    """Wherever the kernel cuts what it tells, and though vectors are understood in one go."""
    text = "".join(f"{line}\n" for line in _LINES).encode()
    events = KernelEvents.__new__(KernelEvents)
    events._rest, events._pairing, events.lost = b"", Pairing(), False
    told: list[KernelEvent] = []
    for size in (*sizes, len(text)):
        piece, text = text[:size], text[size:]
        told += events._understood(events._rest + piece)
    pairing = Pairing()
    known = filter(None, (parse(line.encode()) for line in _LINES))
    assert told == [done for event in known for done in pairing.done(event)]
    assert [event.irq for event in told] == [40, 7, 41, 42, 8, 43, 44, 45]
    assert events.lost
    assert not events._rest
