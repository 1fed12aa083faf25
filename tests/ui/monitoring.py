"""A Prometheus and an Alertmanager that run, on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

_LIMIT: Final = 120.0
"""Seconds after which what does not come never will."""


def of_hosts(ports: dict[str, int]) -> dict[str, Any]:
    """What scrapes hosts, by what they are called and their ports here."""
    jobs = [
        {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": name}}
        for name, port in ports.items()
    ]
    return {"job_name": "virtirq", "static_configs": jobs}


class _Program:
    """With `at`, the address at which it answers."""

    def __init__(self, work: Path) -> None:
        work.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.at = f"127.0.0.1:{free.getsockname()[1]}"
        self._log = work / "log"

    def _start(self, words: Sequence[str]) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log)

    def check(self, deadline: float) -> None:
        """That it still runs, and it is not too late."""
        assert self._process.poll() is None, self._log.read_text()
        assert time.monotonic() < deadline, self._log.read_text()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Prometheus(_Program):
    """One that scrapes, and looks at its rules, several times a second.

    `more`: of its configuration, whose form is JSON, which is YAML.
    """

    def __init__(
        self,
        program: Path,
        work: Path,
        scraped: Sequence[dict[str, Any]],
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(work)
        often = {"scrape_interval": "200ms", "scrape_timeout": "200ms"}
        often["evaluation_interval"] = "200ms"
        config = {"global": often, "scrape_configs": list(scraped)}
        for name, value in (more or {}).items():
            config[name] = config.get(name, {}) | value if isinstance(value, dict) else value  # type: ignore[operator]
        (work / "prometheus.json").write_text(json.dumps(config))
        self._start(
            [
                str(program),
                f"--config.file={work}/prometheus.json",
                f"--storage.tsdb.path={work}/data",
                f"--web.listen-address={self.at}",
            ]
        )

    def ask(self, query: str) -> list[dict[str, Any]]:
        url = f"http://{self.at}/api/v1/query?{urlencode({'query': query})}"
        with urllib.request.urlopen(url, timeout=_LIMIT) as answer:
            told = json.load(answer)
        assert told["status"] == "success", query
        found: list[dict[str, Any]] = told["data"]["result"]
        return found

    def until(self, query: str, number: int = 1) -> list[dict[str, Any]]:
        """What it finds, as soon as that is so many series."""
        deadline = time.monotonic() + _LIMIT
        while True:
            self.check(deadline)
            with suppress(OSError):
                found = self.ask(query)
                if len(found) >= number:
                    return found
            time.sleep(0.1)


class Alertmanager(_Program):
    """One that tells `url` of each alert of this name as it fires, and as it is over."""

    def __init__(self, program: Sequence[str], work: Path, alert: str, url: str) -> None:
        super().__init__(work)
        told = {
            "receiver": "told",
            "matchers": [f'alertname="{alert}"'],
            "group_by": ["..."],
            "group_wait": "0s",
            "group_interval": "200ms",
            "repeat_interval": "1h",
        }
        config = {
            "route": {"receiver": "nobody", "routes": [told]},
            "receivers": [
                {"name": "nobody"},
                {"name": "told", "webhook_configs": [{"url": url, "send_resolved": True}]},
            ],
        }
        (work / "alertmanager.json").write_text(json.dumps(config))
        self._start(
            [
                *program,
                f"--config.file={work}/alertmanager.json",
                f"--storage.path={work}/data",
                f"--web.listen-address={self.at}",
                "--cluster.listen-address=",
            ]
        )
