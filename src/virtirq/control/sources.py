"""Where a run's inputs come from: which host, which configuration, which guests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from virtirq.control.cycle import STATE_DIR
from virtirq.errors import ConfigError, DomainXmlError, UsageError
from virtirq.host.fs import HostFs, LiveFs
from virtirq.model import Guest
from virtirq.policy.config import Config, parse_config

CONFIG_FILE: Final = Path("/etc/virtirq/virtirq.toml")
DOMAINS_DIR: Final = "/virtirq/domains"
"""Where a recording keeps the domain XML of its guests."""


def open_fs(sysroot: Path | None) -> HostFs:
    """This machine, or the host recorded in `sysroot`. Raises RecordingError."""
    if sysroot is None:
        return LiveFs()
    from virtirq.host.scratch import open_host

    return open_host(sysroot)


def state_dir(sysroot: Path | None) -> Path:
    """The directory of journal and lock: ``/run/virtirq`` of that host."""
    return STATE_DIR if sysroot is None else sysroot / STATE_DIR.relative_to("/")


def load_config(path: Path | None, sysroot: Path | None = None) -> Config:
    """The configuration from `path`, else from where it is installed; raises ConfigError.

    ``conf.d/*.toml`` beside the file is read after it, by name. A file that was asked for must
    be there, the installed one need not be. A recorded host's configuration is not recorded, so
    only `path` counts with a `sysroot`.
    """
    main = path or (CONFIG_FILE if sysroot is None else None)
    if main is None:
        return Config()
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such file")
    files = [main, *sorted((main.parent / "conf.d").glob("*.toml"))]
    sources = [(str(file), _text(file)) for file in files if file.exists()]
    return parse_config(sources) if sources else Config()


def load_guests(fs: HostFs, domain_files: Sequence[Path]) -> tuple[Guest, ...]:
    """The guests of a recording and of domain XML files. Raises DomainXmlError, UsageError."""
    texts = _domain_texts(fs, domain_files)
    if not texts:
        return ()
    from virtirq.guests.domainxml import parse_domain

    guests: dict[str, Guest] = {}
    for where, text in texts:
        guest = parse_domain(text, where=where)
        for key in filter(None, (guest.uuid, guest.name)):
            if key in guests:
                raise UsageError(f"{where}: there is already a guest with {key}")
            guests[key] = guest
    return tuple({id(guest): guest for guest in guests.values()}.values())


def redacted_domains(
    fs: HostFs, domain_files: Sequence[Path], *, keep_names: bool = False
) -> dict[str, str]:
    """The guests' domain XML as a recording holds it, path to text; see `redaction.redact`."""
    texts = _domain_texts(fs, domain_files)
    if not texts:
        return {}
    from virtirq.guests.redaction import redact

    found = {}
    for number, (where, text) in enumerate(texts, start=1):
        name = None if keep_names else f"guest{number}"
        found[f"{DOMAINS_DIR}/{number:03d}.xml"] = redact(text, name=name, where=where)
    return found


def _domain_texts(fs: HostFs, domain_files: Sequence[Path]) -> list[tuple[str, str]]:
    """(where it is from, text) of each domain XML: the recording's first, then the files."""
    texts = []
    if fs.recording is not None:
        try:
            names = sorted(fs.listdir(DOMAINS_DIR))
        except OSError:
            names = []
        texts = [(name, fs.read(f"{DOMAINS_DIR}/{name}")) for name in names]
    return texts + [(str(file), _domain_text(file)) for file in domain_files]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text: {error.reason}") from error


def _domain_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise DomainXmlError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DomainXmlError(f"{file}: not UTF-8 text: {error.reason}") from error
