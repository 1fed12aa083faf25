"""Guests by everything that an event may name them by."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from virtirq.daemon.registry import Change, Registry, threads_of
from virtirq.model import Guest, GuestDevice, PciAddress, Vcpu

A, B = PciAddress(0, 0x41, 0, 0), PciAddress(0, 0x42, 0, 0)


def guest(
    name: str,
    pid: int | None = 100,
    tids: tuple[int, ...] = (),
    devices: tuple[PciAddress, ...] = (),
) -> Guest:
    return Guest(
        name,
        "test",
        uuid=f"u-{name}",
        pid=pid,
        vcpus=tuple(Vcpu(index, None, tid) for index, tid in enumerate(tids)),
        devices=tuple(GuestDevice(each, "hostdev") for each in devices),
    )


WEB = guest("web", 100, (101, 102, 107), (A, B))


def test_by_all_of_its_names() -> None:
    registry = Registry()
    assert registry.put(WEB) == Change(None, WEB)
    assert registry.get("u-web") is WEB
    assert [registry.of_thread(tid) for tid in (100, 101, 107, 108)] == [WEB, WEB, WEB, None]
    assert registry.of_process(100) == registry.having(A) == registry.from_source("test") == (WEB,)
    assert registry.of_process(101) == registry.from_source("other") == ()
    assert registry.devices == {A, B}
    assert registry.runs == [(100, 102), (107, 107)]
    assert (len(registry), list(registry), "u-web" in registry) == (1, [WEB], True)


def test_what_it_has_no_more_is_not_its() -> None:
    registry = Registry()
    registry.put(WEB)
    now = guest("web", 200, (201,), (B,))
    change = registry.put(now)
    assert change == Change(WEB, now)
    assert change.devices == {A, B}
    assert change.new_threads
    assert registry.having(A) == registry.of_process(100) == ()
    assert registry.of_thread(101) is None
    assert registry.devices == {B}
    assert registry.remove("u-web") == Change(now, None)
    assert registry.remove("u-web") == Change(None, None)
    assert (registry.devices, registry.runs, registry.all) == (set(), [], ())


def test_fewer_threads_are_no_new_ones() -> None:
    assert not Change(WEB, replace(WEB, vcpus=WEB.vcpus[:1])).new_threads
    assert not Change(WEB, None).new_threads
    assert Change(None, WEB).new_threads


def test_a_device_that_two_have() -> None:
    registry = Registry()
    registry.put(WEB)
    other = guest("db", 300, (), (B,))
    registry.put(other)
    assert registry.having(B) == (WEB, other)
    registry.remove("u-web")
    assert registry.having(B) == (other,)


def test_a_thread_that_another_has_by_now() -> None:
    registry = Registry()
    registry.put(WEB)
    other = guest("db", 300, (101,))
    registry.put(other)
    registry.remove("u-web")
    assert registry.of_thread(101) == other


GUESTS = st.builds(
    guest,
    st.sampled_from("abc"),
    st.sampled_from([None, 10, 20]),
    st.lists(st.integers(10, 16), max_size=3, unique=True).map(tuple),
    st.lists(st.sampled_from([A, B]), max_size=2, unique=True).map(tuple),
)


@given(st.lists(st.tuples(GUESTS, st.booleans()), max_size=12))
def test_the_indexes_say_what_the_guests_say(steps: list[tuple[Guest, bool]]) -> None:
    registry = Registry()
    for each, put in steps:
        if put:
            registry.put(each)
        else:
            registry.remove(each.key)
        guests = registry.all
        tids = {tid for one in guests for tid in threads_of(one)}
        assert {tid for first, last in registry.runs for tid in range(first, last + 1)} == tids
        for tid in tids:
            owner = registry.of_thread(tid)
            assert owner is None or tid in threads_of(owner)
        for address in (A, B):
            having = [g for g in guests if any(d.address == address for d in g.devices)]
            assert sorted(registry.having(address), key=id) == sorted(having, key=id)
        assert registry.devices == {d.address for g in guests for d in g.devices}
