"""The daemon under attack on a real host: by a guest, and by users of the host without rights.

How soon others are served meanwhile is measured by bench/attack.py. Here they are served, and
nothing of the daemon grows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import pytest

from lab import full
from lab.full import Guest, Host
from tests.full.attackers import (
    TOGGLED,
    measure,
    prepare,
)
from tests.full.hosts import install_warm, need_full_lab

pytestmark = pytest.mark.lab

BLOCKS: Final = 2
GROWTH_KB: Final = 6144
LOG_LINES: Final = 400
JOURNAL_BYTES: Final = 1 << 20


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    need_full_lab("the attacks")
    with full.lab("guest") as host:
        install_warm(host)
        prepare(host)
        yield host


@pytest.fixture(scope="module")
def guest(host: Host) -> Guest:
    return host.live_guest()


def readable(log: str) -> None:
    """As a terminal shows it."""
    assert [line for line in log.split("\n") if not line.isprintable()] == []
    assert [line for line in log.splitlines() if not line.startswith("virtirq: ")] == []


def test_others_are_served_and_nothing_grows(host: Host, guest: Guest) -> None:
    """A guest toggles MSI-X, users flood it, and a call of libvirt's hangs: all at once."""
    found = measure(host, guest, BLOCKS)
    print(found, flush=True)
    assert found.after is not None
    readable(found.log)
    assert "sets its interrupts up again and again" in found.log
    assert len(re.findall(rf"\({TOGGLED}\): to CPU", found.log)) < 3 * found.toggles
    assert found.lines < LOG_LINES
    assert max(each.threads for each in found.during) <= found.before.threads + 8
    assert max(each.files for each in found.during) < found.before.files + 100
    assert found.after.resident_kb < found.before.resident_kb + GROWTH_KB
    assert max(each.journal for each in found.during) < JOURNAL_BYTES
