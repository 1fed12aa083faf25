"""The advice that goes with each finding."""

from __future__ import annotations

import ast
import inspect

import pytest

from virtirq.model import Severity
from virtirq.policy import findings
from virtirq.policy.advice import ADVICE


def test_severities_rank_by_what_check_makes_of_them() -> None:
    """``virtirq check`` exits 3 for a rank over 0."""
    assert [each.rank for each in (Severity.NOTE, Severity.WARNING, Severity.ERROR)] == [0, 1, 2]
    notes = {code for code, advice in ADVICE.items() if advice.severity.rank == 0}
    assert notes == {
        *("affinity-loose", "device-without-node", "interrupts-posted", "events-polled"),
        *("vectors-followed", "vectors-not-followed", "rule-unmatched", "guest-left-alone"),
        *("taken-elsewhere", "host-interrupts-on-vcpus", "device-not-pci"),
    }


@pytest.mark.parametrize("code", ADVICE)
def test_advice_reads_well(code: str) -> None:
    advice = ADVICE[code]
    assert code == code.lower().replace("_", "-").strip("-")
    assert advice.meaning.endswith(".")
    assert "  " not in advice.meaning
    assert advice.meaning.isprintable()
    # `explain` prints the remedy as a sentence of its own and `check` as a hint: one line, no stop.
    assert advice.remedy.isprintable()
    assert not advice.remedy.endswith(".")
    assert advice.remedy == advice.remedy.strip()


def test_findings_knows_no_other_code() -> None:
    """Every code that findings.py can produce stands in ADVICE, and every one there is produced."""
    tree = ast.parse(inspect.getsource(findings))
    calls = [
        node.args[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "_finding"
    ]
    written = {node.value for node in calls if isinstance(node, ast.Constant)}
    # The one code that is not written in place is chosen among those of misplaced interrupts.
    assert [type(node) for node in calls].count(ast.Name) == 1
    assert written | {code for _, code, _ in findings._MISPLACED} == ADVICE.keys()
