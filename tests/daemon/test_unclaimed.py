"""Devices that nobody has: told once, and no longer than they are so."""

from __future__ import annotations

import logging

import pytest

from tests.daemon.test_reconciler import DB, HOST, OTHER, STRANGE, WEB, Kernel, Lines, Time
from virtirq.control import cycle
from virtirq.daemon.log import Log
from virtirq.daemon.registry import Registry
from virtirq.daemon.timers import Timers
from virtirq.daemon.unclaimed import Unclaimed
from virtirq.model import PciAddress
from virtirq.policy.config import Config
from virtirq.policy.findings import findings
from virtirq.policy.plan import plan

LONG = 60.0


class Stage:
    """A host where WEB runs and is known; DB and somebody else have two devices."""

    def __init__(self) -> None:
        self.fs = Kernel(HOST)
        self.time = Time()
        self.lines = Lines()
        self.registry = Registry()
        self.registry.put(WEB)
        self.told = True
        logger = logging.Logger("unclaimed")
        logger.addHandler(self.lines)
        self.unclaimed = Unclaimed(
            self.fs, self.registry, Log(logger), self.timers(), lambda: self.told
        )

    def timers(self) -> Timers:
        def failed(error: BaseException) -> None:
            raise error

        return Timers(self.time.later, self.time, failed)

    def said(self) -> list[PciAddress]:
        """Of whom something was logged since."""
        found = [each.__dict__["virtirq_fields"]["device"] for each in self.lines.records]
        self.lines.records.clear()
        return found

    @property
    def found(self) -> list[str]:
        return [each.subject for each in self.unclaimed.findings()]

    def start(self) -> None:
        self.unclaimed.look_at_all()
        self.time.pass_(LONG)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_as_check_finds_them(stage: Stage) -> None:
    stage.start()
    snapshot = cycle.observe(stage.fs, stage.registry.all)
    found = findings(snapshot, plan(snapshot, Config()))
    assert stage.unclaimed.findings() == tuple(e for e in found if e.code == "device-unclaimed")
    assert stage.said() == [OTHER, STRANGE]
    assert stage.time.waiting == [], "nothing is done while nothing happens"


def test_each_is_said_once(stage: Stage) -> None:
    stage.start()
    stage.said()
    stage.start()
    stage.fs.free(140)
    stage.unclaimed.freed(140)
    stage.fs.allocate(150, 5, STRANGE)
    stage.unclaimed.set_up(STRANGE)
    stage.time.pass_(LONG)
    assert stage.said() == []
    assert stage.found == [str(OTHER), str(STRANGE)]


def test_who_is_told_of_in_time_is_nobody_s_concern(stage: Stage) -> None:
    stage.unclaimed.set_up(OTHER)
    stage.time.pass_(5)
    stage.unclaimed.known(stage.registry.put(DB).devices)
    stage.time.pass_(LONG)
    assert (stage.said(), stage.found) == ([], [])


def test_a_guest_that_comes_and_goes(stage: Stage) -> None:
    stage.start()
    stage.said()
    stage.unclaimed.known(stage.registry.put(DB).devices)
    assert stage.found == [str(STRANGE)]
    stage.unclaimed.known(stage.registry.remove(DB.key).devices)
    stage.time.pass_(LONG)
    assert stage.said() == [OTHER], "another time"
    assert stage.found == [str(OTHER), str(STRANGE)]


def test_a_guest_that_has_stopped(stage: Stage) -> None:
    """Its interrupts are gone when that is looked at."""
    stage.registry.put(DB)
    stage.unclaimed.known(stage.registry.remove(DB.key).devices)
    for irq in (120, 121):
        stage.fs.free(irq)
    stage.time.pass_(LONG)
    assert (stage.said(), stage.found) == ([], [])


def test_until_they_are_let_go(stage: Stage) -> None:
    stage.start()
    for irq in (140, 141):
        stage.fs.free(irq)
        stage.unclaimed.freed(irq)
    stage.time.pass_(LONG)
    assert stage.found == [str(OTHER)]
    assert not stage.unclaimed._by_irq.keys() & {140, 141}


def test_nobody_is_blamed_before_all_have_told(stage: Stage) -> None:
    stage.told = False
    stage.start()
    stage.unclaimed.set_up(STRANGE)
    stage.time.pass_(LONG)
    assert (stage.said(), stage.found) == ([], [])
    stage.told = True
    stage.time.pass_(LONG)
    assert stage.said() == [OTHER, STRANGE]


def test_who_never_tells_is_waited_for_later_and_later(stage: Stage) -> None:
    """However often devices are set up meanwhile, and without a look at any of them."""
    asked: list[float] = []

    def told() -> bool:
        asked.append(stage.time())
        return stage.told

    stage.told, stage.unclaimed._all_told = False, told
    stage.fs.calls.clear()
    stage.unclaimed.look_at_all()
    stage.time.pass_(3600)
    assert len(asked) <= 3600 / LONG + 3
    asked.clear()
    for _ in range(60):
        stage.unclaimed.set_up(STRANGE)
        stage.time.pass_(LONG)
    assert len(asked) <= 2 * 3600 / LONG
    assert stage.fs.calls == []
    stage.told = True
    stage.time.pass_(LONG)
    assert stage.said() == [OTHER, STRANGE]
    stage.told = False
    stage.unclaimed.look_at_all()
    asked.clear()
    stage.time.pass_(LONG / 2)
    assert len(asked) == 2, "the next time begins anew"


def test_a_guest_that_sets_its_own_up_costs_no_look(stage: Stage) -> None:
    stage.fs.calls.clear()
    for device in WEB.devices:
        stage.unclaimed.set_up(device.address)
    stage.unclaimed.freed(100)
    assert stage.time.waiting == []
    assert stage.fs.calls == []
