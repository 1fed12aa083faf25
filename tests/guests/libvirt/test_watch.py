"""What libvirt tells, from the real one with its test driver: which guest is to be looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostmaker import MadeHost
from tests.libvirtmaker import LIVE, URI, domain_xml, held
from tests.needs import need_libvirt
from virtirq.errors import (
    AccessError,
    ConnectionFailedError,
    DependencyError,
    LibvirtError,
    UsageError,
)
from virtirq.guests.libvirt import watch as module
from virtirq.guests.libvirt.connection import LiveGuests
from virtirq.guests.libvirt.watch import Watch, open_watch

ENOUGH = 300.0
"""Seconds after which a test gives up."""


class Ears:
    """Who is told; `told` waits."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.delays: list[float] = []
        self.lost: list[str] = []
        self.threads: set[str] = set()
        self._news = threading.Condition()

    def hear(self, uuid: str, delay: float) -> None:
        with self._news:
            self.threads.add(threading.current_thread().name)
            self.changed.append(uuid)
            self.delays.append(delay)
            self._news.notify_all()

    def until(self, condition: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(condition, ENOUGH), self.changed


@pytest.fixture
def host() -> Iterator[Any]:
    need_libvirt()
    module._run_loop()  # before any connection is made, as the daemon does
    with held() as connection:
        yield connection


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def watch(host: Any, ears: Ears) -> Iterator[Watch]:
    made = open_watch(URI, ears.hear, ears.lost.append)
    yield made
    made.close()


class Sentinel:
    """A guest whose beginning says that all that was told before has been heard."""

    def __init__(self, host: Any, ears: Ears) -> None:
        self._host, self._ears, self._number = host, ears, 0

    def heard(self) -> list[str]:
        """What has been told so far, and of whom; forgotten then."""
        self._number += 1
        made = self._host.createXML(domain_xml(f"sentinel{self._number}", devices=""), 0)
        uuid = made.UUIDString()
        self._ears.until(lambda: uuid in self._ears.changed)
        found = [each for each in self._ears.changed if each != uuid]
        self._ears.changed.clear()
        made.destroy()
        self._ears.until(lambda: uuid in self._ears.changed)
        self._ears.changed.clear()
        return found


@pytest.fixture
def sentinel(host: Any, ears: Ears, watch: Watch) -> Sentinel:
    return Sentinel(host, ears)


def test_a_guest_that_begins_and_ends(host: Any, sentinel: Sentinel, ears: Ears) -> None:
    domain = host.createXML(domain_xml(), 0)
    uuid = domain.UUIDString()
    assert set(sentinel.heard()) == {uuid}
    domain.destroy()
    assert set(sentinel.heard()) == {uuid}
    assert ears.threads == {"libvirt"}, "it comes on a thread of its own"


def test_a_guest_that_is_paused_and_goes_on(host: Any, sentinel: Sentinel) -> None:
    domain = host.createXML(domain_xml(), 0)
    sentinel.heard()
    domain.suspend()
    assert sentinel.heard() == [], "it has what it had"
    domain.resume()
    assert sentinel.heard() == [domain.UUIDString()]
    uuid = domain.UUIDString()
    domain.shutdown()
    assert set(sentinel.heard()) == {uuid}


def test_a_guest_that_is_only_defined_is_of_no_interest(host: Any, sentinel: Sentinel) -> None:
    domain = host.defineXML(domain_xml())
    assert sentinel.heard() == []
    domain.create()
    assert set(sentinel.heard()) == {domain.UUIDString()}
    domain.destroy()
    sentinel.heard()
    domain.undefine()
    assert sentinel.heard() == []


def test_a_setting(host: Any, sentinel: Sentinel) -> None:
    domain = host.createXML(domain_xml(), 0)
    sentinel.heard()
    domain.setMetadata(2, '<irqs cpuset="native"/>', "virtirq", "urn:virtirq:1", LIVE)
    assert sentinel.heard() == [domain.UUIDString()]


def test_a_connection_that_was_closed_tells_nothing(host: Any, ears: Ears) -> None:
    watch = open_watch(URI, ears.hear, ears.lost.append)
    other = open_watch(URI, ears.hear, ears.lost.append)
    watch.close()
    domain = host.createXML(domain_xml(), 0)
    ears.until(lambda: bool(ears.changed))
    Sentinel(host, ears).heard()
    assert domain.UUIDString() not in ears.changed
    other.close()
    other.close()


def test_a_closed_one_is_not_told_twice(host: Any) -> None:
    first, second = Ears(), Ears()
    gone = open_watch(URI, first.hear, first.lost.append)
    gone.close()
    stays = open_watch(URI, second.hear, second.lost.append)
    Sentinel(host, second).heard()
    assert first.changed == []
    stays.close()


def test_guests_are_read_over_it(host: Any, watch: Watch) -> None:
    fs = MadeHost().live()
    assert watch.uri == URI
    assert watch.running() == {}
    domain = host.createXML(domain_xml(), 0)
    uuid = domain.UUIDString()
    host.defineXML(domain_xml("off"))
    assert watch.running() == {uuid: "web"}
    (guest,) = watch.guest(uuid, fs).guests
    assert (guest.name, guest.key) == ("web", uuid)
    domain.pinVcpu(1, (False, True) + (False,) * 6)
    (later,) = watch.guest(uuid, fs).guests
    assert str(later.vcpus[1].cpus) == "1"
    domain.destroy()
    assert watch.guest(uuid, fs) == LiveGuests(())


def test_a_guest_that_is_defined_and_does_not_run(host: Any, watch: Watch) -> None:
    domain = host.defineXML(domain_xml())
    assert watch.guest(domain.UUIDString(), MadeHost().live()) == LiveGuests(())


@pytest.mark.parametrize("uuid", ["", "nonsense", "web"])
def test_a_uuid_that_is_none(watch: Watch, uuid: str) -> None:
    with pytest.raises(LibvirtError, match="cannot look for"):
        watch.guest(uuid, MadeHost().live())


def test_another_host_of_the_test_driver(host: Any, ears: Ears, tmp_path: Path) -> None:
    file = tmp_path / "host.xml"
    file.write_text(f"<node>{domain_xml('there', devices='')}</node>")
    watch = open_watch(f"test://{file}", ears.hear, ears.lost.append)
    assert list(watch.running().values()) == ["there"]
    raw: Any = watch._connection.raw
    assert raw.isAlive()
    watch.close()


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("qemu+ssh://root@elsewhere/system", UsageError),
        ("qemu+unix:///system?socket=/nonexistent", ConnectionFailedError),
        ("nonsense", ConnectionFailedError),
        ("test:///nonexistent", ConnectionFailedError),
    ],
)
def test_what_cannot_be_watched(uri: str, error: type[Exception]) -> None:
    need_libvirt()
    with pytest.raises(error):
        open_watch(uri, lambda *_: None, lambda _: None)


def test_an_alias_of_another_hosts(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt.conf may call another host anything; libvirt knows where it went."""
    from virtirq.guests.libvirt.connection import Connection

    closed: list[None] = []
    real = Connection.close
    monkeypatch.setattr(Connection, "remote", property(lambda _: True))
    monkeypatch.setattr(Connection, "close", lambda self: closed.append(real(self)))
    with pytest.raises(UsageError, match="run on another host"):
        open_watch(URI, lambda *_: None, lambda _: None)
    assert len(closed) == 1


def test_without_libvirt_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise DependencyError("not installed")

    monkeypatch.setattr(module, "_loop", None)
    monkeypatch.setattr(module, "libvirt_module", missing)
    with pytest.raises(DependencyError):
        open_watch(URI, lambda *_: None, lambda _: None)


# What the test driver cannot do -----------------------------------------------------------------


class Raw:
    """A connection that fails where it is told to, and breaks when it is told to."""

    def __init__(self, fails: str = "", code: int = 1) -> None:
        self.fails, self.code = fails, code
        self.calls: list[str] = []
        self.breaks: Callable[..., None] | None = None
        self.given: dict[int, Callable[..., None]] = {}

    def _do(self, what: str) -> None:
        self.calls.append(what)
        if what == self.fails:
            error = need_libvirt().libvirtError("it broke")
            error.err = (self.code, 0, "it broke", 0, "", None, None, 0, 0)
            raise error

    def getURI(self) -> str:  # noqa: N802
        self._do("getURI")
        return "qemu:///system"

    def setKeepAlive(self, interval: int, count: int) -> int:  # noqa: N802
        self._do("setKeepAlive")
        self.kept_alive = (interval, count)
        return 0

    def registerCloseCallback(self, call: Callable[..., None], _: object) -> None:  # noqa: N802
        self._do("registerCloseCallback")
        self.breaks = call

    def unregisterCloseCallback(self) -> None:  # noqa: N802
        self._do("unregisterCloseCallback")

    def domainEventRegisterAny(  # noqa: N802
        self, domain: object, event: int, call: Callable[..., None], _: object
    ) -> int:
        self._do("domainEventRegisterAny")
        assert domain is None, "of all guests"
        self.given[event] = call
        return event + 100

    def domainEventDeregisterAny(self, number: int) -> None:  # noqa: N802
        self._do("domainEventDeregisterAny")
        del self.given[number - 100]

    def close(self) -> int:
        self._do("close")
        return 0


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Callable[[Raw], Callable[..., Watch]]:
    def with_raw(raw: Raw) -> Callable[..., Watch]:
        from virtirq.guests.libvirt.connection import Connection

        library = need_libvirt()
        monkeypatch.setattr(module, "_run_loop", lambda: None)
        made: Any = raw
        monkeypatch.setattr(module, "opened", lambda uri: Connection(uri, made, library))
        return open_watch

    return with_raw


Opens = Callable[[Raw], Callable[..., Watch]]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (0, "an error"),
        (1, "its daemon has ended"),
        (2, "it does not answer"),
        (3, "closed"),
        (99, "lost"),
    ],
)
def test_a_connection_that_breaks(opens: Opens, reason: int, told: str) -> None:
    raw, ears = Raw(), Ears()
    opens(raw)("qemu:///system", ears.hear, ears.lost.append)
    assert raw.breaks is not None
    raw.breaks(raw, reason, None)
    assert ears.lost == [told]


def test_one_that_does_not_answer_breaks_within_half_a_minute(opens: Opens) -> None:
    raw = Raw()
    opens(raw)("qemu:///system", lambda *_: None, lambda _: None)
    interval, count = raw.kept_alive
    assert interval * (count + 1) < 30
    assert interval > 5, "libvirtd asks us first, so that nobody is asked twice"


def test_a_driver_that_needs_no_connection(opens: Opens) -> None:
    raw = Raw("setKeepAlive")
    opens(raw)("qemu:///system", lambda *_: None, lambda _: None)
    assert len(raw.given) == 5


def test_a_driver_that_cannot_tell_that_it_broke(opens: Opens) -> None:
    raw = Raw("registerCloseCallback")
    opens(raw)("qemu:///system", lambda *_: None, lambda _: None)
    assert len(raw.given) == 5


@pytest.mark.parametrize(
    ("fails", "code", "error"),
    [
        ("getURI", 1, LibvirtError),
        ("domainEventRegisterAny", 1, LibvirtError),
        ("domainEventRegisterAny", 88, AccessError),
    ],
)
def test_what_cannot_be_listened_to_is_closed(
    opens: Opens, fails: str, code: int, error: type[Exception]
) -> None:
    raw = Raw(fails, code)
    with pytest.raises(error, match="it broke"):
        opens(raw)("qemu:///system", lambda *_: None, lambda _: None)
    assert raw.calls[-1] == "close"
    assert raw.given == {}


@pytest.mark.parametrize("fails", ["unregisterCloseCallback", "domainEventDeregisterAny", "close"])
def test_what_is_broken_can_be_closed(opens: Opens, fails: str) -> None:
    raw = Raw(fails)
    opens(raw)("qemu:///system", lambda *_: None, lambda _: None).close()
    assert raw.calls[-1] == "close"
    assert raw.calls.count("domainEventDeregisterAny") == 5


class Domain:
    def UUIDString(self) -> str:  # noqa: N802
        return "u-web"


@pytest.mark.parametrize(
    ("event", "arguments", "told"),
    [
        # libvirt-domain.h, virDomainEventType: defined, undefined, …, crashed.
        *((0, (kind, 0), kind in (2, 4, 5, 8)) for kind in range(10)),
        (15, ("hostdev0",), True),
        (17, ({"cputune.vcpupin0": "1"},), True),
        (19, ("hostdev0",), True),
        (23, (2, "urn:virtirq:1"), True),
    ],
)
def test_which_events_count(
    opens: Opens, event: int, arguments: tuple[object, ...], told: bool
) -> None:
    raw, ears = Raw(), Ears()
    opens(raw)("qemu:///system", ears.hear, ears.lost.append)
    raw.given[event](raw, Domain(), *arguments, None)
    assert ears.changed == ["u-web"] * told
    assert [delay > 0 for delay in ears.delays] == [event == 17] * told


def test_events_are_numbered_as_libvirt_numbers_them() -> None:
    library = need_libvirt()
    for ours, theirs in (
        (module._LIFECYCLE, "ID_LIFECYCLE"),
        (module._DEVICE_REMOVED, "ID_DEVICE_REMOVED"),
        (module._TUNABLE, "ID_TUNABLE"),
        (module._DEVICE_ADDED, "ID_DEVICE_ADDED"),
        (module._METADATA_CHANGE, "ID_METADATA_CHANGE"),
        (module._STARTED, "STARTED"),
        (module._RESUMED, "RESUMED"),
        (module._STOPPED, "STOPPED"),
        (module._CRASHED, "CRASHED"),
    ):
        assert ours == getattr(library, f"VIR_DOMAIN_EVENT_{theirs}"), theirs


def test_the_loop_of_events_survives_its_errors_and_does_not_spin() -> None:
    """It waits longer and longer while it fails, and not at all when it works again."""

    class EndOfTestError(Exception):
        pass

    class Library:
        libvirtError = need_libvirt().libvirtError  # noqa: N815

        def __init__(self) -> None:
            self.rounds = [False] * 12 + [True, False, True, True]

        def virEventRunDefaultImpl(self) -> None:  # noqa: N802
            if not self.rounds:
                raise EndOfTestError
            if not self.rounds.pop(0):
                raise self.libvirtError("a round that failed")

    waited: list[float] = []
    with pytest.raises(EndOfTestError):
        module._events(Library(), waited.append)
    assert waited == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1, 1, 1, 1, 1, 0.01]


def test_there_is_one_loop_in_a_process(host: Any) -> None:
    before = module._loop
    module._run_loop()
    assert module._loop is before
    assert [each.name for each in threading.enumerate()].count("libvirt") == 1
