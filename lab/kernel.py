"""The distribution's stock kernel, unpacked into the cache and never installed.

The generic kernel, not the "cloud" one: that lacks 9p and the network drivers the lab uses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

# A metapackage depends on the current kernel's package; Debian's name, then Ubuntu's.
_META = ("linux-image-amd64", "linux-image-generic")
_FEDORA = ("kernel-core", "kernel-modules-core", "kernel-modules")


class LabUnavailable(Exception):  # noqa: N818  (a state of this machine)
    """This machine cannot run the lab; the message says what to do about it."""


def cache_dir() -> Path:
    """Where unpacked kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "virtirq-lab"


def vmlinuz() -> Path:
    """The kernel to boot, fetched the first time; its modules lie beside it."""
    if shutil.which("apt-get") and shutil.which("dpkg"):
        return _apt()
    if shutil.which("dnf") and shutil.which("rpm2cpio") and shutil.which("cpio"):
        return _dnf()
    raise LabUnavailable("no apt and no dnf to fetch a kernel with: name one with --kernel")


def _apt() -> Path:
    images = next(filter(None, map(_apt_depends, _META)), [])
    if not images:
        raise LabUnavailable("apt knows no generic kernel: run 'apt-get update', or use --kernel")

    def fill(download: Path, root: Path) -> None:
        # Ubuntu's modules are packages of their own; Debian's image has them.
        modules = [name for image in images for name in _apt_depends(image)]
        unpack_debs(dict.fromkeys(images + modules), download, root)

    return _cached(images[0], fill)


def _apt_depends(package: str) -> list[str]:
    """The kernel packages that this one needs."""
    done = subprocess.run(
        ["apt-cache", "depends", "--important", package],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,  # a package that apt does not know is not an error here
    )
    names = (line.split()[-1] for line in done.stdout.splitlines() if " Depends: " in line)
    return [name for name in names if name.startswith(("linux-image-", "linux-modules-"))]


def _dnf() -> Path:
    """Fedora's form of the same. Written from the manuals; not tried on a Fedora machine."""
    newest = call(["dnf", "-q", "repoquery", "--latest-limit=1", "--qf=%{evr}\n", _FEDORA[0]])
    release = newest.split()[-1]
    packages = [f"{name}-{release}.x86_64" for name in _FEDORA]

    def fill(download: Path, root: Path) -> None:
        unpack_rpms(packages, download, root)

    return _cached(packages[0], fill)


def _cached(name: str, fill: Callable[[Path, Path], None]) -> Path:
    """The kernel kept under `name`; `fill(download, root)` makes it when it is not there."""
    final = cache_dir() / f"quick-{name}"
    if not final.is_dir():
        with filled(fill) as root:
            _index_modules(root)
            # One rename, last: a directory of the final name is always complete. It fails
            # when somebody else was quicker, and then theirs is as good.
            with contextlib.suppress(OSError):
                root.rename(final)
    return _image(final)


@contextlib.contextmanager
def filled(fill: Callable[[Path, Path], None]) -> Iterator[Path]:
    """What `fill(download, root)` unpacks, in the cache's file system until the end of this."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache_dir()) as work:
        download, root = Path(work, "download"), Path(work, "root")
        download.mkdir()
        root.mkdir()
        fill(download, root)
        yield root


def unpack_debs(packages: Iterable[str], download: Path, root: Path) -> None:
    """The distribution's packages of these names, fetched and unpacked."""
    # `apt-get download` takes no target: it fills the current directory.
    call(["apt-get", "-q", "download", *packages], cwd=download)
    for package in download.glob("*.deb"):
        call(["dpkg", "-x", str(package), str(root)])


def unpack_rpms(packages: Iterable[str], download: Path, root: Path) -> None:
    """Fedora's form of the same. Written from the manuals; not tried on a Fedora machine."""
    call(["dnf", "-q", "download", f"--destdir={download}", *packages], cwd=download)
    for package in download.glob("*.rpm"):
        archive = download / "cpio"
        with archive.open("wb") as out:
            subprocess.run(["rpm2cpio", str(package)], stdout=out, check=True)
        with archive.open("rb") as source:
            subprocess.run(["cpio", "-idm", "--quiet"], cwd=root, stdin=source, check=True)


def _image(root: Path) -> Path:
    for pattern in ("boot/vmlinuz-*", "lib/modules/*/vmlinuz", "usr/lib/modules/*/vmlinuz"):
        for image in sorted(root.glob(pattern)):
            return image
    raise LabUnavailable(f"no kernel image in {root}: delete that directory and try again")


def _index_modules(root: Path) -> None:
    """What the package's own install script would do; done here, no later boot writes here."""
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    for modules in (root / "lib/modules").iterdir():
        call([tool("depmod"), "-b", str(root), modules.name])


def tool(name: str) -> str:
    """Full path of a program; system ones are often not in a plain user's PATH."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise LabUnavailable(f"{name} is missing: install what lab/packages.txt lists")
    return path


def call(command: Sequence[str], *, cwd: Path | None = None) -> str:
    """Run a program to its end and return what it printed."""
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise LabUnavailable(f"{command[0]} failed: {' '.join(reason) or done.returncode}")
    return done.stdout
