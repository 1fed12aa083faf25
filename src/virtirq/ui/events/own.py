"""What the command itself has moved, in the journal, where ``events`` finds it.

Whether somebody typed ``virtirq apply`` is the first that is asked at three in the morning. The
daemon is not told: its memory is of what it has done itself, and it may not run.
"""

from __future__ import annotations

import os
import syslog
from typing import Final

from virtirq.control.cycle import Done
from virtirq.control.executor import NOT_TRIED
from virtirq.daemon.journal_socket import (
    JOURNAL_SOCKET,
    JournalSocket,
    datagram,
    printable,
    texts,
)
from virtirq.daemon.outcome_log import told

_PATIENCE: Final = 1.0
"""Seconds that a journald which has much to do is waited for."""


def tell(done: Done, action: str, verb: str, journal: str = JOURNAL_SOCKET) -> None:
    """What came of a plan, as `action` (pin or restore); nothing where there is no journald.

    Who is not root is not believed there, and moves no interrupts.
    """
    if not done.outcomes or os.geteuid():
        return
    names = {each.guest.key: each.guest.name for each in done.plan.guests}
    with JournalSocket(journal, patience=_PATIENCE) as journald:
        for outcome in done.outcomes:
            if outcome.reason.startswith(NOT_TRIED):
                continue  # the person at the terminal hears of that
            entry = told(outcome, names.get(outcome.pin.guest, ""), action, verb)
            if entry is None:
                continue
            priority = syslog.LOG_WARNING if entry.bad else syslog.LOG_INFO
            if not journald.tell(datagram(printable(entry.message), priority, texts(entry.fields))):
                break
