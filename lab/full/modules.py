"""Kernel modules with what they depend on, out of a root tree, without running depmod."""

from __future__ import annotations

import lzma
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Modules:
    """The modules below one /lib/modules/RELEASE."""

    directory: Path
    depends: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls, directory: Path) -> Modules:
        lines = (directory / "modules.dep").read_text().splitlines()
        split = (line.split(":", 1) for line in lines if ":" in line)
        return cls(directory, {name: tuple(rest.split()) for name, rest in split})

    def closure(self, names: Iterable[str]) -> list[str]:
        """Paths of these modules and all they need; a built-in one has no file and is left out."""
        found: dict[str, None] = {}
        for name in names:
            path = self._path(name)
            if path is not None:
                # modules.dep lists every dependency, not only the direct ones
                found |= dict.fromkeys((path, *self.depends[path]))
        return list(found)

    def files(self, names: Iterable[str]) -> dict[str, bytes]:
        """What to put into an initramfs: plain modules, and a modules.dep of only these."""
        paths = self.closure(names)
        plain = {_plain(path): _unpacked(self.directory / path) for path in paths}
        dep = "".join(
            f"{_plain(path)}: {' '.join(map(_plain, self.depends[path]))}\n" for path in paths
        )
        return plain | {"modules.dep": dep.encode()}

    def _path(self, name: str) -> str | None:
        wanted = name.replace("-", "_")
        for path in self.depends:
            if Path(path).name.split(".")[0].replace("-", "_") == wanted:
                return path
        return None


def _plain(path: str) -> str:
    return path.removesuffix(".xz")


def _unpacked(path: Path) -> bytes:
    # busybox's insmod wants plain modules
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
