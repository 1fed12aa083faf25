"""What the daemon remembers of its log: the last of it, and no more than so much."""

from __future__ import annotations

import json
import logging

from virtirq.control.log_entry import LogEntry
from virtirq.daemon.log import Log
from virtirq.daemon.recent import MOST, Recent


def kept() -> tuple[Log, Recent]:
    log, recent = Log(logging.Logger("virtirq", logging.DEBUG)), Recent()
    log.tell(recent)
    return log, recent


def test_what_is_logged_is_remembered_with_its_fields() -> None:
    log, recent = kept()
    log.info("moved", guest="web", irq=65, mover=None)
    log.debug("looked")
    log.warning("full\x1b[2J", finding="vectors-low")
    first, second = recent.entries
    assert (first.message, first.priority) == ("moved", 6)
    assert first.fields == {"guest": "web", "irq": "65"}
    assert (second.message, second.priority) == ("full\N{REPLACEMENT CHARACTER}[2J", 4)
    assert first.at <= second.at
    assert LogEntry.from_json(json.loads(first.text)) == first
    log.leave_out(recent)
    log.info("stopped")
    assert len(recent.entries) == 2


def test_it_is_bounded() -> None:
    log, recent = kept()
    for number in range(MOST + 50):
        log.info(f"{number} " + "x" * 10_000, guest="g" * 10_000, reason="r" * 10_000)
    assert len(recent.entries) == MOST
    assert recent.entries[-1].message.startswith(f"{MOST + 49} ")
    assert sum(len(each.text) for each in recent.entries) < MOST * 800
