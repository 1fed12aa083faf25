"""What the sources of guests have told, and what may be concluded of whom they have not.

Pure: two states and a few facts in, yes or no out. Each source keeps its own state and goes from
one to the next by `step`; who acts on it (the Reconciler puts back what the journal has of guests
that are gone, irqbalance is given a new list) asks `guest_is_gone`, `holder_is_gone` and
`all_told`, and keeps no flags of its own::

    sources = Sources(libvirt=libvirt.state, processes=processes.state, held_back=...)
    if holder_is_gone(sources, in_use=lambda: interrupts_are_set_up(device)):
        put_back(device)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final


class SourceState(Enum):
    """How much a source of guests has told."""

    NOT_ASKED = "not asked yet"
    READING = "asked, and has told nothing yet"
    """An attempt that fails and is made again is still this."""
    ALL = "has told all of its guests"
    PART = "has told guests, and there may be more"
    """One could not be read, or it cannot be asked just now: a connection that was lost."""
    NEVER = "is not asked here"
    """There is none, or it is switched off: it has no guests."""

    def step(self, to: SourceState) -> SourceState:
        """The next state, `to`; staying is no step. Any other than those in `STEPS` is a bug."""
        if to is not self and to not in STEPS[self]:
            raise AssertionError(f"{self.name} to {to.name}")
        return to

    @property
    def told(self) -> bool:
        """Whether all was heard that can be heard for now."""
        return self in (SourceState.ALL, SourceState.PART, SourceState.NEVER)

    @property
    def complete(self) -> bool:
        """Whether it has no guest that is not known."""
        return self in (SourceState.ALL, SourceState.NEVER)


_NOT_ASKED, _READING, _ALL, _PART, _NEVER = SourceState

STEPS: Final[Mapping[SourceState, frozenset[SourceState]]] = MappingProxyType(
    {
        _NOT_ASKED: frozenset({_READING, _NEVER}),
        _READING: frozenset({_ALL, _PART, _NEVER}),
        # Once it has told something it never is as if it had not: what it told still holds.
        _ALL: frozenset({_PART, _NEVER}),
        _PART: frozenset({_ALL, _NEVER}),
        _NEVER: frozenset({_READING}),
    }
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Both sources.

    `held_back`: processes hold devices for guests that libvirt started, and it has not told of
    them: they are known to run, and not known.
    """

    libvirt: SourceState = _NEVER
    processes: SourceState = _NEVER
    held_back: bool = False


def guest_is_gone(source: SourceState) -> bool:
    """Whether a guest that its source told of once, and tells of no more, has stopped.

    This is about lists: that one guest has ended for certain (its process has, or libvirt says of
    it that it does not run) needs no list.
    """
    return source.complete


def holder_is_gone(sources: Sources, in_use: Callable[[], bool]) -> bool:
    """Whether whoever held a device that no known guest has, such as the journal names, is gone.

    `in_use` says whether interrupts of the device are set up through VFIO; it costs a look, and is
    asked only where that decides.
    """
    if not sources.libvirt.complete:
        return False
    unknown = sources.held_back and sources.libvirt is _NEVER
    if sources.processes.complete and not unknown:
        return True
    return not in_use()


def all_told(sources: Sources) -> bool:
    """Whether each source has told what it can, so that a list of what is ours replaces another's.

    Guests that cannot be read stay so: whoever waits for them would wait for ever. Where all
    processes were seen and none is libvirt's, there is nothing that libvirt could tell.
    """
    if sources.libvirt.told:
        return sources.processes.told
    return sources.processes is _ALL and not sources.held_back
