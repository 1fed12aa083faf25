"""Reading: XML text to a tree of the elements that mean something here.

Tables of rules name them. The reader keeps those and forgets the rest while it reads, so hostile
input costs little, and a recording (which keeps what `DOMAIN` names) cannot let through what no
reader reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from virtirq.errors import DomainXmlError
from virtirq.guests.libvirt.values import SHOWN
from virtirq.values import dataclass, field, pattern

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

NAMESPACE: Final = "urn:virtirq:1"
"""XML namespace of virtirq's settings in a domain's ``<metadata>``."""

OURS: Final = pattern(r"\{(urn:virtirq:[0-9]{1,9})\}(.*)", re.ASCII)
"""A tag in a namespace of virtirq, this version's or another's."""

NOVA: Final = pattern(r"\{http://openstack\.org/xmlns/libvirt/nova/1\.[0-9]{1,4}\}(.*)", re.ASCII)
"""A tag of what Nova's libvirt driver writes (nova/virt/libvirt/config.py, NOVA_NS)."""

QEMU: Final = "{http://libvirt.org/schemas/domain/qemu/1.0}"
"""Before a tag in the namespace of libvirt's QEMU driver (src/qemu/qemu_domain.c)."""

_MAX_TEXT: Final = 16 << 20
_MAX_ELEMENTS: Final = 200_000
# libxml2 refuses deeper documents to libvirt too (parserInternals.h, xmlParserMaxDepth).
_MAX_DEPTH: Final = 256
_MAX_CONTENT: Final = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """What is kept of an element: attributes, child elements, and whether its text is."""

    attributes: frozenset[str] = frozenset()
    children: Mapping[str, Rule] = field(default_factory=dict)
    text: bool = False

    def child(self, tag: str) -> Rule | None:
        return self.children.get(tag)

    def kept(self, attributes: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in attributes.items() if name in self.attributes}


class _OurRule(Rule):
    """An element of virtirq's namespace: what is unknown there is kept by name, to be told."""

    def child(self, tag: str) -> Rule | None:
        return self.children.get("*") if tag.startswith(f"{{{NAMESPACE}}}") else None

    def kept(self, attributes: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value if name in self.attributes else ""
            for name, value in attributes.items()
            if not name.startswith("{") or OURS.match(name)
        }


class _NovaRule(Rule):
    """An element of OpenStack Nova's namespace."""

    def child(self, tag: str) -> Rule | None:
        nova = NOVA.fullmatch(tag)
        return None if nova is None else self.children.get(nova[1])


class _MetadataRule(Rule):
    """``<metadata>``: other tools' elements are not kept, but for Nova's flavor."""

    def child(self, tag: str) -> Rule | None:
        ours = OURS.fullmatch(tag)
        if ours is not None:
            return self.children["irqs" if ours[1] == NAMESPACE else "other version"]
        nova = NOVA.fullmatch(tag)
        return self.children["nova"] if nova is not None and nova[1] == "instance" else None


def _rule(attributes: str = "", /, *, text: bool = False, **children: Rule) -> Rule:
    return Rule(frozenset(attributes.split()), children, text)


_PCI: Final = _rule("type domain bus slot function")
_SOURCE: Final = _rule(address=_PCI, vendor=_rule())
_ACTUAL: Final = _rule("type", source=_SOURCE)
# What a disk stands on or is copied to; backing stores nest.
_STORE_PARTS: Final[dict[str, Rule]] = {}
_STORE: Final = Rule(frozenset({"type"}), _STORE_PARTS)
_STORE_PARTS.update(source=_rule(address=_PCI, dataStore=_STORE), backingStore=_STORE)
_IRQS: Final = _OurRule(
    frozenset({"cpuset"}),
    {"*": _OurRule(frozenset({"cpuset", "address", "alias", "mac"}), {"*": _rule()})},
)
_EXTRA_SPEC: Final = Rule(frozenset({"name"}), text=True)
_EXTRA_SPECS: Final = _NovaRule(children={"extraSpec": _EXTRA_SPEC})
_FLAVOR: Final = _NovaRule(children={"extraSpecs": _EXTRA_SPECS})
_NOVA: Final = _NovaRule(children={"flavor": _FLAVOR})
_ARGUMENTS: Final = Rule(children={f"{QEMU}arg": Rule(frozenset({"value"}))})
_PROPERTY: Final = Rule(frozenset({"name", "type", "value"}))
_FRONTEND: Final = Rule(children={f"{QEMU}property": _PROPERTY})
_OVERRIDDEN: Final = Rule(frozenset({"alias"}), {f"{QEMU}frontend": _FRONTEND})
_OVERRIDE: Final = Rule(children={f"{QEMU}device": _OVERRIDDEN})
_ELEMENTS: Final = _rule(
    "type",
    name=_rule(text=True),
    uuid=_rule(text=True),
    metadata=_MetadataRule(frozenset(), {"irqs": _IRQS, "other version": _rule(), "nova": _NOVA}),
    vcpu=_rule("placement cpuset current", text=True),
    vcpus=_rule(vcpu=_rule("id enabled")),
    iothreads=_rule(text=True),
    iothreadids=_rule(iothread=_rule("id")),
    cputune=_rule(
        vcpupin=_rule("vcpu cpuset"),
        emulatorpin=_rule("cpuset"),
        vcpusched=_rule("vcpus scheduler"),
        iothreadpin=_rule("iothread cpuset"),
    ),
    numatune=_rule(memory=_rule("placement nodeset"), memnode=_rule("nodeset")),
    seclabel=_rule("model", label=_rule(text=True)),
    cpu=_rule(topology=_rule("sockets dies clusters cores threads")),
    devices=_rule(
        hostdev=_rule(
            "mode type cpuset", source=_SOURCE, alias=_rule("name"), address=_rule("type")
        ),
        interface=_rule(
            "type cpuset",
            mac=_rule("address"),
            source=_SOURCE,
            actual=_ACTUAL,
            alias=_rule("name"),
            address=_rule("type"),
        ),
        disk=Rule(
            frozenset({"type", "cpuset"}),
            {**_STORE_PARTS, "mirror": _STORE, "alias": _rule("name")},
        ),
    ),
)
DOMAIN: Final = Rule(
    _ELEMENTS.attributes,
    {
        **_ELEMENTS.children,
        f"{QEMU}commandline": _ARGUMENTS,
        f"{QEMU}override": _OVERRIDE,
    },
)
_PLACED: Final = _rule("mode type", source=_SOURCE, address=_PCI, actual=_ACTUAL)
_MACHINE: Final = _rule(
    os=_rule("firmware", type=_rule("arch machine"), loader=_rule("type")),
    memory=_rule("unit", text=True),
    seclabel=_rule("model relabel"),
    devices=_rule(
        controller=_rule("type index model", target=_rule("busNr"), address=_PCI),
        hostdev=_PLACED,
        interface=_PLACED,
        iommu=_rule("model"),
        memory=_rule(target=_rule(size=_rule("unit", text=True))),
    ),
)
HARDWARE: Final = Rule(children={**_MACHINE.children, f"{QEMU}commandline": _ARGUMENTS})
"""What a running guest's machine is made of: it is not recorded."""


class _Keeper:
    """Target of the XML parser: keeps what the rules name, refuses what is too much."""

    def __init__(self, element: type[Element], document: Rule) -> None:
        self._element = element
        self._document = document
        self._rules: list[Rule | None] = [document]
        self._open: list[Element] = [element("document")]
        self._elements = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        if self._elements > _MAX_ELEMENTS:
            raise DomainXmlError(f"more than {_MAX_ELEMENTS} elements")
        if len(self._rules) > _MAX_DEPTH:
            raise DomainXmlError(f"elements are more than {_MAX_DEPTH} deep")
        above = self._rules[-1]
        rule = above and above.child(tag)
        if rule is not None:
            kept = self._element(tag, rule.kept(attributes))
            self._open[-1].append(kept)
            self._open.append(kept)
        elif above is self._document:
            raise DomainXmlError(
                f"the root element is <{tag[:SHOWN]}>, not <domain>",
                hint="give what `virsh dumpxml GUEST` prints",
            )
        self._rules.append(rule)

    def end(self, _tag: str) -> None:
        if self._rules.pop() is not None:
            self._open.pop()

    def data(self, text: str) -> None:
        rule = self._rules[-1]
        if rule is None or not rule.text:
            return
        element = self._open[-1]
        element.text = (element.text or "") + text
        if len(element.text) > _MAX_CONTENT and element.tag.startswith("{"):
            element.text = element.text[:_MAX_CONTENT]  # another tool's must not hide the guest
        elif len(element.text) > _MAX_CONTENT:
            raise DomainXmlError(f"<{element.tag}> holds more than {_MAX_CONTENT} characters")

    def close(self) -> Element:
        return self._open[0]


def read_domain(text: str, rules: Rule = DOMAIN) -> Element:
    """The <domain> element with what the rules keep of it."""
    if len(text) > _MAX_TEXT:
        raise DomainXmlError(f"{len(text)} characters: more than {_MAX_TEXT}")
    # Imported here: most runs of the command read no XML, and this takes as long as all else.
    from xml.etree.ElementTree import Element, ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import DefusedXMLParser

    document_rule = _rule(domain=rules, domstatus=_rule(domain=rules))
    parser = DefusedXMLParser(target=_Keeper(Element, document_rule), forbid_dtd=True)
    try:
        parser.feed(text)
        document: Element = parser.close()
    except ParseError as error:
        raise DomainXmlError(f"not well-formed XML: {error.msg}") from error
    except DefusedXmlException as error:
        raise DomainXmlError(
            "has a document type declaration (<!DOCTYPE>)",
            hint="libvirt writes none; take it out",
        ) from error
    except UnicodeEncodeError as error:
        raise DomainXmlError("not well-formed XML: a lone surrogate") from error
    domain = document.find("domain")
    if domain is None:
        domain = document.find("domstatus/domain")
    if domain is None:
        raise DomainXmlError("<domstatus> has no <domain>")
    return domain
