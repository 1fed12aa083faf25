"""What one reading of a guest's choices costs: ``python -m bench.peek``.

On the full lab's host, by libvirt's memory peek, of a disk with 16 vectors and of one with 128,
beside a bare round trip to libvirt and one peek of 4 bytes, in turns in one run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from lab import full, record_demo
from lab.full import GuestSpec

INSIDE = "/opt/lab/inside_peek.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    with full.lab() as host, tempfile.TemporaryDirectory() as made:
        record_demo.wheels(Path(made), host.python_version())
        host.install_wheels(Path(made))
        host.put(Path(__file__).with_name("inside_peek.py"), INSIDE)
        disks = {host.plug_nvme(node, vectors): vectors for node, vectors in ((0, 16), (1, 128))}
        with host.guest(GuestSpec("polled", hostdevs=tuple(disks))):
            words = [f"{address}={vectors}" for address, vectors in disks.items()]
            told = host.run(["python3", INSIDE, str(options.rounds), *words], timeout=600)
            print(told.stdout, end="")


if __name__ == "__main__":
    main()
