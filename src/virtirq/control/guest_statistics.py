"""What KVM counts for a guest's vCPUs now, for a command that wants to know."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress

from virtirq.errors import UnavailableError, VirtirqError
from virtirq.guests.libvirt.connection import SOURCE, Connection, connected
from virtirq.guests.processes.statistics import ask_vcpu_statistics
from virtirq.host.fs import HostFs, Reader
from virtirq.host.kvm_statistics import read_vcpu_statistics
from virtirq.model import Guest, VcpuCounts

Ask = Callable[[], VcpuCounts]


class GuestStatistics:
    """Asks the first that can tell, and nobody else from then on: two answers are to be compared.

    KVM's own interface by libvirt or QEMU comes first: debugfs promises nothing, and a kernel that
    is locked down has none.
    """

    def __init__(self, ways: Collection[Ask]) -> None:
        self._ways = tuple(ways)

    def __call__(self) -> VcpuCounts:
        """By vCPU; none where nobody can tell."""
        for way in self._ways:
            with suppress(VirtirqError):
                found = way()
                if found:
                    self._ways = (way,)
                    return found
        return {}


@contextmanager
def guest_statistics(
    fs: HostFs, guest: Guest, uri: str | None, names: Collection[str]
) -> Iterator[GuestStatistics]:
    """Of `names`. `uri` is libvirt's, None where it has no part in it."""
    with ExitStack() as stack:
        ways: list[Ask] = []
        if uri is not None and guest.source == SOURCE and guest.uuid is not None:
            ways.append(_by_libvirt(stack, uri, guest.uuid, names))
        elif fs.recording is None:
            ways.append(lambda: ask_vcpu_statistics(fs, guest, names))
        ways.append(lambda: _by_debugfs(fs, guest, names))
        yield GuestStatistics(ways)


def _by_libvirt(stack: ExitStack, uri: str, uuid: str, names: Collection[str]) -> Ask:
    """By one connection, opened when it is first needed."""
    kept: list[Connection] = []

    def ask() -> VcpuCounts:
        if not kept:
            kept.append(stack.enter_context(connected(uri)))
        return kept[0].vcpu_statistics(uuid, names)

    return ask


def _by_debugfs(fs: HostFs, guest: Guest, names: Collection[str]) -> VcpuCounts:
    if guest.pid is None:
        raise UnavailableError("its process is not known")
    found = read_vcpu_statistics(Reader(fs), guest.pid, names)
    indices = sorted(each.index for each in guest.vcpus)
    if len(indices) != len(found):
        return found
    # KVM numbers them by their APIC, in the order of their own numbers.
    return dict(zip(indices, (found[each] for each in sorted(found)), strict=True))
