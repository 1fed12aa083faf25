"""Inside the lab's host: what one reading of a guest's vectors costs. See `bench.peek`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from virtirq.guests.libvirt.connection import connected
from virtirq.guests.vectors.by_peek import PeekReader
from virtirq.host.fs import LiveFs
from virtirq.model import PciAddress

URI = "qemu:///system"
RAM = 1 << 20


def main(rounds: int, *devices: str) -> None:
    reader = PeekReader(URI)
    with connected(URI, write=True) as connection:
        (guest,) = connection.guests(LiveFs()).guests
        domain = connection.find(guest.uuid or guest.name)
        calls: dict[str, Callable[[], object]] = {
            "bare round trip": domain.isActive,
            "one peek of 4 bytes": partial(connection.peek, domain, RAM, 4),
        }
        for each in devices:
            address, vectors = each.split("=")
            wanted = {PciAddress.parse(address): dict.fromkeys(range(int(vectors)), 0)}
            calls[f"{vectors} vectors"] = partial(reader.read, guest, wanted)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):  # in turns, so that all see the same machine
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - began)
        floor = median(times["bare round trip"])
        for name, found in times.items():
            print(f"{name}: median {median(found) * 1e6:.0f} us, {median(found) / floor:.1f} x")
    reader.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
