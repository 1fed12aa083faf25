"""How soon the daemon moves a new vector under attack: ``python -m bench.attack``.

On the full lab's host, in one boot and in turns, without and with attackers: two hostile clients of
the status socket, threads that end as fast as an emulated processor ends them, a guest that
switches MSI-X off and on, and a guest whose QEMU hangs within a call of libvirt's. The ratio is
what counts, to turns in which the attackers' CPUs are as busy with nothing: the host is emulated on
fewer processors than it shows, and two loops that do nothing have been seen to make all of it six
times as slow.
"""

from __future__ import annotations

import argparse
from typing import Final

from lab import full
from tests.full.attackers import measure, prepare
from tests.full.hosts import install_warm

MOST: Final = 1.5
"""Times as long as without attackers, for the median of all new vectors: see `Measured.ratio`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--blocks", type=int, default=5, help="of 20 vectors, of each kind")
    options = parser.parse_args()
    with full.lab("guest") as host:
        install_warm(host)
        prepare(host)
        found = measure(host, host.live_guest(), options.blocks)
    print(found)
    assert found.ratio < MOST


if __name__ == "__main__":
    main()
