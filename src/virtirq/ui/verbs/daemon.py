"""``virtirq daemon``: the service, in the foreground."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from virtirq.control import sources
from virtirq.control.cycle import STATE_DIR
from virtirq.errors import UsageError
from virtirq.ui import inputs
from virtirq.ui.verbs import Verb

if TYPE_CHECKING:
    from virtirq.daemon.service import Inside, Server


def run(args: argparse.Namespace) -> int:
    # Nothing here speaks TLS, and asyncio does without (asyncio/sslproto.py): some 6 MB less, for
    # as long as the host runs. None stands for a module that is not there (sys.modules).
    sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]
    from virtirq.daemon import service
    from virtirq.daemon.log import set_up
    from virtirq.guests.libvirt.connection import default_uri

    if args.sysroot is not None or args.json:
        raise UsageError("the daemon is this machine's: leave out --sysroot and --json")
    if args.connect is not None and args.domains:
        raise UsageError("the daemon takes its guests from libvirt or from files: leave out one")
    config = sources.load_config(args.config)
    return service.run(
        service.Setup(
            state=STATE_DIR,
            load=lambda: sources.load_config(args.config),
            uri=None if args.domains else args.connect or default_uri(config.libvirt.uri),
            must=bool(args.connect or config.libvirt.uri or not config.processes.find),
            guests=sources.load_guests(sources.open_fs(None), args.domains),
            serve=_serve,
        ),
        set_up(debug=args.debug),
    )


def _serve(listen: str, inside: Callable[[], Inside]) -> Server:
    """Serves the daemon's metrics."""
    if sys.modules.get("ssl") is None:
        sys.modules.pop("ssl", None)  # prometheus_client cannot do without
    from virtirq.ui import prometheus

    def page() -> str:
        now = inside()
        view = inputs.seen(
            sources.open_fs(None), now.guests, now.config, (), now.daemon_status, counts=True
        )
        return prometheus.render(view.snapshot, view.plan, view.findings, view.daemon)

    return prometheus.serve(listen, page)


VERB = Verb(
    run,
    "keep interrupts where they belong, in the foreground, until SIGTERM",
    "SIGHUP reads the configuration again.",
    refused=("--sysroot", "--json"),
)
