"""virtirq's own settings in a domain's ``<metadata>``: read, matched to devices, changed, built.

What libvirt keeps is one element::

    <virtirq:irqs xmlns:virtirq="urn:virtirq:1" cpuset="auto">
      <virtirq:device address="0000:82:00.0" cpuset="2-5,^3"/>
      <virtirq:device mac="52:54:00:0a:0b:0c" cpuset="native"/>
    </virtirq:irqs>

`cpuset` on <irqs> is for all of the guest's devices, on <device> for the one that is named by
``address``, ``alias`` or ``mac``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from virtirq.errors import InputError
from virtirq.guests.libvirt.devices import Holder, Selector, shared_macs
from virtirq.guests.libvirt.reading import NAMESPACE, NOVA
from virtirq.guests.libvirt.values import local_name, shown
from virtirq.model import Directive, PciAddress
from virtirq.values import dataclass, replace

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

SELECTORS: Final = {"address": "a PCI address", "alias": "an alias", "mac": "a MAC address"}


class Setting(NamedTuple):
    """A directive and the text that it was written as."""

    directive: Directive
    text: str

    @classmethod
    def of(cls, directive: Directive) -> Setting:
        return cls(directive, str(directive))


class DeviceSetting(NamedTuple):
    """The setting of one device; `label` is how the metadata names it."""

    selector: Selector
    setting: Setting
    label: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the metadata says. `problems`: what of it could not be understood, one line each."""

    for_all: Setting | None = None
    devices: tuple[DeviceSetting, ...] = ()
    problems: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is any setting."""
        return self.for_all is not None or bool(self.devices)

    def with_all(self, directive: Directive | None) -> Settings:
        """The setting for all devices replaced, or taken out."""
        return replace(self, for_all=None if directive is None else Setting.of(directive))

    def with_device(
        self, selector: Selector, directive: Directive | None, known_as: Iterable[Selector] = ()
    ) -> Settings:
        """One device's setting replaced, or taken out; `known_as` are the device's other names."""
        names = {selector, *known_as}
        kept = [each for each in self.devices if each.selector not in names]
        if directive is not None:
            kept.append(DeviceSetting(selector, Setting.of(directive)))
        return replace(self, devices=tuple(kept))

    def of_device(self, names: Iterable[Selector]) -> Setting | None:
        """The first setting that is under one of these names."""
        wanted = set(names)
        return next((each.setting for each in self.devices if each.selector in wanted), None)

    def element(self) -> str:
        """The element for virDomainSetMetadata(), which puts the namespace in by itself.

        libvirt: src/util/virxml.c, virXMLInjectNamespace().
        """
        from xml.sax.saxutils import quoteattr  # it brings http and email along

        for_all = "" if self.for_all is None else f" cpuset={quoteattr(self.for_all.text)}"
        inner = "".join(
            f"<device {each.selector.kind}={quoteattr(each.selector.name)}"
            f" cpuset={quoteattr(each.setting.text)}/>"
            for each in self.devices
        )
        return f"<irqs{for_all}>{inner}</irqs>" if inner else f"<irqs{for_all}/>"


def read_settings(domain: Element) -> Settings:
    """The settings of a <domain>; never raises: another tool may have written them."""
    problems: list[str] = []
    known = _ours(domain, problems)
    if known is None:
        return Settings(problems=tuple(problems))
    _tell_unknown(known, ("cpuset",), "device", problems)
    for_all = _setting(known, "<irqs>", problems) if "cpuset" in known.attrib else None
    devices = tuple(_devices(known, problems))
    return Settings(for_all, devices, tuple(problems))


def _ours(domain: Element, problems: list[str]) -> Element | None:
    metadata = domain.find("metadata")
    known = None
    for element in metadata if metadata is not None else ():
        if not element.tag.startswith(f"{{{NAMESPACE}}}"):
            version = element.tag[1:].partition("}")[0]
            if not NOVA.match(element.tag):
                problems.append(f"metadata of {version} is for another version of virtirq")
        elif local_name(element.tag) != "irqs":
            problems.append(f"metadata: <{local_name(element.tag)}> is not known")
        elif known is not None:
            problems.append("metadata: <irqs> is there twice: the first is used")
        else:
            known = element
    return known


def _devices(irqs: Element, problems: list[str]) -> Iterator[DeviceSetting]:
    seen: set[Selector] = set()
    for element in irqs:
        if local_name(element.tag) != "device":
            continue
        _tell_unknown(element, ("cpuset", *SELECTORS), None, problems)
        given = [kind for kind in SELECTORS if kind in element.attrib]
        if len(given) != 1:
            problems.append("metadata: <device> needs one of address, alias and mac")
            continue
        text = element.get(given[0], "")
        label = f"<device {given[0]}={shown(text)}>"
        setting = _setting(element, label, problems)
        selector = Selector.parse(given[0], text)
        if selector is None:
            problems.append(f"metadata: {label}: that is not {SELECTORS[given[0]]}")
        elif selector in seen:
            problems.append(f"metadata: {label} is there twice: the first is used")
        elif setting is not None:
            seen.add(selector)
            yield DeviceSetting(selector, setting, label)


def _setting(element: Element, label: str, problems: list[str]) -> Setting | None:
    text = element.get("cpuset")
    if text is None:
        problems.append(f"metadata: {label} has no cpuset")
        return None
    try:
        return Setting(Directive.parse(text), text)
    except InputError as error:
        problems.append(f"metadata: {label}: {error}")
        return None


def _tell_unknown(
    element: Element, attributes: tuple[str, ...], child: str | None, problems: list[str]
) -> None:
    label = f"metadata: <{local_name(element.tag)}>"
    problems += [
        f"{label} has an attribute that is not known: {shown(local_name(name))}"
        for name in element.attrib
        if name not in attributes
    ]
    problems += [
        f"{label} has an element that is not known: <{local_name(each.tag)}>"
        for each in element
        if local_name(each.tag) != child
    ]


def matched(
    settings: Settings, held: Iterable[Holder], problems: list[str]
) -> Mapping[PciAddress, Directive]:
    """The directive of each PCI function that a setting names; the first setting wins.

    One by a MAC address that several interfaces have is for those that have none of their own.
    """
    held = tuple(held)
    names, shared = _names(held), shared_macs(held)
    found: dict[PciAddress, Directive] = {}
    for selector, setting, label in sorted(
        settings.devices, key=lambda each: _names_several(each.selector, shared)
    ):
        if selector not in names:
            problems.append(f"metadata: {label}: the guest holds no such device")
            continue
        problems += [
            f"metadata: {label}: {found[address]} is set for {address} already"
            for address in names[selector]
            if found.get(address, setting.directive) != setting.directive
            and not _names_several(selector, shared)
        ]
        for address in names[selector]:
            found.setdefault(address, setting.directive)
    return found


def _names_several(selector: Selector, shared: Collection[str]) -> bool:
    return selector.kind == "mac" and selector.name in shared


def _names(held: Iterable[Holder]) -> dict[Selector, dict[PciAddress, None]]:
    """The functions that each name means: an alias of a disk may stand for several.

    An interface that has no function yet, as its network gives it one at start, has a name all
    the same.
    """
    names: dict[Selector, dict[PciAddress, None]] = {}
    for each in held:
        if each.pooled or each.addresses:
            for selector in each.selectors:
                them = each.addresses
                if selector.kind == "address":
                    them = tuple(a for a in them if str(a) == selector.name)
                names.setdefault(selector, {}).update(dict.fromkeys(them))
    return names
