"""The two initramfs files: one starts the lab's host from its disk, one is the nested guest.

The lab's own scripts travel in the first and are laid over the disk at each boot. So a
changed script costs a boot, not a new image.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

from . import cache, cpio, recipe
from .image import Image

_HOST_FILES = (
    "l1-init",
    "l1-agent.py",
    "l1-agent.service",
    "l1-irqbalance",
    "l1-libvirt",
    "l1-serial.py",
)


@dataclass(frozen=True)
class Initramfs:
    """Built from one image and this package's scripts."""

    directory: Path

    @property
    def key(self) -> str:
        return self.directory.name.removeprefix("initramfs-")

    @property
    def host(self) -> Path:
        return self.directory / "host.img"


def ensure(image: Image) -> Initramfs:
    files = {name: _script(name) for name in ("l1-initramfs", "l2-init", *_HOST_FILES)}
    code = (Path(__file__).read_bytes(), inspect.getsource(cpio))
    key = cache.digest(image.key, *code, *(part for item in files.items() for part in item))
    return Initramfs(cache.artefact("initramfs", key, partial(_build, image, files)))


def _build(image: Image, files: dict[str, bytes], work: Path) -> None:
    guest = work / "guest.img"
    cpio.write(guest, _busybox(image, files["l2-init"], recipe.L2_MODULES))
    host = _busybox(image, files["l1-initramfs"], recipe.L1_MODULES)
    host += [cpio.file(f"lab/{name}", files[name], executable=True) for name in _HOST_FILES]
    host += [cpio.file("lab/l2-initramfs", guest.read_bytes())]
    cpio.write(work / "host.img", host)
    guest.unlink()


def _busybox(image: Image, init: bytes, modules: tuple[str, ...]) -> list[cpio.Entry]:
    below = f"lib/modules/{image.release}"
    return [
        *(cpio.directory(name) for name in ("dev", "proc", "sys", "mnt", "tmp")),
        cpio.file("bin/busybox", image.busybox.read_bytes(), executable=True),
        cpio.symlink("bin/sh", "busybox"),
        cpio.file("init", init, executable=True),
        *(
            cpio.file(f"{below}/{path}", data)
            for path, data in image.modules.files(modules).items()
        ),
    ]


def _script(name: str) -> bytes:
    return resources.files(__package__).joinpath("files", name).read_bytes()
