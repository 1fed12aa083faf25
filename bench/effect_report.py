"""The table and the picture of what pinning does, and whether they are as they were."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from bench.taken import Taken

HOOK: Final = "a hook script"
EXACT: Final = "guest-exact"
PHASES: Final = ("steady", "driver reloaded", "guest rebooted", "vCPU moved")
ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
PICTURE: Final = ROOT / "docs" / "effect.svg"
_BEGIN: Final = "<!-- written by make effect -->"
_END: Final = "<!-- end -->"
_CELL: Final = re.compile(r"(\d+)% / (\d+)%")
_LEAST: Final = 0.01
"""By so much another run may always differ."""
_QUANTILE: Final = 2.58
"""Of the normal distribution, for 99%."""

Found = Mapping[str, Mapping[str, Sequence[Taken]]]
"""By policy and phase what came in each round."""


class Cell(NamedTuple):
    """A policy in a phase. Shares are of all interrupts, `spread` is for another run's."""

    own: float
    very: float
    spread: float
    after_grace: float


class Row(NamedTuple):
    """A policy. `wrong` is seconds of the middle vector, and the longest; None is to the end."""

    policy: str
    cells: Mapping[str, Cell]
    near: float
    wrong: tuple[float | None, float | None]

    @property
    def very(self) -> float:
        return fmean(each.very for each in self.cells.values())

    @property
    def spread(self) -> float:
        return max(each.spread for each in self.cells.values())


def rows(found: Found) -> list[Row]:
    """A row a policy."""
    made = []
    for policy, phases in found.items():
        runs = [run for some in phases.values() for run in some]
        after = [run for name, some in phases.items() if name != PHASES[0] for run in some]
        near = sum(run.near.total() for run in runs) / sum(run.total.total() for run in runs)
        cells = {name: cell(some) for name, some in phases.items()}
        made.append(Row(policy, cells, near, wrong(after)))
    return made


def cell(runs: Sequence[Taken]) -> Cell:
    """All rounds of a phase together."""
    total = sum(run.total.total() for run in runs)
    own, very = (
        sum(part.total() for part in parts) / total
        for parts in zip(*((run.own, run.very) for run in runs), strict=True)
    )
    late, late_very = (
        sum(each.of for each in (run.after_grace for run in runs)),
        sum(each.some for each in (run.after_grace for run in runs)),
    )
    both = (spread(runs, "own"), spread(runs, "very"))
    return Cell(own, very, max(*both, _LEAST), late_very / late)


def spread(runs: Sequence[Taken], what: str) -> float:
    """By how much a share of another run may differ, 99 times in 100.

    Interrupts of a vector are alike, so it is vectors that are drawn by lot: the error is that of
    a ratio over them, and there are two runs.
    """
    parts: list[tuple[int, int]] = []
    for run in runs:
        some = getattr(run, what)
        parts += [(some[place], count) for place, count in run.total.items()]
    total = sum(count for _, count in parts)
    share = sum(some for some, _ in parts) / total
    squares = sum((some - share * count) ** 2 for some, count in parts)
    many = len(parts)
    return _QUANTILE * sqrt(2 * squares * many / (many - 1)) / total


def wrong(runs: Sequence[Taken]) -> tuple[float | None, float | None]:
    """How long vectors were not on the very vCPU's CPU: the middle one, and the longest."""
    times: list[tuple[bool, float]] = []
    for run in runs:
        times += [(place in run.never, seconds) for place, seconds in run.wrong.items()]
    ordered = sorted(times)
    middle, longest = ordered[len(ordered) // 2], ordered[-1]
    return tuple(None if never else seconds for never, seconds in (middle, longest))  # type: ignore[return-value]


def table(told: Sequence[Row]) -> str:
    """Markdown."""
    head = ("", *PHASES, "on the node", "wrong for", "±")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in told:
        cells = (f"{each.own:.0%} / {each.very:.0%}" for each in row.cells.values())
        middle, longest = map(_seconds, row.wrong)
        times = middle if middle == longest else f"{middle}; {longest}"
        last = (f"{row.near:.0%}", times, f"{100 * row.spread:.0f}")
        lines.append(f"| {' | '.join((row.policy, *cells, *last))} |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    if value is None:
        return "to the end"
    return f"{value:.1f} s" if value >= 1 else f"{1e3 * value:.0f} ms"


def unlike_last_time(told: Sequence[Row]) -> Iterator[str]:
    """What is not as in the README's table, by the spread that it states: shares, and the order."""
    between = README.read_text().partition(_BEGIN)[2].partition(_END)[0]
    last: dict[str, tuple[list[float], float]] = {}  # shares and spread
    for line in between.splitlines():
        words = [word.strip() for word in line.strip("|").split("|")]
        shares = [float(each) / 100 for found in _CELL.findall(line) for each in found]
        if len(shares) == 2 * len(PHASES):
            last[words[0]] = shares, float(words[-1]) / 100
    for row in told:
        if row.policy not in last:
            continue
        shares, spread = last[row.policy]
        now = [share for each in row.cells.values() for share in (each.own, each.very)]
        for number, (was, is_now) in enumerate(zip(shares, now, strict=True)):
            # What is there is rounded.
            if abs(was - is_now) > spread + 0.005:
                what = ("on the guest's CPUs", "on the very vCPU's CPU")[number % 2]
                phase = PHASES[number // 2]
                yield f"{row.policy}, {phase}: {is_now:.0%} {what}, and it was {was:.0%}"
    for one, other in combinations((row for row in told if row.policy in last), 2):
        before = [fmean(last[row.policy][0][1::2]) for row in (one, other)]
        apart = max(last[row.policy][1] for row in (one, other)) / sqrt(len(PHASES))
        if abs(before[0] - before[1]) > apart and (
            (one.very > other.very) != (before[0] > before[1])
        ):
            yield f"{one.policy} and {other.policy} have changed places"


_SECTION: Final = """\
## What it brings

A guest of two vCPUs under traffic, on a host inside QEMU, with two NICs and a disk on a node of
four CPUs: the share of its interrupts that was taken on its CPUs / on the CPU of the very vCPU that
handled it, by what looked after them.

![Where the guest's interrupts were taken, by policy, in each phase](docs/effect.svg)

{table}

Measured {when}, in {rounds} rounds. `make effect` measures it again;
[docs/effect.md](docs/effect.md) has what the rows and columns mean, how it is counted, and what a
host inside QEMU cannot tell. On your own host [`virtirq compare`](docs/compare.md) measures it for
your guest."""


def write(told: Sequence[Row], rounds: int, when: str) -> None:
    """The README's section, and its picture."""
    page = README.read_text()
    before, _, rest = page.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    assert after, f"{README.name} has no place for it"
    text = _SECTION.format(table=table(told), when=when, rounds=rounds)
    README.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")
    PICTURE.write_text(picture(told))


_BAR, _GAP, _LEFT, _WIDE = 13, 4, 210, 420


def picture(told: Sequence[Row]) -> str:
    """A bar for each policy and phase: on the guest's CPUs, and of that on the very vCPU's."""
    lines: list[str] = []
    top = 34
    for row in told:
        lines.append(_text(8, top + 11, row.policy, "b"))
        for name, each in row.cells.items():
            lines.append(_text(_LEFT - 8, top + 11, name, "e"))
            for kind, share in (("a", 1.0), ("o", each.own), ("v", each.very)):
                lines.append(
                    f'<rect class="{kind}" x="{_LEFT}" y="{top}" width="{_WIDE * share:.1f}"'
                    f' height="{_BAR}"/>'
                )
            label = f"{each.own:.0%} / {each.very:.0%}"
            lines.append(_text(_LEFT + _WIDE + 8, top + 11, label, "n"))
            top += _BAR + _GAP
        top += 2 * _GAP
    legend = []
    for x, kind, label in (
        (_LEFT, "v", "on the very vCPU's CPU"),
        (_LEFT + 175, "o", "on another of the guest's"),
        (_LEFT + 360, "a", "on others' CPUs"),
    ):
        legend.append(f'<rect class="{kind}" x="{x}" y="10" width="{_BAR}" height="{_BAR}"/>')
        legend.append(_text(x + _BAR + 5, 21, label, "n"))
    wide = _LEFT + _WIDE + 110
    size = f'width="{wide}" height="{top}" viewBox="0 0 {wide} {top}"'
    style = (
        "text{font:12px sans-serif;fill:#1b1f24}.b{font-weight:bold}.e{text-anchor:end}"
        ".w{fill:#fff}.a{fill:#e3e6ea}.o{fill:#8fb8de}.v{fill:#1f6fb2}"
        "@media(prefers-color-scheme:dark){"
        "text{fill:#e6edf3}.w{fill:#0d1117}.a{fill:#30363d}.o{fill:#2b5783}.v{fill:#6cb6ff}}"
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
            "<title>Where a guest's interrupts were taken, by policy and phase</title>",
            f"<style>{style}</style>",
            '<rect class="w" width="100%" height="100%"/>',
            *legend,
            *lines,
            "</svg>\n",
        )
    )


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'
