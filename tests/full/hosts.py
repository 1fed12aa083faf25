"""What the tests on the lab's hosts share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lab import full, record_demo
from lab.full import Host, Result, cache, snapshots
from tests.needs import not_run

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = "3.13"  # the lab's
ARCHIVE: Final = "/opt/lab/installed.tar"
WARM_SOURCE: Final = Path(__file__).with_name("warm.py")
WARM: Final = "/opt/lab/warm.py"
WARM_SOCKET: Final = "/run/lab/warm.sock"


def need_full_lab(what: str) -> None:
    """`not_run` unless the lab can be built here; it is built then."""
    try:
        full.build()
    except full.BuildError as error:
        not_run(f"{what}: {error}")


def wheels() -> Path:
    """A directory with virtirq's wheel and those of what it needs, for the lab's Python."""
    sources = [path for path in sorted((ROOT / "src").rglob("*")) if path.suffix != ".pyc"]
    parts: list[str | bytes] = [PYTHON]
    for path in (ROOT / "pyproject.toml", ROOT / "README.md", *filter(Path.is_file, sources)):
        parts += [str(path.relative_to(ROOT)), path.read_bytes()]
    key = cache.digest(*parts)
    return cache.artefact("wheels", key, lambda made: record_demo.wheels(made, PYTHON))


def installed() -> Path:
    """What it takes to have them installed: an archive, for hosts take long to do that."""
    made = wheels()
    image = snapshots.Parts.ensure().image.key

    def build(work: Path) -> None:
        with full.lab() as host:
            host.install_wheels(made)
            host.put(WARM_SOURCE, WARM)
            host.run(["python3", WARM, "load"])  # compiles
            host.run(f"cd /; tar -cf {ARCHIVE} usr/local/bin usr/local/lib/python{PYTHON}")
            host.get(ARCHIVE, work / "archive")

    key = cache.digest(image, made.name, WARM_SOURCE.read_bytes())
    return cache.artefact("installed", key, build) / "archive"


def install(host: Host) -> None:
    """Install virtirq from its wheel."""
    host.put(installed(), ARCHIVE)
    host.run(f"tar -C / -xf {ARCHIVE}; rm {ARCHIVE}")


def install_warm(host: Host) -> None:
    """And start a process that has it loaded: warm.py."""
    install(host)
    host.put(WARM_SOURCE, WARM)
    host.spawn(f"exec python3 {WARM} {WARM_SOCKET} serve")
    host.run(f"until [ -S {WARM_SOCKET} ]; do sleep 0.1; done")


def ask(host: Host, *words: str) -> Result:
    """What `virtirq` does, by the process that has it loaded."""
    return host.run(["python3", "-I", "-S", WARM, WARM_SOCKET, *words], check=False)


def run_code(host: Host, source: str) -> str:
    """What Python prints that has virtirq loaded."""
    return host.run(["python3", "-I", "-S", WARM, WARM_SOCKET, "--code", source]).stdout
