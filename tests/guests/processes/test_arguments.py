"""Command lines: so much of each user's, whatever is in them."""

from __future__ import annotations

import pytest

from tests.hostmaker import MadeHost
from virtirq.guests.processes import arguments
from virtirq.guests.processes.arguments import Arguments
from virtirq.host.fs import LiveFs, decode


def status(uid: int) -> str:
    return f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n"


def host(*words: str, uid: int = 1000) -> MadeHost:
    files = {f"/proc/{pid}/cmdline": each for pid, each in enumerate(words, 1)}
    files |= {f"/proc/{pid}/task/{pid}/status": status(uid) for pid, _ in enumerate(words, 1)}
    return MadeHost(files=files)


@pytest.mark.parametrize("content", ["\0" * 400, "ä" * 200, "a b\0" * 100])
def test_what_is_read_counts_whatever_is_left_of_it(
    content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command line of NULs is as long to read as any, and none when they are taken off."""
    monkeypatch.setattr(arguments, "_MOST_OF_USER", 1000)
    fs = host(*[content] * 9).live()
    monkeypatch.setattr(fs, "beginning", lambda path, most: fs.memory._content(path)[:most])
    read = Arguments(fs)
    for pid in range(1, 10):
        read.of(pid)
    assert read.skipped == {1000}
    assert read._read[1000] == 1000


def test_anothers_are_read_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "_MOST_OF_USER", 10)
    fs = host("a" * 30, "b" * 30).live()
    fs.set("/proc/7/cmdline", "qemu\0-x\0")
    fs.set("/proc/7/task/7/status", status(107))
    read = Arguments(fs)
    assert [read.of(pid) for pid in (1, 2, 7)] == [["a" * 10], [], ["qemu", "-x"]]
    assert read.skipped == {1000}


def test_one_that_has_ended() -> None:
    assert Arguments(host().live()).of(99) == []


def test_the_beginning_of_a_file_is_as_it_is() -> None:
    content = LiveFs().beginning("/proc/self/cmdline", 1 << 20)
    assert content.endswith(b"\0")
    assert decode(content) == LiveFs().read("/proc/self/cmdline")
