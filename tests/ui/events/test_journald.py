"""Entries of ``journalctl -o json``, whatever is in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.control.log_entry import NAMES, LogEntry
from virtirq.daemon.journal_socket import FIELDS
from virtirq.ui.events.journald import parse

WHOLE: dict[str, Any] = {
    "__REALTIME_TIMESTAMP": "1795999944332000",
    "MESSAGE": "IRQ 65 vfio-msix[0](0000:43:10.0): to CPU 5 of vCPU 1, from CPU 7",
    "PRIORITY": "6",
    "_PID": "812",
    "VIRTIRQ_GUEST": "web",
    "VIRTIRQ_IRQ": "65",
    "VIRTIRQ_MOVER": "irqbalance (pid 700)",
    "_UID": "0",
}


def test_an_entry() -> None:
    found = parse(json.dumps(WHOLE))
    assert found is not None
    assert found.pid == 812
    fields = {"guest": "web", "irq": "65", "mover": "irqbalance (pid 700)"}
    assert found.entry == LogEntry(1795999944.332, 6, WHOLE["MESSAGE"], fields)


def test_the_names_are_those_of_the_log() -> None:
    assert tuple(FIELDS) == NAMES


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([119, 101, 98], "web"),
        ([255, 119], "\N{REPLACEMENT CHARACTER}w"),
        (["web", "db"], "web"),
        (None, None),
        ([], None),
        (7, None),
    ],
)
def test_values_that_are_no_text(value: object, text: str | None) -> None:
    found = parse(json.dumps({**WHOLE, "VIRTIRQ_GUEST": value}))
    assert found is not None
    assert found.entry.fields.get("guest") == text


@pytest.mark.parametrize(
    "line",
    [
        "",
        "-- No entries --",
        "[]",
        "7",
        "null",
        "[" * 100_000,
        json.dumps({key: value for key, value in WHOLE.items() if key != "MESSAGE"}),
        json.dumps({**WHOLE, "__REALTIME_TIMESTAMP": "soon"}),
        json.dumps({**WHOLE, "MESSAGE": None}),
        json.dumps({**WHOLE, "PRIORITY": "high"}),
        json.dumps({**WHOLE, "MESSAGE": [300]}),
    ],
)
def test_what_is_none_is_left_out(line: str) -> None:
    assert parse(line) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(WHOLE)), inner),
    )
)
def test_anything_is_an_entry_or_none(data: Any) -> None:
    found = parse(json.dumps(data))
    assert found is None or isinstance(found.entry.message, str)
