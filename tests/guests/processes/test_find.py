"""Guests found by their processes: what is held, whose it is, what cannot be seen."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.hostmaker import MadeDevice, MadeFs, MadeHost
from virtirq.cpuset import CpuSet
from virtirq.guests.processes import arguments, descriptors, holders
from virtirq.guests.processes.find import SOURCE, Found, find_processes, read_process, still_there
from virtirq.host import paths
from virtirq.host.statx import FileId
from virtirq.model import Gap, Guest, GuestDevice, PciAddress, Vcpu

A, B, C, D = (PciAddress.parse(f"0000:4{digit}:00.0") for digit in "1234")
GROUPS = {A: 7, B: 7, C: 9, D: 12}
UUID = "6f0b9be0-6f0c-4c6b-9e0a-8f2f3a6f2d11"
DEVICE = "anon_inode:[vfio-device]"
DENIED = "Permission denied"


def told(address: PciAddress) -> str:
    """What fdinfo says of an open device since 6.18."""
    return f"pos:\t0\nvfio-device-syspath: /sys/devices/pci0000:40/0000:40:01.0/{address}\n"


@dataclass(frozen=True)
class Forged:
    """A descriptor that shows this path, and is some other file; or it was opened by O_PATH."""

    link: str
    o_path: bool = False


ROOTS = "000001ffffffffff"
"""All capabilities; those of a container's root are fewer."""


@dataclass(frozen=True)
class Made:
    """A process. `fds` are links, or for a device that the kernel tells of its address.

    What looks like a group or a device is one, unless it is `Forged`.
    """

    pid: int
    words: Sequence[str] = ()
    fds: Sequence[str | PciAddress | Forged] = ()
    threads: Sequence[tuple[str, str]] = ()
    parent: int = 1
    children: Sequence[int] = ()
    uid: int = 0
    started: int | None = None
    capabilities: str | None = None
    login: int | None = None

    def files(self) -> dict[str, str]:
        base = f"/proc/{self.pid}"
        threads = self.threads or (("x", "0-7"),)
        started = self.pid if self.started is None else self.started
        found = {
            f"{base}/cmdline": "\0".join(self.words),
            f"{base}/comm": threads[0][0],
            f"{base}/stat": f"{self.pid} ({threads[0][0]}) S {self.parent}{' 0' * 17} {started} 0",
            f"{base}/task/{self.pid}/children": " ".join(map(str, self.children)),
        }
        for tid, (name, cpus) in enumerate(threads, start=self.pid):
            task = f"{base}/task/{tid}"
            uids = "\t".join([str(self.uid)] * 4)
            found[f"{task}/comm"] = name
            found[f"{task}/stat"] = f"{tid} ({name}) S 1{' 0' * 48}"
            found[f"{task}/status"] = (
                f"Name:\t{name}\nTgid:\t{self.pid}\nUid:\t{uids}\n"
                f"CapPrm:\t{self._permitted}\nCpus_allowed_list:\t{cpus}\n"
            )
        if self.login is not None:
            found[f"{base}/loginuid"] = str(self.login)
        for number, each in enumerate(self.fds):
            where = f"{base}/fdinfo/{number}"
            if isinstance(each, PciAddress):
                found[where] = told(each)
            elif isinstance(each, Forged):
                flags = "012000000" if each.o_path else "0100002"
                found[where] = info(each.link if each.o_path else "", flags)
            elif "/vfio/" in each:
                found[where] = info(each)
        return found

    @property
    def _permitted(self) -> str:
        return self.capabilities or (ROOTS if self.uid == 0 else "0" * 16)

    def links(self) -> dict[str, str]:
        return {f"/proc/{self.pid}/fd/{number}": link_of(each) for number, each in self._fds()}

    def opened(self) -> dict[str, FileId]:
        return {
            f"/proc/{self.pid}/fd/{number}": behind(link_of(each))
            for number, each in self._fds()
            if not isinstance(each, Forged) or each.o_path
        }

    def _fds(self) -> Iterator[tuple[int, str | PciAddress | Forged]]:
        return iter(enumerate(self.fds))


def link_of(each: str | PciAddress | Forged) -> str:
    if isinstance(each, PciAddress):
        return DEVICE
    return each.link if isinstance(each, Forged) else each


def behind(link: str) -> FileId:
    """The file of /dev at this path, wherever that is mounted."""
    if match := re.search(r"/vfio/(?:noiommu-)?([0-9]{1,9})( \(deleted\))?$", link, re.ASCII):
        return FileId(1000 + int(match[1]), 17, f"243:{match[1]}")
    if match := re.search(r"/vfio/devices/vfio([0-9]{1,9})( \(deleted\))?$", link, re.ASCII):
        return FileId(2000 + int(match[1]), 17, f"511:{match[1]}")
    return FileId(1, 1)


def info(link: str, flags: str = "0100002") -> str:
    file = behind(link)
    return f"pos:\t0\nflags:\t{flags}\nmnt_id:\t{file.mount}\nino:\t{file.ino}\n"


INIT = Made(1, ["/sbin/init"], ["/dev/null"])
NOISE = (
    INIT,
    Made(2, threads=[("kthreadd", "0-7")]),
    Made(30, ["bash"], ["/dev/pts/0", "socket:[77]", "/home/me/vfio/7"]),
)


@dataclass(frozen=True)
class Scene:
    """A host with devices A and B in group 7, C in group 9 and D in group 12."""

    processes: Sequence[Made] = ()
    opened: Sequence[PciAddress] = (A, B, C, D)
    hidden: Sequence[int] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    removed: Sequence[str] = ()

    def host(self) -> MadeHost:
        files: dict[str, str] = {}
        links: dict[str, str] = {}
        for index, address in enumerate(GROUPS):
            files[paths.PCI_ENABLE.at(address)] = str(int(address in self.opened))
            where = f"../../devices/pci0000:40/{address}/vfio-dev/vfio{index}"
            links[f"/sys/class/vfio-dev/vfio{index}"] = links[f"/sys/dev/char/511:{index}"] = where
        for group in {*GROUPS.values(), 31}:
            links[f"/sys/dev/char/243:{group}"] = f"../../devices/virtual/vfio/{group}"
        for each in (*NOISE, *self.processes):
            files |= each.files()
            links |= each.links()
        return MadeHost(
            devices=[MadeDevice(str(each), iommu_group=group) for each, group in GROUPS.items()],
            files={**files, **self.files},
            links={**links, **self.links},
            opened={path: file for each in self.processes for path, file in each.opened().items()},
            removed=self.removed,
        )

    def fs(self) -> MadeFs:
        made = self.host().live()
        for pid in self.hidden:
            made.faults["listdir", f"/proc/{pid}/fd"] = errno.EACCES
        return made

    def found(self, known: Sequence[Guest] = ()) -> Found:
        return find_processes(self.fs(), known)


KVM = ("/dev/kvm", "anon_inode:kvm-vm", "anon_inode:kvm-vcpu:0", "anon_inode:kvm-vcpu:1")
QEMU_THREADS = (("qemu-system-x86", "0-7"), ("CPU 0/KVM", "4"), ("CPU 1/KVM", "5"))
QEMU = Made(
    100,
    f"/usr/bin/qemu-system-x86_64 -name guest=web -uuid {UUID} -device vfio-pci,host={A}".split(),
    [*KVM, "/dev/vfio/vfio", "/dev/vfio/7", DEVICE],
    [*QEMU_THREADS, ("IO iothread1", "6")],
)
WEB = Guest(
    "web",
    SOURCE,
    uuid=UUID,
    pid=100,
    vcpus=(Vcpu(0, CpuSet([4]), 101), Vcpu(1, CpuSet([5]), 102)),
    emulator=CpuSet.parse("0-7"),
    iothreads={1: CpuSet([6])},
    devices=(GuestDevice(A, "vfio"),),
    owner=0,
    started=100,
)
QEMU_OF_A = replace(QEMU, pid=90, fds=[*KVM, A])
DPDK = Made(
    200,
    ["dpdk-testpmd", "-l", "2-4", "-a", str(C)],
    ["/dev/vfio/vfio", "/dev/vfio/9", DEVICE],
    [("dpdk-testpmd", "2"), ("dpdk-intr", "0-1,5-7"), ("dpdk-worker3", "3"), ("dpdk-worker4", "4")],
)


def devices(found: Found) -> dict[str, list[PciAddress]]:
    return {guest.name: [device.address for device in guest.devices] for guest in found.guests}


# Hosts on which everything is read that this source may read: tests/host/test_paths.py.
SCENES: Mapping[str, MadeHost] = {
    "processes": Scene(
        [replace(QEMU, fds=[*QEMU.fds, C]), DPDK, replace(QEMU, pid=300, fds=[DEVICE], login=7)],
        files={"/sys/kernel/debug/kvm/100-9/vcpu0/pid": "101"},
        links={"/proc/self/ns/pid": "pid:[4026531836]", "/proc/200/exe": "/opt/dpdk/testpmd"},
    ).host(),
    "unnamed threads": Scene([replace(QEMU, threads=[("q", "0"), ("q", "1")])]).host(),
    "processes on an old kernel": Scene(
        [QEMU],
        removed=["/sys/class/vfio-dev"],
    ).host(),
}
OURS = (
    *(paths.VFIO_DEVICE, paths.PCI_DRIVER, paths.PCI_IOMMU_GROUP, paths.PCI_ENABLE),
    *(paths.KVM_VCPU_THREAD, paths.PID_NAMESPACE),
    *(paths.PROCESS_NAME, paths.PROCESS_STAT, paths.PROCESS_ARGUMENTS),
    *(paths.PROCESS_DESCRIPTOR, paths.DESCRIPTOR_INFO, paths.CHAR_DEVICE, paths.LOGIN_USER),
    *(
        paths.PROCESS_PROGRAM,
        paths.THREAD_NAME,
        paths.THREAD_STAT,
        paths.THREAD_STATUS,
        paths.THREAD_CHILDREN,
    ),
)


def test_what_is_read_is_in_the_manifest() -> None:
    read = set()
    for host in SCENES.values():
        fs = host.live()
        find_processes(fs)
        read_process(fs, 100)
        read |= {path for operation, path in fs.calls if operation in ("read", "readlink")}
        assert {operation for operation, _ in fs.calls} <= {
            "read",
            "readlink",
            "listdir",
            "file_id",
        }
    kinds = {each: re.compile(each.glob.replace("*", "[^/]+")) for each in OURS}
    assert all(any(kind.fullmatch(path) for kind in kinds.values()) for path in read)
    assert all(any(kind.fullmatch(path) for path in read) for kind in kinds.values())


class TestWhatIsFound:
    def test_a_machine(self) -> None:
        assert Scene([QEMU], opened=[A]).found() == Found((WEB,))

    def test_a_process_without_vcpus(self) -> None:
        found = Scene([DPDK], opened=[C]).found()
        assert found == Found(
            (
                Guest(
                    "dpdk-testpmd-200",
                    SOURCE,
                    pid=200,
                    vcpus=tuple(
                        Vcpu(index, CpuSet([index + 2]), tid)
                        for index, tid in enumerate((200, 202, 203))
                    ),
                    emulator=CpuSet.parse("0-7"),
                    devices=(GuestDevice(C, "vfio"),),
                    kind="process",
                    owner=0,
                    started=200,
                ),
            )
        )

    def test_dpdk_as_recorded(self) -> None:
        """DPDK 24.11 with a NIC, in the lab: main lcore 1, and two more; address and group made."""
        words = f"/opt/dpdk/dpdk-testpmd -l 1,2,3 --no-huge -m 96 -a {C} -d librte_net_e1000.so.25"
        held = "/dev/vfio/9", DEVICE, "anon_inode:[eventfd]", "anon_inode:[eventfd]"
        others = "anon_inode:[eventpoll]", "anon_inode:[timerfd]", "/dev/vfio/vfio", "socket:[1261]"
        threads = [
            ("dpdk-testpmd", "1"),
            ("dpdk-intr", "0,4-7"),
            ("dpdk-mp-msg", "0,4-7"),
            ("dpdk-worker2", "2"),
            ("dpdk-worker3", "3"),
            ("dpdk-telemet-v2", "0,4-7"),
            ("dpdk-telemet-v1", "0,4-7"),
        ]
        fds = ["/root/pipe", "/memfd:nohuge (deleted)", *held, *others]
        (guest,) = Scene([Made(579, words.split(), fds, threads)], opened=[C]).found().guests
        assert (guest.name, guest.kind, guest.devices) == (
            "dpdk-testpmd-579",
            "process",
            (GuestDevice(C, "vfio"),),
        )
        assert [str(each.cpus) for each in guest.vcpus] == ["1", "2", "3"]

    def test_several_by_name(self) -> None:
        found = Scene([QEMU, DPDK], opened=[A, C]).found()
        assert devices(found) == {"dpdk-testpmd-200": [C], "web": [A]}
        assert found.gaps == ()

    @pytest.mark.parametrize("stem", ["cloud-hypervisor", "crosvm", "proxmox", "kubevirt"])
    def test_recorded_command_lines(self, stem: str) -> None:
        head, _, words = (
            (Path(__file__).parent / "commandlines" / f"{stem}.txt").read_text().partition("\n\n")
        )
        process = replace(QEMU, words=words.splitlines(), threads=[("m", "0"), ("vcpu0", "1")])
        (guest,) = Scene([process], opened=[A]).found().guests
        name = dict(line.split(": ") for line in head.splitlines()).get("name") or f"{stem}-100"
        assert (guest.name.strip(), guest.kind) == (name.strip(), "machine")

    def test_no_vfio_no_look_at_processes(self) -> None:
        no_vfio = ["/sys/class/vfio-dev", f"{paths.PCI_DIR}/*/driver"]
        fs = Scene([QEMU], removed=no_vfio).fs()
        assert find_processes(fs) == Found()
        assert not any(path.startswith("/proc") for _, path in fs.calls)

    def test_nothing_is_open(self) -> None:
        fs = Scene([QEMU], opened=[]).fs()
        assert find_processes(fs) == Found()
        assert not any(path.startswith("/proc") for _, path in fs.calls)

    def test_a_recording_has_no_processes(self) -> None:
        fs = Scene([QEMU]).fs()
        fs.recording = "a recording"
        assert find_processes(fs) == read_process(fs, 100) == Found()

    def test_a_machine_without_pci_functions_is_none_of_ours(self) -> None:
        mediated = replace(QEMU, fds=[*KVM, "/dev/vfio/31", DEVICE], words=["qemu-system-x86_64"])
        assert Scene([mediated], opened=[A]).found() == Found()

    def test_a_container_or_a_group_alone_holds_nothing(self) -> None:
        idle = Made(300, ["x"], ["/dev/vfio/vfio", "/dev/iommu", "/dev/vfio/7", "/dev/vfio/9"])
        assert Scene([idle], opened=[A]).found() == Found()


class TestWhichDevices:
    def held(self, *fds: str | PciAddress, named: str = "", opened: str = "ABCD") -> str:
        words = ["qemu-system-x86_64"]
        for letter in named:
            words += ["-device", f"vfio-pci,host={globals()[letter]}"]
        process = replace(QEMU, words=words, fds=[*KVM, *fds])
        found = Scene([process], opened=[globals()[each] for each in opened]).found()
        held = {device.address for guest in found.guests for device in guest.devices}
        return "".join(letter for letter in "ABCD" if globals()[letter] in held)

    def test_the_only_one_of_its_group(self) -> None:
        assert self.held("/dev/vfio/9", DEVICE) == "C"

    def test_all_of_the_group_that_are_open(self) -> None:
        assert self.held("/dev/vfio/7", DEVICE, DEVICE) == "AB"

    def test_the_group_has_one_that_nobody_opened(self) -> None:
        assert self.held("/dev/vfio/7", DEVICE, opened="ACD") == "A"

    def test_more_seem_open_than_it_has_descriptors(self) -> None:
        assert self.held("/dev/vfio/7", DEVICE, named="B") == "B"

    def test_named_and_hot_plugged(self) -> None:
        assert self.held("/dev/vfio/7", DEVICE, DEVICE, named="A") == "AB"
        assert self.held("/dev/vfio/7", "/dev/vfio/9", DEVICE, DEVICE, named="A") == "ABC"

    def test_named_and_unplugged(self) -> None:
        assert self.held("/dev/vfio/7", DEVICE, named="AC", opened="A") == "A"

    def test_nobody_can_tell_which(self) -> None:
        """Better one too many, which has no interrupts, than one too few."""
        assert self.held("/dev/vfio/7", DEVICE) == "AB"

    def test_the_kernel_tells(self) -> None:
        assert self.held("/dev/vfio/7", B, named="A") == "B"
        assert self.held(A, C) == "AC"

    def test_by_its_own_name(self) -> None:
        assert self.held("/dev/iommu", "/dev/vfio/devices/vfio1", "/dev/vfio/devices/vfio3") == "BD"
        assert self.held("/dev/vfio/devices/vfio9") == ""

    def test_by_its_own_name_and_not_bound_yet(self) -> None:
        assert self.held("/dev/vfio/devices/vfio1", opened="A") == ""

    def test_no_group_but_a_device(self) -> None:
        assert self.held(DEVICE, named="D") == "D"
        assert self.held("/", DEVICE) == ""

    def test_without_iommu(self) -> None:
        assert self.held("/dev/vfio/noiommu-12", DEVICE) == "D"

    def test_in_a_container(self) -> None:
        assert self.held("/dev/vfio/12 (deleted)", DEVICE) == "D"
        assert self.held("/vfio/12", DEVICE) == "D"


class TestPrograms:
    RENAMED = replace(QEMU, words=["microvm@web", *QEMU.words[1:]])
    EXE: Mapping[str, str] = {"/proc/100/exe": "/nix/store/a/bin/qemu-system-x86_64 (deleted)"}

    def test_by_what_was_executed(self) -> None:
        assert Scene([self.RENAMED], opened=[A], links=self.EXE).found() == Found((WEB,))

    def test_by_its_name_where_that_is_hidden(self) -> None:
        assert Scene([self.RENAMED], opened=[A], hidden=[100]).found() == Found((WEB,))
        other = replace(self.RENAMED, threads=[("x", "0-7"), *QEMU.threads[1:]])
        assert Scene([other], opened=[A], hidden=[100]).found().guests == ()

    def test_what_may_not_be_looked_at(self) -> None:
        fs = Scene([self.RENAMED], opened=[A], links=self.EXE).fs()
        fs.faults["/proc/100/exe"] = errno.EACCES
        assert find_processes(fs) == Found((WEB,))

    def test_where_threads_cannot_be_told_and_all_may_run_alike(self) -> None:
        unnamed = replace(QEMU, threads=[("kvm", "4-7")] * 5)
        (guest,) = Scene([unnamed], opened=[A], hidden=[100]).found().guests
        assert guest.vcpus == (Vcpu(0, CpuSet.parse("4-7")),)
        (guest,) = Scene([unnamed], opened=[A]).found().guests
        assert guest.vcpus == (Vcpu(0, CpuSet.parse("4-7")), Vcpu(1, CpuSet.parse("4-7")))


class TestFamilies:
    """crosvm runs each device in a process of its own, which was forked from the first."""

    WORDS = ("crosvm", "run", "--name", "arc", "--vfio", f"/sys/bus/pci/devices/{A}")
    MAIN = Made(
        400,
        WORDS,
        [*KVM, "/dev/vfio/vfio", "/dev/vfio/7", "/dev/vfio/9"],
        [("arc", "0-7"), ("crosvm_vcpu0", "2"), ("crosvm_vcpu1", "3")],
        parent=350,
        children=[410, 420, 430],
    )
    JAIL = Made(410, WORDS, (), parent=400, children=[411])
    FIRST = Made(411, WORDS, ["/dev/vfio/vfio", "/dev/vfio/7", DEVICE], parent=410)
    SECOND = Made(420, WORDS, ["/dev/vfio/vfio", "/dev/vfio/9", DEVICE], parent=400)
    OTHER = Made(430, ["crosvm", "devices"], ["/dev/vfio/12", DEVICE], parent=400)
    ALL = (Made(350, ["sh"], children=[400]), MAIN, JAIL, FIRST, SECOND, OTHER)

    def check(self, found: Found) -> None:
        (guest,) = found.guests
        assert (guest.name, guest.pid, guest.kind) == ("arc", 400, "machine")
        assert [device.address for device in guest.devices] == [A, C]
        assert [vcpu.tid for vcpu in guest.vcpus] == [401, 402]

    def test_they_are_one_guest(self) -> None:
        self.check(Scene(self.ALL, opened=[A, C]).found())

    def test_another_program_that_it_started_is_another_guest(self) -> None:
        found = Scene(self.ALL, opened=[A, C, D]).found()
        assert devices(found) == {"arc": [A, C], "crosvm-430": [D]}

    @pytest.mark.parametrize("pid", [400, 401, 411, 420])
    def test_from_any_of_them(self, pid: int) -> None:
        fs = Scene(self.ALL, opened=[A, C]).fs()
        fs.set("/proc/401/task/401/status", "Tgid:\t400\n")
        self.check(read_process(fs, pid))

    def test_without_lists_of_children(self) -> None:
        """A kernel without CONFIG_PROC_CHILDREN: each leads to its parent."""
        everyone = [replace(each, children=()) for each in self.ALL]
        found = Scene(everyone, opened=[A]).found()
        assert devices(found) == {"arc": [A]}

    def test_a_process_that_was_forked_without_vcpus(self) -> None:
        parent = Made(500, ["spdk_tgt"], [], children=[501])
        child = Made(501, ["spdk_tgt"], ["/dev/vfio/12", DEVICE], parent=500)
        (guest,) = Scene([parent, child], opened=[D]).found().guests
        assert (guest.pid, guest.kind) == (501, "process")

    def test_parents_in_a_circle(self) -> None:
        one = Made(500, ["x"], ["/dev/vfio/12", DEVICE], parent=501, children=[501, 500])
        other = Made(501, ["x"], [], parent=500, children=[500])
        assert devices(Scene([one, other], opened=[D]).found()) == {"x-500": [D]}


class TestWhoseItIs:
    def test_one_with_vcpus_comes_first(self) -> None:
        broker = Made(50, ["broker"], ["/dev/vfio/7", DEVICE])
        assert devices(Scene([broker, QEMU], opened=[A]).found()) == {"web": [A]}

    def test_the_older_one_comes_first(self) -> None:
        secondary = replace(
            DPDK, pid=150, words=["dpdk-proc", "--proc-type=secondary"], started=900
        )
        found = Scene([secondary, DPDK], opened=[C]).found()
        assert devices(found) == {"dpdk-testpmd-200": [C]}

    @pytest.mark.parametrize(
        "forged",
        [
            Forged("/home/mallory/vfio/devices/vfio0"),
            Forged("/dev/vfio/devices/vfio0"),  # in a mount namespace of one's own
            Forged("/dev/vfio/devices/vfio0", o_path=True),  # may be had of what one may not open
        ],
    )
    @pytest.mark.parametrize("kvm", [(), KVM])
    @pytest.mark.parametrize("real", [QEMU, replace(QEMU, fds=[*KVM, A]), replace(DPDK, pid=100)])
    def test_a_path_proves_nothing(self, forged: Forged, kvm: Sequence[str], real: Made) -> None:
        words = ["qemu-system-x86_64"]
        liar = Made(50, words, [*kvm, forged], [("qemu-system-x86", "0")], uid=1000)
        opened = [C] if real.words == DPDK.words else [A]
        if opened == [C]:
            liar = replace(
                liar, fds=[*kvm, replace(forged, link=forged.link.replace("vfio0", "vfio2"))]
            )
        alone = Scene([real], opened=opened).found()
        assert alone.guests
        assert Scene([liar, real], opened=opened).found() == alone
        assert Scene([liar], opened=opened).found() == Found()

    @pytest.mark.parametrize(
        "forged", [Forged("/home/mallory/vfio/7"), Forged("/dev/vfio/7", o_path=True)]
    )
    def test_a_forged_group_proves_nothing_beside_a_device_of_ones_own(
        self, forged: Forged
    ) -> None:
        words = ["qemu-system-x86_64", "-device", f"vfio-pci,host={A}"]
        liar = Made(50, words, [*KVM, "/dev/vfio/12", forged, DEVICE], uid=1000)
        found = Scene([liar, QEMU], opened=[A, D]).found()
        assert devices(found) == {"qemu-system-x86_64-50": [D], "web": [A]}

    def test_what_one_says_of_a_device_of_ones_own_is_a_claim(self) -> None:
        """Its group's descriptor is closed: which device it has it can only say itself."""
        words = ["qemu-system-x86_64", "-name", "liar", "-device", f"vfio-pci,host={A}"]
        liar = Made(50, words, [*KVM, DEVICE], uid=1000)
        found = Scene([liar, QEMU], opened=[A, D]).found()
        assert devices(found) == {"web": [A]}
        found = Scene([liar], opened=[A]).found()
        assert (found.guests, [guest.name for guest in found.claimed]) == ((), ["liar"])

    def test_a_descriptor_that_becomes_another_file_meanwhile(self) -> None:
        """What was asked of the descriptor and of the file has to be of one inode."""
        fs = Scene([replace(QEMU, fds=[*KVM, "/dev/vfio/devices/vfio0"])], opened=[A]).fs()
        for text in (
            info("/dev/vfio/devices/vfio2"),
            info("").replace("mnt_id:\t1", "mnt_id:\t17"),
        ):
            fs.set("/proc/100/fdinfo/4", text)
            assert find_processes(fs).guests == ()

    def test_before_inodes_were_told(self) -> None:
        text = "pos:\t0\nflags:\t0100002\nmnt_id:\t17\n"
        files = {"/proc/100/fdinfo/5": text}
        assert Scene([QEMU], opened=[A], files=files).found() == Found((WEB,))

    def test_a_forged_group_is_nothing(self) -> None:
        forged = Made(
            50, ["qemu-system-x86_64", "-device", f"vfio-pci,host={A}"], [*KVM, "/dev/vfio/7"]
        )
        assert devices(Scene([forged, QEMU], opened=[A]).found()) == {"web": [A]}
        assert devices(Scene([forged], opened=[A]).found()) == {}

    def rivals(self, *users: int, container: bool = False) -> Found:
        """Who has it where one process of each of these users has A open by its own name."""
        capabilities = "00000000a80425fb" if container else None
        made = [
            Made(
                50 + place,
                [f"vmm{place}"],
                [*KVM, "/dev/vfio/devices/vfio0"],
                [("CPU 0/KVM", str(place))],
                uid=user,
                capabilities=capabilities,
            )
            for place, user in enumerate(users)
        ]
        return Scene(made, opened=[A]).found()

    def test_of_one_user_the_older_one_has_it(self) -> None:
        assert devices(self.rivals(107, 107)) == {"vmm0-50": [A]}
        assert self.rivals(107, 107).gaps == ()

    def test_of_two_users_roots_has_it(self) -> None:
        found = self.rivals(1000, 0)
        assert devices(found) == {"vmm1-51": [A]}
        where = "/sys/bus/pci/devices/0000:41:00.0"
        said = "0000:41:00.0 is open in processes 50 of user 1000, 51 of user 0: root's has it"
        assert found.gaps == (Gap(where, said),)

    @pytest.mark.parametrize("users", [(1000, 107), (107, 1000, 107)])
    def test_of_two_others_nobody_has_it_and_that_is_said(self, users: Sequence[int]) -> None:
        found = self.rivals(*users)
        assert (found.guests, found.claimed) == ((), ())
        (gap,) = found.gaps
        assert gap.path == "/sys/bus/pci/devices/0000:41:00.0"
        assert gap.error.endswith("whose it is cannot be told")

    def test_a_containers_root_is_not_the_hosts(self) -> None:
        assert self.rivals(1000, 0, container=True).guests == ()

    def test_each_keeps_what_is_its_own(self) -> None:
        both = Made(50, ["x"], ["/dev/vfio/7", DEVICE, "/dev/vfio/12", DEVICE])
        assert devices(Scene([both, QEMU], opened=[A, D]).found()) == {"web": [A], "x-50": [D]}


class TestKnown:
    def test_by_process_id(self) -> None:
        known = Guest("web", "libvirt", pid=100, devices=(GuestDevice(A, "hostdev"),))
        assert Scene([QEMU], opened=[A]).found([known]) == Found()
        assert read_process(Scene([QEMU], opened=[A]).fs(), 100, [known]) == Found()

    def test_what_libvirt_does_not_know_that_its_guest_has(self) -> None:
        known = Guest("web", "libvirt", pid=100, devices=(GuestDevice(C, "hostdev"),))
        both = replace(known, devices=(*known.devices, GuestDevice(A, "vfio")))
        fds = [*QEMU.fds, "/dev/vfio/9", DEVICE]
        scene = Scene([replace(QEMU, fds=fds)], opened=[A, C])
        assert scene.found([known]) == Found(completed=(both,))
        assert read_process(scene.fs(), 100, [known]) == Found(completed=(both,))
        assert scene.found([both]) == Found()

    def test_what_a_guest_of_libvirts_only_says_it_has_is_not_its_own(self) -> None:
        known = Guest("web", "libvirt", pid=100)
        for scene in (
            Scene([replace(QEMU, fds=[*KVM, Forged("/dev/vfio/7"), DEVICE])], opened=[A]),
            Scene([QEMU], opened=[A], hidden=[100]),
        ):
            assert scene.found([known]).completed == ()

    def test_by_uuid_where_its_process_was_not_found(self) -> None:
        known = Guest("web", "libvirt", uuid=UUID)
        assert Scene([QEMU], opened=[A]).found([known]) == Found()

    def test_by_device(self) -> None:
        known = Guest("other", "libvirt", pid=9, devices=(GuestDevice(C, "hostdev"),))
        assert devices(Scene([QEMU, DPDK], opened=[A, C]).found([known])) == {"web": [A]}

    def test_by_device_though_its_process_looks_likely(self) -> None:
        known = Guest("other", "libvirt", pid=9, devices=(GuestDevice(A, "hostdev"),))
        assert devices(Scene([QEMU, DPDK], opened=[A, C]).found([known])) == {
            "dpdk-testpmd-200": [C]
        }

    def test_what_is_known_is_not_missed(self) -> None:
        known = Guest("other", "libvirt", pid=9, devices=(GuestDevice(A, "hostdev"),))
        assert Scene(opened=[A], hidden=[1, 30]).found([known]) == Found()

    def test_a_name_that_a_known_guest_has(self) -> None:
        known = Guest("web", "libvirt", uuid=UUID, pid=9)
        (guest,) = Scene([QEMU], opened=[A]).found([known]).guests
        assert (guest.name, guest.uuid) == ("web (pid 100)", None)

    def test_those_found_before_are_found_again(self) -> None:
        before = replace(WEB, name="web (pid 100)", uuid=None)
        (guest,) = Scene([QEMU], opened=[A]).found([before]).guests
        assert guest == before

    def test_two_alike(self) -> None:
        copy = replace(QEMU, pid=110, fds=[*KVM, "/dev/vfio/9", DEVICE])
        found = Scene([QEMU, copy], opened=[A, C]).found()
        assert {guest.key: guest.pid for guest in found.guests} == {UUID: 100, "web (pid 110)": 110}


class TestOne:
    def test_it_is_as_the_whole_look_has_it(self) -> None:
        scene = Scene([QEMU, DPDK], opened=[A, C])
        for guest in scene.found().guests:
            assert guest.pid is not None
            assert read_process(scene.fs(), guest.pid) == Found((guest,))

    def test_by_one_of_its_threads(self) -> None:
        fs = Scene([QEMU], opened=[A]).fs()
        fs.set("/proc/102/task/102/status", "Tgid:\t100\n")
        assert read_process(fs, 102).guests == (WEB,)

    def test_others_are_not_looked_at(self) -> None:
        fs = Scene([QEMU, DPDK], opened=[A, C]).fs()
        read_process(fs, 100)
        assert not any(path.startswith(("/proc/200", "/proc/30/")) for _, path in fs.calls)
        assert ("listdir", "/proc") not in fs.calls

    @pytest.mark.parametrize("pid", [30, 2, 999])
    def test_none(self, pid: int) -> None:
        fs = Scene([QEMU], opened=[A]).fs()
        assert read_process(fs, pid) == Found()
        assert not any(path.startswith("/sys/class/vfio") for _, path in fs.calls)

    def test_it_cannot_take_from_another(self) -> None:
        late = Made(900, ["qemu-system-x86_64"], [*KVM, "/dev/vfio/devices/vfio0"])
        fs = Scene([QEMU, late], opened=[A]).fs()
        assert read_process(fs, 900, [WEB]) == Found()
        assert read_process(fs, 100, [WEB]) == Found((WEB,))

    def test_it_can_once_the_other_let_go(self) -> None:
        late = replace(QEMU, pid=900)
        fs = Scene([replace(QEMU, fds=KVM), late], opened=[A]).fs()
        (guest,) = read_process(fs, 900, [WEB]).guests
        assert (guest.name, guest.pid) == ("web (pid 900)", 900)

    def test_hidden(self) -> None:
        fs = Scene([replace(QEMU, words=["x"])], opened=[A], hidden=[100]).fs()
        assert read_process(fs, 100) == Found(gaps=(Gap("/proc/100/fd/*", DENIED),))


class TestHidden:
    """What is seen without the right to see descriptors, and what is not."""

    def test_roots_command_line_is_believed(self) -> None:
        assert Scene([QEMU], opened=[A], hidden=[100]).found() == Found((WEB,))

    def test_anothers_is_a_claim(self) -> None:
        found = Scene([replace(QEMU, uid=107)], opened=[A], hidden=[100]).found()
        assert found.guests == ()
        assert found.claimed == (replace(WEB, owner=107),)
        assert found.gaps == (
            Gap("/proc/*/fd/*", f"{DENIED}: whose 0000:41:00.0 is cannot be told"),
        )

    @pytest.mark.parametrize(
        ("process", "believed"),
        [
            (replace(QEMU, login=2**32 - 1), True),  # a service's
            (replace(QEMU, login=0), True),
            (replace(QEMU, login=1000), False),  # sudo(8) waits for a password, called QEMU
            (replace(QEMU, capabilities="00000000a80425fb"), False),  # a container's root
            (replace(QEMU, capabilities="0000000000000000"), False),
        ],
    )
    def test_whose_word_is_roots(self, process: Made, believed: bool) -> None:
        found = Scene([process], opened=[A], hidden=[100]).found()
        assert (found.guests, found.claimed) == (((WEB,), ()) if believed else ((), (WEB,)))

    def test_descriptors_are_listed_but_not_shown(self) -> None:
        """root without CAP_SYS_PTRACE."""
        fs = Scene([QEMU], opened=[A]).fs()
        fs.faults |= {("readlink", f"/proc/{pid}/fd/0"): errno.EACCES for pid in (1, 30, 100)}
        assert find_processes(fs) == Found((WEB,))

    def test_a_claim_does_not_take_what_is_held(self) -> None:
        liar = replace(QEMU, pid=50, uid=1000, words=[*QEMU.words, "-id", "50"])
        found = Scene([liar, QEMU], opened=[A], hidden=[50]).found()
        assert found == Found((WEB,))

    @pytest.mark.parametrize("words", [(), ("sudo", *QEMU.words), ("dpdk-testpmd", "-a", str(A))])
    def test_others_say_nothing(self, words: Sequence[str]) -> None:
        other = replace(QEMU, words=words, threads=[("other", "0-7"), *QEMU_THREADS[1:]])
        found = Scene([other], opened=[A], hidden=[1, 30, 100]).found()
        assert (found.guests, found.claimed) == ((), ())
        assert len(found.gaps) == 1

    def test_whoever_says_so_has_ended(self) -> None:
        scene = Scene([QEMU], opened=[A], hidden=[100], files={"/proc/100/stat": ""})
        assert (scene.found().guests, scene.found().claimed) == ((), ())

    def test_what_is_said_and_not_open(self) -> None:
        found = Scene([QEMU], opened=[C], hidden=[100]).found()
        assert (found.guests, found.claimed) == ((), ())

    def test_one_gap_for_five_thousand(self) -> None:
        crowd = [Made(pid) for pid in range(1000, 6000)]
        found = Scene(crowd, hidden=[each.pid for each in crowd]).found()
        which = "0000:41:00.0, 0000:42:00.0, 0000:43:00.0 and 1 more"
        assert found == Found(
            gaps=(Gap("/proc/*/fd/*", f"{DENIED}: whose {which} is cannot be told"),)
        )

    def test_what_is_hidden_does_not_matter_where_all_is_known(self) -> None:
        assert Scene([QEMU], opened=[A], hidden=[1, 30]).found().gaps == ()

    def test_in_a_namespace_of_its_own(self) -> None:
        scene = Scene(opened=[A], links={"/proc/self/ns/pid": "pid:[4026532177]"})
        why = "not all processes can be seen from here, and none that can holds 0000:41:00.0"
        assert scene.found() == Found(gaps=(Gap("/proc", why),))

    def test_others_are_not_even_listed(self) -> None:
        scene = Scene(opened=[A], removed=["/proc/1"])
        assert [gap.path for gap in scene.found().gaps] == ["/proc"]

    def test_enabled_and_nobodys(self) -> None:
        """An earlier driver left it so; all processes were seen."""
        scene = Scene(opened=[A], links={"/proc/self/ns/pid": "pid:[4026531836]"})
        assert scene.found() == Found()

    def test_vcpus_that_cannot_be_told(self) -> None:
        unnamed = replace(QEMU, threads=[("qemu", "0-7"), ("qemu", "4"), ("qemu", "5")])
        found = Scene([unnamed], opened=[A]).found()
        assert found.guests[0].vcpus == ()
        assert found.guests[0].kind == "machine"
        (gap,) = found.gaps
        assert gap.path == "/proc/100/task"
        assert gap.error.startswith("web: which threads run its 2 vCPUs cannot be told")

    def test_a_device_that_cannot_be_told(self) -> None:
        """Its group's descriptor is closed, and the command line does not name it."""
        process = replace(QEMU, fds=[*KVM, DEVICE], words=["qemu-system-x86_64"])
        gap = Gap("/proc/100/fd/*", "which device it has open cannot be told: 0000:41:00.0, maybe")
        assert Scene([process], opened=[A]).found() == Found(gaps=(gap,))
        assert Scene([process, QEMU_OF_A], opened=[A]).found().gaps == ()
        of_one = Gap(gap.path, "which device it has open cannot be told")
        assert read_process(Scene([process], opened=[A]).fs(), 100) == Found(gaps=(of_one,))

    def test_too_many_descriptors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holders, "MOST_DESCRIPTORS", 3)
        found = Scene([QEMU], opened=[A]).found()
        why = "too many to look at of user 0: whose 0000:41:00.0 is cannot be told"
        assert found == Found(gaps=(Gap("/proc/*/fd/*", why),))
        gap = Gap("/proc/100/fd/*", "too many to look at of user 0")
        assert read_process(Scene([QEMU], opened=[A]).fs(), 100) == Found(gaps=(gap,))

    def crowd(self, *users: int) -> list[Made]:
        """Thirty processes of each of these, called like a monitor, with 20 open files or just one.

        Those with one use up whatever is left.
        """
        threads = [("qemu-system-x86", "0")]
        return [
            Made(
                1000 + 100 * place + number,
                ["x"],
                ["/dev/null"] * (20 if number < 15 else 1),
                threads,
                uid=user,
            )
            for place, user in enumerate(users)
            for number in range(30)
        ]

    @pytest.mark.parametrize(
        ("bound", "most"), [("_SHARE", 100), ("_MOST_OF_USER", 100), ("_MOST_READ", 200)]
    )
    def test_one_users_crowd_does_not_hide_anothers_guest(
        self, bound: str, most: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(holders, "_SHARE", 50)
        monkeypatch.setattr(holders, bound, most)
        victim = replace(DPDK, pid=5000, uid=107)
        found = Scene([*self.crowd(1000, 1001, 1002), QEMU, victim], opened=[A, C]).found()
        assert devices(found) == {"web": [A], "dpdk-testpmd-5000": [C]}

    def test_many_who_have_one_device_open_make_one_short_line(self) -> None:
        crowd = [replace(DPDK, pid=4000 + number, uid=1000 + number % 2) for number in range(40)]
        (gap,) = Scene(crowd, opened=[C]).found().gaps
        assert "4002 of user 1000 and 37 more: whose it is cannot be told" in gap.error

    def test_who_is_skipped_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holders, "_MOST_OF_USER", 100)
        found = Scene(self.crowd(1000, 1001), opened=[A]).found()
        (gap,) = found.gaps
        assert gap.error.startswith("too many to look at of users 1000, 1001: whose 0000:41:00.0")

    def test_those_put_off_are_looked_at_in_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(holders, "_SHARE", 50)
        last = replace(DPDK, pid=5000, uid=1000)
        fs = Scene([*self.crowd(1000), last], opened=[C]).fs()
        assert devices(find_processes(fs)) == {"dpdk-testpmd-5000": [C]}
        crowded = Scene([*self.crowd(1000, 1001), last], opened=[C]).fs()
        assert devices(find_processes(crowded)) == {"dpdk-testpmd-5000": [C]}

    def test_command_lines_of_one_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where descriptors are hidden all of them are read."""
        monkeypatch.setattr(arguments, "_MOST_OF_USER", 1000)
        crowd = [Made(pid, ["x" * 90], uid=1000) for pid in range(200, 300)]
        hidden = [each.pid for each in crowd] + [900]
        fs = Scene([*crowd, replace(QEMU, pid=900)], opened=[A], hidden=hidden).fs()
        (guest,) = find_processes(fs).guests
        assert guest.pid == 900
        read = [path for operation, path in fs.calls if path.endswith("/cmdline")]
        assert len(read) < 30

    def test_the_bounds_are_wide_enough(self) -> None:
        assert descriptors.MOST_DESCRIPTORS > 2 * 2048 * 8  # eight devices of 2048 vectors


class TestOrder:
    def test_kvms_own_list_comes_first(self) -> None:
        files = {
            "/sys/kernel/debug/kvm/100-9/vcpu0/pid": "101",
            "/sys/kernel/debug/kvm/100-9/vcpu4/pid": "102",
        }
        fs = Scene([QEMU], opened=[A], files=files).fs()
        (guest,) = find_processes(fs).guests
        assert [vcpu.apic for vcpu in guest.vcpus] == [0, 4]
        assert not any(path.startswith(("/proc/30/", "/proc/1/")) for _, path in fs.calls)

    def test_then_those_that_are_called_so(self) -> None:
        fs = Scene([QEMU], opened=[A]).fs()
        find_processes(fs)
        assert ("read", "/proc/30/comm") in fs.calls
        assert ("listdir", "/proc/30/fd") not in fs.calls

    def test_then_all_others(self) -> None:
        fs = Scene([DPDK], opened=[C]).fs()
        find_processes(fs)
        assert ("listdir", "/proc/30/fd") in fs.calls


class TestDying:
    """Whatever a process does between two reads, it is left out or read as it was."""

    @pytest.mark.parametrize("number", [errno.ENOENT, errno.ESRCH])
    def test_it_ends_at_any_moment(self, number: int) -> None:
        calls = len(self.calls(None, number))
        assert calls > 20
        for moment in range(calls):
            self.calls(moment, number)

    def calls(self, moment: int | None, number: int) -> list[str]:
        fs = Scene([QEMU, DPDK], opened=[A, C]).fs()
        seen: list[str] = []

        def before(operation: str, path: str) -> None:
            if path.startswith("/proc/100/"):
                if moment is not None and len(seen) >= moment:
                    fs.faults[path] = number
                seen.append(path)

        fs.before = before
        found = find_processes(fs)
        expected = {"dpdk-testpmd-200": [C]} | ({"web": [A]} if moment is None else {})
        assert devices(found) == expected
        assert found.gaps == ()
        return seen

    def test_another_process_under_its_number(self) -> None:
        fs = Scene([QEMU], opened=[A]).fs()

        def before(operation: str, path: str) -> None:
            if path == "/proc/100/task/102/comm":
                fs.set("/proc/100/stat", f"100 (x) S 1{' 0' * 17} 5555 0")

        fs.before = before
        assert find_processes(fs) == Found()

    def test_whether_it_is_still_there(self) -> None:
        fs = Scene([QEMU], opened=[A]).fs()
        (guest,) = find_processes(fs).guests
        assert still_there(fs, guest)
        for other in (replace(guest, pid=None), replace(guest, started=None)):
            assert not still_there(fs, other)
        for stat in (f"100 (x) S 1{' 0' * 17} 5555 0", ""):
            fs.set("/proc/100/stat", stat)
            assert not still_there(fs, guest)

    def test_another_program(self) -> None:
        fs = Scene([QEMU], opened=[A]).fs()

        def before(operation: str, path: str) -> None:
            if path == "/proc/100/stat":
                fs.set("/proc/100/cmdline", "bash")

        fs.before = before
        assert find_processes(fs) == Found()


HOSTILE = [
    "qemu\n\x1b[2J",
    "\u202eqemu",
    "x" * 5000,
    "",
    "  ",
    "\ufffd\ufffd",
    ") S 1 2 3",
    "../../etc/passwd",
]


class TestHostile:
    @pytest.mark.parametrize("text", HOSTILE)
    def test_names(self, text: str) -> None:
        process = Made(
            600,
            [text, "-name", text, text],
            ["/dev/vfio/12", DEVICE, text, f"/{text}/vfio/12"],
            [(text, "3"), (text, "4")],
        )
        (guest,) = Scene([process], opened=[D]).found().guests
        assert guest.name.isprintable()
        assert 0 < len(guest.name) < 130
        assert guest.pid == 600

    @pytest.mark.parametrize("text", HOSTILE)
    def test_names_of_machines(self, text: str) -> None:
        process = replace(QEMU, words=["qemu-system-x86_64", "-name", text, "-uuid", text])
        (guest,) = Scene([process], opened=[A]).found().guests
        assert guest.name.isprintable()
        assert guest.uuid is None

    @pytest.mark.parametrize(
        "stat", ["", "100", "100 (x)", "100 (x) S", "100 (x) S 1" + " x" * 30, "\0" * 50]
    )
    def test_a_stat_that_makes_no_sense(self, stat: str) -> None:
        assert Scene([QEMU], opened=[A], files={"/proc/100/stat": stat}).found() == Found()

    def test_children_that_make_no_sense(self) -> None:
        files = {"/proc/100/task/100/children": "x -1 0 100 99999999999999 100"}
        assert Scene([QEMU], opened=[A], files=files).found() == Found((WEB,))
