"""What each finding means and what to do about it, in one place for findings and ``explain``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from virtirq.model import Severity
from virtirq.values import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """`meaning` is for who has time, `remedy` is one line of what to do."""

    severity: Severity
    meaning: str
    remedy: str
    no_room: str = ""
    """What to do where `remedy` names `place`, and that has no CPUs to propose."""


_WARNING, _NOTE = Severity.WARNING, Severity.NOTE

ADVICE: Final[Mapping[str, Advice]] = MappingProxyType(
    {
        "vcpus-not-pinned": Advice(
            _WARNING,
            "The guest's vCPUs may run on every CPU, so no CPU is the right one for its"
            " interrupts. They go to CPUs local to the device, or stay where they are when the"
            " device has no NUMA node. Where only some may, the interrupts that follow those go to"
            " any CPU.",
            "pin the vCPUs: <vcpupin> in <cputune>, or virsh vcpupin",
        ),
        "emulator-not-pinned": Advice(
            _WARNING,
            "Interrupts are to go to the CPUs of the guest's emulator, and that may run on every"
            " CPU. They go to CPUs local to the device to which no vCPU is pinned, as long as"
            " there are any, or stay where they are when the device has no NUMA node.",
            "pin the emulator: <emulatorpin> in <cputune>, or virsh emulatorpin",
        ),
        "no-target": Advice(
            _WARNING,
            "What was asked for the device means no CPU at all, so its interrupts are left alone.",
            "ask for something else ('virtirq explain' says who asked), or remove the reason",
        ),
        "node-mismatch": Advice(
            _WARNING,
            "The guest's vCPUs run on another NUMA node than its device. Every DMA and every"
            " interrupt crosses the interconnect, wherever the interrupts are pinned.",
            "'virtirq place GUEST' shows where it could run; or give it a device on its node",
            "give it a device on its node: next to this one too few CPUs are free of other guests",
        ),
        "device-unclaimed": Advice(
            _WARNING,
            "Somebody uses the device by VFIO, and which guest that is cannot be told: libvirt does"
            " not know it, and no process was found that proves to hold the device. Its interrupts"
            " are left where they are.",
            "look as root, who sees what processes have open; 'virtirq status' says what is hidden;"
            " in a recording, name its guest by --domain",
        ),
        "device-not-pci": Advice(
            _NOTE,
            "VFIO hands out devices on other buses, too: a SoC's (vfio-platform), NXP's (fsl-mc),"
            " AMD's (cdx). virtirq moves interrupts of PCI functions alone, so those of this device"
            " stay where they are.",
            "pin them yourself: write the CPUs of its guest to /proc/irq/N/smp_affinity_list",
        ),
        "taken-elsewhere": Advice(
            _NOTE,
            "Interrupts of the guest's devices are taken on CPUs that other guests are pinned to:"
            " each interrupts that guest's vCPU, and wakes this one's from afar. It was counted"
            " while 'virtirq check' waited, so a guest at rest shows nothing.",
            "'virtirq status GUEST' shows which, 'virtirq explain GUEST' why; 'virtirq apply GUEST'"
            " or the daemon moves them",
        ),
        "host-interrupts-on-vcpus": Advice(
            _NOTE,
            "Interrupts of the host's own devices are taken on CPUs that guests' threads are pinned"
            " to, and each of them interrupts a guest. virtirq moves none that is no guest's.",
            "keep them off: irqaffinity=, isolcpus=managed_irq,... for those whose affinity the"
            " kernel manages, IRQBALANCE_BANNED_CPULIST, or the driver's own number of queues",
        ),
        "device-without-node": Advice(
            _NOTE,
            "The firmware does not say which NUMA node the device is on (numa_node is -1), so"
            " nothing can be said to be local to it.",
            "look for a firmware setting or update; an explicit CPU list works meanwhile",
        ),
        "irqbalance-running": Advice(
            _WARNING,
            "irqbalance moves interrupts by load and knows nothing of guests: it undoes pins at"
            " its start and when vectors are allocated again.",
            "start irqbalance with --banmod=vfio, or stop it",
        ),
        "irqbalance-untold": Advice(
            _WARNING,
            "The daemon tells irqbalance over its socket which interrupts to leave alone, and could"
            " not. irqbalance moves them; the daemon puts them back each time.",
            "start irqbalance with --banmod=vfio, or stop it",
        ),
        "affinity-contested": Advice(
            _WARNING,
            "Someone moves an interrupt as often as the daemon puts it back. After the first few"
            " times it waits longer and longer, so that the two do not spend a CPU on it.",
            "stop whoever moves it, or leave the device to them: 'native', by a [[rule]] or by"
            " 'virtirq set' for a guest of libvirt's",
        ),
        "guest-left-alone": Advice(
            _NOTE,
            "Somebody tries out where the guest's interrupts should be ('virtirq compare'), so the"
            " daemon leaves them alone meanwhile. It looks after them again as soon as that ends.",
            "nothing to do",
        ),
        "journal-unusable": Advice(
            _WARNING,
            "What interrupts had before virtirq moved them is kept in /run/virtirq, and that cannot"
            " be used as it is. Nothing is moved, and nothing put back, until it can: what it"
            " remembers would be lost.",
            "see the message; a file or directory that is not virtirq's is moved away",
        ),
        "guests-not-read": Advice(
            _WARNING,
            "Guests may run of which nothing is known, so nothing can be said of their interrupts."
            " They are left as they are.",
            "see to what keeps libvirt from telling; a host without it needs no libvirt-python",
        ),
        "libvirt-silent": Advice(
            _WARNING,
            "The daemon has lost its connection to libvirt, or libvirt does not answer: its own"
            " daemon was stopped, or hangs. Guests are kept as they were; one that starts, stops or"
            " is pinned anew meanwhile is not noticed, unless its process tells. The daemon"
            " connects again as soon as libvirt answers.",
            "see to libvirt's daemon: systemctl status libvirtd (or virtqemud)",
        ),
        "events-polled": Advice(
            _NOTE,
            "The kernel's events on interrupts cannot be had (tracefs is not mounted, or closed by"
            " lockdown or a container), so the daemon looks now and then: a new or moved interrupt"
            " may wait for half a minute.",
            "mount tracefs for the daemon, or start it outside of the container",
        ),
        "vectors-followed": Advice(
            _NOTE,
            "The daemon reads which of its vCPUs the guest aims each vector at, and has the host's"
            " interrupt on a CPU of that vCPU.",
            "nothing to do; [guest_vectors] follow = false switches it off",
        ),
        "vectors-not-followed": Advice(
            _NOTE,
            "Which of its vCPUs the guest aims each vector at could not be read from the host, so"
            " vector i goes to vCPU i modulo their number: to one of the guest's CPUs, but maybe"
            " not to that of the vCPU that handles it.",
            "see the reasons; any guest on x86 can be read by kernel probes, where the kernel has"
            " kprobes and BTF (CONFIG_KPROBE_EVENTS, CONFIG_DEBUG_INFO_BTF)",
        ),
        "interrupts-posted": Advice(
            _NOTE,
            "The host can post device interrupts straight to vCPUs, wherever they run. The kernel"
            " accepts an affinity for a posted interrupt and the hardware ignores it: where it is"
            " pinned changes nothing. Whether a vector is posted cannot be told from here.",
            "nothing to do: posted interrupts are better than pinned ones",
        ),
        "target-offline": Advice(
            _WARNING,
            "The CPUs that the directive means are offline. The kernel refuses a mask without an"
            " online CPU, and offlining the last CPU of a mask rewrites it for good.",
            "bring the CPUs online, or change the vCPU pinning or the CPU list",
        ),
        "isolated-conflict": Advice(
            _WARNING,
            "The target holds isolated or nohz_full CPUs that are not the guest's own: its"
            " interrupts would disturb what those CPUs are kept free for.",
            "take those CPUs out of the CPU list, or pin the guest's vCPUs or emulator elsewhere",
        ),
        "pinned-conflict": Advice(
            _WARNING,
            "Interrupts of one guest may be taken on CPUs that are dedicated to vCPUs of others,"
            " and take time from those. An unpinned guest's go to any CPU local to its device.",
            "pin the guest's vCPUs, or ask for other CPUs: 'local' keeps off all pinned vCPUs",
        ),
        "pool-on-isolated": Advice(
            _WARNING,
            "Several vCPUs may run on the same isolated CPUs. The kernel does not balance among"
            " those: each vCPU stays where it was started, with others or not.",
            "give each vCPU a CPU of its own: 'virtirq place GUEST' proposes which",
            "isolate more CPUs, or pin some vCPUs to others by <vcpupin>: too few isolated ones are"
            " free of other guests for one each",
        ),
        "vectors-low": Advice(
            _WARNING,
            "A CPU of x86 has room for about 200 interrupt vectors, and a target CPU has few"
            " left. When none is left the kernel refuses further interrupts there (ENOSPC).",
            "spread the guests over more CPUs, or give devices fewer queues",
        ),
        "intx-shared": Advice(
            _WARNING,
            "The device raises INTx on a line that others share. The line has one affinity, so"
            " it is moved only when all of it belongs to one guest.",
            "let the guest use MSI or MSI-X, or move the other device to another slot",
        ),
        "wrong-cpu": Advice(
            _WARNING,
            "Interrupts are delivered to another CPU than the plan says. Each costs the CPU it"
            " lands on, and reaches the vCPU by way of an inter-processor interrupt.",
            "run 'virtirq apply'",
        ),
        "wrong-node": Advice(
            _WARNING,
            "Interrupts are delivered on another NUMA node than their device's, although the"
            " plan has CPUs for them elsewhere: their handlers' memory is remote.",
            "run 'virtirq apply'",
        ),
        "place-unknown": Advice(
            _WARNING,
            "Where interrupts are now, or whose they are, could not be read, so nobody can say"
            " whether they are well placed.",
            "run as root on the host itself; 'virtirq status' lists what could not be read",
        ),
        "affinity-loose": Advice(
            _NOTE,
            "Interrupts are on a CPU that serves them well, but by chance: their affinity allows"
            " others, or another CPU was dealt to them so that they share the target evenly.",
            "run 'virtirq apply'",
        ),
        "device-missing": Advice(
            _WARNING,
            "The guest names a PCI device that this host does not have.",
            "compare the address in the guest's definition with lspci -D",
        ),
        "device-claimed-twice": Advice(
            _WARNING,
            "Two guests name the same PCI device. Only one of them can hold it; the first by"
            " name decides where its interrupts go.",
            "leave the device in one guest's definition",
        ),
        "rule-unmatched": Advice(
            _NOTE,
            "A [[rule]] of the configuration fits no device of the guests that are here now. It may"
            " be for one that does not run, or have a slip of the pen in it.",
            "compare its conditions with 'virtirq status'; 'virtirq config show' lists the rules",
        ),
        "setting-not-understood": Advice(
            _WARNING,
            "The guest's definition holds something about vCPUs, devices or virtirq's settings"
            " that has no effect or that this version cannot understand. It is left as it is,"
            " and counts as not set.",
            "correct the guest's definition (virsh edit), or update virtirq",
        ),
    }
)
