"""Who reaches the metrics port, and what is shown of what others chose; the configuration."""

from __future__ import annotations

import contextlib
import io
import socket
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any, Final
from xml.etree import ElementTree

from tests.fuzz.engine import decoded, lines, need, pieces, target, text_of
from tests.hostmaker import MadeHost, passthrough
from virtirq.control.counters import Counters
from virtirq.control.cycle import observe
from virtirq.control.daemon_status import DaemonStatus
from virtirq.cpuset import CpuSet
from virtirq.errors import ConfigError
from virtirq.model import (
    Finding,
    Guest,
    GuestDevice,
    GuestPlan,
    PciAddress,
    Plan,
    Severity,
    Snapshot,
    Topology,
    Vcpu,
)
from virtirq.policy.config import Config, parse_config, render_config
from virtirq.policy.plan import plan as make_plan
from virtirq.ui import picture, prometheus, scene

_DRAWN: Final = frozenset(
    {"svg", "style", "g", "rect", "path", "text", "title", "circle", "desc", "line", "polygon"}
)


class _Server:
    """As much of the server as a handler needs."""

    closing = False

    def __init__(self) -> None:
        self.made = 0
        self.pages = prometheus.Pages(self._make)
        self.turn = _Turn()

    def _make(self) -> str:
        self.made += 1
        return "a 1\n"


class _Turn:
    def acquire(self, timeout: float) -> bool:
        return True

    def release(self) -> None:
        pass


_REQUESTS = (
    "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET / HTTP/1.0\r\n\r\n",
    "GET /metrics\r\n",
    "POST /metrics HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
    "HEAD /metrics HTTP/1.0\r\n\r\n",
    "GET /\x1b[31m\xff HTTP/1.1\r\n\r\n",
    "GET /metrics HTTP/9.9\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\n",
    "GET /metrics HTTP/1.1\r\nExpect: 100-continue\r\nConnection: keep-alive\r\n\r\n",
)


@target(
    "metrics-http",
    lines(*_REQUESTS),
    "GET POST HEAD /metrics // ? HTTP/1.1 HTTP/1.0 HTTP/0.9 \r\n \r\n\r\n Host: : Connection: "
    "keep-alive"
    " Expect: 100-continue",
    most=60_000,
)
def metrics_http(data: bytes) -> None:
    """One request, one answer, one page at most, and nothing in the log."""
    server = _Server()
    ours, theirs = socket.socketpair()
    said = io.StringIO()
    with ours, theirs, contextlib.redirect_stderr(said):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(data[:60_000])
        theirs.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):  # the client that hung up
            prometheus._Handler(ours, ("127.0.0.1", 1), _as_http(server))
        ours.close()
        answer = b""
        while piece := theirs.recv(1 << 16):
            answer += piece
    need(not said.getvalue(), f"nothing is logged: {said.getvalue()[-200:]}")
    need(len(answer) < len(data) + 2048, "an answer that is not much larger than what was asked")
    first = data.split(b"\n")[0].decode("latin-1").split()
    asked = len(first) in (2, 3) and first[0] == "GET"
    if server.made:
        need(server.made == 1 and asked, "a page for who asks for one")
        need(first[1].partition("?")[0].lstrip("/") == "metrics", "under its name")
        need(answer.endswith(b"a 1\n"), "the page, and then no more")
    head, blank, _ = answer.partition(b"\r\n\r\n")
    need(blank or not answer.startswith(b"HTTP/"), "a head and a body")
    for line in head.split(b"\r\n") if blank else ():
        need(line.decode("latin-1").isprintable(), "a head that is printable")


def _as_http(server: _Server) -> Any:
    return server


@target(
    "metrics-page",
    lines(
        "web\x1eirqbalance\x1ea-code",
        'a\nb{c="d"} 1\x1e\\"\n# TYPE\x1e',
        "\ud800".encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"),
    ),
    inputs=15,
)
def metrics_page(data: bytes) -> None:
    """Names are anybody's; the page is a page that Prometheus reads, all the same."""
    from prometheus_client.parser import text_string_to_metric_families

    guest, mover, code = [decoded(each) for each in pieces(data, 3)]
    counted = Counters(drift=Counter({mover: 3, f"{mover}\n": 4}))
    told = DaemonStatus(1, 2.0, "1", "e", "g", counters=counted)
    snapshot = Snapshot(Topology(CpuSet([0]), CpuSet([0])))
    plan = Plan((GuestPlan(Guest(guest, "x")), GuestPlan(Guest(f"{guest}\t", "x"))))
    found = Finding(code, Severity.NOTE, "s", "m", "h")
    page = prometheus.render(snapshot, plan, [found], told)
    names = set()
    moved = 0.0
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            need(key not in names, f"a series twice: {key}")
            names.add(key)
            need(all(each.isprintable() for each in sample.labels.values()), "labels to be shown")
            moved += sample.value if sample.name == "virtirq_drift_total" else 0
    need(moved == 7, "nothing that was counted is lost")


@target(
    "picture",
    lines("web\x1e<script>\x1eq", "a\"&'\n\x1e]]>\x1e\u202e"),
    "< > & ]]> -->",
    inputs=15,
)
def picture_file(data: bytes) -> None:
    """Names of guests in a picture are text of it, whatever they are."""
    names = [decoded(each) for each in pieces(data, 3)]
    scene = fuzzed_scene(tuple(names))
    text = picture.svg([scene])
    text.encode()
    root = ElementTree.fromstring(text)
    tags = {each.tag.rpartition("}")[2] for each in root.iter()}
    need(tags <= _DRAWN, f"elements of ours alone: {sorted(tags - _DRAWN)}")
    said = [
        part for each in root.iter() if each.tag.endswith("title") for part in [each.text or ""]
    ]
    need(all(each.isprintable() for part in said for each in part.split("\n")), "to be shown")
    need(
        not any(each.lower().startswith("on") for one in root.iter() for each in one.attrib),
        "no code",
    )


@cache
def _recorded() -> tuple[Snapshot, Plan]:
    host = MadeHost(devices=(passthrough("0000:82:00.0", vectors=2),))
    device = GuestDevice(PciAddress.parse("0000:82:00.0"), "x")
    guest = Guest("g", "x", vcpus=(Vcpu(0, CpuSet([1])), Vcpu(1, CpuSet([2]))), devices=(device,))
    snapshot = observe(host.fs(), [guest])
    return snapshot, make_plan(snapshot, Config())


def fuzzed_scene(names: tuple[str, ...]) -> scene.Scene:
    """A host with a guest of each name."""
    snapshot, made = _recorded()
    (one,) = made.guests
    guests = [replace(one, guest=replace(one.guest, name=each)) for each in names]
    return scene.now(
        replace(snapshot, guests=tuple(each.guest for each in guests)), Plan(tuple(guests))
    )


_TOML = """default = "auto"
spread = "vector"
restore_on_stop = true
[metrics]
listen = "127.0.0.1:9191"
[libvirt]
uri = "qemu:///system"
[[rule]]
guest = "nfv-*"
owner = 107
source = "libvirt"
device = "8086:*"
class = "network"
driver = "vfio-*"
node = -1
directive = "2-5,^3"
spread = "mask"
"""


@target(
    "config",
    lines(_TOML, '[[rule]]\ndirective="native"\nowner="libvirt-qemu"\n', "default=1", ""),
    'default spread [[rule]] directive guest owner device class node = " """ [irqbalance] cooperate'
    " true false \\u202e auto native [processes] find",
    steps=60,
    most=60_000,
    inputs=40,
)
def config(data: bytes) -> None:
    text = text_of(data)
    try:
        read = parse_config([("a", text)])
    except ConfigError as error:
        need(str(error).startswith("a: ") and "\n" not in str(error), "the file, in one line")
        return
    shown = render_config(read)
    need(all(each.isprintable() for each in shown.split("\n")), "what can be shown")
    again = parse_config([("a", shown)])
    need(again == _alike(read), "what is shown says the same")
    need(parse_config([("a", text), ("b", "")]) == read, "an empty file changes nothing")


def _alike(config: Config) -> Config:
    """But for where the default comes from, which is said whatever it is."""
    return replace(config, default_from="default of a")
