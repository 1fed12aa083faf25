"""Names for guests that nobody gave one for certain: each has its own, and keeps it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from virtirq.model import Guest
from virtirq.values import replace


def distinct(
    guests: Iterable[Guest], taken: Collection[str], before: Mapping[int | None, Guest]
) -> list[Guest]:
    """The guests, with names and UUIDs that nothing else has: `taken` are other guests'.

    Two processes may be called the same and say that they have the same UUID: the first has both,
    a later one is told apart by its process id. `before` has guests by process id as they were
    named at an earlier time: whoever is still there stays what it was, whatever became of others.
    """
    used = set(taken)
    found = []
    # Those with a name first: else a newcomer could take it.
    for guest in sorted(guests, key=lambda each: each.pid not in before):
        earlier = before.get(guest.pid)
        apart = f" (pid {guest.pid})"
        if (
            earlier is not None
            and earlier.name.startswith(guest.name)
            and not earlier.name.removeprefix(guest.name).replace(apart, "")
            and earlier.uuid in (guest.uuid, None)
        ):
            guest = replace(guest, name=earlier.name, uuid=earlier.uuid)
        if guest.uuid in used:
            guest = replace(guest, uuid=None, name=guest.name + apart)
        while guest.name in used:
            guest = replace(guest, name=guest.name + apart)
        used |= {guest.name, guest.key}
        found.append(guest)
    return found
