"""Debian's package, built as Debian builds it: in a tree of the suite with what it asks for.

The tree is kept in the lab's cache, and so is the package for as long as its source is the same.
"""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from lab.full import cache, process, trees
from virtirq import __version__

from . import ROOT, python

DEBIAN: Final = ROOT / "debian"
TOOLS: Final = ("lintian",)
UNUSED: Final = ("tests", "lab", "bench", "release", "tools")
"""What of the source makes no difference to the package."""
# /dev and /proc as they are here: a plain user may make neither in a tree. $0: the tree.
_INSIDE: Final = """\
mount --rbind /dev "$0/dev"; mount --rbind /proc "$0/proc"; mount --bind "$1" "$0/build"
cd "$0"; exec chroot . env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/nonexistent \
    LC_ALL=C.UTF-8 sh -ec "$2"
"""


def package(directory: Path) -> Path:
    """Built and seen by lintian, then put into the directory. Raises BuildError."""
    built = packages()
    (made,) = built.glob("*.deb")
    directory.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(made, directory / made.name))


def packages() -> Path:
    """A directory of the cache with the .deb, how it was built, and what lintian says of it."""
    with cache.scratch() as work:
        source = python.sdist(work)
        parts: list[str | bytes] = [
            _tree().parent.name,
            Path(__file__).read_bytes(),
            *_used(source),
        ]
        for path in sorted(filter(Path.is_file, DEBIAN.rglob("*"))):
            parts += [str(path.relative_to(DEBIAN)), path.read_bytes()]
        return cache.artefact("deb", cache.digest(*parts), lambda made: _build(source, made))


def _used(source: Path) -> Iterator[str | bytes]:
    """Names and contents."""
    with tarfile.open(source) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None and member.name.split("/")[1] not in UNUSED:
                yield from (member.name, content.read())


def _build(source: Path, made: Path) -> None:
    name = f"virtirq-{__version__}"
    shutil.copy(source, made / f"virtirq_{__version__}.orig.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(made, filter="data")
    shutil.copytree(DEBIAN, made / name / "debian")
    _inside(made, f"cd {name}; dpkg-buildpackage -us -uc -b", "build.log")
    _inside(made, "lintian --allow-root --fail-on error,warning *.deb", "lintian.log")
    cache.remove(made / name)


def _inside(made: Path, command: str, log: str) -> None:
    """Runs it in the tree, where the directory is /build. Raises BuildError."""
    logged = f"cd /build; ({command}) > {log} 2>&1 || {{ tail -n 15 {log} >&2; exit 1; }}"
    words = ["sh", "-ec", _INSIDE, str(_tree()), str(made), logged]
    process.call(process.as_root(words))


def _tree() -> Path:
    wanted = [*_build_depends((DEBIAN / "control").read_text()), *TOOLS]
    return trees.tree("builder", "buildd", wanted, ['mkdir "$1/build"'])


def _build_depends(control: str) -> list[str]:
    """The names of what it is built with."""
    (field,) = re.findall(r"^Build-Depends:(.*(?:\n[ \t].*)*)", control, re.MULTILINE)
    names = [re.split(r"[\s(\[<|]", each.strip())[0] for each in field.split(",") if each.strip()]
    # A virtual package that debhelper provides, and one that dh-python does.
    real = {"debhelper-compat": "debhelper", "dh-sequence-python3": "dh-python"}
    return [real.get(name, name) for name in names]
