"""Builds the machine's parts: Debian's packages become a disk image, a kernel and a QEMU.

The QEMU that runs the lab is not this machine's, which may be older than the lab needs; and
snapshots load only into the QEMU that wrote them.
"""

from __future__ import annotations

import inspect
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import cache, process, recipe, sources
from .errors import BuildError
from .modules import Modules

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_PROGRAMS = ("qemu-system-x86_64", "qemu-img")
# The firmware that this machine needs: BIOS, and the loaders behind -kernel.
_FIRMWARE = (
    "seabios/bios-256k.bin",
    "qemu/linuxboot_dma.bin",
    "qemu/kvmvapic.bin",
)


@dataclass(frozen=True)
class Image:
    """What a build leaves in the cache."""

    directory: Path

    @property
    def key(self) -> str:
        return self.directory.name.removeprefix("image-")

    @property
    def disk(self) -> Path:
        return self.directory / "root.img"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def busybox(self) -> Path:
        return self.directory / "busybox"

    @property
    def modules(self) -> Modules:
        return Modules.read(self.directory / "modules")

    @property
    def release(self) -> str:
        return (self.directory / "release").read_text()

    def program(self, name: str) -> list[str]:
        """The start of a command line that runs one of the image's own programs.

        Through the image's own dynamic loader: no library of this machine is used, and
        nothing on this machine need be installed or upgraded for it.
        """
        home = self.directory / "qemu"
        loader = [str(home / "ld.so"), "--inhibit-cache", "--library-path", str(home / "lib")]
        firmware = ["-L", str(home / "firmware")] if name.startswith("qemu-system") else []
        return [*loader, str(home / name), *firmware]


def ensure() -> Image:
    """The image of this recipe, built if it is not there yet."""
    code = Path(__file__).read_bytes()  # how it is built is part of what it is
    key = cache.digest(inspect.getsource(recipe), code)
    return Image(cache.artefact("image", key, _build))


def _build(work: Path) -> None:
    if platform.machine() != "x86_64":
        raise BuildError("the full lab emulates an x86_64 host and runs its programs: x86_64 only")
    process.need("mmdebstrap", "mke2fs", "unshare", "setpriv")
    tree = work / "tree"
    # the lab has initramfs files of its own
    rest = '--customize-hook=rm -f "$1"/boot/initrd.img*; echo lab > "$1"/etc/hostname'
    rest += f'; find "$1"{recipe.APPARMOR} -maxdepth 1 -type f'
    rest += f" ! -name '{recipe.KEPT_PROFILES}' -delete"
    _debootstrap(tree, "--variant=minbase", recipe.PACKAGES, rest)
    _take_kernel(tree, work)
    _make_disk(tree, work / "root.img")
    cache.remove(tree)
    # Unpacked, not installed: nothing but QEMU is ever run from it.
    newest = f'--aptopt=APT::Default-Release "{recipe.EMULATOR_SUITE}"'
    _debootstrap(tree, "--variant=extract", recipe.EMULATOR, newest)
    _take_qemu(tree, work / "qemu")
    cache.remove(tree)


def _debootstrap(tree: Path, variant: str, packages: Iterable[str], *options: str) -> None:
    excludes = [f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.EXCLUDES]
    process.call(
        process.as_root(
            [
                "mmdebstrap",
                "--mode=root",
                variant,
                "--format=directory",
                *excludes,
                '--aptopt=APT::Install-Recommends "false"',
                '--aptopt=Acquire::Languages "none"',
                f"--include={','.join(packages)}",
                *options,
                recipe.SUITE,
                str(tree),
                *sources.entries(recipe.SUITE),
            ]
        )
    )


def _take_kernel(tree: Path, work: Path) -> None:
    release = next((tree / "usr/lib/modules").iterdir()).name
    (work / "release").write_text(release)
    shutil.copy(tree / f"boot/vmlinuz-{release}", work / "vmlinuz")
    shutil.copy(tree / "usr/bin/busybox", work / "busybox")
    modules = Modules.read(tree / "usr/lib/modules" / release)
    wanted = ["modules.dep", *modules.closure((*recipe.L1_MODULES, *recipe.L2_MODULES))]
    for path in wanted:
        copy = work / "modules" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(modules.directory / path, copy)


def _take_qemu(tree: Path, home: Path) -> None:
    """The programs with exactly the libraries they load."""
    libraries, firmware = home / "lib", home / "firmware"
    libraries.mkdir(parents=True)
    firmware.mkdir()
    loader = tree / _LIBRARIES / "ld-linux-x86-64.so.2"
    shutil.copy(loader, home / "ld.so")
    for name in _PROGRAMS:
        program = tree / "usr/bin" / name
        shutil.copy(program, home / name)
        listing = process.call(
            [str(loader), "--library-path", str(tree / _LIBRARIES), "--list", str(program)]
        )
        for line in listing.splitlines():
            if "=>" in line:
                library = Path(line.split("=>")[1].split()[0])
                shutil.copy(library, libraries / library.name)
    for path in _FIRMWARE:
        shutil.copy(tree / "usr/share" / path, firmware)


def _make_disk(tree: Path, disk: Path) -> None:
    # No journal: a killed machine's disk is thrown away, not recovered.
    process.call(["truncate", "-s", recipe.IMAGE_SIZE, str(disk)])
    process.call(
        process.as_root(
            [
                *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"),
                *("-E", "lazy_itable_init=1", "-d", str(tree), str(disk)),
            ]
        )
    )
