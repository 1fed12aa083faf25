"""What can go wrong, as types.

Tree (exit code of the command in brackets)::

    VirtirqError                 [1]  one line for the person, ``hint`` says what to do
    ├── UsageError               [2]  the command line asks for something that cannot be
    │   └── UnknownGuestError         a guest that is not there
    ├── InputError               [2]  a file or setting that a person wrote is malformed
    │   ├── CpuSetError               a CPU list, cpuset or mask
    │   ├── DirectiveError            a directive word
    │   ├── ConfigError               the configuration; carries file and key path
    │   └── DomainXmlError            a domain XML; carries where
    ├── RecordingError           [2]  a --sysroot that is not a host's tree
    ├── JournalError             [1]  the journal cannot be read or written
    ├── BusyError                [1]  another virtirq holds the lock
    ├── LibvirtError             [1]  libvirt was asked and refused
    ├── NoAnswerError            [1]  what was asked does not answer in time
    ├── NoRoomError              [1]  there is no place for a guest's vCPUs
    ├── InterruptedByUserError   [130] Ctrl-C
    ├── DeploymentError          [5]  not permitted, or read-only where it must write
    │   └── AccessError               libvirt does not let this user in, or do that
    └── UnavailableError         [6]  something that is needed is not there
        ├── DependencyError           a Python module
        └── ConnectionFailedError     libvirt cannot be reached at a URI
"""

from __future__ import annotations

from collections.abc import Sequence

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_FINDINGS = 3
EXIT_PARTIAL = 4
EXIT_PERMISSION = 5
EXIT_UNAVAILABLE = 6
EXIT_INTERRUPTED = 130
"""128 and SIGINT, as a shell has it."""


class VirtirqError(Exception):
    """Base of every error that virtirq raises on purpose.

    ``str(error)`` is one line; ``hint`` is what the person can do, or None. `retryable`: it may go
    by itself, so that the same is worth trying again later.
    """

    exit_code = EXIT_FAILED
    retryable = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(VirtirqError):
    """The command line asks for something that cannot be done."""

    exit_code = EXIT_USAGE


class UnknownGuestError(UsageError):
    """No guest, or nothing of a guest's, is called `name`."""

    def __init__(self, message: str, *, hint: str | None = None, name: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name


class InputError(VirtirqError):
    """Something that a person wrote is malformed."""

    exit_code = EXIT_USAGE


class CpuSetError(InputError):
    """A CPU list, libvirt cpuset or hexadecimal CPU mask is malformed."""


class DirectiveError(InputError):
    """A directive is neither a known word nor a CPU list."""


class ConfigError(InputError):
    """The configuration is malformed; the message names file and key path.

    `problems` are all that is wrong, a line each, of which the message has the first.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, problems: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems) or (message,)

    @classmethod
    def of(cls, problems: Sequence[str]) -> ConfigError:
        """One error for all of these."""
        more = len(problems) - 1
        hint = f"'virtirq config check' has {more} more" if more else None
        return cls(problems[0], hint=hint, problems=problems)


class DomainXmlError(InputError):
    """A domain XML is malformed; the message names the element."""


class RecordingError(VirtirqError):
    """A ``--sysroot`` is not a tree of a host, or a recording cannot be written."""

    exit_code = EXIT_USAGE


class JournalError(VirtirqError):
    """The journal cannot be read or written."""

    retryable = True


class BusyError(VirtirqError):
    """Another virtirq holds the lock."""

    retryable = True


class LibvirtError(VirtirqError):
    """libvirt was asked for something and refused; the message is its own."""

    retryable = True


class NoAnswerError(VirtirqError):
    """Someone who was asked for something does not answer in time."""

    retryable = True


class NoRoomError(VirtirqError):
    """There is no place for a guest's vCPUs, or it cannot be told which would be right."""


class InterruptedByUserError(VirtirqError):
    """Whoever started the command has stopped it."""

    exit_code = EXIT_INTERRUPTED
    retryable = True


class DeploymentError(VirtirqError):
    """Files that have to be read or written are read-only, or closed to this user."""

    exit_code = EXIT_PERMISSION


class AccessError(DeploymentError):
    """libvirt does not let this user connect, or do what was asked."""


class UnavailableError(VirtirqError):
    """Something that is needed for this is not there."""

    exit_code = EXIT_UNAVAILABLE


class DependencyError(UnavailableError):
    """A Python module is not installed; the hint names the package."""


class ConnectionFailedError(UnavailableError):
    """libvirt cannot be reached; the message names the URI."""

    retryable = True


def of_file(file: object, error: OSError, otherwise: type[VirtirqError]) -> VirtirqError:
    """What to raise for a file that a person named: this user may not, or it is `otherwise`."""
    if isinstance(error, PermissionError):
        text = f"{error.filename or file}: {error.strerror}"
        return DeploymentError(text, hint="run as a user who may, or name another")
    return otherwise(f"{file}: {error.strerror or error}")
