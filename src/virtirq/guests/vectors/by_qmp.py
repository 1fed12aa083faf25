"""Learns where a QEMU guest aims its vectors through its own monitor: for guests without libvirt.

QEMU's memory map says where each MSI-X table is, whatever the machine; ``pmemsave`` then reads it,
which stops no vCPU. What it reads comes back through a memfd that is passed to QEMU, so that
nothing is written to a file and no path has to mean the same to both.

A monitor serves one client at a time (QEMU, docs/interop/qmp-spec.rst): it is let go of after each
reading. Where somebody else is using it, that is said and tried another time.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import stat
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from virtirq.errors import InputError, UnavailableError
from virtirq.guests.processes.owners import Owner, owner_of
from virtirq.guests.processes.qemu import options, pairs
from virtirq.guests.processes.values import MOST_BYTES, split
from virtirq.guests.vectors.by_peek import Learned, Wanted
from virtirq.guests.vectors.entries import ENTRY, Peek, table, whole
from virtirq.guests.vectors.hardware import Iommu
from virtirq.guests.vectors.msi import Apics
from virtirq.guests.vectors.reader import aimed, in_use
from virtirq.guests.vectors.remapping import resolve
from virtirq.host import paths
from virtirq.host.fs import HostFs
from virtirq.model import Guest, GuestVectors, PciAddress
from virtirq.values import pattern

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

_WAIT: Final = 2.0
"""Seconds for one answer of a monitor."""
_PATIENCE: Final = 10.0
"""Seconds for all the answers that a reading takes: how many those are, a monitor says."""
_PEER: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_FDSET: Final = 0x76697274
"""The number of our set of descriptors within QEMU, which nobody else's is."""
_MOST_TABLE: Final = 2048 * ENTRY
"""Bytes of an MSI-X table: PCI has no larger one."""
# "info mtree -f -o" (system/memory.c, mtree_print_flatview() and mtree_print_owner()).
_SECTION: Final = pattern(
    r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ([a-z/-]+)\): (\S+)(.*)$", re.ASCII
)
_OWNER: Final = pattern(r" owner:\{(?:dev|obj) (?:id|path)=([^}]+)\}", re.ASCII)
_MALFORMED: Final = (
    *(ValueError, KeyError, TypeError, AttributeError, InputError),
    *(OverflowError, RecursionError),
)
_DEVICE: Final = "child<vfio-pci>"
_PLACES: Final = ("/machine/peripheral", "/machine/peripheral-anon")


class MemoryMap(NamedTuple):
    """Guest-physical memory as QEMU has it: what is memory, and the MSI-X tables by owner."""

    ram: tuple[range, ...]
    tables: Mapping[str, range]
    iommu: Iommu | None


def monitor_of(words: Sequence[str]) -> str | None:
    """The path of the QMP socket that a QEMU with this command line listens at."""
    sockets: dict[str, str] = {}
    controls: list[str] = []
    for option, value in options(words, ("qmp", "chardev", "mon")):
        told = pairs(value, {"qmp": "dev", "chardev": "backend", "mon": "chardev"}[option])
        if option == "qmp" and told.get("dev", "").startswith("unix:"):
            return told["dev"].removeprefix("unix:")
        if option == "chardev" and told.get("backend") == "socket" and "path" in told:
            sockets[told.get("id", "")] = told["path"]
        if option == "mon" and told.get("mode") == "control":
            controls.append(told.get("chardev", ""))
    return next((sockets[each] for each in controls if each in sockets), None)


def parse_memory_map(text: str) -> MemoryMap:
    """What ``info mtree -f -o`` prints."""
    ram, tables, iommu = [], {}, None
    counts = False
    for line in text.splitlines():
        if line.startswith("FlatView"):
            counts = False
        elif line.lstrip().startswith('AS "memory"'):
            counts = True
        section = _SECTION.match(line) if counts else None
        if section is None:
            continue
        place = range(int(section[1], 16), int(section[2], 16) + 1)
        match section[3], section[4]:
            case "ram", _:
                ram.append(place)
            case "i/o", name if name.startswith("msix-table"):
                owner = _OWNER.search(section[5])
                if owner is not None:
                    tables[owner[1]] = place
            case "i/o", "intel_iommu":
                iommu = Iommu.INTEL
            case "i/o", name if name.startswith("amdvi"):
                iommu = Iommu.AMD
    return MemoryMap(tuple(ram), tables, iommu)


class QmpReader:
    """Reads QEMU guests that have a monitor to themselves."""

    name: Final = "its QEMU monitor"

    def __init__(self, fs: HostFs) -> None:
        self._fs = fs

    def read(self, guest: Guest, wanted: Wanted) -> Learned:
        if guest.pid is None:
            raise UnavailableError("its process is not known")
        try:
            words = split(self._fs.head(paths.PROCESS_ARGUMENTS.at(guest.pid), MOST_BYTES))
        except OSError as error:
            raise UnavailableError(f"its process: {error.strerror}") from error
        path = monitor_of(words)
        if path is None:
            raise UnavailableError("it has no monitor with a socket of its own")
        owner = owner_of(self._fs, guest.pid)
        with _own_socket(path, owner) as there, _connected(there, guest.pid, path) as monitor:
            try:
                return _read(monitor, guest, wanted)
            except _MALFORMED as error:  # a QEMU that was broken into says what it likes
                raise UnavailableError("its monitor answers what it was not asked") from error

    def close(self) -> None:
        """Nothing is kept open."""


class _Monitor:
    """A QMP session. Raises UnavailableError for whatever goes wrong."""

    def __init__(self, client: QMPClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client, self._loop = client, loop
        self._memory = os.memfd_create("virtirq", os.MFD_CLOEXEC)
        self._number = -1
        self._until = time.monotonic() + _PATIENCE

    def close(self) -> None:
        if self._number >= 0:
            with suppress(UnavailableError):  # however long it has taken already
                wait(self._loop, self._client.execute("remove-fd", {"fdset-id": _FDSET}))
        os.close(self._memory)

    def ask(self, command: str, **arguments: Any) -> Any:
        if time.monotonic() > self._until:
            raise UnavailableError(f"its monitor takes more than {_PATIENCE:g} seconds")
        return wait(self._loop, self._client.execute(command, arguments))

    def peek(self, start: int, size: int) -> bytes:
        if self._number < 0:
            self._pass(self._memory)
            self._number = int(self.ask("add-fd", **{"fdset-id": _FDSET})["fd"])
        name = f"/proc/self/fd/{self._number}"
        self.ask("pmemsave", val=start, size=size, filename=name)
        return os.pread(self._memory, size, 0)

    def _pass(self, descriptor: int) -> None:
        from qemu.qmp import QMPError

        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as error:  # it has hung up meanwhile
            raise UnavailableError(f"its monitor: {error}") from error


def wait(loop: asyncio.AbstractEventLoop, what: Any) -> Any:
    """What a monitor answers. Raises UnavailableError."""
    from qemu.qmp import QMPError

    try:
        return loop.run_until_complete(asyncio.wait_for(what, _WAIT))
    except TimeoutError as error:
        raise UnavailableError("its monitor does not answer, or serves someone else") from error
    except (QMPError, OSError, EOFError) as error:
        raise UnavailableError(f"its monitor: {error}") from error


@contextmanager
def _own_socket(path: str, owner: Owner | None) -> Iterator[str]:
    """Where a socket can be connected to, if it is of the guest's own user, or raises.

    A command line can name any socket of the host, and some servers do not survive whoever connects
    and says nothing: so it is looked at first, and what was looked at is what is connected to.
    bind(2) gives the socket's file to the user that binds. Raises UnavailableError.
    """
    if owner is None:
        raise UnavailableError("its process has ended")
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UnavailableError(f"its monitor {path}: {why}") from error
    try:
        file = os.fstat(descriptor)
        if not stat.S_ISSOCK(file.st_mode):
            raise UnavailableError(f"its monitor {path} is no socket")
        if file.st_uid != owner.uid:
            raise UnavailableError(
                f"its monitor {path} is of user {file.st_uid}, and the guest of user {owner.uid}"
            )
        if owner.uid == 0 and not owner.root:
            raise UnavailableError(
                f"its monitor {path} is root's, and it may be a container's root"
            )
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextmanager
def _connected(path: str, pid: int, name: str = "") -> Iterator[_Monitor]:
    """A session with the monitor of this process, and no other's. Raises UnavailableError.

    `name` is what a person knows the path by.
    """
    name = name or path
    try:
        if sys.modules.get("ssl", ...) is None:
            del sys.modules["ssl"]  # qemu.qmp cannot do without
        from qemu.qmp import QMPClient
    except ImportError as error:
        raise UnavailableError(
            "the Python module qemu.qmp is not installed", hint="pip install qemu.qmp"
        ) from error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asked:
        try:
            asked.settimeout(_WAIT)  # QEMU lets one wait while it serves another
            asked.connect(path)
            peer = asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        except (BlockingIOError, TimeoutError) as error:
            raise UnavailableError(f"its monitor {name} serves someone else") from error
        except OSError as error:
            raise UnavailableError(f"its monitor {name}: {error.strerror}") from error
        # Of all that the same user listens at, only the guest's own is spoken to.
        if _PEER.unpack(peer)[0] != pid:
            raise UnavailableError(f"its monitor {name} is another process's")
        asked.setblocking(False)
        loop = asyncio.new_event_loop()
        client = QMPClient("virtirq")
        try:
            wait(loop, client.connect(asked))
            monitor = _Monitor(client, loop)
            try:
                yield monitor
            finally:
                monitor.close()
        finally:
            with suppress(UnavailableError):
                wait(loop, client.disconnect())
            loop.close()


def _read(monitor: _Monitor, guest: Guest, wanted: Wanted) -> Learned:
    memory = parse_memory_map(_command(monitor, "info mtree -f -o"))
    if memory.iommu is Iommu.AMD:
        raise UnavailableError("it has an AMD-Vi, which cannot be followed through its monitor")
    apics, owners = _apics(monitor, guest), _owners(monitor)
    peek: Peek = whole(monitor.peek)
    found = {}
    for address, vectors in wanted.items():
        place = memory.tables.get(owners.get(address, ""))
        if place is None:
            found[address] = GuestVectors({}, "the guest has no MSI-X table of it in memory")
            continue
        size = place.stop - place.start
        if size > _MOST_TABLE:
            found[address] = GuestVectors(
                {}, f"its monitor tells of an MSI-X table of {size} bytes"
            )
            continue
        count = min(max(vectors, default=-1) + 1, size // ENTRY)
        used = in_use(table(peek, place.start, count))
        found[address] = aimed(resolve(peek, memory.iommu, memory.ram, 0, used), apics)
    return found


def _command(monitor: _Monitor, line: str) -> str:
    return str(monitor.ask("human-monitor-command", **{"command-line": line}))


def _apics(monitor: _Monitor, guest: Guest) -> Apics:
    """The APIC id of each vCPU, from QEMU's own objects."""
    online = {vcpu.index for vcpu in guest.vcpus}
    found = {}
    for cpu in monitor.ask("query-cpus-fast"):
        apic = monitor.ask("qom-get", path=cpu["qom-path"], property="apic-id")
        if cpu["cpu-index"] in online:
            found[int(apic)] = int(cpu["cpu-index"])
    return Apics(found)


def _owners(monitor: _Monitor) -> dict[PciAddress, str]:
    """What the memory map calls each device of the host's: its id, or the path of its object."""
    found = {}
    for place in _PLACES:
        for each in monitor.ask("qom-list", path=place):
            if each["type"] == _DEVICE:
                path = f"{place}/{each['name']}"
                address = PciAddress.parse(monitor.ask("qom-get", path=path, property="host"))
                found[address] = each["name"] if place == _PLACES[0] else path
    return found
