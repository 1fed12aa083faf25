"""How soon the daemon moves a new vector, beside a floor: ``python -m bench.reaction``.

On the full lab's host, in one boot and in turns: the daemon, and a C program that blocks on the
same event of the kernel and writes at once (``floor.c``). A device held through VFIO sets all its
vectors up again and again, no more often at once than the daemon lets a guest (`AT_ONCE`); the
times are the kernel's own. The ratio is what counts: the host is emulated. Every vector has to be
moved, by both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from lab import full, record_demo
from lab.full import E1000E, Host
from virtirq.policy.pace import AT_ONCE

HERE = Path(__file__).parent
NIC = E1000E[1]
CPUS = ("5", "6", "7")
FLOOR = "/sys/kernel/tracing/instances/floor"
FLOOR_EVENT = "requested request_threaded_irq irq=$arg1:u32 name=+0($arg5):string"
DOMAIN = """<domain><name>bench</name><vcpu>{count}</vcpu><cputune>{pins}</cputune><devices>
<hostdev mode='subsystem' type='pci'><source>
<address domain='0x{0}' bus='0x{1}' slot='0x{2}' function='0x{3}'/>
</source></hostdev></devices></domain>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=12, help="of five vectors, in each turn")
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    if options.rounds >= AT_ONCE:
        parser.error(f"--rounds {options.rounds}: from {AT_ONCE} on the daemon slows a guest down")
    with full.lab() as host:
        prepare(host)
        results: dict[str, list[dict[str, Any]]] = {"floor": [], "daemon": []}
        for _ in range(options.turns):
            results["floor"].append(with_floor(host, options.rounds))
            results["daemon"].append(with_daemon(host, options.rounds))
    medians = {name: report(name, found) for name, found in results.items()}
    print(f"median: {medians['daemon'] / medians['floor']:.1f} times the floor")


def prepare(host: Host) -> None:
    with tempfile.TemporaryDirectory() as made:
        wheels = Path(made, "wheels")
        wheels.mkdir()
        record_demo.wheels(wheels, host.python_version())
        host.install_wheels(wheels)
        floor = Path(made, "floor")
        compiler = shutil.which("gcc") or "cc"
        source = str(HERE / "floor.c")
        subprocess.run([compiler, "-O2", "-static", "-o", str(floor), source], check=True)
        host.put(floor, "/root/floor")
    for name in ("__init__", "vfio"):
        host.put(HERE.parent / f"lab/{name}.py", f"/root/bench/lab/{name}.py")
    host.put(HERE / "inside_reaction.py", "/root/bench/inside_reaction.py")
    pins = "".join(f"<vcpupin vcpu='{v}' cpuset='{cpu}'/>" for v, cpu in enumerate(CPUS))
    parts = NIC.replace(".", ":").split(":")
    host.write("/root/bench.xml", DOMAIN.format(*parts, count=len(CPUS), pins=pins))
    device = f"/sys/bus/pci/devices/{NIC}"
    host.run(
        f"echo {NIC} > {device}/driver/unbind; echo vfio-pci > {device}/driver_override;"
        f" echo {NIC} > /sys/bus/pci/drivers_probe"
    )


def measure(host: Host, pid: int, rounds: int) -> dict[str, Any]:
    words = ["python3", "inside_reaction.py", NIC, str(rounds), str(pid), *CPUS]
    done = host.run(f"cd /root/bench && {' '.join(words)}", timeout=900)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def with_floor(host: Host, rounds: int) -> dict[str, Any]:
    """As the daemon sets its own instance up, with the one event that is needed."""
    events = "/sys/kernel/tracing/kprobe_events"
    host.run(
        f"mkdir {FLOOR} && cd {FLOOR} && echo mono > trace_clock && echo 0 > buffer_percent"
        f" && echo 'p:floor/{FLOOR_EVENT}' >> {events}"
        " && echo 'name ~ \"vfio-*\"' > events/floor/requested/filter"
        " && echo 1 > events/floor/requested/enable"
    )
    job = host.spawn(f"exec /root/floor {FLOOR} {' '.join(CPUS)}")
    try:
        host.run(f"until grep -q ready {job.directory}/out; do sleep 0.1; done")
        return measure(host, job.pid, rounds)
    finally:
        job.signal("KILL")
        host.run(f"sleep 0.5; rmdir {FLOOR} && echo '-:floor/requested' >> {events}")


def with_daemon(host: Host, rounds: int) -> dict[str, Any]:
    job = host.spawn("exec virtirq --domain /root/bench.xml daemon")
    try:
        host.run(f"until grep -q 'at work' {job.directory}/out; do sleep 0.1; done")
        return measure(host, job.pid, rounds)
    finally:
        job.signal()
        job.wait()


def report(name: str, found: list[dict[str, Any]]) -> float:
    times: list[float] = sorted(each for one in found for each in one["seconds"])
    median = statistics.median(times)
    late = times[int(len(times) * 0.99)]
    unanswered, wrong, total = (
        sum(one[key] for one in found) for key in ("unanswered", "wrong", "interrupts")
    )
    print(
        f"{name}: {len(times)} vectors ({unanswered} not moved), ms: median {1e3 * median:.2f},"
        f" p99 {1e3 * late:.2f}, max {1e3 * times[-1]:.2f};"
        f" {wrong} of {total} interrupts on a wrong CPU after a vector's first 10 ms"
    )
    if unanswered:
        raise SystemExit(f"{name}: {unanswered} vectors were not moved, so the times mean nothing")
    return median


if __name__ == "__main__":
    main()
