"""Times as people write them."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.errors import UsageError
from virtirq.ui.events.when import parse

NOW = datetime(2026, 11, 30, 3, 14, 15, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("90min", "2026-11-30T01:44:15+01:00"),
        ("2h", "2026-11-30T01:14:15+01:00"),
        ("2h ago", "2026-11-30T01:14:15+01:00"),
        ("-30s", "2026-11-30T03:13:45+01:00"),
        ("1 d", "2026-11-29T03:14:15+01:00"),
        ("1w", "2026-11-23T03:14:15+01:00"),
        ("today", "2026-11-30T00:00:00+01:00"),
        ("yesterday", "2026-11-29T00:00:00+01:00"),
        ("03:00", "2026-11-30T03:00:00+01:00"),
        ("3:14:16", "2026-11-29T03:14:16+01:00"),
        ("23:30", "2026-11-29T23:30:00+01:00"),
        ("2026-11-01", "2026-11-01T00:00:00+01:00"),
        ("2026-11-01 12:30", "2026-11-01T12:30:00+01:00"),
        ("2026-11-01T12:30:00Z", "2026-11-01T12:30:00+00:00"),
        ("@1000000000", "2001-09-09T01:46:40+00:00"),
    ],
)
def test_times(text: str, there: str) -> None:
    assert parse(text, NOW) == datetime.fromisoformat(there).timestamp()


@pytest.mark.parametrize(
    "text",
    ["", "soon", "25:00", "2h30", "999999w", "2026-13-01", "9" * 40, "1 fortnight", "-", "@"],
)
def test_no_times(text: str) -> None:
    with pytest.raises(UsageError, match="is no time") as error:
        parse(text, NOW)
    assert error.value.hint


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_an_error(text: str) -> None:
    with suppress(UsageError):
        assert isinstance(parse(text, datetime(2026, 1, 1, tzinfo=UTC)), float)
