"""An entry of the daemon's log, as the daemon's own memory and the journal both have it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

from virtirq.values import dataclass, field

NAMES: Final = (
    *("guest", "device", "irq", "vector", "action", "status", "before", "after", "reason"),
    *("mover", "finding"),
)
"""What an entry may tell beside its message; in the journal ``VIRTIRQ_GUEST`` and so on."""


@dataclass(frozen=True)
class LogEntry:
    """`at` is seconds since the epoch, `priority` syslog(3)'s. `fields` are by their `NAMES`."""

    at: float
    priority: int
    message: str
    fields: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def text(self) -> str:
        """The entry as JSON, made once."""
        return json.dumps(self.as_json())

    def as_json(self) -> list[Any]:
        return [self.at, self.priority, self.message, dict(self.fields)]

    @classmethod
    def from_json(cls, data: Any) -> LogEntry:
        """The inverse. Raises what is in `counters.MALFORMED` for anything else."""
        at, priority, message, fields = data
        told = {str(name): str(value) for name, value in fields.items() if name in NAMES}
        return cls(float(at), int(priority), str(message), told)
