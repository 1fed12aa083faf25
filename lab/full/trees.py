"""Root trees of the lab's suite, made once for what they are to hold and kept in the cache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from . import cache, process, recipe, sources


def tree(kind: str, variant: str, packages: Sequence[str], hooks: Iterable[str] = ()) -> Path:
    """The directory of the tree; `hooks` are shell commands that run with it as $1.

    Raises BuildError.
    """

    def build(work: Path) -> None:
        process.need("mmdebstrap", "unshare")
        words = ["mmdebstrap", "--mode=root", f"--variant={variant}", "--format=directory"]
        options = [
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.EXCLUDES),
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            f"--include={','.join(packages)}",
            *(f"--customize-hook={hook}" for hook in hooks),
        ]
        place = [recipe.SUITE, str(work / "tree"), *sources.entries(recipe.SUITE)]
        process.call(process.as_root([*words, *options, *place]))

    return cache.artefact(kind, cache.digest(recipe.SUITE, *packages), build) / "tree"
