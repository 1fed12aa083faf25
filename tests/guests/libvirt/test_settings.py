"""virtirq's element in a domain's metadata: read, changed and built as values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtirq.guests.libvirt.devices import Selector
from virtirq.guests.libvirt.reading import NAMESPACE, read_domain
from virtirq.guests.libvirt.settings import DeviceSetting, Setting, Settings, read_settings
from virtirq.model import Directive

AUTO, CPUS = Directive.parse("auto"), Directive.parse("2-5,^3")
NIC = Selector("address", "0000:82:00.0")
MAC = Selector("mac", "52:54:00:0a:0b:0c")


def read(inner: str) -> Settings:
    return read_settings(
        read_domain(f"<domain><name>web</name><metadata>{inner}</metadata></domain>")
    )


def irqs(inner: str = "", attributes: str = "") -> str:
    return f"<irqs xmlns='{NAMESPACE}' {attributes}>{inner}</irqs>"


def test_the_text_is_kept_as_it_was_written() -> None:
    found = read(irqs("<device address='82:00.0' cpuset=' 2-5,^3 '/>", "cpuset='auto'"))
    assert found.for_all == Setting(AUTO, "auto")
    assert [each.selector for each in found.devices] == [NIC]
    assert found.devices[0].setting == Setting(CPUS, " 2-5,^3 ")
    assert 'cpuset=" 2-5,^3 "' in found.element()


def test_nothing_is_no_setting() -> None:
    assert not read("")
    assert not read(irqs())
    assert read(irqs("", "cpuset='native'"))
    assert read(irqs("<device mac='52:54:00:0a:0b:0c' cpuset='1'/>"))


@pytest.mark.parametrize(
    ("selector", "known_as", "left"),
    [
        (NIC, (), [MAC, NIC]),
        (NIC, (MAC,), [NIC]),
        (Selector("alias", "ua-x"), (), [NIC, MAC, Selector("alias", "ua-x")]),
    ],
)
def test_a_device_has_one_setting(
    selector: Selector, known_as: tuple[Selector, ...], left: list[Selector]
) -> None:
    before = Settings(devices=tuple(DeviceSetting(each, Setting.of(CPUS)) for each in (NIC, MAC)))
    after = before.with_device(selector, AUTO, known_as)
    assert [each.selector for each in after.devices] == left
    assert after.of_device([selector]) == Setting.of(AUTO)
    assert after.with_device(selector, None).of_device([selector]) is None


def test_all_and_one_are_apart() -> None:
    settings = Settings().with_all(AUTO).with_device(NIC, CPUS)
    assert settings.with_all(None).devices == settings.devices
    assert settings.with_device(NIC, None) == Settings().with_all(AUTO)


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("82:00.0", NIC),
        (" 0000:82:00.0 ", NIC),
        ("52:54:0:A:B:C", MAC),
        ("hostdev0", Selector("alias", "hostdev0")),
        ("ua-82:00", Selector("alias", "ua-82:00")),
    ],
)
def test_what_a_name_is_taken_for(text: str, selector: Selector) -> None:
    assert Selector.guess(text) == selector


def test_another_versions_metadata_is_a_problem_and_no_setting() -> None:
    found = read("<irqs xmlns='urn:virtirq:2' cpuset='auto'/>")
    assert not found
    assert found.problems == ("metadata of urn:virtirq:2 is for another version of virtirq",)


DIRECTIVES = st.sampled_from(
    [Directive.parse(each) for each in ("auto", "native", "emulator", "local", "0", "1-3,8191")]
)
SELECTORS = st.one_of(
    st.builds(lambda bus: Selector("address", f"0000:{bus:02x}:00.0"), st.integers(0, 255)),
    st.builds(lambda n: Selector("mac", f"52:54:00:00:00:{n:02x}"), st.integers(0, 255)),
    st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1).map(
        lambda name: Selector("alias", name)
    ),
)


@given(st.none() | DIRECTIVES, st.dictionaries(SELECTORS, DIRECTIVES, max_size=6))
def test_what_is_built_is_read_again(
    for_all: Directive | None, devices: dict[Selector, Directive]
) -> None:
    settings = Settings().with_all(for_all)
    for selector, directive in devices.items():
        settings = settings.with_device(selector, directive)
    # As libvirt does it: the namespace goes onto the root (virXMLInjectNamespace()).
    found = read(settings.element().replace("<irqs", f"<irqs xmlns='{NAMESPACE}'", 1))
    assert found.problems == ()
    assert found.for_all == settings.for_all
    assert [each[:2] for each in found.devices] == [each[:2] for each in settings.devices]
