"""What the daemon costs while nothing happens: ``python -m bench.idle``.

On the full lab's host, with libvirt and a guest that holds devices: what each of the daemon's
threads asks of the kernel, by the kernel's own count, its CPU time and its memory; once as it is
by default, once with a listener for metrics that nobody asks.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab import full, record_demo
from lab.full import Host, Job

CONFIG = "/etc/virtirq/virtirq.toml"
LISTEN = '[metrics]\nlisten = "127.0.0.1:9951"\n'
TRACE = "/sys/kernel/tracing/instances/idle"
EVENT = f"{TRACE}/events/raw_syscalls/sys_enter"
ROW = re.compile(r"\{ common_pid: +(\d+), id: (\w+) +\[ *\d+\] \} hitcount: +(\d+)")
TICKS = 100  # of a second, sysconf(_SC_CLK_TCK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    with full.lab("guest") as host, tempfile.TemporaryDirectory() as made:
        record_demo.wheels(Path(made), host.python_version())
        host.install_wheels(Path(made))
        host.live_guest()
        host.write(CONFIG, LISTEN)
        with daemon(host):
            pass  # the first one compiles its modules, and keeps what that took
        for name, text in (("by default", ""), ("with a listener for metrics", LISTEN)):
            host.run(f"rm -f {CONFIG}")
            if text:
                host.write(CONFIG, text)
            with daemon(host) as job:
                time.sleep(5)  # what it began with is over
                print(f"{name}:")
                measure(job, options.seconds)


@contextmanager
def daemon(host: Host) -> Iterator[Job]:
    job = host.spawn("exec virtirq daemon")
    try:
        ready = f"until grep -q 'at work' {job.directory}/out; do sleep 0.1; done"
        host.run(ready, timeout=300)
        yield job
    finally:
        job.signal()
        job.wait()


def measure(job: Job, seconds: int) -> None:
    before = threads(job)
    chosen = " || ".join(f"common_pid == {tid}" for tid in before)
    count = f"hist:keys=common_pid,id.syscall if {chosen}"
    job.host.run(f"mkdir {TRACE} && echo '{count}' > {EVENT}/trigger")
    time.sleep(seconds)
    text = job.host.run(f"cat {EVENT}/hist").stdout
    job.host.run(f"echo '!{count}' > {EVENT}/trigger; rmdir {TRACE}")
    after = threads(job)
    if after.keys() != before.keys():
        print(f"  threads have come or gone: {sorted(before)}, {sorted(after)}")
    calls: Counter[tuple[int, str]] = Counter()
    for tid, call, hits in ROW.findall(text):
        calls[int(tid), call] += int(hits)
    print(f"  {calls.total()} system calls in {seconds} seconds")
    for tid, (name, switches, ticks) in after.items():
        own = Counter({call: hits for (each, call), hits in calls.items() if each == tid})
        told = ", ".join(f"{call} {hits}" for call, hits in own.most_common()) or "none"
        _, switches_before, ticks_before = before.get(tid, ("", switches, ticks))
        print(
            f"  thread {name}: woken {switches - switches_before} times,"
            f" {1000 * (ticks - ticks_before) // TICKS} ms of CPU time; calls: {told}"
        )
    print(
        f"  memory: {status(job.host, job.pid, 'VmRSS')}, most {status(job.host, job.pid, 'VmHWM')}"
    )


def threads(job: Job) -> dict[int, tuple[str, int, int]]:
    """Of each thread: its name, how often it was woken, its CPU time in ticks."""
    found = {}
    for tid in map(int, job.host.run(f"ls /proc/{job.pid}/task").stdout.split()):
        stat = job.host.read(f"/proc/{job.pid}/task/{tid}/stat").decode()
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()
        woken = int(status(job.host, tid, "voluntary_ctxt_switches"))
        found[tid] = (f"{tid} {name}", woken, int(fields[11]) + int(fields[12]))
    return found


def status(host: Host, pid: int, field: str) -> str:
    text = host.read(f"/proc/{pid}/status").decode()
    (value,) = re.findall(rf"^{field}:\s*(.*)$", text, re.MULTILINE)
    return str(value)


if __name__ == "__main__":
    main()
