"""``virtirq daemon``: the service, in the foreground."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from virtirq.control import sources
from virtirq.control.cycle import STATE_DIR
from virtirq.errors import UsageError
from virtirq.policy.listen import parse_listen
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
    from virtirq.daemon.listening import listen_on
    from virtirq.ui import metrics_server

    listening = listen_on(*parse_listen(listen), metrics_server.BACKLOG)
    return metrics_server.MetricsServer(listening, inside, STATE_DIR)


VERB = Verb(
    run,
    "keep interrupts where they belong, in the foreground, until SIGTERM",
    "SIGHUP reads the configuration again.",
    refused=("--sysroot", "--json"),
    lasts=True,
)
