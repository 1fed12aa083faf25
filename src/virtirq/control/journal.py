"""The journal: what every moved interrupt's affinity was, written before it is moved.

``journal.jsonl`` in the state directory, which lies in ``/run``: affinity dies with the boot and
so does the journal. A line each, appended and never changed:

* ``{"op": "move", …, "before": "0-3", "after": "5"}``, fsynced *before* the affinity is written
  (of ``/run``'s tmpfs that is a call that does nothing, and one for many lines: the promise does
  not hang on where the directory is);
* ``{"op": "moved", …, "after": "5"}`` once the kernel has taken it;
* ``{"op": "refused", …}`` once the kernel has not: what was known before the move holds again;
* ``{"op": "forget", …}`` once it is back as it was found;
* ``{"op": "known", …}`` all that is known of one interrupt, in a journal that was rewritten.

Each line ends in ``"crc"``, the CRC-32 of what stands before it: a bit that flips, here or on
the way, is told and never acted upon. Lines of earlier versions have none.

An interrupt is known by boot, device and action name: IRQ numbers are reused. The number is kept
to find the interrupt while it has no action. Between ``move`` and ``moved`` a crash may hide
whether the write happened; then both values count as ours.

Putting back needs no line beforehand: the value that we wrote and the one that was found are both
in the journal already, so a full ``/run`` hinders no undo.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from virtirq.control.state import ReadOnlyStateError, StateDirectory
from virtirq.cpuset import CpuSet
from virtirq.errors import BusyError, InputError, JournalError, VirtirqError
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import InterruptKey, InterruptKind, PciAddress, Remembered
from virtirq.values import replace

_NAME: Final = "journal.jsonl"
_FRESH: Final = "journal.new"
_LOCK: Final = "lock"
_AT_ONCE: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
_COMPACT_BYTES: Final = 1 << 20
_MOST_LINES: Final = 3
"""Of each interrupt, with what is over: the file is read whole before anything is moved."""
_MAX_BYTES: Final = 1 << 28
"""Some 16 lines for each of the 2^20 interrupts that nobody has."""
_START: Final = b'{"op": "'
_SEALING: Final = b', "crc": "%08x"}'
_SEALED_LINE: Final = b"%b" + _SEALING + b"\n"
_SEAL: Final = len(_SEALING % 0)
_decoded: Final = json.JSONDecoder().raw_decode
_quoted: Final = json.encoder.encode_basestring_ascii
_MAX_LINE: Final = 1 << 17
"""Bytes; two lists of every other one of 8192 CPUs are 40 kB."""
# drivers/char/random.c, proc_do_uuid(): lib/vsprintf.c's %pU
_BOOT_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class Journal:
    """The journal of one boot, open for appending. Get one from `locked_journal`."""

    def __init__(self, directory: StateDirectory, boot_id: str, *, reading: bool = False) -> None:
        """Raises JournalError when what is there cannot be understood.

        One that is only for `reading` is not changed, nor made: raises FileNotFoundError, too.
        """
        self._directory = directory
        self._path = directory.path / _NAME
        self._boot = boot_id
        self._of_boot = f'", "boot": {_quoted(boot_id)}, "at": '
        self._known = _Known()
        self._earlier: dict[InterruptKey, Remembered | None] = {}
        """What was known before the last move, for when the kernel refuses it."""
        self._untold = False
        """Whether the file tells of more than is known here: see `announce`."""
        self._reading = reading
        self._broken = False
        self._size = 0
        self._lines = 0
        flags = os.O_RDONLY if reading else os.O_RDWR | os.O_APPEND
        self._descriptor = directory.open(_NAME, flags, make=not reading)
        try:
            self._file = _file(self._descriptor)
            self._load()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def is_current(self) -> bool:
        """Whether the file is what this object knows: nobody else wrote to it or replaced it."""
        try:
            there = os.stat(_NAME, dir_fd=self._directory.descriptor, follow_symlinks=False)
        except OSError:
            return False
        mine = (there.st_ino, there.st_dev, there.st_size) == (*self._file, self._size)
        return mine and not self._broken and not self._untold

    def tidy(self) -> None:
        """Make the file short again when most of it tells of what is over."""
        if self._size > _COMPACT_BYTES and self._lines > _MOST_LINES * len(self._known):
            self._compact()

    def remembered(self) -> tuple[Remembered, ...]:
        """Every interrupt that virtirq moved in this boot and has not put back."""
        return tuple(self._known.values())

    def remembered_of(self, devices: Iterable[PciAddress]) -> tuple[Remembered, ...]:
        """As `remembered`, of these devices; what others have costs nothing."""
        return tuple(each for device in devices for each in self._known.of(device))

    def known(self, key: InterruptKey) -> Remembered | None:
        """What is remembered of one interrupt."""
        return self._known.get(key)

    def move(self, *found: Remembered) -> None:
        """Remember that interrupts are about to be moved, from where and to where.

        Each is what it would be if it had never been moved before: its `original` is the
        affinity now, its one `written` value the one to come. Returns when all of that is on
        stable storage. Raises JournalError: then none of it counts.
        """
        lines = []
        for each in found:
            (after,) = each.written
            form = MoveForm.of(each.key, after, each.guest, each.name, each.kind)
            lines.append(self._move_line(form, each.original, each.irq, each.incarnation))
        try:
            self._append(lines)
        except _FullError:
            self._compact()
            self._append(lines)
        self._sync()
        for each in found:
            self._move(each)

    def announce(self, form: MoveForm, before: CpuSet, irq: int, incarnation: int | None) -> None:
        """As `move`, by a prepared form: one interrupt, and where it is now.

        It has to be `announced` next, whatever came of it: that can wait until it was moved.
        """
        line = self._move_line(form, before, irq, incarnation)
        self._untold = True
        self._append([line])
        self._sync()

    def announced(self, found: Remembered) -> None:
        """This is what `announce` was told of, as `move` is given it."""
        self._move(found)
        self._untold = False

    def moved(self, *taken: tuple[InterruptKey, CpuSet]) -> None:
        """The kernel has taken these values. Raises JournalError; those before stay ours too."""
        head = self._head("moved")
        self._append([_line(f'{head}{_subject(key)}, "after": "{cpus}"') for key, cpus in taken])
        for key, after in taken:
            self._moved(key, after)

    def refused(self, *keys: InterruptKey) -> None:
        """The kernel has not taken what the last `move` announced. Raises JournalError."""
        head = self._head("refused")
        self._append([_line(f"{head}{_subject(key)}") for key in keys])
        for key in keys:
            self._take_back(key)

    def forget(self, *keys: InterruptKey) -> None:
        """The interrupts are as they were found, or gone. Raises JournalError."""
        over = {key: self._known[key] for key in keys if key in self._known}
        if not over:
            return
        head = self._head("forget")
        try:
            self._append([_line(f"{head}{_subject(key)}") for key in over])
        except _FullError:
            before = self._known
            self._known = _Known()
            for key, each in before.items():
                if key not in over:
                    self._known[key] = each
            if not self._compact():
                self._known = before
                raise
        for key in over:
            self._known.discard(key)

    def _move(self, found: Remembered) -> None:
        known = self._known.get(found.key)
        self._earlier[found.key] = known
        self._known[found.key] = _merged(known, found)

    def _moved(self, key: InterruptKey, after: CpuSet) -> None:
        self._earlier.pop(key, None)
        known = self._known.get(key)
        if known is not None and known.written != (after,):
            self._known[key] = replace(known, written=(after,))

    def _take_back(self, key: InterruptKey) -> None:
        if key not in self._earlier:
            return  # the file was made short since its move: both values stay ours
        earlier = self._earlier.pop(key)
        if earlier is not None:
            self._known[key] = earlier
        else:
            self._known.discard(key)

    def _head(self, op: str) -> str:
        """What a line begins with; what it tells of an interrupt follows."""
        return f'{{"op": "{op}{self._of_boot}{time.time():.3f}, '

    def _move_line(
        self, form: MoveForm, before: CpuSet, irq: int, incarnation: int | None
    ) -> bytes:
        which = "null" if incarnation is None else incarnation
        return _line(
            f'{{"op": "move{self._of_boot}{time.time():.3f}, {form.subject}, "before": "{before}"'
            f"{form.values}{irq}{form.kind}{which}"
        )

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error

    def _append(self, lines: Sequence[bytes]) -> None:
        if self._reading:
            raise JournalError(f"{self._path}: is on a read-only file system")
        if self._broken:
            raise JournalError(f"{self._path}: ends in a torn line")
        data = b"".join(lines)
        if self._size + len(data) > _MAX_BYTES:
            raise _FullError(f"{self._path}: no room left for the journal")
        try:
            written = os.write(self._descriptor, data)
            if written != len(data):
                self._broken = True  # unless the piece can be taken away again
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                self._broken = False
        except OSError as error:
            kind = _FullError if error.errno in _NO_ROOM else JournalError
            raise kind(f"{self._path}: {error.strerror}") from error
        if written != len(data):
            raise _FullError(f"{self._path}: no room left for the journal")
        self._size += written
        self._lines += len(lines)

    def _load(self) -> None:
        try:
            if os.fstat(self._descriptor).st_size > _MAX_BYTES:
                raise JournalError(
                    f"{self._path}: larger than any journal ({_MAX_BYTES >> 20} MiB)",
                    hint="move the file away; what it remembered is then not restored",
                )
            with open(self._descriptor, "rb", closefd=False) as file:
                data = file.read(_MAX_BYTES)
        except OSError as error:
            raise JournalError(f"{self._path}: {error.strerror}") from error
        *lines, tail = data.split(b"\n")
        self._size, self._lines = len(data) - len(tail), len(lines)
        for number, line in enumerate(lines, start=1):
            try:
                self._replay(_opened(line))
            except (*_MALFORMED, InputError) as error:
                why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
                raise self._malformed(number, why) from error
        if tail:
            # Torn by a crash in the middle of a line: what it announced was not done yet.
            # Anything else is not ours to cut off.
            try:
                _check_torn(tail)
            except ValueError as error:
                raise self._malformed(len(lines) + 1, str(error)) from error
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
        key = InterruptKey(_address(line["device"]), str(line["action"]))
        match line["op"]:
            case "move":
                after = CpuSet.parse(line["after"])
                self._move(_remembered(key, line, line["before"], (after,)))
            case "moved":
                self._moved(key, CpuSet.parse(line["after"]))
            case "refused":
                self._take_back(key)
            case "forget":
                self._known.discard(key)
            case "known":
                written = tuple(CpuSet.parse(each) for each in line["written"])
                self._known[key] = _remembered(key, line, line["original"], written)
            case op:
                raise ValueError(f"unknown op {op!r:.40}")

    def _compact(self) -> bool:
        """Replace the file by one that says the same in as few lines as possible.

        Whether that could be done: of a full /run nothing is needed if there is nothing to say.
        Where it cannot be, the long file does as well. Of what is between a move and its end, what
        was known before is not in the short file: then both values stay ours.
        """
        if self._reading or self._broken or self._untold:
            return False
        if not self._known:
            try:
                os.ftruncate(self._descriptor, 0)
            except OSError:
                return False
            self._size = self._lines = 0
            self._earlier.clear()
            return True
        try:
            fresh = self._directory.open(_FRESH, os.O_RDWR | os.O_APPEND | os.O_TRUNC)
        except VirtirqError:
            return False
        old, self._descriptor = self._descriptor, fresh
        size, lines = self._size, self._lines
        self._size = self._lines = 0
        directory = self._directory.descriptor
        try:
            head = self._head("known")
            known = self._known.values()
            self._append([_line(f"{head}{_subject(each.key)}{_known(each)}") for each in known])
            os.fsync(fresh)
            os.replace(_FRESH, _NAME, src_dir_fd=directory, dst_dir_fd=directory)
        except (JournalError, OSError):
            self._descriptor, self._broken = old, False
            self._size, self._lines = size, lines
            os.close(fresh)
            with suppress(OSError):
                os.unlink(_FRESH, dir_fd=directory)
            return False
        os.close(old)
        self._file = _file(fresh)
        self._earlier.clear()
        return True


def _file(descriptor: int) -> tuple[int, int]:
    """Which file it is, for as long as it is open."""
    found = os.fstat(descriptor)
    return found.st_ino, found.st_dev


def boot_id(fs: HostFs) -> str:
    """The id of this boot, under which everything is written down. Raises JournalError.

    Under another id, or none, nobody would find again what was there before a move. A recorded
    host may have none.
    """
    try:
        text = fs.read(paths.BOOT_ID.at())
    except FileNotFoundError as error:
        if fs.recording is not None:
            return ""
        raise _without_boot_id(error.strerror) from error
    except OSError as error:
        raise _without_boot_id(error.strerror) from error
    if fs.recording is None and not _BOOT_ID.fullmatch(text):
        raise _without_boot_id("is not an id" if text else "is empty")
    return text


def _without_boot_id(why: object) -> JournalError:
    return JournalError(
        f"{paths.BOOT_ID.at()}: {why}: without the boot's id nothing is moved, for nobody could"
        " put it back",
        hint="try again; in a container, see that it has a /proc of its own",
    )


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
        Journal(state, boot_id or "", reading=True).close()
    except FileNotFoundError:
        return
    finally:
        state.close()


class SharedJournal:
    """The journal for one process among several: read once, and held for each use.

    Raises DeploymentError when the directory cannot be written or is not this user's alone. Who
    is only `undoing` can do so where it is read-only: that needs no line (see `Journal.forget`).
    """

    def __init__(self, directory: Path, boot_id: str | None, *, undoing: bool = False) -> None:
        self._path = directory
        self._boot_id = boot_id or ""
        self._reading = False
        self._journal: Journal | None = None
        self._state = StateDirectory(directory)
        try:
            try:
                self._lock = self._state.open(_LOCK, os.O_RDWR)
            except ReadOnlyStateError:
                if not undoing:
                    raise
                self._lock = self._state.open(_LOCK, os.O_RDONLY, make=False)
                self._reading = True
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
        """For a `with`: `take`, and `release` at its end."""
        journal = self.take(wait)
        try:
            yield journal
        finally:
            self.release()

    def take(self, wait: float = 10.0) -> Journal:
        """The journal, held by this process alone until `release`, with what others wrote to it.

        Waits for `wait` seconds. Raises BusyError when another virtirq keeps it, JournalError when
        it cannot be understood. The kernel drops the lock when the process ends, however it ends
        (flock(2)).
        """
        try:
            fcntl.flock(self._lock, _AT_ONCE)
        except BlockingIOError:
            _wait_for(self._lock, self._path, wait)
        try:
            journal = self._journal
            return journal if journal is not None and journal.is_current() else self._read_anew()
        except BaseException:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            raise

    @property
    def taken(self) -> Journal:
        """What the last `take` has given: between that and `release`."""
        if self._journal is None:
            raise AssertionError("nobody has taken it")
        return self._journal

    def release(self) -> None:
        """Let others have it."""
        try:
            if self._journal is not None:
                self._journal.tidy()  # now, and not while somebody waits for what is to be done
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _read_anew(self) -> Journal:
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._journal = Journal(self._state, self._boot_id, reading=self._reading)
        return self._journal


@contextmanager
def locked_journal(
    directory: Path, boot_id: str | None, wait: float = 10.0, *, undoing: bool = False
) -> Iterator[Journal]:
    """The journal for one use; raises what `SharedJournal` and `SharedJournal.held` raise."""
    shared = SharedJournal(directory, boot_id, undoing=undoing)
    try:
        with shared.held(wait) as journal:
            yield journal
    finally:
        shared.close()


def _wait_for(lock: int, directory: Path, wait: float) -> None:
    deadline = None
    while True:
        try:
            fcntl.flock(lock, _AT_ONCE)
            return
        except BlockingIOError:
            deadline = deadline or time.monotonic() + wait
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"{directory}: another virtirq is at work", hint="try again when it is done"
                ) from None
            time.sleep(0.05)


class _Known(dict[InterruptKey, Remembered]):
    """What is remembered of each interrupt, found by device, too."""

    def __init__(self) -> None:
        self._keys: dict[PciAddress, dict[InterruptKey, None]] = {}

    def of(self, device: PciAddress) -> list[Remembered]:
        return [self[key] for key in self._keys.get(device, ())]

    def __setitem__(self, key: InterruptKey, value: Remembered) -> None:
        if key not in self:
            self._keys.setdefault(key.device, {})[key] = None
        super().__setitem__(key, value)

    def discard(self, key: InterruptKey) -> None:
        """Forget it, if it is known."""
        if super().pop(key, None) is None:
            return
        keys = self._keys[key.device]
        del keys[key]
        if not keys:
            del self._keys[key.device]


_KINDS: Final = {kind.value: kind for kind in InterruptKind}
# RecursionError: a line of nothing but brackets.
_MALFORMED: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class _FullError(JournalError):
    """There is no room for another line."""


_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


# A journal has many lines of few devices.
_address = lru_cache(1024)(PciAddress.parse)
_named = lru_cache(1024)(str)


class MoveForm(NamedTuple):
    """A line of `Journal.move`, as far as it can be written before the interrupt is there."""

    subject: str
    values: str
    kind: str

    @classmethod
    def of(
        cls, key: InterruptKey, after: CpuSet, guest: str, name: str, kind: InterruptKind
    ) -> MoveForm:
        """Of this interrupt, going there, of the guest of this key and name."""
        guests = f'"guest": {_quoted(guest)}, "name": {_quoted(name)}'
        return cls(
            _subject(key),
            f', "after": "{after}", {guests}, "irq": ',
            f', "kind": "{kind._value_}", "incarnation": ',
        )


@lru_cache(2048)
def _subject(key: InterruptKey) -> str:
    """The fields of a line that say of which interrupt it is: each is told of twice or more."""
    return f'"device": "{_named(key.device)}", "action": {_quoted(key.action)}'


def _line(text: str) -> bytes:
    """A whole one, of all that it tells."""
    body = text.encode()
    return _SEALED_LINE % (body, zlib.crc32(body))


def _seal(body: bytes) -> bytes:
    """What a line ends in."""
    return _SEALING % zlib.crc32(body)


def _opened(line: bytes) -> dict[str, Any]:
    """What a line says. Raises ValueError where it is not what was written."""
    text = line.decode()
    told, end = _decoded(text)
    if end != len(text):
        raise ValueError("more than a line")
    if "crc" in told and line[-_SEAL:] != _seal(line[:-_SEAL]):
        raise ValueError("its check sum is of another line")
    return told  # type: ignore[no-any-return]


def _check_torn(tail: bytes) -> None:
    """Raises ValueError unless a crash can have left this of a line."""
    if len(tail) > _MAX_LINE or not tail.isascii() or b"\0" in tail:
        raise ValueError("not a piece of a line")
    if not (tail.startswith(_START) or _START.startswith(tail)):
        raise ValueError("not the start of a line")
    try:
        _, end = json.JSONDecoder().raw_decode(tail.decode())
    except (ValueError, RecursionError):
        return
    if end != len(tail):
        raise ValueError("more than a line")  # whose line feed has become something else


def _known(entry: Remembered) -> str:
    written = ", ".join(f'"{cpus}"' for cpus in entry.written)
    incarnation = "null" if entry.incarnation is None else entry.incarnation
    return (
        f', "original": "{entry.original}", "guest": {_quoted(entry.guest)}'
        f', "name": {_quoted(entry.name)}, "irq": {entry.irq}, "kind": "{entry.kind._value_}"'
        f', "incarnation": {incarnation}, "written": [{written}]'
    )


def _remembered(
    key: InterruptKey, line: dict[str, Any], original: str, written: tuple[CpuSet, ...]
) -> Remembered:
    irq, incarnation = line.get("irq", 0), line.get("incarnation")
    if type(irq) is not int or not (incarnation is None or type(incarnation) is int):
        raise ValueError("irq or incarnation is not a number")
    kind = line.get("kind", "msix")
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r:.40}")
    return Remembered(
        key,
        str(line["guest"]),
        CpuSet.parse(original),
        written,
        name=str(line.get("name", "")),
        irq=irq,
        kind=_KINDS[kind],
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
