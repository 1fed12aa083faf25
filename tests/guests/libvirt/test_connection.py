"""libvirt, the real one with its test driver: what is read of it, and how it fails."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostmaker import MadeHost
from tests.libvirtmaker import GPU, NIC, URI, domain_xml, held
from tests.needs import need_libvirt
from virtirq.cpuset import CpuSet
from virtirq.errors import (
    AccessError,
    ConnectionFailedError,
    DependencyError,
    LibvirtError,
    UnavailableError,
    UsageError,
)
from virtirq.guests.libvirt import connection as module
from virtirq.guests.libvirt.connection import Connection, connected, default_uri, is_remote
from virtirq.model import Vcpu


@pytest.fixture
def host() -> Iterator[Any]:
    with held() as connection:
        yield connection


@pytest.fixture
def connection(host: Any) -> Iterator[Connection]:
    with connected(URI) as made:
        yield made


def test_running_guests_where_libvirt_pinned_them(host: Any, connection: Connection) -> None:
    host.createXML(domain_xml("b", devices=NIC + GPU), 0)
    host.createXML(domain_xml("a", devices=""), 0)
    host.defineXML(domain_xml("off"))
    guests, gaps, texts, complete = connection.guests(MadeHost().live())
    assert complete
    assert ["<name>a<" in texts[0], "<name>b<" in texts[1]] == [True, True]
    assert gaps == ()
    assert [guest.name for guest in guests] == ["a", "b"]
    assert guests[1].source == "libvirt"
    assert [(each.index, str(each.cpus)) for each in guests[1].vcpus] == [(0, "2"), (1, "4")]
    assert [str(each.address) for each in guests[1].devices] == ["0000:82:00.0", "0000:83:00.0"]
    assert {guest.domain_id for guest in guests} == {
        host.lookupByName(name).ID() for name in ("a", "b")
    }


def test_a_pin_made_live_counts(host: Any, connection: Connection) -> None:
    domain = host.createXML(domain_xml(), 0)
    domain.pinVcpu(1, (False, True, True) + (False,) * 5)
    (guest,), *_ = connection.guests(None)
    assert str(guest.vcpus[1].cpus) == "1-2"
    domain.pinVcpu(1, (True,) * 8)
    (guest,), *_ = connection.guests(None)
    assert guest.vcpus[1].cpus is None


def test_threads_count_more_than_pins(host: Any, connection: Connection) -> None:
    domain = host.createXML(domain_xml(), 0)
    files = {"/proc/42/cmdline": f"qemu\0-uuid\0{domain.UUIDString()}"}
    for tid, name, cpus in ((42, "CPU 0/KVM", "5"), (43, "CPU 1/KVM", "6")):
        files[f"/proc/42/task/{tid}/comm"] = name
        files[f"/proc/42/task/{tid}/status"] = (
            f"Uid:\t0\t0\t0\t0\nCapPrm:\t1ffffffffff\nCpus_allowed_list:\t{cpus}"
        )
    (guest,), *_ = connection.guests(MadeHost(files=files).live())
    assert guest.pid == 42
    assert [(str(each.cpus), each.tid) for each in guest.vcpus] == [("5", 42), ("6", 43)]


class Vanishing:
    """A domain that ends between being listed and being read, as libvirt reports it."""

    def __init__(self, domain: Any) -> None:
        self._domain = domain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._domain, name)

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        if self._domain.isActive():
            self._domain.destroy()
        text: str = self._domain.XMLDesc(flags)
        return text


@pytest.mark.parametrize("persistent", [False, True])
def test_a_guest_that_ends_while_it_is_read_is_left_out(host: Any, persistent: bool) -> None:
    if persistent:
        host.defineXML(domain_xml("gone")).create()
    else:
        host.createXML(domain_xml("gone"), 0)
    host.createXML(domain_xml("here", devices=""), 0)

    class Racing:
        def __getattr__(self, name: str) -> Any:
            return getattr(host, name)

        def listAllDomains(self, flags: int) -> list[Any]:  # noqa: N802
            return [
                Vanishing(each) if each.name() == "gone" else each
                for each in host.listAllDomains(flags)
            ]

    found = Connection(URI, Racing(), need_libvirt()).guests(None)
    assert [guest.name for guest in found.guests] == ["here"]


def test_a_guest_that_cannot_be_understood_is_a_gap(host: Any, connection: Connection) -> None:
    host.createXML(domain_xml("odd\x7f", devices=""), 0)
    guests, gaps, _, complete = connection.guests(None)
    assert (guests, complete) == ((), False)
    assert [gap.error for gap in gaps] == ["<name> 'odd\\x7f' is not a name"]


def test_guests_by_id_uuid_and_name(host: Any, connection: Connection) -> None:
    domain = host.createXML(domain_xml(), 0)
    uuid = domain.UUIDString()
    for name in ("web", uuid, uuid.replace("-", ""), str(domain.ID())):
        assert connection.find(name).name() == "web"
    for name in ("wob", "0" * 36, "99999", "x" * 32, "0" * 32, "9" * 40):
        with pytest.raises(UsageError, match="no guest is called"):
            connection.find(name)


def test_cpus_of_the_guests_host(connection: Connection) -> None:
    assert str(connection.cpus()) == "0-7"


def test_what_libvirt_refuses_is_said_in_one_line(host: Any, connection: Connection) -> None:
    host.createXML(domain_xml(), 0)
    domain = connection.find("web")
    with pytest.raises(AccessError) as caught, connection.asking("write"):
        domain.setMetadata(2, "<a/>", "a", "urn:a", 1)
    assert str(caught.value) == (
        "cannot write: operation forbidden: read only access prevents virDomainSetMetadata"
    )
    with pytest.raises(LibvirtError) as other, connection.asking("define"):
        host.defineXMLFlags("<domain/>", 0)
    assert str(other.value).startswith("cannot define: ")
    assert "\n" not in str(other.value)


def refusal(name: str) -> Exception:
    """libvirt's error VIR_ERR_`name`."""
    libvirt = need_libvirt()
    error: Exception = libvirt.libvirtError("no")
    code = getattr(libvirt, f"VIR_ERR_{name}")
    error.err = (code, 0, "no", 2, None, None, None, -1, -1)  # type: ignore[attr-defined]
    return error


def test_a_guest_that_polkits_rules_hide_hides_no_other(
    host: Any, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open", "secret"):
        host.createXML(domain_xml(name), 0)
        host.defineXML(domain_xml(f"{name}, off"))
    read = need_libvirt().virDomain.XMLDesc

    def permitted(domain: Any, flags: int) -> str:
        if domain.name().startswith("secret"):
            raise refusal("ACCESS_DENIED")
        return str(read(domain, flags))

    monkeypatch.setattr(need_libvirt().virDomain, "XMLDesc", permitted)
    guests, gaps, texts, complete = connection.guests(None)
    assert ([each.name for each in guests], len(texts), complete) == (["open"], 1, False)
    (gap,) = gaps
    assert gap.error == "cannot read the definition of secret: no"
    guests, gaps, *_ = connection.stopped()
    assert [each.name for each in guests] == ["open, off"]
    (gap,) = gaps
    assert gap.error == "cannot read the definition of secret, off: no"


@pytest.mark.parametrize(
    ("name", "permitted"),
    [
        ("OPERATION_DENIED", False),  # a read-only connection
        ("AUTH_FAILED", False),
        ("AUTH_CANCELLED", False),
        ("AUTH_UNAVAILABLE", False),  # polkit would have to ask, and has nobody to do it
        ("ACCESS_DENIED", False),  # by polkit's rules for each call
        ("NO_DOMAIN_METADATA", True),
        ("SYSTEM_ERROR", True),
    ],
)
def test_what_a_user_may_not_is_not_blamed_on_a_daemon(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, name: str, permitted: bool
) -> None:
    def refuse(_uri: str) -> None:
        raise refusal(name)

    monkeypatch.setattr(need_libvirt(), "open", refuse)
    with pytest.raises(ConnectionFailedError if permitted else AccessError):
        module.opened(URI, write=True)
    expected = LibvirtError if permitted else AccessError
    with pytest.raises(expected, match=r"^cannot write: no$"), connection.asking("write"):
        raise refusal(name)


@pytest.mark.parametrize(
    "uri", ["nonsense", "qemu://system", "quemu:///system", "qemu+foo:///system", "/run/x", "a b"]
)
def test_what_is_no_uri_is_not_blamed_on_a_daemon(
    uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    need_libvirt()
    with pytest.raises(ConnectionFailedError) as caught, connected(uri):
        pass
    assert str(caught.value).startswith(f"{uri!r} is no URI of libvirt's: ")
    assert caught.value.hint == (
        "a URI is written like qemu:///system, or qemu+ssh://root@host/system"
    )


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("qemu+unix:///system?socket=/nonexistent", "Failed to connect socket to '/nonexistent'"),
    ],
)
def test_no_libvirt_at_a_uri(uri: str, reason: str, capfd: pytest.CaptureFixture[str]) -> None:
    need_libvirt()
    with pytest.raises(ConnectionFailedError, match="cannot connect") as caught, connected(uri):
        pass
    assert f"cannot connect to libvirt at {uri}: " in str(caught.value)
    assert reason in str(caught.value)
    assert isinstance(caught.value, UnavailableError)
    assert caught.value.exit_code == 6
    assert capfd.readouterr() == ("", "")


def test_libvirt_that_hangs_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As a stopped libvirtd does: the kernel has accepted for it, and nobody answers."""
    need_libvirt()
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(path))
        hung.listen()
        with (
            pytest.raises(ConnectionFailedError, match=r"no answer within 0\.2 seconds") as caught,
            connected(f"qemu+unix:///system?socket={path}"),
        ):
            pass
        assert caught.value.hint is not None
    # That its socket is closed has the call end, and its thread with it.
    for thread in threading.enumerate():
        if thread.name == "connect":
            thread.join(30)
            assert not thread.is_alive()


def test_a_connection_that_is_made_late_is_closed(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, closed = threading.Event(), threading.Event()
    real_open, real_close = module.opened, Connection.close

    def late(uri: str, *, write: bool = False) -> Connection:
        assert go.wait(30)
        return real_open(uri, write=write)

    def close(self: Connection) -> None:
        real_close(self)
        closed.set()

    monkeypatch.setattr(module, "_PATIENCE", 0.01)
    monkeypatch.setattr(module, "opened", late)
    monkeypatch.setattr(Connection, "close", close)
    with pytest.raises(ConnectionFailedError), connected(URI):
        pass
    go.set()
    assert closed.wait(30)


@pytest.mark.parametrize(
    ("uri", "remote"),
    [
        ("qemu:///system", False),
        ("qemu:///session", False),
        ("qemu+unix:///system?socket=/run/x", False),
        ("test:///default", False),
        ("host1", False),
        ("qemu+ssh://root@host1/system", True),
        ("qemu://host1:16514/system", True),
        ("qemu+tcp://[::1]/system", True),
        ("qemu+ssh://localhost/system", True),
        ("qemu://[broken/system", True),
    ],
)
def test_which_uris_are_another_hosts(uri: str, remote: bool) -> None:
    assert is_remote(uri) is remote


def test_the_default_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBVIRT_DEFAULT_URI", raising=False)
    assert default_uri() == "qemu:///system"
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", URI)
    assert default_uri() == URI


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, *rest):
        if name == "libvirt":
            raise {error}
sys.meta_path.insert(0, Blocker())
from virtirq.errors import VirtirqError
from virtirq.guests.libvirt.connection import connected
try:
    with connected("test:///default"): pass
except VirtirqError as error:
    print(type(error).__name__, error.exit_code, error, "|", error.hint)
"""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("ModuleNotFoundError(name)", "is not installed"),
        ("ImportError('libvirt.so.0: no such file')", "cannot be imported: libvirt.so.0: no such"),
    ],
)
def test_without_libvirt_python(error: str, told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(error=error)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{DependencyError.__name__} 6 the Python module libvirt {told}")
    assert "python3-libvirt" in done.stdout
    assert "pip install libvirt-python" in done.stdout


def test_guests_that_do_not_run(host: Any, connection: Connection) -> None:
    host.defineXML(domain_xml("web")).create()
    host.defineXML(domain_xml("db"))
    host.defineXML(domain_xml("air"))
    found, gaps = connection.stopped()[:2]
    assert [each.name for each in found] == ["air", "db"]
    assert {each.source for each in found} == {"libvirt"}
    assert [vcpu.cpus for vcpu in found[0].vcpus] == [CpuSet([2]), CpuSet([4])]
    assert gaps == ()


def test_vcpus_keep_their_numbers(host: Any, connection: Connection) -> None:
    xml = domain_xml().replace("<vcpu>2<", "<vcpu current='2'>3<")
    host.createXML(xml, 0)
    (guest,), *_ = connection.guests(None)
    assert [each.index for each in guest.vcpus] == [0, 1]
    assert all(isinstance(each, Vcpu) for each in guest.vcpus)
