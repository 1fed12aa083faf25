"""Tells irqbalance to leave our interrupts alone, by the socket that irqbalance-ui uses.

What irqbalance does is from its source, irqbalance.c, sock_handle() and init_socket(); tags 1.2
to 1.9.5. A client connects, sends one command with root's SCM_CREDENTIALS, and reads to the end:

* ``setup`` answers ``SLEEP s IRQ n LOAD n DIFF n CLASS n … BANNED mask``, an IRQ for each ban;
* ``settings ban irqs N N …`` *replaces* the list, and has everything balanced anew. ``NONE``
  empties it (an empty list would ban IRQ 0), and a 0 that is not the first number ends it.

A command is read with one recvmsg(2). Up to 1.9.4 it takes 500 bytes, and what is longer is cut
off in silence, in the middle of a number if need be; that is about 120 interrupts. Since 1.9.5 it
takes 16383, and what is longer is not obeyed. Which it is can be asked without harm: a ``setup``
with spaces after it, as long as the command to come, is answered, and a connection that is closed
with something unread ends in ECONNRESET (Linux kernel, net/unix/af_unix.c, unix_release_sock()).

It answers with send(2) and does not ignore SIGPIPE: who asks and hangs up before the answer kills
it. So does who connects and sends nothing: the kernel gives that the credentials of root, and what
is obeyed is the command before. (1.9.4 was seen to die of both.) So a connection on which an answer
is overdue stays open until it comes, and no other is made.

Not spoken to are versions before 1.7, which crash when they are asked for a list that is not
empty. The abstract socket ``irqbalance<PID>.sock`` is one of those before 1.5.

What we added is in ``bans.json`` in the state directory, written before irqbalance is told, so that
the next daemon knows it when this one is killed. It counts for the irqbalance that it names alone,
known by boot, process id and start time: another one has heard nothing from us.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import struct
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Final

from virtirq.control.state import StateDirectory
from virtirq.errors import DeploymentError, VirtirqError
from virtirq.host import paths
from virtirq.host.fs import HostFs, Reader
from virtirq.host.irqbalance import read_irqbalance, read_start, read_version
from virtirq.values import dataclass, pattern

PATIENCE: Final = 3.0
"""Seconds that irqbalance has for all that it is asked in one call."""

_NAME: Final = "bans.json"
_FRESH: Final = "bans.new"
_SETUP: Final = b"setup"
_NOTHING: Final = b"-"  # no command
_BAN: Final = b"settings ban irqs "
_NONE: Final = b"NONE"
_END: Final = b"\0"  # 1.7 and 1.8 read on into the heap without it (irqbalance: df7b543)
_SHORT: Final = 500  # bytes; every version reads as much
_LONG: Final = 16383
_TALKS: Final = (1, 7, 0)  # irqbalance: 503a3e6, "it should be use the address of @setup"
_LARGEST: Final = 1 << 20  # bytes of an answer; 16383 bytes of bans are some 150 kB in one
_ATTEMPTS: Final = 2
_PIECE: Final = 1 << 16
_PAUSE: Final = 0.01  # seconds
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred, unix(7)
_INSTEAD: Final = "start it with --banmod=vfio"

_HEAD: Final = pattern(rb"SLEEP -?\d{1,10} ", re.ASCII)
_BANNED: Final = pattern(
    rb"IRQ (-?\d{1,10}) LOAD \d{1,20} DIFF \d{1,20} CLASS -?\d{1,10} ", re.ASCII
)
_TAIL: Final = pattern(rb"BANNED [0-9a-f,]*", re.ASCII)
_INT: Final = range(-(1 << 31), 1 << 31)


class State(Enum):
    """How it stands with irqbalance.

    NOT_RUNNING: there is none. TOLD: its list holds ours, or none of ours once they were released.
    SPARED: it was started with ``--banmod`` and lets every interrupt of VFIO be. REFUSED: it
    could not be told; `Told.reason` says why.
    """

    NOT_RUNNING = "not running"
    TOLD = "told"
    SPARED = "spared"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Told:
    """What came of telling irqbalance; `pid` is its process id, where one runs.

    `left_out` are those of ours that this irqbalance has no room for, in a list that it was told.
    `reason` is one line, for REFUSED and where something is left out.
    """

    state: State
    pid: int | None = None
    left_out: frozenset[int] = frozenset()
    reason: str = ""


def parse_setup(answer: bytes) -> frozenset[int]:
    """The banned interrupts in an answer to ``setup``. Raises ValueError for anything else.

    Numbers may be negative: they are what the administrator gave to ``--banirq``, as an int.
    """
    head = _HEAD.match(answer)
    position = head.end() if head else 0
    banned = set()
    while found := _BANNED.match(answer, position):
        banned.add(int(found[1]))
        position = found.end()
    if head is None or _TAIL.fullmatch(answer, position) is None:
        raise ValueError(f"not an answer to setup: {answer[position:][:40]!a}")
    if not all(each in _INT for each in banned):
        raise ValueError("an IRQ number that is none")
    return frozenset(banned)


def ban_command(others: Collection[int], ours: Collection[int]) -> bytes:
    """The command that makes the list these and no more."""
    # 0 first: elsewhere it ends the list. Ours last, as a list that is cut off loses its end.
    order = sorted({*others, *ours}, key=lambda irq: (irq != 0, irq not in others, irq))
    return _BAN + (b" ".join(b"%d" % irq for irq in order) or _NONE) + _END


def fitting(
    others: Iterable[int], ours: Iterable[int], there: Collection[int], room: int
) -> frozenset[int] | None:
    """Which of ours fit, beside all of the others, in a command of `room` bytes.

    None when not even the others do. Those that are `there` already come first, so that
    a list that is full does not change all the time.
    """
    left = room - len(_BAN) - sum(len(str(irq)) + 1 for irq in others)
    if left < 0:
        return None
    chosen = set()
    for irq in sorted(ours, key=lambda irq: (irq not in there, irq)):
        left -= len(str(irq)) + 1
        if left < 0:
            break
        chosen.add(irq)
    return frozenset(chosen)


@dataclass(frozen=True, slots=True)
class _Process:
    """One irqbalance, told from every other that ever ran. `started`: ticks since the boot."""

    pid: int
    started: int
    boot: str


class _Trouble(Exception):  # noqa: N818 - it never leaves this module
    """Why irqbalance cannot be told, as one line."""


class IrqbalanceClient:
    """Our interrupts in irqbalance's list of those that it does not touch.

    Its methods block, for a little longer than `patience` seconds at most, raise nothing, and are
    for one thread at a time.
    """

    def __init__(
        self,
        directory: Path,
        fs: HostFs,
        *,
        sockets: Path = Path(paths.IRQBALANCE_DIR),
        patience: float = PATIENCE,
    ) -> None:
        """`directory` is the state directory; `sockets` is where irqbalance has its socket."""
        self._directory = directory
        self._fs = fs
        self._sockets = sockets
        self._patience = patience
        self._sure: tuple[_Process, frozenset[int], Told] | None = None
        """What it holds as far as we know: whom we told, what, and what came of it."""
        self._talk: _Talk | None = None

    def close(self) -> None:
        """Hang up. An irqbalance whose answer is overdue dies of it: for when all is over."""
        if self._talk is not None:
            self._talk.close()
        self._talk = None

    def keep(self, irqs: Collection[int], *, verify: bool = False) -> Told:
        """Have irqbalance leave these alone, and what others banned; nothing else of ours.

        Does not ask an irqbalance that was told the same before, unless `verify`.
        """
        return self._settle(frozenset(irqs), verify=verify)

    def release(self) -> Told:
        """Take out exactly what we put in, this daemon or one before it."""
        told = self._settle(frozenset(), verify=True)
        if told.state is State.TOLD:
            self._forget()
        return told

    def _settle(self, wanted: frozenset[int], *, verify: bool) -> Told:
        pid = None
        try:
            reader = Reader(self._fs)
            found = read_irqbalance(reader)
            pid = found.pid
            if found.running is None:
                gaps = ", ".join(f"{gap.path}: {gap.error}" for gap in reader.gaps)
                raise _Trouble(f"whether it runs cannot be told: {gaps}")
            process = None if pid is None else self._identify(pid)
            if process is None:
                self._sure = None
                return Told(State.NOT_RUNNING)
            if found.spares_vfio:
                return Told(State.SPARED, pid)
            if not verify and self._sure is not None and self._sure[:2] == (process, wanted):
                return self._sure[2]
            self._sure = None
            told = self._tell(process, wanted)
            self._sure = (process, wanted, told)
            return told
        except (_Trouble, VirtirqError, OSError) as error:
            self._sure = None
            return Told(State.REFUSED, pid, reason=" ".join(str(error).split()))

    def _identify(self, pid: int) -> _Process | None:
        if self._fs.recording is not None:
            raise _Trouble("a recorded host's cannot be told anything")
        started = read_start(self._fs, pid)
        if started is None:
            return None
        return _Process(pid, started, Reader(self._fs).text(paths.BOOT_ID) or "")

    def _tell(self, process: _Process, wanted: frozenset[int]) -> Told:
        added = recorded = self._load(process)
        if not wanted and not recorded:
            return Told(State.TOLD, process.pid)
        talk = self._talk_to(process)
        there = talk.banned()
        for _ in range(_ATTEMPTS):
            # What is in the list and was not put there by us is somebody else's, though it be ours
            # too; what we put there and is gone was taken out by somebody who may put it back.
            added &= there
            others = there - added
            ours = wanted - others
            chosen, why = _chosen(talk, others, ours, there)
            if others | chosen != there:
                if not chosen <= recorded:
                    recorded |= chosen
                    self._save(process, recorded)
                talk.replace(ban_command(others, chosen))
                added |= chosen
                there = talk.banned()
            # Others may have banned or unbanned something meanwhile.
            if chosen <= there and not added & (there - chosen):
                if recorded != chosen:
                    # A file that says too much still serves: taking out needs no room on a disk.
                    with suppress(VirtirqError, OSError):
                        self._save(process, chosen)
                return Told(State.TOLD, process.pid, ours - chosen, why)
        raise _Trouble("it does not keep to the list that it was told")

    def _talk_to(self, process: _Process) -> _Talk:
        if self._talk is None or self._talk.process != process:
            self.close()
            version = read_version(self._fs, process.pid)
            if version is not None and version < _TALKS:
                told = ".".join(map(str, version))
                raise _Trouble(f"version {told} crashes when asked for its list: {_INSTEAD}")
            self._talk = _Talk(process, self._sockets)
        self._talk.begin(time.monotonic() + self._patience)
        return self._talk

    def _load(self, process: _Process) -> frozenset[int]:
        """What we added to this irqbalance's list, by the file. Raises DeploymentError, OSError.

        A file that is not whole tells nothing, and what may be of ours in the list stays there.
        """
        state = StateDirectory(self._directory)
        try:
            descriptor = state.open(_NAME, os.O_RDONLY)
            with open(descriptor, "rb") as file:
                data = file.read(_LARGEST)
        finally:
            state.close()
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            return _added(json.loads(data), process)
        return frozenset()

    def _save(self, process: _Process, added: frozenset[int]) -> None:
        """Raises DeploymentError or OSError, and then the old file stands."""
        content = {
            "pid": process.pid,
            "started": process.started,
            "boot": process.boot,
            "irqs": sorted(added),
        }
        data = json.dumps(content).encode()
        state = StateDirectory(self._directory)
        try:
            # No fsync(2): it outlives every process, and must not outlive the kernel.
            descriptor = state.open(_FRESH, os.O_WRONLY | os.O_TRUNC)
            try:
                if os.write(descriptor, data) != len(data):
                    raise DeploymentError(f"{self._directory / _FRESH}: no room left")
            finally:
                os.close(descriptor)
            here = state.descriptor
            os.replace(_FRESH, _NAME, src_dir_fd=here, dst_dir_fd=here)
        finally:
            state.close()

    def _forget(self) -> None:
        """What we added is out of the list, so a file that stays says nothing wrong."""
        with suppress(VirtirqError, OSError):
            state = StateDirectory(self._directory)
            try:
                os.unlink(_NAME, dir_fd=state.descriptor)
            finally:
                state.close()


def _chosen(
    talk: _Talk, others: frozenset[int], ours: frozenset[int], there: frozenset[int]
) -> tuple[frozenset[int], str]:
    """Which of ours the list has room for, and why no more."""
    needed = len(ban_command(others, ours))
    room = _SHORT
    if needed > _SHORT and talk.reads(min(needed, _LONG)):
        room = min(needed, _LONG)
    chosen = fitting(others, ours, there, room)
    if chosen is None:
        raise _Trouble(
            f"it reads {room} bytes of a list, and the {len(others)} interrupts that others"
            f" banned take more: {_INSTEAD}"
        )
    if chosen == ours:
        return chosen, ""
    return chosen, (
        f"it reads {room} bytes of a list, so {len(ours - chosen)} of {len(ours)} interrupts are"
        f" left out: {_INSTEAD}"
    )


def _added(data: Any, process: _Process) -> frozenset[int]:
    """Raises ValueError, KeyError or TypeError for what we did not write."""
    irqs = data["irqs"]
    if type(irqs) is not list or not all(type(irq) is int for irq in irqs):
        raise TypeError("not numbers")
    same = (data["pid"], data["started"], data["boot"])
    return frozenset(irqs if same == (process.pid, process.started, process.boot) else ())


class _Talk:
    """Talks with one irqbalance. All but `close` raise _Trouble."""

    def __init__(self, process: _Process, sockets: Path) -> None:
        self.process = process
        self._path = str(sockets / f"irqbalance{process.pid}.sock")
        self._deadline = 0.0
        self._overdue: socket.socket | None = None

    def close(self) -> None:
        if self._overdue is not None:
            self._overdue.close()
        self._overdue = None

    def begin(self, deadline: float) -> None:
        """Have until then, by time.monotonic(), for what follows; first for what is overdue."""
        self._deadline = deadline
        if self._overdue is not None:
            late, self._overdue = self._overdue, None
            self._hear(late)

    def banned(self) -> frozenset[int]:
        """Its list."""
        answer, _ = self._exchange(_SETUP)
        if not answer:
            raise _Trouble("it hung up without an answer: it heeds root alone")
        try:
            return parse_setup(answer)
        except ValueError as error:
            raise _Trouble(str(error)) from error

    def reads(self, size: int) -> bool:
        """Whether it reads a command of so many bytes, and reads all of it."""
        answer, whole = self._exchange(_SETUP.ljust(size))
        return whole and answer != b""

    def replace(self, command: bytes) -> None:
        """Send a command that is obeyed without an answer, and wait until it was."""
        _, whole = self._exchange(command)
        if not whole:
            raise _Trouble("it read only a part of the list")

    def _exchange(self, command: bytes) -> tuple[bytes, bool]:
        """The answer, and whether all of the command was read."""
        talk = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._connect(talk)
            me = _CREDENTIALS.pack(os.getpid(), os.geteuid(), os.getegid())
            ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, me)]
            if talk.sendmsg([command], ancillary) != len(command):
                raise _Trouble("it took only a part of a command")
        except BaseException as error:
            talk.close()
            if isinstance(error, OSError):
                raise self._trouble(error) from error
            raise
        return self._hear(talk)

    def _connect(self, talk: socket.socket) -> None:
        """Raises OSError too."""
        while True:
            talk.settimeout(self._left())
            try:
                talk.connect(self._path)
                break
            except BlockingIOError:  # two others wait already: it listens with a backlog of 1
                time.sleep(_PAUSE)
        peer = talk.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        listens, _, _ = _CREDENTIALS.unpack(peer)
        if listens != self.process.pid:
            talk.send(_NOTHING)  # it may be an irqbalance all the same
            raise _Trouble(f"{self._path}: process {listens} listens there")

    def _hear(self, talk: socket.socket) -> tuple[bytes, bool]:
        """What is said until the other end hangs up; hangs up then, and not before."""
        answer, whole = bytearray(), True
        try:
            while True:
                talk.settimeout(self._left())
                piece = talk.recv(_PIECE)
                if not piece:
                    break
                answer += piece
                if len(answer) > _LARGEST:
                    raise _Trouble("it answers without end")
        except ConnectionResetError:
            whole = False
        except TimeoutError as error:
            self._overdue = talk
            raise self._trouble(error) from error
        except OSError as error:
            talk.close()
            raise self._trouble(error) from error
        except BaseException:
            talk.close()
            raise
        talk.close()
        return bytes(answer), whole

    def _trouble(self, error: OSError) -> _Trouble:
        if isinstance(error, TimeoutError):
            return _Trouble("it does not answer")
        return _Trouble(f"{self._path}: {error.strerror or error}")

    def _left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return left
