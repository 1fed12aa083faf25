"""What the log says of an outcome, whoever brought it about."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from virtirq.daemon.journal_socket import Fields
from virtirq.model import Outcome, Status

if TYPE_CHECKING:
    from virtirq.daemon.log import Log

_NOTHING = frozenset({Status.UNCHANGED, Status.VANISHED})


class Told(NamedTuple):
    """A message and its fields; `bad`: it is a warning."""

    message: str
    fields: Fields
    bad: bool

    def to(self, log: Log) -> None:
        (log.warning if self.bad else log.info)(self.message, **self.fields)


def told(outcome: Outcome, guest: str, action: str, why: str, mover: str = "") -> Told | None:
    """None where nothing has happened. `action` is pin or restore, `why` what gave rise to it."""
    if outcome.status in _NOTHING:
        return None
    pin, bad = outcome.pin, outcome.status.bad
    what = f"{outcome.status.value}: {outcome.reason}" if bad else outcome.reason
    fields = Fields(
        guest=guest,
        device=pin.key.device,
        irq=pin.irq,
        action=action,
        status=outcome.status.value,
        before=pin.before,
        after=outcome.affinity,
        reason=f"{why}: {pin.reason.code}",
        mover=mover or None,
    )
    hint = hinted(outcome.hint) if bad else ""
    return Told(f"IRQ {pin.irq} {pin.key}: {what}{hint}", fields, bad)


def hinted(hint: str | None) -> str:
    return f" (hint: {hint})" if hint else ""
