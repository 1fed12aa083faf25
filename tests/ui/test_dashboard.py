"""The dashboard's queries, asked of a Prometheus that scraped three hosts by virtirq's own server.

One on which all that can happen goes on, one on which nothing happens, and one without a daemon
and without guests. A query that finds nothing makes a panel that says "No data", which looks
broken.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, Final

import pytest

from lab.kernel import LabUnavailable
from lab.prometheus import prometheus as server_program
from tests.needs import not_run
from tests.policy.facts import snapshot
from tests.ui.monitoring import Prometheus, of_hosts
from tests.ui.test_prometheus import DASHBOARD, busy, demo, look
from virtirq.control.counters import Counters
from virtirq.control.daemon_status import DaemonStatus
from virtirq.daemon.listening import listen_on
from virtirq.model import Gap
from virtirq.ui import prometheus

UNMEASURED: Final = {"Share taken on target, by guest", "Reaction", "Looks at devices"}
"""Panels of shares and of times: where nothing happened there is no number, but a line without."""


def a_busy_host() -> Callable[[], str]:
    """Each scrape finds that more has happened."""
    seen, scrapes = demo(), 0

    def page() -> str:
        nonlocal scrapes
        scrapes += 1
        status = busy()
        counters = status.counters
        assert counters is not None
        counters.moves += Counter(dict.fromkeys(counters.moves, scrapes))
        counters.drift += Counter(dict.fromkeys(counters.drift, scrapes))
        counters.events += Counter(dict.fromkeys(counters.events, scrapes))
        counters.lost += scrapes
        for _ in range(scrapes):
            counters.reactions.observe(0.0004)
            counters.cycles.observe(0.002)
        interrupts = tuple(
            replace(each, counts={cpu: n * scrapes for cpu, n in (each.counts or {}).items()})
            for each in seen.snapshot.interrupts
        )
        gaps = (Gap("/proc/irq/9/actions", "Permission denied"),)
        state = replace(seen.snapshot, interrupts=interrupts, gaps=gaps)
        return prometheus.render(state, seen.plan, seen.findings, status)

    return page


def a_quiet_host() -> Callable[[], str]:
    seen = demo()
    status = DaemonStatus(812, 1000.0, "0.1.0", "kernel probes", "libvirt", counters=Counters())
    return lambda: prometheus.render(seen.snapshot, seen.plan, seen.findings, status)


def an_empty_host() -> Callable[[], str]:
    seen = look(snapshot())
    return lambda: prometheus.render(seen.snapshot, seen.plan, (), None)


HOSTS: Final = {"busy": a_busy_host, "quiet": a_quiet_host, "empty": an_empty_host}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    try:
        program = server_program()
    except LabUnavailable as error:
        not_run(f"the dashboard's queries: {error}")
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                closing(prometheus.Server(listen_on("127.0.0.1", 0, 8), made()))
            )
            for name, made in HOSTS.items()
        }
        ports = {name: each.port for name, each in servers.items()}
        work = tmp_path_factory.mktemp("prometheus")
        made = stack.enter_context(closing(Prometheus(program, work, [of_hosts(ports)])))
        made.until("count_over_time(virtirq_build_info[1m]) > 4", len(HOSTS))
        yield made


PANELS: Final[dict[str, dict[str, Any]]] = {
    f"{each['title']} ({each['type']})": each
    for each in json.loads(DASHBOARD.read_text())["panels"]
}


def of(query: str, host: str) -> str:
    """What Grafana makes of a query for one host and all of its guests."""
    made = query.replace("$instance", host).replace("$guest", ".*")
    return made.replace("$__rate_interval", "1m")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("panel", PANELS)
def test_every_query_finds_something(panel: str, host: str, scraped: Prometheus) -> None:
    shown = PANELS[panel]
    title, instead = shown["title"], shown["fieldConfig"]["defaults"].get("noValue")
    for target in shown["targets"]:
        query = of(target["expr"], host)
        found = scraped.ask(query)
        if not found:
            assert instead, f"No data: {query}"
            assert host != "busy", f"nothing of what goes on: {query}"
        for each in found:
            legend = re.sub(
                r"{{(\w+)}}",
                lambda label, each=each: each["metric"].get(label[1], ""),  # type: ignore[misc]
                target.get("legendFormat", ""),
            )
            assert not re.search(r"^\W*$", legend), f"a line without a name: {query}"
            number = float(each["value"][1])
            assert not math.isnan(number) or (title in UNMEASURED and host != "busy"), query
