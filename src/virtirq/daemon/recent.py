"""The last entries of the log, kept in memory for who asks over the status socket.

The journal keeps more and longer, where there is one that the asker may read.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from virtirq.control.log_entry import LogEntry
from virtirq.daemon.log import fields_of, priority, text_of

MOST: Final = 500
"""Entries; the oldest go."""
_MESSAGE: Final = 400
_VALUE: Final = 100
"""Characters of a message and of a field. All of it is then 0.8 MB at the very most, and about
0.1 MB in fact."""


class Recent(logging.Handler):
    """Keeps what is logged for people; what `--debug` adds is not kept."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._entries: deque[LogEntry] = deque(maxlen=MOST)

    @property
    def entries(self) -> tuple[LogEntry, ...]:
        """The oldest first."""
        return tuple(self._entries)

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: _cut(value, _VALUE) for name, value in fields_of(record).items()}
        entry = LogEntry(
            record.created, priority(record.levelno), _cut(text_of(record), _MESSAGE), fields
        )
        _ = entry.text  # now, and not when somebody asks
        self._entries.append(entry)


def _cut(text: str, longest: int) -> str:
    """At most so many characters, and a mark where something is missing."""
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"
