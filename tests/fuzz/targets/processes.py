"""What processes of anybody say of themselves, and what ``/proc`` shows of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from tests.fuzz.engine import Feed, files, lines, need, pieces, target, text_of
from tests.hostmaker import MadeHost, passthrough
from virtirq.guests.processes.affinity import Processes
from virtirq.guests.processes.command_line import read_command_line
from virtirq.guests.processes.descriptors import Kind, classify, read_descriptors
from virtirq.guests.processes.find import find_processes
from virtirq.guests.processes.monitor import monitor_of
from virtirq.guests.processes.owners import owner_of, speaks_for_root
from virtirq.guests.processes.qemu import pairs, read_qemu
from virtirq.guests.processes.threads import (
    allowed,
    named_threads,
    numbers,
    started_in,
    stat_fields,
    workers,
)
from virtirq.guests.processes.values import MOST_NAME, split
from virtirq.host.fs import HostFs, Reader
from virtirq.host.irqbalance import read_irqbalance, read_start, read_version
from virtirq.host.statx import FileId
from virtirq.model import Guest, PciAddress, Vcpu

NIC = PciAddress.parse("0000:82:00.0")
_UUID = "6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d99"
_WORDS = (
    "-device --device -set -drive -blockdev -name -uuid -smbios -id -qmp -mon -chardev vfio-pci"
    " host= sysfsdev= id=a device.a.host=82:00.1 driver= ,, , = nvme:// unix: mode=control json:"
    ' {"driver":"nvme","device":"0000:41:00.0"} guest= debug-threads=on --vfio path= --platform'
    " system_uuid= run --vfio-pci kubevirt socket,path= 82:00.0 /sys/bus/pci/devices/0000:82:00.0"
)


def _lines_of_words() -> list[bytes]:
    found = files("guests/processes/commandlines/*.txt")()
    return [each.replace(b"\0", b"\n") for each in found]


def _list(text: str, implied: str) -> dict[str, str]:
    """QEMU's ``key=value,…``, character by character (util/qemu-option.c)."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        key = ""
        while at < len(text) and text[at] not in "=,":
            key, at = key + text[at], at + 1
        if at < len(text) and text[at] == "=":
            at += 1
        elif not found and implied and at == len(key):
            at, key = 0, implied
        else:
            found[key], at = "on", at + 1
            continue
        value = ""
        while at < len(text):
            if text[at] == ",":
                if text[at + 1 : at + 2] != ",":
                    break
                at += 1
            value, at = value + text[at], at + 1
        found[key], at = value, at + 1
    return found


def _hosts(words: list[str]) -> Iterator[str]:
    """The addresses of ``-device vfio-pci,host=``, where nothing else may say more."""
    for place, word in enumerate(words[1:-1], start=1):
        if word in ("-device", "--device"):
            told = _list(words[place + 1], "driver")
            if told.get("driver") == "vfio-pci" and "sysfsdev" not in told and "host" in told:
                yield told["host"]


@target("command-line", _lines_of_words, _WORDS, steps=150, most=50_000)
def command_line(data: bytes) -> None:
    words = split(text_of(data).replace("\n", "\0"))
    told = read_command_line(words)
    need(told.name is None or told.name.isprintable(), "a name to show")
    need(told.name is None or len(told.name) <= MOST_NAME + 1, "a name of some length")
    need(told.uuid is None or re.fullmatch("[0-9a-f-]{36}", told.uuid), "a UUID")
    need(len(set(told.devices)) == len(told.devices) <= len(data), "each device once")
    need(read_command_line(words) == told, "read twice, it is the same")
    path = monitor_of(words)
    need(
        path is None or any(path.replace(",", ",,") in each or path in each for each in words),
        "a monitor that is named",
    )


@target("qemu-options", _lines_of_words, _WORDS, steps=150, most=50_000)
def qemu_options(data: bytes) -> None:
    words = split(text_of(data).replace("\n", "\0"))
    for each in words[:50]:
        need(pairs(each) == _list(each, ""), "keys and values as QEMU reads them")
        need(pairs(each, "driver") == _list(each, "driver"), "and with the first key left out")
    if any(each.lstrip("-") in ("set", "drive", "blockdev") or "{" in each for each in words):
        return
    hosts = {text.strip().lower() for text in _hosts(["qemu", *words])}
    form = r"(?:(?:0x)?([0-9a-f]{1,8}):)?(?:0x)?([0-9a-f]{1,4}):(?:0x)?([0-9a-f]{1,4})\.([0-7])"
    read = {
        PciAddress(int(m[1] or "0", 16), int(m[2], 16), int(m[3], 16), int(m[4]))
        for text in hosts
        if (m := re.fullmatch(form, text, re.ASCII)) and int(m[2], 16) < 256 and int(m[3], 16) < 32
    }
    need(read <= set(read_qemu(["qemu", *words]).devices), "the devices that it is given")


def _process(pid: int, files: dict[str, str]) -> dict[str, str]:
    return {f"/proc/{pid}/{name}": text for name, text in files.items()}


_STATUS = (
    "Name:\tqemu\nTgid:\t{pid}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapPrm:\t{cap}\n"
    "Cpus_allowed_list:\t{cpus}\n"
)
_STAT = "{pid} (qemu) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {started} 0 0" + " 0" * 30


@target(
    "proc-files",
    lines(
        _STATUS.format(pid=7, uid=0, cap="000001ffffffffff", cpus="0-3")
        + "\x1e"
        + _STAT.format(pid=7, started=4711)
        + "\x1epos:\t0\nflags:\t0100002\nmnt_id:\t15\nino:\t77\n"
        "vfio-device-syspath: /sys/devices/pci0000:80/0000:82:00.0\n\x1e/dev/vfio/12\x1eCPU "
        "0/KVM\x1e7",
        "Uid:\t5\t5\t5\n\x1e7 (a) b) S "
        "1\x1eflags:\t09\n\x1eanon_inode:[vfio-device]\x1evcpu3\x1e 8 9",
        "\x1e\x1eflags:\t0100002\nmnt_id:\t15\nino:\t77\n\x1e/dev/vfio/devices/vfio0\x1e\x1e",
    ),
    "Uid:\t CapPrm:\t Cpus_allowed_list:\t flags:\t mnt_id:\t ino:\t pos:\t "
    "vfio-device-syspath: anon_inode:"
    " [vfio-device] kvm-vcpu:1 /dev/vfio/12 /dev/vfio/devices/vfio0 (deleted) CPU fc_vcpu ) 0-3",
)
def proc_files(data: bytes) -> None:
    """Whatever stands in a process's files, an answer comes of it, and no number without a "
    "bound."""
    parts = [text_of(each) for each in pieces(data, 6)]
    status, stat, info, link, comm, children = parts
    files = _process(7, {"status": status, "stat": stat, "fdinfo/3": info, "cmdline": "x"})
    files |= _process(7, {"task/7/status": status, "task/7/comm": comm, "task/7/stat": stat})
    files |= _process(7, {"task/7/children": children})
    host = MadeHost(
        devices=(passthrough(str(NIC)),),
        files=files,
        links={"/proc/7/fd/3": link, "/sys/dev/char/511:0": "../../devices/virtual/vfio/12"},
        opened={"/proc/7/fd/3": FileId(77, 15, "511:0")},
    )
    fs = host.live()
    owner = owner_of(fs, 7)
    need(owner is None or not owner.root or owner.uid == 0, "root is user 0")
    need(owner is None or str(owner.uid) in status, "a user that is told")
    need(not speaks_for_root(fs, 7, owner) or (owner is not None and owner.root), "root's word")
    cpus = allowed(fs, 7, 7)
    need(cpus is None or cpus, "some CPUs, or not known")
    started = started_in(stat_fields(stat))
    need(started is None or 0 <= started < 10**20, "a start")
    threads = named_threads(fs, 7)
    need(all(0 <= each < 100_000 for each in threads.vcpus), "a vCPU's number has a bound")
    need(workers(fs, 7).vcpus == () or cpus is not None, "threads whose CPUs are known")
    found = classify(link)
    held = read_descriptors(fs, 7, ["3"])
    if held.groups:
        need(found is not None and found.kind in (Kind.GROUP, Kind.CDEV), "a file worth a look")
        first = re.match(r"pos:\t-?\d+\nflags:\t([0-7]+)\nmnt_id:\t15(\n|$)", info, re.ASCII)
        need(first and not int(first[1], 8) & 0o10000000, "it was opened, as the kernel says first")
    if held.devices:
        need("vfio-device-syspath: /sys/devices/" in info, "a device that the kernel tells of")
    need(not (held.groups or held.cdevs) or "/vfio/" in link, "a path that is worth a look")
    need(numbers(fs, "/proc") == [7], "the processes that there are")


class _Impostor:
    """A host on which user 1000 has a process that says whatever it likes of itself."""

    def __init__(self, feed: Feed) -> None:
        uid = feed.pick((1000, 1000, 65534))
        parts = [*map(text_of, feed.parts()), "", "", ""]
        # What a link shows of a file without a path is the kernel's word, and not the process's.
        links = ["/" + each.lstrip("/") for each in parts[3:40]]
        status = _STATUS.format(pid=77, uid=uid, cap="0" * 16, cpus="3")
        told = {"status": status, "stat": _STAT.format(pid=77, started=5), "cmdline": parts[0]}
        told |= {"task/77/status": status, "comm": parts[1], "task/77/comm": parts[2]}
        told |= {f"fdinfo/{n}": _PLAIN for n in range(len(links))} | {"loginuid": "1000"}
        kept = {name: text for name, text in told.items() if text}
        self.fs = MadeHost(
            devices=(passthrough(str(NIC), iommu_group=12),),
            files=_process(77, kept) | {f"/sys/bus/pci/devices/{NIC}/enable": "1"},
            links={f"/proc/77/fd/{n}": each for n, each in enumerate(links)}
            | {"/sys/class/vfio-dev/vfio0": f"../../devices/pci0000:80/{NIC}/vfio-dev/vfio0"},
            opened={f"/proc/77/fd/{n}": FileId(1, 30) for n in range(len(links))},
        ).live()
        self.links = links


_PLAIN = "pos:\t0\nflags:\t0100002\nmnt_id:\t30\nino:\t1\n"


@target(
    "impostor",
    lines(
        f"\0qemu-system-x86_64\0-uuid\0{_UUID}\0-device\0vfio-pci,host=82:00.0\0\x1eqemu\x1e"
        "CPU 0/KVM\x1e/home/me/vfio/devices/vfio0\x1e/dev/vfio/12\x1e/memfd:/dev/vfio/12 (deleted)",
        f"\0lkvm\0run\0--vfio-pci\0{NIC}\0\x1elkvm\x1ekvm-vcpu-0\x1e/dev/vfio/noiommu-12",
    ),
    _WORDS + " /vfio/ /vfio/devices/vfio0 (deleted) anon_inode:[vfio-device] anon_inode:kvm-vcpu:0",
    steps=150,
    most=50_000,
)
def impostor(data: bytes) -> None:
    """Nothing that a user's process says, is called or has a path to makes it a guest."""
    made = _Impostor(Feed(data))
    calls: Counter[str] = Counter()
    made.fs.before = lambda call, _path: calls.update([call])
    found = find_processes(made.fs)
    need(found.guests == (), "it has nothing open of VFIO's")
    need(all(each.name.isprintable() for each in found.claimed), "a claim that can be shown")
    need(calls.total() < 200 + 8 * len(made.links), "what is looked at grows with what it has")
    guest = Guest("web", "libvirt", uuid=_UUID, vcpus=(Vcpu(0),))
    need(Processes(made.fs).seen(guest) is None, "it has no vCPU of KVM's")


@target(
    "irqbalance-process",
    lines(
        "\0/usr/sbin/irqbalance\0--foreground\0--banmod=vfio-pci\0\x1e7 (irqbalance) S "
        "1\x1eirqbalance"
        " version 1.9.4",
        "\0irqbalance\0-m\0vfio\0-i\065\0\x1e\x1e",
        "\0sh\0\x1e\x1e",
    ),
    "--banmod= -m --banirq= irqbalance --help -- version 1.9",
)
def irqbalance_process(data: bytes) -> None:
    arguments, stat, program = [text_of(each) for each in pieces(data, 3)]
    host = MadeHost(
        devices=(passthrough(str(NIC)),),
        irqbalance=7,
        files={"/proc/7/cmdline": arguments, "/proc/7/stat": stat, "/proc/7/exe": program},
    )
    fs: HostFs = host.live()
    found = read_irqbalance(Reader(fs))
    need(found.running in (True, False), "it runs or it does not")
    need(not found.spares_vfio or found.banned, "it spares what it was told to spare")
    need(all(each in arguments for each in found.banned), "modules that it was told of")
    started, version = read_start(fs, 7), read_version(fs, 7)
    need(started is None or str(started) in stat.replace("_", ""), "a start that is told")
    need(version is None or max(version) < 10_000, "a version")
