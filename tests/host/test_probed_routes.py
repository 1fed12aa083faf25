"""From an interrupt to its message in steps, while all may change: on memory that is made here.

With the kernel's own it runs in the lab, tests/kernel/inside_routes.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final

import pytest

from tests.host.test_kvm_routes import Files
from virtirq.errors import UnavailableError
from virtirq.host.kernel_memory import Piece, Requested
from virtirq.host.kvm_routes import Route
from virtirq.host.probed_routes import ProbedRoutes

AT: Final = {
    "kobject": 288, "number": 44, "action": 112, "name": 80, "device": 8, "queue": 16, "next": 0,
    "entry": 24, "woken": 16, "wait": 8, "eventfd": 184, "changes": 112, "type": 52, "low": 64,
    "high": 68, "data": 72, "vm": 0, "memory": 72, "owner": 928, "process": 2420,
}  # fmt: skip
"""Debian 12's kernel, 6.1."""
NAME: Final = "vfio-msix[0](0000:41:00.0)"
EVENTFD: Final = 0xFFFF_8880_0100_0000
IRQFD: Final = 0xFFFF_8880_0200_0000
KVMS: Final = "irqfd_wakeup+0x0/0x1f0 [kvm]"
LOW, HIGH, DATA = 0xFEE0_3000, 0x100, 0x4021
MSI, PIN = 2, 1
WORDS = 24


class Memory:
    """Bytes by address. Each call tells `happens` of itself: things may change in between."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.symbols: dict[int, str] = {}
        self.requests = {50: Requested(NAME, EVENTFD)}
        self.calls = self.closed = 0
        self.happens: Callable[[int], object] = lambda _: None
        self.queue(EVENTFD)

    def put(self, address: int, number: int, size: int) -> None:
        self.bytes |= dict(enumerate(number.to_bytes(size, "little"), address))

    def queue(self, eventfd: int, *waiting: int) -> None:
        """These structures, by where an irqfd of theirs would begin, wait for the eventfd."""
        entries = [each + AT["wait"] + AT["entry"] for each in waiting]
        around = [eventfd + AT["queue"], *entries, eventfd + AT["queue"]]
        for one, following in pairwise(around):
            self.put(one + AT["next"], following, 8)

    def irqfd(self, at: int = IRQFD, **changed: int) -> int:
        said = {"type": MSI, "low": LOW, "high": HIGH, "data": DATA, "changes": 4, **changed}
        for name, number in said.items():
            self.put(at + AT[name], number, 8 if name == "eventfd" else 4)
        if "eventfd" not in changed:
            self.put(at + AT["eventfd"], EVENTFD, 8)
        self.symbols[at + AT["wait"] + AT["woken"]] = KVMS
        return at

    def _called(self) -> None:
        self.happens(self.calls)
        self.calls += 1

    def requested(self, irq: int) -> Requested | None:
        self._called()
        return self.requests.get(irq)

    def read(self, address: int, symbol_at: int | None = None) -> Piece | None:
        self._called()
        if address not in self.bytes and address + AT["wait"] + AT["entry"] not in self.bytes:
            return None
        data = bytes(self.bytes.get(address + n, 0xCC) for n in range(8 * WORDS))
        return Piece(address, data, self.symbols.get(symbol_at or 0, "0xcccc"))

    def close(self) -> None:
        self.closed += 1


class Host(Files):
    module: int | None = 1

    def incarnation(self, path: str) -> int | None:
        return self.module


def routes_of(memory: Memory) -> ProbedRoutes:
    return ProbedRoutes(Host(), memory, AT)


OURS = {50: Route(None, HIGH << 32 | LOW, DATA, NAME)}


@pytest.fixture
def memory() -> Memory:
    memory = Memory()
    memory.queue(EVENTFD, memory.irqfd())
    return memory


def test_the_message_is_that_of_the_irqfd(memory: Memory) -> None:
    assert routes_of(memory).read([50, 51, 50]) == OURS
    assert memory.calls == 5, "four for one that has a route, one for one that is not VFIO's"


def test_of_others_that_wait_nothing_is_said(memory: Memory) -> None:
    polls = [IRQFD + 0x1000 * n for n in range(1, 8)]
    for at in polls:
        memory.symbols[at + AT["wait"] + AT["woken"]] = "ep_poll_callback+0x0/0x300"
    for count in range(8):
        memory.queue(EVENTFD, *polls[:count], IRQFD)
        assert routes_of(memory).read([50]) == OURS
    memory.queue(EVENTFD, *polls[:7], IRQFD, IRQFD + 0x9000)
    assert routes_of(memory).read([50]) == {}, "longer queues are not understood"


@pytest.mark.parametrize(
    "symbol",
    ["irqfd_wakeup+0x0/0x90 [xen_privcmd]", "irqfd_wakeup+0x10/0x1f0 [kvm]", "0xcccc", ""],
)
def test_who_is_not_kvm_is_not_asked(memory: Memory, symbol: str) -> None:
    memory.symbols[IRQFD + AT["wait"] + AT["woken"]] = symbol
    assert routes_of(memory).read([50]) == {}


def test_kvm_may_be_built_in(memory: Memory) -> None:
    memory.symbols[IRQFD + AT["wait"] + AT["woken"]] = KVMS.removesuffix(" [kvm]")
    assert routes_of(memory).read([50]) == OURS


def test_of_two_vms_nobody_knows_which(memory: Memory) -> None:
    memory.queue(EVENTFD, IRQFD, memory.irqfd(IRQFD + 0x1000))
    assert routes_of(memory).read([50]) == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"type": PIN},
        {"type": 0},
        {"changes": 5},  # it is being changed
        {"eventfd": EVENTFD + 64},  # it is another's by now
    ],
)
def test_what_is_no_route_of_its(memory: Memory, changed: Mapping[str, int]) -> None:
    memory.irqfd(**changed)
    assert routes_of(memory).read([50]) == {}


@pytest.mark.parametrize("when", range(12))
def test_what_changes_meanwhile_is_the_old_or_the_new_and_never_a_mixture(
    memory: Memory, when: int
) -> None:
    def change(calls: int) -> None:
        if calls == when:
            memory.irqfd(low=LOW + 0x1000, data=DATA + 1, changes=6)

    memory.happens = change
    after = {50: Route(None, HIGH << 32 | LOW + 0x1000, DATA + 1, NAME)}
    assert routes_of(memory).read([50]) == (after if when < 4 else OURS)


def test_what_changes_all_the_time_is_given_up(memory: Memory) -> None:
    memory.happens = lambda calls: memory.irqfd(low=LOW + calls, changes=2 * calls)
    assert routes_of(memory).read([50]) == {}
    assert memory.calls <= 20


@pytest.mark.parametrize("when", range(1, 4))
def test_what_is_freed_meanwhile(memory: Memory, when: int) -> None:
    def free(calls: int) -> None:
        if calls == when:
            memory.bytes.clear()

    memory.happens = free
    assert routes_of(memory).read([50]) == {}


@pytest.mark.parametrize("to", [0, 1, IRQFD + 0x100_0000, EVENTFD + AT["queue"] + 8])
def test_a_queue_that_leads_astray(memory: Memory, to: int) -> None:
    memory.put(EVENTFD + AT["queue"], to, 8)
    assert routes_of(memory).read([50]) == {}
    assert memory.calls <= 60


def test_a_queue_without_an_end(memory: Memory) -> None:
    memory.put(IRQFD + AT["wait"] + AT["entry"], IRQFD + AT["wait"] + AT["entry"], 8)
    assert routes_of(memory).read([50]) == {}
    assert memory.calls <= 60


def test_a_kvm_that_is_no_more(memory: Memory) -> None:
    host = Host()
    routes = ProbedRoutes(host, memory, AT)
    assert routes.read([50]) == OURS
    host.module = 2
    with pytest.raises(UnavailableError, match="not the one any more"):
        routes.read([50])
    routes.close()
    assert memory.closed == 1
