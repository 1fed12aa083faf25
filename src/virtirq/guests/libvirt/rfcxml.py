"""The RFC's syntax, ``<hostdev cpuset='…'>``, to and from virtirq's metadata, as text.

libvirt drops attributes that it does not know, so `to_metadata` moves them into ``<metadata>``
before a domain is defined, and `to_attributes` moves them back for people to read. Both cut and
paste by the positions that expat tells: whatever else is in the document (comments, CDATA, white
space, quoting, other people's namespaces) stays as it is, character for character.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from virtirq.errors import DirectiveError, DomainXmlError
from virtirq.guests.libvirt.devices import Holder, Selector, holders, own_names, shared_macs
from virtirq.guests.libvirt.reading import NAMESPACE, read_domain
from virtirq.guests.libvirt.settings import SELECTORS
from virtirq.model import Directive
from virtirq.values import dataclass, field, pattern

if TYPE_CHECKING:
    from xml.parsers.expat import XMLParserType

_HOLDERS: Final = ("hostdev", "interface", "disk")
_OF: Final = "\f"
"""Between a namespace and a name: no document can hold it, and expat refuses one that does."""
_IRQS: Final = f"{NAMESPACE}{_OF}irqs"
_DEVICE: Final = f"{NAMESPACE}{_OF}device"
_ATTRIBUTE: Final = pattern(rb"""(\s+)([^\s=]+)\s*=\s*("[^"]*"|'[^']*')""")
_NAME_END: Final = pattern(rb"[\s/>]")
_DECLARATION: Final = pattern(
    r"""(<\?xml\s+version\s*=\s*["'][^"']*["'])(\s+encoding\s*=\s*["']([^"']*)["'])""", re.ASCII
)
_BOMS: Final = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_BLANK: Final = b" \t\r\n"


class Moved(NamedTuple):
    """A document with its settings moved, and what was moved: name of the device, directive."""

    text: str
    settings: tuple[tuple[Selector, Directive], ...]


def decode_document(data: bytes) -> str:
    """The text of an XML document, by byte order mark, declaration, or else as UTF-8.

    The declared encoding is taken out, as it no longer holds. Raises DomainXmlError.
    """
    encoding = next((name for mark, name in _BOMS.items() if data.startswith(mark)), None)
    if encoding is None:
        found = _DECLARATION.match(data[:200].decode("latin-1"))
        encoding = found[3] if found else "utf-8"
    try:
        text = data.decode(encoding)
    except LookupError as error:
        raise DomainXmlError(f"its encoding {encoding[:40]!r} is not known") from error
    except UnicodeDecodeError as error:
        raise DomainXmlError(f"not {encoding.removesuffix('-sig')} text: {error.reason}") from error
    return _DECLARATION.sub(r"\1", text, count=1) if _DECLARATION.match(text) else text


def to_metadata(text: str) -> Moved:
    """The domain XML with each ``cpuset`` of a device moved into virtirq's metadata.

    Raises DomainXmlError for what is no domain, for a cpuset on an element that gives the guest
    no PCI function, and for one that contradicts the metadata.
    """
    data, page = _read(text)
    edits: list[_Edit] = []
    added: dict[Selector, _Raw] = {}
    moved: dict[Selector, Directive] = {}
    shared = shared_macs(page.held)
    for element, holder in zip(page.holders, page.held, strict=True):
        raw = element.attributes.get(b"cpuset")
        if raw is None or holder.directive is None:
            continue
        for selector in _lasting_names(holder, shared):
            names = own_names(holder, shared) if len(holder.addresses) < 2 else (selector,)
            there = next((each for each in page.devices if each.selector in names), None)
            if there is not None and there.directive != holder.directive:
                raise DomainXmlError(
                    f"<{holder.tag}> cpuset {holder.directive}: the metadata says"
                    f" {there.directive} for the same device",
                    hint="take one of the two out",
                )
            if moved.setdefault(selector, holder.directive) != holder.directive:
                raise DomainXmlError(
                    f"two elements with different cpusets stand for {selector.name}",
                    hint="take one of the two out",
                )
            if there is None:
                added.setdefault(selector, raw)
        edits.append(_Edit(raw.start, raw.end))
    if added:
        edits.append(_insertion(data, page, added))
    return Moved(_apply(data, edits), tuple(moved.items()))


def to_attributes(text: str) -> Moved:
    """The inverse of `to_metadata`. What names no device of the domain stays in the metadata."""
    data, page = _read(text)
    edits: list[_Edit] = []
    gone: list[_DeviceEntry] = []
    shared = shared_macs(page.held)
    for element, holder in zip(page.holders, page.held, strict=True):
        # Several elements may say the same: namespaces of one NVMe controller.
        entries = _entries_of(holder, page.devices, shared)
        if not entries or b"cpuset" in element.attributes:
            continue
        gone += [each for each in entries if each not in gone]
        at = element.attributes_end
        edits.append(_Edit(at, at, b" cpuset=" + _as_written(entries[0], element)))
    edits += [_Edit(_before(data, each.start), each.end) for each in gone]
    moved = tuple((each.selector, each.directive) for each in gone)
    return Moved(_without_empty(_apply(data, edits)) if gone else text, moved)


# Positions in the document.


class _Raw(NamedTuple):
    """An attribute in the document: with the white space before it; its value with quotes."""

    start: int
    end: int
    value: bytes


@dataclass(slots=True)
class _Element:
    """A start tag and, once it is known, the end of the element."""

    start: int
    attributes_end: int
    tag_end: int
    empty: bool
    attributes: Mapping[bytes, _Raw]
    values: Mapping[str, str]
    name: bytes
    content_end: int = 0
    end: int = 0


class _DeviceEntry(NamedTuple):
    """A <device> of virtirq's metadata that is understood."""

    selector: Selector
    directive: Directive
    value: bytes
    quote: bytes
    start: int
    end: int


class _Edit(NamedTuple):
    """Replace the bytes from `start` to `end`."""

    start: int
    end: int
    text: bytes = b""


@dataclass(slots=True)
class _Page:
    """The places that matter in a document."""

    held: tuple[Holder, ...] = ()
    holders: list[_Element] = field(default_factory=list)
    devices: list[_DeviceEntry] = field(default_factory=list)
    first: _Element | None = None
    metadata: _Element | None = None
    irqs: _Element | None = None


def _read(text: str) -> tuple[bytes, _Page]:
    # The reader refuses what is malformed, too large or not a domain, so that what follows
    # walks well-formed XML without a DTD.
    domain = read_domain(text)
    data = text.encode("utf-8")
    page = _Walk(data).page
    page.held = holders(domain)
    if len(page.held) != len(page.holders):
        raise DomainXmlError("the root element is <domstatus>, not <domain>")
    return data, page


class _Walk:
    """One pass of expat over the document."""

    def __init__(self, data: bytes) -> None:
        from xml.parsers import expat

        self.page = _Page()
        self._data = data
        self._path: list[str] = []
        self._open: list[_Element] = []
        # The text is UTF-8 by now, whatever its declaration says.
        self._parser: XMLParserType = expat.ParserCreate("utf-8", namespace_separator=_OF)
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.Parse(data, True)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        element = _scan(self._data, self._parser.CurrentByteIndex, attributes)
        self._path.append(name)
        self._open.append(element)
        page = self.page
        match self._path:
            case ["domain", "devices", tag] if tag in _HOLDERS:
                page.holders.append(element)
            case ["domain", "metadata"] if page.metadata is None:
                page.metadata = element
            case ["domain", "metadata", name] if name == _IRQS and page.irqs is None:
                page.irqs = element
        if len(self._path) == 2 and page.first is None:
            page.first = element

    def _end(self, name: str) -> None:
        element = self._open.pop()
        if element.empty:
            element.content_end = element.end = element.tag_end
        else:
            element.content_end = self._parser.CurrentByteIndex
            element.end = self._data.index(b">", element.content_end) + 1
        if self._path[:2] == ["domain", "metadata"] and self._path[2:] == [_IRQS, _DEVICE]:
            self._device(element)
        self._path.pop()

    def _device(self, element: _Element) -> None:
        irqs = self._open[-1]
        if irqs is not self.page.irqs or not element.attributes.keys() <= _KNOWN:
            return
        given = [kind for kind in SELECTORS if kind.encode() in element.attributes]
        value = element.attributes.get(b"cpuset")
        if len(given) != 1 or value is None:
            return
        quote = element.attributes[given[0].encode()].value[:1]
        selector = Selector.parse(given[0], element.values[given[0]])
        try:
            directive = Directive.parse(element.values["cpuset"])
        except DirectiveError:
            return
        seen = any(each.selector == selector for each in self.page.devices)
        inside = self._data[element.tag_end : element.content_end].strip(_BLANK)
        if selector is not None and not seen and not inside:
            self.page.devices.append(
                _DeviceEntry(selector, directive, value.value, quote, element.start, element.end)
            )


_KNOWN: Final = frozenset({b"cpuset", *(kind.encode() for kind in SELECTORS)})


def _scan(data: bytes, start: int, values: Mapping[str, str]) -> _Element:
    """The start tag at `start`, which expat has found to be well-formed."""
    found = {}
    after = _NAME_END.search(data, start)
    name_end = at = after.start() if after else len(data)
    while attribute := _ATTRIBUTE.match(data, at):
        found[attribute[2]] = _Raw(attribute.start(), attribute.end(), attribute[3])
        at = attribute.end()
    end = data.index(b">", at) + 1
    empty = data[end - 2 : end] == b"/>"
    return _Element(start, at, end, empty, found, values, data[start + 1 : name_end])


# Names.


def _lasting_names(holder: Holder, shared: Collection[str]) -> Iterator[Selector]:
    """The names under which a device's setting outlasts restarts of the guest.

    `shared` are MAC addresses that are no name.
    """
    if holder.tag == "interface" and (holder.addresses or holder.pooled):
        # The VF that a network gives may be another one each time.
        if holder.mac is not None and holder.mac not in shared:
            yield Selector("mac", holder.mac)
            return
        if holder.alias is not None and holder.alias.startswith("ua-"):
            yield Selector("alias", holder.alias)
            return
        if holder.pooled:
            raise DomainXmlError(
                "<interface type='network'> with a cpuset has no name to know it by",
                hint="give it a <mac address='…'/> of its own or an <alias name='ua-…'/>",
            )
    if not holder.addresses:
        raise DomainXmlError(
            f"cpuset on <{holder.tag} type={holder.kind[:40]!r}>:"
            " the guest holds no PCI function through it"
        )
    for address in dict.fromkeys(holder.addresses):
        yield Selector("address", str(address))


def _entries_of(
    holder: Holder, entries: list[_DeviceEntry], shared: Collection[str]
) -> list[_DeviceEntry]:
    """The settings that one attribute on this element would say; empty when none would."""
    named = {each.selector: each for each in entries}
    if not holder.addresses and not holder.pooled:
        return []
    addresses = [Selector("address", str(each)) for each in dict.fromkeys(holder.addresses)]
    if len(addresses) == 1 or not addresses:
        own, all_ = own_names(holder, shared), holder.selectors
        # What is said of this device alone counts before what is said of several.
        found = [each for each in entries if each.selector in own]
        found += [each for each in entries if each.selector in all_]
        return found[:1]
    found = [named[each] for each in addresses if each in named]
    if len(found) == len(addresses) and len({each.value[1:-1] for each in found}) == 1:
        return found
    return []


# Cutting and pasting.


def _as_written(entry: _DeviceEntry, element: _Element) -> bytes:
    """The value in the quotes it had, or in the element's once libvirt has put in its own.

    `to_metadata` quotes names singly; libvirt prints metadata by libxml2, which quotes doubly,
    and devices by itself, singly.
    """
    others = [raw.value[:1] for raw in element.attributes.values()]
    if entry.quote == b"'" or not others:
        return entry.value
    return others[0] + entry.value[1:-1] + others[0]


def _insertion(data: bytes, page: _Page, added: Mapping[Selector, _Raw]) -> _Edit:
    """Where the new <device> elements go, with the elements around them that are missing."""
    irqs, metadata = page.irqs, page.metadata
    prefix = b"virtirq:" if irqs is None else irqs.name.rpartition(b":")[0]
    if irqs is not None and prefix:
        prefix += b":"
    devices = b"".join(
        b"\n      <%sdevice %s=%s cpuset=%s/>"
        % (prefix, selector.kind.encode(), _quoted(selector.name), raw.value)
        for selector, raw in added.items()
    )
    if irqs is not None:
        return _inside(data, irqs, devices)
    ours = b'\n    <virtirq:irqs xmlns:virtirq="%s">%s\n    </virtirq:irqs>' % (
        NAMESPACE.encode(),
        devices,
    )
    if metadata is not None:
        return _inside(data, metadata, ours)
    at = page.first.end if page.first is not None else 0  # a device was there, so there is one
    return _Edit(at, at, b"\n  <metadata>" + ours + b"\n  </metadata>")


def _inside(data: bytes, element: _Element, text: bytes) -> _Edit:
    """`text` as the last thing inside the element, before the white space at its end."""
    if element.empty:
        start = element.attributes_end
        return _Edit(start, element.tag_end, b">" + text + b"</" + element.name + b">")
    content = data[element.tag_end : element.content_end]
    at = element.tag_end + len(content.rstrip(_BLANK))
    return _Edit(at, at, text)


def _without_empty(text: str) -> str:
    """The document without virtirq's element when it says nothing, and <metadata> likewise."""
    data, page = _read(text)
    irqs, metadata = page.irqs, page.metadata
    if irqs is None or metadata is None or data[irqs.tag_end : irqs.content_end].strip(_BLANK):
        return text
    if any(not name.startswith(b"xmlns") for name in irqs.attributes):
        return text
    rest = data[metadata.tag_end : irqs.start] + data[irqs.end : metadata.content_end]
    gone = irqs if rest.strip(_BLANK) else metadata
    return _apply(data, [_Edit(_before(data, gone.start), gone.end)])


def _before(data: bytes, start: int) -> int:
    """Where the white space before `start` begins."""
    return len(data[:start].rstrip(_BLANK))


def _apply(data: bytes, edits: list[_Edit]) -> str:
    for edit in sorted(edits, reverse=True):
        data = data[: edit.start] + edit.text + data[edit.end :]
    return data.decode("utf-8")


def _quoted(text: str) -> bytes:
    from xml.sax.saxutils import escape

    return b"'%s'" % escape(text, {"'": "&apos;"}).encode("utf-8")
