"""A process that looks like QEMU, for a made host: it has a device open, and threads like vCPUs.

    exec -a qemu-system-x86_64 python3 vmm.py FILE CPU,CPU -name guest=web -device vfio-pci,host=…

Nothing runs in it. FILE is the device's; a thread for each CPU has the name that QEMU gives to a
vCPU's, and may run there alone.
"""

from __future__ import annotations

import os
import sys
import threading


def vcpu(number: int, cpu: int) -> None:
    os.sched_setaffinity(0, [cpu])
    with open("/proc/thread-self/comm", "w") as name:
        name.write(f"CPU {number}/KVM")
    threading.Event().wait()


if __name__ == "__main__":
    os.open(sys.argv[1], os.O_RDWR)
    for number, cpu in enumerate(sys.argv[2].split(",")):
        threading.Thread(target=vcpu, args=(number, int(cpu))).start()
