"""irqbalance's list of interrupts that it does not touch: merged, verified, and given back.

`Irqbalance` here is a real socket in a thread, and does what irqbalance does by its source.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.hostmaker import BOOT_ID, MadeFs, MadeHost
from virtirq.control import irqbalance as bans_module
from virtirq.control.irqbalance import (
    IrqbalanceClient,
    State,
    Told,
    ban_command,
    fitting,
    parse_setup,
)

ME = os.getpid()
CREDENTIALS = struct.Struct("3i")
OLD, NEW = 500, 16384
BAN = b"settings ban irqs "
PATIENT, HASTY = 60.0, 0.2


class Irqbalance:
    """An irqbalance of this process's id.

    `size`: of its buffer (500 up to 1.9.4, 16384 from 1.9.5). `terminates`: whether it ends the
    command with a NUL of its own (from 1.9.0). `root`: the user that it heeds. `before` sees each
    command before it is obeyed, `reply` may answer in its place, and `heeds` may be switched off.
    """

    def __init__(
        self,
        banned: Collection[int] = (),
        *,
        size: int = OLD,
        terminates: bool = True,
        root: int | None = None,
        reply: Callable[[socket.socket, bytes], bool] | None = None,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="irqb"))
        self.path = self.directory / f"irqbalance{ME}.sock"
        self.list = list(banned)
        self.commands: list[bytes] = []
        self.rescans = 0
        self.heeds = True
        self.before: Callable[[bytes], None] = lambda _: None
        self.reply = reply
        self.problem: BaseException | None = None
        self._size, self._terminates = size, terminates
        self._root = os.geteuid() if root is None else root
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self.path))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.listen(1)
        self._woken, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._wake.send(b"x")
        self._thread.join()
        for each in (self._socket, self._wake, self._woken):
            each.close()
        self.path.unlink(missing_ok=True)
        self.directory.rmdir()
        if self.problem is not None:
            raise self.problem

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._socket, self._woken], [], [])
            if self._woken in ready:
                return
            client, _ = self._socket.accept()
            with client:
                try:
                    self._handle(client)
                except (AssertionError, OSError) as problem:
                    self.problem = problem
                    return

    def _handle(self, client: socket.socket) -> None:
        """irqbalance: irqbalance.c, sock_handle()."""
        space = socket.CMSG_SPACE(CREDENTIALS.size)
        data, ancillary, _, _ = client.recvmsg(self._size, space)
        if self._size == NEW and len(data) == NEW:
            return  # "Received command too long."
        assert data, "it would obey the command before this one once more"
        ((level, kind, content),) = ancillary
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        pid, uid, gid = CREDENTIALS.unpack(content)
        assert (pid, uid, gid) == (ME, os.geteuid(), os.getegid())
        if uid != self._root:
            return  # "Permission denied for user to connect to socket."
        self.commands.append(data)
        self.before(data)
        if self.reply is not None and self.reply(client, data):
            return
        if data.startswith(BAN) and self.heeds:
            self.rescans += 1
            self.list = obeyed(data, terminates=self._terminates)
        if data.startswith(b"setup"):
            client.sendall(setup(self.list))  # SIGPIPE if nobody is there


def setup(banned: Collection[int]) -> bytes:
    each = (f"IRQ {irq} LOAD 0 DIFF 0 CLASS 0 " for irq in banned)
    return f"SLEEP 10 {''.join(each)}BANNED 00000000,000000f0".encode()


def strtoul(text: bytes) -> tuple[int, bytes]:
    """strtoul(3), kept in an int, and the rest of the text."""
    match = re.match(rb"[ \t\n\v\f\r]*([+-]?\d+)", text)
    if match is None:
        return 0, text
    value = min(abs(int(match[1])), (1 << 64) - 1)
    value = (-value if match[1].startswith(b"-") else value) & 0xFFFFFFFF
    return value - (1 << 32 if value >> 31 else 0), text[match.end() :]


def obeyed(command: bytes, *, terminates: bool = True) -> list[int]:
    """The list that a command makes; what lies in the heap behind it are digits, as luck has it."""
    text = command.removeprefix(BAN) + (b"" if terminates else b"9 77")
    text = text.partition(b"\0")[0]
    if text.startswith(b"NONE"):
        return []
    irq, text = strtoul(text)
    made: list[int] = []
    while True:
        if irq not in made:
            made.append(irq)
        irq, text = strtoul(text)
        if not irq:
            return made


@dataclass
class Host:
    """A host where an irqbalance runs, or not, and the state directory of virtirq there."""

    state: Path
    daemon: Irqbalance | None = None
    fs: MadeFs = field(default_factory=MadeHost().live)
    starts: int = 100
    talking: list[IrqbalanceClient] = field(default_factory=list)

    def start(self, banned: Collection[int] = (), **more: Any) -> Irqbalance:
        """Starts irqbalance, as the process id that it had before: that is reused at once."""
        self.stop()
        self.daemon = Irqbalance(banned, **more)
        self.fs = MadeHost(irqbalance=ME).live()
        self.starts += 1
        self.fs.set(f"/proc/{ME}/stat", stat_line(self.starts))
        return self.daemon

    def stop(self) -> None:
        for each in self.talking:
            each.close()
        self.talking.clear()
        if self.daemon is not None:
            self.daemon.close()
        self.daemon = None
        self.fs = MadeHost().live()

    def bans(self, patience: float = PATIENT) -> IrqbalanceClient:
        """Those of a virtirq that starts now."""
        sockets = self.daemon.directory if self.daemon else Path("/nowhere")
        made = IrqbalanceClient(self.state, self.fs, sockets=sockets, patience=patience)
        self.talking.append(made)
        return made

    @property
    def banned(self) -> set[int]:
        assert self.daemon is not None
        return set(self.daemon.list)

    @property
    def recorded(self) -> list[int]:
        file = self.state / "bans.json"
        text = file.read_text() if file.exists() else ""
        irqs: list[int] = json.loads(text)["irqs"] if text else []
        return irqs


def stat_line(started: int) -> str:
    return f"{ME} (irq) balance) S {' '.join('1' * 18)} {started} 4096 0"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "state")
    with closing(_Stopped(host)):
        yield host


class _Stopped:
    def __init__(self, host: Host) -> None:
        self.close = host.stop


TOLD = Told(State.TOLD, ME)


def refused(told: Told) -> str:
    assert (told.state, told.pid, told.left_out) == (State.REFUSED, ME, frozenset())
    assert told.reason
    assert told.reason.isprintable()
    return told.reason


class TestAnswers:
    @pytest.mark.parametrize(
        ("answer", "banned"),
        [
            ("SLEEP 10 BANNED 00000000", set()),
            ("SLEEP 1 BANNED ", set()),
            ("SLEEP 10 IRQ 45 LOAD 0 DIFF 0 CLASS 0 BANNED f,00000000", {45}),
            ("SLEEP 10 IRQ 45 LOAD 9 DIFF 8 CLASS 7 IRQ 0 LOAD 0 DIFF 0 CLASS 0 BANNED 0", {45, 0}),
            ("SLEEP -5 IRQ -1 LOAD 18446744073709551615 DIFF 0 CLASS -1 BANNED 0", {-1}),
            ("SLEEP 10 IRQ 2147483647 LOAD 0 DIFF 0 CLASS 0 BANNED 0", {2147483647}),
            ("SLEEP 10 IRQ -2147483648 LOAD 0 DIFF 0 CLASS 0 BANNED 0", {-2147483648}),
        ],
    )
    def test_good(self, answer: str, banned: set[int]) -> None:
        assert parse_setup(answer.encode()) == banned

    @pytest.mark.parametrize(
        "answer",
        [
            *("", " ", "SLEEP", "SLEEP 10", "SLEEP 10 ", "BANNED 0", "SLEEP x BANNED 0"),
            *("SLEEP 10 BANNED", "SLEEP 10 BANNED 0\n", "SLEEP 10 BANNED 0 ", "SLEEP 10 BANNED x"),
            "SLEEP 10 IRQ 45 LOAD 0 DIFF 0 CLASS 0 ",
            "SLEEP 10 IRQ 45 LOAD 0 DIFF 0 CLASS 0 IRQ 46 LOAD 0 DIF",
            "SLEEP 10 IRQ 45 LOAD 0 DIFF 0 CLASS 0 BANNED 0SLEEP 10 BANNED 0",
            "SLEEP 10 IRQ ٤٥ LOAD 0 DIFF 0 CLASS 0 BANNED 0",
            "SLEEP 10 IRQ 2147483648 LOAD 0 DIFF 0 CLASS 0 BANNED 0",
            "SLEEP 10 IRQ 99999999999 LOAD 0 DIFF 0 CLASS 0 BANNED 0",
            "SLEEP 10 IRQ 45 LOAD 0 DIFF 0 BANNED 0",
            "SLEEP 10  BANNED 0",
            "IRQ 45 LOAD 0 DIFF 0 CLASS 0 BANNED 0",
            "TYPE 1 NUMBER 0 LOAD 0 SAVE_MODE 0 ",
            f"SLEEP {'9' * 5000} BANNED 0",
        ],
    )
    def test_bad(self, answer: str) -> None:
        with pytest.raises(ValueError, match=r"IRQ number|not an answer"):
            parse_setup(answer.encode())

    @given(st.binary(max_size=200))
    def test_hostile(self, answer: bytes) -> None:
        with suppress(ValueError):
            parse_setup(answer)

    @given(
        banned=st.sets(st.integers(-(1 << 31), (1 << 31) - 1), max_size=20),
        at=st.integers(0, 400),
        junk=st.binary(min_size=1, max_size=4),
    )
    def test_broken(self, banned: set[int], at: int, junk: bytes) -> None:
        """Whatever is broken in it, only numbers that could be interrupts come out."""
        good = setup(banned)
        assert parse_setup(good) == banned
        at = min(at, len(good))
        for broken in (good[:at], good[:at] + junk + good[at:], good[:at] + junk):
            with suppress(ValueError):
                assert all(-(1 << 31) <= each < 1 << 31 for each in parse_setup(broken))


class TestCommands:
    @pytest.mark.parametrize(
        ("others", "ours", "command"),
        [
            ((), (), b"NONE\0"),
            ((5,), (), b"5\0"),
            ((), (45, 7), b"7 45\0"),
            ((90, 80), (45, 7), b"80 90 7 45\0"),
            ((90, 0), (45,), b"0 90 45\0"),
            ((90,), (0, 45), b"0 90 45\0"),
            ((-5,), (45,), b"-5 45\0"),
        ],
    )
    def test_ban_command(
        self, others: tuple[int, ...], ours: tuple[int, ...], command: bytes
    ) -> None:
        assert ban_command(others, ours) == BAN + command

    @given(
        others=st.frozensets(st.integers(-3, 70000)),
        ours=st.frozensets(st.integers(0, 70000)),
        terminates=st.booleans(),
    )
    @example(others=frozenset(), ours=frozenset(), terminates=False)
    @example(others=frozenset({5}), ours=frozenset({0}), terminates=False)
    def test_irqbalance_understands_it(
        self, others: frozenset[int], ours: frozenset[int], terminates: bool
    ) -> None:
        assert set(obeyed(ban_command(others, ours), terminates=terminates)) == others | ours

    @given(
        others=st.frozensets(st.integers(-3, 70000), max_size=60),
        ours=st.frozensets(st.integers(0, 70000), max_size=200),
        there=st.frozensets(st.integers(0, 70000), max_size=20),
        room=st.integers(20, 700),
    )
    def test_what_fits(
        self, others: frozenset[int], ours: frozenset[int], there: frozenset[int], room: int
    ) -> None:
        ours -= others
        chosen = fitting(others, ours, there, room)
        if chosen is None:
            assert len(ban_command(others, ())) > room
            return
        assert chosen <= ours
        assert not others | chosen or len(ban_command(others, chosen)) <= room
        if chosen != ours:
            first = min(ours - chosen, key=lambda irq: (irq not in there, irq))
            assert len(ban_command(others, chosen | {first})) > room
            assert fitting(others, ours, chosen, room) == chosen, "a full list stays as it is"


class TestKeep:
    def test_it_merges_with_what_others_banned(self, host: Host) -> None:
        host.start({9, 14})
        assert host.bans().keep({45, 46}) == TOLD
        assert host.banned == {9, 14, 45, 46}
        assert host.recorded == [45, 46]

    def test_the_same_again_is_not_told_again(self, host: Host) -> None:
        daemon = host.start({9})
        bans = host.bans()
        assert bans.keep({45}) == TOLD
        asked = len(daemon.commands)
        assert bans.keep([45]) == TOLD
        assert len(daemon.commands) == asked
        assert bans.keep({45}, verify=True) == TOLD
        assert daemon.commands[asked:] == [b"setup"]
        assert host.bans().keep({45}) == TOLD, "the next daemon finds it done"
        assert daemon.rescans == 1, "each time all of the host is balanced anew"

    def test_a_loss_is_seen_when_it_is_verified(self, host: Host) -> None:
        daemon = host.start({9})
        bans = host.bans()
        bans.keep({45})
        daemon.list = [11]
        assert bans.keep({45}, verify=True) == TOLD
        assert host.banned == {11, 45}

    def test_interrupts_come_and_go(self, host: Host) -> None:
        host.start({9})
        bans = host.bans()
        for ours in ({45, 46}, {46, 47}, set(), {48}):
            assert bans.keep(ours) == TOLD
            assert host.banned == {9} | ours
            assert host.recorded == sorted(ours)

    def test_what_others_banned_stays_though_it_be_ours(self, host: Host) -> None:
        host.start({45, 9})
        bans = host.bans()
        bans.keep({45, 46})
        assert host.recorded == [46]
        bans.keep({46})
        assert host.banned == {45, 9, 46}
        assert bans.release() == TOLD
        assert host.banned == {45, 9}

    def test_an_irqbalance_that_is_new_is_told(self, host: Host) -> None:
        host.start({9})
        bans = host.bans()
        bans.keep({45, 46})
        daemon = host.start({46, 10})
        bans._fs, bans._sockets = host.fs, daemon.directory
        assert bans.keep({45, 46}) == TOLD
        assert host.banned == {45, 46, 10}
        assert bans.release() == TOLD
        assert host.banned == {46, 10}, "an IRQ that the earlier one had from us is others' here"

    def test_zero_and_what_is_not_an_irq(self, host: Host) -> None:
        """irqbalance takes any number on its command line."""
        host.start({0, -1, 2147483647})
        assert host.bans().keep({45}) == TOLD
        assert host.banned == {0, -1, 2147483647, 45}

    def test_before_it_is_told_it_is_written_down(self, host: Host) -> None:
        daemon = host.start({9})
        seen: list[Any] = []

        def note(command: bytes) -> None:
            if command.startswith(BAN):
                seen.append(host.recorded)

        daemon.before = note
        bans = host.bans()
        bans.keep({45, 46})
        bans.keep({46, 47})
        assert seen == [[45, 46], [45, 46, 47]]
        assert host.recorded == [46, 47]

    def test_others_at_the_same_time(self, host: Host) -> None:
        daemon = host.start({9})

        def meanwhile(command: bytes) -> None:
            if command == b"setup" and BAN in daemon.commands[-2][: len(BAN)]:
                daemon.list.append(10)
                daemon.before = lambda _: None

        daemon.commands.append(b"")
        daemon.before = meanwhile
        assert host.bans().keep({45}) == TOLD
        assert host.banned == {9, 45, 10}
        assert host.recorded == [45]

    def test_others_who_replace_the_list_are_answered_once(self, host: Host) -> None:
        daemon = host.start({9})

        def meanwhile(command: bytes) -> None:
            if command == b"setup" and daemon.rescans == 1:
                daemon.list = [10]

        daemon.before = meanwhile
        assert host.bans().keep({45}) == TOLD
        assert host.banned == {10, 45}

    @pytest.mark.parametrize(
        ("found", "ours", "meanwhile", "left"),
        [
            ([9, 45], {46}, [9, 45], {9}),  # from what they had read before
            ([9, 45, 46], {46}, [9, 45, 46], {9}),
            ([9, 45, 46], {45, 46, 47}, [9, 45], {9}),
            ([9], {45, 46}, [9, 45], {9}),
            ([9, 46], {46, 47}, [9, 46, 47, 45], {9, 45}),  # 45 had been taken out, and is theirs
            ([9, 46], {47}, [9, 47, 45], {9, 45}),
        ],
    )
    def test_others_who_write_right_after_us(
        self, host: Host, found: list[int], ours: set[int], meanwhile: list[int], left: set[int]
    ) -> None:
        daemon = host.start({9})
        bans = host.bans()
        bans.keep({45, 46})
        daemon.list, daemon.rescans = found, 0

        def write(command: bytes) -> None:
            if command == b"setup" and daemon.rescans == 1:
                daemon.list, daemon.rescans = meanwhile, 7

        daemon.before = write
        assert bans.keep(ours, verify=True) == TOLD
        assert host.banned == left | ours
        assert bans.release() == TOLD
        assert host.banned == left


class TestRelease:
    def test_nothing_to_release(self, host: Host) -> None:
        daemon = host.start({9})
        assert host.bans().release() == TOLD
        assert host.bans().keep(()) == TOLD
        assert daemon.commands == []
        assert host.recorded == []

    def test_exactly_ours_goes(self, host: Host) -> None:
        host.start({9})
        bans = host.bans()
        bans.keep({45, 46})
        assert bans.release() == TOLD
        assert host.banned == {9}
        assert list(host.state.iterdir()) == []
        assert bans.keep({45}) == TOLD
        assert host.banned == {9, 45}

    def test_the_list_was_empty(self, host: Host) -> None:
        daemon = host.start()
        bans = host.bans()
        bans.keep({45})
        bans.release()
        assert daemon.list == []

    def test_of_a_daemon_that_was_killed(self, host: Host) -> None:
        host.start({9})
        host.bans().keep({45, 46})
        assert host.bans().release() == TOLD
        assert host.banned == {9}

    def test_of_an_irqbalance_that_is_gone(self, host: Host) -> None:
        host.start({9})
        host.bans().keep({45})
        host.stop()
        assert host.bans().release() == Told(State.NOT_RUNNING)
        host.start({45})
        assert host.bans().release() == TOLD
        assert host.banned == {45}

    def test_on_a_full_disk(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
        host.start({9})
        bans = host.bans()
        bans.keep({45})
        monkeypatch.setattr(os, "write", full)
        assert bans.release() == TOLD
        assert host.banned == {9}


def full(descriptor: int, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestNothingToTell:
    def test_not_running(self, host: Host) -> None:
        bans = host.bans()
        assert bans.keep({45}) == bans.release() == Told(State.NOT_RUNNING)
        assert not host.state.exists()

    def test_its_socket_is_left_behind(self, host: Host) -> None:
        fs = MadeHost(irqbalance=ME, removed=(f"/proc/{ME}",)).live()
        assert IrqbalanceClient(host.state, fs).keep({45}) == Told(State.NOT_RUNNING)

    def test_it_ends_just_now(self, host: Host) -> None:
        fs = MadeHost(irqbalance=ME).live()  # a directory without a stat
        assert IrqbalanceClient(host.state, fs).keep({45}) == Told(State.NOT_RUNNING)

    @pytest.mark.parametrize("option", ["--banmod=vfio-pci", "-m\0vfio", "--banm\0pci"])
    def test_spared(self, host: Host, option: str) -> None:
        daemon = host.start({9})
        host.fs.set(f"/proc/{ME}/cmdline", f"/usr/sbin/irqbalance\0--foreground\0{option}\0")
        bans = host.bans()
        assert bans.keep({45}) == bans.release() == Told(State.SPARED, ME)
        assert daemon.commands == []

    def test_a_recorded_host(self, host: Host) -> None:
        assert "recorded" in refused(
            IrqbalanceClient(host.state, MadeHost(irqbalance=ME).fs()).keep({45})
        )
        assert IrqbalanceClient(host.state, MadeHost().fs()).keep({45}) == Told(State.NOT_RUNNING)

    def test_not_known(self, host: Host) -> None:
        fs = MadeHost().live()
        fs.faults["/run/irqbalance"] = errno.EACCES
        told = IrqbalanceClient(host.state, fs).keep({45})
        assert (told.state, told.pid) == (State.REFUSED, None)
        assert "/run/irqbalance: Permission denied" in told.reason


def both(bans: IrqbalanceClient) -> set[str]:
    """The reasons of keep and, when there is something to release, of release."""
    reasons = {refused(bans.keep({45})), refused(bans.keep({45}))}
    bans._save(bans._identify(ME), frozenset({46}))  # type: ignore[arg-type]
    return reasons | {refused(bans.release())}


class TestTrouble:
    def test_it_heeds_another_user_alone(self, host: Host) -> None:
        daemon = host.start({9}, root=os.geteuid() + 1)
        (reason,) = both(host.bans())
        assert "hung up without an answer" in reason
        assert host.banned == {9}
        assert daemon.commands == []

    @pytest.mark.parametrize("beside", [0, 3])
    def test_it_hangs(self, host: Host, beside: int) -> None:
        """It accepts nobody; `beside` others wait for it too, more than it has places for."""
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/irqbalance{ME}.sock"
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(path)
                listening.listen(1)
                waiting = [socket.socket(socket.AF_UNIX) for _ in range(beside)]
                for each in waiting:
                    each.setblocking(False)
                    with suppress(BlockingIOError):
                        each.connect(path)
                host.start({9})
                bans = IrqbalanceClient(
                    host.state, host.fs, sockets=Path(directory), patience=HASTY
                )
                assert both(bans) == {"it does not answer"}
                bans.close()
                for each in waiting:
                    each.close()

    @pytest.mark.parametrize("hangs_at", [b"setup", BAN])
    def test_an_answer_that_is_late_is_waited_for(self, host: Host, hangs_at: bytes) -> None:
        """It would die of one who hangs up first; the server here says so."""
        release = threading.Event()
        daemon = host.start({9})

        def late(command: bytes) -> None:
            if command.startswith(hangs_at):
                release.wait(60)

        daemon.before = late
        bans = host.bans(HASTY)
        assert "does not answer" in refused(bans.keep({45}))
        asked = len(daemon.commands)
        assert "does not answer" in refused(bans.keep({45, 46}))
        assert len(daemon.commands) == asked, "it is not asked again meanwhile"
        if hangs_at == BAN:
            assert host.recorded == [45], "it may obey yet"
            assert "does not answer" in refused(bans.release())
        release.set()
        bans._patience = PATIENT
        assert bans.release() == TOLD
        assert host.banned == {9}
        assert bans.keep({46}) == TOLD
        assert host.banned == {9, 46}

    def test_what_hangs_is_forgotten_with_its_process(self, host: Host) -> None:
        with tempfile.TemporaryDirectory() as directory:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(f"{directory}/irqbalance{ME}.sock")
                listening.listen(1)
                daemon = host.start({9})
                bans = IrqbalanceClient(
                    host.state, host.fs, sockets=Path(directory), patience=HASTY
                )
                assert "does not answer" in refused(bans.keep({45}))
            bans._sockets, bans._patience = daemon.directory, PATIENT
            host.fs.set(f"/proc/{ME}/stat", stat_line(555))
            assert bans.keep({45}) == TOLD

    @pytest.mark.parametrize(
        "answer",
        [b"\0" * 70, b"\xff\x1b[2J", setup([45])[:-30], b"SLEEP 10 " * 9000, b"IRQ \n\n\n"],
    )
    def test_it_answers_nonsense(self, host: Host, answer: bytes) -> None:
        def reply(client: socket.socket, command: bytes) -> bool:
            client.sendall(answer)
            return True

        host.start({9}, reply=reply)
        (reason,) = both(host.bans())
        assert "not an answer to setup" in reason
        assert len(reason) < 300
        assert host.banned == {9}

    @pytest.mark.parametrize("piece", [b"IRQ 1 LOAD 0 DIFF 0 CLASS 0 " * 1000, b"x" * 65536])
    def test_it_answers_without_end(self, host: Host, piece: bytes) -> None:
        def reply(client: socket.socket, command: bytes) -> bool:
            client.sendall(b"SLEEP 10 ")
            with suppress(BrokenPipeError, ConnectionResetError):
                while True:
                    client.sendall(piece)
            return True

        host.start({9}, reply=reply)
        assert both(host.bans()) == {"it answers without end"}

    def test_it_answers_one_byte_at_a_time(self, host: Host) -> None:
        def reply(client: socket.socket, command: bytes) -> bool:
            wait = threading.Event()
            with suppress(BrokenPipeError):
                while not wait.wait(HASTY / 10):
                    client.sendall(b"S")
            return True

        host.start({9}, reply=reply)
        assert both(host.bans(HASTY)) == {"it does not answer"}

    def test_it_goes_away_in_the_middle(self, host: Host) -> None:
        def reply(client: socket.socket, command: bytes) -> bool:
            client.sendall(setup([9])[:12])
            return True

        host.start({9}, reply=reply)
        (reason,) = both(host.bans())
        assert "not an answer" in reason

    def test_it_went_away(self, host: Host) -> None:
        daemon = host.start({9})
        daemon.path.unlink()
        (reason,) = both(host.bans())
        assert reason.endswith(f"irqbalance{ME}.sock: No such file or directory")

    def test_nobody_listens(self, host: Host) -> None:
        daemon = host.start({9})
        daemon.path.unlink()
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(daemon.path))
        (reason,) = both(host.bans())
        assert reason.endswith("Connection refused")

    def test_it_does_not_obey(self, host: Host) -> None:
        daemon = host.start({9})
        daemon.heeds = False
        assert "does not keep to the list" in refused(host.bans().keep({45}))
        daemon.heeds = True
        assert host.bans().release() == TOLD
        assert host.banned == {9}

    def test_it_goes_on_when_that_is_over(self, host: Host) -> None:
        daemon = host.start({9}, reply=lambda *_: True)
        bans = host.bans()
        refused(bans.keep({45}))
        daemon.reply = None
        assert bans.keep({45}) == TOLD
        assert host.banned == {9, 45}

    def test_another_listens_in_its_place(self, host: Host) -> None:
        listens = (
            "import socket, sys; s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]);"
            "s.listen(9); print(flush=True); sys.stdin.read();"
            "print(b''.join(s.accept()[0].recv(9) for _ in range(3)).decode())"
        )
        with tempfile.TemporaryDirectory() as directory:
            path = f"{directory}/irqbalance{ME}.sock"
            command = [sys.executable, "-S", "-c", listens, path]
            pipe = subprocess.PIPE
            with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
                assert other.stdout is not None
                other.stdout.readline()
                host.start({9})
                bans = IrqbalanceClient(host.state, host.fs, sockets=Path(directory))
                (reason,) = both(bans)
                assert reason.endswith(f"process {other.pid} listens there")
                said, _ = other.communicate()
        assert said == b"---\n", "an irqbalance would obey the command before it once more"

    @pytest.mark.parametrize(
        ("version", "talks"),
        [("1.4.0", False), ("1.6.0", False), ("1.7.0", True), ("1.9.4", True), ("x", True)],
    )
    def test_one_that_would_crash(self, host: Host, version: str, talks: bool) -> None:
        daemon = host.start({9})
        host.fs.set(f"/proc/{ME}/exe", f"ELF\0irqbalance version {version}\n\0")
        told = host.bans().keep({45})
        if talks:
            assert told == TOLD
        else:
            assert f"version {version} crashes" in refused(told)
            assert daemon.commands == []

    def test_a_path_that_no_socket_can_have(self, host: Host, tmp_path: Path) -> None:
        host.start({9})
        bans = IrqbalanceClient(host.state, host.fs, sockets=tmp_path / ("x" * 100))
        (reason,) = both(bans)
        assert "too long" in reason

    def test_no_descriptor_is_left_open(self, host: Host) -> None:
        host.start({9}, reply=lambda client, _: bool(client.send(b"x")))
        bans = host.bans()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            refused(bans.keep({45}))
        assert len(os.listdir("/proc/self/fd")) == before


class TestLongLists:
    """Up to 1.9.4 irqbalance reads 500 bytes of a command, and 120 interrupts are more."""

    MANY = frozenset(range(100, 300))

    @pytest.mark.parametrize("terminates", [True, False])
    @pytest.mark.parametrize("count", [119, 120, 121])
    def test_around_the_limit(self, host: Host, count: int, terminates: bool) -> None:
        host.start({9}, terminates=terminates)
        ours = set(sorted(self.MANY)[:count])
        told = host.bans().keep(ours)
        fits = len(ban_command({9}, ours)) <= OLD
        assert fits == (count < 121)
        assert (told == TOLD) == fits
        assert host.banned == {9} | (ours - told.left_out)

    def test_what_does_not_fit_is_left_out(self, host: Host) -> None:
        others = {9, 14, 1234}
        daemon = host.start(others)
        bans = host.bans()
        told = bans.keep(self.MANY)
        assert (told.state, told.pid) == (State.TOLD, ME)
        assert 0 < len(told.left_out) < 100
        assert f"{len(told.left_out)} of 200 interrupts are left out" in told.reason
        assert "--banmod=vfio" in told.reason
        assert host.banned == others | (self.MANY - told.left_out)
        assert len(ban_command(others, host.banned - others)) <= OLD
        rescans = daemon.rescans
        more = self.MANY | {20, 21}
        again = bans.keep(more)
        assert again.left_out == told.left_out | {20, 21}
        assert daemon.rescans == rescans, "a full list stays as it is"
        assert bans.release() == TOLD
        assert host.banned == others

    def test_what_others_banned_is_not_cut_off(self, host: Host) -> None:
        daemon = host.start(range(1000, 1200))
        assert "200 interrupts that others banned" in refused(host.bans().keep({45}))
        assert host.banned == set(range(1000, 1200))
        assert daemon.rescans == 0
        assert host.recorded == []

    def test_of_a_newer_one(self, host: Host) -> None:
        host.start(range(1000, 1200), size=NEW)
        bans = host.bans()
        ours = set(range(2000, 4000))
        assert bans.keep(ours) == TOLD
        assert host.banned == set(range(1000, 1200)) | ours
        assert bans.release() == TOLD
        assert host.banned == set(range(1000, 1200))

    def test_of_a_newer_one_has_an_end_too(self, host: Host) -> None:
        daemon = host.start({9}, size=NEW)
        ours = set(range(2000, 8000))
        told = host.bans().keep(ours)
        assert told.state is State.TOLD
        assert host.banned == {9} | (ours - told.left_out)
        assert 0 <= 16383 - max(map(len, daemon.commands)) < 5

    @pytest.mark.parametrize("size", [499, 300])
    def test_one_that_reads_less_than_any(self, host: Host, size: int) -> None:
        """It is not known of any; what others banned survives."""
        others = set(range(1000, 1010))
        host.start(others, size=size)
        ours = set(range(100, 200)) | set(range(300, 330))
        assert "only a part" in refused(host.bans().keep(ours))
        assert others <= host.banned


class TestTheFile:
    @pytest.mark.parametrize("left", [0, 1, 20, -1])
    def test_torn(self, host: Host, left: int) -> None:
        """Nothing is known then: what may be ours stays in the list, rather than what is not."""
        host.start({9})
        host.bans().keep({45})
        file = host.state / "bans.json"
        file.write_bytes(file.read_bytes()[:left])
        assert host.bans().release() == TOLD
        assert host.banned == {9, 45}
        assert host.bans().keep({46}) == TOLD
        assert host.banned == {9, 45, 46}
        assert host.recorded == [46]

    @pytest.mark.parametrize(
        "content",
        [
            *("", "[]", "null", "7", '"irqs"', "{}", '{"irqs": [45]}', "[" * 5000, "\0\xff"),
            f'{{"pid": ME, "started": 101, "boot": "{BOOT_ID}", "irqs": 45}}',
            f'{{"pid": ME, "started": 101, "boot": "{BOOT_ID}", "irqs": ["45"]}}',
            f'{{"pid": ME, "started": 101, "boot": "{BOOT_ID}", "irqs": [true]}}',
            f'{{"pid": ME, "started": 101, "boot": "{BOOT_ID}", "irqs": [45.0]}}',
            f'{{"pid": ME, "started": 102, "boot": "{BOOT_ID}", "irqs": [45]}}',
            f'{{"pid": 1ME, "started": 101, "boot": "{BOOT_ID}", "irqs": [45]}}',
            '{"pid": ME, "started": 101, "boot": "another", "irqs": [45]}',
        ],
    )
    def test_what_is_not_about_this_irqbalance(self, host: Host, content: str) -> None:
        host.state.mkdir()
        (host.state / "bans.json").write_text(content.replace("ME", str(ME)))
        host.start({45})
        assert host.bans().release() == TOLD
        assert host.bans().keep({46}) == TOLD
        assert host.banned == {45, 46}

    def test_what_is(self, host: Host) -> None:
        host.state.mkdir()
        content = {"pid": ME, "started": 101, "boot": BOOT_ID, "irqs": [45]}
        (host.state / "bans.json").write_text(json.dumps(content))
        host.start({45, 9})
        assert host.bans().release() == TOLD
        assert host.banned == {9}

    @pytest.mark.parametrize("written", [full, lambda _, data: len(data) - 1])
    def test_no_room(
        self, host: Host, written: Callable[[int, bytes], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host.start({9})
        monkeypatch.setattr(os, "write", written)
        assert re.search("[Nn]o (space|room) left", refused(host.bans().keep({45})))
        assert host.banned == {9}, "what cannot be remembered is not told"

    @pytest.mark.parametrize("what", ["open to all", "link", "directory"])
    def test_a_directory_that_is_not_to_be_trusted(self, host: Host, what: str) -> None:
        daemon = host.start({9})
        host.state.mkdir()
        match what:
            case "open to all":
                host.state.chmod(0o777)
            case "link":
                (host.state / "bans.json").symlink_to("/dev/null")
            case "directory":
                (host.state / "bans.json").mkdir()
        bans = host.bans()
        assert str(host.state) in refused(bans.keep({45}))
        refused(bans.release())
        assert daemon.commands == []


class Killed(BaseException):
    """kill -9, at some point of an exchange."""


IRQS = st.frozensets(st.integers(0, 12), max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), IRQS),
        st.tuples(st.just("release"), st.none()),
        st.tuples(st.just("kill"), st.none()),
        st.tuples(st.just("kill in the middle"), st.tuples(IRQS, st.integers(0, 10))),
        st.tuples(st.just("restart"), IRQS),
        st.tuples(st.just("ban"), IRQS),
        st.tuples(st.just("unban"), IRQS),
        st.tuples(st.just("replace"), IRQS),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(first=IRQS, steps=STEPS)
def test_the_list_is_what_others_banned_and_ours(
    tmp_path_factory: pytest.TempPathFactory, first: frozenset[int], steps: list[Any]
) -> None:
    """Whatever happens in whatever order, once keep or release says that it is done."""
    host = Host(tmp_path_factory.mktemp("b") / "state")
    try:
        Story(host, first).play(steps)
    finally:
        host.stop()


class Story:
    """Knows what others banned, without asking anybody.

    What we put in, and somebody else bans as well, cannot be told from ours by anyone: the list
    does not change. So nobody here does that.
    """

    def __init__(self, host: Host, others: frozenset[int]) -> None:
        self.host, self.others, self.ours = host, set(others), frozenset[int]()
        self.daemon = host.start(others)
        self.bans = host.bans()
        self.changed = False

    def play(self, steps: list[Any]) -> None:
        for name, what in steps:
            getattr(self, name.replace(" ", "_"))(what)
        self.keep(self.ours)
        self.release(None)

    def keep(self, irqs: frozenset[int]) -> None:
        assert self.bans.keep(irqs, verify=self.changed) == TOLD
        self.ours, self.changed = irqs, False
        self.check()

    def release(self, _: None) -> None:
        assert self.bans.release() == TOLD
        self.ours, self.changed = frozenset(), False
        self.check()

    def check(self) -> None:
        assert self.host.banned == self.others | self.ours
        assert len(self.daemon.list) == len(self.host.banned)

    def kill(self, _: None) -> None:
        self.bans = self.host.bans()

    def kill_in_the_middle(self, what: tuple[frozenset[int], int]) -> None:
        """Dies before or after one of the things that it does to the outside."""
        irqs, point = what
        with pytest.MonkeyPatch.context() as patch:
            left = [point]
            for owner, name in ((os, "replace"), (bans_module._Talk, "_exchange")):
                patch.setattr(owner, name, deadly(getattr(owner, name), left))
            with suppress(Killed):
                self.bans.keep(irqs, verify=True)
        self.kill(None)
        self.keep(irqs)  # as the next daemon does first of all

    def restart(self, others: frozenset[int]) -> None:
        self.others, self.changed = set(others), True
        self.daemon = self.host.start(others)
        self.bans._fs, self.bans._sockets = self.host.fs, self.daemon.directory
        self.keep(self.ours)

    def ban(self, irqs: frozenset[int]) -> None:
        irqs -= frozenset(self.daemon.list)
        self.daemon.list += irqs
        self.others |= irqs
        self.changed = True

    def unban(self, irqs: frozenset[int]) -> None:
        """By irqbalance-ui, which sends the rest of the list; it takes out ours as well."""
        self.daemon.list = [irq for irq in self.daemon.list if irq not in irqs]
        self.others -= irqs
        self.changed = True
        self.keep(self.ours)

    def replace(self, irqs: frozenset[int]) -> None:
        """By one who knows nothing of ours."""
        irqs -= self.ours
        self.daemon.list = list(irqs)
        self.others = set(irqs)
        self.changed = True
        self.keep(self.ours)


def deadly(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def one(*arguments: Any, **more: Any) -> Any:
        for each in (lambda: None, lambda: function(*arguments, **more)):
            result = each()
            if left[0] == 0:
                raise Killed
            left[0] -= 1
        return result

    return one
