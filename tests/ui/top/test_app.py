"""What ``top`` reads when, and what keys make of it; no terminal in here."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.hostmaker import MadeFs
from tests.ui.top.hosts import counts_of, file_of, host, irq_of
from virtirq.control import sources
from virtirq.cpuset import CpuSet
from virtirq.errors import UnknownGuestError, VirtirqError
from virtirq.policy.config import Config
from virtirq.ui import inputs
from virtirq.ui.top import keys, screen
from virtirq.ui.top.app import App, Options
from virtirq.ui.top.sampler import Sampler
from virtirq.ui.top.screen import State
from virtirq.ui.top.table import Id, View
from virtirq.ui.width import cells


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Host:
    """`looks` counts how often the guests were looked for."""

    def __init__(
        self, guests: int = 2, state: State | None = None, options: Options | None = None
    ) -> None:
        self.fs: MadeFs = host(guests).fs()
        self.clock = Clock()
        self.looks = 0
        self.gone: VirtirqError | None = None
        self.takes = 0.0
        self.app = App(
            Sampler(self.fs, self._look, self.clock),
            state or State(),
            options or Options(),
            wall=lambda: 0.0,
        )

    def _look(self) -> inputs.View:
        self.looks += 1
        self.clock.now += self.takes
        if self.gone is not None:
            raise self.gone
        found = sources.load_guests(self.fs, ())
        return inputs.seen(self.fs, found, Config(), (), None)

    def take(self, irq: int, **by_cpu: int) -> None:
        self.fs.set(file_of(irq), counts_of(**by_cpu))

    def update(self, seconds: float = 2.0) -> None:
        self.clock.now += seconds
        self.app.update()

    def press(self, *pressed: str) -> bool:
        return all(self.app.press(key, 24) for key in pressed)

    def rows(self) -> dict[Id, float]:
        return {row.id: row.rate for row in self.app.frame().rows}

    def shown(self, width: int = 80) -> str:
        lines = self.app.lines(width, 24)
        return "\n".join("".join(span.text for span in line).rstrip() for line in lines)


def test_rates_and_places() -> None:
    made = Host()
    made.take(irq_of(0, 0), cpu0=30)
    made.take(irq_of(0, 1), cpu0=10, cpu3=1)
    made.take(irq_of(1, 0), cpu1=10, cpu6=4)
    made.update()
    rates = {(id_.irq, rate) for id_, rate in made.rows().items()}
    assert rates == {(100, 10.0), (101, 0.5), (102, 2.0), (103, 0.0)}
    assert "4 interrupts (recorded), 12.5/s: 80% on target, 4% on node, 16% elsewhere" in (
        made.shown()
    )
    made.press("c")
    assert {id_.cpu: rate for id_, rate in made.rows().items() if rate} == {0: 10, 3: 0.5, 6: 2}


def test_an_update_reads_the_counts_that_it_shows_and_no_more() -> None:
    """One file an interrupt, and a listing a device to see whether those are all."""
    made = Host(guests=4)
    made.fs.calls.clear()
    made.update()
    calls = Counter(operation for operation, _ in made.fs.calls)
    assert calls == {"read": 8, "listdir": 4}
    assert {path for operation, path in made.fs.calls if operation == "read"} == {
        file_of(irq_of(guest, vector)) for guest in range(4) for vector in range(2)
    }
    made.press("/", *"web3", keys.ENTER)
    made.fs.calls.clear()
    made.update()
    assert Counter(operation for operation, _ in made.fs.calls) == {"read": 2, "listdir": 1}
    assert made.looks == 1


def test_drawing_and_moving_read_nothing() -> None:
    made = Host(guests=4)
    made.update()
    made.fs.calls.clear()
    made.press(
        keys.DOWN, keys.END, keys.HOME, "g", "c", "b", "v", "t", "i", "n", "w", "p", "h", "q"
    )
    made.shown()
    assert made.fs.calls == []


def test_what_the_guest_set_up_anew_is_looked_at_again() -> None:
    made = Host()
    made.fs.free(irq_of(0, 1))
    made.update()
    assert (made.looks, made.app.frame().unread) == (1, 1)
    made.update()
    assert (made.looks, made.app.frame().unread, len(made.rows())) == (2, 0, 3)


def test_guests_are_looked_for_again_now_and_then_and_on_demand() -> None:
    made = Host()
    for _ in range(14):
        made.update()
    assert made.looks == 1
    for _ in range(4):
        made.update()
    assert made.looks == 2
    made.press("r")
    assert made.looks == 3


def test_keys() -> None:
    made = Host(guests=3)
    made.update()
    made.press("n")
    assert [id_.guest for id_ in made.rows()] == ["web0", "web0", "web1", "web1", "web2", "web2"]
    made.press(keys.DOWN, keys.DOWN)
    assert made.app.state.selected == Id("web1", "0000:41:00.0", 102)
    made.press("g")
    assert [id_.guest for id_ in made.rows()] == ["web0", "web1", "web2"]
    assert made.app.state.selected is None
    made.press(keys.UP)
    assert made.app.state.selected == Id("web0")
    made.press(keys.END, keys.ENTER)
    assert made.app.state.over[0] == "guest web2, known from domain-xml"
    made.press(keys.ESCAPE, "b", keys.ENTER)
    assert "device 0000:40:00.0, network, driver vfio-pci, node 0" in made.app.state.over
    made.press("x", "v", keys.ENTER)
    assert any("IRQ 100 vfio-msix[0](0000:40:00.0)" in line for line in made.app.state.over)
    assert not any("IRQ 101" in line for line in made.app.state.over)
    made.press("q")
    assert made.app.state.over == ()
    assert not made.press("q")


def test_enter_explains_a_cpu() -> None:
    made = Host(state=State(view=View.CPU, sort="CPU"))
    made.take(irq_of(1, 0), cpu1=10, cpu0=7)
    made.update()
    made.press(keys.ENTER)
    assert made.app.state.over == (
        "CPU 0 of node 0",
        "  vCPUs: web0/0",
        "  2 interrupts should be here:",
        "    IRQ 100 msix 0 of web0 0000:40:00.0",
        "    IRQ 101 msix 1 of web0 0000:40:00.0",
        "  1 that should not was taken here just now:",
        "    7 of IRQ 102 msix 0 of web1 0000:41:00.0",
    )


def test_the_filter() -> None:
    made = Host(guests=3)
    made.press("/", *"41:00.x", keys.BACKSPACE, "0")
    assert made.app.state.typing
    assert {id_.guest for id_ in made.rows()} == {"web1"}
    made.press("q")
    assert made.app.state.filter == "41:00.0q"
    made.press(keys.BACKSPACE, keys.ENTER)
    assert (made.app.state.filter, made.app.state.typing) == ("41:00.0", False)
    made.press(keys.ESCAPE)
    assert len(made.rows()) == 6
    for text, guests in (("104", {"web2"}), ("WEB1", {"web1"}), ("10", set())):
        made.press("/", *text, keys.ENTER)
        assert {id_.guest for id_ in made.rows()} == guests
        made.press("/", keys.ESCAPE)


def test_the_filter_of_cpus_goes_by_number_and_vcpu() -> None:
    made = Host(guests=3, state=State(view=View.CPU))
    made.update()
    for text, cpus in (("2", {2}), ("web1", {1}), ("", {0, 1, 2})):
        made.app.state = replace(made.app.state, filter=text)
        assert {id_.cpu for id_ in made.rows()} == cpus


def test_limits() -> None:
    made = Host(guests=2, options=Options(CpuSet([1]), threshold=11))
    made.take(irq_of(1, 0), cpu1=20, cpu5=100)
    made.take(irq_of(1, 1), cpu1=4)
    made.update()
    assert {(id_.irq, rate) for id_, rate in made.rows().items()} == {(102, 5.0)}


@pytest.mark.parametrize("width", [40, 80, 200])
def test_everything_fits(width: int) -> None:
    made = Host(guests=40 if width != 40 else 1)
    made.update()
    for key in ("v", "b", "g", "c", "h", "x", keys.ENTER):
        made.press(key)
        lines = made.app.lines(width, 24)
        assert len(lines) == 24
        assert all(sum(cells(span.text) for span in line) <= width for line in lines)


def test_text_is_scrolled_to_its_end_and_no_further() -> None:
    """However narrow the screen is, on which the lines of a text are more."""
    made = Host()
    made.press("h", keys.END)
    assert "some were on" in made.shown(30)
    end = made.app.state.scrolled
    assert end + 23 == len(screen.wrapped(made.app.state.over, 30))
    made.press(keys.PAGE_DOWN)
    made.shown(30)
    assert made.app.state.scrolled == end
    made.press(keys.UP)
    made.shown(30)
    assert made.app.state.scrolled == end - 1
    made.shown(80)
    assert made.app.state.scrolled < end - 1, "the window is wider now"


def test_what_cannot_be_looked_at_is_shown_as_it_was() -> None:
    """A guest that was named has ended, say."""
    made = Host()
    made.gone = UnknownGuestError("no guest is called 'web1\x1b[2J'", name="web1")
    made.press("r")
    assert "as it was before: no guest is called 'web1\N{REPLACEMENT CHARACTER}[2J'" in made.shown()
    assert len(made.rows()) == 4
    made.gone = None
    made.press("r")
    assert "as it was" not in made.shown()


def test_looking_takes_a_small_part_of_the_time() -> None:
    """On a host with thousands of interrupts it takes seconds."""
    made = Host()
    made.takes = 9.0
    made.press("r")
    assert made.looks == 2
    for _ in range(60):
        made.fs.free(irq_of(0, 1))  # there is something to look for at once
        made.update()
    assert made.looks == 3
