"""Where a run's inputs come from: which host, which configuration, which guests."""

from __future__ import annotations

import errno
import os
import pwd
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from virtirq.control.cycle import STATE_DIR
from virtirq.errors import (
    ConfigError,
    DependencyError,
    DomainXmlError,
    InputError,
    RecordingError,
    UsageError,
    VirtirqError,
    of_file,
)
from virtirq.host.fs import HostFs, LiveFs
from virtirq.model import Gap, Guest
from virtirq.policy.config import Config, parse_config

if TYPE_CHECKING:
    from virtirq.guests.libvirt.connection import Connection

_MAX_TEXT: Final = 16 << 20

CONFIG_FILE: Final = Path("/etc/virtirq/virtirq.toml")
DOMAINS_DIR: Final = "/virtirq/domains"
"""Where a recording keeps the domain XML of its guests."""


def open_fs(sysroot: Path | None) -> HostFs:
    """This machine, or the host recorded in `sysroot`. Raises RecordingError, DeploymentError."""
    if sysroot is None:
        return LiveFs()
    from virtirq.host.scratch import open_host

    return open_host(sysroot)


def state_dir(sysroot: Path | None) -> Path:
    """The directory of journal and lock: ``/run/virtirq`` of that host.

    Raises RecordingError where a link in the tree would lead out of it.
    """
    if sysroot is None:
        return STATE_DIR
    state = sysroot / STATE_DIR.relative_to("/")
    for each in (state.parent, state):
        if each.is_symlink():
            raise RecordingError(f"{each}: is a link; a scratch host must not lead out of its tree")
    return state


def load_config(path: Path | None, sysroot: Path | None = None) -> Config:
    """The configuration from `path`, a file or a directory, else from where it is installed.

    Raises ConfigError, and DeploymentError where it may not be read.

    In a directory, ``virtirq.toml`` need not be there, and ``conf.d/*.toml`` is read after it, by
    name; beside a file that is named itself nothing else is read. A recorded host's configuration
    is not recorded, so only `path` counts with a `sysroot`.
    """
    if path is None:
        files = [] if sysroot is not None else _config_in(CONFIG_FILE.parent)
    else:
        files = _config_in(path) if os.path.isdir(path) else [path]
        if not files:
            raise ConfigError(f"{path}: holds neither {CONFIG_FILE.name} nor conf.d/*.toml")
    texts, problems = [], list[str]()
    for file in files:
        try:
            texts.append((str(file), _text(file, ConfigError)))
        except ConfigError as error:
            problems += error.problems
    try:
        config = parse_config(texts, _user_id) if texts else Config()
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError.of(problems)
    return config


def _user_id(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _config_in(directory: Path) -> list[Path]:
    """The files that there are; one that may not be looked for is an error."""
    more, main = directory / "conf.d", directory / CONFIG_FILE.name
    try:
        names = sorted(os.listdir(more))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise of_file(more, error, ConfigError) from error
    found = [main] if os.path.lexists(main) else []
    return found + [more / each for each in names if each.endswith(".toml")]


class Found(NamedTuple):
    """The guests, and what could not be read of them. `claimed` are to be shown, not acted on.

    `stopped` are those that libvirt has a definition of, where they were asked for. `unread` says
    why more may run, if so; `failed` is why libvirt could not be asked.
    """

    guests: tuple[Guest, ...]
    gaps: tuple[Gap, ...] = ()
    claimed: tuple[Guest, ...] = ()
    stopped: tuple[Guest, ...] = ()
    unread: str = ""
    failed: VirtirqError | None = None


def find_guests(
    fs: HostFs,
    domain_files: Sequence[Path],
    uri: str | None,
    *,
    default: str = "",
    must: bool = False,
    processes: bool = True,
    defined: bool = False,
) -> Found:
    """The guests of this machine: of a recording and files, or those that run.

    Those that run are asked of libvirt at `uri`, or at the default URI (`default` is the configured
    one), and with `processes` found by the devices that they hold as well. libvirt may fail and
    leave a gap, unless with `must` no guest is found at all. With `defined`, libvirt is asked for
    those that do not run, too. Raises what `load_guests` and `guests.libvirt.connected` raise, and
    UsageError for another machine's libvirt.
    """
    known = load_guests(fs, domain_files)
    if uri is None and (fs.recording is not None or domain_files):
        return Found(known, fs.gaps, unread="; ".join(gap.error for gap in fs.gaps))
    refuse_recording(fs, uri)
    guests, gaps, failed, unread = known, list[Gap](), None, ""
    claimed: tuple[Guest, ...] = ()
    stopped: tuple[Guest, ...] = ()
    try:
        with _this_machines(uri, default) as connection:
            live = connection.guests(fs)
            if defined:
                others = connection.stopped()
                stopped = others.guests
                gaps += others.gaps
        guests = _unique((each.source, each) for each in (*known, *live.guests))
        gaps += live.gaps
        if not live.complete:
            unread = f"not all that libvirt has are understood: {live.gaps[0].error}"
    except VirtirqError as error:
        if uri is not None:
            raise
        failed = error
        if not isinstance(error, DependencyError):  # a host without libvirt may be meant to be
            unread = str(error)
        gaps.append(_guests_gap(error))
    if processes:
        from virtirq.guests.processes.find import find_processes

        found = find_processes(fs, guests)
        completed = {guest.key: guest for guest in found.completed}
        guests = (*(completed.get(each.key, each) for each in guests), *found.guests)
        claimed = found.claimed
        gaps += found.gaps
    if failed is not None and must and not guests:
        if not processes:
            raise failed
        text = f"no process here holds a device for a guest, and libvirt: {failed}"
        raise type(failed)(text, hint=failed.hint)
    return Found(guests, tuple(gaps), claimed, stopped, unread, failed)


def defined_guests(fs: HostFs, uri: str | None, default: str = "") -> tuple[Guest, ...]:
    """The guests that libvirt here has a definition of, and that do not run; none if it fails."""
    if fs.recording is not None:
        return ()
    try:
        with _this_machines(uri, default) as connection:
            return connection.stopped().guests
    except VirtirqError:
        return ()


def refuse_recording(fs: HostFs, uri: str | None) -> None:
    """Raises UsageError for a URI beside a recording."""
    if uri is not None and fs.recording is not None:
        raise UsageError(
            f"{fs.recording} is a recording: libvirt has no part in it",
            hint="leave out either --connect or --sysroot",
        )


def load_guests(fs: HostFs, domain_files: Sequence[Path]) -> tuple[Guest, ...]:
    """The guests of a recording and of domain XML files. Raises DomainXmlError, UsageError."""
    texts = _domain_texts(fs, domain_files)
    if not texts:
        return ()
    from virtirq.guests.libvirt.domainxml import parse_domain

    return _unique((where, parse_domain(text, where=where)) for where, text in texts)


def _unique(guests: Iterable[tuple[str, Guest]]) -> tuple[Guest, ...]:
    """Raises UsageError where two have a name or a UUID in common.

    A name may read as a UUID, its guest's own or another's: those are two things in libvirt.
    """
    found = tuple(guests)
    for what, of in (
        ("name", attrgetter("name")),
        ("UUID", attrgetter("uuid")),
        ("name or UUID", attrgetter("key")),
    ):
        known = set()
        for where, guest in found:
            text = of(guest)
            if text in known:
                raise UsageError(f"{where}: there is already a guest with the {what} {text}")
            known |= {text} - {None}
    return tuple(guest for _, guest in found)


@contextmanager
def _this_machines(uri: str | None, default: str) -> Iterator[Connection]:
    """A connection to libvirt here. Raises UsageError for another machine's, before it asks."""
    from virtirq.guests.libvirt import connection as libvirt

    asked = uri or libvirt.default_uri(default)
    hint = (
        f"run virtirq there; from here, only 'virtirq -c {asked} status', settings and definitions"
        " work"
    )
    if libvirt.is_remote(asked):
        raise libvirt.elsewhere(asked, hint)
    with libvirt.connected(asked) as connection:
        if connection.remote:
            raise libvirt.elsewhere(asked, hint)
        yield connection


def _guests_gap(error: VirtirqError) -> Gap:
    return Gap("guests", f"{error} ({error.hint})" if error.hint else str(error))


def redacted_domains(
    fs: HostFs,
    domain_files: Sequence[Path],
    *,
    uri: str | None = None,
    default: str = "",
    keep_names: bool = False,
) -> tuple[dict[str, str], tuple[Gap, ...]]:
    """The guests' domain XML as a recording holds it, path to text; see `redaction.redact`.

    The guests are those that `find_guests` finds; what could not be read is a gap.
    """
    refuse_recording(fs, uri)
    texts: list[tuple[str, str, Guest | None]] = [
        (where, text, None) for where, text in _domain_texts(fs, domain_files)
    ]
    gaps: tuple[Gap, ...] = ()
    if uri is not None or (fs.recording is None and not domain_files):
        try:
            with _this_machines(uri, default) as connection:
                live = connection.guests(fs)
        except VirtirqError as error:
            if uri is not None:
                raise
            gaps = (_guests_gap(error),)
        else:
            gaps = live.gaps
            texts += [
                (guest.name, text, guest)
                for guest, text in zip(live.guests, live.texts, strict=True)
            ]
    if not texts:
        return {}, gaps
    from virtirq.guests.libvirt.redaction import redact

    found = {}
    for number, (where, text, seen) in enumerate(texts, start=1):
        name = None if keep_names else f"guest{number}"
        path = f"{DOMAINS_DIR}/{number:03d}.xml"
        found[path] = redact(text, name=name, where=where, seen=seen)
    return found, gaps


def _domain_texts(fs: HostFs, domain_files: Sequence[Path]) -> list[tuple[str, str]]:
    """(where it is from, text) of each domain XML: the recording's first, then the files."""
    texts = []
    if fs.recording is not None:
        try:
            names = sorted(fs.listdir(DOMAINS_DIR))
        except (FileNotFoundError, NotADirectoryError):
            names = []
        except OSError as error:
            raise of_file(f"{fs.recording}{DOMAINS_DIR}", error, RecordingError) from error
        texts = [(name, fs.read(f"{DOMAINS_DIR}/{name}")) for name in names]
    return texts + [(str(file), _text(file, DomainXmlError)) for file in domain_files]


def standard_input(most: int = -1) -> bytes:
    """What comes from there, which may be closed. Raises OSError."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "the standard input is closed")
    return sys.stdin.buffer.read(most)


def _text(file: Path, problem: type[InputError]) -> str:
    """The text of a file that a person wrote, or of the standard input for ``-``."""
    try:
        if str(file) == "-":
            data = standard_input(_MAX_TEXT + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(_MAX_TEXT + 1)
        if len(data) > _MAX_TEXT:
            raise problem(f"{file}: larger than {_MAX_TEXT >> 20} MiB")
        return data.decode()
    except OSError as error:
        raise of_file(file, error, problem) from error
    except UnicodeDecodeError as error:
        raise problem(f"{file}: not UTF-8 text: {error.reason}") from error
