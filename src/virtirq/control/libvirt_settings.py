"""Changes what libvirt keeps of virtirq: a guest's settings in its metadata, and definitions.

The only writes are virDomainSetMetadata(), for virtirq's own element, and virDomainDefineXML().
Nobody else's metadata is touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from virtirq.cpuset import CpuSet
from virtirq.errors import InputError, LibvirtError, UsageError
from virtirq.guests.libvirt.connection import (
    DEFINE_VALIDATE,
    METADATA_ELEMENT,
    Affect,
    Connection,
    VirDomain,
)
from virtirq.guests.libvirt.devices import Holder, Selector, holders, own_names, shared_macs
from virtirq.guests.libvirt.reading import NAMESPACE, read_domain
from virtirq.guests.libvirt.rfcxml import Moved, to_metadata
from virtirq.guests.libvirt.settings import Settings, read_settings
from virtirq.model import Directive
from virtirq.values import dataclass

_PREFIX: Final = "virtirq"


class Change(NamedTuple):
    """What became of one setting: `subject` is the device, empty for the whole guest.

    `where` is ``live`` or ``config``; `before` and `after` are None where nothing is set.
    """

    where: str
    subject: str
    before: str | None
    after: str | None


class Changed(NamedTuple):
    guest: str
    changes: tuple[Change, ...]

    @property
    def is_live(self) -> bool:
        """Whether the running guest's setting is another one now."""
        return any(each.where == "live" and each.before != each.after for each in self.changes)


@dataclass(frozen=True, slots=True)
class Definition:
    """A guest's devices and settings, as it runs or as it is defined."""

    where: Affect
    held: tuple[Holder, ...]
    settings: Settings

    @property
    def names(self) -> str:
        """The devices' names, for people."""
        return ", ".join(_label(each) for each in self.held if each.addresses or each.pooled)


class _Device(NamedTuple):
    """A device that someone named: how to remember it, and all its names.

    `several`: the labels of those that have the name, where it is the MAC address of more than one.
    """

    store: Selector
    names: tuple[Selector, ...]
    several: tuple[str, ...] = ()


def change(
    connection: Connection,
    guest: str,
    device: str | None,
    directive: Directive | None,
    affect: Affect | None = None,
    *,
    force: bool = False,
) -> Changed:
    """Set (or, for None, take out) the setting of a guest or of one of its devices.

    `affect` None: the running guest and its definition, as far as there are both. With `force`,
    metadata that cannot be understood is dropped. Raises UsageError, InputError, LibvirtError.
    """
    domain = connection.find(guest)
    affect = affected(connection, domain, affect)
    if directive is not None:
        check_cpus(connection, directive)
    name = domain.name()
    lasting = _lasting_name(connection, domain, device) if affect & Affect.CONFIG else None
    new: list[tuple[Affect, Settings, Settings]] = []
    changes = []
    for where in (Affect.CONFIG, Affect.LIVE):
        if not affect & where:
            continue
        there = definition(connection, domain, where)
        if there.settings.problems and not force:
            raise InputError(
                f"{name}: not all of its virtirq metadata ({where.words[0]}) is understood:"
                f" {there.settings.problems[0].removeprefix('metadata: ')}",
                hint="correct it with 'virsh edit', update virtirq, or drop that part by --force",
            )
        if lasting is not None and where is Affect.CONFIG and _find(there, lasting):
            after, told = _changed(there, name, lasting, directive)
        else:
            after, told = _changed(there, name, device, directive)
        new.append((where, there.settings, after))
        changes.append(told)
    _write(connection, domain, new)
    return Changed(name, tuple(reversed(changes)))


def define(connection: Connection, text: str, *, validate: bool = False) -> tuple[str, Moved]:
    """Define a domain from XML that may have the RFC's attributes; its name, and what moved.

    Raises DomainXmlError, InputError, LibvirtError.
    """
    moved = to_metadata(text)
    for _, directive in moved.settings:
        check_cpus(connection, directive)
    with connection.asking("define the domain"):
        flags = DEFINE_VALIDATE if validate else 0
        return connection.raw.defineXMLFlags(moved.text, flags).name(), moved


def definition(connection: Connection, domain: VirDomain, where: Affect) -> Definition:
    """The guest as it runs (LIVE) or as it is defined (CONFIG)."""
    inactive = where is Affect.CONFIG
    element = read_domain(connection.xml(domain, inactive=inactive))
    return Definition(where, holders(element), read_settings(element))


def which(connection: Connection, domain: VirDomain, affect: Affect | None) -> Affect:
    """The one to look at: as `affect` says, else the running guest, else its definition."""
    concerned = affected(connection, domain, affect)
    return Affect.LIVE if concerned & Affect.LIVE else Affect.CONFIG


def device_names(there: Definition, guest: str, device: str) -> tuple[Selector, ...]:
    """Every name of the device that `device` names. Raises UsageError."""
    found = _find(there, device)
    if found is not None:
        return found.names
    selector = Selector.guess(device)
    if any(each.selector == selector for each in there.settings.devices):
        return (selector,)
    raise _no_such_device(there, guest, device)


def check_cpus(connection: Connection, directive: Directive) -> None:
    """Raises InputError for CPUs that the guests' host does not have."""
    there = connection.cpus()
    missing = directive.cpus - there if there is not None else CpuSet()
    if missing:
        what = "CPU" if len(missing) == 1 else "CPUs"
        raise InputError(f"the host has no {what} {missing}", hint=f"its CPUs are {there}")


def affected(connection: Connection, domain: VirDomain, affect: Affect | None) -> Affect:
    """What a change concerns: as `affect` says, else the running guest and its definition.

    As virsh has it (libvirt, src/conf/virdomainobjlist.c,
    virDomainObjUpdateModificationImpact()). Raises UsageError for what is not there.
    """
    with connection.asking(f"look at {domain.name()}"):
        active, persistent = bool(domain.isActive()), bool(domain.isPersistent())
    there = (Affect.LIVE if active else Affect(0)) | (Affect.CONFIG if persistent else Affect(0))
    if affect is None:
        return there
    if affect & Affect.LIVE and not active:
        raise UsageError(f"{domain.name()} is not running", hint="use --config")
    if affect & Affect.CONFIG and not persistent:
        raise UsageError(
            f"{domain.name()} is transient: it has no persistent definition", hint="use --live"
        )
    return affect


def _lasting_name(connection: Connection, domain: VirDomain, device: str | None) -> str | None:
    """The name by which the definition knows a device that is named as the running guest has it.

    libvirt makes up aliases at start, and chooses VFs of a network then.
    """
    if device is None or not domain.isActive():
        return None
    found = _find(definition(connection, domain, Affect.LIVE), device)
    return None if found is None else found.store.name


def _changed(
    there: Definition, guest: str, device: str | None, directive: Directive | None
) -> tuple[Settings, Change]:
    """The settings with the change made, and the change in words."""
    old = there.settings
    after = None if directive is None else str(directive)
    if device is None:
        before = None if old.for_all is None else str(old.for_all.directive)
        return old.with_all(directive), Change(there.where.words[0], "", before, after)
    found = _find(there, device)
    if found is None:
        selector = Selector.guess(device)
        if directive is not None or old.of_device([selector]) is None:
            raise _no_such_device(there, guest, device)
        found = _Device(selector, (selector,))  # the setting of a device that is gone
    if found.several and directive is not None:
        raise UsageError(
            f"{len(found.several)} devices of {guest} have the MAC address {found.store.name}",
            hint=f"name the one that is meant otherwise: {', '.join(found.several)}",
        )
    was = old.of_device(found.names)
    change = Change(
        there.where.words[0], found.store.name, None if was is None else str(was.directive), after
    )
    return old.with_device(found.store, directive, found.names), change


def _find(there: Definition, text: str) -> _Device | None:
    selector = Selector.guess(text)
    held = [
        each
        for each in there.held
        if (each.addresses or each.pooled) and selector in each.selectors
    ]
    if not held:
        return None
    first = held[0]
    shared = shared_macs(there.held)
    if selector.kind == "mac" and selector.name in shared:
        return _Device(selector, (selector,), several=tuple(_label(each) for each in held))
    if len(first.addresses) > 1:
        # Disks whose chain spans several controllers: each has a setting of its own.
        return _Device(selector, (selector,))
    # A generated alias may be another device's at the next start, and so may the VF that a
    # network gives: the name that lasts is written, whichever name was given.
    store = selector
    if first.tag == "interface" and first.mac is not None and first.mac not in shared:
        store = Selector("mac", first.mac)
    elif selector.kind == "alias" and not text.startswith("ua-") and first.addresses:
        store = Selector("address", str(first.addresses[0]))
    names = dict.fromkeys(name for each in held for name in own_names(each, shared))
    return _Device(store, tuple(names))


def _no_such_device(there: Definition, guest: str, device: str) -> UsageError:
    place = "" if there.where is Affect.LIVE else " in its persistent definition"
    return UsageError(
        f"{guest} has no passed-through device {device[:60]!r}{place}",
        hint=f"its devices: {there.names or 'none'}",
    )


def _label(holder: Holder) -> str:
    names = [each.name for each in holder.selectors]
    return names[0] + (f" ({', '.join(names[1:])})" if names[1:] else "") if names else holder.tag


def _write(
    connection: Connection, domain: VirDomain, new: Sequence[tuple[Affect, Settings, Settings]]
) -> None:
    """One call where both get the same, so that there is no half of it."""
    todo = [(where, after) for where, before, after in new if after != before or before.problems]
    if len(todo) == 2 and todo[0][1].element() == todo[1][1].element():
        todo = [(todo[0][0] | todo[1][0], todo[0][1])]
    done: list[str] = []
    for where, after in todo:
        element = after.element() if after else None
        try:
            with connection.asking(f"write the metadata of {domain.name()}"):
                domain.setMetadata(METADATA_ELEMENT, element, _PREFIX, NAMESPACE, int(where))
        except LibvirtError as error:
            if done:
                raise LibvirtError(f"{error} (live); written: {_listed(done)}") from error
            raise
        done += where.words


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)
