"""What a comparison of policies says: figures of each, and whether they differ.

Policies are measured in blocks of all of them, in random order, so that what changes with time
meets all alike; a policy is compared with the first one by the pairs that their blocks make.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from math import exp, log
from statistics import median, quantiles
from typing import Final, NamedTuple

from virtirq.policy import paired
from virtirq.values import dataclass, field, replace

LEVEL: Final = 0.05
"""How often a verdict may find a difference where there is none, over all policies together."""
RATE: Final = "interrupts/s"
PLANNED, OWN, EXACT, NEAR = (
    "on the planned CPU",
    "on the guest's CPUs",
    "on the very vCPU's CPU",
    "on the device's node",
)
SHARES: Final = (PLANNED, OWN, EXACT, NEAR)


class Part(NamedTuple):
    """So many of so many interrupts."""

    some: int
    of: int


@dataclass(frozen=True, slots=True)
class Block:
    """One policy's part of one round, and what was counted and measured while it held.

    `parts`: by name of `SHARES`, without those that could not be told. `figures` are more that was
    measured, by name; `vcpus` has those of them that are a vCPU's, by its number.
    """

    policy: str
    round: int
    seconds: float
    interrupts: int
    parts: Mapping[str, Part] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    vcpus: Mapping[int, Mapping[str, float]] = field(default_factory=dict)

    def measures(self) -> dict[str, float]:
        """Every measure by its name; a share is 0 to 1, and missing where nothing was taken."""
        shares = {name: each.some / each.of for name, each in self.parts.items() if each.of}
        return {RATE: self.interrupts / self.seconds, **shares, **self.figures}


class Says(Enum):
    """What came of comparing one measure of two policies."""

    MORE = "more"
    LESS = "less"
    NONE_SEEN = "no difference seen"
    TOO_FEW = "too few rounds"
    NO_RATIO = "not above 0 in every round"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A measure of `policy` beside that of `base`.

    A share's difference is in parts of 1, everything else's a ratio less 1: 0.1 is a tenth more.
    `low` to `high` is all that is not refused, over all policies together; `least_seen` is the
    smallest difference that these rounds could have told from none. `p` is Holm's.
    """

    measure: str
    base: str
    policy: str
    rounds: int
    says: Says
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    least_seen: float | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """A measure of one policy over all rounds: the middle one, and the middle half."""

    middle: float
    low: float
    high: float


def least_rounds(policies: int) -> int:
    """How many rounds of so many policies there have to be for any verdict."""
    return paired.least_pairs(LEVEL / max(1, policies - 1))


def turns(policies: Sequence[str], rounds: int, seed: int) -> Iterator[tuple[int, str]]:
    """Round by round all policies, in an order that nobody has chosen."""
    chance = random.Random(seed)  # noqa: S311
    for number in range(rounds):
        for policy in chance.sample(policies, len(policies)):
            yield number, policy


def figures(blocks: Sequence[Block], policy: str) -> dict[str, Figure]:
    """What was measured of a policy, by measure."""
    found: dict[str, list[float]] = {}
    for block in blocks:
        if block.policy == policy:
            for name, value in block.measures().items():
                found.setdefault(name, []).append(value)
    return {name: _figure(values) for name, values in found.items()}


def verdicts(blocks: Sequence[Block], policies: Sequence[str]) -> list[Verdict]:
    """Each measure of each policy beside the first policy's."""
    base, *others = policies
    names = dict.fromkeys(name for block in blocks for name in block.measures())
    found = []
    for name in names:
        them = [_compare(blocks, name, base, other, len(others)) for other in others]
        tested = [number for number, each in enumerate(them) if each.p is not None]
        adjusted = paired.holm([them[number].p or 0.0 for number in tested])
        for number, p in zip(tested, adjusted, strict=True):
            them[number] = _judged(them[number], p)
        found += them
    return found


def best(blocks: Sequence[Block], policies: Sequence[str], measure: str, *, less: bool) -> str:
    """The policy that is told from the first by the measure, and is best in it; else the first."""
    says = Says.LESS if less else Says.MORE
    won = [
        each for each in verdicts(blocks, policies) if each.measure == measure and each.says is says
    ]
    if not won:
        return policies[0]
    pick = min if less else max
    return pick(won, key=lambda each: each.difference or 0.0).policy


def _figure(values: Sequence[float]) -> Figure:
    if len(values) < 2:
        return Figure(values[0], values[0], values[0])
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Figure(median(values), low, high)


def _compare(
    blocks: Sequence[Block], measure: str, base: str, policy: str, questions: int
) -> Verdict:
    """Without regard to what else is asked, but for the interval, which holds for all."""
    by_round: dict[int, dict[str, float]] = {}
    for block in blocks:
        value = block.measures().get(measure)
        if value is not None and block.policy in (base, policy):
            by_round.setdefault(block.round, {})[block.policy] = value
    pairs = [(each[base], each[policy]) for each in by_round.values() if len(each) == 2]
    share = measure in SHARES
    if not share and any(value <= 0 for pair in pairs for value in pair):
        return Verdict(measure, base, policy, len(pairs), Says.NO_RATIO)
    if not pairs:
        return Verdict(measure, base, policy, 0, Says.TOO_FEW)
    if share:
        differences = [after - before for before, after in pairs]
    else:
        differences = [log(after / before) for before, after in pairs]

    def told(value: float) -> float:
        return value if share else exp(value) - 1

    middle = told(paired.estimate(differences))
    level = LEVEL / questions
    found = paired.interval(differences, level)
    least = paired.least_seen(differences, level)
    if found is None or least is None or len(pairs) < paired.LEAST:
        return Verdict(measure, base, policy, len(pairs), Says.TOO_FEW, middle)
    return Verdict(
        measure,
        base,
        policy,
        len(pairs),
        Says.NONE_SEEN,
        middle,
        told(found[0]),
        told(found[1]),
        paired.p_value(differences),
        told(least),
    )


def _judged(verdict: Verdict, p: float) -> Verdict:
    says = Says.NONE_SEEN
    if p <= LEVEL and verdict.difference:
        says = Says.MORE if verdict.difference > 0 else Says.LESS
    return replace(verdict, p=p, says=says)
