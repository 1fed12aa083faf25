"""Settings and definitions written through the real libvirt, with its test driver."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import virtirq
from tests.libvirtmaker import CONFIG, FOREIGN, LIVE, NIC, POOLED, URI, VF, domain_xml, held, ours
from virtirq.control import libvirt_settings
from virtirq.control.libvirt_settings import Change, change
from virtirq.errors import DomainXmlError, InputError, LibvirtError, UsageError
from virtirq.guests.libvirt.connection import Affect, Connection, connected
from virtirq.model import Directive

AUTO = Directive.parse("auto")


@pytest.fixture
def host() -> Iterator[Any]:
    with held() as connection:
        yield connection


@pytest.fixture
def connection(host: Any) -> Iterator[Connection]:
    with connected(URI, write=True) as made:
        yield made


@pytest.fixture
def web(host: Any) -> Any:
    """A guest that is defined and runs."""
    domain = host.defineXML(domain_xml())
    domain.create()
    return domain


def element(inner: str, attributes: str = "") -> str:
    return f"<irqs{attributes}>{inner}</irqs>" if inner else f"<irqs{attributes}/>"


def test_both_are_set_where_the_guest_runs(connection: Connection, web: Any) -> None:
    changed = change(connection, "web", None, AUTO)
    assert changed.changes == (
        Change("live", "", None, "auto"),
        Change("config", "", None, "auto"),
    )
    assert changed.is_live
    assert ours(web) == ours(web, CONFIG) == element("", ' cpuset="auto"')


def test_the_definition_alone_where_it_does_not(host: Any, connection: Connection) -> None:
    domain = host.defineXML(domain_xml())
    changed = change(connection, "web", "82:00.0", AUTO)
    assert changed.changes == (Change("config", "0000:82:00.0", None, "auto"),)
    assert not changed.is_live
    assert ours(domain, CONFIG) == element('<device address="0000:82:00.0" cpuset="auto"/>')


@pytest.mark.parametrize(("affect", "live"), [(Affect.LIVE, True), (Affect.CONFIG, False)])
def test_one_of_them(connection: Connection, web: Any, affect: Affect, live: bool) -> None:
    change(connection, "web", None, AUTO, affect)
    assert (ours(web) is not None) is live
    assert (ours(web, CONFIG) is None) is live


def test_they_may_differ_and_stay_different(connection: Connection, web: Any) -> None:
    change(connection, "web", None, AUTO, Affect.LIVE)
    change(connection, "web", "82:00.0", Directive.parse("2-3"))
    device = '<device address="0000:82:00.0" cpuset="2-3"/>'
    assert ours(web) == element(device, ' cpuset="auto"')
    assert ours(web, CONFIG) == element(device)


def test_transient_and_stopped_guests(host: Any, connection: Connection) -> None:
    host.createXML(domain_xml("transient"), 0)
    host.defineXML(domain_xml("stopped"))
    with pytest.raises(UsageError, match="transient is transient"):
        change(connection, "transient", None, AUTO, Affect.CONFIG)
    with pytest.raises(UsageError, match="stopped is not running"):
        change(connection, "stopped", None, AUTO, Affect.LIVE | Affect.CONFIG)
    assert [each.where for each in change(connection, "transient", None, AUTO).changes] == ["live"]


@pytest.mark.parametrize(
    ("device", "stored"),
    [
        ("82:00.0", 'address="0000:82:00.0"'),
        ("ua-gpu", 'alias="ua-gpu"'),
        ("0000:83:00.0", 'address="0000:83:00.0"'),
        # A VF may be another one at the next start; its MAC address stays.
        ("84:10.1", 'mac="52:54:00:0a:0b:0c"'),
        ("52:54:0:A:B:C", 'mac="52:54:00:0a:0b:0c"'),
        ("52:54:00:0a:0b:0d", 'mac="52:54:00:0a:0b:0d"'),
    ],
)
def test_the_name_that_lasts_is_stored(
    host: Any, connection: Connection, device: str, stored: str
) -> None:
    domain = host.defineXML(domain_xml())
    change(connection, "web", device, Directive.parse("native"))
    assert ours(domain, CONFIG) == element(f'<device {stored} cpuset="native"/>')


def test_a_device_under_another_name_is_the_same_device(host: Any, connection: Connection) -> None:
    domain = host.defineXML(domain_xml())
    change(connection, "web", "ua-gpu", Directive.parse("1"))
    changed = change(connection, "web", "83:00.0", Directive.parse("2"))
    assert changed.changes == (Change("config", "0000:83:00.0", "1", "2"),)
    assert ours(domain, CONFIG) == element('<device address="0000:83:00.0" cpuset="2"/>')


def test_names_that_only_the_running_guest_has(host: Any, connection: Connection) -> None:
    """Here a VF of a network; generated aliases alike, which the test driver does not make."""
    live = domain_xml(devices=VF.replace("0a:0b:0c", "0a:0b:0d"))
    domain = host.createXML(live, 0)
    uuid = f"<uuid>{domain.UUIDString()}</uuid><name>"
    host.defineXML(domain_xml(devices=POOLED).replace("<name>", uuid))
    changed = change(connection, "web", "84:10.1", AUTO)
    name = "52:54:00:0a:0b:0d"
    assert changed.changes == (
        Change("live", name, None, "auto"),
        Change("config", name, None, "auto"),
    )
    assert ours(domain) == ours(domain, CONFIG) == element(f'<device mac="{name}" cpuset="auto"/>')


def test_nobody_elses_metadata_is_touched(connection: Connection, web: Any) -> None:
    before = web.XMLDesc(0), web.XMLDesc(2)
    assert "<a:kept/>" in before[0]
    change(connection, "web", None, AUTO)
    change(connection, "web", "82:00.0", Directive.parse("2"))
    assert all("<a:kept/>" in each for each in (web.XMLDesc(0), web.XMLDesc(2)))
    change(connection, "web", None, None)
    assert ours(web) is not None
    change(connection, "web", "82:00.0", None)
    assert ours(web) is None
    assert (web.XMLDesc(0), web.XMLDesc(2)) == before


def test_taking_out_what_is_not_there_changes_nothing(connection: Connection, web: Any) -> None:
    changed = change(connection, "web", "82:00.0", None)
    assert {(each.before, each.after) for each in changed.changes} == {(None, None)}
    assert not changed.is_live


def test_the_setting_of_a_device_that_is_gone_can_be_taken_out(
    host: Any, connection: Connection
) -> None:
    stale = "<v:irqs xmlns:v='urn:virtirq:1'><v:device address='99:00.0' cpuset='1'/></v:irqs>"
    domain = host.defineXML(domain_xml(metadata=FOREIGN + stale))
    with pytest.raises(UsageError, match=r"no passed-through device '99:00\.0'"):
        change(connection, "web", "99:00.0", AUTO)
    assert change(connection, "web", None, AUTO)  # and it is in nobody's way
    assert change(connection, "web", "99:00.0", None).changes[0].before == "1"
    assert ours(domain, CONFIG) == element("", ' cpuset="auto"')


def test_a_device_of_the_running_guest_alone(host: Any, connection: Connection, web: Any) -> None:
    web.undefine()
    host.defineXML(
        domain_xml(devices=NIC).replace("<name>", f"<uuid>{web.UUIDString()}</uuid><name>")
    )
    with pytest.raises(UsageError, match="in its persistent definition") as caught:
        change(connection, "web", "83:00.0", AUTO)
    assert caught.value.hint == "its devices: 0000:82:00.0"
    assert ours(web) is None
    change(connection, "web", "83:00.0", AUTO, Affect.LIVE)
    assert ours(web) is not None


@pytest.mark.parametrize(
    ("device", "message", "hint"),
    [
        ("0000:85:00.0", "no passed-through device '0000:85:00.0'", "0000:82:00.0, 0000:83:00.0"),
        ("hostdev0", "no passed-through device 'hostdev0'", "0000:82:00.0"),
        ("52:54:00:00:00:00", "no passed-through device", "52:54:00:0a:0b:0d"),
    ],
)
def test_unknown_devices(
    host: Any, connection: Connection, device: str, message: str, hint: str
) -> None:
    host.defineXML(domain_xml())
    with pytest.raises(UsageError, match=message) as caught:
        change(connection, "web", device, AUTO)
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("cpus", "message"),
    [("8", "the host has no CPU 8"), ("0-9", "the host has no CPUs 8-9")],
)
def test_cpus_that_the_host_does_not_have(
    host: Any, connection: Connection, cpus: str, message: str
) -> None:
    domain = host.defineXML(domain_xml())
    with pytest.raises(InputError, match=message) as caught:
        change(connection, "web", None, Directive.parse(cpus))
    assert caught.value.hint == "its CPUs are 0-7"
    assert ours(domain, CONFIG) is None


NOT_UNDERSTOOD = [
    "<v:irqs xmlns:v='urn:virtirq:1' cpuset='sometimes'/>",
    "<v:irqs xmlns:v='urn:virtirq:1'><v:vector/></v:irqs>",
    "<v:irqs xmlns:v='urn:virtirq:1'><v:device alias='x' cpuset='1' spread='mask'/></v:irqs>",
    "<v:interrupts xmlns:v='urn:virtirq:1'/>",
    "<v:irqs xmlns:v='urn:virtirq:2' cpuset='auto'/>",
]


@pytest.mark.parametrize("metadata", NOT_UNDERSTOOD)
@pytest.mark.parametrize("directive", [AUTO, None])
def test_what_is_not_understood_is_not_overwritten(
    host: Any, connection: Connection, metadata: str, directive: Directive | None
) -> None:
    domain = host.defineXML(domain_xml(metadata=metadata))
    before = domain.XMLDesc(2)
    with pytest.raises(InputError, match="not all of its virtirq metadata") as caught:
        change(connection, "web", None, directive)
    assert "--force" in (caught.value.hint or "")
    assert domain.XMLDesc(2) == before


@pytest.mark.parametrize("metadata", NOT_UNDERSTOOD)
def test_unless_by_force(host: Any, connection: Connection, metadata: str) -> None:
    known = "<w:device xmlns:w='urn:virtirq:1' address='82:00.0' cpuset='1'/>"
    text = metadata.replace("<v:vector/>", f"<v:vector/>{known}")
    domain = host.defineXML(domain_xml(metadata=text))
    change(connection, "web", None, AUTO, force=True)
    kept = '<device address="0000:82:00.0" cpuset="1"/>' if "vector" in metadata else ""
    if "alias" in metadata:
        kept = '<device alias="x" cpuset="1"/>'
    assert ours(domain, CONFIG) == element(kept, ' cpuset="auto"')
    assert ("urn:virtirq:2" in domain.XMLDesc(2)) is ("urn:virtirq:2" in metadata)


def test_half_of_a_change_is_told(connection: Connection, web: Any) -> None:
    change(connection, "web", "82:00.0", AUTO, Affect.LIVE)  # so that the two differ

    class Refusing:
        """The connection, whose domains take no live metadata."""

        def __getattr__(self, name: str) -> Any:
            return getattr(connection.raw, name)

        def lookupByName(self, name: str) -> Any:  # noqa: N802
            domain = connection.raw.lookupByName(name)

            class Domain:
                def __getattr__(self, attribute: str) -> Any:
                    return getattr(domain, attribute)

                def setMetadata(self, *arguments: Any) -> int:  # noqa: N802
                    if arguments[-1] & LIVE:
                        raise connection.module.libvirtError("no")
                    done: int = domain.setMetadata(*arguments)
                    return done

            return Domain()

    refusing = Connection(URI, Refusing(), connection.module)
    with pytest.raises(LibvirtError) as caught:
        change(refusing, "web", None, AUTO)
    assert str(caught.value) == "cannot write the metadata of web: no (live); written: config"


# Definitions.


def test_define_moves_the_attributes(host: Any, connection: Connection) -> None:
    text = domain_xml(
        devices=NIC.replace("managed", "cpuset='2-3' managed")
        + VF.replace("managed", "cpuset='native' managed")
        + POOLED.replace("type='network'", 'type="network" cpuset="auto"')
    )
    name, moved = libvirt_settings.define(connection, text)
    assert name == "web"
    assert [(each.name, str(directive)) for each, directive in moved.settings] == [
        ("0000:82:00.0", "2-3"),
        ("52:54:00:0a:0b:0c", "native"),
        ("52:54:00:0a:0b:0d", "auto"),
    ]
    domain = host.lookupByName("web")
    assert ours(domain, CONFIG) == element(
        '<device address="0000:82:00.0" cpuset="2-3"/>'
        '<device mac="52:54:00:0a:0b:0c" cpuset="native"/>'
        '<device mac="52:54:00:0a:0b:0d" cpuset="auto"/>'
    )
    assert "<a:kept/>" in domain.XMLDesc(2)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (domain_xml(devices=NIC.replace("mode", "cpuset='8' mode")), InputError, "has no CPU 8"),
        (domain_xml(devices=NIC.replace("mode", "cpuset='x' mode")), DomainXmlError, "cpuset: 'x'"),
        ("<domain><name>web</name></domain>", LibvirtError, "cannot define the domain: "),
        ("not XML", DomainXmlError, "not well-formed XML"),
    ],
)
def test_definitions_that_are_refused(
    host: Any, connection: Connection, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        libvirt_settings.define(connection, text)
    assert host.listAllDomains() == []


# Only here.


CHANGING = {
    *("setMetadata", "defineXML", "defineXMLFlags", "createXML", "undefine"),
    *("pinVcpu", "pinVcpuFlags", "pinEmulator", "setNumaParameters"),
}


def test_only_the_control_room_changes_libvirt() -> None:
    source = Path(virtirq.__file__).parent
    callers = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in CHANGING
    }
    assert callers == {"control/libvirt_settings.py", "control/libvirt_pinning.py"}


class TestOneMacOfTwo:
    """A bond's VFs may have one MAC address: it is no name for either."""

    BOTH = VF + VF.replace("bus='0x84'", "bus='0x85'")

    def test_each_by_its_address(self, host: Any, connection: Connection) -> None:
        domain = host.defineXML(domain_xml(devices=self.BOTH))
        change(connection, "web", "84:10.1", Directive.parse("2"))
        changed = change(connection, "web", "pci_0000_85_10_1", Directive.parse("3"))
        assert changed.changes == (Change("config", "0000:85:10.1", None, "3"),)
        assert ours(domain, CONFIG) == element(
            '<device address="0000:84:10.1" cpuset="2"/><device address="0000:85:10.1" cpuset="3"/>'
        )

    def test_the_mac_is_refused(self, host: Any, connection: Connection) -> None:
        host.defineXML(domain_xml(devices=self.BOTH))
        with pytest.raises(UsageError, match="2 devices of web have the MAC address") as raised:
            change(connection, "web", "52:54:00:0a:0b:0c", AUTO)
        assert "0000:84:10.1" in str(raised.value.hint)
        assert "0000:85:10.1" in str(raised.value.hint)

    def test_what_was_set_by_it_can_be_taken_out(self, host: Any, connection: Connection) -> None:
        metadata = (
            "<v:irqs xmlns:v='urn:virtirq:1'>"
            "<v:device mac='52:54:00:0a:0b:0c' cpuset='4'/></v:irqs>"
        )
        domain = host.defineXML(domain_xml(metadata=metadata, devices=self.BOTH))
        changed = change(connection, "web", "52:54:00:0a:0b:0c", None)
        assert changed.changes == (Change("config", "52:54:00:0a:0b:0c", "4", None),)
        assert ours(domain, CONFIG) is None
