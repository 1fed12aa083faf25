"""All benches of one machine, into docs/performance.md: ``python -m bench.performance``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import measure, peers, per_interrupt, reacting, sizes, startup, tree
from bench.measure import Row, picture, table

PAGE: Final = Path(__file__).parents[1] / "docs" / "performance.md"


def _section(title: str, text: str, rows: Sequence[Row]) -> str:
    return "\n\n".join(filter(None, (f"### {title}", text, table(rows), picture(rows))))


def _per_interrupt(rounds: int) -> str:
    floors = measure.compiled("floors")
    told = []
    for guests in (12, 200):
        rows = per_interrupt.measured(guests, 82, rounds, floors)
        text = f"{guests * 82:,} interrupts of {guests} guests, on {tree.CPUS} CPUs."
        told.append(_section(f"Of one among {guests * 82:,}", text, rows))
    return "\n\n".join(told)


def _reacting(rounds: int) -> str:
    text = (
        "From what the kernel tells to the write, by the clock: the machine has to be quiet. It is"
        " scraped, and asked, without a pause."
    )
    rows = reacting.measured(3 * rounds, measure.compiled("floors"))
    return _section("A reaction", text, rows)


def _startup(rounds: int) -> str:
    text = "Beside an interpreter that does nothing; not an interrupt's, but the whole command's."
    return _section("A start", text, startup.measured(3 * rounds))


def _sizes(rounds: int) -> str:
    text = "Of each interrupt, by the number of them: CPU time, and memory at its most."
    told = sizes.measured(max(2, rounds // 2))
    return "\n\n".join(_section(name, text, rows) for name, rows in told.items())


def _peers(rounds: int) -> str:
    rows, said = peers.measured(rounds)
    text = (
        f"The {peers.VECTORS} interrupts of one device, each program from its start to its end, by"
        " interrupt. The ratio is what virtirq takes as a multiple of the peer: below 1, virtirq is"
        " ahead."
    )
    return _section("Peers", " ".join((text, *(f"{each}." for each in said))), rows)


PARTS: Final[dict[str, Callable[[int], str]]] = {
    "per-interrupt": _per_interrupt,
    "reacting": _reacting,
    "startup": _startup,
    "sizes": _sizes,
    "peers": _peers,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all for none")
    options = parser.parse_args()
    unknown = [each for each in options.parts if each not in PARTS]
    if unknown:
        parser.error(f"no part is called {unknown[0]}: there are {', '.join(PARTS)}")
    tree.go_inside()
    for name in options.parts or PARTS:
        began = measure.load()
        text = PARTS[name](options.rounds)
        when = datetime.now(UTC).strftime("%Y-%m-%d")
        head = f"Measured {when} on {measure.machine()}, {began} before and {measure.load()} after."
        told = f"{text}\n\n{head}"
        if options.write:  # one that fails leaves what it found there, and what came before it
            PAGE.write_text(put(PAGE.read_text(), name, told))
        else:
            print(f"{told}\n", flush=True)


def put(page: str, name: str, text: str) -> str:
    """The page with this in place of what it has of the part of this name."""
    before, begin, rest = page.partition(f"<!-- {name}: written by make bench -->")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    assert end, f"{PAGE.name} has no place for {name}"
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


if __name__ == "__main__":
    main()
