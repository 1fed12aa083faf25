"""How the vectors of a guest's devices are dealt over what they may follow.

Vector *i* of a device follows seat *start + i*, round and round. Where a device's deal begins is
what spreads devices: with few vectors each, many of them still use all of their guest's CPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from math import gcd, lcm
from typing import Final

from virtirq.cpuset import CpuSet
from virtirq.values import dataclass

_LONGEST: Final = 512
"""Places of a ring that are told apart; pools of sizes without a common factor make long ones."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What a vector may follow: a vCPU and the CPUs it may run on, or a part of the host."""

    cpus: CpuSet
    vcpu: int | None = None


@dataclass(slots=True)
class Dealt:
    """What is known of a device's deal: all that has to be kept so that nothing moves.

    `start` is where it begins, None until that is decided; it is decided once for each run of a
    guest. `orders` are the vectors that there are.
    """

    start: int | None = None
    orders: frozenset[int] = frozenset()


class Deal:
    """Deals a device's vectors over seats, in order.

    Seats with the same CPUs (vCPUs that share a pool) deal their vectors over it in turn, so that
    each CPU of a pool gets its share. The answer depends on seats, start and the vector's number
    alone: no other vector changes it.
    """

    def __init__(self, seats: Sequence[Seat], routing: int = 0) -> None:
        """`routing` (the device's routing ID) says where in a pool the device best begins."""
        # Multiples of the golden ratio spread evenly over a circle, be they of 1 (VFs), 8 or 256
        # (slots, buses): guests that share a pool do not all begin at its first CPU.
        self._fraction = routing * 0x9E3779B9 % 2**32
        self._seats = seats
        self._cpus = {cpus: tuple(cpus) for cpus in {seat.cpus for seat in seats}}
        sharing: Counter[CpuSet] = Counter()
        self._places = []
        for seat in seats:
            self._places.append(sharing[seat.cpus])
            sharing[seat.cpus] += 1
        self._sharing = sharing

    @cached_property
    def ring(self) -> tuple[int, ...]:
        """The CPU of each place; after the last comes the first again."""
        rounds = lcm(*(len(cpus) // gcd(len(cpus), n) for cpus, n in self._sharing.items()))
        length = min(rounds * len(self._seats), max(_LONGEST, len(self._seats)))
        return tuple(self._at(place)[1] for place in range(length))

    @cached_property
    def base(self) -> int:
        """Where it begins if nothing speaks for another place."""
        pooled = any(len(cpus) > 1 for cpus in self._cpus.values())
        return self._fraction * len(self.ring) >> 32 if pooled else 0

    def within(self, seat: Seat, order: int) -> int:
        """The CPU for the vector of this order where it follows this seat, whatever is dealt."""
        cpus = tuple(seat.cpus)
        return cpus[(order + (self._fraction * len(cpus) >> 32)) % len(cpus)]

    def __call__(self, order: int, start: int | None = None) -> tuple[Seat, int]:
        """The seat that the vector of this order follows, and its CPU there."""
        return self._at(order + (self.base if start is None else start))

    def _at(self, place: int) -> tuple[Seat, int]:
        round_, number = divmod(place, len(self._seats))
        seat = self._seats[number]
        cpus = self._cpus[seat.cpus]
        return seat, cpus[(round_ * self._sharing[seat.cpus] + self._places[number]) % len(cpus)]

    def found(self, places: Mapping[int, CpuSet]) -> int | None:
        """Where it has begun, by the affinity of each vector now; None where that does not show.

        What is on a single CPU of these was put there by someone; where half of that is as a
        start would have it, that is the start.
        """
        single = {
            order: cpus.first()
            for order, cpus in places.items()
            if len(cpus) == 1 and cpus.first() in self._where
        }
        length = len(self.ring)
        votes = Counter(
            (place - order) % length for order, cpu in single.items() for place in self._where[cpu]
        )
        if not votes:
            return None
        start, most = min(votes.items(), key=lambda vote: (-vote[1], vote[0]))
        return start if 2 * most >= len(single) else None

    @cached_property
    def _where(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for place, cpu in enumerate(self.ring):
            found.setdefault(cpu, []).append(place)
        return found

    def begin(self, orders: Collection[int], load: Mapping[int, int]) -> int:
        """Where to begin, so that these vectors go to the emptiest CPUs; `load` is by CPU.

        Of places that are equally good it is the first after a fuller one: what is left empty
        stays in one piece.
        """
        ring = self.ring
        runs, first = _runs(orders), min(orders)
        own: Counter[int] = Counter()
        cost = 0
        for order in orders:
            cpu = ring[order % len(ring)]
            cost += 2 * (load.get(cpu, 0) + own[cpu]) + 1
            own[cpu] += 1
        best = None
        for start in range(len(ring)):
            before, at = ring[(start + first - 1) % len(ring)], ring[(start + first) % len(ring)]
            edge = load.get(before, 0) > load.get(at, 0)
            rank = (cost, not edge, (start - self.base) % len(ring))
            if best is None or rank < best[0]:
                best = rank, start
            for low, high in runs:  # a step on: each run loses its first place and gains another
                cpu = ring[(start + low) % len(ring)]
                own[cpu] -= 1
                cost -= 2 * (load.get(cpu, 0) + own[cpu]) + 1
                cpu = ring[(start + high + 1) % len(ring)]
                cost += 2 * (load.get(cpu, 0) + own[cpu]) + 1
                own[cpu] += 1
        return 0 if best is None else best[1]


def _runs(orders: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for order in sorted(orders):
        if runs and order == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], order
        else:
            runs.append((order, order))
    return runs
