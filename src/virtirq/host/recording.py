"""Records a host: every file of the manifest, as it is now, in one tar archive.

What tells of the owner stays out: the boot id is blanked, and names of network interfaces in
action names become ``net``. No command line, serial number, MAC or IP address is in the
manifest.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from virtirq import __version__
from virtirq.errors import RecordingError, UsageError, of_file
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.host.paths import KernelPath
from virtirq.host.tree import FORMAT, RECORDING
from virtirq.model import VfioAction

_MODES: Final = {
    ".tar": "w:",
    ".gz": "w:gz",
    ".tgz": "w:gz",
    ".bz2": "w:bz2",
    ".tbz2": "w:bz2",
    ".xz": "w:xz",
    ".txz": "w:xz",
}
_NO_BOOT: Final = "00000000-0000-0000-0000-000000000000"


def record(
    fs: HostFs, target: Path, extra: Mapping[str, str], gaps: Mapping[str, str] | None = None
) -> int:
    """Writes the host to the archive `target`; the number of files. `extra`: path to content.

    `gaps`: what could not be had, beside files, and why.

    The suffix (.tar, .tar.gz, .tar.bz2, .tar.xz) gives the compression. The archive appears
    whole or not at all. Raises UsageError, RecordingError, DeploymentError.
    """
    mode = _MODES.get(target.suffix)
    if mode is None:
        raise UsageError(f"{target}: cannot tell the kind of archive", hint="name it FILE.tar.xz")
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".virtirq-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
                    count = _fill(fs, tar, extra, gaps or {})
                os.fchmod(descriptor, 0o644)
                os.fsync(descriptor)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        error.filename = None  # that is a file which nobody has named
        raise of_file(target, error, RecordingError) from error
    return count


def _fill(
    fs: HostFs, tar: tarfile.TarFile, extra: Mapping[str, str], gaps: Mapping[str, str]
) -> int:
    errors: dict[str, int] = {}
    covered = [path for path in paths.MANIFEST if path.recorded and fs.covers(path)]
    interfaces = _interfaces(fs)
    count = 0
    for directory in (paths.IRQ_DIR, paths.PCI_DIR):
        if fs.isdir(directory):  # though it may be empty
            member = tarfile.TarInfo(directory.lstrip("/"))
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
    for pattern in covered:
        for path in _expand(fs, pattern, errors):
            count += _add(fs, tar, path, errors, interfaces)
    described = {
        "format": FORMAT,
        "virtirq": __version__,
        "taken_at": round(time.time()),
        "patterns": [path.pattern for path in covered],
        "errors": errors,
        "gaps": {each.path: each.error for each in fs.gaps} | dict(gaps),
    }
    _put(tar, RECORDING, json.dumps(described, indent=1))
    for path, text in extra.items():
        _put(tar, path, text)
    return count


def _expand(fs: HostFs, pattern: KernelPath, errors: dict[str, int]) -> Iterator[str]:
    """Every path on the host that may fit the pattern."""

    def walk(base: str, parts: list[str]) -> Iterator[str]:
        if not parts:
            yield base
            return
        head, *rest = parts
        if "{" not in head:
            yield from walk(f"{base}/{head}", rest)
            return
        try:
            names = sorted(fs.listdir(base or "/"))
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            errors[base] = error.errno or errno.EIO
            return
        for name in names:
            yield from walk(f"{base}/{name}", rest)

    yield from walk("", pattern.pattern.split("/")[1:])


def _add(
    fs: HostFs,
    tar: tarfile.TarFile,
    path: str,
    errors: dict[str, int],
    interfaces: re.Pattern[str] | None,
) -> int:
    try:
        link = fs.readlink(path)
    except OSError:
        link = None
    if link is not None:
        member = tarfile.TarInfo(path.lstrip("/"))
        member.type, member.linkname = tarfile.SYMTYPE, link
        tar.addfile(member)
        return 1
    try:
        mode = fs.mode(path)
        if stat.S_ISDIR(mode):
            return 0  # an entry of msi_irqs before v3.14; its mode file has a pattern of its own
        text = "" if stat.S_ISSOCK(mode) else _redact(path, fs.read(path), interfaces)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        errors[path] = error.errno or errno.EIO
        return 0
    _put(tar, path, text + "\n", stat.S_IMODE(mode))
    return 1


def _put(tar: tarfile.TarFile, path: str, text: str, mode: int = 0o444) -> None:
    member = tarfile.TarInfo(path.lstrip("/"))
    data = text.encode()
    member.size, member.mode = len(data), mode
    tar.addfile(member, io.BytesIO(data))


def _interfaces(fs: HostFs) -> re.Pattern[str] | None:
    """Finds the names of network interfaces in action names; None where there are none.

    Drivers put them first, ``eth0-TxRx-3``, or behind their own, ``i40e-eth0-TxRx-3``.
    """
    try:
        names = sorted(fs.listdir("/sys/class/net"), key=len, reverse=True)
    except OSError:
        return None
    either = "|".join(map(re.escape, names))
    return re.compile(f"(?<![^\\W_])(?:{either})(?![^\\W_])") if names else None


def _redact(path: str, text: str, interfaces: re.Pattern[str] | None) -> str:
    if path == paths.BOOT_ID.pattern:
        return _NO_BOOT
    if interfaces is not None and path.endswith("/actions"):
        return ",".join(
            name if VfioAction.parse(name) else interfaces.sub("net", name)
            for name in text.split(",")
        )
    return text
