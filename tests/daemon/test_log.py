"""The log: the journal's native protocol on a real socket, and lines on pipes."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.daemon.journal_socket import FIELDS, Fields
from virtirq.daemon.log import JournalHandler, LinesHandler, Log, entry, set_up

ANYTHING = st.text(st.characters(exclude_categories=()))
LOST = "messages that could not be logged before the next one: "
HOSTILE = "web\nPRIORITY=0\n\x1b[2J\0\u202e\udcff"
SHOWN = "web\ufffdPRIORITY=0\ufffd\ufffd[2J\ufffd\ufffd\ufffd"


def parse(datagram: bytes) -> dict[str, bytes]:
    """The fields of a datagram, as journald reads them (src/journal/journald-native.c)."""
    found: dict[str, bytes] = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, datagram = rest[8 : 8 + size], rest[8 + size :]
            assert len(value) == size
            assert datagram[:1] == b"\n"
            datagram = datagram[1:]
        else:
            datagram = rest
        assert name.decode() not in found
        found[name.decode()] = value
    return found


def record(message: str, fields: dict[str, str]) -> logging.LogRecord:
    made = logging.LogRecord("virtirq", logging.INFO, "", 0, message, (), None)
    made.__dict__["virtirq_fields"] = fields
    return made


def logger_with(handler: logging.Handler) -> Log:
    logger = logging.Logger("virtirq", logging.DEBUG)
    logger.addHandler(handler)
    return Log(logger)


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "journal"))
        listening.setblocking(False)
        yield listening


@pytest.fixture
def log(tmp_path: Path, journald: socket.socket) -> Iterator[Log]:
    handler = JournalHandler(str(tmp_path / "journal"))
    yield logger_with(handler)
    handler.close()


def heard(journald: socket.socket) -> list[dict[str, bytes]]:
    found = []
    while True:
        try:
            found.append(parse(journald.recv(1 << 20)))
        except BlockingIOError:
            return found


def test_a_record_and_its_fields(log: Log, journald: socket.socket) -> None:
    log.info("moved", guest="web", device="0000:82:00.0", irq=65, action="pin", reason="vCPU 0")
    log.debug("looked")
    log.warning("full", finding="no-vector-space")
    log.error("refused", irq=0, guest=None)
    common = {"SYSLOG_IDENTIFIER": b"virtirq"}
    assert heard(journald) == [
        {
            "MESSAGE": b"moved",
            "PRIORITY": b"6",
            "VIRTIRQ_GUEST": b"web",
            "VIRTIRQ_DEVICE": b"0000:82:00.0",
            "VIRTIRQ_IRQ": b"65",
            "VIRTIRQ_ACTION": b"pin",
            "VIRTIRQ_REASON": b"vCPU 0",
            **common,
        },
        {"MESSAGE": b"looked", "PRIORITY": b"7", **common},
        {
            "MESSAGE": b"full",
            "PRIORITY": b"4",
            "VIRTIRQ_FINDING": b"no-vector-space",
            **common,
        },
        {"MESSAGE": b"refused", "PRIORITY": b"3", "VIRTIRQ_IRQ": b"0", **common},
    ]


def test_the_names_of_fields() -> None:
    """A contract: people filter by them. None may be renamed; the journal's own rules hold too
    (64 characters of A-Z, 0-9 and _, none of them at the start but a letter)."""
    assert set(FIELDS) == set(Fields.__annotations__)
    for name, field in FIELDS.items():
        assert field == f"VIRTIRQ_{name.upper()}"
        assert len(field) <= 64


def test_text_is_never_a_format(log: Log, journald: socket.socket) -> None:
    log.info("100% %s %d {} {0}", guest="%n")
    (told,) = heard(journald)
    assert told["MESSAGE"] == b"100% %s %d {} {0}"
    assert told["VIRTIRQ_GUEST"] == b"%n"


def test_no_value_makes_fields_of_its_own(log: Log, journald: socket.socket) -> None:
    log.info(HOSTILE, guest=HOSTILE, reason="\n", action="", status="=")
    (told,) = heard(journald)
    assert told["PRIORITY"] == b"6"
    assert told["MESSAGE"].decode() == SHOWN
    assert told["VIRTIRQ_GUEST"] == HOSTILE.replace("\udcff", "\\udcff").encode()
    assert told["VIRTIRQ_REASON"] == b"\n"
    assert told["VIRTIRQ_ACTION"] == b""
    assert told["VIRTIRQ_STATUS"] == b"="


@given(ANYTHING, st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANYTHING)))
def test_what_is_told_is_what_is_read(message: str, fields: dict[str, str]) -> None:
    told = parse(entry(record(message, fields)))
    assert told.pop("PRIORITY") == b"6"
    assert told.pop("SYSLOG_IDENTIFIER") == b"virtirq"
    shown = told.pop("MESSAGE").decode()
    assert shown.isprintable()
    assert len(shown) == len(message)
    assert told == {
        FIELDS[name]: text.encode(errors="backslashreplace") for name, text in fields.items()
    }


@pytest.mark.parametrize("character", ["a", "\u20ac", "\U0001f600", "\n"])
def test_what_is_too_long_is_cut(log: Log, journald: socket.socket, character: str) -> None:
    long = character * 2_000_000
    log.info(long, **dict.fromkeys(FIELDS, long))  # type: ignore[arg-type]
    (told,) = heard(journald)
    assert {name for name, value in told.items() if len(value) > 1000} == {
        "MESSAGE",
        *FIELDS.values(),
    }
    for name in ("MESSAGE", *FIELDS.values()):
        text = told[name].decode()  # whole characters
        assert text.endswith("\N{HORIZONTAL ELLIPSIS}")
        assert len(told[name]) <= 1 << 14


def test_an_exception_brings_its_traceback(log: Log, journald: socket.socket) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("a cycle failed", guest="web")
    (told,) = heard(journald)
    lines = told["MESSAGE"].decode().split("\n")
    assert lines[:2] == ["a cycle failed", "Traceback (most recent call last):"]
    assert any(line.startswith("ValueError: web") for line in lines)
    assert all(line.isprintable() for line in lines)
    assert told["PRIORITY"] == b"3"
    assert told["VIRTIRQ_GUEST"] == b"web"


def test_a_full_journal_holds_nothing_up_and_the_loss_is_told(
    log: Log, journald: socket.socket
) -> None:
    for number in range(2000):
        log.info(f"{number} {'x' * 1000}")
    told = heard(journald)
    assert [each["MESSAGE"].split()[0] for each in told] == [
        str(number).encode() for number in range(len(told))
    ]
    lost = 2000 - len(told)
    assert lost > 0
    log.info("after")
    about, after = heard(journald)
    assert about["MESSAGE"].decode() == LOST + str(lost)
    assert about["PRIORITY"] == b"4"
    assert after["MESSAGE"] == b"after"
    log.info("again")
    assert len(heard(journald)) == 1


def test_a_journal_that_goes_and_comes_back(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    log = logger_with(JournalHandler(path))
    log.info("nobody there")
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(path)
            listening.setblocking(False)
            log.info("there")
            assert heard(listening)[-1]["MESSAGE"] == b"there"
        log.info("closed")
        os.unlink(path)


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_record_that_cannot_be_formatted_is_no_error(
    tmp_path: Path, journald: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = JournalHandler(str(tmp_path / "journal"))
    logger = logging.Logger("asyncio")
    logger.addHandler(handler)
    logger.info("%d", "not a number")
    logger.info("%s", Broken())
    Log(logger).info("x", device=Broken())
    logger.info("of %s", "asyncio")
    told = heard(journald)
    lost = f"{LOST}1".encode()
    assert [each["MESSAGE"] for each in told] == [lost, lost, lost, b"of asyncio"]
    assert told[-1]["LOGGER"] == b"asyncio"
    assert capfd.readouterr() == ("", "")
    handler.close()


def lines_of(read: int) -> list[str]:
    os.set_blocking(read, False)
    data = b""
    while True:
        try:
            piece = os.read(read, 1 << 16)
        except BlockingIOError:
            break
        if not piece:
            break
        data += piece
    return data.decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for each in (read, write):
        try:
            os.close(each)
        except OSError:
            continue


def test_lines(pipe: tuple[int, int]) -> None:
    log = logger_with(LinesHandler(pipe[1]))
    log.info("moved", guest="web")
    log.warning(HOSTILE)
    try:
        raise ValueError("x")
    except ValueError:
        log.exception("failed")
    first, second, third, *rest = lines_of(pipe[0])
    assert first == "virtirq: info: moved"
    assert second == f"virtirq: warning: {SHOWN}"
    assert third == "virtirq: error: failed"
    assert rest[0] == "virtirq: error: Traceback (most recent call last):"
    assert rest[-1] == "virtirq: error: ValueError: x"


def test_lines_with_priorities(pipe: tuple[int, int]) -> None:
    log = logger_with(LinesHandler(pipe[1], priorities=True))
    log.debug("a")
    log.error("b\n<0>c")
    assert lines_of(pipe[0]) == ["<7>a", "<3>b\ufffd<0>c"]


def test_a_full_pipe_holds_nothing_up_and_the_loss_is_told(pipe: tuple[int, int]) -> None:
    read, write = pipe
    flags = fcntl.fcntl(write, fcntl.F_GETFL)
    log = logger_with(LinesHandler(write))
    for number in range(500):
        log.info(f"{number} {'x' * 8000}")
    assert fcntl.fcntl(write, fcntl.F_GETFL) == flags  # it is shared: left as it is
    told = lines_of(read)
    assert 0 < len(told) < 500
    assert all(len(line.encode()) < 4096 for line in told)
    log.info("after")
    assert lines_of(read) == [
        f"virtirq: warning: {LOST}{500 - len(told)}",
        "virtirq: info: after",
    ]


def test_a_pipe_that_nobody_reads_is_no_error(pipe: tuple[int, int]) -> None:
    log = logger_with(LinesHandler(pipe[1]))
    os.close(pipe[0])
    log.info("x")
    os.close(pipe[1])
    log.info("y")


PROGRAM = """
import asyncio, logging, os, sys
from virtirq.daemon.log import set_up
log = set_up(debug=DEBUG, journal=sys.argv[1])
log.debug("details")
log.info("started", guest="web")
logging.getLogger("asyncio").error("from %s", "asyncio")
print(*os.environ)
"""


def run(journal: Path, stderr: int, stream: str | None, debug: bool = False) -> str:
    """A process with this stderr that logs; its standard output."""
    environ = {name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"}
    if stream is not None:
        environ["JOURNAL_STREAM"] = stream
    program = PROGRAM.replace("DEBUG", str(debug))
    done = subprocess.run([sys.executable, "-c", program, str(journal)], stdout=subprocess.PIPE,
                          stderr=stderr, env=environ, check=True)  # fmt: skip
    return done.stdout.decode()


def stream_of(descriptor: int) -> str:
    there = os.fstat(descriptor)
    return f"{there.st_dev}:{there.st_ino}"


def test_a_process_whose_stderr_is_the_journal(
    tmp_path: Path, journald: socket.socket, pipe: tuple[int, int]
) -> None:
    run(tmp_path / "journal", pipe[1], stream_of(pipe[1]))
    assert [each["MESSAGE"] for each in heard(journald)] == [b"started", b"from asyncio"]
    assert lines_of(pipe[0]) == []


def test_debug_tells_more(tmp_path: Path, journald: socket.socket, pipe: tuple[int, int]) -> None:
    run(tmp_path / "journal", pipe[1], stream_of(pipe[1]), debug=True)
    assert heard(journald)[0]["MESSAGE"] == b"details"


@pytest.mark.parametrize("stream", [None, "", "0:0", "8:1", "x"])
def test_a_process_whose_stderr_was_redirected(
    tmp_path: Path, journald: socket.socket, pipe: tuple[int, int], stream: str | None
) -> None:
    run(tmp_path / "journal", pipe[1], stream)
    assert heard(journald) == []
    assert lines_of(pipe[0]) == ["virtirq: info: started", "virtirq: error: from asyncio"]


def test_the_journals_socket_may_be_out_of_reach(tmp_path: Path, pipe: tuple[int, int]) -> None:
    run(tmp_path / "none", pipe[1], stream_of(pipe[1]))
    assert lines_of(pipe[0]) == ["<6>started", "<3>from asyncio"]


def test_a_closed_stderr_is_no_other_files(tmp_path: Path, journald: socket.socket) -> None:
    """Its number may be given to a file that is opened later."""
    target = tmp_path / "file"
    program = (
        "import os, sys\n"
        "from virtirq.daemon.log import set_up\n"
        f"assert os.open({str(target)!r}, os.O_CREAT | os.O_WRONLY) == 2\n"
        "set_up().error('lost')\n"
    )
    command = f'exec {sys.executable} -c "$1" 2>&-'
    subprocess.run(["sh", "-c", command, "sh", program], check=True)
    assert target.read_bytes() == b""


def test_setting_up_again_does_not_say_things_twice(
    tmp_path: Path, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.RootLogger(logging.WARNING)
    root.addHandler(logging.NullHandler())
    monkeypatch.setattr(logging, "getLogger", lambda name=None: root)
    monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(pipe[1]), "w"))
    set_up(environ={})
    set_up(environ={}).info("once")
    assert lines_of(pipe[0]) == ["virtirq: info: once"]
