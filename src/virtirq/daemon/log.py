"""The daemon's log: fields for the journal, plain lines everywhere else.

``journalctl VIRTIRQ_GUEST=web`` then shows what was done for one guest. The fields are those of
`FIELDS`, and a release may add some but not change them.

The journal is spoken to only where stderr is the journal (``JOURNAL_STREAM``, systemd.exec(5)):
whoever redirects stderr wants the lines there.

A log that is full or gone must not hold up the work: nothing here raises or waits. What could not
be told is counted, and the count is told when there is room again.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import syslog
from collections.abc import Mapping
from typing import Final, Unpack

from virtirq.daemon.journal_socket import (
    IDENTIFIER,
    JOURNAL_SOCKET,
    Fields,
    JournalSocket,
    cut_bytes,
    datagram,
    printable,
    texts,
)

_ATOMIC: Final = 4096  # PIPE_BUF: so much a pipe that is ready takes at once (pipe(7))


class Log:
    """What the daemon logs with. Messages are whole: the fields are for filters, not for reading.

    Text is taken as it is, never as a format: it may come from guests.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(IDENTIFIER)

    def debug(self, message: str, **fields: Unpack[Fields]) -> None:
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: Unpack[Fields]) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Unpack[Fields]) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Unpack[Fields]) -> None:
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, **fields: Unpack[Fields]) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, message, fields, traceback=True)

    def tell(self, handler: logging.Handler) -> None:
        """Tell this one, too, until `leave_out`."""
        self._logger.addHandler(handler)

    def leave_out(self, handler: logging.Handler) -> None:
        self._logger.removeHandler(handler)

    def _log(self, level: int, message: str, fields: Fields, *, traceback: bool = False) -> None:
        if not self._logger.isEnabledFor(level):
            return
        # Not Logger.log(), which spends most of its time on finding out who has called it.
        error = sys.exc_info() if traceback else None
        record = logging.LogRecord(self._logger.name, level, "", 0, message, (), error)
        setattr(record, _EXTRA, fields)
        self._logger.handle(record)


def set_up(
    *,
    debug: bool = False,
    environ: Mapping[str, str] | None = None,
    journal: str = JOURNAL_SOCKET,
) -> Log:
    """Send everything that this process logs, asyncio's complaints too, where stderr goes.

    Call it once, first of all. `debug`: also what is of use only to who looks for a fault.
    """
    root = logging.getLogger()
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(_handler(os.environ if environ is None else environ, journal))
    return Log()


def _handler(environ: Mapping[str, str], journal: str) -> logging.Handler:
    if sys.stderr is None:  # closed; by now the number may be another file's
        return logging.NullHandler()
    try:
        descriptor = sys.stderr.fileno()
    except (OSError, ValueError):
        return logging.NullHandler()
    if not is_journal(descriptor, environ):
        return LinesHandler(descriptor)
    if not os.path.exists(journal):  # kept from us by a sandbox
        return LinesHandler(descriptor, priorities=True)
    return JournalHandler(journal)


def is_journal(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether what is written there goes to the journal, as systemd has said."""
    try:
        there = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{there.st_dev}:{there.st_ino}"


class _Handler(logging.Handler):
    """Counts what cannot be told, and says so later."""

    def __init__(self) -> None:
        super().__init__()
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost and self._tell(_about_lost(self._lost)):
                self._lost = 0
            if self._lost or not self._tell(record):
                self._lost += 1
        except Exception:
            # A record that cannot be formatted, say; the module's own answer is to print that.
            self._lost += 1

    def _tell(self, record: logging.LogRecord) -> bool:
        """Whether it could be told, at once."""
        raise NotImplementedError


class JournalHandler(_Handler):
    """Records to journald in its native protocol, with their fields."""

    def __init__(self, path: str = JOURNAL_SOCKET) -> None:
        """Raises OSError."""
        super().__init__()
        self._socket = JournalSocket(path)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _tell(self, record: logging.LogRecord) -> bool:
        return self._socket.tell(entry(record))


class LinesHandler(_Handler):
    """Records as lines ``virtirq: warning: …``; with `priorities` as sd-daemon(3) has them."""

    def __init__(self, descriptor: int, *, priorities: bool = False) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._priorities = priorities
        # Not O_NONBLOCK, which would be set for everyone who shares this terminal or pipe.
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def _tell(self, record: logging.LogRecord) -> bool:
        level = record.levelname.lower()
        head = f"<{priority(record.levelno)}>" if self._priorities else f"virtirq: {level}: "
        for line in text_of(record).split("\n"):
            if not any(event & select.POLLOUT for _, event in self._poll.poll(0)):
                return False
            data = f"{head}{line}".encode()
            os.write(self._descriptor, cut_bytes(data, _ATOMIC - 1) + b"\n")
        return True


def entry(record: logging.LogRecord) -> bytes:
    """The record as a datagram of the native journal protocol."""
    logger = record.name if record.name != IDENTIFIER else ""
    return datagram(text_of(record), priority(record.levelno), fields_of(record), logger)


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """What a record tells beside its message."""
    return texts(getattr(record, _EXTRA, Fields()))


def priority(level: int) -> int:
    """syslog(3)'s number for a level of `logging`."""
    for least, number in _PRIORITIES:
        if level >= least:
            return number
    return syslog.LOG_DEBUG


_PRIORITIES: Final = (
    (logging.CRITICAL, syslog.LOG_CRIT),
    (logging.ERROR, syslog.LOG_ERR),
    (logging.WARNING, syslog.LOG_WARNING),
    (logging.INFO, syslog.LOG_INFO),
)
_EXTRA: Final = "virtirq_fields"
_FORMATTER: Final = logging.Formatter()


def text_of(record: logging.LogRecord) -> str:
    """The message in one line, and the traceback's lines below it.

    What is not printable is replaced: it would steer a terminal, and journalctl(1) shows a
    message that has it as "blob data".
    """
    text = printable(record.getMessage())
    if record.exc_info:
        lines = _FORMATTER.formatException(record.exc_info).split("\n")
        text = "\n".join([text, *map(printable, lines)])
    return text


def _about_lost(count: int) -> logging.LogRecord:
    text = f"messages that could not be logged before the next one: {count}"
    return logging.LogRecord(IDENTIFIER, logging.WARNING, "", 0, text, (), None)
