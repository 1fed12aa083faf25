"""Screens of what became of a plan, and the words that they share with JSON and metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.ui.test_cli import DEMO, SINGLE, virtirq
from virtirq.control.cycle import Done
from virtirq.cpuset import CpuSet
from virtirq.model import (
    InterruptKey,
    Outcome,
    PciAddress,
    Pin,
    Plan,
    Reason,
    Snapshot,
    Status,
    Topology,
)
from virtirq.ui.screens import outcome_screen

NIC = PciAddress.parse("0000:82:00.0")
EMPTY = Snapshot(Topology(CpuSet(), CpuSet()))


def outcomes(count: int, status: Status, reason: str, **more: Any) -> Iterator[Outcome]:
    for vector in range(count):
        key = InterruptKey(NIC, f"vfio-msix[{vector}]({NIC})")
        pin = Pin(
            100 + vector, key, "web", CpuSet([0]), CpuSet([4]), Reason("wrong-cpu", "to CPU 4")
        )
        yield Outcome(pin, status, reason, **more)


def shown(*those: Outcome) -> str:
    return outcome_screen(Done(EMPTY, Plan(()), those)).plain()


def test_an_interrupted_run_says_so_in_one_line() -> None:
    told = shown(
        *outcomes(104, Status.APPLIED, "to CPU 4"),
        *outcomes(296, Status.FAILED, "not tried: interrupted", hint="run it again for the rest"),
    )
    assert told == ("hint: run it again for the rest\n104 applied, 296 not tried (interrupted)\n")


def test_what_failed_and_what_was_not_tried_after_it() -> None:
    told = shown(
        *outcomes(1, Status.FAILED, "the journal is full"),
        *outcomes(7, Status.FAILED, "not tried: the journal is full"),
    )
    assert told == (
        f"failed: IRQ 100 vfio-msix[0]({NIC}): the journal is full\n"
        "1 failed, 7 not tried (the journal is full)\n"
    )


def test_nothing_to_do() -> None:
    assert shown() == "nothing to move\n"


@pytest.mark.parametrize("host", [DEMO, SINGLE])
def test_one_word_for_a_verdict_on_screen_in_json_and_in_metrics(host: Any) -> None:
    told = json.loads(virtirq("-s", str(host), "status", "--json").stdout)
    in_json = {
        each["irq"]: each["status"]
        for guest in told["guests"]
        for device in guest["devices"]
        for each in device["interrupts"]
    }
    screen = virtirq("-s", str(host), "status").stdout
    row = re.compile(r"^    (?:msix?|intx)(?: \d+)? +(\d+) .*?([a-z-]+)$", re.MULTILINE)
    assert {int(irq): word for irq, word in row.findall(screen)} == in_json
    page = virtirq("-s", str(host), "metrics").stdout
    counted = re.findall(r'^virtirq_interrupts\{.*verdict="([a-z-]+)"\} [1-9]', page, re.MULTILINE)
    assert set(counted) == set(in_json.values())
