"""Each guest has a name and a key of its own, and keeps them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from virtirq.guests.processes.naming import distinct
from virtirq.model import Guest

U = "6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11"


def guest(pid: int, name: str = "web", uuid: str | None = None) -> Guest:
    return Guest(name, "vfio-process", pid=pid, uuid=uuid)


def told(guests: list[Guest]) -> list[tuple[str, str | None]]:
    return [(each.name, each.uuid) for each in guests]


def test_alone_they_are_what_they_say() -> None:
    guests = [guest(5, uuid=U), guest(6, "db")]
    assert distinct(guests, (), {}) == guests


def test_the_same_name() -> None:
    assert told(distinct([guest(5), guest(6), guest(7)], (), {})) == [
        ("web", None),
        ("web (pid 6)", None),
        ("web (pid 7)", None),
    ]


def test_the_same_name_with_uuids() -> None:
    other = U[::-1]
    assert told(distinct([guest(5, uuid=U), guest(6, uuid=other)], (), {})) == [
        ("web", U),
        ("web (pid 6)", other),
    ]


def test_the_same_uuid() -> None:
    assert told(distinct([guest(5, uuid=U), guest(6, "copy", U)], (), {})) == [
        ("web", U),
        ("copy (pid 6)", None),
    ]


def test_names_of_others() -> None:
    assert told(distinct([guest(5, uuid=U)], ("web",), {})) == [("web (pid 5)", U)]
    assert told(distinct([guest(5, uuid=U)], ("web", U), {})) == [("web (pid 5)", None)]


def test_a_name_that_looks_like_anothers() -> None:
    first = guest(5, "web (pid 6)")
    assert told(distinct([first, guest(6), guest(7)], ("web",), {})) == [
        ("web (pid 6)", None),
        ("web (pid 6) (pid 6)", None),
        ("web (pid 7)", None),
    ]


def test_it_keeps_its_name_when_the_other_has_gone() -> None:
    one, other = distinct([guest(5, uuid=U), guest(6, uuid=U)], (), {})
    again = distinct([guest(6, uuid=U)], (), {5: one, 6: other})
    assert again == [other]
    newcomer = guest(4, uuid=U)
    assert told(distinct([newcomer, guest(6, uuid=U)], (), {6: other})) == [
        ("web (pid 6)", None),
        ("web", U),
    ]


def test_it_keeps_a_name_that_it_had_to_take_twice() -> None:
    """Another source has a guest that is really called so."""
    (first,) = distinct([guest(5)], {"web", "web (pid 5)"}, {})
    assert first.name == "web (pid 5) (pid 5)"
    assert distinct([guest(5)], {"web", "web (pid 5)"}, {5: first}) == [first]


def test_a_new_process_under_the_same_number() -> None:
    before: dict[int | None, Guest] = {5: guest(5, "db")}
    assert told(distinct([guest(5)], (), before)) == [("web", None)]


GUESTS = st.lists(
    st.builds(
        guest,
        st.integers(1, 5),
        st.sampled_from(["a", "b", "a (pid 1)", "a (pid 2)", U]),
        st.sampled_from([None, U, "a"]),
    ),
    unique_by=lambda each: each.pid,
    max_size=5,
)


@given(GUESTS, st.sets(st.sampled_from(["a", "b", "a (pid 1)", U])), GUESTS)
def test_nothing_is_there_twice(guests: list[Guest], taken: set[str], before: list[Guest]) -> None:
    earlier: dict[int | None, Guest] = {
        each.pid: replace(each, name=f"{each.name} (pid {each.pid})") for each in before
    }
    found = distinct(guests, taken, earlier)
    assert sorted(each.pid or 0 for each in found) == sorted(each.pid or 0 for each in guests)
    words = [word for each in found for word in {each.name, each.key}]
    assert len(words) == len(set(words))
    assert not set(words) & taken
    named: dict[int | None, Guest] = {each.pid: each for each in found}
    again = distinct(guests, taken, named)
    assert {each.pid: each for each in again} == named
