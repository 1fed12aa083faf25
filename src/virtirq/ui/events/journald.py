"""The daemon's log in the journal, by journalctl(1): its library would have to be built."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from virtirq.control.log_entry import NAMES, LogEntry
from virtirq.model import Gap

# Fields that begin with _ are journald's own word (systemd.journal-fields(7)): any user may log
# under our name.
_OURS: Final = ("SYSLOG_IDENTIFIER=virtirq", "_UID=0")
_SHOWN: Final = ("journalctl", "--no-pager", "--output=json", *_OURS)
_LARGEST: Final = 1 << 20
"""Characters of an entry; a field of ours has no more than 16 thousand."""
_MICROSECONDS: Final = 1e6
_HIDDEN: Final = ("not seeing messages", "insufficient permissions")
"""What it says of files that this user may not read: of some it goes on, of all it fails."""


class Journaled(NamedTuple):
    """An entry, and the process that has logged it."""

    entry: LogEntry
    pid: int | None


class Read(NamedTuple):
    found: list[Journaled]
    gaps: tuple[Gap, ...]


def read(since: float | None, last: int | None) -> Read:
    """What is logged since then (None: this boot), of that the `last` so many."""
    words = [*_SHOWN, "--boot" if since is None else f"--since=@{max(0, int(since))}"]
    if last is not None:
        words.append(f"--lines={last}")
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=_environment(),
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        return Read([], (Gap("journald", f"{words[0]}: {error.strerror or error}"),))
    found = [each for line in done.stdout.splitlines() if (each := parse(line)) is not None]
    return Read(found, _gaps(done))


def _gaps(done: subprocess.CompletedProcess[str]) -> tuple[Gap, ...]:
    """Its hint that others' entries are hidden is a gap, and so is its failure."""
    said = [line for line in done.stderr.splitlines() if line.strip()]
    if any(words in line for line in said for words in _HIDDEN):
        return (Gap("journald", "not all of it is shown to this user"),)
    if done.returncode:
        return (Gap("journald", said[0] if said else f"journalctl failed ({done.returncode})"),)
    return (Gap("journald", said[0]),) if said and not done.stdout else ()


@contextmanager
def following(since: float) -> Iterator[Iterator[Journaled]]:
    """What is logged from then on, for as long as it is asked for. Raises OSError.

    Whole seconds: what was logged a little earlier may come as well.
    """
    with subprocess.Popen(
        [*_SHOWN, "--follow", "--no-tail", f"--since=@{int(since)}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=_environment(),
    ) as process:
        assert process.stdout is not None  # noqa: S101
        try:
            yield (each for line in process.stdout if (each := parse(line)) is not None)
        finally:
            process.terminate()


def _environment() -> Mapping[str, str]:
    """Its hints in the words that are looked for."""
    return {**os.environ, "LC_ALL": "C"}


def parse(line: str) -> Journaled | None:
    """An entry of ``journalctl -o json``; None for what is none, or has no message.

    A value that is no text is a list of bytes, and null when it is too long.
    """
    try:
        data = json.loads(line) if len(line) <= _LARGEST else None
        return None if data is None else _entry(data)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _entry(data: Mapping[str, Any]) -> Journaled:
    fields = {
        name: value
        for name in NAMES
        if (value := _text(data.get(f"VIRTIRQ_{name.upper()}"))) is not None
    }
    message = _text(data["MESSAGE"])
    if message is None:
        raise ValueError("no message")
    pid = _text(data.get("_PID"))
    at = int(data["__REALTIME_TIMESTAMP"]) / _MICROSECONDS
    entry = LogEntry(at, int(_text(data.get("PRIORITY")) or 6), message, fields)
    return Journaled(entry, None if pid is None else int(pid))


def _text(value: object) -> str | None:
    if isinstance(value, list) and value and all(isinstance(each, int) for each in value):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, list) and value:  # a field that was given more than once
        return _text(value[0])
    return value if isinstance(value, str) else None
