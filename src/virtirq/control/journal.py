"""The journal: what every moved interrupt's affinity was, written before it is moved.

``journal.jsonl`` in the state directory, which lies in ``/run``: affinity dies with the boot and
so does the journal. A line each, appended and never changed:

* ``{"op": "move", …, "before": "0-3", "after": "5"}``, fsynced *before* the affinity is written;
* ``{"op": "moved", …, "after": "5"}`` once the kernel has taken it;
* ``{"op": "refused", …}`` once the kernel has not: what was known before the move holds again;
* ``{"op": "forget", …}`` once it is back as it was found;
* ``{"op": "known", …}`` all that is known of one interrupt, in a journal that was rewritten.

An interrupt is known by boot, device and action name: IRQ numbers are reused. The number is kept
to find the interrupt while it has no action. Between ``move`` and ``moved`` a crash may hide
whether the write happened; then both values count as ours.

Putting back needs no line beforehand: the value that we wrote and the one that was found are both
in the journal already, so a full ``/run`` hinders no undo.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from virtirq.control.state import StateDirectory
from virtirq.cpuset import CpuSet
from virtirq.errors import BusyError, InputError, JournalError, VirtirqError
from virtirq.model import InterruptKey, InterruptKind, PciAddress, Remembered

_NAME: Final = "journal.jsonl"
_FRESH: Final = "journal.new"
_LOCK: Final = "lock"
_COMPACT_BYTES: Final = 1 << 20
_START: Final = b'{"op": "'
_ENCODE: Final = json.JSONEncoder().encode
_MAX_LINE: Final = 1 << 17
"""Bytes; two lists of every other one of 8192 CPUs are 40 kB."""


class Journal:
    """The journal of one boot, open for appending. Get one from `locked_journal`."""

    def __init__(
        self, directory: StateDirectory, boot_id: str | None, *, examined: bool = False
    ) -> None:
        """Raises JournalError when what is there cannot be understood.

        One that is only `examined` is not changed, nor made: raises FileNotFoundError, too.
        """
        self._directory = directory
        self._path = directory.path / _NAME
        self._boot = boot_id or ""
        self._known: dict[InterruptKey, Remembered] = {}
        self._earlier: dict[InterruptKey, Remembered | None] = {}
        """What was known before the last move, for when the kernel refuses it."""
        self._broken = False
        self._size = 0
        self._lines = 0
        flags = os.O_RDONLY if examined else os.O_RDWR | os.O_APPEND
        self._descriptor = directory.open(_NAME, flags, make=not examined)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def is_current(self) -> bool:
        """Whether the file is what this object knows: nobody else wrote to it or replaced it."""
        mine = os.fstat(self._descriptor)
        try:
            there = os.stat(_NAME, dir_fd=self._directory.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return not self._broken and os.path.samestat(mine, there) and mine.st_size == self._size

    def tidy(self) -> None:
        """Make the file short again when most of it tells of what is over."""
        if self._size > _COMPACT_BYTES and self._lines > 8 * len(self._known):
            self._compact()

    def remembered(self) -> tuple[Remembered, ...]:
        """Every interrupt that virtirq moved in this boot and has not put back."""
        return tuple(self._known.values())

    def known(self, key: InterruptKey) -> Remembered | None:
        """What is remembered of one interrupt."""
        return self._known.get(key)

    def move(self, found: Remembered) -> None:
        """Remember that an interrupt is about to be moved, from where and to where.

        `found` is what it would be if it had never been moved before: its `original` is the
        affinity now, its one `written` value the one to come. Returns when that is on stable
        storage. Raises JournalError.
        """
        (after,) = found.written
        line = self._line("move", found.key, before=found.original, after=after)
        self._append(line | _more(found))
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error
        self._move(found)

    def moved(self, *taken: tuple[InterruptKey, CpuSet]) -> None:
        """The kernel has taken these values. Raises JournalError; those before stay ours too."""
        self._append(*(self._line("moved", key, after=after) for key, after in taken))
        for key, after in taken:
            self._moved(key, after)

    def refused(self, key: InterruptKey) -> None:
        """The kernel has not taken what the last `move` announced. Raises JournalError."""
        self._append(self._line("refused", key))
        self._take_back(key)

    def forget(self, key: InterruptKey) -> None:
        """The interrupt is as it was found, or gone. Raises JournalError."""
        if key in self._known:
            self._append(self._line("forget", key))
            del self._known[key]

    def _move(self, found: Remembered) -> None:
        known = self._known.get(found.key)
        self._earlier[found.key] = known
        self._known[found.key] = _merged(known, found)

    def _moved(self, key: InterruptKey, after: CpuSet) -> None:
        self._earlier.pop(key, None)
        if key in self._known:
            self._known[key] = replace(self._known[key], written=(after,))

    def _take_back(self, key: InterruptKey) -> None:
        earlier = self._earlier.pop(key, None)
        if earlier is not None:
            self._known[key] = earlier
        else:
            self._known.pop(key, None)

    def _line(self, op: str, key: InterruptKey, **more: CpuSet) -> dict[str, Any]:
        device = {"device": str(key.device), "action": key.action}
        values = {name: str(value) for name, value in more.items()}
        return {"op": op, "boot": self._boot, "at": round(time.time(), 3), **device, **values}

    def _append(self, *lines: dict[str, Any]) -> None:
        if self._broken:
            raise JournalError(f"{self._path}: ends in a torn line")
        data = "".join(f"{_ENCODE(line)}\n" for line in lines).encode()
        try:
            written = os.write(self._descriptor, data)
            if written != len(data):
                self._broken = True  # unless the piece can be taken away again
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                self._broken = False
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error
        if written != len(data):
            raise JournalError(f"{self._path}: no room left for the journal")
        self._size += written
        self._lines += len(lines)

    def _load(self) -> None:
        try:
            with open(self._descriptor, "rb", closefd=False) as file:
                data = file.read()
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error
        *lines, tail = data.split(b"\n")
        self._size, self._lines = len(data) - len(tail), len(lines)
        for number, line in enumerate(lines, start=1):
            try:
                self._replay(json.loads(line))
            except (*_MALFORMED, InputError) as error:
                raise self._malformed(number, str(error)) from error
        if tail:
            # Torn by a crash in the middle of a line: what it announced was not done yet.
            # Anything else is not ours to cut off.
            if len(tail) > _MAX_LINE or not tail.isascii() or b"\0" in tail:
                raise self._malformed(len(lines) + 1, "not a piece of a line")
            if not (tail.startswith(_START) or _START.startswith(tail)):
                raise self._malformed(len(lines) + 1, "not the start of a line")
            try:
                os.ftruncate(self._descriptor, len(data) - len(tail))
            except OSError:
                self._broken = True  # good for undoing, which needs no line

    def _malformed(self, number: int, why: str) -> JournalError:
        return JournalError(
            f"{self._path}: line {number} is malformed: {why}",
            hint="move the file away; what it remembered is then not restored",
        )

    def _replay(self, line: dict[str, Any]) -> None:
        if line["boot"] != self._boot:
            return
        key = InterruptKey(PciAddress.parse(line["device"]), str(line["action"]))
        match line["op"]:
            case "move":
                after = CpuSet.parse(line["after"])
                self._move(_remembered(key, line, line["before"], (after,)))
            case "moved":
                self._moved(key, CpuSet.parse(line["after"]))
            case "refused":
                self._take_back(key)
            case "forget":
                self._known.pop(key, None)
            case "known":
                written = tuple(CpuSet.parse(each) for each in line["written"])
                self._known[key] = _remembered(key, line, line["original"], written)
            case op:
                raise ValueError(f"unknown op {op!r:.40}")

    def _compact(self) -> None:
        """Replace the file by one that says the same in as few lines as possible.

        Where that cannot be done (a full /run), the long one does as well.
        """
        try:
            fresh = self._directory.open(_FRESH, os.O_RDWR | os.O_APPEND | os.O_TRUNC)
        except VirtirqError:
            return
        old, self._descriptor = self._descriptor, fresh
        size, lines = self._size, self._lines
        self._size = self._lines = 0
        directory = self._directory.descriptor
        try:
            for each in self._known.values():
                line = self._line("known", each.key, original=each.original)
                self._append(line | _more(each) | {"written": [str(v) for v in each.written]})
            os.fsync(fresh)
            os.replace(_FRESH, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
        except (JournalError, OSError):
            self._descriptor, self._broken = old, False
            self._size, self._lines = size, lines
            os.close(fresh)
            with suppress(OSError):
                os.unlink(_FRESH, dir_fd=directory)
        else:
            os.close(old)


def examine(directory: Path, boot_id: str | None) -> None:
    """Raises JournalError or DeploymentError where the journal cannot be used; changes nothing.

    One that is not there can be, and somebody else's is not looked at.
    """
    try:
        owner = os.lstat(directory).st_uid
    except OSError:
        return
    if os.geteuid() not in (0, owner):
        return
    state = StateDirectory(directory)
    try:
        Journal(state, boot_id, examined=True).close()
    except FileNotFoundError:
        return
    finally:
        state.close()


class SharedJournal:
    """The journal for one process among several: read once, and held for each use.

    Raises DeploymentError when the directory cannot be written or is not this user's alone.
    """

    def __init__(self, directory: Path, boot_id: str | None) -> None:
        self._path = directory
        self._boot_id = boot_id
        self._journal: Journal | None = None
        self._state = StateDirectory(directory)
        try:
            self._lock = self._state.open(_LOCK, os.O_RDWR)
        except BaseException:
            self._state.close()
            raise

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        os.close(self._lock)
        self._state.close()

    @contextmanager
    def held(self, wait: float = 10.0) -> Iterator[Journal]:
        """The journal, held by this process alone, with what others wrote to it; `wait` seconds.

        Raises BusyError when another virtirq keeps it, JournalError when it cannot be
        understood. The kernel drops the lock when the process ends, however it ends (flock(2)).
        """
        _take(self._lock, self._path, wait)
        try:
            yield self._current()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _current(self) -> Journal:
        if self._journal is not None and not self._journal.is_current():
            self._journal.close()
            self._journal = None
        if self._journal is None:
            self._journal = Journal(self._state, self._boot_id)
        self._journal.tidy()
        return self._journal


@contextmanager
def locked_journal(directory: Path, boot_id: str | None, wait: float = 10.0) -> Iterator[Journal]:
    """The journal for one use; raises what `SharedJournal` and `SharedJournal.held` raise."""
    shared = SharedJournal(directory, boot_id)
    try:
        with shared.held(wait) as journal:
            yield journal
    finally:
        shared.close()


def _take(lock: int, directory: Path, wait: float) -> None:
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"{directory}: another virtirq is at work", hint="try again when it is done"
                ) from None
            time.sleep(0.05)


# RecursionError: a line of nothing but brackets.
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _more(entry: Remembered) -> dict[str, Any]:
    """The fields of a line that tell of the interrupt and its guest."""
    return {
        "guest": entry.guest,
        "name": entry.name,
        "irq": entry.irq,
        "kind": entry.kind.value,
        "incarnation": entry.incarnation,
    }


def _remembered(
    key: InterruptKey, line: dict[str, Any], original: str, written: tuple[CpuSet, ...]
) -> Remembered:
    irq, incarnation = line.get("irq", 0), line.get("incarnation")
    if type(irq) is not int or not (incarnation is None or type(incarnation) is int):
        raise ValueError("irq or incarnation is not a number")
    return Remembered(
        key,
        str(line["guest"]),
        CpuSet.parse(original),
        written,
        name=str(line.get("name", "")),
        irq=irq,
        kind=InterruptKind(line.get("kind", "msix")),
        incarnation=incarnation,
    )


def _merged(known: Remembered | None, found: Remembered) -> Remembered:
    """What is known of an interrupt once it is moved as `found` says.

    A value that is not ours becomes the one to put back, unless the interrupt is for certain the
    one that we moved before: then somebody moved it since, and the first original stands.
    """
    if known is None or found.again(known) is False:
        return found
    if found.original in known.written:
        written = tuple(dict.fromkeys((found.original, *found.written)))
        return replace(found, original=known.original, written=written)
    if found.again(known):
        return replace(found, original=known.original)
    return found
