"""Which of several looks that overlap has older news."""

from __future__ import annotations

import pytest

from virtirq.daemon import looks as module
from virtirq.daemon.looks import Look, Looks
from virtirq.model import Guest, GuestDevice, PciAddress

A, B = (PciAddress.parse(f"0000:0{number}:00.0") for number in (1, 2))


def guest(pid: int, *devices: PciAddress) -> Guest:
    return Guest(
        "web", "test", pid=pid, devices=tuple(GuestDevice(each, "hostdev") for each in devices)
    )


def begin(looks: Looks, ours: Look) -> None:
    looks.begins(ours, lambda: None)()


def test_who_was_begun_first_and_is_over_last() -> None:
    looks = Looks()
    with looks.look() as older, looks.look() as newer:
        begin(looks, older)
        begin(looks, newer)
        looks.over(newer, [guest(7, A)], 9)
    assert older.pids == {7, 9}
    assert older.doubtful(guest(8, B, A))
    assert not older.doubtful(guest(8, B))
    assert newer.pids == set()


def test_who_was_begun_first_and_is_over_first() -> None:
    looks = Looks()
    with looks.look() as older, looks.look() as newer:
        begin(looks, older)
        begin(looks, newer)
        looks.over(older, [guest(7, A)])
    assert newer.pids == set()
    assert not newer.doubtful(guest(7, A))


def test_who_waits_for_its_turn_will_see_it() -> None:
    """Whichever of the two asked first."""
    looks = Looks()
    with looks.look() as waiting, looks.look() as other:
        begin(looks, other)
        looks.over(other, [guest(7, A)])
        begin(looks, waiting)
    assert waiting.pids == set()


def test_what_is_over_is_forgotten() -> None:
    looks = Looks()
    with looks.look() as older:
        begin(looks, older)
    with looks.look() as newer:
        begin(looks, newer)
        looks.over(newer, [guest(7, A)])
    assert older.pids == set()
    assert looks._under_way == set()


def test_of_more_than_is_remembered_all_are_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 10)
    looks = Looks()
    with looks.look() as older:
        begin(looks, older)
        for pid in range(100):
            with looks.look() as newer:
                begin(looks, newer)
                looks.over(newer, [], pid)
    assert len(older.pids) == 11
    assert older.doubtful(guest(500, B))
