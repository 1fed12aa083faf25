"""Where a guest aims its vectors now, for a command that wants to know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from virtirq.control.daemon_status import ask
from virtirq.cpuset import CpuSet
from virtirq.errors import VirtirqError
from virtirq.guests.vectors.by_kvm_routes import by_probes
from virtirq.guests.vectors.by_peek import PeekReader, VectorReader
from virtirq.guests.vectors.by_qmp import QmpReader
from virtirq.host.fs import HostFs, Reader
from virtirq.host.interrupts import read_interrupts
from virtirq.model import Aimed, Guest, PciAddress

Aims = Mapping[PciAddress, Mapping[int, Aimed]]


class GuestAims:
    """Asks the daemon that runs with this state directory; where none does, the guest itself."""

    def __init__(
        self, fs: HostFs, state: Path | None, guest: Guest, readers: Sequence[VectorReader]
    ) -> None:
        self._fs, self._state, self._guest, self._readers = fs, state, guest, readers

    def __call__(self) -> Aims:
        """By device; what cannot be learned is left out."""
        daemon = None
        if self._state is not None:
            with suppress(VirtirqError):
                daemon = ask(self._state)
        if daemon is not None:
            return {
                each.address: dict(daemon.aimed.get(each.address, {}))
                for each in self._guest.devices
            }
        return self._read()

    def _read(self) -> Aims:
        wanted = {}
        for device in self._guest.devices:
            found = read_interrupts(Reader(self._fs), [device.address], CpuSet())
            vectors = {
                each.vector: each.irq
                for each in found
                if each.vector is not None and each.own_action
            }
            if vectors:
                wanted[device.address] = vectors
        for reader in self._readers:
            with suppress(VirtirqError):
                learned = reader.read(self._guest, wanted)
                return {address: dict(each.aimed) for address, each in learned.items()}
        return {}


@contextmanager
def guest_aims(
    fs: HostFs, state: Path | None, guest: Guest, uri: str | None
) -> Iterator[GuestAims]:
    """`uri` is libvirt's, None where it has no part in it; `state` is where a daemon may run."""
    with ExitStack() as stack:
        readers: list[VectorReader] = [] if uri is None else [PeekReader(uri)]
        if fs.recording is None:
            readers += [QmpReader(fs), by_probes()]
        for reader in readers:
            stack.callback(reader.close)
        yield GuestAims(fs, state, guest, readers)
