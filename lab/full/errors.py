"""What can go wrong in the lab."""

from __future__ import annotations


class LabError(Exception):
    """Anything that keeps the lab from doing what it was asked."""


class BuildError(LabError):
    """The image could not be built; the message says what to install or set."""


class BootError(LabError):
    """The machine did not come up."""


class AgentError(LabError):
    """The agent inside the machine did not answer, or not in time."""


class CommandError(LabError):
    """A command inside the machine failed."""


class GuestError(LabError):
    """The nested guest did not do as it was told."""
