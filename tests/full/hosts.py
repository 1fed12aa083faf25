"""What the tests on the lab's hosts share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lab import full
from lab.full import Host
from tests.needs import not_run

WARM: Final = "/opt/lab/warm.py"
WARM_SOCKET: Final = "/run/lab/warm.sock"


def need_full_lab(what: str) -> None:
    """`not_run` unless the lab can be built here; it is built then."""
    try:
        full.build()
    except full.BuildError as error:
        not_run(f"{what}: {error}")


def install(host: Host, wheels: Path) -> None:
    """Install virtirq, and start a process that has it loaded: warm.py."""
    host.install_wheels(wheels)
    host.put(Path(__file__).with_name("warm.py"), WARM)
    host.spawn(f"exec python3 {WARM} {WARM_SOCKET} serve")
    host.run(f"until [ -S {WARM_SOCKET} ]; do sleep 0.1; done")
