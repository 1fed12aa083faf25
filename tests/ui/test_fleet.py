"""Two hosts under a real Prometheus and Alertmanager, and one more Prometheus above them.

The rules are those that ship, with seconds for what is minutes in them.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, redirect_stdout
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from lab import prometheus as programs
from lab.kernel import LabUnavailable
from tests.needs import not_run
from tests.ui.monitoring import Alertmanager, Prometheus, of_hosts
from tests.ui.test_prometheus import RULES, look
from virtirq.control import cycle, sources
from virtirq.daemon.listening import listen_on
from virtirq.ui import prometheus
from virtirq.ui.cli import main

ALERT: Final = "VirtirqInterruptsMisplaced"
HOSTS: Final = ("one", "two")
IRQ: Final = "/proc/irq/65/smp_affinity_list"
"""Of guest web's."""
SCRAPED: Final = {"scrape_interval": "2s", "scrape_timeout": "2s"}
"""A scrape that comes too late on a busy machine would end an alert."""
_LIMIT: Final = 120.0


class Told:
    """Takes what Alertmanager tells."""

    def __init__(self) -> None:
        self.notices: list[dict[str, Any]] = []
        told = self.notices

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class Host:
    """One of a recording on which all is well, as it is served."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with redirect_stdout(StringIO()):
            assert main(["-q", "demo", str(root)]) == 0
        self.apply()

    def apply(self) -> None:
        assert main(["-q", "-s", str(self.root), "apply"]) == 0
        self.page = page(self.root)

    def drift(self) -> None:
        sources.open_fs(self.root).write(IRQ, "0")
        self.page = page(self.root)


class Fleet(NamedTuple):
    hosts: dict[str, Host]
    site: Prometheus
    above: Prometheus
    manager: Alertmanager
    told: Told

    def until_told(self, number: int) -> None:
        """Until there are so many notices."""
        deadline = time.monotonic() + _LIMIT
        while len(self.told.notices) < number:
            self.manager.check(deadline)
            self.site.check(deadline)
            time.sleep(0.05)


def hurried(rules: str) -> str:
    rules = re.sub(r"\[\d+[mhd]\]", "[5s]", rules)
    return re.sub(r"^( +for:) .*$", r"\1 1s", rules, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    try:
        server, teller = programs.prometheus(), programs.alertmanager()
    except LabUnavailable as error:
        not_run(f"the fleet's view: {error}")
    work = tmp_path_factory.mktemp("fleet")
    (work / "rules.yml").write_text(hurried(RULES.read_text()))
    with ExitStack() as stack:
        hosts, ports = {}, {}
        for name in HOSTS:
            hosts[name] = Host(work / f"host-{name}")
            listening = listen_on("127.0.0.1", 0, 8)
            made = prometheus.Server(listening, partial(getattr, hosts[name], "page"))
            ports[name] = stack.enter_context(closing(made)).port
        told = stack.enter_context(closing(Told()))
        manager = Alertmanager(teller, work / "manager", ALERT, told.url)
        stack.enter_context(closing(manager))
        config = {
            "global": {"external_labels": {"site": "here"}, **SCRAPED},
            "rule_files": [str(work / "rules.yml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [manager.at]}]}]},
        }
        site = Prometheus(server, work / "site", [of_hosts(ports)], config)
        stack.enter_context(closing(site))
        gathered = {
            "job_name": "sites",
            "honor_labels": True,
            "metrics_path": "/federate",
            "params": {"match[]": ['{__name__=~".+:virtirq_.+"}']},
            "static_configs": [{"targets": [site.at]}],
        }
        above = stack.enter_context(
            closing(Prometheus(server, work / "above", [gathered], {"global": SCRAPED}))
        )
        yield Fleet(hosts, site, above, manager, told)


def page(host: Path) -> str:
    fs = sources.open_fs(host)
    found = sources.find_guests(fs, [], None)
    seen = look(cycle.observe(fs, found.guests, gaps=found.gaps))
    return prometheus.render(seen.snapshot, seen.plan, seen.findings, None)


def test_a_drift_is_told_of_once_and_so_is_its_end(fleet: Fleet) -> None:
    drifted = fleet.hosts["one"]
    fleet.site.until('virtirq_interrupts{guest="web", verdict="in-place"} > 0', len(HOSTS))
    drifted.drift()
    fleet.until_told(1)
    (notice,) = fleet.told.notices
    assert notice["status"] == "firing"
    (alert,) = notice["alerts"]
    assert alert["labels"] == {
        "alertname": ALERT,
        "severity": "warning",
        "site": "here",
        "job": "virtirq",
        "instance": "one",
        "guest": "web",
    }
    assert alert["annotations"]["summary"].startswith("1 interrupts of guest web on one are")
    # It goes on, and is not told of again.
    fleet.site.until(f'count_over_time(ALERTS{{alertname="{ALERT}", alertstate="firing"}}[1m]) > 9')
    assert len(fleet.told.notices) == 1
    drifted.apply()
    fleet.until_told(2)
    over = fleet.told.notices[1]
    assert (over["status"], over["alerts"][0]["labels"]) == ("resolved", alert["labels"])
    assert len(fleet.told.notices) == 2


def test_above_each_host_is_still_itself(fleet: Fleet) -> None:
    """And the fleet's series are few: none of a guest or a vector."""
    found = fleet.above.until('instance_verdict:virtirq_interrupts:sum{verdict="in-place"}', 2)
    assert {each["metric"]["instance"] for each in found} == set(HOSTS)
    for each in found:
        assert each["metric"]["site"] == "here"
        assert each["metric"]["job"] == "virtirq"
    (sum_,) = fleet.above.until('verdict:virtirq_interrupts:sum{verdict="in-place"}')
    assert float(sum_["value"][1]) == sum(float(each["value"][1]) for each in found)
    (versions,) = fleet.above.until("version:virtirq_build_info:count")
    assert versions["value"][1] == str(len(HOSTS))
    everything = fleet.above.ask('{__name__=~".*virtirq.*"}')
    labels = {label for each in everything for label in each["metric"]}
    assert not labels & {"guest", "device", "vector", "target"}
    names = {each["metric"]["__name__"] for each in everything}
    recorded = set(re.findall(r"- record: (\S+)", RULES.read_text()))
    # Nothing was taken anywhere, and no daemon runs that could have seen drift.
    without = {"instance:virtirq_vector_interrupts:on_target5m", "mover:virtirq_drift:rate5m"}
    assert recorded - without == names
