"""What a comparison of policies has shown, as a document and as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from virtirq.policy.comparison import SHARES, Block, Figure, Says, Verdict, figures, verdicts
from virtirq.ui import report
from virtirq.ui.document import Cell, Document, Style, Table

_STYLES: Final[Mapping[Says, Style]] = {Says.MORE: "bold", Says.LESS: "bold"}


def screen(
    guest: str, policies: Sequence[str], blocks: Sequence[Block], seconds: float, seed: int
) -> Document:
    """A row for each measure; then each policy beside the first."""
    document = Document()
    rounds = len({each.round for each in blocks})
    document.line(
        Cell(guest, "bold"),
        f": {', '.join(policies)}; {rounds} rounds of {seconds:g} s each, in random turns"
        f" (seed {seed})",
    )
    found = {policy: figures(blocks, policy) for policy in policies}
    names = dict.fromkeys(name for each in found.values() for name in each)
    document.table(
        Table(
            ("", *policies),
            tuple(
                (
                    Cell(name),
                    *(Cell(_figure(name, found[policy].get(name))) for policy in policies),
                )
                for name in names
            ),
            indent=2,
            right=frozenset(range(1, len(policies) + 1)),
        )
    )
    for verdict in verdicts(blocks, policies):
        document.line(
            f"{verdict.policy} beside {verdict.base}: ",
            Cell(sentence(verdict), _STYLES.get(verdict.says, "")),
            indent=2,
        )
    return document


def sentence(verdict: Verdict) -> str:
    """What is to be said of one measure."""
    name, says = verdict.measure, verdict.says
    if verdict.difference is None or says is Says.NO_RATIO:
        return f"{name}: {says.value}"
    if says is Says.TOO_FEW:
        return f"{name}: {says.value} ({verdict.rounds}) to tell"
    least = _size(verdict, verdict.least_seen)
    if says is Says.NONE_SEEN:
        return f"{name}: {says.value}; one of {least} would have been"
    low, high = (
        f"{'-' if each < 0 else '+'}{_size(verdict, each)}"
        for each in (verdict.low or 0.0, verdict.high or 0.0)
    )
    size = _size(verdict, verdict.difference)
    return f"{name}: {size} {says.value} ({low} to {high}; p {_p(verdict)})"


def as_json(
    guest: str, policies: Sequence[str], blocks: Sequence[Block], seconds: float, seed: int
) -> dict[str, Any]:
    """``compare -J``: every block, and every verdict."""
    return {
        "schema": report.SCHEMA,
        "guest": guest,
        "policies": list(policies),
        "seconds": seconds,
        "seed": seed,
        "blocks": [
            {
                "policy": each.policy,
                "round": each.round,
                "seconds": each.seconds,
                "interrupts": each.interrupts,
                "shares": {name: part._asdict() for name, part in each.parts.items()},
                "figures": dict(each.figures),
                "vcpus": {str(vcpu): dict(rates) for vcpu, rates in each.vcpus.items()},
            }
            for each in blocks
        ],
        "verdicts": [
            {**asdict(each), "says": each.says.name.lower()} for each in verdicts(blocks, policies)
        ],
    }


def _figure(name: str, figure: Figure | None) -> str:
    if figure is None:
        return "-"
    if name in SHARES:
        return f"{100 * figure.middle:.0f}%"
    spread = (figure.high - figure.low) / 2
    return f"{figure.middle:,.4g} \N{PLUS-MINUS SIGN}{spread:,.2g}"


def _size(verdict: Verdict, value: float | None) -> str:
    """Points of a share, percent of all else."""
    percent = 100 * abs(value or 0.0)
    unit = " points" if verdict.measure in SHARES else "%"
    return f"{percent:.2g}{unit}" if percent < 10 else f"{percent:.0f}{unit}"


def _p(verdict: Verdict) -> str:
    return f"{verdict.p or 0.0:.2g}"
