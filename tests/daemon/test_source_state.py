"""What may be concluded of whom no source tells: the whole table."""

from __future__ import annotations

import itertools

import pytest

from virtirq.daemon.source_state import (
    STEPS,
    Sources,
    SourceState,
    all_told,
    guest_is_gone,
    holder_is_gone,
)

NOT_ASKED, READING, ALL, PART, NEVER = SourceState
STATES = (NOT_ASKED, READING, ALL, PART, NEVER)
PAIRS = tuple(itertools.product(STATES, STATES))

GONE = {  # of a guest that is missing from what its source tells
    NOT_ASKED: False,
    READING: False,
    ALL: True,
    PART: False,
    NEVER: True,
}

HOLDER = """
libvirt      processes: not asked  reading  all    part  never
not asked                no         no       no     no    no
reading                  no         no       no     no    no
all                      look       look     gone   look  gone
part                     no         no       no     no    no
never                    look       look     gone   look  gone
"""
"""Whoever held a device that no guest has: is gone; is not; or it takes a look at the device."""

HELD_BACK = HOLDER.replace(
    "never                    look       look     gone   look  gone",
    "never                    look       look     look   look  look",
)
"""The same where processes of libvirt's were met: only libvirt could tell whose they are."""

TOLD = """
libvirt      processes: not asked  reading  all    part  never
not asked                no         no       yes    no    no
reading                  no         no       yes    no    no
all                      no         no       yes    yes   yes
part                     no         no       yes    yes   yes
never                    no         no       yes    yes   yes
"""
"""Whether a list of what is ours may replace the one that a daemon before us has left."""

TOLD_HELD_BACK = TOLD.replace(
    "asked                no         no       yes", "asked                no         no       no "
).replace(
    "reading                  no         no       yes",
    "reading                  no         no       no ",
)


def table(text: str) -> dict[tuple[SourceState, SourceState], str]:
    """Answer by libvirt's state and the processes'."""
    found: dict[tuple[SourceState, SourceState], str] = {}
    for libvirt, line in zip(STATES, text.strip().splitlines()[1:], strict=True):
        answers = line.split()[-5:]
        assert line.startswith(libvirt.name.lower().replace("_", " "))
        found |= {(libvirt, each): answers[n] for n, each in enumerate(STATES)}
    return found


@pytest.mark.parametrize("state", STATES)
def test_a_guest_that_its_source_tells_of_no_more(state: SourceState) -> None:
    assert guest_is_gone(state) is GONE[state]


@pytest.mark.parametrize(("libvirt", "processes"), PAIRS)
@pytest.mark.parametrize("held_back", [False, True])
def test_a_holder_that_no_source_tells_of(
    libvirt: SourceState, processes: SourceState, held_back: bool
) -> None:
    answer = table(HELD_BACK if held_back else HOLDER)[libvirt, processes]
    for in_use in (False, True):
        asked: list[None] = []

        def look(in_use: bool = in_use, asked: list[None] = asked) -> bool:
            asked.append(None)
            return in_use

        gone = holder_is_gone(Sources(libvirt, processes, held_back), look)
        assert gone is (answer == "gone" or (answer == "look" and not in_use))
        assert len(asked) == (answer == "look"), "a look has its price"


@pytest.mark.parametrize(("libvirt", "processes"), PAIRS)
@pytest.mark.parametrize("held_back", [False, True])
def test_whether_all_is_told(libvirt: SourceState, processes: SourceState, held_back: bool) -> None:
    answer = table(TOLD_HELD_BACK if held_back else TOLD)[libvirt, processes]
    assert all_told(Sources(libvirt, processes, held_back)) is (answer == "yes")


def test_what_is_concluded_of_nobody_is_concluded_of_none() -> None:
    """Who tells nothing lets nobody be taken for gone, whatever else is known."""
    for state in (NOT_ASKED, READING):
        assert not guest_is_gone(state)
        assert not any(holder_is_gone(Sources(state, each), lambda: False) for each in STATES)


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_steps(before: SourceState, after: SourceState) -> None:
    if after is before or after in STEPS[before]:
        assert before.step(after) is after
    else:
        with pytest.raises(AssertionError, match=f"{before.name} to {after.name}"):
            before.step(after)


def test_every_state_can_be_left_and_what_was_told_is_never_unsaid() -> None:
    assert STEPS.keys() == set(STATES)
    assert all(STEPS.values())
    for state in (ALL, PART):
        assert STEPS[state].isdisjoint({NOT_ASKED, READING})
