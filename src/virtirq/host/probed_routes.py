"""Where KVM sends the interrupts of passed-through devices, by probes: no program is needed.

The way there is that of `virtirq.host.irqfd`, gone in steps: each piece of the kernel's memory is
read by `virtirq.host.kernel_memory`, and looked at here before the next. Nothing is locked
meanwhile, so all may change under our hands: what counts is what an irqfd says of itself twice
alike, before and after which it hangs on the eventfd of this very interrupt.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from virtirq.errors import UnavailableError
from virtirq.host import paths
from virtirq.host.fs import HostFs, LiveFs
from virtirq.host.irqfd import IRQFD_FIELDS, MOST_WAITING, MSI, WOKEN
from virtirq.host.kernel_memory import MOST_WORDS, KernelMemory, Piece, Requested, take_away
from virtirq.host.kvm_routes import KVM, Route, check_readable, kernel_offsets

_HINTS: Final = {
    errno.EPERM: "the kernel may be locked down (kernel_lockdown(7))",
    errno.EACCES: "run as root",
    errno.EROFS: "tracefs or /proc is read-only here: see the unit's or the container's settings",
    errno.EBUSY: "another virtirq uses it",
}
_TRIES: Final = 5
"""So often an interrupt is asked about that is just being changed."""


class Memory(Protocol):
    """See `KernelMemory`."""

    def requested(self, irq: int) -> Requested | None: ...

    def read(self, address: int, symbol_at: int | None = None) -> Piece | None: ...

    def close(self) -> None: ...


class ProbedRoutes:
    """As `virtirq.host.kvm_routes.Routes`, without a process. For one thread at a time."""

    def __init__(self, fs: HostFs, memory: Memory, at: Mapping[str, int]) -> None:
        self._fs = fs
        self._module = fs.incarnation(KVM)
        self._memory = memory
        self._at = at

    def read(self, irqs: Collection[int]) -> dict[int, Route]:
        """The route by IRQ number, for those of `irqs` that have one.

        Raises UnavailableError when the probes do not answer, or are about a KVM that is no more.
        """
        if self._module != self._fs.incarnation(KVM):
            raise UnavailableError(f"{KVM}: it is not the one any more that was there")
        found = {irq: self._route(irq) for irq in sorted(set(irqs))}
        return {irq: route for irq, route in found.items() if route is not None}

    def close(self) -> None:
        """Take the probes away."""
        self._memory.close()

    def _route(self, irq: int) -> Route | None:
        for _ in range(_TRIES):
            asked = self._memory.requested(irq)
            if asked is None:
                return None
            irqfds = self._irqfds(asked.eventfd)
            if irqfds is None:
                continue  # it was changed meanwhile
            if len(irqfds) != 1:
                return None  # nobody's, or nobody knows whose
            (before,) = irqfds
            after = self._memory.read(before.at)
            if after is None or self._said(before) != self._said(after):
                continue
            changes, kind, low, high, data, eventfd = self._said(after)
            if eventfd != asked.eventfd or changes % 2:
                continue
            return Route(None, high << 32 | low, data, asked.name) if kind == MSI else None
        return None

    def _irqfds(self, eventfd: int) -> list[Piece] | None:
        """Those that wait for this eventfd; None for a queue that makes no sense."""
        at, queue = self._at, eventfd + self._at["queue"]
        to_entry = at["wait"] + at["entry"]
        found: list[Piece] = []
        piece = self._memory.read(queue)
        if piece is None:
            return None
        entry = piece.number(at["next"], 8)
        for _ in range(MOST_WAITING):
            if entry == queue:
                return found
            irqfd = entry - to_entry
            piece = self._memory.read(irqfd, irqfd + at["wait"] + at["woken"])
            if piece is None:
                return None
            if _is_kvms(piece.symbol):
                found.append(piece)
            entry = piece.number(to_entry + at["next"], 8)
        return found if entry == queue else []

    def _said(self, irqfd: Piece) -> tuple[int, ...]:
        return tuple(irqfd.number(self._at[name], size) for name, size in IRQFD_FIELDS.items())


def open_probed_routes(
    fs: HostFs | None = None, roots: Sequence[str] = paths.TRACEFS
) -> ProbedRoutes:
    """Has the kernel set its probes. Raises UnavailableError, which says what is lacking here."""
    fs = fs or LiveFs()
    if fs.recording is not None:
        raise UnavailableError("a recording has no kernel that could be asked")
    check_readable(fs)
    at = kernel_offsets(fs)
    last = at["wait"] + max(at["woken"], at["entry"] + at["next"])
    words = 1 + max(last, *(at[name] for name in IRQFD_FIELDS)) // 8
    if words > MOST_WORDS:
        raise UnavailableError("this kernel's structures are larger than are read")
    mounted = _mounted(roots)
    if not mounted:
        raise UnavailableError(
            f"{roots[0]}: tracefs is not to be had",
            hint=f"as root: mount -t tracefs tracefs {roots[0]}",
        )
    try:
        memory = KernelMemory(mounted[0], at, words)
    except OSError as error:
        raise UnavailableError(
            f"{error.filename or mounted[0]}: {error.strerror}", hint=_HINTS.get(error.errno or 0)
        ) from error
    return ProbedRoutes(fs, memory, at)


def clear_probed_routes(roots: Sequence[str] = paths.TRACEFS) -> None:
    """Take away what is left of the probes of one that was killed, if nobody uses them."""
    with suppress(OSError):
        for root in _mounted(roots):
            take_away(root)


def _mounted(roots: Sequence[str]) -> list[Path]:
    return [root for root in map(Path, roots) if (root / "instances").is_dir()]


def _is_kvms(symbol: str) -> bool:
    """Whether a waiter of this function is KVM's; others have one of that name, too."""
    name, _, module = symbol.partition(" ")
    return name.startswith(f"{WOKEN}+0x0/") and module in ("", "[kvm]")
