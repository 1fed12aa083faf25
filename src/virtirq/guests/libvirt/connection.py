"""libvirt, for the whole house: the only module that imports it, and only when asked.

A `Connection` reads. What changes something (metadata, definitions) is done in the control room,
on the objects that `Connection.find` gives.

URIs with a host part are another machine's libvirt: its guests can be read and their settings
changed, but their interrupts are not this machine's (`Connection.remote`).
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import IntFlag
from types import ModuleType
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from virtirq.cpuset import CpuSet
from virtirq.errors import (
    AccessError,
    ConnectionFailedError,
    DependencyError,
    DomainXmlError,
    LibvirtError,
    UsageError,
)
from virtirq.guests.libvirt.domainxml import parse_domain
from virtirq.guests.processes.affinity import Processes
from virtirq.host.fs import HostFs
from virtirq.model import Gap, Guest, VcpuCounts
from virtirq.values import dataclass, replace

DEFAULT_URI: Final = "qemu:///system"
SOURCE: Final = "libvirt"

# libvirt's ABI, include/libvirt/libvirt-domain.h: these numbers never change.
METADATA_ELEMENT: Final = 2  # VIR_DOMAIN_METADATA_ELEMENT
DEFINE_VALIDATE: Final = 1  # VIR_DOMAIN_DEFINE_VALIDATE
_LIST_ACTIVE: Final = 1  # VIR_CONNECT_LIST_DOMAINS_ACTIVE
_LIST_INACTIVE: Final = 2  # VIR_CONNECT_LIST_DOMAINS_INACTIVE
_XML_SECURE: Final = 1  # VIR_DOMAIN_XML_SECURE
_XML_INACTIVE: Final = 2  # VIR_DOMAIN_XML_INACTIVE
_MEMORY_PHYSICAL: Final = 2  # VIR_MEMORY_PHYSICAL
_STATS_VCPU: Final = 8  # VIR_DOMAIN_STATS_VCPU
KEEPALIVE: Final = (8, 2)
"""Seconds of silence until libvirt is asked whether it is there, and how often that is asked.

Without an answer the connection breaks after 8 * (2 + 1) seconds (libvirt: src/rpc/virkeepalive.c).
libvirtd itself asks after 5 seconds (``keepalive_interval`` of its configuration), so that we ask
nothing while all is well.
"""
_PATIENCE: Final = 10.0
"""Seconds that the command waits for a connection: libvirt's open() has no limit, and hangs for as
long as its daemon is stopped, since the kernel has accepted the connection for it.
"""
# include/libvirt/virterror.h
_NO_DOMAIN: Final = 42
_WRONG_URI: Final = frozenset({5, 8})  # NO_CONNECT, INVALID_ARG
_INTERNAL: Final = 1
_FROM_URI: Final = frozenset({0, 45})  # VIR_FROM_NONE, VIR_FROM_URI
_DRIVERS: Final = frozenset(
    {
        *("qemu", "xen", "lxc", "ch", "vz", "vbox", "bhyve", "openvz", "esx", "vpx", "gsx"),
        *("hyperv", "test", "vmwareplayer", "vmwarews", "vmwarefusion", "remote"),
    }
)
"""libvirt: docs/drivers.rst."""
_URIS: Final = "a URI is written like qemu:///system, or qemu+ssh://root@host/system"
_NOT_PERMITTED: Final = frozenset({29, 45, 79, 88, 94})
"""OPERATION_DENIED, AUTH_FAILED and _CANCELLED, ACCESS_DENIED, AUTH_UNAVAILABLE: a plain user's."""


class Affect(IntFlag):
    """What a change concerns: the running guest, its persistent definition, or both."""

    LIVE = 1  # VIR_DOMAIN_AFFECT_LIVE
    CONFIG = 2  # VIR_DOMAIN_AFFECT_CONFIG

    @property
    def words(self) -> tuple[str, ...]:
        """``live`` and ``config``, as far as each is meant."""
        both = ((Affect.LIVE, "live"), (Affect.CONFIG, "config"))
        return tuple(word for flag, word in both if self & flag)


class VirDomain(Protocol):
    """What is used of libvirt-python's virDomain."""

    def name(self) -> str: ...
    def UUIDString(self) -> str: ...  # noqa: N802
    def ID(self) -> int: ...  # noqa: N802
    def isActive(self) -> int: ...  # noqa: N802
    def isPersistent(self) -> int: ...  # noqa: N802
    def XMLDesc(self, flags: int) -> str: ...  # noqa: N802
    def vcpuPinInfo(self, flags: int) -> Sequence[Sequence[bool]]: ...  # noqa: N802
    def pinVcpuFlags(self, vcpu: int, cpus: Sequence[bool], flags: int, /) -> int: ...  # noqa: N802
    def emulatorPinInfo(self, flags: int) -> Sequence[bool]: ...  # noqa: N802
    def pinEmulator(self, cpus: Sequence[bool], flags: int, /) -> int: ...  # noqa: N802
    def setNumaParameters(self, params: Mapping[str, Any], flags: int, /) -> int: ...  # noqa: N802
    def memoryPeek(self, start: int, size: int, flags: int, /) -> bytes: ...  # noqa: N802
    def setMetadata(  # noqa: N802
        self, kind: int, text: str | None, key: str | None, uri: str | None, flags: int, /
    ) -> int: ...


class VirConnect(Protocol):
    """What is used of libvirt-python's virConnect."""

    def getURI(self) -> str: ...  # noqa: N802
    def getCPUMap(self) -> tuple[int, Sequence[bool], int]: ...  # noqa: N802
    def listAllDomains(self, flags: int) -> Sequence[VirDomain]: ...  # noqa: N802
    def lookupByID(self, number: int, /) -> VirDomain: ...  # noqa: N802
    def lookupByUUIDString(self, uuid: str) -> VirDomain: ...  # noqa: N802
    def lookupByName(self, name: str) -> VirDomain: ...  # noqa: N802
    def domainListGetStats(  # noqa: N802
        self, domains: Sequence[VirDomain], stats: int, flags: int, /
    ) -> Sequence[tuple[VirDomain, Mapping[str, Any]]]: ...
    def defineXMLFlags(self, xml: str, flags: int) -> VirDomain: ...  # noqa: N802
    def isAlive(self) -> int: ...  # noqa: N802
    def setKeepAlive(self, interval: int, count: int) -> int: ...  # noqa: N802
    def close(self) -> int: ...


class LiveGuests(NamedTuple):
    """The running guests, and which could not be read in full."""

    guests: tuple[Guest, ...]
    gaps: tuple[Gap, ...] = ()
    texts: tuple[str, ...] = ()
    """The domain XML of each guest."""
    complete: bool = True
    """Whether no guest is missing; there may be gaps in those that are there."""


def default_uri(configured: str = "") -> str:
    """What virsh takes without ``-c``, but for root's and users' different defaults.

    `configured` is the configuration's, which yields to the environment as libvirt.conf's does.
    """
    return os.environ.get("LIBVIRT_DEFAULT_URI") or configured or DEFAULT_URI


def is_remote(uri: str) -> bool:
    """Whether the URI names a host: libvirt's rule for going over the network.

    libvirt: src/remote/remote_driver.c, doRemoteOpen().
    """
    try:
        return bool(urlsplit(uri).netloc)
    except ValueError:
        return True


def elsewhere(uri: str, hint: str) -> UsageError:
    """What to say of another machine's libvirt where it is this machine's that is needed."""
    return UsageError(
        f"the guests of {uri} run on another host: their interrupts are not this machine's",
        hint=hint,
    )


def _is_wrong(uri: str, error: Any) -> bool:
    """Whether it is the URI that libvirt stumbled over, and not what it leads to.

    libvirt: src/libvirt.c, virConnectOpenInternal(), which has resolved aliases of libvirt.conf
    before. A driver that there is not is looked for behind the daemon's socket.
    """
    code, domain = error.get_error_code(), error.get_error_domain()
    if code in _WRONG_URI or (code == _INTERNAL and domain in _FROM_URI):
        return True
    return uri.partition(":")[0].partition("+")[0] not in _DRIVERS


@contextmanager
def connected(uri: str, *, write: bool = False) -> Iterator[Connection]:
    """A connection, read-only unless `write`, so that any user may look.

    Raises DependencyError, AccessError, and ConnectionFailedError, also where libvirt does not
    answer in time.
    """
    connection = _opened_in_time(uri, write=write)
    try:
        yield connection
    finally:
        connection.close()


def opened(uri: str, *, write: bool = False) -> Connection:
    """As `connected`, to be closed by who asked for it; it may hang for as long as libvirt does."""
    module = libvirt_module()
    try:
        raw: VirConnect = module.open(uri) if write else module.openReadOnly(uri)
    except module.libvirtError as error:
        text = f"cannot connect to libvirt at {uri}: {_text(error)}"
        if error.get_error_code() in _NOT_PERMITTED or error.get_int1() == errno.EACCES:
            raise AccessError(
                text, hint="run as root, or become a member of the group libvirt"
            ) from error
        if _is_wrong(uri, error):
            text = f"{uri[:60]!r} is no URI of libvirt's: {_text(error)}"
            raise ConnectionFailedError(text, hint=_URIS) from error
        raise ConnectionFailedError(
            text, hint="start libvirt's daemon, or name another URI with -c"
        ) from error
    return Connection(uri, raw, module)


def _opened_in_time(uri: str, *, write: bool) -> Connection:
    """As `opened`, by a thread that is left alone when it hangs: nobody can end such a call."""
    came, turn = threading.Event(), threading.Lock()
    answers: list[Connection | BaseException] = []
    given_up = False

    def work() -> None:
        answer: Connection | BaseException
        try:
            answer = opened(uri, write=write)
        except BaseException as error:
            answer = error
        with turn:
            answers.append(answer)
            late = given_up
        came.set()
        if late and isinstance(answer, Connection):
            answer.close()

    threading.Thread(target=work, name="connect", daemon=True).start()
    came.wait(_PATIENCE)
    with turn:
        given_up = not answers
    if given_up:
        raise ConnectionFailedError(
            f"cannot connect to libvirt at {uri}: no answer within {_PATIENCE:g} seconds",
            hint="see whether libvirt's daemon hangs or is stopped:"
            " systemctl status libvirtd (or virtqemud)",
        )
    (answer,) = answers
    if isinstance(answer, BaseException):
        raise answer
    return answer


@dataclass(frozen=True)
class Connection:
    """An open connection to libvirt; see `connected`."""

    uri: str
    raw: VirConnect
    module: Any

    def close(self) -> None:
        # It may have broken meanwhile; that was told where it mattered.
        with suppress(self.module.libvirtError):
            self.raw.close()

    def keep_alive(self) -> None:
        """Have the connection break when libvirt does not answer: see `KEEPALIVE`.

        For who runs libvirt's event loop, which asks; calls that hang fail then, too.
        """
        # Not every driver has it: those that need no connection.
        with suppress(self.module.libvirtError):
            self.raw.setKeepAlive(*KEEPALIVE)

    @property
    def remote(self) -> bool:
        """Whether the guests run on another machine; aliases of libvirt.conf are looked through."""
        with self.asking("ask for its URI"):
            return is_remote(self.uri) or is_remote(self.raw.getURI())

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Turns libvirt's errors into ours: ``cannot WHAT: REASON``."""
        try:
            yield
        except self.module.libvirtError as error:
            text = f"cannot {what}: {_text(error)}"
            if error.get_error_code() in _NOT_PERMITTED:
                raise AccessError(
                    text, hint="run as root, or become a member of the group libvirt"
                ) from error
            raise LibvirtError(text) from error

    def guests(self, fs: HostFs | None) -> LiveGuests:
        """The running guests. `fs` is the machine they run on, None when that is another one."""
        found, gaps, texts, complete = [], [], [], True
        processes = Processes(fs) if fs is not None else None
        for name, domain, xml in self._running():
            if isinstance(xml, AccessError):  # polkit's rules may hide one guest from this user
                gaps.append(Gap(f"{self.uri}: {name}", str(xml)))
                complete = False
                continue
            guest, gap = self._read(name, domain, xml, processes)
            if guest is None:
                complete = False
            else:
                found.append(guest)
                texts.append(xml)
            if gap is not None:
                gaps.append(gap)
        return LiveGuests(tuple(found), tuple(gaps), tuple(texts), complete=complete)

    def stopped(self) -> LiveGuests:
        """The guests that are defined and do not run, as their definitions have them."""
        with self.asking(f"list the guests of {self.uri}"):
            domains = self.raw.listAllDomains(_LIST_INACTIVE)
        found, gaps = [], []
        for domain in domains:
            name = domain.name()
            try:
                guest = parse_domain(self.xml(domain, inactive=True), where=name)
            # It may have been undefined since, or be hidden by polkit's rules.
            except (AccessError, DomainXmlError, LibvirtError) as error:
                gaps.append(Gap(f"{self.uri}: {name}", str(error).removeprefix(f"{name}: ")))
            else:
                found.append(replace(guest, source=SOURCE))
        return LiveGuests(tuple(sorted(found, key=lambda each: each.name)), tuple(gaps))

    def running(self) -> dict[str, str]:
        """The names of the running guests by UUID: one call, and none to any guest."""
        with self.asking(f"list the guests of {self.uri}"):
            domains = self.raw.listAllDomains(_LIST_ACTIVE)
            return {domain.UUIDString(): domain.name() for domain in domains}

    def guest(self, uuid: str, fs: HostFs | None, processes: Processes | None = None) -> LiveGuests:
        """One guest, by UUID, as `guests` gives it; none when it does not run.

        With `processes` they are looked through once for several guests, if they have to be.
        """
        with self.asking(f"look for {uuid}"):
            try:
                domain = self.raw.lookupByUUIDString(uuid)
                name, xml = domain.name(), domain.XMLDesc(0)
                if not domain.isActive():
                    return LiveGuests(())
            except self.module.libvirtError as error:
                if error.get_error_code() == _NO_DOMAIN:
                    return LiveGuests(())
                raise
        if processes is None and fs is not None:
            processes = Processes(fs)
        guest, gap = self._read(name, domain, xml, processes)
        return LiveGuests(() if guest is None else (guest,), () if gap is None else (gap,), (xml,))

    def _read(
        self, name: str, domain: VirDomain, xml: str, processes: Processes | None
    ) -> tuple[Guest | None, Gap | None]:
        """A running guest, and what could not be read of it; `processes` are this machine's."""
        try:
            guest = replace(parse_domain(xml, where=name), source=SOURCE, domain_id=domain.ID())
        except DomainXmlError as error:
            return None, Gap(f"{self.uri}: {name}", str(error).removeprefix(f"{name}: "))
        seen = processes.seen(guest) if processes is not None else None
        if seen is not None:
            return seen, None
        gap = None
        if processes is not None and self._has_threads():
            text = "not found; libvirt's pinning counts instead"
            gap = Gap(f"/proc: threads of {name}", text)
        return self._as_pinned(guest, domain), gap

    def find(self, name: str) -> VirDomain:
        """The guest that virsh would take `name` for: an id, a UUID or a name.

        libvirt: tools/virsh-util.c, virshLookupDomainInternal(). Raises UsageError.
        """
        lookups: list[Any] = [lambda: self.raw.lookupByName(name)]
        if len(name) in (32, 36):
            lookups.insert(0, lambda: self.raw.lookupByUUIDString(name))
        if name.isascii() and name.isdecimal() and len(name) < 10:
            lookups.insert(0, lambda: self.raw.lookupByID(int(name)))
        with self.asking(f"look for {name}"):
            for lookup in lookups:
                try:
                    domain: VirDomain = lookup()
                    return domain
                except self.module.libvirtError as error:
                    if error.get_error_code() not in (_NO_DOMAIN, *_MALFORMED):
                        raise
        raise UsageError(
            f"no guest is called {name!r} at {self.uri}", hint="see 'virsh list --all'"
        )

    def alive(self) -> bool:
        """Whether the connection still is one."""
        try:
            return bool(self.raw.isAlive())
        except self.module.libvirtError:
            return False

    def peek(self, domain: VirDomain, start: int, size: int) -> bytes:
        """So many bytes of a running guest's physical memory; needs a connection that may write.

        libvirt has QEMU save them in a file (pmemsave), which stops no vCPU and does not taint the
        guest (src/qemu/qemu_driver.c, qemuDomainMemoryPeek()). Raises LibvirtError, AccessError.
        """
        with self.asking(f"read memory of {domain.name()}"):
            found = domain.memoryPeek(start, size, _MEMORY_PHYSICAL)
        if len(found) != size:
            raise LibvirtError(
                f"cannot read memory of {domain.name()}: {len(found)} of {size} bytes"
            )
        return found

    def vcpu_statistics(self, uuid: str, names: Collection[str]) -> VcpuCounts:
        """What the hypervisor has counted for each vCPU, by its own names, if it tells.

        Those are KVM's, of QEMU's query-stats (since libvirt 8.10 and QEMU 7.1). Raises
        LibvirtError, AccessError.
        """
        with self.asking(f"read statistics of {uuid}"):
            domain = self.raw.lookupByUUIDString(uuid)
            answers = self.raw.domainListGetStats([domain], _STATS_VCPU, 0)
        return parse_vcpu_statistics(answers[0][1] if answers else {}, names)

    def xml(self, domain: VirDomain, *, inactive: bool = False, secure: bool = False) -> str:
        """The domain's XML: live, or with `inactive` what it is started from next."""
        flags = (_XML_INACTIVE if inactive else 0) | (_XML_SECURE if secure else 0)
        with self.asking(f"read the definition of {domain.name()}"):
            return domain.XMLDesc(flags)

    def cpus(self) -> CpuSet | None:
        """The CPUs that the guests' host has, offline ones too; None when libvirt cannot tell."""
        try:
            count = self.raw.getCPUMap()[0]
        except self.module.libvirtError:
            return None
        return CpuSet.span(0, count - 1)

    def _running(self) -> Iterator[tuple[str, VirDomain, str | AccessError]]:
        """Name and XML of each; an error where this user may know of it and see no more."""
        with self.asking(f"list the guests of {self.uri}"):
            domains = self.raw.listAllDomains(_LIST_ACTIVE)
        for domain in sorted(domains, key=lambda each: each.name()):
            text: str | AccessError
            try:
                with self.asking(f"read the definition of {domain.name()}"):
                    try:
                        text = domain.XMLDesc(0)
                        if not domain.isActive():
                            continue  # it was shut down meanwhile
                    except self.module.libvirtError as error:
                        if error.get_error_code() == _NO_DOMAIN:
                            continue  # it ended, and was defined nowhere
                        raise
            except AccessError as error:
                text = error
            yield domain.name(), domain, text

    def _as_pinned(self, guest: Guest, domain: VirDomain) -> Guest:
        """The guest where libvirt pinned it, numad's choice included, which the XML lacks."""
        try:
            pins = [_cpus(each) for each in domain.vcpuPinInfo(Affect.LIVE)]
            emulator = _cpus(domain.emulatorPinInfo(Affect.LIVE))
        except self.module.libvirtError:
            return guest
        return replace(
            guest,
            vcpus=tuple(
                replace(vcpu, cpus=pins[vcpu.index]) if vcpu.index < len(pins) else vcpu
                for vcpu in guest.vcpus
            ),
            emulator=emulator,
        )

    def _has_threads(self) -> bool:
        return urlsplit(self.uri).scheme.partition("+")[0] == "qemu"


def parse_vcpu_statistics(told: Mapping[str, Any], names: Collection[str]) -> VcpuCounts:
    """What libvirt has under ``vcpu.NUMBER.NAME.sum`` of these names."""
    found: dict[int, dict[str, int]] = {}
    for key, value in told.items():
        words = key.split(".")
        if len(words) == 4 and (words[0], words[3]) == ("vcpu", "sum") and words[2] in names:
            found.setdefault(int(words[1]), {})[words[2]] = int(value)
    return found


# For lookups: VIR_ERR_INVALID_ARG, which a name that is no UUID gives.
_MALFORMED: Final = (8,)


def _cpus(bits: Sequence[bool]) -> CpuSet | None:
    """None for all CPUs: that is how libvirt says that there is no pin."""
    return None if all(bits) else CpuSet(cpu for cpu, allowed in enumerate(bits) if allowed)


def _text(error: Exception) -> str:
    """libvirt's message in one line."""
    return " ".join(str(error).split())


_INSTALL: Final = "install the distribution's python3-libvirt, or: pip install libvirt-python"
_INSTALL_IN_VENV: Final = (
    f"{sys.prefix}/bin/pip install libvirt-python; or the distribution's python3-libvirt, with a"
    " virtual environment made with --system-site-packages"
)


def libvirt_module() -> ModuleType:
    """libvirt-python, with its habit of printing errors taken away. Raises DependencyError."""
    try:
        import libvirt
    except ImportError as error:
        why = "" if isinstance(error, ModuleNotFoundError) else f": {error}"
        raise DependencyError(
            f"the Python module libvirt cannot be imported{why}"
            if why
            else "the Python module libvirt is not installed",
            hint=_INSTALL if sys.prefix == sys.base_prefix else _INSTALL_IN_VENV,
        ) from error
    module: ModuleType = libvirt
    # It prints every error to stderr otherwise (src/util/virerror.c, virDefaultErrorFunc()).
    libvirt.registerErrorHandler(_quiet, None)
    return module


def _quiet(_context: object, _error: object) -> None:
    pass
