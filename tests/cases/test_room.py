"""More vectors than CPUs have room for: those that fire come before those that never did."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import pytest

from tests.cases.room import Room, guest
from tests.hostmaker import MadeDevice, MadeHost, MadeInterrupt
from virtirq.control.cycle import Done, apply, observe, planned
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.model import Guest, PciAddress, Plan, Status
from virtirq.policy.config import Config
from virtirq.policy.findings import findings
from virtirq.policy.plan import plan
from virtirq.ui.screens import outcome_screen
from virtirq.values import replace

ROOM = 8
irq_of = attrgetter("irq")
FUNCTIONS = [f"0000:8e:03.{number}" for number in range(3)]


def device(number: int, busy: range, on: str = "15", vectors: int = 8) -> MadeDevice:
    """Vectors of which few fire, as of a NIC that has queues for all CPUs of a large guest."""
    address = FUNCTIONS[number]
    return MadeDevice(
        address,
        vectors=[
            MadeInterrupt(
                1000 + number * vectors + vector,
                (f"vfio-msix[{vector}]({address})",),
                "8-15" if on == "15" else on,
                on,
                {15: 10} if vector in busy else {},
            )
            for vector in range(vectors)
        ],
    )


def host(*devices: MadeDevice) -> MadeHost:
    return MadeHost(online="0-15", nodes={0: "0-15"}, devices=devices)


class Host:
    """A host on which things are moved."""

    def __init__(self, made: MadeHost, state: Path, pins: tuple[str, ...] = ("8", "9")) -> None:
        self.fs, self.state = made.fs(), state
        self.guests: list[Guest] = [parse_domain(guest(FUNCTIONS, pins))]

    def apply(self) -> Done:
        return apply(self.fs, self.guests, Config(), self.state, [])

    def places(self, *vectors: int) -> list[str]:
        """Where these vectors of every function are."""
        found = observe(self.fs, self.guests).interrupts
        return [str(each.affinity) for each in found if each.vector in vectors]

    def hints(self) -> dict[str, str]:
        snapshot = observe(self.fs, self.guests)
        found = findings(snapshot, plan(snapshot, Config()))
        return {each.code: each.hint or "" for each in found}


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CPUs with little room, so that few vectors fill them."""
    monkeypatch.setattr("virtirq.host.scratch.VECTORS_PER_CPU", ROOM)
    monkeypatch.setattr("virtirq.policy.room.VECTORS_LOW", ROOM)
    tmp_path.chmod(0o700)
    return tmp_path


def test_those_that_fire_are_moved_first(state: Path) -> None:
    crowd = Host(host(*(device(number, range(3)) for number in range(3))), state)
    done = crowd.apply()
    assert set(crowd.places(0, 1, 2)) == {"8", "9"}
    refused = [each for each in done.outcomes if each.status is Status.REFUSED]
    assert refused
    assert all(each.crowded and each.pin.idle for each in refused)


def test_no_hint_that_cannot_help(state: Path) -> None:
    crowd = Host(host(*(device(number, range(3)) for number in range(3))), state)
    assert "run 'virtirq apply'" in crowd.hints()["wrong-cpu"]
    crowd.apply()
    assert crowd.hints().keys() == {"vectors-low"}


def test_those_that_never_fired_make_room(state: Path) -> None:
    """They came first: whoever set them up could not know."""
    crowd = Host(
        host(
            device(0, range(0), on="8", vectors=ROOM),
            device(1, range(0), on="9", vectors=ROOM),
            device(2, range(2), vectors=ROOM),
        ),
        state,
    )
    done = crowd.apply()
    assert set(crowd.places(*range(2))) >= {"8", "9"}
    busy = [
        each for each in done.outcomes if each.pin.key.device.function == 2 and not each.pin.idle
    ]
    assert [each.status for each in busy] == [Status.APPLIED] * 2
    assert outcome_screen(done).plain().count("never fired: makes room on CPU") == 2
    moved = [each for each in done.outcomes if each.pin.reason.code == "makes-room"]
    assert [(each.status, str(each.affinity)) for each in moved] == [
        (Status.APPLIED, "0-7,10-15")
    ] * 2


def test_and_stay_away(state: Path) -> None:
    crowd = Host(
        host(
            device(0, range(0), on="8", vectors=ROOM),
            device(1, range(0), on="9", vectors=ROOM),
            device(2, range(2), vectors=ROOM),
        ),
        state,
    )
    crowd.apply()
    before = crowd.places(*range(ROOM))
    again = crowd.apply()
    assert crowd.places(*range(ROOM)) == before
    assert {each.status for each in again.outcomes} <= {Status.REFUSED, Status.UNCHANGED}
    assert crowd.hints().keys() == {"vectors-low"}


def test_one_that_fires_moves_no_other_that_does(state: Path) -> None:
    full = range(ROOM)
    crowd = Host(
        host(
            device(0, full, on="8", vectors=ROOM),
            device(1, full, on="9", vectors=ROOM),
            device(2, range(2), vectors=ROOM),
        ),
        state,
    )
    done = crowd.apply()
    assert not [each for each in done.outcomes if each.pin.reason.code == "makes-room"]
    assert {each.status for each in done.outcomes} <= {Status.REFUSED, Status.UNCHANGED}
    assert "vectors-low" in crowd.hints()


def test_another_guests_stay(state: Path) -> None:
    """Who shares CPUs with another has no claim on its vectors."""
    crowd = Host(
        host(
            device(0, range(0), on="8", vectors=ROOM),
            device(1, range(0), on="9", vectors=ROOM),
            device(2, range(2), vectors=ROOM),
        ),
        state,
    )
    crowd.guests = [
        parse_domain(guest(FUNCTIONS[:2], ("8", "9"), name="other")),
        parse_domain(guest(FUNCTIONS[2:], ("8", "9"), name="vm")),
    ]
    crowd.apply()
    assert set(crowd.places(ROOM - 1)) == {"8", "9", "8-15"}


@pytest.mark.usefixtures("state")
def test_who_has_fired_is_asked_of_the_guests_that_are_short_alone() -> None:
    """A host has a hundred thousand counts; the plan is what it is with all of them."""
    made = host(*(device(number, range(number, 8)) for number in range(3)))
    guests = [
        parse_domain(guest(FUNCTIONS[:2], ("8", "9"), name="short")),
        parse_domain(guest(FUNCTIONS[2:], [str(cpu) for cpu in range(8)], name="wide")),
    ]
    fs = made.fs()
    counted, whole = planned(fs, observe(fs, guests, counts=False), Config())
    read = sum(path.endswith("/per_cpu_count") for _, path in fs.calls)
    assert read == 16
    assert {each.device for each in counted.interrupts if each.counts is not None} == {
        PciAddress.parse(each) for each in FUNCTIONS[:2]
    }
    short, wide = plan(observe(fs, guests), Config()).guests
    assert whole.guests[0] == short
    assert sum(pin.idle for pin in whole.pins) == 1
    uncounted = [replace(each, idle=False) for each in Plan((wide,)).pins]
    assert sorted(uncounted, key=irq_of) == sorted(Plan((whole.guests[1],)).pins, key=irq_of)


def test_where_nobody_is_short_the_order_is_the_vectors() -> None:
    room = Room(host(device(0, range(2, 4), vectors=4)), [guest(FUNCTIONS[:1], ["8", "9"])])
    assert [pin.irq for pin in room.plan.pins] == [1002, 1003, 1000, 1001]
    assert room.on[FUNCTIONS[0]] == ["8", "9", "8", "9"]
