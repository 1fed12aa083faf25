"""Made hosts: say what a host has, get its ``/proc``, ``/sys`` and ``/run``.

    from tests.hostmaker import MadeHost, MadeInterrupt, passthrough

    host = MadeHost(
        online="0-15",
        nodes={0: "0-7", 1: "8-15"},
        devices=(
            passthrough("0000:82:00.0", vectors=4, first_irq=100, node=1),
            passthrough("0000:02:00.0", vectors=2, first_irq=110, node=0, affinity="3"),
        ),
        interrupts=(MadeInterrupt(9, ("acpi",)),),
        kvm={"kvm_intel/enable_apicv": "Y"},
        domains={"web": "<domain>…</domain>"},
    )
    host.write(tmp_path / "host")                  # a directory for --sysroot
    host.write(tmp_path / "host", scratch=True)    # the same, and writes are taken
    host.pack(tmp_path / "host.tar.xz", top="h")   # an archive
    host.fs()                                      # in memory, writable, fast
    host.live()                                    # in memory, behaves as the running machine

What differs a little is said with ``dataclasses.replace``; single paths with `files` (added or
overridden), `modes`, `links` and `removed` (patterns as fnmatch has them; a directory goes with
what is in it).

A made host is a recording: what it has not, the host has not. ``foreign=True`` makes it a tree
of someone else's, without ``recording.json``: a kind of file that is not there is then not
known. `opened` says what is behind links of
descriptors. `errors` gives paths whose reading failed when the host was recorded.

`MadeFs` counts calls in `calls`, raises what `faults` says, and calls `before` ahead of each
access, so that a test can take a vector away between the listing and the reading.
"""

from __future__ import annotations

import errno
import fnmatch
import io
import json
import os
import stat
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from virtirq.cpuset import CpuSet
from virtirq.host import paths
from virtirq.host.fs import LiveFs, Look, OpenFile
from virtirq.host.paths import KernelPath
from virtirq.host.scratch import LOG, ScratchFs
from virtirq.host.statx import FileId
from virtirq.host.tree import FORMAT, RECORDING, Entry, TreeFs
from virtirq.model import PciAddress

BOOT_ID: Final = "5f1c2a04-2f6e-4a52-9d6f-0c8f6f6f7a11"
_ARCHIVES: Final = {".tar": "w:", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz", ".zst": "w:"}


@dataclass(frozen=True)
class MadeInterrupt:
    """An interrupt line. `affinity` and `effective`: CPU lists.

    `affinity` None is every online CPU; `effective` None is the first online CPU of `affinity`,
    and ``""`` is none. `counts`: interrupts taken by CPU.
    """

    irq: int
    actions: Sequence[str] = ()
    affinity: str | None = None
    effective: str | None = None
    counts: Mapping[int, int] = field(default_factory=dict)
    mode: int = 0o644


@dataclass(frozen=True)
class MadeDevice:
    """A PCI function. `local_cpus` None is the node's CPUs; `line` None is that of `intx`.

    `vfio_device` is the number of its VFIO device, which kernels since 6.1 show.
    Two functions that share an INTx line name the same `MadeInterrupt`, with both actions.
    """

    address: str
    vendor: int = 0x8086
    device: int = 0x1572
    class_code: int = 0x020000
    node: int | None = 0
    local_cpus: str | None = None
    driver: str | None = "vfio-pci"
    iommu_group: int | None = None
    physfn: str | None = None
    kind: str = "msix"
    vectors: Sequence[MadeInterrupt] = ()
    intx: MadeInterrupt | None = None
    line: int | None = None
    vfio_device: int | None = None


def passthrough(
    address: str,
    *,
    vectors: int = 1,
    first_irq: int = 100,
    kind: str = "msix",
    affinity: str | None = None,
    effective: str | None = None,
    node: int | None = 0,
    class_code: int = 0x020000,
    physfn: str | None = None,
    iommu_group: int | None = None,
    counts: Mapping[int, int] | None = None,
) -> MadeDevice:
    """A function that a guest holds: `vectors` interrupts with VFIO's action names.

    `kind` is ``msix``, ``msi`` or ``intx`` (then there is one interrupt).
    """
    taken = {} if counts is None else counts
    if kind == "intx":
        intx = MadeInterrupt(first_irq, (f"vfio-intx({address})",), affinity, effective, taken)
        made: tuple[MadeInterrupt, ...] = ()
    else:
        intx = None
        made = tuple(
            MadeInterrupt(
                first_irq + index, (f"vfio-{kind}[{index}]({address})",), affinity, effective, taken
            )
            for index in range(vectors)
        )
    return MadeDevice(
        address,
        node=node,
        class_code=class_code,
        physfn=physfn,
        iommu_group=iommu_group,
        kind=kind,
        vectors=made,
        intx=intx,
    )


@dataclass(frozen=True)
class _Node:
    """A file (`text`), a link (`link`) or a directory (neither)."""

    text: str | None = None
    link: str | None = None
    mode: int = 0o444

    @property
    def entry(self) -> Entry:
        if self.link is not None:
            return Entry(stat.S_IFLNK | 0o777, self.link)
        if self.text is not None:
            return Entry(stat.S_IFREG | self.mode)
        return Entry(stat.S_IFDIR | 0o755)


@dataclass(frozen=True)
class MadeHost:
    """A host. CPUs are CPU lists; None leaves the file out.

    `possible` "" is `online`; `nohz_full` "" is ``(null)`` as the kernel prints it. `nodes` None
    is one node with every online CPU, and empty a kernel without NUMA. `siblings` and `llcs`
    list the groups; by default each CPU is its own core and each node shares a cache.
    `distances`: rows of the SLIT by node. `symlinked`: ``/sys/bus/pci/devices`` and the like
    hold links into ``/sys/devices``, as the kernel has them. `old_msi`: ``msi_irqs/N/mode``, as
    before Linux 3.14. `masks`: also the files with hexadecimal masks. `partitions`: CPUs of
    isolated cpuset partitions. `performance`, `efficiency`: the two sorts of a hybrid CPU.
    `llc_sizes`: KiB, by group of `llcs`. `packages`: the CPUs of each socket, if that is known.
    """

    online: str | None = "0-7"
    possible: str | None = ""
    isolated: str | None = ""
    nohz_full: str | None = ""
    nodes: Mapping[int, str] | None = None
    distances: Mapping[int, Sequence[int]] | None = None
    siblings: Sequence[str] | None = None
    llcs: Sequence[str] | None = None
    devices: Sequence[MadeDevice] = ()
    interrupts: Sequence[MadeInterrupt] = ()
    irqbalance: int | None = None
    kvm: Mapping[str, str] = field(default_factory=dict)
    iommus: Mapping[str, int] = field(default_factory=dict)
    boot_id: str | None = BOOT_ID
    kernel: str | None = "6.12.8"
    domains: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    opened: Mapping[str, FileId] = field(default_factory=dict)
    removed: Sequence[str] = ()
    errors: Mapping[str, int] = field(default_factory=dict)
    foreign: bool = False
    symlinked: bool = False
    old_msi: bool = False
    masks: bool = False
    partitions: str | None = None
    performance: str | None = None
    efficiency: str | None = None
    llc_sizes: Mapping[str, int] = field(default_factory=dict)
    packages: Sequence[str] = ()

    def fs(self, log: Path | None = None) -> MadeFs:
        """The host in memory; writes are modelled as `ScratchFs` does."""
        made = MadeFs(MemoryFs(self._tree()), log)
        made.opened |= self.opened
        return made

    def live(self) -> MadeFs:
        """The host in memory as if it were the running machine: absence is a fact."""
        made = self.fs()
        made.recording = None
        return made

    def write(self, root: Path, *, scratch: bool = False) -> Path:
        """Writes the tree under `root`, which is made; returns `root`."""
        top = str(root)
        made: set[str] = set()

        def directory(path: str) -> None:
            if path not in made:
                made.add(path)
                os.makedirs(path, exist_ok=True)

        directory(top)
        for path, node in self._tree().items():
            where = top + path
            if node.link is not None:
                directory(os.path.dirname(where))
                os.symlink(node.link, where)
            elif node.text is None:
                directory(where)
            else:
                directory(os.path.dirname(where))
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                descriptor = os.open(where, flags, node.mode)
                os.write(descriptor, f"{node.text}\n".encode())
                os.close(descriptor)
        if scratch:
            directory(os.path.dirname(f"{top}/{LOG}"))
            Path(top, LOG).touch()
        return root

    def pack(self, archive: Path, *, top: str = "") -> Path:
        """Packs the tree by suffix (.tar, .gz, .bz2, .xz, .zst), in the folder `top` if given."""
        folder = f"/{top.strip('/')}" if top else ""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=_ARCHIVES[archive.suffix]) as tar:  # type: ignore[call-overload]
            for path, node in self._tree().items():
                member = tarfile.TarInfo(f"{folder}{path}".lstrip("/"))
                data = b""
                if node.link is not None:
                    member.type, member.linkname = tarfile.SYMTYPE, node.link
                elif node.text is None:
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                else:
                    data = f"{node.text}\n".encode()
                    member.size, member.mode = len(data), node.mode
                tar.addfile(member, io.BytesIO(data))
        content = buffer.getvalue()
        if archive.suffix == ".zst":
            done = subprocess.run(["zstd", "-qc"], input=content, capture_output=True, check=True)
            content = done.stdout
        archive.write_bytes(content)
        return archive

    def _tree(self) -> dict[str, _Node]:
        tree: dict[str, _Node] = {"/proc": _Node(), "/sys": _Node()}
        for where, node in self._all():
            if tree.get(where, node) != node:
                raise ValueError(f"two contents for {where}")
            tree[where] = node
        for path, text in self.files.items():
            tree[path] = _Node(text, mode=tree[path].mode if path in tree else 0o444)
        for path, link in self.links.items():
            tree[path] = _Node(link=link)
        for path, mode in self.modes.items():
            tree[path] = _Node(tree[path].text, mode=mode)
        if self.removed:
            patterns = [f"{gone}{more}" for gone in self.removed for more in ("", "/*")]
            for path in list(tree):
                if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
                    del tree[path]
        if not self.foreign:
            described = {
                "format": FORMAT,
                "virtirq": "made",
                "taken_at": 0,
                "patterns": [path.pattern for path in paths.MANIFEST],
                "errors": dict(self.errors),
            }
            tree.setdefault(RECORDING, _Node(json.dumps(described)))
        return tree

    def _all(self) -> Iterator[tuple[str, _Node]]:
        yield from self._cpus()
        yield from self._nodes()
        interrupts = {each.irq: each for each in self.interrupts}
        yield paths.PCI_DIR, _Node()
        for device in self.devices:
            yield from self._device(device)
            for each in (*device.vectors, *((device.intx,) if device.intx else ())):
                if interrupts.setdefault(each.irq, each) != each:
                    raise ValueError(f"IRQ {each.irq} is described twice")
        yield from self._interrupts(interrupts)
        for name, text in self.kvm.items():
            module, _, parameter = name.partition("/")
            yield f"/sys/module/{module}/parameters/{parameter}", _Node(text)
        for name, capability in self.iommus.items():
            base = f"{paths.IOMMU_DIR}/{name}"
            if self.symlinked:
                yield base, _Node(link=f"../../devices/virtual/iommu/{name}")
                base = f"/sys/devices/virtual/iommu/{name}"
            yield f"{base}/intel-iommu/cap", _Node(f"{capability:x}")
        if self.irqbalance is not None:
            yield f"{paths.IRQBALANCE_DIR}/irqbalance{self.irqbalance}.sock", _Node("")
            yield f"/proc/{self.irqbalance}", _Node()
        if self.boot_id is not None:
            yield paths.BOOT_ID.pattern, _Node(self.boot_id)
        if self.kernel is not None:
            yield paths.OS_RELEASE.pattern, _Node(self.kernel)
        for number, (_, text) in enumerate(self.domains.items(), start=1):
            yield f"/virtirq/domains/{number:03d}.xml", _Node(text)

    def _cpus(self) -> Iterator[tuple[str, _Node]]:
        possible = self.possible if self.possible != "" else self.online
        nohz_full = "(null)" if self.nohz_full == "" else self.nohz_full
        for path, text in (
            (paths.CPU_ONLINE, self.online),
            (paths.CPU_POSSIBLE, possible),
            (paths.CPU_ISOLATED, self.isolated),
            (paths.CPU_NOHZ_FULL, nohz_full),
            (paths.CGROUP_ISOLATED, self.partitions),
            (paths.CPU_PERFORMANCE, self.performance),
            (paths.CPU_EFFICIENCY, self.efficiency),
        ):
            if text is not None:
                yield path.pattern, _Node(text)
        if self.siblings is None:
            for cpu in self._online:
                yield paths.CPU_SIBLINGS.at(f"cpu{cpu}"), _Node(str(cpu))
        for group in self.siblings or ():
            for cpu in CpuSet.parse(group) & self._online:
                yield paths.CPU_SIBLINGS.at(f"cpu{cpu}"), _Node(group)
        for group in self.packages:
            for cpu in CpuSet.parse(group) & self._online:
                yield paths.CPU_PACKAGE.at(f"cpu{cpu}"), _Node(group)
        for group in self._node_cpus().values() if self.llcs is None else self.llcs:
            for cpu in CpuSet.parse(group) & self._online:
                for index, level, cpus in (("index0", 1, str(cpu)), ("index3", 3, group)):
                    yield paths.CACHE_LEVEL.at(f"cpu{cpu}", index), _Node(str(level))
                    yield paths.CACHE_CPUS.at(f"cpu{cpu}", index), _Node(cpus)
                if group in self.llc_sizes:
                    size = f"{self.llc_sizes[group]}K"
                    yield paths.CACHE_SIZE.at(f"cpu{cpu}", "index3"), _Node(size)

    def _nodes(self) -> Iterator[tuple[str, _Node]]:
        nodes = self._node_cpus()
        if nodes:
            yield paths.NODES_ONLINE.pattern, _Node(str(CpuSet(nodes)))
        for number, cpus in nodes.items():
            row = (self.distances or {}).get(number)
            if row is None:
                row = [10 if other == number else 21 for other in sorted(nodes)]
            yield paths.NODE_CPUS.at(f"node{number}"), _Node(cpus)
            yield paths.NODE_DISTANCE.at(f"node{number}"), _Node(" ".join(map(str, row)))

    def _device(self, device: MadeDevice) -> Iterator[tuple[str, _Node]]:
        base, up = f"{paths.PCI_DIR}/{device.address}", "../../.."
        if self.symlinked:
            address = PciAddress.parse(device.address)
            real = f"/sys/devices/pci{address.domain:04x}:{address.bus:02x}/{device.address}"
            yield base, _Node(link=f"../../..{real.removeprefix('/sys')}")
            base, up = real, "../../.."
        else:
            up = "../../../.."
        local = device.local_cpus
        if local is None:
            nodes = self._node_cpus()
            local = nodes.get(-1 if device.node is None else device.node, self.online or "")
        yield f"{base}/vendor", _Node(f"0x{device.vendor:04x}")
        yield f"{base}/device", _Node(f"0x{device.device:04x}")
        yield f"{base}/class", _Node(f"0x{device.class_code:06x}")
        if device.node is not None:
            yield f"{base}/numa_node", _Node(str(device.node))
        yield f"{base}/local_cpulist", _Node(local)
        line = device.line
        if line is None:
            line = device.intx.irq if device.intx else 0
        yield f"{base}/irq", _Node(str(line))
        if device.driver is not None:
            yield f"{base}/driver", _Node(link=f"{up}/bus/pci/drivers/{device.driver}")
            yield f"/sys/bus/pci/drivers/{device.driver}", _Node()
        if device.iommu_group is not None:
            yield (
                f"{base}/iommu_group",
                _Node(link=f"{up}/kernel/iommu_groups/{device.iommu_group}"),
            )
            yield f"/sys/kernel/iommu_groups/{device.iommu_group}", _Node()
        if device.physfn is not None:
            yield f"{base}/physfn", _Node(link=f"../{device.physfn}")
        if device.vfio_device is not None:
            yield (
                f"{base}/vfio-dev/vfio{device.vfio_device}/dev",
                _Node(f"511:{device.vfio_device}"),
            )
        for vector in device.vectors:
            where = f"{base}/msi_irqs/{vector.irq}"
            yield f"{where}/mode" if self.old_msi else where, _Node(device.kind)

    def _interrupts(self, interrupts: Mapping[int, MadeInterrupt]) -> Iterator[tuple[str, _Node]]:
        yield paths.IRQ_DIR, _Node()
        yield "/sys/kernel/irq", _Node()
        online = self._online
        everywhere = str(online)
        possible = tuple(CpuSet.parse(self.possible or self.online or ""))
        none = ",".join("0" * len(possible))
        first: dict[str, str] = {}
        for irq, each in interrupts.items():
            affinity = everywhere if each.affinity is None else each.affinity
            effective = each.effective
            if effective is None:
                if affinity not in first:
                    able = CpuSet.parse(affinity) & online
                    first[affinity] = str(able.first()) if able else ""
                effective = first[affinity]
            base = f"/proc/irq/{irq}"
            yield f"{base}/smp_affinity_list", _Node(affinity, mode=each.mode)
            yield f"{base}/effective_affinity_list", _Node(effective)
            if self.masks:
                mask = CpuSet.parse(affinity).mask()
                yield f"{base}/smp_affinity", _Node(mask, mode=each.mode)
                yield f"{base}/effective_affinity", _Node(CpuSet.parse(effective).mask())
            base = f"/sys/kernel/irq/{irq}"
            yield f"{base}/actions", _Node(",".join(each.actions))
            counts = none
            if each.counts:
                counts = ",".join(str(each.counts.get(cpu, 0)) for cpu in possible)
            yield f"{base}/per_cpu_count", _Node(counts)

    @property
    def _online(self) -> CpuSet:
        return CpuSet.parse(self.online or "")

    def _node_cpus(self) -> Mapping[int, str]:
        return {0: self.online or ""} if self.nodes is None else self.nodes


class MemoryFs(TreeFs):
    """A made tree in memory."""

    def __init__(self, tree: Mapping[str, _Node]) -> None:
        super().__init__("a made host")
        self._nodes: dict[str, _Node] = {}
        self._children: dict[str, dict[str, None]] = {"/": {}}
        for path, node in tree.items():
            self.put(path, node)

    def put(self, path: str, node: _Node) -> None:
        self._nodes[path] = node
        if node.text is None and node.link is None:
            self._children.setdefault(path, {})
        while path != "/":
            parent, _, name = path.rpartition("/")
            parent = parent or "/"
            siblings = self._children.setdefault(parent, {})
            if name in siblings:
                return
            siblings[name] = None
            self._nodes.setdefault(parent, _Node())
            path = parent

    def drop(self, path: str) -> None:
        """Takes a path out, with what is in it."""
        for gone in [each for each in self._nodes if each == path or each.startswith(f"{path}/")]:
            del self._nodes[gone]
            self._children.pop(gone, None)
        parent, _, name = path.rpartition("/")
        self._children.get(parent or "/", {}).pop(name, None)
        self._real.clear()

    def _entry(self, path: str) -> Entry | None:
        node = self._nodes.get(path)
        return None if node is None else node.entry

    def _names(self, path: str) -> list[str]:
        return list(self._children.get(path, ()))

    def _content(self, path: str) -> bytes:
        return (self._nodes[path].text or "").encode()


class MadeFs(ScratchFs):
    """A made host that counts, and fails on demand.

    `calls`: every access so far as (operation, path), operations being the methods of HostFs.
    `faults`: errno by path, or by (operation, path). `before`: called ahead of each access.
    """

    def __init__(self, base: MemoryFs, log: Path | None = None) -> None:
        super().__init__(base, log)
        self.memory = base
        self.calls: list[tuple[str, str]] = []
        self.faults: dict[str | tuple[str, str], int] = {}
        self.before: Callable[[str, str], None] | None = None
        self.opened: dict[str, FileId] = {}
        """What `file_id` says of a path; of any other, that it is a file like all others."""
        self._freed: Counter[str] = Counter()
        self.opened_at: int | None = None

    def file_id(self, path: str) -> FileId:
        self._access("file_id", path)
        return self.opened.get(path, FileId(1, 1))

    def open(self, path: str) -> OpenFile:
        self._access("open", path)
        self.memory.mode(path)
        return _MadeFile(self, path)

    def read(self, path: str) -> str:
        self._access("read", path)
        self._check_alive(path)
        return super().read(path)

    def listdir(self, path: str) -> list[str]:
        self._access("listdir", path)
        return super().listdir(path)

    def readlink(self, path: str) -> str:
        self._access("readlink", path)
        return super().readlink(path)

    def mode(self, path: str) -> int:
        self._access("mode", path)
        return super().mode(path)

    def write(self, path: str, text: str) -> None:
        self._access("write", path)
        self._check_alive(path)
        super().write(path, text)

    def covers(self, path: KernelPath) -> bool:
        return self.recording is None or super().covers(path)

    def set(self, path: str, text: str) -> None:
        """Changes or adds a file behind the readers' back."""
        self.__dict__.pop("_used", None)
        known = self.memory._nodes.get(path)
        self.memory.put(path, _Node(text, mode=known.mode if known else 0o444))

    def free(self, irq: int) -> None:
        """The kernel frees an interrupt: every trace of it goes, and its open files are dead."""
        self._freed[str(irq)] += 1
        self._moved.pop(irq, None)
        self.__dict__.pop("_used", None)
        self.memory.drop(f"/proc/irq/{irq}")
        self.memory.drop(f"/sys/kernel/irq/{irq}")
        for path in [each for each in self.memory._nodes if each.endswith(f"/msi_irqs/{irq}")]:
            self.memory.drop(path)

    def times_freed(self, path: str) -> int:
        """How often the interrupt was freed that a path of /proc/irq is of."""
        return self._freed[path.split("/")[3]] if path.startswith("/proc/irq/") else 0

    def _check_alive(self, path: str) -> None:
        """As procfs has it: EIO for an open file whose interrupt was freed since."""
        if self.opened_at is not None and self.times_freed(path) != self.opened_at:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    def _access(self, operation: str, path: str) -> None:
        self.calls.append((operation, path))
        if self.before is not None:
            self.before(operation, path)
        number = self.faults.get((operation, path), self.faults.get(path))
        if number is not None:
            raise OSError(number, os.strerror(number), path)


class _MadeFile(OpenFile):
    """An open file of a made host, which dies with its interrupt."""

    def __init__(self, fs: MadeFs, path: str) -> None:
        self._fs = fs
        self._path = path
        self._freed = fs.times_freed(path)

    def read(self) -> str:
        with self._opened():
            return self._fs.read(self._path)

    def write(self, text: str) -> None:
        with self._opened():
            self._fs.write(self._path, text)

    def close(self) -> None:
        pass

    @contextmanager
    def _opened(self) -> Iterator[None]:
        self._fs.opened_at = self._freed
        try:
            yield
        except FileNotFoundError as error:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self._path) from error
        finally:
            self._fs.opened_at = None


class RootedFs(LiveFs):
    """The files of a made host that was written under a root, read and written as live ones.

    Plain files are not truncated by a write: what is written must be as long as what was there.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    def read(self, path: str) -> str:
        return super().read(self.root + path)

    def listdir(self, path: str) -> list[str]:
        return super().listdir(self.root + path)

    def readlink(self, path: str) -> str:
        return super().readlink(self.root + path)

    def mode(self, path: str) -> int:
        return super().mode(self.root + path)

    def isdir(self, path: str) -> bool:
        return super().isdir(self.root + path)

    def open(self, path: str) -> OpenFile:
        return super().open(self.root + path)

    def look(self, path: str, sysfs: str, handler: str) -> Look:
        return super().look(self.root + path, self.root + sysfs, handler and self.root + handler)

    def incarnation(self, path: str) -> int | None:
        return super().incarnation(self.root + path)
