"""The metrics page, the server for it, and the alerts and the dashboard that read it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stdout
from dataclasses import replace
from http.client import HTTPConnection
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from lab.kernel import LabUnavailable
from lab.prometheus import promtool
from tests.conftest import REPOSITORY
from tests.hostmaker import MadeDevice, MadeHost, MadeInterrupt, passthrough
from tests.needs import not_run
from tests.policy.conftest import Clock
from virtirq.control import cycle, sources
from virtirq.control.counters import Counters, Trigger
from virtirq.control.daemon_status import DaemonStatus
from virtirq.cpuset import CpuSet
from virtirq.daemon.listening import listen_on
from virtirq.errors import UnavailableError, VirtirqError
from virtirq.host.events import EventKind
from virtirq.model import (
    Directive,
    Finding,
    Gap,
    Guest,
    GuestDevice,
    PciAddress,
    Plan,
    Severity,
    Snapshot,
    Status,
    Vcpu,
)
from virtirq.policy.budget import Budget
from virtirq.policy.config import Config
from virtirq.policy.findings import findings as find
from virtirq.policy.listen import parse_listen
from virtirq.policy.plan import plan
from virtirq.ui import prometheus, report
from virtirq.ui.cli import main
from virtirq.ui.document import printable

DEMO = REPOSITORY / "src/virtirq/demo/two-node.tar.xz"
PAGES = Path(__file__).with_name("pages")
RULES = REPOSITORY / "packaging/virtirq.rules.yml"
DASHBOARD = REPOSITORY / "packaging/virtirq-dashboard.json"
DOCUMENT = REPOSITORY / "docs/metrics.md"
NIC = PciAddress.parse("0000:82:00.0")


class Look(NamedTuple):
    snapshot: Snapshot
    plan: Plan
    findings: tuple[Finding, ...]


def look(snapshot: Snapshot) -> Look:
    planned = plan(snapshot, Config())
    return Look(snapshot, planned, find(snapshot, planned))


def of_host(host: MadeHost, *guests: Guest) -> Look:
    return look(cycle.observe(host.fs(), guests))


def demo() -> Look:
    fs = sources.open_fs(DEMO)
    found = sources.find_guests(fs, [], None)
    return look(cycle.observe(fs, found.guests, gaps=found.gaps))


def busy() -> DaemonStatus:
    """A daemon that has counted something of every kind."""
    counted = Counters(
        moves=Counter(
            {
                (Trigger.NEW.value, Status.APPLIED.value): 8,
                (Trigger.DRIFT.value, Status.APPLIED.value): 3,
                (Trigger.PLAN.value, Status.REFUSED.value): 1,
            }
        ),
        events=Counter({EventKind.REQUESTED.value: 8, EventKind.FREED.value: 2}),
        lost=1,
    )
    for mover in ("irqbalance", "irqbalance", 'a "name"\\\n\x1b[2J'):
        counted.drifted(mover)
    for seconds in (0.0002, 0.0003, 0.004, 2.0):
        counted.reactions.observe(seconds)
    for seconds in (0.004, 0.03):
        counted.cycles.observe(seconds)
    contested = Finding("affinity-contested", Severity.WARNING, "IRQ 65", "moved again", "stop it")
    return DaemonStatus(
        pid=4711,
        since=1750000000.25,
        version="0",
        events="kernel probes",
        guests="libvirt",
        findings=(contested,),
        counters=counted,
    )


def page_of_demo() -> str:
    seen = demo()
    snapshot = replace(seen.snapshot, gaps=(Gap("/proc/irq/9/actions", "Permission denied"),))
    return prometheus.render(snapshot, seen.plan, seen.findings, busy())


def families(page: str) -> dict[str, Metric]:
    found = {each.name: each for each in text_string_to_metric_families(page)}
    assert len(found) == page.count("# TYPE ")
    return found


def values(page: str, name: str, **labels: str) -> dict[tuple[str, ...], float]:
    """The samples of `name` that have these labels, by the others' values in order of name."""
    got: dict[tuple[str, ...], float] = {}
    for family in families(page).values():
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                rest = tuple(v for k, v in sorted(sample.labels.items()) if k not in labels)
                assert rest not in got
                got[rest] = sample.value
    return got


def series_of(page: str) -> list[str]:
    return [line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("metrics-demo", page_of_demo),
        ("metrics-no-daemon", lambda: prometheus.render(*demo(), None)),
    ],
)
def test_golden(name: str, make: Callable[[], str], pytestconfig: pytest.Config) -> None:
    page = make()
    golden = PAGES / f"{name}.prom"
    if pytestconfig.getoption("--regenerate-output"):
        PAGES.mkdir(exist_ok=True)
        golden.write_text(page)
    assert page == golden.read_text()


def test_every_family_is_seen_with_something_in_it() -> None:
    for name, family in families(page_of_demo()).items():
        assert any(sample.value for sample in family.samples), name


def test_the_page_names_each_family_once_and_no_creation_times() -> None:
    page = page_of_demo()
    series = series_of(page)
    assert len(series) == len(set(series))
    assert "_created" not in page
    assert all(each.startswith("virtirq_") for each in series)


def test_without_a_daemon_nothing_is_told_of_it_but_that() -> None:
    page = prometheus.render(*demo(), None)
    assert values(page, "virtirq_daemon_up") == {(): 0}
    daemons = {"virtirq_daemon_start_time_seconds", "virtirq_moves", "virtirq_reaction_seconds"}
    assert not daemons & families(page).keys()


def test_a_daemon_that_counts_nothing_is_up() -> None:
    page = prometheus.render(*demo(), replace(busy(), counters=None))
    assert values(page, "virtirq_daemon_up") == {(): 1}
    assert values(page, "virtirq_daemon_start_time_seconds") == {(): 1750000000.25}
    assert "virtirq_moves" not in families(page)


def test_vectors_can_be_left_out(tmp_path: Path) -> None:
    """Then nothing but their family is missing, also by the command."""
    seen = demo()
    page = prometheus.render(*seen, None, vectors=False)
    families = {each.name for each in text_string_to_metric_families(page)}
    everything = text_string_to_metric_families(prometheus.render(*seen, None))
    assert {each.name for each in everything} - families == {"virtirq_vector_interrupts"}
    config = tmp_path / "virtirq.toml"
    told = {}
    for vectors in ("true", "false"):
        config.write_text(f"metrics.vectors = {vectors}")
        written = StringIO()
        with redirect_stdout(written):
            assert main(["-s", str(DEMO), "--config", str(config), "metrics"]) == 0
        told[vectors] = set(written.getvalue().splitlines())
    assert told["false"] < told["true"]
    assert all("virtirq_vector_" in each for each in told["true"] - told["false"])


def test_verdicts_are_those_of_the_other_screens() -> None:
    seen = demo()
    told = report.as_json(*seen)
    expected = Counter(
        (guest["name"], interrupt["status"])
        for guest in told["guests"]
        for device in guest["devices"]
        for interrupt in device["interrupts"]
    )
    got = values(prometheus.render(*seen, None), "virtirq_interrupts")
    assert {key: value for key, value in got.items() if value} == expected


def test_what_is_known_beforehand_starts_at_zero() -> None:
    page = prometheus.render(*demo(), replace(busy(), counters=Counters()))
    moves = values(page, "virtirq_moves_total")
    assert moves == {(end.value, why.value): 0 for why in Trigger for end in Status}
    assert values(page, "virtirq_drift_total", mover="irqbalance") == {(): 0}
    assert values(page, "virtirq_findings", severity="warning")["vectors-low",] == 0
    assert values(page, "virtirq_interrupts", guest="web")["wrong-node",] == 0


def test_a_finding_that_host_and_daemon_tell_counts_once() -> None:
    seen, daemon = demo(), busy()
    both = prometheus.render(seen.snapshot, seen.plan, (*seen.findings, *daemon.findings), daemon)
    assert both == prometheus.render(*seen, daemon)
    assert values(both, "virtirq_findings", code="affinity-contested") == {("warning",): 1}


def test_histograms_are_cumulative() -> None:
    page = page_of_demo()
    buckets = values(page, "virtirq_reaction_seconds_bucket")
    assert list(buckets.values()) == sorted(buckets.values())
    assert (buckets["0.00025",], buckets["0.0005",], buckets["1.0",]) == (1, 2, 3)
    assert buckets["+Inf",] == values(page, "virtirq_reaction_seconds_count")[()] == 4
    assert values(page, "virtirq_reaction_seconds_sum")[()] == pytest.approx(2.0045)


def test_names_that_would_steer_a_terminal_or_break_a_line() -> None:
    page = page_of_demo()
    assert page.replace("\n", "").isprintable()
    assert 'mover="a \\"name\\"\\\\\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}[2J"' in page


def test_names_that_look_the_same_are_one_series() -> None:
    counted = Counters(drift=Counter({"x\x01": 1, "x\x02": 2, "\ud800": 4}))
    page = prometheus.render(*demo(), replace(busy(), counters=counted))
    shown = values(page, "virtirq_drift_total")
    assert shown["x\N{REPLACEMENT CHARACTER}",] == 3
    assert shown["\N{REPLACEMENT CHARACTER}",] == 4


# Where interrupts were taken.

HOST = MadeHost(
    online="0-7",
    nodes={0: "0-3", 1: "4-7"},
    devices=(passthrough(str(NIC), vectors=2, node=1, affinity="4", counts={0: 1, 4: 10, 6: 3}),),
)


def guest(name: str, *cpus: str, directive: str | None = None) -> Guest:
    asked = None if directive is None else Directive.parse(directive)
    return Guest(
        name,
        "test",
        vcpus=tuple(Vcpu(index, CpuSet.parse(each)) for index, each in enumerate(cpus)),
        devices=(GuestDevice(NIC, "hostdev", directive=asked, directive_from="test"),),
    )


def taken(seen: Look, **labels: str) -> dict[tuple[str, ...], float]:
    return values(prometheus.render(*seen, None), "virtirq_vector_interrupts_total", **labels)


def places(seen: Look, vector: str = "msix 0") -> dict[tuple[str, ...], float]:
    """By place and target."""
    return taken(seen, guest="web", vector=vector, device=str(NIC))


def test_on_target_on_its_node_and_elsewhere() -> None:
    seen = of_host(HOST, guest("web", "4", "6"))
    assert places(seen) == {("target", "4"): 10, ("node", "4"): 3, ("elsewhere", "4"): 1}
    assert places(seen, "msix 1") == {
        ("target", "6"): 3,
        ("node", "6"): 10,
        ("elsewhere", "6"): 1,
    }


def test_the_devices_node_is_near_too_where_the_target_is_on_another() -> None:
    seen = of_host(HOST, guest("web", "0"))
    assert places(seen) == {("target", "0"): 1, ("node", "0"): 13, ("elsewhere", "0"): 0}


def test_another_target_is_another_series() -> None:
    """Past interrupts must not turn into ones that were taken elsewhere just now."""
    before, after = of_host(HOST, guest("web", "4")), of_host(HOST, guest("web", "5"))
    assert not places(before).keys() & places(after).keys()


@given(name=st.text(max_size=6), count=st.integers(0, 2**63))
@example(name='a "name"\\\n\x1b[2J\udc80', count=10**7)
@example(name="web", count=999_999)
@example(name="web", count=1_000_000)
def test_vectors_are_written_as_the_library_writes_all_else(name: str, count: int) -> None:
    seen = of_host(HOST, guest(name, "4", "6"))
    (first, *others) = seen.snapshot.interrupts
    state = replace(seen.snapshot, interrupts=(replace(first, counts={4: count}), *others))
    (family,) = (
        each
        for each in text_string_to_metric_families(prometheus.render(state, seen.plan, (), None))
        if each.name == "virtirq_vector_interrupts"
    )
    said = generate_latest(cast("CollectorRegistry", Told([family]))).decode()
    assert said in prometheus.render(state, seen.plan, (), None)
    assert {each.labels["guest"] for each in family.samples} == {printable(name)}


class Told(NamedTuple):
    """What a registry is for who asks it."""

    families: list[Metric]

    def collect(self) -> list[Metric]:
        return self.families


def test_a_target_of_several_cpus() -> None:
    assert places(of_host(HOST, guest("web", "4", directive="4-6"))) == {
        ("target", "4-6"): 13,
        ("node", "4-6"): 0,
        ("elsewhere", "4-6"): 1,
    }


def test_without_a_target_there_is_no_share_on_it() -> None:
    seen = of_host(HOST, guest("web", "4", directive="native"))
    assert places(seen) == {("node", ""): 13, ("elsewhere", ""): 1}


def test_a_host_without_nodes() -> None:
    seen = of_host(replace(HOST, nodes={}), guest("web", "4"))
    assert places(seen) == {("target", "4"): 10, ("node", "4"): 0, ("elsewhere", "4"): 4}


def test_counts_that_cannot_be_read_are_not_zero() -> None:
    host = replace(HOST, removed=("/sys/kernel/irq/100/per_cpu_count",))
    seen = of_host(host, guest("web", "4"))
    assert places(seen) == {}
    assert places(seen, "msix 1") != {}


def test_a_device_of_two_guests_counts_once() -> None:
    seen = of_host(HOST, guest("web", "4"), guest("app", "5"))
    assert taken(seen, guest="app") != {}
    assert taken(seen, guest="web") == {}
    assert (
        values(prometheus.render(*seen, None), "virtirq_interrupts", guest="web")["claimed",] == 2
    )


def test_two_guests_of_one_name_are_shown_as_one() -> None:
    twin = replace(guest("web", "4"), uuid="b", devices=())
    seen = of_host(HOST, replace(guest("web", "4"), uuid="a"), twin)
    shown = values(prometheus.render(*seen, None), "virtirq_interrupts", guest="web")
    assert sum(shown.values()) == 2


def test_vectors_that_no_guest_uses_are_not_counted() -> None:
    idle = MadeInterrupt(100, (), "4", counts={4: 5})
    host = replace(HOST, devices=(MadeDevice(str(NIC), node=1, vectors=(idle,)),))
    assert taken(of_host(host, guest("web", "4"))) == {}


def test_vectors_whose_numbers_are_not_known_are_summed() -> None:
    """A tree that was not recorded by virtirq may lack the names of actions."""
    host = replace(HOST, foreign=True, removed=("/sys/kernel/irq/*/actions",))
    seen = of_host(host, guest("web", "4"))
    assert places(seen, "msix") == {("target", "4"): 20, ("node", "4"): 6, ("elsewhere", "4"): 2}


def test_an_intx_line() -> None:
    line = passthrough(str(NIC), kind="intx", first_irq=20, node=1, counts={4: 2})
    seen = of_host(replace(HOST, devices=(line,)), guest("web", "4"))
    assert places(seen, "intx")["target", "4"] == 2


# The server.


@pytest.fixture
def served() -> Iterator[prometheus.Server]:
    with closing(prometheus.Server(listen_on("127.0.0.1", 0, 8), lambda: "up 1\n")) as server:
        yield server


class Answer(NamedTuple):
    status: int
    type: str
    text: str


def get(port: int, path: str = "/metrics", host: str = "127.0.0.1", method: str = "GET") -> Answer:
    connection = HTTPConnection(host, port, timeout=60)
    with closing(connection):
        connection.request(method, path)
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers["Content-Type"], answer.read().decode())


def test_get(served: prometheus.Server) -> None:
    assert get(served.port) == (200, prometheus.CONTENT_TYPE, "up 1\n")
    assert get(served.port, "/metrics?x=1").status == 200
    root = get(served.port, "/")
    assert root.status == 200
    assert 'href="/metrics"' in root.text
    assert get(served.port, "/metrics/").status == 404
    assert get(served.port, "/../etc/passwd").status == 404
    assert get(served.port, method="POST").status == 501


def failing(error: Exception) -> Answer:
    def page() -> str:
        raise error

    with closing(prometheus.Server(listen_on("127.0.0.1", 0, 8), page)) as server:
        get(server.port)
        return get(server.port)  # still there


def test_a_page_that_cannot_be_made_is_a_503_of_one_line() -> None:
    answer = failing(VirtirqError("libvirt has\ngone", hint="start it"))
    assert answer.status == 503
    assert answer.text == "libvirt has\N{REPLACEMENT CHARACTER}gone\n"


def test_a_daemon_that_does_not_answer_is_a_503() -> None:
    assert failing(TimeoutError()).status == 503


def test_a_bug_is_a_500_and_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    answer = failing(ZeroDivisionError("secret"))
    assert answer.status == 500
    assert "secret" not in answer.text
    assert "ZeroDivisionError: secret" in capfd.readouterr().err


def test_a_scrape_leaves_no_trace_in_the_log(
    served: prometheus.Server, capfd: pytest.CaptureFixture[str]
) -> None:
    get(served.port)
    get(served.port, "/nothing")
    with socket.create_connection(("127.0.0.1", served.port)):
        pass  # hangs up without a word
    get(served.port)
    assert capfd.readouterr() == ("", "")


def test_pages_are_made_in_a_quarter_of_the_time() -> None:
    """Anybody may ask, as often as he likes, and a page of a large host takes seconds."""
    clock, made, takes = Clock(), list[float](), 0.5

    def make() -> str:
        made.append(clock.now)
        clock.now += takes
        return f"up {len(made)}\n"

    pages = prometheus.Pages(make, lambda: clock.now)
    clock.now = 100.0
    given = []
    while clock.now < 200:
        given.append(pages.get())
        clock.now += 0.1
    assert len(given) > 500
    assert 45 <= len(made) <= 50
    takes = 60.0
    clock.now += 5.0
    assert pages.get() == pages.get() == f"up {len(made)}\n"
    clock.now += 5.0
    assert pages.get() != f"up {len(made) - 1}\n", "not given for more than some seconds"


def test_a_page_that_was_not_made_is_made_the_next_time() -> None:
    clock = Clock()
    errors = [VirtirqError("gone"), None]

    def make() -> str:
        clock.now += 10
        if (error := errors.pop(0)) is not None:
            raise error
        return "up 1\n"

    pages = prometheus.Pages(make, lambda: clock.now)
    with pytest.raises(VirtirqError):
        pages.get()
    assert pages.get() == "up 1\n"


def test_pages_are_made_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "_PATIENCE", 3600.0)
    monkeypatch.setattr(prometheus, "PAGES", Budget(1.0, longest=0.0))
    inside, most = [0], [0]
    guard = threading.Lock()

    def page() -> str:
        with guard:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        threading.Event().wait(0.01)
        with guard:
            inside[0] -= 1
        return "up 1\n"

    with closing(prometheus.Server(listen_on("127.0.0.1", 0, 8), page)) as server:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda: answers.append(get(server.port).status))
            for _ in range(prometheus._MOST)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [200] * prometheus._MOST
    assert most == [1]


def eventually(what: Callable[[], bool]) -> bool:
    """Waits, as threads may take a while to see that their clients are gone."""
    for _ in range(600):
        if what():
            return True
        threading.Event().wait(0.1)
    return False


def threads_of_requests() -> int:
    return sum("process_request_thread" in each.name for each in threading.enumerate())


def is_served(port: int) -> bool:
    try:
        return get(port).status == 200
    except OSError:
        return False


def test_silent_clients_take_a_bounded_number_of_threads(
    served: prometheus.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "_PATIENCE", 3600.0)
    silent = [
        socket.create_connection(("127.0.0.1", served.port), timeout=60)
        for _ in range(2 * prometheus._MOST)
    ]
    refused = [each for each in silent[prometheus._MOST :] if each.recv(1) == b""]
    assert len(refused) == prometheus._MOST
    assert eventually(lambda: threads_of_requests() == prometheus._MOST)
    for each in silent:
        each.close()
    assert eventually(lambda: is_served(served.port))


def test_a_client_that_says_nothing_is_dropped(
    served: prometheus.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "_PATIENCE", 0.3)
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as silent:
        assert silent.recv(1) == b""


def test_a_client_that_dribbles_is_dropped(
    served: prometheus.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, the request never does."""
    monkeypatch.setattr(prometheus, "_PATIENCE", 0.3)
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as slow:
        sent = 0
        try:
            while sent < 6000:
                slow.sendall(b"x")
                sent += 1
                threading.Event().wait(0.01)
        except OSError:
            pass  # hung up on
    assert sent < 6000
    monkeypatch.undo()
    assert get(served.port).status == 200


def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = threading.Event()

    def page() -> str:
        monkeypatch.setattr(prometheus, "_PATIENCE", 0.3)
        made.set()
        return "x" * (64 << 20)  # more than the kernel takes for a client that does not read

    with (
        closing(prometheus.Server(listen_on("127.0.0.1", 0, 8), page)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as deaf,
    ):
        deaf.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        made.wait()
        assert eventually(lambda: not threads_of_requests())


def test_a_page_is_not_made_for_who_comes_while_it_closes() -> None:
    made = threading.Event()
    go = threading.Event()

    def page() -> str:
        made.set()
        go.wait()
        return "up 1\n"

    server = prometheus.Server(listen_on("127.0.0.1", 0, 8), page)
    answers: list[Answer] = []

    def client() -> None:
        answers.append(get(server.port))

    first = threading.Thread(target=client)
    first.start()
    made.wait()
    server.close()  # does not wait for the page
    with pytest.raises(OSError):  # noqa: PT011  (refused or reset)
        get(server.port)
    go.set()
    first.join()
    assert [each.status for each in answers] == [200]


def test_close_frees_the_address_and_ends_the_thread() -> None:
    server = prometheus.Server(listen_on("127.0.0.1", 0, 8), lambda: "")
    port = server.port
    assert get(port).status == 200
    server.close()
    assert not any(each.name == "metrics" for each in threading.enumerate())
    with closing(prometheus.Server(listen_on("127.0.0.1", port, 8), lambda: "again\n")):
        assert get(port).text == "again\n"


def test_an_address_in_use_is_told(served: prometheus.Server) -> None:
    with pytest.raises(UnavailableError, match=r"^\[metrics\] listen: 127\.0\.0\.1:\d+: Address"):
        listen_on("127.0.0.1", served.port, 8)


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(UnavailableError, match=r"192\.0\.2\.1:9191: Cannot assign"):
        listen_on("192.0.2.1", 9191, 8)


def test_every_address_in_both_families() -> None:
    with closing(prometheus.Server(listen_on("", 0, 8), lambda: "")) as server:
        assert get(server.port).status == 200
        if socket.has_dualstack_ipv6():
            assert get(server.port, host="::1").status == 200


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        not_run(f"no IPv6 here: {error}")
    with closing(prometheus.Server(listen_on("::1", 0, 8), lambda: "")) as server:
        assert get(server.port, host="::1").status == 200
        with pytest.raises(UnavailableError, match=r"\[::1\]:\d+: Address already in use"):
            listen_on("::1", server.port, 8)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9191", ("127.0.0.1", 9191)),
        ("[::1]:9191", ("::1", 9191)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        (":9191", ("", 9191)),
        ("localhost:65535", ("localhost", 65535)),
        ("a-1.example.org:80", ("a-1.example.org", 80)),
    ],
)
def test_listen(text: str, expected: tuple[str, int]) -> None:
    assert parse_listen(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "9191", "127.0.0.1", "127.0.0.1:", ":0", ":65536", ":-1", ":+1", ":1e3", ": 9191"),
        *("::1:9191", "[::1:9191", "::1]:9191", "[127.0.0.1]:9191", "[]:9191", "[::g]:9191"),
        *("127.0.1:9191", "1.2.3.256:9191", "a b:9191", "*:9191", "a..b:9191", ":٩١٩١", ":9191\n"),
        *(
            "[::%]:1",
            "[::%a b]:1",
            "[::%a\nb]:1",
            "[::%\0]:1",
            "[::%\u04dd]:1",
            "[::%a/b]:1",
            "[::%a%b]:1",
        ),
        f"[::%{'x' * 16}]:1",
        "http://localhost:9191",
        pytest.param("x" * 100_000, id="monster"),
    ],
)
def test_listen_refuses(text: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (any text that is short)
        parse_listen(text)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


# What reads the page.


@pytest.fixture(scope="session")
def checker() -> str:
    try:
        return str(promtool())
    except LabUnavailable as error:
        not_run(f"promtool cannot be had: {error}")


def check(checker: str, *words: str, given: str = "") -> None:
    done = subprocess.run(
        [checker, *words], input=given, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("name", ["metrics-demo", "metrics-no-daemon"])
def test_promtool_has_nothing_against_the_page(checker: str, name: str) -> None:
    check(checker, "check", "metrics", given=(PAGES / f"{name}.prom").read_text())


def test_promtool_would_complain(checker: str) -> None:
    with pytest.raises(AssertionError):
        check(checker, "check", "metrics", given="# TYPE a counter\na 1\n")


def test_promtool_has_nothing_against_the_rules(checker: str) -> None:
    check(checker, "check", "rules", str(RULES))


def test_the_rules_fire_when_they_should(checker: str) -> None:
    check(checker, "test", "rules", str(Path(__file__).with_name("alerts.test.yml")))


def test_every_alert_has_a_test() -> None:
    tested = Path(__file__).with_name("alerts.test.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    assert alerts
    assert all(alert in tested for alert in alerts)


def expressions() -> list[str]:
    """Every query of the dashboard, its variables' included."""
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [target["expr"] for each in dashboard["panels"] for target in each["targets"]]
    return panels + [
        each["definition"] for each in dashboard["templating"]["list"] if "definition" in each
    ]


def names_of_the_page() -> set[str]:
    return {each.partition("{")[0] for each in series_of(page_of_demo())}


@pytest.mark.parametrize(
    "text",
    [RULES.read_text(), "\n".join(expressions()), DOCUMENT.read_text()],
    ids=["rules", "dashboard", "document"],
)
def test_who_reads_the_page_reads_what_is_on_it(text: str) -> None:
    named = set(re.findall(r"\bvirtirq_\w+", text))
    assert named
    assert named <= names_of_the_page() | set(families(page_of_demo()))


def test_the_document_has_every_family_and_alert() -> None:
    text = DOCUMENT.read_text()
    for name, family in families(page_of_demo()).items():
        shown = f"{name}_total" if family.type == "counter" else name
        assert f"`{shown}" in text, name
    for alert in re.findall(r"- alert: (\w+)", RULES.read_text()):
        assert alert in text


def test_labels_that_are_asked_for_are_there() -> None:
    """A label that a query names, and that nobody gives, matches nothing in silence."""
    given = set(re.findall(r'(\w+)="', page_of_demo())) | {"instance", "job"}
    queries = "\n".join([*expressions(), RULES.read_text()])
    asked = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', queries))
    asked |= {
        label.strip()
        for labels in re.findall(r"(?:by|without) \(([^)]*)\)", queries)
        for label in labels.split(",")
    }
    asked |= set(re.findall(r"\$labels\.(\w+)", queries))
    assert asked
    assert asked <= given


def test_the_dashboards_queries_are_promql(checker: str, tmp_path: Path) -> None:
    rules: list[dict[str, Any]] = [
        {"record": f"query:{number}", "expr": re.sub(r"\$__rate_interval", "5m", each)}
        for number, each in enumerate(expressions())
        if not each.startswith("label_values")
    ]
    file = tmp_path / "dashboard.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    check(checker, "check", "rules", str(file))


def test_the_dashboard_fits_together() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for each in panels:
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        at = each["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & covered, each["title"]
        covered |= cells
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text()))
    assert used - {"__rate_interval", "__all"} == variables
