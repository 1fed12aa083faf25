"""What virtirq knows, for Prometheus: one text page, and a small server for it.

`docs/metrics.md` says what each family means and why it has the labels that it has.
"""

from __future__ import annotations

import io
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

from virtirq import __version__
from virtirq.control import counters
from virtirq.control.counters import Counters, Histogram, Trigger
from virtirq.control.daemon_status import DaemonStatus
from virtirq.cpuset import CpuSet
from virtirq.errors import VirtirqError
from virtirq.host.events import EventKind
from virtirq.model import Finding, Interrupt, Plan, Snapshot, Status, by_device
from virtirq.policy import stakes
from virtirq.policy.advice import ADVICE
from virtirq.policy.budget import NEVER, Budget
from virtirq.ui.document import printable
from virtirq.ui.report import near, wanted_of

if TYPE_CHECKING:
    from prometheus_client import Metric

Values = Mapping[tuple[str, ...], float]
"""Of a family, by the values of its labels."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of the page that `render` gives (Prometheus, "Text-based format")."""

# Prometheus' advice is to give what is known beforehand from the start, at zero: what appears
# with its first event has no increase. These verdicts are those that rules and graphs ask for.
_VERDICTS: Final = ("in-place", "pending", "loose", "wrong-cpu", "wrong-node")
_MOVERS: Final = ("irqbalance", counters.OTHERS)


def render(
    snapshot: Snapshot,
    plan: Plan,
    findings: Iterable[Finding],
    daemon_status: DaemonStatus | None,
    *,
    vectors: bool = True,
) -> str:
    """The page in Prometheus' text format, of a host, the plan for it, and the daemon there.

    What both `findings` and `daemon_status` have counts once. `vectors`: with those families that
    have series for each.
    """
    return "".join(pieces(snapshot, plan, findings, daemon_status, vectors=vectors))


def pieces(
    snapshot: Snapshot,
    plan: Plan,
    findings: Iterable[Finding],
    daemon_status: DaemonStatus | None,
    *,
    vectors: bool = True,
) -> Iterator[str]:
    """The page of `render`, so that it need not be in memory as a whole."""
    yield _text(_of_host(plan))
    if vectors:
        yield from _of_vectors(snapshot, plan)
    yield _text((*_of_findings(snapshot, findings, daemon_status), *_of_daemon(daemon_status)))


def _text(families: Iterable[Metric]) -> str:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Page(Collector):
        def collect(self) -> Iterable[Metric]:
            return families

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Page())
    return generate_latest(registry).decode()


def _of_host(plan: Plan) -> Iterator[Metric]:
    yield _gauge(
        "virtirq_build_info",
        "The version of virtirq that made this page; always 1.",
        ("version",),
        {(__version__,): 1},
    )
    verdicts: Counter[tuple[str, ...]] = Counter()
    for guest in plan.guests:
        verdicts.update(dict.fromkeys(((guest.guest.name, each) for each in _VERDICTS), 0))
        for device in guest.devices:
            verdicts.update((guest.guest.name, action.reason.code) for action in device.actions)
    yield _gauge(
        "virtirq_interrupts",
        "Interrupts of the guests' devices, by what the plan says of them now.",
        ("guest", "verdict"),
        verdicts,
    )


_EXPONENT: Final = 1_000_000
"""Numbers below this the library writes as they are, larger ones with an exponent."""
_VECTORS: Final = """\
# HELP virtirq_vector_interrupts_total Interrupts taken, by the kernel's counts: on the CPUs of the\
 vector's target, on others of the target's or the device's node, and elsewhere.
# TYPE virtirq_vector_interrupts_total counter
"""


def _of_vectors(snapshot: Snapshot, plan: Plan) -> Iterator[str]:
    """By guest, device, vector, target and place, as the library would write it.

    A device at a time: this family is as large as the host, and the library would have the page in
    memory several times over.
    Only of those interrupts on which a guest's device has its handler, and once where two guests
    name the same device.
    """
    from prometheus_client import utils

    number: Callable[[int], str] = utils.floatToGoString
    interrupts = by_device(snapshot.interrupts)
    yield _VECTORS
    for guest in plan.guests:
        name = _quoted(guest.guest.name)
        for device in guest.devices:
            if device.code == "claimed":
                continue
            address = device.device.address
            taken: dict[tuple[str, str, str], int] = {}
            close = cache(partial(near, snapshot, device))
            numbered = {each.irq: each for each in interrupts.get(address, ())}
            for action in device.actions:
                interrupt = numbered.get(action.irq)
                if interrupt is None or interrupt.counts is None:
                    continue
                if not action.key.action and interrupt.actions is not None:
                    continue
                target, vector = wanted_of(action), _vector(interrupt)
                where = str(target or "")
                for place, count in _places(target, close(target), interrupt.counts):
                    key = vector, where, place
                    taken[key] = taken.get(key, 0) + count
            head = f'virtirq_vector_interrupts_total{{device="{address}",guest={name},place="'
            yield "".join(
                f'{head}{place}",target="{where}",vector="{vector}"}}'
                f" {f'{count}.0' if count < _EXPONENT else number(count)}\n"
                for (vector, where, place), count in taken.items()
            )


def _quoted(text: str) -> str:
    """A label's value (Prometheus, "Text-based format")."""
    escaped = printable(text).replace("\\", r"\\").replace('"', r"\"")
    return f'"{escaped}"'


def _of_findings(
    snapshot: Snapshot, findings: Iterable[Finding], daemon_status: DaemonStatus | None
) -> Iterator[Metric]:
    told = dict.fromkeys((*findings, *(daemon_status.findings if daemon_status else ())))
    counts: Counter[tuple[str, ...]] = Counter()
    counts.update(
        {
            (code, each.severity.value): 0
            for code, each in ADVICE.items()
            if code not in stakes.CODES
        }
    )
    counts.update((each.code, each.severity.value) for each in told)
    yield _gauge(
        "virtirq_findings",
        "Findings about the host and its guests, as 'virtirq check' has them.",
        ("code", "severity"),
        counts,
    )
    yield _gauge(
        "virtirq_gaps", "Kinds of files that could not be read.", (), {(): len(snapshot.gaps)}
    )


def _of_daemon(daemon_status: DaemonStatus | None) -> Iterator[Metric]:
    yield _gauge(
        "virtirq_daemon_up", "Whether the virtirq daemon runs.", (), {(): daemon_status is not None}
    )
    if daemon_status is None:
        return
    yield _gauge(
        "virtirq_daemon_start_time_seconds",
        "When the daemon began, in seconds since the epoch.",
        (),
        {(): daemon_status.since},
    )
    if daemon_status.counters is not None:
        yield from _of_tally(daemon_status.counters)


def _of_tally(counted: Counters) -> Iterator[Metric]:
    zeros: dict[tuple[str, ...], float]
    zeros = {(why.value, end.value): 0 for why in Trigger for end in Status}
    yield _counter(
        "virtirq_moves_total",
        "Interrupts that the daemon set out to move, by why and by what became of it.",
        ("trigger", "outcome"),
        zeros | dict(counted.moves),
    )
    yield _counter(
        "virtirq_drift_total",
        "Interrupts that were moved by someone else, by the name of the task.",
        ("mover",),
        _with_zeros(counted.drift, _MOVERS),
    )
    yield _counter(
        "virtirq_kernel_events_total",
        "Events that the kernel told the daemon of, by kind.",
        ("kind",),
        _with_zeros(counted.events, (each.value for each in EventKind)),
    )
    yield _counter(
        "virtirq_kernel_events_lost_total",
        "How often events of the kernel were lost, and the daemon had to look at everything.",
        (),
        {(): counted.lost},
    )
    yield _histogram(
        "virtirq_reaction_seconds",
        "From the kernel's event of a new vector to the end of the write that moved it.",
        counted.reactions,
    )
    yield _histogram(
        "virtirq_cycle_seconds",
        "How long a look at devices took: reading their interrupts, planning and writing.",
        counted.cycles,
    )


def _vector(interrupt: Interrupt) -> str:
    """As ``status`` shows it: ``msix 3``, ``intx``."""
    number = "" if interrupt.vector is None else f" {interrupt.vector}"
    return f"{interrupt.kind.value}{number}"


def _places(
    target: CpuSet | None, close: CpuSet, counts: Mapping[int, int]
) -> Iterable[tuple[str, int]]:
    """How many interrupts were taken at each place that there can be; `close` is the node."""
    totals = {"target": 0, "node": 0, "elsewhere": 0} if target else {"node": 0, "elsewhere": 0}
    for cpu, count in counts.items():
        here = target and cpu in target
        totals["target" if here else "node" if cpu in close else "elsewhere"] += count
    return totals.items()


def _with_zeros(counted: Counter[str], known: Iterable[str]) -> Values:
    return {(name,): count for name, count in (dict.fromkeys(known, 0) | dict(counted)).items()}


def _gauge(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in _shown(values):
        family.add_metric(key, value)
    return family


def _counter(name: str, text: str, labels: Sequence[str], values: Values) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in _shown(values):
        family.add_metric(key, value)
    return family


def _histogram(name: str, text: str, counted: Histogram) -> Metric:
    from prometheus_client.core import HistogramMetricFamily

    bounds = (*(str(float(bound)) for bound in counted.bounds), "+Inf")
    buckets = list(zip(bounds, accumulate(list(counted.counts)), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=counted.total)


def _shown(values: Values) -> Iterable[tuple[tuple[str, ...], float]]:
    """The values under names that may be shown; what then looks the same is one series."""
    shown: dict[tuple[str, ...], float] = {}
    for key, value in values.items():
        # Not a copy of every text: a host may have thousands of vectors.
        if not all(each.isprintable() for each in key):
            key = tuple(printable(each) for each in key)
        shown[key] = shown.get(key, 0) + value
    return shown.items()


class Server:
    """Serves ``/metrics`` in a thread of its own until `close`.

    One page is made at a time, in a quarter of the time at most: who asks again before that gets
    the same once more. At most `_MOST` clients are served at once and each has
    `_PATIENCE` to ask, to wait for its turn and to take the page; one too many is hung up on.
    """

    def __init__(self, listening: socket.socket, page: Callable[[], str]) -> None:
        """`page` is called in other threads; a VirtirqError that it raises becomes a 503."""
        self._http = _Http(listening, page)
        self.port: int = listening.getsockname()[1]
        """The port that it listens on."""
        self._thread = threading.Thread(target=self._http.serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more. Does not wait for a page that is being made."""
        self._http.closing = True
        # Wakes whoever waits in accept(2); without that, the thread would have to poll.
        with suppress(OSError):
            self._http.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._http.server_close()


_PLAIN: Final = "text/plain; charset=utf-8"
_MOST: Final = 8
"""Clients that are served at once."""
_PATIENCE: Final = 5.0
"""Seconds; half of what Prometheus itself waits for a scrape unless told otherwise."""
PAGES: Final = Budget(0.25, longest=5.0)
"""Of making pages, however often somebody asks: all the time it takes is a CPU's."""


class Pages:
    """Pages that `make` makes, so that it takes a part of the time alone; for one at a time.

    What `make` raises is raised. `clock` gives seconds that never go back.
    """

    def __init__(
        self, make: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make
        self._clock = clock
        self._last = ""
        self._until = NEVER

    def get(self) -> str:
        """A page of what is so now, or was while the last one may still be given."""
        began = self._clock()
        if not PAGES.wait(self._until, began):
            self._last = self._make()
            now = self._clock()
            self._until = PAGES.used(now, now - began)
        return self._last


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listening: socket.socket, page: Callable[[], str]) -> None:
        self.pages = Pages(page)
        self.turn = threading.Lock()
        self.closing = False
        self._free = threading.BoundedSemaphore(_MOST)
        super().__init__(listening.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening

    def serve(self) -> None:
        while not self.closing:
            self.handle_request()

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            if not self.closing:
                time.sleep(0.1)  # out of file descriptors, say: it will not be better at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that hangs up is no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    server_version = f"virtirq/{__version__}"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Hasty(self.connection))

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(*self._page())
        elif path == "/":
            link = '<!DOCTYPE html><title>virtirq</title><a href="/metrics">metrics</a>\n'
            self._answer(HTTPStatus.OK, link, "text/html; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, "not found: see /metrics\n")

    def _page(self) -> tuple[HTTPStatus, str, str]:
        if not self.server.turn.acquire(timeout=_PATIENCE):
            return HTTPStatus.SERVICE_UNAVAILABLE, "busy with other scrapes\n", _PLAIN
        try:
            if self.server.closing:
                return HTTPStatus.SERVICE_UNAVAILABLE, "virtirq is stopping\n", _PLAIN
            return HTTPStatus.OK, self.server.pages.get(), CONTENT_TYPE
        except VirtirqError as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"{printable(str(error))}\n", _PLAIN
        except TimeoutError:
            return HTTPStatus.SERVICE_UNAVAILABLE, "the daemon does not answer in time\n", _PLAIN
        except Exception:
            traceback.print_exc()
            return HTTPStatus.INTERNAL_SERVER_ERROR, "a bug in virtirq: see its log\n", _PLAIN
        finally:
            self.server.turn.release()

    def _answer(self, status: HTTPStatus, text: str, content: str = _PLAIN) -> None:
        data = text.encode()
        self.connection.settimeout(_PATIENCE)  # of sendall: for all of it
        self.send_response(status)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (http.server's name)
        """A scrape is no news."""


class _Hasty(io.RawIOBase):
    """Reads from a connection; all of it has to come within `_PATIENCE`.

    A timeout of the socket alone would begin anew with each byte.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._until = time.monotonic() + _PATIENCE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)
