"""A time as people write it, for --since. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Final

from virtirq.errors import UsageError

_UNITS: Final = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGO: Final = re.compile(r"-?(\d{1,6})\s*(s|min|h|d|w)(?:\s+ago)?", re.ASCII)
_CLOCK: Final = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?", re.ASCII)
_FORMS: Final = "write it as 90min, 2h, 3d, 03:00, today, yesterday or '2026-11-30 03:00'"


def parse(text: str, now: datetime) -> float:
    """Seconds since the epoch; a time without a zone is of `now`'s. Raises UsageError.

    A clock time that is yet to come today was yesterday's.
    """
    words = text.strip()
    try:
        return _parsed(words, now).timestamp()
    except (ValueError, OverflowError):
        raise UsageError(f"--since: {text[:40]!r} is no time", hint=_FORMS) from None


def _parsed(words: str, now: datetime) -> datetime:
    """Raises ValueError and OverflowError."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if words in ("today", "yesterday"):
        return midnight - timedelta(days=words == "yesterday")
    if ago := _AGO.fullmatch(words):
        return now - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    if _CLOCK.fullmatch(words):
        clock = datetime.strptime(words, "%H:%M:%S" if words.count(":") == 2 else "%H:%M")  # noqa: DTZ007
        found = midnight.replace(hour=clock.hour, minute=clock.minute, second=clock.second)
        return found if found <= now else found - timedelta(days=1)
    if re.fullmatch(r"@\d{1,11}", words, re.ASCII):
        return datetime.fromtimestamp(int(words[1:]), now.tzinfo)
    found = datetime.fromisoformat(words)
    return found if found.tzinfo else found.replace(tzinfo=now.tzinfo)
