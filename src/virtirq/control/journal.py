"""The journal: what every moved interrupt's affinity was, written before it is moved.

``journal.jsonl`` in the state directory, which lies in ``/run``: affinity dies with the boot and
so does the journal. A line each, appended and never changed:

* ``{"op": "move", …, "before": "0-3", "after": "5"}``, fsynced *before* the affinity is written;
* ``{"op": "moved", …, "after": "5"}`` once the kernel has taken it;
* ``{"op": "forget", …}`` once it is back as it was found.

An interrupt is known by boot, device and action name: IRQ numbers are reused. Between ``move``
and ``moved`` a crash may hide whether the write happened; then both values count as ours.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from virtirq.cpuset import CpuSet
from virtirq.errors import BusyError, DeploymentError, InputError, JournalError
from virtirq.model import InterruptKey, PciAddress, Remembered

_NAME: Final = "journal.jsonl"
_LOCK: Final = "lock"
_COMPACT_BYTES: Final = 1 << 20


class Journal:
    """The journal of one boot, open for appending. Get one from `locked_journal`."""

    def __init__(self, directory: Path, boot_id: str | None) -> None:
        """Raises JournalError when what is there cannot be understood."""
        self._path = directory / _NAME
        self._boot = boot_id or ""
        self._known: dict[InterruptKey, Remembered] = {}
        lines = self._load()
        self._descriptor = os.open(
            self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        if lines * 200 > _COMPACT_BYTES and lines > 8 * len(self._known):
            self._compact()

    def close(self) -> None:
        os.close(self._descriptor)

    def remembered(self) -> tuple[Remembered, ...]:
        """Every interrupt that virtirq moved in this boot and has not put back."""
        return tuple(self._known.values())

    def move(self, key: InterruptKey, guest: str, irq: int, before: CpuSet, after: CpuSet) -> None:
        """Remember that `key` is about to be moved. Returns when that is on stable storage."""
        self._known[key] = _moving(self._known.get(key), key, guest, before, after)
        self._append(self._line("move", key, guest=guest, irq=irq, before=before, after=after))
        os.fsync(self._descriptor)

    def moved(self, key: InterruptKey, after: CpuSet) -> None:
        """The kernel has taken `after`."""
        self._known[key] = _moved(self._known[key], after)
        self._append(self._line("moved", key, after=after))

    def forget(self, key: InterruptKey) -> None:
        """The interrupt is as it was found, or gone."""
        if self._known.pop(key, None) is not None:
            self._append(self._line("forget", key))

    def _line(self, op: str, key: InterruptKey, **more: object) -> dict[str, object]:
        values = {k: str(v) if isinstance(v, CpuSet) else v for k, v in more.items()}
        device = {"device": str(key.device), "action": key.action}
        return {"op": op, "boot": self._boot, "at": round(time.time(), 3), **device, **values}

    def _append(self, *lines: dict[str, object]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            written = os.write(self._descriptor, data)
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error
        if written != len(data):
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise JournalError(f"{self._path}: no room left for the journal")

    def _load(self) -> int:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            # Torn by a crash in the middle of a line: what it announced was not done yet.
            os.truncate(self._path, whole)
        lines = data[:whole].splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                self._replay(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
                raise JournalError(
                    f"{self._path}: line {number} is malformed: {error}",
                    hint="move the file away; what it remembered is then not restored",
                ) from error
        return len(lines)

    def _replay(self, line: dict[str, Any]) -> None:
        if line["boot"] != self._boot:
            return
        key = InterruptKey(PciAddress.parse(line["device"]), str(line["action"]))
        match line["op"]:
            case "move":
                before, after = CpuSet.parse(line["before"]), CpuSet.parse(line["after"])
                known = self._known.get(key)
                self._known[key] = _moving(known, key, str(line["guest"]), before, after)
            case "moved":
                if key in self._known:
                    self._known[key] = _moved(self._known[key], CpuSet.parse(line["after"]))
            case "forget":
                self._known.pop(key, None)
            case op:
                raise ValueError(f"unknown op {op!r}")

    def _compact(self) -> None:
        """Replace the file by one that says the same in as few lines as possible."""
        fresh = self._path.with_suffix(".new")
        old = self._descriptor
        self._descriptor = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
        )
        for each in self._known.values():
            last = each.original
            for value in each.written:
                self._append(
                    self._line("move", each.key, guest=each.guest, irq=0, before=last, after=value)
                )
                last = value
            if len(each.written) == 1:
                self._append(self._line("moved", each.key, after=last))
        os.fsync(self._descriptor)
        os.replace(fresh, self._path)
        os.close(old)


@contextmanager
def locked_journal(directory: Path, boot_id: str | None, wait: float = 10.0) -> Iterator[Journal]:
    """The journal, held by this process alone; `wait` is in seconds.

    Raises BusyError when another virtirq keeps it, DeploymentError when the directory cannot be
    written, JournalError when the journal cannot be understood. The kernel drops the lock when
    the process ends, however it ends (flock(2)).
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "run as root" if error.errno in (errno.EACCES, errno.EPERM) else None
        raise DeploymentError(f"{directory}: {error.strerror}", hint=hint) from error
    try:
        _take(lock, directory, wait)
        journal = Journal(directory, boot_id)
        try:
            yield journal
        finally:
            journal.close()
    finally:
        os.close(lock)


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


def _moving(
    known: Remembered | None, key: InterruptKey, guest: str, before: CpuSet, after: CpuSet
) -> Remembered:
    if known is not None and before in known.written:
        return Remembered(key, guest, known.original, (before, after))
    # Found with a value that is not ours: somebody else's, or a new vector's default.
    return Remembered(key, guest, before, (after,))


def _moved(known: Remembered, after: CpuSet) -> Remembered:
    return Remembered(known.key, known.guest, known.original, (after,))
