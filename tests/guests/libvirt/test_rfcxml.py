"""The RFC's syntax to metadata and back: nothing else in the document may change."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.errors import DirectiveError, DomainXmlError
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.guests.libvirt.rfcxml import decode_document, to_attributes, to_metadata
from virtirq.model import Directive

OURS = "urn:virtirq:1"


def hostdev(bus: str, cpuset: str | None = None, inner: str = "") -> str:
    attribute = "" if cpuset is None else f" cpuset={cpuset}"
    return (
        f"<hostdev mode='subsystem' type=\"pci\"{attribute}><!-- > cpuset='9' -->"
        f"<source><address bus='0x{bus}'/></source>{inner}</hostdev>"
    )


def interface(mac: str, cpuset: str | None = None) -> str:
    attribute = "" if cpuset is None else f" cpuset={cpuset}"
    return f"<interface type='network'{attribute}><mac address='{mac}'/></interface>"


def nvme(bus: str, cpuset: str | None = None) -> str:
    attribute = "" if cpuset is None else f"\n  cpuset={cpuset}"
    return (
        f"<disk type='nvme'{attribute}><source type='pci' namespace='1'>"
        f"<address bus='0x{bus}'/></source></disk>"
    )


def domain(*devices: str, before: str = "", after: str = "") -> str:
    inner = "".join(f"\n    {each}" for each in devices)
    return (
        "<?xml version='1.0'?>\n<!-- cpuset='1' -->\n"
        f"<domain type='kvm'>\n  <name>web</name>{before}"
        f"\n  <devices>{inner}\n  </devices>{after}\n</domain>\n"
    )


def test_the_attributes_become_metadata() -> None:
    moved = to_metadata(
        domain(hostdev("82", "'2-5,^3'"), interface("52:54:0:A:B:C", '"auto"'), nvme("4", "'1'"))
    )
    assert moved.text == domain(
        hostdev("82"),
        interface("52:54:0:A:B:C"),
        nvme("4"),
        before=(
            '\n  <metadata>\n    <virtirq:irqs xmlns:virtirq="urn:virtirq:1">'
            "\n      <virtirq:device address='0000:82:00.0' cpuset='2-5,^3'/>"
            "\n      <virtirq:device mac='52:54:00:0a:0b:0c' cpuset=\"auto\"/>"
            "\n      <virtirq:device address='0000:04:00.0' cpuset='1'/>"
            "\n    </virtirq:irqs>\n  </metadata>"
        ),
    )
    assert [(each.name, str(directive)) for each, directive in moved.settings] == [
        ("0000:82:00.0", "2,4-5"),
        ("52:54:00:0a:0b:0c", "auto"),
        ("0000:04:00.0", "1"),
    ]
    guest = parse_domain(moved.text)
    assert [str(each.directive) for each in guest.devices] == ["2,4-5", "1"]
    assert guest.problems == ()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            "<metadata/>",
            '<metadata>\n    <virtirq:irqs xmlns:virtirq="urn:virtirq:1">'
            "\n      <virtirq:device address='0000:82:00.0' cpuset='7'/>"
            "\n    </virtirq:irqs></metadata>",
        ),
        (
            f"<metadata><irqs xmlns='{OURS}' cpuset='auto'/></metadata>",
            f"<metadata><irqs xmlns='{OURS}' cpuset='auto'>"
            "\n      <device address='0000:82:00.0' cpuset='7'/></irqs></metadata>",
        ),
        (
            f"<metadata><a:irqs xmlns:a='{OURS}'><!-- mine -->\n</a:irqs ></metadata>",
            f"<metadata><a:irqs xmlns:a='{OURS}'><!-- mine -->"
            "\n      <a:device address='0000:82:00.0' cpuset='7'/>\n</a:irqs ></metadata>",
        ),
        (
            f"<metadata><irqs xmlns='{OURS}'>"
            "<device address='82:00.0' cpuset=' 7'/></irqs></metadata>",
            f"<metadata><irqs xmlns='{OURS}'>"
            "<device address='82:00.0' cpuset=' 7'/></irqs></metadata>",
        ),
    ],
)
def test_metadata_that_is_there(metadata: str, expected: str) -> None:
    text = domain(hostdev("82", "'7'"), before=metadata)
    assert to_metadata(text).text == domain(hostdev("82"), before=expected)


def test_a_domain_without_settings_stays_as_it_is() -> None:
    text = domain(hostdev("82"), "<hostdev mode='subsystem' type='usb'/>", before="<metadata/>")
    assert to_metadata(text) == (text, ())
    assert to_attributes(text) == (text, ())


def test_what_names_no_device_stays_in_the_metadata() -> None:
    stale = '<v:device address="0000:99:00.0" cpuset="1"/><v:device mac="x" cpuset="1"/>'
    here = '<v:device alias="ua-nic" cpuset="&#52;-5"/>'
    ours = f"<metadata>\n<v:irqs xmlns:v='{OURS}' cpuset='2'>{{}}</v:irqs>\n</metadata>"
    alias = "<alias name='ua-nic'/>"
    text = domain(hostdev("82", inner=alias), before=ours.format(stale + here))
    moved = to_attributes(text)
    # libvirt has quoted the metadata anew, so the element's own quotes are taken.
    assert moved.text == domain(hostdev("82", "'&#52;-5'", inner=alias), before=ours.format(stale))
    assert [str(directive) for _, directive in moved.settings] == ["4-5"]


@pytest.mark.parametrize(
    "element",
    [
        "<device address='82:00.0' cpuset='sometimes'/>",
        "<device address='82:00.0' cpuset='1' spread='mask'/>",
        "<device address='82:00.0' alias='x' cpuset='1'/>",
        "<device address='82:00.0' cpuset='1'><vector/></device>",
        "<device address='82:00.0'/>",
        "<other address='82:00.0' cpuset='1'/>",
    ],
)
def test_what_is_not_understood_stays_in_the_metadata(element: str) -> None:
    text = domain(
        hostdev("82"), before=f"<metadata><irqs xmlns='{OURS}'>{element}</irqs></metadata>"
    )
    assert to_attributes(text) == (text, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            domain("<hostdev mode='subsystem' type='usb' cpuset='auto'/>"),
            "cpuset on <hostdev type='usb'>: the guest holds no PCI function through it",
        ),
        (
            domain("<interface type='network' cpuset='auto'/>"),
            "<interface type='network'> with a cpuset has no name to know it by",
        ),
        (domain(hostdev("82", "'2-'")), "<hostdev> cpuset: '2-' is not a CPU, a range of CPUs"),
        (
            domain(nvme("4", "'1'"), nvme("4", "'2'")),
            "two elements with different cpusets stand for 0000:04:00.0",
        ),
        (
            domain(
                hostdev("82", "'1'"),
                before=f"<metadata><irqs xmlns='{OURS}'>"
                "<device address='82:00.0' cpuset='2'/></irqs></metadata>",
            ),
            "<hostdev> cpuset 1: the metadata says 2 for the same device",
        ),
        ("<network/>", "the root element is <network>, not <domain>"),
        ("<domain>", "not well-formed XML: no element found"),
        (
            "<!DOCTYPE domain [<!ENTITY a 'b'>]><domain/>",
            "has a document type declaration (<!DOCTYPE>)",
        ),
        (
            f"<domstatus>{domain(hostdev('82', chr(39) + '1' + chr(39))).partition('-->')[2]}"
            "</domstatus>",
            "the root element is <domstatus>, not <domain>",
        ),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises((DomainXmlError, DirectiveError)) as caught:
        to_metadata(text)
    assert str(caught.value).startswith(message)


# Any document: what is moved and moved back is where it was.

QUOTED = st.sampled_from(["'auto'", '"2-5,^3"', "'&#50;'", '"native"', '" 1, 2 "'])
NOISE = st.sampled_from(
    [
        "",
        "\n  <!-- <hostdev cpuset='1'/> -->",
        "<title><![CDATA[<hostdev type='pci' cpuset='1'>]]></title>",
        "\r\n\t<?pi cpuset='1'?>",
        "<q:commandline xmlns:q='urn:q'><q:hostdev cpuset='1' q:cpuset=\"2\"/></q:commandline>",
        "<description>üñï → &lt;&#x27; ''</description>",
    ]
)
FOREIGN = st.sampled_from(
    [
        "",
        "\n  <metadata>\n    <a:b xmlns:a='urn:a' cpuset='1'>ä</a:b>\n  </metadata>",
        "<metadata><!-- kept --><a:b xmlns:a='urn:a'/>\n  <!-- too --></metadata>",
        f"<metadata><irqs xmlns='{OURS}' cpuset='auto'><!-- c --></irqs></metadata>",
        f"<metadata>\n<v:irqs xmlns:v='{OURS}'><v:device address='99:00.0' cpuset='1'/>\n"
        "</v:irqs></metadata>",
    ]
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    kinds = draw(
        st.lists(st.sampled_from(["hostdev", "interface", "nvme"]), min_size=1, max_size=5)
    )
    devices = []
    for number, kind in enumerate(kinds):
        cpuset = draw(st.none() | QUOTED)
        if kind == "interface":
            element = interface(f"52:54:00:00:00:{number:02x}", cpuset)
        elif kind == "nvme":
            element = nvme(f"{number + 1:x}", cpuset).replace("\n  cpuset", " cpuset")
        else:
            element = hostdev(f"{number + 1:x}", cpuset)
        devices.append(draw(NOISE) + element)
    return domain(*devices, before=draw(FOREIGN) + draw(NOISE), after=draw(NOISE))


@given(documents())
def test_the_round_trip_gives_the_same_text(text: str) -> None:
    moved = to_metadata(text)
    assert "cpuset" not in {
        name
        for each in ElementTree.fromstring(moved.text).iterfind("devices/*")
        for name in each.attrib
    }
    back = to_attributes(moved.text)
    assert back.text == text
    assert back.settings == moved.settings


@given(documents())
def test_the_setting_means_the_same_in_both_places(text: str) -> None:
    before, after = parse_domain(text), parse_domain(to_metadata(text).text)
    assert [each.directive for each in before.devices] == [each.directive for each in after.devices]


@given(st.text(alphabet="<>/='\" abhostdevcpu", max_size=80) | documents().map(lambda t: t[:-20]))
def test_anything_else_is_one_clear_error(text: str) -> None:
    for work in (to_metadata, to_attributes):
        with pytest.raises(DomainXmlError):
            work(text)


def test_a_name_that_holds_quotes_and_brackets() -> None:
    """An alias may hold every character that is printed."""
    alias = """ua-it's<"&>"""
    text = (
        "<domain><name>g</name><devices><interface type='network' cpuset='2'>"
        """<alias name="ua-it's&lt;&quot;&amp;>"/></interface></devices></domain>"""
    )
    moved = to_metadata(text)
    ((selector, _),) = moved.settings
    assert selector.name == alias
    back = to_attributes(moved.text)
    assert back.settings == moved.settings
    assert "cpuset='2'" in back.text


@pytest.mark.parametrize("uri", ["billing department", "urn:virtirq:1 irqs", "x\ty"])
def test_namespaces_of_others_may_hold_blanks(uri: str) -> None:
    text = (
        f"<domain><name>g</name><metadata><b:account xmlns:b='{uri}'/></metadata><devices>"
        "<hostdev mode='subsystem' type='pci' cpuset='2'><source><address bus='0x82'/></source>"
        "</hostdev></devices></domain>"
    )
    moved = to_metadata(text)
    assert f"xmlns:b='{uri}'" in moved.text
    assert parse_domain(moved.text).devices[0].directive == Directive.parse("2")
    assert to_attributes(moved.text).settings == moved.settings


# Bytes to text.


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"<a/>", "<a/>"),
        ("\ufeff<a>ü</a>".encode(), "<a>ü</a>"),
        ("<a>ü</a>".encode("utf-16"), "<a>ü</a>"),
        (
            "<?xml version='1.0' encoding='ISO-8859-1' standalone='yes'?>\n<a>ü</a>".encode(
                "latin-1"
            ),
            "<?xml version='1.0' standalone='yes'?>\n<a>ü</a>",
        ),
        (
            '<?xml version="1.0" encoding="UTF-8"?><a>ü</a>'.encode(),
            '<?xml version="1.0"?><a>ü</a>',
        ),
        (
            '<?xml version="1.0" encoding="utf-16"?><a>ü</a>'.encode("utf-16"),
            '<?xml version="1.0"?><a>ü</a>',
        ),
    ],
)
def test_decoding(data: bytes, text: str) -> None:
    assert decode_document(data) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<a>\xff</a>", "not utf-8 text: invalid start byte"),
        (b"<?xml version='1.0' encoding='klingon'?><a/>", "its encoding 'klingon' is not known"),
    ],
)
def test_bytes_that_are_no_text(data: bytes, message: str) -> None:
    with pytest.raises(DomainXmlError) as caught:
        decode_document(data)
    assert str(caught.value) == message


MAC = "00:11:22:33:44:55"


def vf(slot: int, cpuset: str | None = None, inner: str = "") -> str:
    """Of a bond: both of its VFs have one MAC address."""
    attribute = "" if cpuset is None else f" cpuset='{cpuset}'"
    return (
        f"<interface type='hostdev'{attribute}><mac address='{MAC}'/>"
        f"<source><address type='pci' slot='{slot}'/></source>{inner}</interface>"
    )


def test_two_of_one_mac_are_told_apart() -> None:
    text = domain(vf(7, "4"), vf(9, "5"))
    moved = to_metadata(text)
    assert [each.name for each, _ in moved.settings] == ["0000:00:07.0", "0000:00:09.0"]
    assert [str(each.directive) for each in parse_domain(moved.text).devices] == ["4", "5"]
    assert to_attributes(moved.text).text == text


def test_one_of_two_of_one_mac() -> None:
    text = domain(vf(7), vf(9, "5"))
    moved = to_metadata(text)
    assert parse_domain(moved.text).devices[0].directive is None
    assert to_attributes(moved.text).text == text


def test_of_one_mac_with_names_of_their_own() -> None:
    alias = "<alias name='ua-{}'/>".format
    text = domain(vf(7, "4", alias("a")), vf(9, "5", alias("b")))
    moved = to_metadata(text)
    assert [each.name for each, _ in moved.settings] == ["ua-a", "ua-b"]
    assert to_attributes(moved.text).text == text


def test_two_pooled_of_one_mac_have_no_name() -> None:
    with pytest.raises(DomainXmlError, match="has no name to know it by"):
        to_metadata(domain(interface(MAC, "'4'"), interface(MAC, "'5'")))


def test_a_setting_by_a_mac_that_two_have_is_for_those_without_their_own() -> None:
    """Such metadata may be there from before the second was given that MAC address."""
    ours = (
        f"<metadata><v:irqs xmlns:v='{OURS}'><v:device mac='{MAC}' cpuset='4'/>"
        "<v:device address='0000:00:09.0' cpuset='5'/></v:irqs></metadata>"
    )
    guest = parse_domain(domain(vf(7), vf(9), before=ours))
    assert [str(each.directive) for each in guest.devices] == ["4", "5"]
    assert guest.problems == ()
    back = to_attributes(domain(vf(7), vf(9), before=ours)).text
    assert back == domain(vf(7, "4"), vf(9, "5"))


@pytest.mark.parametrize("cpusets", [("4", "4"), ("4", None), (None, "4")])
def test_two_namespaces_of_one_controller_both_get_it_back(cpusets: tuple[str | None, ...]) -> None:
    both = [nvme("4", "'4'"), nvme("4", "'4'")]
    text = domain(*(nvme("4", each and f"'{each}'") for each in cpusets))
    moved = to_metadata(text)
    assert [each.name for each, _ in moved.settings] == ["0000:04:00.0"]
    back = to_attributes(moved.text).text
    assert back.count("cpuset='4'") == 2
    assert to_metadata(back).text == moved.text
    assert to_metadata(domain(*both)).text == moved.text
